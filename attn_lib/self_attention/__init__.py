"""Self-attention on feature maps: every position asks, and some or all of the others answer."""

from .biformer import BiLevelRoutingAttention
from .external import ExternalAttention, ExternalAttentionBlock
from .mhsa import MHSA2d

__all__ = ["BiLevelRoutingAttention", "ExternalAttention", "ExternalAttentionBlock", "MHSA2d"]
