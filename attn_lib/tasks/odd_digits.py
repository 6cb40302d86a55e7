"""A sheet of handwritten digits, most of one kind, a few of another: which cells are the few?

Which digit is odd is decided by the other cells. Every digit is odd in as many sheets as it is common in, and an odd
three looks like any three: whoever judges a cell by itself is right in half of the cases, whatever they learn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..toys.data import digits
from ..toys.train import answers
from . import framed_digit

CELL = 10  # pixels: an 8 × 8 digit with a margin of one
GRID = (5, 7)  # rows and columns of cells
ODD = 4  # odd cells on a sheet of 35


def sampler(part: str = "train") -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """A function that draws fresh sheets, as `toys.fit` wants it.

    Args:
        part: `"train"` or `"test"`: disjoint handwriting.

    Returns:
        `draw(batch, generator) -> (sheets (batch, 1, 50, 70) in [0, 1], odd (batch, 5, 7), int64: 1 where odd)`.

    Raises:
        ValueError: if there is no such part.
    """
    images, first, count = _handwriting(part)
    H, W = GRID

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        common = torch.randint(10, (batch, 1), generator=generator)
        rare = (common + torch.randint(1, 10, (batch, 1), generator=generator)) % 10
        places = torch.rand(batch, H * W, generator=generator).topk(ODD).indices
        odd = torch.zeros(batch, H * W, dtype=torch.int64).scatter_(1, places, 1)
        kind = torch.where(odd.bool(), rare, common)
        which = first[kind] + (torch.rand(kind.shape, generator=generator) * count[kind]).long()
        cells = images[which].view(batch, H, W, CELL, CELL)
        return cells.transpose(2, 3).reshape(batch, 1, H * CELL, W * CELL), odd.view(batch, H, W)

    return draw


def held_out(n: int = 256, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`n` sheets and truths of the test part, the same at every call."""
    return sampler("test")(n, torch.Generator().manual_seed(seed))


def loss(answers: Tensor, odd: Tensor) -> Tensor:
    """Cross-entropy of class scores `(n, 2, H, W)`; odd and common cells weigh the same in all."""
    rare = ODD / (GRID[0] * GRID[1])
    return F.cross_entropy(answers, odd, weight=answers.new_tensor([rare, 1 - rare]))


def score(model: nn.Module, sheets: tuple[Tensor, Tensor]) -> float:
    """Balanced accuracy in [0, 1]: the mean of the hit rates on odd and on common cells; judging cells alone gets ½.

    The model is put into eval mode for it, and back.
    """
    return framed_digit.score(answers(model, sheets[0]), sheets[1])


@cache
def _handwriting(part: str) -> tuple[Tensor, Tensor, Tensor]:
    """Digits sorted by kind, `(n, 10, 10)`, where each of the ten kinds begins, and how many there are of it."""
    images, labels = digits(part)
    count = labels.bincount(minlength=10)
    return F.pad(images[labels.argsort(stable=True), 0], (1, 1, 1, 1)), count.cumsum(0) - count, count
