"""A contact sheet of small photographs: which scene stands where the marked row and the marked column cross?

Twenty crops of six photographs lie on a sheet of four rows and five columns. A green mark on the left edge says
which row counts, one on the top edge which column; the label is the photograph from which the crop at the crossing
was cut. The marks touch no crop but those of the first row and the first column, so what has to be known about a
crop is written up to a whole sheet away from it, in its own row and in its own column.

Crops start at multiples of four pixels: a first layer of 4 × 4 patches mixes no crop with its neighbour, nor with
a mark. Behind such a layer, everything that does not know positions (a mean over the map, a gate for each channel)
gives the same answer wherever the marks stand. Crops of the test part come from the right halves of the
photographs, those of the training part from the left halves.
"""

from collections.abc import Callable
from functools import cache
from math import factorial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..checks import check_choice
from ..toys.images import cut, image
from ._catalog import Task

if TYPE_CHECKING:
    from ..viz import Figure

GRID = (4, 5)  # rows and columns of crops
TILE = 12  # pixels: side of a crop
EDGE = 4  # pixels: width of the edges that hold the marks, on the left and above
PHOTOGRAPHS = ("cat", "cells", "hubble", "retina", "brick", "grass")
SIDE, STEP = 64, 3  # crops are cut from photographs of 64 × 64 pixels, at every third pixel
CHANNELS = 32  # of the patches' features
GREEN = (0.1, 0.8, 0.2)


def sampler(part: str = "train") -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """A function that draws fresh sheets, as `toys.fit` wants it.

    Args:
        part: `"train"` or `"test"`: left or right halves of the photographs.

    Returns:
        `draw(batch, generator) -> (sheets (batch, 3, 52, 64), labels (batch,))`.

    Raises:
        ValueError: if there is no such part.
    """
    tiles, labels = _crops(part, 1)

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = torch.randint(len(tiles), (batch, *GRID), generator=generator)
        row, column = (torch.randint(n, (batch,), generator=generator) for n in GRID)
        rows, columns = torch.arange(GRID[0]) == row[:, None], torch.arange(GRID[1]) == column[:, None]
        sheets = compose(tiles[drawn], rows, columns)
        return sheets, labels[drawn[torch.arange(batch), row, column]]

    return draw


def held_out(n: int = 512, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`n` sheets and labels of the test part, the same at every call."""
    return sampler("test")(n, torch.Generator().manual_seed(seed))


def crops(part: str = "test", zoom: int = 1) -> tuple[Tensor, Tensor]:
    """All crops of a part `(N, 3, 12 · zoom, 12 · zoom)` and their labels `(N,)`.

    The same number is the same piece of the same photograph at any zoom: 1 for networks, more to look at.
    """
    tiles, labels = _crops(part, zoom)
    return tiles.clone(), labels.clone()


def compose(tiles: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Put a sheet together.

    Args:
        tiles: `(..., H, W, 3, t, t)` in [0, 1], t a multiple of 12.
        rows: `(..., H)`, bool: the marked rows; one in the task, but any number can be drawn.
        columns: `(..., W)`, bool: the marked columns.

    Returns:
        `(..., 3, H · t + e, W · t + e)` with edges of e = t / 3 pixels on the left and above.

    Raises:
        ValueError: if crops are not square with a side that is a multiple of 12.
    """
    *batch, H, W, _, t, width = tiles.shape
    if t % TILE or t == 0 or t != width:
        raise ValueError(f"tiles has shape {tuple(tiles.shape)}; the last two must be equal multiples of {TILE}")
    e = t // TILE * EDGE
    sheet = tiles.new_zeros(*batch, 3, H * t + e, W * t + e)
    sheet[..., e:, e:] = tiles.movedim((-5, -4, -3), (-4, -2, -5)).reshape(*batch, 3, H * t, W * t)
    green = tiles.new_tensor(GREEN)[:, None, None]
    sheet[..., e:, :e] = green * rows.repeat_interleave(t, -1)[..., None, :, None]
    sheet[..., :e, e:] = green * columns.repeat_interleave(t, -1)[..., None, None, :]
    return sheet


def best_guess(n: int) -> float:
    """The best accuracy of whoever knows n candidate crops but not which of them counts.

    Naming the photograph that occurs most often among them is right as often as its share, on average over crops
    drawn independently from the six photographs.
    """
    kinds = len(PHOTOGRAPHS)

    def at_most(m: int) -> float:  # probability that no photograph occurs more than m times
        ways = [1.0] + [0.0] * n  # ways[i] · i! sequences of i crops
        for _ in range(kinds):
            ways = [sum(ways[i - k] / factorial(k) for k in range(min(i, m) + 1)) for i in range(n + 1)]
        return ways[n] * factorial(n) / kinds**n

    return sum(1 - at_most(m) for m in range(n)) / n  # E[max] / n, as max is at least 1, 2, …


@cache
def _crops(part: str, zoom: int) -> tuple[Tensor, Tensor]:
    check_choice("part", part, ("train", "test"))
    halves = (image(name, SIDE * zoom).tensor_split(2, dim=2)[part == "test"] for name in PHOTOGRAPHS)
    tiles = cut(halves, (TILE * zoom, TILE * zoom), STEP * zoom)
    return tiles, torch.arange(len(PHOTOGRAPHS)).repeat_interleave(len(tiles) // len(PHOTOGRAPHS))


def _network(make: Callable[[], nn.Module]) -> nn.Sequential:
    """Patches of 4 × 4, the gate, which alone carries news from place to place, the mean over positions, and a head."""
    gate = make()
    return nn.Sequential(
        nn.Conv2d(3, CHANNELS, 4, stride=4, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(),  # B C 13 16
        gate,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(CHANNELS),  # B C
        nn.Linear(CHANNELS, 48), nn.ReLU(), nn.Linear(48, len(PHOTOGRAPHS)),
    )


def _picture() -> "Figure":
    from ..viz import images

    large, kind = crops("test", zoom=3)
    chosen = torch.randint(len(large), GRID, generator=torch.Generator().manual_seed(4))
    rows, columns = torch.arange(GRID[0]) == 1, torch.arange(GRID[1]) == 3
    answer = PHOTOGRAPHS[kind[chosen[1, 3]]]
    return images({f"here it is the {answer}": compose(large[chosen], rows, columns)},
                  title="Which scene is where the marked row and column cross?",
                  alt="A sheet of four rows of five crops of photographs. A green bar on the left edge marks the "
                      "second row, one on the top edge the fourth column.")


TASK = Task(
    id="contact_sheet",
    question=__doc__.partition("\n")[0],
    chapters=("coord",),
    data=lambda: (sampler(), held_out()),
    layout="B C H W", channels=CHANNELS, size=(13, 16),
    build=_network,
    chance=best_guess(GRID[0] * GRID[1]),
    training=dict(steps=200, batch=32, lr=3e-2),
    picture=_picture,
)
