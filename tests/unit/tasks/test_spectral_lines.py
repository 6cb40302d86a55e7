"""Glowing digits in the lines of a spectrum: that the task is what its description says."""

import pytest
import torch

from attn_lib.tasks import spectral_lines as task
from tests.unit.tasks.answer import scores_for


# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
def ignorant(x):
    """Three, whatever is shown."""
    return scores_for(torch.full((len(x),), 3), 10)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shapes_and_seeds():
    x, y = task.sampler("train")(5, generator())
    assert x.shape == (5, 16, 8, 8) and y.shape == (5,) and y.dtype == torch.int64
    again, labels = task.sampler("train")(5, generator())
    assert torch.equal(x, again) and torch.equal(y, labels)
    assert torch.equal(task.held_out(7)[0], task.held_out(7)[0])
    with pytest.raises(ValueError, match="part='valid' must be 'train' or 'test'"):
        task.sampler("valid")


def test_handwriting_of_the_parts_is_disjoint():
    train, test = ({tuple(d.flatten().tolist()) for d in task.parts(p)[0]} for p in ("train", "test"))
    assert not train & test
    assert len(task.parts("train")[0]) + len(task.parts("test")[0]) == 1797


def test_parts_are_copies():
    task.parts()[0].zero_()
    assert task.parts()[0].amax() > 0


def test_lines_are_never_neighbours_and_lie_anywhere():
    lines = task.line_sets(4000, generator())
    assert not (lines[:, 1:] & lines[:, :-1]).any()
    assert lines.any(1).all()
    frequency = lines.float().mean(0)
    assert frequency.min() > 0.28 and frequency.max() < 0.55  # a local minimum of three: 1/3; of two, at the ends: 1/2


def test_lamp_is_smooth_and_wide():
    lamp = task.lamps(4000, generator())
    steps = (lamp[:, 1:] / lamp[:, :-1]).log().abs()
    assert steps.quantile(0.9) < torch.tensor(task.LINE).log()  # a line sticks out of it
    assert (lamp.amax(1) / lamp.amin(1)).quantile(0.5) > 5


def test_means_are_lamp_and_lines_and_say_nothing_else():
    ink, _ = task.parts("test")
    lamp, lines = task.lamps(3, generator()), task.line_sets(3, generator(1))
    x = task.compose(ink[:3], ink[3:6], lamp, lines)
    torch.testing.assert_close(x.mean((2, 3)), lamp * (1 + lines))
    other = task.compose(ink[6:9], ink[9:12], lamp, lines)
    torch.testing.assert_close(x.mean((2, 3)), other.mean((2, 3)))


def test_lines_show_the_glowing_digit_and_nothing_else_does():
    ink, _ = task.parts("test")
    lines = torch.zeros(16, dtype=torch.bool)
    lines[[2, 9]] = True
    x = task.compose(ink[0], ink[1], torch.ones(16), lines)
    assert torch.equal(x[lines], 2 * ink[0].expand(2, 8, 8)) and torch.equal(x[~lines], ink[1].expand(14, 8, 8))


def test_neighbours_give_a_line_away_and_brightness_does_not():
    lamp, lines = task.lamps(2000, generator()), task.line_sets(2000, generator(1))
    z = lamp * (1 + lines)
    contrast = (z[:, 1:-1] / (z[:, :-2] * z[:, 2:]).sqrt()).log()

    def separation(score):  # probability that a line scores above another band
        a, b = score[lines[:, 1:-1]], score[~lines[:, 1:-1]]
        return (a[:4000, None] > b[:4000]).float().mean()

    assert separation(contrast) > 0.98
    assert separation(z[:, 1:-1].log()) < 0.75
