"""The flow of a module, drawn from its own trace: a box for every tap, a line for every dependence."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path
from torch import Tensor, nn

from .. import catalog
from . import style
from .arrangement import Arrangement, Link, arrange, spread
from .figures import Figure, Sheet, check_texts
from .graph import Graph, Node, dependence
from .words import printed

_NAME, _SMALL = 11.5, style.SMALL_SIZE  # points
_PAD, _TOP, _HEADING, _LINE = 0.11, 0.075, 0.2, 0.165  # inside a box, inches
_GAP, _RISE, _MARGIN = 0.2, 0.46, 0.1  # between boxes, inches
_PORT, _ARROW = 0.24, 0.1  # between two lines at a box; length of an arrow's straight end


def flow(module: nn.Module, *inputs: Tensor, title: str, alt: str) -> Figure:
    """What is computed from what inside a module, as its own run says.

    Each box is an input or a tap with its axes and sizes; the line below says by which operations and
    parameters it comes out of the boxes that point at it, and "·" parts what happens to one of them alone from
    what joins them. A dashed box carries no gradient, so autograd cannot tell what it is made of.

    Args:
        module: any module whose `forward` taps.
        *inputs: its arguments.
        title: the question the figure answers.
        alt: alternative text.

    Raises:
        ValueError: no input, an empty title or alt.
    """
    check_texts(title, alt)
    if not inputs:
        raise ValueError("flow needs the module's inputs: flow(module, x, title=…, alt=…)")
    plan = _plan(dependence(module, inputs))
    entry = catalog.entry_of(type(module))
    colour = style.FAMILY_COLOURS[entry.family] if entry else style.SERIES_COLOURS[0]
    sheet = Sheet(title, alt, width=plan.width, height=plan.height, layout=None)
    with sheet as fig:
        ax = fig.add_axes((0, 0, 1, plan.height / sheet.height))
        ax.set(xlim=(0, plan.width), ylim=(plan.height, 0))  # inches from the top left
        ax.axis("off")
        for path in _routes(plan).values():
            _draw_line(ax, path)
        for box in plan.boxes.values():
            _draw_box(ax, box, colour)
    return sheet.figure


@dataclass
class _Box:
    """A node as drawn; `x` and `y` are its centre, in inches."""

    node: Node
    heading: tuple[str, str, str]
    caption: list[str]
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0


@dataclass
class _Plan:
    """Everything in its place. `rows` holds top and foot of each layer."""

    boxes: dict[str, _Box]
    arrangement: Arrangement
    rows: list[tuple[float, float]]
    width: float
    height: float


def _plan(graph: Graph) -> _Plan:
    pinned = [name for name, node in graph.nodes.items() if node.kind == "input"]
    for room in (3.2, 2.6, 2.1, 1.7, 1.3):  # for a caption; narrower ones until the page is wide enough
        boxes = {name: _box(node, room) for name, node in graph.nodes.items()}
        widths = {name: box.width for name, box in boxes.items()}
        arrangement = arrange(list(graph.nodes), graph.edges, widths, pinned, _GAP)
        half = {node: widths[node] / 2 if isinstance(node, str) else 0.05 for node in arrangement.x}
        left = min(x - half[node] for node, x in arrangement.x.items())
        right = max(x + half[node] for node, x in arrangement.x.items())
        if right - left + 2 * _MARGIN <= style.WIDTH:
            break
    width = max(4.4, right - left + 2 * _MARGIN)
    shift = (width - left - right) / 2
    arrangement.x = {node: x + shift for node, x in arrangement.x.items()}
    rows, y = [], _MARGIN
    for layer in arrangement.layers:
        tallest = max(boxes[node].height for node in layer if node in boxes)
        rows.append((y, y + tallest))
        for node in layer:
            if node in boxes:
                boxes[node].x, boxes[node].y = arrangement.x[node], y + tallest / 2
        y += tallest + _RISE
    return _Plan(boxes, arrangement, rows, width, y - _RISE + _MARGIN)


def _box(node: Node, room: float) -> _Box:
    caption = style.wrap(node.caption, room, _SMALL) if node.caption else []
    if not node.grounded:
        caption = ["no gradient"]
    sizes = style.times(node.shape) or "scalar"
    heading = printed(node.name), node.dims.replace("-", "−").replace("'", "′"), sizes
    wide = max([_columns(heading)[-1], *(style.text_width(line, _SMALL) for line in caption)])
    return _Box(node, heading, caption, wide + 2 * _PAD, _HEADING + _LINE * len(caption) + 2 * _TOP)


def _columns(heading: tuple[str, str, str]) -> tuple[float, float, float]:
    """Where the axes start, where the sizes start and where they end, in inches from the name."""
    name, axes, sizes = heading
    second = style.text_width(name, _NAME, "bold") + 0.13
    third = second + (style.text_width(axes, _SMALL) + 0.1 if axes else 0.0)
    return second, third, third + style.text_width(sizes, _SMALL)


def _routes(plan: _Plan) -> dict[tuple[str, str], Path]:
    """The line of every edge: vertical beside boxes, bent only between two layers."""
    level = {node: i for i, layer in enumerate(plan.arrangement.layers) for node in layer}
    leave, enter = _ports(plan)
    routes = {}
    for (source, target), stops in plan.arrangement.paths.items():
        start, end = plan.boxes[source], plan.boxes[target]
        x = leave[source, stops[1]]
        points, codes = [(x, start.y + start.height / 2)], [Path.MOVETO]
        for a, b in pairwise(stops):
            foot, head = plan.rows[level[a]][1], plan.rows[level[b]][0] - (_ARROW if b == target else 0.0)
            onward = enter[a, b] if b == target else plan.arrangement.x[b]
            middle = (foot + head) / 2
            points += [(x, foot), (x, middle), (onward, middle), (onward, head)]
            codes += [Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
            x = onward
        routes[source, target] = Path([*points, (x, end.y - end.height / 2)], [*codes, Path.LINETO])
    return routes


def _ports(plan: _Plan) -> tuple[dict[Link, float], dict[Link, float]]:
    """Where each line leaves a box at its foot and enters it at its head: as near to its other end as can be."""
    links = list(dict.fromkeys(pair for stops in plan.arrangement.paths.values() for pair in pairwise(stops)))
    leave: dict[Link, float] = {}
    enter: dict[Link, float] = {}
    for name, box in plan.boxes.items():
        for ports, here, there in ((leave, 0, 1), (enter, 1, 0)):
            mine = [pair for pair in links if pair[here] == name]
            half = 0.85 * box.width / 2 if len(mine) > 1 else 0.0  # a single line meets the middle
            places = spread([plan.arrangement.x[pair[there]] for pair in mine], box.x, half, _PORT)
            ports.update(zip(mine, places, strict=True))
    return leave, enter


def _draw_line(ax: Axes, path: Path) -> None:
    *points, (tip, y) = np.asarray(path.vertices)
    shaft = Path([*points, (tip, y - 0.06)], path.codes)
    ax.add_patch(PathPatch(shaft, fill=False, edgecolor=style.MUTED, linewidth=1.3, zorder=1))
    head = [(tip - 0.045, y - _ARROW), (tip + 0.045, y - _ARROW), (tip, y - 0.01)]
    ax.add_patch(Polygon(head, facecolor=style.MUTED, linewidth=0, zorder=2))


def _draw_box(ax: Axes, box: _Box, colour: str) -> None:
    left, top = box.x - box.width / 2, box.y - box.height / 2
    tint = tuple(1 - 0.12 * (1 - c) for c in to_rgb(colour))
    face = {"input": style.SOFT, "tap": style.BACKGROUND, "output": tint}[box.node.kind]
    frame = FancyBboxPatch((left, top), box.width, box.height, boxstyle="round,pad=0,rounding_size=0.07", zorder=3)
    frame.set(facecolor=face, edgecolor=style.MUTED if box.node.kind == "input" else colour, linewidth=1.2)
    frame.set_linestyle("-" if box.node.grounded else (0, (3, 2)))
    ax.add_patch(frame)
    name, axes, sizes = box.heading
    second, third, _ = _columns(box.heading)
    x, y = left + _PAD, top + _TOP + 0.155
    ax.text(x, y, name, size=_NAME, weight="bold", zorder=4)
    ax.text(x + second, y, axes, size=_SMALL, zorder=4)
    ax.text(x + third, y, sizes, size=_SMALL, color=style.MUTED, zorder=4)
    for i, line in enumerate(box.caption, start=1):
        ax.text(x, y + i * _LINE + 0.02, line, size=_SMALL, zorder=4)
