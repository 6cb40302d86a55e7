"""Temporal attention: which steps of a series matter to which."""

from .pyraformer import CoarserScaleConstruction, PyramidalAttention

__all__ = ["CoarserScaleConstruction", "PyramidalAttention"]
