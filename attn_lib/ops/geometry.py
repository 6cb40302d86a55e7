"""Where the taps of a convolution lie: its padding, the size of its output, the positions that it reads.

And what is known of a size: in a graph that is recorded for any size it is no number.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

Pair = tuple[int, int]  # (rows, columns)


class Geometry(TypedDict):
    """What a convolution is told besides its kernel."""

    stride: Pair
    padding: Pair
    dilation: Pair


class GroupedGeometry(Geometry):
    """The same with groups."""

    groups: int


def same_padding(kernel_size: Pair, dilation: Pair) -> Pair:
    """The padding with which a convolution of stride 1 keeps the size of the map.

    Raises:
        ValueError: for an even kernel that would need half a pixel of it.
    """
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    if any(n % 2 for n in reach):
        raise ValueError(f"kernel_size={kernel_size} with dilation={dilation} has no centre, "
                         "so padding=None must become a number")
    return reach[0] // 2, reach[1] // 2


def output_size(size: Sequence[int], kernel_size: Sequence[int], stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """(Ho, Wo) of a convolution of x, a map of size (H, W).

    Raises:
        ValueError: if the padded map is smaller than the kernel.
    """
    reach = [d * (k - 1) + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    for axis, n, r, p in zip("HW", size, reach, padding, strict=True):
        if n + 2 * p < r:
            raise ValueError(f"x has {axis}={n}; it must be at least {r - 2 * p} for the kernel to fit")
    Ho, Wo = ((n + 2 * p - r) // s + 1 for n, r, s, p in zip(size, reach, stride, padding, strict=True))
    return Ho, Wo


def tap_positions(n: int, k: int, stride: int, padding: int, dilation: int, like: Tensor) -> Tensor:
    """p₀ + pₖ along one axis: the positions in x of the k taps for each of n outputs, (n, k).

    On the device of `like`, in float32 at least: bfloat16 cannot tell pixel 256 from pixel 257.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    outputs, taps = (torch.arange(m, device=like.device, dtype=dtype) for m in (n, k))
    return outputs[:, None] * stride - padding + taps * dilation


def ceil_div(n: int, d: int) -> int:
    """⌈n/d⌉ of positive numbers. Not −(−n // d): in ONNX a division rounds towards 0, and a recorded graph is wrong."""
    return (n + d - 1) // d


def open_size(*sizes: int) -> bool:
    """Whether a size is not a number, but what a recorded graph will be asked about: in `torch.jit.trace` any size is,
    in `torch.export` and the compiler one that is dynamic.

    What Python decides from such a size stays decided in the graph, whatever size comes. So ask this first, and take
    the way that is right for every size.
    """
    return any(type(n) is not int for n in sizes)


def traced() -> bool:
    """Whether `torch.jit.trace` records a graph."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # torch's types lack it


def at_one_size(x: Tensor, *dims: int) -> tuple[Any, ...]:
    """x, and its sizes along `dims` as numbers that Python may decide by: a graph recorded here refuses other sizes.

    `torch.export` itself refuses to leave them open. `torch.jit.trace` would not notice; there x passes through a
    split into one part, which fails for any other size, also in ONNX.
    """
    sizes = [int(x.shape[dim]) for dim in dims]
    if traced():
        for dim, n in zip(dims, sizes, strict=True):
            x = x.split([n], dim)[0]
    return x, *sizes
