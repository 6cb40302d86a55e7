"""Nodes with their numbers, in levels, and the edges between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ...checks import check_choice
from ..arrays import Floats, finite, to_array
from ..words import printed
from .grids import TINT
from .shapes import NOTE, NUMBER, Disc, Line, Picture, Rect, Shape, Tone, Words, base, wide
from .writing import HEADING, decimals, heading, heading_width, number

DOT, EDGE_LENGTH, LEVEL = 19, 54, 76  # radius of a node; least distances between nodes across and down


@dataclass(frozen=True)
class Dots:
    """Nodes with their numbers, and the edges between them.

    Args:
        name: arrows refer to it.
        levels: the numbers of the nodes, one list a level, from top to bottom. A level with fewer nodes stands over
            the middle of its children where `parents` are given by the edges between levels, evenly otherwise.
        edges: (from, to, label, colour): nodes are counted through all levels; label "" for none. The colour "muted"
            is for an edge that is only there: a grey line without a head.
        label: what is written above.
        names: what is written in each node's disc; its number of the count by default.
        colours: a series colour for each node, -1 for none.
        digits: decimals.
        step: least distance between neighbours; 80 leave room for labels on the edges of a level.
    """

    name: str
    levels: Sequence[Sequence[float]]
    edges: Sequence[tuple[int, int, str, Tone]] = ()
    label: str | None = None
    names: Sequence[str] | None = None
    colours: Sequence[int] | None = None
    digits: int | None = None
    step: float = EDGE_LENGTH


def dots_picture(item: Dots) -> Picture:
    """The nodes drawn.

    Raises:
        ValueError: numbers that are not finite, or names, colours and edges that do not fit the nodes.
    """
    levels = [finite(to_array(level, f"levels of {item.name!r}", 1), f"levels of {item.name!r}")
              for level in item.levels]
    count = sum(map(len, levels))
    values = np.concatenate(levels)
    digits = decimals(values) if item.digits is None else item.digits
    names = [str(i) for i in range(count)] if item.names is None else list(item.names)
    colours = [-1] * count if item.colours is None else list(item.colours)
    for what, given in (("names", names), ("colours", colours)):
        if len(given) != count:
            raise ValueError(f"{what} of {item.name!r} has {len(given)} entries for {count} nodes")
    for edge in item.edges:
        for node in edge[:2]:
            check_choice(f"a node of the edges of {item.name!r}", node, range(count))
    texts = [number(v, digits) for v in values]
    level_of = [i for i, level in enumerate(levels) for _ in level]
    x = _columns(levels, level_of, item.edges, max(item.step, max(wide(t, NUMBER) for t in texts) + 2 * DOT))
    lowest = len(levels) - 1
    loops = [(a, label) for a, b, label, _ in item.edges if a == b and level_of[a] == lowest]
    room = max([0.0, *(wide(label, NOTE) + DOT * 0.75 + 2 - x[a] for a, label in loops)])  # left of the first node
    x = [position + room for position in x]
    top = HEADING + DOT + 4
    place = [(x[i], top + LEVEL * level_of[i]) for i in range(count)]

    shapes: list[Shape] = []
    for a, b, label, colour in item.edges:
        if a == b and label:  # where no other edge runs: below a node of the lowest level, else above
            x_own, y_own = place[a]
            below = level_of[a] == lowest
            shapes.append(Words(x_own - below * DOT * 0.75, y_own + DOT + 9 if below else y_own - DOT - 5, label, NOTE,
                                "end" if below else "middle", colour, halo=True))
        elif a != b:
            shapes += _edge(place[a], place[b], label, colour, level_of[a] == level_of[b])
    rects = np.empty(count, object)
    for i, (px, py) in enumerate(place):
        rects[i] = Rect(px - DOT, py - DOT, 2 * DOT, 2 * DOT)
        shapes.append(Disc(px, py, DOT, colours[i] if colours[i] >= 0 else None, TINT))
    shapes += [Words(px, base(py, NUMBER), text) for text, (px, py) in zip(texts, place, strict=True)]
    shapes += [Words(px + DOT * 0.75 + 3, py + DOT + 9, name, NOTE, "start", "muted")
               for name, (px, py) in zip(names, place, strict=True)]
    label = printed(item.name) if item.label is None else item.label
    shapes += heading(label, "")
    width = max(x) + DOT + 8 + max(wide(n, NOTE) for n in names)
    height = top + LEVEL * (len(levels) - 1) + DOT + 16
    spoken = [f"{label}:", *(f"  node {n} = {t}" for n, t in zip(names, texts, strict=True)),
              *(f"  edge {names[a]} → {names[b]}{': ' + word if word else ''}" for a, b, word, _ in item.edges)]
    body = Rect(0, HEADING, width, height - HEADING)
    return Picture(shapes, max(width, heading_width(label, "")), height, {item.name: body}, {item.name: rects}, spoken)


def _columns(
    levels: Sequence[Floats], level_of: Sequence[int], edges: Sequence[tuple[int, int, str, Tone]], step: float
) -> list[float]:
    """Where each node stands: the lowest level evenly, each other one over the middle of what it is linked to below."""
    start, x = np.cumsum([0, *map(len, levels)]), np.zeros(len(level_of))
    x[start[-2]:] = DOT + 2 + step * np.arange(len(levels[-1]))
    whole = x[start[-2]:].min(), x[start[-2]:].max()
    for i in range(len(levels) - 2, -1, -1):
        own = range(start[i], start[i + 1])
        for k, node in enumerate(own):
            linked = {b if a == node else a for a, b, *_ in edges if node in (a, b)}
            under = [x[n] for n in linked if level_of[n] == i + 1]
            even = whole[0] + (whole[1] - whole[0]) * (k + 0.5) / len(own)
            x[node] = np.mean(under) if under else even
        for a, b in pairwise(own):
            x[b] = max(x[b], x[a] + step)
    return x.tolist()


def _edge(a: tuple[float, float], b: tuple[float, float], label: str, colour: Tone, level: bool) -> list[Shape]:
    """A line from the rim of one disc to that of another, its label beside its middle."""
    (x0, y0), (x1, y1) = a, b
    length = float(np.hypot(x1 - x0, y1 - y0))
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    start, end = (x0 + dx * DOT, y0 + dy * DOT), (x1 - dx * (DOT + 1), y1 - dy * (DOT + 1))
    shapes: list[Shape] = [Line((start, end), colour, arrow=colour != "muted")]
    if label:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        shapes.append(Words(x, y - 6, label, NOTE, tone=colour, halo=True) if level else
                      Words(x - 7, base(y, NOTE), label, NOTE, "end", colour, halo=True))
    return shapes
