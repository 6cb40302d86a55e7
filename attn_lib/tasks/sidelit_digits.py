"""Read one of two digits; whether light falls from above or from below decides which.

The backgrounds of all channels are lit from one side: from above where the digit of screen A counts, from below where
that of screen B does. Photographs are drawn as often upside down as not. So the backgrounds of one case are those of
the other upside down: the same pixels in other places. See `_two_screens` for the rest.
"""

import torch
from torch import Tensor

from ._two_screens import SIZE, TwoScreens, level

LIGHT = 0.8  # from e^0.8 at one edge to e^-0.8 at the other


def _lit(photographs: Tensor, first: Tensor, generator: torch.Generator) -> Tensor:
    lit = level(photographs * torch.linspace(LIGHT, -LIGHT, SIZE)[:, None].exp())
    return torch.where(first[:, None, None, None], lit, lit.flip(2))


_screens = TwoScreens(_lit)
sampler, held_out, pairs = _screens.sampler, _screens.held_out, _screens.pairs

TASK = _screens.task(
    "sidelit_digits", __doc__.partition("\n")[0], ("fca",),
    alt="Four maps, each a grey photograph with a black square in the middle. Where A counts both photographs are "
        "brighter above the square, where B counts both are brighter below it. On the square of A stands a 2, on "
        "that of B an 8, in either case.",
)
