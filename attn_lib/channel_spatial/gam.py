"""GAM: a gate from the channels of each pixel, then one from the pixels around, with nothing pooled on the way."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_choice, check_divisible, check_feature_map, check_int
from ..ops import channel_shuffle
from ..tap import tap

PADDING = ("zeros", "replicate")
SHUFFLE = ("between", "gate")


@register(
    "gam",
    family="channel_spatial",
    name="Global attention mechanism",
    summary="It gates every number of the map twice, without pooling anything: by the channels of its pixel, then by "
            "its neighbourhood.",
    aliases=("GAM", "GAM attention"),
    action="gate",
    papers=[Paper(
        key="liu2021global", venue="arXiv", year=2021, arxiv="2112.05561",
        title="Global Attention Mechanism: Retain Information to Enhance Channel-Spatial Interactions",
    )],
    layout="B C H W",
    example=dict(channels=32),
    measured=dict(channels=64),
    variants={
        "groups": dict(channels=8, reduction=2, groups=2),
        "copies": dict(channels=6, reduction=3, channel_sigmoid=False, padding_mode="replicate", groups=2,
                       shuffle="gate"),
    },
    commutes_with={"translation"},
    builds_on=("cbam",),
    reduces_to={
        "channel scaling": "W₂ = 0 and f₂ = 0: a constant for each channel, σ(b₂) times σ of BN₂ at 0",
        "identity": "b₂ and the bias of BN₂ → ∞",
    },
    errata=[
        Erratum("paper", "The mechanism is called global.", "Nothing in it is: the first gate sees one pixel, the "
                "second 13 × 13.", "test_no_gate_sees_the_whole_map"),
        Erratum("paper", "Text and figure leave open whether the two-layer MLP has an activation, whether the "
                "convolutions are normalised, and where the sigmoid of the channels stands.",
                "The MLP has a ReLU and ends in a sigmoid after the permutation back; each convolution is followed by "
                "a batch normalisation, the first by a ReLU as well.", "test_taps_are_the_equations"),
        Erratum("copies", "The channel part has no sigmoid, so that x is multiplied by logits of any size and sign.",
                "It has one, as in the paper's figure; `channel_sigmoid=False` leaves it out.",
                "test_without_the_sigmoid_a_channel_can_change_its_sign"),
        Erratum("copies", "The channels are shuffled after the last sigmoid, so that a gate is applied to another "
                "channel than that which it was computed for.", "With groups they are shuffled between the "
                "convolutions; `shuffle=\"gate\"` is the copies' place.",
                "test_a_shuffle_behind_the_sigmoid_gives_channels_the_gates_of_others"),
        Erratum("copies", "The map is continued by its border instead of by zeros.",
                "It is padded by zeros; `padding_mode=\"replicate\"` continues the border.",
                "test_the_border_is_zeros_or_continued"),
    ],
)
class GAMAttention(nn.Module):
    """Global attention mechanism: x₂ = M_c · x, then y = M_s · x₂, both gates of the size of x.

        M_c = σ(W₂ δ(W₁ x + b₁) + b₂)               an MLP over the channels, at every pixel: nothing is pooled
        M_s = σ(BN₂(f₂ * δ(BN₁(f₁ * x₂))))          f₁ and f₂ 7 × 7 convolutions, C to C/r channels and back

    The paper calls x F₁, x₂ F₂ and y F₃, and speaks of a 3D permutation, by which channels come last for the MLP, and
    back: it is a pair of 1 × 1 convolutions, which need none. f₁ and f₂ have no biases, which their normalisations
    would take off again. Their 2 · 49 · C²/r weights are what the module costs, 6.4 million at C = 512: for ResNet-50
    the paper puts groups into them, and shuffles the channels between groups.

    There is no release. Names in the copies' weights: `channel_attention.0` and `.2` are W1 and W2, with two axes of 1
    behind theirs, and `spatial_attention.0`, `.1`, `.3`, `.4` are f1, norm1, f2, norm2; where their convolutions have
    biases, take them off the running means of norm1 and norm2.

    Args:
        channels: C, at least 1.
        reduction: r, from 1 to C; 4 in the paper. C/r is rounded down.
        groups: of f₁ and f₂; divides C and C/r.
        shuffle: "between" f₁ and f₂, or "gate": of M_s. Without effect for one group.
        channel_sigmoid: whether M_c ends in a sigmoid.
        padding_mode: of f₁ and f₂, "zeros" or "replicate".

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Liu, Shao and Hoffmann, Global Attention Mechanism: Retain Information to Enhance Channel-Spatial Interactions,
        2021, arXiv 2112.05561.
    """

    def __init__(self, channels: int, *, reduction: int = 4, groups: int = 1, shuffle: str = "between",
                 channel_sigmoid: bool = True, padding_mode: str = "zeros"):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.reduction = check_int("reduction", reduction)
        check_at_most("reduction", reduction, "channels", channels)
        Cr = channels // reduction
        self.groups = check_int("groups", groups)
        check_divisible("channels", channels, "groups", groups)
        check_divisible("channels // reduction", Cr, "groups", groups)
        check_choice("shuffle", shuffle, SHUFFLE)
        check_choice("padding_mode", padding_mode, PADDING)
        self.shuffle, self.channel_sigmoid, self.padding_mode = shuffle, channel_sigmoid, padding_mode

        wide = partial(nn.Conv2d, kernel_size=7, padding=3, groups=groups, bias=False,
                       padding_mode=padding_mode)  # type: ignore[arg-type]  # one of PADDING, which are torch's
        self.W1, self.W2 = nn.Conv2d(channels, Cr, 1), nn.Conv2d(Cr, channels, 1)
        self.f1, self.norm1 = wide(channels, Cr), nn.BatchNorm2d(Cr)
        self.f2, self.norm2 = wide(Cr, channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        M_c = self.W2(F.relu(self.W1(x)))                                                 # at every pixel
        M_c = tap("M_c", torch.sigmoid(M_c) if self.channel_sigmoid else M_c, "B C H W")
        x2 = tap("x2", M_c * x, "B C H W")                                                # eq. 1
        s = tap("s", F.relu(self.norm1(self.f1(x2))), "B Cr H W")
        s = channel_shuffle(s, self.groups) if self.shuffle == "between" else s
        M_s = torch.sigmoid(self.norm2(self.f2(s)))
        M_s = channel_shuffle(M_s, self.groups) if self.shuffle == "gate" else M_s
        return tap("y", tap("M_s", M_s, "B C H W") * x2, "B C H W")                       # eq. 2

    def extra_repr(self) -> str:
        names = ("channels", "reduction", "groups", "shuffle", "channel_sigmoid", "padding_mode")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
