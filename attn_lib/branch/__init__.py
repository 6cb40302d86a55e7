"""Branch attention: which of several parallel paths, or kernels, is taken.

Each sums alternatives with weights that depend on the image. They differ in what the alternatives are: the input
itself and something new (highway), convolutions of several sizes (SK), splits of one convolution (ResNeSt), or kernels
that are mixed first, so that one convolution is paid for (CondConv, dynamic convolution). And they differ in how the
weights compete: as shares that sum to one, or, in CondConv, each for itself.
"""

from .condconv import CondConv2d
from .dynamic_conv import DynamicConv2d
from .highway import Highway, HighwayConv2d
from .resnest import SplitAttention
from .sk import SKAttention

__all__ = ["CondConv2d", "DynamicConv2d", "Highway", "HighwayConv2d", "SKAttention", "SplitAttention"]
