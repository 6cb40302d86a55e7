"""What a type checker and an editor know of the library: on a reader's script, on the stub, on the package itself."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import attn_lib
from book.tools import signatures

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "pyproject.toml"

SCRIPT = """
import torch
import attn_lib
from attn_lib import measure, plug, tasks, viz
from attn_lib.channel import SEAttention

@attn_lib.register("mine", family="channel", name="My gate", summary="One gate.", aliases=["mine"], action="gate",
                   papers=[attn_lib.Paper(key="me", title="Notes", venue="none", year=2026)],
                   layout="B C H W", example=dict(channels=8))
class Gate(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w * x

se = attn_lib.create("se", 64, reduction=8, device="cpu")
reduction: int = se.reduction
gates: list[SEAttention] = [se, SEAttention(64)]
x = torch.randn(2, 3, 9, 11)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU())
report = plug.insert(net, "1", "se", example=x, reduction=4)
with attn_lib.trace(net) as t:
    net(x)
print(t.shapes(), measure.cost(net, {"input": x}).flops, report.params, attn_lib.entry("se").paper.year)
report.undo()
scores = tasks.compare("lamplit_digits", ["se", Gate, None], seeds=[0], steps=20)
viz.bars({"z": t["1.se.z"][0], "s": t["1.se.s"][0]}, title="Which gates are open?", alt="Two rows of bars.")
viz.points(torch.rand(9, 11), {"a": 9 * torch.rand(5, 2)}, anchor={"a": (1, 2)}, title="Where?", alt="Five dots.")
"""

TYPES = {  # of what a reader calls
    'attn_lib.create("se", 64)': "attn_lib.channel.se.SEAttention",
    'attn_lib.create("se", 64).reduction': "int",
    'attn_lib.create("mine")': "torch.nn.modules.module.Module",
    "Gate(8)": "script.Gate",
    'attn_lib.card("se")': "attn_lib.viz.card.Card",
    'plug.insert(net, "1", "se")': "attn_lib.plug.report.Report",
    "plug.inserted(net)[0].calls": "int | None",
    'tasks.compare("lamplit_digits", ["se", Gate]).mean("se")': "float",
    'tasks.task("cloakroom").network(Gate)': "torch.nn.modules.module.Module",
    'viz.curves({"se": [1.0, 2.0]}, title="?", alt=".", xlabel="", ylabel="")': "attn_lib.viz.figures.Figure",
    'viz.explore_pixels(x[0], x[0, 0], title="?", alt=".")': "attn_lib.viz.explore.page.Explorer",
    "toys.split(x, x)[0][1].ndim": "int",
}

WRONG = """
import attn_lib

attn_lib.crate("se", 64)
wrong: int = attn_lib.create("eca", 64)
attn_lib.create("se", 64).reduction.upper()
attn_lib.list_modules(1)
attn_lib.viz.bars(attn_lib, title="?", alt=".")
attn_lib.tasks.compare("lamplit_digits", [3])
attn_lib.plug.fuse(attn_lib.create("se"), "up2", "gated", skip="down2", example=None)
"""


def mypy(*arguments: str) -> subprocess.CompletedProcess:
    """mypy as a reader runs it; what it learns of torch is kept for the next test."""
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / "_build" / "mypy"), *arguments]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture
def strict(tmp_path):
    """Checks a script, strictly, as one that imports an installed library."""
    def check(text: str) -> subprocess.CompletedProcess:
        (tmp_path / "script.py").write_text(text, encoding="utf-8")
        return mypy("--config-file", os.devnull, "--strict", "--follow-imports=silent", str(tmp_path / "script.py"))

    return check


def test_a_script_of_a_reader_is_known_strictly(strict):
    done = strict(SCRIPT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_wrong_in_a_script_is_found(strict):
    lines = [int(line.split(":")[1]) for line in strict(WRONG).stdout.splitlines() if ": error: " in line]
    assert lines == [4, 5, 6, 7, 8, 9, 10]


def test_an_editor_knows_what_a_call_returns(strict):
    done = strict(SCRIPT + "from attn_lib import toys\n" + "".join(f"reveal_type({call})\n" for call in TYPES))
    assert dict(zip(TYPES, re.findall('Revealed type is "(.*)"', done.stdout), strict=True)) == TYPES


def test_the_package_is_typed():
    """All but what pyproject.toml names, which may only become less: no file is left out, and one error let pass."""
    options = "disable_error_code|ignore_errors|disallow_.*|warn_.*|follow_imports"
    excused = re.findall(rf"^(?:{options}) = .*", CONFIG.read_text(encoding="utf-8"), re.MULTILINE)
    assert excused == ['disable_error_code = ["no-any-return"]']
    done = mypy("attn_lib")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (ROOT / "attn_lib" / "py.typed").exists()


def test_the_stub_is_that_of_the_catalog():
    assert signatures.PATH.read_text(encoding="utf-8") == signatures.stub(), "python -m book.tools.signatures --write"


def test_the_stub_knows_every_id():
    """By its own reading, not the generator's."""
    tree = ast.parse(signatures.PATH.read_text(encoding="utf-8"))
    known = {ast.literal_eval(node.args.args[0].annotation.slice): ast.unparse(node.returns)
             for node in tree.body if isinstance(node, ast.FunctionDef) and node.args.vararg is None}
    assert known == {id: attn_lib.entry(id).cls.__name__ for id in attn_lib.list_modules()}
    se = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and "'se'" in ast.unparse(n.args))
    assert ast.unparse(se.args).startswith("id: Literal['se'], channels: int, *, reduction: int=16, bias: bool=True, ")
