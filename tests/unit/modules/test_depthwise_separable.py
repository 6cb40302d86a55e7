"""Depthwise separable convolution against its papers, its limits and timm, and against the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.conv import DepthwiseSeparableConv
from tests.unit.draw import D, randn, randomised
from tests.unit.reference import reference


def make(C=3, O=4, **options):  # noqa: E741  O is the output's channels, as everywhere
    return randomised(DepthwiseSeparableConv(C, O, **options)).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def normalised(value, norm, channel):
    mean, var = norm.running_mean[channel].item(), norm.running_var[channel].item()
    return norm.weight[channel].item() * (value - mean) / math.sqrt(var + norm.eps) + norm.bias[channel].item()


def from_the_papers(x, conv, activation=None, *, stride=(1, 1), padding=(1, 1), dilation=(1, 1)):
    """Both convolutions in plain numbers; with an activation, MobileNet's figure 3: BN and ReLU after both."""
    (B, C, H, W), m = x.shape, conv.multiplier
    d, p = conv.depthwise.weight, conv.pointwise.weight[:, :, 0, 0]
    kH, kW = d.shape[2:]
    Ho, Wo = ((n + 2 * q - e * (k - 1) - 1) // s + 1
              for n, k, s, q, e in zip((H, W), (kH, kW), stride, padding, dilation, strict=True))
    y = torch.zeros(B, len(p), Ho, Wo, dtype=D)
    for b, row, col in ((b, r, c) for b in range(B) for r in range(Ho) for c in range(Wo)):
        between = []
        for c in range(C):
            for kernel in d[c * m:(c + 1) * m, 0]:
                total = 0.0
                for i in range(kH):
                    for j in range(kW):
                        r = row * stride[0] - padding[0] + i * dilation[0]
                        s = col * stride[1] - padding[1] + j * dilation[1]
                        if 0 <= r < H and 0 <= s < W:
                            total += kernel[i, j].item() * x[b, c, r, s].item()
                between.append(total)
        if activation:
            between = [activation(normalised(value, conv.between[0], e)) for e, value in enumerate(between)]
        for o, weights in enumerate(p.tolist()):
            total = sum(w * value for w, value in zip(weights, between, strict=True))
            if conv.pointwise.bias is not None:
                total += conv.pointwise.bias[o].item()
            y[b, o, row, col] = activation(normalised(total, conv.behind[0], o)) if activation else total
    return y


GEOMETRIES = {
    "plain": dict(),
    "stride": dict(stride=(2, 1), padding=(0, 2)),
    "dilation": dict(dilation=(2, 3), padding=(2, 3)),
}
FORMS = {
    "xception": dict(),
    "no bias": dict(bias=False),
    "multiplier 2": dict(multiplier=2),
    "mobilenet": dict(form="mobilenet"),
    "release": dict(form="mobilenet", activation="relu6", multiplier=2),
}
FUNCTIONS = {"mobilenet": lambda v: max(v, 0.0), "release": lambda v: min(max(v, 0.0), 6.0)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_the_papers(geometry, form):
    conv, x = make(**GEOMETRIES[geometry], **FORMS[form]), 3 * randn(2, 3, 5, 6)
    expected = from_the_papers(x, conv, FUNCTIONS.get(form), **GEOMETRIES[geometry])
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("H", "W"), [(1, 1), (1, 7), (3, 2)])
def test_small_maps(H, W):
    conv, x = make(), randn(1, 3, H, W)
    torch.testing.assert_close(conv(x), from_the_papers(x, conv), rtol=0, atol=1e-12)


class Wrong(DepthwiseSeparableConv):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        d, p, mistake = self.depthwise.weight, self.pointwise.weight, self.mistake
        if mistake == "kernel mirrored":
            d = d.flip(2, 3)
        if mistake == "pointwise first":
            return F.conv2d(F.conv2d(x, p), d[:4], self.pointwise.bias, padding=1, groups=4)
        between = F.conv2d(x, d, padding=1, groups=len(x[0]))
        if mistake == "kernels of a channel dealt out":
            between = between.unflatten(1, (-1, self.multiplier)).transpose(1, 2).flatten(1, 2)
        if self.form == "mobilenet" and mistake != "nothing between":
            between = self.between[0](between)
            between = between if mistake == "no ReLU between" else between.clamp(0)
        if mistake == "ReLU between":
            between = between.relu()
        y = F.conv2d(between, p, self.pointwise.bias)
        if self.form == "mobilenet":
            y = y if mistake == "no BN behind" else self.behind[0](y)
            y = y if mistake == "no ReLU behind" else y.relu()
        return y


MISTAKES = {
    "xception": ["kernel mirrored", "pointwise first", "kernels of a channel dealt out", "ReLU between"],
    "mobilenet": ["nothing between", "no ReLU between", "no BN behind", "no ReLU behind"],
}


@pytest.mark.parametrize(("form", "mistake"), [(form, m) for form, ms in MISTAKES.items() for m in ms])
def test_the_comparison_with_the_papers_notices(form, mistake):
    options = dict(form=form, multiplier=2 if "dealt" in mistake else 1)
    conv, x = make(4, 4, **options), randn(1, 4, 4, 5)
    expected = from_the_papers(x, conv, FUNCTIONS.get(form))
    wrong = Wrong(4, 4, **options).to(D).eval()
    wrong.load_state_dict(conv.state_dict())
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equation():
    conv, x = make(multiplier=2), randn(2, 3, 5, 6)
    with attn_lib.trace() as t:
        y = conv(x)
    assert t.names() == ["d", "y"] and t["d"].shape == (2, 6, 5, 6) and torch.equal(t["y"], y)
    torch.testing.assert_close(t["d"][:, 3], F.conv2d(x[:, 1:2], conv.depthwise.weight[3:4], padding=1)[:, 0])


# ---- limits and the errata -------------------------------------------------------------------------------------------


def dense(conv):
    """W[o, c] = Σ over the m kernels of c of p[o, e] · d[e]."""
    weight = torch.zeros(conv.out_channels, conv.channels, *conv.kernel_size, dtype=D)
    for e, kernel in enumerate(conv.depthwise.weight[:, 0]):
        for o in range(conv.out_channels):
            weight[o, e // conv.multiplier] += conv.pointwise.weight[o, e, 0, 0] * kernel
    return weight


@pytest.mark.parametrize("m", [1, 2, 3])
def test_as_a_dense_kernel_it_has_rank_m_for_each_input_channel(m):
    conv, x = make(3, 5, multiplier=m), randn(2, 3, 6, 7)
    torch.testing.assert_close(conv(x), F.conv2d(x, dense(conv), conv.pointwise.bias, padding=1), rtol=0, atol=1e-12)
    assert [torch.linalg.matrix_rank(W).item() for W in dense(conv).transpose(0, 1).flatten(2)] == [m, m, m]


@pytest.mark.parametrize(("out", "kernel_size", "enough"), [(12, 3, 9), (4, 3, 4), (12, (1, 3), 3)])
def test_enough_kernels_a_channel_are_any_convolution(out, kernel_size, enough):
    conv = nn.Conv2d(3, out, kernel_size, stride=(1, 2), padding=1, dilation=(2, 1), dtype=D).requires_grad_(False)
    x, off = randn(2, 3, 9, 8), []
    for m in range(1, enough + 1):
        separable = DepthwiseSeparableConv.from_conv(conv, multiplier=m)
        off.append((separable(x) - conv(x)).abs().max().item())
        lost = (dense(separable) - conv.weight).square().sum()  # Eckart and Young: the singular values left out
        s = torch.linalg.svdvals(conv.weight.transpose(0, 1).flatten(2))
        torch.testing.assert_close(lost, s[:, m:].square().sum(), rtol=0, atol=1e-12)
    assert off[-1] < 1e-12 and min(off[:-1]) > 1e-2
    with pytest.raises(ValueError, match=f"multiplier={enough + 1} must be at most .*={enough}"):
        DepthwiseSeparableConv.from_conv(conv, multiplier=enough + 1)


@pytest.mark.parametrize("conv", [
    nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding_mode="reflect"), nn.Linear(4, 4)])
def test_only_a_plain_convolution_can_be_separated(conv):
    with pytest.raises(ValueError, match=r"must be a torch\.nn\.Conv2d with groups=1"):
        DepthwiseSeparableConv.from_conv(conv)


def test_the_forms_are_two_modules():
    """Linear without a bias, or not: an activation between the two leaves a map that no dense kernel makes."""
    x, z = randn(1, 4, 5, 6), randn(1, 4, 5, 6, seed=2)
    for form, linear in (("xception", True), ("mobilenet", False)):
        conv = make(4, 4, form=form, bias=False)
        off = (conv(x + z) - conv(x) - conv(z) + conv(0 * x)).abs().max()
        assert (off < 1e-12) == linear and (off < 1e-2) == linear
    assert type(DepthwiseSeparableConv(4).between) is nn.Identity


@pytest.mark.parametrize(("C", "O", "k"), [(64, 128, 3), (128, 64, 3), (32, 32, 5)])
def test_parameters_shrink_by_the_outputs_channels(C, O, k):  # noqa: E741
    conv, x = DepthwiseSeparableConv(C, O, kernel_size=k, bias=False), torch.randn(1, C, 8, 8)
    full = nn.Conv2d(C, O, k, padding=k // 2, bias=False)
    ratio = sum(p.numel() for p in conv.parameters()) / full.weight.numel()
    assert ratio == pytest.approx(1 / O + 1 / k**2)
    assert measure.flops(conv, x) / measure.flops(full, x) == pytest.approx(ratio)
    assert (abs(ratio - 1 / C - 1 / k**2) < 1e-6) == (C == O)  # what is said in its place


def test_a_bias_of_the_depthwise_part_is_one_of_the_whole():
    conv, x, b = make(), randn(2, 3, 5, 6), randn(3, seed=3)
    between = F.conv2d(x, conv.depthwise.weight, b, padding=1, groups=3)
    with_two = F.conv2d(between, conv.pointwise.weight, conv.pointwise.bias)
    conv.pointwise.bias += conv.pointwise.weight[:, :, 0, 0] @ b
    torch.testing.assert_close(conv(x), with_two, rtol=0, atol=1e-12)
    assert {name for name, _ in conv.named_parameters()} == {"depthwise.weight", "pointwise.weight", "pointwise.bias"}


def test_deeplabv3_has_none():
    """Its branch has k²·C·O weights, as a dense convolution; here are (k² + O)·C of them."""
    branch = reference("torchvision.models.segmentation.deeplabv3").ASPPConv(8, 16, dilation=6)[0]
    assert branch.groups == 1 and branch.weight.numel() == 9 * 8 * 16
    conv = DepthwiseSeparableConv(8, 16, dilation=6, bias=False)
    assert sum(p.numel() for p in conv.parameters()) == (9 + 16) * 8
    assert [paper.arxiv for paper in attn_lib.entry("depthwise_separable").papers] == ["1610.02357", "1704.04861"]


def test_the_releases_activation_ends_at_six():
    plain, release = (make(form="mobilenet", activation=a) for a in ("relu", "relu6"))
    dim, bright = 0.01 * randn(1, 3, 5, 6), 100 * randn(1, 3, 5, 6)
    assert plain(bright).max() > 6 and release(bright).max() == 6
    assert plain.between(plain.depthwise(dim)).max() < 6
    torch.testing.assert_close(plain(dim).clamp(max=6), release(dim))


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_keeps_one_map_for_the_backward_pass():
    """Between the two lies a map of C channels, which a dense convolution does not have."""
    sides = [(16, 16), (32, 32)]
    conv, full = DepthwiseSeparableConv(16, 32), nn.Conv2d(16, 32, 3, padding=1)
    for side in sides:
        x = torch.randn(2, 16, *side)
        assert measure.saved_bytes(conv, x) == 4 * x.numel() and measure.saved_bytes(full, x) == 0
    multiplied = DepthwiseSeparableConv(16, 32, multiplier=3)
    assert measure.saved_bytes(multiplied, torch.randn(2, 16, *sides[0])) == 3 * 4 * 2 * 16 * 256


# ---- reference package -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(), dict(stride=2, dilation=2), dict(multiplier=2, bias=False)], ids=str)
def test_equals_timm(options):
    timm = reference("timm.layers.separable_conv")
    renamed = {{"multiplier": "channel_multiplier"}.get(name, name): value for name, value in options.items()}
    theirs = timm.SeparableConv2d(6, 10, **{"bias": True, **renamed}).to(D)
    ours = make(6, 10, **options)
    names = {"depthwise": "conv_dw", "pointwise": "conv_pw"}
    theirs.load_state_dict({".".join([names[layer], name]): value for layer, name, value in (
        (*path.split("."), value) for path, value in ours.state_dict().items())})
    x = randn(2, 6, 9, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("options", "message"), [
    (dict(form="inception"), "form='inception' must be one of 'xception', 'mobilenet'"),
    (dict(activation="gelu"), "activation='gelu' must be one of 'relu', 'relu6'"),
    (dict(kernel_size=2), r"kernel_size=\(2, 2\) with dilation=.* has no centre"),
    (dict(stride=(1, 0)), "stride=0 must be an integer of at least 1"),
    (dict(epsilon=0.0), "epsilon=0.0 must be a positive number"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        DepthwiseSeparableConv(4, **options)


def test_a_map_smaller_than_the_kernel_is_refused():
    with pytest.raises(ValueError, match="x has H=4; it must be at least 5"):
        DepthwiseSeparableConv(4, kernel_size=5, padding=0)(torch.ones(1, 4, 4, 9))
