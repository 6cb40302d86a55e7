"""Spatial attention: which positions matter, the same answer for every channel."""

from .ccnet import CrissCrossAttention

__all__ = ["CrissCrossAttention"]
