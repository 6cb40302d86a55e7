"""Strip pooling: a pixel is judged by the whole row and the whole column that it lies in (SPNet)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_feature_map, check_int
from ..ops import grid_means
from ..tap import tap


@register(
    "spnet",
    family="spatial",
    name="Strip pooling",
    summary="It carries what stands in a row along that row, and along columns alike, for the price of two strips.",
    aliases=("SPM", "SPNet", "strip pooling module"),
    action="gate",
    papers=[Paper(
        key="hou2020strip", venue="CVPR", year=2020, arxiv="2003.13328",
        title="Strip Pooling: Rethinking Spatial Pooling for Scene Parsing",
        code="https://github.com/Andrew-Qibin/SPNet",
    )],
    layout="B C H W",
    example=dict(channels=16),
    measured=dict(channels=64),
    variants={"equations alone": dict(channels=6, norm=False)},
    commutes_with={"translation"},
    builds_on=("se",),
    reduces_to={
        "identity": "bias of f → ∞",
        "row gate": "the strip along the columns is shut: y^v is constant",
        "se": "a map of one pixel: its strips are its mean, r = 1",
    },
    errata=[
        Erratum("paper", "Its equations name neither the BN behind each strip nor the ReLU behind their sum.",
                "Both are there, as in the release; norm=False leaves them out.",
                "test_the_equations_alone_have_no_norm"),
        Erratum("release", "Its class StripPooling is the mixed pooling module, with a residual and no gate, and its "
                "SPBlock returns the gate without multiplying.",
                "StripPooling multiplies by its gate, and the other module is MixedPooling.",
                "test_mixed_pooling_is_no_gate"),
        Erratum("release", "Adaptive pooling to 20 × 20 and 12 × 12 repeats pixels on maps that are smaller.",
                "The same, for no other rule is given; pools chooses smaller ones.",
                "test_pools_wider_than_the_map_repeat_pixels"),
        Erratum("copies", "The strips are convolved by 1 × 1 kernels.",
                "Kernels are three long, along the strip.", "test_the_comparison_with_the_paper_notices"),
        Erratum("package", "timm's StripAttn convolves each channel of the strips by itself and has no f.",
                "Both convolutions and f mix the channels; timm's is another operator.",
                "test_timms_strip_attention_is_another_operator"),
    ],
)
class StripPooling(nn.Module):
    """Strip pooling module: z = x · σ(f(y)) with y_ij = y^h_i + y^v_j, convolutions of the means of row i and column j.

    In full, y^h = BN(conv1(means along the rows)) is C × H, y^v = BN(conv2(means along the columns)) is C × W, both
    convolutions mix all channels, are three long, go along their strip and have no bias; y = δ(y^h + y^v) with δ = ReLU
    is C × H × W, and f = conv3 is a 1×1 convolution with bias.

    Layers have the release's names (its SPBlock), so that its weights load as they are: conv1 3 × 1, bn1, conv2 1 × 3,
    bn2, conv3 1 × 1. There, the product with x stands in the network around it.

    Args:
        channels: C, at least 1.
        norm: whether BN and ReLU are there.

    Shape:
        x (B, C, H, W) → z (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or, with `norm` in
            training, a strip of one number a channel, which BN cannot take.

    Paper:
        Hou, Zhang, Cheng and Feng, Strip Pooling: Rethinking Spatial Pooling for Scene Parsing, CVPR 2020,
        arXiv 2003.13328.
    """

    def __init__(self, channels: int, *, norm: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.norm = norm
        self.conv1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), bias=False)
        self.bn1 = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), bias=False)
        self.bn2 = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.conv3 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        _check_strips(x, self.training and self.norm)
        yh = tap("yh", self.bn1(self.conv1(x.mean(3, keepdim=True))), "B C H 1")            # eq. 1
        yv = tap("yv", self.bn2(self.conv2(x.mean(2, keepdim=True))), "B C 1 W")            # eq. 2
        y = tap("y", F.relu(yh + yv) if self.norm else yh + yv, "B C H W")                 # eq. 3
        s = tap("s", torch.sigmoid(self.conv3(y)), "B C H W")
        return tap("z", x * s, "B C H W")                                                  # eq. 4

    def extra_repr(self) -> str:
        return f"channels={self.channels}, norm={self.norm}"


class MixedPooling(nn.Module):
    """Mixed pooling module: y = δ(x + BN(W [u; v])), u from pyramids of pools and v from strips, each of C/4 channels.

    x is reduced twice by a 1×1 convolution, BN and ReLU, to x₁ for u and x₂ for v:

        u = c₅(δ(c₀(x₁) + up(c₁(pool x₁)) + up(c₂(pool x₁))))      pools to 20 × 20 and 12 × 12, all cᵢ 3 × 3
        v = c₆(δ(c₃(means along the columns) + c₄(means along the rows)))      c₃ is 1 × 3, c₄ 3 × 1, c₆ 3 × 3

    cᵢ is a convolution with BN, c₅ and c₆ end in a ReLU. No convolution has a bias. up is bilinear with corners on the
    centres of the outermost pixels, which no other module here has; the paper does not say. It is no gate: what it
    finds is added. Layers have the release's names (its StripPooling), so that its weights load as they are.

    Args:
        channels: C, at least 4; C/4 is rounded down.
        pools: sides of the two pools, each at least 1. Where the map is smaller, pooling repeats its pixels.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or, in training, a
            strip of one number a channel, which BN cannot take.

    Paper:
        Hou, Zhang, Cheng and Feng, Strip Pooling: Rethinking Spatial Pooling for Scene Parsing, CVPR 2020,
        arXiv 2003.13328.
    """

    def __init__(self, channels: int, *, pools: tuple[int, int] = (20, 12)):
        super().__init__()
        self.channels = check_int("channels", channels, at_least=4)
        if not isinstance(pools, tuple | list) or len(pools) != 2:
            raise ValueError(f"pools={pools!r} must be two sides, such as (20, 12)")
        self.pools = tuple(check_int("pools", side) for side in pools)
        Cr = channels // 4
        self.conv1_1, self.conv1_2 = (_conv(channels, Cr, (1, 1), relu=True) for _ in range(2))
        self.conv2_0, self.conv2_1, self.conv2_2 = (_conv(Cr, Cr, (3, 3)) for _ in range(3))
        self.conv2_3, self.conv2_4 = _conv(Cr, Cr, (1, 3)), _conv(Cr, Cr, (3, 1))
        self.conv2_5, self.conv2_6 = (_conv(Cr, Cr, (3, 3), relu=True) for _ in range(2))
        self.conv3 = _conv(2 * Cr, channels, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        _check_strips(x, self.training)
        x1, x2 = tap("x1", self.conv1_1(x), "B Cr H W"), tap("x2", self.conv1_2(x), "B Cr H W")
        near = self.conv2_0(x1)
        for conv, side in zip((self.conv2_1, self.conv2_2), self.pools, strict=True):
            pooled = conv(grid_means(x1, side, side))
            near = near + F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=True)
        u = tap("u", self.conv2_5(F.relu(near)), "B Cr H W")
        strips = self.conv2_3(x2.mean(2, keepdim=True)) + self.conv2_4(x2.mean(3, keepdim=True))
        v = tap("v", self.conv2_6(F.relu(strips)), "B Cr H W")
        return tap("y", F.relu(x + self.conv3(torch.cat([u, v], 1))), "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, pools={self.pools}"


def _conv(channels: int, out_channels: int, kernel: tuple[int, int], relu: bool = False) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(channels, out_channels, kernel, padding=padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), *[nn.ReLU()] * relu)


def _check_strips(x: Tensor, normalised: bool) -> None:
    """In training each strip must hold two numbers a channel, for the BN."""
    if normalised and len(x) == 1 and 1 in x.shape[2:]:
        raise ValueError(f"x is a batch of 1 of size {tuple(x.shape[2:])}; in training it must be 2 × 2 or more, or a "
                         "batch of 2, for the BN of each strip")
