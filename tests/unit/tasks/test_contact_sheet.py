"""The contact sheet: marks say which crop counts, and nothing else does."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from attn_lib import toys
from attn_lib.tasks import contact_sheet


# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
def ignorant(x):
    """The photograph that occurs most often."""
    crops, kinds = contact_sheet.crops()
    tiles = x[:, :, 4:, 4:].unfold(2, 12, 12).unfold(3, 12, 12).permute(0, 2, 3, 1, 4, 5).reshape(len(x), 20, -1)
    found = kinds[torch.cdist(tiles, crops.flatten(1)).argmin(-1)]
    return F.one_hot(found, 6).sum(1).float()


def marked(n, *at):
    return torch.isin(torch.arange(n), torch.tensor(at))


def test_sheets_are_what_they_say():
    x, y = contact_sheet.held_out(300)
    assert x.shape == (300, 3, 52, 64) and y.shape == (300,) and 0 <= x.min() and x.max() <= 1
    assert torch.equal(x, contact_sheet.held_out(300)[0]) and set(y.tolist()) == set(range(6))
    green = x.new_tensor(contact_sheet.GREEN)[:, None]
    rows = (x[:, :, 10::12, 0] == green).all(1)  # one pixel of the left edge beside each row of crops
    columns = (x[:, :, 0, 10::12] == green).all(1)
    assert (rows.sum(1) == 1).all() and (columns.sum(1) == 1).all()
    # who reads the marks and knows every crop by heart is never wrong
    tiles, labels = contact_sheet.crops("test")
    at = [slice(4 + 12 * k, 16 + 12 * k) for k in range(5)]
    crossing = [s[:, at[r], at[c]] for s, r, c in zip(x, rows.int().argmax(1), columns.int().argmax(1), strict=True)]
    nearest = torch.cdist(torch.stack(crossing).flatten(1), tiles.flatten(1)).argmin(1)
    assert torch.equal(labels[nearest], y)


def test_patches_of_four_mix_nothing():
    """A layer of 4 × 4 patches gives the same set of features wherever the marks stand."""
    tiles = contact_sheet.crops("test")[0][:20].unflatten(0, (4, 5))

    def patches(row, column):
        sheet = contact_sheet.compose(tiles, marked(4, row), marked(5, column))[None]
        return F.unfold(sheet, 4, stride=4)[0].T

    first, moved = patches(0, 1), patches(3, 4)
    assert not torch.equal(first, moved)
    assert sorted(first.tolist()) == sorted(moved.tolist())


def test_parts_share_no_pixel():
    train, test = (contact_sheet.crops(part)[0] for part in ("train", "test"))
    assert len(train) == len(test) == 6 * 7 * 18  # left and right halves of 64 × 32 pixels
    for name, t in zip(contact_sheet.PHOTOGRAPHS, train.split(7 * 18), strict=True):
        photo = toys.image(name, 64)
        assert torch.equal(t[0], photo[:, :12, :12]) and torch.equal(t[-1], photo[:, 51:63, 18:30])
    with pytest.raises(ValueError, match="part='dev' must be one of 'train', 'test'"):
        contact_sheet.sampler("dev")


def test_the_same_crop_at_a_larger_zoom():
    small, labels = contact_sheet.crops("train")
    large, same = contact_sheet.crops("train", zoom=3)
    assert torch.equal(labels, same) and large.shape == (len(small), 3, 36, 36)
    assert (F.avg_pool2d(large, 3) - small).abs().mean() < 0.03


def test_compose():
    tiles = torch.rand(2, 4, 5, 3, 24, 24)
    rows, columns = torch.stack([marked(4, 1), marked(4, 0, 3)]), torch.stack([marked(5), marked(5, 2)])
    sheets = contact_sheet.compose(tiles, rows, columns)
    assert sheets.shape == (2, 3, 4 * 24 + 8, 5 * 24 + 8)
    for b, r, c in itertools.product(range(2), range(4), range(5)):
        y, x = 8 + 24 * r, 8 + 24 * c
        assert torch.equal(sheets[b, :, y : y + 24, x : x + 24], tiles[b, r, c])
        assert (sheets[b, 1, y, 0] > 0) == rows[b, r] and (sheets[b, 1, 0, x] > 0) == columns[b, c]
    assert torch.equal(contact_sheet.compose(tiles[0], rows[0], columns[0]), sheets[0])
    for shape in ((4, 5, 3, 8, 8), (4, 5, 3, 12, 24)):
        with pytest.raises(ValueError, match="equal multiples of 12"):
            contact_sheet.compose(torch.rand(shape), marked(4, 0), marked(5, 0))


def test_best_guess_is_the_mean_share_of_the_most_frequent():
    drawn = torch.randint(6, (100_000, 20), generator=torch.Generator().manual_seed(0))
    for n in (1, 2, 4, 5, 20):
        share = F.one_hot(drawn[:, :n], 6).sum(1).amax(1).float().mean() / n
        assert contact_sheet.best_guess(n) == pytest.approx(share.item(), abs=0.003)
    assert contact_sheet.best_guess(1) == pytest.approx(1)
    assert contact_sheet.best_guess(2) == pytest.approx((1 + 1 / 6) / 2)
