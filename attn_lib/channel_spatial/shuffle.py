"""Shuffle attention: half of every group of channels is gated by its mean, the other half at every position."""

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_divisible, check_feature_map, check_int
from ..ops import channel_shuffle
from ..tap import tap


@register(
    "shuffle",
    family="channel_spatial",
    name="Shuffle attention",
    summary="It gates half of the channels as wholes and half position by position, with a handful of numbers that all "
            "groups share.",
    aliases=("SA", "SA-Net", "ShuffleAttention"),
    action="gate",
    papers=[Paper(
        key="zhang2021sanet", venue="ICASSP", year=2021, arxiv="2102.00240",
        title="SA-Net: Shuffle Attention for Deep Convolutional Neural Networks",
        code="https://github.com/wofmanaf/SA-Net",
    )],
    layout="B C H W",
    example=dict(channels=64, groups=8),
    variants={"one group": dict(channels=6, groups=1), "a pair a group": dict(channels=8, groups=4)},
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    refuses={
        "onnx by trace at any size": "the older exporter writes the recorded sizes into a reshape",
    },
    builds_on=("se",),
    reduces_to={
        "constant gate": "w₁ = w₂ = 0 and b₁ = b₂, where it starts: σ(1), and a fixed permutation of the channels",
    },
    errata=[
        Erratum("release", "Fewer than 2G channels end in a division by zero, an odd C/G in a broadcast that fails "
                "or, with C/G = 3, does not.", "C must be divisible by 2G, and the error names channels that are.",
                "test_channels_that_do_not_divide"),
        Erratum("copies", "The shuffle is a method without `self`, and every call of it raises.",
                "A function, which other modules use as well.", "test_a_shuffle_without_self_is_a_trap"),
        Erratum("paper", "The shuffle lets information flow across the groups, it says.",
                "It only reorders, as there: within the module no channel sees another, the next one may join them.",
                "test_no_channel_sees_another"),
    ],
)
class ShuffleAttention(nn.Module):
    """Shuffle attention: y = shuffle([σ(w₁ s + b₁) · x₁; σ(w₂ GN(x₂) + b₂) · x₂]), s = mean of x₁ over H and W.

    The channels are cut into G groups, and each group into halves x₁ and x₂ of S = C/(2G) channels. The first half is
    gated as channels, the second at every position by its own normalised value. w₁, b₁, w₂ and b₂ are S numbers each,
    and GN, with a group for every channel, has a weight and a bias of S: 3 C/G parameters in all, the same for all
    groups. On a map of one pixel GN is its bias.

    The shuffle deals out the first and the second half of all channels in turn, channel 2i of the result is number i,
    so that the next module's groups hold some of both. At the start w₁ = w₂ = 0 and b₁ = b₂ = 1.

    From the release: w₁, b₁, w₂, b₂ are its cweight, cbias, sweight, sbias, flattened; `gn` loads as it is.

    Args:
        channels: C, divisible by 2G.
        groups: G, at least 1; 64 in the paper.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Zhang and Yang, SA-Net: Shuffle Attention for Deep Convolutional Neural Networks, ICASSP 2021,
        arXiv 2102.00240.
    """

    def __init__(self, channels: int, *, groups: int = 64):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.groups = check_int("groups", groups)
        S = check_divisible("channels", channels, "2·groups", 2 * groups)
        self.w1, self.b1 = nn.Parameter(torch.zeros(S)), nn.Parameter(torch.ones(S))
        self.w2, self.b2 = nn.Parameter(torch.zeros(S)), nn.Parameter(torch.ones(S))
        self.gn = nn.GroupNorm(S, S)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        x_k = tap("x_k", x.unflatten(1, (self.groups, 2, -1)), "B G 2 S H W")
        x_1, x_2 = x_k.unbind(2)                                              # B G S H W
        s = tap("s", x_1.mean((3, 4)), "B G S")                               # eq. 1
        a_1 = tap("a_1", torch.sigmoid(self.w1 * s + self.b1), "B G S")       # eq. 2
        weight, bias = self.w2 * self.gn.weight, self.w2 * self.gn.bias + self.b2
        logits = torch.group_norm(x_2.flatten(0, 1), len(weight), weight, bias, self.gn.eps)  # w₂ GN(x₂) + b₂
        a_2 = tap("a_2", torch.sigmoid(logits).view(x_2.shape), "B G S H W")  # eq. 3
        y = torch.cat([a_1.to(x.dtype)[..., None, None] * x_1, a_2.to(x.dtype) * x_2], 2)
        return tap("y", channel_shuffle(y.flatten(1, 2), 2), "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, groups={self.groups}"
