"""Highway layers against their paper, their limits, and the errors in circulation.

No package that is kept well holds them, and there is no authors' code for PyTorch.
"""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.branch import Highway, HighwayConv2d
from tests.unit.draw import D, randn, randomised

F_OF = {"relu": lambda v: max(0.0, v), "tanh": math.tanh}
# C, options, H, W
CASES = [(4, {}, 5, 7), (3, dict(kernel_size=1), 2, 3), (2, dict(kernel_size=5, activation="tanh"), 3, 4),
         (2, {}, 1, 1), (1, dict(activation="tanh"), 1, 6)]


def make(C=4, *, seed=0, **options):
    return randomised(HighwayConv2d(C, **options), scale=0.7, seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def convolved(x, conv):
    """One image, one number at a time: a sum over the taps that lie on the map."""
    C, H, W = len(x), len(x[0]), len(x[0][0])
    weight, bias, k = conv.weight.tolist(), conv.bias.tolist(), conv.weight.shape[-1]
    out = [[[bias[o] for _ in range(W)] for _ in range(H)] for o in range(C)]
    for o, i, j, c, p, q in product(range(C), range(H), range(W), range(C), range(k), range(k)):
        h, w = i + p - k // 2, j + q - k // 2
        if 0 <= h < H and 0 <= w < W:
            out[o][i][j] += weight[o][c][p][q] * x[c][h][w]
    return out


def from_the_paper(x, layer):
    """y = H(x) · T(x) + x · (1 − T(x)), eq. 3, in plain numbers."""
    f, out = F_OF[layer.activation], []
    for image in x.tolist():
        H_x, T_x = convolved(image, layer.Wh), convolved(image, layer.Wt)
        y = [[[0.0] * len(row) for row in channel] for channel in image]
        for c, channel in enumerate(image):
            for i, row in enumerate(channel):
                for j, value in enumerate(row):
                    t = 1 / (1 + math.exp(-T_x[c][i][j]))
                    y[c][i][j] = f(H_x[c][i][j]) * t + value * (1 - t)
        out.append(y)
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize(("C", "options", "H", "W"), CASES)
def test_equals_the_paper(C, options, H, W):
    layer, x = make(C, **options), randn(2, C, H, W)
    torch.testing.assert_close(layer(x), from_the_paper(x, layer), rtol=0, atol=1e-13)


class Wrong(HighwayConv2d):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        e, f = self.mistake, F.relu if self.activation == "relu" else torch.tanh
        h, t = self.Wh(x), self.Wt(x)
        if e == "one layer for H and T":
            t = self.Wh(x)
        if e == "gate of H":
            t = self.Wt(f(h))
        if e == "gate's bias dropped":
            t = F.conv2d(x, self.Wt.weight, padding=self.Wt.padding)
        if e == "one gate a position":
            t = t.mean(1, keepdim=True)
        if e == "one gate a channel":
            t = t.mean((2, 3), keepdim=True)
        T = {"tanh gate": torch.tanh, "softmax gate": lambda t: t.softmax(1)}.get(e, torch.sigmoid)(t)
        H = h if e == "no activation" else f(h)
        if e == "carry gate":
            T = 1 - T
        y = {"plain residual": T * H + x, "no carry": T * H, "carry of H": T * x + (1 - T) * H}.get(
            e, T * H + (1 - T) * x)
        return f(y) if e == "activation behind the sum" else y


@pytest.mark.parametrize("mistake", [
    "one layer for H and T", "gate of H", "gate's bias dropped", "one gate a position", "one gate a channel",
    "tanh gate", "softmax gate", "no activation", "carry gate", "plain residual", "no carry", "carry of H",
    "activation behind the sum",
])
def test_the_comparison_with_the_paper_notices(mistake):
    layer, x = make(), randn(2, 4, 4, 5)
    wrong = Wrong(4).to(D)
    wrong.load_state_dict(layer.state_dict())
    expected = from_the_paper(x, layer)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-13)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equation():
    layer, x = make(), randn(2, 4, 5, 7)
    with attn_lib.trace() as t:
        y = layer(x)
    assert t.names() == ["H_x", "T_x", "y"] and {t.dims(n) for n in t.names()} == {"B C H W"}
    torch.testing.assert_close(y, t["T_x"] * t["H_x"] + (1 - t["T_x"]) * x, rtol=0, atol=1e-14)


# ---- the dense layer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 5), (2, 3, 4, 5), (1, 5)])
def test_the_dense_layer_is_the_papers(shape, activation):
    dense = randomised(Highway(5, activation=activation))
    x = randn(*shape)
    expected = []
    for row in x.reshape(-1, 5).tolist():
        for c in range(5):
            h, t = (W.bias[c].item() + sum(W.weight[c, k].item() * row[k] for k in range(5))
                    for W in (dense.Wh, dense.Wt))
            t = 1 / (1 + math.exp(-t))
            expected.append(F_OF[activation](h) * t + row[c] * (1 - t))
    torch.testing.assert_close(dense(x), torch.tensor(expected, dtype=D).view(shape), rtol=0, atol=1e-13)


def test_a_kernel_of_one_is_the_dense_layer_at_every_position():
    layer, dense, x = make(kernel_size=1), Highway(4).to(D), randn(2, 4, 5, 7)
    dense.load_state_dict({name: p.reshape(p.shape[:2]) for name, p in layer.state_dict().items()})
    torch.testing.assert_close(layer(x).movedim(1, -1), dense(x.movedim(1, -1)), rtol=0, atol=1e-14)


def test_the_dense_layer_keeps_the_contract():
    dense, x = Highway(6), torch.randn(3, 5, 6, requires_grad=True)
    with attn_lib.trace() as t:
        y = dense(x)
    assert [t.dims(n) for n in t.names()] == ["B N C"] * 3 and t.sizes() == {"B": 3, "N": 5, "C": 6}
    torch.testing.assert_close(torch.compile(dense, fullgraph=True, backend="aot_eager")(x), y)
    y.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in dense.parameters()) and x.grad is not None
    for dtype in (torch.bfloat16, torch.float16):
        large = 300 * x.detach()
        half = dense.to(dtype)(large.to(dtype))
        assert half.dtype == dtype and half.isfinite().all()
        assert (half.float() - dense.float()(large)).abs().max() < 0.05 * large.abs().max()
    with pytest.raises(ValueError, match="axis C must be 6, not 5"):
        dense(torch.randn(2, 5))
    with pytest.raises(ValueError, match="must be a tensor of shape"):
        dense([1.0] * 6)


# ---- limits and traps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [-1000.0, -math.inf])
def test_a_shut_gate_has_the_identity_for_its_jacobian(bias):
    layer, x = make(2), randn(1, 2, 3, 2)
    layer.Wt.bias.fill_(bias)
    assert torch.equal(layer(x), x)
    jacobian = torch.autograd.functional.jacobian(layer, x).reshape(12, 12)
    assert torch.equal(jacobian, torch.eye(12, dtype=D))


def test_every_unit_lies_between_its_input_and_its_transform():
    layer, x = make(), randn(2, 4, 5, 7)
    with attn_lib.trace() as t:
        y = layer(x)
    low, high = torch.minimum(x, t["H_x"]), torch.maximum(x, t["H_x"])
    assert (y >= low - 1e-14).all() and (y <= high + 1e-14).all()


def test_a_carry_gate_is_the_transform_gate_of_other_sign():
    """g · x + (1 − g) · H is the same layer with −W_T and −b_T, and wants a positive bias to carry."""
    layer, x = make(), randn(2, 4, 5, 7)
    carry = Wrong(4).to(D)
    carry.load_state_dict(layer.state_dict())
    carry.mistake = "carry of H"
    assert (carry(x) - layer(x)).abs().max() > 0.1
    for p in carry.Wt.parameters():
        p.data.neg_()
    torch.testing.assert_close(carry(x), layer(x), rtol=0, atol=1e-14)
    fresh = Wrong(4, transform_bias=-4.0).to(D)  # the paper's bias with the other sign: almost nothing is carried
    fresh.mistake = "carry of H"
    right = HighwayConv2d(4, transform_bias=-4.0).to(D)
    assert (right(x) - x).norm() < 0.1 * x.norm() < (fresh(x) - x).norm()


def test_depth_needs_a_negative_bias():
    """Where H is 0 a layer leaves 1 − σ(b_T) of x: half of it with b_T = 0, nearly all with −4."""
    left = {}
    for bias in (0.0, -1.0, -4.0):
        layers = nn.Sequential(*(Highway(6, transform_bias=bias) for _ in range(40))).to(D)
        for layer in layers:
            for p in (*layer.Wh.parameters(), layer.Wt.weight):
                nn.init.zeros_(p)
        x = randn(3, 6)
        left[bias] = (layers(x) / x).mean().item()
        assert left[bias] == pytest.approx((1 - 1 / (1 + math.exp(-bias))) ** 40)
    assert left[0.0] < 1e-12 and left[-4.0] > 0.45
    assert HighwayConv2d(4).Wt.bias.tolist() == Highway(4).Wt.bias.tolist() == [-1.0] * 4


@pytest.mark.parametrize(("options", "message"), [
    (dict(kernel_size=4), "kernel_size=4 must be odd"),
    (dict(activation="gelu"), "activation='gelu' must be one of 'relu', 'tanh'"),
    (dict(transform_bias=None), "transform_bias=None must be a number"),
    (dict(transform_bias=math.nan), "transform_bias=nan must be a number"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        HighwayConv2d(4, **options)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_positions_and_parameters_are_two_layers():
    layer, sides = HighwayConv2d(8), [(12, 16), (24, 16), (24, 32)]
    N = [h * w for h, w in sides]
    saved = [measure.saved_bytes(layer, torch.randn(2, 8, *side)) for side in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.01)
    assert saved[0] <= 3 * 4 * 2 * 8 * N[0]  # H, T and 1 − T
    assert sum(p.numel() for p in layer.parameters()) == 2 * (9 * 8 * 8 + 8)
