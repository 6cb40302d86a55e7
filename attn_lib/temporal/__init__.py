"""Temporal attention: which steps of a series matter to which."""

from .gltr import GLTR
from .pyraformer import CoarserScaleConstruction, PyramidalAttention
from .tam import TemporalAdaptiveModule

__all__ = ["GLTR", "CoarserScaleConstruction", "PyramidalAttention", "TemporalAdaptiveModule"]
