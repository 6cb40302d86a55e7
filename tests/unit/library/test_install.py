"""The library installed alone: the wheel holds what it needs, and a module works with only torch and einops."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import attn_lib

ROOT = Path(__file__).parents[3]

TEN_LINES = """
import torch, attn_lib
from attn_lib import measure, plug

net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(32, 8, 1))
x = torch.randn(2, 3, 9, 11)
report = plug.insert(net, "1", "se", example=x, reduction=4)
with attn_lib.trace(net) as t:
    net(x)
print(attn_lib.__file__, t.shapes(), measure.cost(net, x).params, sep="\\n")
"""

# None in sys.modules: to Python, as if the package were not installed.
BLOCK = "import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
BLOCKED = {"matplotlib", "ipywidgets", "IPython", "PIL", "skimage", "sklearn", "statsmodels", "scipy", "pandas", "tqdm",
           "timm", "torchvision", "numpy"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy of the sources alone: setuptools would pack a stale build/ folder, and leave one behind.
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "attn_lib", "pyproject.toml", "README.md",
                            "LICENSE"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in filter(lambda name: (ROOT / name).exists(), files):
        (folder / "sources" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "sources" / name).write_bytes((ROOT / name).read_bytes())
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
    subprocess.run([*pip_wheel, folder / "sources"], check=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_the_library_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert all(name.split("/")[0] == "attn_lib" or ".dist-info/" in name for name in names)
    tracked = {p.relative_to(ROOT).as_posix() for pattern in ("*.py", "*.js", "*.css", "*.json", "*.pyi", "py.typed")
               for p in (ROOT / "attn_lib").rglob(pattern)}
    assert tracked <= set(names), sorted(tracked - set(names))


def test_metadata_has_the_version_asks_for_torch_and_einops_and_pins_neither(wheel):
    with zipfile.ZipFile(wheel) as z:
        metadata = z.read(next(n for n in z.namelist() if n.endswith("METADATA"))).decode()
    assert f"\nVersion: {attn_lib.__version__}\n" in metadata
    needs = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines()
             if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert sorted(need.split(">=")[0] for need in needs) == ["einops", "torch"]
    assert not any("==" in need or "<" in need for need in needs)


def test_ten_lines_with_only_torch_and_einops(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as z:
        z.extractall(tmp_path / "site")
    code = BLOCK.format(blocked=BLOCKED) + f"sys.path.insert(0, {str(tmp_path / 'site')!r})\n" + TEN_LINES
    run = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    where, shapes, params = run.stdout.splitlines()
    assert where.startswith(str(tmp_path))
    assert shapes == "{'1.se.z': (2, 32), '1.se.s': (2, 32), '1.se.y': (2, 32, 9, 11)}"
    assert int(params) == 3 * 32 * 9 + 32 + 32 * 8 + 8 + 2 * 32 * 8 + 8 + 32


LOOK_AROUND = """
import inspect, io, pydoc, rlcompleter, attn_lib

missing = {"card", "viz"}
assert {name for name in attn_lib.__all__ if not hasattr(attn_lib, name)} == missing
assert {name for name, _ in inspect.getmembers(attn_lib)} >= set(attn_lib.__all__) - missing
assert set(attn_lib.__all__) <= set(dir(attn_lib))
completer = rlcompleter.Completer({"attn_lib": attn_lib})
found = {completer.complete("attn_lib.", i) for i in range(len(dir(attn_lib)))}
assert {"attn_lib.create(", "attn_lib.measure", "attn_lib.plug"} <= found, found
page = io.StringIO()
pydoc.Helper(output=page)(attn_lib)
assert "list_modules" in page.getvalue()
try:
    attn_lib.viz
except AttributeError as error:
    print(error)
if "IPython" not in sys.modules:
    from IPython.core.completer import provisionalcompleter
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell(user_ns={"attn_lib": attn_lib})
    for jedi in (True, False):
        shell.Completer.use_jedi = jedi
        with provisionalcompleter():
            found = [match.text for match in shell.Completer.completions("attn_lib.m", 10)]
        assert any(text.endswith("measure") for text in found), found
"""


@pytest.mark.parametrize("blocked", [{"numpy"}, {"matplotlib"}, BLOCKED], ids=["numpy", "matplotlib", "everything"])
def test_looking_around_without_the_extras(blocked, tmp_path):
    """What is not there is named with the extra that brings it, and asking for it breaks nothing."""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", BLOCK.format(blocked=blocked) + LOOK_AROUND],
                         cwd=ROOT, env=os.environ | {"IPYTHONDIR": str(tmp_path)}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "pip install 'attn_lib[chapters]'" in run.stdout
    assert any(name in run.stdout for name in blocked), "the missing package is named"


def test_a_fault_of_the_library_itself_is_not_taken_for_a_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "attn_lib.viz.card", None)
    with pytest.raises(ImportError):
        attn_lib.card  # noqa: B018


def test_no_forward_asks_what_the_oldest_torch_cannot_compile():
    """Found with torch 2.6 on Python 3.10: there `is_autocast_available` breaks the graph, the newest compiles it."""
    package = ROOT / "attn_lib"
    families = [file for family in attn_lib.catalog.FAMILIES for file in (package / family).glob("*.py")]
    below = [*(package / "ops").glob("*.py"), *(package / f"{name}.py" for name in ("checks", "guest", "tap"))]
    assert families and len(below) > 3
    found = [f"{file.name}: {function.name}" for file in [*families, *below]
             for function in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
             if isinstance(function, ast.FunctionDef) and "is_autocast_available" in ast.unparse(function)]
    assert not found
