"""Deformable convolution, v1 and v2: a kernel that decides, at every position, where its taps look."""

from typing import Any

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_divisible, check_feature_map, check_int, check_pair, check_positive, check_tensor
from ..ops import Geometry, bilinear_sample, output_size, same_padding, tap_positions
from ..tap import tap

Pair = int | tuple[int, int]  # (rows, columns); an integer stands for both


def deform_conv2d(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, mask: Tensor | None = None,
) -> Tensor:
    """Deformable convolution with given offsets: y(p₀) = Σₖ wₖ · x(p₀ + pₖ + Δpₖ) · Δmₖ.

    x between pixels is bilinear, x outside the image is zero: a sample that leaves the image fades out over one
    pixel, as in the operator of 2018. That of 2017 repeats the last row and column for one pixel below and to the
    right, and drops to zero at once above and to the left. The channels of `offset` are ordered as in
    `torchvision.ops.deform_conv2d`: for each offset group, for each tap row by row, first the offset down,
    then the offset to the right, both in pixels of x.

    Args:
        x: feature map (B, C, H, W).
        offset: Δp, (B, G·K·2, Ho, Wo), for G offset groups of C/G channels each, and K = kH·kW taps.
        weight: (O, C/groups, kH, kW); the number of groups follows from it.
        bias: (O,), or None.
        stride, padding, dilation: as in `torch.nn.functional.conv2d`; padding is of zeros.
        mask: Δm, (B, G·K, Ho, Wo); None is v1, where every tap counts fully.

    Returns:
        y (B, O, Ho, Wo), of the size that the plain convolution would give.

    Raises:
        ValueError: for shapes that do not fit together.
    """
    B, C, *size = check_tensor(x, "B C H W").shape
    out, C_group, *kernel = check_tensor(weight, "O C/groups kH kW", name="weight").shape
    stride, dilation = check_pair("stride", stride), check_pair("dilation", dilation)
    padding = check_pair("padding", padding, at_least=0)
    K, (Ho, Wo) = kernel[0] * kernel[1], output_size(size, kernel, stride, padding, dilation)
    groups = check_divisible("channels of x", C, "channels of weight", C_group)
    check_divisible("output channels", out, "groups", groups)
    check_tensor(offset, "B G·K·2 Ho Wo", {"B": B, "Ho": Ho, "Wo": Wo}, "offset")
    G = check_divisible("channels of offset", offset.shape[1], "2·kH·kW", 2 * K)
    check_divisible("channels of x", C, "offset groups", G)

    dp = tap("dp", offset.unflatten(1, (G, K, 2)), "B G K 2 Ho Wo")
    rows = tap_positions(Ho, kernel[0], stride[0], padding[0], dilation[0], like=dp)  # Ho kH
    cols = tap_positions(Wo, kernel[1], stride[1], padding[1], dilation[1], like=dp)  # Wo kW
    grid = torch.stack([rows.T[:, None, :, None].expand(*kernel, Ho, Wo),
                        cols.T[None, :, None, :].expand(*kernel, Ho, Wo)], 2)         # kH kW 2 Ho Wo
    p = tap("p", grid.flatten(0, 1) + dp, "B G K 2 Ho Wo")                            # p₀ + pₖ + Δpₖ
    x_p = bilinear_sample(x.reshape(B * G, C // G, *size), *p.flatten(0, 1).unbind(2))
    x_p = tap("x_p", x_p.reshape(B, C, K, Ho, Wo), "B C K Ho Wo")                     # Σ_q g(q_y, p_y) g(q_x, p_x) x(q)
    if mask is not None:
        check_tensor(mask, "B G·K Ho Wo", {"B": B, "G·K": G * K, "Ho": Ho, "Wo": Wo}, "mask")
        dm = tap("dm", mask.unflatten(1, (G, K)), "B G K Ho Wo")
        x_p = x_p.unflatten(1, (G, C // G)) * dm[:, :, None]
    w = weight.reshape(groups, out // groups, C_group * K)
    y = torch.einsum("GOK,BGKN->BGON", w, x_p.reshape(B, groups, C_group * K, Ho * Wo))
    y = y.reshape(B, out, Ho, Wo)
    return tap("y", y if bias is None else y + bias.to(y.dtype)[:, None, None], "B O Ho Wo")


@register(
    "deform",
    family="conv",
    name="Deformable convolution",
    summary="It lets every position choose where the taps of its kernel look, and how much each tap counts.",
    aliases=("DCN", "DCNv2", "DeformConv"),
    action="move",
    papers=[Paper(
        key="dai2017deformable", venue="ICCV", year=2017, arxiv="1703.06211",
        title="Deformable Convolutional Networks",
        code="https://github.com/msracver/Deformable-ConvNets",
    ), Paper(
        key="zhu2019deformable", venue="CVPR", year=2019, arxiv="1811.11168",
        title="Deformable ConvNets v2: More Deformable, Better Results",
        code="https://github.com/msracver/Deformable-ConvNets",
    )],
    layout="B C H W",
    output="B O Ho Wo",
    example=dict(channels=64),
    variants={
        "v1": dict(channels=16, modulation=False),
        "stride 2": dict(channels=6, out_channels=8, stride=2, mask_scale=2.0, bias=False),
        "grouped": dict(channels=12, out_channels=6, kernel_size=(3, 5), dilation=(2, 1), groups=2,
                        offset_groups=3),
    },
    commutes_with={"translation"},
    reduces_to={"convolution": "Δp = 0 and Δm = 1"},
    errata=[
        Erratum("release",
                "The example of v2 doubles the mask, of which the paper says nothing, so that a fresh layer is the "
                "convolution itself. It is a demo symbol that does not run as it stands; the operator takes the mask "
                "as given, and a network of v2 was not released.",
                "Δm is σ(·), and a fresh layer half the convolution; `mask_scale=2` doubles.",
                "test_fresh_layers_start_as_the_papers_say"),
        Erratum("release",
                "The CUDA code of v1 repeats the last row and column for one pixel beyond them, and drops to zero at "
                "once above and to the left.",
                "A sample fades out over one pixel on every side, by the equation.",
                "test_trap_positions_clamped_to_the_border"),
        Erratum("package",
                "torchvision's `DeformConv2d` takes offsets and mask from the caller, and applies no σ.",
                "The module predicts both; the function `deform_conv2d` takes them, in torchvision's order.",
                "test_recorded_torchvision_outputs_and_gradients"),
        Erratum("copies",
                "The 2K channels are all rows, then all columns.",
                "Row and column of each tap stand side by side, as in both releases.",
                "test_trap_swapped_axes_or_another_channel_order"),
        Erratum("copies",
                "The bias of the offset convolution does not start at zero, and the taps start off the grid.",
                "Weight and bias start at zero.",
                "test_fresh_layers_start_as_the_papers_say"),
        Erratum("copies",
                "Positions are computed in the type of the offsets, though bfloat16 cannot count beyond 256.",
                "They are computed in float32 at least.",
                "test_trap_positions_in_half_precision"),
    ],
)
class DeformConv2d(nn.Module):
    """Deformable convolution: y(p₀) = Σₖ wₖ · x(p₀ + pₖ + Δpₖ) · Δmₖ, with Δp and Δm from a convolution of x.

    That offset convolution has the geometry of the main one and 3·G·K channels: 2·G·K for Δp, G·K for
    Δm = mask_scale · σ(·). It starts at zero, as both papers have it, so that at first Δp = 0 and
    Δm = mask_scale/2: a fresh layer is half the convolution of the same weights, or with `mask_scale=2` the
    convolution itself. So is v1 (`modulation=False`), which has no Δm. v2 trains `offset_conv` with a tenth
    of the learning rate.

    Beyond the border it reads as the operator of 2018 does, by the equation; see `deform_conv2d` for that of 2017.

    Args:
        channels: C, at least 1.
        out_channels: O; C when None.
        kernel_size: (kH, kW), or one integer for both; K = kH·kW taps.
        stride, dilation: of both convolutions, at least 1.
        padding: zeros around x; None keeps the size at stride 1 (dilation·(kernel_size − 1) must be even).
        groups: of the main convolution; divides C and O.
        offset_groups: G, divides C; each group of C/G channels has offsets and masks of its own.
        modulation: v2, with Δm (True), or v1, without (False).
        mask_scale: upper end of Δm, above 0: 1 in the v2 paper, 2 in the example of its release.
        bias: whether the output has a bias.

    Shape:
        x (B, C, H, W) → y (B, O, Ho, Wo), with Ho and Wo as from `torch.nn.Conv2d`.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or one
            that is smaller than the kernel.

    Paper:
        Dai, Qi, Xiong, Li, Zhang, Hu and Wei, Deformable Convolutional Networks, ICCV 2017, arXiv 1703.06211;
        Zhu, Hu, Lin and Dai, Deformable ConvNets v2: More Deformable, Better Results, CVPR 2019,
        arXiv 1811.11168.
    """

    def __init__(
        self, channels: int, out_channels: int | None = None, *, kernel_size: Pair = 3, stride: Pair = 1,
        padding: Pair | None = None, dilation: Pair = 1, groups: int = 1, offset_groups: int = 1,
        modulation: bool = True, mask_scale: float = 1.0, bias: bool = True,
    ):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.out_channels = check_int("out_channels", channels if out_channels is None else out_channels)
        self.kernel_size = check_pair("kernel_size", kernel_size)
        self.stride = check_pair("stride", stride)
        self.dilation = check_pair("dilation", dilation)
        self.padding = (same_padding(self.kernel_size, self.dilation) if padding is None
                        else check_pair("padding", padding, at_least=0))
        self.groups = check_int("groups", groups)
        self.offset_groups = check_int("offset_groups", offset_groups)
        check_divisible("channels", channels, "groups", groups)
        check_divisible("out_channels", self.out_channels, "groups", groups)
        check_divisible("channels", channels, "offset_groups", offset_groups)
        self.modulation = modulation
        self.mask_scale = check_positive("mask_scale", mask_scale)

        self.geometry = Geometry(stride=self.stride, padding=self.padding, dilation=self.dilation)
        conv = nn.Conv2d(channels, self.out_channels, self.kernel_size, groups=groups, bias=bias)
        self.weight, self.bias = conv.weight, conv.bias  # its initialisation, and the names in its files
        self.taps = offset_groups * self.kernel_size[0] * self.kernel_size[1]
        self.offset_conv = nn.Conv2d(channels, (3 if modulation else 2) * self.taps, self.kernel_size,
                                     **self.geometry)
        for parameter in self.offset_conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        output_size(x.shape[2:], self.kernel_size, **self.geometry)  # a clear error where x is too small
        offset, logit = self.offset_conv(x).tensor_split([2 * self.taps], 1)
        mask = self.mask_scale * logit.sigmoid() if self.modulation else None
        return deform_conv2d(x, offset, self.weight, self.bias, mask=mask, **self.geometry)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> "DeformConv2d":
        """A deformable convolution that starts as `conv`: its geometry, and copies of its weight and bias.

        Args:
            conv: a convolution with zero padding.
            **options: `offset_groups`, `modulation` or `mask_scale`. The last is 2 here, as in the example
                of the authors' release: with the paper's 1 the layer would start as half of `conv`.

        Raises:
            ValueError: if `conv` is no plain two-dimensional convolution with zero padding.
        """
        if type(conv) is not nn.Conv2d:
            raise ValueError(f"conv must be a torch.nn.Conv2d, not {type(conv).__name__}")
        if conv.padding_mode != "zeros":
            raise ValueError(f"padding_mode={conv.padding_mode!r} of conv must be 'zeros'")
        padding = ({"same": None, "valid": 0}[conv.padding] if isinstance(conv.padding, str)
                   else check_pair("padding", conv.padding, at_least=0))
        kernel_size, stride, dilation = (check_pair(name, getattr(conv, name))
                                         for name in ("kernel_size", "stride", "dilation"))
        deform = cls(conv.in_channels, conv.out_channels, kernel_size=kernel_size, stride=stride,
                     padding=padding, dilation=dilation, groups=conv.groups, bias=conv.bias is not None,
                     **{"mask_scale": 2.0, **options})
        deform.load_state_dict(conv.state_dict(), strict=False)  # all but the offset convolution
        for name, parameter in conv.named_parameters():
            getattr(deform, name).requires_grad_(parameter.requires_grad)
        return deform.to(conv.weight).train(conv.training)

    def extra_repr(self) -> str:
        names = ("channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
                 "offset_groups", "modulation", "mask_scale")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
