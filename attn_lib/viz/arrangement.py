"""Where the boxes of a diagram stand: layers from top to bottom, few crossings, straight main lines.

An edge that skips layers gets a lane of its own through each of them, so that no line ever runs behind a box.
Edges of one source share its lane.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

LANE = 0.3  # inches of room for a line that passes between boxes

Lane = tuple[str, int]  # (source, layer)
Place = str | Lane  # what stands in a layer: a node, or a lane beside nodes
Link = tuple[Place, Place]


@dataclass
class Arrangement:
    """Positions in inches, x from the left, not yet shifted to start at 0.

    Attributes:
        layers: names and lanes from top to bottom, each from left to right.
        x: centre of every name and lane.
        paths: edge → what it passes, source and target included.
    """

    layers: list[list[Place]]
    x: dict[Place, float] = field(default_factory=dict)
    paths: dict[tuple[str, str], list[Place]] = field(default_factory=dict)


def arrange(
    names: Sequence[str], edges: Sequence[tuple[str, str]], width: Mapping[str, float],
    pinned: Sequence[str], gap: float,
) -> Arrangement:
    """Lay a directed acyclic graph out.

    Args:
        names: nodes in an order in which every edge points forward.
        edges: (source, target).
        width: of each node, inches.
        pinned: nodes that stay in the first layer.
        gap: least distance between neighbours, inches.
    """
    level = _levels(names, edges, pinned)
    arrangement = Arrangement([[n for n in names if level[n] == i] for i in range(max(level.values()) + 1)])
    for source, target in edges:
        lanes = [(source, i) for i in range(level[source] + 1, level[target])]
        for lane in lanes:
            if lane not in arrangement.layers[lane[1]]:
                arrangement.layers[lane[1]].append(lane)
        arrangement.paths[source, target] = [source, *lanes, target]
    links = {pair for path in arrangement.paths.values() for pair in pairwise(path)}
    order = sorted(links, key=lambda pair: [_rank(names, end) for end in pair])  # a set has no order
    arrangement.layers = _uncross(arrangement.layers, order)
    widths = dict.fromkeys((place for layer in arrangement.layers for place in layer), LANE)
    widths.update(width.items())
    arrangement.x = _straighten(arrangement.layers, order, widths, gap)
    return arrangement


def _rank(names: Sequence[str], node: Place) -> tuple[int, int]:
    return (names.index(node), -1) if isinstance(node, str) else (names.index(node[0]), node[1])


def _levels(names: Sequence[str], edges: Sequence[tuple[str, str]], pinned: Sequence[str]) -> dict[str, int]:
    level: dict[str, int] = {}
    for name in names:
        level[name] = max((level[s] + 1 for s, t in edges if t == name), default=0)
    for name in reversed(names):  # what has no source stands just above what it feeds
        if name not in pinned and all(t != name for _, t in edges):
            level[name] = min((level[t] - 1 for s, t in edges if s == name), default=0)
    return level


def _uncross(layers: list[list[Place]], links: Sequence[Link]) -> list[list[Place]]:
    """Order each layer by the mean position of its neighbours, sweep by sweep; keep the best seen."""
    layers = [list(layer) for layer in layers]
    best, fewest = layers, _crossings(layers, links)
    for sweep in range(8):
        indices = range(1, len(layers)) if sweep % 2 == 0 else range(len(layers) - 2, -1, -1)
        layers = [list(layer) for layer in layers]
        for i in indices:
            other = layers[i - 1] if sweep % 2 == 0 else layers[i + 1]
            place = {node: k / max(1, len(other) - 1) for k, node in enumerate(other)}
            own = {node: k for k, node in enumerate(layers[i])}

            def key(
                node: Place, place: dict[Place, float] = place, own: dict[Place, int] = own
            ) -> tuple[float, bool, int]:
                ends = [b if a == node else a for a, b in links if node in (a, b)]
                near = [place[end] for end in ends if end in place]
                return sum(near) / len(near) if near else 0.5, isinstance(node, tuple), own[node]

            layers[i].sort(key=key)
        if (count := _crossings(layers, links)) < fewest:
            best, fewest = layers, count
    return best


def _crossings(layers: list[list[Place]], links: Sequence[Link]) -> int:
    count = 0
    for upper, lower in pairwise(layers):
        top, bottom = ({n: k for k, n in enumerate(layer)} for layer in (upper, lower))
        here = [(top[a], bottom[b]) for a, b in links if a in top and b in bottom]
        count += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(here) for c, d in here[:i])
    return count


def _straighten(
    layers: list[list[Place]], links: Sequence[Link], width: Mapping[Place, float], gap: float
) -> dict[Place, float]:
    """Positions: what belongs in one column is exactly in one, and linked columns are drawn together."""
    column = {node: node for layer in layers for node in layer}
    for a, b in _straight_links(layers, links):
        joined = {node: column[a] if c == column[b] else c for node, c in column.items()}
        if _left_to_right(joined.values(), _distances(layers, joined, width, gap)):
            column = joined
    apart = _distances(layers, column, width, gap)
    order = _left_to_right(column.values(), apart)
    assert order is not None  # columns are joined only where an order remains
    low, high = dict.fromkeys(order, 0.0), dict.fromkeys(order, 0.0)
    for c in order:
        low[c] = max((low[a] + d for (a, b), d in apart.items() if b == c), default=0.0)
    for c in reversed(order):
        high[c] = min((high[b] - d for (a, b), d in apart.items() if a == c), default=max(low.values()))
    x = {c: (low[c] + high[c]) / 2 for c in order}
    weight = {True: 1.0, False: 0.1}  # boxes pull each other; lanes hardly
    pulls = [(column[a], column[b], weight[isinstance(a, str) and isinstance(b, str)]) for a, b in links]
    for sweep in range(80):
        for c in order if sweep % 2 else reversed(order):
            near = [(x[b if a == c else a], w) for a, b, w in pulls if (a == c) != (b == c)]
            if near:
                least = max((x[a] + d for (a, b), d in apart.items() if b == c), default=float("-inf"))
                most = min((x[b] - d for (a, b), d in apart.items() if a == c), default=float("inf"))
                x[c] = min(max(sum(p * w for p, w in near) / sum(w for _, w in near), least), most)
    return {node: x[c] for node, c in column.items()}


def _straight_links(layers: list[list[Place]], links: Sequence[Link]) -> list[Link]:
    """Links that should be vertical: within a lane, and between two that are each other's middle neighbour."""
    place = {node: k for layer in layers for k, node in enumerate(layer)}

    def middle(ends: list[Place]) -> Place | None:
        boxes = sorted((e for e in ends if isinstance(e, str)), key=place.__getitem__) or ends
        return boxes[len(boxes) // 2] if len(boxes) % 2 else None

    below = {node: middle([b for a, b in links if a == node]) for node in place}
    above = {node: middle([a for a, b in links if b == node]) for node in place}
    lanes = [(a, b) for a, b in links if isinstance(a, tuple) and isinstance(b, tuple)]
    return lanes + [(a, b) for a, b in links if (a, b) not in lanes and below[a] == b and above[b] == a]


def _distances(
    layers: list[list[Place]], column: Mapping[Place, Place], width: Mapping[Place, float], gap: float
) -> dict[Link, float]:
    """Least distance between the centres of two columns that are neighbours in some layer, left one first."""
    apart: dict[Link, float] = {}
    for layer in layers:
        for a, b in pairwise(layer):
            pair = column[a], column[b]
            apart[pair] = max(apart.get(pair, 0.0), (width[a] + width[b]) / 2 + gap)
    return apart


def _left_to_right(columns: Iterable[Place], apart: Mapping[Link, float]) -> list[Place] | None:
    """The columns in order; None where two layers disagree about it."""
    try:
        return list(TopologicalSorter({c: [a for a, b in apart if b == c] for c in columns}).static_order())
    except CycleError:
        return None


def spread(wishes: Sequence[float], centre: float, half: float, gap: float) -> list[float]:
    """Points around `centre`, near the wishes and in their order, `gap` apart where `half` leaves room.

    A wish for the very centre is granted: that line is straight.
    """
    order = sorted(range(len(wishes)), key=wishes.__getitem__)
    straight = [i for i, k in enumerate(order) if abs(wishes[k] - centre) < 1e-6]
    most = max((max(i, len(order) - 1 - i) for i in straight), default=(len(order) - 1) / 2)
    gap = min(gap, half / max(most, 0.5))
    blocks: list[list[float]] = []  # points that touch move as one: [weighted sum of wishes, weight, count]
    for i, k in enumerate(order):
        weight = 1e6 if i in straight else 1.0
        wish = min(max(wishes[k] - i * gap, centre - half), centre + half - (len(order) - 1) * gap)
        blocks.append([weight * wish, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    means = [total / weight for total, weight, n in blocks for _ in range(int(n))]
    placed = {k: mean + i * gap for i, (k, mean) in enumerate(zip(order, means, strict=True))}
    return [placed[k] for k in range(len(wishes))]
