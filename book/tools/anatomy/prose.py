"""Equations, citations and links in the text."""

from __future__ import annotations

import importlib
import re

import attn_lib

from .. import notebooks
from .chapter import CITATION, LINK, Chapter, check

EQUATION = re.compile(r"\$\$(?P<body>.+?)\$\$[ \t]*(?:\((?P<label>[\w-]+)\))?", re.DOTALL)
FENCED = re.compile(r"```.*?```", re.DOTALL)
INLINE = re.compile(r"(?<![\\$])\$(?!\$)([^$]*)\$(?!\$)")  # a formula in a line of prose
LIST = re.compile(r"\n[ \t]*(?:[-+*]|\d+[.)])[ \t]")  # a line that Markdown takes for an entry of a list
FILE = re.compile(r"`((?:attn_lib|book|chapters|tests)/[\w./-]+\.\w+)`")
ARXIV = re.compile(r"https?://arxiv\.org/(?:abs|pdf)/(?P<id>\d{4}\.\d{4,5})(?:v\d+)?(?:\.pdf)?")
ROLE = re.compile(r"\{(?P<role>eq|doc|py:\w+)\}`(?:[^`<]*<)?~?(?P<target>[^`>]+)>?`")


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
def no_line_is_lost(chapter: Chapter) -> list[str]:
    """A line of prose that begins with a percent sign is a comment to MyST, and missing on the page."""
    return [f"cell {number}: the line {line.strip()[:40]!r} begins with % and is not shown; begin it with another word"
            for number, cell in chapter.prose
            for line in FENCED.sub("", cell.source).splitlines() if line.lstrip().startswith("%")]


@check
def no_formula_becomes_a_list(chapter: Chapter) -> list[str]:
    """A formula that is broken before a minus is a list to Markdown, and its halves are text with dollar signs."""
    return [f"cell {number}: the formula {' '.join(formula.split())[:40]!r} is broken before a sign of a list"
            for number, cell in chapter.prose
            for formula in INLINE.findall(FENCED.sub("", cell.source)) if LIST.search(formula)]


@check
def equations(chapter: Chapter) -> list[str]:
    """Displayed equations have labels, each its own, and every reference to one finds it."""
    labels, found = [], []
    for number, cell in chapter.prose:
        for match in EQUATION.finditer(cell.source):
            label = match["label"]
            if label is None:
                found.append(f"cell {number}: the equation {' '.join(match['body'].split())[:40]!r} has no label")
            elif not label.startswith(f"eq-{chapter.id}-"):
                found.append(f"cell {number}: the label {label!r} must start with eq-{chapter.id}-")
            labels.append(label)
    found += [f"the label {label!r} is used twice" for label in set(labels) if label and labels.count(label) > 1]
    for number, cell in chapter.prose:
        for match in ROLE.finditer(cell.source):
            own = match["role"] == "eq" and match["target"].startswith(f"eq-{chapter.id}-")
            if own and match["target"] not in labels:
                found.append(f"cell {number}: no equation is labelled {match['target']!r}")
    return found


@check
def citations_and_links(chapter: Chapter) -> list[str]:
    """Cited keys, linked or named files and linked classes exist; markdown images have alternative text."""
    bibliography = (chapter.root / "book" / "references.bib").read_text(encoding="utf-8")
    keys = set(re.findall(r"^@\w+\{\s*([^,\s]+)", bibliography, re.MULTILINE))
    explained = {paper.arxiv: path for path in notebooks.chapters(chapter.root)
                 if path.stem in attn_lib.list_modules() for paper in attn_lib.entry(path.stem).papers}
    found = []
    for number, cell in chapter.prose:
        cited = [key.strip() for group in CITATION.findall(cell.source) for key in group.split(",")]
        found += [f"cell {number}: {key!r} is not in book/references.bib" for key in cited if key not in keys]
        for match in LINK.finditer(cell.source):
            if match["image"] and not match["text"].strip():
                found.append(f"cell {number}: the picture {match['target']} has no alternative text")
            target = match["target"].split("#")[0]
            elsewhere = not target or "://" in target or target.startswith("mailto:")
            if not elsewhere and not (chapter.path.parent / target).exists():
                found.append(f"cell {number}: the link {match['target']} leads nowhere")
            paper = ARXIV.fullmatch(target)
            if paper and paper["id"] in explained and explained[paper["id"]] != chapter.path:
                own = explained[paper["id"]].relative_to(chapter.root)
                found.append(f"cell {number} links arXiv {paper['id']}, which has a chapter of this book: {own}")
        found += [f"cell {number}: there is no file {path}" for path in FILE.findall(cell.source)
                  if not (chapter.root / path).exists()]
        for match in ROLE.finditer(cell.source):
            if match["role"].startswith("py:") and not importable(match["target"]):
                found.append(f"cell {number}: there is no {match['target']}")
    return found


def importable(name: str) -> bool:
    """Whether there is a module or something in one of this name; names of other libraries are trusted."""
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
