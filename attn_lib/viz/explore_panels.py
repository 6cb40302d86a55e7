"""What an explorer's panel holds: a heat map or sampling points for every cell of a query grid.

A panel checks its data, describes a cell in words, packs itself for explore.js, and paints itself for viewers
without scripts. explore.js paints the same picture from the packed data.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import matplotlib
import numpy as np
from PIL import ImageDraw

from . import style
from .arrays import finite, to_array
from .panels import upsample

Place = Callable[[np.ndarray], list[tuple[float, float]]]


class Panel(Protocol):
    """A panel named ``name``; ``cells`` is its query grid (Hq, Wq)."""

    name: str
    cells: tuple[int, int]

    def describe(self, cell: tuple[int, int]) -> str:
        """What stands in the line of text below the picture."""

    def pack(self, size: tuple[int, int]) -> dict[str, Any]:
        """Data for explore.js, for a photograph shown with ``size`` = (height, width) pixels."""

    def margin(self, size: tuple[int, int]) -> int:
        """Pixels around that photograph which the marks need."""

    def ground(self, photo: np.ndarray, cell: tuple[int, int], overlay: float) -> np.ndarray:
        """The photograph, (H, W, 3) in [0, 1], as it lies under the marks."""

    def dots(self, draw: ImageDraw.ImageDraw, cell: tuple[int, int], place: Place, unit: float) -> None:
        """Draw marks; ``place`` takes (..., 2) fractions of the photograph to the drawing; ``unit`` is 1/256 of it."""


class Heat:
    """Attention rows (Hq, Wq, Hk, Wk)."""

    def __init__(self, name: str, A: Any, label: str):
        self.name = name
        self.A = _magnitudes(A, label, "(Hq, Wq, Hk, Wk)")
        self.cells = self.A.shape[:2]

    def describe(self, cell: tuple[int, int]) -> str:
        row = self.A[cell]
        total = row.sum()
        if total == 0:
            return "all weights are 0"
        p = row[row > 0] / total
        r, c = np.unravel_index(row.argmax(), row.shape)
        text = f"largest weight {number(row.max())} at row {r}, col {c}"
        if abs(total - 1) > 0.005:
            text += f" · sum {number(total)}"
        return text + f" · effective cells {number(np.exp(-(p * np.log(p)).sum()))} of {row.size}"

    def pack(self, size: tuple[int, int]) -> dict[str, Any]:
        rows = self.A.reshape(self.cells[0] * self.cells[1], -1)
        top = rows.max(1, keepdims=True)
        levels = 4 * np.rint(63 * rows / np.where(top > 0, top, 1)).astype(np.uint8)  # 64 shades: the eye sees no more
        levels[np.arange(len(rows)), rows.argmax(1)] = np.where(top[:, 0] > 0, 255, 0)  # one cell is the largest
        return {"heat": pack(levels), "shape": self.A.shape[2:]}

    def margin(self, size: tuple[int, int]) -> int:
        return 0

    def ground(self, photo: np.ndarray, cell: tuple[int, int], overlay: float) -> np.ndarray:
        row = upsample(self.A[cell], photo.shape[:2])
        row = row / (row.max() or 1.0)
        grey = (photo @ (0.299, 0.587, 0.114))[..., None]
        alpha = overlay * (0.25 + 0.6 * row)[..., None]
        return (photo + overlay * (grey - photo)) * (1 - alpha) + matplotlib.colormaps[style.HEAT](row)[..., :3] * alpha

    def dots(self, draw: ImageDraw.ImageDraw, cell: tuple[int, int], place: Place, unit: float) -> None:
        """A heat map has no marks of its own."""


class Points:
    """Sampling points (Hq, Wq, K, 2) in pixels of a photograph of ``size`` = (height, width)."""

    def __init__(self, name: str, points: Any, weights: Any, reference: Any, size: tuple[int, int], labels: list[str]):
        self.name, self.size = name, size
        self.points = _places(points, labels[0])
        self.cells = self.points.shape[:2]
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

    def pack(self, size: tuple[int, int]) -> dict[str, Any]:
        def places(p: np.ndarray) -> str:  # 64ths of a pixel of the photograph as shown
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

    def ground(self, photo: np.ndarray, cell: tuple[int, int], overlay: float) -> np.ndarray:
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

    def _fractions(self, places: np.ndarray) -> np.ndarray:
        """(row, col) as fractions of the photograph; pixel 0 has its centre at half a pixel."""
        return (places + 0.5) / self.size


def number(x: float) -> str:
    """Two significant digits without trailing zeros or a padded exponent."""
    return f"{x:.2g}".replace("e-0", "e-") if x < 9.95 else f"{x:.0f}"


def pack(array: np.ndarray) -> str:
    """The array's bytes, deflated, in base64: what ``unpack`` in explore.js reads."""
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode("ascii")


def _disc(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, **options: Any) -> None:
    x, y = centre
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], **options)


def _magnitudes(value: Any, label: str, axes: str) -> np.ndarray:
    array = _finite(value, label, axes)
    if array.min() < 0:
        raise ValueError(f"{label} has the negative value {array.min():.3g}: an explorer shows weights of at least 0")
    return array


def _places(value: Any, label: str) -> np.ndarray:
    array = _finite(value, label, "(Hq, Wq, K, 2)")
    if array.shape[-1] != 2:
        raise ValueError(f"{label} has shape {array.shape}: its last dimension must be 2, (row, col)")
    return array


def _finite(value: Any, label: str, axes: str) -> np.ndarray:
    array = to_array(value, label)
    if array.ndim != axes.count(",") + 1:
        raise ValueError(f"{label} has shape {array.shape}: it must be {axes}")
    return finite(array, label)


def _same_shape(array: np.ndarray, shape: tuple[int, ...], label: str, other: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{label} has shape {array.shape}: it must be {shape}, to go with {other}")
