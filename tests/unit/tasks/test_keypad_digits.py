"""The task of the MHSA chapter: where digits point, what is asked, and that only relative positions find it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import toys
from attn_lib.tasks import keypad_digits as task
from tests.unit.tasks.answer import Answer, scores_for


# What whoever cannot solve the task can answer; it scores exactly at the chance level (see test_tasks.py).
def ignorant(x):
    """Five for a five, and else the commonest digit."""
    kinds = task.shown(len(x))
    commonest = F.one_hot(kinds, 9).sum((1, 2)).argmax(1)[:, None, None]
    return scores_for(torch.where(kinds == 4, kinds, commonest), 9)
EXACT = True

R, C = task.GRID
KEYPAD = {(-2, -2): 7, (-2, 0): 8, (-2, 2): 9, (0, -2): 4, (0, 0): 5, (0, 2): 6, (2, -2): 1, (2, 0): 2, (2, 2): 3}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cells(sheets):
    """What is drawn in the cells, without the margins: (n, 6, 8, 8, 8)."""
    return sheets[:, 0].unfold(1, 10, 10).unfold(2, 10, 10)[..., 1:9, 1:9]


def test_digits_point_as_on_a_keypad():
    assert {task.direction(digit - 1): digit for digit in range(1, 10)} == KEYPAD


@pytest.mark.parametrize("part", ["train", "test"])
def test_targets_are_what_stands_where_a_digit_points(part):
    images, labels = toys.digits()
    known = {image.numpy().tobytes(): label.item() for image, label in zip(images, labels, strict=True)}
    sheets, targets = task.sampler(part)(6, seeded())
    assert sheets.shape == (6, 1, 10 * R, 10 * C) and 0 <= sheets.min() and sheets.max() <= 1
    assert targets.shape == (6, R, C) and targets.dtype == torch.int64
    for sheet, target in zip(cells(sheets), targets, strict=True):
        digit = {(r, c): known[sheet[r, c].contiguous().numpy().tobytes()] for r in range(R) for c in range(C)}
        for (r, c), d in digit.items():
            down, right = task.direction(d - 1)
            assert target[r, c] == digit.get((r + down, c + right), task.SILENT + 1) - 1


def test_shown_are_the_digits_of_the_held_out_sheets():
    kinds, (_, targets) = task.shown(16, seed=3), task.held_out(16, seed=3)
    assert torch.equal(task.pointed_at(kinds), targets)
    assert torch.equal(targets[kinds == 4], kinds[kinds == 4])  # fives point at themselves
    assert sorted(kinds.unique().tolist()) == list(range(9))


def test_only_the_cells_asked_have_a_target():
    asked = torch.zeros(R, C, dtype=torch.bool)
    asked[2, 3] = True
    everywhere, there = task.held_out(8)[1], task.held_out(8, asked=asked)[1]
    assert (there[:, ~asked] == task.SILENT).all() and torch.equal(there[:, asked], everywhere[:, asked])
    assert (there[:, asked] != task.SILENT).all()  # no digit points off the sheet from here


def test_sheets_follow_the_seed_and_parts_share_no_handwriting():
    state = torch.random.get_rng_state()
    a, b = task.held_out(4), task.held_out(4)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.equal(a[0], task.held_out(4, seed=1)[0])
    assert torch.equal(torch.random.get_rng_state(), state)
    train, test = ({c.contiguous().numpy().tobytes() for c in cells(task.sampler(part)(100, seeded())[0]).flatten(0, 2)}
                   for part in ("train", "test"))
    assert len(train) > 1000 and len(test) > 380 and not train & test
    with pytest.raises(ValueError, match="part='all' must be 'train' or 'test'"):
        task.sampler("all")


def test_the_reader_reads_each_cell_by_itself_and_is_frozen():
    reader, (sheets, _) = task.reader(), task.held_out(16)
    features = reader(sheets)
    assert features.shape == (16, task.CHANNELS, R, C) and not any(p.requires_grad for p in reader.parameters())
    torch.testing.assert_close(reader(sheets[:, :, 10:20, 30:40]), features[:, :, 1:2, 3:4])
    x, kinds = features.movedim(1, -1).flatten(0, 2), task.shown(16).flatten()
    centres = torch.stack([x[kinds == k].mean(0) for k in range(task.KINDS)])
    assert (torch.cdist(x, centres).argmin(1) == kinds).float().mean() > 0.8
    assert x.mean().abs() < 0.15 and abs(x.std() - 1) < 0.15


def test_score_counts_the_cells_that_are_asked():
    sheets, targets = task.held_out(8)
    right = torch.nn.functional.one_hot(targets.clamp(min=0), task.KINDS).movedim(-1, 1).float()
    model = Answer(right).train()
    assert task.score(model, (sheets, targets)) == 1 and model.training
    assert task.score(Answer(-right), (sheets, targets)) == 0


def test_relative_positions_find_the_digit_and_content_alone_does_not():
    def network(position):
        size = {} if position is None else dict(height=R, width=C)
        look = attn_lib.create("mhsa", channels=task.CHANNELS, heads=1, position=position, **size)
        return nn.Sequential(task.reader(), look, nn.Conv2d(task.CHANNELS, task.KINDS, 1))

    result = toys.compare({str(p): lambda p=p: network(p) for p in (None, "absolute", "relative")},
                          task.sampler(), task.held_out(128), seeds=(0,), steps=200, batch=16, lr=2e-2,
                          metric=task.score)
    assert result.mean("None") < 0.38 and result.mean("absolute") < 0.38 and result.mean("relative") > 0.7
