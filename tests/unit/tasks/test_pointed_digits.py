"""The task of two digits, a light and a frame is what it says."""

import pytest
import torch
from torch import nn

from attn_lib.tasks import pointed_digits as task
from tests.unit.tasks.answer import scores_for


# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
def ignorant(x):
    """The left one, whatever is said."""
    _, ink, kinds = task.parts()
    screen = x[:, :, 8:16, 6:14].amax(1).flatten(1) / task.GLOW
    return scores_for(kinds[torch.cdist(screen, ink.flatten(1)).argmin(1)], 4)


def scenes(lit, counts, green=0, place=(1, 19), n=6, light=task.LIGHT):
    photographs, ink, _ = task.parts("test")

    def whole(v):
        return torch.full((n,), v)

    return task.compose(photographs[:n], ink[: 2 * n].view(n, 2, 8, 8), whole(green), whole(counts), whole(lit),
                        torch.tensor(place).expand(n, 2), light)


@pytest.mark.parametrize("cue", task.CUES)
def test_scenes_say_which_digit_counts(cue):
    x, y = task.held_out(cue, 256)
    assert x.shape == (256, 3, 24, 40) and y.shape == (256,) and 0 <= x.min() and x.max() <= 1
    assert torch.equal(x, task.held_out(cue, 256)[0]) and y.min() == 0 and y.max() == task.KINDS - 1
    _, ink, labels = task.parts("test")
    shown = torch.stack([x[:, :, 8:16, c + 4:c + 12] for c in task.SCREENS], 1)  # B 2 3 8 8
    read = labels[torch.cdist(shown.amax(2).flatten(2) / task.GLOW, ink.flatten(1)).argmin(2)]
    if cue == "light":
        green = ((x[:, 1] == 1) & (x[:, 0] < 1)).flatten(1).any(1)  # the light's colour
        right_is_green = shown[:, 1, 1].flatten(1).amax(1) > 0
        counts = (right_is_green == green).long()
    else:
        counts = (x[:, :, 5, task.SCREENS[1] + 1] == task.GLOW).all(1).long()
    assert torch.equal(read.gather(1, counts[:, None])[:, 0], y)
    assert (read[:, 0] == y).float().mean() == pytest.approx(task.BLIND, abs=0.08)


def test_no_feature_sees_both_ink_and_cue_and_every_window_sees_the_frame():
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    left, right, lit = (conv(scenes(*how)) for how in ((False, 0), (False, 1), (True, 0)))
    frame = (left - right).abs().amax((0, 1)) > 1e-6
    light = (lit - conv(scenes(True, 1))).abs().amax((0, 1)) > 1e-6
    ink = torch.zeros(12, 20, dtype=torch.bool)
    for place in task.INK:
        ink[place] = True
    assert frame.any() and light.any() and not (ink & (frame | light)).any()
    seen = nn.functional.max_pool2d(frame[None].float(), 7, 1, 3)[0]
    assert seen[ink].min() == 1
    photographs, digits, _ = task.parts("test")
    other = task.compose(photographs[:6], digits[50:62].view(6, 2, 8, 8), *[torch.zeros(6, dtype=torch.long)] * 2,
                         torch.zeros(6, dtype=torch.bool), torch.zeros(6, 2, dtype=torch.long))
    assert not ((conv(other) - left).abs().amax((0, 1)) > 1e-6)[~ink].any()  # INK is all that sees ink


def test_light_and_frame():
    for size in (1, 2, 3, 4):
        x = scenes(True, 1, green=1, light=size)
        assert ((x == torch.tensor([0.0, 1.0, 0.0])[:, None, None]).all(1).sum((1, 2)) == size**2).all()
    framed, lit = scenes(False, 0), scenes(True, 0)
    assert framed.amax() <= task.GLOW < lit.amax()
    assert (framed[:, :, 5, 3:17] == task.GLOW).all() and (framed[:, :, 5, 23:37] == 0).all()


def test_light_stands_on_the_photograph_everywhere():
    x, _ = task.sampler("train", ("light",))(400, torch.Generator().manual_seed(0))
    on = (x == 1).any(1)
    assert not on[:, 4:20].any() and on[:, :4].any((0, 1)).all() and on[:, 20:].any((0, 1)).all()


def test_parts_are_kept_apart():
    assert not set(task.PHOTOGRAPHS["train"]) & set(task.PHOTOGRAPHS["test"])
    train, test = task.parts("train")[1], task.parts("test")[1]
    assert torch.cdist(test.flatten(1), train.flatten(1)).min() > 0
    task.parts("test")[0].zero_()
    assert task.parts("test")[0].amax() > 0.5


@pytest.mark.parametrize(("options", "message"), [
    (dict(part="dev"), "part='dev' must be one of 'train', 'test'"),
    (dict(cues=("sound",)), r"cues=\('sound',\) must be some of light, frame"),
    (dict(cues=()), r"cues=\(\) must be"),
    (dict(light=5), "light=5 must be an integer from 1 to 4"),
])
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        task.sampler(**options)
