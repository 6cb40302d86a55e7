"""Channel and spatial attention: which feature maps matter, and where."""

from .cbam import CBAM, ChannelAttention, JointCBAM, SpatialAttention
from .coord import CoordinateAttention
from .ema import EMAAttention
from .parnet import ParNetBlock, ParNetDownsampling, ParNetFusion
from .shuffle import ShuffleAttention
from .simam import SimAM

__all__ = [
    "CBAM",
    "ChannelAttention",
    "CoordinateAttention",
    "EMAAttention",
    "JointCBAM",
    "ParNetBlock",
    "ParNetDownsampling",
    "ParNetFusion",
    "ShuffleAttention",
    "SimAM",
    "SpatialAttention",
]
