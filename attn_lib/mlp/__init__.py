"""MLPs that mix along the axes of a feature map, with no attention matrix at all."""

from .vip import WeightedPermuteMLP

__all__ = ["WeightedPermuteMLP"]
