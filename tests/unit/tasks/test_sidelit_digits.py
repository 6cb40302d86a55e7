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


def test_the_cases_hold_the_same_pixels_in_other_places():
    maps, *_ = sidelit_digits.pairs(10)
    a, b = maps.unbind(1)
    mask = frame.around()
    assert torch.equal(a[..., mask], b.flip(2)[..., mask]) and not torch.equal(a[..., mask], b[..., mask])
