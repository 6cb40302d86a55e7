"""What a drawing is made of: boxes, discs, lines and words, in CSS pixels from the top left."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .. import style

NUMBER, NAME, NOTE = 13, 14, 12  # sizes of text, CSS pixels; nothing smaller is drawn but an index
INDEX, DROP = 0.8, 0.22  # of an index: its size and how far it stands below, of the size of its line

Tone = str | int  # "ink", "muted", or the number of a series colour
Objects = NDArray[np.object_]  # rectangles or texts, as numbers stand in a tensor


@dataclass(frozen=True)
class Rect:
    """A part of the plane: left, top, width, height."""

    x: float
    y: float
    w: float
    h: float

    @property
    def right(self) -> float:
        return self.x + self.w

    @property
    def foot(self) -> float:
        return self.y + self.h

    @property
    def middle(self) -> tuple[float, float]:
        return self.x + self.w / 2, self.y + self.h / 2

    def moved(self, dx: float, dy: float) -> Rect:
        return Rect(self.x + dx, self.y + dy, self.w, self.h)

    @classmethod
    def around(cls, rects: Iterable[Rect]) -> Rect:
        """The smallest one that holds them all."""
        rects = list(rects)
        x, y = min(r.x for r in rects), min(r.y for r in rects)
        return cls(x, y, max(r.right for r in rects) - x, max(r.foot for r in rects) - y)


@dataclass(frozen=True)
class Box:
    """A cell: its border, and a tint of a series colour."""

    rect: Rect
    colour: int | None = None
    strength: float = 0.0

    def moved(self, dx: float, dy: float) -> Box:
        return replace(self, rect=self.rect.moved(dx, dy))


@dataclass(frozen=True)
class Outline:
    """A frame around cells that belong together; `dashed` for a second kind of togetherness."""

    rect: Rect
    colour: int
    dashed: bool = False

    def moved(self, dx: float, dy: float) -> Outline:
        return replace(self, rect=self.rect.moved(dx, dy))


@dataclass(frozen=True)
class Disc:
    """A node, or a place between cells."""

    x: float
    y: float
    radius: float
    colour: int | None = None
    strength: float = 0.0

    def moved(self, dx: float, dy: float) -> Disc:
        return replace(self, x=self.x + dx, y=self.y + dy)


@dataclass(frozen=True)
class Line:
    """A line through points, with rounded corners, and a head at its end if `arrow`."""

    points: tuple[tuple[float, float], ...]
    tone: Tone = "muted"
    arrow: bool = False
    dashed: bool = False

    def moved(self, dx: float, dy: float) -> Line:
        return replace(self, points=tuple((x + dx, y + dy) for x, y in self.points))


@dataclass(frozen=True)
class Words:
    """One line of text; (x, y) is the start, middle or end of its base line. `halo` clears the ground behind it."""

    x: float
    y: float
    text: str
    size: int = NUMBER
    anchor: str = "middle"
    tone: Tone = "ink"
    bold: bool = False
    halo: bool = False

    def moved(self, dx: float, dy: float) -> Words:
        return replace(self, x=self.x + dx, y=self.y + dy)


Shape = Box | Outline | Disc | Line | Words


@dataclass
class Picture:
    """An item drawn with its top left at (0, 0).

    Attributes:
        shapes: what to draw, from back to front.
        width, height: the room it takes, name included.
        bodies: name → the part that arrows leave and reach.
        cells: name → an array of `Rect`, one a number.
        spoken: the same in words, a line each.
    """

    shapes: list[Shape]
    width: float
    height: float
    bodies: dict[str, Rect]
    cells: dict[str, Objects]
    spoken: list[str] = field(default_factory=list)


def pieces(text: str) -> list[tuple[str, bool]]:
    """A line of text in parts, and whether each is an index: "W_H x" is W, H below, and x."""
    parts = re.split(r"(?<=[^\W\d_])_(\w+)", text)
    return [(part, bool(i % 2)) for i, part in enumerate(parts) if part]


def wide(text: str, size: float, bold: bool = False) -> float:
    """Width of a line of text in CSS pixels, in the widest of the fonts that it may be shown in."""
    return sum(_wide(part, size * INDEX if index else size, bold) for part, index in pieces(text))


def _wide(text: str, size: float, bold: bool) -> float:
    return style.text_width(text, size * 72 / style.CSS_PER_INCH, "bold" if bold else "normal") * style.CSS_PER_INCH


def base(middle: float, size: int) -> float:
    """The base line of text whose capitals and digits are centred at `middle`."""
    return middle + 0.36 * size
