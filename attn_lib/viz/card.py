"""The card of a module: paper, shapes, cost and symmetries, computed from the catalog and the module itself."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .. import catalog
from ..console import printable
from ..layout import Layout
from ..measure import cost, records, saved_bytes
from ..measure.suite import sizes
from . import style
from .timing import latest, why_not
from .words import SYMMETRIES_SAID, at_limits

SIDE = 56  # of the feature map that FLOPs, memory and times are given for


# What a part holds. The facts can be understood before the chapter; the rest is shown where it is explained.
PARTS = {
    "facts": ("Paper", "Papers", "Input → output", "Parameters", "FLOPs", "Class"),
    "cost": ("Parameters", "FLOPs", "Kept for backward"),
    "limits": ("Commutes with", "Fresh module", "Builds on", "At its limits"),
}
TIME = "<!-- recorded time -->"  # stands where the book's site adds it (`recorded_time`)


@dataclass(frozen=True)
class Row:
    """One line of a card: its label, its text, and the same text with links where it has any."""

    label: str
    text: str
    markup: str = ""

    def html(self) -> str:
        """The line as an item of the card's list: on a narrow page the text goes below its label."""
        # Inline styles for viewers without the book's style sheet; they set no colour that a dark page could swallow.
        line = "display:flex;flex-wrap:wrap;column-gap:1em;padding:.3em 0;border-top:1px solid rgba(128,128,128,.35)"
        return (
            f'<div style="{line}"><dt style="flex:0 0 11em;margin:0;font-weight:600">{html.escape(self.label)}</dt>'
            f'<dd style="flex:1 1 18em;min-width:0;margin:0;overflow-wrap:anywhere">'
            f"{self.markup or html.escape(self.text)}</dd></div>"
        )


@dataclass(frozen=True)
class Card:
    """What is known of a module at a glance. As the last expression of a cell it shows itself.

    Attributes:
        id: the module's.
        name: the mechanism's name.
        colour: of its family.
        rows: from the paper to the class, or those of one part.
    """

    id: str
    name: str
    colour: str
    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        wide = max(len(row.label) for row in self.rows)
        lines = [f"{row.label:<{wide}}  {row.text}" for row in self.rows]
        return printable("\n".join([f"{self.name} ({self.id})", *lines]))

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}

    def _repr_html_(self) -> str:
        rows = "".join(row.html() + TIME * (row.label == "FLOPs") for row in self.rows)
        return (
            f'<div class="attn-card" data-module="{self.id}" '
            f'style="border-left:5px solid {self.colour};padding-left:.8em">'
            f'<p style="margin:0;padding:.3em 0;font-weight:700">{html.escape(self.name)}</p>'
            f'<dl style="margin:0;font-size:.95em">{rows}</dl></div>'
        )


def card(id: str, part: str = "facts") -> Card:
    """The card of a module.

    It holds what the module is and what can be counted: the same wherever it is asked for, until the module changes.
    How long it takes is `recorded_time`; on the book's site it stands among the card's rows.

    Args:
        id: as in `attn_lib.list_modules()`.
        part: "facts" is what can be understood before the chapter: paper, shapes, parameters, FLOPs and class. "cost"
            adds to the counts what is kept for the backward pass. "limits" is how the module behaves: its symmetries,
            what a fresh one does, what it builds on and what it becomes at its limits. "whole" is everything.

    Raises:
        ValueError: there is no such module or part.
    """
    if part != "whole" and part not in PARTS:
        raise ValueError(f"part={part!r} must be one of {', '.join(map(repr, [*PARTS, 'whole']))}")
    entry = catalog.entry(id)
    rows = _rows(entry)
    if part != "whole":
        rows = [row for row in rows if row.label in PARTS[part]]
    return Card(entry.id, entry.name, style.FAMILY_COLOURS[entry.family], tuple(rows))


def _rows(entry: catalog.Entry) -> list[Row]:
    """All that is known, in the order of a whole card."""
    place = f"{entry.cls.__module__}.{entry.cls.__qualname__}"
    rows = [
        _papers(entry.papers),
        Row("Family", catalog.FAMILIES[entry.family]),
        Row("Input → output", f"{_axes(entry.layout)} → {_axes(entry.output)}"),
        *_costs(entry),
        Row("Commutes with", _symmetries(entry)),
        Row("Fresh module", "returns its input unchanged" if entry.identity_at_init else "changes its input"),
    ]
    if entry.builds_on:
        rows.append(Row("Builds on", ", ".join(catalog.entry(other).name for other in entry.builds_on)))
    if entry.reduces_to:
        rows.append(Row("At its limits", at_limits(entry)))
    return [*rows, Row("Class", place, f"<code>{html.escape(place)}</code>")]


def _papers(papers: Sequence[catalog.Paper]) -> Row:
    texts, markups = [], []
    for paper in papers:
        where = f"{paper.venue} {paper.year}"
        text, markup = f"{paper.title}, {where}", f"<cite>{html.escape(paper.title)}</cite>, {html.escape(where)}"
        if paper.arxiv:
            text += f", arXiv {paper.arxiv}"
            number = html.escape(paper.arxiv)
            markup += f', <a href="https://arxiv.org/abs/{number}">arXiv {number}</a>'
        if paper.code:
            text += f", code: {paper.code}"
            markup += f', <a href="{html.escape(paper.code)}">authors’ code</a>'
        texts.append(text)
        markups.append(markup)
    return Row("Paper" if len(papers) == 1 else "Papers", "; ".join(texts), "<br>".join(markups))


def _axes(layout: Layout) -> str:
    """"B C H W, B C H W" as "(B, C, H, W) and (B, C, H, W)"."""
    return " and ".join(f"({', '.join(axes)})" for axes in layout.tensors)


def _costs(entry: catalog.Entry) -> list[Row]:
    half, whole = sizes(entry.layout, [SIDE // 2, SIDE])
    counted = cost(*_evaluating(entry, whole))
    grown = counted.saved_bytes / max(1, saved_bytes(*_evaluating(entry, half)))
    options = ", ".join(f"{name}={value!r}" for name, value in entry.options(catalog.MEASURED, whole).items())
    one = "one input of " + style.times(entry.shapes(1, whole, catalog.MEASURED)[0][1:])
    doubled = f"{style.times(half)} → {style.times(whole)}"
    memory = f"{style.si(counted.saved_bytes, 'B')} for {one}; × {grown:.1f} for {doubled}"
    return [
        Row("Parameters", f"{counted.params:,} ({options})"),
        Row("FLOPs", f"{_count(counted.flops)} for {one}, in matrix products and convolutions"),
        Row("Kept for backward", memory if counted.saved_bytes else "nothing but its inputs and parameters"),
    ]


def _evaluating(entry: catalog.Entry, size: tuple[int, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The example in evaluation mode, where a batch of one is enough for every module."""
    module, inputs = catalog.example(entry.id, catalog.MEASURED, batch=1, size=size)
    return module.eval(), inputs


def recorded_time(id: str) -> Row:
    """The card's line on the recorded time of a module: a GPU's where there is one."""
    return Row("Recorded time", _time(catalog.entry(id)))


def _time(entry: catalog.Entry) -> str:
    (size,) = sizes(entry.layout, [SIDE])
    tried = [
        row
        for row in latest(records(entry.id))
        if (row["size"], row["dtype"], row["mode"], row["backward"]) == ([*size], "float32", "eager", False)
    ]
    failed = [f"{why_not(row)} on {style.times(row['shapes'][0])} ({row['device']})" for row in tried if row["error"]]
    rows = [row for row in tried if row["median"] is not None]
    if not rows:
        return "; ".join(failed) or "none yet"
    row = rows[0]  # a GPU's where there is one
    # A CPU's cache outruns the memory bandwidth that its ceiling was measured with; a GPU's is emptied before.
    limit = f", {row['roofline']:.0%} of what the device could do" if row["kind"] == "cuda" else ""
    where = row["device"] if row["kind"] == "cuda" or failed else f"no GPU recorded; {row['device']}"
    time = f"{style.si(row['median'], 's')} forward on {style.times(row['shapes'][0])}, float32 ({where}){limit}"
    return "; ".join([*failed, time])


def _symmetries(entry: catalog.Entry) -> str:
    held = [name for name in catalog.SYMMETRIES if name in entry.commutes_with]
    return ", ".join(SYMMETRIES_SAID[name] for name in held) or "none of the symmetries tested"


def _count(n: int) -> str:
    return f"{n:,}" if n < 100_000 else style.si(n)
