"""The task of the deformable chapter: sizes, labels, and that it cannot be solved without looking around."""

import pytest
import torch
from torch import nn

from attn_lib import toys
from attn_lib.tasks import scaled_digits
from tests.unit.tasks.answer import always

# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
ignorant = always(1, 4, stride=2)


def test_images_labels_and_sizes():
    sheet = scaled_digits.held_out(200)
    assert sheet.images.shape == (200, 1, 24, 24) and sheet.labels.shape == (200, 12, 12)
    assert 0 <= sheet.images.min() and sheet.images.max() <= 1
    assert 8 <= sheet.heights.min() < 9 and 20 < sheet.heights.max() <= 22
    ink = sheet.labels != scaled_digits.NONE
    assert ink.any((1, 2)).all()
    assert all(len(labels[seen].unique()) == 1 for labels, seen in zip(sheet.labels, ink, strict=True))
    assert set(sheet.labels[ink].tolist()) == {0, 1, 2, 3}
    assert torch.equal(sheet.images, scaled_digits.held_out(200).images)


@pytest.mark.parametrize("height", [8.0, 13.0, 20.0])
def test_a_digit_is_as_tall_as_it_says(height):
    bar = torch.ones(1, 1, 8, 8)
    image = scaled_digits.render(bar, height, torch.tensor([[1.0, -1.0]]))[0, 0]
    assert image.sum().item() == pytest.approx(height ** 2, rel=0.02)
    rows, columns = image.sum(1), image.sum(0)
    where = torch.arange(24.0) - 11.5
    assert (rows * where).sum() / rows.sum() == pytest.approx(1, abs=0.05)
    assert (columns * where).sum() / columns.sum() == pytest.approx(-1, abs=0.05)


def test_training_and_test_handwriting_are_disjoint():
    train, test = (scaled_digits._handwriting(part)[0].flatten(1).tolist() for part in ("train", "test"))
    assert not {tuple(x) for x in train} & {tuple(x) for x in test}
    with pytest.raises(ValueError, match="part='both' must be"):
        scaled_digits.sampler("both")


def test_ink_alone_does_not_tell():
    """A network that sees single pixels is near chance: one in four."""
    with toys.seeded(0):
        blind = scaled_digits.network(lambda c: nn.Conv2d(c, c, 1), 8)
        for block in (blind.stem, blind.body):
            block[0] = nn.Conv2d(block[0].in_channels, 8, 1, stride=block[0].stride)
    toys.fit(blind, scaled_digits.sampler(), steps=100, lr=1e-2)
    sheet = scaled_digits.held_out()
    assert scaled_digits.accuracy(blind, (sheet.images, sheet.labels)) < 0.5
