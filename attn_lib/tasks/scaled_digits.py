"""Handwritten digits from 8 to 22 pixels tall: say on every speck of ink which digit it belongs to.

The digit is the same figure at every size, so the place to look for the rest of it, seen from a speck of ink, grows
with the digit. A kernel whose taps sit on a fixed grid suits one size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_choice
from ..toys.data import digits, split
from ..toys.train import answers
from ._catalog import Task

if TYPE_CHECKING:
    from ..viz import Figure

SIZE = 24  # pixels of an image
HEIGHTS = (8.0, 22.0)  # of the smallest and the largest digit, in pixels
KINDS = 4  # the digits 0, 1, 2 and 3
STRIDE = 2  # one answer for 2 × 2 pixels
CHANNELS = 16  # of every feature map
INK = 0.4  # where the image is darker than this there is ink, and an answer is wanted
NONE = -100  # the label where it is not, which `F.cross_entropy` passes over


@dataclass(frozen=True)
class Sheet:
    """What `held_out` returns.

    Attributes:
        images: `(n, 1, 24, 24)`, float32 in [0, 1].
        labels: `(n, 12, 12)`, int64: the digit where there is ink, `NONE` elsewhere.
        heights: `(n,)`, pixels from 8 to 22.
    """

    images: Tensor
    labels: Tensor
    heights: Tensor


def sampler(part: str = "train") -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """A function that draws fresh images, as `toys.fit` wants it.

    Args:
        part: `"train"` or `"test"`: disjoint handwriting.

    Returns:
        `draw(batch, generator) -> (images (batch, 1, 24, 24), labels (batch, 12, 12))`.

    Raises:
        ValueError: if there is no such part.
    """
    ink, kinds = _handwriting(part)

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        sheet = _draw(ink, kinds, batch, generator)
        return sheet.images, sheet.labels

    return draw


def held_out(n: int = 300, seed: int = 0) -> Sheet:
    """`n` images of the test part, the same at every call."""
    return _draw(*_handwriting("test"), n, torch.Generator().manual_seed(seed))


def render(digit: Tensor, height: float | Tensor, centre: float | Tensor = 0.0) -> Tensor:
    """Digits at their sizes, enlarged bilinearly.

    Args:
        digit: `(n, 1, 8, 8)`.
        height: pixels, a number or `(n,)`.
        centre: the digit's centre (down, right) from the image's, in pixels: a number or `(n, 2)`.

    Returns:
        `(n, 1, 24, 24)`, in [0, 1].
    """
    n = len(digit)
    zoom = (SIZE / 10) * 8 / torch.as_tensor(height).expand(n)  # the padded digit has 10 pixels
    centre = torch.as_tensor(centre).expand(n, 2) / (SIZE / 2)
    theta = torch.diag_embed(zoom[:, None].expand(n, 2))
    theta = torch.cat([theta, -(zoom[:, None] * centre.flip(1))[..., None]], 2)
    grid = F.affine_grid(theta, [n, 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(F.pad(digit, (1, 1, 1, 1)), grid, align_corners=False)


def network(layer: Callable[[int], nn.Module], channels: int = CHANNELS) -> nn.Sequential:
    """Two convolutions, then the layer in question, then an answer a position.

    Args:
        layer: called with the number of channels; makes a module that keeps the shape.
        channels: of every feature map.

    Returns:
        Images `(n, 1, 24, 24)` → class scores `(n, 4, 12, 12)`; the layer is called `layer`.
    """
    def block(convolution: nn.Module) -> nn.Module:
        return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())

    net = nn.Sequential()
    net.add_module("stem", block(nn.Conv2d(1, channels, 3, stride=STRIDE, padding=1)))
    net.add_module("body", block(nn.Conv2d(channels, channels, 3, padding=1)))
    net.add_module("layer", layer(channels))
    net.add_module("norm", nn.BatchNorm2d(channels))
    net.add_module("relu", nn.ReLU())
    net.add_module("head", nn.Conv2d(channels, KINDS, 1))
    return net


def hits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Fraction of the ink that each image got right, `(n,)`; the model is used in eval mode and restored."""
    right = (answers(model, images).argmax(1) == labels).sum((1, 2))
    return right / (labels != NONE).sum((1, 2))


def accuracy(model: nn.Module, data: Sequence[Tensor]) -> float:
    """Mean of `hits` over (images, labels): small digits count as much as large ones."""
    return hits(model, *data).mean().item()


def _draw(ink: Tensor, kinds: Tensor, n: int, generator: torch.Generator) -> Sheet:
    low, high = HEIGHTS
    drawn = torch.randint(len(ink), (n,), generator=generator)
    height = low * (high / low) ** torch.rand(n, generator=generator)  # every doubling of the size equally often
    room = (SIZE - height) / 2
    images = render(ink[drawn], height, (2 * torch.rand(n, 2, generator=generator) - 1) * room[:, None])
    corner = images[:, 0, ::STRIDE, ::STRIDE]
    return Sheet(images, torch.where(corner > INK, kinds[drawn][:, None, None], NONE), height)


@cache
def _handwriting(part: str) -> tuple[Tensor, Tensor]:
    check_choice("part", part, ("train", "test"))
    images, labels = digits()
    train, test = split(images[labels < KINDS], labels[labels < KINDS])
    return train if part == "train" else test


def _data() -> tuple[Callable[[int, torch.Generator], tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    test = held_out()
    return sampler(), (test.images, test.labels)


def _picture() -> "Figure":
    from ..viz import images

    sheet = held_out()
    ends = sheet.heights.argsort()[[3, 40, 100, 160, 220, 290]]
    return images({f"{sheet.heights[i]:.0f} pixels": 1 - sheet.images[i, 0] for i in ends}, ncols=6,
                  title="Which digit is it, at any size?",
                  alt="Six handwritten digits between 0 and 3, from 8 to 22 pixels tall, in images of 24 by 24 pixels.")


TASK = Task(
    id="scaled_digits",
    question=__doc__.partition("\n")[0],
    chapters=("deform", "epsa"),
    data=_data,
    layout="B C H W", channels=CHANNELS, size=(SIZE // STRIDE, SIZE // STRIDE),
    build=lambda make: network(lambda channels: make()),
    # Δm = 2σ(·), as in the example of deformable convolution's release: starts at 1
    options=dict(groups=1, reduction=1, mask_scale=2.0),
    score=accuracy,
    score_name="share of the ink told right",
    chance=1 / KINDS,
    training=dict(steps=70, batch=32, lr=8e-3),
    picture=_picture,
)
