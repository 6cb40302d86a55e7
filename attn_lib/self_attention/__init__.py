"""Self-attention on feature maps: every position asks, and some or all of the others answer."""

from .mhsa import MHSA2d

__all__ = ["MHSA2d"]
