"""The task of the pyramidal attention chapter: what a window shows of who made its readings."""

import pytest
import torch

from attn_lib.tasks import handovers
from tests.unit.tasks.answer import scores_for


# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
def ignorant(x):
    """The log of this week, and else the first analyser."""
    named = x[..., 1:].any(-1)
    return scores_for(torch.where(named, x[..., 1:].argmax(-1), 0), 4)

x, whose = handovers.windows(64)
named = x[..., 1:].any(-1)


def test_the_record_is_complete_and_nobody_can_change_it():
    record = handovers.record()
    assert record.shape == (2284,) and record.isfinite().all() and 310 < record.min() < record.max() < 380
    record.zero_()
    assert handovers.record().min() > 310


def test_a_window_holds_a_reading_and_a_log_of_two_turns():
    assert x.shape == (64, 256, 5) and whose.shape == (64, 256)
    torch.testing.assert_close(x[..., 0].mean(1), torch.zeros(64), atol=1e-4, rtol=0)
    torch.testing.assert_close(x[..., 0].std(1), torch.ones(64))
    turns = (whose[:, 1:] != whose[:, :-1]).sum(1)
    assert (turns == 1).all() and (named.sum(1) == 2 * handovers.NAMED).all()
    second = (whose[:, 1:] != whose[:, :-1]).int().argmax(1, keepdim=True) + 1
    first_weeks = torch.arange(handovers.NAMED)
    assert named[:, first_weeks].all() and named.gather(1, second + first_weeks).all()
    assert set(whose.flatten().tolist()) == {0, 1, 2, 3}


def test_the_log_is_right_and_the_last_entry_names_the_analyser():
    assert torch.equal(x[..., 1:].argmax(-1)[named], whose[named])
    last = torch.arange(256) - handovers.distance(x)
    assert torch.equal(x[..., 1:].argmax(-1).gather(1, last), whose), "filling forward is always right"


def test_distance_counts_from_the_last_entry():
    away = handovers.distance(x)
    assert (away[named] == 0).all() and (away[~named] > 0).all() and (away[:, 16] == 1).all()
    assert 100 < away.max() < 240


def test_the_reading_has_nothing_of_who_made_it():
    many, target = handovers.windows(2000)
    means = torch.stack([many[..., 0][:, 64][target[:, 64] == k].mean() for k in range(4)])
    assert means.std() < 0.1


def test_training_and_test_come_from_different_weeks_and_follow_the_seed():
    assert torch.equal(handovers.windows(3)[0], handovers.windows(3)[0])
    assert not torch.equal(handovers.windows(3)[0], handovers.windows(3, seed=1)[0])
    drawn = handovers.sampler()(3, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[0], handovers.windows(3, part="train")[0])
    assert not torch.equal(drawn[0], handovers.windows(3)[0])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="part='valid' must be one of 'train', 'test'"):
        handovers.windows(2, part="valid")
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        handovers.windows(0)
