"""Axial attention, in sequence and as a sum, against its equations, its limits, its cost, and known mistakes.

The sum is the operator of the package axial-attention, transcribed from it.
"""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import AxialAttention, AxialBlock
from tests.unit.draw import D, randn, randomised

SIZES = [(3, 4), (4, 3), (1, 5), (5, 1), (1, 1)]


def axial(C=6, heads=2, seed=0, **options) -> AxialAttention:
    return randomised(AxialAttention(C, heads=heads, **options), scale=0.5, seed=seed).requires_grad_(False)


def block_of(axis="row", C=6, heads=2, **options) -> AxialBlock:
    return randomised(AxialBlock(C, axis=axis, heads=heads, **options), scale=0.5).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def linear(z, layer):
    bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    return [b + sum(w * value for w, value in zip(row, z, strict=True))
            for row, b in zip(layer.weight.tolist(), bias, strict=True)]


def layer_norm(z, norm):
    mean = sum(z) / len(z)
    std = math.sqrt(sum((value - mean) ** 2 for value in z) / len(z) + 1e-5)
    return [(value - mean) / std * w + b
            for value, w, b in zip(z, norm.weight.tolist(), norm.bias.tolist(), strict=True)]


def attention(layer, pixels, axis, causal=False):
    """Pixels (row, column) -> C numbers; a pixel asks those of its row, or of its column."""
    q, k, v = ({p: linear(z, W) for p, z in pixels.items()} for W in (layer.Wq, layer.Wk, layer.Wv))
    d = len(next(iter(q.values()))) // layer.heads
    out = {}
    for i in pixels:
        own, along = (0, 1) if axis == "row" else (1, 0)
        seen = [j for j in pixels if j[own] == i[own] and (not causal or j[along] <= i[along])]
        joined = []
        for head in range(layer.heads):
            part = range(head * d, (head + 1) * d)
            e = {j: math.exp(sum(q[i][c] * k[j][c] for c in part) / math.sqrt(d)) for j in seen}
            joined += [sum(e[j] * v[j][c] for j in seen) / sum(e.values()) for c in part]
        out[i] = linear(joined, layer.Wo)
    return out


def block_equations(block, pixels, causal=False):
    normal = {p: layer_norm(z, block.norm1) for p, z in pixels.items()}
    attended = attention(block.attention, normal, block.axis, causal)
    out = {}
    for p, z in pixels.items():
        z = [a + b for a, b in zip(z, attended[p], strict=True)]
        hidden = [value / (1 + math.exp(-1.702 * value)) for value in linear(layer_norm(z, block.norm2), block.W1)]
        out[p] = [a + b for a, b in zip(z, linear(hidden, block.W2), strict=True)]
    return out


def pixels_of(image):
    return {(i, j): image[:, i, j].tolist() for i in range(image.shape[1]) for j in range(image.shape[2])}


def image_of(pixels, H, W):
    return torch.tensor([[pixels[i, j] for j in range(W)] for i in range(H)], dtype=D).permute(2, 0, 1)


def sequence(m, image, causal=None):
    """The release: positions once, then rows, columns, rows, columns, …"""
    pixels = pixels_of(image)
    if m.height is not None:
        pixels = {(i, j): [z_c + h + w for z_c, h, w in zip(z, m.Ph[i].tolist(), m.Pw[j].tolist(), strict=True)]
                  for (i, j), z in pixels.items()}
    for block in m.blocks:
        pixels = block_equations(block, pixels, block.axis == causal)
    return image_of(pixels, *image.shape[1:])


def added(m, image):
    """The package: both axes of the same input."""
    rows, columns = (attention(layer, pixels_of(image), axis) for layer, axis in ((m.row, "row"), (m.column, "column")))
    total = {p: [a + b for a, b in zip(rows[p], columns[p], strict=True)] for p in rows}
    return image_of(total, *image.shape[1:])


@pytest.mark.parametrize("options", [{}, dict(depth=2), dict(heads=1, mlp_ratio=2.0, qkv_bias=False)], ids=str)
@pytest.mark.parametrize(("H", "W"), SIZES)
def test_equals_the_paper(H, W, options):
    m, x = axial(**options), randn(2, 6, H, W)
    assert_close(m(x), torch.stack([sequence(m, image) for image in x]), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("H", "W"), [(3, 4), (2, 1)])
def test_positions_equal_the_paper_also_on_a_smaller_map(H, W):
    m, x = axial(height=3, width=4, depth=2), randn(2, 6, H, W)
    assert_close(m(x), torch.stack([sequence(m, image) for image in x]), rtol=0, atol=1e-11)


@pytest.mark.parametrize("causal", ["row", "column"])
def test_causal_layers_equal_the_paper(causal):
    m, x = axial(causal=causal), randn(2, 6, 3, 4)
    assert_close(m(x), torch.stack([sequence(m, image, causal) for image in x]), rtol=0, atol=1e-11)


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize(("H", "W"), SIZES)
def test_the_sum_equals_the_package(H, W, qkv_bias):
    m, x = axial(form="sum", qkv_bias=qkv_bias), randn(2, 6, H, W)
    assert_close(m(x), torch.stack([added(m, image) for image in x]), rtol=0, atol=1e-11)


class Wrong(AxialAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        P = self.positions(*x.shape[2:])
        x, blocks = x + P, list(self.blocks)
        if self.mistake == "columns first":
            blocks = blocks[::-1]
        if self.mistake == "both axes of the same input":
            return blocks[0](x) + blocks[1](x) - x
        for n, block in enumerate(blocks):
            if self.mistake == "positions in every layer" and n:
                x = x + P
            x = self.block(block, x)
        return x

    def block(self, block, x):
        lines = x.permute(0, 2, 3, 1) if block.axis == "row" else x.permute(0, 3, 2, 1)  # B lines N C
        y = lines if self.mistake == "post-norm" else block.norm1(lines)
        if self.mistake == "lines mixed up":
            y = y.transpose(1, 2).reshape(y.shape)
        if self.mistake == "all pixels":
            y = y.flatten(1, 2)[:, None]
        h = block.attention.heads
        q, k, v = (W(y).unflatten(3, (h, -1)).transpose(2, 3)
                   for W in (block.attention.Wq, block.attention.Wk, block.attention.Wv))
        scale = (q.shape[-1] * (h if self.mistake == "scaled by the whole width" else 1)) ** -0.5
        y = ((scale * q @ k.mT).softmax(-1) @ v).transpose(2, 3).flatten(3).reshape(lines.shape)
        lines = lines + block.attention.Wo(y)
        if self.mistake == "post-norm":
            lines = block.norm1(lines)
        if self.mistake != "no MLP":
            hidden = block.W1(block.norm2(lines))
            lines = lines + block.W2({"GELU": F.gelu, "SiLU": F.silu, "ReLU": F.relu}.get(
                self.mistake, lambda t: t * (1.702 * t).sigmoid())(hidden))
        return lines.permute(0, 3, 1, 2) if block.axis == "row" else lines.permute(0, 3, 2, 1)


@pytest.mark.parametrize("mistake", [
    "columns first", "both axes of the same input", "positions in every layer", "lines mixed up", "all pixels",
    "scaled by the whole width", "post-norm", "no MLP", "GELU", "SiLU", "ReLU",
])
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = axial(height=3, width=4), randn(2, 6, 3, 4)
    wrong = Wrong(6, heads=2, height=3, width=4).to(D)
    wrong.load_state_dict(m.state_dict())
    expected = torch.stack([sequence(m, image) for image in x])
    assert_close(wrong(x), expected, rtol=0, atol=1e-11)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["sequence", "sum"])
def test_taps_are_the_equations(form):
    m, x = axial(form=form, height=3, width=4), randn(2, 6, 3, 4)
    with attn_lib.trace() as t:
        y = m(x)
    each = ["q", "k", "v", "A", "x_row" if form == "sequence" else "y_row"]
    assert [name.partition(":")[0] for name in t.names()] == \
        ["x_P", *each, *each[:4], each[4].replace("row", "column"), "y"]
    assert t["A"].shape == (2, 3, 2, 4, 4) and t["A:2"].shape == (2, 4, 2, 3, 3) and t.dims("A:2") == "B W h H H"
    assert_close(t["A"].sum(-1), torch.ones(2, 3, 2, 4, dtype=D))
    assert_close(y, m(x))


# ---- limits (the two of the catalog stand in limits/) ----------------------------------------------------------------


def test_on_one_row_the_sum_is_full_attention_and_a_linear_map():
    m, x = axial(form="sum"), randn(2, 6, 1, 5)
    full = torch.stack([image_of(attention(m.row, pixels_of(image), "row"), 1, 5) for image in x])
    trivial = m.column.Wo(m.column.Wv(x.movedim(1, 3))).movedim(3, 1)
    assert_close(m(x), full + trivial, rtol=0, atol=1e-12)
    assert (m(x) - full).abs().max() > 1e-1


def test_one_pixel_is_asked_about_itself_alone():
    block, x = block_of(), randn(2, 6, 1, 1)
    z = x[..., 0, 0]
    z = z + block.attention.Wo(block.attention.Wv(block.norm1(z)))
    hidden = block.W1(block.norm2(z))
    assert_close(block(x)[..., 0, 0], z + block.W2(hidden * (1.702 * hidden).sigmoid()))


def test_a_transposed_map_wants_the_other_axis():
    row, x = block_of("row"), randn(2, 6, 3, 4)
    column = block_of("column")
    column.load_state_dict(row.state_dict())
    assert_close(column(x.mT), row(x).mT)


def reach(module, pixel, x):
    """Which pixels of the input the output at `pixel` depends on."""
    gradient = torch.autograd.functional.jacobian(lambda x: module(x)[0, :, pixel[0], pixel[1]].sum(), x)
    return gradient[0].abs().sum(0) > 1e-9


def test_one_axis_reaches_a_line_and_two_the_whole_map():
    x = randn(1, 6, 4, 5)
    row, column = torch.zeros(4, 5, dtype=bool), torch.zeros(4, 5, dtype=bool)
    row[1], column[:, 2] = True, True
    assert torch.equal(reach(block_of("row"), (1, 2), x), row)
    assert torch.equal(reach(block_of("column"), (1, 2), x), column)
    assert reach(axial(), (1, 2), x).all()
    assert torch.equal(reach(axial(form="sum"), (1, 2), x), row | column)  # added, they do not


def test_causal_layers_see_nothing_that_comes_later():
    x = randn(1, 6, 4, 5)
    i, j = torch.arange(4)[:, None], torch.arange(5)
    assert torch.equal(reach(block_of("row", causal=True), (1, 2), x), (i == 1) & (j <= 2))
    assert torch.equal(reach(block_of("column", causal=True), (1, 2), x), (i <= 1) & (j == 2))
    assert torch.equal(reach(axial(causal="column"), (1, 2), x), (i <= 1) & (j >= 0))  # whole rows, down to its own


def test_fresh_positions_make_a_vector_of_length_one():
    m = AxialAttention(256, height=40, width=40)
    assert m.Ph.std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert m.Pw.std().item() == pytest.approx(256**-0.5, rel=0.05)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: AxialAttention(6), "channels=6 must be divisible by heads=8; 8 is"),
    (lambda: axial(form="parallel"), "form='parallel' must be one of 'sequence', 'sum'"),
    (lambda: axial(form="sum", depth=2), "depth=2 must be 1 with form='sum'"),
    (lambda: axial(causal="rows"), "causal='rows' must be one of 'row', 'column', None; did you mean 'row'"),
    (lambda: axial(height=3), "width=None must be an integer"),
    (lambda: axial(width=3), "height=None must be an integer"),
    (lambda: axial(mlp_ratio=0.1), r"channels \* mlp_ratio=0 must be"),
    (lambda: block_of("diagonal"), "axis='diagonal' must be one of 'row', 'column'"),
    (lambda: axial(height=3, width=4)(randn(1, 6, 3, 5)), "x has W=5; it must be at most width=4"),
])
def test_bad_option_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- cost ------------------------------------------------------------------------------------------------------------


def kept(m, side, traced=False):
    def run(x):
        if not traced:
            return m(x)
        with attn_lib.trace():
            return m(x)

    return measure.saved_bytes(run, torch.randn(1, 8, *side))


@pytest.mark.parametrize("form", ["sequence", "sum"])
def test_memory_is_linear_and_matrices_have_h_plus_w_entries_a_pixel(form):
    m, sides = AxialAttention(8, heads=2, form=form), [(16, 24), (32, 48), (64, 96)]
    N = [H * W for H, W in sides]
    assert measure.fit_exponent(N, [kept(m, side) for side in sides]) == pytest.approx(1, abs=0.03)
    pixel = [(kept(m, side, traced=True) - kept(m, side)) / n for side, n in zip(sides, N, strict=True)]
    added = [(b - a) / (4 * 2 * (sum(sides[n + 1]) - sum(sides[n]))) for n, (a, b) in enumerate(pairwise(pixel))]
    assert added == pytest.approx([1, 1], abs=0.03)  # 4 bytes, 2 heads: H + W numbers a pixel, never HW


def test_operations_grow_with_h_plus_w():
    m = AxialAttention(8, heads=2)
    for H, W in ((16, 24), (32, 48)):
        matrices = 2 * 2 * 8 * 8 * (4 + 2)  # two blocks, six matrices of 8 × 8
        assert measure.flops(m, torch.randn(1, 8, H, W)) == H * W * (matrices + 4 * 8 * (H + W))
