"""A photograph with panels that share a query grid, painted for viewers without scripts and for live widgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .. import style
from ..arrays import Floats, finite, to_image
from ..figures import uri
from .page import jpeg, png
from .panels import Panel

LARGEST = 256  # pixels of the longer side of a photograph in an explorer
WIDEST = 512  # pixels of all panels together in the picture for viewers without scripts
_ZOOM, _GAP = 2, 16  # panels are painted at twice their size, then reduced smoothly


@dataclass(frozen=True)
class Scene:
    """The panels of an explorer over one photograph.

    Attributes:
        photo: (H, W, 3) in [0, 1], as shown.
        panels: heat maps or sampling points; all have the same query grid.
        beside: further pictures of the photograph's size, by name.
        pad: pixels of margin that show points outside the photograph.
        mark: whether the query's cell is outlined.
        noun: what a cell of the grid is called.
        say: the text below the picture, where it is not the panels' own.
    """

    photo: Floats
    panels: Sequence[Panel]
    beside: Mapping[str, Floats]
    pad: int
    mark: bool
    noun: str
    say: Callable[[int, int], str] | None = None

    @property
    def cells(self) -> tuple[int, int]:
        """The query grid (Hq, Wq)."""
        return self.panels[0].cells

    def describe(self, cell: tuple[int, int]) -> str:
        """The text below the picture."""
        if self.say is not None:
            return self.say(*cell)
        head = f"{self.noun} row {cell[0]}, col {cell[1]}"
        if len(self.panels) == 1:
            return f"{head} · {self.panels[0].describe(cell)}"
        return "\n".join([head] + [f"{p.name}: {p.describe(cell)}" for p in self.panels])

    def paint(self, cell: tuple[int, int], overlay: float = 1.0) -> Image.Image:
        """All panels with their scales, two pixels for one of the photograph's: sharp on any screen."""
        tiles: list[tuple[str, Floats, Panel | None]] = [
            (p.name, p.ground(self.photo, cell, overlay), p) for p in self.panels
        ]
        tiles += [(name, picture, None) for name, picture in self.beside.items()]
        height, width = (_ZOOM * (n + 2 * self.pad) for n in self.photo.shape[:2])
        columns = columns_of(len(tiles))
        shrink = max(_ZOOM, (columns * (width + _GAP) - _GAP) / WIDEST)
        head = round(16 * shrink) if any(name for name, _, _ in tiles) else 0
        foot = round(16 * shrink) if any(p.key(cell) for p in self.panels) else 0
        deep = head + height + foot + _GAP
        rows = -(-len(tiles) // columns)
        paper = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * deep - _GAP), style.BACKGROUND)
        for i, (name, ground, panel) in enumerate(tiles):
            left, top = i % columns * (width + _GAP), i // columns * deep
            _write(paper, (left, top), name, 11 * shrink)
            paper.paste(self._tile(ground, panel, cell), (left, top + head))
            if panel is not None:
                _key(paper, (left, top + head + height), width, panel, cell, shrink)
        return paper

    def small(self, cell: tuple[int, int]) -> Image.Image:
        """The picture for viewers without scripts, at most `WIDEST` pixels wide."""
        picture = self.paint(cell)
        picture.thumbnail((min(picture.width // _ZOOM, WIDEST), picture.height), Image.Resampling.LANCZOS)
        return picture

    def _tile(self, ground: Floats, panel: Panel | None, cell: tuple[int, int]) -> Image.Image:
        size, corner = np.multiply(_ZOOM, self.photo.shape[:2]), _ZOOM * self.pad
        tile = Image.new("RGB", (size[1] + 2 * corner, size[0] + 2 * corner), style.RULE)
        tile.paste(_pixels(ground).resize((size[1], size[0]), _resample(self.photo)), (corner, corner))
        draw = ImageDraw.Draw(tile, "RGBA")
        if self.mark:
            top, left = (int(v) for v in np.rint(size * cell / self.cells) + corner)
            bottom, right = (int(v) for v in np.rint(size * np.add(cell, 1) / self.cells) + corner - 1)
            draw.rectangle([left - 2, top - 2, right + 2, bottom + 2], outline="black", width=6)
            draw.rectangle([left, top, right, bottom], outline="white", width=2)
        if panel is not None:
            panel.dots(draw, cell, lambda at: [(x, y) for y, x in at * size + corner], max(size) / 256)
        return tile


def columns_of(panels: int) -> int:
    """How many panels stand side by side where there is room: up to three, more in two rows. explorer.js agrees."""
    return panels if panels < 4 else -(-panels // 2)


def photograph(value: Any, name: str, size: tuple[int, int] | None = None) -> Floats:
    """A picture as (H, W, 3) in [0, 1], reduced to `LARGEST` or fitted to `size` = (height, width).

    Raises:
        ValueError: another shape, colours outside [0, 1], or values that are not finite.
    """
    picture = finite(to_image(value, name), name)
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    height, width = picture.shape[:2]
    shrink = min(1.0, LARGEST / max(height, width))
    target = size or (max(1, round(height * shrink)), max(1, round(width * shrink)))
    pixels = _pixels(picture)
    if target != (height, width):
        exact = _is_drawing(pixels) or target[0] > height
        pixels = pixels.resize(target[::-1], Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS)
    return np.asarray(pixels) / 255


def encode(picture: Floats) -> str:
    """A data address: JPEG for a photograph, PNG for a drawing or a picture of few pixels."""
    pixels = _pixels(picture)
    return uri(png(pixels) if is_coarse(picture) or _is_drawing(pixels) else jpeg(pixels, 85))


def is_coarse(picture: Floats) -> bool:
    """Whether the picture has so few pixels that they should be seen as squares."""
    return max(picture.shape) < 128


def _is_drawing(pixels: Image.Image) -> bool:
    """Whether the picture has few colours, as a label map has, and must not be blurred."""
    return pixels.getcolors(64) is not None


def _resample(picture: Floats) -> Image.Resampling:
    return Image.Resampling.NEAREST if is_coarse(picture) else Image.Resampling.LANCZOS


def _pixels(picture: Floats) -> Image.Image:
    return Image.fromarray(np.rint(255 * picture).astype(np.uint8))


def _key(paper: Image.Image, corner: tuple[int, int], width: int, panel: Panel, cell: tuple[int, int],
         shrink: float) -> None:
    """What the panel's colours or marks stand for, in a line below it."""
    left, top = corner
    size, ends = 10 * shrink, panel.key(cell)
    for text, anchor, x in zip(ends, "lr", (left, left + width), strict=False):
        _write(paper, (x, round(top + 2 * shrink)), text, size, anchor)
    if panel.strip is not None:
        room = [round(_font(round(size)).getlength(text) + 5 * shrink) for text in ends]
        strip = _pixels(panel.strip).resize((max(1, width - sum(room)), round(8 * shrink)))
        paper.paste(strip, (left + room[0], round(top + 5 * shrink)))


def _write(paper: Image.Image, place: tuple[int, int], text: str, size: float, anchor: str = "l") -> None:
    ImageDraw.Draw(paper).text(place, text, fill=style.INK, font=_font(round(size)), anchor=anchor + "a")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
