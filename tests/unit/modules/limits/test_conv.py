"""Limits of the convolutions."""

import torch
import torch.nn.functional as F

from tests.unit.draw import randn
from tests.unit.modules.limits.proof import drawn, every_limit_is_proven, limit


@limit("deform", "convolution")
def test_deformable_convolution_without_offsets_is_convolution():
    deform, x = drawn("deform", channels=4), randn(2, 4, 6, 7)
    deform.offset_conv.weight.fill_(0.0)
    deform.offset_conv.bias[: 2 * 9] = 0.0     # Δp
    deform.offset_conv.bias[2 * 9 :] = 1000.0  # Δm = σ(1000) = 1
    torch.testing.assert_close(deform(x), F.conv2d(x, deform.weight, deform.bias, padding=1))


test_every_limit_is_proven = every_limit_is_proven("conv")
