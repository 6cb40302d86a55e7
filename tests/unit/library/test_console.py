"""Whatever the library prints can be printed, also where the console lacks signs such as →, µ and σ."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import attn_lib
from attn_lib.console import printable

ROOT = Path(__file__).parents[3]
NARROW = ["cp1252", "gbk", "ascii"]
each_encoding = pytest.mark.parametrize("encoding", NARROW)

PRINT_EVERYTHING = """
import copy, sys, torch
import attn_lib
from attn_lib import measure, plug, tap, toys, viz
from attn_lib.measure.progress import _counter, progress

net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
x = torch.randn(2, 3, 9, 9)
report = plug.insert(net, "1", "se", example=x, reduction=4)
print(report, report.summary(), repr(report), report.output, sep="\\n")
report = plug.insert(copy.deepcopy(net), "0", "simam", example=x, measure_time=True)
print(report)
print(net)
for seconds in (2.0, 2e-3, 2e-6, 2e-9):
    print(measure.Timing(seconds, seconds / 9, 9, "CPU, 1 thread"))
print(measure.cost(net, x), measure.Ratio(1.5, 0.1), measure.timing(net, x, seconds=1e-3))
print(measure.compare_timings({"a": (net, x), "σ → b": (net, x)}, rounds=3))
print(measure.Ceilings("CPU µ", 1e9, {"float32": 1e9}))
for id in attn_lib.list_modules():
    for variant in (None, *attn_lib.entry(id).variants):
        module, inputs = attn_lib.example(id, variant)
        with attn_lib.trace() as t:
            module(*inputs)
        print(t, repr(t), module)
        for name in t.names():
            t.check(name, t[name])
with attn_lib.trace() as t:
    tap.tap("σ̂₂→", x, "B C H′ W′")
print(t)
t.check("σ̂₂→", x)
for mine in (x + 1, x[0]):
    try:
        t.check("σ̂₂→", mine)
    except AssertionError as error:
        print(error)
history = toys.fit(net, (x, torch.zeros(2, 7, 7, dtype=torch.long)), steps=3, batch=2)
print(history, repr(history), toys.Scores({"W₂ → ∞": [0.5]}, {}, {}, 1.0))
print(attn_lib.card("se"), attn_lib.card("simam"))
print(viz.bars(torch.ones(3), title="What does σ → 1 keep?", alt="σ"), viz.family_map(title="σ → ?", alt="σ"))
for tool in (progress, _counter):
    list(tool([1, 2], "σ → µ"))
"""


def run(encoding, *arguments):
    """A Python whose standard output and error can write `encoding` only."""
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", *arguments], cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(encoding, "replace")
    return done.stdout.decode(encoding)


@each_encoding
def test_everything_that_prints(encoding, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{PRINT_EVERYTHING}", encoding="utf-8")
    text = run(encoding, str(script))
    assert ("->" in text) == (encoding != "gbk"), "GBK has the arrow"
    assert {"cp1252": "2.00 µs ±", "gbk": "2.00 us ±", "ascii": "2.00 us +/-"}[encoding] in text


@each_encoding
def test_the_command(encoding, tmp_path):
    run(encoding, "-m", "attn_lib.measure", "--help")
    fake = ("import sys, runpy; from attn_lib.measure import suite, Ceilings;"
            "suite.ceilings = lambda _: Ceilings('fake', 1e10, {'float32': 1e11});"
            f"sys.argv = ['x', '--quick', '--ids', 'simam', '--device', 'cpu', '--out', {str(tmp_path / 'σ→.json')!r}];"
            "from attn_lib.measure.__main__ import main; main()")
    assert "14" in run(encoding, "-c", fake)


def test_the_overview():
    """`python -m attn_lib` says what there is: the version, every module, every name, how to go on."""
    text = run("ascii", "-m", "attn_lib")
    assert text.startswith(f"attn_lib {attn_lib.__version__}, {len(attn_lib.list_modules())} modules, torch ")
    words = set(re.findall(r"[\w.]+", text))
    assert words >= {*attn_lib.list_modules(), *attn_lib.__all__, "attn_lib.measure"}


README = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(1)


def test_what_the_readme_shows():
    text = run("cp1252", "-c", README)
    assert "# parameters, operations and time, before and after" in README
    for promised in ("parameters", "FLOPs", "time"):
        assert re.search(rf"^{promised} .*->", text, re.MULTILINE), promised


@each_encoding
def test_help(encoding):
    text = run(encoding, "-c", "import attn_lib; help(attn_lib); help(attn_lib.entry('se').cls)")
    assert "Squeeze-and-Excitation" in text


def test_nothing_changes_where_every_sign_can_be_written():
    text = "3 µs → 2 µs, × 1.50 ± 0.02, σ̂₂"
    assert printable(text) == text  # pytest's standard output is in UTF-8, as a notebook's


@pytest.mark.parametrize(("encoding", "expected"), [
    ("cp1252", "3 µs -> 2, × 1 ± 0, ?"), ("gbk", "3 us → 2, × 1 ± 0, ?"), ("ascii", "3 us -> 2, x 1 +/- 0, ?"),
    (None, "3 µs → 2, × 1 ± 0, ₂"),
])
def test_plain_signs_for_those_that_are_missing(encoding, expected, monkeypatch):
    monkeypatch.setattr(sys, "stdout", type("Console", (), {"encoding": encoding})())
    assert printable("3 µs → 2, × 1 ± 0, ₂") == expected
    monkeypatch.setattr(sys, "stdout", None)  # as under pythonw
    assert printable("→") == "→"


def test_errors_are_written_in_signs_that_consoles_have():
    """An error cannot know where it will be printed: what is raised, or handed to a check, has plain signs only."""
    found = []
    for file in (ROOT / "attn_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            check = isinstance(node, ast.Call) and getattr(node.func, "id", "").startswith("check_")
            if check or isinstance(node, ast.Raise):
                for text in (n.value for n in ast.walk(node) if isinstance(n, ast.Constant)):
                    found += [(file.name, text) for encoding in ("cp1252", "gbk")
                              if isinstance(text, str) and "?" in text.encode(encoding, "replace").decode(encoding)
                              and "?" not in text]
    assert not found


def test_every_module_with_a_str_of_its_own_goes_through_printable():
    """A new `__str__`, `__repr__` or `print` is found here: it passes `printable`, or writes plain text."""
    for file in (ROOT / "attn_lib").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            prints = isinstance(node, ast.FunctionDef) and node.name in ("__str__", "__repr__", "summary")
            if prints or (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"):
                source = ast.get_source_segment(text, node)
                assert source.isascii() or "printable(" in source, f"{file}:{node.lineno}"

