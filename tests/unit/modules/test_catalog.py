"""The catalog: one table, no second list, and errors that name what was wrong."""

import ast
import copy
import difflib
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import attn_lib
from attn_lib import catalog
from tests.unit.cases import each_module
from tests.unit.reference import reference

ROOT = Path(attn_lib.__file__).parent


def test_every_module_file_registers_a_class():
    """A file in a family that registers nothing would escape every test that runs over the catalog."""
    registered = {catalog.entry(id).cls.__module__ for id in attn_lib.list_modules()}
    for family in catalog.FAMILIES:
        for file in (ROOT / family).glob("[!_]*.py"):
            assert f"attn_lib.{family}.{file.stem}" in registered, file


def test_every_family_has_a_file_that_proves_its_limits():
    """A file that is missing, or that forgets its last line, would prove nothing and fail nowhere."""
    for family in catalog.FAMILIES:
        proofs = Path(__file__).parent / "limits" / f"test_{family}.py"
        assert f'every_limit_is_proven("{family}")' in proofs.read_text(encoding="utf-8"), proofs


@each_module
def test_entry_stands_where_it_says(id):
    e = attn_lib.entry(id)
    assert e.cls.__module__ == f"attn_lib.{e.family}.{e.id}"
    assert e.id in attn_lib.list_modules(e.family)
    assert catalog.entry_of(e.cls) is e and catalog.entry_of(torch.nn.Linear) is None
    assert set(e.builds_on) <= set(attn_lib.list_modules())
    assert set(e.reduces_to) <= {*attn_lib.list_modules(), *catalog.OPERATIONS}


@each_module
def test_modules_are_measured_on_one_footing(id):
    """64 channels, or the nearest number that the paper's heads or groups allow; the example's layouts."""
    e = attn_lib.entry(id)
    assert 60 <= e.measured["channels"] <= 72, "a module of another width cannot be compared"
    assert (e.layout_of(catalog.MEASURED), e.output_of(catalog.MEASURED)) == (e.layout, e.output)
    module, inputs = attn_lib.example(id, catalog.MEASURED)
    y = module.eval()(*inputs)
    assert all(torch.isfinite(t).all() for t in (y if isinstance(y, tuple) else (y,)))


def test_an_alias_names_one_module():
    """So that a search for it ends at one row; ids are names too."""
    names = [alias.lower() for id in attn_lib.list_modules() for alias in attn_lib.entry(id).aliases]
    assert sorted({name for name in names if names.count(name) > 1}) == []
    ids = {id: attn_lib.entry(id) for id in attn_lib.list_modules()}
    assert [(id, a) for id, e in ids.items() for a in e.aliases if a.lower() in ids and a.lower() != id] == []


@each_module
def test_errata_are_shown_by_tests_and_stand_in_the_docstring(id):
    e = attn_lib.entry(id)
    tests = Path(__file__).parent
    sources = [tests / f"test_{id}.py", tests / "limits" / f"test_{e.family}.py"]
    defined = {node.name for file in sources for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
               if isinstance(node, ast.FunctionDef)}
    for erratum in e.errata:
        assert erratum.test in defined, f"test={erratum.test!r} is no test in {' or '.join(map(str, sources))}"
        assert erratum.there.endswith(".") and erratum.here.endswith("."), "sentences"
        assert erratum.there in e.cls.__doc__ and erratum.here in e.cls.__doc__


@each_module
def test_family_exports_the_class(id):
    e = attn_lib.entry(id)
    family = import_module(f"attn_lib.{e.family}")
    name = e.cls.__name__
    assert name in family.__all__ and getattr(family, name, None) is e.cls, f"import {name} in {family.__file__}"


@each_module
def test_papers_are_in_the_bibliography(id):
    bibliography = (ROOT.parent / "book" / "references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{\s*([^,\s]+)", bibliography, re.MULTILINE)
    for paper in attn_lib.entry(id).papers:
        near = ", ".join(difflib.get_close_matches(paper.key, keys)) or "none"
        assert paper.key in keys, f"key={paper.key!r} is not in book/references.bib; like it: {near}"


def test_operations_and_modules_have_different_names():
    """A limit is named by either."""
    assert not set(catalog.OPERATIONS) & set(attn_lib.list_modules())
    used = {what for id in attn_lib.list_modules() for what in attn_lib.entry(id).reduces_to}
    assert set(catalog.OPERATIONS) <= used, "an operation that no module becomes at a limit"


# From the ground up; what stands on one floor imports from the floors below it alone.
FLOORS = [{"checks", "console", "guest", "layout"}, {"tap"}, {"catalog", "ops"}, {*catalog.FAMILIES}, {"measure"},
          {"plug", "toys"}, {"viz"}, {"tasks"}]


def imported(file: Path) -> set[str]:
    """Parts of the library that a file imports, wherever in it."""
    package, found = file.relative_to(ROOT).parent.parts, set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            base = [ROOT.name, *package[:len(package) + 1 - node.level]] if node.level else []
            names = [".".join(filter(None, [*base, node.module, name])) for name in names]
        found |= {name.split(".")[1] for name in names if name.startswith(f"{ROOT.name}.")}
    return found


def test_families_import_only_the_ground_floor():
    """measure, plug, tasks, toys and viz stand above the families, never below them."""
    for family in catalog.FAMILIES:
        for file in (ROOT / family).glob("[!_]*.py"):
            foreign = imported(file) - {"catalog", "checks", "ops", "tap"}
            assert not foreign, f"{file} imports {foreign}"


def test_no_import_leads_upstairs():
    below: set[str] = set()
    for floor in FLOORS:
        for part in floor:
            for file in [ROOT / f"{part}.py", *(ROOT / part).rglob("*.py")]:
                upstairs = imported(file) - below - {part} if file.exists() else set()
                assert not upstairs, f"{file} imports {upstairs}"
        below |= floor
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__", "__main__"} == below


def test_import_needs_only_torch_and_einops():
    """Pictures, widgets and data sets load on first use, so a module can be used where they are not installed."""
    heavy = ["matplotlib", "ipywidgets", "IPython", "skimage", "sklearn", "statsmodels", "PIL", "pandas", "torchvision"]
    code = f"import attn_lib, sys; attn_lib.list_modules(); print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("call", "message"), [
    (lambda: attn_lib.entry("see"), "id='see' must be one of .*did you mean 'se'"),
    (lambda: attn_lib.create("SE"), r"id='SE' must be one of .*did you mean 'se'\?"),
    (lambda: attn_lib.create("squeeze and Excite"), r"did you mean 'se'\?"),
    (lambda: attn_lib.create("CrissCrossAttention"), r"did you mean 'ccnet'\?"),
    (lambda: attn_lib.create("non local"), r"did you mean 'non_local'\?"),
    (lambda: attn_lib.create("se", 8, 16), r"create\('se'\): too many positional arguments; SEAttention takes"),
    (lambda: attn_lib.create("se", 8, channels=8), "multiple values for argument 'channels'"),
    (lambda: attn_lib.create("se", 8, device="gpu"), "device='gpu' must name a device, such as 'cpu'"),
    (lambda: attn_lib.create("se", 8, dtype=torch.int64), "dtype=torch.int64 must be a floating-point type"),
    (lambda: attn_lib.create("se", 8, dtype="bfloat16"), "dtype='bfloat16' must be a floating-point type"),
    (lambda: attn_lib.list_modules("chanel"), "family='chanel' must be one of .*did you mean 'channel'"),
    (lambda: attn_lib.create("se"), r"missing a required argument: 'channels'; SEAttention takes \(channels"),
    (lambda: attn_lib.create("se", channels=8, ratio=2), "unexpected keyword argument 'ratio'; .*reduction"),
    (lambda: attn_lib.example("se", "wide"), "variant='wide' must be one of 'no bias', 'narrow'"),
    (lambda: attn_lib.example("se", size=(3,)), r"size=\(3,\) must hold 2 numbers \(H, W\)"),
])
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


PAPER = catalog.Paper("key", "title", "venue", 2000)
FIELDS = dict(name="n", summary="s", aliases=["N"], action="gate", papers=[PAPER], layout="B C H W", example={})


def test_registration_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"id='se' is taken by attn_lib\.channel\.se\.SEAttention"):
        catalog.register("se", family="channel", **FIELDS)(torch.nn.Module)
    new = dict(id="new", cls=torch.nn.Module, family="channel")
    for change, message in [
        (dict(family="chanel"), "family='chanel' must be one of .*did you mean 'channel'"),
        (dict(commutes_with={"rotation"}), "commutes_with='rotation'"),
        (dict(refuses={"coreml": "why"}), "refuses='coreml'"),
        (dict(aliases=[]), "aliases=.* must hold at least one name"),
        (dict(aliases="SE"), "aliases='SE' must hold"),
        (dict(action="gaet"), "action='gaet' must be one of .*did you mean 'gate'"),
        (dict(variants={"measured": {}}), "'measured' is the name of the options in `measured`"),
        (dict(papers=[]), "papers=.* must hold at least one Paper"),
        (dict(layout="B C h w"), "'h' is no axis"),
        (dict(output="B, "), "layout='B, ' must name the axes"),
        (dict(variant_outputs={"wide": "B C"}), "variant_outputs='wide' must be one of"),
    ]:
        with pytest.raises(ValueError, match=message):
            catalog.Entry(**FIELDS | new | change)


def test_an_erratum_names_its_source():
    with pytest.raises(ValueError, match=r"source='relese' must be one of .*did you mean 'release'"):
        catalog.Erratum("relese", "a.", "b.", "test_c")


@each_module
def test_every_name_of_a_module_leads_to_it(id):
    """Whatever a reader calls it, in whatever letters: its class, its name in running text, its aliases."""
    e = attn_lib.entry(id)
    for name in (e.cls.__name__, e.name, *e.aliases):
        for spelt in {name.upper(), name.lower().replace("-", " ")} - {id}:
            with pytest.raises(ValueError, match=r"must be one of .*did you mean [^?]*'" + re.escape(id) + r"'.*\?$"):
                attn_lib.create(spelt)


@each_module
def test_a_class_is_made_where_and_as_it_is_asked_for(id):
    """As torch's own layers are, and so by whatever makes its layers that way; the numbers are the same, rounded."""
    e = attn_lib.entry(id)
    torch.manual_seed(0)
    plain = attn_lib.create(id, **e.options())
    torch.manual_seed(0)
    placed = e.cls(**e.options(), device="cpu", dtype=torch.bfloat16)
    for key, value in placed.state_dict().items():
        expected = plain.state_dict()[key]
        expected = expected.bfloat16() if expected.is_floating_point() else expected
        assert value.dtype == expected.dtype and torch.equal(value, expected), key
    meta = e.cls(**e.options(), device="meta")
    assert all(t.is_meta for t in meta.state_dict().values()) and meta.state_dict().keys() == plain.state_dict().keys()
    parameters = inspect.signature(e.cls).parameters
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in ("device", "dtype"))
    assert catalog.PLACEMENT in e.cls.__doc__.split("Shape:")[0]


def test_a_subclass_has_its_own_signature_and_inherits_the_rest():
    class Inherits(attn_lib.entry("se").cls):
        pass

    class Narrow(attn_lib.entry("se").cls):
        def __init__(self, channels):
            super().__init__(channels, reduction=channels, dtype=torch.float64)

    def names(cls):
        return list(inspect.signature(cls).parameters)

    assert names(Inherits) == ["channels", "reduction", "bias", "device", "dtype"] and names(Narrow) == ["channels"]
    assert Inherits(8, reduction=2, device="meta").W1.weight.is_meta
    assert Narrow(8).W1.weight.dtype == torch.float64 and Narrow(8).W1.weight.shape == (1, 8)
    assert copy.deepcopy(Narrow(8)).W2.bias.dtype == torch.float64


def test_the_source_of_an_init_is_the_authors():
    assert "self.W1 = nn.Linear" in inspect.getsource(attn_lib.entry("se").cls.__init__)


def test_channels_may_stand_first():
    torch.manual_seed(0)
    a = attn_lib.create("condconv", 8, 12, experts=2)
    torch.manual_seed(0)
    b = attn_lib.create("condconv", channels=8, out_channels=12, experts=2)
    assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    assert str(attn_lib.create("se", 64)) == str(attn_lib.create("se", channels=64))


def test_timm_takes_a_class_for_its_attention():
    timm = reference("timm")
    layer = attn_lib.entry("eca").cls
    net = timm.create_model("resnet18", num_classes=5, block_args=dict(attn_layer=layer), dtype=torch.float64)
    found = [m for m in net.modules() if type(m) is layer]
    assert len(found) == 8 and {p.dtype for m in found for p in m.parameters()} == {torch.float64}
    assert net(torch.randn(2, 3, 32, 32, dtype=torch.float64)).shape == (2, 5)


@pytest.fixture
def own_table(monkeypatch):
    """A copy of the table, for one test."""
    attn_lib.list_modules()
    monkeypatch.setattr(catalog, "_ENTRIES", dict(catalog._ENTRIES))


def cell(summary):
    """A notebook's cell that registers a class."""
    class Mine(torch.nn.Module):
        pass

    Mine.__module__, Mine.__qualname__ = "__main__", "Mine"
    return catalog.register("mine", family="channel", **FIELDS | dict(summary=summary))(Mine)


def test_a_cell_that_registers_can_be_run_twice(own_table):
    cell("first")
    again = cell("second")
    assert attn_lib.entry("mine").cls is again and attn_lib.entry("mine").summary == "second"
    with pytest.raises(ValueError, match=r"'mine' is taken by __main__\.Mine"):
        catalog.register("mine", family="channel", **FIELDS)(torch.nn.Module)


def test_a_type_error_from_within_a_module_stays_one(own_table):
    class Broken(torch.nn.Module):
        def __init__(self, channels):
            super().__init__()
            torch.zeros("three")  # its sentence, too, speaks of arguments

    catalog.register("broken", family="channel", **FIELDS)(Broken)
    with pytest.raises(TypeError):
        attn_lib.create("broken", channels=3)


# ---- importing the families ------------------------------------------------------------------------------------------


def fresh(code):
    """Run code in a new process, in which nothing has asked the catalog yet; what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


FAULTY = """
import builtins, sys, attn_lib
from importlib.machinery import PathFinder

class Faulty:
    def find_spec(self, name, path=None, target=None):
        if name == "attn_lib.spatial.ccnet" and faults:
            raise faults.pop()

sys.meta_path.insert(0, Faulty())
faults = [{fault}, {fault}]
for _ in range(3):
    try:
        print(len(attn_lib.list_modules()))
    except (ImportError, KeyboardInterrupt) as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("fault", ["ImportError()", "KeyboardInterrupt()"])
def test_a_failed_or_interrupted_import_is_no_table(fault):
    """The same error again, not a table of the families that came before it; and all of it once the cause is gone."""
    name = fault.removesuffix("()")
    assert fresh(FAULTY.format(fault=fault)) == [name, name, str(len(attn_lib.list_modules()))]


def test_a_file_that_failed_half_way_can_be_imported_again():
    """Its class was registered by the time it failed."""
    code = """
import sys, attn_lib, attn_lib.catalog as catalog
original = catalog.register
def failing(id, **fields):
    enter = original(id, **fields)
    def then_fail(cls):
        enter(cls)
        if id == "ccnet" and faults:
            raise faults.pop()
        return cls
    return then_fail
catalog.register, faults = failing, [RuntimeError("half-way")]
try:
    attn_lib.list_modules()
except RuntimeError as error:
    print(error)
print(attn_lib.create("ccnet", channels=8).channels)
"""
    assert fresh(code) == ["half-way", "8"]


def test_threads_that_ask_first_all_see_the_whole_table():
    code = """
import sys, threading, attn_lib
sys.setswitchinterval(1e-5)
barrier, seen = threading.Barrier(8), []
def ask():
    barrier.wait()
    attn_lib.create("vip", channels=8, height=4, width=4, segments=2)
    seen.append(len(attn_lib.list_modules()))
threads = [threading.Thread(target=ask) for _ in range(8)]
[t.start() for t in threads]; [t.join(120) for t in threads]
print(len(seen), *set(seen))
"""
    assert fresh(code) == ["8", str(len(attn_lib.list_modules()))]


# ---- examples --------------------------------------------------------------------------------------------------------


def test_example_is_seeded_and_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, (x,) = attn_lib.example("se")
    assert torch.equal(torch.rand(3), expected)
    second, (x2,) = attn_lib.example("se")
    assert torch.equal(first(x), second(x2))


def test_shapes_follow_the_layout():
    fields = FIELDS | dict(cls=torch.nn.Module, family="temporal")
    series = catalog.Entry(**fields | dict(id="a", layout="B T N C, B 2", example=dict(channels=6)))
    assert series.shapes(3, (5, 7)) == [(3, 5, 7, 6), (3, 2)]
    assert series.output == "B T N C"
    video = catalog.Entry(**fields | dict(id="b", layout="B C T H W", example=dict(channels=4, frames=9, width=9)))
    assert video.shapes(1, (2, 3, 5)) == [(1, 4, 2, 3, 5)]
    assert video.options(size=(2, 3, 5)) == dict(channels=4, frames=2, width=5), "made for the size that is asked for"


def test_variants_may_have_axes_of_their_own():
    either = catalog.Entry(id="c", cls=torch.nn.Module, family="fusion", **FIELDS | dict(
        layout="B C H W, B C H W", example=dict(channels=4),
        variants={"series": dict(channels=4, layout="B T N C"), "with logits": dict(channels=4, logits=True)},
        variant_outputs={"with logits": "B C H W, B K"}))
    assert (either.layout_of(), either.output_of()) == ("B C H W, B C H W", "B C H W")
    assert (either.layout_of("series"), either.output_of("series")) == ("B T N C, B T N C", "B T N C")
    assert (either.layout_of("with logits"), either.output_of("with logits")) == (either.layout, "B C H W, B K")
    assert either.shapes(2, (5, 7), "series") == [(2, 5, 7, 4)] * 2
    assert [tuple(x.shape) for x in either.make_inputs(2, (5, 7))] == [(2, 4, 5, 7)] * 2
    with pytest.raises(ValueError, match=r"variant='serie' must be one of .*did you mean 'series'"):
        either.layout_of("serie")
