"""The explorers that a chapter can call for: each checks what it is given and packs it for the page."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from .. import style
from ..arrays import Floats, Numbers, Panels, called, of_panel, panels, to_array, to_image
from ..figures import Figure, check_texts, uri
from .frames import Frame, Slider, check_all_differ, draw_frame, read_slider, value_text
from .live import controls, index_slider, setting_slider, share_slider
from .page import Explorer, img, jpeg, markup, png
from .panels import Heat, Map, Panel, Points, pack, share_scale
from .scene import LARGEST, Scene, encode, is_coarse, photograph

MAX_FRAMES = 48
Row = Callable[[int, int], Numbers]  # the row of an attention matrix of a query (row, col)
NOUNS = {"attention": "query", "pixels": "pixel", "points": "output"}


def explore_attention(
    image: Numbers, A: Panels | Row | Mapping[Any, Row], *, title: str, alt: str, mark: str | None = "query",
    reference: Panels | None = None,
    grid: tuple[int, int] | None = None, start: tuple[int, int] | None = None, same_scale: bool = False,
    say: Callable[[int, int], str] | None = None,
) -> Explorer:
    """Attention over a photograph: choose a query cell, see its row of the attention matrix as a heat map.

    A panel's colours run from 0 to the largest weight of the row that is shown, so that small weights stay visible;
    the bar below it says which number that is. The line of text states that largest weight, the sum where it is
    not 1, and the effective number of cells, exp of the row's entropy. Where A has values below 0, colours diverge
    (red above 0, blue below, to the same magnitude) and the line states the largest and the smallest.

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
        same_scale: a colour means the same number in all panels: it ends at the largest weight that any of them
            gives the query. For panels in one unit whose magnitudes are to be compared.
        say: `(row, col) -> sentence`: the finding at this query, in place of the line of text.

    Raises:
        ValueError: wrong rank, query grids that differ, non-finite weights, a start outside the grid, a query of which
            `say` says nothing, more than `BUDGET` bytes, an empty title or alt.
    """
    check_texts(title, alt)
    if mark not in ("query", None):
        raise ValueError(f"mark={mark!r} must be 'query' or None")
    views = []
    for name, a in panels(A).items():
        label = called("A", name)
        views.append(Heat(name, _evaluate(a, grid, label) if callable(a) else a, label))
    if same_scale:
        share_scale(views)
    beside = {} if reference is None else panels(reference)
    return _grid_explorer("attention", image, views, beside, start, title, alt, mark=mark is not None, say=say)


def explore_pixels(
    image: Numbers, maps: Panels, *, title: str, alt: str, reference: Panels | None = None,
    start: tuple[int, int] | None = None,
    same_scale: bool = False,
) -> Explorer:
    """Maps over a photograph, side by side: choose a pixel, read what each map holds there.

    Colours run from the smallest to the largest value of a map, which the bar below it says; one with values below 0
    has diverging colours around 0. The line of text states each map's value, its range, and the share of the map that
    lies below that value.

    Args:
        image: `(H, W)`, `(H, W, 3)` or `(3, H, W)`, float in [0, 1] or uint8; shown with 256 pixels at most.
        maps: `(h, w)`, or a dict label → `(h, w)`; all of one size, which may be coarser than the photograph.
        title: the question the explorer answers.
        alt: alternative text.
        reference: a further picture beside the panels, or a dict label → picture.
        start: `(row, col)` of the first pixel; the middle by default.
        same_scale: a colour means the same number in all panels. For maps in one unit, such as gates.

    Raises:
        ValueError: wrong rank, maps of different sizes, non-finite values, a start outside the map, more than
            `BUDGET` bytes, an empty title or alt.
    """
    check_texts(title, alt)
    views = [Map(name, m, called("maps", name)) for name, m in panels(maps).items()]
    if same_scale:
        share_scale(views)
    beside = {} if reference is None else panels(reference)
    return _grid_explorer("pixels", image, views, beside, start, title, alt)


def explore_points(
    image: Numbers, points: Panels, *, title: str, alt: str, weights: Panels | None = None,
    reference: Panels | None = None,
    start: tuple[int, int] | None = None,
) -> Explorer:
    """Sampling points on a photograph: choose an output cell, see where it looks.

    The area of a point's disc is its weight over the panel's largest, which stands below it; light points also fade.

    Args:
        image: `(H, W)`, `(H, W, 3)` or `(3, H, W)`, float in [0, 1] or uint8; shown with 256 pixels at most, and
            enlarged when it has fewer than 64.
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
    picture = to_image(image, "image")
    size, views = picture.shape[:2], []
    for name, p in panels(points).items():
        labels = [called(argument, name) for argument in ("points", "weights", "reference")]
        w, r = of_panel(weights, name, "weights"), of_panel(reference, name, "reference")
        views.append(Points(name, p, w, r, size, labels))
    if max(size) < 64:  # discs are sized by the picture as shown; distances are said in its own pixels
        times = LARGEST // max(size)
        picture = picture.repeat(times, 0).repeat(times, 1)
    return _grid_explorer("points", picture, views, {}, start, title, alt)


def explore_frames(
    draw: Callable[..., tuple[Figure, str]], *, title: str, alt: str,
    **settings: Sequence[Any] | tuple[str, Sequence[Any]],
) -> Explorer:
    """A figure under one or two sliders: drawn beforehand for every setting, drawn anew where a kernel runs.

    `draw` also says in a sentence what the reader sees at this setting, from the numbers that it draws:

    ```python
    def frame(k):
        s = gate(x, k)
        figure = viz.bars(s, title="Which bands are open?", alt=f"Gates of sixteen bands under a kernel of {k}.")
        return figure, f"{(s > 0.5).sum()} of 16 bands are open, the widest gate is {s.max():.2f}."

    viz.explore_frames(frame, k=("width of the kernel k", [1, 3, 31]), title="How many neighbours …?", alt="…")
    ```

    The sentence stands under the picture, and a screen reader speaks it. The slider shows its own value already: the
    sentence tells the finding. With a kernel, evenly spaced numbers get a slider that also takes the values between
    them, so the sentence must be true there, too.

    Args:
        draw: called as `draw(**setting)`; returns a `viz.Figure` and a sentence, which differ from those of every
            other setting.
        title: the question the explorer answers.
        alt: alternative text of the whole; each frame also has its own, that of its figure.
        **settings: one or two sliders, each `argument=(name, values)`, or `argument=values` where the argument is a
            word that can stand as the name; at least two values, and the explorer starts at the first.

    Raises:
        ValueError: no or too many settings, a slider with a bare symbol for a name, more than `MAX_FRAMES`
            combinations, a `draw` that returns something else, a sentence or a frame's alt that is missing, says the
            same at two settings or holds a number nobody can read (0.30000000000000004, 1e-08), more than `BUDGET`
            bytes, an empty title or alt.
    """
    check_texts(title, alt)
    if not callable(draw):
        raise ValueError(f"draw={draw!r} must be a function that returns a viz.Figure and a sentence")
    if len(settings) not in (1, 2):
        raise ValueError(f"explore_frames takes one or two settings (argument=(name, values)), not {len(settings)}")
    sliders = [read_slider(argument, given) for argument, given in settings.items()]
    settled = itertools.product(*(s.values for s in sliders))
    combinations = [dict(zip(settings, values, strict=True)) for values in settled]
    if len(combinations) > MAX_FRAMES:
        raise ValueError(f"the settings make {len(combinations)} frames: an explorer holds at most {MAX_FRAMES}")
    frames = [draw_frame(draw, setting) for setting in combinations]
    check_all_differ(frames)
    data = {
        "sliders": [{"name": s.name, "values": [value_text(v) for v in s.values]} for s in sliders],
        "frames": [""] + [uri(f.figure.png) for f in frames[1:]],  # the first is in the page already
        "alts": [f.figure.alt for f in frames],
        "texts": [f.sentence for f in frames],
    }
    first = frames[0].figure
    html = markup("frames", title, img(first.png, first.alt, first.width), frames[0].sentence, data)
    return Explorer(html, first.png, title, alt, partial(_live_frames, draw, sliders, frames[0], title))


def _grid_explorer(
    kind: str, image: Any, views: Sequence[Panel], beside: Mapping[str, Any], start: tuple[int, int] | None,
    title: str, alt: str, mark: bool = True, say: Callable[[int, int], str] | None = None,
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
    scene = Scene(photo, views, beside, pad, mark, NOUNS[kind], say)
    cells = list(itertools.product(range(rows), range(cols)))
    texts = [scene.describe(cell) for cell in cells]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("say must return a sentence for every query")
    data = {
        "grid": (rows, cols),
        "start": start,
        "size": (width, height),
        "pad": pad,
        "mark": mark,
        "coarse": is_coarse(photo),
        "pictures": [encode(p) for p in (photo, *beside.values())],
        "panels": [{"label": v.name, "picture": 0, **v.pack((height, width)), **_keys(v, cells)} for v in views]
        + [{"label": name, "picture": i} for i, name in enumerate(beside, 1)],
        "colours": pack(np.concatenate([_colours(style.HEAT), _colours(style.DIVERGING)])),
        "texts": _pack_texts(texts),
        "noun": scene.noun,
    }
    picture = scene.small(start)
    html = markup(kind, title, img(jpeg(picture, 75), alt, picture.width), scene.describe(start), data)
    # 64 colours: the PNG stands in the notebook beside the HTML, for viewers that show nothing else.
    return Explorer(html, png(picture, 64), title, alt, partial(_live_grid, scene, start, title, alt))


def _live_grid(scene: Scene, start: tuple[int, int], title: str, alt: str) -> Any:
    sides = zip(("row", "col"), scene.cells, start, strict=True)
    sliders = {name: index_slider(f"{scene.noun} {name}", n, at) for name, n, at in sides}
    if any(isinstance(p, Heat) for p in scene.panels):
        sliders["overlay"] = share_slider("strength of the colours")

    def show(row: int, col: int, overlay: float = 1.0) -> tuple[str, str]:
        picture = scene.paint((row, col), overlay)
        return img(jpeg(picture, 85), alt, picture.width * 3 // 4), scene.describe((row, col))

    return controls(sliders, show, title)


def _live_frames(draw: Callable[..., tuple[Figure, str]], sliders: Sequence[Slider], first: Frame, title: str) -> Any:
    start = {s.argument: s.values[0] for s in sliders}
    drawn = [first]

    def show(**setting: Any) -> tuple[str, str]:
        frame = drawn.pop() if drawn and setting == start else draw_frame(draw, setting)  # the first is not drawn twice
        return img(frame.figure.png, frame.figure.alt, frame.figure.width), frame.sentence

    return controls({s.argument: setting_slider(s.name, s.values, value_text) for s in sliders}, show, title)


def _keys(view: Panel, cells: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """For explorer.js: what the scale below a panel says, a text for each query where it moves."""
    moves = isinstance(view, Heat) and not isinstance(view, Map)
    ends = [view.key(cell) for cell in (cells if moves else cells[:1])]
    return {"ends": _pack_texts(list(zip(*ends, strict=True)))} if ends[0] else {}


def _pack_texts(texts: Sequence[Any]) -> str:
    return pack(np.frombuffer(json.dumps(texts, separators=(",", ":")).encode("ascii"), np.uint8))


def _colours(name: str) -> NDArray[np.uint8]:
    colours: NDArray[np.uint8] = np.rint(255 * matplotlib.colormaps[name](np.arange(256))[:, :3]).astype(np.uint8)
    return colours


def _evaluate(row_of: Row, grid: tuple[int, int] | None, label: str) -> Floats:
    if grid is None or len(grid) != 2 or not all(isinstance(n, int | np.integer) and n > 0 for n in grid):
        raise ValueError(f"grid={grid!r} must be (Hq, Wq), two positive integers, where {label} is a callable")
    rows = [[to_array(row_of(r, c), f"{label}({r}, {c})", 2) for c in range(grid[1])] for r in range(grid[0])]
    shapes = {row.shape for line in rows for row in line}
    if len(shapes) > 1:
        raise ValueError(f"{label} returns rows of different shapes: {sorted(shapes)}")
    return np.array(rows)
