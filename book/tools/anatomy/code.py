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


@check
def timings_stop_nothing(chapter: Chapter) -> list[str]:
    """No assertion stands on a timing, which would stop "Run all" on a busy machine: `measure.claim` goes on."""
    found = []
    timed: set[str] = set()
    for number, cell in chapter.code:
        try:
            tree = python(cell.source)
        except SyntaxError:
            continue  # code_is_short_and_plain says so
        for node in tree.body:
            for inner in ast.walk(node):
                for target, value in _assigned(inner):
                    names = _given(target)
                    timed = timed | names if _times(value, timed) else timed - names
                if isinstance(inner, ast.Assert) and _times(inner.test, timed):
                    found.append(f"cell {number} asserts a timing; use measure.claim: {ast.unparse(inner.test)}")
    return found


def _assigned(node: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """What an assignment gives to what, `a, b = c, d` one by one."""
    if isinstance(node, ast.AugAssign):
        return [(node.target, node.value)]
    if not isinstance(node, ast.Assign):
        return []
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=False))
    return [(target, value) for target in node.targets]


def _given(target: ast.expr) -> set[str]:
    """The names that an assignment changes: of `race[n]` it is `race`."""
    while isinstance(target, ast.Subscript | ast.Attribute | ast.Starred):
        target = target.value
    return {target.id} if isinstance(target, ast.Name) else set().union(*map(_given, getattr(target, "elts", [])))


def _times(node: ast.AST, timed: set[str]) -> bool:
    """Whether an expression measures a time, or is made of one."""
    parts = list(ast.walk(node))
    return any(isinstance(part, ast.Name) and part.id in timed for part in parts) or any(
        isinstance(part, ast.Attribute) and part.attr in ("timing", "compare_timings")
        and isinstance(part.value, ast.Name) and part.value.id == "measure" for part in parts)
