"""Temporal attention: which steps of a series matter to which."""

from .mtgnn import DilatedInception, GraphLearning, MixHopPropagation, TemporalConv
from .pyraformer import CoarserScaleConstruction, PyramidalAttention

__all__ = [
    "CoarserScaleConstruction",
    "DilatedInception",
    "GraphLearning",
    "MixHopPropagation",
    "PyramidalAttention",
    "TemporalConv",
]
