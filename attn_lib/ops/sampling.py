"""Feature maps between their pixels, and at other sizes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_tensor
from .geometry import open_size


def bilinear_sample(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """x at positions between its pixels: x(p) = Σ_q G(q, p) · x(q), and zero outside the image.

    G(q, p) = g(q_row, p_row) · g(q_col, p_col) with g(a, b) = max(0, 1 − |a − b|): up to four pixels q count
    for a position p. Gradients reach x and the positions. On a pixel, where G has a kink, the gradient with
    respect to the position is the forward difference, whatever the size of the image; in a graph that is recorded
    for any size it is the difference on one side or the other.

    Args:
        x: feature map (B, C, H, W).
        rows, cols: positions in pixels, (B, *S) each; (0, 0) is the centre of the first pixel.

    Returns:
        (B, C, *S)

    Raises:
        ValueError: if rows and cols differ in shape, or from x in batch size.
    """
    B, C, H, W = check_tensor(x, "B C H W").shape
    if rows.shape != cols.shape or rows.shape[:1] != x.shape[:1]:
        shapes = f"rows {tuple(rows.shape)} and cols {tuple(cols.shape)}"
        raise ValueError(f"{shapes} must have the same shape (B, …) with B={B}, the batch of x")
    # F.grid_sample wants positions as fractions of the image. Dividing by a power of two is exact, dividing
    # by W is not; so x is widened with the zeros that lie outside it anyway: whole positions hit their pixel.
    # Half precision cannot tell the pixels of a wide image apart, so none of this is done in it.
    # A graph that leaves the size open cannot look for a power of two, and rounds.
    dtype = torch.promote_types(x.dtype, torch.float32)
    tall, wide = (n if open_size(n) else _power_of_two(n) for n in (H, W))
    grid = torch.stack([(cols.to(dtype) + 0.5) * (2 / wide) - 1, (rows.to(dtype) + 0.5) * (2 / tall) - 1], -1)
    y = F.grid_sample(F.pad(x.to(dtype), (0, wide - W, 0, tall - H)), grid.flatten(1, -2)[:, None],
                      mode="bilinear", padding_mode="zeros", align_corners=False)
    return y.reshape(B, C, *rows.shape[1:]).to(x.dtype)


def resize(x: Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """A feature map (B, C, H, W) at another size, by the one convention of this library.

    Pixels are squares and positions are those of their centres (`align_corners=False`), so that the borders of the
    image stay where they are. "bilinear" reads four pixels at any scale, also where it shrinks the map; "nearest"
    repeats or drops pixels: row i reads row ⌊i · H / height⌋. The type is that of x, also under autocast, which on a
    GPU interpolates in float32.
    """
    y = F.interpolate(x, (height, width), mode=mode, align_corners=None if mode == "nearest" else False)
    return y.to(x.dtype)


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n (n.bit_length() would not compile for a dynamic n)."""
    power = 1
    while power < n:
        power *= 2
    return power
