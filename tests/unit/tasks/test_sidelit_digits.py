"""The task of the FcaNet chapter: light from above or from below."""

import torch

from attn_lib.tasks import _two_screens as frame
from attn_lib.tasks import sidelit_digits
from tests.unit.tasks.two_screens import first_screen

# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
ignorant = first_screen


def test_light_falls_from_above_where_a_counts():
    maps, *_ = sidelit_digits.pairs(100)
    above = maps[..., :3, :].mean((-3, -2, -1)) - maps[..., -3:, :].mean((-3, -2, -1))  # n, 2
    assert (above[:, 0] > above[:, 1]).all() and (above[:, 0] > 0).float().mean() > 0.97
    assert (above[:, 1] < 0).float().mean() > 0.97


def test_where_it_falls_from_is_no_matter_of_the_photographs():
    """Turned upside down, maps of one case are maps of the other: the light is mirrored, and photographs come so."""
    photographs = frame.windows("train", 5, torch.Generator().manual_seed(0))
    light = sidelit_digits._screens.cue
    above, below = (light(p, torch.full((5,), case), None) for p, case in ((photographs, True),
                                                                           (photographs.flip(2), False)))
    torch.testing.assert_close(above, below.flip(2))
