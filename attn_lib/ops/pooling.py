"""Pooling along axes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import open_size, traced
from .precision import in_float32


def mean_and_max(x: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and maximum of x over the axes `dim`, which stay with size 1; see `maximum`."""
    return x.mean(dim, keepdim=True), maximum(x, dim)


def maximum(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The maximum of x over the axes `dim`, which stay with size 1.

    Where several entries tie for it, its gradient is divided among them, as that of `amax`: no entry is preferred, and
    a symmetry of the input is one of the gradient. (`max` and the pooling layers give all of it to the first.) The
    backward pass of `amax` itself takes several times as long on a CPU.
    """
    # The compiler writes a backward pass of its own, and does not take a function that has a `jvp`; a trace with such a
    # function in it cannot be saved.
    recorded = torch.compiler.is_compiling() or traced()
    return x.amax(dim, keepdim=True) if recorded else _Maximum.apply(x, dim)  # type: ignore[no-untyped-call]


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


def grid_means(x: Tensor, rows: int, cols: int) -> Tensor:
    """Means of a feature map (B, C, H, W) in a grid of cells, (B, C, rows, cols), as `F.adaptive_avg_pool2d` has them.

    Cell i of n begins at pixel ⌊i · H / n⌋ and ends before ⌈(i + 1) · H / n⌉. In a graph whose size is open these are
    two matrix products: ONNX has no such pooling, and its exporters write the one of the size that was recorded.
    """
    H, W = x.shape[2:]
    if not open_size(H, W, rows, cols):
        return F.adaptive_avg_pool2d(x, (rows, cols))
    down, right = _cells(rows, H, x), _cells(cols, W, x)
    return in_float32(lambda t, down, right: down @ t @ right.transpose(0, 1), x, down, right).to(x.dtype)


def _cells(n: int, size: int, like: Tensor) -> Tensor:
    """What every pixel of an axis counts for each cell's mean, (n, size)."""
    cell, pixel = torch.arange(n, device=like.device)[:, None], torch.arange(size, device=like.device)
    begin, end = cell * size // n, ((cell + 1) * size + n - 1) // n
    return ((pixel >= begin) & (pixel < end)).to(like.dtype) / (end - begin).to(like.dtype)
