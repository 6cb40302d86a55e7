"""Overlapping spatial reduction attention against its equations, its limits, its memory, and known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import OSRAttention
from tests.unit.draw import D, randn, randomised

SIZES = [(4, 6, 2), (5, 3, 2), (5, 7, 3), (1, 1, 2), (1, 5, 4), (3, 2, 1), (1, 1, 3)]  # H, W, s


def osra(ratio=2, C=6, heads=3, seed=0, **options) -> OSRAttention:
    m = OSRAttention(C, heads=heads, ratio=ratio, **options)
    return randomised(m, scale=0.6, seed=seed).requires_grad_(False)


def run(m, x):
    with attn_lib.trace() as t:
        m(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def depthwise(image, weight, stride, padding):
    """A window at a time; what lies outside is zero."""
    C, H, W = image.shape
    k = weight.shape[-1]
    tops, lefts = (range(-padding, size + padding - k + 1, stride) for size in (H, W))
    out = torch.zeros(C, len(tops), len(lefts), dtype=D)
    for r, top in enumerate(tops):
        for c, left in enumerate(lefts):
            for a in range(k):
                for b in range(k):
                    if 0 <= top + a < H and 0 <= left + b < W:
                        out[:, r, c] += weight[:, 0, a, b] * image[:, top + a, left + b]
    return out


def batch_norm(image, bn):
    factor = bn.weight / torch.sqrt(bn.running_var + 1e-5)
    return (image - bn.running_mean[:, None, None]) * factor[:, None, None] + bn.bias[:, None, None]


def gelu(image):
    return image * 0.5 * (1 + torch.erf(image / math.sqrt(2)))


def equations(m, image, bias=None):
    C, H, W = image.shape
    d = C // m.heads
    y = image
    if m.ratio > 1:
        reduce, bn1, _, factor, bn2 = m.OSR
        y = gelu(batch_norm(depthwise(image, reduce.weight, m.ratio, (m.ratio + 3) // 2), bn1))
        y = batch_norm(y * factor.weight[:, 0], bn2)
    y = y + depthwise(y, m.LR.weight, 1, 1) + m.LR.bias[:, None, None]
    queries, keys = ([t[:, i, j] for i in range(t.shape[1]) for j in range(t.shape[2])] for t in (image, y))
    q, k, v = ([conv.weight[:, :, 0, 0] @ z + conv.bias for z in t]
               for conv, t in ((m.Wq, queries), (m.Wk, keys), (m.Wv, keys)))
    z = torch.empty(C, len(q), dtype=D)
    for head in range(m.heads):
        part = slice(head * d, (head + 1) * d)
        for i in range(len(q)):
            e = [math.exp((q[i][part] @ k_j[part]).item() / math.sqrt(d)
                          + (0.0 if bias is None else bias[head, i, j].item())) for j, k_j in enumerate(k)]
            z[part, i] = sum(e_j * v_j[part] for e_j, v_j in zip(e, v, strict=True)) / sum(e)
    return z.view(C, H, W)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("H", "W", "s"), SIZES)
def test_equals_the_paper(H, W, s, biased):
    m, x = osra(s, **(dict(height=H, width=W) if biased else {})), randn(2, 6, H, W)
    assert_close(m(x), torch.stack([equations(m, image, m.bias) for image in x]), rtol=0, atol=1e-11)


class Wrong(OSRAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        B, C, H, W = x.shape
        reduce, bn1, gelu, factor, bn2 = self.OSR
        s = self.ratio
        if self.mistake == "windows that do not overlap":
            y = F.conv2d(x, reduce.weight[..., :s, :s], stride=s, groups=C)
        elif self.mistake == "other padding":
            y = F.conv2d(x, reduce.weight, stride=s, padding=s // 2, groups=C)
        else:
            y = reduce(x)
        y = y if self.mistake == "no first norm" else bn1(y)
        y = F.relu(y) if self.mistake == "ReLU" else y if self.mistake == "no activation" else gelu(y)
        if self.mistake == "full 1 × 1 convolution":
            y = F.conv2d(y, factor.weight.expand(C, C, 1, 1))
        elif self.mistake != "no factors":
            y = factor(y)
        y = gelu(bn2(y)) if self.mistake == "activation at the end" else bn2(y)
        if self.mistake == "refinement in place of the sum":
            y = self.LR(y)
        elif self.mistake != "no refinement":
            y = y + self.LR(y)
        q, k, v = (t.unflatten(1, (self.heads, -1)).flatten(3).mT for t in (self.Wq(x), self.Wk(y), self.Wv(y)))
        width = C if self.mistake == "scaled by the whole width" else C // self.heads
        E, bias = q @ k.mT, self.bias[..., :k.shape[2]]
        E = (E + bias) / width**0.5 if self.mistake == "bias scaled" else E / width**0.5 + bias
        if self.mistake == "one bias for all heads":
            E = q @ k.mT / width**0.5 + bias[:1]
        z = (E.softmax(-1) @ v).mT.reshape(B, C, H, W)
        return self.Wq(z) if self.mistake == "projected" else z


@pytest.mark.parametrize("mistake", [
    "windows that do not overlap", "other padding", "no first norm", "ReLU", "no activation", "full 1 × 1 convolution",
    "no factors", "activation at the end", "refinement in place of the sum", "no refinement",
    "scaled by the whole width", "bias scaled", "one bias for all heads", "projected",
])
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = osra(height=4, width=6), randn(2, 6, 4, 6)
    wrong = Wrong(6, heads=3, ratio=2, height=4, width=6).to(D).eval()
    wrong.load_state_dict(m.state_dict())
    expected = torch.stack([equations(m, image, m.bias) for image in x])
    assert_close(wrong(x), expected, rtol=0, atol=1e-11)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    m, x = osra(height=5, width=7), randn(2, 6, 5, 7)
    t = run(m, x)
    assert t.names() == ["Y", "Y_LR", "Q", "K", "V", "bias", "A", "Z"]
    assert t["A"].shape == (2, 3, 35, 12)
    assert_close(t["A"].sum(-1), torch.ones(2, 3, 35, dtype=D))
    assert_close(t["Z"], m(x))


# ---- limits (that of the catalog stands in limits/) ------------------------------------------------------------------


def test_without_reduction_the_refinement_stays():
    m, x = osra(1), randn(2, 6, 4, 5)
    with_it = m(x)
    assert_close(with_it, torch.stack([equations(m, image) for image in x]), rtol=0, atol=1e-11)
    m.LR.weight.fill_(0.0)
    m.LR.bias.fill_(0.0)
    assert (m(x) - with_it).abs().max() > 1e-1


def test_a_query_that_asks_nothing_gets_the_mean_value():
    m, x = osra(), randn(2, 6, 4, 6)
    m.Wq.weight.fill_(0.0)
    m.Wq.bias.fill_(0.0)
    t = run(m, x)
    mean = t["V"].mean(2).flatten(1)  # B h d → B C
    assert_close(t["Z"], mean[:, :, None, None].expand_as(x))


@pytest.mark.parametrize(("H", "W", "s", "keys"), [
    (8, 8, 2, 4 * 4), (7, 9, 2, 4 * 5), (9, 17, 8, 2 * 3), (9, 7, 3, 4 * 3), (5, 4, 1, 20), (4, 1, 5, 1),
])
def test_number_of_keys(H, W, s, keys):
    """⌈H/s⌉ for an even s, ⌊H/s⌋ + 1 for an odd one above 1; the bias is made for as many."""
    m = osra(s, height=H, width=W)
    assert run(m, randn(1, 6, H, W))["K"].shape[2] == keys == m.bias.shape[2]
    sides = [n if s == 1 else math.ceil(n / s) if s % 2 == 0 else n // s + 1 for n in (H, W)]
    assert math.prod(sides) == keys


def test_windows_overlap_by_three():
    """Kernel 7, stride 4: how many keys see each pixel of a row."""
    m = osra(4, C=1, heads=1)
    m.OSR[0].weight.fill_(1.0)
    rows = torch.eye(12, dtype=D)[:, None, None]  # 12 maps of one row, with one bright pixel each
    assert m.OSR[0](rows).sum((1, 2, 3)).tolist() == [1, 2, 2, 2, 1, 2, 2, 2, 1, 1, 1, 1]


# ---- the bias --------------------------------------------------------------------------------------------------------


def test_the_bias_knows_pairs_and_not_offsets():
    m, x = osra(1, height=3, width=4), randn(1, 6, 3, 4)
    assert m.bias.shape == (3, 12, 12)
    moved = osra(1, height=3, width=4)
    moved.bias[:, 0, 1] += 5.0  # the pair (0, 1), and not (1, 2), which has the same offset
    A, B = run(m, x)["A"][0], run(moved, x)["A"][0]
    assert (A - B)[:, 0].abs().max() > 1e-2 and not (A - B)[:, 1:].any()


def cubic(t):
    t, a = abs(t), -0.75
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def test_the_bias_is_resized_over_queries_and_keys():
    """As a picture with N rows and Nk columns, by Keys' cubic with a = −3/4."""
    m, x = osra(2, height=4, width=4), randn(2, 6, 5, 6)
    N, Nk = 30, 9
    bias = torch.zeros(3, N, Nk, dtype=D)
    for i in range(N):
        for j in range(Nk):
            y, z = (i + 0.5) * 16 / N - 0.5, (j + 0.5) * 4 / Nk - 0.5
            for a in range(math.floor(y) - 1, math.floor(y) + 3):
                for b in range(math.floor(z) - 1, math.floor(z) + 3):
                    bias[:, i, j] += cubic(y - a) * cubic(z - b) * m.bias[:, min(max(a, 0), 15), min(max(b, 0), 3)]
    assert_close(m(x), torch.stack([equations(m, image, bias) for image in x]), rtol=0, atol=1e-10)
    over_the_map = F.interpolate(m.bias.unflatten(1, (4, 4)).movedim(3, 1).flatten(0, 1)[:, None], (5, 6),
                                 mode="bicubic").flatten(1).unflatten(0, (3, 4)).mT  # the queries, as a map
    assert (over_the_map[:, 0] - bias[:, 0, :4]).abs().max() > 1e-2
    assert torch.equal(F.interpolate(m.bias[None], (16, 4), mode="bicubic")[0], m.bias), "at its own size: no change"


def test_a_fresh_bias_does_nothing_and_learns():
    torch.manual_seed(0)
    m, x = OSRAttention(6, heads=2, ratio=2, height=4, width=6), torch.randn(2, 6, 4, 6)
    plain = OSRAttention(6, heads=2, ratio=2)
    plain.load_state_dict({name: t for name, t in m.state_dict().items() if name != "bias"})
    assert_close(m.eval()(x), plain.eval()(x))
    m(x).square().sum().backward()
    assert (m.bias.grad != 0).all()


def test_blocks_may_share_one_bias():
    m, other, x = osra(height=4, width=6), osra(height=4, width=6, seed=1), randn(2, 6, 4, 6)
    other.bias = m.bias
    m.bias.add_(1.0 + m.bias.square())
    assert other.bias is m.bias and (run(other, x)["bias"] == m.bias).all()


@pytest.mark.parametrize(("options", "message"), [
    (dict(C=6, heads=4), "channels=6 must be divisible by heads=4; 4 and 8 are"),
    (dict(ratio=0), "ratio=0 must be an integer of at least 1"),
    (dict(height=4), "width=None must be an integer"),
    (dict(width=4), "height=None must be an integer"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        osra(**options)


# ---- memory ----------------------------------------------------------------------------------------------------------


def kept(side, ratio, biased):
    m = OSRAttention(8, heads=2, ratio=ratio, **(dict(height=side, width=side) if biased else {}))
    return measure.saved_bytes(m, torch.randn(1, 8, side, side))


def test_memory_is_linear_without_a_bias_and_with_one_that_of_the_map():
    N, bytes = zip(*((side**2, kept(side, 2, False)) for side in (16, 32, 64)), strict=True)
    assert measure.fit_exponent(N, bytes) == pytest.approx(1, abs=0.03)
    for ratio in (2, 4):
        maps = kept(32, ratio, True) - kept(32, ratio, False)
        assert maps == pytest.approx(4 * 2 * 32**4 / ratio**2, rel=0.2)  # 4 bytes, 2 heads, N × N/s²


def test_operations_are_s_squared_times_fewer():
    C, side = 8, 16
    for ratio in (2, 4):
        N, Nk = side**2, side**2 // ratio**2
        convolutions = 2 * Nk * C * ((ratio + 3) ** 2 + 1 + 9) + 2 * C * C * (N + 2 * Nk)
        flops = measure.flops(OSRAttention(C, ratio=ratio), torch.randn(1, C, side, side))
        assert flops == convolutions + 4 * N * Nk * C
