"""Read one of two digits; the one on the brighter screen counts, at any exposure.

The backgrounds of one screen are brighter than those of the other, by a factor between 1.5 and 3. The whole map is
then multiplied by an exposure. In training it lies between 0.7 and 1.4; in the test it is a quarter to an eighth, or
four to eight times as much, so that no rule that goes by absolute brightness carries over. See `_two_screens` for
the rest.
"""

import torch
from torch import Tensor

from ._two_screens import CHANNELS, TwoScreens, level

RATIO = (1.5, 3.0)  # of the brighter screen's mean to the other's
SEEN = 1.4  # exposures of the training part: from 1/1.4 to 1.4
UNSEEN = (4.0, 8.0)  # of the test part: between these, or 1 by a number between these


def _brighter(photographs: Tensor, first: Tensor, generator: torch.Generator) -> Tensor:
    low, high = RATIO
    ratio = low * (high / low) ** torch.rand(len(first), 1, 1, 1, generator=generator)
    of_a = (torch.arange(CHANNELS) % 2 == 0)[:, None, None]
    half = torch.where(of_a == first[:, None, None, None], ratio.sqrt(), 1 / ratio.sqrt())
    return level(photographs) * half


def _exposure(n: int, part: str, generator: torch.Generator) -> Tensor:
    where = torch.rand(n, generator=generator)
    if part == "train":
        return SEEN ** (2 * where - 1)
    low, high = UNSEEN
    factor = low * (high / low) ** where
    return torch.where(torch.rand(n, generator=generator) < 0.5, factor, 1 / factor)


_screens = TwoScreens(_brighter, _exposure)
sampler, held_out, pairs = _screens.sampler, _screens.held_out, _screens.pairs

TASK = _screens.task(
    "brighter_digits", __doc__.partition("\n")[0], ("gct",),
    alt="Four maps, each a grey photograph with a black square in the middle, a 2 on that of A and an 8 on that of "
        "B. Where A counts its photograph is the brighter one, where B counts that of B.",
)
