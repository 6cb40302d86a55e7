"""A sheet of cards, two of every spot of a photograph; one of the two has a number on it. What is the other's number?

Each card shows a small piece of a photograph. Below the photograph of one card of a pair stands a handwritten digit,
below that of its partner nothing. Every card without a number is asked for the number of its partner, as a coat is
for its ticket. The partner lies anywhere on the sheet, it is another one for every card, and nothing but the picture
tells which: the same spot taken a second time, in other light and up to a pixel to the side.

Photographs and handwriting of the test part do not occur in the training part.
"""

from collections.abc import Callable
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

SIDE = 8  # pixels of the photograph on a card, and of the digit below it
CARD = (2 * SIDE + 2, SIDE + 2)  # height and width of a card with its margin of one pixel
LIGHT = 0.5  # each card is brighter or darker by a factor up to e^0.5
CONTRAST = 0.08  # least standard deviation of a piece of a photograph: nobody could recognise a piece of plain sky
PHOTO, DIGIT = 32, 16  # features of a card's two halves
PHOTOGRAPHS = {"train": ("astronaut", "coffee", "hubble", "motorcycle"), "test": ("cat", "rocket")}


@dataclass(frozen=True)
class Sheets:
    """What `sheets` returns.

    Attributes:
        images: `(n, 3, 18·H, 10·W)`, float32 in [0, 1].
        number: `(n, H, W)`, int64: the digit on the card, or on its partner where it has none.
        asks: `(n, H, W)`, bool: the cards without a number.
        partner: `(n, H, W)`, int64: where the other card of the pair lies, counted along the rows from 0.
    """

    images: Tensor
    number: Tensor
    asks: Tensor
    partner: Tensor


def sheets(n: int, part: str = "train", *, grid: tuple[int, int] = (4, 6), seed: int = 0) -> Sheets:
    """Sheets of cards in random order; no two pairs of a sheet show the same spot.

    Args:
        n: how many, ≥ 1.
        part: `"train"` or `"test"`: disjoint photographs and disjoint handwriting.
        grid: rows and columns (H, W) of cards; an even number of them.
        seed: of everything drawn.

    Raises:
        ValueError: for `n` or a side of the grid below 1, an odd number of cards, more pairs than spots, or an
            unknown part.
    """
    H, W = grid
    views, ink, labels = _material(part)
    pairs, rest = divmod(H * W, 2)
    if min(n, H, W) < 1 or rest or pairs > len(views):
        raise ValueError(f"n={n} must be positive, grid={grid} hold an even number of cards, {2 * len(views)} at most")
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, below: int) -> Tensor:
        return torch.randint(below, shape, generator=generator)

    # One spot from each of `pairs` equal stretches of the list, so that all are different.
    where = (torch.arange(pairs) + torch.rand(n, pairs, generator=generator)) * (len(views) / pairs)
    spot = where.long().clamp_max(len(views) - 1).repeat(1, 2)
    photo = views[spot, draw(n, 2 * pairs, below=views.shape[1])]  # n, cards, 3, 8, 8
    light = (LIGHT * (2 * torch.rand(n, 2 * pairs, 1, 1, 1, generator=generator) - 1)).exp()
    chosen = draw(n, pairs, below=len(ink))
    written = torch.cat([ink[chosen], torch.zeros_like(ink[chosen])], 1)[:, :, None].expand_as(photo)
    cards = F.pad(torch.cat([(photo * light).clamp(0, 1), written], 3), (1, 1, 1, 1))

    order = torch.rand(n, 2 * pairs, generator=generator).argsort(1)  # which card lies at each place
    place = order.argsort(1)  # where each card lies
    rows = torch.arange(n)[:, None]
    images = rearrange(cards[rows, order], "B (H W) C y x -> B C (H y) (W x)", H=H)
    number = labels[chosen].repeat(1, 2)[rows, order]
    partner = place[rows, (order + pairs) % (2 * pairs)]
    return Sheets(images, number.view(n, H, W), (order >= pairs).view(n, H, W), partner.view(n, H, W))


def features(images: Tensor) -> Tensor:
    """What a classical front end would hand over: sheets `(n, 3, 18·H, 10·W)` → features `(n, 48, H, W)`.

    32 numbers describe the photograph of a card: its principal components, after mean and contrast are taken out.
    16 describe what is written: the principal components of handwritten digits. Both are computed on the training
    part and scaled to a mean square of 1. The features of a card say nothing about any other card.

    Raises:
        ValueError: if the images are no whole number of cards high and wide.
    """
    if images.shape[-2] % CARD[0] or images.shape[-1] % CARD[1]:
        raise ValueError(f"images of shape {tuple(images.shape)} must be a multiple of {CARD} pixels high and wide")
    look, read, mean, spread = _front_end()
    cards = rearrange(images, "B C (H y) (W x) -> B H W C y x", y=CARD[0], x=CARD[1])[..., 1:-1, 1:-1]
    photo = F.normalize(_pattern(cards[..., :SIDE, :]) @ look, dim=-1) * PHOTO**0.5
    digit = (cards[..., 0, SIDE:, :].flatten(-2) - mean) @ read / spread
    return torch.cat([photo, digit], -1).permute(0, 3, 1, 2).contiguous()


def score(answers: Tensor, number: Tensor, where: Tensor) -> float:
    """The share of cards that answer rightly.

    Args:
        answers: class scores `(n, 10, H, W)`.
        number: the truth, `(n, H, W)`.
        where: `(n, H, W)`, bool: the cards that count.
    """
    return share_right(answers, number, where)


@cache
def _material(part: str) -> tuple[Tensor, Tensor, Tensor]:
    """Four views of each spot `(spots, 4, 3, 8, 8)`, digits `(D, 8, 8)` and their labels `(D,)`."""
    check_choice("part", part, PHOTOGRAPHS)
    zooms = (image(name, size) for name in PHOTOGRAPHS[part] for size in (48, 72, 108))
    spots = cut(zooms, (SIDE + 1, SIDE + 1), 4)
    views = torch.stack([spots[:, :, y : y + SIDE, x : x + SIDE] for y in (0, 1) for x in (0, 1)], 1)
    ink, labels = digits(part)
    return views[views.std((-2, -1)).mean(2).amin(1) > CONTRAST], ink[:, 0], labels


@cache
def _front_end() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Principal axes of photographs `(192, 32)` and of digits `(64, 16)`; the digits' mean `(64,)` and spread."""
    views, ink, _ = _material("train")
    ink = ink.flatten(1)
    look, read = (torch.linalg.svd(rows, full_matrices=False).Vh for rows in (_pattern(views[:, 0]), ink - ink.mean(0)))
    look, read = look[:PHOTO].T, read[:DIGIT].T
    return look, read, ink.mean(0), ((ink - ink.mean(0)) @ read).square().mean().sqrt()


def _pattern(photo: Tensor) -> Tensor:
    """Pieces of photographs (…, 3, 8, 8) as vectors of length 1 without mean: what light does not change."""
    v = photo.flatten(-3)
    return F.normalize(v - v.mean(-1, keepdim=True), dim=-1)


def _data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    train, test = sheets(1024), sheets(512, "test", seed=1)
    return (features(train.images), train.number), (features(test.images), test.number, test.asks)


def _network(make: Callable[[], nn.Module]) -> nn.Sequential:
    """The layer that has to carry a number from card to card, and two 1 × 1 convolutions; features go in."""
    return nn.Sequential(make(), nn.Conv2d(PHOTO + DIGIT, 64, 1), nn.ReLU(), nn.Conv2d(64, 10, 1))


def _picture() -> "Figure":
    from ..viz import images

    shown = sheets(1, "test", seed=1).images[0].repeat_interleave(4, 1).repeat_interleave(4, 2)
    return images(shown, title="Which number has each card's partner?",
                  alt="A sheet of 4 by 6 cards, each a small piece of a photograph in colour with a handwritten digit "
                      "below it or nothing. Every piece appears twice, once with a digit.")


TASK = Task(
    id="cloakroom",
    question=__doc__.partition("\n")[0],
    chapters=("non_local",),
    data=_data,
    layout="B C H W", channels=PHOTO + DIGIT, size=(4, 6),
    build=_network,
    options=dict(groups=1, bias=True, zero_init=False),  # trained from nothing: it need not start as the identity
    score=lambda model, data: score(answers(model, data[0]), *data[1:]),
    score_name="share of right numbers",
    chance=0.1,
    training=dict(steps=200, batch=32, lr=1e-2),
    picture=_picture,
)
