"""Self-attention: every position asks, and takes what fits.

Multi-head attention compares every position with every other, and its cost grows with the square of their number. Most
of the others differ in what they leave out: they keep to neighbourhoods, windows or regions (Halo, DilateFormer, EMO,
CrossFormer, BiFormer), to rows and columns (axial, SeaFormer), to a smaller map of keys (EMSA, OSRA, CloFormer), to
one pixel of every patch (MobileViT), or to a few descriptors of the whole image (A², STViT). AFT, UFO, SwiftFormer and
external attention compare no pairs of positions at all. ACmix and the contextual transformer share the work with a
convolution.
"""

from .a2 import DoubleAttention
from .acmix import ACmix
from .aft import AFTAttention
from .axial import AxialAttention, AxialBlock
from .biformer import BiLevelRoutingAttention
from .cloformer import AttnConv, CloAttention
from .cot import CoTAttention
from .crossformer import CrossScaleEmbedding, DynamicPositionBias, LongShortDistanceAttention
from .dilateformer import DilateAttention
from .emo import InvertedResidualMobileBlock
from .emsa import EMSA
from .external import ExternalAttention, ExternalAttentionBlock
from .halo import HaloAttention
from .mhsa import MHSA2d
from .mobilevit import MobileViTBlock
from .osra import OSRAttention
from .seaformer import SeaAttention
from .stvit import SuperTokenAttention
from .swiftformer import EfficientAdditiveAttention
from .ufo import UFOAttention
from .vit import EncoderBlock, VisionTransformer, resize_positions

__all__ = [
    "EMSA",
    "ACmix",
    "AFTAttention",
    "AttnConv",
    "AxialAttention",
    "AxialBlock",
    "BiLevelRoutingAttention",
    "CloAttention",
    "CoTAttention",
    "CrossScaleEmbedding",
    "DilateAttention",
    "DoubleAttention",
    "DynamicPositionBias",
    "EfficientAdditiveAttention",
    "EncoderBlock",
    "ExternalAttention",
    "ExternalAttentionBlock",
    "HaloAttention",
    "InvertedResidualMobileBlock",
    "LongShortDistanceAttention",
    "MHSA2d",
    "MobileViTBlock",
    "OSRAttention",
    "SeaAttention",
    "SuperTokenAttention",
    "UFOAttention",
    "VisionTransformer",
    "resize_positions",
]
