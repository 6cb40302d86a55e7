"""The first task of the gated fusion chapter: what a sensor reads, and how an estimate is scored."""

import pytest
import torch

from attn_lib.tasks import two_exposures as task


# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
def ignorant(short, long):
    """What fixed shares learn."""
    patches = task.sampler()(2000, torch.Generator().manual_seed(0))[2]
    a, b = task.expose(patches, torch.Generator().manual_seed(1))
    gap = a - b
    share = ((gap * (patches - b)).sum((0, 2, 3)) / gap.square().sum((0, 2, 3)))[:, None, None]
    return share * short + (1 - share) * long


def test_exposures_without_noise_are_the_light_until_they_saturate():
    light = torch.tensor([0.0, 0.3, 1.0, 2.5, 4.0])
    short, long = task.expose(light, noise=0)
    torch.testing.assert_close(short, light)
    torch.testing.assert_close(long, light.clamp(max=1))


def test_noise_counts_four_times_as_much_in_the_short_exposure():
    light = torch.full((100_000,), 0.6)
    short, long = task.expose(light, torch.Generator().manual_seed(0), noise=0.02)
    assert short.std().item() == pytest.approx(4 * 0.02, rel=0.02)
    assert long.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(short.mean() - 0.6) < 1e-3 and abs(long.mean() - 0.6) < 1e-3


def test_some_pixels_saturate_in_some_colours_only():
    *_, light = task.held_out()
    white = (light > 1).sum(1)  # of three colours
    assert 0.1 < (white == 0).float().mean() < 0.8
    assert ((white == 1) | (white == 2)).float().mean() > 0.2


def test_draws():
    draw = task.sampler()
    short, long, light = draw(5, torch.Generator().manual_seed(0))
    assert short.shape == long.shape == light.shape == (5, 3, 16, 16)
    assert 0 <= light.min() and light.max() <= 4 and short.max() <= 4 and long.max() <= 1
    again = draw(5, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(again, (short, long, light), strict=True))
    a, b = task.held_out(32), task.held_out(32)
    assert a[0].shape == (3, 3, 32, 32) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not set(task.PHOTOGRAPHS["train"]) & set(task.PHOTOGRAPHS["test"])


def test_score():
    *_, light = data = task.held_out(32)
    assert task.psnr(lambda short, long: light + 0.04, data) == pytest.approx(40, abs=1e-3)  # a hundredth of white
    assert task.psnr(lambda short, long: light + 0.4, data) == pytest.approx(20, abs=1e-3)
    assert task.psnr(lambda short, long: short, data) == pytest.approx(21.2, abs=0.5)


def test_display_undoes_the_photograph():
    from attn_lib import toys

    torch.testing.assert_close(task.display(task.radiance("cat", 24)), toys.image("cat", 24), rtol=0, atol=1e-4)
    assert task.display(torch.tensor([-1.0, 9.0])).tolist() == [0, 1]


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"part='validation'"):
        task.sampler("validation")
    with pytest.raises(ValueError, match=r"noise=-1"):
        task.expose(torch.zeros(3), noise=-1)
