"""Reading the screens of a map by the nearest handwriting, for the tests of the tasks that have two."""

import torch
from torch import Tensor

from attn_lib.tasks import _two_screens as frame
from tests.unit.tasks.answer import scores_for


def read(maps: Tensor, screen: int) -> Tensor:
    """The digit on a screen (0: A, 1: B), at any exposure."""
    _, ink, labels = frame.material("test")
    shown = maps[:, screen, frame.INK, frame.INK].flatten(1)
    unit = torch.nn.functional.normalize
    return labels[(unit(shown) @ unit(ink.flatten(1)).mT).argmax(1)]


def first_screen(maps: Tensor) -> Tensor:
    """What whoever cannot tell the cases apart can answer: the digit of A."""
    return scores_for(read(maps, 0), 10)
