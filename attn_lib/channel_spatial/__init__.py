"""Channel and spatial attention: which feature maps matter, and where."""

from .bam import BAM
from .cbam import CBAM, ChannelAttention, JointCBAM, LogitCBAM, SpatialAttention
from .coord import CoordinateAttention
from .danet import ChannelSelfAttention, DANetAttention, DANetHead, PositionAttention
from .ema import EMAAttention
from .gala import GALAAttention
from .gam import GAMAttention
from .parnet import ParNetBlock, ParNetDownsampling, ParNetFusion
from .residual_attention import ResidualAttentionModule, ResidualUnit
from .scnet import SelfCalibratedConv
from .scse import CSEAttention, SCSEAttention, SSEAttention
from .shuffle import ShuffleAttention
from .simam import SimAM
from .triplet import TripletAttention, TripletBranch

__all__ = [
    "BAM",
    "CBAM",
    "CSEAttention",
    "ChannelAttention",
    "ChannelSelfAttention",
    "CoordinateAttention",
    "DANetAttention",
    "DANetHead",
    "EMAAttention",
    "GALAAttention",
    "GAMAttention",
    "JointCBAM",
    "LogitCBAM",
    "ParNetBlock",
    "ParNetDownsampling",
    "ParNetFusion",
    "PositionAttention",
    "ResidualAttentionModule",
    "ResidualUnit",
    "SCSEAttention",
    "SSEAttention",
    "SelfCalibratedConv",
    "ShuffleAttention",
    "SimAM",
    "SpatialAttention",
    "TripletAttention",
    "TripletBranch",
]
