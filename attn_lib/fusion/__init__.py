"""Fusion: two or more inputs become one, and a gate says how much of each."""

from .gated import GatedFusion
from .mfe import MultiFeatureExtraction
from .msf import MultiScaleSelectiveFusion
from .safm import SAFM, ConvChannelMixer

__all__ = ["SAFM", "ConvChannelMixer", "GatedFusion", "MultiFeatureExtraction", "MultiScaleSelectiveFusion"]
