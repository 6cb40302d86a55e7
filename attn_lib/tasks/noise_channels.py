"""Read a digit from the half of the channels that a gate keeps, when the other half is noise.

Eight of sixteen channels show a handwritten digit, each under noise of its own, so that all eight read better than
four. The other eight show noise of the same strength and no digit. Which is which never changes: a gate needs to see
no image, it has to learn what is worth keeping. After training, the eight channels that the module in question lets
through least are cut off behind it, and the rest of the network reads what is left, as it is.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..toys.data import digits
from ..toys.train import answers
from ._catalog import Task
from ._two_screens import CHANNELS, INK, compose, level, network, windows

if TYPE_CHECKING:
    from ..viz import Figure

KEPT = 8
SIGNAL = torch.arange(CHANNELS) % 2 == 0  # the channels with the digit
NOISE = 1.0  # standard deviation, beside ink between 0 and 1
FOUR = 0.7  # accuracy of whoever keeps eight channels at random, four of them with the digit (measured)


def sampler(part: str = "train", *, told: bool = False) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """A function that draws fresh maps, as `toys.fit` wants it.

    Args:
        part: `"train"` or `"test"`: disjoint handwriting, disjoint photographs behind it.
        told: leave the channels without a digit empty, which tells what to keep.

    Returns:
        `draw(batch, generator) -> (maps (batch, 16, 22, 22), labels (batch,))`.

    Raises:
        ValueError: if there is no such part.
    """
    ink, labels = digits(part)

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = torch.randint(len(ink), (batch,), generator=generator)
        shown = torch.cat([ink[drawn], torch.zeros_like(ink[drawn])], 1)
        maps = compose(level(windows(part, batch, generator)), shown)
        maps[..., INK, INK] += NOISE * torch.randn(batch, CHANNELS, 8, 8, generator=generator)
        return maps * SIGNAL[:, None, None] if told else maps, labels[drawn]

    return draw


def held_out(n: int = 1024, seed: int = 0, *, told: bool = False) -> tuple[Tensor, Tensor]:
    """`n` maps and labels of the test part, the same at every call."""
    return sampler("test", told=told)(n, torch.Generator().manual_seed(seed))


def passed(module: nn.Module, maps: Tensor) -> Tensor:
    """How much of each channel the module lets through, `(16,)`: ∑|y| / ∑|x| over images and positions; 0 of none."""
    return answers(module, maps).abs().sum((0, 2, 3)) / maps.abs().sum((0, 2, 3)).clamp(min=1e-12)


class Keep(nn.Module):
    """Cuts off channels."""

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask[:, None, None]


def prune(net: nn.Sequential, worth: Tensor, kept: int = KEPT) -> nn.Sequential:
    """The network with only those channels behind its first layer that are worth most.

    Args:
        net: as this task's `network` makes it; it is not changed, and shares its layers with what is returned.
        worth: `(16,)`, such as `passed` or the shares of a normalisation; of equal ones the first are kept.
        kept: how many, from 0 to 16.
    """
    mask = torch.zeros(CHANNELS)
    mask[worth.argsort(descending=True, stable=True)[:kept]] = 1
    return nn.Sequential(net[0], Keep(mask), *list(net)[1:])


def score(net: nn.Module, data: Sequence[Tensor]) -> float:
    """Accuracy of the pruned network; of a rule without layers, the accuracy as it is."""
    maps, labels = data
    if isinstance(net, nn.Sequential):
        net = prune(net, passed(net[0], maps))
    return (answers(net, maps).argmax(1) == labels).float().mean().item()


def _picture() -> "Figure":
    from ..viz import images

    maps, _ = held_out(1)
    return images({f"channel {c}": maps[0, c].clamp(0, 1) for c in range(4)}, ncols=4,
                  title="Which channels are worth keeping?",
                  alt="Four maps, each a grey photograph with a black square in the middle that is filled with noise. "
                      "In channels 0 and 2 a digit can be guessed under the noise, in channels 1 and 3 there is none.")


TASK = Task(
    id="noise_channels",
    question=__doc__.partition("\n")[0],
    chapters=("nam",),
    data=lambda: (sampler(), held_out()),
    told=lambda: (sampler(told=True), held_out(told=True)),
    layout="B C H W", channels=CHANNELS, size=(22, 22),
    build=network,
    options=dict(reduction=1, groups=1, reduced=CHANNELS, codewords=8),
    score=score,
    score_name="accuracy after half of the channels are cut off",
    chance=FOUR,
    training=dict(steps=200, batch=16, lr=1e-2),
    picture=_picture,
)
