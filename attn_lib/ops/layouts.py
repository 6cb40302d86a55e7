"""Feature maps as tokens, for modules that take either."""

from torch import Tensor


def to_tokens(x: Tensor) -> Tensor:
    """A feature map (B, C, H, W) as tokens (B, HW, C), row by row; tokens stay as they are."""
    return x if x.ndim == 3 else x.flatten(2).transpose(1, 2)


def from_tokens(y: Tensor, like: Tensor) -> Tensor:
    """Tokens (B, N, O) in the layout of `like`: tokens as they are, or a feature map (B, O, H, W) of its size."""
    return y if like.ndim == 3 else y.transpose(1, 2).unflatten(2, like.shape[2:])
