"""MLPs that mix along the axes of a feature map, with no attention matrix at all."""

from .s2mlpv2 import S2Attention, SplitAttentionMLP
from .vip import WeightedPermuteMLP

__all__ = ["S2Attention", "SplitAttentionMLP", "WeightedPermuteMLP"]
