"""Channel attention: which feature maps matter, the same answer at every position."""

from .eca import ECAAttention
from .encnet import EncodingAttention
from .epsa import PSAAttention
from .fca import FcaAttention
from .gct import GCTAttention
from .gsop import GSoPAttention, GSoPSpatialAttention
from .nam import NAMAttention
from .se import SEAttention
from .soca import SOCAAttention
from .srm import SRMAttention

__all__ = [
    "ECAAttention",
    "EncodingAttention",
    "FcaAttention",
    "GCTAttention",
    "GSoPAttention",
    "GSoPSpatialAttention",
    "NAMAttention",
    "PSAAttention",
    "SEAttention",
    "SOCAAttention",
    "SRMAttention",
]
