"""Triplet attention: a gate over rows and columns, and two more over the channels with each of them."""

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_feature_map, check_int, check_odd
from ..ops import mean_and_max
from ..tap import tap


class TripletBranch(nn.Module):
    """One branch of triplet attention: g = σ(BN(f([max; mean]))), both taken along one axis of x.

    What is left of x is a picture with the two other axes as its height and width: rows × columns where the channels
    are pooled, channels × columns where the rows are, rows × channels where the columns are. f is a k × k convolution
    of two planes to one, without a bias.

    Args:
        along: the axis that is pooled: "C", "H" or "W".
        kernel_size: k, odd.

    Shape:
        x (B, C, H, W) → g of the same shape, but with 1 for the axis that is pooled.
    """

    def __init__(self, along: str, *, kernel_size: int = 7):
        super().__init__()
        self.along = along
        self.dim = "BCHW".index(along)
        self.f = nn.Conv2d(2, 1, check_odd("kernel_size", kernel_size), padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        name, axes = {"C": ("hw", "H W"), "H": ("cw", "C W"), "W": ("hc", "H C")}[self.along]
        s_avg, s_max = mean_and_max(x, self.dim)
        s = torch.cat([self._picture(s_max), self._picture(s_avg)], 1)
        s = tap(f"s_{name}", s, f"B 2 {axes}")                                            # Z-pool
        g = tap(f"g_{name}", torch.sigmoid(self.norm(self.f(s))), f"B 1 {axes}")
        return self._picture(g)

    def _picture(self, t: Tensor) -> Tensor:
        """The axis that is pooled in the place of the channels; and back, since it is an exchange of two axes."""
        return t.transpose(1, self.dim)

    def extra_repr(self) -> str:
        return f"along={self.along!r}"


@register(
    "triplet",
    family="channel_spatial",
    name="Triplet attention",
    summary="It gates pairs of axes, rows with columns and channels with each of them, and reduces no channels on the "
            "way.",
    aliases=("Triplet", "TripletAttention", "rotate to attend"),
    action="gate",
    papers=[Paper(
        key="misra2021rotate", venue="WACV", year=2021, arxiv="2010.03045",
        title="Rotate to Attend: Convolutional Triplet Attention Module",
        code="https://github.com/landskape-ai/triplet-attention",
    )],
    layout="B C H W",
    example=dict(channels=64),
    variants={"rotated branches": dict(channels=12, kernel_size=3, spatial=False)},
    commutes_with={"translation"},
    builds_on=("cbam",),
    reduces_to={
        "cbam": "BN biases of the rotated branches → −∞: a third of the spatial part",
        "constant gate": "BN scales 0: the mean of three constants σ(β)",
        "identity": "all BN biases → ∞",
    },
    errata=[
        Erratum("copies", "A ReLU stands before the sigmoid, so that no gate falls below one half.",
                "The sigmoid follows the normalisation, and gates lie between 0 and 1.",
                "test_a_relu_before_the_sigmoid_leaves_no_gate_below_one_half"),
    ],
)
class TripletAttention(nn.Module):
    """Triplet attention: y = ⅓ (g_hw · x + g_cw · x + g_hc · x), a gate for each pair of axes.

    g_hw = σ(BN(f([max; mean]))) of maximum and mean over the channels, f a 7 × 7 convolution of rows and columns: the
    spatial part of CBAM. g_cw does the same with channels and columns as the picture, after pooling the rows, and g_hc
    with rows and channels, after pooling the columns; see `TripletBranch`. So no channels are reduced, and the whole
    module has 3 · (2 · 7² + 2) = 300 parameters, whatever C is. The paper rotates x, where here the gates are turned.

    A convolution along the channels reads neighbours: their order matters, as in ECA, and fewer than 7 channels are
    seen mostly beside padding. Rows and columns of x exchanged are the rotated branches exchanged and all three kernels
    transposed. With `spatial=False` the two rotated branches are averaged, as in the paper's ablation and the release's
    `no_spatial`.

    Names of the release's weights: `cw.conv.conv` is cw.f and `cw.conv.bn` is cw.norm; `hc` and `hw` likewise.

    Args:
        channels: C, at least 1. There are no weights to size by it; inputs are checked against it.
        kernel_size: k of the three convolutions, odd; 7 in the paper.
        spatial: whether the branch of rows and columns takes part.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any C, H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an even kernel, or an input that is not a feature map of C channels.

    Paper:
        Misra, Nalamada, Arasanipalai and Hou, Rotate to Attend: Convolutional Triplet Attention Module, WACV 2021,
        arXiv 2010.03045.
    """

    def __init__(self, channels: int, *, kernel_size: int = 7, spatial: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.cw = TripletBranch("H", kernel_size=kernel_size)
        self.hc = TripletBranch("W", kernel_size=kernel_size)
        self.hw = TripletBranch("C", kernel_size=kernel_size) if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        y = self.cw(x) * x + self.hc(x) * x
        if self.hw is None:
            return tap("y", y / 2, "B C H W")
        return tap("y", (y + self.hw(x) * x) / 3, "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}"
