"""Shared operations against their definitions."""

import pytest
import torch

from attn_lib import ops
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
