"""Convolution: which neighbours are read, and how.

Each stands in the place of a convolution, and changes one thing of it. Deformable convolution, its third version and
the dynamic snake move the taps to where the input says; dilated convolution and ASPP spread them by fixed rates. The
others save: depthwise separable convolution reads neighbours in each channel alone, partial convolution in a quarter
of the channels, SCConv in half of them.
"""

from .aspp import ASPP, valid_weights
from .dcnv3 import DCNv3
from .deform import DeformConv2d, deform_conv2d
from .depthwise_separable import DepthwiseSeparableConv
from .dilated import ContextModule, DilatedConv, reached, receptive_field
from .pconv import PartialConv
from .scconv import ChannelReconstructionUnit, SpatialChannelReconstructionConv, SpatialReconstructionUnit
from .snake import DynamicSnakeConv, MultiViewFusion, TCLoss, hausdorff, persistence_diagrams

__all__ = [
    "ASPP",
    "ChannelReconstructionUnit",
    "ContextModule",
    "DCNv3",
    "DeformConv2d",
    "DepthwiseSeparableConv",
    "DilatedConv",
    "DynamicSnakeConv",
    "MultiViewFusion",
    "PartialConv",
    "SpatialChannelReconstructionConv",
    "SpatialReconstructionUnit",
    "TCLoss",
    "deform_conv2d",
    "hausdorff",
    "persistence_diagrams",
    "reached",
    "receptive_field",
    "valid_weights",
]
