"""What a type checker and an editor know of the library: on a reader's script, on the stub, on the package itself."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import attn_lib
from book.tools import signatures

ROOT = Path(__file__).parents[3]

SCRIPT = """
import torch
import attn_lib
from attn_lib import measure, plug
from attn_lib.channel import SEAttention

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
"""

WRONG = """
import attn_lib

attn_lib.crate("se", 64)
wrong: int = attn_lib.create("eca", 64)
attn_lib.create("se", 64).reduction.upper()
attn_lib.list_modules(1)
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
    assert lines == [4, 5, 6, 7]


def test_the_package_is_typed():
    """All but what pyproject.toml names, which may only become less."""
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
