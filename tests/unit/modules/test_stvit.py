"""Super token attention against its equations, its limits, its memory, and known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import SuperTokenAttention
from tests.unit.draw import D, randn, randomised

SIZES = [(4, 6), (5, 7), (2, 3), (1, 1)]
OPTIONS = [dict(), dict(padding="zeros"), dict(iterations=3, qkv_bias=True), dict(padding="zeros", iterations=2),
           dict(association_gradient=False), dict(token_size=(1, 1))]


def make(channels=6, seed=0, **options) -> SuperTokenAttention:
    options = dict(heads=2, token_size=(2, 3)) | options
    return randomised(SuperTokenAttention(channels, **options), scale=0.5, seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def attention(tokens: dict, m: SuperTokenAttention) -> dict:
    """Multi-head self-attention of tokens {place: vector}, one pair at a time."""
    C = m.channels
    d, W = C // m.heads, m.Wqkv.weight[:, :, 0, 0]
    b = torch.zeros(3 * C, dtype=D) if m.Wqkv.bias is None else m.Wqkv.bias
    qkv = {p: W @ t + b for p, t in tokens.items()}
    out = {}
    for p in tokens:
        parts = []
        for h in range(m.heads):
            q, k, v = (slice(3 * h * d + n * d, 3 * h * d + (n + 1) * d) for n in range(3))
            weights = {o: math.exp((qkv[p][q] @ qkv[o][k]).item() / math.sqrt(d)) for o in tokens}
            parts.append(sum(w / sum(weights.values()) * qkv[o][v] for o, w in weights.items()))
        out[p] = m.Wo.weight[:, :, 0, 0] @ torch.cat(parts) + m.Wo.bias
    return out


def from_the_paper(x: Tensor, m: SuperTokenAttention) -> Tensor:
    """One image (C, H, W): pixels and super tokens in dictionaries by their places."""
    (C, H, W), (h, w) = x.shape, m.token_size
    pixels = {(i, j): x[:, i, j] for i in range(H) for j in range(W)}
    if (h, w) == (1, 1):
        y = attention(pixels, m)
        return torch.stack([y[p] for p in pixels], 1).view_as(x)
    P, Q = math.ceil(H / h), math.ceil(W / w)
    if m.padding == "zeros":
        pixels |= {(i, j): torch.zeros(C, dtype=D) for i in range(P * h) for j in range(Q * w) if i >= H or j >= W}
    cell = {(i, j): (i // h, j // w) for i, j in pixels}
    grid = [(r, c) for r in range(P) for c in range(Q)]
    S = {}
    for g in grid:
        own = [pixels[p] for p in pixels if cell[p] == g]
        S[g] = sum(own) / len(own)
    for _ in range(m.iterations):
        a = {}
        for p in pixels:
            r, c = cell[p]
            near = [(r + dr, c + dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1)]
            if m.padding == "masked":
                near = [g for g in near if g in S]
            e = {g: math.exp((pixels[p] @ S[g]).item() / math.sqrt(C)) if g in S else 1.0 for g in near}
            a[p] = {g: value / sum(e.values()) for g, value in e.items()}
        S = {g: sum(a[p].get(g, 0.0) * pixels[p] for p in pixels) / sum(a[p].get(g, 0.0) for p in pixels)
             for g in grid}
    S = attention(S, m)
    y = torch.zeros_like(x)
    for i in range(H):
        for j in range(W):
            y[:, i, j] = sum(weight * S[g] for g, weight in a[i, j].items() if g in S)
    return y


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_paper(size, options):
    m, x = make(**options), randn(1, 6, *size)
    torch.testing.assert_close(m(x)[0], from_the_paper(x[0], m), rtol=0, atol=1e-10)


class Wrong(SuperTokenAttention):
    """The mistakes that circulate, one at a time."""

    mistake = None

    def forward(self, x):
        is_ = self.mistake.__eq__ if self.mistake else lambda _: False
        (B, C, H, W), (h, w) = x.shape, self.token_size
        t, ones = (F.pad(t, (0, -W % w, 0, -H % h)) for t in (x, torch.ones_like(x[:, :1])))
        P, Q = t.shape[2] // h, t.shape[3] // w

        def cut(t):
            return t.unflatten(3, (Q, w)).unflatten(2, (P, h)).permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)

        X, real = cut(t), cut(ones)
        real = torch.ones_like(real) if is_("padded pixels in the means") else real
        S = (X * real).sum(2) / real.sum(2)  # B R C
        grid = torch.arange(P * Q)
        near = torch.stack([torch.stack((grid // Q + dr, grid % Q + dc))
                            for dr in (-1, 0, 1) for dc in (-1, 0, 1)])  # K 2 R
        there = ((near >= 0) & (near < torch.tensor([P, Q])[:, None])).all(1)
        if is_("own cell only"):
            there = torch.zeros_like(there).index_fill(0, torch.tensor(4), 1).bool()
        number = (near[:, 0] * Q + near[:, 1]).where(there, 0)
        scale = (C // self.heads) ** -0.5 if is_("scaled by the width of a head") else C**-0.5
        first = S
        for _ in range(self.iterations):
            K = S[:, number].permute(0, 2, 3, 1) * there.T[:, None]  # B R C K
            logits = X @ K * scale
            if is_("logits of distance"):
                logits = -(X[..., None] - K[:, :, None]).square().sum(3) * scale
            a = logits if is_("zeros beyond the grid") else logits.masked_fill(~there.T[:, None], -torch.inf)
            a = a.softmax(2 if is_("softmax over the pixels") else 3).nan_to_num()
            a = F.one_hot(a.argmax(-1), 9).to(a) if is_("hard assignment") else a
            S, total = torch.zeros_like(S), torch.zeros_like(S[..., :1])
            for k in range(9):
                for r in range(P * Q):
                    if there[k, r]:
                        S[:, number[k, r]] += (a[:, r, :, k, None] * real[:, r] * X[:, r]).sum(1)
                        total[:, number[k, r]] += (a[:, r, :, k, None] * real[:, r]).sum(1)
            S = S if is_("sums for means") else S / total
        S = (first if is_("means of the cells kept") else S).mT.unflatten(2, (P, Q))
        if is_("q, k and v not side by side"):
            q, k, v = self.Wqkv(S).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)
            A = (q.mT @ k * (C // self.heads) ** -0.5).softmax(-1)
            S = self.Wo((A @ v.mT).mT.reshape(B, C, P, Q))
        else:
            S = self.attention(S)
        a = a * 0 + there.T[:, None] / there.sum(0)[:, None, None] if is_("handed back evenly") else a
        y = a @ (S.flatten(2).mT[:, number].permute(0, 2, 1, 3) * there.T[..., None])
        return y.unflatten(2, (h, w)).unflatten(1, (P, Q)).permute(0, 5, 1, 3, 2, 4).reshape(t.shape)[..., :H, :W]


@pytest.mark.parametrize("mistake", [
    "padded pixels in the means", "own cell only", "scaled by the width of a head", "logits of distance",
    "zeros beyond the grid", "softmax over the pixels", "hard assignment", "sums for means", "means of the cells kept",
    "q, k and v not side by side", "handed back evenly",
])
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = make(iterations=2), randn(1, 6, 3, 7)
    expected = from_the_paper(x[0], m)
    wrong = Wrong(6, heads=2, token_size=(2, 3), iterations=2).to(D).requires_grad_(False)
    wrong.load_state_dict(m.state_dict())
    torch.testing.assert_close(wrong(x)[0], expected, rtol=0, atol=1e-10)  # as yet there is no mistake
    wrong.mistake = mistake
    assert (wrong(x)[0] - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    m, x = make(), randn(2, 6, 5, 7)
    with attn_lib.trace() as t:
        y = m(x)
    assert t.names() == ["X", "a", "S", "A", "S'", "y"]
    assert t["X"].shape == (2, 9, 6, 6) and t["a"].shape == (2, 9, 6, 9) and t["S"].shape == (2, 6, 3, 3)
    torch.testing.assert_close(t["a"].sum(-1), torch.ones(2, 9, 6, dtype=D))
    torch.testing.assert_close(y, m(x), rtol=0, atol=1e-12)


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_more_iterations_follow_the_content():
    """Two flat colours whose border is none of a cell: super tokens become one colour or the other."""
    x = torch.full((1, 6, 8, 12), -1.0, dtype=D)
    x[..., 5:] = 1.0
    off = []
    for iterations in (1, 2, 5):
        with attn_lib.trace() as t:
            make(iterations=iterations, token_size=(4, 4))(x)
        off.append((t["S"].abs() - 1).abs().max().item())
    assert off[0] > 1.5 * off[2] and off[0] > off[1] > off[2]


def test_the_mirrored_map_is_cut_alike_only_where_cells_fit():
    m, fits, does_not = make(), randn(1, 6, 4, 6), randn(1, 6, 4, 7)
    torch.testing.assert_close(m(fits.flip(3)), m(fits).flip(3))
    assert (m(does_not.flip(3)) - m(does_not).flip(3)).abs().max() > 1e-2


def test_constant_colours_stay_what_they_are():
    m, x = make(), torch.ones(1, 6, 5, 7, dtype=D)
    with attn_lib.trace() as t:
        y = m(x)
    torch.testing.assert_close(t["S"], torch.ones_like(t["S"]))
    torch.testing.assert_close(y, y[..., :1, :1].expand_as(y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_super_token_without_pixels_is_zero_and_not_nan(dtype):
    """Pixels so large that the softmax is a hard choice; ε is what such a super token is divided by."""
    m = make(token_size=(2, 2)).to(dtype).requires_grad_(True)
    x = (1e4 * randn(1, 6, 8, 8)).to(dtype).requires_grad_()
    with attn_lib.trace() as t:
        y = m(x)
    assert (t["S"] == 0).all(1).any() and y.isfinite().all()
    y.sum().backward()
    assert x.grad.isfinite().all()


# ---- traps -----------------------------------------------------------------------------------------------------------


def passing_through(m: SuperTokenAttention) -> SuperTokenAttention:
    """Attention that returns the mean of the super tokens: of equal ones, what they are."""
    C, d = m.channels, m.channels // m.heads
    m.Wqkv.weight.fill_(0.0)
    for h in range(m.heads):
        for n in range(d):
            m.Wqkv.weight[3 * h * d + 2 * d + n, h * d + n] = 1.0
    m.Wo.weight.copy_(torch.eye(C)[:, :, None, None])
    m.Wo.bias.fill_(0.0)
    return m


def test_trap_super_tokens_that_do_not_exist():
    """A constant 1 with C = 9, s = √C: at a corner 4 super tokens with the weight eˢ and 5 zeros with 1."""
    x = torch.ones(1, 9, 6, 9, dtype=D)
    masked, zeros = (passing_through(make(9, heads=3, padding=padding)) for padding in ("masked", "zeros"))
    torch.testing.assert_close(masked(x), x)
    y, e = zeros(x), math.exp(3)
    for corner, count in ((y[0, 0, 0, 0], 4), (y[0, 0, 0, 4], 6), (y[0, 0, 3, 4], 9)):
        torch.testing.assert_close(corner.item(), count * e / (count * e + 9 - count))
    alone = passing_through(make(9, heads=3, padding="zeros", token_size=(6, 9)))
    torch.testing.assert_close(alone(x), x * e / (e + 8))


def test_trap_padded_pixels_in_the_means():
    x = torch.ones(1, 6, 3, 4, dtype=D)  # cells of 2 × 3: padded to 4 × 6
    for padding, smallest in (("masked", 1.0), ("zeros", None)):
        with attn_lib.trace() as t:
            make(padding=padding)(x)
        if smallest:
            torch.testing.assert_close(t["S"].min().item(), smallest)
        else:
            assert t["S"].min() < 0.9


def test_trap_the_association_without_a_gradient():
    """The same output; the gradient of the release is not the slope of what it computes."""
    x, direction = randn(1, 6, 4, 6), randn(1, 6, 4, 6, seed=2)
    slopes = {}
    for gradient in (True, False):
        m, leaf = make(association_gradient=gradient), x.clone().requires_grad_()
        m(leaf).square().sum().backward()
        slopes[gradient] = (leaf.grad * direction).sum().item()
        up, down = (m(x + step * direction).square().sum() for step in (1e-5, -1e-5))
        numeric = ((up - down) / 2e-5).item()
        assert (slopes[gradient] == pytest.approx(numeric, rel=1e-6)) == gradient
    torch.testing.assert_close(make()(x), make(association_gradient=False)(x))
    assert abs(slopes[False] - slopes[True]) > 0.1 * abs(slopes[True])


def test_a_single_super_token_gives_every_pixel_the_mean():
    m, x = make(token_size=(5, 7), heads=1), randn(2, 6, 5, 7)
    v = m.Wqkv(x.mean((2, 3), keepdim=True))[:, 12:]
    torch.testing.assert_close(m(x), m.Wo(v).expand_as(x))
    attended = make(token_size=(1, 1), heads=1)
    attended.load_state_dict(m.state_dict())
    assert (attended(x) - m(x)).abs().max() > 0.1


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_memory_grows_with_the_pixels():
    """9 numbers a pixel, and no matrix of N² or (N/hw)² entries."""
    m = SuperTokenAttention(8, heads=2, token_size=(4, 4))
    kept = {16 * n: measure.saved_bytes(m, torch.randn(1, 8, n, 16)) for n in (16, 64, 256)}
    assert measure.fit_exponent(list(kept), list(kept.values())) == pytest.approx(1, abs=0.03), kept


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=30, heads=4), "channels=30 must be divisible by heads=4; 28 and 32 are"),
    (dict(channels=8, token_size=8), r"token_size=8 must hold rows and columns, such as \(8, 8\)"),
    (dict(channels=8, token_size=(8, 0)), "token_size=0 must be an integer of at least 1"),
    (dict(channels=8, iterations=0), "iterations=0 must be an integer of at least 1"),
    (dict(channels=8, padding="zero"), "padding='zero' must be one of 'masked', 'zeros'; did you mean 'zeros'"),
    (dict(channels=8, epsilon=0.0), "epsilon=0.0 must be a positive number"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        SuperTokenAttention(**options)
