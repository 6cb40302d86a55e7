"""A sheet of handwritten digits, one of them framed: which cells show the same digit as the framed one?

What a cell should answer is written in another cell, anywhere on the sheet. A network that looks only around
itself has to guess.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_choice
from ..toys.data import digits, split
from ..toys.train import answers, fit, seeded
from ._catalog import Task
from ._pieces import CELL, cell_layers, sheet

if TYPE_CHECKING:
    from ..viz import Figure

CHANNELS = 64  # of the backbone's features
SPREAD = 0.7  # deviation of a feature: with 1, unscaled softmax attention starts so peaked that some runs stall


@dataclass(frozen=True)
class Sheets:
    """What `sheets` returns.

    Attributes:
        images: `(n, 1, 10·H, 10·W)`, float32 in [0, 1].
        same: `(n, H, W)`, int64: 1 where the cell shows the framed digit (the framed cell itself included).
        framed: `(n, H, W)`, bool: the framed cell, one a sheet.
    """

    images: Tensor
    same: Tensor
    framed: Tensor


def sheets(n: int, part: str = "train", *, grid: tuple[int, int] = (6, 8), kinds: int = 5, seed: int = 0) -> Sheets:
    """Sheets of scikit-learn's handwritten digits, drawn independently and uniformly, with one frame each.

    Args:
        n: how many, ≥ 1.
        part: `"train"` or `"test"`: disjoint handwriting.
        grid: rows and columns (H, W) of cells.
        kinds: the digits 0 … kinds − 1 occur, so that one cell in `kinds` shows the framed digit; 2 to 10.
        seed: of everything drawn.

    Raises:
        ValueError: for `n` or a side of the grid below 1, `kinds` outside 2 to 10, or an unknown part.
    """
    H, W = grid
    if min(n, H, W) < 1:
        raise ValueError(f"n={n} and grid={grid} must be positive")
    images, labels = _handwriting(part, kinds)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(images), (n, H, W), generator=generator)
    framed = F.one_hot(torch.randint(H * W, (n,), generator=generator), H * W).bool().view(n, H, W)
    cells = F.pad(images[drawn, 0], (1, 1, 1, 1))
    cells = torch.where(framed[..., None, None], cells.maximum(_frame()), cells)
    label = labels[drawn]
    same = (label == label[framed][:, None, None]).long()
    return Sheets(sheet(cells)[:, None], same, framed)


def backbone(channels: int = CHANNELS, *, kinds: int = 5, seed: int = 0) -> nn.Module:
    """A small convolutional backbone: images `(n, 1, 10·H, 10·W)` → features `(n, channels, H, W)`, frozen.

    It is trained here, in a second, on single cells: which digit is it, and is it framed? So the features of a
    cell say nothing about any other cell. Each feature has mean 0 and deviation 0.7 over cells, half of them framed.

    Args:
        channels: features a cell, ≥ 1.
        kinds: as in `sheets`.
        seed: of weights and batches.
    """
    return deepcopy(_backbone(channels, kinds, seed))


def loss(answers: Tensor, same: Tensor) -> Tensor:
    """Cross-entropy of class scores `(n, 2, H, W)`; one cell in five matches, so a yes weighs four times as much."""
    return F.cross_entropy(answers, same, weight=answers.new_tensor([1.0, 4.0]))


def score(answers: Tensor, same: Tensor, where: Tensor | None = None) -> float:
    """Balanced accuracy: the mean of the hit rates on cells that match and on cells that do not; guessing gets ½.

    Args:
        answers: class scores `(n, 2, H, W)`.
        same: the truth, `(n, H, W)`.
        where: `(n, H, W)`, bool: the cells that count; all when None.
    """
    hit = answers.argmax(1) == same
    where = torch.ones_like(hit) if where is None else where
    return sum(hit[where & (same == truth)].float().mean().item() for truth in (0, 1)) / 2


def score_by_offset(answers: Tensor, sheets: Sheets) -> Tensor:
    """Balanced accuracy for every offset from the framed cell: `(2·H − 1, 2·W − 1)`, the frame in the middle.

    The frame itself always matches, so its entry is its hit rate. The more sheets, the less noise in the corners.
    """
    _, H, W = sheets.same.shape
    _, row, column = sheets.framed.nonzero(as_tuple=True)
    down = torch.arange(H)[:, None] - row[:, None, None] + H - 1
    right = torch.arange(W) - column[:, None, None] + W - 1
    offset = down * (2 * W - 1) + right
    hit = answers.argmax(1) == sheets.same
    rates = []
    for truth in (0, 1):
        among = sheets.same == truth
        hits, total = (offset[m].bincount(minlength=(2 * H - 1) * (2 * W - 1)) for m in (among & hit, among))
        rates.append(hits / total)
    return torch.stack(rates).nanmean(0).view(2 * H - 1, 2 * W - 1)


@cache
def _backbone(channels: int, kinds: int, seed: int) -> nn.Module:
    images, labels = _handwriting("train", kinds)
    plain = F.pad(images, (1, 1, 1, 1))
    cells = torch.cat([plain, plain.maximum(_frame())])
    is_framed = torch.arange(len(cells)) >= len(plain)
    truth = torch.stack([torch.cat([labels, labels]), is_framed], 1)
    with seeded(seed):
        features = cell_layers(channels)
        answer = nn.Conv2d(channels, kinds + 1, 1)

    def loss(output: Tensor, truth: Tensor) -> Tensor:
        digit, frame = output[:, :kinds, 0, 0], output[:, kinds, 0, 0]
        return F.cross_entropy(digit, truth[:, 0]) + F.binary_cross_entropy_with_logits(frame, truth[:, 1].float())

    fit(nn.Sequential(features, answer), (cells, truth), steps=150, batch=128, lr=5e-3, seed=seed, loss=loss)
    with torch.no_grad():  # fold mean and deviation into the last convolution
        deviation, mean = torch.std_mean(features(cells), (0, 2, 3))
        scale = SPREAD / deviation
        weight, bias = features[2].parameters()
        bias.sub_(mean).mul_(scale)
        weight.mul_(scale[:, None, None, None])
    return features.requires_grad_(False).eval()


@cache
def _handwriting(part: str, kinds: int) -> tuple[Tensor, Tensor]:
    check_choice("part", part, ("train", "test"))
    if not 2 <= kinds <= 10:
        raise ValueError(f"kinds={kinds} must be from 2 to 10: there are ten digits")
    images, labels = digits()
    chosen = labels < kinds
    return split(images[chosen], labels[chosen])[part == "test"]


def _frame() -> Tensor:
    frame = torch.zeros(CELL, CELL)
    frame[[0, -1]] = 1
    frame[:, [0, -1]] = 1
    return frame


def _data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """Features and truths; of the test part the cells that share neither row nor column with the frame count."""
    train, test = sheets(2048), sheets(2048, "test", seed=1)
    features = backbone()
    off_cross = ~(test.framed.any(1, keepdim=True) | test.framed.any(2, keepdim=True))
    held_out = features(test.images), test.same, off_cross
    return (features(train.images), train.same), tuple(t[:512] for t in held_out)


def _network(make: Callable[[], nn.Module]) -> nn.Sequential:
    """The layer that has to carry the news across the sheet, and two 1 × 1 convolutions; features go in."""
    return nn.Sequential(make(), nn.Conv2d(CHANNELS, 64, 1), nn.ReLU(), nn.Conv2d(64, 2, 1))


def _picture() -> "Figure":
    from ..viz import images

    shown = sheets(1, "test", seed=1)
    matching = shown.same[0].repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
    return images({"a sheet": shown.images[0, 0], "the cells that should answer yes": shown.images[0, 0] * matching},
                  title="Which digits equal the framed one?",
                  alt="Left, a sheet of 6 by 8 handwritten digits from 0 to 4 with one of them framed. Right, the same "
                      "sheet with only those digits left that equal the framed one.")


TASK = Task(
    id="framed_digit",
    question=__doc__.partition("\n")[0],
    chapters=("ccnet",),
    data=_data,
    layout="B C H W", channels=CHANNELS, size=(6, 8),
    build=_network,
    score=lambda model, data: score(answers(model, data[0]), *data[1:]),
    score_name="balanced accuracy off the frame's row and column",
    chance=0.5,
    training=dict(steps=200, batch=32, lr=4e-3, loss=loss),
    picture=_picture,
)
