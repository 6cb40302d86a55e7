"""A sheet of handwritten digits, most of one kind, a few of another: which cells are the few?

Which digit is odd is decided by the other cells. Every digit is odd in as many sheets as it is common in, and an odd
three looks like any three: whoever judges a cell by itself is right in half of the cases, whatever they learn.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..toys.data import digits
from ..toys.train import answers
from . import framed_digit
from ._catalog import Task
from ._pieces import CELL, cell_layers, sheet

if TYPE_CHECKING:
    from ..viz import Figure

GRID = (5, 7)  # rows and columns of cells
ODD = 4  # odd cells on a sheet of 35
CHANNELS = 32  # of a cell's features


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
        return sheet(cells)[:, None], odd.view(batch, H, W)

    return draw


def held_out(n: int = 256, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`n` sheets and truths of the test part, the same at every call."""
    return sampler("test")(n, torch.Generator().manual_seed(seed))


def network(
    before: Callable[[], nn.Module] = nn.Identity,
    after: Callable[[], nn.Module] = nn.Identity,
    reader: Callable[[], nn.Module] = nn.Identity,
) -> nn.Sequential:
    """Two layers that see one cell at a time, a normalisation, and a 1 × 1 convolution that says odd or common.

    Args:
        before: makes what stands before the normalisation; this is the task's place for a module.
        after: makes what stands behind it.
        reader: makes what stands before the last convolution.
    """
    return nn.Sequential(*cell_layers(CHANNELS), before(), nn.BatchNorm2d(CHANNELS), after(), reader(),
                         nn.Conv2d(CHANNELS, 2, 1))


def loss(answers: Tensor, odd: Tensor) -> Tensor:
    """Cross-entropy of class scores `(n, 2, H, W)`; odd and common cells weigh the same in all."""
    rare = ODD / (GRID[0] * GRID[1])
    return F.cross_entropy(answers, odd, weight=answers.new_tensor([rare, 1 - rare]))


def score(model: nn.Module, sheets: Sequence[Tensor]) -> float:
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


def _picture() -> "Figure":
    from ..viz import images

    sheets, odd = held_out(4)
    where = odd[3].repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
    return images({"a sheet": 1 - sheets[3, 0], "the odd ones": 1 - sheets[3, 0] * where}, title="Which four are odd?",
                  alt="Left, five rows of seven handwritten digits, all of one kind but for four of another kind. "
                      "Right, the four alone.")


TASK = Task(
    id="odd_digits",
    question=__doc__.partition("\n")[0],
    chapters=("simam",),
    data=lambda: (sampler(), held_out()),
    layout="B C H W", channels=CHANNELS, size=GRID,
    build=network,
    options=dict(reduction=1),
    score=score,
    score_name="balanced accuracy",
    chance=0.5,
    training=dict(steps=100, batch=16, lr=1e-2, loss=loss),
    picture=_picture,
)
