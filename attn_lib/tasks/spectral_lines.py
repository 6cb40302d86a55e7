"""Read the digit that glows in a few narrow lines of the spectrum; another one is lit in all other bands.

A camera takes the same spot in sixteen bands of the spectrum, ordered by wavelength. One handwritten digit glows by
itself, but only in a few narrow lines, other lines in every shot. Another digit, on the same pixels, is lit by a lamp
and seen in all bands between. The lamp's spectrum is smooth and differs from shot to shot: a band may be a hundred
times brighter than another. A line is twice as bright as the lamp would be in its band, so what gives it away is
neither how bright it is nor where it lies, but that it stands out against the bands beside it.

No two lines are neighbours. Every digit is drawn with the same amount of ink, so the mean of a band is the lamp's
brightness there, or twice that in a line. Handwriting of the test part does not occur in the training part.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..toys.data import digits
from ._catalog import Task

if TYPE_CHECKING:
    from ..viz import Figure

BANDS = 16
LINE = 2.0  # a line over the lamp's brightness in its band
LAMP = 2.0  # largest amplitude of each of the two waves that make the lamp's log-spectrum


def sampler(part: str = "train") -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """A function that draws fresh shots, as `toys.fit` wants it.

    Args:
        part: `"train"` or `"test"`: disjoint handwriting.

    Returns:
        `draw(batch, generator) -> (shots (batch, 16, 8, 8), labels (batch,))`; the label is the glowing digit's.

    Raises:
        ValueError: if there is no such part.
    """
    ink, labels = parts(part)

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        glowing, lit = torch.randint(len(ink), (2, batch), generator=generator)
        lamp, lines = lamps(batch, generator), line_sets(batch, generator)
        return compose(ink[glowing], ink[lit], lamp, lines), labels[glowing]

    return draw


def held_out(n: int = 1024, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`n` shots and labels of the test part, the same at every call."""
    return sampler("test")(n, torch.Generator().manual_seed(seed))


def compose(glowing: Tensor, lit: Tensor, lamp: Tensor, lines: Tensor) -> Tensor:
    """Put the parts of a shot together.

    Args:
        glowing: `(..., 8, 8)`, the digit seen in the lines.
        lit: `(..., 8, 8)`, the digit seen in the other bands.
        lamp: `(..., 16)`, the lamp's brightness in each band.
        lines: `(..., 16)`, true where a line is.

    Returns:
        `(..., 16, 8, 8)`
    """
    brightness = lamp * torch.where(lines, LINE, 1.0)
    digit = torch.where(lines[..., None, None], glowing[..., None, :, :], lit[..., None, :, :])
    return brightness[..., None, None] * digit


def lamps(n: int, generator: torch.Generator) -> Tensor:
    """`(n, 16)`: spectra whose logarithm is a level and two slow waves along the bands."""
    band = (torch.arange(BANDS) + 0.5) / BANDS
    size = LAMP * (2 * torch.rand(n, 2, 1, generator=generator) - 1)
    phase = 2 * math.pi * torch.rand(n, 2, 1, generator=generator)
    level = torch.rand(n, 1, generator=generator) - 0.5
    waves = size * torch.cos(math.pi * torch.tensor([1.0, 2.0])[:, None] * band + phase)  # half a period, and one
    return (waves.sum(1) + level).exp()


def line_sets(n: int, generator: torch.Generator) -> Tensor:
    """`(n, 16)`, bool: about a third of the bands, no two of them neighbours."""
    r = torch.rand(n, BANDS, generator=generator)
    before, _, after = F.pad(r, (1, 1), value=2.0).unfold(1, BANDS, 1).unbind(1)
    return (r < before) & (r < after)  # where r has a local minimum


def parts(part: str = "test") -> tuple[Tensor, Tensor]:
    """What shots are made of: digits `(D, 8, 8)` of mean 1, their labels `(D,)`."""
    ink, labels = _material(part)
    return ink.clone(), labels.clone()


@cache
def _material(part: str) -> tuple[Tensor, Tensor]:
    ink, labels = digits(part)
    return (ink / ink.mean((2, 3), keepdim=True))[:, 0], labels


class _Read(nn.Module):
    """The mean of all bands, equally bright in all shots."""

    def forward(self, x: Tensor) -> Tensor:
        picture = x.mean(1).flatten(1)
        return picture / (picture.mean(1, keepdim=True) + 1e-3)


def _network(make: Callable[[], nn.Module]) -> nn.Sequential:
    """The gate on the bands themselves, the mean of all bands, and two linear layers.

    With nothing for a gate both digits lie on top of each other; then it is right in about 0.59 of the shots.
    """
    return nn.Sequential(make(), _Read(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def _picture() -> "Figure":
    from ..viz import channels

    ink, digit = parts("test")
    generator = torch.Generator().manual_seed(8)
    shot = compose(ink[3], ink[7], lamps(1, generator)[0], line_sets(1, generator)[0])
    return channels(shot / shot.amax((1, 2), keepdim=True), title=f"In which bands is it a {digit[3]}?",
                    alt="Sixteen pictures of 8 by 8 pixels, each brought to the same brightness: the lines show a 7, "
                        "all other bands a 4.")


TASK = Task(
    id="spectral_lines",
    question=__doc__.partition("\n")[0],
    chapters=("eca",),
    data=lambda: (sampler(), held_out()),
    layout="B C H W", channels=BANDS, size=(8, 8),
    build=_network,
    options=dict(reduction=1, groups=1),
    chance=0.1,
    training=dict(steps=150, batch=64, lr=2e-2),
    picture=_picture,
)
