"""GAM against its paper, its limits, and the variants and errors that circulate."""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.channel_spatial import GAMAttention
from tests.unit.draw import D, permutation, randn, randomised

CASES = [(8, 2, 5, 9), (4, 4, 1, 4), (6, 3, 7, 1), (3, 1, 1, 1)]  # C, r, H, W
FORMS = [{}, dict(channel_sigmoid=False), dict(padding_mode="replicate")]
GROUPED = [dict(groups=2), dict(groups=2, shuffle="gate"), dict(groups=4),
           dict(groups=2, shuffle="gate", channel_sigmoid=False, padding_mode="replicate")]


def make(C=8, r=2, *, seed=0, **options):
    return randomised(GAMAttention(C, reduction=r, **options), scale=0.4, seed=seed).requires_grad_(False)


def trace(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def affine(layer, vector):
    return [sum(w * v for w, v in zip(row, vector, strict=True)) + b
            for row, b in zip(layer.weight.flatten(1).tolist(), layer.bias.tolist(), strict=True)]


def convolved(maps, conv, bn, border):
    """A grouped 7 × 7 convolution and its normalisation, tap by tap; outside lie zeros, or the border goes on."""
    H, W = len(maps[0]), len(maps[0][0])
    kernels, out = conv.weight.tolist(), []
    per_group_out, per_group_in = len(kernels) // conv.groups, len(kernels[0])
    for c, kernel in enumerate(kernels):
        first = (c // per_group_out) * per_group_in
        scale = bn.weight[c].item() / math.sqrt(bn.running_var[c].item() + bn.eps)
        plane = []
        for i in range(H):
            plane.append([])
            for j in range(W):
                v = 0.0
                for m, taps in zip(maps[first:first + per_group_in], kernel, strict=True):
                    for a in range(-3, 4):
                        for b in range(-3, 4):
                            p, q = i + a, j + b
                            if border == "replicate":
                                p, q = min(max(p, 0), H - 1), min(max(q, 0), W - 1)
                            if 0 <= p < H and 0 <= q < W:
                                v += taps[a + 3][b + 3] * m[p][q]
                plane[-1].append((v - bn.running_mean[c].item()) * scale + bn.bias[c].item())
        out.append(plane)
    return out


def dealt_out(maps, groups):
    """One of each group in turn."""
    size = len(maps) // groups
    return [maps[g * size + s] for s in range(size) for g in range(groups)]


def from_the_paper(x, gam):
    out = []
    for image in x.tolist():
        C, H, W = len(image), len(image[0]), len(image[0][0])
        x2 = [[[0.0] * W for _ in range(H)] for _ in range(C)]
        for i in range(H):
            for j in range(W):
                pixel = [image[c][i][j] for c in range(C)]
                M_c = affine(gam.W2, [max(0.0, v) for v in affine(gam.W1, pixel)])
                for c in range(C):
                    x2[c][i][j] = pixel[c] * (sigmoid(M_c[c]) if gam.channel_sigmoid else M_c[c])
        s = [[[max(0.0, v) for v in row] for row in m] for m in convolved(x2, gam.f1, gam.norm1, gam.padding_mode)]
        s = dealt_out(s, gam.groups) if gam.shuffle == "between" else s
        M_s = convolved(s, gam.f2, gam.norm2, gam.padding_mode)
        M_s = dealt_out(M_s, gam.groups) if gam.shuffle == "gate" else M_s
        out.append([[[sigmoid(v) * u for v, u in zip(*rows, strict=True)] for rows in zip(*maps, strict=True)]
                    for maps in zip(M_s, x2, strict=True)])
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("C", "r", "H", "W"), CASES)
def test_equals_the_paper(C, r, H, W, form):
    gam, x = make(C, r, **form), randn(1, C, H, W)
    torch.testing.assert_close(gam(x), from_the_paper(x, gam), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", GROUPED, ids=str)
def test_equals_the_paper_with_groups(form):
    gam, x = make(**form), randn(2, 8, 4, 5)
    torch.testing.assert_close(gam(x), from_the_paper(x, gam), rtol=0, atol=1e-12)


class Wrong(GAMAttention):
    """The variants and errors in circulation, one at a time."""

    mistake = None

    def forward(self, x):
        m, B, C = self.mistake, *x.shape[:2]
        pixels = x.flatten(2).mT
        if m == "reshaped, not permuted":
            pixels = x.reshape(B, -1, C)
        if m == "mean of the map":
            pixels = x.mean((2, 3))[:, None].expand_as(pixels)
        hidden = F.linear(pixels, self.W1.weight.flatten(1), self.W1.bias)
        hidden = hidden if m == "no ReLU in the MLP" else hidden.relu()
        M_c = F.linear(hidden, self.W2.weight.flatten(1), self.W2.bias).mT.reshape(x.shape)
        M_c = M_c if m == "no sigmoid of the channels" else M_c.sigmoid()
        x2 = x * M_c
        border = "replicate" if m == "border continued" else "constant"
        s = F.conv2d(F.pad(x2, (3,) * 4, border), self.f1.weight, groups=self.groups)
        s = s if m == "no first normalisation" else self.norm1(s)
        s = s if m == "no ReLU between the convolutions" else s.relu()
        B, Cr, H, W = s.shape
        if m not in ("shuffled behind the sigmoid", "not shuffled"):
            s = s.view(B, self.groups, Cr // self.groups, H, W).transpose(1, 2).reshape(B, Cr, H, W)
        v = F.conv2d(F.pad(s, (3,) * 4, border), self.f2.weight, groups=self.groups)
        v = v if m == "no last normalisation" else self.norm2(v)
        M_s = v if m == "no last sigmoid" else v.sigmoid()
        if m == "shuffled behind the sigmoid":
            M_s = M_s.view(B, self.groups, C // self.groups, H, W).transpose(1, 2).reshape(x.shape)
        return {"spatial gate on the input": x * M_s, "residual added": x + x2 * M_s}.get(m, x2 * M_s)


@pytest.mark.parametrize("mistake", [
    "reshaped, not permuted", "mean of the map", "no ReLU in the MLP", "no sigmoid of the channels",
    "border continued", "no first normalisation", "no ReLU between the convolutions", "shuffled behind the sigmoid",
    "not shuffled", "no last normalisation", "no last sigmoid", "spatial gate on the input", "residual added",
])
def test_the_comparison_with_the_paper_notices(mistake):
    gam, x = make(groups=2), randn(1, 8, 5, 7)
    wrong = Wrong(8, reduction=2, groups=2).to(D).eval()
    wrong.load_state_dict(gam.state_dict())
    expected = from_the_paper(x, gam)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    gam, x = make(), randn(2, 8, 5, 7)
    t = trace(gam, x)
    assert t.names() == ["M_c", "x2", "s", "M_s", "y"]
    pixels = x.permute(0, 2, 3, 1)  # the paper's permutation, two linear layers, and back
    hidden = F.linear(pixels, gam.W1.weight.flatten(1), gam.W1.bias).relu()
    M_c = F.linear(hidden, gam.W2.weight.flatten(1), gam.W2.bias).permute(0, 3, 1, 2).sigmoid()
    torch.testing.assert_close(t["M_c"], M_c)
    assert torch.equal(t["x2"], t["M_c"] * x) and torch.equal(t["y"], t["M_s"] * t["x2"])
    assert torch.equal(t["s"], gam.norm1(F.conv2d(t["x2"], gam.f1.weight, padding=3)).relu())
    assert torch.equal(t["M_s"], gam.norm2(F.conv2d(t["s"], gam.f2.weight, padding=3)).sigmoid())


# ---- what circulates -------------------------------------------------------------------------------------------------


def test_no_gate_sees_the_whole_map():
    gam, x = make(), randn(1, 8, 17, 17).requires_grad_()
    t = trace(gam, x)

    def seen(gate):
        grad = torch.autograd.grad(t[gate][0, :, 8, 8].sum(), x, retain_graph=True)[0][0].abs().sum(0)
        return [(grad.nonzero().amin(0) - 8).tolist(), (grad.nonzero().amax(0) - 8).tolist()]

    assert seen("M_c") == [[0, 0], [0, 0]] and seen("M_s") == [[-6, -6], [6, 6]]
    order = permutation(17 * 17)
    shuffled = x.detach().flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(trace(gam, shuffled)["M_c"], t["M_c"].flatten(2)[..., order].view_as(x))


def test_without_the_sigmoid_a_channel_can_change_its_sign():
    x = randn(2, 8, 5, 7)
    assert (make()(x) * x >= 0).all() and (make()(x).abs() <= x.abs()).all()
    wild = make(channel_sigmoid=False)(x) / x
    assert wild.min() < -0.1 and wild.abs().max() > 1


def test_a_shuffle_behind_the_sigmoid_gives_channels_the_gates_of_others():
    """Each channel's own gate closed by its own bias: channel 1 is closed, and it is channel 2 that vanishes."""
    x = randn(1, 8, 5, 7)
    for shuffle, gone in (("between", 1), ("gate", 2)):
        gam = make(groups=2, shuffle=shuffle)
        gam.norm2.bias[1] = -1e4
        silent = gam(x).abs().amax((0, 2, 3)) == 0
        assert silent.nonzero().flatten().tolist() == [gone]


def test_without_a_shuffle_between_them_groups_never_meet():
    """The spatial gate of a group then sees its own group alone."""
    for shuffle, reached in (("between", 8), ("gate", 4)):
        gam, x = make(groups=2, shuffle=shuffle), randn(1, 8, 5, 7).requires_grad_()
        gam.norm1.bias.fill_(10.0)  # no ReLU is shut everywhere
        t = trace(gam, x)
        grad = torch.autograd.grad(t["M_s"][0, 0].sum(), t["x2"])[0]
        assert (grad.abs().amax((0, 2, 3)) > 0).sum() == reached


def test_the_border_is_zeros_or_continued():
    x = torch.ones(1, 8, 9, 9, dtype=D)
    for mode, constant in (("zeros", False), ("replicate", True)):
        y = make(padding_mode=mode)(x)
        spread = (y.amax((2, 3)) - y.amin((2, 3))).abs().max()
        assert spread < 1e-12 if constant else spread > 1e-3


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=3), "reduction=4 must be at most channels=3"),
    (dict(channels=30, groups=4), "channels=30 must be divisible by groups=4"),
    (dict(channels=24, groups=4), "channels // reduction=6 must be divisible by groups=4"),
    (dict(channels=8, shuffle="after"), "shuffle='after' must be one of 'between', 'gate'"),
    (dict(channels=8, padding_mode="reflect"), "padding_mode='reflect' must be one of 'zeros', 'replicate'"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        GAMAttention(**options)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_costs_the_kernels_that_the_docstring_counts():
    gam = GAMAttention(512)
    kernels = gam.f1.weight.numel() + gam.f2.weight.numel()
    assert gam.reduction == 4 and kernels == 2 * 49 * 512**2 // 4 == 6_422_528
    grouped = GAMAttention(512, groups=4)
    assert 4 * (grouped.f1.weight.numel() + grouped.f2.weight.numel()) == kernels


def test_memory_is_linear_in_the_positions():
    C, r, sides = 16, 4, [(16, 16), (16, 32), (32, 32), (32, 64)]
    gam, N = GAMAttention(C, reduction=r), [h * w for h, w in sides]
    saved = [measure.saved_bytes(gam, torch.randn(2, C, *side)) for side in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.02)
    maps = 4 * C + 3 * C // r  # M_c, x₂, what goes into BN₂, M_s; and the narrow maps: hidden, into BN₁, s
    assert all(kept == pytest.approx(4 * 2 * n * maps, rel=0.05) for n, kept in zip(N, saved, strict=True))
