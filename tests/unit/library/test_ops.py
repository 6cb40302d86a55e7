"""Shared operations against their definitions."""

import contextlib
import copy
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from attn_lib import measure, ops
from attn_lib.tap import trace


@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
@pytest.mark.parametrize("biased", [False, True])
def test_attend_is_softmax_attention_traced_or_not(scale, biased):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, d, generator=g, dtype=torch.float64) for n, d in ((5, 4), (7, 4), (7, 6)))
    bias = torch.randn(5, 7, generator=g, dtype=torch.float64) if biased else None
    if biased:
        bias[0, 3] = -torch.inf
    expected = torch.zeros(2, 3, 5, 6, dtype=torch.float64)
    for b in range(2):
        for h in range(3):
            for i in range(5):
                logits = torch.stack([(q[b, h, i] * k[b, h, j]).sum() for j in range(7)])
                logits = logits * (0.5 if scale is None else scale)  # 0.5 = 1/√D
                weights = torch.exp(logits if bias is None else logits + bias[i])
                expected[b, h, i] = sum(w * v[b, h, j] for j, w in enumerate(weights)) / weights.sum()
    fused = ops.attend(q, k, v, scale=scale, bias=bias)
    with trace() as t:
        materialised = ops.attend(q, k, v, scale=scale, bias=bias, dims="B h N M")
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(materialised, expected)
    torch.testing.assert_close(t["A"].sum(-1), torch.ones(2, 3, 5, dtype=torch.float64))


@pytest.mark.parametrize("lead", [(6,), (2, 3), (2, 2, 3), (1, 2, 2, 3)], ids=str)
@pytest.mark.parametrize("biased", [None, (), (1,), "full"], ids=str)
def test_attend_takes_any_number_of_leading_axes(lead, biased):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*lead, n, d, generator=g, dtype=torch.float64) for n, d in ((5, 4), (7, 4), (7, 6)))
    shape = (*lead, 5, 7) if biased == "full" else (*(biased or ()), 5, 7)
    bias = None if biased is None else torch.randn(shape, generator=g, dtype=torch.float64)
    A = (q @ k.mT / 2 + (0 if bias is None else bias)).softmax(-1)
    torch.testing.assert_close(ops.attend(q, k, v, bias=bias), A @ v)


@pytest.mark.parametrize("lead", [(2,), (2, 3, 5), (2, 2, 3, 5)], ids=str)
def test_attend_spreads_the_leading_axes_over_two(lead, monkeypatch):
    """Kernels on a GPU start a block for each, and have 65,535 at most in either direction."""
    seen, fused = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention",
                        lambda q, *args, **options: seen.append(q.shape) or fused(q, *args, **options))
    ops.attend(*(torch.randn(*lead, n, 4) for n in (1, 7, 7)), bias=torch.zeros(lead[-1], 1, 7))
    assert seen[0][1] == lead[-1] and seen[0].numel() == math.prod(lead) * 4


@pytest.mark.parametrize("widths", [(16, 16, 6), (6, 6, 16)], ids=["values narrower", "values wider"])
def test_attend_keeps_no_matrix_where_values_are_not_as_wide_as_queries(widths):
    short, long = (measure.saved_bytes(ops.attend, [torch.randn(2, n, d) for d in widths]) for n in (64, 256))
    assert long / short == pytest.approx(4, rel=0.01)


def test_attend_keeps_no_matrix_whatever_the_strides():
    short, long = (measure.saved_bytes(lambda q, k, v: ops.attend(q.mT, k.mT, v.mT),
                                       [torch.randn(2, 2, 16, n) for _ in range(3)]) for n in (64, 256))
    assert long / short == pytest.approx(4, rel=0.01)


def test_attend_keeps_no_matrix_whatever_the_number_of_axes():
    for lead in ((4,), (2, 2), (2, 2, 1)):
        short, long = (
            measure.saved_bytes(lambda q, k, v: ops.attend(q, k, v), [torch.randn(*lead, n, 16) for _ in range(3)])
            for n in (64, 256)
        )
        assert long / short == pytest.approx(4, rel=0.01), lead


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("N", "Nk", "d", "dv"), [(5, 7, 4, 9), (9, 9, 3, 9), (7, 5, 8, 8), (30, 4, 2, 6)])
def test_attend_in_small_windows_is_the_same(N, Nk, d, dv, masked, monkeypatch):
    """On a CPU by products; what they give and their gradients are those of the fused kernel, and they keep no more."""
    fused = torch.nn.functional.scaled_dot_product_attention
    tensors = [torch.randn(2, 3, n, w, dtype=torch.float64, requires_grad=True) for n, w in ((N, d), (Nk, d), (Nk, dv))]
    bias = torch.zeros(2, 1, 1, Nk).double()
    bias[0, ..., 1] = -torch.inf
    bias = bias if masked else None
    expected = fused(*tensors, attn_mask=bias)
    floats = [t.detach().float() for t in tensors]
    padded = [torch.nn.functional.pad(t, (0, dv - t.shape[-1])) for t in floats]
    most = measure.saved_bytes(lambda *t: fused(*(2 * u for u in t)), padded)  # q, k and v as well
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    y = ops.attend(*tensors, bias=bias)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(*(torch.autograd.grad(t.square().sum(), tensors) for t in (y, expected)))
    bias = None if bias is None else bias.float()
    assert measure.saved_bytes(lambda *t: ops.attend(*(2 * u for u in t), bias=bias), floats) <= most


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_attend_in_small_windows_in_half_precision(dtype):
    q, k, v = (torch.randn(2, 3, 5, d).to(dtype) for d in (4, 4, 8))
    y = ops.attend(q, k, v)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), ops.attend(q.float(), k.float(), v.float()), rtol=2e-2, atol=2e-2)


def test_attend_in_small_windows_compiles():
    q, k, v = (torch.randn(2, 3, 5, d) for d in (4, 4, 8))
    torch.compiler.reset()
    compiled = torch.compile(ops.attend, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), ops.attend(q, k, v))


@pytest.mark.parametrize("lead", [(2,), (2, 3)], ids=str)
def test_self_attention_is_torchs(lead):
    ours, theirs = ops.SelfAttention(6, 2).double(), torch.nn.MultiheadAttention(6, 2, batch_first=True).double()
    matrices = (ours.Wq, ours.Wk, ours.Wv)
    theirs.load_state_dict({"in_proj_weight": torch.cat([W.weight for W in matrices]),
                            "in_proj_bias": torch.cat([W.bias for W in matrices]),
                            "out_proj.weight": ours.Wo.weight, "out_proj.bias": ours.Wo.bias})
    x, causal = torch.randn(*lead, 5, 6, dtype=torch.float64), torch.full((5, 5), -torch.inf).double().triu(1)
    for bias in (None, causal):
        tokens = x.flatten(0, -3)
        expected, A = theirs(tokens, tokens, tokens, attn_mask=bias, average_attn_weights=False)
        with trace() as t:
            torch.testing.assert_close(ours(x, bias=bias, dims="B P N" if len(lead) > 1 else "B N"),
                                       expected.view_as(x))
        torch.testing.assert_close(t["A"], A.view(*lead, 2, 5, 5))
        assert t.dims("A").endswith("h N N") and t.names() == ["q", "k", "v", "A"]
    with pytest.raises(ValueError, match="channels=6 must be divisible by heads=4"):
        ops.SelfAttention(6, 4)


# ---- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("N", "M"), [(5, 5), (3, 7), (4, 1), (1, 4)])
def test_relative_logits_pick_the_vector_of_the_offset(N, M, stride):
    q = torch.randn(2, 3, N, 4, dtype=torch.float64)
    table = torch.randn(stride * (N - 1) + M, 4, dtype=torch.float64)
    expected = torch.empty(2, 3, N, M, dtype=torch.float64)
    for i in range(N):
        for j in range(M):
            expected[..., i, j] = q[:, :, i] @ table[(j - stride * i) + stride * (N - 1)]
    torch.testing.assert_close(ops.relative_logits(q, table, stride), expected)


def test_relative_bias_depends_on_the_offset_alone():
    H, W = 3, 5
    table = torch.randn(2, 2 * H - 1, 2 * W - 1)
    bias = ops.relative_bias(table, H, W)
    assert bias.shape == (2, H * W, H * W)
    for query in range(H * W):
        for key in range(H * W):
            down, right = key // W - query // W, key % W - query % W
            assert torch.equal(bias[:, query, key], table[:, H - 1 + down, W - 1 + right])
    with pytest.raises(ValueError, match=r"table has shape \(2, 5, 9\); its last two axes must be \(9, 5\)"):
        ops.relative_bias(table, W, H)


# ---- windows and neighbourhoods --------------------------------------------------------------------------------------


def test_windows_hold_their_pixels_row_by_row_and_go_back():
    x = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    w = ops.windows(x, 2, 3)
    assert w.shape == (2, 4, 6, 3)
    for n, (row, col) in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
        assert torch.equal(w[:, n].mT.reshape(2, 3, 2, 3), x[:, :, row:row + 2, col:col + 3])
    assert torch.equal(ops.unwindows(w, 2, 3, 4, 6), x)
    with pytest.raises(ValueError, match="W=6 must be divisible by j=4"):
        ops.windows(x, 2, 4)


def test_interleaved_windows_span_the_map_and_go_back():
    x = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    w = ops.windows(x, 2, 3, interleaved=True)
    assert w.shape == (2, 4, 6, 3)
    for n, (row, col) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert torch.equal(w[:, n].mT.reshape(2, 3, 2, 3), x[:, :, row::2, col::2])
    assert torch.equal(ops.unwindows(w, 2, 3, 4, 6, interleaved=True), x)


@pytest.mark.parametrize(("H", "W"), [(5, 7), (6, 8), (1, 1)])
def test_padding_to_a_multiple_says_what_is_real(H, W):
    x = torch.randn(2, 3, H, W)
    padded, real = ops.pad_to_multiple(x, 3, 4)
    assert padded.shape[-2] % 3 == padded.shape[-1] % 4 == 0
    assert padded.shape[-2] < H + 3 and padded.shape[-1] < W + 4
    assert torch.equal(padded[:, :, :H, :W], x)
    assert torch.equal(real.nonzero(), torch.ones(H, W).nonzero()) and not padded[:, :, ~real].any()


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (1, 5), (5, 3)], ids=str)
def test_neighbourhoods_against_indexing(kernel_size, dilation):
    x = torch.randn(2, 3, 4, 6)
    near, on_map = ops.neighbourhoods(x, kernel_size, dilation)
    kH, kW = kernel_size
    assert near.shape == (2, 3, kH * kW, 4, 6) and on_map.shape == (kH * kW, 4, 6)
    for k in range(kH * kW):
        for row in range(4):
            for col in range(6):
                r, c = row + dilation * (k // kW - kH // 2), col + dilation * (k % kW - kW // 2)
                there = 0 <= r < 4 and 0 <= c < 6
                assert on_map[k, row, col] == there
                assert torch.equal(near[:, :, k, row, col], x[:, :, r, c] if there else torch.zeros(2, 3))


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)], ids=str)
def test_neighbourhoods_with_a_stride_are_some_of_all(size):
    x = torch.randn(2, 3, *size)
    near, on_map = ops.neighbourhoods(x, (3, 5), 2)
    some, there = ops.neighbourhoods(x, (3, 5), 2, stride=2)
    assert torch.equal(some, near[..., ::2, ::2]) and torch.equal(there, on_map[:, ::2, ::2])


GEOMETRIES = [((3, 3), 1, 1), ((1, 5), 2, 1), ((5, 3), 3, 2), ((3, 3), 1, 3)]


def neighbours_side_by_side(q, k, v, geometry, padding=None):
    """Logits and weighted sum by way of all keys and values beside their query."""
    if padding is None:
        near_k, near_v = (ops.neighbourhoods(t.flatten(1, 2), *geometry)[0].unflatten(1, t.shape[1:3]) for t in (k, v))
    else:
        near_k, near_v = (torch.nn.functional.unfold(t.flatten(1, 2), geometry[0], geometry[1], padding, geometry[2])
                          .view(*t.shape[:3], -1, *q.shape[3:]) for t in (k, v))
    logits = (q[:, :, :, None] * near_k).sum(2)
    return logits, (logits.softmax(2)[:, :, None] * near_v).sum(3)


def neighbours(q, k, v, geometry, padding=None):
    logits = ops.neighbour_logits(q, k, *geometry, padding=padding)
    return logits, ops.neighbour_sum(logits.softmax(2), v, *geometry, padding=padding)


def drawn_neighbours(size, geometry, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    out = [-(-n // geometry[2]) for n in size]
    return [torch.randn(2, 3, d, *shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
            for d, shape in ((4, out), (4, size), (2, size))]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("size", [(5, 7), (8, 6), (1, 4), (1, 1)], ids=str)
def test_products_with_neighbours_and_their_gradients(size, geometry):
    tensors = drawn_neighbours(size, geometry)
    results = [f(*tensors, geometry) for f in (neighbours, neighbours_side_by_side)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad([t.square().sum() for t in result], tensors) for result in results]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-11)


def test_products_with_neighbours_have_all_derivatives():
    tensors = drawn_neighbours((3, 4), ((3, 3), 1, 2))
    assert torch.autograd.gradcheck(lambda *t: neighbours(*t, ((3, 3), 1, 2)), tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: neighbours(*t, ((3, 3), 1, 2)), tensors, fast_mode=True)


def test_products_with_neighbours_of_a_map_that_has_its_border():
    geometry = ((3, 5), 2, 1)
    q, k, v = (torch.randn(2, 3, d, *size) for d, size in ((4, (5, 2)), (4, (9, 10)), (2, (9, 10))))
    for mine, expected in zip(*(f(q, k, v, geometry, (0, 0)) for f in (neighbours, neighbours_side_by_side)),
                              strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_products_with_neighbours_in_half_precision(dtype):
    """The logits in float32: 4 · 300 · 300 exceeds what float16 holds."""
    tensors = [(300 * t.detach()).to(dtype) for t in drawn_neighbours((5, 7), GEOMETRIES[0])]
    logits, y = neighbours(*tensors, GEOMETRIES[0])
    expected = neighbours_side_by_side(*(t.double() for t in tensors), GEOMETRIES[0])
    assert logits.dtype == torch.float32 and y.dtype == dtype
    torch.testing.assert_close(logits.double(), expected[0], rtol=1e-5, atol=1)
    torch.testing.assert_close(y.double(), expected[1], rtol=1e-2, atol=1)
    with torch.autocast("cpu", dtype):
        assert torch.equal(neighbours(*tensors, GEOMETRIES[0])[0], logits)


def test_products_with_neighbours_keep_no_neighbours():
    """Only A, of K entries a pixel: q, k and v are there anyway."""
    tensors = [t.detach() for t in drawn_neighbours((16, 16), GEOMETRIES[0], torch.float32)]
    for kernel_size in ((3, 3), (5, 5)):
        kept = measure.saved_bytes(lambda *t: neighbours(*t, (kernel_size, 4, 1))[1], tensors)  # noqa: B023
        assert kept == 4 * 2 * 3 * math.prod(kernel_size) * 256
        assert measure.flops(lambda *t: neighbours(*t, (kernel_size, 4, 1))[1], tensors) == kept // 4 * 2 * (4 + 2)  # noqa: B023


def test_products_with_neighbours_compile():
    tensors = drawn_neighbours((5, 7), GEOMETRIES[0])
    torch.compiler.reset()
    compiled = torch.compile(lambda *t: neighbours(*t, GEOMETRIES[0]), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), neighbours(*tensors, GEOMETRIES[0]))


# ---- pooling along axes ----------------------------------------------------------------------------------------------


def test_pooling_along_axes():
    x = torch.randn(2, 3, 4, 5)
    mean, largest = ops.mean_and_max(x, (2, 3))
    assert mean.shape == largest.shape == (2, 3, 1, 1)
    torch.testing.assert_close(mean.flatten(1), x.flatten(2).sum(-1) / 20)
    assert torch.equal(largest.flatten(1), x.flatten(2).max(-1).values)
    rows, cols = ops.strip_means(x)
    torch.testing.assert_close(rows, torch.stack([x[:, :, i].sum(-1) / 5 for i in range(4)], -1))
    torch.testing.assert_close(cols, torch.stack([x[..., j].sum(-1) / 4 for j in range(5)], -1))


@pytest.mark.parametrize("dim", [1, (2, 3), (1, 2, 3)], ids=str)
def test_maximum_is_amax_and_so_are_all_its_derivatives(dim):
    x = torch.randint(3, (2, 3, 4, 5)).double().requires_grad_()  # few numbers: many ties
    plain, g = (lambda x: x.amax(dim, keepdim=True)), torch.randn_like(x.amax(dim, keepdim=True))
    mine = lambda x: ops.maximum(x, dim)  # noqa: E731
    assert torch.equal(mine(x), plain(x))
    torch.testing.assert_close(*(torch.autograd.grad(f(x), x, g)[0] for f in (mine, plain)))
    t = torch.randn_like(x)
    torch.testing.assert_close(*(torch.func.jvp(f, (x.detach(),), (t,))[1] for f in (mine, plain)))
    for f in (mine, plain):
        torch.testing.assert_close(torch.func.vmap(f)(x[None]), plain(x)[None])
    distinct = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mine, distinct) and torch.autograd.gradgradcheck(mine, distinct)
    half = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16, requires_grad=True)
    ops.maximum(half, (2, 3)).backward(torch.ones(1, 1, 1, 1, dtype=torch.bfloat16))
    assert torch.equal(half.grad, torch.full_like(half, 2**-12)), "4096 ties, which bfloat16 cannot count one by one"


# ---- sampling --------------------------------------------------------------------------------------------------------


def all_pixels(x, rows, cols):
    """Σ over every pixel q of G(q, p) · x(q), as the paper writes it: no corner is looked for, no border treated."""

    def g(n, p):
        return (1 - (torch.arange(n, dtype=x.dtype) - p[..., None]).abs()).clamp(min=0)

    return torch.einsum("b...h,b...w,bchw->bc...", g(x.shape[2], rows), g(x.shape[3], cols), x)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 7), (8, 8), (9, 3)], ids=str)
@pytest.mark.parametrize("shape", [(11,), (3, 4), (2, 3, 2)], ids=str)
def test_bilinear_sample_is_the_sum_over_all_pixels(size, shape):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=g, dtype=torch.float64, requires_grad=True)
    rows, cols = (  # well beyond the border on every side
        (torch.rand(2, *shape, generator=g, dtype=torch.float64) * (n + 4) - 2).requires_grad_() for n in size
    )
    y, expected = ops.bilinear_sample(x, rows, cols), all_pixels(x, rows, cols)
    assert y.shape == (2, 3, *shape)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    grads = (torch.autograd.grad(out.square().sum(), (x, rows, cols)) for out in (y, expected))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(5, 7), (16, 1000)], ids=str)
def test_bilinear_sample_hits_whole_positions_exactly(size, dtype):
    """Bit by bit, also where a half-precision position could not tell one pixel from the next."""
    x = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows, cols = torch.meshgrid(*(torch.arange(-2.0, n + 2) for n in size), indexing="ij")
    y = ops.bilinear_sample(x, rows[None], cols[None])
    assert y.dtype == dtype
    assert torch.equal(y, torch.nn.functional.pad(x, (2, 2, 2, 2)))


def test_bilinear_sample_refuses_positions_that_do_not_fit():
    x = torch.randn(2, 3, 4, 5)
    for rows, cols in ((torch.zeros(2, 6), torch.zeros(2, 5)), (torch.zeros(1, 6), torch.zeros(1, 6))):
        with pytest.raises(ValueError, match="must have the same shape"):
            ops.bilinear_sample(x, rows, cols)


@pytest.mark.parametrize(("size", "to"), [((4, 6), (7, 3)), ((5, 5), (10, 15)), ((1, 3), (4, 2))], ids=str)
def test_resize_takes_pixels_for_squares(size, to):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    y = ops.resize(x, *to)
    places = [((torch.arange(n).double() + 0.5) * m / n - 0.5).clamp(0, m - 1) for n, m in zip(to, size, strict=True)]
    rows, cols = (p.expand(2, *to) for p in torch.meshgrid(*places, indexing="ij"))
    torch.testing.assert_close(y, ops.bilinear_sample(x, rows, cols))
    nearest = ops.resize(x, *to, mode="nearest")
    i, j = ([k * m // n for k in range(n)] for n, m in zip(to, size, strict=True))
    assert torch.equal(nearest, x[:, :, i][..., j])
    assert torch.equal(ops.resize(x, *size), x)


# ---- kernels and channels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, dict(stride=2), dict(padding=(1, 0)), dict(dilation=2), dict(groups=2)],
                         ids=str)
def test_conv2d_per_image_is_a_convolution_of_every_image(options):
    x = torch.randn(3, 4, 7, 8, dtype=torch.float64)
    weight = torch.randn(3, 6, 4 // options.get("groups", 1), 3, 2, dtype=torch.float64)
    for bias in (None, torch.randn(3, 6, dtype=torch.float64)):
        each = [torch.nn.functional.conv2d(x[b:b + 1], weight[b], None if bias is None else bias[b], **options)
                for b in range(3)]
        torch.testing.assert_close(ops.conv2d_per_image(x, weight, bias, **options), torch.cat(each))


@pytest.mark.parametrize("bias", [True, False])
def test_a_mixture_of_kernels_is_the_mixture_of_what_they_give(bias):
    mixture = ops.KernelMixture(4, 6, kernels=3, kernel_size=(3, 2), padding=(0, 1), stride=(2, 1), groups=2, bias=bias)
    mixture.double()
    x, a = torch.randn(2, 4, 7, 8, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    each = torch.stack([torch.nn.functional.conv2d(x, mixture.kernels[m], mixture.bias[m] if bias else None, (2, 1),
                                                   (0, 1), groups=2) for m in range(3)])
    y = ops.conv2d_per_image(x, *mixture.mixed(a), **mixture.geometry)
    torch.testing.assert_close(y, torch.einsum("bm,mbohw->bohw", a, each))
    same = ops.KernelMixture(4, 6, kernels=2, kernel_size=(3, 5), dilation=(2, 1))
    assert same.geometry["padding"] == (2, 2)
    with pytest.raises(ValueError, match=r"kernel_size=\(2, 2\) with dilation=\(1, 1\) has no centre"):
        ops.KernelMixture(4, 6, kernels=2, kernel_size=2)


def test_channel_shuffle_deals_out_the_groups():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert ops.channel_shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert ops.channel_shuffle(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_covariance_is_that_of_the_definition():
    x = torch.randn(2, 3, 7, dtype=torch.float64) + 100
    torch.testing.assert_close(ops.covariance(x), torch.stack([torch.cov(image, correction=0) for image in x]))
    large = (300 * torch.randn(2, 3, 500) + 1000).half()
    torch.testing.assert_close(ops.covariance(large), ops.covariance(large.float()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("geometry", [
    dict(kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1)),
    dict(kernel_size=(2, 5), stride=(2, 3), padding=(0, 4), dilation=(3, 2)),
], ids=["plain", "uneven"])
def test_geometry_is_that_of_torchs_convolution(geometry):
    x, (kH, kW) = torch.arange(1.0, 81).view(1, 1, 8, 10), geometry["kernel_size"]
    others = {name: value for name, value in geometry.items() if name != "kernel_size"}
    down, right = geometry["padding"]
    padded = torch.nn.functional.pad(x, (right, right, down, down))[0, 0]
    for i in range(kH):
        for j in range(kW):
            one_tap = torch.zeros(1, 1, kH, kW)
            one_tap[..., i, j] = 1
            read = torch.nn.functional.conv2d(x, one_tap, **others)
            assert read.shape[2:] == ops.output_size((8, 10), **geometry)
            axes = zip(read.shape[2:], (kH, kW), *others.values(), (i, j), strict=True)
            rows, cols = (ops.tap_positions(*axis, like=x.bfloat16())[:, tap].long() for *axis, tap in axes)
            assert torch.equal(read[0, 0], padded[rows + down][:, cols + right])


def test_same_padding_keeps_the_size_and_a_kernel_has_to_fit():
    for kernel_size, dilation in (((3, 5), (1, 2)), ((2, 1), (2, 7)), ((1, 7), (1, 1))):
        padding = ops.same_padding(kernel_size, dilation)
        assert ops.output_size((9, 11), kernel_size, (1, 1), padding, dilation) == (9, 11)
    with pytest.raises(ValueError, match=r"kernel_size=\(3, 2\) with dilation=.* has no centre"):
        ops.same_padding((3, 2), (1, 1))
    with pytest.raises(ValueError, match="x has W=4; it must be at least 5 for the kernel to fit"):
        ops.output_size((9, 4), (3, 3), (1, 1), (1, 0), (1, 2))


# ---- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_float32_multiplies_large_features_also_under_autocast(dtype):
    q, k = (300 * torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(i)).to(dtype) for i in (0, 1))
    exact = q.double() @ k.double().mT
    assert exact.abs().max() > 65_504
    plain = ops.in_float32(torch.matmul, q, k.mT)
    einsum = ops.in_float32(torch.einsum, "bnd,bmd->bnm", q, k)
    with torch.autocast("cpu", dtype):
        assert (q.float() @ k.float().mT).dtype == dtype
        cast = ops.in_float32(torch.matmul, q.float(), k.float().mT)
        assert torch.is_autocast_enabled("cpu")
    for product in (plain, einsum, cast):
        assert product.dtype == torch.float32
        torch.testing.assert_close(product.double(), exact, rtol=1e-4, atol=1)


def test_in_float32_leaves_float32_and_float64_alone_and_takes_any_device():
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(2, 3, dtype=dtype)
        assert ops.in_float32(lambda a, b: a if b is None else b, x, None) is x
    assert ops.in_float32(torch.matmul, torch.ones(2, 3, device="meta"), torch.ones(3, device="meta")).shape == (2,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", [torch.nn.Linear(6, 4), torch.nn.Conv1d(6, 8, 5, groups=2), torch.nn.BatchNorm1d(6)],
                         ids=["linear", "conv", "norm"])
def test_widened_is_the_layer_without_its_half_precision(layer, dtype):
    """For numbers beyond 65,504; the layer in float32 is called itself, with its hooks and without autocast."""
    x = 1e6 * torch.randn(3, 6, 6 if isinstance(layer, torch.nn.Linear) else 5)
    half = copy.deepcopy(layer).to(dtype).eval()
    wide = ops.widened(half, x)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide.double(), copy.deepcopy(half).double()(x.double()), rtol=1e-5, atol=10)
    calls, single = [], copy.deepcopy(layer).eval()
    single.register_forward_hook(lambda *_: calls.append(1))
    expected = single(x)
    with torch.autocast("cpu", dtype):
        assert torch.equal(ops.widened(single, x), expected)
    assert len(calls) == 2 and ops.widened(copy.deepcopy(layer).double(), x.double()).dtype == torch.float64


def test_widened_trains_a_normalisation_in_its_own_type():
    norm, x = torch.nn.BatchNorm1d(6).to(torch.bfloat16), 3 + torch.randn(8, 6, 5)
    y = ops.widened(norm, x)
    assert y.dtype == torch.float32 and y.mean((0, 2)).abs().max() < 0.05
    torch.testing.assert_close(norm.running_mean.float(), 0.1 * x.mean((0, 2)), rtol=0.02, atol=0)



@pytest.mark.parametrize("traced", [False, True], ids=["fused", "traced"])
@pytest.mark.parametrize("learned", [False, True], ids=["no bias", "bias that learns"])
def test_attention_of_large_features_in_half_precision(traced, learned):
    """The logits reach a million: far beyond float16, and an overflow is a NaN."""
    draws = torch.Generator().manual_seed(0)
    q, k, v = (300 * torch.randn(2, 4, 6, 16, generator=draws).half() for _ in range(3))
    bias = torch.randn(6, 6, generator=draws).half().requires_grad_() if learned else None
    expected = ops.attend(q.double(), k.double(), v.double(), bias=None if bias is None else bias.double())
    with trace() if traced else contextlib.nullcontext():
        y = ops.attend(q, k, v, bias=bias)
    assert y.dtype == torch.float16 and y.isfinite().all()
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=1)


def test_tokens_of_a_map_stand_row_by_row_and_go_back():
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    t = ops.to_tokens(x)
    assert t.shape == (2, 20, 3) and torch.equal(t[:, 1 * 5 + 2], x[:, :, 1, 2])
    assert torch.equal(ops.from_tokens(t, x), x)
    assert ops.to_tokens(t) is t and ops.from_tokens(t, t) is t
    assert ops.from_tokens(t[..., :1], x).shape == (2, 1, 4, 5)  # another number of channels


def test_weights_of_scales_are_a_softmax_of_squashed_scores():
    g = torch.Generator().manual_seed(0)
    maps = list(torch.randn(3, 2, 4, 5, 6, generator=g, dtype=torch.float64))
    W = torch.randn(3, 4, 4, generator=g, dtype=torch.float64)
    w = ops.scale_weights(maps, W)
    for b in range(2):
        s = torch.stack([torch.sigmoid(W[m] @ maps[m][b].mean((1, 2))) for m in range(3)])
        torch.testing.assert_close(w[b], torch.exp(s) / torch.exp(s).sum(0))
    expected = sum(w[:, m, :, None, None] * maps[m] for m in range(3))
    torch.testing.assert_close(ops.weighted_sum(maps, w), expected)
    norm = torch.nn.BatchNorm1d(12, affine=False).double()
    normed = ops.scale_weights(maps, W, norm)
    assert (normed - w).abs().max() > 1e-3
    with pytest.raises(ValueError, match="x is a batch of 1"):
        ops.scale_weights([y[:1] for y in maps], W, norm)


@pytest.mark.parametrize("biased", [False, True])
def test_second_derivatives_of_attention_are_those_of_the_products(biased):
    """Through the fused kernel, which has none of its own; also where one tensor is queries and keys."""
    q, k, v = (torch.randn(2, 3, 7, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(7, 7, dtype=torch.float64) if biased else None

    def penalty(q, k, v):
        leaves = list(dict.fromkeys((q, k, v)))
        y = ops.attend(q, k, v, bias=bias)
        gradients = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves), y.grad_fn.name()

    for given in ((q, k, v), (q, q, v)):
        found, kernel = penalty(*given)
        assert kernel.startswith("ScaledDotProduct"), "else nothing is tested"
        with sdpa_kernel(SDPBackend.MATH):
            expected, _ = penalty(*given)
        torch.testing.assert_close(found, expected)


def test_attention_that_will_be_differentiated_on_a_gpu_goes_round_cudnn(monkeypatch):
    """And takes no kernel that the caller has forbidden."""
    attention, asked = sys.modules[ops.attend.__module__], []
    monkeypatch.setattr(attention, "sdpa_kernel", lambda kernels: asked.append(set(kernels)))
    there = {grad: SimpleNamespace(device=torch.device("cuda"), requires_grad=grad) for grad in (False, True)}
    attention._finite_backward(there[False], there[True], None)
    assert asked == [{SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH}]
    with sdpa_kernel(SDPBackend.MATH):
        attention._finite_backward(there[True], None)
    assert asked.pop() == {SDPBackend.MATH}
    with torch.no_grad():
        attention._finite_backward(there[True])
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        attention._finite_backward(there[True])
    attention._finite_backward(there[False], there[False])
    attention._finite_backward(torch.ones(2, requires_grad=True))
    assert len(asked) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("N", [64, 192, 256, 56 * 56])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_on_a_gpu_a_query_far_from_every_key_has_a_finite_gradient(dtype, N, compiled):
    """Its logits are all about −120."""
    d = 32
    q, k, v = 0.1 * torch.randn(3, 2, 4, N, d, device="cuda")
    q[..., 0], k[..., 0] = 1, -120 * d**0.5
    leaves = [t.to(dtype).requires_grad_() for t in (q, k, 10 * v)]
    attend = torch.compile(ops.attend, fullgraph=True) if compiled else ops.attend
    y = attend(*leaves)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    z = ((exact[0] @ exact[1].mT) * d**-0.5).softmax(-1) @ exact[2]
    incoming = torch.randn_like(y)
    found, expected = torch.autograd.grad(y, leaves, incoming), torch.autograd.grad(z, exact, incoming.double())
    for g, e in zip(found, expected, strict=True):
        assert (g.double() - e).abs().max() <= 0.03 * e.abs().max()
