"""Where the taps of a convolution lie: its padding, the size of its output, the positions that it reads."""

import torch
from torch import Tensor

Pair = tuple[int, int]  # (rows, columns)


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


def output_size(size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
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
    options = dict(device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    return torch.arange(n, **options)[:, None] * stride - padding + torch.arange(k, **options) * dilation
