"""Check that a chapter has every part of a chapter: `python book/tools/anatomy.py [channel/se …]`.

Each check takes a `Chapter` and returns a list of problems, an empty one if all is well; `CHECKS` holds them
in the order in which they are reported. The signs they look for are listed in CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path

import address
import nbformat
import notebooks
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from nbgrader.nbgraderformat import MetadataValidator, ValidationError
from nbgrader.preprocessors import ClearSolutions

sys.path.insert(0, str(notebooks.ROOT))
import attn_lib

PARTS = (
    "problem", "mechanism", "by-hand", "steps", "assembled", "limits", "inside", "cost", "pitfalls", "use",
    "exercises", "references",
)
FOUNDATION_PARTS = ("problem", "ideas", "pitfalls", "exercises", "references")
KINDS = ("derive", "predict", "code")
IGNORED = "nbval-ignore-output"
H1 = re.compile(r"^# ", re.MULTILINE)
EXERCISE = re.compile(
    r"^#{2,4} Exercise (?P<number>\d+) \((?P<kind>\w+), (?P<points>\d+) points?, (?P<minutes>\d+) minutes?\)",
    re.MULTILINE,
)
EQUATION = re.compile(r"\$\$(?P<body>.+?)\$\$[ \t]*(?:\((?P<label>[\w-]+)\))?", re.DOTALL)
CITATION = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)[^)]*\)")
ARXIV = re.compile(r"https?://arxiv\.org/(?:abs|pdf)/(?P<id>\d{4}\.\d{4,5})(?:v\d+)?(?:\.pdf)?")
ROLE = re.compile(r"\{(?P<role>eq|doc|py:\w+)\}`(?:[^`<]*<)?~?(?P<target>[^`>]+)>?`")
ASSERTS = re.compile(r"\bassert\b|assert_close|\.check\(")
TIMES = re.compile(r"\bviz\.timing\(|\bmeasure\.(timing|compare_timings)\(")


# What a part holds, as patterns in the sources of its cells.
SIGNS = {
    "problem": [(r"\b(toys|tasks)\b", "real data from toys or tasks"), (r"viz\.\w+\(", "a figure")],
    "ideas": [(rf"(?s)(?:{ASSERTS.pattern}).*(?:{ASSERTS.pattern})", "at least two asserted claims")],
    "mechanism": [
        (r"(?s)\$\$.+?\$\$\s*\(eq-", "a labelled equation"),
        (r"(?m)^\|.*[Ss]hape.*\|$", "a table of symbols with a Shape column"),
        (r"viz\.flow\(", "viz.flow, the flow drawn from the module's trace"),
    ],
    "steps": [(r"(?s)\.check\(.*\.check\(", "at least two t.check(…)")],
    "assembled": [
        (r"class \w+\(.*Module\)", "the module's class"),
        (ASSERTS.pattern, "equality with the library"),
    ],
    "limits": [
        (rf"(?s)(?:{ASSERTS.pattern}).*(?:{ASSERTS.pattern})", "at least two asserted limit cases"),
        (r"symmetries\(|\bflip|\broll\(|perm|\.mT|transpose", "a symmetry, tried out"),
    ],
    "inside": [
        (r"viz\.(curves|compare)\(", "the ablated model's learning beside the module's"),
        (ASSERTS.pattern, "an assertion of what learning made of it"),
    ],
    "cost": [
        (r"measure\.(cost|saved_bytes)\(", "measure.cost or measure.saved_bytes"),
        (r"fit_exponent\(|viz\.scaling\(", "growth: viz.scaling or measure.fit_exponent"),
        (r"viz\.timing\(", "viz.timing, recorded beside measured here"),
        (r"viz\.roofline\(", "viz.roofline"),
    ],
    "pitfalls": [(rf"{ASSERTS.pattern}|except |print\(", "a cell in which a pitfall fails")],
    "use": [
        (r"plug\.(insert|replace)\(", "plug.insert or plug.replace"),
        (r"\]\(|\{\w+[:\w]*\}`", "links to relatives"),
    ],
}


@dataclass
class Chapter:
    """A notebook together with what the checks ask about it."""

    notebook: NotebookNode
    path: Path
    root: Path = notebooks.ROOT

    @classmethod
    def load(cls, path: Path) -> Chapter:
        """Read the chapter at `path`."""
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
        return self.cells[
            start : min((s for s in self.starts.values() if s > start), default=len(self.cells))
        ]

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
    """Add `function` to `CHECKS`."""
    CHECKS.append(function)
    return function


def problems(chapter: Chapter) -> list[str]:
    """Return every check's problems."""
    if not chapter.is_foundation and chapter.id not in attn_lib.list_modules():
        return [f"the catalog has no module {chapter.id!r}; a chapter's file is named after its module"]
    return [problem for function in CHECKS for problem in function(chapter)]


def python(source: str) -> ast.Module:
    """Parse a cell, IPython's magics included."""
    return ast.parse(TransformerManager().transform_cell(source))


@check
def listed(chapter: Chapter) -> list[str]:
    """The site is built from _toc.yml: a chapter that does not stand there is left out without a word."""
    name = chapter.path.relative_to(chapter.root).with_suffix("").as_posix()
    toc = yaml.safe_load((chapter.root / "_toc.yml").read_text(encoding="utf-8"))
    if name in {entry["file"] for part in toc["parts"] for entry in part["chapters"]}:
        return []
    return [f"the chapter is not in _toc.yml: add '- file: {name}' under its family"]


@check
def opening(chapter: Chapter) -> list[str]:
    """Title with its answer, the set-up cell that all chapters share, the card."""
    if len(chapter.cells) < 3:
        return ["the chapter has fewer than three cells"]
    title, setup, card = chapter.cells[:3]
    found = []
    lines = [line for line in title.source.splitlines() if line.strip()]
    if title.cell_type != "markdown" or not lines or not lines[0].startswith("# "):
        found.append("cell 1 must be markdown that starts with the chapter's H1")
    elif len(lines) < 2:
        found.append(
            "cell 1: under the H1 stands one sentence, what the mechanism does that the previous could not"
        )
    found += [f"cell {number}: a chapter has one H1" for number, cell in chapter.prose[1:] if H1.search(cell.source)]
    if setup.source != notebooks.setup_cell(address.read_address(chapter.root).repository):
        found.append("cell 2 must be the set-up cell of book/tools/notebooks.py, letter by letter")
    if not {"setup", "hide-input"} <= set(notebooks.tags(setup)):
        found.append('cell 2 must have the tags "setup" and "hide-input"')
    if not chapter.is_foundation and card.source.strip() != f'attn_lib.card("{chapter.id}")':
        found.append(f'cell 3 must be attn_lib.card("{chapter.id}")')
    return found


@check
def promises(chapter: Chapter) -> list[str]:
    """Objectives, prerequisites and minutes stand before the problem."""
    text = chapter.text("title", "markdown")
    found = []
    objectives = re.search(
        r"[Aa]fter this chapter you can.*?\n((?:\s*\n|\s*(?:[-*]|\d\.) .*\n?|[ \t]+\S.*\n?)+)", text
    )
    count = len(re.findall(r"^\s*(?:[-*]|\d\.) ", objectives.group(1), re.MULTILINE)) if objectives else 0
    if not 3 <= count <= 5:
        found.append(
            f'"After this chapter you can" must be followed by a list of 3 to 5 items; it has {count}'
        )
    prerequisites = re.search(r"Prerequisites?(.{1,600})", text, re.DOTALL)
    if not prerequisites or not (LINK.search(prerequisites.group(1)) or "`" in prerequisites.group(1)):
        found.append('"Prerequisites" must be named before the first part, with at least one link')
    minutes = [int(number) for number in re.findall(r"(\d+)\s+minutes", text)]
    if not any(20 <= number <= 40 for number in minutes):
        found.append('the reading time must be given before the first part, as "30 minutes" (20 to 40)')
    return found


@check
def parts_in_order(chapter: Chapter) -> list[str]:
    """Every part is there, in its order."""
    found = [f'no cell has the tag "part:{part}"' for part in chapter.parts if part not in chapter.starts]
    found += [
        f'the tag "part:{part}" names no part' for part in chapter.starts if part not in ("title", *chapter.parts)
    ]
    order = [chapter.starts[part] for part in chapter.parts if part in chapter.starts]
    if order != sorted(order):
        found.append("the parts are not in the order " + ", ".join(chapter.parts))
    return found


@check
def substance(chapter: Chapter) -> list[str]:
    """Each part holds what it is for."""
    everything = "\n".join(cell.source for _, cell in chapter.code)
    found = [
        f'part "{part}" lacks {what}'
        for part, signs in SIGNS.items()
        if part in chapter.starts
        for sign, what in signs
        if not re.search(sign, chapter.text(part))
    ]
    if "by-hand" in chapter.starts and not any(cell.get("outputs") for cell in chapter.part("by-hand")):
        found.append('part "by-hand" prints nothing')
    if not re.search(r"viz\.explore_\w+\(", everything):
        found.append("the chapter has no explorer (viz.explore_…)")
    return found


@check
def references(chapter: Chapter) -> list[str]:
    """The paper and its official code are named at the end."""
    if "references" not in chapter.starts:
        return []  # parts_in_order says so
    text = chapter.text("references", "markdown")
    if chapter.is_foundation:
        return [] if CITATION.search(text) else ["the references cite nothing"]
    entry = attn_lib.entry(chapter.id)
    found = []
    cited = [key.strip() for group in CITATION.findall(text) for key in group.split(",")]
    for paper in entry.papers:
        if paper.key not in cited:
            found.append(f"the references do not cite the paper, {{cite}}`{paper.key}`")
        if paper.code and paper.code.rstrip("/") not in text:
            found.append(f"the references do not link the authors' code, {paper.code}")
    return found


@check
def equations(chapter: Chapter) -> list[str]:
    """Displayed equations have labels, each its own, and every reference to one finds it."""
    labels, found = [], []
    for number, cell in chapter.prose:
        for match in EQUATION.finditer(cell.source):
            label = match["label"]
            if label is None:
                found.append(
                    f"cell {number}: the equation {' '.join(match['body'].split())[:40]!r} has no label"
                )
            elif not label.startswith(f"eq-{chapter.id}-"):
                found.append(f"cell {number}: the label {label!r} must start with eq-{chapter.id}-")
            labels.append(label)
    found += [
        f"the label {label!r} is used twice" for label in set(labels) if label and labels.count(label) > 1
    ]
    for number, cell in chapter.prose:
        for match in ROLE.finditer(cell.source):
            if (
                match["role"] == "eq"
                and match["target"].startswith(f"eq-{chapter.id}-")
                and match["target"] not in labels
            ):
                found.append(f"cell {number}: no equation is labelled {match['target']!r}")
    return found


@check
def citations_and_links(chapter: Chapter) -> list[str]:
    """Cited keys, linked files and linked classes exist; markdown images have alternative text."""
    bibliography = (chapter.root / "book" / "references.bib").read_text(encoding="utf-8")
    keys = set(re.findall(r"^@\w+\{\s*([^,\s]+)", bibliography, re.MULTILINE))
    explained = {paper.arxiv: path for path in notebooks.chapters(chapter.root)
                 if path.stem in attn_lib.list_modules() for paper in attn_lib.entry(path.stem).papers}
    found = []
    for number, cell in chapter.prose:
        cited = [key.strip() for group in CITATION.findall(cell.source) for key in group.split(",")]
        found += [
            f"cell {number}: {key!r} is not in book/references.bib" for key in cited if key not in keys
        ]
        for match in LINK.finditer(cell.source):
            if match["image"] and not match["text"].strip():
                found.append(f"cell {number}: the picture {match['target']} has no alternative text")
            target = match["target"].split("#")[0]
            if (
                target
                and "://" not in target
                and not target.startswith("mailto:")
                and not (chapter.path.parent / target).exists()
            ):
                found.append(f"cell {number}: the link {match['target']} leads nowhere")
            paper = ARXIV.fullmatch(target)
            if paper and paper["id"] in explained and explained[paper["id"]] != chapter.path:
                own = explained[paper["id"]].relative_to(chapter.root)
                found.append(f"cell {number} links arXiv {paper['id']}, which has a chapter of this book: {own}")
        for match in ROLE.finditer(cell.source):
            if match["role"].startswith("py:") and not importable(match["target"]):
                found.append(f"cell {number}: there is no {match['target']}")
    return found


def importable(name: str) -> bool:
    """Return whether there is a module or something in one of this name; names of other libraries are trusted."""
    if not name.startswith("attn_lib"):
        return True
    module, _, rest = name.partition(".")
    thing: object = importlib.import_module(module)
    for attribute in rest.split(".") if rest else ():
        module = f"{module}.{attribute}"
        try:
            thing = getattr(thing, attribute)
        except AttributeError:
            try:
                thing = importlib.import_module(module)
            except ImportError:
                return False
    return True


@check
def code_is_short_and_plain(chapter: Chapter) -> list[str]:
    """One idea a cell, nothing that belongs in the library, no plotting code, nothing from the network."""
    found = []
    for number, cell in chapter.code:
        lines = cell.source.count("\n") + 1
        if lines > notebooks.LINES:
            found.append(
                f"cell {number} has {lines} lines; what is longer than {notebooks.LINES} belongs in the library"
            )
        wide = max(map(len, cell.source.splitlines()), default=0)
        if wide > notebooks.WIDTH and "setup" not in notebooks.tags(cell):
            found.append(f"cell {number} has a line of {wide} characters; a page shows {notebooks.WIDTH}")
        try:
            tree = python(cell.source)
        except SyntaxError as error:
            found.append(f"cell {number} is not Python: {error}")
            continue
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                if name.split(".")[0] in (
                    "matplotlib",
                    "seaborn",
                    "plotly",
                    "urllib",
                    "requests",
                    "warnings",
                ):
                    found.append(
                        f"cell {number} imports {name}; chapters draw with viz and stay off the network"
                    )
    return found


@check
def outputs_are_stored(chapter: Chapter) -> list[str]:
    """Outputs come from the present code, are complete, hold no error, and fit on the page."""
    if notebooks.is_stale(chapter.notebook):
        return ["the code has changed since the outputs were stored, which are not judged; run make execute"]
    found = []
    counts = [cell.execution_count for _, cell in chapter.code]
    if counts != list(range(1, len(counts) + 1)):
        found.append("execution counts must run 1, 2, 3 …: nbval compares nothing in a cell without one")
    for number, cell in chapter.code:
        if not cell.outputs and shows(cell.source):
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
    if notebooks.dumps(notebooks.normalise(chapter.notebook)) != notebooks.dumps(chapter.notebook):
        found.append("cell ids or metadata are not normalised; run make execute")
    return found


def shows(source: str) -> bool:
    """Return whether a cell prints at its top level or ends in a figure, a check or a card."""
    body = python(source).body
    plain = [node for node in body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    calls = [node for top in plain for node in ast.walk(top) if isinstance(node, ast.Call)]
    if any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls):
        return True
    last = body[-1] if body else None
    call = last.value if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) else None
    return call is not None and bool(
        re.match(r"viz\.|attn_lib\.card|\w+\.check\(", ast.unparse(call.func) + "(")
    )


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
                found.append(
                    f"cell {number}: the figure's title is not a question: {data.get('text/plain', '')!r}"
                )
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
                    if (
                        isinstance(given.get(argument), ast.Constant)
                        and not str(given[argument].value).strip()
                    ):
                        found.append(f"cell {number}: {ast.unparse(node.func)} has an empty {argument}")
    return found


def draws(node: ast.AST) -> bool:
    """Return whether this is a call of something in viz."""
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("viz.")


class _Pictures(HTMLParser):
    """Finds pictures without alternative text in a piece of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img" and not (given.get("alt") or "").strip():
            self.problems.append("an <img> has no alt text")
        if tag == "svg" and not (
            given.get("aria-label") or given.get("aria-labelledby") or "aria-hidden" in given
        ):
            self.problems.append("an <svg> has no aria-label")


@check
def ignored_outputs(chapter: Chapter) -> list[str]:
    """Only what differs between machines is not compared, and the text's claims on it are asserted.

    A cell that only draws may leave that to one before it.
    """
    found, asserted = [], False
    for number, cell in chapter.code:
        if IGNORED not in notebooks.tags(cell):
            continue
        if ASSERTS.search(cell.source) or TIMES.search(cell.source):
            asserted = True
        elif not (asserted and draws(getattr(python(cell.source).body[-1], "value", None))):
            found.append(f"cell {number} is tagged {IGNORED} but asserts nothing and shows no timing")
    return found


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
            found.append(
                f"cell {number}: a solution cell has one ### BEGIN SOLUTION and one ### END SOLUTION"
            )
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
                found.append(
                    f"cell {index + 1}: {heading!r} must read '### Exercise 1 (derive, 2 points, 5 minutes): …'"
                )
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
                found.append(
                    f"cell {number}: stub and solution differ in a signature; markers go inside the function"
                )
            if "NotImplementedError" not in stub:
                found.append(f"cell {number}: the student copy leaves nothing to do")
        except (SyntaxError, RuntimeError) as error:
            found.append(f"cell {number}: no student copy can be made of it: {error}")
    return found


def student_copy(source: str) -> str:
    """Return what nbgrader leaves of a solution cell."""
    cell = nbformat.v4.new_code_cell(source, metadata={"nbgrader": {"solution": True}})
    return ClearSolutions().preprocess_cell(cell, {"language": "python"}, 0)[0].source


def signatures(source: str) -> dict[str, str]:
    """Return the functions and classes that a cell defines, methods too, with their signatures."""
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
def size(chapter: Chapter) -> list[str]:
    """A chapter with its outputs lives in git."""
    bytes_ = len(notebooks.dumps(chapter.notebook).encode())
    if bytes_ <= notebooks.BYTES:
        return []
    return [f"the notebook has {bytes_ / 1000:.0f} KB, where {notebooks.BYTES / 1000:.0f} are allowed"]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Check that chapters have every part of a chapter.")
    parser.add_argument("chapters", nargs="*", help="channel/se, se or a path; none: all")
    paths = notebooks.find(parser.parse_args().chapters)
    found = [f"{path.stem}: {problem}" for path in paths for problem in problems(Chapter.load(path))]
    print(f"{len(paths)} chapters, {len(found)} problems")
    return notebooks.complain(found)


if __name__ == "__main__":
    sys.exit(main())
