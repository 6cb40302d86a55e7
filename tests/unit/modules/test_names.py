"""Names are spelled alike in every module: ASCII, and as the notation and CONTRIBUTING have them."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import attn_lib
from attn_lib import ops
from book.tools.anatomy import axes
from tests.unit.cases import each_case, each_module

ROOT = Path(__file__).parents[3]
FILES = {id: Path(inspect.getfile(attn_lib.entry(id).cls)) for id in attn_lib.list_modules()}
FILES |= {f"ops/{file.stem}": file for file in sorted(Path(ops.__file__).parent.glob("*.py"))}
each_file = pytest.mark.parametrize("id", FILES)  # ops, too, has files

OPTION = re.compile(r"[a-z][a-z0-9_]*")
PARAMETER = re.compile(r"""
    W([a-z]+\d*|\d+)               # a matrix and what it makes, Wq, Wz1; or its number, W1
    | (?!W)[A-Z]+[a-z]*\d*         # another symbol of the paper's, Rh, F1, LCE
    | (?!w_)[a-z][a-z0-9_]*        # a word, norm, running_mean; or a vector of weights, wf
    | \d+                          # one of a list
""", re.VERBOSE)
TAP = re.compile(r"([A-Z]+|[a-z]+)\d*(_[A-Za-z0-9]+)*'*")  # an index follows an underscore; primes count repetitions


def axes_of_the_notation() -> set[str]:
    """Symbols in the first column of the table of axes, as code writes them: C_r is Cr."""
    text = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
    table = text.split("## Sizes and axes")[1].split("\n## ")[0]
    firsts = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    return {symbol.replace("_", "") for symbol in re.findall(r"\$(\w+)\$", firsts)}


AXES = axes_of_the_notation()


def identifiers(source: str) -> set[str]:
    """Every name that a file gives or uses."""
    fields = ("id", "arg", "attr", "name", "asname")
    return {name for node in ast.walk(ast.parse(source)) for field in fields
            if isinstance(name := getattr(node, field, None), str)}


def trace_of(id: str, variant: str | None) -> attn_lib.trace:
    module, inputs = attn_lib.example(id, variant)
    with attn_lib.trace() as t:
        module(*inputs)
    return t


# ---- the rules tell right from wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "right", "wrong"), [
    (PARAMETER, "Wq Wtheta Wz1 W1 wf Rh F1 LCE gamma norm running_mean 0", "WQ W_theta W w_f γ Wq_ BNorm_1"),
    (TAP, "z A q_r x_p E_inv s_avg zh mu dp theta X_H x1 H''", "Mc Δp μ q_ A! x-p 'H"),
    (OPTION, "channels min_dim topk", "C minDim λ"),
], ids=["parameter", "tap", "option"])
def test_rules_tell_right_from_wrong(rule, right, wrong):
    assert [name for name in right.split() if not rule.fullmatch(name)] == []
    assert [name for name in wrong.split() if rule.fullmatch(name)] == []


def test_the_notation_has_one_case_for_an_axis():
    assert {"B", "C", "H", "W", "N", "Ho", "Wo", "Cr", "Nk", "h", "d"} <= AXES
    assert not AXES & {"b", "c", "w", "t", "o", "k", "D"}


def test_identifiers_are_found_wherever_a_file_has_them():
    source = "import a as μ\nclass B(object):\n    def δ(self, λ=1):\n        self.γ = x = f(θ=λ)"
    assert {"μ", "δ", "λ", "γ", "θ", "B", "x"} <= identifiers(source)


# ---- every module keeps them -----------------------------------------------------------------------------------------


@each_file
def test_identifiers_are_ascii(id):
    assert [name for name in identifiers(FILES[id].read_text(encoding="utf-8")) if not name.isascii()] == []


@each_file
def test_patterns_name_axes_as_the_notation_does(id):
    assert axes.problems([{"source": FILES[id].read_text(encoding="utf-8")}]) == []


@each_file
def test_sizes_that_may_differ_have_no_primes(id):
    docs = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(FILES[id].read_text(encoding="utf-8")))
            if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert re.findall(r"\b[HWN][\u2032'].*", "\n".join(docs)) == [], "Ho and Wo are the output's height and width"


@each_module
def test_options_are_plain_words(id):
    options = inspect.signature(attn_lib.entry(id).cls).parameters
    assert [name for name in options if not OPTION.fullmatch(name)] == []


@each_case
def test_parameters_and_buffers_are_symbols_or_words(id, variant):
    module, _ = attn_lib.example(id, variant)
    parts = {part for path in module.state_dict() for part in path.split(".")}
    assert [part for part in parts if not PARAMETER.fullmatch(part)] == []


@each_case
def test_taps_are_symbols(id, variant):
    names = [name.partition(":")[0] for name in trace_of(id, variant).names()]  # "A:2" is A, once more
    assert [name for name in names if not TAP.fullmatch(name)] == []


@each_case
def test_taps_have_axes_of_the_notation(id, variant):
    t = trace_of(id, variant)
    unknown = {name: t.dims(name) for name in t.names() if set(re.findall(r"[^\W\d]\w*", t.dims(name))) - AXES}
    assert not unknown, f"axes that book/notation.md does not explain: {unknown}"
