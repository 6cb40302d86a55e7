"""Temporal attention: which steps of a series matter to which."""

from .gltr import GLTR
from .mtgnn import DilatedInception, GraphLearning, MixHopPropagation, TemporalConv
from .pyraformer import CoarserScaleConstruction, PyramidalAttention
from .tam import TemporalAdaptiveModule

__all__ = [
    "GLTR",
    "CoarserScaleConstruction",
    "DilatedInception",
    "GraphLearning",
    "MixHopPropagation",
    "PyramidalAttention",
    "TemporalAdaptiveModule",
    "TemporalConv",
]
