"""CBAM: a gate for every channel, then a gate for every position, both from means and maxima."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_at_most, check_feature_map, check_int, check_odd, check_tensor
from ..ops import maximum, mean_and_max, total
from ..tap import tap


class ChannelAttention(nn.Module):
    """Channel attention of CBAM: x₁ = M_c · x with M_c = σ(MLP(c_avg) + MLP(c_max)), MLP(z) = W₁ δ(W₀ z), δ = ReLU.

    c_avg and c_max are the mean and the maximum of x over H and W; both go through the same MLP. With both, the
    bias of W₁ counts twice, as in the authors' release.

    Args:
        channels: C, at least 1.
        reduction: r, from 1 to C; W₀ is C/r × C, rounded down where r does not divide C.
        bias: whether W₀ and W₁ carry a bias.
        max_branch: False drops MLP(c_max); what remains is Squeeze-and-Excitation.

    Shape:
        x (B, C, H, W) → x₁ (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.
    """

    def __init__(self, channels: int, *, reduction: int = 16, bias: bool = True, max_branch: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.reduction = check_int("reduction", reduction)
        check_at_most("reduction", reduction, "channels", channels)
        self.max_branch = max_branch
        hidden = channels // reduction
        self.W0 = nn.Linear(channels, hidden, bias=bias)
        self.W1 = nn.Linear(hidden, channels, bias=bias)

    def mlp(self, z: Tensor) -> Tensor:
        return self.W1(F.relu(self.W0(z)))

    def gate(self, c_avg: Tensor, c_max: Tensor | None) -> Tensor:
        """M_c (B, C), eq. 2, from the two descriptors (B, C), or from the mean alone."""
        return torch.sigmoid(self.mlp(c_avg) if c_max is None else self.mlp(c_avg) + self.mlp(c_max))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        c_avg = tap("c_avg", x.mean((2, 3)), "B C")
        c_max = tap("c_max", maximum(x, (2, 3)).flatten(1), "B C") if self.max_branch else None
        M_c = tap("M_c", self.gate(c_avg, c_max), "B C")          # eq. 2
        return tap("x1", M_c[:, :, None, None] * x, "B C H W")   # eq. 1, first line

    def extra_repr(self) -> str:
        return f"channels={self.channels}, reduction={self.reduction}, max_branch={self.max_branch}"


class SpatialAttention(nn.Module):
    """Spatial attention of CBAM: y = M_s · x₁ with M_s = σ(f([s_avg; s_max])), f a k × k convolution of 2 planes to 1.

    s_avg and s_max are the mean and the maximum of x₁ over its channels, stacked in this order, the paper's. The
    release stacks them the other way round: flip the input axis of its kernels.

    Args:
        kernel_size: k, odd.
        bias: whether f carries a bias.
        norm: batch normalisation behind f in place of its bias: the release has it, the paper's equation does not.

    Shape:
        x₁ (B, C, H, W) → y (B, C, H, W), any C, H, W ≥ 1.

    Raises:
        ValueError: for an even kernel, or an input that is not a feature map.
    """

    def __init__(self, *, kernel_size: int = 7, bias: bool = True, norm: bool = False):
        super().__init__()
        self.kernel_size = check_odd("kernel_size", kernel_size)
        self.f = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=bias and not norm)
        self.norm = nn.BatchNorm2d(1, momentum=0.01) if norm else nn.Identity()

    def forward(self, x1: Tensor) -> Tensor:
        check_tensor(x1, "B C H W", name="x1")
        s_avg, s_max = mean_and_max(x1, 1)
        s = torch.cat([tap("s_avg", s_avg, "B 1 H W"), tap("s_max", s_max, "B 1 H W")], 1)
        M_s = tap("M_s", torch.sigmoid(self.norm(self.f(s))), "B 1 H W")  # eq. 3
        return tap("y", M_s * x1, "B C H W")                             # eq. 1, second line


@register(
    "cbam",
    family="channel_spatial",
    name="CBAM",
    summary="It gates positions as well as channels, and its channel gate sees the maximum beside the mean.",
    aliases=("CBAM", "channel and spatial attention"),
    action="gate",
    papers=[Paper(
        key="woo2018cbam", venue="ECCV", year=2018, arxiv="1807.06521",
        title="CBAM: Convolutional Block Attention Module",
        code="https://github.com/Jongchan/attention-module",
    )],
    layout="B C H W",
    example=dict(channels=64),
    variants={
        "release": dict(channels=32, norm=True),
        "no bias": dict(channels=16, reduction=4, bias=False, kernel_size=3),
        "channel only": dict(channels=6, reduction=6, spatial=False),
        "mean only": dict(channels=12, reduction=5, max_branch=False, kernel_size=1),
    },
    commutes_with={"translation"},
    builds_on=("se",),
    reduces_to={"se": "no max branch, no spatial part", "identity": "biases of W₁ and f → ∞"},
    counterpart=Counterpart(
        "timm CbamModule", "timm.layers.cbam",
        lambda timm, channels: timm.CbamModule(channels, rd_channels=channels // 16, mlp_bias=True),
        options=dict(norm=True)),
    errata=[
        Erratum("release",
                "The spatial gate stacks [maximum; mean], and has a batch normalisation in place of the bias of f.",
                "It stacks [mean; maximum] as in equation 3, and f has a bias; `norm=True` is the normalisation, and "
                "kernels load with their two input planes exchanged.",
                "test_the_release_is_norm_and_a_flipped_kernel"),
        Erratum("release",
                "Its ResNets start the scale of that normalisation at 0: every place gets ½, and f has no gradient in "
                "the first step.",
                "The scale starts at 1.",
                "test_a_norm_that_starts_at_zero_keeps_the_kernel_from_learning"),
        Erratum("paper",
                "The equations write no biases.",
                "The MLP has them as in the release, and f has one; `bias=False` leaves them out.",
                "test_equals_the_paper"),
        Erratum("package",
                "timm's `CbamModule` leaves the biases of the MLP out.",
                "They are there; timm has them with `mlp_bias=True`.",
                "test_timm_leaves_the_biases_of_the_mlp_out"),
        Erratum("package",
                "The channel gate of the `CBAM` in ultralytics is one C × C layer on the mean: no hidden layer and no "
                "maximum.",
                "Mean and maximum go through the MLP of the paper.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("copies",
                "The input is added to the output.",
                "The output is the product alone.",
                "test_the_comparison_with_the_paper_notices"),
    ],
)
class CBAM(nn.Module):
    """Convolutional block attention: x₁ = M_c · x, then y = M_s · x₁.

    M_c = σ(MLP(c_avg) + MLP(c_max)) is a gate a channel, from mean and maximum of x over H and W; see
    `ChannelAttention`. M_s = σ(f([s_avg; s_max])) is a gate a position, from mean and maximum of x₁ over C; see
    `SpatialAttention`. The paper calls x F, x₁ F′ and y F″.

    Args:
        channels: C, at least 1.
        reduction: r, from 1 to C; the paper's default is 16.
        kernel_size: k of f, odd; 7 in the paper.
        bias: whether the MLP and f carry biases.
        max_branch: False leaves the maximum out of the channel gate.
        spatial: False leaves out the spatial gate: y = x₁.
        norm: batch normalisation behind f in place of its bias, as in the release.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an even kernel, or an input that is not a feature map of C channels.

    Paper:
        Woo, Park, Lee and Kweon, CBAM: Convolutional Block Attention Module, ECCV 2018, arXiv 1807.06521.
    """

    def __init__(self, channels: int, *, reduction: int = 16, kernel_size: int = 7, bias: bool = True,
                 max_branch: bool = True, spatial: bool = True, norm: bool = False):
        super().__init__()
        self.channel = ChannelAttention(channels, reduction=reduction, bias=bias, max_branch=max_branch)
        self.spatial = SpatialAttention(kernel_size=kernel_size, bias=bias, norm=norm) if spatial else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.channel(x)
        return self.spatial(x1)


class JointCBAM(nn.Module):
    """CBAM for two maps of one scene, such as colour and depth: y_a = M_s,a · M_c,a · a and y_b = M_s,b · M_c,b · b.

    One MLP sees both maps: (M_c,a, M_c,b) = σ(MLP([avg a; avg b]) + MLP([max a; max b])), so that one map can open
    and close channels of the other. Each map has a spatial gate of its own, so their sizes may differ.

    A variation, not in the paper. The nearest published module is MMTM (Vaezi Joze et al., CVPR 2020,
    arXiv 1911.08670), which joins the means of two maps. What circulates as "CBAM, joint" is `LogitCBAM`.

    Args:
        channels: C of either map, at least 1.
        reduction: r, from 1 to 2C: the MLP has 2C inputs, 2C/r hidden units and 2C outputs.
        kernel_size: k of the two spatial convolutions, odd.
        bias: whether the MLP and the convolutions carry biases.

    Shape:
        a (B, C, H, W), b (B, C, H₂, W₂) → y_a, y_b of the same shapes.

    Raises:
        ValueError: for an argument out of range, an even kernel, inputs that are not feature maps of C channels, or
            batches of different size.
    """

    def __init__(self, channels: int, *, reduction: int = 16, kernel_size: int = 7, bias: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.channel = ChannelAttention(2 * channels, reduction=reduction, bias=bias)
        self.spatial_a = SpatialAttention(kernel_size=kernel_size, bias=bias)
        self.spatial_b = SpatialAttention(kernel_size=kernel_size, bias=bias)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        check_feature_map(a, self.channels, "a")
        check_tensor(b, "B C H W", {"B": len(a), "C": self.channels}, "b")
        c_avg = tap("c_avg", torch.cat([a.mean((2, 3)), b.mean((2, 3))], 1), "B 2*C")
        c_max = tap("c_max", torch.cat([maximum(a, (2, 3)), maximum(b, (2, 3))], 1).flatten(1), "B 2*C")
        M_c = tap("M_c", self.channel.gate(c_avg, c_max), "B 2*C")[:, :, None, None]
        M_ca, M_cb = M_c.chunk(2, 1)
        return self.spatial_a(M_ca * a), self.spatial_b(M_cb * b)


class LogitCBAM(nn.Module):
    """Both gates of one map from one MLP over both their logits: y_c = σ(l_c) · x and y_s = σ(l_s) · x.

    [l_c; l_s] = W₃ δ(W₂ [a; s]) with a = MLP(avg x) + MLP(max x), the C logits of CBAM's channel gate, and
    s = f([avg; max]), the HW logits of its spatial gate, here on x itself; δ = ReLU. So which channels speak may depend
    on where something is, and the other way round. The price is a map of fixed size, and 2 (C + HW) C/r weights.

    Not in the CBAM paper: lists of attention modules have it as "CBAM" with the argument HW, and return both maps;
    other code adds them up. Its layers have no bias but for the one of f, and its f sees the maximum first.

    Args:
        channels: C, at least 1.
        height, width: H and W.
        reduction: r, from 1 to C: both MLPs have C/r hidden units.
        kernel_size: k of f, odd.
        bias: whether the MLP of the channel logits and f carry biases.

    Shape:
        x (B, C, H, W) → y_c, y_s of the same shape.

    Raises:
        ValueError: for an argument out of range, an even kernel, or an input of another shape.
    """

    def __init__(self, channels: int, *, height: int, width: int, reduction: int = 16, kernel_size: int = 7,
                 bias: bool = True):
        super().__init__()
        self.channels, self.height, self.width = channels, check_int("height", height), check_int("width", width)
        self.channel = ChannelAttention(channels, reduction=reduction, bias=bias)
        self.spatial = SpatialAttention(kernel_size=kernel_size, bias=bias)
        logits = channels + height * width
        self.W2 = nn.Linear(logits, channels // reduction, bias=False)
        self.W3 = nn.Linear(channels // reduction, logits, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_tensor(x, "B C H W", {"C": self.channels, "H": self.height, "W": self.width})
        a = tap("a", total(self.channel.mlp(z.flatten(1)) for z in mean_and_max(x, (2, 3))), "B C")
        s = tap("s", self.spatial.f(torch.cat(mean_and_max(x, 1), 1)).flatten(1), "B H*W")
        gates = torch.sigmoid(self.W3(F.relu(self.W2(torch.cat([a, s], 1)))))
        M_c, M_s = gates.split([self.channels, self.height * self.width], 1)
        M_s = tap("M_s", M_s.unflatten(1, (1, self.height, self.width)), "B 1 H W")
        return x * tap("M_c", M_c, "B C")[:, :, None, None], x * M_s

    def extra_repr(self) -> str:
        return f"channels={self.channels}, height={self.height}, width={self.width}"
