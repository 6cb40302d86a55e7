"""Branch attention: which of several parallel paths answers."""

from .condconv import CondConv2d
from .dynamic_conv import DynamicConv2d
from .highway import Highway, HighwayConv2d
from .resnest import SplitAttention
from .sk import SKAttention

__all__ = ["CondConv2d", "DynamicConv2d", "Highway", "HighwayConv2d", "SKAttention", "SplitAttention"]
