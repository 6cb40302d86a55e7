"""Pooling along axes."""

from torch import Tensor


def mean_and_max(x: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and maximum of x over the axes `dim`, which stay with size 1.

    Where several entries tie for the maximum, its gradient is divided among them.
    """
    return x.mean(dim, keepdim=True), x.amax(dim, keepdim=True)


def strip_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means along the rows and along the columns of a feature map (B, C, H, W): (B, C, H) and (B, C, W)."""
    return x.mean(3), x.mean(2)
