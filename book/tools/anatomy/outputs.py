"""Stored outputs and figures."""

from __future__ import annotations

import ast
import re
from html.parser import HTMLParser

from .. import notebooks
from .chapter import ASSERTS, Chapter, check, python

TIMES = re.compile(r"\bviz\.timing\(|\bmeasure\.(timing|compare_timings)\(")


@check
def outputs_are_stored(chapter: Chapter) -> list[str]:
    """Outputs come from the present code, are complete, hold no error, and fit on the page."""
    found = notebooks.stored_badly(chapter.notebook)
    if notebooks.is_stale(chapter.notebook):
        return found  # outputs of other code are not judged
    counts = [cell.execution_count for _, cell in chapter.code]
    if counts != list(range(1, len(counts) + 1)):
        found.append("execution counts must run 1, 2, 3 …: nbval compares nothing in a cell without one")
    for number, cell in chapter.code:
        if not cell.outputs and shows(cell.source) and "setup" not in notebooks.tags(cell):  # that warns, if it must
            found.append(f"cell {number} shows something but has no stored output")
    for number, _, output in chapter.outputs():
        if output.output_type == "error":
            found.append(f"cell {number} stores the error {output.ename}: {output.evalue}")
        wide = max(map(len, output.get("text", "").splitlines()), default=0)
        if wide > notebooks.WIDTH:
            found.append(f"cell {number} prints a line of {wide} characters; a page shows {notebooks.WIDTH}")
        if output.get("name") == "stderr":
            found.append(f"cell {number} stores what it wrote to stderr: {output.text.strip()[:60]!r}")
    if "widgets" in chapter.notebook.metadata:
        found.append("the notebook stores widget state, for which a page asks two CDNs")
    return found


def shows(source: str) -> bool:
    """Whether a cell prints at its top level or ends in a figure, a check or a card."""
    body = python(source).body
    plain = [node for node in body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    calls = [node for top in plain for node in ast.walk(top) if isinstance(node, ast.Call)]
    if any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls):
        return True
    last = body[-1] if body else None
    call = last.value if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) else None
    return call is not None and bool(re.match(r"viz\.|attn_lib\.card|\w+\.check\(", ast.unparse(call.func) + "("))


@check
def figures(chapter: Chapter) -> list[str]:
    """Every picture has alternative text and a question for a title."""
    found = []
    for number, _, output in chapter.outputs():
        data = output.get("data", {})
        for mime in data:
            if mime.startswith("image/") and not output.metadata.get(mime, {}).get("alt", "").strip():
                found.append(f"cell {number}: the picture has no alternative text")
            if mime.startswith("image/") and not data.get("text/plain", "").strip().endswith("?"):
                found.append(f"cell {number}: the figure's title is not a question: {data.get('text/plain', '')!r}")
        page = _Pictures()
        page.feed(data.get("text/html", ""))
        found += [f"cell {number}: in the HTML, {problem}" for problem in page.problems]
    for number, cell in chapter.code:
        tree = python(cell.source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and draws(node.value) and node is not tree.body[-1]:
                call = ast.unparse(node.value.func)
                found.append(f"cell {number}: {call} is not the cell's last expression, so nobody sees its figure")
            if draws(node):
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                for argument in ("title", "alt"):
                    value = given.get(argument)
                    if isinstance(value, ast.Constant) and not str(value.value).strip():
                        found.append(f"cell {number}: {ast.unparse(node.func)} has an empty {argument}")
    return found


def draws(node: ast.AST) -> bool:
    """Whether this is a call of something in viz."""
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("viz.")


class _Pictures(HTMLParser):
    """The pictures without alternative text in a piece of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img" and not (given.get("alt") or "").strip():
            self.problems.append("an <img> has no alt text")
        if tag == "svg" and not (given.get("aria-label") or given.get("aria-labelledby") or "aria-hidden" in given):
            self.problems.append("an <svg> has no aria-label")


@check
def ignored_outputs(chapter: Chapter) -> list[str]:
    """Only what differs between machines is not compared, and the text's claims on it are asserted.

    A cell that only draws may leave that to one before it.
    """
    found, asserted = [], False
    for number, cell in chapter.code:
        if notebooks.IGNORED not in notebooks.tags(cell):
            continue
        if ASSERTS.search(cell.source) or TIMES.search(cell.source):
            asserted = True
        elif not (asserted and draws(getattr(python(cell.source).body[-1], "value", None))):
            found.append(f"cell {number} is tagged {notebooks.IGNORED} but asserts nothing and shows no timing")
    return found


@check
def size(chapter: Chapter) -> list[str]:
    """A chapter with its outputs lives in git."""
    bytes_ = len(notebooks.dumps(chapter.notebook).encode())
    if bytes_ <= notebooks.BYTES:
        return []
    return [f"the notebook has {bytes_ / 1000:.0f} KB, where {notebooks.BYTES / 1000:.0f} are allowed"]
