"""Tensor operations that several modules share."""

import torch.nn.functional as F
from torch import Tensor

from .tap import tap, tracing


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, bias: Tensor | None = None,
           name: str = "A", dims: str = "") -> Tensor:
    """Softmax attention softmax(scale · q kᵀ + bias) v.

    Fused (`F.scaled_dot_product_attention`), so that no attention matrix exists; inside a trace the matrix is
    made, and recorded under `name`.

    Args:
        q: queries (…, N, D).
        k: keys (…, M, D).
        v: values (…, M, E).
        scale: factor of the logits; 1/√D when None.
        bias: added to the logits, broadcast to (…, N, M); −inf forbids a pair, but never a whole row.
        name, dims: of the tap, see `tap.tap`.

    Returns:
        (…, N, E)
    """
    if not tracing():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    logits = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return tap(name, (logits if bias is None else logits + bias).softmax(-1), dims) @ v
