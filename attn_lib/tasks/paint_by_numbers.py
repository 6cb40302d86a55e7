"""Painting by numbers: pictures whose numbered fields await their colours, and the legends that say which.

A sheet is cut into 4 × 4 pieces of 2 × 2 fields. Half of the pieces are pictures, half are legends, all shuffled. On
each field stands a handwritten number from 1 to 4, in white on a picture and in its colour on a legend. Every picture
has its own legend, and what tells them belong together is the paper: both were printed on (almost) the same cut of a
photograph. So a field needs two things. *Which piece* is the legend? That the whole piece says, best by all of its
paper. *Which field* of it has my number? That one field says.

Two numbers of a picture may have the same colour. Photographs and handwriting of the test part do not occur in the
training part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..checks import check_choice
from ..toys.data import digits
from ..toys.images import cut, image
from ..toys.train import answers
from ._catalog import Task
from ._pieces import share_right

if TYPE_CHECKING:
    from ..viz import Figure

PIECES = 4  # pieces along each side of a sheet
FIELDS = 2  # fields along each side of a piece
SIDE = 12  # pixels of a field: an 8 × 8 digit and two pixels of paper around it
NUMBERS = COLOURS = 4
SILENT = -100  # truth of a field that is not asked, which `F.cross_entropy` passes over
INK = torch.tensor([[1.0, 0.0, 0.0], [0.6, 1.0, 0.0], [0.0, 1.0, 1.0], [0.6, 0.0, 1.0]])
PAPER, DIGIT = 24, 16  # features of the paper, and of the number
CHANNELS = PAPER + DIGIT + COLOURS
PHOTOGRAPHS = {
    "train": ("astronaut", "coffee", "hubble", "motorcycle", "cells", "retina"),
    "test": ("cat", "rocket"),
}


@dataclass(frozen=True)
class Sheets:
    """What `sheets` returns.

    Attributes:
        images: `(n, 3, 96, 96)`, float32 in [0, 1].
        colour: `(n, 8, 8)`, int64: the colour of each picture's field, 0 to 3; `SILENT` on legends.
        legend: `(n, 16)`, int64: for each piece, row by row, the other one on the same paper.
    """

    images: Tensor
    colour: Tensor
    legend: Tensor


def sheets(n: int, part: str = "train", *, seed: int = 0) -> Sheets:
    """`n` sheets, the same for the same seed.

    Args:
        n: how many, at least 1.
        part: `"train"` or `"test"`: disjoint photographs and disjoint handwriting.
        seed: of everything drawn.

    Raises:
        ValueError: if n is below 1, or there is no such part.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    cuts, ink, first, count = _material(part)
    generator = torch.Generator().manual_seed(seed)
    pairs = PIECES**2 // 2

    # One cut from each of eight equal stretches of the list, which is sorted by brightness: no two alike.
    where = (torch.arange(pairs) + torch.rand(n, pairs, generator=generator)) * (len(cuts) / pairs)
    paper = cuts[where.long().clamp_max(len(cuts) - 1)]
    pieces = torch.stack([paper[..., :-4, :-4], paper[..., 4:, 4:]], 1)  # n, legend or picture, pairs, 3, 24, 24
    pieces = rearrange(pieces, "B t p C (i y) (j x) -> B t p (i j) C y x", i=FIELDS, j=FIELDS).clone()

    number = torch.rand(n, 2, pairs, NUMBERS, generator=generator).argsort(-1)  # each number once on every piece
    colour = torch.randint(COLOURS, (n, pairs, NUMBERS), generator=generator)  # of each number, on each paper
    colour = colour[:, None].expand(-1, 2, -1, -1).gather(-1, number)
    which = first[number] + (torch.rand(number.shape, generator=generator) * count[number]).long()
    light = INK[colour]
    light[:, 1] = 1.0
    pieces[..., 2:-2, 2:-2] = ink[which][..., None, :, :] * light[..., None, None]
    colour[:, 0] = SILENT

    order = torch.rand(n, 2 * pairs, generator=generator).argsort(1)  # which piece lies at each place
    sheet = torch.arange(n)[:, None]
    legend = order.argsort(1)[sheet, (order + pairs) % (2 * pairs)]
    shape = "B (P Q) (i j) C y x -> B C (P i y) (Q j x)"
    images = rearrange(pieces.flatten(1, 2)[sheet, order], shape, P=PIECES, i=FIELDS)
    shape = "B (P Q) (i j) -> B (P i) (Q j)"
    return Sheets(images, rearrange(colour.flatten(1, 2)[sheet, order], shape, P=PIECES, i=FIELDS), legend)


def features(images: Tensor) -> Tensor:
    """What a classical front end makes of sheets: `(n, 3, 12·h, 12·w)` → `(n, 44, h, w)`, a vector for each field.

    24 numbers are a histogram of the colours of the paper around the digit, 16 the principal components of the digit,
    4 say how well its colour fits each of the inks (white fits all). No field's features know of another field.

    Raises:
        ValueError: if the images are no whole number of fields high and wide.
    """
    if images.shape[-2] % SIDE or images.shape[-1] % SIDE:
        raise ValueError(f"images of shape {tuple(images.shape)} must be a multiple of {SIDE} pixels high and wide")
    palette, axes, mean, spread = _front_end()
    small = rearrange(F.avg_pool2d(images, 2), "B C (H y) (W x) -> B H W y x C", y=SIDE // 2, x=SIDE // 2)
    rim = F.pad(torch.zeros(SIDE // 2 - 2, SIDE // 2 - 2, dtype=torch.bool), (1, 1, 1, 1), value=True)
    histogram = _nearness(small[:, :, :, rim], palette).mean(3)
    plate = rearrange(images, "B C (H y) (W x) -> B H W C y x", y=SIDE, x=SIDE)[..., 2:-2, 2:-2]
    shape = (plate.amax(3).flatten(3) - mean) @ axes / spread
    light = plate.sum((4, 5))
    light = light / light.amax(-1, keepdim=True).clamp(min=1e-6)
    paper = F.normalize(histogram, dim=-1) * PAPER**0.5
    return torch.cat([paper, shape, 2 * (light - 0.5) @ (INK - 0.5).T], -1).permute(0, 3, 1, 2).contiguous()


def examples(n: int, part: str = "train", *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features `(n, 44, 8, 8)` and colours `(n, 8, 8)` of `n` sheets, as `toys.fit` wants them."""
    drawn = sheets(n, part, seed=seed)
    return features(drawn.images), drawn.colour


def score(model: nn.Module, data: Sequence[Tensor]) -> float:
    """Share of the pictures' fields that get their colour; guessing gets 1/4. The model's mode is put back."""
    asked = data[1] != SILENT
    return share_right(answers(model, data[0]), data[1], asked)


def is_picture(colour: Tensor) -> Tensor:
    """Which of the 16 pieces are pictures: colours `(n, 8, 8)` → `(n, 16)` in bool."""
    return (colour[:, ::FIELDS, ::FIELDS] != SILENT).flatten(1)


@cache
def _material(part: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cuts of photographs `(m, 3, 28, 28)` by brightness; digits `(d, 8, 8)` by number; where each begins, how many."""
    check_choice("part", part, PHOTOGRAPHS)
    side = FIELDS * SIDE + 4
    cuts = cut((image(name, 300) for name in PHOTOGRAPHS[part]), (side, side), 8)
    brightness = cuts.mean((1, 2, 3))
    bright = brightness.argsort()[(brightness < 0.06).sum():]  # nothing is printed on black
    images, labels = digits(part)
    chosen = (labels >= 1) & (labels <= NUMBERS)
    ink, labels = images[chosen, 0], labels[chosen] - 1
    count = labels.bincount(minlength=NUMBERS)
    return cuts[bright], ink[labels.argsort(stable=True)], count.cumsum(0) - count, count


@cache
def _front_end() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colours of paper `(24, 3)`, principal axes of the digits `(64, 16)`, their mean `(64,)` and spread."""
    cuts, ink, _, _ = _material("train")
    generator = torch.Generator().manual_seed(0)
    pixels = cuts[::4].movedim(1, -1).flatten(0, 2)
    pixels = pixels[torch.randint(len(pixels), (4000,), generator=generator)]
    palette = pixels[:PAPER]
    for _ in range(10):  # k-means
        nearest = F.one_hot(torch.cdist(pixels, palette).argmin(1), PAPER).float()
        palette = (nearest.T @ pixels) / nearest.sum(0)[:, None].clamp(min=1)
    ink = ink.flatten(1)
    mean = ink.mean(0)
    axes = torch.linalg.svd(ink - mean, full_matrices=False).Vh[:DIGIT].T
    return palette, axes, mean, ((ink - mean) @ axes).square().mean().sqrt()


def _nearness(pixels: Tensor, palette: Tensor) -> Tensor:
    """How near each colour (…, 3) is to each of the palette's (P, 3), in shares of 1: (…, P)."""
    squares = pixels.square().sum(-1, keepdim=True) - 2 * pixels @ palette.T + palette.square().sum(-1)
    return (-squares / (2 * 0.12**2)).softmax(-1)


def _network(make: Callable[[], nn.Module]) -> nn.Sequential:
    """The layer that has to find legend and field, and a 1 × 1 convolution that names the colour; features go in."""
    return nn.Sequential(make(), nn.Conv2d(CHANNELS, COLOURS, 1))


def _picture() -> "Figure":
    from ..viz import images

    drawn = sheets(1, "test", seed=1)
    pieces = rearrange(drawn.images[0], "C (P y) (Q x) -> (P Q) C y x", P=PIECES, Q=PIECES)
    asks = int(is_picture(drawn.colour)[0].nonzero()[0])
    return images({"a sheet": drawn.images[0], "a picture": pieces[asks], "its legend": pieces[drawn.legend[0, asks]]},
                  title="Which colour has each number of the picture?",
                  alt="A sheet of 4 by 4 pieces, each with four handwritten numbers on black plates, white or "
                      "coloured, on paper cut from photographs; one piece with white numbers enlarged, and the piece "
                      "with coloured numbers on the same paper.")


TASK = Task(
    id="paint_by_numbers",
    question=__doc__.partition("\n")[0],
    chapters=("biformer",),
    data=lambda: (examples(1536), examples(256, "test", seed=1)),
    layout="B C H W", channels=CHANNELS, size=(PIECES * FIELDS, PIECES * FIELDS),
    build=_network,
    options=dict(groups=1, heads=1, regions=PIECES, topk=4, lepe_kernel=3),
    score=score,
    score_name="share of fields painted right",
    chance=1 / COLOURS,
    training=dict(steps=100, batch=16, lr=2e-2),
    picture=_picture,
)
