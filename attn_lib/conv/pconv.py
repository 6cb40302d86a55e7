"""Partial convolution (FasterNet): only some channels are convolved, the others pass as they are."""

import torch
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_at_most, check_feature_map, check_int, check_odd
from ..tap import tap


@register(
    "pconv",
    family="conv",
    name="Partial convolution",
    summary="It convolves a quarter of the channels and leaves the rest alone, so that little memory is touched.",
    aliases=("PConv", "FasterNet", "Partial_conv3"),
    action="mix",
    papers=[Paper(
        key="chen2023run", venue="CVPR", year=2023, arxiv="2303.03667",
        title="Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks",
        code="https://github.com/JierunChen/FasterNet",
    )],
    layout="B C H W",
    example=dict(channels=64),
    variants={"odd": dict(channels=7, n_div=2, kernel_size=5), "all": dict(channels=6, n_div=1)},
    commutes_with={"translation", "scaling"},
    reduces_to={
        "convolution": "n = 1",
        "identity": "the kernel of each convolved channel is 1 at its own centre and 0 elsewhere",
    },
    counterpart=Counterpart(
        "timm Partial_conv3", "timm.models.fasternet",
        lambda timm, channels: timm.Partial_conv3(channels, 4, "split_cat")),
    errata=[
        Erratum("release", "It has two forward passes, one that writes into a clone, for inference alone.",
                "One for both, which joins what is convolved and what is not, to the same result.",
                "test_equals_both_forward_passes_of_the_release"),
        Erratum("release", "With fewer channels than n it makes a convolution of none, which fails when called.",
                "That is refused, with a sentence.",
                "test_fewer_channels_than_parts_are_refused"),
        Erratum("copies", "It is taken for the partial convolution of inpainting, which shares the name.",
                "Nothing is masked and nothing normalised by a count of valid pixels.",
                "test_is_not_the_partial_convolution_of_inpainting"),
        Erratum("copies", "FLOPs are said to fall to 1/n.",
                "To 1/n² of a convolution of all channels: both its inputs and its outputs are fewer.",
                "test_flops_fall_with_the_square"),
    ],
)
class PartialConv(nn.Module):
    """Partial convolution: y = [W ∗ x₁; x₂], where x₁ is the first c_p = ⌊C/n⌋ channels of x and x₂ the others.

    The kernel is c_p × c_p × k × k, without bias. It has 1/n² of the weights and FLOPs of a convolution of all
    channels, and the paper counts h·w·2c_p numbers read and written, 1/n of it. The channels of x₂ are copied: what is
    to follow is a 1 × 1 convolution that mixes all of them. The two together are one convolution with kernels in the
    shape of a T, k × k on c_p channels and 1 × 1 on the rest.

    The release's weight `partial_conv3.weight` is `conv.weight`.

    Args:
        channels: C, at least 1.
        n_div: n, from 1 to C, the release's name; the paper's partial ratio is r = 1/n, a quarter.
        kernel_size: k, odd.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Chen, Kao, He, Zhuo, Wen, Lee and Chan, Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks,
        CVPR 2023, arXiv 2303.03667.
    """

    def __init__(self, channels: int, *, n_div: int = 4, kernel_size: int = 3):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.n_div = check_int("n_div", n_div)
        check_at_most("n_div", n_div, "channels", channels)
        self.kernel_size = check_odd("kernel_size", kernel_size)
        self.convolved = channels // n_div
        self.conv = nn.Conv2d(self.convolved, self.convolved, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        x1, x2 = x.split([self.convolved, self.channels - self.convolved], 1)
        y1 = tap("y1", self.conv(x1), "B Cr H W")
        return tap("y", torch.cat([y1, x2], 1), "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, n_div={self.n_div}"
