"""Convolutions that choose where, or with what, they convolve."""

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
