"""The task of the SE chapter: two digits on one display, and a lamp that says which of them counts."""

import pytest
import torch
from torch import nn

from attn_lib import toys
from attn_lib.tasks import lamplit_digits
from tests.unit.tasks.answer import scores_for


# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
def ignorant(x):
    """The red digit, whatever the light."""
    _, ink, kinds = lamplit_digits.parts()
    red = x[:, 0, lamplit_digits.INK, lamplit_digits.INK]
    return scores_for(kinds[torch.cdist(red.flatten(1), ink.flatten(1)).argmin(1)], 10)


def test_scenes_are_what_they_say():
    x, y = lamplit_digits.held_out(256)
    assert x.shape == (256, 3, 22, 22) and y.shape == (256,) and 0 <= x.min() and x.max() <= 1
    assert torch.equal(x, lamplit_digits.held_out(256)[0])
    _, ink, labels = lamplit_digits.parts("test")

    def light(c):  # the mean of the photograph alone
        return x[:, c].sum((1, 2)) - x[:, c, lamplit_digits.DISPLAY, lamplit_digits.DISPLAY].sum((1, 2))

    def read(c):
        digit = x[:, c, lamplit_digits.INK, lamplit_digits.INK]
        return labels[torch.cdist(digit.flatten(1), ink.flatten(1)).argmin(1)]

    answer = torch.where(light(0) > light(2), read(0), read(2))
    assert (answer == y).float().mean() > 0.98  # the mean colour decides, nearly always
    assert max((read(c) == y).float().mean() for c in (0, 2)) == pytest.approx(lamplit_digits.BLIND, abs=0.06)


def test_the_display_tells_nothing_of_the_light():
    photographs, ink, _ = lamplit_digits.parts("test")
    warm, cold = (lamplit_digits.compose(photographs[0], ink[0], ink[1], lamp) for lamp in (0.7, -0.7))
    d = lamplit_digits.DISPLAY
    assert torch.equal(warm[:, d, d], cold[:, d, d]) and not torch.equal(warm, cold)
    # two 3 × 3 convolutions, the second with stride 2: what sees a digit sees no photograph
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1))
    digit = torch.zeros(1, 3, 22, 22)
    digit[..., lamplit_digits.INK, lamplit_digits.INK] = torch.rand(8, 8)
    sees_digit = (net(digit) - net(torch.zeros_like(digit))).abs().amax((0, 1)) > 1e-5
    sees_light = (net(warm[None]) - net(cold[None])).abs().amax((0, 1)) > 1e-5
    assert sees_digit.any() and sees_light.any() and not (sees_digit & sees_light).any()


def test_parts_are_kept_apart():
    assert not set(lamplit_digits.PHOTOGRAPHS["train"]) & set(lamplit_digits.PHOTOGRAPHS["test"])
    train, test = lamplit_digits.parts("train")[1], lamplit_digits.parts("test")[1]
    assert len(train) + len(test) == 1797 and torch.cdist(test.flatten(1), train.flatten(1)).min() > 0
    with pytest.raises(ValueError, match="part='dev' must be one of 'train', 'test'"):
        lamplit_digits.sampler("dev")


def test_scenes_can_be_enlarged():
    photo, red, blue = torch.rand(3, 66, 66), torch.rand(8, 8), torch.rand(8, 8)
    large = lamplit_digits.compose(photo, red, blue, 0.3)
    small = lamplit_digits.compose(photo[:, ::3, ::3], red, blue, 0.3)
    torch.testing.assert_close(large[:, ::3, ::3], small)
    for shape in ((3, 21, 21), (3, 22, 44), (3, 23, 23)):
        with pytest.raises(ValueError, match="multiple of 22"):
            lamplit_digits.compose(torch.rand(shape), red, blue, 0.3)


def test_white_balance():
    assert lamplit_digits.white_balance(toys.image("coffee", 64)).mean((1, 2)).diff().abs().max() < 0.02
