"""The exercises, and what nbgrader makes of them."""

from __future__ import annotations

import ast
import re
import symtable

import nbformat
from nbgrader.nbgraderformat import MetadataValidator, ValidationError
from nbgrader.preprocessors import ClearSolutions

from .. import notebooks
from .chapter import Chapter, check, python

KINDS = ("derive", "predict", "code")
EXERCISE = re.compile(
    r"^#{2,4} Exercise (?P<number>\d+) \((?P<kind>\w+), (?P<points>\d+) points?, (?P<minutes>\d+) minutes?\)",
    re.MULTILINE,
)


@check
def exercise_metadata(chapter: Chapter) -> list[str]:
    """nbgrader accepts the notebook; every solution has its markers, every check its points."""
    try:
        MetadataValidator().validate_nb(chapter.notebook)
    except (ValidationError, KeyError) as error:
        return [f"nbgrader refuses the notebook: {error}"]
    found = []
    for number, cell in chapter.code:
        meta = cell.metadata.get("nbgrader", {})
        begin, end = cell.source.count("### BEGIN SOLUTION"), cell.source.count("### END SOLUTION")
        if meta.get("solution") and (begin, end) != (1, 1):
            found.append(f"cell {number}: a solution cell has one ### BEGIN SOLUTION and one ### END SOLUTION")
        if (begin or end) and not meta.get("solution"):
            found.append(f"cell {number} has solution markers but is no nbgrader solution cell")
        if meta.get("solution") and not {"solution", "hide-input"} <= set(notebooks.tags(cell)):
            found.append(f'cell {number}: a solution cell has the tags "solution" and "hide-input"')
        if meta.get("grade") and ("check" not in notebooks.tags(cell) or not meta.get("locked")):
            found.append(f'cell {number}: a check cell is locked and has the tag "check"')
        if meta and not meta["grade_id"].startswith(f"{chapter.id}-"):
            found.append(f"cell {number}: the grade_id {meta['grade_id']!r} must start with {chapter.id}-")
        printed = "".join(output.get("text", "") for output in cell.outputs)
        if meta.get("grade") and len(printed.strip().splitlines()) != 1:
            found.append(f"cell {number}: a check prints one line on success, it prints {printed!r}")
    return found


@check
def exercises(chapter: Chapter) -> list[str]:
    """One to derive, one to predict, one to code; what the text says of points is what the checks give."""
    found, seen = [], []
    statements = []  # (match, index of the statement's cell)
    for index, cell in enumerate(chapter.cells):
        if cell.cell_type != "markdown":
            continue
        for heading in re.findall(r"^#{2,4} Exercise .*$", cell.source, re.MULTILINE):
            match = EXERCISE.match(heading)
            if match:
                statements.append((match, index))
            else:
                form = "### Exercise 1 (derive, 2 points, 5 minutes): …"
                found.append(f"cell {index + 1}: {heading!r} must read {form!r}")
    for position, (match, start) in enumerate(statements):
        end = statements[position + 1][1] if position + 1 < len(statements) else len(chapter.cells)
        seen.append(match["kind"])
        name = f"exercise {match['number']}"
        if int(match["number"]) != position + 1:
            found.append(f"{name} is number {position + 1}")
        if match["kind"] not in KINDS:
            found.append(f"{name}: {match['kind']!r} is none of {', '.join(KINDS)}")
        metas = [cell.metadata.get("nbgrader", {}) for cell in chapter.cells[start:end]]
        order = ["solution" if meta.get("solution") else "check" for meta in metas if meta]
        if order[:1] != ["solution"] or "check" not in order:
            found.append(f"{name}: the statement is followed by a solution cell and its check")
        points = sum(meta.get("points", 0) for meta in metas if meta.get("grade"))
        if points != int(match["points"]) or not points:
            found.append(f"{name}: the text promises {match['points']} points, the checks give {points}")
        if not 1 <= int(match["minutes"]) <= 60:
            found.append(f"{name}: {match['minutes']} minutes")
    found += [f'there is no exercise of the kind "{kind}"' for kind in KINDS if kind not in seen]
    if statements and statements[0][1] < chapter.starts.get("exercises", 0):
        found.append("an exercise stands before the part of the exercises")
    return found


@check
def stubs(chapter: Chapter) -> list[str]:
    """What nbgrader leaves of a solution is Python and defines the same names with the same signatures."""
    found = []
    for number, cell in chapter.code:
        if not cell.metadata.get("nbgrader", {}).get("solution"):
            continue
        try:
            stub = student_copy(cell.source)
            if signatures(stub) != signatures(cell.source):
                found.append(f"cell {number}: stub and solution differ in a signature; markers go inside the function")
            if "NotImplementedError" not in stub:
                found.append(f"cell {number}: the student copy leaves nothing to do")
        except (SyntaxError, RuntimeError) as error:
            found.append(f"cell {number}: no student copy can be made of it: {error}")
    return found


def student_copy(source: str) -> str:
    """What nbgrader leaves of a solution cell."""
    cell = nbformat.v4.new_code_cell(source, metadata={"nbgrader": {"solution": True}})
    return ClearSolutions().preprocess_cell(cell, {"language": "python"}, 0)[0].source


def signatures(source: str) -> dict[str, str]:
    """The functions and classes that a cell defines, methods too, with their signatures."""
    found = {}
    outer = [("", node) for node in python(source).body]
    for prefix, node in outer:
        if isinstance(node, ast.FunctionDef):
            found[prefix + node.name] = ast.unparse(node.args)
        elif isinstance(node, ast.ClassDef):
            found[prefix + node.name] = ", ".join(ast.unparse(base) for base in node.bases)
            outer += [(f"{node.name}.", child) for child in node.body]
    return found


@check
def stand_alone(chapter: Chapter) -> list[str]:
    """No cell needs an exercise but its own, and an exercise nothing but the set-up cell.

    So exercises can be done in any order, without the lesson, and an unsolved one breaks nothing.
    """
    found: list[str] = []
    setup: set[str] = set()
    own: set[str] = set()  # what the present exercise has defined
    above: set[str] = set()  # what other cells have defined
    solved: set[str] = set()  # what nothing but an exercise has defined
    for number, cell in chapter.code:
        try:
            defined, used = names(cell.source)
        except SyntaxError:
            continue  # code_is_short_and_plain says so
        meta = cell.metadata.get("nbgrader", {})
        if "setup" in notebooks.tags(cell):
            setup = defined
        if not meta or meta.get("solution"):
            own = set()
        found += [f"cell {number} needs {name!r} of another exercise" for name in sorted(used & solved - own)]
        if meta:
            lesson = sorted(used & above - setup - own)
            found += [f"cell {number} of an exercise needs {name!r} of the lesson" for name in lesson]
            own |= defined
            solved |= defined - above
        else:
            above |= defined
            solved -= defined
    return found


def names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell gives to the cells after it, and those that it takes from the cells before it."""
    defined: set[str] = set()
    used: set[str] = set()
    for statement in python(source).body:
        table = symtable.symtable(ast.unparse(statement), "cell", "exec")
        binds = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
        reads, tables = set(), [table]
        for scope in tables:
            tables += scope.get_children()
            for symbol in scope.get_symbols():
                if symbol.is_referenced() and (scope is table or symbol.is_global()):
                    reads.add(symbol.get_name())
        if not isinstance(statement, ast.Assign | ast.AugAssign):
            reads -= binds  # a loop's variable, a function that calls itself
        used |= reads - defined
        defined |= binds
    return defined, used
