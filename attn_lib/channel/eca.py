"""Efficient Channel Attention: a gate for every channel, computed from its neighbours in the channel order."""

import math

import torch
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_at_most, check_feature_map, check_int, check_odd, check_positive
from ..tap import tap


def adaptive_kernel_size(channels: int, gamma: float = 2.0, b: float = 1.0) -> int:
    """k = |log₂(C)/γ + b/γ|_odd, the nearest odd number, at least 1; eq. 12.

    An even number lies between two odd ones; as in the paper's listing (figure 3) the larger is taken. With γ = 2
    and b = 1 that happens at C = 8, 128, 2048, …, where k goes from 1 to 3, 5, 7, ….

    Raises:
        ValueError: if channels < 1 or γ ≤ 0.
    """
    t = (math.log2(check_int("channels", channels)) + b) / check_positive("gamma", gamma)
    return max(1, 2 * math.floor(t / 2) + 1)


@register(
    "eca",
    family="channel",
    name="Efficient Channel Attention",
    summary="It gates each channel by its own mean and its neighbours', with k weights in all and no bottleneck.",
    aliases=("ECA", "ECA-Net"),
    action="gate",
    papers=[Paper(
        key="wang2020eca", venue="CVPR", year=2020, arxiv="1910.03151",
        title="ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
        code="https://github.com/BangguWu/ECANet",
    )],
    layout="B C H W",
    example=dict(channels=64),
    variants={"k = 1": dict(channels=12, kernel_size=1), "k = 2C − 1": dict(channels=6, kernel_size=11)},
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    builds_on=("se",),
    reduces_to={
        "channel-wise gate": "k = 1: one weight for all channels, no neighbours",
        "linear layer": "k = 2C − 1: s = σ(Tz) with any Toeplitz matrix T",
        "SiLU": "k = 1, w = 1, an image of one pixel",
    },
    counterpart=Counterpart("timm EcaModule", "timm.layers.eca", lambda timm, channels: timm.EcaModule(channels)),
    errata=[
        Erratum("release",
                "The module does not use its argument `channel`: k is 3 unless told otherwise, and the ResNets were "
                "given theirs by hand: 3, 5, 7, 7 with 18 layers, 3, 5, 5, 7 with 50 (3, 3, 7, 7 in RetinaNet and Mask "
                "R-CNN), 3, 3, 5, 7 with more.",
                "k follows from C by equation 12; pass `kernel_size` to load those weights.",
                "test_parameters_in_resnet_50_are_those_of_the_paper"),
        Erratum("paper",
                "The 80 parameters of the abstract are those of k = 3, 5, 5, 7, where equation 12 gives 5, 5, 5, 7 for "
                "the channels that the gates see.",
                "Equation 12 is the default, with 86.",
                "test_parameters_in_resnet_50_are_those_of_the_paper"),
        Erratum("paper",
                "Equation 12 asks for the nearest odd number, of which an even one has two: so at C = 8 and C = 128.",
                "It is the larger of the two, as the listing in Figure 3 computes it.",
                "test_listing_in_the_paper_rounds_to_the_nearest_odd_number_too"),
        Erratum("package",
                "timm's `EcaModule` has k = 3 at least, also for fewer than 8 channels.",
                "k is 1 there, by equation 12.",
                "test_timm_goes_no_lower_than_three"),
        Erratum("copies",
                "The convolution has a bias.",
                "It has none: a centred map is halved whatever the kernel.",
                "test_a_centred_map_is_halved_whatever_the_kernel"),
        Erratum("copies",
                "Without the rounding to an odd number k is 4 at C = 128, and one gate is missing.",
                "An even k is refused.",
                "test_arguments_out_of_range"),
    ],
)
class ECAAttention(nn.Module):
    """Efficient channel attention: y = s · x with s_c = σ(∑ⱼ wⱼ z_{c+j}), |j| ≤ (k − 1)/2, z = mean of x over H, W.

    One kernel of k weights for all channels, no bias. Channels before the first and after the last count as zero.
    k follows from C by the paper's equation 12.

    Args:
        channels: C, at least 1.
        kernel_size: k, odd, at most 2C − 1; None computes it from C, γ and b.
        gamma: γ > 0 of equation 12; only used where kernel_size is None.
        b: b of equation 12; likewise.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Wang, Wu, Zhu, Li, Zuo and Hu, ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks,
        CVPR 2020, arXiv 1910.03151.
    """

    def __init__(self, channels: int, *, kernel_size: int | None = None, gamma: float = 2.0, b: float = 1.0):
        super().__init__()
        self.channels = check_int("channels", channels)
        k = adaptive_kernel_size(channels, gamma, b) if kernel_size is None else check_odd("kernel_size", kernel_size)
        check_at_most("kernel_size", k, "2·channels - 1", 2 * channels - 1)  # the rest would only ever meet zeros
        self.kernel_size = k
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)  # named as in the release: its weights load

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        z = tap("z", x.mean((2, 3)), "B C")                                 # the channels as a signal of length C
        s = tap("s", torch.sigmoid(self.conv(z[:, None])[:, 0]), "B C")     # eq. 9
        return tap("y", x * s[:, :, None, None], "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, kernel_size={self.kernel_size}"
