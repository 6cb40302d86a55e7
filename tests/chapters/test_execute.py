"""Storing a chapter: a second run leaves no diff, and a run that goes wrong leaves the file as it was."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from book.tools import execute, notebooks

STEADY = "print('six times seven:', 6 * 7)"
VARYING = "import time\nassert time.time() > 0\nprint(time.time())"


def chapter(path, *sources):
    """A notebook as an editor would write it: random cell ids, its own metadata."""
    notebook = nbformat.v4.new_notebook(metadata={"widgets": {}, "kernelspec": {"name": "mine", "display_name": "M"}})
    notebook.cells = [nbformat.v4.new_markdown_cell("# A chapter")]
    for source in sources:
        tags = ["nbval-ignore-output"] if source == VARYING else []
        notebook.cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": tags, "collapsed": False}))
    nbformat.write(notebook, path)
    return path


def test_second_run_leaves_no_diff(tmp_path):
    """Neither when the file is as it was nor when an editor has given the cells other ids."""
    path = chapter(tmp_path / "one.ipynb", STEADY, VARYING)
    execute.execute(path)
    first = path.read_bytes()
    assert b"42" in first
    assert execute.stored_badly(path) == []
    execute.execute(path)
    assert path.read_bytes() == first
    again = notebooks.read(path)
    for cell in again.cells:
        cell.id += "-edited"
    nbformat.write(again, path)
    assert execute.stored_badly(path) == ["one.ipynb: cell ids or metadata are not normalised; run `make execute`"]
    execute.tidy(path)
    assert path.read_bytes() == first


def test_refresh_and_a_changed_cell_renew_timings(tmp_path):
    """Only then: a new timing is worth a diff when it was asked for, or when the code is new."""
    path = chapter(tmp_path / "one.ipynb", STEADY, VARYING)
    execute.execute(path)
    first = notebooks.read(path)
    execute.execute(path, refresh=True)
    refreshed = notebooks.read(path)
    assert refreshed.cells[1] == first.cells[1]
    assert refreshed.cells[2].outputs != first.cells[2].outputs
    edited = notebooks.read(path)
    edited.cells[1].source = STEADY.replace("7)", "8)")
    notebooks.write(edited, path)
    assert "has changed" in execute.stored_badly(path)[0]
    execute.execute(path)
    assert notebooks.read(path).cells[1].outputs[0].text == "six times seven: 48\n"
    assert notebooks.read(path).cells[2].outputs != refreshed.cells[2].outputs


def test_an_inserted_cell_renames_no_other(tmp_path):
    """Ids follow content; equal cells are numbered; exercises keep their names."""
    notebook = notebooks.read(chapter(tmp_path / "one.ipynb", STEADY, STEADY, VARYING))
    notebook.cells[3].metadata["nbgrader"] = {"grade_id": "one-sum"}
    before = [cell.id for cell in notebooks.normalise(notebook).cells]
    assert len(set(before)) == 4
    assert before[3] == "one-sum"
    notebook.cells.insert(1, nbformat.v4.new_code_cell("1 + 1"))
    after = [cell.id for cell in notebooks.normalise(notebook).cells]
    assert [*after[:1], *after[2:]] == before


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("print(1)\n1 / 0", "division by zero"),
        ("import os\nos._exit(1)", "Kernel died"),
        ("import warnings\nwarnings.warn('careless')", "careless"),
        ("object()", "address in memory"),
        ("from attn_lib import measure\nmeasure.claim(False, 'one is two')", "says what the times do not show"),
    ],
)
def test_a_bad_run_leaves_the_file(tmp_path, source, says):
    """An error, a dead kernel, a warning, an output that no second run repeats."""
    path = chapter(tmp_path / "one.ipynb", STEADY, source)
    before = path.read_bytes()
    with pytest.raises(execute.ChapterError, match=says):
        execute.execute(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["one.ipynb"]


def test_an_interrupted_run_leaves_the_file(tmp_path):
    """Ctrl-C stops the kernel, the command says so, and the next chapter is not begun."""
    sleepy = f"open({str(tmp_path / 'begun')!r}, 'w').close()\nimport time\ntime.sleep(300)"
    path = chapter(tmp_path / "one.ipynb", sleepy)
    before = path.read_bytes()
    command = [sys.executable, "-m", "book.tools.execute", str(path), str(path)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=notebooks.ROOT, stdout=pipe, stderr=pipe, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted" in err
    assert "[2/2]" not in out
    assert path.read_bytes() == before
