"""Read one of two digits; a few specks of one of two materials decide which.

Somewhere in the background lie four pixels of a material, which shows as a pattern over the channels: one pattern
where the digit of screen A counts, another where that of screen B does. Mean and standard deviation of every channel
are made equal afterwards, so that neither tells. See `_two_screens` for the rest.
"""

import torch
from torch import Tensor

from ._two_screens import MEAN, TwoScreens, around, level

SPECKS = 4  # pixels of the material in a map
DEPTH = 0.45  # by which a material is brighter or darker than the mean, in every channel
MATERIALS = torch.stack([  # orthogonal, and in both screens alike, bright as often as dark
    torch.tensor([1.0, 1, -1, -1]).repeat(4),
    torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1]).repeat(2),
])


def _strewn(photographs: Tensor, first: Tensor, generator: torch.Generator) -> Tensor:
    backgrounds = level(photographs)
    material = MEAN + DEPTH * MATERIALS[(~first).long()]  # n, 16
    room = around().flatten().nonzero()[:, 0]
    places = room[torch.rand(len(first), len(room), generator=generator).topk(SPECKS, largest=False).indices]  # n, 4
    flat = backgrounds.flatten(2)
    index = places[:, None].expand(-1, flat.shape[1], -1)
    flat = flat.scatter(2, index, material[..., None].expand_as(index))
    return level(flat.view_as(backgrounds))


_screens = TwoScreens(_strewn)
sampler, held_out, pairs = _screens.sampler, _screens.held_out, _screens.pairs

TASK = _screens.task(
    "speck_digits", __doc__.partition("\n")[0], ("encnet",),
    alt="Four maps, each a grey photograph with a black square in the middle, a 2 on that of A and an 8 on that of "
        "B. Four single pixels at the right edge of each photograph are black where A counts and white where B "
        "counts.",
)
