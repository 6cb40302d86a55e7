"""The map of the book: every module by family and year, what it grew out of and what it turns into.

Drawn from the catalog alone. On a page each module is a link to its chapter; a viewer without HTML gets the picture.
"""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path

from .. import catalog
from . import style
from .figures import Figure, Sheet

__all__ = ["FamilyMap", "family_map"]

_YEARS = 0.5  # inches: the column of years at the left
_HEAD, _BOX, _GAP, _PAD = 0.62, 0.26, 0.1, 0.16  # heights: families' names, a box, between boxes, around a year's


@dataclass(frozen=True)
class FamilyMap:
    """The map: a figure, and where on it each module stands.

    Attributes:
        figure: the picture.
        places: id -> (left, top, width, height) as shares of the picture.
        root: where the chapters' folder lies, seen from the page.
    """

    figure: Figure
    places: dict[str, tuple[float, float, float, float]] = field(repr=False)
    root: str

    def __repr__(self) -> str:
        return f"Map: {self.figure.title}"

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        data, metadata = self.figure._repr_mimebundle_()
        return data | {"text/html": self._repr_html_(), "text/plain": repr(self)}, metadata

    def _repr_html_(self) -> str:
        links = "".join(self._link(catalog.entry(id), place) for id, place in self.places.items())
        picture = base64.b64encode(self.figure.png).decode("ascii")
        return (
            f'<figure class="attn-map" style="position:relative;margin:0;max-width:{self.figure.width}px;'
            f'padding-bottom:8.5em"><style>{_STYLE}</style>'
            f'<div style="position:relative"><img src="data:image/png;base64,{picture}" '
            f'alt="{html.escape(self.figure.alt)}" style="display:block;width:100%">{links}</div></figure>'
        )

    def _link(self, entry: catalog.Entry, place: tuple[float, float, float, float]) -> str:
        box = ";".join(f"{side}:{100 * share:.2f}%" for side, share in zip(("left", "top", "width", "height"), place,
                                                                          strict=True))
        target = f"{self.root}/{entry.family}/{entry.id}.ipynb"
        # The sentence is no child of the positioned box: it stands at the foot of the figure, wherever the box is.
        return (f'<a href="{target}" aria-label="{html.escape(f"{entry.name}, {entry.year}")}"><i style="{box}"></i>'
                f"<span>{_sentence(entry)}</span></a>")


def family_map(*, title: str, alt: str, root: str = "..") -> FamilyMap:
    """Every module of the catalog: its family's column, its year's row, and how it is related to the others.

    An arrow leads from a module to one that builds on it. A dashed line joins a module to another that it turns into
    at a limit (`Entry.reduces_to`); where both hold, the arrow is thick.

    Args:
        title: the question the map answers.
        alt: alternative text.
        root: the chapters' folder, seen from the page that shows the map.
    """
    entries = [catalog.entry(id) for id in catalog.list_modules()]
    families = [family for family in catalog.FAMILIES if any(e.family == family for e in entries)]
    years = sorted({e.year for e in entries})
    cells = {(y, f): [e for e in entries if (e.year, e.family) == (y, f)] for y in years for f in families}
    deepest = {y: max(len(cells[y, f]) for f in families) for y in years}
    heights = {y: 2 * _PAD + deepest[y] * (_BOX + _GAP) - _GAP for y in years}
    column = (style.WIDTH - _YEARS - 0.08) / len(families)

    sheet = Sheet(title, alt, height=_HEAD + sum(heights.values()) + 0.35, layout=None)
    boxes: dict[str, tuple[float, float, float, float]] = {}  # left, top, width, height in inches
    with sheet as fig:
        ax = fig.add_axes((0, 0, 1, 1))
        ax.set(xlim=(0, style.WIDTH), ylim=(sheet.height, 0))
        ax.axis("off")
        top = sheet.top
        for k, family in enumerate(families):
            _head(ax, family, _YEARS + k * column, top, column)
        top += _HEAD
        for y in years:
            ax.plot([0.08, style.WIDTH - 0.08], [top, top], color=style.RULE, linewidth=0.7)
            ax.text(0.08, top + heights[y] / 2, str(y), va="center", color=style.MUTED, size=style.SMALL_SIZE)
            for k, family in enumerate(families):
                first = top + (heights[y] - len(cells[y, family]) * (_BOX + _GAP) + _GAP) / 2
                for i, e in enumerate(cells[y, family]):
                    boxes[e.id] = (_YEARS + k * column + 0.04, first + i * (_BOX + _GAP), column - 0.08, _BOX)
            top += heights[y]
        for e in entries:
            for other in e.builds_on:
                _join(ax, boxes[other], boxes[e.id], style.FAMILY_COLOURS[e.family], arrow=True,
                      wide=other in e.reduces_to)
            for other in e.reduces_to:
                if other in boxes and other not in e.builds_on:
                    _join(ax, boxes[e.id], boxes[other], style.MUTED, arrow=False)
        for e in entries:
            _box(ax, e, boxes[e.id])
        legend = "arrow: builds on    dashed: turns into it at a limit    thick arrow: both"
        ax.text(0.08, top + 0.2, legend, va="center", color=style.MUTED, size=style.SMALL_SIZE)
    shares = {id: (x / style.WIDTH, y / sheet.height, w / style.WIDTH, h / sheet.height)
              for id, (x, y, w, h) in boxes.items()}
    return FamilyMap(sheet.figure, dict(sorted(shares.items(), key=lambda item: (item[1][1], item[1][0]))), root)


def _head(ax: Axes, family: str, left: float, top: float, width: float) -> None:
    lines = style.wrap(catalog.FAMILIES[family], width - 0.08, style.SMALL_SIZE)
    ax.add_patch(Rectangle((left + 0.04, top + _HEAD - 0.1), width - 0.08, 0.05, color=style.FAMILY_COLOURS[family]))
    ax.text(left + 0.04, top + _HEAD - 0.14, "\n".join(lines), va="bottom", size=style.SMALL_SIZE, linespacing=1.1)


def _box(ax: Axes, entry: catalog.Entry, box: tuple[float, float, float, float]) -> None:
    x, y, w, h = box
    colour = style.FAMILY_COLOURS[entry.family]
    ax.add_patch(FancyBboxPatch((x + 0.03, y + 0.03), w - 0.06, h - 0.06, boxstyle="round,pad=0.03", zorder=3,
                                facecolor=style.BACKGROUND, edgecolor=colour, linewidth=1.4))
    size = style.SMALL_SIZE * min(1.0, (w - 0.06) / style.text_width(entry.id, style.SMALL_SIZE))
    ax.text(x + w / 2, y + h / 2 + 0.01, entry.id, ha="center", va="center", size=size, zorder=4)


def _join(ax: Axes, start: tuple, end: tuple, colour: str, *, arrow: bool, wide: bool = False) -> None:
    """A curve from the box `start` to the box `end` that leaves and enters upright; within a row it runs above."""
    (x0, y0, w0, h0), (x1, y1, w1, h1) = start, end
    up0, up1 = y1 < y0 + h0, y1 > y0 - h0  # which sides: the top of the one, the top of the other
    a = np.array([x0 + w0 / 2, y0 if up0 else y0 + h0])
    b = np.array([x1 + w1 / 2, y1 if up1 else y1 + h1])
    reach = 0.24 if up0 and up1 else abs(b[1] - a[1]) / 2
    c, d = np.add(a, (0, -reach if up0 else reach)), np.add(b, (0, -reach if up1 else reach))
    ax.add_patch(FancyArrowPatch(
        path=Path([a, c, d, b], [Path.MOVETO, *[Path.CURVE4] * 3]), arrowstyle="-|>" if arrow else "-",
        mutation_scale=9, color=colour, linewidth=2.6 if wide else 1.2, linestyle="-" if arrow else (0, (3, 3)),
        zorder=2,
    ))  # fmt: skip


def _sentence(entry: catalog.Entry) -> str:
    parts = [f"<b>{html.escape(entry.name)}</b>, {html.escape(entry.venue)} {entry.year}. {html.escape(entry.summary)}"]
    if entry.builds_on:
        parts.append("Builds on " + ", ".join(catalog.entry(other).name for other in entry.builds_on) + ".")
    if entry.reduces_to:
        parts.append("At a limit: " + "; ".join(f"{known(what)} ({when})" for what, when in entry.reduces_to.items())
                     + ".")
    return "<br>".join([parts[0], *map(html.escape, parts[1:])])


def known(operation: str) -> str:
    """The name of a module of the catalog; any other operation as it is called."""
    return catalog.entry(operation).name if operation in catalog.list_modules() else operation


_STYLE = (
    ".attn-map a i{position:absolute;border-radius:6px}"
    ".attn-map a:hover i,.attn-map a:focus i{outline:3px solid #d55e00}"
    ".attn-map a span{display:none;position:absolute;left:0;right:0;top:100%;padding-top:.5em;color:inherit;"
    "font-size:.9em;line-height:1.35}"
    ".attn-map a:hover span,.attn-map a:focus span{display:block}"
    ".attn-map a,.attn-map a:hover{text-decoration:none;color:inherit}"
)
