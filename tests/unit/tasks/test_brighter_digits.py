"""The task of the GCT chapter: the brighter screen counts, at exposures that were never seen in training."""

import pytest
import torch

from attn_lib import tasks, toys
from attn_lib.tasks import _two_screens as frame
from attn_lib.tasks import brighter_digits as task
from tests.unit.tasks.two_screens import first_screen

# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
ignorant = first_screen


def test_the_screen_that_counts_is_the_brighter_one():
    maps, *_ = task.pairs(200)
    means = maps[..., frame.around()].mean(-1)  # n, 2, 16
    for case in (0, 1):
        ratio = means[:, case, case::2] / means[:, case, 1 - case :: 2]
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
        assert task.RATIO[0] < ratio.min() < 1.55 and 2.9 < ratio.max() < task.RATIO[1]
    torch.testing.assert_close(means[:, 0, 0], means[:, 1, 1])  # no more light in one case than in the other


@pytest.mark.parametrize(("part", "low", "high"), [("train", 1 / 1.4, 1.4), ("test", 1 / 8, 8)])
def test_exposures(part, low, high):
    drawn = task._screens.exposure(4000, part, torch.Generator().manual_seed(0))
    assert low <= drawn.min() < 1.05 * low and 0.95 * high < drawn.max() <= high
    assert (drawn.log().mean() / drawn.log().std()).abs() < 0.05  # as often shorter as longer
    if part == "test":
        assert not ((drawn > 1 / 4) & (drawn < 4)).any()


def test_an_exposure_changes_no_gate_of_gct_and_one_of_se():
    maps, *_ = task.pairs(8)
    for module, alike in (("gct", True), ("se", False)):
        with toys.seeded(1):
            net = tasks.task("brighter_digits").network(module)
            for p in net[0].parameters():
                torch.nn.init.normal_(p)
        gate = net[0](maps[:, 0]) / maps[:, 0]
        changed = net[0](6 * maps[:, 0]) / (6 * maps[:, 0])
        lit = maps[:, 0].abs() > 1e-3
        assert torch.allclose(gate[lit], changed[lit], rtol=1e-3, atol=1e-4) == alike
