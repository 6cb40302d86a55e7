"""Put exercises of the book into a notebook of your own, to change their numbers for an examination.

    python -m book.tools.examination course/midterm.ipynb se/1 eca/3

The notebook holds the set-up cell and, of each exercise, its statement, its solution and its check, under grade ids of
its own. It is an ordinary chapter to `make execute` and `make assignment`: CHAPTER=course/midterm.ipynb.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from . import notebooks
from .anatomy.exercises import EXERCISE


def exercise(path: Path, number: int) -> list[NotebookNode]:
    """The cells of an exercise: its statement, its solution, its check.

    Raises:
        ValueError: if the chapter has no exercise of this number.
    """
    cells = notebooks.read(path).cells
    starts = {int(found["number"]): index for index, cell in enumerate(cells) if cell.cell_type == "markdown"
              and (found := EXERCISE.search(cell.source))}
    if number not in starts:
        raise ValueError(f"{path.stem} has the exercises {', '.join(map(str, starts)) or 'none'}, no {number}")
    end = min((start for start in starts.values() if start > starts[number]), default=len(cells))
    found = [cells[starts[number]]]
    for cell in cells[starts[number] + 1 : end]:
        if "part:references" in notebooks.tags(cell) or (cell.cell_type == "code" and "nbgrader" not in cell.metadata):
            break
        found.append(cell)
    return found


def make(name: str, chosen: Iterable[tuple[Path, int]]) -> NotebookNode:
    """A notebook of exercises, numbered anew, whose grade ids begin with `name`; its set-up cell is the chapters'."""
    chosen = list(chosen)
    set_up = next(cell for cell in notebooks.read(chosen[0][0]).cells if "setup" in notebooks.tags(cell))
    set_up.outputs, set_up.execution_count = [], None
    cells = [nbformat.v4.new_markdown_cell(f"# {name}"), set_up]
    for count, (path, number) in enumerate(chosen, 1):
        for cell in exercise(path, number):
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
                meta = cell.metadata["nbgrader"]
                meta["grade_id"] = f"{name}-{count}-{meta['grade_id'].removeprefix(path.stem).lstrip('-')}"
            else:
                cell.source = re.sub(r"(?m)^(#{2,4}) Exercise \d+", rf"\1 Exercise {count}", cell.source)
            cells.append(cell)
    return notebooks.normalise(nbformat.v4.new_notebook(cells=cells))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m book.tools.examination", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path, help="where to write it; it must not be there yet")
    parser.add_argument("exercises", nargs="+", help="chapter and number, such as se/1")
    options = parser.parse_args()
    if options.notebook.suffix != ".ipynb":
        return notebooks.complain([f"{options.notebook} must end in .ipynb"])
    if options.notebook.exists():
        return notebooks.complain([f"{options.notebook} is there already; choose another name"])
    chosen = []
    for wanted in options.exercises:
        chapter, _, number = wanted.rpartition("/")
        if not chapter or not number.isdigit():
            return notebooks.complain([f"{wanted!r} must be a chapter and a number, such as se/1"])
        chosen.append((notebooks.find([chapter])[0], int(number)))
    try:
        notebook = make(options.notebook.stem, chosen)
    except ValueError as error:
        return notebooks.complain([str(error)])
    options.notebook.parent.mkdir(parents=True, exist_ok=True)
    notebooks.write(notebook, options.notebook)
    print(f"{options.notebook}: change the numbers in statement, solution and check, then "
          f"make execute CHAPTER={options.notebook}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
