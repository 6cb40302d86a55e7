"""Spatial attention: where to look.

The non-local block, criss-cross attention and PSA mix: a position collects from all others, from its row and its
column, or by a map that it predicts from what it holds alone. Gather-Excite and strip pooling gate each position by a
summary of what lies around it, a window in one, its row and its column in the other. The spatial transformer and RAM
move: they read the image at other places, the one all of it through a transformation that it predicts, the other a few
small windows at a place that it is given.
"""

from .ccnet import CrissCrossAttention
from .genet import GatherExcite
from .non_local import NonLocalAttention
from .psanet import PointwiseSpatialAttention
from .ram import GlimpseSensor, RecurrentAttention, Rollout
from .spnet import MixedPooling, StripPooling
from .stn import SpatialTransformer

__all__ = [
    "CrissCrossAttention",
    "GatherExcite",
    "GlimpseSensor",
    "MixedPooling",
    "NonLocalAttention",
    "PointwiseSpatialAttention",
    "RecurrentAttention",
    "Rollout",
    "SpatialTransformer",
    "StripPooling",
]
