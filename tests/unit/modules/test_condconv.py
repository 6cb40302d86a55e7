"""CondConv against its paper, its limits and timm, and against the errors in circulation."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.branch import CondConv2d
from tests.unit.draw import D, randn, randomised
from tests.unit.reference import reference

# options of the module, and H, W
CASES = [
    (dict(channels=3, experts=2, bias=True), (4, 5)),
    (dict(channels=4, out_channels=6, experts=3, groups=2, stride=2, routing_bias=True), (5, 4)),
    (dict(channels=2, experts=2, kernel_size=(1, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)), (3, 6)),
    (dict(channels=3, experts=1, groups=3), (1, 1)),
]


def make(channels=4, *, experts=3, seed=0, **options):
    return randomised(CondConv2d(channels, experts=experts, **options), seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def convolved(image, kernel, bias, layer):
    """One image (C, H, W) with one kernel (O, C/groups, kH, kW), number by number."""
    C, H, W = image.shape
    O, per_group, kH, kW = kernel.shape  # noqa: E741
    (sH, sW), (pH, pW), (dH, dW) = (layer.geometry[name] for name in ("stride", "padding", "dilation"))
    Ho, Wo = (H + 2 * pH - dH * (kH - 1) - 1) // sH + 1, (W + 2 * pW - dW * (kW - 1) - 1) // sW + 1
    y = torch.zeros(O, Ho, Wo, dtype=D)
    for o, i, j in product(range(O), range(Ho), range(Wo)):
        total = bias[o].item()
        for c, p, q in product(range(per_group), range(kH), range(kW)):
            h, w = i * sH - pH + p * dH, j * sW - pW + q * dW
            if 0 <= h < H and 0 <= w < W:
                total += kernel[o, c, p, q].item() * image[o // (O // (C // per_group)) * per_group + c, h, w].item()
        y[o, i, j] = total
    return y


def routing(image, layer):
    """α = σ(R z), expert by expert."""
    z = [sum(channel.flatten().tolist()) / channel.numel() for channel in image]
    R, r = layer.Walpha.weight.tolist(), layer.Walpha.bias
    r = r.tolist() if r is not None else [0.0] * len(R)
    return [1 / (1 + math.exp(-b - sum(w * v for w, v in zip(row, z, strict=True))))
            for row, b in zip(R, r, strict=True)]


def from_the_paper(x, layer):
    """The right side of the paper's identity: a mixture of the outputs of the experts."""
    out = []
    for image in x:
        zero = torch.zeros(layer.out_channels)
        each = [convolved(image, kernel, zero if layer.bias is None else layer.bias[m], layer)
                for m, kernel in enumerate(layer.kernels)]
        out.append(sum(a * y for a, y in zip(routing(image, layer), each, strict=True)))
    return torch.stack(out)


@pytest.mark.parametrize(("options", "size"), CASES)
def test_equals_the_paper(options, size):
    layer = make(**options)
    x = randn(2, layer.channels, *size)
    torch.testing.assert_close(layer(x), from_the_paper(x, layer), rtol=0, atol=1e-12)


class Wrong(CondConv2d):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        e = self.mistake
        z = x.amax((2, 3)) if e == "maximum for mean" else x.mean((2, 3))
        if e == "mean over the batch":
            z = z.mean(0).expand_as(z)
        a = self.Walpha(z)
        a = {"softmax": a.softmax(1), "softmax over the batch": a.softmax(0), "no sigmoid": a, "ReLU": a.relu()}.get(
            e, a.sigmoid())
        if e == "normalised":
            a = a / a.sum(1, keepdim=True)
        if e == "one expert alone":
            a = F.one_hot(a.argmax(1), self.experts).to(a.dtype)
        options = dict(self.geometry)
        if e == "dilation ignored":
            options |= dict(dilation=1, padding=1)
        y = 0
        for m in range(self.experts):
            bias = None if e == "bias dropped" else self.bias[m]
            y_m = F.conv2d(x, self.kernels[m], bias, **options)
            if e == "bias not mixed":
                y_m = y_m - (1 - 1 / a[:, m, None, None, None]) * bias[:, None, None]
            y = y + a[:, m, None, None, None] * (F.relu(y_m) if e == "activation before the mixture" else y_m)
        return y


MISTAKES = ["maximum for mean", "mean over the batch", "softmax", "softmax over the batch", "no sigmoid", "ReLU",
            "normalised", "one expert alone", "dilation ignored", "bias dropped", "bias not mixed",
            "activation before the mixture"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    layer, x = make(bias=True, dilation=2), randn(2, 4, 5, 4)
    wrong = Wrong(4, experts=3, bias=True, dilation=2).to(D)
    wrong.load_state_dict(layer.state_dict())
    expected = from_the_paper(x, layer)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    layer, x = make(6, groups=2, bias=True), randn(2, 6, 4, 5)
    with attn_lib.trace() as t:
        y = layer(x)
    assert t.names() == ["z", "alpha", "W", "y"] and t.dims("W") == "B O 3 3 3"
    torch.testing.assert_close(t["W"], torch.stack([sum(a * W for a, W in zip(row, layer.kernels, strict=True))
                                                   for row in t["alpha"]]), rtol=0, atol=1e-14)
    each = [F.conv2d(x[b:b + 1], t["W"][b], t["alpha"][b] @ layer.bias, padding=1, groups=2) for b in range(2)]
    torch.testing.assert_close(y, torch.cat(each), rtol=0, atol=1e-13)


# ---- limits and traps ------------------------------------------------------------------------------------------------


def test_routing_weights_do_not_sum_to_one():
    layer, x = make(experts=4, routing_bias=True), randn(3, 4, 5, 7)
    with attn_lib.trace() as t:
        layer(x)
    assert (t["alpha"].sum(1) - 1).abs().min() > 0.1
    layer.Walpha.bias.fill_(1000.0)  # all experts count fully at once, as a softmax could not have it
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.kernels.sum(0), padding=1))


def test_a_routing_without_weights_halves_every_expert():
    layer, x = make(), randn(2, 4, 5, 7)
    layer.Walpha.weight.fill_(0.0)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.kernels.sum(0) / 2, padding=1))


def test_the_releases_routing_has_a_bias():
    assert CondConv2d(4).Walpha.bias is None and CondConv2d(4, routing_bias=True).Walpha.bias.shape == (8,)
    layer, x = make(routing_bias=True), randn(2, 4, 5, 7)
    plain = make()
    plain.load_state_dict(layer.state_dict(), strict=False)
    assert (plain(x) - layer(x)).abs().max() > 0.1
    torch.testing.assert_close(layer(x), from_the_paper(x, layer), rtol=0, atol=1e-12)


def test_one_routing_can_serve_a_block():
    """As in the release: expand, depthwise and project share α, which the input of the block decides."""
    expand = make(4, out_channels=8, kernel_size=1)
    depthwise, project = make(8, groups=8, routing=False), make(8, out_channels=4, kernel_size=1, routing=False)
    x = randn(2, 4, 5, 7)
    alpha = expand.route(x)
    y = project(depthwise(expand(x), alpha), alpha)
    assert depthwise.Walpha is None and y.shape == x.shape
    expected = expand(x)
    for layer in (depthwise, project):
        expected = torch.stack([F.conv2d(image[None], (a @ layer.weight).view(layer.kernel_shape),
                                         **layer.geometry)[0] for image, a in zip(expected, alpha, strict=True)])
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="alpha=None must be routing weights"):
        depthwise(expand(x))
    with pytest.raises(ValueError, match="axis M must be 3, not 2"):
        depthwise(expand(x), alpha[:, :2])


def test_a_result_of_the_inputs_size_is_a_trap():
    layer, x = make(stride=2), randn(2, 4, 5, 7)
    assert layer(x).shape == (2, 4, 3, 4)
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        layer(x).view(2, 4, *x.shape[2:])


def test_an_input_that_lies_channels_last_is_a_trap():
    layer, x = make(), randn(2, 4, 5, 7)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(last), layer(x), rtol=0, atol=1e-13)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        last.view(1, -1, 5, 7)


def test_a_parameter_of_five_axes_is_a_trap():
    layer, x = make(), randn(2, 4, 5, 7)
    expected = layer(x)
    torch.testing.assert_close(layer.to(memory_format=torch.channels_last)(x), expected, rtol=0, atol=1e-13)
    copy = nn.Module()
    copy.weight = nn.Parameter(layer.kernels)
    with pytest.raises(RuntimeError, match="required rank 4 tensor to use channels_last"):
        copy.to(memory_format=torch.channels_last)


def test_every_expert_starts_by_its_own_fan():
    torch.manual_seed(0)
    layer, conv = CondConv2d(16, experts=4, bias=True), nn.Conv2d(16, 16, 3, padding=1)
    bound = (16 * 9) ** -0.5
    for m in range(4):
        assert 0.9 * bound < layer.kernels[m].abs().max() <= bound and layer.bias[m].abs().max() <= bound
        assert layer.kernels[m].std().item() == pytest.approx(conv.weight.std().item(), rel=0.1)
    assert (layer.kernels[0] - layer.kernels[1]).abs().max() > bound / 2
    # all experts initialised at once, as one tensor, would take O·kH·kW·C/groups for the fan: four times too small
    assert nn.init.kaiming_uniform_(layer.kernels.clone(), a=math.sqrt(5)).abs().max() < bound / 3


@pytest.mark.parametrize(("options", "message"), [
    (dict(experts=0), "experts=0 must be an integer of at least 1"),
    (dict(groups=3), "channels=4 must be divisible by groups=3; 3 and 6 are"),
    (dict(out_channels=5, groups=2), "out_channels=5 must be divisible by groups=2; 4 and 6 are"),
    (dict(kernel_size=2), "so padding=None must become a number"),
    (dict(stride=(1, 0)), "stride=0 must be an integer"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        CondConv2d(4, **options)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_experts_cost_a_kernel_each_and_no_map():
    """Behind x, which a convolution keeps anyway, there are kernels, whatever the size of the map and of M."""
    saved = {(M, side): measure.saved_bytes(CondConv2d(8, experts=M), torch.randn(2, 8, *side))
             for M in (2, 8) for side in ((12, 16), (48, 64))}
    assert saved[2, (12, 16)] == saved[2, (48, 64)]
    assert saved[8, (12, 16)] == saved[8, (48, 64)] < saved[2, (12, 16)] + 4 * 2 * 8 * 6  # α itself
    assert saved[8, (12, 16)] < 4 * 2 * (9 * 8 * 8) + 1000  # a kernel an image
    flops = [measure.flops(CondConv2d(8, experts=M), torch.randn(2, 8, 48, 64)) for M in (2, 8)]
    assert flops[1] < 1.02 * flops[0]


# ---- reference package -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(bias=True), dict(stride=2, groups=2), dict(dilation=2, out_channels=8)])
def test_equals_timm(options):
    timm = reference("timm.layers")
    ours = make(**options)
    theirs = timm.CondConv2d(4, options.get("out_channels", 4), 3, padding=ours.geometry["padding"], num_experts=3,
                             **{k: v for k, v in options.items() if k != "out_channels"}).to(D)
    theirs.load_state_dict({name: p for name, p in ours.state_dict().items() if name != "Walpha.weight"})
    x = randn(2, 4, 7, 6)
    torch.testing.assert_close(ours(x), theirs(x, ours.route(x)), rtol=0, atol=1e-12)


def test_the_counterpart_routes_as_we_do():
    other = attn_lib.entry("condconv").counterpart
    theirs, ours = other.make(reference(other.package), channels=32).to(D), make(32, experts=8)
    with torch.no_grad():
        theirs.routing.weight.copy_(ours.Walpha.weight)
        theirs.conv.weight.copy_(ours.weight)
    x = randn(2, 32, 5, 4)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-10)
