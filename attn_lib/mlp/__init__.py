"""MLP: positions meet through learned matrices or shifts, with no attention map at all.

Both make three versions of the map and weigh them, channel by channel, by a softmax that sees the mean of the whole
image. In the Permutator they come from matrices along the column, along the row and over the channels, which know
every position by its number and are made for one size of map. In S²-MLPv2 two of them are shifted by a pixel, each
quarter of the channels another way: that costs no weight, and takes any size.
"""

from .s2mlpv2 import S2Attention, SplitAttentionMLP
from .vip import WeightedPermuteMLP

__all__ = ["S2Attention", "SplitAttentionMLP", "WeightedPermuteMLP"]
