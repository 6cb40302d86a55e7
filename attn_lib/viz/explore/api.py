"""The explorers that a chapter can call for: each checks what it is given and packs it for the page."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib
import numpy as np

from .. import style
from ..arrays import called, of_panel, panels, to_array, to_image
from ..figures import Figure, check_texts, uri
from ..words import symbol
from .live import controls, index_slider, setting_slider, share_slider
from .page import Explorer, img, jpeg, markup, png
from .panels import Heat, Map, Panel, Points, pack
from .scene import Scene, encode, is_coarse, photograph

MAX_FRAMES = 48
NOUNS = {"attention": "query", "pixels": "pixel", "points": "output"}


def explore_attention(
    image: Any, A: Any, *, title: str, alt: str, mark: str | None = "query", reference: Any = None,
    grid: tuple[int, int] | None = None, start: tuple[int, int] | None = None,
) -> Explorer:
    """Attention over a photograph: choose a query cell, see its row of the attention matrix as a heat map.

    Colour is the weight over the row's largest weight, so that small weights stay visible. The line below states
    that largest weight, the sum where it is not 1, and the effective number of cells, exp of the row's entropy.
    Where A has values below 0, colours diverge (red above 0, blue below) and the line states the largest and the
    smallest.

    Args:
        image: `(H, W)`, `(H, W, 3)` or `(3, H, W)`, float in [0, 1] or uint8; shown with 256 pixels at most.
        A: `(Hq, Wq, Hk, Wk)`: `A[r, c]` is the row of query (r, c). Or a callable
            `(row, col) -> (Hk, Wk)` together with `grid`. A dict label → A draws panels that share the query;
            their key grids may differ.
        title: the question the explorer answers.
        alt: alternative text.
        mark: `"query"` outlines the query's cell, `None` does not.
        reference: a further picture beside the panels, such as a label map, or a dict label → picture.
        grid: `(Hq, Wq)`, for a callable.
        start: `(row, col)` of the first query; the middle by default.

    Raises:
        ValueError: wrong rank, query grids that differ, non-finite weights, a start outside the grid, more than
            `BUDGET` bytes, an empty title or alt.
    """
    check_texts(title, alt)
    if mark not in ("query", None):
        raise ValueError(f"mark={mark!r} must be 'query' or None")
    views = []
    for name, a in panels(A).items():
        label = called("A", name)
        views.append(Heat(name, _evaluate(a, grid, label) if callable(a) else a, label))
    beside = {} if reference is None else panels(reference)
    return _grid_explorer("attention", image, views, beside, start, title, alt, mark=mark is not None)


def explore_pixels(
    image: Any, maps: Any, *, title: str, alt: str, reference: Any = None, start: tuple[int, int] | None = None,
) -> Explorer:
    """Maps over a photograph, side by side: choose a pixel, read what each map holds there.

    Colour runs from the smallest to the largest value of a map; one with values below 0 has diverging colours around
    0. The line below states each map's value, its range, and the share of the map that lies below that value.

    Args:
        image: `(H, W)`, `(H, W, 3)` or `(3, H, W)`, float in [0, 1] or uint8; shown with 256 pixels at most.
        maps: `(h, w)`, or a dict label → `(h, w)`; all of one size, which may be coarser than the photograph.
        title: the question the explorer answers.
        alt: alternative text.
        reference: a further picture beside the panels, or a dict label → picture.
        start: `(row, col)` of the first pixel; the middle by default.

    Raises:
        ValueError: wrong rank, maps of different sizes, non-finite values, a start outside the map, more than
            `BUDGET` bytes, an empty title or alt.
    """
    check_texts(title, alt)
    views = [Map(name, m, called("maps", name)) for name, m in panels(maps).items()]
    beside = {} if reference is None else panels(reference)
    return _grid_explorer("pixels", image, views, beside, start, title, alt)


def explore_points(
    image: Any, points: Any, *, title: str, alt: str, weights: Any = None, reference: Any = None,
    start: tuple[int, int] | None = None,
) -> Explorer:
    """Sampling points on a photograph: choose an output cell, see where it looks.

    The area of a point's disc is its weight over the panel's largest; light points also fade.

    Args:
        image: `(H, W)`, `(H, W, 3)` or `(3, H, W)`, float in [0, 1] or uint8; shown with 256 pixels at most.
        points: `(Hq, Wq, K, 2)`: for each output cell K points (row, col) in pixels of `image` as given; whole
            numbers are pixel centres, and points may lie outside. A dict label → points draws panels.
        title: the question the explorer answers.
        alt: alternative text.
        weights: `(Hq, Wq, K)`, not negative; a dict for panels.
        reference: `(Hq, Wq, K, 2)`: the regular grid, drawn small, with a line from each of its points to the
            sampled one; a dict for panels.
        start: `(row, col)` of the first output cell; the middle by default.

    Raises:
        ValueError: wrong rank, grids that differ, negative weights, non-finite numbers, a start outside the grid,
            more than `BUDGET` bytes, an empty title or alt.
    """
    check_texts(title, alt)
    size = to_image(image, "image").shape[:2]
    views = []
    for name, p in panels(points).items():
        labels = [called(argument, name) for argument in ("points", "weights", "reference")]
        w, r = of_panel(weights, name, "weights"), of_panel(reference, name, "reference")
        views.append(Points(name, p, w, r, size, labels))
    return _grid_explorer("points", image, views, {}, start, title, alt)


def explore_frames(draw: Callable[..., Figure], *, title: str, alt: str, **settings: Sequence[Any]) -> Explorer:
    """A figure under one or two sliders: drawn beforehand for every setting, drawn anew where a kernel runs.

    With a kernel, evenly spaced numbers get a slider that also takes the values between them.

    Args:
        draw: called as `draw(**setting)`; returns a `viz.Figure`.
        title: the question the explorer answers.
        alt: alternative text of the whole; each frame also has its own.
        **settings: name = list of at least two values, for each slider. The explorer starts at the first.

    Raises:
        ValueError: no or too many settings, more than `MAX_FRAMES` combinations, a `draw` that returns
            something else, more than `BUDGET` bytes, an empty title or alt.
    """
    check_texts(title, alt)
    if not callable(draw):
        raise ValueError(f"draw={draw!r} must be a function that returns a viz.Figure")
    if len(settings) not in (1, 2):
        raise ValueError(f"explore_frames takes one or two settings (name=[values]), not {len(settings)}")
    choices = {name: _choices(name, values) for name, values in settings.items()}
    combinations = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    if len(combinations) > MAX_FRAMES:
        raise ValueError(f"the settings make {len(combinations)} frames: an explorer holds at most {MAX_FRAMES}")
    frames = [_frame(draw, setting) for setting in combinations]
    data = {
        "sliders": [{"name": symbol(name), "values": [_text(v) for v in values]} for name, values in choices.items()],
        "frames": [""] + [uri(f.png) for f in frames[1:]],  # the first is in the page already
        "alts": [f.alt for f in frames],
        "texts": [_words(setting) for setting in combinations],
        "hint": "Drag a slider, or use the arrow keys, Home and End on it.",
    }
    first = frames[0]
    html = markup("frames", title, img(first.png, first.alt, first.width), data["texts"][0], data)
    return Explorer(html, first.png, title, alt, partial(_live_frames, draw, choices, first, title))


def _grid_explorer(
    kind: str, image: Any, views: Sequence[Panel], beside: Mapping[str, Any], start: tuple[int, int] | None,
    title: str, alt: str, mark: bool = True,
) -> Explorer:
    grids = {v.name: v.cells for v in views}
    if len(set(grids.values())) > 1:
        raise ValueError(f"the panels must share one query grid; theirs are {grids}")
    rows, cols = views[0].cells
    start = (rows // 2, cols // 2) if start is None else start
    if np.shape(start) != (2,) or not (0 <= start[0] < rows and 0 <= start[1] < cols):
        raise ValueError(f"start={start} must be a (row, col) inside the {rows}×{cols} query grid")
    start = int(start[0]), int(start[1])

    photo = photograph(image, "image")
    height, width = photo.shape[:2]
    beside = {name or "reference": photograph(p, "reference", (height, width)) for name, p in beside.items()}
    pad = min(max(height, width) // 8, max(v.margin((height, width)) for v in views))
    scene = Scene(photo, views, beside, pad, mark, NOUNS[kind])
    texts = [scene.describe((row, col)) for row in range(rows) for col in range(cols)]
    signed = {v.signed for v in views if isinstance(v, Heat)}
    data = {
        "grid": (rows, cols),
        "start": start,
        "size": (width, height),
        "pad": pad,
        "mark": mark,
        "coarse": is_coarse(photo),
        "pictures": [encode(p) for p in (photo, *beside.values())],
        "panels": [{"label": v.name, "picture": 0, **v.pack((height, width))} for v in views]
        + [{"label": name, "picture": i} for i, name in enumerate(beside, 1)],
        "colours": pack(np.concatenate([_colours(style.HEAT), _colours(style.DIVERGING)])),
        "texts": pack(np.frombuffer(json.dumps(texts).encode("ascii"), np.uint8)),
        "hint": f"Hover, tap or drag; a click holds the {scene.noun}. Arrow keys move it (with Shift by four), "
        "Home brings it back." + _legend(kind, signed),
    }
    picture = scene.small(start)
    html = markup(kind, title, img(jpeg(picture, 75), alt, picture.width), scene.describe(start), data)
    # 64 colours: the PNG stands in the notebook beside the HTML, for viewers that show nothing else.
    return Explorer(html, png(picture, 64), title, alt, partial(_live_grid, scene, start, title, alt))


def _live_grid(scene: Scene, start: tuple[int, int], title: str, alt: str) -> Any:
    sliders = {name: index_slider(name, n, at) for name, n, at in zip(("row", "col"), scene.cells, start, strict=True)}
    if any(isinstance(p, Heat) for p in scene.panels):
        sliders["overlay"] = share_slider("overlay")

    def show(row: int, col: int, overlay: float = 1.0) -> tuple[str, str]:
        picture = scene.paint((row, col), overlay)
        return img(jpeg(picture, 85), alt, picture.width * 3 // 4), scene.describe((row, col))

    return controls(sliders, show, title)


def _live_frames(draw: Callable[..., Figure], choices: Mapping[str, list], first: Figure, title: str) -> Any:
    drawn = {_words({name: values[0] for name, values in choices.items()}): first}

    def show(**setting: Any) -> tuple[str, str]:
        words = _words(setting)
        frame = drawn.pop(words, None) or _frame(draw, setting)  # the first is not drawn twice
        return img(frame.png, frame.alt, frame.width), words

    return controls({name: setting_slider(name, values, _text) for name, values in choices.items()}, show, title)


def _colours(name: str) -> np.ndarray:
    return np.rint(255 * matplotlib.colormaps[name](np.arange(256))[:, :3]).astype(np.uint8)


def _legend(kind: str, signed: set[bool]) -> str:
    what = "row's largest weight" if kind == "attention" else "map's largest value"
    return f" Pale yellow is the {what}." * (False in signed) + " Red is above 0, blue below." * (True in signed)


def _evaluate(row_of: Callable[[int, int], Any], grid: tuple[int, int] | None, label: str) -> np.ndarray:
    if grid is None or len(grid) != 2 or not all(isinstance(n, int | np.integer) and n > 0 for n in grid):
        raise ValueError(f"grid={grid!r} must be (Hq, Wq), two positive integers, where {label} is a callable")
    rows = [[to_array(row_of(r, c), f"{label}({r}, {c})", 2) for c in range(grid[1])] for r in range(grid[0])]
    shapes = {row.shape for line in rows for row in line}
    if len(shapes) > 1:
        raise ValueError(f"{label} returns rows of different shapes: {sorted(shapes)}")
    return np.array(rows)


def _choices(name: str, values: Any) -> list:
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray) or len(values) < 2:
        raise ValueError(f"{name}={values!r} must be a list of at least two values")
    return [v.item() if isinstance(v, np.generic) else v for v in values]


def _frame(draw: Callable[..., Figure], setting: Mapping[str, Any]) -> Figure:
    frame = draw(**setting)
    if not isinstance(frame, Figure):
        words = ", ".join(f"{k}={v!r}" for k, v in setting.items())
        raise ValueError(f"draw({words}) must return a viz.Figure, not {type(frame).__name__}")
    return frame


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _words(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{symbol(name)} = {_text(value)}" for name, value in setting.items())
