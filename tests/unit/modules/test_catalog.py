"""The catalog: one table, no second list, and errors that name what was wrong."""

import difflib
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import attn_lib
from attn_lib import catalog

ROOT = Path(attn_lib.__file__).parent


def test_every_module_file_registers_a_class():
    """A file in a family that registers nothing would escape every test that runs over the catalog."""
    registered = {catalog.entry(id).cls.__module__ for id in attn_lib.list_modules()}
    for family in catalog.FAMILIES:
        for file in (ROOT / family).glob("[!_]*.py"):
            assert f"attn_lib.{family}.{file.stem}" in registered, file


@pytest.mark.parametrize("id", attn_lib.list_modules())
def test_entry_stands_where_it_says(id):
    e = attn_lib.entry(id)
    assert e.cls.__module__ == f"attn_lib.{e.family}.{e.id}"
    assert e.id in attn_lib.list_modules(e.family)
    assert catalog.entry_of(e.cls) is e and catalog.entry_of(torch.nn.Linear) is None
    assert set(e.builds_on) <= set(attn_lib.list_modules())


@pytest.mark.parametrize("id", attn_lib.list_modules())
def test_family_exports_the_class(id):
    e = attn_lib.entry(id)
    family = import_module(f"attn_lib.{e.family}")
    name = e.cls.__name__
    assert name in family.__all__ and getattr(family, name, None) is e.cls, f"import {name} in {family.__file__}"


@pytest.mark.parametrize("id", attn_lib.list_modules())
def test_paper_is_in_the_bibliography(id):
    paper = attn_lib.entry(id).paper
    bibliography = (ROOT.parent / "book" / "references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{\s*([^,\s]+)", bibliography, re.MULTILINE)
    near = difflib.get_close_matches(paper, keys)
    assert paper in keys, f"paper={paper!r} is no key of book/references.bib; like it: {', '.join(near) or 'none'}"


def test_families_import_only_the_ground_floor():
    """measure, plug, tasks, toys and viz stand above the families, never below them."""
    allowed = {"catalog", "checks", "ops", "tap"}
    for family in catalog.FAMILIES:
        for file in (ROOT / family).glob("[!_]*.py"):
            lines = file.read_text(encoding="utf-8").splitlines()
            imported = {line.split()[1].lstrip(".") for line in lines if line.startswith("from .")}
            assert imported <= allowed, f"{file} imports {imported - allowed}"


def test_import_needs_only_torch_and_einops():
    """Pictures, widgets and data sets load on first use, so a module can be used where they are not installed."""
    heavy = ["matplotlib", "ipywidgets", "IPython", "skimage", "sklearn", "statsmodels", "PIL", "pandas", "torchvision"]
    code = f"import attn_lib, sys; attn_lib.list_modules(); print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("call", "message"), [
    (lambda: attn_lib.entry("sse"), "id='sse' must be one of .*did you mean 'se'"),
    (lambda: attn_lib.list_modules("chanel"), "family='chanel' must be one of .*did you mean 'channel'"),
    (lambda: attn_lib.create("se"), "SEAttention missing 1 required positional argument: 'channels'"),
    (lambda: attn_lib.create("se", channels=8, ratio=2), "unexpected keyword argument 'ratio'"),
    (lambda: attn_lib.example("se", "wide"), "variant='wide' must be one of no bias, narrow"),
    (lambda: attn_lib.example("se", size=(3,)), r"size=\(3,\) must hold 2 numbers \(H, W\)"),
])
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_registration_refuses_what_it_does_not_know():
    fields = dict(name="n", summary="s", paper="p", title="t", venue="v", year=2000, layout="B C H W", example={})
    with pytest.raises(ValueError, match="ids must be unique"):
        catalog.register("se", family="channel", **fields)(torch.nn.Module)
    with pytest.raises(ValueError, match="family='chanel'"):
        catalog.Entry(id="new", cls=torch.nn.Module, family="chanel", **fields)
    with pytest.raises(ValueError, match="commutes_with='rotation'"):
        catalog.Entry(id="new", cls=torch.nn.Module, family="channel", commutes_with={"rotation"}, **fields)


def test_example_is_seeded_and_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, (x,) = attn_lib.example("se")
    assert torch.equal(torch.rand(3), expected)
    second, (x2,) = attn_lib.example("se")
    assert torch.equal(first(x), second(x2))


def test_shapes_follow_the_layout():
    fields = dict(cls=torch.nn.Module, family="temporal", name="n", summary="s", paper="p", title="t", venue="v",
                  year=2000)
    series = catalog.Entry(id="a", layout="B T N C, B 2", example=dict(dim=6), **fields)
    assert series.shapes(3, (5, 7)) == [(3, 5, 7, 6), (3, 2)]
    assert series.output == "B T N C"
    video = catalog.Entry(id="b", layout="B C T H W", example=dict(channels=4), **fields)
    assert video.shapes(1, (2, 3, 5)) == [(1, 4, 2, 3, 5)]
