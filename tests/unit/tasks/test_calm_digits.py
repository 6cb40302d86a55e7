"""The task of the SRM chapter: the calmer screen counts."""

import torch

from attn_lib.tasks import _two_screens as frame
from attn_lib.tasks import calm_digits
from tests.unit.tasks.two_screens import first_screen

# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
ignorant = first_screen


def test_the_screen_that_counts_has_the_little_contrast():
    maps, *_ = calm_digits.pairs(30)
    stds = maps[..., frame.around()].std(-1, correction=0)  # n, 2, 16
    calm, restless = (torch.full((30, 8), std) for std in (calm_digits.CALM, calm_digits.RESTLESS))
    for case in (0, 1):
        torch.testing.assert_close(stds[:, case, case::2], calm)
        torch.testing.assert_close(stds[:, case, 1 - case :: 2], restless)
