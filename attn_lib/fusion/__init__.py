"""Fusion: two or more inputs become one, and a gate says how much of each."""

from .gated import GatedFusion

__all__ = ["GatedFusion"]
