"""The map of the book: every module by family and year, what it grew out of and what it turns into.

Drawn from the catalog alone. On a page each module is a link to its chapter; a viewer without HTML gets the picture.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path

from .. import catalog
from ..console import printable
from . import style
from .figures import Figure, MimeBundle, Sheet, uri
from .words import at_limits

Place = tuple[float, float, float, float]  # left, top, width, height
Point = tuple[float, float]

_YEARS = 0.45  # inches: the column of years at the left
_HEAD, _BOX, _GAP, _PAD = 0.62, 0.26, 0.1, 0.16  # heights: families' names, a box, between boxes, around a year's


@dataclass(frozen=True)
class FamilyMap:
    """The map: a figure, and where on it each module stands.

    Attributes:
        figure: the picture.
        places: id -> (left, top, width, height) as shares of the picture.
        root: where the chapters' folder lies, seen from the page and from the folder in which it is drawn.
    """

    figure: Figure
    places: dict[str, tuple[float, float, float, float]] = field(repr=False)
    root: str

    def __repr__(self) -> str:
        return printable(f"Map: {self.figure.title}")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> MimeBundle:
        data, metadata = self.figure._repr_mimebundle_()
        return data | {"text/html": self._repr_html_(), "text/plain": repr(self)}, metadata

    def _repr_html_(self) -> str:
        links = "".join(self._link(catalog.entry(id), place) for id, place in self.places.items())
        return (
            f'<figure class="attn-map" style="margin:0;max-width:{self.figure.width}px"><style>{_STYLE}</style>'
            f'<div style="position:relative"><img src="{uri(self.figure.png)}" '
            f'alt="{html.escape(self.figure.alt)}" style="display:block;width:100%">{links}</div>'
            "<figcaption>Point at a module to read what it does; a click opens its chapter, if it has one."
            "</figcaption></figure>"
        )

    def _link(self, entry: catalog.Entry, place: tuple[float, float, float, float]) -> str:
        box = ";".join(f"{side}:{100 * share:.2f}%" for side, share in zip(("left", "top", "width", "height"), place,
                                                                          strict=True))
        chapter = f"{self.root}/{entry.family}/{entry.id}.ipynb"
        # A module may have no chapter yet, and a copy of a page no other chapters beside it: no link leads nowhere.
        way = f'href="{chapter}"' if os.path.exists(chapter) else 'tabindex="0" role="link" aria-disabled="true"'
        # The sentence is no child of the positioned box: it stands at the foot of the figure, wherever the box is.
        name = html.escape(f"{entry.name}, {entry.paper.year}")
        return (f'<a {way} aria-label="{name}"><i style="{box}"></i>'
                f"<span>{_sentence(entry)}</span></a>")


def family_map(ids: Iterable[str] | None = None, *, title: str, alt: str, root: str = "..") -> FamilyMap:
    """Modules of the catalog: each in its family's column and its year's row, and how it is related to the others.

    An arrow leads from a module to one that builds on it. A dashed line joins a module to another that it turns into
    at a limit (`Entry.reduces_to`); where both hold, the arrow is thick.

    Args:
        ids: which modules; all of them when None. Some thirty can be told apart.
        title: the question the map answers.
        alt: alternative text.
        root: the chapters' folder, seen from the page that shows the map.

    Raises:
        ValueError: no such module, or none at all.
    """
    entries = [catalog.entry(id) for id in sorted(set(catalog.list_modules() if ids is None else ids))]
    if not entries:
        raise ValueError(f"ids={ids!r} must hold at least one module")
    families = [family for family in catalog.FAMILIES if any(e.family == family for e in entries)]
    years = sorted({e.paper.year for e in entries})
    cells = {(y, f): [e for e in entries if (e.paper.year, e.family) == (y, f)] for y in years for f in families}
    deepest = {y: max(len(cells[y, f]) for f in families) for y in years}
    heights = {y: 2 * _PAD + deepest[y] * (_BOX + _GAP) - _GAP for y in years}
    column = (style.WIDTH - _YEARS - 0.08) / len(families)

    sheet = Sheet(title, alt, height=_HEAD + sum(heights.values()) + 0.35, layout=None)
    boxes: dict[str, Place] = {}  # in inches
    bottoms: dict[int, float] = {}
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
            bottoms[y] = top
        below = {e.id: bottoms[e.paper.year] for e in entries}
        links = [(other, e.id, True) for e in entries for other in e.builds_on if other in boxes]
        links += [(other, e.id, False) for e in entries for other in e.reduces_to
                  if other in boxes and other not in e.builds_on]
        for k, (older, newer, arrow) in enumerate(sorted(links)):
            entry = catalog.entry(newer)
            path = route(boxes, older, newer, below, 0.022 * (k % 5 - 2))
            _join(ax, path, style.FAMILY_COLOURS[entry.family] if arrow else style.MUTED, arrow=arrow,
                  wide=arrow and older in entry.reduces_to)
        for e in entries:
            _box(ax, e, boxes[e.id])
        wide = {older in catalog.entry(newer).reduces_to for older, newer, arrow in links if arrow}
        shown = {"arrow: builds on": False in wide,
                 "thick arrow: builds on, and turns into it at a limit": True in wide,
                 "dashed: turns into it at a limit": not all(arrow for *_, arrow in links)}
        legend = "    ".join(words for words, there in shown.items() if there)
        ax.text(0.08, top + 0.2, legend, va="center", color=style.MUTED, size=style.SMALL_SIZE)
    shares = {id: (x / style.WIDTH, y / sheet.height, w / style.WIDTH, h / sheet.height)
              for id, (x, y, w, h) in boxes.items()}
    return FamilyMap(sheet.figure, dict(sorted(shares.items(), key=lambda item: (item[1][1], item[1][0]))), root)


def _head(ax: Axes, family: str, left: float, top: float, width: float) -> None:
    words = catalog.FAMILIES[family].replace("-", "- ")  # may break at a hyphen
    lines = [line.replace("- ", "-") for line in style.wrap(words, width - 0.08, style.SMALL_SIZE)]
    size = min(style.SMALL_SIZE * min(1.0, (width - 0.08) / style.text_width(line, style.SMALL_SIZE)) for line in lines)
    ax.add_patch(Rectangle((left + 0.04, top + _HEAD - 0.1), width - 0.08, 0.05, color=style.FAMILY_COLOURS[family]))
    ax.text(left + 0.04, top + _HEAD - 0.14, "\n".join(lines), va="bottom", size=size, linespacing=1.1)


def _box(ax: Axes, entry: catalog.Entry, box: tuple[float, float, float, float]) -> None:
    x, y, w, h = box
    colour = style.FAMILY_COLOURS[entry.family]
    ax.add_patch(FancyBboxPatch((x + 0.03, y + 0.03), w - 0.06, h - 0.06, boxstyle="round,pad=0.03", zorder=3,
                                facecolor=style.BACKGROUND, edgecolor=colour, linewidth=1.4))
    size = style.SMALL_SIZE * min(1.0, (w - 0.06) / style.text_width(entry.id, style.SMALL_SIZE))
    ax.text(x + w / 2, y + h / 2 + 0.01, entry.id, ha="center", va="center", size=size, zorder=4)


def route(boxes: dict[str, Place], start: str, end: str, below: dict[str, float], shift: float) -> list[Point]:
    """Corners of the way from one box to another, in the gaps between rows and between columns.

    From below the first it goes along the gap under its row, down the gap left of the second's column, and enters
    from the left; or from above, where nothing lies between. `shift` keeps ways in one gap apart.
    """
    (x0, y0, w0, h0), (x1, y1, w1, h1) = boxes[start], boxes[end]
    blocked = any(x == x0 and y0 < y < below[start] for x, y, _, _ in boxes.values())
    gap, side = below[start] + shift, x1 - 0.04 + shift / 2
    middle = x0 + w0 / 2 + shift
    if below[end] == below[start]:  # the same row: above it
        above = min(y for id, (_, y, _, _) in boxes.items() if below[id] == below[start]) - 0.1 + shift
        return [(middle, y0), (middle, above), (x1 + w1 / 2, above), (x1 + w1 / 2, y1)]
    way = [(x0 + w0, y0 + h0 / 2), (x0 + w0 + 0.04 + shift / 2, y0 + h0 / 2), (x0 + w0 + 0.04 + shift / 2, gap)]
    if not blocked:
        way = [(middle, y0 + h0), (middle, gap)]
    if not any(x == x1 and gap < y < y1 for x, y, _, _ in boxes.values()):
        target = middle if x0 == x1 and not blocked else x1 + w1 / 2 + shift
        return [*way, (target, gap), (target, y1)]
    return [*way, (side, gap), (side, y1 + h1 / 2), (x1, y1 + h1 / 2)]


def _join(ax: Axes, corners: list[Point], colour: str, *, arrow: bool, wide: bool) -> None:
    """A line through the corners, each rounded off."""
    corners = [c for i, c in enumerate(corners) if i == 0 or c != corners[i - 1]]
    points, codes = [corners[0]], [Path.MOVETO]
    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        near, far = (_toward(corner, other, 0.06) for other in (before, after))
        points += [near, corner, far]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    ax.add_patch(FancyArrowPatch(
        path=Path([*points, corners[-1]], [*codes, Path.LINETO]), arrowstyle="-|>" if arrow else "-",
        mutation_scale=8, color=colour, linewidth=2.4 if wide else 1.1, linestyle="-" if arrow else (0, (3, 3)),
        fill=arrow, zorder=2,
    ))


def _toward(start: Point, end: Point, most: float) -> Point:
    """The point `most` from one towards another, or half way."""
    distance = np.hypot(end[0] - start[0], end[1] - start[1])
    share = min(most / distance, 0.5) if distance else 0.0
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _sentence(entry: catalog.Entry) -> str:
    where = f"{entry.paper.venue} {entry.paper.year}"
    parts = [f"<b>{html.escape(entry.name)}</b>, {html.escape(where)}. {html.escape(entry.summary)}"]
    if entry.builds_on:
        parts.append("Builds on " + ", ".join(catalog.entry(other).name for other in entry.builds_on) + ".")
    if entry.reduces_to:
        parts.append(f"At a limit: {at_limits(entry)}.")
    return "<br>".join([parts[0], *map(html.escape, parts[1:])])


_STYLE = (
    ".attn-map a i{position:absolute;border-radius:6px}"
    ".attn-map a:hover i,.attn-map a:focus i{outline:3px solid #d55e00}"
    ".attn-map a span{display:none;position:absolute;left:0;right:0;top:100%;padding-top:.5em;color:inherit;"
    "font-size:.9em;line-height:1.35}"
    ".attn-map a:hover span,.attn-map a:focus span{display:block}"
    ".attn-map a,.attn-map a:hover{text-decoration:none;color:inherit}"
    # The hint keeps the room in which the sentences appear.
    ".attn-map figcaption{min-height:8.5em;padding-top:.5em;font-size:.9em}"
    ".attn-map div:hover+figcaption,.attn-map div:focus-within+figcaption{visibility:hidden}"
)
