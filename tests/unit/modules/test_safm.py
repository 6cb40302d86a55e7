"""Spatially-adaptive feature modulation against its paper, its limits, and the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.fusion import SAFM, ConvChannelMixer
from tests.unit.draw import D, permutation, randn, randomised

# C, L, H, W
CASES = [(4, 4, 8, 11), (4, 4, 9, 8), (3, 3, 5, 7), (4, 2, 2, 3), (2, 1, 1, 1), (2, 1, 3, 1), (3, 3, 4, 6)]


def make(C=6, L=3, *, scale=0.7):
    return randomised(SAFM(C, levels=L), scale=scale).requires_grad_(False)


def run(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def gelu(v):
    return v / 2 * (1 + math.erf(v / math.sqrt(2)))


def largest(x, n, m):
    """The largest entries of a map of lists on a grid of n × m windows, which overlap where they must."""
    H, W = len(x), len(x[0])
    return [[max(x[i][j] for i in range(p * H // n, -(-(p + 1) * H // n)) for j in range(q * W // m,
                                                                                      -(-(q + 1) * W // m)))
             for q in range(m)] for p in range(n)]


def three_by_three(x, kernel, bias):
    H, W = len(x), len(x[0])
    return [[bias + sum(kernel[p][q] * x[i + p - 1][j + q - 1] for p in range(3) for q in range(3)
                        if 0 <= i + p - 1 < H and 0 <= j + q - 1 < W) for j in range(W)] for i in range(H)]


def from_the_paper(x, safm):
    """In plain numbers, one channel and one position at a time."""
    C, L, out = safm.channels, safm.levels, []
    kernels, biases = [dw.weight.tolist() for dw in safm.dw], [dw.bias.tolist() for dw in safm.dw]
    Wa, ba = safm.Wa.weight.flatten(1).tolist(), safm.Wa.bias.tolist()
    for image in x.tolist():
        H, W, seen = len(image[0]), len(image[0][0]), []
        for c, channel in enumerate(image):
            level, within = divmod(c, C // L)
            n, m = H // 2**level, W // 2**level
            small = channel if level == 0 else largest(channel, n, m)
            small = three_by_three(small, kernels[level][within][0], biases[level][within])
            seen.append([[small[i * n // H][j * m // W] for j in range(W)] for i in range(H)])
        out.append([[[gelu(ba[o] + sum(w * s[i][j] for w, s in zip(Wa[o], seen, strict=True))) * image[o][i][j]
                      for j in range(W)] for i in range(H)] for o in range(C)])
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize(("C", "L", "H", "W"), CASES)
def test_equals_the_paper(C, L, H, W):
    safm, x = make(C, L), randn(2, C, H, W)
    torch.testing.assert_close(safm(x), from_the_paper(x, safm), rtol=0, atol=1e-12)


class Wrong(SAFM):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        e, (H, W), seen = self.mistake, x.shape[2:], []
        chunks = x.unflatten(1, (-1, self.levels)).unbind(2) if e == "every third channel" else x.chunk(self.levels, 1)
        for i, (X_i, dw) in enumerate(zip(chunks, self.dw, strict=True)):
            if i and e != "not pooled":
                size = (H // 2**i, W // 2**i)
                pools = {"mean for maximum": F.adaptive_avg_pool2d, "first of each window": F.interpolate}
                X_i = pools.get(e, F.adaptive_max_pool2d)(X_i, size)
            X_i = X_i if e == "no depthwise convolution" else dw(X_i)
            if e == "bilinear for nearest":
                X_i = F.interpolate(X_i, (H, W), mode="bilinear")
            seen.append(F.interpolate(X_i, (H, W)))
        seen = seen[::-1] if e == "levels the other way round" else seen
        a = torch.cat(seen, 1) if e == "not aggregated" else self.Wa(torch.cat(seen, 1))
        gate = {"sigmoid": a.sigmoid(), "ReLU": a.relu(), "tanh GELU": F.gelu(a, approximate="tanh"), "no GELU": a,
                "softmax": a.softmax(1)}.get(e, F.gelu(a))
        return {"residual added": x + gate * x, "added": gate + x, "no gate": gate}.get(e, gate * x)


MISTAKES = ["mean for maximum", "first of each window", "not pooled", "no depthwise convolution",
            "bilinear for nearest", "every third channel", "levels the other way round", "not aggregated", "sigmoid",
            "ReLU", "tanh GELU", "no GELU", "softmax", "residual added", "added", "no gate"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    safm, x = make(), randn(2, 6, 5, 9)
    wrong, expected = Wrong(6, levels=3).to(D), from_the_paper(x, safm)
    wrong.load_state_dict(safm.state_dict())
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > (1e-4 if mistake == "tanh GELU" else 1e-2)


def test_windows_overlap_where_the_size_is_odd():
    """Fixed windows of 2 or 4 pixels would leave the last row and column out."""
    safm, x = make(6, 3), randn(1, 6, 9, 7)
    t = run(safm, x)
    assert t["X_down"].shape == (1, 2, 4, 3) and t["X_down:2"].shape == (1, 2, 2, 1)
    assert torch.equal(t["X_down"][0, :, 3, 2], x[0, 2:4, 6:, 4:].amax((1, 2)))
    assert torch.equal(t["X_down"][0, :, 1, 1], x[0, 2:4, 2:5, 2:5].amax((1, 2)))
    assert (t["X_down"] - F.max_pool2d(x[:, 2:4], 2)).abs().max() > 0.1


def test_taps_are_the_equations():
    safm, x = make(), randn(2, 6, 5, 9)
    t = run(safm, x)
    assert t.names() == ["X_hat", "X_down", "X_hat:2", "X_down:2", "X_hat:3", "gate", "y"]
    torch.testing.assert_close(t["gate"], F.gelu(safm.Wa(torch.cat([t["X_hat"], t["X_hat:2"], t["X_hat:3"]], 1))))
    assert torch.equal(t["y"], t["gate"] * x)


# ---- limits (more of them in limits/) --------------------------------------------------------------------------------


def test_one_level_is_a_depthwise_gate():
    safm, x = make(4, 1), randn(2, 4, 5, 7)
    dw = safm.dw[0]
    expected = F.gelu(safm.Wa(F.conv2d(x, dw.weight, dw.bias, padding=1, groups=4))) * x
    torch.testing.assert_close(safm(x), expected)


def test_a_gate_of_zeros_shuts_everything():
    safm, x = make(), randn(2, 6, 5, 7)
    safm.Wa.weight.fill_(0.0)
    safm.Wa.bias.fill_(0.0)
    assert torch.equal(safm(x), torch.zeros_like(x))  # and is no identity: nothing passes by the gate


def test_on_eight_by_eight_the_fourth_level_is_one_pixel():
    safm, x = make(4, 4), randn(2, 4, 8, 8)
    t = run(safm, x)
    assert torch.equal(t["X_down:3"], x[:, 3:].amax((2, 3), keepdim=True))
    assert torch.equal(t["X_hat:4"], t["X_hat:4"][:, :, :1, :1].expand(2, 1, 8, 8))


def test_the_gate_is_no_weight():
    gate = run(make(), 10 * randn(2, 6, 8, 8))["gate"]
    assert gate.max() > 5 and -0.17 < gate.min() < -0.1  # the least that a GELU can be is −0.16997


def test_deeper_levels_see_farther():
    safm, x = make(4, 4), randn(1, 4, 32, 32).requires_grad_()
    t = run(safm, x)
    seen = [torch.autograd.grad(t[name][0, :, 16, 16].sum(), x, retain_graph=True)[0].abs().sum((0, 1)) > 0
            for name in ("X_hat", "X_hat:2", "X_hat:3", "X_hat:4")]
    reach = [int(s.any(1).nonzero()[-1] - s.any(1).nonzero()[0] + 1) for s in seen]
    # A convolution reads three windows, and of each the largest pixel.
    assert reach[0] == 3 and all(3 * 2 ** (i - 1) < r <= 3 * 2**i for i, r in enumerate(reach))


def test_maps_too_small_for_the_levels_are_refused():
    safm = SAFM(8)
    assert safm(torch.randn(1, 8, 8, 9)).shape == (1, 8, 8, 9)
    with pytest.raises(ValueError, match="x has H=7; it must be at least 8 with levels=4, so that the coarsest"):
        safm(torch.randn(1, 8, 7, 9))
    with pytest.raises(ValueError, match="x has W=1; it must be at least 8"):
        safm(torch.randn(1, 8, 16, 1))


@pytest.mark.parametrize(("channels", "message"), [
    (30, "channels=30 must be divisible by levels=4; 28 and 32 are"),
    (3, "channels=3 must be divisible by levels=4; 4 is"),
])
def test_channels_that_levels_do_not_divide(channels, message):
    with pytest.raises(ValueError, match=message):
        SAFM(channels)


# ---- the channel mixer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "growth", "H", "W"), [(2, 2.0, 3, 4), (3, 1.5, 1, 1), (1, 0.3, 2, 1)])
def test_channel_mixer_equals_the_paper(C, growth, H, W):
    ccm, x = randomised(ConvChannelMixer(C, growth_rate=growth)).requires_grad_(False), randn(2, C, H, W)
    W1, b1, W2, b2 = (p.tolist() for p in (ccm.W1.weight, ccm.W1.bias, ccm.W2.weight.flatten(1), ccm.W2.bias))
    assert len(W1) == max(int(C * growth), 1)
    for image, y in zip(x.tolist(), ccm(x), strict=True):
        wide = []
        for kernels, bias in zip(W1, b1, strict=True):
            parts = [three_by_three(channel, kernel, 0.0) for channel, kernel in zip(image, kernels, strict=True)]
            wide.append([[gelu(bias + sum(p[i][j] for p in parts)) for j in range(W)] for i in range(H)])
        expected = [[[b + sum(w * h[i][j] for w, h in zip(row, wide, strict=True)) for j in range(W)] for i in range(H)]
                    for row, b in zip(W2, b2, strict=True)]
        torch.testing.assert_close(y, torch.tensor(expected, dtype=D), rtol=0, atol=1e-12)


def test_channel_mixer_works_in_half_precision_compiled_and_backward():
    ccm, x = ConvChannelMixer(6), torch.randn(1, 6, 7, 5, requires_grad=True)
    ccm(x).sum().backward()
    assert x.grad.isfinite().all() and all(p.grad is not None for p in ccm.parameters())
    torch.testing.assert_close(torch.compile(ccm, fullgraph=True, backend="aot_eager")(x), ccm(x))
    half = ConvChannelMixer(6).half()(300 * x.detach().half())
    assert half.dtype == torch.float16 and half.isfinite().all()
    for bad, message in ((dict(growth_rate=0), "growth_rate=0 must be a positive"), (dict(channels=0), "channels=0")):
        with pytest.raises(ValueError, match=message):
            ConvChannelMixer(**{"channels": 6} | bad)


def test_both_halves_have_the_release_weights():
    """36 channels, four levels: 36 · (9 + 1) depthwise, 36² + 36 for W_a; 2 · 36 · (9 · 36 + 1) and 36 · (72 + 1)."""
    assert sum(p.numel() for p in SAFM(36).parameters()) == 360 + 1332
    assert sum(p.numel() for p in ConvChannelMixer(36).parameters()) == 23_400 + 2_628


# ---- symmetry and cost -----------------------------------------------------------------------------------------------


def test_whole_windows_of_the_coarsest_level_may_move():
    safm, x = make(), torch.zeros(1, 6, 24, 24, dtype=D)
    x[:, :, 8:16, 8:16] = randn(1, 6, 8, 8)
    y, moved = safm(x), safm(x.roll(4, 3))
    torch.testing.assert_close(moved.roll(-4, 3), y)
    assert (safm(x.roll(1, 3)).roll(-1, 3) - y).abs().max() > 1e-2
    order = permutation(6)
    assert (safm(x[:, order]) - y[:, order]).abs().max() > 1e-2


def test_memory_is_linear_in_the_number_of_positions():
    safm, sides = SAFM(16), [(16, 16), (16, 32), (32, 32), (32, 64)]
    N = [h * w for h, w in sides]
    saved = [measure.saved_bytes(lambda x: safm(x * 2), torch.randn(2, 16, *side)) for side in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.03)
    assert measure.fit_exponent(N, [measure.flops(safm, torch.randn(2, 16, *s)) for s in sides]) == pytest.approx(1)
