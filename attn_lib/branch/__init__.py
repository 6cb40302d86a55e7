"""Branch attention: which of several parallel paths answers."""

from .highway import Highway, HighwayConv2d
from .sk import SKAttention

__all__ = ["Highway", "HighwayConv2d", "SKAttention"]
