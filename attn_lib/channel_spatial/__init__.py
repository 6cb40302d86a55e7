"""Channel and spatial attention: which feature maps matter, and where."""

from .coord import CoordinateAttention

__all__ = ["CoordinateAttention"]
