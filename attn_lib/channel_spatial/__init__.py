"""Channel and spatial attention: which feature maps matter, and where.

Most multiply the input by a gate of both, and differ in how the two answers meet: one after the other (CBAM, GAM),
added before the gate (BAM), side by side (scSE), as a factor for the row times one for the column in each channel
(coordinate attention), or as one gate for every number, from a coarser map (residual attention, SCNet) or from a
formula without weights (SimAM). Triplet attention takes the axes in pairs; shuffle attention and EMA work in groups of
channels. DANet does not gate but mixes, positions among positions and channels among channels.
"""

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
