"""Mechanisms drawn as small grids with their numbers, from a module's own trace."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ...checks import check_choice
from ...tap import trace as Trace
from .. import style
from ..figures import Figure, MimeBundle, check_texts
from .dots import Dots
from .grids import Grid
from .items import Item, names_of, picture
from .layout import Arrow, Layout, lay_out
from .render import figure, svg
from .shapes import NOTE, Box, Outline, Rect, Tone, Words, base, wide

__all__ = ["Dots", "Drawing", "Grid", "drawing"]

PAGE, PHONE = 700, 344  # CSS pixels there are for a drawing

End = str | tuple[str, Any]  # of an arrow: a name, or (name, index)


@dataclass(frozen=True, repr=False)
class Drawing(Figure):
    """A drawn mechanism: a figure that on a page fits itself to the width, and that is there as text too.

    Attributes:
        html: both layouts as SVG, and the numbers as text.
        spoken: the numbers as text, a line each.
    """

    html: str
    spoken: tuple[str, ...]

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> MimeBundle:
        data, metadata = super()._repr_mimebundle_(include, exclude)
        return {"text/html": self.html, **data}, metadata


def drawing(
    rows: Sequence[Sequence[Item | str | Sequence[Item | str]]], *, title: str, alt: str,
    arrows: Sequence[tuple[End, End, str] | tuple[End, End, str, Tone]] = (), trace: Trace | None = None,
    key: Mapping[str, int | tuple[int]] | None = None,
) -> Drawing:
    """A mechanism drawn as a teacher would: small grids with their numbers, and arrows with what happens.

    On a page the rows stand as given, at most 700 pixels wide; on a phone a row is broken where it has to be.

        with attn_lib.trace() as t:
            tiny(x)
        viz.drawing(
            [[viz.Grid("x", x), "z"], ["s", "y"]], trace=t, title="…", alt="…",
            arrows=[("x", "z", "mean, (1)"), ("z", "s", "(2)"), ("s", "y", "(3)"), ("x", "y", "× s")],
        )

    Args:
        rows: from top to bottom. A row holds items from left to right; a list within a row is a column. An item is
            the name of a tap, a `Grid` or `Dots`.
        title: the question that the drawing answers.
        alt: alternative text, in words; the numbers are added by themselves.
        arrows: (from, to, label) or (from, to, label, series colour). An end is a name, or (name, index) for the
            cells of it where the arrow shall point. Arrows run forward.
        trace: where the numbers come from.
        key: what the series colours mean, in words, as a line below: `{"its row": 1}`; `(1,)` is the colour of a frame.

    Raises:
        ValueError: a name that is not there or is there twice, numbers that do not fit, a row that is too wide for
            the page or an item that is too wide for a phone, an empty title or alt.
    """
    check_texts(title, alt)
    grid = [[_column(unit) for unit in row] for row in rows]
    names = [name for row in grid for column in row for item in column for name in names_of(item)]
    if not names:
        raise ValueError("rows holds nothing to draw")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} stands in the drawing more than once: give each its own name")
    ends = [_arrow(arrow, names) for arrow in arrows]
    for label, sign in (key or {}).items():
        (colour,) = sign if isinstance(sign, tuple) and len(sign) == 1 else (sign,)
        check_choice(f"the colour of {label!r}", colour, range(len(style.SERIES_COLOURS)))

    def at(limit: float, flow: bool) -> tuple[Layout, list[str]]:
        pictures = [[[picture(item, trace, limit) for item in column] for column in row] for row in grid]
        spoken = [line for row in pictures for column in row for p in column for line in p.spoken]
        return _with_key(lay_out(pictures, ends, limit, flow), key or {}, limit), spoken

    page, spoken = at(PAGE, False)
    phone = page if page.width <= PHONE else at(PHONE, True)[0]
    spoken += [f"{a.source} → {a.target}: {a.label}" for a in ends if a.label]
    shown = figure(page, title, alt)
    return Drawing(shown.png, title, alt, shown.width, shown.height, _html(page, phone, title, alt, spoken),
                   tuple(spoken))


def _column(unit: Any) -> list[Item]:
    units = list(unit) if isinstance(unit, list | tuple) else [unit]
    for item in units:
        if not isinstance(item, str | Grid | Dots):
            raise ValueError(f"a drawing holds viz.Grid, viz.Dots, or the name of a tap, not {item!r}")
    return [Grid(item) if isinstance(item, str) else item for item in units]


def _arrow(arrow: tuple[Any, ...], names: Sequence[str]) -> Arrow:
    if len(arrow) not in (3, 4):
        raise ValueError(f"an arrow is (from, to, label) or (from, to, label, colour), not {arrow!r}")
    ends = [(end, None) if isinstance(end, str) else end for end in arrow[:2]]
    for name, _ in ends:
        check_choice("an arrow's end", name, names)
    (source, source_cells), (target, target_cells) = ends
    return Arrow(source, target, arrow[2], arrow[3] if len(arrow) == 4 else "muted", source_cells, target_cells)


def _with_key(layout: Layout, key: Mapping[str, int | tuple[int]], limit: float) -> Layout:
    """The layout with a line below it that says what the colours mean, broken where it has to be."""
    if not key:
        return layout
    x, y, width = 4.0, layout.height + 16, layout.width
    for label, sign in key.items():
        room = 20 + wide(label, NOTE) + 18
        if x > 4 and x + room - 18 > max(layout.width, min(limit, 2 * PHONE)):
            x, y = 4.0, y + 20
        square = Rect(x, y - 7, 14, 14)
        layout.shapes += [Outline(square, sign[0]) if isinstance(sign, tuple) else Box(square, sign, 0.4),
                          Words(x + 20, base(y, NOTE), label, NOTE, "start")]
        x += room
        width = max(width, x - 18)
    return Layout(layout.shapes, width, y + 14)


def _html(page: Layout, phone: Layout, title: str, alt: str, spoken: Sequence[str]) -> str:
    def address(layout: Layout) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(svg(layout, alt).encode("utf-8")).decode("ascii")

    narrow = "" if phone is page else f'<source media="(max-width: {PAGE + 60}px)" srcset="{address(phone)}">\n'
    # The class keeps the Sphinx theme from dimming it on a dark page.
    text = (
        f'<figure class="attn-drawing">\n<figcaption>{escape(title)}</figcaption>\n<picture>\n{narrow}'
        f'<img class="dark-light" src="{address(page)}" alt="{escape(alt)}" width="{round(page.width)}" '
        f'style="max-width: 100%">\n</picture>\n'
        f'<details><summary>The numbers as text</summary>\n<pre>{escape(chr(10).join(spoken))}</pre>\n</details>\n'
        "</figure>\n"
    )
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")
