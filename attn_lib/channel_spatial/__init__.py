"""Channel and spatial attention: which feature maps matter, and where."""

from .bam import BAM
from .cbam import CBAM, ChannelAttention, JointCBAM, SpatialAttention
from .coord import CoordinateAttention
from .ema import EMAAttention
from .scse import CSEAttention, SCSEAttention, SSEAttention
from .shuffle import ShuffleAttention
from .simam import SimAM
from .triplet import TripletAttention, TripletBranch

__all__ = [
    "BAM",
    "CBAM",
    "CSEAttention",
    "ChannelAttention",
    "CoordinateAttention",
    "EMAAttention",
    "JointCBAM",
    "SCSEAttention",
    "SSEAttention",
    "ShuffleAttention",
    "SimAM",
    "SpatialAttention",
    "TripletAttention",
    "TripletBranch",
]
