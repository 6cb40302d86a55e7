"""How a cost grows: measured points, the power law fitted to them, and the theory beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import NullLocator

from ..measure import fit_exponent
from . import style
from .arrays import Numbers, called, finite, panels, to_array
from .figures import Figure, Sheet


def scaling(
    x: Sequence[float], series: Mapping[str, Numbers], *, title: str, alt: str, xlabel: str, ylabel: str,
    theory: Mapping[str, float] | None = None,
) -> Figure:
    """Measurements on logarithmic axes with the exponent fitted to them beside the one theory gives.

    Args:
        x: `(n,)`, positive sizes.
        series: label → `(n,)`, positive measurements.
        title: the question the figure answers.
        alt: alternative text.
        xlabel: what `x` is.
        ylabel: what is measured.
        theory: label → exponent.

    Raises:
        ValueError: fewer than two sizes, a value that is not positive and finite, lengths that differ, a theory for a
            label that is not in `series`, an empty title or alt.
    """
    sizes = finite(to_array(x, "x", 1), "x")
    measured = {k: to_array(v, called("series", k), 1) for k, v in panels(dict(series)).items()}
    theory = dict(theory or {})
    if len(sizes) < 2 or sizes.min() <= 0 or sizes.min() == sizes.max():
        raise ValueError(f"x={sizes.tolist()} must be at least two different positive sizes")
    for name, y in measured.items():
        which = called("series", name)
        if len(y) != len(sizes):
            raise ValueError(f"{which} has {len(y)} entries for {len(sizes)} sizes")
        if finite(y, which).min() <= 0:
            raise ValueError(f"{which} has the value {y.min():g}: a power law needs positive ones")
    if unknown := set(theory) - set(measured):
        raise ValueError(f"theory names {sorted(unknown)}: it must name series of {list(measured)}")
    sheet = Sheet(title, alt, height=3.4)
    with sheet as fig:
        ax = fig.subplots()
        ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
        for k, (name, y) in enumerate(measured.items()):
            p = fit_exponent(sizes, y)
            a = np.exp(np.mean(np.log(y) - p * np.log(sizes)))  # the law is y = a · x^p
            label = f"{name}: fit {p:.2f}" + (f", theory {theory[name]:.3g}" if name in theory else "")
            colour = style.series_colour(k)
            ends = np.array([sizes.min(), sizes.max()])
            ax.plot(ends, a * ends**p, color=colour, linewidth=1.4)
            ax.plot(sizes, y, style.series_marker(k), color=colour, markersize=6, label=label)
        ax.set_xticks(sizes, [f"{s:g}" if s < 100_000 else style.si(s) for s in sizes])
        ax.xaxis.set_minor_locator(NullLocator())
        style.log_axis(ax.yaxis, style.si)
        ax.grid(True)
        ax.legend()
    return sheet.figure
