"""What Windows lacks is not needed to import anything, and the one tool that needs it says so."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from book.tools import notebooks
from book.tools.grading import __main__ as grading

ROOT = Path(__file__).parents[3]
ELSEWHERE = {"resource", "fcntl", "pwd", "grp", "termios", "pty"}  # Python's modules that Windows has not


def test_no_file_needs_one_of_them_to_be_imported():
    for folder in ("attn_lib", "book"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert not {name.partition(".")[0] for name in names} & ELSEWHERE, f"{file}:{node.lineno}"


def test_the_time_of_kernels_is_that_of_ended_processes(monkeypatch):
    before = notebooks.seconds_of_kernels()
    busy = "import time\nwhile time.process_time() < 0.2: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert 0.18 < notebooks.seconds_of_kernels() - before < 60
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(OSError, match=r"Windows does not tell .* Linux \(WSL\)"):
        notebooks.seconds_of_kernels()


def test_grading_says_where_it_works(monkeypatch, capsys):
    monkeypatch.setattr(os, "name", "nt")
    assert grading.main(["se"]) == 1
    assert "(WSL)" in capsys.readouterr().err
