"""Spatial attention: which positions matter, the same answer for every channel."""

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
