"""Dual attention: every position looks at all positions, every channel at all channels, and the answers are added."""

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_feature_map, check_int
from ..ops import attend
from ..tap import tap


class PositionAttention(nn.Module):
    """Position attention of DANet: e_j = α Σ_i S_ji v_i + x_j with S_ji = softmax_i(q_j · k_i), i over all N = HW.

    q = W_q x, k = W_k x and v = W_v x are 1 × 1 convolutions, the logits are not scaled, and α is a learned scalar that
    starts at 0. The paper writes C, B and D for q, k and v. No N × N matrix exists outside a trace.

    W_k has no bias: it would add the same number to all logits of a position, which the softmax takes off again. Leave
    out `key_conv.bias` when loading the release's weights; the others are `query_conv`, `key_conv`, `value_conv` and
    `gamma`, here Wq, Wk, Wv and alpha.

    Args:
        channels: C, at least 1.
        reduction: q and k have C/r channels, rounded down; r from 1 to C, 8 in the release. The paper's text keeps C.

    Shape:
        x (B, C, H, W) → e (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.
    """

    def __init__(self, channels: int, *, reduction: int = 8):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.reduction = check_int("reduction", reduction)
        check_at_most("reduction", reduction, "channels", channels)
        self.Wq = nn.Conv2d(channels, channels // reduction, 1)
        self.Wk = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.Wv = nn.Conv2d(channels, channels, 1)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        q = tap("q", self.Wq(x), "B Cr H W")
        k = tap("k", self.Wk(x), "B Cr H W")
        v = tap("v", self.Wv(x), "B C H W")
        q, k, v = (t.flatten(2).transpose(1, 2) for t in (q, k, v))                       # B N C
        Sv = attend(q, k, v, scale=1.0, name="S", dims="B N N")                           # eq. 1
        Sv = Sv.transpose(1, 2).reshape(x.shape)
        return tap("e_p", self.alpha.to(Sv.dtype) * Sv + x, "B C H W")                    # eq. 2

    def extra_repr(self) -> str:
        return f"channels={self.channels}, reduction={self.reduction}"


class ChannelSelfAttention(nn.Module):
    """Channel attention of DANet: e_j = β Σ_i X_ji x_i + x_j with X_ji = softmax_i(x_i · x_j), i over all C channels.

    A channel is the vector of its N = HW values, as it comes: there are no projections, and β, a learned scalar that
    starts at 0, is the only parameter. The logits are sums over all positions, not scaled, so that on large maps X is
    nearly the identity: a channel is most similar to itself.

    `reverse=True` is the release's softmax_i(max_i' x_i' · x_j − x_i · x_j), which is softmax_i(−x_i · x_j): a channel
    attends to those that are least similar to it. Its `gamma` is beta here.

    Args:
        channels: C, at least 1.
        reverse: whether the signs of the logits are reversed.

    Shape:
        x (B, C, H, W) → e (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.
    """

    def __init__(self, channels: int, *, reverse: bool = False):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.reverse = reverse
        self.beta = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        a = x.flatten(2)                                                                  # B C N
        Xa = attend(-a if self.reverse else a, a, a, scale=1.0, name="X", dims="B C C")   # eq. 3
        return tap("e_c", self.beta.to(Xa.dtype) * Xa.reshape(x.shape) + x, "B C H W")    # eq. 4

    def extra_repr(self) -> str:
        return f"channels={self.channels}, reverse={self.reverse}"


@register(
    "danet",
    family="channel_spatial",
    name="Dual attention",
    summary="It lets channels attend to channels beside positions to positions, and adds both to what was there.",
    aliases=("DANet", "PAM and CAM", "position and channel attention"),
    action="mix",
    papers=[Paper(
        key="fu2019dual", venue="CVPR", year=2019, arxiv="1809.02983",
        title="Dual Attention Network for Scene Segmentation",
        code="https://github.com/junfu1115/DANet",
    )],
    layout="B C H W",
    example=dict(channels=64),
    variants={
        "release": dict(channels=16, reverse=True),
        "full width": dict(channels=6, reduction=1),
    },
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    builds_on=("non_local",),
    reduces_to={
        "constant gate": "α = β = 0, where it starts: y = 2 · x, the input of each branch",
        "self-attention": "β = 0, W_v = 1: one head without a scale, and 2 · x beside it",
        "mean": "W_q = 0, β = 0: every position gets the same average",
    },
    errata=[
        Erratum("release", "The softmax over the channels sees max − energy, so that a channel attends to the channels "
                "least like it.", "It sees the energy, as in eq. 3; `reverse=True` is the release.",
                "test_the_release_attends_to_the_least_similar_channels"),
        Erratum("release", "The keys have a bias, whose gradient is exactly 0.",
                "They have none: the softmax ignores what is added to all logits of a position.",
                "test_a_bias_of_the_keys_is_dead"),
        Erratum("copies", "They are built for 512 channels at 7 × 7, project the channels before they are compared, "
                "and leave the factors α and β out.", "Any size works, channels are compared as they come, and α and β "
                "start at 0.", "test_channels_are_compared_without_projections"),
        Erratum("copies", "The logits are divided by the root of the width, as in other attention.",
                "They are not, as in eqs. 1 and 3 and in the release.", "test_the_comparison_with_the_paper_notices"),
    ],
)
class DANetAttention(nn.Module):
    """Dual attention: y = e_p + e_c, what `PositionAttention` and `ChannelSelfAttention` make of x, added.

        e_p,j = α Σ_i S_ji v_i + x_j    S_ji = softmax_i(q_j · k_i)      i, j over the N = HW positions
        e_c,j = β Σ_i X_ji x_i + x_j    X_ji = softmax_i(x_i · x_j)      i, j over the C channels

    Both logits are not scaled, and x, which the paper calls A, is in both sums: y = 2x where α = β = 0, as at the
    start. In the network each branch has convolutions of its own before and behind it: see `DANetHead`.

    Args:
        channels: C, at least 1.
        reduction: q and k have C/r channels, rounded down; r from 1 to C, 8 in the release.
        reverse: whether channels attend to those least like them, as in the release.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Fu, Liu, Tian, Li, Bao, Fang and Lu, Dual Attention Network for Scene Segmentation, CVPR 2019,
        arXiv 1809.02983.
    """

    def __init__(self, channels: int, *, reduction: int = 8, reverse: bool = False):
        super().__init__()
        self.position = PositionAttention(channels, reduction=reduction)
        self.channel = ChannelSelfAttention(channels, reverse=reverse)

    def forward(self, x: Tensor) -> Tensor:
        e_p = self.position(x)
        e_c = self.channel(x)
        return tap("y", e_p + e_c, "B C H W")


class DANetHead(nn.Module):
    """The head of DANet: three maps of logits, from f_p, f_c and y = f_p + f_c, with f = conv(e(conv(x))) a branch.

    Each branch has a 3 × 3 convolution with batch normalisation and ReLU before its attention, which narrows C channels
    to `hidden`, and one behind it. What is added are the outputs of the second convolutions. The network learns from
    all three logits; y's are its answer.

    Names of the release's weights: `conv5a`, `sa`, `conv51` and `conv6` are position.before, position.attention,
    position.behind and position.logits; `conv5c`, `sc`, `conv52` and `conv7` are those of channel; `conv8` is logits.

    Args:
        channels: C, at least 1.
        out_channels: O, the classes, at least 1.
        hidden: channels of both attentions; C/4, rounded down, when None.
        reduction, reverse: see `DANetAttention`.
        dropout: of whole channels before the logits, 0.1 in the release.

    Shape:
        x (B, C, H, W) → three of (B, O, H, W): of y, f_p and f_c; any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.
    """

    def __init__(self, channels: int, out_channels: int, *, hidden: int | None = None, reduction: int = 8,
                 reverse: bool = False, dropout: float = 0.1):
        super().__init__()
        self.channels = check_int("channels", channels)
        hidden = check_int("hidden", channels // 4 if hidden is None else hidden)
        check_int("out_channels", out_channels)

        def conv(width: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(width, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())

        def logits() -> nn.Sequential:
            return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(hidden, out_channels, 1))

        self.position = nn.ModuleDict(dict(before=conv(channels), behind=conv(hidden), logits=logits(),
                                           attention=PositionAttention(hidden, reduction=reduction)))
        self.channel = nn.ModuleDict(dict(before=conv(channels), behind=conv(hidden), logits=logits(),
                                          attention=ChannelSelfAttention(hidden, reverse=reverse)))
        self.logits = logits()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        check_feature_map(x, self.channels)
        f_p, f_c = (tap(name, branch["behind"](branch["attention"](branch["before"](x))), "B Cr H W")
                    for name, branch in (("f_p", self.position), ("f_c", self.channel)))
        y = tap("y", self.logits(f_p + f_c), "B O H W")
        return y, self.position["logits"](f_p), self.channel["logits"](f_c)
