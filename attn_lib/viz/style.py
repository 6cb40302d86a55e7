"""The book's house style: sizes, fonts, colours and colour maps, in one place.

Magnitudes use a perceptually uniform map, signed values a diverging one whose middle is exactly zero. Series
colours (Okabe and Ito) and family colours (Tol's "muted") can be told apart with any common colour vision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import matplotlib.style
import numpy as np
from matplotlib.axis import Axis
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .arrays import Floats

WIDTH = 7.0  # inches: a figure as wide as a page's column of text
CSS_PER_INCH = 100  # a full-width figure is shown 700 CSS pixels wide
BACKGROUND = "#ffffff"  # opaque, so that a figure also reads on a dark page
INK = "#1f2430"
MUTED = "#667085"
RULE = "#d5dae3"
SOFT = "#f2f4f8"
ACCENT = "#d55e00"

SEQUENTIAL = "viridis"
HEAT = "magma"
DIVERGING = "RdBu_r"

SERIES_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d", "#8c6d1f")
SERIES_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")

FAMILY_COLOURS = {  # the catalog's order of families
    "channel": "#332288",
    "spatial": "#117733",
    "channel_spatial": "#44aa99",
    "branch": "#999933",
    "temporal": "#cc6677",
    "self_attention": "#882255",
    "mlp": "#aa4499",
    "conv": "#3b7fb6",
    "fusion": "#b8860b",
}

FONT = "DejaVu Sans"
TITLE_SIZE = 12
TEXT_SIZE = 10
SMALL_SIZE = 9  # nothing smaller is ever drawn

_RC = {
    "font.family": FONT,
    "font.size": TEXT_SIZE,
    "mathtext.fontset": "dejavusans",
    "text.color": INK,
    "figure.facecolor": BACKGROUND,
    "figure.titlesize": TITLE_SIZE,
    "axes.facecolor": BACKGROUND,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": TEXT_SIZE,
    "axes.titlesize": TEXT_SIZE,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": SMALL_SIZE,
    "ytick.labelsize": SMALL_SIZE,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.minor.size": 2,
    "ytick.minor.size": 2,
    "legend.frameon": False,
    "legend.fontsize": SMALL_SIZE,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "image.interpolation": "nearest",
    "savefig.facecolor": BACKGROUND,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the book's style, whatever style the reader has set; theirs is back afterwards."""
    with matplotlib.style.context(_RC, after_reset=True):
        yield


def series_colour(index: int) -> str:
    """Colour of the `index`-th series of a chart."""
    return SERIES_COLOURS[index % len(SERIES_COLOURS)]


def series_marker(index: int) -> str:
    """Marker of the `index`-th series, so that no chart speaks by colour alone."""
    return SERIES_MARKERS[index % len(SERIES_MARKERS)]


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of one line of text in inches; `size` in points. By its outlines: a renderer's hints vary by version."""
    font = FontProperties(family=FONT, size=size, weight=weight)
    width: float = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
    return width / 72


def wrap(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """`text` in lines of at most `width` inches, broken at spaces; at least one line."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size, weight) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def log_axis(axis: Axis, say: Callable[[float], str]) -> None:
    """Ticks of a logarithmic axis once its limits are set: 1, 2, 5, 10 on a short one, decades on a long one."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    steps = (1, 2, 5) if decades < 2 else (1,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))


def si(value: float, unit: str = "") -> str:
    """A number with three figures and a prefix: 2.5e9 as "2.5 G"."""
    exponent = int(np.clip(np.floor(np.log10(abs(value) * 1.0005) / 3), -4, 5)) if value else 0
    prefix = ("p", "n", "µ", "m", "", "k", "M", "G", "T", "P")[exponent + 4]
    return f"{value / 1000.0**exponent:.3g} {prefix}{unit}".rstrip()


def times(shape: Iterable[int]) -> str:
    """A shape or a size: (64, 56, 56) as "64×56×56"."""
    return "×".join(map(str, shape))


def colour_scale(arrays: list[Floats], signed: bool | None = None) -> tuple[float, float, str]:
    """The limits and the name of a colour map that several arrays share.

    Args:
        arrays: the values to be drawn; NaN and infinities are left out of account.
        signed: diverging map with limits `(-m, m)`; `None` decides by whether a value is negative.

    Returns:
        `(vmin, vmax, colour map name)`. Unsigned values start at 0 unless they are negative.
    """
    finite = np.concatenate([a[np.isfinite(a)].ravel() for a in arrays])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if signed is None:
        signed = low < 0
    if signed:
        m = max(abs(low), abs(high)) or 1.0
        return -m, m, DIVERGING
    low = min(low, 0.0)
    return low, high if high > low else low + 1.0, SEQUENTIAL
