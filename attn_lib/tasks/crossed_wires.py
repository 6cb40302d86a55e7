"""Read a digit from a scanner whose wires were soldered in the wrong order.

The scanner is a strip of 11 rows and 8 columns; a handwritten digit of 8 × 8 pixels lies on it at one of four heights.
Each row and each column has a wire of its own, and the wires were crossed once and for all: every picture comes with
its rows in the same wrong order, and its columns too. Nothing is lost, and one permutation would put it right. But
neighbours in the picture are no longer neighbours on the strip, and what is moved along the strip does not move in
the picture. Handwriting of the test part does not occur in the training part.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..toys.data import digits
from ._catalog import Task

if TYPE_CHECKING:
    from ..viz import Figure

HEIGHT, WIDTH = 11, 8  # of the strip; a digit is as wide as the strip
CHANNELS = 16  # of every feature map
PLACES = HEIGHT - WIDTH + 1
ROWS = (3, 8, 2, 4, 9, 1, 6, 10, 5, 7, 0)  # row h of a picture shows row ROWS[h] of the strip
COLUMNS = (5, 3, 1, 6, 4, 0, 7, 2)  # no two neighbours have stayed neighbours


def sampler(part: str = "train", crossed: bool = True) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """A function that draws fresh pictures, as `toys.fit` wants it.

    Args:
        part: `"train"` or `"test"`: disjoint handwriting.
        crossed: whether the wires are crossed.

    Returns:
        `draw(batch, generator) -> (pictures (batch, 1, 11, 8), labels (batch,))`.

    Raises:
        ValueError: if there is no such part.
    """
    ink, labels = digits(part)

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(ink), (batch,), generator=generator)
        strip = place(ink[chosen], torch.randint(PLACES, (batch,), generator=generator))
        return cross(strip) if crossed else strip, labels[chosen]

    return draw


def held_out(n: int = 1024, seed: int = 0, crossed: bool = True) -> tuple[Tensor, Tensor]:
    """`n` pictures and labels of the test part, the same at every call."""
    return sampler("test", crossed)(n, torch.Generator().manual_seed(seed))


def place(ink: Tensor, top: Tensor) -> Tensor:
    """Digits `(B, 1, 8, 8)` on empty strips `(B, 1, 11, 8)`, the first row of each in row `top`, `(B,)`."""
    rows = top[:, None, None, None] + torch.arange(WIDTH)[:, None]
    return ink.new_zeros(len(ink), 1, HEIGHT, WIDTH).scatter(2, rows.expand_as(ink), ink)


def cross(strip: Tensor) -> Tensor:
    """What the scanner delivers: `(..., 11, 8)` with its rows in the order `ROWS`, its columns in `COLUMNS`."""
    return strip[..., ROWS, :][..., COLUMNS]


def _network(make: Callable[[], nn.Module]) -> nn.Sequential:
    """A 1 × 1 convolution, twice the layer in question, the mean over all positions, a linear layer."""
    layers = [nn.Conv2d(1, CHANNELS, 1), nn.BatchNorm2d(CHANNELS), nn.ReLU()]
    for _ in range(2):
        layers += [make(), nn.BatchNorm2d(CHANNELS), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10))


def _picture() -> "Figure":
    from ..viz import images

    ink, digit = digits("test")
    strip = place(ink[5:6], torch.tensor([2]))
    return images({f"a {digit[5]} on the strip": strip[0, 0], "what arrives": cross(strip)[0, 0]}, ncols=2,
                  title="Which digit was it?",
                  alt="A handwritten digit on a narrow strip; the same with rows and columns shuffled, scattered white "
                      "and grey cells.")


TASK = Task(
    id="crossed_wires",
    question=__doc__.partition("\n")[0],
    chapters=("vip",),
    data=lambda: (sampler(), held_out()),
    layout="B C H W", channels=CHANNELS, size=(HEIGHT, WIDTH),
    build=_network,
    options=dict(groups=1),
    chance=0.1,
    training=dict(steps=120, batch=32, lr=3e-2),
    picture=_picture,
)
