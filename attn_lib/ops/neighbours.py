"""Products of every pixel with its neighbours, of which no copies are made.

Both are derivatives of T = Σ_i Σ_n A_in q_i · k_{i+n}, and so are their own: three operators are enough, and autograd
keeps their arguments only. As operators of torch they are known to the counter of FLOPs, see `attn_lib.measure`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import traced
from .precision import in_float32


def neighbour_logits(q: Tensor, k: Tensor, kernel_size: tuple[int, int], dilation: int = 1, stride: int = 1, *,
                     padding: tuple[int, int] | None = None) -> Tensor:
    """q · k for the K = kH·kW neighbours of every pixel, or of one in `stride` rows and columns, row by row.

    Args:
        q: queries (B, h, d, Ho, Wo).
        k: keys (B, h, d, H, W).
        kernel_size, dilation, stride: as in `neighbourhoods`, which also says which neighbours lie on the map.
        padding: zeros around k; as far as the neighbours reach when None, so that Ho = ⌈H/stride⌉, Wo = ⌈W/stride⌉.

    Returns:
        (B, h, K, Ho, Wo), in float32 at least.
    """
    geometry = _geometry(kernel_size, dilation, stride, padding)
    if _recorded():
        return in_float32(lambda q, k: (q[:, :, :, None] * _unfolded(k, geometry)).sum(2), q, k)
    return in_float32(_dot, q, k, geometry)


def neighbour_sum(A: Tensor, v: Tensor, kernel_size: tuple[int, int], dilation: int = 1, stride: int = 1, *,
                  padding: tuple[int, int] | None = None) -> Tensor:
    """Σ_n A_n v_n over the K neighbours of every pixel; see `neighbour_logits`.

    Args:
        A: weights (B, h, K, Ho, Wo).
        v: values (B, h, d, H, W).

    Returns:
        (B, h, d, Ho, Wo), of the type of v.
    """
    geometry = _geometry(kernel_size, dilation, stride, padding)
    if _recorded():
        return in_float32(lambda A, v: (A[:, :, None] * _unfolded(v, geometry)).sum(3), A, v).to(v.dtype)
    return in_float32(_mix, A, v, geometry).to(v.dtype)


def _recorded() -> bool:
    """Whether a graph is made: a compiler fuses what it can look into, and who loads a traced graph may not have us."""
    return torch.compiler.is_compiling() or traced()


def _geometry(kernel_size: tuple[int, int], dilation: int, stride: int, padding: tuple[int, int] | None) -> list[int]:
    return [*kernel_size, dilation, stride, *(padding or (dilation * (k // 2) for k in kernel_size))]


def _unfolded(t: Tensor, geometry: Sequence[int]) -> Tensor:
    """The neighbours (B, h, d, K, Ho, Wo) side by side."""
    kH, kW, dilation, stride, rows, cols = geometry
    Ho, Wo = ((n + 2 * p - dilation * (k - 1) - 1) // stride + 1
              for n, p, k in zip(t.shape[3:], (rows, cols), (kH, kW), strict=True))
    near = F.unfold(t.flatten(1, 2), (kH, kW), dilation, (rows, cols), stride)
    return near.view(*t.shape[:3], kH * kW, Ho, Wo)


def _padded(t: Tensor, geometry: Sequence[int]) -> Tensor:
    rows, cols = geometry[4:]
    return F.pad(t, (cols, cols, rows, rows))


def _moved(t: Tensor, like: Tensor, geometry: Sequence[int]) -> Iterator[Tensor]:
    """Views of a padded map: for each neighbour those of all pixels, of the size of `like`."""
    kH, kW, dilation, stride = geometry[:4]
    height, width = ((n - 1) * stride + 1 for n in like.shape[-2:])
    for i in range(0, kH * dilation, dilation):
        for j in range(0, kW * dilation, dilation):
            yield t[..., i:i + height:stride, j:j + width:stride]


@torch.library.custom_op("attn_lib::neighbour_dot", mutates_args=(),
                         schema="(Tensor q, Tensor k, int[] geometry) -> Tensor")
def _dot(q: Tensor, k: Tensor, geometry: Sequence[int]) -> Tensor:
    """∂T/∂A (B, h, K, Ho, Wo)"""
    logits, product = _new_dot(q, k, geometry), torch.empty_like(q)
    for n, near in enumerate(_moved(_padded(k, geometry), q, geometry)):
        torch.sum(torch.mul(q, near, out=product), 2, out=logits[:, :, n])
    return logits


@torch.library.custom_op("attn_lib::neighbour_mix", mutates_args=(),
                         schema="(Tensor A, Tensor k, int[] geometry) -> Tensor")
def _mix(A: Tensor, k: Tensor, geometry: Sequence[int]) -> Tensor:
    """∂T/∂q (B, h, d, Ho, Wo)"""
    y = _new_mix(A, k, geometry).zero_()
    for a, near in zip(A[:, :, :, None].unbind(2), _moved(_padded(k, geometry), y, geometry), strict=True):
        y.addcmul_(a, near)
    return y


@torch.library.custom_op("attn_lib::neighbour_spread", mutates_args=(),
                         schema="(Tensor A, Tensor q, int[] size, int[] geometry) -> Tensor")
def _spread(A: Tensor, q: Tensor, size: Sequence[int], geometry: Sequence[int]) -> Tensor:
    """∂T/∂k (B, h, d, H, W)"""
    rows, cols = geometry[4:]
    padded = _padded(_new_spread(A, q, size, geometry).zero_(), geometry)
    for a, near in zip(A[:, :, :, None].unbind(2), _moved(padded, q, geometry), strict=True):
        near.addcmul_(a, q)
    return padded[..., rows:rows + size[0], cols:cols + size[1]].contiguous()


@_dot.register_fake
def _new_dot(q: Tensor, k: Tensor, geometry: Sequence[int]) -> Tensor:
    return q.new_empty(*q.shape[:2], geometry[0] * geometry[1], *q.shape[3:])


@_mix.register_fake
def _new_mix(A: Tensor, k: Tensor, geometry: Sequence[int]) -> Tensor:
    return k.new_empty(*k.shape[:3], *A.shape[3:])


@_spread.register_fake
def _new_spread(A: Tensor, q: Tensor, size: Sequence[int], geometry: Sequence[int]) -> Tensor:
    return q.new_empty(*q.shape[:3], *size)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.geometry = inputs[-1]


def _dot_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (q, k), geometry, (for_q, for_k, *_) = ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad
    return (_mix(grad, k, geometry) if for_q else None,
            _spread(grad, q, k.shape[3:], geometry) if for_k else None, None)


def _mix_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (A, k), geometry, (for_A, for_k, *_) = ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad
    return (_dot(grad, k, geometry) if for_A else None,
            _spread(A, grad, k.shape[3:], geometry) if for_k else None, None)


def _spread_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (A, q), geometry, (for_A, for_q, *_) = ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad
    return _dot(q, grad, geometry) if for_A else None, _mix(A, grad, geometry) if for_q else None, None, None


_dot.register_autograd(_dot_backward, setup_context=_keep)
_mix.register_autograd(_mix_backward, setup_context=_keep)
_spread.register_autograd(_spread_backward, setup_context=_keep)
