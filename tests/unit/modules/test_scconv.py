"""Spatial and channel reconstruction convolution against its paper, its limits, and the errors in circulation.

The authors released nothing, and no package that is kept well holds it.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.conv import ChannelReconstructionUnit, SpatialChannelReconstructionConv, SpatialReconstructionUnit
from tests.unit.draw import D, randn, randomised

CRU = {
    "plain": dict(),
    "uneven": dict(alpha=0.25, reduction=1, groups=1),
    "dense": dict(reduction=1, groups=4, kernel_size=5),
    "mostly up": dict(alpha=0.75, reduction=2, groups=1, kernel_size=1),
}


def make(C=8, **options):
    module = SpatialChannelReconstructionConv(C, **{"norm_groups": 2, **options})
    return randomised(module, scale=0.7).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def spatial_unit(x, sru, threshold=0.5, gate="fill"):
    """Eqs. 1 to 4, a number at a time."""
    B, C, H, W = x.shape
    gamma, beta, groups = sru.norm.weight.tolist(), sru.norm.bias.tolist(), sru.norm.num_groups
    per = C // groups
    x1, x2 = torch.zeros_like(x), torch.zeros_like(x)
    for b in range(B):
        for c in range(C):
            group = [v for k in range(c // per * per, c // per * per + per) for v in x[b, k].flatten().tolist()]
            mean = sum(group) / len(group)
            var = sum((v - mean) ** 2 for v in group) / len(group)
            for i in range(H):
                for j in range(W):
                    v = x[b, c, i, j].item()
                    gn = gamma[c] * (v - mean) / math.sqrt(var + 1e-5) + beta[c]
                    w = 1 / (1 + math.exp(-gamma[c] / sum(gamma) * gn))
                    if gate == "fill":
                        w1, w2 = (1.0, 0.0) if w > threshold else (w, w)
                    else:
                        w1, w2 = (w, 0.0) if w > threshold else (0.0, w)
                    x1[b, c, i, j], x2[b, c, i, j] = w1 * v, w2 * v
    half = C // 2
    return torch.cat([x1[:, :half] + x2[:, half:], x1[:, half:] + x2[:, :half]], 1)


def channel_unit(x, cru, alpha=0.5):
    """Eqs. 5 to 9."""
    C, (H, W) = x.shape[1], x.shape[2:]
    up = int(alpha * C)

    def pointwise(weight, t):
        return torch.einsum("OC,BCHW->BOHW", weight[:, :, 0, 0], t)

    x_up, x_low = pointwise(cru.squeeze_up.weight, x[:, :up]), pointwise(cru.squeeze_low.weight, x[:, up:])
    groups, k = cru.GWC.groups, cru.GWC.kernel_size[0]
    padded = torch.zeros(len(x), x_up.shape[1], H + k - 1, W + k - 1, dtype=x.dtype)
    padded[:, :, k // 2:k // 2 + H, k // 2:k // 2 + W] = x_up
    Y1 = pointwise(cru.PWC1.weight, x_up)
    for o in range(C):
        members = x_up.shape[1] // groups
        first = o // (C // groups) * members
        for c in range(members):
            for i in range(k):
                for j in range(k):
                    Y1[:, o] += cru.GWC.weight[o, c, i, j] * padded[:, first + c, i:i + H, j:j + W]
    Y2 = torch.cat([pointwise(cru.PWC2.weight, x_low), x_low], 1)
    y = torch.empty_like(x)
    for b in range(len(x)):
        for c in range(C):
            e1, e2 = (math.exp(Y[b, c].mean().item()) for Y in (Y1, Y2))
            y[b, c] = e1 / (e1 + e2) * Y1[b, c] + e2 / (e1 + e2) * Y2[b, c]
    return y


@pytest.mark.parametrize("gate", ["fill", "mask"])
@pytest.mark.parametrize(("H", "W"), [(4, 5), (1, 1), (1, 7)])
@pytest.mark.parametrize("threshold", [0.5, 0.4, 0.0, 1.0])
def test_the_spatial_unit_equals_the_paper(threshold, H, W, gate):
    sru = randomised(SpatialReconstructionUnit(6, norm_groups=3, threshold=threshold, gate=gate)).requires_grad_(False)
    x = randn(2, 6, H, W)
    torch.testing.assert_close(sru(x), spatial_unit(x, sru, threshold, gate), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", CRU.values(), ids=CRU)
@pytest.mark.parametrize(("H", "W"), [(4, 5), (1, 1)])
def test_the_channel_unit_equals_the_paper(H, W, options):
    cru, x = randomised(ChannelReconstructionUnit(8, **options)).requires_grad_(False), randn(2, 8, H, W)
    torch.testing.assert_close(cru(x), channel_unit(x, cru, options.get("alpha", 0.5)), rtol=0, atol=1e-12)


def from_the_paper(x, module):
    return channel_unit(spatial_unit(x, module.sru), module.cru)


@pytest.mark.parametrize(("H", "W"), [(4, 5), (1, 1)])
def test_equals_the_paper(H, W):
    module, x = make(), randn(2, 8, H, W)
    torch.testing.assert_close(module(x), from_the_paper(x, module), rtol=0, atol=1e-12)


class Wrong(SpatialChannelReconstructionConv):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        sru, cru, mistake = self.sru, self.cru, self.mistake
        gamma = sru.norm.weight
        softmax = mistake in ("softmax of γ", "threshold on the softmax of γ")
        w_gamma = (gamma.softmax(0) if softmax else gamma / gamma.sum())[:, None, None]
        gn = F.group_norm(x, 2, gamma, sru.norm.bias)
        if mistake == "unbiased deviation":
            group = x.reshape(len(x), 2, -1)
            group = (group - group.mean(2, keepdim=True)) / (group.std(2, keepdim=True) + 1e-10)
            gn = gamma[:, None, None] * group.view_as(x) + sru.norm.bias[:, None, None]
        w = (w_gamma * gn).sigmoid()
        above = (w_gamma > 0.5).expand_as(w) if mistake == "threshold on the softmax of γ" else w > 0.5
        w1, w2 = torch.where(above, 1.0, w), torch.where(above, 0.0, w)
        if mistake in ("each weight in one of the two", "threshold on the softmax of γ"):
            w1, w2 = w * above, w * ~above
        if mistake == "all or nothing":
            w1, w2 = above.to(w), (~above).to(w)
        t = gn if mistake == "the normalised map weighed" else x
        x1, x2 = w1 * t, w2 * t
        x_w = x1 + x2 if mistake == "halves not exchanged" else x1 + torch.cat([x2[:, 4:], x2[:, :4]], 1)
        x_up, x_low = cru.squeeze_up(x_w[:, :4]), cru.squeeze_low(x_w[:, 4:])
        Y1, Y2 = cru.GWC(x_up) + cru.PWC1(x_up), torch.cat([cru.PWC2(x_low), x_low], 1)
        if mistake == "what is re-used in front":
            Y2 = torch.cat([x_low, cru.PWC2(x_low)], 1)
        s = torch.stack([Y1, Y2], 1).mean((3, 4))
        beta = s.flatten(1).softmax(1).view_as(s) if mistake == "softmax over all 2C" else s.softmax(1)
        if mistake == "sum of both":
            beta = torch.ones_like(s)
        return (beta[..., None, None] * torch.stack([Y1, Y2], 1)).sum(1)


@pytest.mark.parametrize("mistake", [
    "softmax of γ", "threshold on the softmax of γ", "unbiased deviation", "each weight in one of the two",
    "all or nothing", "the normalised map weighed", "halves not exchanged", "what is re-used in front",
    "softmax over all 2C", "sum of both",
])
def test_the_comparison_with_the_paper_notices(mistake):
    module, x = make(), randn(2, 8, 4, 5)
    expected = from_the_paper(x, module)
    wrong = Wrong(8, norm_groups=2).to(D)
    wrong.load_state_dict(module.state_dict())
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-3


def test_taps_are_the_equations():
    module, x = make(), randn(2, 8, 4, 5)
    with attn_lib.trace() as t:
        y = module(x)
    assert t.names() == ["w_gamma", "w", "w1", "w2", "x_w", "x_up", "x_low", "Y1", "Y2", "s", "beta", "y"]
    assert torch.equal(t["y"], y) and t["x_up"].shape == (2, 2, 4, 5)
    torch.testing.assert_close(t["w_gamma"].sum(), torch.tensor(1.0, dtype=D))


# ---- the errata ------------------------------------------------------------------------------------------------------


def test_two_readings_of_the_gate():
    """Under "fill" a number below the threshold is in both parts, under "mask" in one of them."""
    x = randn(1, 8, 4, 5)
    for gate in ("fill", "mask"):
        with attn_lib.trace() as t:
            make(gate=gate)(x)
        w, w1, w2 = t["w"], t["w1"], t["w2"]
        above = w > 0.5
        assert above.any() and not above.all()
        assert torch.equal(w2, torch.where(above, 0.0, w))
        assert torch.equal(w1, torch.where(above, 1.0, w) if gate == "fill" else torch.where(above, w, 0.0))


def test_normalisation_is_group_normalisation():
    sru, x = SpatialReconstructionUnit(8, norm_groups=2).to(D), randn(2, 8, 4, 5)
    assert torch.equal(sru.norm.weight, torch.ones(8)) and sru.norm.eps == 1e-5
    with attn_lib.trace() as t:
        sru(x)
    torch.testing.assert_close(t["w"], (F.group_norm(x, 2) / 8).sigmoid())


def test_two_branches_of_a_channel_share_one():
    with attn_lib.trace() as t:
        make()(randn(2, 8, 4, 5))
    torch.testing.assert_close(t["beta"].sum(1), torch.ones(2, 8, dtype=D))


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_at_threshold_one_both_parts_are_the_same():
    module, x = make(threshold=1.0), randn(2, 8, 4, 5)
    with attn_lib.trace() as t:
        module(x)
    wx = t["w"] * x
    torch.testing.assert_close(t["x_w"], wx + wx.roll(4, 1))  # both halves of it are the same
    assert torch.equal(t["w1"], t["w"]) and torch.equal(t["w2"], t["w"])


def test_without_beta_the_threshold_of_a_half_is_the_mean_of_the_group():
    sru, x = SpatialReconstructionUnit(8, norm_groups=2).to(D), randn(2, 8, 4, 5)
    for shift in (0.0, 1.0):
        torch.nn.init.constant_(sru.norm.bias, shift)
        with attn_lib.trace() as t:
            sru(x)
        mean = x.unflatten(1, (2, 4)).mean((2, 3, 4)).repeat_interleave(4, 1)[..., None, None]
        assert torch.equal(t["w1"] == 1, x > mean) == (shift == 0)  # with β it is another place


def test_the_step_has_no_gradient_and_the_rest_has():
    module, x = make().requires_grad_(True), randn(2, 8, 4, 5).requires_grad_()
    module(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (*module.parameters(), x))
    open_unit = SpatialReconstructionUnit(8, norm_groups=2, threshold=0.0).to(D)
    open_unit(x).square().sum().backward()
    assert not open_unit.norm.weight.grad.any()  # everything is above the threshold: nothing to learn


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "options", "message"), [
    (9, dict(norm_groups=3), "channels=9 must be divisible by halves=2"),
    (30, dict(), "channels=30 must be divisible by norm_groups=4"),
    (32, dict(threshold=1.5), "threshold=1.5 must be a number from 0 to 1"),
    (32, dict(gate="soft"), "gate='soft' must be one of 'fill', 'mask'"),
    (32, dict(alpha=1), "alpha=1 must be a number above 0 and below 1"),
    (32, dict(alpha=0.3), "alpha=0.3 must be a whole number of channels=32; 0.3125 is"),
    (32, dict(reduction=3), r"channels·alpha=16 must be divisible by reduction=3"),
    (32, dict(reduction=8, groups=4), "channels·alpha/reduction=2 must be divisible by groups=4"),
    (32, dict(kernel_size=4), "kernel_size=4 must be odd"),
])
def test_arguments_out_of_range(channels, options, message):
    with pytest.raises(ValueError, match=message):
        SpatialChannelReconstructionConv(channels, **options)


# ---- half precision (forbidden in the contract: a choice is not continuous) ------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_where_nothing_is_at_the_threshold(dtype):
    module, x = make(threshold=0.0).float(), randn(4, 8, 5, 7).float()
    exact, half = module(x), copy.deepcopy(module).to(dtype)(x.to(dtype))
    with torch.autocast("cpu", dtype):
        cast = module(x)
        assert make().float()(x.to(dtype)).dtype == dtype
    assert half.dtype == dtype
    for y in (half, cast):
        assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max()
    assert torch.isfinite(copy.deepcopy(make()).to(dtype)(300 * x.to(dtype))).all()


# ---- the units by themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [
    SpatialReconstructionUnit(8, norm_groups=2), ChannelReconstructionUnit(8)], ids=["sru", "cru"])
def test_units_compile_take_any_size_and_name_a_bad_input(unit):
    torch.compiler.reset()
    compiled = torch.compile(unit, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 8, 7, 9)
    torch.testing.assert_close(compiled(x), unit(x))
    assert unit(torch.randn(1, 8, 1, 3)).shape == (1, 8, 1, 3)
    with pytest.raises(ValueError, match="axis C must be 8, not 6"):
        unit(torch.randn(1, 6, 7, 9))


# ---- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("C", [32, 64])
def test_parameters_and_flops_are_a_fifth_of_a_convolutions(C):
    """At α = ½, r = 2, g = 2 and k = 3."""
    cru = ChannelReconstructionUnit(C)
    a, r, g, k = 0.5, 2, 2, 3
    up, low = a * C / r, (1 - a) * C / r
    expected = a * C * up + up * C * k * k / g + up * C + (1 - a) * C * low + low * (C - low)
    assert sum(p.numel() for p in cru.parameters()) == expected
    assert expected / (9 * C * C) == pytest.approx(0.2, abs=0.01)
    x = torch.randn(1, C, 8, 8)
    assert measure.flops(cru, x) == 2 * 64 * expected


def test_memory_is_linear_in_the_number_of_positions():
    module = SpatialChannelReconstructionConv(32)
    kept = [measure.saved_bytes(module, torch.randn(2, 32, n, n)) for n in (16, 32, 64)]
    assert measure.fit_exponent([16**2, 32**2, 64**2], kept) == pytest.approx(1, abs=0.02)
