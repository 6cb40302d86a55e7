"""The task of the selective kernel chapter: what a form holds, and that a dot's surroundings do not tell its kind."""

from collections import Counter, defaultdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attn_lib.tasks import point_or_dust
from attn_lib.tasks.point_or_dust import DUST, LOCAL, NONE, POINT
from tests.unit.tasks.answer import scores_for


# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
def ignorant(x):
    """A point where the dot is more than a pixel wide."""
    wide = F.pad(x, (0, 1, 0, 1))
    return scores_for(((x[:, 0] > 0) & (wide[:, 0, 1:, 1:] > 0)).long(), 2)


def windows(s):
    """(kind, which of the 5 × 5 pixels around it hold ink) of every dot."""
    around = F.pad(s.images, (2, 2, 2, 2)).unfold(2, 5, 1).unfold(3, 5, 1)[:, 0] > 0  # n 24 32 5 5
    asked = s.labels != NONE
    return list(zip(s.labels[asked].tolist(), map(tuple, around[asked].flatten(1).tolist()), strict=True))


def picture(side):
    """A dot of side × side pixels, as seen from its upper left one."""
    inked = torch.zeros(5, 5, dtype=torch.bool)
    inked[2 : 2 + side, 2 : 2 + side] = True
    return tuple(inked.flatten().tolist())


def test_a_scan_is_what_it_says():
    one, two = point_or_dust.scans(50), point_or_dust.scans(50, zoom=2)
    for s, dots in ((one, 12), (two, 3)):
        assert s.images.shape == (50, 1, 24, 32) and s.labels.shape == (50, 24, 32)
        assert s.images.min() == 0 and s.images.max() <= 1
        assert ((s.labels != NONE).sum((1, 2)) == dots).all()
        assert set(s.labels.unique().tolist()) == {NONE, DUST, POINT}
        assert (s.images[:, 0][s.labels != NONE] >= 0.6).all()


def test_five_by_five_pixels_around_a_dot_show_its_size_and_nothing_else():
    one, two = windows(point_or_dust.scans(300)), windows(point_or_dust.scans(300, zoom=2))
    assert set(one) == {(DUST, picture(1)), (POINT, picture(2))}
    assert set(two) == {(DUST, picture(2)), (POINT, picture(3))}  # 4 × 4, of which the window sees 3 × 3


def test_the_best_local_rule_reaches_three_quarters():
    s = point_or_dust.held_out(1000)
    share = torch.cat([torch.full((12 * 1000,), 1 / 12), torch.full((3 * 1000,), 1 / 3)]) / 2000  # scans count alike
    votes = defaultdict(Counter)
    for (kind, window), weight in zip(windows(s), share.tolist(), strict=True):
        votes[window][kind] += weight
    assert sum(max(vote.values()) for vote in votes.values()) == pytest.approx(LOCAL, abs=0.01)


@pytest.mark.parametrize("zoom", [1, 2, 3])
def test_a_whole_zoom_doubles_pixels(zoom):
    images, labels = torch.rand(2, 1, 12, 9), torch.randint(2, (2, 12, 9))
    larger, marks = point_or_dust.enlarge(images, labels, zoom)
    blocks = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)[..., :12, :9]
    assert torch.equal(larger, blocks)
    assert (marks != NONE).sum() == 2 * -(-12 // zoom) * -(-9 // zoom)  # once a block
    assert torch.equal(marks[:, ::zoom, ::zoom], labels[:, : -(-12 // zoom), : -(-9 // zoom)])


def test_a_kernel_dilated_by_the_zoom_sees_what_the_kernel_saw():
    s = point_or_dust.scans(4)
    kernel = torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    for zoom in (2, 3):
        blocks = s.images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
        seen = F.conv2d(blocks, kernel, padding=zoom, dilation=zoom)
        expected = F.conv2d(s.images, kernel, padding=1).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
        torch.testing.assert_close(seen, expected)


def test_scans_follow_the_seed_and_parts_share_no_handwriting():
    draw = point_or_dust.scans
    assert torch.equal(draw(3, seed=1).images, draw(3, seed=1).images)
    assert not torch.equal(draw(3, seed=1).images, draw(3, seed=2).images)
    assert torch.equal(draw(3, zoom=2).images[..., ::2, ::2], draw(3).images[..., :12, :16])
    state = torch.random.get_rng_state()
    draw(3)
    assert torch.equal(torch.random.get_rng_state(), state)
    train, test = (point_or_dust._handwriting(part).flatten(1).tolist() for part in ("train", "test"))
    assert len(train) + len(test) == 1797
    images, labels = point_or_dust.sampler()(8, torch.Generator().manual_seed(0))
    assert images.shape == (8, 1, 24, 32) and (labels != NONE).sum() == 4 * 12 + 4 * 3


def test_scores():
    class Known(nn.Module):
        def __init__(self, labels):
            super().__init__()
            self.labels, self.w = labels, nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return F.one_hot(self.labels.clamp_min(0), 2).movedim(-1, 1).float()

    s = point_or_dust.held_out(50)
    data = s.images, s.labels
    assert point_or_dust.accuracy(Known(s.labels), data) == 1
    assert point_or_dust.accuracy(Known(1 - s.labels.clamp_min(0)), data) == 0
    always = point_or_dust.hits(Known(torch.zeros_like(s.labels)), *data)
    assert always.shape == (100,) and always.mean() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(("options", "message"), [
    (dict(n=0), "n=0"), (dict(n=1, zoom=0.5), "zoom=0.5"), (dict(n=1, part="validation"), "part='validation'"),
])
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        point_or_dust.scans(**options)
