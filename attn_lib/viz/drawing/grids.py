"""A tensor as grids of its numbers, with what stands in their margins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...tap import trace as Trace
from .. import style
from ..arrays import Floats, Numbers, finite, off_the_device, to_array
from ..words import printed
from .shapes import NOTE, NUMBER, Box, Disc, Line, Objects, Outline, Picture, Rect, Shape, Words, base, wide
from .writing import HEADING, decimals, heading, heading_width, number

CELL_HEIGHT, CELL_WIDTH, SIDE = 28, 30, 6  # least sizes of a cell; room beside its number
BETWEEN = 12  # distance between the parts of a stack and to a margin
TINT = 0.22  # how strong the colour of a group is
ROOMY = 42  # a cell in which places are marked: its number stands in the corner


@dataclass(frozen=True)
class Grid:
    """A tensor as its numbers.

    A vector is one row (or one column, `upright`), a matrix is a grid, and three axes are a stack of grids along the
    first. An axis of size 1 in front ("B") is dropped.

    Args:
        name: of a tap, or of a tensor given by `values`; arrows refer to it.
        values: the numbers; None takes them from the trace.
        label: what is written above; the name as it is printed, by default.
        axes: what the axes of `values` are called ("C H W"); the trace says it of a tap.
        note: said after the label in small type; axes and sizes by default, "" for nothing.
        colours: which cells belong together: the number of a series colour for all, or an array of numbers that
            broadcasts to the shape of the values, with -1 for none.
        shade: tint each cell by its value over the largest instead, in series colour 0 (or `colours`, one number);
            values below 0 in series colour 1.
        rows, cols: what is written at the left of each row and above each column.
        parts: what is written above each grid of a stack; "c = 0" and so on by the name of the first axis.
        across: a stack stands side by side where there is room.
        upright: a vector is a column.
        digits: decimals; by default as few as tell the numbers apart, 2 at most.
        outlines: (index, colour) pairs: a frame around the cells `values[index]`.
        moves: ((row, column), (row, column), colour) triples: an arrow from a place to another, in cells; whole
            numbers are the middles of cells. Of a matrix only.
        right: a vector (of a stack: a matrix) with one number a row, drawn at the right of the grid.
        below: one number a column, drawn below.
    """

    name: str
    values: Numbers | None = None
    label: str | None = None
    axes: str = ""
    note: str | None = None
    colours: int | Numbers | None = None
    shade: bool = False
    rows: Sequence[str] | None = None
    cols: Sequence[str] | None = None
    parts: Sequence[str] | None = None
    across: bool = False
    upright: bool = False
    digits: int | None = None
    outlines: Sequence[tuple[Any, int]] = ()
    moves: Sequence[tuple[tuple[float, float], tuple[float, float], int]] = ()
    right: Grid | None = None
    below: Grid | None = None


def _values(grid: Grid, trace: Trace | None) -> tuple[Floats, list[str]]:
    """The numbers, without axes of size 1 in front, and what their axes are called (as far as the trace says)."""
    values: Numbers
    if grid.values is None:
        if trace is None:
            raise ValueError(f"{grid.name!r} has no values and the drawing no trace to take them from")
        if grid.name not in trace:
            raise ValueError(f"{grid.name!r} is not in the trace, which holds {', '.join(trace.names())}")
        values, axes = trace[grid.name], trace.dims(grid.name).split()
    else:
        values, axes = grid.values, grid.axes.split()
    array = finite(to_array(values, grid.name), grid.name)
    while array.ndim > 3 or (array.ndim > 1 and array.shape[0] == 1 and axes[:1] in ([], ["B"])):
        if array.shape[0] != 1:
            raise ValueError(f"{grid.name} has shape {array.shape}: a drawing shows three axes at most; index it")
        array, axes = array[0], axes[1:]
    return array, axes if len(axes) == array.ndim else []


def grid_picture(grid: Grid, trace: Trace | None, limit: float) -> Picture:
    """The grid drawn; a stack stands side by side if it may and fits into `limit`.

    Raises:
        ValueError: numbers that are not there, have too many axes, are not finite, or do not fit one another.
    """
    values, axes = _values(grid, trace)
    stack = values.reshape((1,) * (3 - values.ndim) + values.shape)  # parts, rows, columns
    if values.ndim < 2 and grid.upright:
        stack = stack.transpose(0, 2, 1)
    tints, strengths = _tints(grid, values, stack.shape)
    right, below = (_margin(grid, side, trace, stack) for side in ("right", "below"))
    names = _part_names(grid, axes, len(stack), values.ndim)

    texts = _texts(grid, stack)
    numbers = [*texts.ravel(), *(below.texts.ravel() if below else ())]
    cell = max(ROOMY if grid.moves else CELL_WIDTH,
               2 * SIDE + max(wide(t, NUMBER) for t in (*numbers, *(grid.cols or ()))))
    one = [_part(grid, stack[i], texts[i], tints[i], strengths[i], names[i], cell,
                 right and right.part(i), below and below.part(i)) for i in range(len(stack))]
    across = grid.across and sum(p.width + BETWEEN for p in one) - BETWEEN <= limit

    shapes: list[Shape] = []
    cells: dict[str, list[Objects]] = {}
    x, y, height, width = 0.0, float(HEADING), 0.0, 0.0
    for part in one:
        shapes += [shape.moved(x, y) for shape in part.shapes]
        for name, rects in part.cells.items():
            cells.setdefault(name, []).append(_shift(rects, x, y))
        width, height = max(width, x + part.width), max(height, y + part.height)
        x, y = (x + part.width + BETWEEN, y) if across else (x, y + part.height + BETWEEN)
    placed = {name: np.stack(rects).reshape(_shape_of(name, grid, values, right, below))
              for name, rects in cells.items()}
    frame = Rect(0, HEADING, width, height - HEADING)
    shapes += [Outline(Rect.around(np.atleast_1d(placed[grid.name][index]).ravel()), colour)
               for index, colour in grid.outlines]
    shapes += _moves(grid, placed[grid.name])
    label = printed(grid.name) if grid.label is None else grid.label
    shape = f"{' '.join(axes)}  {style.times(values.shape)}" if axes else style.times(values.shape)
    note = shape if grid.note is None else grid.note
    shapes += heading(label, note)
    width = max(width, heading_width(label, note))
    # An arrow at a margin means each of its parts; it is drawn at the first.
    bodies = {name: frame if name == grid.name else Rect.around(rects[0]) for name, rects in cells.items()}
    spoken = _spoken(label, values, texts, names, grid)
    for margin in filter(None, (right, below)):
        spoken += _spoken(margin.label, margin.values, margin.texts, [""] * len(margin.texts), margin.grid)
    return Picture(shapes, width, height, bodies, placed, spoken)


@dataclass
class _Margin:
    """A vector beside a grid (of a stack: one beside each part)."""

    grid: Grid
    values: Floats
    texts: Objects  # parts, numbers
    tints: NDArray[np.int_]
    strengths: Floats

    @property
    def label(self) -> str:
        return printed(self.grid.name) if self.grid.label is None else self.grid.label

    def part(self, i: int) -> _Margin:
        return replace(self, texts=self.texts[i], tints=self.tints[i], strengths=self.strengths[i])


def _margin(grid: Grid, side: str, trace: Trace | None, stack: Floats) -> _Margin | None:
    margin = getattr(grid, side)
    if margin is None:
        return None
    values, _ = _values(margin, trace)
    wanted = (len(stack), stack.shape[1 if side == "right" else 2])
    flat = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    if flat.shape != wanted:
        raise ValueError(f"{side}={margin.name!r} has shape {values.shape}: beside {grid.name!r} it needs "
                         f"{wanted[1]} number(s) for each of {wanted[0]} grid(s)")
    tints, strengths = _tints(margin, values, (1, *flat.shape))
    return _Margin(margin, values, _texts(margin, flat), tints[0], strengths[0])


def _texts(grid: Grid, values: Floats) -> Objects:
    digits = decimals(values) if grid.digits is None else grid.digits
    texts: Objects = np.vectorize(lambda v: number(v, digits), otypes=[object])(values)
    return texts


def _tints(grid: Grid, values: Floats, shape: tuple[int, ...]) -> tuple[NDArray[np.int_], Floats]:
    """Series colour (-1 for none) and strength for each cell, in the shape that is drawn."""
    if grid.shade:
        first = 0 if grid.colours is None else int(np.asarray(off_the_device(grid.colours)).item())
        colours = np.where(values < 0, first + 1, first)
        strengths = 0.06 + 0.5 * np.abs(values) / (np.abs(values).max() or 1.0)
    else:
        given = np.asarray(-1 if grid.colours is None else off_the_device(grid.colours), dtype=int)
        try:
            colours = np.broadcast_to(given, values.shape)
        except ValueError as error:
            raise ValueError(f"colours of {grid.name!r} have shape {given.shape}: they must broadcast to the "
                             f"values' {values.shape}") from error
        strengths = np.where(colours >= 0, TINT, 0.0)
    if colours.min() < -1 or colours.max() >= len(style.SERIES_COLOURS):
        raise ValueError(f"colours of {grid.name!r} must lie in -1..{len(style.SERIES_COLOURS) - 1}")
    if values.ndim < 2 and grid.upright:
        return colours.reshape(shape), strengths.reshape(shape)
    return colours.reshape(shape), np.asarray(strengths, float).reshape(shape)


def _part_names(grid: Grid, axes: Sequence[str], count: int, ndim: int) -> list[str]:
    if grid.parts is not None:
        if len(grid.parts) != count:
            raise ValueError(f"parts of {grid.name!r} names {len(grid.parts)} grids; there are {count}")
        return list(grid.parts)
    if ndim < 3:
        return [""]
    axis = axes[0].lower() if axes else ""
    return [f"{axis} = {i}" if axis else str(i) for i in range(count)]


def _part(
    grid: Grid, values: Floats, texts: Objects, tints: NDArray[np.int_], strengths: Floats, name: str, cell: float,
    right: _Margin | None, below: _Margin | None,
) -> Picture:
    """One grid with its indices and margins."""
    for option, labels, size in (("rows", grid.rows, len(values)), ("cols", grid.cols, values.shape[1])):
        if labels is not None and len(labels) != size:
            raise ValueError(f"{option} of {grid.name!r} has {len(labels)} labels for {size} lines")
    shapes: list[Shape] = []
    line = ROOMY if grid.moves else CELL_HEIGHT
    left = max((wide(label, NOTE) for label in grid.rows), default=0) + 6 if grid.rows else 0.0
    top = 18.0 if name or (right and right.label) else 0.0
    if name:
        shapes.append(Words(left, 13, name, NOTE, "start", "muted"))
    if grid.cols:
        shapes += [Words(left + (c + 0.5) * cell, top + 13, label, NOTE, tone="muted")
                   for c, label in enumerate(grid.cols)]
        top += 18
    if grid.rows:
        shapes += [Words(left - 6, base(top + (r + 0.5) * line, NOTE), label, NOTE, "end", "muted")
                   for r, label in enumerate(grid.rows)]
    rects = np.empty(values.shape, object)
    for (r, c), _ in np.ndenumerate(values):
        rects[r, c] = Rect(left + c * cell, top + r * line, cell, line)
        shapes += _cell(rects[r, c], texts[r, c], tints[r, c], strengths[r, c], corner=bool(grid.moves))
    width, height = left + values.shape[1] * cell, top + len(values) * line
    cells = {grid.name: rects}
    if below:
        row = np.array([Rect(left + c * cell, height + BETWEEN, cell, CELL_HEIGHT) for c in range(values.shape[1])])
        shapes += [s for c, r in enumerate(row) for s in _cell(r, below.texts[c], below.tints[c], below.strengths[c])]
        shapes.append(Words(left, height + BETWEEN + CELL_HEIGHT + 14, below.label, NOTE, "start", "muted"))
        cells[below.grid.name] = row
        height += BETWEEN + CELL_HEIGHT + 18
    if right:
        own = max(CELL_WIDTH, 2 * SIDE + max(wide(t, NUMBER) for t in right.texts))
        x = width + BETWEEN
        column = np.array([Rect(x, top + r * line, own, line) for r in range(len(values))])
        shapes += [s for i, r in enumerate(column)
                   for s in _cell(r, right.texts[i], right.tints[i], right.strengths[i])]
        shapes.append(Words(x, top - 5, right.label, NOTE, "start", "muted"))
        cells[right.grid.name] = column
        width = max(x + own, x + wide(right.label, NOTE))
    width = max(width, left + wide(name, NOTE), left + wide(below.label, NOTE) if below else 0)
    shapes.sort(key=_kind)
    return Picture(shapes, width, height, {}, cells)


def _kind(shape: Shape) -> tuple[float, ...]:
    """Sorts what looks alike beside one another, which a file can say in one, and words in front of cells."""
    return (0, -1 if shape.colour is None else shape.colour, shape.strength) if isinstance(shape, Box) else (1,)


def _cell(rect: Rect, text: str, colour: int, strength: float, corner: bool = False) -> list[Shape]:
    box = Box(rect, int(colour) if colour >= 0 else None, float(strength))
    if corner:
        return [box, Words(rect.x + 4, rect.y + 13, text, NOTE, "start")]
    return [box, Words(rect.middle[0], base(rect.middle[1], NUMBER), text)]


def _moves(grid: Grid, cells: Objects) -> list[Shape]:
    if grid.moves and cells.ndim != 2:
        raise ValueError(f"moves are drawn on a matrix; {grid.name!r} has {cells.ndim} axes")
    shapes: list[Shape] = []
    for start, end, colour in grid.moves:
        first = cells[0, 0]
        (x0, y0), (x1, y1) = ((first.x + (c + 0.5) * first.w, first.y + (r + 0.5) * first.h) for r, c in (start, end))
        if (x0, y0) != (x1, y1):
            shapes += [Disc(x0, y0, 2.5, colour, 1.0), Line(((x0, y0), (x1, y1)), colour, arrow=True)]
        else:
            shapes.append(Disc(x1, y1, 4, colour, 1.0))
    return shapes


def _shift(rects: Objects, dx: float, dy: float) -> Objects:
    moved = np.empty_like(rects)
    for index, rect in np.ndenumerate(rects):
        moved[index] = rect.moved(dx, dy)
    return moved


def _shape_of(
    name: str, grid: Grid, values: Floats, right: _Margin | None, below: _Margin | None
) -> tuple[int, ...]:
    if name == grid.name:
        return values.shape
    return next(m.values.shape for m in (right, below) if m and m.grid.name == name)


def _spoken(label: str, values: Floats, texts: Objects, names: Sequence[str], grid: Grid) -> list[str]:
    """A line a grid: its name, its shape, its rows."""
    lines = [f"{label} ({style.times(values.shape) or 'one number'}):"]
    for part, name in zip(texts.reshape(len(names), -1, texts.shape[-1]), names, strict=True):
        rows = "; ".join(" ".join(row) for row in part)
        lines.append(f"  {name + ': ' if name else ''}{rows}")
    return [" ".join(line.strip() for line in lines)] if len(lines) == 2 else lines
