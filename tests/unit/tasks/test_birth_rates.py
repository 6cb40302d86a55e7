"""The second task of the gated fusion chapter: two guesses, one of which is sometimes not there."""

import pytest
import torch

from attn_lib.tasks import birth_rates as task


# What whoever cannot solve the task can answer; it scores exactly at the chance level (see test_tasks.py).
def ignorant(spatial, temporal):
    """The spatial guess alone."""
    return spatial
EXACT = True


def test_panel():
    p = task.panel()
    T, N = p.rates.shape
    assert (T, N) == (52, 192) and len(p.countries) == N and p.alike.shape == (N, 5)
    assert 0.5 < p.rates.min() and p.rates.max() < 10 and torch.isfinite(p.rates).all()
    assert not (p.alike == torch.arange(N)[:, None]).any()  # nobody is among those like it
    p.rates.zero_()
    assert task.panel().rates.min() > 0.5


def test_guesses_are_what_they_say():
    p = task.panel()
    spatial, temporal, truth = task.guesses("test", 3, fails=0.25)
    assert spatial.shape == temporal.shape == truth.shape == (3, 22, 192, 1)
    assert torch.equal(truth[1, :, :, 0], p.rates[30:])
    assert torch.equal(spatial[2, 4, 7, 0], p.rates[34, p.alike[7]].mean())
    there = temporal > 0
    assert torch.equal(temporal[there], p.rates[29:51].expand(3, -1, -1)[..., None][there])
    assert there.float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert not torch.equal(there[0], there[1])


def test_training_and_test_years_do_not_overlap():
    p = task.panel()
    *_, truth = task.sampler()(1, torch.Generator().manual_seed(0))
    assert torch.equal(truth[0, :, :, 0], p.rates[1:30])
    moved = task.panel()
    known = moved.rates[:30]  # who is alike was chosen on the training years alone
    apart = (known[:, 3] - known[:, p.alike[3, 0]]).abs().mean()
    others = (known - known[:, 3:4]).abs().mean(0).sort().values
    assert apart == others[1]


def test_draws_follow_the_seed():
    a, b, c = (task.guesses(seed=s)[1] for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_temporal_guess_is_better_where_it_is_there():
    _, temporal, truth = data = task.guesses(batch=4)
    there = temporal > 0
    assert (temporal - truth)[there].abs().mean() < 0.1 < 0.4 < task.error(lambda s, t: s, data)
    assert task.error(lambda s, t: t, data) > 0.8
    assert task.error(lambda s, t: torch.where(there, t, s), data) < 0.2


@pytest.mark.parametrize("options", [dict(part="validation"), dict(fails=1.5)])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        task.guesses(**options)
