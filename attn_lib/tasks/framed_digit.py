"""A sheet of handwritten digits, one of them framed: which cells show the same digit as the framed one?

What a cell should answer is written in another cell, anywhere on the sheet. A network that looks only around
itself has to guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..toys.data import digits, split
from ..toys.train import fit, seeded

CELL = 10  # pixels: an 8×8 digit with a margin of one
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


def sheets(
    n: int, part: str = "train", *, grid: tuple[int, int] = (6, 8), kinds: int = 5, seed: int = 0
) -> Sheets:
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
    return Sheets(cells.transpose(2, 3).reshape(n, 1, H * CELL, W * CELL), same, framed)


def backbone(channels: int = 64, *, kinds: int = 5, seed: int = 0) -> nn.Module:
    """A small convolutional backbone: images `(n, 1, 10·H, 10·W)` → features `(n, channels, H, W)`, frozen.

    It is trained here, in a second, on single cells: which digit is it, and is it framed? So the features of a
    cell say nothing about any other cell. Each feature has mean 0 and deviation 0.7 over cells, half of them framed.

    Args:
        channels: features a cell, ≥ 1.
        kinds: as in `sheets`.
        seed: of weights and batches.
    """
    images, labels = _handwriting("train", kinds)
    plain = F.pad(images, (1, 1, 1, 1))
    cells = torch.cat([plain, plain.maximum(_frame())])
    is_framed = torch.arange(len(cells)) >= len(plain)
    truth = torch.stack([torch.cat([labels, labels]), is_framed], 1)
    with seeded(seed):
        features = nn.Sequential(nn.Conv2d(1, 64, CELL, stride=CELL), nn.ReLU(), nn.Conv2d(64, channels, 1))
        answer = nn.Conv2d(channels, kinds + 1, 1)

    def loss(output: Tensor, truth: Tensor) -> Tensor:
        digit, frame = output[:, :kinds, 0, 0], output[:, kinds, 0, 0]
        return F.cross_entropy(digit, truth[:, 0]) + F.binary_cross_entropy_with_logits(frame, truth[:, 1].float())

    fit(nn.Sequential(features, answer), (cells, truth), steps=150, batch=128, lr=5e-3, seed=seed, loss=loss)
    with torch.no_grad():  # fold mean and deviation into the last convolution
        deviation, mean = torch.std_mean(features(cells), (0, 2, 3))
        scale = SPREAD / deviation
        features[2].bias.sub_(mean).mul_(scale)
        features[2].weight.mul_(scale[:, None, None, None])
    return features.requires_grad_(False).eval()


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
def _handwriting(part: str, kinds: int) -> tuple[Tensor, Tensor]:
    if part not in ("train", "test"):
        raise ValueError(f"part={part!r} must be 'train' or 'test'")
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
