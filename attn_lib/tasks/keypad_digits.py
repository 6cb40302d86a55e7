"""A sheet of handwritten digits, each of which points at another one: which digit does it point at?

Digits point as on a numeric keypad, 7 8 9 over 4 5 6 over 1 2 3: an 8 at the cell two rows above, a 6 at the cell two
columns to the right, a 1 at the one two down and two to the left, a 5 at itself. Every cell is asked for the digit
it points at. So what a cell holds decides *where* to look, always seen from the cell itself, and what stands there
decides the answer; neighbours next door are of no use. Cells that point off the sheet are not asked.

A five finds itself. For the others, whoever knows all digits of a sheet, but not which stands where, does best to
name the commonest.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..toys.data import digits
from ..toys.train import answers, fit, seeded
from ._catalog import Task
from ._pieces import CELL, cell_layers, share_right, sheet

if TYPE_CHECKING:
    from ..viz import Figure

GRID = (6, 8)  # rows and columns of cells
STEP = 2  # cells from a digit to the one it points at
KINDS = 9  # the digits 1 to 9; class 0 is the digit 1
SILENT = -100  # target of a cell that is not asked: F.cross_entropy leaves it out
CHANNELS = 32  # of the reader's features
BLIND = 0.345  # score on `held_out()` where fives name themselves and all others the commonest digit of their sheet


def sampler(
    part: str = "train", asked: Tensor | None = None
) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """A function that draws fresh sheets, as `toys.fit` wants it.

    Args:
        part: `"train"` or `"test"`: disjoint handwriting.
        asked: `(6, 8)`, bool: the cells that are asked; all when None.

    Returns:
        `draw(batch, generator) -> (sheets (batch, 1, 60, 80) in [0, 1], targets (batch, 6, 8), int64)`: the digit
        that each cell points at, less one; `SILENT` where a cell is not asked.

    Raises:
        ValueError: if there is no such part.
    """
    images, labels = _handwriting(part)
    silent = torch.zeros(GRID, dtype=torch.bool) if asked is None else ~asked

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        which = _which(part, batch, generator)
        return sheet(images[which])[:, None], pointed_at(labels[which]).masked_fill(silent, SILENT)

    return draw


def held_out(n: int = 256, seed: int = 0, asked: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`n` sheets and targets of the test part, the same at every call."""
    return sampler("test", asked)(n, torch.Generator().manual_seed(seed))


def shown(n: int = 256, seed: int = 0) -> Tensor:
    """The digits on the sheets of `held_out(n, seed)`, less one: `(n, 6, 8)`."""
    return _handwriting("test")[1][_which("test", n, torch.Generator().manual_seed(seed))]


def pointed_at(kinds: Tensor) -> Tensor:
    """What each cell points at, for digits less one `(batch, H, W)`; `SILENT` where that is off the sheet."""
    _, H, W = kinds.shape
    off_sheet = F.pad(kinds, (STEP, STEP, STEP, STEP), value=SILENT)
    target = torch.empty_like(kinds)
    for kind in range(KINDS):
        down, right = direction(kind)
        there = off_sheet[:, STEP + down : STEP + down + H, STEP + right : STEP + right + W]
        target = torch.where(kinds == kind, there, target)
    return target


def direction(kind: int) -> tuple[int, int]:
    """(rows down, columns to the right) from a cell with the digit `kind + 1` to the one it points at."""
    row, column = divmod(kind, 3)
    return STEP * (1 - row), STEP * (column - 1)


def reader() -> nn.Module:
    """A frozen network that has learned to read digits: sheets `(B, 1, 10 H, 10 W)` → features `(B, 32, H, W)`.

    Each feature has mean 0 and deviation 1 over the digits that it has learned from.
    """
    net = cell_layers(CHANNELS)
    net.load_state_dict(_reader_weights())
    return net.eval().requires_grad_(False)


def score(model: nn.Module, sheets: Sequence[Tensor]) -> float:
    """Fraction of right answers among the cells that are asked, in [0, 1]; the model's mode is put back."""
    asked = sheets[1] != SILENT
    return share_right(answers(model, sheets[0]), sheets[1], asked)


def _which(part: str, batch: int, generator: torch.Generator) -> Tensor:
    return torch.randint(len(_handwriting(part)[0]), (batch, *GRID), generator=generator)


@cache
def _reader_weights() -> dict[str, Tensor]:
    images, labels = _handwriting("train")
    with seeded(0):
        net, answer = cell_layers(CHANNELS), nn.Sequential(nn.ReLU(), nn.Conv2d(CHANNELS, KINDS, 1), nn.Flatten())
    fit(nn.Sequential(net, answer), (images[:, None], labels), steps=150, batch=64, lr=5e-3)
    with torch.no_grad():  # fold mean and deviation into the last convolution
        deviation, mean = torch.std_mean(net(images[:, None]), (0, 2, 3))
        weight, bias = net[2].parameters()
        bias.sub_(mean).div_(deviation)
        weight.div_(deviation[:, None, None, None])
    return net.state_dict()


@cache
def _handwriting(part: str) -> tuple[Tensor, Tensor]:
    """The digits 1 to 9 with their margins `(n, 10, 10)`, and their labels less one."""
    images, labels = digits(part)
    return F.pad(images[labels > 0, 0], (1, 1, 1, 1)), labels[labels > 0] - 1


def _network(make: Callable[[], nn.Module]) -> nn.Sequential:
    """The frozen reader, the layer that has to fetch the right digit, and a 1 × 1 convolution that names it."""
    layer = make()
    return nn.Sequential(reader(), layer, nn.Conv2d(CHANNELS, KINDS, 1))


def _picture() -> "Figure":
    from ..viz import images

    (sheets, targets), kinds = held_out(1), shown(1)
    cells = sheets[0, 0].unfold(0, CELL, CELL).unfold(1, CELL, CELL)
    answer = torch.zeros_like(cells)
    for r, c in (targets[0] != SILENT).nonzero().tolist():
        down, right = direction(int(kinds[0, r, c]))
        answer[r, c] = cells[r + down, c + right]
    return images({"a sheet": sheets[0, 0], "what each cell points at": sheet(answer)},
                  title="Which digit does each digit point at?",
                  alt="Left, six rows of eight handwritten digits from 1 to 9. Right, in each cell the digit that the "
                      "left one points at; black where that is off the sheet.")


TASK = Task(
    id="keypad_digits",
    question=__doc__.partition("\n")[0],
    chapters=("mhsa",),
    data=lambda: (sampler(), held_out()),
    layout="B C H W", channels=CHANNELS, size=GRID,
    build=_network,
    options=dict(heads=1),
    score=score,
    score_name="share of right answers",
    chance=BLIND,
    training=dict(steps=150, batch=16, lr=2e-2),
    picture=_picture,
)
