"""The task of the NAM chapter: what is left when the channels that a gate lets through least are cut off."""

import pytest
import torch
from torch import nn

from attn_lib import tasks, toys
from attn_lib.tasks import noise_channels as task
from attn_lib.toys.data import digits
from tests.unit.tasks.answer import scores_for


# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
def ignorant(maps):
    """By the mean of the class that is nearest to the four channels with a digit among the first eight."""
    ink, labels = digits("train")
    means = torch.stack([ink[labels == k].mean(0).flatten() for k in range(10)])
    kept = maps[:, : task.KEPT][:, task.SIGNAL[: task.KEPT]]
    return scores_for(torch.cdist(kept[..., task.INK, task.INK].mean(1).flatten(1), means).argmin(1), 10)


class Scale(nn.Module):
    def __init__(self, factors):
        super().__init__()
        self.factors = factors

    def forward(self, x):
        return x * self.factors[:, None, None]


def test_half_of_the_channels_show_the_digit_and_all_are_equally_noisy():
    maps, labels = task.held_out(400)
    assert maps.shape == (400, 16, 22, 22) and task.SIGNAL.sum() == 8
    shown = maps[..., task.INK, task.INK]
    ink, kinds = digits("test")
    means = torch.stack([ink[kinds == k].mean(0).flatten() for k in range(10)])
    signal = shown[:, task.SIGNAL].mean(1)
    assert (torch.cdist(signal.flatten(1), means).argmin(1) == labels).float().mean() > 0.75
    assert shown[:, ~task.SIGNAL].mean().abs() < 0.01 and signal.mean() > 0.25
    left = shown - shown[:, task.SIGNAL].mean(1, keepdim=True) * task.SIGNAL[:, None, None]
    spread = left.std((0, 2, 3))
    assert (spread[~task.SIGNAL] - task.NOISE).abs().max() < 0.02  # of the others one eighth went into the mean
    assert (spread[task.SIGNAL] - task.NOISE * (7 / 8) ** 0.5).abs().max() < 0.02
    told, same = task.held_out(400, told=True)
    assert torch.equal(told[:, task.SIGNAL], maps[:, task.SIGNAL]) and torch.equal(labels, same)
    assert not told[:, ~task.SIGNAL].any()


def test_what_passes_is_measured_and_the_least_is_cut_off():
    maps, _ = task.held_out(16)
    factors = torch.linspace(0, -3, 16)
    torch.testing.assert_close(task.passed(Scale(factors), maps), -factors)
    assert task.passed(nn.Identity(), torch.zeros(1, 16, 22, 22)).tolist() == [0] * 16
    net = tasks.task("noise_channels").network(lambda C: Scale(factors))
    pruned = task.prune(net, -factors, 5)
    torch.testing.assert_close(pruned[:2](maps), torch.cat([0 * maps[:, :11], net[0](maps)[:, 11:]], 1))
    assert torch.equal(task.prune(net, factors, 16)(maps), net(maps)) and len(net) + 1 == len(pruned)
    assert not task.prune(net, factors, 0)[:2](maps).any()


def test_the_score_is_that_of_the_pruned_network():
    data = task.held_out(300)
    with toys.seeded(0):
        net = tasks.task("noise_channels").network(lambda C: Scale(1.0 + task.SIGNAL))
        toys.fit(net, task.sampler(), steps=60, batch=32, lr=1e-2)
    right = toys.accuracy(task.prune(net, task.SIGNAL.float()), data)
    assert task.score(net, data) == pytest.approx(right) and right > 0.5
    wrong = nn.Sequential(Scale(1.0 + ~task.SIGNAL), *net[1:])
    assert task.score(wrong, data) == pytest.approx(0.1, abs=0.06)
