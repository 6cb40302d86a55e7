"""Where the items of a drawing stand, and how its arrows run between them.

Items stand in rows; an arrow goes to the next place in the row, down inside a column of items, or through the gap
below its row. Only the gaps carry lines, so that none ever crosses an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, permutations
from typing import Any

from .shapes import NOTE, Line, Picture, Rect, Shape, Tone, Words, wide

EDGE = 2  # around everything
BESIDE, BELOW, INSIDE = 26, 24, 16  # least gaps: between columns, between rows, inside a column
TRACK, LANE = 24, 14  # room for each line that runs along a gap, or down the left margin
HEAD = 34  # least length of a line with a head


@dataclass(frozen=True)
class Arrow:
    """From a body (or cells of it) to another, with what happens on the way."""

    source: str
    target: str
    label: str = ""
    tone: Tone = "muted"
    source_cells: Any = None
    target_cells: Any = None


@dataclass
class Placed:
    """An item in its place: row, column of the row, order within the column of `of` items."""

    picture: Picture
    row: int
    column: int
    order: int
    of: int
    x: float = 0.0
    y: float = 0.0

    def body(self, name: str, cells: Any = None) -> Rect:
        if cells is None:
            return self.picture.bodies[name].moved(self.x, self.y)
        chosen = self.picture.cells[name][cells]
        return Rect.around([chosen] if isinstance(chosen, Rect) else chosen.ravel()).moved(self.x, self.y)


@dataclass
class Layout:
    """The finished drawing: its shapes from back to front, and its size in CSS pixels."""

    shapes: list[Shape]
    width: float
    height: float


Column = list[Picture]


def lay_out(rows: Sequence[Sequence[Column]], arrows: Sequence[Arrow], limit: float, flow: bool) -> Layout:
    """Place everything within `limit`.

    Args:
        rows: of columns of pictures.
        arrows: between the names of their bodies.
        limit: the width there is.
        flow: whether a row that is too wide is broken; otherwise it is an error.

    Raises:
        ValueError: what is too wide, and by how much.
    """
    if not flow:
        return _Plan(rows, arrows, limit).layout()
    for lanes in range(len(arrows) + 3):  # how many a margin needs depends on where rows are broken
        room = limit - 2 * EDGE - LANE * lanes
        plan = _Plan([line for row in rows for line in _broken(row, arrows, room)], arrows, limit)
        if LANE * plan.lanes + sum(plan._sides()) <= LANE * lanes:
            break
    return plan.layout()


def _width(column: Column) -> float:
    return max(p.width for p in column)


def _holds(column: Column, name: str) -> bool:
    return any(name in p.bodies for p in column)


def _gap(left: Column, right: Column, arrows: Sequence[Arrow]) -> float:
    """The room between two columns of a row: for the labels of the arrows between them, and their heads."""
    between = [a for a in arrows if _holds(left, a.source) and _holds(right, a.target)]
    return max([BESIDE, *(max(HEAD, wide(a.label, NOTE) + 26) for a in between)])


def _broken(row: Sequence[Column], arrows: Sequence[Arrow], limit: float) -> list[list[Column]]:
    """The row in as many lines as it needs."""
    lines: list[list[Column]] = []
    used = 0.0
    for column in row:
        more = _gap(lines[-1][-1], column, arrows) + _width(column) if lines else limit + 1
        if lines and used + more <= limit:
            lines[-1].append(column)
            used += more
        else:
            lines.append([column])
            used = _width(column)
    return lines


@dataclass
class _Route:
    """An arrow with what it passes: `tracks` are (gap, order in the gap), `lane` is down the left margin."""

    arrow: Arrow
    a: Placed
    b: Placed
    kind: str  # "beside", "under", "around"
    tracks: list[tuple[int, int]] = field(default_factory=list)
    lane: int | None = None


def _crossings(spans: Sequence[tuple[float, float, bool]], order: Sequence[int]) -> int:
    """How often lines cross that run along a gap in this order, from top to bottom."""
    count = 0
    for k, i in enumerate(order):
        for j in order[k + 1 :]:
            (a0, a1, down), (b0, b1, on) = spans[i], spans[j]
            upper, lower = sorted((a0, a1)), sorted((b0, b1))
            count += down and lower[0] - 4 < a1 < lower[1] + 4  # the upper one goes down through the lower
            count += upper[0] - 4 < b0 < upper[1] + 4  # the lower one comes down through the upper
            count += not on and upper[0] - 4 < b1 < upper[1] + 4  # the lower one goes up again through the upper
    return count


class _Plan:
    def __init__(self, rows: Sequence[Sequence[Column]], arrows: Sequence[Arrow], limit: float):
        self.rows, self.limit = rows, limit
        self.placed = [Placed(p, r, c, o, len(column)) for r, row in enumerate(rows)
                       for c, column in enumerate(row) for o, p in enumerate(column)]
        self.home = {name: p for p in self.placed for name in p.picture.bodies}
        self.busy = [0] * len(rows)  # tracks in the gap below each row
        self.lanes = 0
        self.arrows = arrows
        self.routes = [self._route(arrow) for arrow in arrows]

    def _route(self, arrow: Arrow) -> _Route:
        a, b = self.home[arrow.source], self.home[arrow.target]
        if (b.row, b.column, b.order) <= (a.row, a.column, a.order):
            raise ValueError(f"the arrow from {arrow.source!r} to {arrow.target!r} runs back: put {arrow.target!r} "
                             f"after {arrow.source!r}")
        if a.row == b.row and b.column == a.column + 1:
            return _Route(arrow, a, b, "beside")
        if a.row == b.row and a.column == b.column and b.order == a.order + 1:
            return _Route(arrow, a, b, "under")
        route = _Route(arrow, a, b, "around")
        gaps = [a.row] if b.row <= a.row + 1 else [a.row, b.row - 1]
        for gap in gaps:
            route.tracks.append((gap, self.busy[gap]))
            self.busy[gap] += 1
        if len(gaps) > 1:
            route.lane = self.lanes
            self.lanes += 1
        return route

    def _place(self) -> None:
        left, right = self._sides()
        margin = EDGE + LANE * self.lanes + left
        widths = []
        for row in self.rows:
            gaps = [_gap(one, next_, self.arrows) for one, next_ in pairwise(row)]
            widths.append(sum(map(_width, row)) + sum(gaps))
            whole = margin + widths[-1] + right + EDGE
            if whole > self.limit:
                names = [next(iter(p.bodies)) for column in row for p in column]
                raise ValueError(f"the row of {', '.join(names)} is {whole:.0f} pixels wide and there is room for "
                                 f"{self.limit:.0f}: "
                                 + ("put them into two rows" if len(row) > 1 else "show fewer columns or decimals"))
        inner = max(widths)
        self.width, y = margin + inner + right + EDGE, float(EDGE)
        self.foot: list[float] = []
        for r, row in enumerate(self.rows):
            heights = [self._stack(r, c) for c in range(len(row))]
            x = margin + (inner - widths[r]) / 2
            for c, column in enumerate(row):
                top = y + (max(heights) - heights[c]) / 2
                for p in self._of(r, c):
                    p.x, p.y = x + (_width(column) - p.picture.width) / 2, top
                    top += p.picture.height + self._inside(p)
                x += _width(column) + (_gap(column, row[c + 1], self.arrows) if c + 1 < len(row) else 0)
            y += max(heights)
            self.foot.append(y)
            y += TRACK * self.busy[r] + (BELOW if r + 1 < len(self.rows) else 6 * bool(self.busy[r]))
        self.height = y + EDGE

    def _sides(self) -> tuple[float, float]:
        """The room at the left and the right for lines that reach an outer column from its side."""
        around = [route for route in self.routes if route.kind == "around"]
        left = any(r.b.column == 0 and (r.b.order or r.a.row == r.b.row) for r in around)
        right = any(r.a.column + 1 == len(self.rows[r.a.row]) and r.a.order + 1 < r.a.of for r in around)
        return LANE * left, LANE * right

    def _of(self, row: int, column: int) -> list[Placed]:
        return [p for p in self.placed if (p.row, p.column) == (row, column)]

    def _inside(self, p: Placed) -> float:
        """The gap below an item of a column."""
        linked = any(route.kind == "under" and route.a is p for route in self.routes)
        return (HEAD + 4 if linked else INSIDE) if p.order + 1 < p.of else 0.0

    def _stack(self, row: int, column: int) -> float:
        return sum(p.picture.height + self._inside(p) for p in self._of(row, column))

    def layout(self) -> Layout:
        self._place()
        self._uncross()
        shapes: list[Shape] = [s.moved(p.x, p.y) for p in self.placed for s in p.picture.shapes]
        lines, words = [], []
        for route in self.routes:
            line, label = getattr(self, f"_{route.kind}")(route)
            lines.append(line)
            words += [label] if label.text else []
        return Layout([*lines, *shapes, *words], self.width, self.height)

    # --- how lines run ---

    def _ends(self, route: _Route) -> tuple[Rect, Rect, Rect, Rect]:
        """Body and aim (the cells, where some are named) at both ends."""
        arrow = route.arrow
        a, b = route.a.body(arrow.source), route.b.body(arrow.target)
        return (a, route.a.body(arrow.source, arrow.source_cells), b, route.b.body(arrow.target, arrow.target_cells))

    def _beside(self, route: _Route) -> tuple[Line, Words]:
        a, aim_a, b, aim_b = self._ends(route)
        y0, y1 = aim_a.middle[1], aim_b.middle[1]
        low, high = max(a.y, b.y) + 8, min(a.foot, b.foot) - 8
        if route.arrow.source_cells is None and route.arrow.target_cells is None and low <= high:
            y0 = y1 = min(max((y0 + y1) / 2, low), high)
        elif route.arrow.source_cells is None and a.y + 8 <= y1 <= a.foot - 8:
            y0 = y1
        elif route.arrow.target_cells is None and b.y + 8 <= y0 <= b.foot - 8:
            y1 = y0
        x0, x1 = a.right + 4, b.x - 4
        right = max(p.x + p.picture.width for p in self._of(route.a.row, route.a.column))
        left = min(p.x for p in self._of(route.b.row, route.b.column))
        here = [r for r in self.routes if r.kind == "beside" and (r.a.row, r.a.column) == (route.a.row, route.a.column)]
        bend = (right + left) / 2 + 8 * (here.index(route) - (len(here) - 1) / 2)
        points = ((x0, y0), (x1, y1)) if y0 == y1 else ((x0, y0), (bend, y0), (bend, y1), (x1, y1))
        # A label stands over the part of the line that is its own.
        middle, y = ((x0 + x1) / 2, y0) if y0 == y1 else ((right + left) / 2, y0 if route.a.of > 1 else y1)
        return self._line(route, points), self._label(route, middle, y - 8)

    def _under(self, route: _Route) -> tuple[Line, Words]:
        _, aim_a, _, aim_b = self._ends(route)
        x = aim_b.middle[0] if route.arrow.target_cells is not None else aim_a.middle[0]
        y0, y1 = route.a.y + route.a.picture.height + 3, route.b.y - 1
        return self._line(route, ((x, y0), (x, y1))), self._label(route, x + 9, (y0 + y1) / 2 + 4, "start")

    def _uncross(self) -> None:
        """Give the lines of each gap the order in which they cross least."""
        for gap in range(len(self.rows)):
            here = [(route, k) for route in self.routes for k, track in enumerate(route.tracks) if track[0] == gap]
            spans = [self._span(route, k) for route, k in here]
            if len(here) < 2 or len(here) > 6:
                continue
            best = min(permutations(range(len(here))), key=lambda order: _crossings(spans, order))
            for order, i in enumerate(best):
                route, k = here[i]
                route.tracks[k] = (gap, order)

    def _span(self, route: _Route, k: int) -> tuple[float, float, bool]:
        """Where a line enters and leaves a gap, and whether it goes on downwards."""
        ends = [self._leave(route)[0], self._enter(route)[0]]
        if route.lane is not None:
            ends.insert(1, EDGE + LANE * (route.lane + 0.5))
        return ends[k], ends[k + 1], route.a.row != route.b.row

    def _around(self, route: _Route) -> tuple[Line, Words]:
        (x0, start), (x1, end) = self._leave(route), self._enter(route)
        if route.lane is None and abs(x0 - x1) < 14 and len(start) == len(end) == 1:
            x0 = x1
        gap, order = route.tracks[0]
        y = self.foot[gap] + 22 + TRACK * order
        points = [*start[:-1], (x0, start[-1][1]), (x0, y)]
        if route.lane is not None:
            lane = EDGE + LANE * (route.lane + 0.5)
            gap, order = route.tracks[1]
            again = self.foot[gap] + 22 + TRACK * order
            points += [(lane, y), (lane, again)]
            y = again
            x_label, wide_enough = (lane + x1) / 2, abs(lane - x1)
        else:
            x_label, wide_enough = (x0 + x1) / 2, abs(x0 - x1)
        points += [(x1, y), *end]
        points = [p for i, p in enumerate(points) if i == 0 or p != points[i - 1]]
        if x0 == x1 and route.lane is None:
            return self._line(route, points), self._label(route, x1 + 9, y + 4, "start")
        if wide_enough > wide(route.arrow.label, NOTE) + 16:
            return self._line(route, points), self._label(route, x_label, y - 8)
        return self._line(route, points), self._label(route, max(x0, x1) + 9, y + 4, "start")

    def _leave(self, route: _Route) -> tuple[float, list[tuple[float, float]]]:
        """x in the gap below, and the points up to there: from the foot, or from the side where an item is below."""
        a, aim, *_ = self._ends(route)
        if route.a.order + 1 < route.a.of:
            x = max(p.x + p.picture.width for p in self._of(route.a.row, route.a.column)) + 11
            return x, [(a.right + 3, aim.middle[1]), (x, aim.middle[1])]
        x = self._port(route, "a", a, aim, route.arrow.source_cells)
        return x, [(x, route.a.y + route.a.picture.height + 3)]

    def _enter(self, route: _Route) -> tuple[float, list[tuple[float, float]]]:
        """x in the gap that the arrow comes from, and the points from there to the target."""
        *_, b, aim = self._ends(route)
        if route.b.row == route.a.row and route.b.order + 1 == route.b.of:  # from below
            x = self._port(route, "b", b, aim, route.arrow.target_cells)
            return x, [(x, route.b.y + route.b.picture.height + 3)]
        if route.b.row == route.a.row or route.b.order:
            x = min(p.x for p in self._of(route.b.row, route.b.column)) - 11
            return x, [(x, aim.middle[1]), (b.x - 3, aim.middle[1])]
        x = self._port(route, "b", b, aim, route.arrow.target_cells)
        return x, [(x, route.b.y - 1)]

    def _port(self, route: _Route, end: str, body: Rect, aim: Rect, cells: Any) -> float:
        """Where a line meets an item: at the cells that it names, else in the middle or evenly spread."""
        if cells is not None:
            return aim.middle[0]
        here = getattr(route, end)
        mine = [r for r in self.routes if r.kind == "around" and getattr(r, end) is here]
        other = "b" if end == "a" else "a"
        mine.sort(key=lambda r: getattr(r, other).x + getattr(r, other).picture.width / 2)
        return body.x + body.w * (mine.index(route) + 1) / (len(mine) + 1)

    def _line(self, route: _Route, points: Sequence[tuple[float, float]]) -> Line:
        return Line(tuple(points), route.arrow.tone, arrow=True)

    def _label(self, route: _Route, x: float, y: float, anchor: str = "middle") -> Words:
        """The words of an arrow: over it, or at the right of an upright line, at the left where the room ends."""
        tone = "ink" if route.arrow.tone == "muted" else route.arrow.tone
        room = wide(route.arrow.label, NOTE)
        if anchor == "middle":
            x = max(min(x, self.width - room / 2 - EDGE), room / 2 + EDGE)
        elif x + room + EDGE <= self.limit:
            self.width = max(self.width, x + room + EDGE)
        else:
            x, anchor = x - 18, "end"
        return Words(x, y, route.arrow.label, NOTE, anchor, tone, halo=True)
