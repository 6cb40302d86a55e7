"""A reader's own module, registered as the library's are, gets what they get: the contract, the card, costs, `plug`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import attn_lib
from attn_lib import catalog, measure, plug

ROOT = Path(__file__).parents[3]

MINE = '''
import torch
from torch import nn

import attn_lib
from attn_lib.checks import check_feature_map, check_int
from attn_lib.tap import tap


@attn_lib.register(
    "{id}", family="channel", name="{id} gate", aliases=["{id}er"], action="gate", layout="B C H W",
    summary="It multiplies by the gate of the largest entry.", example=dict(channels=8),
    papers=[attn_lib.Paper(key="me2026", title="Notes", venue="unpublished", year=2026)],
    commutes_with={{"channel_permutation", "spatial_permutation", "row_column_permutation", "translation", "flip_h",
                    "flip_w", "transpose"}},
)
class {id}(nn.Module):
    """A gate for each channel: y = s · x with s = σ(w · max of x).

    Args:
        channels: C, at least 1.

    Shape:
        x (B, C, H, W) → y (B, C, H, W).

    Raises:
        ValueError: for another input.

    Paper:
        Notes, 2026.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x):
        check_feature_map(x, self.channels)
        s = tap("s", torch.sigmoid(self.w.to(x.dtype) * x.amax((2, 3))), "B C")
        return tap("y", {y}, "B C H W")
'''


@pytest.fixture
def room(tmp_path):
    """A folder with two modules of a reader's: a good one, and one that writes into its input."""
    (tmp_path / "good.py").write_text(MINE.format(id="good", y="x * s[:, :, None, None]"), encoding="utf-8")
    (tmp_path / "bad.py").write_text(MINE.format(id="bad", y="x.mul_(s.detach()[:, :, None, None])"), encoding="utf-8")
    return tmp_path


def test_the_contract_holds_for_it_and_can_fail(room):
    """As a reader runs it, `pytest -p good --id good …`, for two at once."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "good", "-p", "bad",
               "tests/unit/modules/test_contract.py", "-k", "good or (bad and left_alone)"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(room), str(ROOT)])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1 and "test_input_is_left_alone[bad]" in failed[0], done.stdout + done.stderr
    assert int(done.stdout.rsplit(" passed", 1)[0].split()[-1]) >= 25, done.stdout


def test_everything_else_takes_it(room, monkeypatch):
    attn_lib.list_modules()
    monkeypatch.setattr(catalog, "_ENTRIES", dict(catalog._ENTRIES))
    monkeypatch.syspath_prepend(room)
    import good

    try:
        assert attn_lib.entry("good").cls is good.good and "good" in attn_lib.list_modules("channel")
        card = repr(attn_lib.card("good", "whole"))
        assert card.startswith("good gate (good)") and "Notes" in card and "At its limits" not in card
        assert measure.cost(*attn_lib.example("good")).params == 1
        net, x = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()), torch.randn(2, 3, 9, 11)
        report = plug.insert(net, "0", "good", example=x)
        with attn_lib.trace(net) as t:
            net(x)
        assert t.names() == ["0.good.s", "0.good.y"] and report.params == (224, 225)
        with pytest.raises(ValueError, match="did you mean 'good'"):
            attn_lib.create("Gooder", 8)
        assert attn_lib.create("good", 8, dtype=torch.float64).w.dtype == torch.float64
    finally:
        sys.modules.pop("good")


def test_an_id_that_is_taken_is_refused_at_once():
    """Not when the library's own file of that id comes to be imported, which would put the blame there."""
    code = f"""
import attn_lib, torch
try:
    attn_lib.register("se", family="channel", name="n", summary="s", aliases=["N"], action="gate", layout="B C H W",
                      papers=[attn_lib.Paper("key", "title", "venue", 2000)], example={{}})(
        type("Mine", (torch.nn.Module,), {{"__module__": "__main__"}}))
except ValueError as error:
    print(error)
assert len(attn_lib.list_modules()) == {len(attn_lib.list_modules())}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "id='se' is taken by attn_lib.channel.se.SEAttention" in done.stdout


@pytest.mark.parametrize(("fields", "message"), [
    (dict(famly="channel"), r"register\('new'\): .*(famly|missing)"),
    (dict(), r"register\('new'\): missing a required (keyword-only )?argument"),
])
def test_a_field_that_is_unknown_or_missing_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        attn_lib.register("new", **fields)(torch.nn.Module)
    assert "new" not in attn_lib.list_modules()


def test_a_class_that_takes_device_and_dtype_itself_is_left_as_it_is(monkeypatch):
    attn_lib.list_modules()
    monkeypatch.setattr(catalog, "_ENTRIES", dict(catalog._ENTRIES))

    class Own(torch.nn.Linear):
        """Its own."""

    before = Own.__init__
    attn_lib.register("own", family="channel", name="n", summary="s", aliases=["N"], action="gate", layout="B N C",
                      papers=[attn_lib.Paper("key", "title", "venue", 2000)], example={})(Own)
    assert Own.__init__ is before and Own(2, 3, device="meta").weight.is_meta and Own.__doc__ == "Its own."
