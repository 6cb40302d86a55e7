"""What stands on which slide of a chapter.

Without a mark: the title, what the problem looks like, the equations and their symbols, the drawing, the steps with
their code, the module's class, the explorers, what training made of it, what goes wrong, how it is put to use, the
exercise to predict, what to take away. Beside a picture stand at most `WORDS` words; the chapter's text is in the
notes.

A cell's `slideshow.slide_type`, which Jupyter shows in its property inspector, leaves out or adds: `skip` makes no
slide of the cell and keeps its text out of the notes, `slide` (or `subslide`) makes one of a cell that would have none.
"""

from __future__ import annotations

import ast
import base64
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from attn_lib.viz.explore.page import script_tag, style_tag

from ..anatomy.chapter import CITATION, Chapter, python
from ..anatomy.exercises import EXERCISE
from ..anatomy.prose import EQUATION
from ..teaching import PREREQUISITES, facts
from .text import Text, before, begun, bold_heads, headings, paragraphs, reference, sentences, shortened, words

WORDS = 40  # beside a picture
STEP_LINES = 8  # of code that stands beside a picture
CALL = re.compile(r"^.*plug\.(?:insert|replace|fuse)\((?:.*\)$|(?s:.*?)^\S*\)$)", re.MULTILINE)  # with all its lines
SVG = re.compile(r"data:image/svg\+xml;base64,([\w+/=]+)")


@dataclass
class Slide:
    """A slide: its place in the chapter, its kind (a class of the style sheet), its HTML, its notes as HTML."""

    place: float
    kind: str
    title: str
    body: str
    notes: str = ""


def mark(cell: NotebookNode) -> str:
    """The cell's slide type: "slide", "skip" or, for all that says nothing, ""."""
    kind = cell.metadata.get("slideshow", {}).get("slide_type", "")
    return {"subslide": "slide", "slide": "slide", "skip": "skip"}.get(kind, "")


def code(source: str) -> str:
    """Highlighted Python."""
    return highlight(source.strip("\n"), PythonLexer(), HtmlFormatter(cssclass="source", wrapcode=True))


def picture(cell: NotebookNode) -> str:
    """What a cell shows: an explorer, a drawing or a figure, as HTML; nothing where it shows none of these."""
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        markup = "".join(data.get("text/html", ""))
        if "attn-explorer" in markup:
            return markup.replace(style_tag(), "").replace(script_tag(), "")
        if "attn-drawing" in markup:
            svg = base64.b64decode(SVG.findall(markup)[-1]).decode()  # the last is the one for a wide page
            return f'<div class="drawing">{svg}</div>'
        if "image/png" in data:
            meta = output.get("metadata", {}).get("image/png", {})
            shape = f' width="{meta["width"]}" height="{meta["height"]}"' if "height" in meta else ""
            png = "".join(data["image/png"].split())
            return f'<img src="data:image/png;base64,{png}" alt="{html.escape(meta.get("alt", ""))}"{shape}>'
    return ""


def classes(source: str) -> str:
    """The classes that a cell defines, without what tries them out."""
    lines = source.splitlines()
    return "\n\n".join("\n".join(lines[node.lineno - 1:node.end_lineno]) for node in python(source).body
                       if isinstance(node, ast.ClassDef))


def told_apart(source: str) -> str:
    """A step's code without what it prints and what it asserts of the text."""
    def only_tells(node: ast.stmt) -> bool:
        if isinstance(node, ast.For):
            return all(only_tells(one) for one in node.body)
        return isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and ast.unparse(node).startswith("print("))

    lines = source.splitlines()
    for node in reversed(python(source).body):
        if only_tells(node):
            del lines[node.lineno - 1:node.end_lineno]
    return "\n".join(lines).strip()


def tall(markup: str) -> bool:
    """Whether a picture leaves room at its side rather than below."""
    found = re.search(r'\bwidth="(\d+)" height="(\d+)"', markup)
    return bool(found) and int(found[2]) / int(found[1]) > 0.68


class Deck:
    """A chapter's slides."""

    def __init__(self, path: Path) -> None:
        self.chapter = Chapter.load(path)
        self.facts = facts(path)
        self.text = Text(path, self.chapter.notebook)
        self.spoken = Text(path, self.chapter.notebook, set_formulas=False)
        self.cells = self.chapter.cells
        self._used: set[int] = set()  # cells whose text stands in notes already

    def slides(self) -> list[Slide]:
        """All of them, in the chapter's order."""
        made = [*self.opening(), *self.marked()]
        parts = {"problem": self.pictures, "ideas": self.pictures, "mechanism": self.mechanism,
                 "by-hand": self.pictures, "steps": self.steps, "assembled": self.assembled, "limits": self.explorers,
                 "inside": self.inside, "cost": self.cost, "pitfalls": self.pitfalls, "use": self.use,
                 "take-away": self.take_away, "exercises": self.exercise, "references": self.references}
        for part, rule in parts.items():
            made += rule(part)
        return sorted(made, key=lambda slide: slide.place)

    # --- what slides are made of --------------------------------------------------------------------------------------

    def part(self, name: str) -> list[tuple[int, NotebookNode]]:
        """A part's cells with their places, without those that are left out or have a slide of their own."""
        start = self.chapter.starts.get(name, 0)
        cells = enumerate(self.chapter.part(name), start)
        return [(place, cell) for place, cell in cells if mark(cell) not in ("skip", "slide")]

    def heading(self, place: int) -> str:
        """The last heading at or before a cell."""
        for cell in reversed(self.cells[: place + 1]):
            if cell.cell_type == "markdown" and (found := headings(cell.source)):
                return found[-1]
        return self.facts.title

    def notes(self, place: int, *, before: bool = True) -> str:
        """The text around a cell: what stands between it and the output before it, and what follows it."""
        said: list[str] = []
        k = place if self.cells[place].cell_type == "markdown" else place - 1
        while before and k >= 0 and k not in self._used and (
                self.cells[k].cell_type == "markdown" or not picture(self.cells[k])):
            if self.cells[k].cell_type == "markdown" and mark(self.cells[k]) != "skip":
                said.insert(0, self.cells[k].source)
                self._used.add(k)
            if k in self.chapter.starts.values():
                break
            k -= 1
        k = place + 1
        while k < len(self.cells) and self.cells[k].cell_type == "markdown" and k not in self._used \
                and "\n## " not in f"\n{self.cells[k].source}":
            if mark(self.cells[k]) != "skip":
                said.append(self.cells[k].source)
                self._used.add(k)
            k += 1
        joined = re.sub(r"^#{1,4} .*$", "", "\n\n".join(said), flags=re.MULTILINE)
        return self.spoken.html(joined)

    def beside(self, place: int, in_steps: bool = False) -> str:
        """A sentence or two on a picture: what is seen, or else what is asked."""
        after = self.cells[place + 1].source if place + 1 < len(self.cells) and \
            self.cells[place + 1].cell_type == "markdown" else ""
        earlier = (cell.source for cell in reversed(self.cells[:place]) if cell.cell_type == "markdown")
        seen = [] if headings(after) else paragraphs(after)[:1]
        if in_steps:  # what begins in bold is the next step
            seen = [text for text in seen if not text.startswith("**")]
        said = shortened(seen[0], WORDS) if seen else ""
        if not said or said.endswith(":"):
            said = before(paragraphs(next(earlier, "")), WORDS)
        return self.text.inline(said)

    def show(self, place: int, cell: NotebookNode, *, source: str = "", title: str = "") -> Slide:
        """A picture with a few words and, above it, the code that leads to it."""
        markup = picture(cell)
        kind = "explorer" if "attn-explorer" in markup else "tall" if tall(markup) and not source else "wide"
        said = "" if kind == "explorer" else self.beside(place, bool(source))
        said = f"<p>{said}</p>" if said else ""
        top = code(source) if source else ""
        body = f'{top}<div class="pair"><div class="picture">{markup}</div>{said}</div>'
        return Slide(place, kind, title or self.heading(place), body, self.notes(place))

    # --- the rules ----------------------------------------------------------------------------------------------------

    def opening(self) -> Iterator[Slide]:
        """Title and objectives."""
        first, *rest = paragraphs(self.cells[0].source.partition("\n")[2])
        lead = shortened(first, WORDS) or first
        yield Slide(-2, "title", self.facts.title, f"<p>{self.text.inline(lead)}</p>",
                    self.spoken.html("\n\n".join([first, *rest])))
        aims = "".join(f"<li>{self.text.inline(aim.rstrip(';.'))}</li>" for aim in self.facts.objectives)
        asked = PREREQUISITES.search(self.chapter.text("title", "markdown"))
        yield Slide(-1, "list", "After this you can", f"<ul>{aims}</ul>", self.spoken.html(asked[0] if asked else ""))

    def marked(self) -> Iterator[Slide]:
        """Cells that are marked as slides."""
        for place, cell in enumerate(self.cells):
            if mark(cell) != "slide":
                continue
            if cell.cell_type == "markdown":
                body = re.sub(r"^#{1,4} .*$", "", cell.source, flags=re.MULTILINE)
                yield Slide(place, "list", self.heading(place), self.text.html(body), self.notes(place, before=False))
            elif picture(cell):
                yield self.show(place, cell)
            else:
                yield self.step(place, cell.source)

    def pictures(self, part: str) -> Iterator[Slide]:
        """Every picture of a part."""
        for place, cell in self.part(part):
            if picture(cell):
                yield self.show(place, cell)

    def explorers(self, part: str) -> Iterator[Slide]:
        """The explorers of a part, and its drawings."""
        for place, cell in self.part(part):
            if "attn-explorer" in (markup := picture(cell)) or 'class="drawing"' in markup:
                yield self.show(place, cell)

    def mechanism(self, part: str) -> Iterator[Slide]:
        """The equations, up to three on a slide, each under the words that lead to it; then symbols; then pictures."""
        for place, cell in self.part(part):
            if cell.cell_type != "markdown":
                continue
            equations, end = [], 0
            for found in EQUATION.finditer(cell.source):
                before = paragraphs(cell.source[end:found.start()])[-1:]
                lead = [one for one in sentences(before[0])[-1:] if words(one) <= WORDS] if before else []
                said = f"<p>{self.text.inline(begun(lead[0]))}</p>" if lead else ""
                number = self.text.numbers.get(found["label"], "")
                formula = f"<div>\\[{html.escape(found['body'])}\\]</div><b>({number})</b>"
                equations.append(f'<div class="equation">{said}<div class="formula">{formula}</div></div>')
                end = found.end()
            notes = self.notes(place) if equations else ""
            some = -(-len(equations) // -(-len(equations) // 3)) if equations else 1
            for k in range(0, len(equations), some):
                yield Slide(place + k / 100, "equations", self.heading(place), "".join(equations[k:k + some]), notes)
            if table := re.search(r"(?:^\|.*\|[ \t]*\n?){3,}", cell.source, re.MULTILINE):
                title = "Symbols" if table[0].startswith("| Symbol") else self.heading(place)
                yield Slide(place + 0.9, "symbols", title, self.text.html(table[0]), notes)
        yield from self.pictures(part)

    def steps(self, part: str) -> Iterator[Slide]:
        """A slide for each picture, with the code of the step that it belongs to; for a step without one, its code."""
        waiting: tuple[int, str] | None = None
        for place, cell in self.part(part):
            if cell.cell_type == "code" and picture(cell):
                lines = waiting[1] if waiting and len(waiting[1].splitlines()) <= STEP_LINES else ""
                yield self.show(place, cell, source=lines)
                waiting = None
            elif cell.cell_type == "code" and ".check(" in cell.source:
                if waiting:
                    yield self.step(*waiting)
                waiting = place, told_apart(cell.source)
        if waiting:
            yield self.step(*waiting)

    def step(self, place: int, source: str) -> Slide:
        """Code that has no picture, under the sentence that leads to it."""
        told = "\n\n".join(cell.source for cell in self.cells[:place] if cell.cell_type == "markdown")
        said = self.text.inline(before(paragraphs(told), WORDS))
        return Slide(place, "code", self.heading(place), f"<p>{said}</p>{code(source)}", self.notes(place))

    def assembled(self, part: str) -> Iterator[Slide]:
        """The module's class, and its flow."""
        for place, cell in self.part(part):
            if cell.cell_type == "code" and re.search(r"(?m)^class \w+\(.*Module\)", cell.source):
                yield Slide(place, "code", self.heading(place), code(classes(cell.source)), self.notes(place))
        yield from self.pictures(part)

    def inside(self, part: str) -> Iterator[Slide]:
        """What training made of it: scores, curves and explorers."""
        for place, cell in self.part(part):
            if picture(cell) and re.search(r"viz\.(compare|curves|explore_\w+)\(", cell.source):
                yield self.show(place, cell)

    def cost(self, part: str) -> Iterator[Slide]:
        """Times, and explorers."""
        for place, cell in self.part(part):
            if picture(cell) and re.search(r"viz\.(timing|scaling|explore_\w+)\(", cell.source):
                yield self.show(place, cell)

    def pitfalls(self, part: str) -> Iterator[Slide]:
        """The mistakes by their names."""
        cells = [(place, cell) for place, cell in self.part(part) if cell.cell_type == "markdown"]
        heads = [self.text.inline(head) for _, cell in cells for head in bold_heads(cell.source)]
        if heads:
            told = "\n\n".join(cell.source for _, cell in cells)
            body = f"<ul>{''.join(f'<li>{head}</li>' for head in heads)}</ul>"
            yield Slide(cells[0][0], "list", self.heading(cells[0][0]), body,
                        self.spoken.html(re.sub(r"^#{1,4} .*$", "", told, flags=re.MULTILINE)))
        yield from self.explorers(part)

    def use(self, part: str) -> Iterator[Slide]:
        """The line that puts it into a network, and when not to."""
        cells = self.part(part)
        calls = [(place, found[0].strip()) for place, cell in cells if cell.cell_type == "code"
                 for found in CALL.finditer(cell.source)]
        told = [text for _, cell in cells if cell.cell_type == "markdown" for text in paragraphs(cell.source)]
        when = [text for text in told if text.startswith("**When")] or told[:1]
        chosen = [shortened(text, WORDS) for text in when]
        chosen = [said if words(said) > 4 else " ".join(sentences(text)[:2])  # a long sentence after "When not."
                  for said, text in zip(chosen, when, strict=True)]
        if calls:
            said = "".join(f"<p>{self.text.inline(text)}</p>" for text in chosen if text)
            place, call = calls[0]
            yield Slide(place, "code", self.heading(place), code(call) + said, self.notes(place))
        yield from self.explorers(part)

    def take_away(self, part: str) -> Iterator[Slide]:
        """What to keep, a sentence a line; then the open question."""
        for place, cell in self.part(part):
            if cell.cell_type != "markdown" or not (told := paragraphs(cell.source)):
                continue
            open_ = [text for text in told if text.rstrip("*").endswith("?")][-1:]
            kept = [text for text in told if text not in open_]
            items = [self.text.inline(one) for text in kept for one in sentences(text)]
            yield Slide(place, "list", self.heading(place), f"<ul>{''.join(f'<li>{one}</li>' for one in items)}</ul>",
                        self.spoken.html("\n\n".join(told)))
            for text in open_:
                asked = re.sub(r"^\*[^*]+\*:?\s*|^\*\*[^*]+\*\*:?\s*", "", text)
                yield Slide(place + 0.5, "question", "To think about", f"<p>{self.text.inline(begun(asked))}</p>")

    def exercise(self, part: str) -> Iterator[Slide]:
        """The one to predict, for the class to guess at."""
        for place, cell in self.part(part):
            found = EXERCISE.search(cell.source) if cell.cell_type == "markdown" else None
            if found and found["kind"] == "predict":
                head = f"<p><b>Exercise {found['number']}, {found['minutes']} minutes. Predict first.</b></p>"
                yield Slide(place, "exercise", found["title"].strip(),
                            head + self.text.html(cell.source[found.end():]))

    def references(self, part: str) -> Iterator[Slide]:
        """The papers that the chapter ends with."""
        keys = dict.fromkeys(key.strip() for _, cell in self.part(part) if cell.cell_type == "markdown"
                             for group in CITATION.findall(cell.source) for key in group.split(","))
        if keys:
            body = f"<ul>{''.join(f'<li>{reference(key)}</li>' for key in keys)}</ul>"
            yield Slide(self.chapter.starts[part], "list", "Papers", body)
