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
