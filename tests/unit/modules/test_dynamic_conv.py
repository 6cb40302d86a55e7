"""Dynamic convolution against its paper, its limits, and the errors in circulation.

There is no authors' release, and no package that is kept well holds the softmax over kernels; what mixes the kernels
is compared with timm's CondConv2d in `test_condconv.py`.
"""

import copy
import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.branch import DynamicConv2d
from tests.unit.draw import D, randn, randomised

# options of the module, and H, W
CASES = [
    (dict(channels=4, kernels=3, reduction=2), (4, 5)),
    (dict(channels=4, out_channels=6, kernels=2, groups=2, stride=2, bias=False), (5, 4)),
    (dict(channels=2, kernels=2, kernel_size=(1, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)), (3, 6)),
    (dict(channels=3, kernels=4, groups=3), (1, 1)),
]


def make(channels=4, *, kernels=3, temperature=1.5, reduction=2, seed=0, **options):
    layer = randomised(DynamicConv2d(channels, kernels=kernels, reduction=reduction, **options), seed=seed)
    layer.temperature = temperature
    return layer.requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def attention(image, layer):
    """π of one image: mean, two layers, a softmax at temperature T."""
    v = [sum(channel.flatten().tolist()) / channel.numel() for channel in image]
    hidden = [max(0.0, b + sum(w * u for w, u in zip(row, v, strict=True)))
              for row, b in zip(layer.W1.weight.tolist(), layer.W1.bias.tolist(), strict=True)]
    z = [b + sum(w * u for w, u in zip(row, hidden, strict=True))
         for row, b in zip(layer.W2.weight.tolist(), layer.W2.bias.tolist(), strict=True)]
    e = [math.exp(value / layer.temperature) for value in z]
    return [value / sum(e) for value in e]


def convolved(image, kernel, bias, layer):
    """One image (C, H, W) with one kernel (O, C/groups, kH, kW), number by number."""
    C, H, W = image.shape
    O, per_group, kH, kW = kernel.shape  # noqa: E741
    (sH, sW), (pH, pW), (dH, dW) = (layer.geometry[name] for name in ("stride", "padding", "dilation"))
    Ho, Wo = (H + 2 * pH - dH * (kH - 1) - 1) // sH + 1, (W + 2 * pW - dW * (kW - 1) - 1) // sW + 1
    y = torch.zeros(O, Ho, Wo, dtype=D)
    for o, i, j in product(range(O), range(Ho), range(Wo)):
        total = bias[o]
        for c, p, q in product(range(per_group), range(kH), range(kW)):
            h, w = i * sH - pH + p * dH, j * sW - pW + q * dW
            if 0 <= h < H and 0 <= w < W:
                total += kernel[o, c, p, q].item() * image[o // (O // (C // per_group)) * per_group + c, h, w].item()
        y[o, i, j] = total
    return y


def from_the_paper(x, layer):
    """Equations 1 and 2: one kernel and one bias for each image, made of all."""
    out = []
    for image in x:
        pi = attention(image, layer)
        kernel = sum(p * W for p, W in zip(pi, layer.kernels, strict=True))
        biases = [[0.0] * layer.out_channels] * len(pi) if layer.bias is None else layer.bias.tolist()
        bias = [sum(p * b[o] for p, b in zip(pi, biases, strict=True)) for o in range(layer.out_channels)]
        out.append(convolved(image, kernel, bias, layer))
    return torch.stack(out)


@pytest.mark.parametrize(("options", "size"), CASES)
def test_equals_the_paper(options, size):
    layer = make(**options)
    x = randn(2, layer.channels, *size)
    torch.testing.assert_close(layer(x), from_the_paper(x, layer), rtol=0, atol=1e-12)


class Wrong(DynamicConv2d):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        e = self.mistake
        z = x.amax((2, 3)) if e == "maximum for mean" else x.mean((2, 3))
        if e == "mean over the batch":
            z = z.mean(0).expand_as(z)
        b1, b2 = (None, None) if e == "biases of the attention dropped" else (self.W1.bias, self.W2.bias)
        hidden = F.linear(z, self.W1.weight, b1)
        a = F.linear(hidden if e == "no ReLU" else F.relu(hidden), self.W2.weight, b2)
        T = {"no temperature": 1.0, "multiplied by T": 1 / self.T}.get(e, self.T)
        pi = (a / T).sigmoid() if e == "sigmoid" else (a / T).softmax(0 if e == "softmax over the batch" else 1)
        if e == "temperature behind the softmax":
            pi = a.softmax(1) / T
        y = 0
        for m, kernel in enumerate(self.kernels):
            y_m = F.conv2d(x, kernel, None if e == "bias dropped" else self.bias[m], **self.geometry)
            y = y + pi[:, m, None, None, None] * (F.relu(y_m) if e == "activation before the mixture" else y_m)
        return y


MISTAKES = ["maximum for mean", "mean over the batch", "biases of the attention dropped", "no ReLU", "no temperature",
            "multiplied by T", "sigmoid", "softmax over the batch", "temperature behind the softmax", "bias dropped",
            "activation before the mixture"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    layer, x = make(), 2 * randn(2, 4, 5, 4)
    wrong = Wrong(4, kernels=3, reduction=2).to(D)
    wrong.load_state_dict(layer.state_dict())
    expected = from_the_paper(x, layer)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    layer, x = make(6, groups=2), randn(2, 6, 4, 5)
    with attn_lib.trace() as t:
        y = layer(x)
    assert t.names() == ["z", "pi", "W", "y"] and t.dims("W") == "B O 3 3 3"
    torch.testing.assert_close(t["pi"].sum(1), torch.ones(2, dtype=D))
    each = [F.conv2d(x[b:b + 1], t["W"][b], t["pi"][b] @ layer.bias, padding=1, groups=2) for b in range(2)]
    torch.testing.assert_close(y, torch.cat(each), rtol=0, atol=1e-13)


# ---- limits and traps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_a_huge_logit_picks_one_kernel(chosen):
    layer, x = make(), randn(2, 4, 5, 7)
    layer.W2.weight.fill_(0.0)
    layer.W2.bias.fill_(0.0)
    layer.W2.bias[chosen] = 2000.0
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.kernels[chosen], layer.bias[chosen], padding=1))


def test_a_low_temperature_is_a_choice_and_a_high_one_a_mean():
    layer, x = make(kernels=4), randn(5, 4, 5, 7)
    largest = {}
    for T in (1e-3, 1.0, 30.0, 1e6):
        layer.temperature = T
        with attn_lib.trace() as t:
            layer(x)
        largest[T] = t["pi"].max(1).values
    assert (largest[1e-3] > 1 - 1e-6).all() and (largest[1.0] > largest[30.0]).all()
    assert (largest[1e6] - 1 / 4).abs().max() < 1e-5


def test_the_temperature_falls_in_a_line_over_the_first_epochs():
    layer = DynamicConv2d(4)
    assert layer.temperature == 30.0  # the paper's
    line = [layer.anneal(epoch) for epoch in range(13)]
    torch.testing.assert_close(torch.tensor(line[:11]), torch.linspace(30, 1, 11))
    assert line[10:] == [1.0, 1.0, 1.0] and layer.T.tolist() == [1.0]
    assert layer.anneal(3, epochs=6, start=11.0) == 6.0
    steps = [34 - 3 * n for n in range(12)]  # what circulates: 34, 31, …, 1, and from 30 it never meets 1
    assert steps[-1] == 1 and all(30 - 3 * n != 1 for n in range(20))
    for bad, message in [(dict(epoch=-1), "epoch=-1 must"), (dict(epoch=1, epochs=0), "epochs=0 must"),
                         (dict(epoch=1, end=40.0), "end=40.0 must be at most start=30.0")]:
        with pytest.raises(ValueError, match=message):
            layer.anneal(**bad)
    for bad in (0, -1.0, math.nan, "hot"):
        with pytest.raises(ValueError, match=r"temperature=.* must be a positive number"):
            layer.temperature = bad


def test_a_checkpoint_keeps_the_temperature():
    layer, fresh, x = make(temperature=1.0), DynamicConv2d(4, kernels=3, reduction=2).to(D), randn(2, 4, 5, 7)
    fresh.load_state_dict(layer.state_dict())
    assert fresh.temperature == 1.0 and torch.equal(fresh(x), layer(x))
    fresh.temperature = 30.0  # as where the temperature is a Python number
    assert (fresh(x) - layer(x)).abs().max() > 1e-2
    assert copy.deepcopy(layer).temperature == 1.0


def test_a_graph_follows_the_temperature():
    """A number that Python holds would be baked into it."""
    layer, x = make(), randn(2, 4, 5, 7)
    graph = torch.export.export(layer, (x,)).module()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    before = compiled(x)
    layer.temperature = 20.0
    assert (layer(x) - before).abs().max() > 1e-2
    torch.testing.assert_close(compiled(x), layer(x))
    graph.load_state_dict(layer.state_dict())
    torch.testing.assert_close(graph(x), layer(x))


def test_equal_kernels_never_separate():
    """At a uniform attention equal kernels have equal gradients, and the attention has none."""
    layer, x = DynamicConv2d(4, kernels=3).to(D), randn(2, 4, 5, 7)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[:1].expand_as(layer.weight))
        layer.bias.copy_(layer.bias[:1].expand_as(layer.bias))
        for p in (*layer.W2.parameters(),):
            nn.init.zeros_(p)
    layer(x).square().sum().backward()
    for p in (layer.weight, layer.bias):
        torch.testing.assert_close(p.grad, p.grad[:1].expand_as(p.grad))
    assert layer.W2.weight.grad.abs().max() < 1e-12
    ours = DynamicConv2d(4, kernels=3).to(D)
    assert (ours.weight[0] - ours.weight[1]).abs().max() > 0.05


def test_every_kernel_starts_as_a_convolution():
    torch.manual_seed(0)
    layer, bound = DynamicConv2d(16), (16 * 9) ** -0.5
    assert all(0.9 * bound < W.abs().max() <= bound for W in layer.kernels)
    assert layer.bias.abs().max() <= bound < torch.randn(4, 16).abs().mean()


def test_kernels_of_all_channels_are_a_trap():
    layer, x = make(groups=2), randn(2, 4, 5, 7)
    torch.testing.assert_close(layer(x), from_the_paper(x, layer), rtol=0, atol=1e-12)
    weight = layer.mixed(torch.full((2, 3), 1 / 3, dtype=D))[0].reshape(-1, 4, 3, 3)  # C for C/groups
    with pytest.raises(RuntimeError, match="weight of size"):
        F.conv2d(x.view(1, -1, 5, 7), weight, padding=1, groups=2 * 2)


@pytest.mark.parametrize(("C", "r", "hidden"), [(64, 4, 16), (3, 4, 1), (6, 4, 1), (30, 8, 3), (1, 1, 1)])
def test_width_of_the_hidden_layer(C, r, hidden):
    layer = DynamicConv2d(C, reduction=r)
    assert layer.W1.weight.shape == (hidden, C) and layer.W2.weight.shape == (4, hidden)


def test_both_layers_of_the_attention_have_a_bias():
    layer, x = make(), 2 * randn(2, 4, 5, 7)
    pi = torch.tensor([attention(image, layer) for image in x], dtype=D)
    with attn_lib.trace() as t:
        layer(x)
    torch.testing.assert_close(t["pi"], pi)
    for linear in (layer.W1, layer.W2):
        assert linear.bias is not None
        linear.bias.fill_(0.0)
    with attn_lib.trace() as t:
        layer(x)
    assert (t["pi"] - pi).abs().max() > 1e-2


@pytest.mark.parametrize(("options", "message"), [
    (dict(kernels=0), "kernels=0 must be an integer of at least 1"),
    (dict(groups=3), "channels=4 must be divisible by groups=3; 3 and 6 are"),
    (dict(temperature=0.0), "temperature=0.0 must be a positive number"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicConv2d(4, **options)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_kernels_cost_a_kernel_each_and_no_map():
    """The paper: 4 % more multiply-adds. What is kept depends on neither the size of the map nor the number M."""
    saved = {(M, side): measure.saved_bytes(DynamicConv2d(8, kernels=M), torch.randn(2, 8, *side))
             for M in (2, 8) for side in ((12, 16), (48, 64))}
    assert saved[2, (12, 16)] == saved[2, (48, 64)]
    assert saved[8, (12, 16)] == saved[8, (48, 64)] < saved[2, (12, 16)] + 4 * 2 * 8 * 6  # π itself
    flops = measure.flops(DynamicConv2d(16), torch.randn(2, 16, 48, 64))
    assert flops < 1.04 * measure.flops(nn.Conv2d(16, 16, 3, padding=1), torch.randn(2, 16, 48, 64))
