"""The task of the EncNet chapter: a few pixels of one of two materials."""

import torch

from attn_lib.tasks import _two_screens as frame
from attn_lib.tasks import speck_digits as task
from tests.unit.tasks.two_screens import first_screen

# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
ignorant = first_screen


def test_materials_are_told_apart_by_no_channel_and_by_no_screen():
    of_a, of_b = task.MATERIALS
    assert of_a @ of_b == 0 and of_a.abs().unique().tolist() == of_b.abs().unique().tolist() == [1]
    for material in (of_a, of_b):
        assert material[0::2].sum() == material[1::2].sum() == 0


def test_the_specks_of_the_two_cases_lie_in_the_same_places():
    maps, *_ = task.pairs(50)
    pixels = maps[..., frame.around()] - frame.MEAN  # n, 2, 16, 228
    likeness = torch.einsum("n k c p, m c -> n k m p", pixels, task.MATERIALS) / task.DEPTH / frame.CHANNELS
    found = [likeness[:, case, case].topk(task.SPECKS + 1) for case in (0, 1)]
    for values, _ in found:
        assert (values[:, : task.SPECKS] > 0.85).all() and (values[:, task.SPECKS] < 0.85).all()
    a, b = (places[:, : task.SPECKS].sort(1).values for _, places in found)
    assert torch.equal(a, b)
    for case in (0, 1):  # of the other material there is nothing there
        assert (likeness[:, case, 1 - case].gather(1, a).abs() < 0.15).all()
