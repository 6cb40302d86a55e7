"""Charts: gate bars, attention matrices, training curves and comparisons of models."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from . import style
from .arrays import Floats, Numbers, Panels, called, panels, to_array
from .figures import Figure, Sheet


def bars(
    values: Numbers | Mapping[Any, Any], *, title: str, alt: str, labels: Sequence[str] | None = None,
    highlight: int | Iterable[int] | None = None, xlabel: str | None = None, ylabel: str | None = None,
) -> Figure:
    """Bars, one an entry: gates, weights, means of channels.

    Args:
        values: `(n,)`; or a dict name → `(n,)`, whose bars stand in groups; or a dict panel → either of these,
            drawn one below the other on one scale: give a single series a name, panel → {name: `(n,)`}.
        title: the question the figure answers.
        alt: alternative text.
        labels: one name an entry; their numbers otherwise.
        highlight: the entry or entries drawn in another colour, or on another ground where bars stand in groups.
        xlabel: what the entries are.
        ylabel: what the height is.

    Raises:
        ValueError: lengths that differ, a highlight out of range, an empty title or alt.
    """
    nested = isinstance(values, Mapping) and any(isinstance(v, Mapping) for v in values.values())
    drawn = {k: _series(v) for k, v in panels(values).items()} if nested else {"": _series(values)}
    everything = [(name, v) for series in drawn.values() for name, v in series.items()]
    n = len(everything[0][1])
    for name, v in everything:
        if len(v) != n:
            which = called("values", name)
            raise ValueError(f"{which} has {len(v)} entries, the first series has {n}: they must agree")
    if labels is not None and len(labels) != n:
        raise ValueError(f"labels has {len(labels)} entries for {n} bars")
    chosen = _indices(highlight)
    if any(not 0 <= i < n for i in chosen):
        raise ValueError(f"highlight={highlight!r} must be between 0 and {n - 1}")
    sheet = Sheet(title, alt, height=2.4 if len(drawn) == 1 else 0.8 + 1.2 * len(drawn))
    with sheet as fig:
        axes = np.atleast_1d(fig.subplots(len(drawn), sharex=True, sharey=True))
        for ax, (panel, series) in zip(axes, drawn.items(), strict=True):
            _draw_bars(ax, series, chosen, titled=nested)
            ax.set_title(panel)
            ax.set_ylabel(ylabel or "")
        if min(v.min() for _, v in everything) < 0:
            for ax in axes:
                ax.axhline(0, color=style.MUTED, linewidth=0.8)
        ax.set_xlim(-0.6, n - 0.4)
        if labels is not None:
            ax.set_xticks(range(n), labels, **_tilt(labels))
        elif n <= 24:
            ax.set_xticks(range(n))
        ax.set_xlabel(xlabel or "")
    return sheet.figure


def _series(values: Any) -> dict[str, Floats]:
    return {k: to_array(v, called("values", k), 1) for k, v in panels(values).items()}


def _draw_bars(ax: Axes, series: Mapping[str, Floats], chosen: set[int], titled: bool) -> None:
    width = 0.8 / len(series)
    for k, (name, v) in enumerate(series.items()):
        where = np.arange(len(v)) + (k - (len(series) - 1) / 2) * width
        plain = style.series_colour(k)
        marked = style.ACCENT if len(series) == 1 else plain
        ax.bar(where, v, width=width, color=[marked if i in chosen else plain for i in range(len(v))], label=name)
    if len(series) > 1:
        for i in chosen:
            ax.axvspan(i - 0.5, i + 0.5, color=style.SOFT, zorder=0)
        side = 1 if titled else 0  # beside the panel's title, not over it
        ax.legend(ncols=len(series), loc=("lower left", "lower right")[side], bbox_to_anchor=(side, 1),
                  borderaxespad=0.2)
    ax.tick_params(axis="x", length=0)
    ax.yaxis.grid(True)


def matrix(
    A: Panels, *, title: str, alt: str, xlabel: str | None = None, ylabel: str | None = None,
    values: bool = False,
) -> Figure:
    """A matrix as a picture, row 0 on top: an attention matrix has its queries as rows, its keys as columns.

    Args:
        A: `(rows, columns)`; or a dict name → matrix, drawn as panels on one colour scale.
        title: the question the figure answers.
        alt: alternative text.
        xlabel: what the columns are.
        ylabel: what the rows are.
        values: also write the numbers into the cells (at most 12 columns).

    Raises:
        ValueError: not two-dimensional, too many columns for numbers, an empty title or alt.
    """
    named = {k: to_array(v, called("A", k), 2) for k, v in panels(A).items()}
    if values and max(m.shape[1] for m in named.values()) > 12:
        raise ValueError("values=True needs at most 12 columns: the numbers would not be legible")
    low, high, cmap = style.colour_scale(list(named.values()))
    ratios = [m.shape[1] / m.shape[0] for m in named.values()]  # panels of one height
    tall = min((style.WIDTH - 1.2 - 0.3 * len(named)) / sum(ratios), 3.6, 3.6 / max(ratios))
    width = min(style.WIDTH, max(4.4, tall * sum(ratios) + 0.3 * len(named) + 1.2))
    height = max(1.2, tall) + (1.0 if len(named) > 1 else 0.75)
    # Compressed, for pictures of a fixed aspect: the plain layout would push labels over the rim.
    sheet = Sheet(title, alt, width=width, height=height, layout="compressed")
    with sheet as fig:
        axes = np.atleast_1d(fig.subplots(1, len(named), width_ratios=ratios))
        for ax, (name, m) in zip(axes, named.items(), strict=True):
            picture = ax.imshow(m, cmap=cmap, vmin=low, vmax=high)
            ax.spines[:].set_visible(False)
            ax.set_title(name)
            ax.set_xlabel(xlabel or "")
            if ax is axes[0]:
                ax.set_ylabel(ylabel or "")
            ax.locator_params(integer=True, nbins=8, min_n_ticks=1)  # a single column has a single tick
            if values:
                _write_values(ax, m, picture)
        bar = fig.colorbar(picture, ax=list(axes), shrink=0.9, aspect=22, pad=0.02)
        bar.ax.spines["outline"].set_visible(False)
    return sheet.figure


def _write_values(ax: Axes, m: Floats, picture: AxesImage) -> None:
    whole = np.array_equal(m, np.round(m))
    digits = 0 if whole or np.abs(m).max() >= 100 else 1 if np.abs(m).max() >= 10 else 2
    ground = picture.to_rgba(m)
    for (i, j), value in np.ndenumerate(m):
        r, g, b, _ = ground[i, j]
        colour = "white" if 0.299 * r + 0.587 * g + 0.114 * b < 0.55 else style.INK
        text = f"{value + 0.0:.{digits}f}".replace("-", "−")
        ax.text(j, i, text, ha="center", va="center", size=style.SMALL_SIZE, color=colour)


def curves(
    series: Mapping[str, Numbers], *, title: str, alt: str, xlabel: str, ylabel: str,
    x: Sequence[float] | None = None, log: bool = False,
) -> Figure:
    """Training curves: the mean over seeds as a line, the range over seeds as a band.

    Args:
        series: label → `(seeds, steps)`, or `(steps,)` for a single run; a lone label that is `ylabel` needs no
            legend.
        title: the question the figure answers.
        alt: alternative text.
        xlabel: what the steps are.
        ylabel: what the values are.
        x: the position of each step; 1, 2, … otherwise.
        log: logarithmic vertical axis.

    Raises:
        ValueError: wrong shapes, an empty title or alt.
    """
    runs = {k: np.atleast_2d(to_array(v, called("series", k), (1, 2))) for k, v in panels(dict(series)).items()}
    sheet = Sheet(title, alt, height=2.8)
    with sheet as fig:
        ax = fig.subplots()
        for k, (name, y) in enumerate(runs.items()):
            where = np.arange(1, y.shape[1] + 1) if x is None else to_array(x, "x", 1)
            if len(where) != y.shape[1]:
                raise ValueError(f"x has {len(where)} entries, {called('series', name)} has {y.shape[1]} steps")
            colour = style.series_colour(k)
            if len(y) > 1:
                ax.fill_between(where, y.min(0), y.max(0), color=colour, alpha=0.18, linewidth=0)
            ax.plot(where, y.mean(0), color=colour, label=name)
        if log:
            ax.set_yscale("log")
        ax.yaxis.grid(True)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.margins(x=0.01)
        if list(runs) != [ylabel]:
            ax.legend()
    return sheet.figure


def compare(
    series: Mapping[str, Numbers], *, title: str, alt: str, xlabel: str, reference: Mapping[str, float] | None = None,
) -> Figure:
    """Scores of several models over seeds: one row a model, one dot a seed, the mean as a bar with its value.

    Args:
        series: label → list of scores.
        title: the question the figure answers.
        alt: alternative text.
        xlabel: what the score is.
        reference: label → score, drawn as a dashed line through all rows: chance, or a known bound.

    Raises:
        ValueError: an empty list, an empty title or alt.
    """
    rows = {k: to_array(v, called("series", k), 1) for k, v in panels(dict(series)).items()}
    sheet = Sheet(title, alt, height=0.65 + 0.42 * len(rows))
    with sheet as fig:
        ax = fig.subplots()
        largest = max((abs(s) for scores in rows.values() for s in scores if np.isfinite(s)), default=0.0)
        digits = int(np.clip(2 - np.floor(np.log10(largest or 1.0)), 0, 5))  # three figures of the largest
        for k, scores in enumerate(rows.values()):
            colour = style.series_colour(k)
            ax.scatter(scores, np.full(len(scores), k), s=34, color=colour, alpha=0.55, linewidth=0)
            ax.plot([scores.mean()] * 2, [k - 0.3, k + 0.3], color=colour, linewidth=2.4)
            ax.annotate(
                f"{scores.mean():.{digits}f}", (1.0, k), xycoords=("axes fraction", "data"), xytext=(6, 0),
                textcoords="offset points", va="center", color=style.INK,
            )
        ax.annotate("mean", (1.0, -0.5), xycoords=("axes fraction", "data"), xytext=(6, 4),
                    textcoords="offset points", color=style.MUTED, size=style.SMALL_SIZE)
        ax.set_yticks(range(len(rows)), list(rows))
        ax.tick_params(axis="y", length=0, labelsize=style.TEXT_SIZE)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        for name, score in (reference or {}).items():
            ax.axvline(score, color=style.MUTED, linewidth=1, linestyle="--", zorder=0)
            ax.annotate(name, (score, -0.5), xytext=(0, 4), textcoords="offset points", ha="center",
                        color=style.MUTED, size=style.SMALL_SIZE)
        ax.xaxis.grid(True)
        ax.set_xlabel(xlabel)
    return sheet.figure


def _indices(highlight: Any) -> set[int]:
    """One integer of any type, or several."""
    if highlight is None:
        return set()
    try:
        return {operator.index(highlight)}
    except TypeError:
        return {operator.index(i) for i in highlight}


def _tilt(labels: Sequence[str]) -> dict[str, Any]:
    crowded = sum(len(str(label)) + 2 for label in labels) > 90
    return {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
