"""Temporal attention: which steps of a series matter to which."""

from .pyraformer import CoarserScaleConstruction, PyramidalAttention
from .tam import TemporalAdaptiveModule

__all__ = ["CoarserScaleConstruction", "PyramidalAttention", "TemporalAdaptiveModule"]
