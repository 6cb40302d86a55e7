"""A sheet of handwritten digits, one of them framed: which cells show the same digit as the framed one?

What a cell should answer is written in another cell, anywhere on the sheet. A network that looks only around
itself has to guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import digits, split
from .train import fit, seeded

CELL = 10  # pixels: an 8×8 digit with a margin of one


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


def sheets(n: int, *, grid: tuple[int, int] = (6, 8), kinds: int = 5, test: bool = False, seed: int = 0) -> Sheets:
    """Sheets of scikit-learn's handwritten digits, drawn independently and uniformly, with one frame each.

    Args:
        n: how many, ≥ 1.
        grid: rows and columns (H, W) of cells.
        kinds: the digits 0 … kinds − 1 occur, so that one cell in `kinds` shows the framed digit; 2 to 10.
        test: use the quarter of the handwriting that training sheets never show.
        seed: of everything drawn.

    Raises:
        ValueError: for `n` or a side of the grid below 1, or `kinds` outside 2 to 10.
    """
    H, W = grid
    if min(n, H, W) < 1:
        raise ValueError(f"n={n} and grid={grid} must be positive")
    images, labels = _handwriting(kinds, test)
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

    It is trained here, in a second, on single cells: which digit is it, and is it framed? Each cell is seen
    alone, and each feature is standardised.
    """
    images, labels = _handwriting(kinds, test=False)
    with seeded(seed):
        features = nn.Sequential(nn.Conv2d(1, 64, CELL, stride=CELL), nn.ReLU(), nn.Conv2d(64, channels, 1))
        answer = nn.Conv2d(channels, kinds + 1, 1)
    plain = F.pad(images, (1, 1, 1, 1))
    cells = torch.cat([plain, plain.maximum(_frame())])
    label = torch.cat([labels, labels])
    is_framed = torch.arange(len(cells)) >= len(plain)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        digit, frame = output[:, :kinds, 0, 0], output[:, kinds, 0, 0]
        return F.cross_entropy(digit, target[:, 0]) + F.binary_cross_entropy_with_logits(frame, target[:, 1].float())

    target = torch.stack([label, is_framed], 1)
    fit(nn.Sequential(features, answer), (cells, target), steps=200, batch=128, lr=5e-3, seed=seed, loss=loss)
    with torch.no_grad():  # standardise: fold mean and deviation into the last convolution
        std, mean = torch.std_mean(features(cells), (0, 2, 3))
        features[2].bias.sub_(mean).div_(std)
        features[2].weight.div_(std[:, None, None, None])
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
    return sum(hit[where & (same == c)].float().mean().item() for c in (0, 1)) / 2


def score_by_offset(answers: Tensor, sheets: Sheets) -> Tensor:
    """Balanced accuracy for every offset from the framed cell: `(2·H − 1, 2·W − 1)`, offset (0, 0) in the middle.

    NaN where an offset did not occur with both answers.
    """
    n, H, W = sheets.same.shape
    row, column = sheets.framed.flatten(1).long().argmax(1).div(W, rounding_mode="floor"), sheets.framed.any(1).long().argmax(1)
    down = torch.arange(H)[:, None] - row[:, None, None] + H - 1
    right = torch.arange(W) - column[:, None, None] + W - 1
    offset = (down * (2 * W - 1) + right).flatten()
    hit = (answers.argmax(1) == sheets.same).flatten()
    rates = []
    for truth in (0, 1):
        chosen = sheets.same.flatten() == truth
        size = (2 * H - 1) * (2 * W - 1)
        hits, total = (torch.bincount(offset[m], minlength=size) for m in (chosen & hit, chosen))
        rates.append(hits / total)
    return (sum(rates) / 2).view(2 * H - 1, 2 * W - 1)


@lru_cache(maxsize=None)
def _handwriting(kinds: int, test: bool) -> tuple[Tensor, Tensor]:
    if not 2 <= kinds <= 10:
        raise ValueError(f"kinds={kinds} must be from 2 to 10: there are ten digits")
    images, labels = digits()
    chosen = labels < kinds
    return split(images[chosen], labels[chosen])[test]


def _frame() -> Tensor:
    frame = torch.zeros(CELL, CELL)
    frame[[0, -1]] = 1
    frame[:, [0, -1]] = 1
    return frame
