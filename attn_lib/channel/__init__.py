"""Channel attention: which feature maps matter.

Each module multiplies channels by gates that depend on the image. They differ in what they read from a channel: its
mean (SE, ECA), its deviation (SRM), its norm (GCT), a frequency of it (FcaNet), how it varies with the others (GSoP,
SOCA), how far it lies from learned codewords (EncNet), or what kernels of several sizes make of it (EPSA). And they
differ in who is asked: all other channels through a small network, the neighbours in number alone (ECA), or nobody
(SRM). NAM pools nothing; its gate is computed at every pixel.
"""

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
