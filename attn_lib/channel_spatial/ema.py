"""Efficient multi-scale attention: in every group of channels two branches, near and far, weigh each other's maps."""

import torch
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_divisible, check_feature_map, check_int
from ..ops import strip_means
from ..tap import tap


@register(
    "ema",
    family="channel_spatial",
    name="Efficient multi-scale attention",
    summary="It joins the whole rows and columns of one branch to the neighbourhoods of another, each weighed by what "
            "the other has seen.",
    aliases=("EMA", "cross-spatial learning"),
    action="gate",
    papers=[Paper(
        key="ouyang2023ema", venue="ICASSP", year=2023, arxiv="2305.13563",
        title="Efficient Multi-Scale Attention Module with Cross-Spatial Learning",
        code="https://github.com/YOLOonMe/EMA-attention-module",
    )],
    layout="B C H W",
    example=dict(channels=64),
    variants={"one group": dict(channels=5, groups=1), "a group a channel": dict(channels=6, groups=6)},
    commutes_with={"translation"},
    refuses={
        "onnx by trace at any size": "the older exporter writes the recorded sizes into a reshape",
    },
    builds_on=("coord",),
    reduces_to={
        "SiLU": "a group for every channel, GN = 0 and an identity for the 3 × 3 kernel",
        "constant gate": "GN's weight and the 3 × 3 kernel 0: only biases remain",
    },
    errata=[
        Erratum("release", "40 channels pass the check for 32 groups, and fail where they are divided.",
                "They are refused with the numbers of channels that would do.", "test_channels_that_do_not_divide"),
        Erratum("paper", "It does not say what lies around the map for the 3 × 3 convolution.",
                "Zeros, as in the release, and so the gate of a constant map is another at its border.",
                "test_a_constant_map_has_no_constant_gate"),
        Erratum("paper", "It speaks of a softmax over a map that was pooled, as of spatial attention.",
                "The softmax runs over the channels of a group, one weight for each, as in the release.",
                "test_the_softmax_runs_over_the_channels_of_a_group"),
    ],
)
class EMAAttention(nn.Module):
    """Efficient multi-scale attention: y = σ(p₁ · x₂ + p₂ · x₁) · x in each of G groups of S = C/G channels.

    x₁ = GN(x · σ(f_h) · σ(f_w)) looks far: f_h and f_w are one 1 × 1 convolution of the means of every row and of every
    column, joined, as in coordinate attention. x₂ is a 3 × 3 convolution of x with zeros around it, and looks near.
    p₁ and p₂ are softmaxes, over the channels of the group, of the means of x₁ and x₂; each sums the other's map into
    one (p₁ · x₂ and p₂ · x₁), and the gate has one value for all channels of a group at a position.

    All groups share the convolutions and the norm: S · S + 9 S · S + 4 S parameters in all. GN has one group for every
    channel, so it is instance normalisation with a weight and a bias; on a map of one pixel it is its bias. Names and
    shapes are the release's.

    Args:
        channels: C, divisible by G.
        groups: G, at least 1; the release's factor, 32.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Ouyang, He, Zhang, Luo, Guo, Zhan and Huang, Efficient Multi-Scale Attention Module with Cross-Spatial Learning,
        ICASSP 2023, arXiv 2305.13563.
    """

    def __init__(self, channels: int, *, groups: int = 32):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.groups = check_int("groups", groups)
        S = check_divisible("channels", channels, "groups", groups)
        self.gn = nn.GroupNorm(S, S)  # the release's names
        self.conv1x1 = nn.Conv2d(S, S, 1)
        self.conv3x3 = nn.Conv2d(S, S, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        x_g = tap("x_g", x.unflatten(1, (self.groups, -1)), "B G S H W").flatten(0, 1)
        z = torch.cat(strip_means(x_g), 2)[..., None]                                 # rows, then columns
        f_h, f_w = self.conv1x1(z).split(x.shape[2:], 2)
        f_h, f_w = tap("f_h", f_h, "B*G S H 1"), tap("f_w", f_w.transpose(-2, -1), "B*G S 1 W")
        far = x_g * f_h.sigmoid() * f_w.sigmoid()
        x_1 = torch.group_norm(far, len(self.gn.weight), self.gn.weight, self.gn.bias, self.gn.eps)
        x_1 = tap("x_1", x_1, "B*G S H W")            # not self.gn(far), which refuses a single pixel of a single image
        x_2 = tap("x_2", self.conv3x3(x_g), "B*G S H W")
        p_1, p_2 = (tap(name, _weights(t), "B*G S") for name, t in (("p_1", x_1), ("p_2", x_2)))
        A = tap("A", _mixed(p_1, x_2) + _mixed(p_2, x_1), "B*G 1 H W")
        y = rearrange(x_g * A.sigmoid(), "(B G) S H W -> B (G S) H W", G=self.groups)
        return tap("y", y, "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, groups={self.groups}"


def _weights(t: Tensor) -> Tensor:
    """Softmax over the channels of their means, in float32 at least: differences of means may be large."""
    return t.mean((2, 3), dtype=torch.promote_types(t.dtype, torch.float32)).softmax(1).to(t.dtype)


def _mixed(p: Tensor, t: Tensor) -> Tensor:
    """One map of the channels of t, by their weights p."""
    return (p[:, None] @ t.flatten(2)).unflatten(2, t.shape[2:])
