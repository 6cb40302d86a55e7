"""What the tasks on two screens share: the display, the reader, and that their cases differ in the cue alone."""

from importlib import import_module

import pytest
import torch
from torch import nn

from attn_lib import tasks, toys
from attn_lib.tasks import _two_screens as frame
from tests.unit.tasks.two_screens import read

IDS = ["brighter_digits", "calm_digits", "sidelit_digits", "speck_digits", "twin_digits"]


@pytest.fixture(params=IDS)
def task(request):
    return import_module(f"attn_lib.tasks.{request.param}")


def test_the_answer_is_the_digit_of_the_screen_that_counts(task):
    maps, a, b = task.pairs(40)
    assert maps.shape == (40, 2, 16, 22, 22) and (a != b).any()
    for case in (0, 1):
        assert torch.equal(read(maps[:, case], 0), a) and torch.equal(read(maps[:, case], 1), b)
    told, labels = task.held_out(200, told=True)
    alone = torch.where(told[:, 0, frame.INK, frame.INK].sum((1, 2)) > 0, read(told, 0), read(told, 1))
    assert torch.equal(alone, labels)
    maps, same = task.held_out(200)
    assert torch.equal(labels, same)
    right = torch.stack([read(maps, screen) == labels for screen in (0, 1)])
    assert right.any(0).all() and right.float().mean(1).tolist() == pytest.approx([frame.BLIND] * 2, abs=0.09)


def test_the_display_tells_nothing_of_the_case(task):
    maps, *_ = task.pairs(20)
    assert torch.equal(maps[:, 0, :, frame.DISPLAY, frame.DISPLAY], maps[:, 1, :, frame.DISPLAY, frame.DISPLAY])
    assert not torch.equal(maps[:, 0], maps[:, 1])
    with toys.seeded(0):
        net = frame.network(nn.Identity)
    assert torch.equal(net(maps[:, 0]), net(maps[:, 1]))


def test_maps_of_one_case_are_not_alike_and_follow_the_seed(task):
    maps, *_ = task.pairs(2)
    assert torch.equal(maps, task.pairs(2)[0]) and not torch.equal(maps, task.pairs(2, seed=1)[0])
    assert not torch.equal(maps[0], maps[1])


@pytest.mark.parametrize("id", [id for id in IDS if id != "brighter_digits"])
def test_no_mean_tells_the_case(id):
    maps, *_ = import_module(f"attn_lib.tasks.{id}").pairs(50)
    means = maps[..., frame.around()].mean(-1)
    torch.testing.assert_close(means, torch.full_like(means, frame.MEAN))


@pytest.mark.parametrize("id", ["sidelit_digits", "speck_digits", "twin_digits"])
def test_no_standard_deviation_tells_the_case(id):
    maps, *_ = import_module(f"attn_lib.tasks.{id}").pairs(50)
    stds = maps[..., frame.around()].std(-1, correction=0)
    torch.testing.assert_close(stds, torch.full_like(stds, frame.STD))


ALIKE = [("twin_digits", m) for m in ("se", "eca", "srm", "gct")]  # they take channels one by one
ALIKE += [("sidelit_digits", m) for m in ("se", "eca", "srm", "gct", "gsop", "soca", "encnet")]  # and places alike


@pytest.mark.parametrize(("id", "module"), ALIKE)
def test_what_a_squeeze_cannot_tell_it_answers_alike(id, module):
    maps, *_ = import_module(f"attn_lib.tasks.{id}").pairs(8)
    with toys.seeded(0):
        net = tasks.task(id).network(module).eval()
    torch.testing.assert_close(net(maps[:, 0]), net(maps[:, 1]), rtol=1e-4, atol=1e-5)


def test_photographs_come_as_often_as_their_mirror_images():
    grey, ink, labels = frame.material("train")
    for axis in (1, 2):
        torch.testing.assert_close(grey.mean(0), grey.mean(0).flip(axis - 1), rtol=1e-4, atol=1e-4)
    assert len(grey) > 2000 and len(ink) == len(labels) == 1348
    assert not set(frame.PHOTOGRAPHS["train"]) & set(frame.PHOTOGRAPHS["test"])
    with pytest.raises(ValueError, match="part='all'"):
        frame.material("all")


def test_the_reader_goes_by_the_display_alone_at_any_exposure():
    x = torch.rand(2, 16, 22, 22)
    torch.testing.assert_close(frame.Display()(x), frame.Display()(37 * x))
    torch.testing.assert_close(frame.Display()(x).square().mean((1, 2, 3)), torch.ones(2))
    assert frame.Display()(torch.zeros(1, 16, 22, 22)).isfinite().all()
    moved = x.clone()
    moved[..., frame.around()] = 5
    assert torch.equal(frame.Display()(moved), frame.Display()(x))
