"""Convolutions that choose where, or with what, they convolve."""

from .deform import DeformConv2d, deform_conv2d

__all__ = ["DeformConv2d", "deform_conv2d"]
