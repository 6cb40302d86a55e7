"""Self-attention on feature maps: every position asks, and some or all of the others answer."""

from .axial import AxialAttention, AxialBlock
from .biformer import BiLevelRoutingAttention
from .cloformer import AttnConv, CloAttention
from .emsa import EMSA
from .halo import HaloAttention
from .mhsa import MHSA2d
from .mobilevit import MobileViTBlock
from .osra import OSRAttention
from .vit import EncoderBlock, VisionTransformer, resize_positions

__all__ = [
    "EMSA",
    "AttnConv",
    "AxialAttention",
    "AxialBlock",
    "BiLevelRoutingAttention",
    "CloAttention",
    "EncoderBlock",
    "HaloAttention",
    "MHSA2d",
    "MobileViTBlock",
    "OSRAttention",
    "VisionTransformer",
    "resize_positions",
]
