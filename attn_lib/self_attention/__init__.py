"""Self-attention on feature maps: every position asks, and some or all of the others answer."""

from .a2 import DoubleAttention
from .aft import AFTAttention
from .biformer import BiLevelRoutingAttention
from .external import ExternalAttention, ExternalAttentionBlock
from .mhsa import MHSA2d
from .swiftformer import EfficientAdditiveAttention
from .ufo import UFOAttention

__all__ = [
    "AFTAttention",
    "BiLevelRoutingAttention",
    "DoubleAttention",
    "EfficientAdditiveAttention",
    "ExternalAttention",
    "ExternalAttentionBlock",
    "MHSA2d",
    "UFOAttention",
]
