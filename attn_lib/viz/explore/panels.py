"""What an explorer's panel holds: a heat map or sampling points for every cell of a query grid.

A panel checks its data, describes a cell in words, packs itself for explorer.js, and paints itself for viewers
without scripts. explorer.js paints the same picture from the packed data.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from .. import style
from ..arrays import Floats, finite, grey, to_array
from ..picture_grid import upsample

if TYPE_CHECKING:
    from typing_extensions import Self

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Place = Callable[[Floats], list[tuple[float, float]]]


class Panel(Protocol):
    """A panel named `name`; `cells` is its query grid (Hq, Wq)."""

    name: str
    cells: tuple[int, int]

    @property
    def strip(self) -> Floats | None:
        """What its colours run through, (1, n, 3) in [0, 1] on a grey ground, or None where it has none."""

    def describe(self, cell: tuple[int, int]) -> str:
        """What stands in the line of text below the picture."""

    def key(self, cell: tuple[int, int]) -> tuple[str, ...]:
        """The numbers at the two ends of `strip`; without one, a single text that says what the marks mean, or none."""

    def pack(self, size: tuple[int, int]) -> dict[str, Any]:
        """Data for explorer.js, for a photograph shown with `size` = (height, width) pixels."""

    def margin(self, size: tuple[int, int]) -> int:
        """Pixels around that photograph which the marks need."""

    def ground(self, photo: Floats, cell: tuple[int, int], overlay: float) -> Floats:
        """The photograph, (H, W, 3) in [0, 1], as it lies under the marks."""

    def dots(self, draw: ImageDraw.ImageDraw, cell: tuple[int, int], place: Place, unit: float) -> None:
        """Draw marks; `place` takes (..., 2) fractions of the photograph to the drawing; `unit` is 1/256 of it."""


class Heat:
    """Attention rows (Hq, Wq, Hk, Wk); weights below 0 make it signed, with a diverging colour map.

    The colours of a row end at the row's own largest magnitude, or at that of all panels after `share`.
    """

    def __init__(self, name: str, A: Any, label: str):
        self.name = name
        self.A, self.signed = _sign(_finite(A, label, "(Hq, Wq, Hk, Wk)"))
        rows, columns, *_ = self.A.shape
        self.cells = rows, columns
        self.top = np.abs(self.A).max((2, 3))

    def share(self, panels: Sequence[Self]) -> None:
        """Take the colours of `panels`, this one among them."""
        self.signed = any(panel.signed for panel in panels)
        self.top = np.max([panel.top for panel in panels], 0)

    def describe(self, cell: tuple[int, int]) -> str:
        row = self.A[cell]
        if not row.any():
            return "all weights are 0"
        most = np.abs(row).max()
        largest = f"{number(row.max(), of=most)} at {_where(row.argmax(), row)}"
        if self.A.min() < 0:  # logits as a rule, whose sum says nothing
            return f"largest {largest} · smallest {number(row.min(), of=most)} at {_where(row.argmin(), row)}"
        text, total = f"largest weight {largest}", row.sum()
        p = row[row > 0] / total
        if abs(total - 1) > 0.005:
            text += f" · sum {number(total)}"
        return text + f" · effective cells {number(np.exp(-(p * np.log(p)).sum()))} of {row.size}"

    def key(self, cell: tuple[int, int]) -> tuple[str, ...]:
        top = self.top[cell]
        return (number(-top) if self.signed else "0", number(top))

    @property
    def strip(self) -> Floats:
        shade = np.linspace(-1 if self.signed else 0, 1, 128, dtype=np.float64)[None]
        return _under_heat(np.full((1, 128, 3), 0.5), shade, self.signed, 1.0)

    def pack(self, size: tuple[int, int]) -> dict[str, Any]:
        rows = self._shade(np.s_[:]).reshape(self.cells[0] * self.cells[1], -1)
        return {"heat": pack(_levels(rows, self.signed)), "shape": self.A.shape[2:], "signed": self.signed}

    def _shade(self, cell: Any) -> Floats:
        """Each weight's share of the number with the last colour."""
        top = self.top[cell]
        shade: Floats = self.A[cell] / np.where(top > 0, top, 1.0)[..., None, None]
        return shade

    def margin(self, size: tuple[int, int]) -> int:
        return 0

    def ground(self, photo: Floats, cell: tuple[int, int], overlay: float) -> Floats:
        return _under_heat(photo, self._shade(cell), self.signed, overlay)

    def dots(self, draw: ImageDraw.ImageDraw, cell: tuple[int, int], place: Place, unit: float) -> None:
        """A heat map has no marks of its own."""


class Map(Heat):
    """One map (H, W), the same whatever cell is chosen; the cell's own value is what is read."""

    def __init__(self, name: str, values: Any, label: str):
        self.name = name
        self.values, self.signed = _sign(_finite(values, label, "(H, W)"))
        rows, columns = self.values.shape
        self.cells = rows, columns
        # A map's own range: a gate between 0.6 and 0.7 has contrasts as well.
        self.low, self.high = self.values.min(), self.values.max()

    def share(self, panels: Sequence[Self]) -> None:
        self.signed = any(panel.signed for panel in panels)
        self.low, self.high = min(panel.low for panel in panels), max(panel.high for panel in panels)

    def describe(self, cell: tuple[int, int]) -> str:
        most = np.abs(self.values).max()
        value, low, high = (number(v, 3, most) for v in (self.values[cell], self.values.min(), self.values.max()))
        share = np.floor(100 * (self.values < self.values[cell]).mean())
        return f"{value} · the map runs from {low} to {high}; {share:.0f} % of it lies below"

    def key(self, cell: tuple[int, int]) -> tuple[str, ...]:
        most = max(-self.low, self.high)
        low, high = (-most, most) if self.signed else (self.low, self.high)
        return number(low, 3, 500 * most), number(high, 3, 500 * most)  # less than a 2000th of the scale is 0

    def pack(self, size: tuple[int, int]) -> dict[str, Any]:
        levels = _levels(self._shade(None).reshape(1, -1), self.signed)
        return {"heat": pack(levels), "shape": self.cells, "signed": self.signed, "still": True}

    def _shade(self, cell: Any) -> Floats:
        if self.signed:  # 0 is the middle
            return self.values / (max(-self.low, self.high) or 1.0)
        shade: Floats = (self.values - self.low) / (self.high - self.low or 1.0)
        return shade


class Points:
    """Sampling points (Hq, Wq, K, 2) in pixels of a photograph of `size` = (height, width)."""

    strip = None

    def __init__(self, name: str, points: Any, weights: Any, reference: Any, size: Sequence[int], labels: list[str]):
        self.name, self.size = name, size
        self.points = _places(points, labels[0])
        rows, columns, *_ = self.points.shape
        self.cells = rows, columns
        self.weights = self.reference = None
        if weights is not None:
            self.weights = _magnitudes(weights, labels[1], "(Hq, Wq, K)")
            _same_shape(self.weights, self.points.shape[:3], labels[1], labels[0])
        if reference is not None:
            self.reference = _places(reference, labels[2])
            _same_shape(self.reference, self.points.shape, labels[2], labels[0])
        self.top = 1.0 if self.weights is None else self.weights.max() or 1.0

    def describe(self, cell: tuple[int, int]) -> str:
        where = self.points[cell]
        text = f"{len(where)} points"
        if self.weights is not None:
            text += f" · weights {number(self.weights[cell].min())} to {number(self.weights[cell].max())}"
        if self.reference is not None:
            moved = np.linalg.norm(where - self.reference[cell], axis=-1)
            text += f" · moved {moved.mean():.1f} pixels on average, {moved.max():.1f} at most"
        outside = ((where < -0.5) | (where > np.subtract(self.size, 0.5))).any(-1).sum()
        return text + (f" · {outside} outside the image" if outside else "")

    def key(self, cell: tuple[int, int]) -> tuple[str, ...]:
        words = [] if self.weights is None else [f"largest disc: weight {number(self.top)}"]
        words += [] if self.reference is None else ["dark dots: unmoved"]
        return (" · ".join(words),) if words else ()

    def pack(self, size: tuple[int, int]) -> dict[str, Any]:
        def places(p: Floats) -> str:  # 64ths of a pixel of the photograph as shown
            return pack(np.rint((self._fractions(p) * size * 64).clip(-32767, 32767)).astype("<i2"))

        data: dict[str, Any] = {"points": places(self.points), "k": self.points.shape[2]}
        if self.weights is not None:
            data["weights"] = pack(np.rint(255 * self.weights / self.top).astype(np.uint8))
        if self.reference is not None:
            data["regular"] = places(self.reference)
        return data

    def margin(self, size: tuple[int, int]) -> int:
        at = self._fractions(self.points)
        return int(np.ceil(max(0.0, -at.min(), at.max() - 1) * max(size)))

    def ground(self, photo: Floats, cell: tuple[int, int], overlay: float) -> Floats:
        return photo

    def dots(self, draw: ImageDraw.ImageDraw, cell: tuple[int, int], place: Place, unit: float) -> None:
        where, line = place(self._fractions(self.points[cell])), max(1, round(unit))
        if self.reference is not None:
            for p, q in zip(where, place(self._fractions(self.reference[cell])), strict=True):
                draw.line([q, p], fill="white", width=line)
                _disc(draw, q, 2 * unit, fill=style.INK, outline="white", width=line)
        weights = np.ones(len(where)) if self.weights is None else self.weights[cell] / self.top
        for p, w in zip(where, weights, strict=True):
            alpha = f"{round(255 * (0.4 + 0.6 * w)):02x}"
            _disc(draw, p, 5 * unit * w**0.5, fill=style.ACCENT + alpha, outline="#ffffff" + alpha, width=line)

    def _fractions(self, places: Floats) -> Floats:
        """(row, col) as fractions of the photograph; pixel 0 has its centre at half a pixel."""
        return (places + 0.5) / self.size


def share_scale(panels: Sequence[Heat]) -> None:
    """Let a colour mean the same number in all of them."""
    for panel in panels:
        panel.share(panels)


def number(x: float, digits: int = 2, of: float = 0.0) -> str:
    """A number to read: so many significant digits, no trailing zeros, 20,000, −3, 2 × 10⁻⁷.

    Less than a millionth `of` the largest that it stands beside is 0: rounding leaves such values behind.
    """
    if abs(x) < 1e-6 * of:
        return "0"
    text = f"{x:,.0f}" if abs(x) >= 10**digits - 0.5 else f"{x + 0.0:.{digits}g}"
    text, _, power = text.partition("e")
    text = text.replace("-", "−")
    return f"{text} × 10{str(int(power)).translate(_RAISED)}".removeprefix("1 × ") if power else text


def pack(array: NDArray[Any]) -> str:
    """The array's bytes, deflated, in base64: what `unpack` in explorer.js reads."""
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode("ascii")


def _levels(shades: Floats, signed: bool) -> NDArray[np.uint8]:
    """Rows of shades as bytes in 64 steps, the eye sees no more; the largest of a row has its exact level.

    Signed ones, in [−1, 1], have 0 at 128. Otherwise exactly one cell of a row that reaches 1 is 255.
    """
    if signed:
        return (128 + 4 * np.rint(31 * shades)).astype(np.uint8)
    levels, rows = 4 * np.rint(63 * shades).astype(np.uint8), np.arange(len(shades))
    levels[rows, shades.argmax(1)] = np.rint(255 * shades.max(1))
    return levels


def _under_heat(photo: Floats, shade: Floats, signed: bool, overlay: float) -> Floats:
    """The photograph in grey under a heat map of `shade`, in [0, 1] or, signed, in [−1, 1]."""
    shade = upsample(shade, photo.shape[:2])
    colours = matplotlib.colormaps[style.DIVERGING if signed else style.HEAT](0.5 + shade / 2 if signed else shade)
    below = grey(photo)[..., None]
    alpha = overlay * (0.25 + 0.6 * np.abs(shade))[..., None]
    return (photo + overlay * (below - photo)) * (1 - alpha) + colours[..., :3] * alpha


def _where(index: int, row: Floats) -> str:
    r, c = np.unravel_index(index, row.shape)
    return f"row {r}, col {c}"


def _disc(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, **options: Any) -> None:
    x, y = centre
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], **options)


def _sign(array: Floats) -> tuple[Floats, bool]:
    """The array, and whether it has signs; values below 0 that rounding alone explains become 0."""
    signed = bool(array.min() < -1e-6 * np.abs(array).max())
    return array if signed else array.clip(0), signed


def _magnitudes(value: Any, label: str, axes: str) -> Floats:
    array = _finite(value, label, axes)
    if array.min() < 0:
        raise ValueError(f"{label} has the negative value {array.min():.3g}: an explorer shows weights of at least 0")
    return array


def _places(value: Any, label: str) -> Floats:
    array = _finite(value, label, "(Hq, Wq, K, 2)")
    if array.shape[-1] != 2:
        raise ValueError(f"{label} has shape {array.shape}: its last dimension must be 2, (row, col)")
    return array


def _finite(value: Any, label: str, axes: str) -> Floats:
    array = to_array(value, label)
    if array.ndim != axes.count(",") + 1:
        raise ValueError(f"{label} has shape {array.shape}: it must be {axes}")
    return finite(array, label)


def _same_shape(array: Floats, shape: tuple[int, ...], label: str, other: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{label} has shape {array.shape}: it must be {shape}, to go with {other}")
