"""Stored outputs are a test: nbval notices a changed number, and a wrong module contradicts its chapter.

The comparison of all chapters is its own command (`make test-notebooks`); this proves that it can fail.
"""

import copy
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import nbformat
import pytest

from book.tools import execute, notebooks
from book.tools.anatomy import Chapter
from book.tools.nbval_chapters import COMPUTED, Stopwatch

PIXELS = '<img alt="a dot" src="data:image/png;base64,AAAA">'
NUMBERS = '<script type="application/json">{"weights": [1, 2, 3]}</script>'
CELLS = (
    "print(6 * 7, 'is six times seven')",
    f"from IPython.display import HTML\nHTML('<b>42</b> {PIXELS} {NUMBERS}')",
    "import time\nprint(time.time())",
)


def nbval(folder):
    """Runs nbval as `make test` does on the notebooks of a folder; returns the names of those that fail."""
    report = folder / "report.xml"
    options = ["-p", "book.tools.nbval_chapters", "--nbval", "--nbval-current-env", f"--junitxml={report}", "-q"]
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, cwd=notebooks.ROOT, capture_output=True, text=True)
    cases = list(ET.parse(report).iter("testcase"))
    assert cases, done.stdout + done.stderr
    failed = {case.get("classname").split(".")[-2] for case in cases if case.find("failure") is not None}
    assert done.returncode == bool(failed), done.stdout + done.stderr
    return failed


def test_nbval_compares_what_is_stored(tmp_path):
    """Text and HTML are compared; pixels, explorers' numbers and cells tagged nbval-ignore-output are not."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    notebook.cells[2].metadata["tags"] = ["nbval-ignore-output"]
    good, _ = execute.run(notebook, tmp_path)
    text, html, ignored = (cell.outputs[0] for cell in good.cells)
    for name, mapping, key, value in (
        ("untouched", text, "text", text.text),
        ("text", text, "text", text.text.replace("42", "43")),
        ("html", html.data, "text/html", html.data["text/html"].replace("42", "43")),
        ("pixels", html.data, "text/html", html.data["text/html"].replace("AAAA", "AAAB")),
        ("explorer", html.data, "text/html", html.data["text/html"].replace("[1, 2, 3]", "[1, 2, 4]")),
        ("ignored", ignored, "text", "0.0\n"),
    ):
        assert (value == mapping[key]) == (name == "untouched")
        stored, mapping[key] = mapping[key], value
        notebooks.write(good, tmp_path / f"{name}.ipynb")
        mapping[key] = stored
    assert nbval(tmp_path) == {"text", "html"}


def test_a_slow_chapter_is_named_and_a_very_slow_one_fails(tmp_path):
    """Over its budget it is only named: the machine may be slow."""
    stopwatch = Stopwatch(limit=2.0 * notebooks.MOST_SECONDS)
    session = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    verdicts = []
    for seconds in (notebooks.SECONDS, notebooks.SECONDS + 1, notebooks.MOST_SECONDS + 1, stopwatch.limit + 1):
        stopwatch.pytest_sessionfinish(session)
        assert session.exitstatus == pytest.ExitCode.OK
        stopwatch.pytest_runtest_logreport(SimpleNamespace(user_properties=[(COMPUTED, seconds)], nodeid="se::Cell 1"))
        verdicts.append(stopwatch.verdict(stopwatch.seconds["se"]).split(":")[0].strip())
    assert verdicts == ["", "over budget", "over budget", "TOO LONG"]
    stopwatch.pytest_sessionfinish(session)
    assert session.exitstatus == pytest.ExitCode.TESTS_FAILED


def beginning(path, part):
    """The chapter up to the start of a part: enough of it to prove a point, in little time."""
    chapter = Chapter.load(path)
    chapter.notebook.cells = chapter.cells[: chapter.starts[part]]
    return chapter.notebook


def test_a_changed_number_in_a_chapter_fails(tmp_path):
    """A chapter's own stored output with one digit changed."""
    good = beginning(notebooks.find(["channel/se"])[0], "assembled")
    spoilt = copy.deepcopy(good)
    for cell in notebooks.code_cells(spoilt):
        printed = [output for output in cell.outputs if re.search(r"\d", output.get("text", ""))]
        if printed and "nbval-ignore-output" not in notebooks.tags(cell):
            printed[0].text = re.sub(
                r"\d", lambda digit: str((int(digit[0]) + 1) % 10), printed[0].text, count=1
            )
            break
    else:
        pytest.fail("no cell of the chapter prints a number")
    notebooks.write(good, tmp_path / "good.ipynb")
    notebooks.write(spoilt, tmp_path / "spoilt.ipynb")
    assert nbval(tmp_path) == {"spoilt"}


def test_a_wrong_gate_fails_the_chapter(tmp_path):
    """SE with another gate than the paper's sigmoid: the chapter's own checks contradict the library."""
    shutil.copytree(
        notebooks.ROOT / "attn_lib", tmp_path / "attn_lib", ignore=shutil.ignore_patterns("__pycache__")
    )
    module = tmp_path / "attn_lib" / "channel" / "se.py"
    right = module.read_text(encoding="utf-8")
    wrong = right.replace("torch.sigmoid(", "torch.tanh(")
    assert wrong != right, "se.py no longer writes torch.sigmoid(…): break it in another way"
    module.write_text(wrong, encoding="utf-8")
    chapter = beginning(notebooks.find(["channel/se"])[0], "limits")
    # A drawing of wrong numbers may already be too wide; it is the checks that are tried here.
    chapter.cells = [cell for cell in chapter.cells if "opening" not in notebooks.tags(cell)]
    with pytest.raises(execute.ChapterError, match=r"AssertionError.*\bs\b"):
        execute.run(chapter, tmp_path, env={**os.environ, **notebooks.kernel_environment(tmp_path)})
