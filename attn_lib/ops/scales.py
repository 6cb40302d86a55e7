"""Choosing among maps of one size by what each holds on average."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tap import tap


def scale_weights(maps: Sequence[Tensor], W: Tensor, norm: nn.Module | None = None) -> Tensor:
    """Weights of M maps for every channel, w = softmax_m(σ(s_m)) with s_m = W_m z_m and z_m the mean of map m.

    Args:
        maps: M feature maps (B, C, H, W).
        W: (M, C, C), a matrix for each map.
        norm: of the M·C scores over the batch; a rectifier follows it.

    Returns:
        w (B, M, C)

    Raises:
        ValueError: for a batch of one in training, with a norm.
    """
    z = tap("z", torch.stack([y.mean((2, 3)) for y in maps], 1), "B M C")
    s = torch.einsum("BMi,MCi->BMC", z, W)
    if norm is not None:
        if norm.training and len(s) == 1:
            raise ValueError("x is a batch of 1; in training it must hold 2 images or more, for the BN of the scores")
        s = F.relu(norm(s.flatten(1))).view_as(s)
    return tap("w", tap("s", torch.sigmoid(s), "B M C").softmax(1), "B M C")


def weighted_sum(maps: Sequence[Tensor], w: Tensor) -> Tensor:
    """Σ_m w_m ⊙ y_m of M maps (B, C, H, W) with weights (B, M, C): the maps are not copied side by side."""
    return total([w_m[..., None, None].to(y.dtype) * y for w_m, y in zip(w.unbind(1), maps, strict=True)])


def total(terms: Iterable[Tensor]) -> Tensor:
    """Σ of one tensor or more, added up one after the other."""
    return sum(terms)  # type: ignore[return-value]  # which would be a plain 0 without any
