"""Channel and spatial attention: which feature maps matter, and where."""

from .bam import BAM
from .cbam import CBAM, ChannelAttention, JointCBAM, SpatialAttention
from .coord import CoordinateAttention
from .simam import SimAM

__all__ = [
    "BAM",
    "CBAM",
    "ChannelAttention",
    "CoordinateAttention",
    "JointCBAM",
    "SimAM",
    "SpatialAttention",
]
