"""What is graded: the exercises of an assignment, as it was handed out, and the cells that they need.

An assignment is what `make assignment` last made of a chapter in the course's folder. The book may have gone on since;
the class has not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from .. import notebooks
from ..anatomy import exercises

LARGE = 100_000  # characters of a cell that nobody writes by hand; it is not looked into
SKIPPED_MAGICS = ("%%time", "%%timeit", "%%capture", "%%prun")  # what stands under them is ordinary code


@dataclass(frozen=True)
class Check:
    """A cell that gives points."""

    id: str
    source: str
    points: float


@dataclass(frozen=True)
class Exercise:
    """An answer to be written, and its checks.

    Args:
        id: the grade id of the cell for the answer.
        stub: what students find in it.
        solution: what the book writes there.
        checks: the cells behind it that give points.
    """

    id: str
    stub: str
    solution: str
    checks: tuple[Check, ...]

    @property
    def points(self) -> float:
        """What it is worth."""
        return sum(check.points for check in self.checks)

    @cached_property
    def defines(self) -> frozenset[str]:
        """The functions and classes that an answer has to define."""
        return definitions(self.stub)


@dataclass(frozen=True)
class Release:
    """An assignment as it was handed out.

    Args:
        name: the chapter's.
        notebook: the students' notebook.
        setup: the cells that run before any answer, with names for tracebacks.
        exercises: in their order.
    """

    name: str
    notebook: NotebookNode
    setup: tuple[tuple[str, str], ...]
    exercises: tuple[Exercise, ...]

    @property
    def points(self) -> float:
        """What the whole is worth."""
        return sum(exercise.points for exercise in self.exercises)

    @cached_property
    def checksums(self) -> dict[str, str]:
        """nbgrader's checksum of each of its cells, which stands in every copy of it too."""
        return {id: str(meta.get("checksum", "")) for id, meta in self.metadata.items()}

    @cached_property
    def metadata(self) -> dict[str, dict[str, Any]]:
        """nbgrader's metadata of each of its cells, by grade id."""
        metas = [cell.metadata["nbgrader"] for cell in self.notebook.cells if "nbgrader" in cell.metadata]
        return {meta["grade_id"]: meta for meta in metas}

    @cached_property
    def sources(self) -> dict[str, str]:
        """The text of each of those cells."""
        cells = [cell for cell in self.notebook.cells if "nbgrader" in cell.metadata]
        return {cell.metadata["nbgrader"]["grade_id"]: cell.source for cell in cells}

    @cached_property
    def given(self) -> frozenset[str]:
        """The names that every answer finds defined."""
        return frozenset(name for _, code in self.setup for name in names(code)[0])


def load(course: Path, name: str) -> Release:
    """The assignment `name` of the folder `course`.

    Raises:
        FileNotFoundError: if `make assignment` has not made it.
    """
    source = notebooks.read(course / "source" / name / f"{name}.ipynb")
    released = notebooks.read(course / "release" / name / f"{name}.ipynb")
    solutions = {cell.metadata["nbgrader"]["grade_id"]: cell.source for cell in answer_cells(source)}
    found: list[Exercise] = []
    for cell in notebooks.code_cells(released):
        meta = cell.metadata.get("nbgrader", {})
        if meta.get("solution"):
            id = meta["grade_id"]
            found.append(Exercise(id, cell.source, solutions.get(id, ""), ()))
        elif meta.get("grade") and found:
            check = Check(meta["grade_id"], cell.source, float(meta["points"]))
            last = found[-1]
            found[-1] = Exercise(last.id, last.stub, last.solution, (*last.checks, check))
    only_exercises(released_part := notebooks.read(course / "release" / name / f"{name}.ipynb"))
    needed = [cell.source for cell in released_part.cells if "nbgrader" not in cell.metadata]
    setup = tuple((f"set-up {number}", plain(source)) for number, source in enumerate(needed, 1))
    return Release(name, released, setup, tuple(found))


def answer_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that a student fills in."""
    return [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("solution")]


def only_exercises(notebook: NotebookNode) -> None:
    """Keeps of `notebook` the exercises and the cells that define the names they use: it then runs in seconds."""
    kept: list[NotebookNode] = []
    needed: set[str] = set()
    for cell in reversed(notebooks.code_cells(notebook)):
        defined, used = exercises.names(cell.source)
        if "nbgrader" in cell.metadata or defined & needed:
            kept.insert(0, cell)
            needed = (needed - defined) | used
    notebook.cells = kept


def plain(source: str) -> str:
    """The cell as plain Python, IPython's magics turned into calls by IPython's own rules.

    This is done here, where no student's code has run. What cannot be turned stays as it is, and is an error where it
    is compiled.
    """
    lines = source.splitlines(keepends=True)
    while lines and lines[0].strip().startswith(SKIPPED_MAGICS):
        lines.pop(0)
    source = "".join(lines)
    magics = [line for line in lines if line.lstrip().startswith(("%", "!", "?")) or line.rstrip().endswith("?")]
    if not magics or len(magics) > 50 or len(source) > LARGE:
        return source
    try:
        return TransformerManager().transform_cell(source)
    except Exception:  # whatever IPython stumbles over
        return source


def tree(source: str) -> ast.Module | None:
    """The syntax tree of a student's cell, or None where there is none."""
    if len(source) > LARGE:
        return None
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell defines and uses; none where it is no Python."""
    if tree(source) is None:
        return set(), set()
    try:
        return exercises.names(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(), set()


def definitions(source: str) -> frozenset[str]:
    """The functions and classes that a cell defines."""
    parsed = tree(source)
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return frozenset(node.name for node in parsed.body if isinstance(node, kinds)) if parsed else frozenset()


def job(setup: Iterable[tuple[str, str]], parts: Iterable[dict[str, Any]], imports: Iterable[str]) -> dict[str, Any]:
    """What `inside/judge.py` gets to do."""
    return {"setup": [list(cell) for cell in setup], "exercises": list(parts), "imports": sorted(imports)}


def part(exercise: Exercise, answer: str, before: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    """One exercise of a job, with a student's answer in it.

    The stub runs first: what was imported for the answer is there even if the student wrote it into another cell.
    """
    before = [[name, plain(code)] for name, code in ((f"given {exercise.id}", exercise.stub), *before)]
    checks = [{"id": check.id, "code": plain(check.source)} for check in exercise.checks]
    return {"id": exercise.id, "before": before, "answer": plain(answer), "checks": checks}
