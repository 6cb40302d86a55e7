"""Read one of two digits; the one whose channels are calmer counts.

The backgrounds of one screen have little contrast, as in fog, those of the other much. The digit of the calm screen
counts. The means of all channels are equal. See `_two_screens` for the rest.
"""

import torch
from torch import Tensor

from ._two_screens import CHANNELS, TwoScreens, level

CALM, RESTLESS = 0.06, 0.24  # standard deviations of the backgrounds


def _fogged(photographs: Tensor, first: Tensor, generator: torch.Generator) -> Tensor:
    of_a = torch.arange(CHANNELS) % 2 == 0
    calm = of_a == first[:, None]
    return level(photographs, std=torch.where(calm, CALM, RESTLESS)[..., None, None])


_screens = TwoScreens(_fogged)
sampler, held_out, pairs = _screens.sampler, _screens.held_out, _screens.pairs

TASK = _screens.task(
    "calm_digits", __doc__.partition("\n")[0], ("srm",),
    alt="Four maps, each a grey photograph with a black square in the middle, a 2 on that of A and an 8 on that of "
        "B. Where A counts its photograph is nearly even and that of B full of light and dark; where B counts it is "
        "the other way round.",
)
