"""Convolutions that choose where, or with what, they convolve."""

from .deform import DeformConv2d, deform_conv2d
from .depthwise_separable import DepthwiseSeparableConv

__all__ = ["DeformConv2d", "DepthwiseSeparableConv", "deform_conv2d"]
