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
from .figures import Figure, Sheet, check_texts

_NOW = "#111111"
# Number type and mode -> colour and marker; where two coincide, both markers can be seen.
_KINDS = {("float32", "eager"): (0, "o"), ("float32", "compiled"): (0, "^"),
          ("bfloat16", "eager"): (1, "d"), ("bfloat16", "compiled"): (1, "v")}


def timing(
    id: str, now: Timing | Mapping[Any, Timing] | None = None, *, title: str, alt: str, backward: bool = False,
    batch: int = 1,
) -> Figure:
    """Recorded times of a module over the size of its input, beside those of the reader's machine.

    Times are per image (per item of the batch), so that a GPU fed with 32 at once and a CPU fed with 2 can stand
    in one figure. The note below the axes says what was recorded where; with no GPU among it, it says that, and with
    one, what failed on it, and up to which size Python is slower than the GPU. The alternative text ends with the
    drawn numbers and that note.

    Args:
        id: the module.
        now: result of `measure.timing` on this machine: a horizontal line; or a dict size → result, with
            the size as (H, W), or the side of a square map: points.
        title: the question the figure answers.
        alt: alternative text: what one sees, without the numbers.
        backward: recorded forward and backward passes rather than forward passes.
        batch: how many images a call of `now` processes.

    Raises:
        ValueError: no such module, `batch` < 1, an empty title or alt.
    """
    catalog.entry(id)
    check_texts(title, alt)
    if batch < 1:
        raise ValueError(f"batch={batch} must be at least 1")
    tried = [r for r in latest(records(id)) if r["backward"] == backward]
    rows = [r for r in tried if r["median"] is not None]
    if isinstance(now, Mapping):
        now = {tuple(size) if np.ndim(size) else (int(size),) * 2: t for size, t in now.items()}
    if not rows and (not now or isinstance(now, Timing)):
        here = f" Here, now: {style.si(now.median / batch, 's')} per image ({now.device})." if now else ""
        return _words_alone(f"No measurement of {id!r} is recorded.{here}", title, alt)
    lines = [line for kind, form in itertools.product(("cuda", "cpu"), _KINDS)
             if (line := [r for r in rows if (r["kind"], r["dtype"], r["mode"]) == (kind, *form)])]
    note = _note(tried, id)
    said = [f"{_name(line[0])}: {_ends({tuple(r['size']): _per_item(r) for r in line})}" for line in lines]
    if isinstance(now, Timing):
        said.append(f"now, {now.device}: {style.si(now.median / batch, 's')}")
    elif now:
        device = next(iter(now.values())).device
        said.append(f"now, {device}: {_ends({size: t.median / batch for size, t in now.items()})}")
    sheet = Sheet(title, f"{alt} {'; '.join(said)}. {note}", height=_height(note))
    with sheet as fig:
        ax = fig.subplots()
        ax.set(xscale="log", yscale="log")
        for line in lines:
            _draw(ax, line)
        if isinstance(now, Timing):
            ax.axhline(now.median / batch, color=_NOW, linewidth=1.4, linestyle=(0, (1, 1.5)), label=said[-1])
        elif now:
            spread = [t.iqr / 2 / batch for t in now.values()]
            ax.errorbar([math.prod(size) for size in now], [t.median / batch for t in now.values()], spread,
                        color=_NOW, marker="*", markersize=9, linewidth=1.2, label=f"now, {device}")
        _size_axis(ax, [*(r["size"] for r in rows), *(now if isinstance(now, Mapping) else ())])
        style.log_axis(ax.yaxis, lambda t: style.si(t, "s"))
        ax.set_ylabel("time per image" if "H" in catalog.entry(id).layout.free else "time per item of the batch")
        ax.grid(True)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        _write(fig, note)
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
    note = _note(rows, id)
    sheet = Sheet(title, alt, height=_height(note))
    with sheet as fig:
        ax = fig.subplots()
        ax.set(xscale="log", yscale="log")
        if any(r["flops"] for r in rows):
            _roofs(ax, rows)
        else:
            _bandwidths(ax, rows)
        ax.grid(True)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        _write(fig, note)
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


def why_not(row: Row) -> str:
    """Why a row has no time, in words or by the error's name."""
    error: str = row["error"]
    if "OutOfMemory" in error or "out of memory" in error:
        return "out of memory"
    return f"failed ({error.partition(':')[0]})"


def _name(row: Row) -> str:
    return f"{'CPU' if row['kind'] == 'cpu' else 'GPU'}, {row['dtype']}, {row['mode']}"


def _per_item(row: Row) -> float:
    """Seconds for an item of the batch."""
    time: float = row["median"] / row["shapes"][0][0]
    return time


def _ends(times: Mapping[tuple[int, ...], float]) -> str:
    """The smallest and the largest size of a line, in words."""
    ends = (min(times, key=math.prod), max(times, key=math.prod))
    return " to ".join(dict.fromkeys(f"{style.si(times[size], 's')} at {style.times(size)}" for size in ends))


def _by_size(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda r: math.prod(r["size"]))


def _draw(ax: Axes, rows: list[Row]) -> None:
    """One line: the same device, number type and mode over the sizes."""
    rows, cpu = _by_size(rows), rows[0]["kind"] == "cpu"
    colour, marker = _KINDS[rows[0]["dtype"], rows[0]["mode"]]
    look: dict[str, Any] = {
        "color": style.MUTED if cpu else style.series_colour(colour),
        "linestyle": "none" if len(rows) == 1 else (0, (4, 2)) if rows[0]["mode"] == "compiled" else "-",
        "marker": "s" if cpu else marker,
        "label": _name(rows[0]),
    }
    ax.plot([math.prod(r["size"]) for r in rows], list(map(_per_item, rows)), **look)


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
    slope = np.geomspace(ends[0], ends[1], 200)
    for dtype, rate in rates.items():
        colour = style.series_colour(int(dtype != "float32"))
        ax.plot(slope, np.minimum(bandwidth * slope, rate), color=colour, linewidth=1.4, label=f"limit, {dtype}")
    order = sorted({math.prod(r["size"]) for r in counted})
    for dtype, mode in _KINDS:
        mine = [r for r in counted if (r["dtype"], r["mode"]) == (dtype, mode)]
        if mine:
            x, y = [r["flops"] / r["min_bytes"] for r in mine], [r["flops"] / r["median"] for r in mine]
            _marks(ax, x, y, mine, order)
    ax.set(xlabel="FLOP per byte that must move", ylabel="FLOP per second", xlim=ends)
    style.log_axis(ax.xaxis, lambda value: f"{value:g}")
    style.log_axis(ax.yaxis, style.si)


def _bandwidths(ax: Axes, rows: list[Row]) -> None:
    ax.axhline(rows[0]["bandwidth"], color=style.MUTED, linewidth=1.4, label="limit, a large copy")
    order = sorted({math.prod(r["size"]) for r in rows})
    for dtype, mode in _KINDS:
        mine = [r for r in rows if (r["dtype"], r["mode"]) == (dtype, mode)]
        if mine:
            x, y = [math.prod(r["size"]) for r in mine], [r["min_bytes"] / r["median"] for r in mine]
            _marks(ax, x, y, mine, order)
    _size_axis(ax, [r["size"] for r in rows])
    ax.set_ylabel("bytes per second")
    style.log_axis(ax.yaxis, style.si)


def _marks(ax: Axes, x: Sequence[float], y: Sequence[float], rows: list[Row], order: list[int]) -> None:
    """Marks of one number type and mode; `order` holds the numbers of positions of all that are drawn."""
    dtype, mode = rows[0]["dtype"], rows[0]["mode"]
    area = [22 + 26 * order.index(math.prod(r["size"])) for r in rows]
    index, marker = _KINDS[dtype, mode]
    colour = style.series_colour(index)
    ax.plot(x, y, color=colour, linewidth=0.8, alpha=0.6)
    ax.scatter(
        x, y, s=area, marker=marker, zorder=3, linewidth=1.3, edgecolor=colour,
        facecolor=colour if mode == "compiled" else style.BACKGROUND, label=f"{dtype}, {mode}",
    )


def _note(rows: list[Row], id: str) -> str:
    """What was recorded where, what failed, and where Python is slower than the GPU."""
    parts = [] if any(r["kind"] == "cuda" for r in rows) else [f"No GPU measurement of {id!r} is recorded."]
    for kind in ("cuda", "cpu"):
        mine = [r for r in rows if r["kind"] == kind]
        for r in mine[:1]:
            version, batch = r["torch"].partition("+")[0], r["shapes"][0][0]
            parts.append(f"Recorded {r['date'][:10]}: {r['device']}, torch {version}, batches of {batch}.")
        parts += _failures(mine)
    return " ".join([*parts, *_waiting(rows)])


def _failures(rows: list[Row]) -> list[str]:
    """"Out of memory at 112×112 in float32 and in bfloat16, compiled." """
    found: dict[tuple[str, str], list[str]] = {}
    for form, r in itertools.product(_KINDS, _by_size([r for r in rows if r["error"]])):
        if (r["dtype"], r["mode"]) == form:
            said = r["dtype"] if r["mode"] == "eager" else f"{r['dtype']}, {r['mode']}"
            found.setdefault((why_not(r), style.times(r["size"])), []).append(said)
    return [f"{why[0].upper()}{why[1:]} at {size} in {' and in '.join(forms)}." for (why, size), forms in found.items()]


def _waiting(rows: list[Row]) -> list[str]:
    """Up to which size the GPU has run a call before Python has issued the next."""
    eager = [r for r in rows if r.get("host") and (r["dtype"], r["mode"]) == ("float32", "eager")]
    short = list(itertools.takewhile(lambda r: r["host"] > r["median"], _by_size(eager)))
    if not short:
        return []
    r = short[-1]
    return [f"These are the GPU's own times; in float32, eager, up to {style.times(r['size'])} Python needs longer to "
            f"issue a call ({style.si(r['host'], 's')}) than the GPU to run it ({style.si(r['median'], 's')})."]


def _lines(note: str) -> list[str]:
    return style.wrap(note, style.WIDTH - 0.3, style.SMALL_SIZE)


def _height(note: str) -> float:
    """Of a figure, in inches: its axes are as high whatever stands under them."""
    return 3.3 + 0.15 * len(_lines(note))


def _write(fig: MatplotlibFigure, note: str) -> None:
    """A note under the axes."""
    fig.supxlabel("\n".join(_lines(note)), x=0.02, ha="left", size=style.SMALL_SIZE, color=style.MUTED)


def _words_alone(text: str, title: str, alt: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    lines = style.wrap(text, style.WIDTH - 0.3, style.TEXT_SIZE)
    sheet = Sheet(title, alt, height=0.3 + 0.2 * len(lines), layout=None)
    with sheet as fig:
        fig.text(0.012, 0.12, "\n".join(lines), color=style.INK)
    return sheet.figure
