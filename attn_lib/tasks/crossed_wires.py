"""Read a digit from a scanner whose wires were soldered in the wrong order.

The scanner is a strip of 11 rows and 8 columns; a handwritten digit of 8 × 8 pixels lies on it at one of four heights.
Each row and each column has a wire of its own, and the wires were crossed once and for all: every picture comes with
its rows in the same wrong order, and its columns too. Nothing is lost, and one permutation would put it right. But
neighbours in the picture are no longer neighbours on the strip, and what is moved along the strip does not move in
the picture. Handwriting of the test part does not occur in the training part.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..toys.data import digits

HEIGHT, WIDTH = 11, 8  # of the strip; a digit is as wide as the strip
PLACES = HEIGHT - WIDTH + 1
ROWS = (3, 8, 2, 4, 9, 1, 6, 10, 5, 7, 0)  # row h of a picture shows row ROWS[h] of the strip
COLUMNS = (5, 3, 1, 6, 4, 0, 7, 2)  # no two neighbours have stayed neighbours


def sampler(part: str = "train", crossed: bool = True) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """A function that draws fresh pictures, as `toys.fit` wants it.

    Args:
        part: `"train"` or `"test"`: disjoint handwriting.
        crossed: whether the wires are crossed.

    Returns:
        `draw(batch, generator) -> (pictures (batch, 1, 11, 8), labels (batch,))`.

    Raises:
        ValueError: if there is no such part.
    """
    ink, labels = digits(part)

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(ink), (batch,), generator=generator)
        strip = place(ink[chosen], torch.randint(PLACES, (batch,), generator=generator))
        return cross(strip) if crossed else strip, labels[chosen]

    return draw


def held_out(n: int = 1024, seed: int = 0, crossed: bool = True) -> tuple[Tensor, Tensor]:
    """`n` pictures and labels of the test part, the same at every call."""
    return sampler("test", crossed)(n, torch.Generator().manual_seed(seed))


def place(ink: Tensor, top: Tensor) -> Tensor:
    """Digits `(B, 1, 8, 8)` on empty strips `(B, 1, 11, 8)`, the first row of each in row `top`, `(B,)`."""
    rows = top[:, None, None, None] + torch.arange(WIDTH)[:, None]
    return ink.new_zeros(len(ink), 1, HEIGHT, WIDTH).scatter(2, rows.expand_as(ink), ink)


def cross(strip: Tensor) -> Tensor:
    """What the scanner delivers: `(..., 11, 8)` with its rows in the order `ROWS`, its columns in `COLUMNS`."""
    return strip[..., ROWS, :][..., COLUMNS]
