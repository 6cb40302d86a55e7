"""Pooling along axes."""

from typing import Any

import torch
from torch import Tensor


def mean_and_max(x: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and maximum of x over the axes `dim`, which stay with size 1; see `maximum`."""
    return x.mean(dim, keepdim=True), maximum(x, dim)


def maximum(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The maximum of x over the axes `dim`, which stay with size 1.

    Where several entries tie for it, its gradient is divided among them, as that of `amax`: no entry is preferred, and
    a symmetry of the input is one of the gradient. (`max` and the pooling layers give all of it to the first.) The
    backward pass of `amax` itself takes several times as long on a CPU.
    """
    # The compiler writes a backward pass of its own, and does not take a function that has a `jvp`.
    return x.amax(dim, keepdim=True) if torch.compiler.is_compiling() else _Maximum.apply(x, dim)


class _Maximum(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
        return x.amax(dim, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.dim = inputs
        ctx.save_for_backward(x, output)
        ctx.save_for_forward(x, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        tied, count = _tied(ctx)
        return tied * (grad / count).to(grad.dtype), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        tied, count = _tied(ctx)
        return ((tied * tangent).sum(ctx.dim, keepdim=True) / count).to(tangent.dtype)


def _tied(ctx: Any) -> tuple[Tensor, Tensor]:
    """1 where an entry is the maximum, else 0; and how many are. bfloat16 could not count beyond 256."""
    x, largest = ctx.saved_tensors
    tied = (x == largest).to(x.dtype)
    return tied, tied.sum(ctx.dim, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))


def strip_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means along the rows and along the columns of a feature map (B, C, H, W): (B, C, H) and (B, C, W)."""
    return x.mean(3), x.mean(2)
