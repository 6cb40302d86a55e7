"""Fusion: several inputs, or several views of one, become one.

Gated fusion weighs two inputs at every position and channel; multi-scale selective fusion weighs any number of them,
each channel by a softmax that sees their means. The other two make their own inputs: multi-feature extraction by
convolutions of growing reach, SAFM by looking at groups of channels from several distances; it multiplies its input by
what all see.
"""

from .gated import GatedFusion
from .mfe import MultiFeatureExtraction
from .msf import MultiScaleSelectiveFusion
from .safm import SAFM, ConvChannelMixer

__all__ = ["SAFM", "ConvChannelMixer", "GatedFusion", "MultiFeatureExtraction", "MultiScaleSelectiveFusion"]
