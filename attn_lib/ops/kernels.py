"""Convolutions whose kernels differ from image to image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_divisible, check_int, check_pair
from .geometry import GroupedGeometry, same_padding

Pair = int | tuple[int, int]  # (rows, columns); an integer stands for both


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
    return y.squeeze(0).unflatten(0, weight.shape[:2])  # y[0] would copy its gradient


class KernelMixture(nn.Module):
    """M kernels of one convolution, and a mixture of them for each image: W = Σₘ aₘ Wₘ, b = Σₘ aₘ bₘ.

    Convolution is linear in its kernel, so a mixture of kernels gives the mixture of what they give, for the price of
    one convolution. Every kernel starts as a convolution of its own would.

    Args:
        channels, out_channels: C and O.
        kernels: M.
        kernel_size, stride, dilation, groups: as in `torch.nn.Conv2d`.
        padding: zeros around x; None keeps the size at stride 1 (dilation·(kernel_size − 1) must be even).
        bias: whether each kernel has a bias.

    Attributes:
        weight: (M, O·C/groups·kH·kW), a kernel a row: a parameter of five axes could not be told to lie channels-last.
        bias: (M, O), or None.
        geometry: what `conv2d_per_image` is told.
    """

    def __init__(self, channels: int, out_channels: int, *, kernels: int, kernel_size: Pair = 3, stride: Pair = 1,
                 padding: Pair | None = None, dilation: Pair = 1, groups: int = 1, bias: bool = True):
        super().__init__()
        kernel_size, dilation = check_pair("kernel_size", kernel_size), check_pair("dilation", dilation)
        padding = same_padding(kernel_size, dilation) if padding is None else check_pair("padding", padding, at_least=0)
        check_divisible("channels", channels, "groups", check_int("groups", groups))
        check_divisible("out_channels", out_channels, "groups", groups)
        self.geometry = GroupedGeometry(stride=check_pair("stride", stride), padding=padding, dilation=dilation,
                                        groups=groups)
        each = [nn.Conv2d(channels, out_channels, kernel_size, groups=groups, bias=bias) for _ in range(kernels)]
        self.kernel_shape = tuple(each[0].weight.shape)
        self.weight = nn.Parameter(torch.stack([conv.weight.detach().flatten() for conv in each]))
        biases = [conv.bias.detach() for conv in each if conv.bias is not None]
        self.bias = nn.Parameter(torch.stack(biases)) if bias else None

    def mixed(self, a: Tensor) -> tuple[Tensor, Tensor | None]:
        """Kernels (B, O, C/groups, kH, kW) and biases (B, O) of weights a (B, M)."""
        bias = None if self.bias is None else a @ self.bias.to(a.dtype)
        return (a @ self.weight.to(a.dtype)).unflatten(1, self.kernel_shape), bias

    @property
    def kernels(self) -> Tensor:
        """The kernels by themselves, (M, O, C/groups, kH, kW)."""
        return self.weight.unflatten(1, self.kernel_shape)

    def kernel_axes(self) -> str:
        """Of what `mixed` returns first, for a tap."""
        return " ".join(map(str, ("B", "O", *self.kernel_shape[1:])))

    def geometry_repr(self) -> str:
        options = {"kernel_size": self.kernel_shape[2:], **self.geometry, "bias": self.bias is not None}
        return ", ".join(f"{name}={value}" for name, value in options.items())
