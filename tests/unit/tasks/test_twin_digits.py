"""The task of the GSoP and SoCA chapters: the same photographs behind both screens, or different ones."""

import torch

from attn_lib.tasks import _two_screens as frame
from attn_lib.tasks import twin_digits
from tests.unit.tasks.two_screens import first_screen

# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
ignorant = first_screen


def test_neighbours_are_twins_where_a_counts():
    maps, *_ = twin_digits.pairs(30)
    seen = maps[..., frame.around()]
    assert torch.equal(seen[:, 0, 0::2], seen[:, 0, 1::2]) and torch.equal(seen[:, 0, 0::2], seen[:, 1, 0::2])
    of_a, of_b = (seen[:, 1, screen::2] - frame.MEAN for screen in (0, 1))
    likeness = torch.nn.functional.cosine_similarity(of_a, of_b, dim=-1)
    assert likeness.mean().abs() < 0.1 and likeness.abs().mean() < 0.5


def test_a_channel_alone_is_as_likely_in_either_case():
    """Of both screens: each shows one photograph out of all, drawn alike."""
    generator = torch.Generator().manual_seed(0)
    photographs = frame.windows("train", 4000, generator)
    first = torch.rand(4000, generator=generator) < 0.5
    of_b = twin_digits._screens.cue(photographs, first, generator)[:, 1, 0, 0]
    assert abs(of_b[first].mean() - of_b[~first].mean()) < 0.02
