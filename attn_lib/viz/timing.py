"""Recorded measurements: how long a module takes beside the reader's machine, and how near that is to the limit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import NullLocator

from .. import catalog
from ..measure import Timing, records
from ..measure.records import Row
from . import style
from .figures import Figure, Sheet

_NOW = "#111111"
_KINDS = (("float32", "eager"), ("float32", "compiled"), ("bfloat16", "eager"), ("bfloat16", "compiled"))


def timing(
    id: str, now: Timing | Mapping[Any, Timing] | None = None, *, title: str, alt: str, backward: bool = False,
    batch: int = 1,
) -> Figure:
    """Recorded times of a module over the size of its input, beside those of the reader's machine.

    Times are per image (per item of the batch), so that a GPU fed with 32 at once and a CPU fed with 2 can stand
    in one figure. The note below the axes says what was recorded where; with no GPU among it, it says that.

    Args:
        id: the module.
        now: result of `measure.timing` on this machine: a horizontal line; or a dict size → result, with
            the size as (H, W), or the side of a square map: points.
        title: the question the figure answers.
        alt: alternative text.
        backward: recorded forward and backward passes rather than forward passes.
        batch: how many images a call of `now` processes.

    Raises:
        ValueError: no such module, `batch` < 1, an empty title or alt.
    """
    catalog.entry(id)
    if batch < 1:
        raise ValueError(f"batch={batch} must be at least 1")
    rows = [r for r in latest(records(id)) if r["backward"] == backward and r["median"] is not None]
    if isinstance(now, Mapping):
        now = {tuple(size) if np.ndim(size) else (int(size),) * 2: t for size, t in now.items()}
    if not rows and (not now or isinstance(now, Timing)):
        here = f" Here, now: {style.si(now.median / batch, 's')} per image ({now.device})." if now else ""
        return _words_alone(f"No measurement of {id!r} is recorded.{here}", title, alt)
    sheet = Sheet(title, alt, height=3.6)
    with sheet as fig:
        ax = fig.subplots()
        ax.set(xscale="log", yscale="log")
        for kind, (dtype, mode) in itertools.product(("cuda", "cpu"), _KINDS):
            line = [r for r in rows if (r["kind"], r["dtype"], r["mode"]) == (kind, dtype, mode)]
            if line:
                _draw(ax, line)
        if isinstance(now, Timing):
            ax.axhline(now.median / batch, color=_NOW, linewidth=1.4, linestyle=(0, (1, 1.5)),
                       label=f"now, {now.device}: {style.si(now.median / batch, 's')}")
        elif now:
            device = next(iter(now.values())).device
            spread = [t.iqr / 2 / batch for t in now.values()]
            ax.errorbar([math.prod(size) for size in now], [t.median / batch for t in now.values()], spread,
                        color=_NOW, marker="*", markersize=9, linewidth=1.2, label=f"now, {device}")
        _size_axis(ax, [*(r["size"] for r in rows), *(now if isinstance(now, Mapping) else ())])
        style.log_axis(ax.yaxis, lambda t: style.si(t, "s"))
        ax.set_ylabel("time per image" if "H" in catalog.entry(id).layout.free else "time per item of the batch")
        ax.grid(True)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        _note(fig, rows, id)
    return sheet.figure


def roofline(id: str, *, title: str, alt: str) -> Figure:
    """Recorded runs of a module under what the device can do at most.

    A call that computes little for each byte it must move is limited by the memory (the slope), one that computes
    much by the arithmetic (the flat roof, one for each number type). FLOPs are those of matrix products and
    convolutions, bytes the inputs, outputs and parameters moved once; both roofs were measured on the device.
    Larger marks are larger inputs; on a CPU, small ones stay in its cache and may run above the slope. Modules
    without such FLOPs stand on an axis of their own: achieved bandwidth over size.

    Args:
        id: the module.
        title: the question the figure answers.
        alt: alternative text.

    Raises:
        ValueError: no such module, an empty title or alt.
    """
    catalog.entry(id)
    rows = [r for r in latest(records(id)) if not r["backward"] and r["median"] is not None]
    if not rows:
        return _words_alone(f"No measurement of {id!r} is recorded.", title, alt)
    rows = [r for r in rows if r["kind"] == rows[0]["kind"]]  # a GPU's where there is one
    sheet = Sheet(title, alt, height=3.6)
    with sheet as fig:
        ax = fig.subplots()
        ax.set(xscale="log", yscale="log")
        if any(r["flops"] for r in rows):
            _roofs(ax, rows)
        else:
            _bandwidths(ax, rows)
        ax.grid(True)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        _note(fig, rows, id)
    return sheet.figure


def latest(rows: Sequence[Row]) -> list[Row]:
    """Rows of one GPU and one CPU, those recorded last."""
    result = []
    for kind in ("cuda", "cpu"):
        same = [r for r in rows if r["kind"] == kind]
        if same:
            last = max((r["date"], r["device"], r["torch"]) for r in same)
            result += [r for r in same if (r["device"], r["torch"]) == last[1:]]
    return result


def _draw(ax: Axes, rows: list[Row]) -> None:
    """One line: the same device, number type and mode over the sizes."""
    rows = sorted(rows, key=lambda r: math.prod(r["size"]))
    cpu, half, compiled = rows[0]["kind"] == "cpu", rows[0]["dtype"] != "float32", rows[0]["mode"] == "compiled"
    look: dict[str, Any] = {
        "color": style.MUTED if cpu else style.series_colour(int(half)),
        "linestyle": (0, (4, 2)) if compiled else "-",
        "marker": "s" if cpu else "^" if compiled else "o",
        "label": f"{'CPU' if cpu else 'GPU'}, {rows[0]['dtype']}, {rows[0]['mode']}",
    }
    ax.plot([math.prod(r["size"]) for r in rows], [r["median"] / r["shapes"][0][0] for r in rows], **look)


def _size_axis(ax: Axes, sizes: list[Sequence[int]]) -> None:
    sizes = sorted(set(map(tuple, sizes)), key=math.prod)
    kept = [s for i, s in enumerate(sizes) if i == 0 or math.prod(s) > 1.5 * math.prod(sizes[i - 1])]
    ax.set_xlim(math.prod(sizes[0]) / 1.3, math.prod(sizes[-1]) * 1.3)
    ax.set_xticks([math.prod(s) for s in kept], [style.times(s) for s in kept])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("size of the input")


def _roofs(ax: Axes, rows: list[Row]) -> None:
    counted = [r for r in rows if r["flops"]]
    bandwidth, types = rows[0]["bandwidth"], {r["dtype"] for r in counted}
    rates = {dtype: rate for dtype, rate in rows[0]["flop_rate"].items() if dtype in types}
    intensity = [r["flops"] / r["min_bytes"] for r in counted]
    ends = np.array([min(intensity) / 4, max([rate / bandwidth for rate in rates.values()] + intensity) * 4])
    x = np.geomspace(ends[0], ends[1], 200)
    for dtype, rate in rates.items():
        colour = style.series_colour(int(dtype != "float32"))
        ax.plot(x, np.minimum(bandwidth * x, rate), color=colour, linewidth=1.4, label=f"limit, {dtype}")
    for dtype, mode in _KINDS:
        mine = [r for r in counted if (r["dtype"], r["mode"]) == (dtype, mode)]
        if mine:
            _marks(ax, [r["flops"] / r["min_bytes"] for r in mine], [r["flops"] / r["median"] for r in mine], mine)
    ax.set(xlabel="FLOP per byte that must move", ylabel="FLOP per second", xlim=ends)
    style.log_axis(ax.xaxis, lambda value: f"{value:g}")
    style.log_axis(ax.yaxis, style.si)


def _bandwidths(ax: Axes, rows: list[Row]) -> None:
    ax.axhline(rows[0]["bandwidth"], color=style.MUTED, linewidth=1.4, label="limit, a large copy")
    for dtype, mode in _KINDS:
        mine = [r for r in rows if (r["dtype"], r["mode"]) == (dtype, mode)]
        if mine:
            _marks(ax, [math.prod(r["size"]) for r in mine], [r["min_bytes"] / r["median"] for r in mine], mine)
    _size_axis(ax, [r["size"] for r in rows])
    ax.set_ylabel("bytes per second")
    style.log_axis(ax.yaxis, style.si)


def _marks(ax: Axes, x: list[float], y: list[float], rows: list[Row]) -> None:
    dtype, mode = rows[0]["dtype"], rows[0]["mode"]
    order = sorted({math.prod(r["size"]) for r in rows})
    area = [22 + 26 * order.index(math.prod(r["size"])) for r in rows]
    colour = style.series_colour(0 if dtype == "float32" else 1)
    ax.plot(x, y, color=colour, linewidth=0.8, alpha=0.6)
    ax.scatter(
        x, y, s=area, marker="^" if mode == "compiled" else "o", zorder=3, linewidth=1.3, edgecolor=colour,
        facecolor=colour if mode == "compiled" else style.BACKGROUND, label=f"{dtype}, {mode}",
    )


def _note(fig: MatplotlibFigure, rows: list[Row], id: str) -> None:
    """What was recorded where, under the axes."""
    parts = [] if any(r["kind"] == "cuda" for r in rows) else [f"No GPU measurement of {id!r} is recorded."]
    for kind in ("cuda", "cpu"):
        for r in [r for r in rows if r["kind"] == kind][:1]:
            version, batch = r["torch"].partition("+")[0], r["shapes"][0][0]
            parts.append(f"Recorded {r['date'][:10]}: {r['device']}, torch {version}, batches of {batch}.")
    lines = style.wrap(" ".join(parts), style.WIDTH - 0.3, style.SMALL_SIZE)
    fig.supxlabel("\n".join(lines), x=0.02, ha="left", size=style.SMALL_SIZE, color=style.MUTED)


def _words_alone(text: str, title: str, alt: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    lines = style.wrap(text, style.WIDTH - 0.3, style.TEXT_SIZE)
    sheet = Sheet(title, alt, height=0.3 + 0.2 * len(lines), layout=None)
    with sheet as fig:
        fig.text(0.012, 0.12, "\n".join(lines), color=style.INK)
    return sheet.figure
