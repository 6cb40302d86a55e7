"""The code of the cells."""

from __future__ import annotations

import ast

from .. import notebooks
from .chapter import Chapter, check, python

# What chapters do without: viz draws, and nothing comes from the network or hides a warning.
BANNED = ("matplotlib", "seaborn", "plotly", "urllib", "requests", "warnings")


@check
def code_is_short_and_plain(chapter: Chapter) -> list[str]:
    """One idea a cell, nothing that belongs in the library, no plotting code, nothing from the network."""
    found = []
    for number, cell in chapter.code:
        lines = cell.source.count("\n") + 1
        if lines > notebooks.LINES:
            most = notebooks.LINES
            found.append(f"cell {number} has {lines} lines; what is longer than {most} belongs in the library")
        wide = max(map(len, cell.source.splitlines()), default=0)
        if wide > notebooks.WIDTH and "setup" not in notebooks.tags(cell):
            found.append(f"cell {number} has a line of {wide} characters; a page shows {notebooks.WIDTH}")
        try:
            tree = python(cell.source)
        except SyntaxError as error:
            found.append(f"cell {number} is not Python: {error}")
            continue
        names = {getattr(node, field, None) for node in ast.walk(tree) for field in ("id", "arg", "attr", "name")}
        found += [f"cell {number}: the name {name} is not ASCII; Greek is for formulas, code spells it out (mu, dp)"
                  for name in sorted(filter(None, names)) if not name.isascii()]
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [
                f"cell {number} imports {name}; chapters draw with viz and stay off the network"
                for name in names
                if name.split(".")[0] in BANNED
            ]
    return found
