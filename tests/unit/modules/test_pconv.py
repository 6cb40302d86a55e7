"""Partial convolution against its paper, its limits and timm, and against what it is taken for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.conv import PartialConv
from tests.unit.draw import D, randn, randomised
from tests.unit.reference import reference

CASES = [(8, 4, 3), (7, 2, 3), (5, 1, 3), (3, 3, 1), (6, 4, 5)]  # C, n, k


def make(C=8, n=4, k=3):
    return randomised(PartialConv(C, n_div=n, kernel_size=k)).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def from_the_paper(x, W, n):
    """Figure 4: c_p channels filtered one output, pixel and tap at a time, the rest taken over."""
    (B, C, H, Wd), k = x.shape, W.shape[-1]
    cp = C // n
    y = torch.zeros_like(x)
    for b, o, row, col in ((b, o, r, c) for b in range(B) for o in range(C) for r in range(H) for c in range(Wd)):
        if o >= cp:
            y[b, o, row, col] = x[b, o, row, col]
            continue
        for c in range(cp):
            for i in range(k):
                for j in range(k):
                    r, s = row + i - k // 2, col + j - k // 2
                    if 0 <= r < H and 0 <= s < Wd:
                        y[b, o, row, col] += W[o, c, i, j] * x[b, c, r, s]
    return y


@pytest.mark.parametrize(("H", "W"), [(5, 4), (1, 1)])
@pytest.mark.parametrize(("C", "n", "k"), CASES)
def test_equals_the_paper(C, n, k, H, W):
    conv, x = make(C, n, k), randn(2, C, H, W)
    torch.testing.assert_close(conv(x), from_the_paper(x, conv.conv.weight, n), rtol=0, atol=1e-12)


class Wrong(PartialConv):
    """The mistakes that circulate, one at a time."""

    mistake = None

    def forward(self, x):
        w, cp = self.conv.weight, self.convolved
        y1, x2 = F.conv2d(x[:, :cp], w, padding=1), x[:, cp:]
        if self.mistake == "the last channels":
            return torch.cat([x[:, :-cp], F.conv2d(x[:, -cp:], w, padding=1)], 1)
        if self.mistake == "the others in front":
            return torch.cat([x2, y1], 1)
        if self.mistake == "the others dropped":
            return torch.cat([y1, 0 * x2], 1)
        if self.mistake == "residual added":
            return torch.cat([y1 + x[:, :cp], x2], 1)
        if self.mistake == "depthwise":
            return torch.cat([F.conv2d(x[:, :cp], w[:, :1], padding=1, groups=cp), x2], 1)
        if self.mistake == "normalised by the valid taps":
            valid = F.conv2d(torch.ones_like(x[:, :1]), torch.ones_like(w[:1, :1]), padding=1)
            return torch.cat([y1 * 9 / valid, x2], 1)
        return torch.cat([y1, x2], 1)


@pytest.mark.parametrize("mistake", [
    "the last channels", "the others in front", "the others dropped", "residual added", "depthwise",
    "normalised by the valid taps",
])
def test_the_comparison_with_the_paper_notices(mistake):
    conv, x = make(8, 3), randn(2, 8, 5, 4)
    expected = from_the_paper(x, conv.conv.weight, 3)
    wrong = Wrong(8, n_div=3).to(D)
    wrong.load_state_dict(conv.state_dict())
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equation():
    conv, x = make(8, 3), randn(2, 8, 5, 4)
    with attn_lib.trace() as t:
        y = conv(x)
    assert t.names() == ["y1", "y"] and t["y1"].shape == (2, 2, 5, 4) and torch.equal(y[:, 2:], x[:, 2:])


# ---- limits and the errata -------------------------------------------------------------------------------------------


def test_a_zero_kernel_empties_the_first_channels_and_copies_the_rest():
    conv, x = make(8, 4), randn(2, 8, 5, 4)
    conv.conv.weight.zero_()
    assert not conv(x)[:, :2].any() and torch.equal(conv(x)[:, 2:], x[:, 2:])


def test_with_a_pointwise_convolution_it_is_one_in_the_shape_of_a_t():
    conv, pointwise, x = make(8, 4), nn.Conv2d(8, 5, 1, dtype=D).requires_grad_(False), randn(2, 8, 6, 7)
    T = torch.zeros(5, 8, 3, 3, dtype=D)
    T[:, 2:, 1, 1] = pointwise.weight[:, 2:, 0, 0]
    T[:, :2] = torch.einsum("OP,PCij->OCij", pointwise.weight[:, :2, 0, 0], conv.conv.weight)
    torch.testing.assert_close(pointwise(conv(x)), F.conv2d(x, T, pointwise.bias, padding=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_flops_fall_with_the_square(n):
    conv, x = PartialConv(8, n_div=n), torch.randn(2, 8, 16, 12)
    full = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    assert measure.flops(conv, x) * n**2 == measure.flops(full, x)
    assert sum(p.numel() for p in conv.parameters()) * n**2 == full.weight.numel()


def test_fewer_channels_than_parts_are_refused():
    with pytest.raises(ValueError, match="n_div=4 must be at most channels=3"):
        PartialConv(3)
    with pytest.warns(UserWarning), pytest.raises(RuntimeError):
        reference("timm.models.fasternet").Partial_conv3(3, 4, "split_cat")(torch.ones(1, 3, 5, 5))
    assert PartialConv(7).convolved == 1  # rounded down, as in the release
    with pytest.raises(ValueError, match="kernel_size=2 must be odd"):
        PartialConv(8, kernel_size=2)


def test_is_not_the_partial_convolution_of_inpainting():
    """That one divides by how many taps are valid: a constant map stays constant up to the border."""
    conv, x = make(4, 2), torch.ones(1, 4, 6, 7, dtype=D)
    border = conv(x)[0, 0, 0, 0].item()
    assert border == pytest.approx(conv.conv.weight[0, :, 1:, 1:].sum().item())
    assert abs(border - conv(x)[0, 0, 2, 2].item()) > 0.1
    x[..., 2:4, 2:4] = 0  # a hole is read as the zeros that it holds
    torch.testing.assert_close(conv(x), from_the_paper(x, conv.conv.weight, 2), rtol=0, atol=1e-12)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_keeps_nothing_but_the_input():
    conv = PartialConv(16)
    for n in (16, 32):
        x = torch.randn(2, 16, n, n)
        assert measure.saved_bytes(conv, x) == 0
        assert measure.saved_bytes(lambda t: conv(t * 2), x) <= 4 * x.numel() + 4 * conv.conv.weight.numel()


# ---- reference package -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "n"), [(16, 4), (7, 2), (6, 1)])
def test_equals_both_forward_passes_of_the_release(C, n):
    """timm keeps the authors' class, with both."""
    ours, x = make(C, n), randn(2, C, 6, 5)
    for forward in ("split_cat", "slicing"):
        theirs = reference("timm.models.fasternet").Partial_conv3(C, n, forward).to(D).eval().requires_grad_(False)
        theirs.partial_conv3.load_state_dict(ours.conv.state_dict())
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
