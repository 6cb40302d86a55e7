"""Dilated convolution and the context module against their paper, their limits, and the errors in circulation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.conv import ContextModule, DilatedConv, reached, receptive_field
from tests.unit.draw import D, randn, randomised


def make(C=3, out=4, **options):
    return randomised(DilatedConv(C, out, **options)).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def mirrored_sum(x, conv):
    """Eq. 2: over all s and t with s + l·t = p, t from −r to r; the kernel k is what the weight is mirrored."""
    (B, C, H, W), (out, _, kH, kW), (lH, lW) = x.shape, conv.weight.shape, conv.dilation
    y = torch.zeros(B, out, H, W, dtype=D)
    offsets = [(i, j) for i in range(-(kH // 2), kH // 2 + 1) for j in range(-(kW // 2), kW // 2 + 1)]
    for b, o, row, col in ((b, o, r, c) for b in range(B) for o in range(out) for r in range(H) for c in range(W)):
        total = conv.bias[o].item()
        for t in offsets:
            s = row - lH * t[0], col - lW * t[1]
            if 0 <= s[0] < H and 0 <= s[1] < W:
                for c in range(C):
                    k = conv.weight[o, c, kH // 2 - t[0], kW // 2 - t[1]].item()
                    total += x[b, c, s[0], s[1]].item() * k
        y[b, o, row, col] = total
    return y


@pytest.mark.parametrize("dilation", [1, 2, 3, (1, 4), 9], ids=str)
@pytest.mark.parametrize("kernel_size", [3, (1, 5)], ids=str)
@pytest.mark.parametrize(("H", "W"), [(5, 7), (1, 1), (1, 6)])
def test_equals_the_papers_mirrored_sum(H, W, kernel_size, dilation):
    conv, x = make(kernel_size=kernel_size, dilation=dilation), randn(2, 3, H, W)
    torch.testing.assert_close(conv(x), mirrored_sum(x, conv), rtol=0, atol=1e-12)


class Wrong(DilatedConv):
    """The mistakes that circulate, one at a time."""

    mistake = None

    def forward(self, x):
        l, w = self.dilation[0], self.weight  # noqa: E741
        if self.mistake == "the weight mirrored as well":
            w = w.flip(2, 3)
        if self.mistake == "dilation for stride":
            return F.interpolate(F.conv2d(x, w, self.bias, padding=1, stride=l), x.shape[2:])
        if self.mistake == "l pixels between the taps":
            return F.conv2d(x, w, self.bias, padding=l + 1, dilation=l + 1)
        if self.mistake == "padding of 1":
            return F.pad(F.conv2d(x, w, self.bias, padding=1, dilation=l), (l - 1,) * 4)
        if self.mistake == "repeated border":
            return F.conv2d(F.pad(x, (l,) * 4, "replicate"), w, self.bias, dilation=l)
        return F.conv2d(x, w, self.bias, padding=l, dilation=l)


@pytest.mark.parametrize("mistake", [
    "the weight mirrored as well", "dilation for stride", "l pixels between the taps", "padding of 1",
    "repeated border",
])
def test_the_comparison_with_the_paper_notices(mistake):
    conv, x = make(dilation=2), randn(2, 3, 6, 7)
    wrong = Wrong(3, 4, dilation=2).to(D)
    wrong.load_state_dict(conv.state_dict())
    torch.testing.assert_close(wrong(x), mirrored_sum(x, conv), rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - mirrored_sum(x, conv)).abs().max() > 1e-2


def test_the_kernel_in_the_trace_is_the_papers():
    conv, x = make(dilation=2), torch.zeros(1, 3, 9, 9, dtype=D)
    x[0, 1, 4, 4] = 1.0
    with attn_lib.trace() as t:
        y = conv(x) - conv.bias[:, None, None]
    assert t.names() == ["k", "y"] and t["k"].shape == (4, 3, 9)
    torch.testing.assert_close(y[0, :, 2:7:2, 2:7:2].flatten(1), t["k"][:, 1])  # an impulse is answered by k as it is
    assert torch.count_nonzero(y) == 4 * 9


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilation", [(2, 2), (3, 1)], ids=str)
def test_it_is_a_dense_convolution_whose_kernel_has_holes(dilation):
    conv, x = make(dilation=dilation), randn(2, 3, 9, 8)
    holes = torch.zeros(4, 3, 2 * dilation[0] + 1, 2 * dilation[1] + 1, dtype=D)
    holes[:, :, ::dilation[0], ::dilation[1]] = conv.weight
    torch.testing.assert_close(conv(x), F.conv2d(x, holes, conv.bias, padding=dilation), rtol=0, atol=1e-12)


def test_it_is_a_convolution_of_every_phase_by_itself():
    conv, x = make(dilation=3), randn(2, 3, 7, 8)
    y = torch.empty(2, 4, 7, 8, dtype=D)
    for i in range(3):
        for j in range(3):
            y[:, :, i::3, j::3] = F.conv2d(x[:, :, i::3, j::3], conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(x), y, rtol=0, atol=1e-12)


# ---- reach -----------------------------------------------------------------------------------------------------------


def support(dilations, k=3):
    """Which pixels of a large map move the middle output of convolutions with all weights 1, along one axis."""
    x = torch.zeros(1, 1, 1, 141, dtype=D, requires_grad=True)
    y = x
    for dilation in dilations:
        kernel = torch.ones(1, 1, 1, k, dtype=D)
        y = F.conv2d(y, kernel, padding=(0, dilation * (k - 1) // 2), dilation=dilation)
    y[..., 70].sum().backward()
    return (x.grad.flatten().nonzero().flatten() - 70).tolist()


@pytest.mark.parametrize(("dilations", "k"), [
    ((1, 2, 4), 3), ((2, 2, 2), 3), ((1, 2, 5), 3), ((1, 1, 2, 4, 8, 16, 1), 3), ((3,), 5), ((4, 6), 3), ((), 3),
], ids=str)
def test_reach_is_that_of_the_gradient(dilations, k):
    assert reached(dilations, k) == support(dilations, k)
    fields = receptive_field(dilations, k)
    assert len(fields) == len(dilations)
    for n, side in enumerate(fields, 1):
        assert reached(dilations[:n], k)[-1] - reached(dilations[:n], k)[0] + 1 == side


def test_receptive_fields_of_the_context_module_are_the_papers():
    assert receptive_field((1, 1, 2, 4, 8, 16, 1)) == [3, 5, 9, 17, 33, 65, 67]  # table 1
    assert receptive_field((1, 2, 4, 8, 16)) == [2 ** (i + 2) - 1 for i in range(5)]  # section 2


def test_dilations_with_a_common_factor_leave_gaps():
    assert reached((2, 2, 2)) == list(range(-6, 7, 2))  # 7 of 13, so 49 of 169 pixels
    assert receptive_field((2, 2, 2))[-1] == 13 and round(1 - 49 / 169, 1) == 0.7
    assert reached((1, 2, 5)) == list(range(-8, 9))
    module = nn.Sequential(*(make(1, 1, dilation=2) for _ in range(3)))
    x = randn(1, 1, 20, 20)
    other = x.clone()
    other[:, :, 1::2] = randn(1, 1, 10, 20, seed=3)  # other rows between
    torch.testing.assert_close(module(other)[:, :, ::2], module(x)[:, :, ::2], rtol=0, atol=0)


@pytest.mark.parametrize("call", [receptive_field, reached])
def test_reach_of_no_convolution_is_refused(call):
    with pytest.raises(ValueError, match="dilations=0 must be an integer of at least 1"):
        call((1, 0))
    with pytest.raises(ValueError, match="kernel_size=0 must be an integer of at least 1"):
        call((1,), 0)


# ---- the context module ----------------------------------------------------------------------------------------------


def context_of_the_paper(x, module):
    for layer, dilation in zip(module.layers, (1, 1, 2, 4, 8, 16, 1), strict=False):
        assert layer.weight.shape[2:] == (3, 3)
        holes = torch.zeros(*layer.weight.shape[:2], 2 * dilation + 1, 2 * dilation + 1, dtype=x.dtype)
        holes[:, :, ::dilation, ::dilation] = layer.weight
        x = F.conv2d(x, holes, layer.bias, padding=dilation)
        x = torch.where(x > 0, x, 0.0)
    last = module.layers[7]
    return torch.einsum("OC,BCHW->BOHW", last.weight[:, :, 0, 0], x) + last.bias[:, None, None]


@pytest.mark.parametrize("form", ["basic", "large"])
@pytest.mark.parametrize(("H", "W"), [(5, 7), (1, 1), (20, 3)])
def test_the_context_module_is_seven_truncated_layers_and_one_more(H, W, form):
    module = randomised(ContextModule(2, form=form), scale=0.2).requires_grad_(False)
    x = randn(2, 2, H, W)
    torch.testing.assert_close(module(x), context_of_the_paper(x, module), rtol=1e-12, atol=1e-12)
    with attn_lib.trace() as t:
        y = module(x)
    assert torch.equal(t[t.names()[-1]], y) and "y:8" in t


@pytest.mark.parametrize("form", ["basic", "large"])
def test_widths_and_parameters_are_the_papers(form):
    module, C = ContextModule(3, form=form), 3
    factors = {"basic": [1] * 8, "large": [2, 2, 4, 8, 16, 32, 32, 1]}[form]  # table 1
    assert [layer.out_channels for layer in module.layers] == [C * factor for factor in factors]
    if form == "basic":
        assert sum(p.numel() for p in ContextModule(21).parameters() if p.ndim > 1) == 64 * 21**2  # "64C² parameters"


@pytest.mark.parametrize("form", ["basic", "large"])
@pytest.mark.parametrize("C", [1, 3])
def test_a_fresh_context_module_passes_on_what_is_not_negative(form, C):
    module, x = ContextModule(C, form=form, noise=0.0).to(D), randn(2, C, 9, 8).abs()
    torch.testing.assert_close(module(x), x, rtol=1e-14, atol=0)  # the large form adds 32 thirty-seconds of it
    assert form == "large" or torch.equal(module(x), x)


def test_a_fresh_context_module_cuts_what_is_negative():
    module, x = ContextModule(3), randn(2, 3, 9, 8).float()
    assert torch.equal(module(x), x.clamp(min=0)) and x.min() < 0


def test_noise_at_the_start():
    layer = ContextModule(3).layers[2]
    assert torch.equal(layer.weight[:, :, 1, 1], torch.eye(3)) and layer.weight.count_nonzero() == 3
    torch.manual_seed(0)
    noisy = ContextModule(21, noise=0.01).layers[2].weight
    aside = torch.cat([noisy[:, :, [0, 0, 2], [0, 1, 2]].flatten(), noisy[1:, 0, 1, 1]])
    assert aside.std().item() == pytest.approx(0.01, rel=0.1) and torch.equal(noisy[:, :, 1, 1].diag(), torch.ones(21))
    large = ContextModule(3, form="large")
    assert (large(torch.rand(1, 3, 5, 6)) - large(torch.rand(1, 3, 5, 6))).abs().max() > 0
    assert large.layers[3].weight[:, :, 0, 0].std().item() == pytest.approx(0.01 / 8, rel=0.2)  # C/c′ = 1/8
    assert torch.equal(large.layers[3].weight[:, :, 1, 1] == 1 / 8, torch.kron(torch.eye(3), torch.ones(8, 4)).bool())


@pytest.mark.parametrize(("options", "message"), [
    (dict(form="huge"), "form='huge' must be one of 'basic', 'large'"),
    (dict(noise=-0.1), "noise=-0.1 must be a number of at least 0"),
    (dict(noise=True), "noise=True must be a number"),
])
def test_arguments_of_the_context_module(options, message):
    with pytest.raises(ValueError, match=message):
        ContextModule(3, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_context_module_in_half_precision(dtype):
    module, x = ContextModule(3, form="large"), 300 * torch.rand(2, 3, 7, 9)
    half = copy.deepcopy(module).to(dtype)(x.to(dtype))
    assert half.dtype == dtype and (half.float() - module(x)).abs().max() < 0.05 * x.max()


def test_the_context_module_compiles_learns_and_names_a_bad_input():
    module, x = ContextModule(2, form="large"), torch.rand(1, 2, 7, 9, requires_grad=True)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))
    module(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (*module.parameters(), x))
    with pytest.raises(ValueError, match="axis C must be 2, not 3"):
        module(torch.rand(1, 3, 7, 9))


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_reach_costs_nothing():
    """The same FLOPs, and nothing kept for the backward pass but the input, at any dilation."""
    x = torch.randn(2, 8, 32, 32)
    for dilation in (1, 4, 16):
        conv = DilatedConv(8, dilation=dilation)
        assert measure.flops(conv, x) == 2 * 2 * 8 * 8 * 9 * 32 * 32
        assert measure.saved_bytes(conv, x) == 0
        assert measure.saved_bytes(lambda t, conv=conv: conv(t * 2), x) - 4 * x.numel() <= 4 * 8 * 8 * 9


def test_the_context_module_keeps_its_maps():
    module = ContextModule(4)
    kept = [measure.saved_bytes(module, torch.rand(1, 4, n, n)) for n in (16, 32)]
    assert kept == [4 * 4 * 7 * n * n for n in (16, 32)]


def test_a_map_smaller_than_the_kernel_is_refused():
    with pytest.raises(ValueError, match="x has H=4; it must be at least 9 for the kernel to fit"):
        DilatedConv(4, dilation=4, padding=0)(torch.ones(1, 4, 4, 9))
