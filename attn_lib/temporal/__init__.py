"""Temporal attention: which moments matter.

All of them mix along time, and each takes another kind of series. Pyramidal attention joins the steps of one long
series over coarser scales, by softmax attention among few neighbours. MTGNN convolves the series of several places in
several lengths, gates what it finds and never sees the future. GLTR reads the features of a clip's frames, by dilated
convolutions before attention; TAM reads video, and convolves each clip with a kernel that it makes from it.
"""

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
