"""Softmax attention."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tap import recording, tap, tracing
from .precision import in_float32


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, bias: Tensor | None = None,
           name: str = "A", dims: str = "") -> Tensor:
    """Softmax attention softmax(scale · q kᵀ + bias) v.

    By `F.scaled_dot_product_attention`: no attention matrix exists where torch has a fused kernel for the device
    and the shapes; on a CPU it has none for a bias that learns. Inside a trace the matrix is made, and recorded
    under `name`; in half precision it is made in float32, as the kernels do within.

    Args:
        q: queries (…, N, d).
        k: keys (…, Nk, d).
        v: values (…, Nk, dv).
        scale: factor of the logits; 1/√d when None.
        bias: added to the logits, broadcast to (…, N, Nk); −inf forbids a pair, but never a whole row.
        name, dims: of the tap, see `tap.tap`.

    Returns:
        (…, N, dv)
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k_T = k.transpose(-2, -1)
    if tracing():
        return tap(name, _weights(in_float32(torch.matmul, q, k_T) * scale, bias), dims).to(v.dtype) @ v
    if recording():  # under checkpointing: the matrix is shown, but y does not come from it
        with torch.no_grad():
            tap(name, _weights(in_float32(torch.matmul, q, k_T) * scale, bias), dims)
    if q.device.type == "cpu" and bias is not None and bias.requires_grad and torch.is_grad_enabled():
        return _weights(in_float32(torch.matmul, q * scale, k_T), bias).to(v.dtype) @ v  # torch's fallback is slower
    return _fused(q, k, v, scale, bias)


def _weights(logits: Tensor, bias: Tensor | None) -> Tensor:
    return (logits if bias is None else logits + bias).softmax(-1)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """`F.scaled_dot_product_attention` with what its fused kernels want: four axes, D = E, vectors in one piece."""
    D, E = q.shape[-1], v.shape[-1]
    if E < D:
        return _fused(q, k, F.pad(v, (0, D - E)), scale, bias)[..., :E]
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    if q.ndim == 4:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    lead, pairs = q.shape[:-2], (q.shape[-2], k.shape[-2])
    if bias is not None and bias.ndim > 2:
        bias = bias.expand(*lead, *pairs).reshape(-1, lead[-1], *pairs)
    q, k, v = (t.reshape(-1, lead[-1], *t.shape[-2:]) for t in (q, k, v))  # two axes: CUDA has 65,535 blocks in each
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return y.reshape(*lead, *y.shape[-2:])
