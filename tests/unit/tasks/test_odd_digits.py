"""The task of the SimAM chapter: what it draws, how it scores, and that a cell by itself says nothing."""

import pytest
import torch
from torch import nn

import attn_lib
from attn_lib import toys
from attn_lib.tasks import odd_digits
from tests.unit.tasks.answer import Answer, always

# What whoever cannot solve the task can answer; it scores exactly at the chance level (see test_tasks.py).
ignorant = always(1, 2, stride=10)
EXACT = True

H, W = odd_digits.GRID


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cells(sheets):
    """The digits of the cells without the margin: n 5 7 8 8."""
    return sheets[:, 0].unfold(1, 10, 10).unfold(2, 10, 10)[..., 1:-1, 1:-1]


def kinds(sheets):
    """Which digit each cell shows, looked up among all digits of the data set."""
    images, labels = toys.digits()
    known = {image.numpy().tobytes(): label.item() for image, label in zip(images, labels, strict=True)}
    return torch.tensor([[known[c.contiguous().numpy().tobytes()] for c in sheet.flatten(0, 1)]
                         for sheet in cells(sheets)]).view(-1, H, W)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_sheet_is_what_it_says(part):
    sheets, odd = odd_digits.sampler(part)(40, seeded())
    assert sheets.shape == (40, 1, 10 * H, 10 * W) and 0 <= sheets.min() and sheets.max() <= 1
    assert odd.shape == (40, H, W) and odd.dtype == torch.int64
    assert (odd.sum((1, 2)) == odd_digits.ODD).all()
    for shown, truth in zip(kinds(sheets), odd.bool(), strict=True):
        common, rare = shown[~truth].unique(), shown[truth].unique()
        assert len(common) == len(rare) == 1 and common != rare


def test_a_digit_is_odd_as_often_as_common_and_anywhere():
    """So the own pixels of a cell say nothing about its answer."""
    sheets, odd = odd_digits.sampler()(1000, seeded())
    shown = kinds(sheets)
    for truth in (0, 1):
        share = shown[odd == truth].bincount(minlength=10) / (odd == truth).sum()
        assert (share - 0.1).abs().max() < 0.03
    assert (odd.float().mean(0) - odd_digits.ODD / (H * W)).abs().max() < 0.05


def test_sheets_follow_the_seed_and_parts_share_no_handwriting():
    state = torch.random.get_rng_state()
    a, b = odd_digits.held_out(8), odd_digits.held_out(8)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.equal(a[0], odd_digits.held_out(8, seed=1)[0])
    assert torch.equal(torch.random.get_rng_state(), state)
    train, test = ({c.contiguous().numpy().tobytes() for c in cells(odd_digits.sampler(part)(100, seeded())[0])
                    .flatten(0, 2)} for part in ("train", "test"))
    assert len(train) > 1000 and len(test) > 400 and not train & test
    with pytest.raises(ValueError, match="part='all' must be 'train' or 'test'"):
        odd_digits.sampler("all")


def test_score_is_balanced_accuracy():
    sheets, odd = odd_digits.held_out(16)
    right = torch.stack([1 - odd, odd], 1).float()
    assert odd_digits.score(Answer(right), (sheets, odd)) == 1
    assert odd_digits.score(Answer(1 - right), (sheets, odd)) == 0
    always = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(16, 2, H, W)
    model = Answer(always).train()
    assert odd_digits.score(model, (sheets, odd)) == 0.5 and model.training


def test_loss_weighs_odd_and_common_alike():
    odd = odd_digits.held_out(4)[1]
    scores = torch.zeros(4, 2, H, W, requires_grad=True)
    odd_digits.loss(scores, odd).backward()
    pull = scores.grad[:, 1]
    assert pull[odd == 1].sum().item() == pytest.approx(-pull[odd == 0].sum().item(), rel=1e-5)


def test_a_gate_of_distinctness_finds_them_and_no_gate_does_not():
    def network(gate):
        cell = nn.Conv2d(1, 64, 10, stride=10), nn.ReLU(), nn.Conv2d(64, 32, 1)
        return nn.Sequential(*cell, gate, nn.BatchNorm2d(32), nn.Conv2d(32, 2, 1))

    result = toys.compare(
        {"no gate": lambda: network(nn.Identity()), "SimAM": lambda: network(attn_lib.create("simam", channels=32))},
        odd_digits.sampler(), odd_digits.held_out(), seeds=(0, 1), steps=100, batch=16, lr=1e-2,
        loss=odd_digits.loss, metric=odd_digits.score,
    )
    assert max(result.scores["no gate"]) < 0.55 and min(result.scores["SimAM"]) > 0.88
