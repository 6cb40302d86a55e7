"""Multi-scale dilated attention against its equations, its limits, its memory, and known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import DilateAttention
from tests.unit.draw import D, permutation, randn, randomised

SIZES = [(4, 6), (5, 3), (1, 7), (1, 1)]
OPTIONS = [
    dict(),
    dict(qkv_bias=True, padding="masked"),
    dict(qkv_bias=True, dilations=(2,)),
    dict(dilations=(1, 4), kernel_size=5, padding="masked"),
]


def make(channels=12, heads=6, seed=0, **options) -> DilateAttention:
    return randomised(DilateAttention(channels, heads=heads, **options), scale=0.5, seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def from_the_paper(x: Tensor, m: DilateAttention) -> Tensor:
    """Equations 1 to 3 for one image (C, H, W), in plain numbers: loops over heads, queries and keys."""
    C, H, W = x.shape
    d, M, reach = C // m.heads, len(m.dilations), m.kernel_size // 2
    weight = m.Wqkv.weight[:, :, 0, 0]
    b = torch.zeros(3 * C, dtype=D) if m.Wqkv.bias is None else m.Wqkv.bias
    qkv = {(i, j): (weight @ x[:, i, j] + b).tolist() for i in range(H) for j in range(W)}
    y = torch.zeros(C, H, W, dtype=D)
    for head in range(m.heads):
        r = m.dilations[head // (m.heads // M)]
        own = range(head * d, (head + 1) * d)
        for i, j in qkv:
            logits, values = [], []
            for di in range(-reach, reach + 1):
                for dj in range(-reach, reach + 1):
                    place = (i + di * r, j + dj * r)
                    if place in qkv:
                        logits.append(sum(qkv[i, j][c] * qkv[place][C + c] for c in own) / math.sqrt(d))
                        values.append([qkv[place][2 * C + c] for c in own])
                    elif m.padding == "zeros":
                        logits.append(0.0)
                        values.append([0.0] * d)
            weights = [math.exp(a) for a in logits]
            for n, c in enumerate(own):
                y[c, i, j] = sum(w * v[n] for w, v in zip(weights, values, strict=True)) / sum(weights)
    return torch.einsum("OC,CHW->OHW", m.Wo.weight[:, :, 0, 0], y) + m.Wo.bias[:, None, None]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_paper(size, options):
    m, x = make(**options), randn(1, 12, *size)
    torch.testing.assert_close(m(x)[0], from_the_paper(x[0], m), rtol=0, atol=1e-12)


class Wrong(DilateAttention):
    """The mistakes that circulate, one at a time."""

    mistake = None

    def forward(self, x):
        M, h, (B, C, H, W) = len(self.dilations), self.heads, x.shape
        qkv = self.Wqkv(x)
        if self.mistake == "q, k and v of a dilation side by side":
            q, k, v = (t.flatten(1, 2) for t in qkv.unflatten(1, (M, 3, C // M)).unbind(2))
        else:
            q, k, v = qkv.chunk(3, 1)
        if self.mistake == "queries and keys exchanged":
            q, k = k, q
        order = torch.arange(h).view(-1, M).T.flatten() if self.mistake == "dilations dealt out in turn" else None
        scale = C**-0.5 if self.mistake == "scaled by the whole width" else (C // h) ** -0.5
        out = []
        for head in range(h):
            g = (order.argsort()[head] if order is not None else torch.tensor(head)).item() // (h // M)
            r = self.dilations[0] if self.mistake == "one dilation for all" else self.dilations[g]
            rows = slice(head * C // h, (head + 1) * C // h)
            pad = r * (self.kernel_size // 2)
            near = [F.unfold(t[:, rows], self.kernel_size, r, pad).view(B, C // h, -1, H, W) for t in (k, v)]
            logits = (q[:, rows, None] * near[0]).sum(1) * scale
            there = F.unfold(torch.ones_like(x[:, :1]), self.kernel_size, r, pad).view(B, -1, H, W) > 0
            if self.mistake == "bias on keys outside the map":
                outside = (self.Wqkv.bias[C + rows.start:C + rows.stop] * q[:, rows].movedim(1, -1)).sum(-1) * scale
                logits = logits.where(there, outside[:, None])
            if self.mistake == "masked":
                logits = logits.masked_fill(~there, -torch.inf)
            A = logits.sigmoid() if self.mistake == "sigmoid" else logits.softmax(1)
            out.append((A[:, None] * near[1]).sum(2))
        y = torch.cat(out, 1)
        return y if self.mistake == "no output projection" else self.Wo(y)


@pytest.mark.parametrize("mistake", [
    "q, k and v of a dilation side by side", "queries and keys exchanged", "dilations dealt out in turn",
    "scaled by the whole width", "one dilation for all", "bias on keys outside the map", "masked", "sigmoid",
    "no output projection",
])
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = make(qkv_bias=True), randn(1, 12, 4, 5)
    expected = from_the_paper(x[0], m)
    wrong = Wrong(12, heads=6, qkv_bias=True).to(D).requires_grad_(False)
    wrong.load_state_dict(m.state_dict())
    torch.testing.assert_close(wrong(x)[0], expected, rtol=0, atol=1e-12)  # as yet there is no mistake
    wrong.mistake = mistake
    assert (wrong(x)[0] - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    m, x = make(dilations=(1, 2)), randn(2, 12, 4, 5)
    with attn_lib.trace() as t:
        y = m(x)
    assert t.names() == ["q", "k", "v", "K_r", "V_r", "A", "y"]
    assert t["A"].shape == (2, 6, 20, 1, 9) and t["K_r"].shape == (2, 6, 20, 9, 2)
    torch.testing.assert_close(t["A"].sum(-1), torch.ones(2, 6, 20, 1, dtype=D))
    assert torch.equal(t["K_r"][:, :, :, 4].mT.reshape(2, 12, 4, 5), t["k"])  # the middle place is the pixel itself
    torch.testing.assert_close(y, m(x), rtol=0, atol=1e-13)


# ---- what it sees ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [1, 2, 3])
def test_a_pixel_reads_nine_places_r_apart(r):
    m, x = make(dilations=(r,)), randn(1, 12, 9, 9)
    reached = torch.autograd.functional.jacobian(lambda x: m(x)[0, :, 4, 4].sum(), x)[0].abs().sum(0) > 1e-12
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[4 - r:5 + r:r, 4 - r:5 + r:r] = True
    assert torch.equal(reached, expected)


def test_order_of_the_neighbours_makes_no_difference():
    """There are no positions: rearranging the eight places around a pixel leaves it what it is."""
    m, x = make(dilations=(1,)), randn(1, 12, 3, 3)
    around = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8])
    y = x.flatten(2).clone()
    y[..., around] = y[..., around[permutation(8)]]
    torch.testing.assert_close(m(y.view_as(x))[..., 1, 1], m(x)[..., 1, 1])


# ---- traps -----------------------------------------------------------------------------------------------------------


def test_trap_keys_outside_the_map_take_their_share():
    """Constant values: the interior returns them, a corner 4 of 9 keys' worth, unless such keys are masked."""
    zeros, masked = (make(dilations=(1,), qkv_bias=True, padding=padding) for padding in ("zeros", "masked"))
    for m in (zeros, masked):
        m.Wqkv.weight[24:] = 0.0
        m.Wqkv.bias[24:] = 1.0
        m.Wo.weight.copy_(torch.eye(12)[:, :, None, None])
        m.Wo.bias.fill_(0.0)
    x = randn(1, 12, 5, 6)
    torch.testing.assert_close(masked(x), torch.ones_like(x))
    y = zeros(x)
    torch.testing.assert_close(y[..., 1:-1, 1:-1], torch.ones(1, 12, 3, 4, dtype=D))
    border = torch.ones(5, 6, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (y[..., border] <= 1).all() and y[..., border].mean() < 0.9 and y[..., 0, 0].mean() < 0.7
    zeros.Wqkv.weight[:12], zeros.Wqkv.bias[:12] = 0.0, 0.0  # asks nothing: all logits are 0, as those outside are
    torch.testing.assert_close(zeros(x)[0, 0, 0, 0], torch.tensor(4 / 9, dtype=D))


def test_trap_results_written_into_the_input():
    m = make(dilations=(1, 2), heads=2)

    def wrong(x):
        groups = x.view(len(x), 2, 6, *x.shape[2:]).transpose(0, 1)
        for g, y in enumerate(m(x).chunk(2, 1)):
            groups[g] = y
        return x

    x = randn(1, 12, 4, 5)
    before = x.clone()
    m(x)
    assert torch.equal(x, before)
    wrong(x)
    assert not torch.equal(x, before)
    m.requires_grad_(True)
    with pytest.raises(RuntimeError, match="in-place operation"):
        wrong(before.requires_grad_()).sum().backward()
    m(before).sum().backward()
    assert before.grad.abs().sum() > 0


def test_trap_defaults_that_fail():
    with pytest.raises(ValueError, match=r"heads=8 must be divisible by len\(dilations\)=3; 6 and 9 are"):
        DilateAttention(96, heads=8)
    DilateAttention(72)  # the first stage of DilateFormer-Tiny


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["zeros", "masked"])
def test_memory_grows_with_the_pixels_and_the_kernel(padding):
    kept = {n: measure.saved_bytes(DilateAttention(12, padding=padding), torch.randn(1, 12, n, 16)) for n in (16, 64)}
    assert measure.fit_exponent(list(kept), list(kept.values())) == pytest.approx(1, abs=0.03), kept
    x = torch.randn(1, 12, 32, 32)
    kept = [measure.saved_bytes(DilateAttention(12, kernel_size=k, padding=padding), x) for k in (3, 5, 7)]
    assert (kept[2] - kept[1]) / (kept[1] - kept[0]) == pytest.approx((49 - 25) / (25 - 9), rel=0.02)
    wide = measure.saved_bytes(DilateAttention(12, dilations=(4, 8, 12), padding=padding), x)
    assert wide == kept[0], "a wider reach costs nothing"


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=512, heads=6), "channels=512 must be divisible by heads=6; 510 and 516 are"),
    (dict(channels=12, kernel_size=4), "kernel_size=4 must be odd"),
    (dict(channels=12, dilations=()), r"dilations=\(\) must hold one integer a group"),
    (dict(channels=12, dilations=(1, 0, 2)), "dilations=0 must be an integer of at least 1"),
    (dict(channels=12, padding="mask"), "padding='mask' must be one of 'zeros', 'masked'; did you mean 'masked'"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        DilateAttention(**options)
