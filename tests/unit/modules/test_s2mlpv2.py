"""S²-MLPv2 against its paper, its limits, and the errors in circulation. No package that is kept well holds it."""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.mlp import S2Attention, SplitAttentionMLP
from attn_lib.mlp.s2mlpv2 import shift
from tests.unit.draw import D, randn, randomised

CASES = [(8, 4, 5), (4, 1, 1), (4, 1, 6), (8, 2, 1), (12, 3, 2)]  # C, H, W


def make(C=8, *, scale=0.3):
    return randomised(S2Attention(C), scale=scale).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def rows(layer):
    weights = layer.weight.flatten(1).tolist()
    return weights, [0.0] * len(weights) if layer.bias is None else layer.bias.tolist()


def affine(layer, v):
    weights, biases = rows(layer)
    return [b + sum(w * x for w, x in zip(row, v, strict=True)) for row, b in zip(weights, biases, strict=True)]


def source(part, quarter, i, j, H, W):
    """Where a quarter of the channels of a part reads at (i, j): one position before it on the way it was moved."""
    on_rows = (quarter < 2) == (part == 0)
    back = 1 if quarter % 2 else -1  # the first of a pair moves on, and reads behind
    i, j = (i + back, j) if on_rows else (i, j + back)
    return min(max(i, 0), H - 1), min(max(j, 0), W - 1)


def split_attention(X, attention):
    """Of M maps of C × H × W as lists: the weighted sum, one channel and one position at a time."""
    M, C, H, W = len(X), len(X[0]), len(X[0][0]), len(X[0][0][0])
    a = [sum(X[m][c][i][j] for m in range(M) for i in range(H) for j in range(W)) for c in range(C)]
    hidden = [v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in affine(attention.W1, a)]
    logits, y = affine(attention.W2, hidden), []
    for c in range(C):
        own = [logits[m * C + c] for m in range(M)]
        e = [math.exp(v - max(own)) for v in own]
        y.append([[sum(e[m] / sum(e) * X[m][c][i][j] for m in range(M)) for j in range(W)] for i in range(H)])
    return y


def from_the_paper(x, s2):
    C, out = s2.channels, []
    for image in x.tolist():
        H, W = len(image[0]), len(image[0][0])
        wide = [[affine(s2.W1, [image[c][i][j] for c in range(C)]) for j in range(W)] for i in range(H)]
        X = [[[[0.0] * W for _ in range(H)] for _ in range(C)] for _ in range(3)]
        for m in range(3):
            for c in range(C):
                for i in range(H):
                    for j in range(W):
                        row, col = (i, j) if m == 2 else source(m, c // (C // 4), i, j, H, W)
                        X[m][c][i][j] = wide[row][col][m * C + c]
        mixed = split_attention(X, s2.attention)
        y = [[affine(s2.W2, [mixed[c][i][j] for c in range(C)]) for j in range(W)] for i in range(H)]
        out.append(torch.tensor(y, dtype=D).movedim(-1, 0))
    return torch.stack(out)


@pytest.mark.parametrize(("C", "H", "W"), CASES)
def test_equals_the_paper(C, H, W):
    s2, x = make(C), randn(2, C, H, W)
    torch.testing.assert_close(s2(x), from_the_paper(x, s2), rtol=0, atol=1e-12)


def moved_in_place(x, axis, step):
    """What an assignment of a map to itself does, one row after the other: each reads what was just written."""
    x, n = x.clone(), x.shape[axis]
    for i in range(1, n) if step > 0 else range(n - 1):
        x.select(axis, i).copy_(x.select(axis, i - step).clone())
    return x


def rolled(x, axis, step):
    return x.roll(step, axis)


def with_zeros(x, axis, step):
    moved = shift(x, axis, step)
    moved.select(axis, 0 if step > 0 else -1).zero_()
    return moved


class Wrong(S2Attention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        e = self.mistake
        move = {"shifted in place": moved_in_place, "wrapped around": rolled, "zeros at the edge": with_zeros,
                "not shifted": lambda x, axis, step: x,
                "the other way": lambda x, axis, step: shift(x, axis, -step)}.get(e, shift)
        rows_first, cols_first = ((2, 1), (2, -1), (3, 1), (3, -1)), ((3, 1), (3, -1), (2, 1), (2, -1))
        ways = [rows_first, cols_first]
        if e == "width first":
            ways = [cols_first, rows_first]
        if e == "the same shift twice":
            ways = [rows_first, rows_first]
        X_1, X_2, X_3 = self.W1(x).chunk(3, 1)
        X_1, X_2 = (torch.cat([move(q, *way) for q, way in zip(X.chunk(4, 1), four, strict=True)], 1)
                    for X, four in zip((X_1, X_2), ways, strict=True))
        if e == "third part shifted too":
            X_3 = torch.cat([move(q, *way) for q, way in zip(X_3.chunk(4, 1), rows_first, strict=True)], 1)
        X = torch.stack([X_1, X_2, X_3], 1)
        sums = {"mean over the positions": X.sum(1).mean((2, 3)), "mean over the parts": X.mean(1).sum((2, 3)),
                "sum of the input": x.sum((2, 3))}
        a = sums.get(e, X.sum((1, 3, 4)))
        hidden = self.attention.W1(a)
        logits = self.attention.W2(F.relu(hidden) if e == "ReLU for GELU" else F.gelu(hidden))
        alpha = logits.unflatten(1, (-1, 3)).mT if e == "C × 3 for 3 × C" else logits.unflatten(1, (3, -1))
        alpha = alpha.softmax(2 if e == "softmax over the channels" else 1)
        alpha = torch.full_like(alpha, 1 / 3) if e == "equal weights" else alpha
        y = (alpha[..., None, None] * X).sum(1)
        return y if e == "no second layer" else x + self.W2(y) if e == "residual added" else self.W2(y)


MISTAKES = ["shifted in place", "wrapped around", "zeros at the edge", "not shifted", "the other way", "width first",
            "the same shift twice", "third part shifted too", "mean over the positions", "mean over the parts",
            "sum of the input", "ReLU for GELU", "C × 3 for 3 × C", "softmax over the channels", "equal weights",
            "no second layer", "residual added"]


def twin(s2, mistake=None):
    wrong = Wrong(8).to(D).requires_grad_(False)
    wrong.load_state_dict(s2.state_dict())
    wrong.mistake = mistake
    return wrong


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    s2, x = make(scale=0.15), randn(2, 8, 4, 5)
    expected = from_the_paper(x, s2)
    torch.testing.assert_close(twin(s2)(x), expected, rtol=0, atol=1e-12)
    assert (twin(s2, mistake)(x) - expected).abs().max() > 1e-3


def test_shifting_in_place_smears_the_first_row():
    """In a quarter that moves down all rows become the first; of H rows 2 are as they should be."""
    x = randn(1, 1, 6, 5)
    smeared, right = moved_in_place(x, 2, 1), shift(x, 2, 1)
    assert torch.equal(smeared, x[:, :, :1].expand_as(x))
    assert (smeared == right).all(3).sum() == 2
    assert torch.equal(moved_in_place(x, 2, -1), shift(x, 2, -1))  # the ways back come out right


def test_the_other_reading_is_an_exchange_of_two_parts():
    s2, x = make(), randn(2, 8, 4, 5)
    other = twin(s2, "width first")
    for p in (other.W1.weight, other.W1.bias, other.attention.W2.weight):
        first, second, third = p.clone().chunk(3)
        p.copy_(torch.cat([second, first, third]))
    torch.testing.assert_close(other(x), s2(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("axis", "step", "expected"), [
    (2, 1, [[0, 1, 2], [0, 1, 2], [3, 4, 5]]), (2, -1, [[3, 4, 5], [6, 7, 8], [6, 7, 8]]),
    (3, 1, [[0, 0, 1], [3, 3, 4], [6, 6, 7]]), (3, -1, [[1, 2, 2], [4, 5, 5], [7, 8, 8]])])
def test_a_shift_repeats_the_edge(axis, step, expected):
    assert shift(torch.arange(9).view(1, 1, 3, 3), axis, step)[0, 0].tolist() == expected


def test_taps_are_the_equations():
    s2, x = make(), randn(2, 8, 4, 5)
    with attn_lib.trace() as t:
        s2(x)
    assert [(n, t.dims(n)) for n in t.names()] == [("X", "B M C H W"), ("a", "B C"), ("alpha", "B M C"),
                                                   ("X_hat", "B C H W"), ("y", "B C H W")]
    torch.testing.assert_close(t["a"], t["X"].sum((1, 3, 4)))
    torch.testing.assert_close(t["alpha"].sum(1), torch.ones(2, 8, dtype=D))
    torch.testing.assert_close(t["X_hat"], (t["alpha"][..., None, None] * t["X"]).sum(1))


# ---- limits (more of them in limits/) --------------------------------------------------------------------------------


def test_on_one_pixel_a_shift_is_the_identity():
    s2, x = make(), randn(2, 8, 1, 1)
    assert torch.equal(s2(x), twin(s2, "not shifted")(x))


def test_a_position_sees_itself_and_its_four_neighbours():
    s2, x = make(), randn(1, 8, 5, 7).requires_grad_()
    s2.attention.W2.weight.fill_(0.0)  # the weights see everything
    s2(x)[0, :, 2, 3].sum().backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    assert seen.nonzero().tolist() == [[1, 3], [2, 2], [2, 3], [2, 4], [3, 3]]


def test_logits_grow_with_the_size_of_the_map():
    s2, x = make(), randn(1, 8, 1, 1)
    with attn_lib.trace() as t:
        s2(x)
        s2(x.expand(1, 8, 4, 5))  # flat: the same everywhere, 20 times
    torch.testing.assert_close(t["a:2"], 20 * t["a"])


def test_widths_follow_the_channels():
    s2 = S2Attention(12)
    assert s2.attention.W1.weight.shape == (12, 12) and s2.attention.W2.weight.shape == (36, 12)
    assert sum(p.numel() for p in s2.parameters()) == 8 * 12 * 12 + 4 * 12  # 3 + 1 + 1 + 3 matrices, two with biases


@pytest.mark.parametrize(("channels", "message"), [
    (30, "channels=30 must be divisible by 4, the directions of a shift; 28 and 32 are"),
    (3, "channels=3 must be divisible by 4, the directions of a shift; 4 is"),
])
def test_channels_that_have_no_quarters_are_refused(channels, message):
    with pytest.raises(ValueError, match=message):
        S2Attention(channels)


# ---- split attention by itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("M", "C", "H", "W"), [(3, 4, 2, 3), (1, 3, 1, 2), (5, 2, 3, 1)])
def test_split_attention_equals_the_paper(M, C, H, W):
    attention, X = randomised(SplitAttentionMLP(C, parts=M), scale=0.3), randn(2, M, C, H, W)
    expected = torch.tensor([split_attention(image, attention) for image in X.tolist()], dtype=D)
    torch.testing.assert_close(attention(X), expected, rtol=0, atol=1e-12)


def test_split_attention_works_in_half_precision_compiled_and_backward():
    attention = SplitAttentionMLP(6, parts=2)
    X = (300 * torch.randn(1, 2, 6, 40, 40)).abs().half().requires_grad_()
    y = attention.half()(X)
    assert y.dtype == torch.float16 and y.isfinite().all()  # the sum is 800 000, more than float16 holds
    (y.float().square().mean() / y.max() ** 2).backward()  # scaled, as in mixed-precision training
    assert X.grad.isfinite().all() and all(p.grad.isfinite().all() for p in attention.parameters())
    compiled = torch.compile(attention.float(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X.float()), attention(X.float()))
    with pytest.raises(ValueError, match="axis M must be 2, not 3"):
        attention(torch.randn(1, 3, 6, 4, 4))
    with pytest.raises(ValueError, match="parts=0"):
        SplitAttentionMLP(6, parts=0)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_cost_is_linear_in_the_number_of_positions():
    s2, sides = S2Attention(16), [(16, 16), (16, 32), (32, 32)]
    N = [h * w for h, w in sides]
    saved = [measure.saved_bytes(lambda x: s2(x * 2), torch.randn(2, 16, *side)) for side in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.03)
    assert saved[-1] < 4 * 2 * N[-1] * 16 * 6  # x, the three parts, their sum
    fixed = 2 * 2 * 4 * 16 * 16  # the split attention, once an image
    flops = [measure.flops(s2, torch.randn(2, 16, *side)) - fixed for side in sides]
    assert measure.fit_exponent(N, flops) == pytest.approx(1)
