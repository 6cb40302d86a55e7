"""Efficient multi-head self-attention against its equation, its limits, its memory, and known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import EMSA
from tests.unit.draw import D, randn, randomised

SIZES = [(4, 6, 2), (5, 3, 2), (5, 7, 3), (1, 1, 2), (1, 5, 4), (3, 2, 1), (2, 2, 3)]  # H, W, s


def emsa(ratio=2, C=6, heads=3, seed=0, **options) -> EMSA:
    m = randomised(EMSA(C, heads=heads, ratio=ratio, **options), scale=0.7, seed=seed)
    return m.requires_grad_(False)


def run(m, x):
    with attn_lib.trace() as t:
        m(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def project(z, conv):
    bias = [0.0] * conv.out_channels if conv.bias is None else conv.bias.tolist()
    return [b + sum(w * value for w, value in zip(row, z, strict=True))
            for row, b in zip(conv.weight.flatten(1).tolist(), bias, strict=True)]


def keys_of(m, image):
    """The pixels that are attended to, each a list of C numbers, normalised over its channels."""
    C, H, W = image.shape
    s = m.ratio
    if s == 1:
        return [image[:, i, j].tolist() for i in range(H) for j in range(W)]
    weight, bias, before = m.DWConv.weight.tolist(), m.DWConv.bias.tolist(), s // 2
    out = []
    for top in range(-before, H + before - s, s):
        for left in range(-before, W + before - s, s):
            z = [bias[c] + sum(weight[c][0][a][b] * image[c, top + a, left + b].item()
                               for a in range(s + 1) for b in range(s + 1)
                               if 0 <= top + a < H and 0 <= left + b < W) for c in range(C)]
            mean = sum(z) / C
            std = math.sqrt(sum((value - mean) ** 2 for value in z) / C + 1e-5)
            out.append([(value - mean) / std * w + b for value, w, b
                        in zip(z, m.norm.weight.tolist(), m.norm.bias.tolist(), strict=True)])
    return out


def softmax(row):
    e = [math.exp(value) for value in row]
    return [value / sum(e) for value in e]


def equation(m, image, transform):
    C, H, W = image.shape
    h, d = m.heads, C // m.heads
    queries = [image[:, i, j].tolist() for i in range(H) for j in range(W)]
    keys = keys_of(m, image)
    q, k, v = [project(z, m.Wq) for z in queries], [project(z, m.Wk) for z in keys], [project(z, m.Wv) for z in keys]
    logits = [[[sum(q_i[c] * k_j[c] for c in range(g * d, (g + 1) * d)) / math.sqrt(d) for k_j in k] for q_i in q]
              for g in range(h)]
    if transform:
        T, t = m.Wt.weight[:, :, 0, 0].tolist(), m.Wt.bias.tolist()
        logits = [[[t[g] + sum(T[g][f] * logits[f][i][j] for f in range(h)) for j in range(len(k))]
                   for i in range(len(q))] for g in range(h)]
    A = [[softmax(row) for row in head] for head in logits]
    if transform:
        for g in range(h):
            entries = [a for row in A[g] for a in row]
            mean = sum(entries) / len(entries)
            std = math.sqrt(sum((a - mean) ** 2 for a in entries) / len(entries) + m.epsilon)
            A[g] = [[(a - mean) / std for a in row] for row in A[g]]
    y = [project([sum(A[c // d][i][j] * v[j][c] for j in range(len(k))) for c in range(C)], m.Wo)
         for i in range(len(q))]
    return torch.tensor(y, dtype=D).T.reshape(C, H, W)


@pytest.mark.parametrize("transform", [True, False])
@pytest.mark.parametrize(("H", "W", "s"), SIZES)
def test_equals_the_paper(H, W, s, transform):
    m, x = emsa(s, transform=transform), randn(2, 6, H, W)
    assert_close(m(x), torch.stack([equation(m, image, transform) for image in x]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-2])
def test_equals_the_paper_where_the_attention_is_nearly_uniform(epsilon):
    """The variance of A lies below ε."""
    m, x = emsa(epsilon=epsilon), 1e-3 * randn(2, 6, 4, 6)
    m.Wq.bias.fill_(0.0)
    assert_close(m(x), torch.stack([equation(m, image, True) for image in x]), rtol=0, atol=1e-11)


class Wrong(EMSA):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        B, C, H, W = x.shape
        x_s = self.DWConv(x)
        if self.mistake == "other padding":
            x_s = F.conv2d(x, self.DWConv.weight, self.DWConv.bias, self.ratio, 1 + self.ratio // 2, groups=C)
        if self.mistake == "pooled":
            x_s = F.avg_pool2d(x, self.ratio)
        if self.mistake != "no norm behind the convolution":
            x_s = self.norm(x_s.movedim(1, 3)).movedim(3, 1)
        q, k, v = (self.split(t) for t in (self.Wq(x), self.Wk(x_s), self.Wv(x_s)))
        E = q @ k.mT
        E = E / (C if self.mistake == "scaled by the whole width" else C // self.heads) ** 0.5
        if self.mistake == "heads mixed behind the softmax":
            A = self.Wt(E.softmax(-1))
        else:
            A = (E if self.mistake == "heads not mixed" else self.Wt(E)).softmax(-1)
        if self.mistake == "normalised before the softmax":
            A = F.instance_norm(self.Wt(E)).softmax(-1)
        elif self.mistake == "normalised over the keys":
            A = F.layer_norm(A, A.shape[-1:])
        elif self.mistake == "normalised over the heads as well":
            A = F.layer_norm(A, A.shape[1:])
        elif self.mistake == "unbiased variance":
            A = (A - A.mean((2, 3), True)) / (A.var((2, 3), keepdim=True) + 1e-5).sqrt()
        elif self.mistake == "ε outside the root":
            A = (A - A.mean((2, 3), True)) / (A.var((2, 3), keepdim=True, unbiased=False).sqrt() + 1e-5)
        elif self.mistake != "not normalised":
            A = F.instance_norm(A)
        y = A @ v
        return self.Wo(y.mT.reshape(B, C, H, W))


@pytest.mark.parametrize("mistake", [
    "other padding", "pooled", "no norm behind the convolution", "scaled by the whole width",
    "heads mixed behind the softmax", "heads not mixed", "normalised before the softmax", "normalised over the keys",
    "normalised over the heads as well", "unbiased variance", "ε outside the root", "not normalised",
])
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = emsa(), randn(2, 6, 4, 6)
    if mistake == "ε outside the root":
        m.Wq.weight.mul_(0.01)  # ε counts where the attention is nearly uniform
        m.Wq.bias.fill_(0.0)
    wrong = Wrong(6, heads=3, ratio=2).to(D)
    wrong.load_state_dict(m.state_dict())
    expected = torch.stack([equation(m, image, True) for image in x])
    assert_close(wrong(x), expected, rtol=0, atol=1e-10)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("transform", [True, False])
def test_taps_are_the_equation(transform):
    m, x = emsa(transform=transform), randn(2, 6, 5, 7)
    t = run(m, x)
    assert t.names() == ["x_s", "q", "k", "v", "A", "y"]
    assert t["A"].shape == (2, 3, 35, 12)
    assert_close(t["A"].sum(-1), torch.full((2, 3, 35), 0.0 if transform else 1.0, dtype=D), rtol=0, atol=1e-11)


# ---- limits (that of the catalog stands in limits/) ------------------------------------------------------------------


def test_a_normalised_map_ignores_what_all_values_share():
    m, plain, x = emsa(), emsa(transform=False), randn(2, 6, 4, 6)
    before, before_plain = m(x), plain(x)
    for other in (m, plain):
        other.Wv.bias.add_(5.0)
    assert_close(m(x), before, rtol=0, atol=1e-11)
    assert (plain(x) - before_plain).abs().max() > 1


def test_uniform_attention_gives_nothing():
    m, x = emsa(), randn(2, 6, 4, 6)
    m.Wq.weight.fill_(0.0)
    m.Wq.bias.fill_(0.0)
    assert_close(m(x), m.Wo.bias[:, None, None].expand_as(x), rtol=0, atol=1e-12)


def test_one_query_depends_on_how_the_others_attend():
    m, plain, x = emsa(C=6, ratio=1), emsa(C=6, ratio=1, transform=False), randn(1, 6, 2, 3)
    for other, moves in ((m, True), (plain, False)):
        A = run(other, x)["A"][0, :, 0]
        q = other.Wq.weight.clone()

        def pixels_asked(t, other=other, q=q):  # every query but that of the first pixel is made twice as large
            y = F.conv2d(t, q, other.Wq.bias)
            mask = torch.ones_like(y)
            mask[..., 0, 1:] = mask[..., 1:, :] = 2.0
            return y * mask

        other.Wq.forward = pixels_asked
        assert ((run(other, x)["A"][0, :, 0] - A).abs().max() > 1e-3) == moves


def test_biases_in_front_of_a_softmax_are_dead():
    m, x = emsa(), randn(2, 6, 4, 6)
    before = m(x)
    for layer in (m.Wk, m.Wt):
        layer.bias.add_(3.0)
    assert_close(m(x), before, rtol=0, atol=1e-10)


def test_a_fresh_normalised_map_on_a_large_image_starts_near_nothing():
    torch.manual_seed(0)
    x = 0.1 * torch.randn(1, 16, 32, 32)
    power, of_the_map = (run(EMSA(16, heads=2, ratio=4, epsilon=epsilon), x)["A"].square().mean().item()
                         for epsilon in (1e-5, 1e-30))
    assert power < 0.05 and of_the_map == pytest.approx(1, abs=1e-3)


def test_a_single_head_is_transformed_on_request_alone():
    assert EMSA(4, heads=1).Wt is None and EMSA(4, heads=2).Wt is not None
    m, x = emsa(2, 3, 1, transform=True), randn(2, 3, 4, 6)
    assert_close(m(x), torch.stack([equation(m, image, True) for image in x]), rtol=0, atol=1e-10)
    release = emsa(2, 3, 1)
    assert_close(release(x), torch.stack([equation(release, image, False) for image in x]), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("H", "W", "s", "keys"), [(8, 8, 2, 16), (7, 9, 2, 20), (9, 9, 8, 4), (7, 8, 3, 6)])
def test_number_of_keys(H, W, s, keys):
    """⌈H/s⌉ for an even s, ⌈(H − 1)/s⌉ for an odd one, whose padding is half a pixel short."""
    assert run(emsa(s), randn(1, 6, H, W))["k"].shape[2] == keys
    sides = [math.ceil(n / s) if s % 2 == 0 else math.ceil((n - 1) / s) for n in (H, W)]
    assert math.prod(sides) == keys


@pytest.mark.parametrize(("options", "message"), [
    (dict(C=6, heads=4), "channels=6 must be divisible by heads=4; 4 and 8 are"),
    (dict(ratio=0), "ratio=0 must be an integer of at least 1"),
    (dict(transform="yes"), "transform='yes' must be one of True, False, None"),
    (dict(epsilon=0), "epsilon=0 must be a positive number: without it a uniform attention gives 0/0"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        emsa(**options)


def test_a_map_that_is_smaller_than_the_kernel_is_named():
    with pytest.raises(ValueError, match="H and W must be at least 2 with ratio=3"):
        emsa(3)(randn(1, 6, 1, 5))


# ---- memory ----------------------------------------------------------------------------------------------------------


def kept(ratio, transform, side):
    return measure.saved_bytes(EMSA(4, heads=2, ratio=ratio, transform=transform), torch.randn(1, 4, side, side))


def test_memory_is_that_of_the_map_and_s_squared_times_smaller():
    N = [16**2, 32**2]
    for ratio in (1, 2):
        bytes = [kept(ratio, True, side) for side in (16, 32)]
        assert measure.fit_exponent(N, bytes) == pytest.approx(2, abs=0.1)
        maps = 4 * 2 * N[1] ** 2 / ratio**2  # 4 bytes, 2 heads
        assert 2 * maps < bytes[1] < 6 * maps
    assert kept(1, True, 32) / kept(2, True, 32) == pytest.approx(4, rel=0.1)


def test_memory_is_linear_without_the_transform():
    N, bytes = zip(*((side**2, kept(2, False, side)) for side in (16, 32, 64)), strict=True)
    assert measure.fit_exponent(N, bytes) == pytest.approx(1, abs=0.05)
