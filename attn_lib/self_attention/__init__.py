"""Self-attention on feature maps: every position asks, and some or all of the others answer."""

from .acmix import ACmix
from .biformer import BiLevelRoutingAttention
from .cot import CoTAttention
from .crossformer import CrossScaleEmbedding, DynamicPositionBias, LongShortDistanceAttention
from .dilateformer import DilateAttention
from .emo import InvertedResidualMobileBlock
from .mhsa import MHSA2d
from .seaformer import SeaAttention
from .stvit import SuperTokenAttention

__all__ = [
    "ACmix",
    "BiLevelRoutingAttention",
    "CoTAttention",
    "CrossScaleEmbedding",
    "DilateAttention",
    "DynamicPositionBias",
    "InvertedResidualMobileBlock",
    "LongShortDistanceAttention",
    "MHSA2d",
    "SeaAttention",
    "SuperTokenAttention",
]
