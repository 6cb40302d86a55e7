"""One scene, photographed twice: a short exposure, noisy everywhere, and a long one, cut off where it is bright.

Both estimate the same radiance, the light that falls on a pixel in each of three colours. The short exposure never
saturates, but the sensor's noise is large beside the little light that it collects. The long exposure collects four
times as much, so the same noise counts a quarter; what exceeds the sensor's range reads as its maximum. Which of the
two to believe depends on the pixel and on the colour: an orange wall saturates in red and not in blue.

The scenes are photographs, in linear light; the exposures and the noise are computed. Photographs of the test part do
not occur in the training part.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_choice
from ..toys.images import cut, image
from ..toys.train import answers
from ._catalog import Task

if TYPE_CHECKING:
    from ..viz import Figure

RATIO = 4.0  # the long exposure lasts this many times the short one; it saturates at radiance 1, the short at 4
NOISE = 0.1  # deviation of a sensor's reading; its range is 0 to 1
GAMMA = 2.2  # a photograph stores light^(1/2.2)
FIXED = 22.67  # decibels on `held_out()` of fixed shares, one for each colour, that are best on the training part
PATCH = 16  # pixels of a training scene
PHOTOGRAPHS = {
    "train": ("astronaut", "cells", "retina", "hubble", "motorcycle"),
    "test": ("cat", "coffee", "rocket"),
}


def radiance(name: str, size: int | tuple[int, int]) -> Tensor:
    """Light of a packaged photograph, (3, H, W): 0 is black, 1 saturates the long exposure, 4 is white."""
    return RATIO * image(name, size) ** GAMMA


def expose(light: Tensor, generator: torch.Generator | None = None, noise: float = NOISE) -> tuple[Tensor, Tensor]:
    """Two photographs of `light` (any shape), each divided by its exposure time: two estimates of the radiance.

    Args:
        light: radiance, at least 0.
        generator: of the noise; torch's own when None.
        noise: deviation of a reading, at least 0.

    Returns:
        (short, long): RATIO · clip(light / RATIO + ε, 0, 1) and clip(light + ε′, 0, 1).

    Raises:
        ValueError: for negative noise.
    """
    if noise < 0:
        raise ValueError(f"noise={noise} must not be negative")
    readings = torch.stack([light / RATIO, light])
    drawn = torch.randn(readings.shape, generator=generator, dtype=light.dtype)
    short, long = (readings + noise * drawn).clamp(0, 1)
    return RATIO * short, long


def sampler(part: str = "train") -> Callable[[int, torch.Generator], tuple[Tensor, Tensor, Tensor]]:
    """A function that draws patches, as `toys.fit` wants it.

    Args:
        part: "train" or "test": disjoint photographs.

    Returns:
        `draw(batch, generator) -> (short, long, radiance)`, each (batch, 3, 16, 16).

    Raises:
        ValueError: if there is no such part.
    """
    patches = _patches(part)

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        light = patches[torch.randint(len(patches), (batch,), generator=generator)]
        return *expose(light, generator), light

    return draw


def held_out(size: int = 96, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(short, long, radiance) of the three test photographs, each (3, 3, size, size); the same at every call."""
    light = torch.stack([radiance(name, size) for name in PHOTOGRAPHS["test"]])
    return *expose(light, torch.Generator().manual_seed(seed)), light


def display(light: Tensor) -> Tensor:
    """Radiance as a picture in [0, 1], 4 being white."""
    return (light / RATIO).clamp(0, 1) ** (1 / GAMMA)


def psnr(model: nn.Module | Callable[..., Tensor], data: Sequence[Tensor]) -> float:
    """How near model(short, long) is to the radiance, in decibels: 20 log₁₀ of white over the RMS error.

    Ten decibels more are a tenth of the mean squared error. A module's mode is put back.
    """
    *exposures, light = data
    mse = (answers(model, *exposures) - light).square().mean().item()
    return 10 * math.log10(RATIO**2 / mse)


@cache
def _patches(part: str) -> Tensor:
    check_choice("part", part, PHOTOGRAPHS)
    return cut((radiance(name, 96) for name in PHOTOGRAPHS[part]), (PATCH, PATCH), PATCH)


class _Shares(nn.Module):
    """One share for each colour, the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(3, 1, 1))

    def forward(self, short: Tensor, long: Tensor) -> Tensor:
        z = torch.sigmoid(self.share)
        return z * short + (1 - z) * long


def _picture() -> "Figure":
    from ..viz import images

    light = radiance("coffee", (64, 96))[None]
    short, long = expose(light, torch.Generator().manual_seed(1))
    return images({name: display(x[0]) for name, x in {"short": short, "long": long, "the scene": light}.items()},
                  title="Which of the two exposures is right?", ncols=3,
                  alt="Three pictures of a cup of coffee on a wooden table: full of coloured noise; less noisy, but "
                      "grey in the cup and yellowish on the table; and the scene itself.")


TASK = Task(
    id="two_exposures",
    question=__doc__.partition("\n")[0],
    chapters=("gated",),
    data=lambda: (sampler(), held_out()),
    layout="B C H W, B C H W", channels=3,
    build=lambda make: make(),  # the module itself is the network
    nothing=_Shares,
    score=psnr,
    score_name="dB",
    chance=FIXED,
    training=dict(steps=300, batch=32, lr=0.2, loss=F.mse_loss),
    picture=_picture,
)
