"""Squeeze-and-excitation against its paper, its limits and two packages, and against the errors in circulation.

The model for the file of another module. What the contract shows of every module (sizes, batches, types, symmetries,
bad arguments) is not repeated; the limits that the catalog states are proven in `limits/`.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.channel import SEAttention
from tests.unit.draw import D, permutation, randn, randomised
from tests.unit.reference import reference

CASES = [(16, 16, 5, 7), (12, 5, 1, 1), (6, 1, 4, 3), (1, 1, 3, 2), (32, 4, 1, 9)]  # C, r, H, W


def make(C=12, r=4, *, bias=True, scale=1.5):
    return randomised(SEAttention(C, reduction=r, bias=bias), scale=scale)


# ---- equation --------------------------------------------------------------------------------------------------------


def from_the_paper(x, se):
    """Equations 2, 3 and 4 in plain numbers, one channel and one pixel at a time."""
    W1, W2 = se.W1.weight.tolist(), se.W2.weight.tolist()
    b1 = se.W1.bias.tolist() if se.W1.bias is not None else [0.0] * len(W1)
    b2 = se.W2.bias.tolist() if se.W2.bias is not None else [0.0] * len(W2)
    out = []
    for u in x.tolist():
        z = [sum(map(sum, u_c)) / (len(u_c) * len(u_c[0])) for u_c in u]
        hidden = [max(0.0, b + sum(w * z_c for w, z_c in zip(row, z, strict=True)))
                  for row, b in zip(W1, b1, strict=True)]
        s = [1 / (1 + math.exp(-b - sum(w * h for w, h in zip(row, hidden, strict=True))))
             for row, b in zip(W2, b2, strict=True)]
        out.append([[[s_c * pixel for pixel in row] for row in u_c] for s_c, u_c in zip(s, u, strict=True)])
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("C", "r", "H", "W"), CASES)
def test_equals_the_paper(C, r, H, W, bias):
    se, x = make(C, r, bias=bias), randn(3, C, H, W)
    torch.testing.assert_close(se(x), from_the_paper(x, se), rtol=0, atol=1e-13)


class Wrong(SEAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        b1, b2 = (None, None) if self.mistake == "biases dropped" else (self.W1.bias, self.W2.bias)
        z = x.mean((2, 3))
        if self.mistake == "mean over the batch":
            z = z.mean(0).expand_as(z)
        if self.mistake == "maximum for mean":
            z = x.amax((2, 3))
        hidden = F.linear(z, self.W1.weight, b1)
        a = F.linear(hidden if self.mistake == "no ReLU" else F.relu(hidden), self.W2.weight, b2)
        s = {"softmax gate": a.softmax(1), "ReLU gate": a.relu(), "tanh gate": a.tanh()}.get(self.mistake, a.sigmoid())
        s = s[:, :, None, None]
        return {"residual added": x + s * x, "added": x + s}.get(self.mistake, x * s)


@pytest.mark.parametrize("mistake", [
    "biases dropped", "mean over the batch", "maximum for mean", "no ReLU", "softmax gate", "ReLU gate", "tanh gate",
    "residual added", "added",
])
def test_the_comparison_with_the_paper_notices(mistake):
    se, x = make(), randn(3, 12, 5, 7)
    wrong = Wrong(12, reduction=4).to(D)
    wrong.load_state_dict(se.state_dict())
    torch.testing.assert_close(wrong(x), from_the_paper(x, se), rtol=0, atol=1e-13)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - from_the_paper(x, se)).abs().max() > 1e-2


def test_taps_are_the_equations():
    se, x = make(), randn(2, 12, 5, 7)
    with attn_lib.trace() as t:
        y = se(x)
    assert t.names() == ["z", "s", "y"] and [t.dims(n) for n in t.names()] == ["B C", "B C", "B C H W"]
    assert torch.equal(t["z"], x.mean((2, 3))) and torch.equal(t["y"], y)
    assert torch.equal(y, x * t["s"][:, :, None, None])


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bias", "remains"), [(1e3, 1.0), (-1e4, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gate_can_be_fixed_open_or_shut(dtype, bias, remains):
    se, x = make().to(dtype), randn(2, 12, 5, 7).to(dtype)
    nn.init.constant_(se.W2.bias, bias)
    assert torch.equal(se(x), remains * x)  # exactly: the sigmoid rounds to 1 or 0


@pytest.mark.parametrize("bias", [True, False])
def test_zero_weights_halve(bias):
    se, x = make(bias=bias), randn(2, 12, 5, 7)
    for p in se.parameters():
        nn.init.zeros_(p)
    assert torch.equal(se(x), x / 2)


def test_a_gate_that_sees_nothing_is_a_diagonal_of_the_next_layer():
    se, x = make(), randn(3, 12, 9, 8)
    nn.init.zeros_(se.W2.weight)
    conv = nn.Conv2d(12, 5, 3).to(D)
    expected = F.conv2d(x, conv.weight * se.W2.bias.sigmoid()[:, None, None], conv.bias)
    torch.testing.assert_close(conv(se(x)), expected, rtol=0, atol=1e-12)


def test_one_hidden_unit_puts_all_gates_on_one_line():
    se, x = make(12, 12), randn(64, 12, 3, 3)
    with attn_lib.trace() as t:
        se(x)
    logits = t["s"].logit() - se.W2.bias
    assert se.W1.weight.shape == (1, 12)
    assert torch.linalg.matrix_rank(logits, rtol=1e-6) == 1


@pytest.mark.parametrize(
    ("C", "r", "hidden"), [(64, 16, 4), (64, 1, 64), (64, 64, 1), (30, 16, 1), (20, 3, 6), (1, 1, 1)]
)
def test_width_of_the_hidden_layer(C, r, hidden):
    se = SEAttention(C, reduction=r)
    assert se.W1.weight.shape == (hidden, C) and se.W2.weight.shape == (C, hidden)
    assert sum(p.numel() for p in se.parameters()) == 2 * C * hidden + hidden + C
    assert sum(p.numel() for p in SEAttention(C, reduction=r, bias=False).parameters()) == 2 * C * hidden


def test_defaults_are_the_papers():
    assert SEAttention(64).W1.out_features == 4
    assert SEAttention(64).W1.bias is not None and SEAttention(64).W2.bias is not None


def test_a_reduction_that_leaves_no_hidden_unit_is_refused():
    """Most copies go on with none: the gate is then a constant."""
    with pytest.raises(ValueError, match="reduction=16 must be at most channels=8"):
        SEAttention(8)
    with pytest.raises(ValueError, match="reduction=0 must be an integer of at least 1"):
        SEAttention(8, reduction=0)


# ---- what the gate depends on ----------------------------------------------------------------------------------------


def test_gate_depends_on_channel_means_alone():
    se, x = make(), randn(2, 12, 5, 7)
    other = randn(2, 12, 3, 4, seed=5)
    other = other - other.mean((2, 3), keepdim=True) + x.mean((2, 3), keepdim=True)  # another image, the same means
    with attn_lib.trace() as t:
        se(x)
    with attn_lib.trace() as u:
        se(other)
    torch.testing.assert_close(t["s"], u["s"], rtol=0, atol=1e-12)


def test_gate_is_constant_over_space_and_between_0_and_1():
    se, x = make(), randn(2, 12, 5, 7)
    ratio = se(x) / x
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio), rtol=1e-9, atol=0)
    assert (ratio > 0).all() and (ratio < 1).all()


def test_channel_permutations_pass_through_only_with_the_weights():
    se, along, x, order = make(), make(), randn(2, 12, 5, 7), permutation(12)
    assert (se(x[:, order]) - se(x)[:, order]).abs().max() > 1e-2
    with torch.no_grad():
        along.W1.weight.copy_(se.W1.weight[:, order])
        along.W2.weight.copy_(se.W2.weight[order])
        along.W2.bias.copy_(se.W2.bias[order])
    torch.testing.assert_close(along(x[:, order]), se(x)[:, order], rtol=0, atol=1e-13)


def test_one_pixel():
    se, x = make(), randn(3, 12, 1, 1)
    s = torch.sigmoid(se.W2(F.relu(se.W1(x[:, :, 0, 0]))))
    torch.testing.assert_close(se(x), x * s[:, :, None, None], rtol=0, atol=1e-14)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_saves_no_more_than_the_gate():
    C, sides = 32, [(16, 16), (16, 32), (32, 32), (32, 64)]
    se = SEAttention(C)
    saved = [measure.saved_bytes(se, torch.randn(2, C, *side)) for side in sides]
    # x itself is an input and not counted; the gate is B·C numbers, whatever the resolution.
    assert max(saved) == min(saved) <= 4 * 2 * C * 6
    # Behind another layer x is saved by the product: one float a pixel and channel, so linear in N = H·W.
    saved = [measure.saved_bytes(lambda t: se(t * 2), torch.randn(2, C, *side)) for side in sides]
    N = [h * w for h, w in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.02)
    assert all(4 * 2 * C * n <= bytes <= 4 * 2 * C * (n + 8) for n, bytes in zip(N, saved, strict=True))


def test_parameters_in_resnet_50_are_those_of_the_paper():
    """Section 4 of the paper: about 2.5 million, about 10 % of ResNet-50's 25.6 million."""
    stages = [(3, 256), (4, 512), (6, 1024), (3, 2048)]
    weights = sum(n * sum(p.numel() for p in SEAttention(C, bias=False).parameters()) for n, C in stages)
    assert weights == 2 * sum(n * C * C for n, C in stages) // 16 == 2_514_944


# ---- reference packages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "rd"), [(64, 8), (128, 8), (256, 16)])
def test_equals_timm(C, rd):
    timm = reference("timm.layers")
    theirs = timm.SEModule(C, rd_channels=rd, bias=True).to(D)
    ours = make(C, C // rd, scale=0.5)
    _copy(ours, theirs)
    x = randn(2, C, 6, 5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


def test_timm_rounds_the_width_to_eight():
    timm = reference("timm.layers")
    for C in (128, 256, 512):
        assert timm.SEModule(C, rd_ratio=1 / 16).fc1.out_channels == SEAttention(C).W1.out_features
    assert timm.SEModule(64, rd_ratio=1 / 16).fc1.out_channels == 8  # the paper's equation says 4
    assert SEAttention(64).W1.out_features == 4


@pytest.mark.parametrize(("C", "r"), [(64, 16), (30, 6), (8, 8)])
def test_equals_torchvision(C, r):
    torchvision = reference("torchvision.ops.misc")
    theirs = torchvision.SqueezeExcitation(C, C // r).to(D)
    ours = make(C, r, scale=0.5)
    _copy(ours, theirs)
    x = randn(2, C, 6, 5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


def _copy(ours, theirs):
    """Our two linear layers into their two 1 × 1 convolutions."""
    with torch.no_grad():
        for a, b in ((ours.W1, theirs.fc1), (ours.W2, theirs.fc2)):
            b.weight.copy_(a.weight[:, :, None, None])
            b.bias.copy_(a.bias)
