"""The scanner with crossed wires: what it delivers, and that nothing is lost."""

import pytest
import torch

from attn_lib import toys
from attn_lib.tasks import crossed_wires
from tests.unit.tasks.answer import scores_for


# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
def ignorant(x):
    """Three, whatever is shown."""
    return scores_for(torch.full((len(x),), 3), 10)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("crossed", [True, False])
def test_shapes_and_range(crossed):
    x, labels = crossed_wires.sampler(crossed=crossed)(64, generator())
    assert x.shape == (64, 1, 11, 8) and labels.shape == (64,) and labels.dtype == torch.int64
    assert x.min() == 0 and x.max() == 1 and set(labels.tolist()) == set(range(10))


def test_the_same_seed_draws_the_same_pictures():
    draw = crossed_wires.sampler()
    for a, b in zip(draw(8, generator(3)), draw(8, generator(3)), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(draw(8, generator(3))[0], draw(8, generator(4))[0])
    for a, b in zip(crossed_wires.held_out(), crossed_wires.held_out(), strict=True):
        assert len(a) == 1024 and torch.equal(a, b)


def test_a_digit_is_whole_at_every_place():
    ink = toys.digits()[0][:4]
    strips = crossed_wires.place(ink, torch.arange(4))
    for top in range(4):
        assert torch.equal(strips[top, :, top:top + 8], ink[top])
    assert torch.equal(strips.sum((1, 2, 3)), ink.sum((1, 2, 3)))  # and nothing besides


def test_all_places_are_drawn():
    x, _ = crossed_wires.sampler(crossed=False)(512, generator())
    first, last = x.sum((1, 3))[:, :8] > 0, x.sum((1, 3))[:, 3:] > 0
    # Every digit of the set has ink in its first row and in its last.
    tops = {top for top in range(4) if (first.int().argmax(1) == top).any()}
    assert tops == {0, 1, 2, 3} and last.any(1).all()


def test_crossing_is_one_permutation_of_rows_and_one_of_columns():
    rows, columns = torch.tensor(crossed_wires.ROWS), torch.tensor(crossed_wires.COLUMNS)
    assert rows.sort().values.tolist() == list(range(11)) and columns.sort().values.tolist() == list(range(8))
    assert min(rows.diff().abs().min(), columns.diff().abs().min()) > 1  # no neighbours are left
    x = torch.randn(2, 3, 11, 8)
    y = crossed_wires.cross(x)
    assert torch.equal(y[:, :, 5, 7], x[:, :, rows[5], columns[7]])
    assert torch.equal(y[..., rows.argsort(), :][..., columns.argsort()], x)  # nothing is lost


def test_straight_and_crossed_pictures_differ_by_the_wires_alone():
    straight, crossed = (crossed_wires.sampler(crossed=c)(16, generator(1)) for c in (False, True))
    assert torch.equal(crossed_wires.cross(straight[0]), crossed[0]) and torch.equal(straight[1], crossed[1])
    straight, crossed = (crossed_wires.held_out(64, crossed=c) for c in (False, True))
    assert torch.equal(crossed_wires.cross(straight[0]), crossed[0]) and torch.equal(straight[1], crossed[1])


def test_handwriting_of_the_test_part_is_not_in_the_training_part():
    def inks(part):
        x, _ = crossed_wires.sampler(part, crossed=False)(6000, generator())
        rows = [picture[picture.sum(1) > 0].flatten().tolist() for picture in x[:, 0]]
        return {tuple(v for v in row if v) for row in rows}  # the numbers of a digit, in reading order

    assert not inks("train") & inks("test")


def test_results_may_be_changed_without_harm():
    crossed_wires.held_out()[0].zero_()
    assert crossed_wires.held_out()[0].max() == 1


def test_unknown_part():
    with pytest.raises(ValueError, match="part='all' must be 'train' or 'test'"):
        crossed_wires.sampler("all")
