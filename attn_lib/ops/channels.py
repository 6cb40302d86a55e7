"""What channels have to do with each other: their order and their covariance."""

import torch
from einops import rearrange
from torch import Tensor

from .precision import in_float32


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """The channels (B, C, H, W) dealt out: one of each group in turn, so that the next groups hold some of each.

    Channel s of group g, which was number g · C/groups + s, becomes number s · groups + g.
    """
    return rearrange(x, "B (G S) H W -> B (S G) H W", G=groups)


def covariance(x: Tensor) -> Tensor:
    """Covariance of the channels over the positions, ∑ (x − x̄)(x − x̄)ᵀ / N, in float32 at least.

    Args:
        x: (B, C, N); a feature map is flattened first.

    Returns:
        (B, C, C). The mean is taken off first, so no N × N centring matrix is needed, and nothing cancels.
    """
    x = x - x.mean(-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return in_float32(lambda t: t @ t.transpose(-2, -1), x) / x.shape[-1]
