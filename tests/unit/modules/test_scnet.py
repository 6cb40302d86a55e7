"""Self-calibrated convolution against its paper, its limits and the release, and against known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.channel_spatial import SelfCalibratedConv
from tests.unit.draw import D, randn, randomised

CASES = [(4, 4, 8, 8), (6, 4, 7, 9), (2, 3, 5, 2), (4, 4, 1, 1), (2, 1, 3, 4), (4, 4, 3, 13)]  # C, r, H, W


def make(C=4, r=4, *, seed=0, **options):
    conv = SelfCalibratedConv(C, pooling_r=r, **options)
    return randomised(conv, scale=0.5, seed=seed).requires_grad_(False)


def trace(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def convolved(maps, conv, bn=None, relu=False):
    """A convolution tap by tap, zeros outside, and what stands behind it."""
    H, W, k, s = len(maps[0]), len(maps[0][0]), conv.kernel_size[0], conv.stride[0]
    out = []
    for c, kernel in enumerate(conv.weight.tolist()):
        out.append([])
        for i in range(0, H, s):
            out[-1].append([])
            for j in range(0, W, s):
                v = sum(taps[a][b] * m[i + a - k // 2][j + b - k // 2]
                        for m, taps in zip(maps, kernel, strict=True) for a in range(k) for b in range(k)
                        if 0 <= i + a - k // 2 < H and 0 <= j + b - k // 2 < W)
                if isinstance(bn, nn.BatchNorm2d):
                    v = (v - bn.running_mean[c].item()) / math.sqrt(bn.running_var[c].item() + bn.eps)
                    v = v * bn.weight[c].item() + bn.bias[c].item()
                out[-1][-1].append(max(v, 0.0) if relu else v)
    return out


def pooled(m, r):
    """Means of the windows; those at the end hold what is left."""
    windows = [[[m[i][j] for i in range(p, min(p + r, len(m))) for j in range(q, min(q + r, len(m[0])))]
                for q in range(0, len(m[0]), r)] for p in range(0, len(m), r)]
    return [[sum(w) / len(w) for w in row] for row in windows]


def enlarged(m, r, H, W, up):
    """Value at pixel i of a row of cells r pixels wide: its cell's, or between the two nearest centres."""
    def between(i, n):
        if up == "nearest":
            return [(i // r, 1.0)]
        at = min(max((i + 0.5) / r - 0.5, 0.0), n - 1.0)
        low = math.floor(at)
        return [(low, 1 - at + low), (min(low + 1, n - 1), at - low)]
    return [[sum(a * b * m[p][q] for p, a in between(i, len(m)) for q, b in between(j, len(m[0]))) for j in range(W)]
            for i in range(H)]


def from_the_paper(x, conv):
    """Equations 2 to 5 in plain numbers."""
    normalised = isinstance(conv.norm1, nn.BatchNorm2d)
    out = []
    for image in x.tolist():
        C, H, W = len(image), len(image[0]), len(image[0][0])
        X1, X2 = image[:C // 2], image[C // 2:]
        if conv.project:
            X1 = convolved(image, conv.Wb, conv.norm_b, relu=True)
            X2 = convolved(image, conv.Wa, conv.norm_a, relu=True)
        context = convolved([pooled(m, conv.pooling_r) for m in X1], conv.K2, conv.norm2)
        context = [enlarged(m, conv.pooling_r, H, W, conv.up) for m in context]
        Y = convolved(X1, conv.K3, conv.norm3)
        Y = [[[y / (1 + math.exp(-v - u)) for y, v, u in zip(*rows, strict=True)] for rows in zip(*maps, strict=True)]
             for maps in zip(Y, X1, context, strict=True)]
        out.append(convolved(Y, conv.K4, conv.norm4, normalised) + convolved(X2, conv.K1, conv.norm1, normalised))
    return torch.tensor(out, dtype=D)


FORMS = [{}, dict(up="nearest"), dict(norm=True), dict(project=True, stride=2),
         dict(up="nearest", norm=True, project=True), dict(stride=3)]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("C", "r", "H", "W"), CASES)
def test_equals_the_paper(C, r, H, W, form):
    conv, x = make(C, r, **form), randn(2, C, H, W)
    torch.testing.assert_close(conv(x), from_the_paper(x, conv), rtol=0, atol=1e-12)


class Wrong(SelfCalibratedConv):
    """The errors in circulation, one at a time."""

    mistake = None

    def forward(self, x):
        mistake, r = self.mistake, self.pooling_r
        X1, X2 = x.chunk(2, 1)
        if mistake == "halves exchanged":
            X1, X2 = X2, X1
        if mistake == "every other channel":
            X1, X2 = x[:, ::2], x[:, 1::2]
        T1 = F.max_pool2d(X1, r, ceil_mode=True) if mistake == "maximum for mean" else F.avg_pool2d(X1, r)
        context = F.interpolate(self.K2(T1), X1.shape[2:], mode="bilinear",
                                align_corners=mistake == "corners aligned")
        if mistake == "nearest":
            context = F.interpolate(self.K2(T1), X1.shape[2:])
        g = {"context alone": context, "multiplied before the sigmoid": X1 * context}.get(mistake, X1 + context)
        g = g.sigmoid()
        Y1 = self.K3(X1)
        Y1 = {"gate on X1": X1 * g, "added": Y1 + g, "residual": Y1 * g + X1}.get(mistake, Y1 * g)
        Y1 = Y1 if mistake == "no K4" else self.K4(Y1)
        Y1 = self.K4(self.K3(X1)) * g if mistake == "gate behind K4" else Y1
        Y2 = self.K1(X2)
        return torch.cat([Y2, Y1] if mistake == "K1 first" else [Y1, Y2], 1)


@pytest.mark.parametrize("mistake", [
    "halves exchanged", "every other channel", "maximum for mean", "corners aligned", "nearest", "context alone",
    "multiplied before the sigmoid", "gate on X1", "added", "residual", "no K4", "gate behind K4", "K1 first",
])
def test_the_comparison_with_the_paper_notices(mistake):
    conv, x = make(), randn(2, 4, 8, 12)  # r divides both: nothing is dropped
    wrong = Wrong(4).to(D)
    wrong.load_state_dict(conv.state_dict())
    expected = from_the_paper(x, conv)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    conv, x = make(), randn(2, 4, 8, 12)
    t = trace(conv, x)
    assert t.names() == ["X1", "X2", "T1", "X1'", "g", "Y1'", "Y1", "Y2", "y"]
    assert torch.equal(t["g"], torch.sigmoid(t["X1"] + t["X1'"])) and t["T1"].shape == (2, 2, 2, 3)
    assert torch.equal(t["Y1'"], conv.K3(x[:, :2]) * t["g"]) and torch.equal(t["y"], torch.cat([t["Y1"], t["Y2"]], 1))


# ---- the release -----------------------------------------------------------------------------------------------------


def released(conv, x):
    """Its block from the two projections to what its last 1 × 1 convolution reads; floor pooling, K1's half first."""
    def then(t, K, bn):
        t = F.conv2d(t, K.weight, stride=K.stride, padding=K.weight.shape[-1] // 2)
        return F.batch_norm(t, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    a, b = then(x, conv.Wa, conv.norm_a).relu(), then(x, conv.Wb, conv.norm_b).relu()
    context = F.interpolate(then(F.avg_pool2d(b, 4, 4), conv.K2, conv.norm2), b.shape[2:])
    b = then(then(b, conv.K3, conv.norm3) * torch.sigmoid(b + context), conv.K4, conv.norm4).relu()
    return torch.cat([then(a, conv.K1, conv.norm1).relu(), b], 1)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_release_projects_and_normalises(stride):
    conv, x = make(8, up="nearest", norm=True, project=True, stride=stride), randn(2, 8, 8, 12)
    torch.testing.assert_close(conv(x).roll(4, 1), released(conv, x), rtol=0, atol=1e-12)
    assert (conv(x) - released(conv, x)).abs().max() > 0.1, "its halves stand the other way round"
    assert conv.K1.stride == conv.K4.stride == (stride, stride) and conv.K2.stride == conv.K3.stride == (1, 1)


def test_the_release_repeats_the_pixels_of_the_context():
    x = randn(2, 4, 8, 12)
    repeated, smooth = trace(make(up="nearest"), x), trace(make(), x)
    context = F.conv2d(F.avg_pool2d(x[:, :2], 4), make().K2.weight, padding=1)
    assert torch.equal(repeated["X1'"], context.repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert (smooth["X1'"] - repeated["X1'"]).abs().max() > 0.1
    torch.testing.assert_close(smooth["X1'"][..., 3:5, 0].mean(-1), context[..., 0].mean(-1))  # half-way between


@pytest.mark.parametrize("size", [(7, 7), (9, 5), (4, 11), (3, 3)])
def test_the_last_rows_enter_the_context(size):
    conv, x = make(norm=True, up="nearest", project=True), randn(1, 4, *size)
    assert trace(conv, x)["T1"].shape[2:] == tuple(math.ceil(n / 4) for n in size)
    leaf = x.clone().requires_grad_()
    grad = torch.autograd.grad(trace(make(), leaf)["T1"].sum(), leaf)[0][0, 0]
    assert (grad > 0).all(), "every pixel counts in the mean of its window"
    if min(size) < 4:
        with pytest.raises(RuntimeError):
            F.avg_pool2d(x, 4)
    elif size == (7, 7):  # the release: the last three rows enter nothing
        grad = torch.autograd.grad(F.avg_pool2d(leaf, 4).sum(), leaf)[0][0, 0]
        assert (grad[4:] == 0).all() and (grad[:, 4:] == 0).all()


def test_every_pixel_gets_the_context_of_its_own_window():
    conv, x = make(up="nearest"), randn(1, 4, 9, 6)
    conv.K2.weight.zero_()
    conv.K2.weight[:, :, 1, 1] = torch.eye(2, dtype=D)
    t = trace(conv, x)
    for i in range(9):
        for j in range(6):
            assert torch.equal(t["X1'"][..., i, j], t["T1"][..., i // 4, j // 4])


def test_a_constant_map_has_itself_for_context_at_any_size():
    """Means of windows, whole or not, and what lies between them, are the constant: means over zeros would not be."""
    for up in ("bilinear", "nearest"):
        conv = make(up=up)
        conv.K2.weight.zero_()
        conv.K2.weight[:, :, 1, 1] = torch.eye(2, dtype=D)
        x = torch.tensor([1.5, -2.0, 3.0, 0.5], dtype=D).view(1, 4, 1, 1).expand(1, 4, 7, 10)
        torch.testing.assert_close(trace(conv, x)["X1'"], x[:, :2])


def test_a_graph_recorded_at_one_size_runs_at_others():
    """At sizes that r divides, and at others: nothing about the size is decided while it is recorded."""
    conv, auto = make().float(), torch.export.Dim.AUTO
    for recorded in ((8, 12), (7, 9)):
        x = randn(2, 4, *recorded).float()
        graph = torch.export.export(conv, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},)).module()
        for size in ((8, 12), (7, 9), (13, 16)):
            x = randn(3, 4, *size).float()
            torch.testing.assert_close(graph(x), conv(x))


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=7), "channels=7 must be divisible by halves=2"),
    (dict(channels=8, up="bicubic"), "up='bicubic' must be one of 'bilinear', 'nearest'"),
    (dict(channels=8, pooling_r=0), "pooling_r=0 must be an integer of at least 1"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SelfCalibratedConv(**options)


# ---- what a place sees, and what it costs ----------------------------------------------------------------------------


def test_the_gate_sees_three_windows_each_way_and_a_convolution_one_pixel():
    conv, x = make(up="nearest"), randn(1, 4, 28, 28).requires_grad_()
    t = trace(conv, x)
    seen = torch.autograd.grad(t["g"][0, :, 13, 13].sum(), x)[0][0, :2].abs().sum(0).nonzero()
    assert seen.amin(0).tolist() == [8, 8] and seen.amax(0).tolist() == [19, 19]  # windows 2, 3 and 4
    t = trace(conv, x)
    assert len(torch.autograd.grad(t["Y2"][0, :, 13, 13].sum(), x)[0].abs().sum((0, 1)).nonzero()) == 9


def test_has_the_parameters_of_a_plain_convolution():
    """Four kernels of C/2 are as many weights as one of C: the paper's point."""
    assert sum(p.numel() for p in SelfCalibratedConv(64).parameters()) == 9 * 64 * 64


def test_memory_is_linear_in_the_positions():
    C, sides = 16, [(16, 16), (16, 32), (32, 32), (32, 64)]
    conv, N = SelfCalibratedConv(C), [h * w for h, w in sides]
    saved = [measure.saved_bytes(conv, torch.randn(2, C, *side)) for side in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.02)
    assert all(kept <= 4 * 2 * C / 2 * n * 3.2 for n, kept in zip(N, saved, strict=True))  # g, K₃ * X₁, Y₁' of C/2
