"""Pictures in rows: where each stands, to the pixel, and how finely it is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as MatplotlibFigure

from . import style
from .arrays import Floats
from .figures import DPI, Sheet

_MARGIN, _GAP, _BAR = 12, 18, 96  # pixels
_LINE, _UNDER = 25, 9  # a line of a label, and the space below the last
_TALLEST = 660
_DETAIL = 70_000  # picture elements drawn in one figure: photographs fill the notebook, not the eye


class PictureGrid:
    """A figure of pictures in rows, those of a row equally high, as large as the page allows.

    Args:
        shapes: (H, W) of each picture.
        labels: the line above each; blank where there is none.
        ncols: pictures in a row; `None` chooses.
        bar: whether a colour bar stands at the right.
        widest: width of one picture in inches at most.
    """

    def __init__(
        self, shapes: Sequence[tuple[float, ...]], labels: Sequence[str], ncols: int | None = None,
        *, bar: bool = False, widest: float = 4.2,
    ):
        if ncols is not None and (not isinstance(ncols, int) or ncols < 1):
            raise ValueError(f"ncols={ncols!r} must be a positive integer")
        self.ncols = min(len(shapes), ncols or _columns(len(shapes)))
        self._rows = [range(i, min(i + self.ncols, len(shapes))) for i in range(0, len(shapes), self.ncols)]
        ratios = [w / h for h, w in shapes]
        room = style.WIDTH * DPI - 2 * _MARGIN - (_BAR if bar else 0)
        fits = [(room - _GAP * (len(row) - 1)) / sum(ratios[i] for i in row) for row in self._rows]
        height = min(*fits, _TALLEST, widest * DPI / max(ratios))
        if len(set(shapes)) == 1 and shapes[0][0] <= height:
            whole = height // shapes[0][0] * shapes[0][0]  # each element a whole number of pixels
            height = whole if whole > 0.75 * height else height
        self.height = max(1, int(height))
        self.widths = [max(1, round(self.height * ratio)) for ratio in ratios]
        inches = [w / DPI for w in self.widths]
        self._labels = [style.wrap(label, w, style.TEXT_SIZE) for label, w in zip(labels, inches, strict=True)]
        lines = [max(len(self._labels[i]) if labels[i].strip() else 0 for i in row) for row in self._rows]
        self._above = [_LINE * n + _UNDER if n else 0 for n in lines]
        self._bar = bar
        wide = max(sum(self.widths[i] for i in row) + _GAP * (len(row) - 1) for row in self._rows)
        self._right = _MARGIN + wide
        self._tall = len(self._rows) * (self.height + _GAP) - _GAP + sum(self._above)
        self._factor = int(np.ceil(np.sqrt(max(1.0, sum(self.widths) * self.height / _DETAIL))))

    def sheet(self, title: str, alt: str) -> Sheet:
        """A sheet of the right size."""
        width = max(4.4 * DPI, self._right + _MARGIN + (_BAR if self._bar else 0))
        return Sheet(title, alt, width=width / DPI, height=(self._tall + _MARGIN) / DPI, layout=None)

    def axes(self, fig: MatplotlibFigure) -> list[Axes]:
        """One pair of axes a picture, without ticks or frame, its label above."""
        width, height = fig.get_size_inches() * DPI
        result, bottom = [], _MARGIN + self._tall
        for row, above in zip(self._rows, self._above, strict=True):
            bottom -= above + self.height
            left = _MARGIN
            for i in row:
                ax = fig.add_axes((left / width, bottom / height, self.widths[i] / width, self.height / height))
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
                ax.set_title("\n".join(self._labels[i]), pad=4, linespacing=1.15)
                result.append(ax)
                left += self.widths[i] + _GAP
            bottom -= _GAP
        return result

    def reduce(self, picture: Floats, i: int) -> Floats:
        """Picture `i` averaged down to the detail that is drawn of it; a coarse one is returned as it is."""
        return average(picture, self.detail(i))

    def detail(self, i: int) -> tuple[int, int]:
        """How many rows and columns of picture `i` are drawn at most."""
        return max(1, self.height // self._factor), max(1, self.widths[i] // self._factor)

    def colour_bar(self, fig: MatplotlibFigure, low: float, high: float, cmap: str) -> None:
        """A colour bar beside the pictures."""
        width, height = fig.get_size_inches() * DPI
        tall = self._tall - self._above[0]
        size = min(tall, 3 * DPI)
        box = ((self._right + _GAP) / width, (_MARGIN + (tall - size) / 2) / height, 16 / width, size / height)
        bar = fig.colorbar(ScalarMappable(Normalize(low, high), cmap), cax=fig.add_axes(box))
        bar.ax.spines["outline"].set_visible(False)
        bar.ax.locator_params(nbins=5)


def average(picture: Floats, size: Sequence[int]) -> Floats:
    """`(h, w)` or `(h, w, 3)` averaged down to `size`, along an axis only where it is longer than that."""
    height, width = (min(now, new) for now, new in zip(picture.shape, size, strict=False))
    if (height, width) == picture.shape[:2]:
        return picture
    planes = torch.from_numpy(np.atleast_3d(picture)).permute(2, 0, 1)[None]
    small = F.interpolate(planes, size=(height, width), mode="area")[0].permute(1, 2, 0).numpy()
    return small if picture.ndim == 3 else small[..., 0]


def upsample(heat: Floats, size: Sequence[int]) -> Floats:
    """`(h, w, …)` to `size` such that cell (i, j) covers exactly the pixels whose centres lie in it."""
    pairs = zip(size, heat.shape, strict=False)
    rows, cols = (np.floor((np.arange(big) + 0.5) * small / big).astype(int) for big, small in pairs)
    large: Floats = heat[np.ix_(rows, cols)]
    return large


def _columns(n: int) -> int:
    rows = 1 if n <= 4 else 2 if n <= 16 else -(-n // 8)
    return -(-n // rows)
