"""The task of the criss-cross chapter: what it draws, how it scores, and that a cell's features are local."""

import pytest
import torch
import torch.nn.functional as F

from attn_lib.tasks import framed_digit
from tests.unit.tasks.answer import always

# What whoever cannot solve the task can answer; it scores exactly at the chance level (see test_tasks.py).
ignorant = always(1, 2)
EXACT = True


def test_a_sheet_is_what_it_says():
    s = framed_digit.sheets(5, grid=(3, 4))
    assert s.images.shape == (5, 1, 30, 40) and s.same.shape == s.framed.shape == (5, 3, 4)
    assert 0 <= s.images.min() and s.images.max() <= 1
    assert (s.framed.flatten(1).sum(1) == 1).all()
    assert (s.same[s.framed] == 1).all()
    corner = s.images[:, 0, ::10, ::10] == 1  # digits have a margin of one pixel: only a frame reaches the corner
    assert torch.equal(corner, s.framed)


def test_about_one_cell_in_kinds_matches_wherever_it_is():
    s = framed_digit.sheets(2000, grid=(2, 3), kinds=4)
    rate = s.same[~s.framed].float().mean().item()
    assert rate == pytest.approx(1 / 4, abs=0.02)


def test_sheets_follow_the_seed_and_parts_share_no_handwriting():
    draw = framed_digit.sheets
    assert torch.equal(draw(3, seed=1).images, draw(3, seed=1).images)
    assert not torch.equal(draw(3, seed=1).images, draw(3, seed=2).images)
    state = torch.random.get_rng_state()
    draw(3)
    assert torch.equal(torch.random.get_rng_state(), state)

    def cells(part):
        s = draw(200, part)
        plain = s.images.unfold(2, 10, 10).unfold(3, 10, 10)[:, 0][~s.framed]
        return {c.numpy().tobytes() for c in plain}

    assert not cells("train") & cells("test")


def test_features_of_a_cell_depend_on_that_cell_only_and_are_frozen():
    net = framed_digit.backbone(channels=8)
    assert not any(p.requires_grad for p in net.parameters())
    x = torch.rand(1, 1, 20, 30, requires_grad=True)
    net(x)[0, :, 1, 2].sum().backward()
    touched = x.grad[0, 0].abs() > 0
    assert touched[10:, 20:].any() and not touched[:10].any() and not touched[:, :20].any()


def test_features_tell_the_digit_and_the_frame():
    net, s = framed_digit.backbone(), framed_digit.sheets(400, "test")
    x = net(s.images).movedim(1, -1)
    assert x.mean().abs() < 0.4 and 0.4 < x.std() < 1
    truth = s.framed.flatten(1).long().argmax(1)
    assert linear_readout(net)(s.images).flatten(1).argmax(1).eq(truth).float().mean() > 0.99


def linear_readout(net):
    """Images → how framed each cell looks, (n, H, W), by least squares on training sheets, with an intercept.

    In double precision: many hidden units rest on every cell, so the features span fewer than 64 directions.
    """
    def design(images):
        return F.pad(net(images).movedim(1, -1).double(), (0, 1), value=1)

    train = framed_digit.sheets(400)
    w = torch.linalg.lstsq(design(train.images).flatten(0, 2), train.framed.flatten().double(), driver="gelsd").solution
    return lambda images: design(images) @ w


def test_scores():
    s = framed_digit.sheets(300, grid=(3, 4))
    truth = torch.stack([1 - s.same, s.same], 1).float()
    assert framed_digit.score(truth, s.same) == 1
    always_no = torch.stack([torch.ones_like(s.same), torch.zeros_like(s.same)], 1).float()
    assert framed_digit.score(always_no, s.same) == 0.5
    beside = framed_digit.score_by_offset(truth, s)
    assert beside.shape == (5, 7) and (beside == 1).all()
    only_right_of_the_frame = s.framed.roll(1, 2) & ~s.framed[..., -1:].any(1, keepdim=True)
    wrong = torch.where(only_right_of_the_frame[:, None], truth, truth.flip(1))
    assert framed_digit.score_by_offset(wrong, s)[2, 4] == 1
    assert framed_digit.score_by_offset(wrong, s).sum() == 1
    assert framed_digit.score(truth, s.same, s.framed | (s.same == 0)) == 1


@pytest.mark.parametrize(("options", "message"), [
    (dict(n=0), "n=0"), (dict(n=1, grid=(0, 3)), "grid"), (dict(n=1, kinds=1), "kinds=1"),
    (dict(n=1, kinds=11), "kinds=11"), (dict(n=1, part="validation"), "part='validation'"),
])
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        framed_digit.sheets(**options)
