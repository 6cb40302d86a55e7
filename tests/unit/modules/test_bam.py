"""BAM against its paper, its limits and the release, and against the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.channel_spatial import BAM
from tests.unit.draw import D, randn, randomised

CASES = [(8, 4, 4, 5, 9), (6, 5, 1, 1, 4), (4, 1, 2, 7, 3), (4, 4, 4, 1, 1), (1, 1, 3, 2, 3)]  # C, r, d, H, W
FORMS = [{}, dict(combine="product"), dict(combine="maximum"), dict(combine="product", norm="inside"),
         dict(norm="inside"), dict(relu=False)]


def make(C=8, r=4, d=4, *, seed=0, **options):
    bam = BAM(C, reduction=r, dilation=d, **options)
    return randomised(bam, scale=0.8, seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def normalised(v, bn, c):
    scale = bn.weight[c].item() / math.sqrt(bn.running_var[c].item() + bn.eps)
    return (v - bn.running_mean[c].item()) * scale + bn.bias[c].item()


def linear(layer, vector):
    return [sum(w * v for w, v in zip(row, vector, strict=True)) + b
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def convolution(layer, maps, d):
    """A convolution whose output is as large as its input, tap by tap, zeros outside."""
    H, W, k = len(maps[0]), len(maps[0][0]), layer.kernel_size[0]
    out = []
    for kernel, bias in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True):
        plane = [[bias] * W for _ in range(H)]
        for m, taps in zip(maps, kernel, strict=True):
            for i in range(H):
                for j in range(W):
                    for a in range(k):
                        for b in range(k):
                            row, column = i + (a - k // 2) * d, j + (b - k // 2) * d
                            if 0 <= row < H and 0 <= column < W:
                                plane[i][j] += taps[a][b] * m[row][column]
        out.append(plane)
    return out


def from_the_paper(x, bam):
    """Equations 1 to 4 in plain numbers; `inside` is where the release normalises."""
    relu = (lambda v: max(v, 0.0)) if bam.relu else (lambda v: v)
    inside = bam.norm == "inside"
    channel, spatial = dict(bam.channel.named_children()), dict(bam.spatial.named_children())
    out = []
    for image in x.tolist():
        C, H, W = len(image), len(image[0]), len(image[0][0])
        hidden = linear(channel["W0"], [sum(map(sum, m)) / (H * W) for m in image])
        hidden = [relu(normalised(v, channel["norm0"], c) if inside else v) for c, v in enumerate(hidden)]
        M_c = linear(channel["W1"], hidden)
        M_c = M_c if inside else [normalised(v, channel["norm"], c) for c, v in enumerate(M_c)]
        maps = image
        for n in range(3):
            maps = convolution(spatial[f"f{n}"], maps, bam.dilation)
            maps = [[[relu(normalised(v, spatial[f"norm{n}"], c) if inside else v) for v in row] for row in m]
                    for c, m in enumerate(maps)]
        M_s = convolution(spatial["f3"], maps, 1)[0]
        M_s = M_s if inside else [[normalised(v, spatial["norm"], 0) for v in row] for row in M_s]
        combined = {"sum": lambda a, b: a + b, "product": lambda a, b: a * b, "maximum": max}[bam.combine]
        M = [[[1 / (1 + math.exp(-combined(M_c[c], M_s[i][j]))) for j in range(W)] for i in range(H)] for c in range(C)]
        out.append([[[image[c][i][j] + image[c][i][j] * M[c][i][j] for j in range(W)] for i in range(H)]
                    for c in range(C)])
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("C", "r", "d", "H", "W"), CASES)
def test_equals_the_paper(C, r, d, H, W, form):
    bam, x = make(C, r, d, **form), randn(2, C, H, W)
    torch.testing.assert_close(bam(x), from_the_paper(x, bam), rtol=0, atol=1e-12)


class Wrong(BAM):
    """The errors in circulation, one at a time."""

    mistake = None

    def forward(self, x):
        H = x.shape[2]
        z = x.mean((2, 3))
        if self.mistake == "square window":  # the release's
            z = F.avg_pool2d(x, H, stride=H).flatten(1)
        if self.mistake == "maximum for mean":
            z = x.amax((2, 3))
        M_c, M_s = self.channel(z), self.spatial(x)
        if self.mistake == "no normalisation at the end":
            M_c = self.channel[:-1](z)
        if self.mistake == "dilation forgotten":
            f0, r0, f1, r1, f2, r2, f3, norm = self.spatial
            t = r1(F.conv2d(r0(f0(x)), f1.weight, f1.bias, padding=1))
            M_s = norm(f3(r2(F.conv2d(t, f2.weight, f2.bias, padding=1))))
        M_c = M_c[:, :, None, None]
        M = {"product": M_c * M_s, "maximum": torch.maximum(M_c, M_s)}.get(self.mistake, M_c + M_s).sigmoid()
        M = M_c.sigmoid() * M_s.sigmoid() if self.mistake == "two sigmoids" else M
        M = M_c.sigmoid() + M_s.sigmoid() if self.mistake == "sum of sigmoids" else M
        return {"no residual": x * M, "input left out twice": M + x}.get(self.mistake, x + x * M)


@pytest.mark.parametrize("mistake", [
    "square window", "maximum for mean", "no normalisation at the end", "dilation forgotten", "product", "maximum",
    "two sigmoids", "sum of sigmoids", "no residual", "input left out twice",
])
def test_the_comparison_with_the_paper_notices(mistake):
    bam, x = make(), randn(2, 8, 5, 7)
    wrong = Wrong(8, reduction=4).to(D).eval()
    wrong.load_state_dict(bam.state_dict())
    expected = from_the_paper(x, bam)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    bam, x = make(), randn(2, 8, 5, 7)
    with attn_lib.trace() as t:
        y = bam(x)
    assert t.names() == ["z", "M_c", "M_s", "M", "y"]
    assert torch.equal(t["M"], torch.sigmoid(t["M_c"][:, :, None, None] + t["M_s"]))
    assert torch.equal(y, x + x * t["M"])


def test_defaults_are_the_papers():
    bam = BAM(64)
    assert bam.channel.W0.out_features == 4 and bam.spatial.f1.dilation == bam.spatial.f2.dilation == (4, 4)
    assert bam.combine == "sum" and all(isinstance(m[-1], nn.modules.batchnorm._BatchNorm)
                                        for m in (bam.channel, bam.spatial))
    assert all(m.bias is not None for m in bam.modules() if hasattr(m, "weight")), "all layers have biases"


# ---- the release, and what it does to its input ----------------------------------------------------------------------


def test_the_release_normalises_inside():
    """Its layers, by the names that the docstring gives for them, in the order in which it runs them."""
    bam, x = make(combine="product", norm="inside"), randn(3, 8, 6, 6)
    assert [name for name, _ in bam.channel.named_children()] == ["W0", "norm0", "relu0", "W1"]
    assert [name for name, _ in bam.spatial.named_children()] == [
        "f0", "norm0", "relu0", "f1", "norm1", "relu1", "f2", "norm2", "relu2", "f3"]
    c, s = bam.channel, bam.spatial
    pooled = F.avg_pool2d(x, 6, stride=6).flatten(1)  # a square map, the only kind that it is right for
    M_c = c.W1(c.norm0(c.W0(pooled)).relu())[:, :, None, None].expand_as(x)
    M_s = s.f3(s.norm2(s.f2(s.norm1(s.f1(s.norm0(s.f0(x)).relu())).relu())).relu()).expand_as(x)
    torch.testing.assert_close(bam(x), (1 + torch.sigmoid(M_c * M_s)) * x, rtol=0, atol=1e-13)
    assert (bam(x) - make(combine="product")(x)).abs().max() > 1e-2


@pytest.mark.parametrize("value", [-30.0, -3.0])
def test_of_two_shut_branches_the_sum_shuts_and_the_product_opens(value):
    x = randn(2, 8, 5, 7)
    gates = {}
    for combine in ("sum", "product", "maximum"):
        bam = make(combine=combine)
        for branch in (bam.channel, bam.spatial):
            branch.norm.weight.zero_()
            branch.norm.bias.fill_(value)
        gates[combine] = bam(x) / x
    shut, opened = 1 + 1 / (1 + math.exp(-2 * value)), 1 + 1 / (1 + math.exp(-value * value))
    torch.testing.assert_close(gates["sum"], torch.full_like(x, shut))
    torch.testing.assert_close(gates["product"], torch.full_like(x, opened))
    torch.testing.assert_close(gates["maximum"], torch.full_like(x, 1 + 1 / (1 + math.exp(-value))))
    assert shut < 1.01 and opened > 1.99


def test_the_product_of_a_shut_and_an_open_branch_is_shut():
    bam, x = make(combine="product"), randn(2, 8, 5, 7)
    for branch, value in ((bam.channel, -40.0), (bam.spatial, 40.0)):
        branch.norm.weight.zero_()
        branch.norm.bias.fill_(value)
    assert torch.equal(bam(x), x)


def test_a_map_that_is_not_square_exposes_a_square_window():
    bam = make()
    wrong = Wrong(8, reduction=4).to(D).eval()
    wrong.load_state_dict(bam.state_dict())
    wrong.mistake = "square window"
    x, square = randn(2, 8, 9, 17), randn(2, 8, 6, 6)
    torch.testing.assert_close(wrong(square), bam(square))

    altered = x.clone()
    altered[..., 9:] += 7  # columns that the window leaves out, all out of reach of the convolutions at (0, 0)
    assert torch.equal(F.avg_pool2d(altered, 9, stride=9), F.avg_pool2d(x, 9, stride=9))
    near = (bam(altered) - bam(x))[..., 0, 0]  # 8 columns away: only the mean can have told it
    assert near.abs().max() > 1e-3 and (wrong(altered) - wrong(x))[..., 0, 0].abs().max() == 0
    for shape in ((2, 8, 5, 10), (2, 8, 7, 5)):
        assert bam(randn(*shape)).shape == shape
        with pytest.raises(RuntimeError):
            wrong(randn(*shape))


def test_a_reduction_that_leaves_no_hidden_channel_is_refused():
    with pytest.raises(ValueError, match="reduction=16 must be at most channels=8"):
        BAM(8)
    assert BAM(16).channel.W0.out_features == 1


def test_without_relu_a_branch_is_linear():
    """The letter of eqs. 3 and 4: a branch is then one affine map of its input."""
    a, b = randn(2, 8, 5, 7), randn(2, 8, 5, 7, seed=2)
    for relu in (True, False):
        bam = make(relu=relu)
        for branch, p, q in ((bam.channel, a.mean((2, 3)), b.mean((2, 3))), (bam.spatial, a, b)):
            off = (branch(p) + branch(q) - 2 * branch((p + q) / 2)).abs().max()
            assert off > 1e-2 if relu else off < 1e-12


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_batch_of_one_is_refused_in_training_and_taken_in_evaluation(form):
    bam, x = make(**form), randn(1, 8, 5, 7)
    assert bam(x).shape == x.shape
    with pytest.raises(ValueError, match=r"x is a batch of 1; in training it must hold 2 images or more"):
        bam.train()(x)
    assert bam(randn(2, 8, 5, 7)).shape == (2, 8, 5, 7)


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=8, reduction=4, combine="mean"), "combine='mean' must be one of 'sum', 'product', 'maximum'"),
    (dict(channels=8, reduction=4, norm="none"), "norm='none' must be one of 'end', 'inside'"),
    (dict(channels=8, reduction=4, dilation=0), "dilation=0 must be an integer of at least 1"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        BAM(**options)


# ---- what the gate can do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_gate_lies_between_1_and_2(form):
    """So a thing can at most be halved against another; CBAM's gate lies between 0 and 1."""
    bam, x = make(**form), randn(4, 8, 6, 7)
    gate = bam(x) / x
    assert gate.min() > 1 - 1e-12 and gate.max() < 2 + 1e-12 and gate.std() > 0.01


def test_logits_are_a_sum_of_one_number_a_channel_and_one_a_place():
    with attn_lib.trace() as t:
        make()(randn(1, 8, 5, 7))
    logits = t["M"].logit().flatten(2)[0]
    doubly_centred = logits - logits.mean(0) - logits.mean(1, keepdim=True) + logits.mean()
    assert doubly_centred.abs().max() < 1e-9


def test_a_position_sees_eight_pixels_each_way_at_dilation_4():
    """Two 3 × 3 convolutions with dilation 4: rows and columns −8, −4, 0, 4, 8. The mean sees everything."""
    bam, x = make(), randn(1, 8, 19, 19).requires_grad_()
    with attn_lib.trace() as t:
        bam(x)
    reached = torch.autograd.grad(t["M_s"][0, 0, 9, 9], x)[0].abs().sum((0, 1)).nonzero()
    assert {(i - 9) % 4 for i, _ in reached.tolist()} == {(j - 9) % 4 for _, j in reached.tolist()} == {0}
    assert max(abs(i - 9) for i, _ in reached.tolist()) == 8


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_positions():
    C, sides = 32, [(16, 16), (16, 32), (32, 32), (32, 64)]
    bam, N = BAM(C), [h * w for h, w in sides]
    saved = [measure.saved_bytes(bam, torch.randn(2, C, *side)) for side in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.05)
    # The gate is one map of C; the spatial branch lives in C/r = 2 channels and costs a few of those.
    assert all(4 * 2 * n * C <= bytes <= 4 * 2 * n * (C + 8 * (C // 16) + 8) for n, bytes in zip(N, saved, strict=True))


@pytest.mark.parametrize(("C", "r"), [(64, 16), (256, 16), (32, 4)])
def test_parameters_by_the_papers_count(C, r):
    """2C²/r of the channel branch, and C²/r + 18 (C/r)² + C/r of the spatial one, biases and norms apart."""
    Cr = C // r
    weights = sum(m.weight.numel() for m in BAM(C, reduction=r).modules() if isinstance(m, nn.Linear | nn.Conv2d))
    assert weights == 2 * C * Cr + C * Cr + 18 * Cr * Cr + Cr
