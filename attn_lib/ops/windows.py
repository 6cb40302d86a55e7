"""Windows of a feature map, and the neighbourhood of every pixel."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..checks import check_divisible
from .geometry import ceil_div, open_size


def pad_to_multiple(x: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
    """A feature map with zeros below and to the right, so that i divides its height and j its width.

    Returns:
        the padded map (B, C, Ho, Wo), and which of its pixels are real, (Ho, Wo) in bool.
    """
    H, W = x.shape[-2:]
    down, right = ceil_div(H, i) * i - H, ceil_div(W, j) * j - W  # not -H % i: so a compiler sees i divide it
    real = torch.ones(H, W, dtype=torch.bool, device=x.device)
    return F.pad(x, (0, right, 0, down)), F.pad(real, (0, right, 0, down))


def windows(x: Tensor, i: int, j: int, *, interleaved: bool = False) -> Tensor:
    """A feature map cut into windows of i × j pixels: (B, C, H, W) → (B, H/i · W/j, i·j, C), all row by row.

    The pixels of a window are neighbours, or, interleaved, as far apart as they can be: H/i rows and W/j columns, so
    that every window spans the map.

    Raises:
        ValueError: if i does not divide H, or j does not divide W; see `pad_to_multiple`.
    """
    check_divisible("H", x.shape[2], "i", i)
    check_divisible("W", x.shape[3], "j", j)
    if interleaved:
        return rearrange(x, "B C (i P) (j Q) -> B (P Q) (i j) C", i=i, j=j)
    return rearrange(x, "B C (P i) (Q j) -> B (P Q) (i j) C", i=i, j=j)


def unwindows(x: Tensor, i: int, j: int, H: int, W: int, *, interleaved: bool = False) -> Tensor:
    """The feature map (B, C, H, W) of its windows (B, H/i · W/j, i·j, C): undoes `windows`.

    Its channels stay last in memory, as they are in windows.
    """
    pattern = "B (P Q) (i j) C -> B (i P) (j Q) C" if interleaved else "B (P Q) (i j) C -> B (P i) (Q j) C"
    return rearrange(x, pattern, P=H // i, Q=W // j, i=i, j=j).permute(0, 3, 1, 2)


def cropped(y: Tensor, H: int, W: int) -> Tensor:
    """The first H rows and W columns of a map (…, Ho, Wo): undoes `pad_to_multiple`.

    In a graph whose size is open a copy, since whether a view lies in one piece depends on the size.
    """
    if open_size(H, W):
        return F.pad(y, (0, W - y.shape[-1], 0, H - y.shape[-2]))
    return y[..., :H, :W]


def neighbourhoods(x: Tensor, kernel_size: tuple[int, int], dilation: int = 1,
                   stride: int = 1) -> tuple[Tensor, Tensor]:
    """The K = kH·kW neighbours of every pixel, or of one in `stride` rows and columns, itself in the middle.

    Neighbours outside the map are zeros. A softmax has to mask them by the second output: a zero is a key like
    any other, and takes its share.

    Args:
        x: feature map (B, C, H, W).
        kernel_size: (kH, kW), both odd.
        dilation: distance between neighbours in pixels.
        stride: distance between the pixels that are asked about, the first of them being (0, 0).

    Returns:
        (B, C, K, Ho, Wo), neighbours row by row, and which of them lie on the map, (K, Ho, Wo) in bool, Ho = ⌈H/stride⌉
        and Wo = ⌈W/stride⌉.
    """
    H, W = x.shape[2:]
    on_map = neighbours_on_map(H, W, kernel_size, dilation, stride, device=x.device)
    padding = tuple(dilation * (k // 2) for k in kernel_size)
    return F.unfold(x, kernel_size, dilation, padding, stride).view(*x.shape[:2], *on_map.shape), on_map


def neighbours_on_map(H: int, W: int, kernel_size: tuple[int, int], dilation: int = 1, stride: int = 1, *,
                      device: torch.device | None = None) -> Tensor:
    """Which neighbours lie on a map of H × W pixels, (K, Ho, Wo) in bool; arguments as for `neighbourhoods`."""
    places = (torch.arange(-(k // 2), k // 2 + 1, device=device)[:, None] * dilation
              + torch.arange(0, n, stride, device=device) for k, n in zip(kernel_size, (H, W), strict=True))
    rows, cols = ((place >= 0) & (place < n) for place, n in zip(places, (H, W), strict=True))
    return (rows[:, None, :, None] & cols[None, :, None, :]).flatten(0, 1)
