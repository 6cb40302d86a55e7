"""The shapes of a drawing as SVG, which follows the page's light and fonts, and as a picture for other viewers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle, PathPatch, Polygon, Rectangle
from matplotlib.path import Path

from .. import style
from ..figures import Figure, Sheet
from .layout import Layout
from .shapes import DROP, INDEX, Box, Disc, Line, Outline, Rect, Shape, Tone, Words, pieces, wide

CORNER, TIP = 7.0, 9.0  # radius of a bend; length of an arrow's head

Step = tuple[Any, ...]  # of a path: a letter of SVG, then coordinates

# A page may set the variables (dark mode, its own font); the values behind the comma are those of a light page.
_STYLE = f"""\
.ad-ground{{fill:var(--ad-ground,{style.BACKGROUND})}}
.ad text{{font-family:var(--ad-font,"{style.FONT}",Verdana,sans-serif);fill:var(--ad-ink,{style.INK});\
font-variant-numeric:tabular-nums}}
.ad .halo{{paint-order:stroke;stroke:var(--ad-ground,{style.BACKGROUND});stroke-width:5px;stroke-linejoin:round}}
.ad .cell,.ad .line{{fill:none;stroke-width:1.2px}}
.ad .cell{{stroke:var(--ad-rule,{style.MUTED});stroke-width:1px}}
.ad .line,.ad .out{{fill:none;stroke-width:1.6px}}
.ad .out{{stroke-width:2.4px}}
.ad .muted{{fill:var(--ad-muted,{style.MUTED})}}
.ad .line.muted{{fill:none;stroke:var(--ad-muted,{style.MUTED})}}
.ad .dash{{stroke-dasharray:5 3}}
"""


def svg(layout: Layout, alt: str) -> str:
    """The drawing as one SVG element."""
    used: set[int] = set()
    body = "".join(_elements(layout.shapes, used))
    w, h = round(layout.width), round(layout.height)
    colours = "".join(
        f".ad .c{i}{{fill:var(--ad-c{i},{c})}}.ad .s{i}{{stroke:var(--ad-c{i},{c})}}"
        for i, c in enumerate(style.SERIES_COLOURS) if i in used
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="ad" role="img" aria-label="{escape(alt)}" width="{w}" '
        f'height="{h}" viewBox="0 0 {w} {h}" text-anchor="middle"><style>{_STYLE}{colours}</style>'
        f'<path class="ad-ground" d="M0 0h{w}v{h}H0z"/>{body}</svg>'
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _elements(shapes: Sequence[Shape], used: set[int]) -> Iterator[str]:
    """The shapes as elements; neighbours that look alike share one, which makes a drawing half as heavy."""

    def look(shape: Shape) -> tuple[Any, ...]:
        if isinstance(shape, Words):
            return Words, shape.size, shape.tone, shape.anchor, shape.bold, shape.halo
        return (Box, shape.colour, shape.strength) if isinstance(shape, Box) else (id(shape),)

    for _, run in groupby(shapes, look):
        alike = list(run)
        if isinstance(alike[0], Words):
            yield _texts([shape for shape in alike if isinstance(shape, Words)], used)
        elif isinstance(alike[0], Box):
            yield _boxes([shape for shape in alike if isinstance(shape, Box)], used)
        else:
            yield _element(alike[0], used)


def _class(kind: str, tone: Tone | None, used: set[int]) -> str:
    if isinstance(tone, int):
        used.add(tone)
        return f"{kind}{tone}"
    return tone if tone == "muted" else ""


def _texts(alike: Sequence[Words], used: set[int]) -> str:
    one = alike[0]
    names = " ".join(filter(None, [_class("c", one.tone, used), "halo" if one.halo else ""]))
    attributes = (f' font-size="{one.size}"'
                  + (f' class="{names}"' if names else "")
                  + (f' text-anchor="{one.anchor}"' if one.anchor != "middle" else "")
                  + (' font-weight="bold"' if one.bold else ""))
    own = attributes if len(alike) == 1 else ""
    texts = "".join(f'<text x="{_n(w.x)}" y="{_n(w.y)}"{own}>{_written(w)}</text>' for w in alike)
    return texts if own else f"<g{attributes}>{texts}</g>"


def _written(words: Words) -> str:
    """The text, its indices smaller and lower."""
    drop = _n(DROP * words.size)
    text, below = "", False
    for part, index in pieces(words.text):
        size = f' font-size="{_n(INDEX * words.size)}"' if index else ""
        shift = f' dy="{drop if index else "-" + drop}"' if index != below else ""
        text += f"<tspan{shift}{size}>{escape(part)}</tspan>" if shift or size else escape(part)
        below = index
    return text


def _boxes(alike: Sequence[Box], used: set[int]) -> str:
    d = f'd="{"".join(_path(box.rect) for box in alike)}"'
    colour, strength = alike[0].colour, alike[0].strength
    if colour is None or not strength:
        return f'<path class="cell" {d}/>'
    return f'<path class="cell {_class("c", colour, used)}" fill-opacity="{strength:.2g}" {d}/>'


def _path(r: Rect) -> str:
    return f"M{_n(r.x)} {_n(r.y)}h{_n(r.w)}v{_n(r.h)}h{_n(-r.w)}z"


def _element(shape: Line | Disc | Outline, used: set[int]) -> str:
    if isinstance(shape, Line):
        d, head = _bent(shape.points, shape.arrow)
        dash = " dash" if shape.dashed else ""
        text = f'<path class="line {_class("s", shape.tone, used)}{dash}" d="{d}"/>'
        if head:
            corners = " ".join(f"{_n(x)} {_n(y)}" for x, y in head)
            text += f'<path class="{_class("c", shape.tone, used)}" d="M{corners}z"/>'
        return text
    if isinstance(shape, Disc):
        tinted = f'<circle cx="{_n(shape.x)}" cy="{_n(shape.y)}" r="{_n(shape.radius)}"'
        text = f'{tinted} class="ad-ground"/>' if shape.strength < 1 else ""
        if shape.colour is not None and shape.strength:
            text += f'{tinted} class="{_class("c", shape.colour, used)}" fill-opacity="{shape.strength:.2g}"/>'
        return text + (f'{tinted} class="cell"/>' if shape.strength < 1 else "")
    dash = " dash" if shape.dashed else ""
    return f'<path class="out {_class("s", shape.colour, used)}{dash}" d="{_path(shape.rect)}"/>'


def _bent(points: Sequence[tuple[float, float]], arrow: bool) -> tuple[str, list[tuple[float, float]]]:
    """Path data with rounded corners, ending where the head begins; and the corners of the head."""
    path, head = _corners(points, arrow)
    text = []
    for code, *at in path:
        text.append(code + " ".join(_n(v) for v in at))
    return "".join(text), head


def _corners(points: Sequence[tuple[float, float]], arrow: bool) -> tuple[list[Step], list[tuple[float, float]]]:
    ps = [np.array(p, float) for p in points]
    head: list[tuple[float, float]] = []
    if arrow:
        step = ps[-1] - ps[-2]
        along = step / (np.hypot(*step) or 1.0)
        aside = np.array([-along[1], along[0]])
        foot = ps[-1] - TIP * along
        head = [tuple(ps[-1]), tuple(foot + TIP * 0.42 * aside), tuple(foot - TIP * 0.42 * aside)]
        ps[-1] = ps[-1] - 0.8 * TIP * along
    path: list[Step] = [("M", *ps[0])]
    for before, here, after in zip(ps, ps[1:], ps[2:], strict=False):
        a, b = before - here, after - here
        r = min(CORNER, np.hypot(*a) / 2, np.hypot(*b) / 2)
        path.append(("L", *(here + a / (np.hypot(*a) or 1) * r)))
        path.append(("Q", *here, *(here + b / (np.hypot(*b) or 1) * r)))
    path.append(("L", *ps[-1]))
    return path, head


def figure(layout: Layout, title: str, alt: str) -> Figure:
    """The drawing as a picture, its title in it."""
    w, h = (round(v) / style.CSS_PER_INCH for v in (layout.width, layout.height))
    sheet = Sheet(title, alt, width=max(w, 3.0), height=h + 0.04, layout=None)
    with sheet as fig:
        ax = fig.add_axes((0, 0, w / sheet.width, h / sheet.height))
        ax.set(xlim=(0, layout.width), ylim=(layout.height, 0))
        ax.axis("off")
        for order, shape in enumerate(layout.shapes):
            _paint(ax, shape, order)
    return sheet.figure


def _colour(tone: Tone) -> str:
    return style.SERIES_COLOURS[tone] if isinstance(tone, int) else {"ink": style.INK, "muted": style.MUTED}[tone]


def _tinted(colour: int | None, strength: float) -> tuple[float, float, float]:
    if colour is None:
        return to_rgb(style.BACKGROUND)
    red, green, blue = (strength * c + (1 - strength) * g
                        for c, g in zip(to_rgb(_colour(colour)), to_rgb(style.BACKGROUND), strict=True))
    return red, green, blue


def _paint(ax: Axes, shape: Shape, order: int) -> None:
    points = 72 / style.CSS_PER_INCH  # of one CSS pixel
    if isinstance(shape, Words):
        parts, x = pieces(shape.text), shape.x
        if len(parts) > 1:
            x -= {"start": 0, "middle": 0.5, "end": 1}[shape.anchor] * wide(shape.text, shape.size, shape.bold)
        for part, index in parts:
            size = shape.size * (INDEX if index else 1)
            text = ax.text(x, shape.y + index * DROP * shape.size, part, size=size * points, color=_colour(shape.tone),
                           ha="left" if len(parts) > 1 else
                           {"start": "left", "middle": "center", "end": "right"}[shape.anchor], va="baseline",
                           weight="bold" if shape.bold else "normal", zorder=order, parse_math=False)
            if shape.halo:
                ground = patheffects.withStroke(linewidth=5 * points, foreground=style.BACKGROUND)
                text.set_path_effects([ground])
            x += wide(part, size, shape.bold)
    elif isinstance(shape, Line):
        path, head = _corners(shape.points, shape.arrow)
        vertices, codes = [], []
        for code, *at in path:
            vertices += [at[i : i + 2] for i in range(0, len(at), 2)]
            codes += {"M": [Path.MOVETO], "L": [Path.LINETO], "Q": [Path.CURVE3] * 2}[code]
        ax.add_patch(PathPatch(Path(vertices, codes), fill=False, edgecolor=_colour(shape.tone),
                               linewidth=1.6 * points, linestyle=(0, (4, 3)) if shape.dashed else "-", zorder=order))
        if head:
            ax.add_patch(Polygon(head, facecolor=_colour(shape.tone), linewidth=0, zorder=order))
    elif isinstance(shape, Disc):
        edge = {"edgecolor": style.MUTED, "linewidth": points} if shape.strength < 1 else {"linewidth": 0}
        ax.add_patch(Circle((shape.x, shape.y), shape.radius, facecolor=_tinted(shape.colour, shape.strength),
                            zorder=order, **edge))
    elif isinstance(shape, Box | Outline):
        r = shape.rect
        if isinstance(shape, Outline):
            look: dict[str, Any] = dict(fill=False, edgecolor=_colour(shape.colour), linewidth=2.4 * points,
                        linestyle=(0, (4, 3)) if shape.dashed else "-")
        else:
            look = dict(facecolor=_tinted(shape.colour, shape.strength), edgecolor=style.MUTED, linewidth=points)
        ax.add_patch(Rectangle((r.x, r.y), r.w, r.h, zorder=order, **look))
