"""The residual attention module against its paper, its limits and the release, and against known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.channel_spatial import ResidualAttentionModule, ResidualUnit
from tests.unit.draw import D, randn, randomised

FORMS = [
    dict(levels=1, t=1),
    dict(levels=2, t=1, residual=False, align_corners=True),
    dict(levels=3),
    dict(levels=1, mask="channel"),
    dict(levels=2, mask="spatial"),
    dict(levels=2, p=0, t=0, r=2),
    dict(levels=1, p=2, t=1, mask="channel", residual=False),
]
SIZES = [(8, 8), (7, 9), (3, 10), (1, 5), (1, 1)]


def make(C=4, *, seed=0, **options):
    module = randomised(ResidualAttentionModule(C, reduction=2, **options), scale=0.5, seed=seed).requires_grad_(False)
    for bn in module.modules():
        if isinstance(bn, nn.BatchNorm2d):
            bn.bias.add_(0.7)  # few ReLUs are shut: behind two of them nothing would be seen
    return module


def trace(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def active(maps, bn):
    """δ(BN(·)) of a list of planes."""
    out = []
    for c, plane in enumerate(maps):
        scale = bn.weight[c].item() / math.sqrt(bn.running_var[c].item() + bn.eps)
        mean, bias = bn.running_mean[c].item(), bn.bias[c].item()
        out.append([[max(0.0, (v - mean) * scale + bias) for v in row] for row in plane])
    return out


def convolved(maps, conv):
    H, W, half = len(maps[0]), len(maps[0][0]), conv.kernel_size[0] // 2
    offsets = range(-half, half + 1)
    return [[[sum(taps[a + half][b + half] * m[i + a][j + b] for m, taps in zip(maps, kernel, strict=True)
                  for a in offsets for b in offsets if 0 <= i + a < H and 0 <= j + b < W)
              for j in range(W)] for i in range(H)] for kernel in conv.weight.tolist()]


def added(first, second):
    return [[[a + b for a, b in zip(*rows, strict=True)] for rows in zip(*planes, strict=True)]
            for planes in zip(first, second, strict=True)]


def through(units, maps):
    for unit in units:
        branch = maps
        for bn, conv in ((unit.norm1, unit.W1), (unit.norm2, unit.W2), (unit.norm3, unit.W3)):
            branch = convolved(active(branch, bn), conv)
        maps = added(maps, branch)
    return maps


def halved(plane):
    """Windows of three from every second row on, as long as one has a row that no window before it had."""
    def starts(n):
        return [0, *(k for k in range(2, n, 2) if k + 1 < n)]
    H, W = len(plane), len(plane[0])
    return [[max(plane[i][j] for i in range(p, min(p + 3, H)) for j in range(q, min(q + 3, W))) for q in starts(W)]
            for p in starts(H)]


def enlarged(plane, H, W, corners):
    def between(i, n, size):
        at = i * (n - 1) / (size - 1 or 1) if corners else min(max((i + 0.5) * n / size - 0.5, 0.0), n - 1.0)
        low = math.floor(at)
        return [(low, 1 - at + low), (min(low + 1, n - 1), at - low)]
    h, w = len(plane), len(plane[0])
    return [[sum(a * b * plane[p][q] for p, a in between(i, h, H) for q, b in between(j, w, W)) for j in range(W)]
            for i in range(H)]


def hourglass(maps, module, level=0):
    """From the map of one level to what comes back to its size."""
    H, W = len(maps[0]), len(maps[0][0])
    below = through(module.down[level], [halved(plane) for plane in maps])
    if level == module.levels - 1:
        back = through(module.bottom, below)
    else:
        back = added(through([module.skip[level]], below), hourglass(below, module, level + 1))
        back = through(module.up[level], back)
    return [enlarged(plane, H, W, module.align_corners) for plane in back]


def squashed(s, kind):
    """Equations 4, 5 and 6 of the planes of one image."""
    C, H, W = len(s), len(s[0]), len(s[0][0])
    M = [[[0.0] * W for _ in range(H)] for _ in range(C)]
    for c in range(C):
        values = [v for row in s[c] for v in row]
        mean = sum(values) / len(values)
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
        for i in range(H):
            for j in range(W):
                if kind == "channel":
                    length = math.sqrt(sum(s[k][i][j] ** 2 for k in range(C)))
                    M[c][i][j] = s[c][i][j] / length if length else 0.0
                else:
                    v = s[c][i][j] if kind == "mixed" else (s[c][i][j] - mean) / std if std > 1e-9 else 0.0
                    M[c][i][j] = 1 / (1 + math.exp(-v))
    return M


def from_the_paper(x, module):
    out = []
    for image in x.tolist():
        u = through(module.pre, image)
        T = through(module.trunk, u)
        s = convolved(active(hourglass(u, module), module.norm1), module.W1)
        M = squashed(convolved(active(s, module.norm2), module.W2), module.mask)
        one = 1.0 if module.residual else 0.0
        z = [[[(one + m) * v for m, v in zip(*rows, strict=True)] for rows in zip(*planes, strict=True)]
             for planes in zip(M, T, strict=True)]
        out.append(through(module.post, z))
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_paper(size, form):
    module, x = make(**form), randn(1, 4, *size)
    torch.testing.assert_close(module(x), from_the_paper(x, module), rtol=0, atol=1e-11)


class Wrong(ResidualAttentionModule):
    """The errors in circulation, one at a time."""

    mistake = None

    def forward(self, x):
        m = self.mistake
        u = self.pre(x)
        T = self.trunk(u)

        def pool(t):
            if m == "average for maximum":
                return F.avg_pool2d(t, 3, 2, ceil_mode=True)
            return F.max_pool2d(t, 2, 2) if m == "windows of 2 × 2" else F.max_pool2d(
                t, 3, 2, padding=int(m == "padded pools"), ceil_mode=m != "padded pools")

        def enlarge(t, like):
            if m == "nearest":
                return F.interpolate(t, like.shape[2:])
            return F.interpolate(t, like.shape[2:], mode="bilinear", align_corners=m == "corners aligned")

        first = self.down[0](pool(x if m == "mask of the input" else u))
        second = self.down[1](pool(first))
        s = second if m == "one unit at the bottom" else self.bottom(second)
        partner = {"skip without a unit": first, "no skip": 0}.get(m, self.skip[0](first))
        s = enlarge(s, first) + partner
        s = s if m == "no unit behind the skip" else self.up[0](s)
        s = enlarge(s, u)
        s = s + u if m == "skip at the input" else s
        s = self.W1(F.relu(self.norm1(s)))
        s = self.W2(s if m == "nothing between the last two" else F.relu(self.norm2(s)))
        M = {"no sigmoid": s, "one mask for all channels": s.mean(1, keepdim=True).sigmoid(),
             "softmax over the positions": s.flatten(2).softmax(-1).view_as(s)}.get(m, s.sigmoid())
        z = {"the mask alone": M * T, "added": M + T, "of the input": (1 + M) * u, "T left out": 1 + M}.get(
            m, (1 + M) * T)
        return z if m == "no unit at the end" else self.post(z)


@pytest.mark.parametrize("mistake", [
    "average for maximum", "windows of 2 × 2", "padded pools", "nearest", "corners aligned", "mask of the input",
    "one unit at the bottom", "skip without a unit", "no skip", "no unit behind the skip", "skip at the input",
    "nothing between the last two", "no sigmoid", "one mask for all channels", "softmax over the positions",
    "the mask alone", "added", "of the input", "T left out", "no unit at the end",
])
def test_the_comparison_with_the_paper_notices(mistake):
    module, x = make(levels=2), randn(1, 4, 8, 8)  # even sizes: nothing else would notice
    wrong = Wrong(4, levels=2, reduction=2).to(D).eval()
    wrong.load_state_dict(module.state_dict())
    expected = from_the_paper(x, module)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-11)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-3


def test_taps_are_the_equations():
    module, x = make(levels=2), randn(2, 4, 8, 10)
    t = trace(module, x)
    assert t.names() == ["u", "T", "s", "M", "z", "y"]
    assert torch.equal(t["u"], module.pre(x)) and torch.equal(t["T"], module.trunk(t["u"]))
    assert torch.equal(t["M"], t["s"].sigmoid()) and torch.equal(t["z"], (1 + t["M"]) * t["T"])
    assert torch.equal(t["y"], module.post(t["z"]))


# ---- the release, and sizes ------------------------------------------------------------------------------------------


def test_the_units_are_the_releases():
    """Attention-92's first module: units of 256 channels with 64 within, 12 of them, and no bias anywhere."""
    module = ResidualAttentionModule(256)
    units = [m for m in module.modules() if isinstance(m, ResidualUnit)]
    assert [len(part) for part in (module.pre, module.trunk, module.post)] == [1, 2, 1]
    assert [len(part) for part in (*module.down, module.bottom, *module.up)] == [1] * 6 and len(module.skip) == 2
    assert len(units) == 12 and all(u.W2.weight.shape == (64, 64, 3, 3) for u in units)
    assert not any(conv.bias is not None for conv in module.modules() if isinstance(conv, nn.Conv2d))
    assert module.W1.weight.shape == module.W2.weight.shape == (256, 256, 1, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (5, 6), (7, 14), (13, 4)])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_any_size_returns_to_its_own(size, levels):
    module, x = make(levels=levels), randn(2, 4, *size)
    assert module(x).shape == x.shape and module(x).isfinite().all()


def test_pools_are_not_padded_and_round_up():
    """On the release's sizes: 56, 28, 14, 7. A peak on row 3 is in the window that begins at row 2 alone."""
    sizes = []
    module = make(levels=3)
    for units in module.down:
        units.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[-1]))
    module(randn(1, 4, 8, 56))
    assert sizes == [28, 14, 7]
    for row, windows in ((0, [0]), (1, [0]), (2, [0, 1]), (3, [1]), (7, [3])):
        x = torch.zeros(1, 4, 8, 8, dtype=D)
        x[:, :, row, 0] = 1.0
        pooled = []
        module = make(levels=1, p=0)
        module.down[0].register_forward_pre_hook(lambda _, args, pooled=pooled: pooled.append(args[0]))
        module(x)
        assert (pooled[0][0, 0].amax(1) > 0).nonzero().flatten().tolist() == windows
        padded = (F.max_pool2d(x, 3, 2, 1)[0, 0].amax(1) > 0).nonzero().flatten().tolist()
        assert (padded != windows) == (row in (1, 2, 3))


def test_the_release_aligns_the_corners():
    """The corners of s, before the last two layers, are then the corners of the level below."""
    for align, same in ((True, True), (False, False)):
        module, below, above = make(levels=1, align_corners=align), [], []
        module.bottom.register_forward_hook(lambda *call, below=below: below.append(call[2]))
        module.norm1.register_forward_pre_hook(lambda _, args, above=above: above.append(args[0]))
        module(randn(1, 4, 8, 8))
        small, large = below[0], above[0]
        torch.testing.assert_close(small[..., ::3, ::3], large[..., ::7, ::7])
        assert torch.allclose(large[..., 0, 1], small[..., 0, 0] * 4 / 7 + small[..., 0, 1] * 3 / 7) == same
        assert torch.allclose(large[..., 0, 1], small[..., 0, 0] * 3 / 4 + small[..., 0, 1] / 4) != same


@pytest.mark.parametrize(("levels", "side"), [(1, 4), (2, 8), (3, 16)])
def test_a_single_image_of_one_pixel_at_the_lowest_level_is_refused_in_training_alone(levels, side):
    module = make(levels=levels)
    for size in ((side - 1, 1), (side - 1, side - 1)):
        assert module.eval()(randn(1, 4, *size)).shape == (1, 4, *size)
        with pytest.raises(ValueError, match=f"{levels} levels leave one pixel; in training .* a side of {side}"):
            module.train()(randn(1, 4, *size))
        assert module(randn(2, 4, *size)).shape == (2, 4, *size)
    assert module(randn(1, 4, side, 1)).shape == (1, 4, side, 1)


@pytest.mark.parametrize("size", [(7, 7), (9, 5), (1, 6)])
def test_every_pixel_reaches_the_mask(size):
    module, u = make(levels=2, p=0), randn(1, 4, *size)
    before = trace(module, u)["s"]
    for i in range(size[0]):
        for j in range(size[1]):
            peak = u.clone()
            peak[..., i, j] += 50.0
            assert (trace(module, peak)["s"] - before).abs().max() > 1e-6, (i, j)


def test_a_popular_file_of_this_name_returns_scores():
    """Class-specific residual attention: mean of the scores of all places, plus a part of their maximum."""
    x, W = randn(2, 4, 5, 7), randn(3, 4, seed=2)
    scores = torch.einsum("KC,BCHW->BKHW", W, x).flatten(2)
    other = scores.mean(2) + 0.2 * scores.amax(2)
    assert other.shape == (2, 3) and make(levels=1)(x).shape == x.shape


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=3), "reduction=4 must be at most channels=3"),
    (dict(channels=8, levels=0), "levels=0 must be an integer of at least 1"),
    (dict(channels=8, r=0), "r=0 must be an integer of at least 1"),
    (dict(channels=8, p=-1), "p=-1 must be an integer of at least 0"),
    (dict(channels=8, mask="both"), "mask='both' must be one of 'mixed', 'channel', 'spatial'"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ResidualAttentionModule(**options)


# ---- limits ----------------------------------------------------------------------------------------------------------


def logits(module, value):
    """Every logit of the mask equal to a value, whatever the hourglass says."""
    module.norm2.weight.zero_()
    module.norm2.bias.fill_(1.0)
    module.W2.weight.fill_(value / module.channels)


@pytest.mark.parametrize(("value", "factor"), [(-1e4, 1.0), (0.0, 1.5), (1e4, 2.0)])
def test_a_constant_mask_leaves_the_trunk_times_a_number(value, factor):
    module, x = make(levels=2), randn(2, 4, 7, 9)
    logits(module, value)
    torch.testing.assert_close(module(x), module.post(factor * module.trunk(module.pre(x))))
    if value < 0:
        assert torch.equal(module(x), module.post(module.trunk(module.pre(x)))), "M = 0 leaves T"


def test_stacked_naive_masks_shrink_the_map_and_residual_ones_do_not():
    """Eight modules whose masks know nothing yet, M = ½, and whose units do nothing yet."""
    x = randn(2, 4, 7, 9)
    for residual, factor in ((False, 0.5**8), (True, 1.5**8)):
        y = x
        for seed in range(8):
            module = make(levels=1, residual=residual, seed=seed)
            for unit in (*module.pre, *module.trunk, *module.post):
                unit.W3.weight.zero_()
            logits(module, 0.0)
            y = module(y)
        torch.testing.assert_close(y, factor * x)


def test_masks_of_the_three_kinds():
    x = randn(2, 4, 7, 9)
    M = {mask: trace(make(levels=2, mask=mask), x)["M"] for mask in ("mixed", "channel", "spatial")}
    assert all(0 < M[kind].min() and M[kind].max() < 1 for kind in ("mixed", "spatial"))
    torch.testing.assert_close(M["channel"].square().sum(1), torch.ones(2, 7, 9, dtype=D))
    z = M["spatial"].logit().flatten(2)
    torch.testing.assert_close(z.mean(-1), torch.zeros(2, 4, dtype=D), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.var(-1, correction=0), torch.ones(2, 4, dtype=D))


@pytest.mark.parametrize(("mask", "value"), [("channel", 0.0), ("spatial", 0.5)])
def test_a_mask_without_length_or_spread_is_no_nan(mask, value):
    module, x = make(levels=1, mask=mask).requires_grad_(True), randn(2, 4, 5, 5).requires_grad_()
    with torch.no_grad():
        logits(module, 0.0)
    t = trace(module, x)
    assert torch.equal(t["M"], torch.full_like(x, value))
    t["y"].sum().backward()
    assert all(p.grad.isfinite().all() for p in (*module.parameters(), x))


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_positions_and_a_level_costs_a_quarter_of_the_one_above():
    C, sides = 16, [(16, 16), (16, 32), (32, 32), (32, 64)]
    N = [h * w for h, w in sides]
    kept = {}
    for levels in (1, 2, 3):
        module = ResidualAttentionModule(C, levels=levels)
        kept[levels] = [measure.saved_bytes(module, torch.randn(2, C, *side)) for side in sides]
        assert measure.fit_exponent(N, kept[levels]) == pytest.approx(1, abs=0.02)
    first, second = kept[2][-1] - kept[1][-1], kept[3][-1] - kept[2][-1]
    assert second / first == pytest.approx(0.25, rel=0.1)
