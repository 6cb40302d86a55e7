"""Read one of two digits; whether both screens hang before the same photographs decides which.

Every channel of screen A has a neighbour of screen B. Where A counts, the two show the same photograph; where B
counts, two different ones. Each channel taken alone looks the same in both cases. See `_two_screens` for the rest.
"""

import torch
from torch import Tensor

from ._two_screens import TwoScreens, level


def _paired(photographs: Tensor, first: Tensor, generator: torch.Generator) -> Tensor:
    of_a = photographs[:, 0::2]
    of_b = torch.where(first[:, None, None, None], of_a, photographs[:, 1::2])
    return level(torch.stack([of_a, of_b], 2).flatten(1, 2))


_screens = TwoScreens(_paired)
sampler, held_out, pairs = _screens.sampler, _screens.held_out, _screens.pairs

TASK = _screens.task(
    "twin_digits", __doc__.partition("\n")[0], ("gsop", "soca"), training=dict(steps=180, batch=24, lr=1e-2),
    alt="Four maps, each a grey photograph with a black square in the middle, a 2 on that of A and an 8 on that of "
        "B. Where A counts both photographs are the same; where B counts that of B is another one.",
)
