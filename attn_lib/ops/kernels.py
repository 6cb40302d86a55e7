"""Convolutions whose kernels differ from image to image."""

import torch.nn.functional as F
from torch import Tensor


def conv2d_per_image(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int | tuple[int, int] = 1,
                     padding: int | tuple[int, int] = 0, dilation: int | tuple[int, int] = 1,
                     groups: int = 1) -> Tensor:
    """`F.conv2d` with a kernel for each image of the batch: one convolution, the batch taken for groups.

    Args:
        x: feature map (B, C, H, W).
        weight: kernels (B, O, C/groups, kH, kW).
        bias: (B, O), or None.
        stride, padding, dilation, groups: as in `F.conv2d`.

    Returns:
        (B, O, Ho, Wo)
    """
    bias = None if bias is None else bias.flatten()
    y = F.conv2d(x.flatten(0, 1)[None], weight.flatten(0, 1), bias, stride, padding, dilation, len(weight) * groups)
    return y[0].unflatten(0, weight.shape[:2])
