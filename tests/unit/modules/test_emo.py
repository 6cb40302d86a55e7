"""The inverted residual mobile block against its equations, its limits, its memory, and known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import InvertedResidualMobileBlock
from tests.unit.draw import D, randn, randomised

SIZES = [(4, 6), (5, 7), (2, 3), (1, 1)]
OPTIONS = [
    dict(),
    dict(attend_first=True, padding="zeros"),
    dict(padding="zeros", expansion=1.5, kernel_size=5),
    dict(window=None, norm="batch", activation="silu", qkv_bias=False),
    dict(attention=False, norm=None, activation="relu", stride=2, out_channels=9),
    dict(stride=2, out_channels=8),
]


def make(channels=8, seed=0, **options) -> InvertedResidualMobileBlock:
    options = dict(heads=2, expansion=2.0, window=3) | options
    return randomised(InvertedResidualMobileBlock(channels, **options), scale=0.5, seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def from_the_paper(x: Tensor, m: InvertedResidualMobileBlock) -> Tensor:
    """One image (C, H, W), with loops over pixels and heads; padded pixels are pixels that hold zeros."""
    C, H, W = x.shape
    shape = (-1, 1, 1)

    def batch_norm(t, norm):
        std = (norm.running_var + 1e-6).sqrt()
        return (t - norm.running_mean.view(shape)) / std.view(shape) * norm.weight.view(shape) + norm.bias.view(shape)

    if isinstance(m.norm, torch.nn.LayerNorm):
        std = (x.var(0, unbiased=False) + 1e-6).sqrt()
        x_hat = (x - x.mean(0)) / std * m.norm.weight.view(shape) + m.norm.bias.view(shape)
    else:
        x_hat = batch_norm(x, m.norm) if isinstance(m.norm, torch.nn.BatchNorm2d) else x

    def project(conv, vector):
        y = conv.weight[:, :, 0, 0] @ vector
        return y if conv.bias is None else y + conv.bias

    phi = {"gelu": lambda v: v * 0.5 * (1 + torch.erf(v / math.sqrt(2))), "silu": lambda v: v * v.sigmoid(),
           "relu": lambda v: v.clamp(min=0)}[m.activation]

    def attended(i, j):
        """What pixel (i, j) takes from its window."""
        n_1, n_2 = (1, 1) if m.window is None else (math.ceil(H / m.window), math.ceil(W / m.window))
        high, wide = (H, W) if m.window is None else (n_1 * m.window, n_2 * m.window)
        places = [(r, c) for r in range(high) for c in range(wide) if r % n_1 == i % n_1 and c % n_2 == j % n_2]
        if m.padding == "masked":
            places = [(r, c) for r, c in places if r < H and c < W]
        pixels = [x_hat[:, r, c] if r < H and c < W else torch.zeros(C, dtype=D) for r, c in places]
        values = pixels if m.attend_first else [phi(project(m.Wv, p)) for p in pixels]
        q, keys = project(m.Wqk, x_hat[:, i, j])[:C], [project(m.Wqk, p)[C:] for p in pixels]
        parts, d, dv = [], C // m.heads, len(values[0]) // m.heads
        for h in range(m.heads):
            own = slice(h * d, (h + 1) * d)
            weights = [math.exp((q[own] @ k[own]).item() / math.sqrt(d)) for k in keys]
            parts.append(sum(w / sum(weights) * v[h * dv:(h + 1) * dv] for w, v in zip(weights, values, strict=True)))
        return torch.cat(parts)

    X_a = torch.zeros(len(m.Wv.weight), H, W, dtype=D)
    for i in range(H):
        for j in range(W):
            if not m.attention:
                X_a[:, i, j] = phi(project(m.Wv, x_hat[:, i, j]))
            else:
                X_a[:, i, j] = phi(project(m.Wv, attended(i, j))) if m.attend_first else attended(i, j)

    k, s = m.D.kernel_size[0], m.stride
    X_f = torch.zeros(len(X_a), math.ceil(H / s), math.ceil(W / s), dtype=D)
    for i in range(X_f.shape[1]):
        for j in range(X_f.shape[2]):
            for di in range(k):
                for dj in range(k):
                    r, c = i * s + di - k // 2, j * s + dj - k // 2
                    if 0 <= r < H and 0 <= c < W:
                        X_f[:, i, j] += m.D.weight[:, 0, di, dj] * X_a[:, r, c]
    X_f = batch_norm(X_f, m.norm_d)
    X_f = X_f * X_f.sigmoid()
    skip = s == 1 and m.out_channels == C
    y = torch.einsum("oc,chw->ohw", m.Wo.weight[:, :, 0, 0], X_a + X_f if skip else X_f)
    return x + y if skip else y


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_paper(size, options):
    m, x = make(**options), randn(1, 8, *size)
    torch.testing.assert_close(m(x)[0], from_the_paper(x[0], m), rtol=0, atol=1e-11)


class Wrong(InvertedResidualMobileBlock):
    """The mistakes that circulate, one at a time; window 2, on a map that it divides."""

    mistake = None

    def forward(self, x):
        is_ = self.mistake.__eq__ if self.mistake else lambda _: False
        (B, C, H, W), w = x.shape, self.window
        x_hat = x if is_("no norm") else self.normalise(x)
        if is_("epsilon of 1e-5 and more"):
            x_hat = F.layer_norm(x.movedim(1, -1), (C,), self.norm.weight, self.norm.bias, 0.1).movedim(-1, 1)

        def cut(t):
            t = t.unflatten(3, (W // w, w) if is_("blocks for windows") else (w, W // w))
            t = t.unflatten(2, (H // w, w) if is_("blocks for windows") else (w, H // w))
            t = t.permute(0, 2, 4, 3, 5, 1) if is_("blocks for windows") else t.permute(0, 3, 5, 2, 4, 1)
            return t.flatten(3, 4).unflatten(-1, (self.heads, -1)).transpose(3, 4)  # B n1 n2 h n d

        q, k = self.Wqk(x_hat).chunk(2, 1)
        q, k = (k, q) if is_("queries and keys exchanged") else (q, k)
        first = self.attend_first != is_("attention on the other side of the expansion")
        V = x_hat if first else self.Wv(x_hat) if is_("activation behind the attention") else self.expand(x_hat)
        scale = C**-0.5 if is_("scaled by the whole width") else (C // self.heads) ** -0.5
        y = (cut(q) @ cut(k).mT * scale).softmax(-1) @ cut(V)
        y = y.transpose(3, 4).flatten(4).unflatten(3, (w, w))  # B n1 n2 w w C
        y = y.permute(0, 5, 1, 3, 2, 4) if is_("blocks for windows") else y.permute(0, 5, 3, 1, 4, 2)
        y = y.reshape(B, -1, H, W)
        X_a = self.expand(y) if first else F.gelu(y) if is_("activation behind the attention") else y
        X_f = self.D(X_a) if is_("no norm behind the convolution") else self.norm_d(self.D(X_a))
        X_f = F.relu(X_f) if is_("ReLU for SiLU") else F.silu(X_f)
        y = self.Wo(X_f if is_("no inner skip") else X_a + X_f)
        return y if is_("no outer skip") else x + y


@pytest.mark.parametrize("mistake", [
    "no norm", "epsilon of 1e-5 and more", "blocks for windows", "queries and keys exchanged",
    "attention on the other side of the expansion", "activation behind the attention", "scaled by the whole width",
    "no norm behind the convolution", "ReLU for SiLU", "no inner skip", "no outer skip",
])
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = make(window=2), randn(1, 8, 4, 6)
    expected = from_the_paper(x[0], m)
    wrong = Wrong(8, heads=2, expansion=2.0, window=2).to(D).eval().requires_grad_(False)
    wrong.load_state_dict(m.state_dict())
    torch.testing.assert_close(wrong(x)[0], expected, rtol=0, atol=1e-11)  # as yet there is no mistake
    wrong.mistake = mistake
    assert (wrong(x)[0] - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    m, x = make(), randn(2, 8, 5, 7)
    with attn_lib.trace() as t:
        y = m(x)
    assert t.names() == ["x_hat", "q", "k", "V", "A", "X_a", "X_f", "y"]
    assert t["A"].shape == (2 * 6, 2, 9, 9) and t["V"].shape == (2, 6, 9, 16) and t["q"].shape == (2, 6, 9, 8)
    torch.testing.assert_close(y, m(x), rtol=0, atol=1e-12)


def test_a_strided_block_that_keeps_its_width_has_no_skip():
    """Nor has one that keeps the size and changes the width."""
    assert make().skip and not make(stride=2).skip and not make(out_channels=9).skip
    m, x = make(out_channels=8), randn(1, 8, 4, 4)
    m.Wo.weight.fill_(0.0)
    assert torch.equal(m(x), x)
    m = make(stride=2)
    m.Wo.weight.fill_(0.0)
    assert (m(x) == 0).all()


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_windows_of_one_pixel_leave_the_block_without_attention():
    with_, x = make(window=1), randn(2, 8, 5, 7)
    without = make(attention=False)
    without.load_state_dict({name: t for name, t in with_.state_dict().items() if not name.startswith("Wqk")})
    torch.testing.assert_close(with_(x), without(x))


def test_a_window_over_the_whole_map_and_one_beyond_it_are_the_same():
    whole, beyond, x = make(window=None), make(window=11), randn(2, 8, 5, 7)
    torch.testing.assert_close(whole(x), beyond(x))


# ---- traps -----------------------------------------------------------------------------------------------------------


def test_trap_windows_are_interleaved():
    """One query reads the pixels 2 rows and 3 columns apart, from one border to the other."""
    m, x = make(window=2), randn(1, 8, 4, 6)
    m.D.weight.fill_(0.0)
    reached = torch.autograd.functional.jacobian(lambda x: m(x)[0, :, 1, 2].sum(), x)[0].abs().sum(0) > 1e-12
    assert {tuple(p) for p in reached.nonzero().tolist()} == {(1, 2), (1, 5), (3, 2), (3, 5)}


def test_trap_padding_that_takes_part():
    """Equal pixels: whatever the weights, a pixel gets the value that all have, unless padded ones take part."""
    x = randn(1, 8, 1, 1).expand(1, 8, 4, 5)
    masked, zeros = make(window=3), make(window=3, padding="zeros")
    for m, alike in ((masked, True), (zeros, False)):
        with attn_lib.trace() as t:
            m(x)
        assert torch.allclose(t["X_a"], m.expand(t["x_hat"])) == alike
    padded = F.pad(masked.normalise(x), (0, 1, 0, 2))
    k = zeros.Wqk(padded)[:, 8:]
    torch.testing.assert_close(k[0, :, 5, 5], zeros.Wqk.bias[8:])  # a padded key is the bias
    same = randn(1, 8, 6, 6)
    torch.testing.assert_close(zeros(same), masked(same))  # a map that the window divides has no padding


def test_trap_attention_before_or_behind_the_expansion():
    """The two orders share every weight, and agree where the expansion is linear, without a bias."""
    x = randn(1, 8, 4, 6)
    behind, first = (make(attend_first=order, qkv_bias=False, heads=1) for order in (False, True))
    assert (behind(x) - first(x)).abs().max() > 1e-2
    behind.expand, first.expand = behind.Wv.forward, first.Wv.forward
    torch.testing.assert_close(behind(x), first(x))


def test_trap_without_attention_it_is_not_the_block_of_mobilenet_v2():
    m, x = make(attention=False, norm="batch", activation="silu"), randn(2, 8, 5, 7)

    def mobilenet_v2(x):
        """Convolution and norm three times, ReLU6 behind the first two, one skip."""
        def norm(t, like):
            return F.batch_norm(t, torch.zeros(t.shape[1]).to(D), torch.ones(t.shape[1]).to(D), like, None)
        hidden = F.relu6(norm(m.Wv(x), m.norm_d.weight))
        hidden = F.relu6(m.norm_d(m.D(hidden)))
        return x + norm(m.Wo(hidden), m.norm.weight)

    assert (m(x) - mobilenet_v2(x)).abs().max() > 0.1
    x_hat = m.norm(x)  # what it is, with torch's own layers
    X_a = F.silu(m.Wv(x_hat))
    torch.testing.assert_close(m(x), x + m.Wo(X_a + F.silu(m.norm_d(m.D(X_a)))))
    assert [n.eps for n in (m.norm, m.norm_d)] == [1e-6] * 2 and m.Wo.bias is None and m.D.bias is None


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attend_first", [False, True])
def test_memory_grows_with_the_pixels(attend_first):
    """Windows of 4 × 4 pixels, however large the map: not N² of them."""
    m = InvertedResidualMobileBlock(8, heads=2, window=4, attend_first=attend_first)
    kept = {16 * n: measure.saved_bytes(m, torch.randn(1, 8, n, 16)) for n in (16, 64)}
    assert measure.fit_exponent(list(kept), list(kept.values())) == pytest.approx(1, abs=0.03), kept


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=30, heads=4), "channels=30 must be divisible by heads=4; 28 and 32 are"),
    (dict(channels=6, heads=2, expansion=1.5), r"expansion \* channels\)=9 must be divisible by heads=2; 8 and 10"),
    (dict(channels=8, expansion=0.0), "expansion=0.0 must be a positive number"),
    (dict(channels=8, expansion=0.1), r"int\(expansion \* channels\)=0 must be an integer of at least 1"),
    (dict(channels=8, norm="group"), "norm='group' must be one of 'layer', 'batch', None"),
    (dict(channels=8, activation="relu6"), "activation='relu6' must be one of 'gelu', 'silu', 'relu'"),
    (dict(channels=8, kernel_size=4), "kernel_size=4 must be odd"),
    (dict(channels=8, window=0), "window=0 must be an integer of at least 1"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        InvertedResidualMobileBlock(**options)
