"""Fusion: two or more inputs become one, and a gate says how much of each."""

__all__ = []
