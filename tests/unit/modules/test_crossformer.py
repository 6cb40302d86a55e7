"""Long- and short-distance attention, its position bias and its embedding against equations and known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import CrossScaleEmbedding, DynamicPositionBias, LongShortDistanceAttention
from tests.unit.draw import D, randn, randomised

SIZES = [(4, 6), (5, 7), (2, 3), (1, 1)]
OPTIONS = [
    dict(),
    dict(distance="long"),
    dict(distance="long", group=None, interval=2),
    dict(distance="long", group=2, interval=3, qkv_bias=False),
    dict(distance="long", group=4, shrink=True),
    dict(position_bias=False),
]


def make(channels=8, seed=0, **options) -> LongShortDistanceAttention:
    options = dict(heads=2, group=3, reduction=2) | options
    return randomised(LongShortDistanceAttention(channels, **options), scale=0.5, seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def position_bias(m: DynamicPositionBias, delta: tuple[int, int]) -> list[float]:
    """The MLP of one offset, query − key, in plain numbers."""

    def linear(W, v):
        return [b + sum(w * a for w, a in zip(row, v, strict=True))
                for row, b in zip(W.weight.tolist(), W.bias.tolist(), strict=True)]

    v = linear(m.W1, delta)
    for norm, W in ((m.norm1, m.W2), (m.norm2, m.W3), (m.norm3, m.W4)):
        mean = sum(v) / len(v)
        std = math.sqrt(sum((a - mean) ** 2 for a in v) / len(v) + 1e-5)
        v = [max(0.0, (a - mean) / std * g + b)
             for a, g, b in zip(v, norm.weight.tolist(), norm.bias.tolist(), strict=True)]
        v = linear(W, v)
    return v


def group_of(m, place, H, W):
    """To which group a pixel belongs, and which member of it it is: a pair for rows and one for columns."""
    G, I, long = m.group, m.interval, m.distance == "long"  # noqa: E741
    if m.shrink and min(H, W) <= G:
        G, I, long = min(H, W), None, False  # noqa: E741
    found = []
    for p, size in zip(place, (H, W), strict=True):
        if not long:
            found.append((p // G, p % G))
        elif I is None:
            apart = math.ceil(size / G)
            found.append((p % apart, p // apart))
        elif G is None:
            found.append((p % I, p // I))
        else:
            found.append(((p // (G * I), p % I), p % (G * I) // I))
    return tuple(f[0] for f in found), tuple(f[1] for f in found)


def from_the_paper(x: Tensor, m: LongShortDistanceAttention) -> Tensor:
    """One image (C, H, W), with loops over heads, queries and keys."""
    C, H, W = x.shape
    d = C // m.heads
    places = [(i, j) for i in range(H) for j in range(W)]
    b = torch.zeros(3 * C, dtype=D) if m.Wqkv.bias is None else m.Wqkv.bias
    qkv = {p: m.Wqkv.weight @ x[:, p[0], p[1]] + b for p in places}
    y = torch.zeros_like(x)
    for p in places:
        group, member = group_of(m, p, H, W)
        others = [(q, *group_of(m, q, H, W)) for q in places]
        others = [(q, other) for q, theirs, other in others if theirs == group]
        biases = [position_bias(m.DPB, (member[0] - o[0], member[1] - o[1])) if m.DPB else [0.0] * m.heads
                  for _, o in others]
        out = []
        for h in range(m.heads):
            own = slice(h * d, (h + 1) * d)
            weights = [math.exp((qkv[p][own] @ qkv[q][C:2 * C][own]).item() / math.sqrt(d) + bias[h])
                       for (q, _), bias in zip(others, biases, strict=True)]
            out.append(sum(w / sum(weights) * qkv[q][2 * C:][own] for w, (q, _) in zip(weights, others, strict=True)))
        y[:, p[0], p[1]] = m.Wo.weight @ torch.cat(out) + m.Wo.bias
    return y


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_paper(size, options):
    m, x = make(**options), randn(1, 8, *size)
    torch.testing.assert_close(m(x)[0], from_the_paper(x[0], m), rtol=0, atol=1e-12)


def test_long_groups_longer_than_the_map():
    """Groups of padding alone, whose softmax has nothing to attend to, leave no NaN, not in the gradient either."""
    m, x = make(distance="long", group=2, interval=4), randn(1, 8, 2, 3).requires_grad_()
    torch.testing.assert_close(m(x)[0], from_the_paper(x[0].detach(), m))
    m(x).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


class Wrong(LongShortDistanceAttention):
    """The mistakes that circulate, one at a time; groups of 2 × 2, on a map of 4 × 6 or 4 × 5 pixels."""

    mistake = None

    def forward(self, x):
        is_ = self.mistake.__eq__ if self.mistake else lambda _: False
        (B, C, H, W), G, h = x.shape, self.group, self.heads
        t = F.pad(x, (0, -W % G, 0, -H % G))
        Hp, Wp = t.shape[2:]
        long = (self.distance == "long") != is_("near for far")

        def cut(t):
            t = t.unflatten(3, (G, -1) if long else (-1, G)).unflatten(2, (G, -1) if long else (-1, G))
            return (t.permute(0, 3, 5, 2, 4, 1) if long else t.permute(0, 2, 4, 3, 5, 1)).flatten(3, 4).flatten(1, 2)

        tokens, real = cut(t), cut(F.pad(torch.ones_like(x[:1, :1]), (0, -W % G, 0, -H % G)))[0, :, None, :, 0] > 0
        if is_("q, k and v of a head side by side"):
            q, k, v = self.Wqkv(tokens).unflatten(-1, (h, 3, -1)).unbind(-2)
        else:
            q, k, v = self.Wqkv(tokens).unflatten(-1, (3, h, -1)).unbind(-3)
        q, k, v = (t.transpose(2, 3) for t in (q, k, v))  # B R h n d
        logits = q @ k.mT * (C if is_("scaled by the whole width") else C // h) ** -0.5
        i = torch.arange(G * G)
        rows, cols = i // G, i % G
        delta = torch.stack((rows[:, None] - rows, cols[:, None] - cols), -1)
        delta = -delta if is_("key minus query") else delta
        delta = delta.flip(-1) if is_("columns before rows") else delta
        if is_("offsets in pixels"):
            delta = delta * torch.tensor([Hp // G, Wp // G])
        if is_("offsets of vit-pytorch"):
            number = ((delta + G - 1) * torch.tensor([2 * G - 1, 1])).sum(-1)
            delta = torch.stack((number // (2 * G + 1), number % (2 * G + 1)), -1) - G
        hidden, dpb = self.DPB.W1(delta.to(D)), self.DPB
        for norm, layer in ((dpb.norm1, dpb.W2), (dpb.norm2, dpb.W3), (dpb.norm3, dpb.W4)):
            new = layer(F.relu(hidden if is_("position bias not normalised") else norm(hidden)))
            hidden = new + hidden if is_("residual in the position bias") and layer is not dpb.W4 else new
        bias = hidden.movedim(-1, 0)
        bias = bias[:1] if is_("one bias for all heads") else bias
        logits = logits if is_("no position bias") else logits + bias
        logits = logits if is_("padding takes part") else logits.masked_fill(~real[:, None], -torch.inf)
        y = self.Wo((logits.softmax(-1) @ v).transpose(2, 3).flatten(3)).unflatten(2, (G, G))
        y = y.unflatten(1, (Hp // G, Wp // G))  # B P Q i j C
        y = y.permute(0, 5, 3, 1, 4, 2) if long else y.permute(0, 5, 1, 3, 2, 4)
        return y.reshape(B, C, Hp, Wp)[..., :H, :W]


@pytest.mark.parametrize("mistake", [
    "near for far", "q, k and v of a head side by side", "scaled by the whole width", "key minus query",
    "columns before rows", "offsets in pixels", "offsets of vit-pytorch", "position bias not normalised",
    "residual in the position bias", "one bias for all heads", "no position bias", "padding takes part",
])
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = make(group=2, distance="long"), randn(1, 8, 4, 5)
    expected = from_the_paper(x[0], m)
    wrong = Wrong(8, heads=2, group=2, reduction=2, distance="long").to(D).requires_grad_(False)
    wrong.load_state_dict(m.state_dict())
    torch.testing.assert_close(wrong(x)[0], expected, rtol=0, atol=1e-12)  # as yet there is no mistake
    wrong.mistake = mistake
    assert (wrong(x)[0] - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    m, x = make(), randn(2, 8, 5, 7)
    with attn_lib.trace() as t:
        y = m(x)
    assert t.names() == ["x_g", "q", "k", "v", "B", "A", "y"]
    assert t["A"].shape == (2 * 6, 2, 9, 9) and t["B"].shape == (2, 9, 9) and t["x_g"].shape == (2, 6, 9, 8)
    torch.testing.assert_close(y, m(x), rtol=0, atol=1e-12)


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_an_interval_of_1_is_short_distance():
    x = randn(2, 8, 5, 7)
    torch.testing.assert_close(make(distance="long", interval=1)(x), make()(x), rtol=0, atol=1e-13)


def test_the_three_long_forms_agree_on_a_map_of_group_times_interval():
    x = randn(2, 8, 6, 6)
    forms = [dict(group=3), dict(group=None, interval=2), dict(group=3, interval=2)]
    first, *others = (make(distance="long", **form)(x) for form in forms)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-13)


# ---- traps -----------------------------------------------------------------------------------------------------------


def seen_from(m, H, W, place):
    x = randn(1, 8, H, W)
    jacobian = torch.autograd.functional.jacobian(lambda x: m(x)[0, :, place[0], place[1]].sum(), x)
    return {tuple(p) for p in (jacobian[0].abs().sum(0) > 1e-12).nonzero().tolist()}


def test_trap_a_group_spans_the_map_or_a_block_of_it():
    spans, block = make(distance="long", group=2), make(distance="long", group=2, interval=2)
    assert seen_from(spans, 8, 8, (1, 2)) == {(1, 2), (1, 6), (5, 2), (5, 6)}
    assert seen_from(block, 8, 8, (1, 2)) == {(1, 0), (1, 2), (3, 0), (3, 2)}
    assert seen_from(make(distance="long", group=None, interval=4), 8, 8, (1, 2)) == seen_from(spans, 8, 8, (1, 2))


def test_trap_a_map_smaller_than_a_group():
    kept, shrunk = (make(group=4, distance="long", shrink=shrink) for shrink in (False, True))
    assert seen_from(kept, 2, 8, (0, 1)) == {(i, j) for i in (0, 1) for j in (1, 3, 5, 7)}
    assert seen_from(shrunk, 2, 8, (0, 1)) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    square = randn(1, 8, 4, 4)
    torch.testing.assert_close(kept(square), shrunk(square))  # where the map is one group, nothing is to choose


def test_trap_a_bias_of_one_or_two_units():
    """A layer normalisation of one number is a constant, of two their order: 169 offsets get one bias, or two."""

    def biases(C, reduction):
        """Most different values that a bias has, of many draws of the weights."""
        most = 0
        for seed in range(40):
            m = randomised(DynamicPositionBias(C, heads=1, reduction=reduction), seed=seed).requires_grad_(False)
            for norm in (m.norm1, m.norm2, m.norm3):
                norm.eps = 1e-30
            most = max(most, len((m.table(7, 7).flatten() * 1e6).round().unique()))
        return most

    assert [biases(16, 16), biases(32, 16)] == [1, 2]
    assert biases(64, 16) > 100 and biases(16, 4) > 100


def test_trap_the_offsets_of_vit_pytorch():
    """A grid of (2G+1)² offsets read with rows of 2G−1: what offset do pairs get the bias of?"""
    G = 3
    there = [divmod(number, 2 * G + 1) for number in range((2 * G + 1) ** 2)]
    there = [(row - G, col - G) for row, col in there]
    wrong = 0
    for dy in range(1 - G, G):
        for dx in range(1 - G, G):
            wrong += there[(dy + G - 1) * (2 * G - 1) + dx + G - 1] != (dy, dx)
    assert wrong == (2 * G - 1) ** 2, "not one is right"
    m = randomised(DynamicPositionBias(8, heads=2)).requires_grad_(False)
    B = m(G, G)
    for i in range(9):
        for j in range(9):
            delta = (i // G - j // G, i % G - j % G)
            torch.testing.assert_close(B[:, i, j], torch.tensor(position_bias(m, delta), dtype=D))


def test_trap_an_image_that_is_not_square():
    cel = CrossScaleEmbedding(3, 16).float()
    assert cel(torch.randn(1, 3, 32, 64)).shape == (1, 16, 8, 16)
    assert 32 // 4 * (32 // 4) != 8 * 16, "what the release reserves for it"


# ---- dynamic position bias -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("H", "W"), [(1, 1), (2, 3), (5, 1)])
def test_position_bias_of_any_size(H, W):
    m = randomised(DynamicPositionBias(8, heads=3, reduction=2), scale=0.5).requires_grad_(False)
    B = m(H, W)
    assert B.shape == (3, H * W, H * W)
    for i in range(H * W):
        for j in range(H * W):
            expected = position_bias(m, (i // W - j // W, i % W - j % W))
            torch.testing.assert_close(B[:, i, j], torch.tensor(expected, dtype=D))


def test_position_bias_of_no_size_is_refused():
    with pytest.raises(ValueError, match="W=0 must be an integer of at least 1"):
        DynamicPositionBias(8, heads=2)(3, 0)


def test_position_bias_is_the_same_for_an_offset_in_every_window():
    """So weights learned in small windows serve in large ones: the small table is the middle of the large one."""
    m = randomised(DynamicPositionBias(16, heads=2)).requires_grad_(False)
    torch.testing.assert_close(m.table(5, 7)[:, 2:-2, 2:-2], m.table(3, 5))


# ---- cross-scale embedding -------------------------------------------------------------------------------------------


def embedded(x: Tensor, m: CrossScaleEmbedding, kernels, s) -> Tensor:
    """One image (C, H, W): each kernel centred on the patch of the smallest, one output at a time."""
    C, H, W = x.shape
    out = []
    for conv, k in zip(m.convs, kernels, strict=True):
        z = torch.zeros(len(conv.weight), H // s, W // s, dtype=D)
        for i in range(H // s):
            for j in range(W // s):
                top, left = i * s - (k - s) // 2, j * s - (k - s) // 2
                patch = torch.zeros(C, k, k, dtype=D)
                for di in range(k):
                    for dj in range(k):
                        if 0 <= top + di < H and 0 <= left + dj < W:
                            patch[:, di, dj] = x[:, top + di, left + dj]
                z[:, i, j] = (conv.weight * patch).sum((1, 2, 3)) + conv.bias
        out.append(z)
    return torch.cat(out)


@pytest.mark.parametrize(("kernels", "s"), [((2, 4, 8), 2), ((3, 5), 3), ((4,), 4), ((4, 6), 2)])
@pytest.mark.parametrize("size", [(8, 12), (7, 5), (4, 4)], ids=str)
def test_embedding_equals_the_paper(kernels, s, size):
    m = randomised(CrossScaleEmbedding(3, 8, kernel_sizes=kernels, stride=s)).requires_grad_(False)
    x = randn(1, 3, *size)
    torch.testing.assert_close(m(x)[0], embedded(x[0], m, kernels, s))


def test_widths_of_the_embedding_halve():
    m = CrossScaleEmbedding(3, 64)
    assert [conv.out_channels for conv in m.convs] == [32, 16, 8, 8]
    assert [conv.kernel_size[0] for conv in m.convs] == [4, 8, 16, 32]
    assert [conv.padding[0] for conv in m.convs] == [0, 2, 6, 14] and {conv.stride for conv in m.convs} == {(4, 4)}
    merging = CrossScaleEmbedding(64, 128, kernel_sizes=(2, 4))
    assert [conv.out_channels for conv in merging.convs] == [64, 64]
    with attn_lib.trace() as t:
        y = m(torch.randn(1, 3, 9, 14))
    assert t["z"] is y and t.dims("z") == "B O Ho Wo" and y.shape == (1, 64, 2, 3)


def test_an_embedding_of_one_kernel_is_a_convolution_of_patches():
    m, x = CrossScaleEmbedding(3, 8, kernel_sizes=(4,)), torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(m(x), F.conv2d(x, m.convs[0].weight, m.convs[0].bias, stride=4))


@pytest.mark.parametrize("make_further", [
    lambda: (DynamicPositionBias(16, heads=2), (3, 5)),
    lambda: (CrossScaleEmbedding(3, 8, kernel_sizes=(2, 4)), (torch.randn(2, 3, 7, 9),)),
], ids=["DynamicPositionBias", "CrossScaleEmbedding"])
def test_further_classes_compile_learn_and_take_half_precision(make_further):
    m, inputs = make_further()
    expected = m(*inputs)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(m, fullgraph=True, backend="aot_eager")(*inputs), expected)
    expected.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())
    half = m.to(torch.bfloat16)(*(x.bfloat16() if isinstance(x, Tensor) else x for x in inputs))
    assert half.dtype == torch.bfloat16 and (half.float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert isinstance(m, nn.Module)


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(), dict(distance="long"), dict(distance="long", interval=2)], ids=str)
def test_memory_grows_with_the_pixels(options):
    m = LongShortDistanceAttention(8, heads=2, group=4, **options)
    kept = {16 * n: measure.saved_bytes(m, torch.randn(1, 8, n, 16)) for n in (16, 64, 256)}
    assert measure.fit_exponent(list(kept)[1:], list(kept.values())[1:]) == pytest.approx(1, abs=0.03), kept


def test_groups_of_a_fixed_interval_grow_with_the_map():
    m = LongShortDistanceAttention(8, heads=2, group=None, interval=4, distance="long", position_bias=False)
    with attn_lib.trace() as t:
        m(torch.randn(1, 8, 32, 16))
    assert t["A"].shape == (16, 2, 32, 32), "N²/I² pairs, not N·G²"


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "options", "message"), [
    (LongShortDistanceAttention, dict(channels=30, heads=4), "channels=30 must be divisible by heads=4; 28"),
    (LongShortDistanceAttention, dict(channels=8, group=None), "group=None must come with an interval"),
    (LongShortDistanceAttention, dict(channels=8, interval=2), "interval=2 must be left out with distance='short'"),
    (LongShortDistanceAttention, dict(channels=8, distance="far"), "distance='far' must be one of 'short', 'long'"),
    (LongShortDistanceAttention, dict(channels=8, reduction=16), "reduction=16 must be at most channels=8"),
    (LongShortDistanceAttention, dict(channels=8, group=None, interval=2, distance="long", shrink=True), "shrink=True"),
    (CrossScaleEmbedding, dict(channels=3, out_channels=20), r"out_channels=20 must be divisible by 2\*\*3=8"),
    (CrossScaleEmbedding, dict(channels=3, out_channels=8, kernel_sizes=(4, 7)), "kernel_sizes=7 must exceed"),
    (CrossScaleEmbedding, dict(channels=3, out_channels=8, kernel_sizes=()), r"kernel_sizes=\(\) must hold"),
])
def test_bad_option_is_named(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)


def test_an_image_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match="x has W=3; it must be at least stride=4"):
        CrossScaleEmbedding(3, 8)(torch.randn(1, 3, 8, 3))
    with pytest.raises(ValueError, match="axis C must be 3, not 4"):
        CrossScaleEmbedding(3, 8)(torch.randn(1, 4, 8, 8))
