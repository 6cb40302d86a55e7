"""Scanned forms with handwritten digits: is a dot a decimal point or a speck of dust? It depends on the scan.

A point is two dots of the pen wide, a speck one. A form scanned at twice the resolution is the same picture with
every pixel doubled. So a dot two pixels wide is a point on one form and dust on another, and nothing within two
pixels of it tells which; the digits do, which are larger too, elsewhere on the form.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..toys.data import digits
from ..toys.train import answers
from ._catalog import Task
from ._pieces import sheet

if TYPE_CHECKING:
    from ..viz import Figure

SIZE = (24, 32)  # rows and columns of a scan
FIELD = (12, 16)  # of a field: one digit on the left, three dots on the right; a form has 2 × 2 fields
DOTS = (1, 5, 9)  # rows of the dots within a field; two pixels around each are empty but for itself
ZOOMS = (1, 2)  # a scan shows four fields, or one of them twice as large
CHANNELS = 8  # of the one layer
DUST, POINT, NONE = 0, 1, -100  # labels; where there is no dot, NONE, which `F.cross_entropy` passes over
LOCAL = 0.75  # best score of whoever sees two pixels around a dot: a 2 × 2 dot is a point as often as dust


@dataclass(frozen=True)
class Scans:
    """What `scans` returns.

    Attributes:
        images: `(n, 1, 24, 32)`, float32 in [0, 1]: paper is 0, ink and dust are brighter.
        labels: `(n, 24, 32)`, int64: DUST or POINT at the upper left pixel of each dot, NONE elsewhere.
    """

    images: Tensor
    labels: Tensor


def scans(n: int, part: str = "train", *, zoom: float = 1, seed: int = 0) -> Scans:
    """Scanned forms.

    Args:
        n: how many, ≥ 1.
        part: `"train"` or `"test"`: disjoint handwriting.
        zoom: resolution of the scan, ≥ 1. The same seed gives the same forms at every zoom, less and less of them.
        seed: of everything drawn.

    Raises:
        ValueError: for n or zoom below 1, or an unknown part.
    """
    if n < 1 or zoom < 1:
        raise ValueError(f"n={n} and zoom={zoom} must be at least 1")
    images, labels = _forms(_handwriting(part), n, torch.Generator().manual_seed(seed))
    return Scans(*enlarge(images, labels, zoom))


def sampler(part: str = "train") -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """A function that draws fresh scans, half of a batch at either zoom, as `toys.fit` wants it.

    Raises:
        ValueError: if there is no such part.
    """
    ink = _handwriting(part)

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = _forms(ink, batch, generator)
        halves = zip(images.tensor_split(2), labels.tensor_split(2), ZOOMS, strict=True)
        enlarged = [enlarge(*half) for half in halves]
        return torch.cat([images for images, _ in enlarged]), torch.cat([labels for _, labels in enlarged])

    return draw


def held_out(n: int = 200, seed: int = 0) -> Scans:
    """The same `n` forms of the test part twice: first all at zoom 1, then all at zoom 2."""
    pair = [scans(n, "test", zoom=zoom, seed=seed) for zoom in ZOOMS]
    return Scans(torch.cat([s.images for s in pair]), torch.cat([s.labels for s in pair]))


def enlarge(images: Tensor, labels: Tensor, zoom: float) -> tuple[Tensor, Tensor]:
    """The upper left part of forms, each pixel `zoom` times as wide and as high; the size stays.

    Args:
        images: `(…, H, W)`.
        labels: `(…, H, W)`; in a pixel that became a block, the block's upper left pixel has the label.
        zoom: ≥ 1. Where it is no whole number, some pixels get wider than others.
    """
    rows, cols = (((torch.arange(side) + 0.5) / zoom).long() for side in images.shape[-2:])
    first = _first(rows)[:, None] & _first(cols)
    return images[..., rows, :][..., cols], torch.where(first, labels[..., rows, :][..., cols], NONE)


def hits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Fraction of the dots that each scan got right, `(n,)`; the model is used in eval mode and restored."""
    right = (answers(model, images).argmax(1) == labels).sum((1, 2))
    return right / (labels != NONE).sum((1, 2))


def accuracy(model: nn.Module, data: Sequence[Tensor]) -> float:
    """Mean of `hits` over (images, labels): a scan of one field counts as much as one of four."""
    return hits(model, *data).mean().item()


def _forms(ink: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`n` forms (n, 1, 24, 32) and their labels (n, 24, 32)."""
    def draw(high: int) -> Tensor:
        return torch.randint(high, (4 * n,), generator=generator)  # one number a field

    field = torch.arange(4 * n)
    fields = torch.zeros(4 * n, *FIELD)
    labels = torch.full(fields.shape, NONE)
    top, left = draw(4), draw(3)
    rows = top[:, None, None] + torch.arange(8)[:, None]
    cols = left[:, None, None] + torch.arange(8)
    fields[field[:, None, None], rows, cols] = ink[draw(len(ink))]
    for row in DOTS:
        kind, col, shade = draw(2), 12 + draw(2), 0.6 + 0.1 * draw(5)
        labels[field, row, col] = kind
        fields[field, row, col] = shade
        for down, right in ((0, 1), (1, 0), (1, 1)):
            fields[field, row + down, col + right] = shade * (kind == POINT)
    images, labels = (sheet(t.view(n, 2, 2, *FIELD)) for t in (fields, labels))
    return images[:, None], labels


def _first(index: Tensor) -> Tensor:
    """Where a sorted index takes a value for the first time."""
    return torch.cat([torch.ones(1, dtype=torch.bool), index[1:] != index[:-1]])


@cache
def _handwriting(part: str) -> Tensor:
    return digits(part)[0][:, 0]


def _convolution() -> nn.Sequential:
    """5 × 5 pixels, as many as tell nothing."""
    return nn.Sequential(nn.Conv2d(1, CHANNELS, 5, padding=2, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU())


def _network(make: Callable[[], nn.Module]) -> nn.Sequential:
    """One layer, which makes 8 channels of the scan, and two scores at every pixel: dust, point."""
    return nn.Sequential(make(), nn.Conv2d(CHANNELS, 2, 1))


def _data() -> tuple[Callable[[int, torch.Generator], tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    test = held_out()
    return sampler(), (test.images, test.labels)


def _picture() -> "Figure":
    from ..viz import images

    coarse, fine = (1 - scans(1, "test", zoom=zoom, seed=3).images[0, 0] for zoom in ZOOMS)
    return images({"a form": coarse, "scanned at twice the resolution": fine}, ncols=2,
                  title="Which dots are points, and which are dust?",
                  alt="Left, four handwritten digits, each with three grey dots beside it, some one pixel wide and "
                      "some two. Right, the upper left quarter of the same form, twice as large: its dust is two "
                      "pixels wide, as the points were on the left.")


TASK = Task(
    id="point_or_dust",
    question=__doc__.partition("\n")[0],
    chapters=("sk",),
    data=_data,
    layout="B C H W", channels=1, out_channels=CHANNELS, size=SIZE,
    build=_network,
    nothing=_convolution,
    options=dict(groups=1, min_dim=8, reduction=1),
    score=accuracy,
    score_name="dots told right",
    chance=LOCAL,
    training=dict(steps=100, batch=16, lr=1e-2),
    picture=_picture,
)
