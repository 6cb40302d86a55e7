"""A chapter as the checks see it, and the list of the checks."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

import attn_lib

from .. import notebooks

PARTS = (
    "problem", "mechanism", "by-hand", "steps", "assembled", "limits", "inside", "cost", "pitfalls", "use",
    "take-away", "exercises", "references",
)
FOUNDATION_PARTS = ("problem", "ideas", "pitfalls", "take-away", "exercises", "references")

# What several checks look for.
ASSERTS = re.compile(r"\bassert\b|assert_close|\.check\(")
CITATION = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)[^)]*\)")


@dataclass
class Chapter:
    """A notebook together with what the checks ask about it."""

    notebook: NotebookNode
    path: Path
    root: Path = notebooks.ROOT

    @classmethod
    def load(cls, path: Path) -> Chapter:
        """The chapter at `path`."""
        return cls(notebooks.read(path), path)

    @property
    def id(self) -> str:
        """The module's id, which is also the file's name."""
        return self.path.stem

    @property
    def is_foundation(self) -> bool:
        """Whether the chapter explains no module of the catalog but what all of them stand on."""
        return self.path.parent.name == "foundations"

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that the chapter must have, in their order."""
        return FOUNDATION_PARTS if self.is_foundation else PARTS

    @property
    def cells(self) -> list[NotebookNode]:
        """All cells."""
        return self.notebook.cells

    @property
    def code(self) -> list[tuple[int, NotebookNode]]:
        """The code cells, each with its number among all cells, counted from 1."""
        return [(number, cell) for number, cell in enumerate(self.cells, 1) if cell.cell_type == "code"]

    @property
    def prose(self) -> list[tuple[int, NotebookNode]]:
        """The markdown cells, numbered likewise."""
        return [(number, cell) for number, cell in enumerate(self.cells, 1) if cell.cell_type == "markdown"]

    @cached_property
    def starts(self) -> dict[str, int]:
        """Index of the first cell of each part that is there; "title" is the first of all."""
        starts = {"title": 0}
        for index, cell in enumerate(self.cells):
            for tag in notebooks.tags(cell):
                if tag.startswith("part:"):
                    starts.setdefault(tag.removeprefix("part:"), index)
        return starts

    def part(self, name: str) -> list[NotebookNode]:
        """The cells from the start of a part to the start of the next one (two parts may share theirs)."""
        if name not in self.starts:
            return []
        start = self.starts[name]
        return self.cells[start : min((s for s in self.starts.values() if s > start), default=len(self.cells))]

    def text(self, name: str, kind: str | None = None) -> str:
        """The sources of a part's cells, or of those of one kind ("code", "markdown"), joined."""
        return "\n".join(cell.source for cell in self.part(name) if kind in (None, cell.cell_type))

    def outputs(self) -> Iterator[tuple[int, NotebookNode, NotebookNode]]:
        """All stored outputs, with their cell and its number."""
        for number, cell in self.code:
            for output in cell.outputs:
                yield number, cell, output


Check = Callable[[Chapter], list[str]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Enters `function` into `CHECKS`."""
    CHECKS.append(function)
    return function


def problems(chapter: Chapter) -> list[str]:
    """Every check's problems."""
    if not chapter.is_foundation and chapter.id not in attn_lib.list_modules():
        return [f"the catalog has no module {chapter.id!r}; a chapter's file is named after its module"]
    return [problem for function in CHECKS for problem in function(chapter)]


def python(source: str) -> ast.Module:
    """A cell's syntax tree, IPython's magics included."""
    return ast.parse(TransformerManager().transform_cell(source))
