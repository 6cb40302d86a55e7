"""S²-MLPv2: neighbours meet because quarters of the channels are shifted, and the image weighs three such answers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_feature_map, check_int, check_tensor
from ..ops import in_float32
from ..tap import tap


@register(
    "s2mlpv2",
    family="mlp",
    name="Spatial-shift MLP",
    summary="It lets neighbours meet without any weights for it, by shifting quarters of the channels, and weighs "
            "three ways of shifting.",
    aliases=("S²-MLPv2", "S2-MLPv2", "S2Attention", "spatial shift"),
    action="mix",
    papers=[Paper(
        key="yu2021s2mlpv2", venue="arXiv", year=2021, arxiv="2108.01072",
        title="S²-MLPv2: Improved Spatial-Shift MLP Architecture for Vision",
    )],
    layout="B C H W",
    example=dict(channels=16),
    measured=dict(channels=64),
    variants={"narrow": dict(channels=4)},
    commutes_with={"translation"},
    builds_on=("vip",),
    reduces_to={
        "linear channel MLP": "equal weights, and W_1 makes the part that is not shifted alone",
        "convolution": "equal weights: a cross of five taps, the edges repeated",
    },
    errata=[
        Erratum("copies", "They shift in place, so that two of the four quarters repeat their first row or column all "
                "over the map.", "Every quarter is read from a copy that nothing writes into.",
                "test_shifting_in_place_smears_the_first_row"),
        Erratum("copies", "Their split attention has 512 channels, whatever the block has.",
                "It has those of the block.", "test_widths_follow_the_channels"),
        Erratum("copies", "In some the first part moves its first two quarters along the width.",
                "It moves them along the height; exchanging parts 1 and 2 in the weights is the other reading.",
                "test_the_other_reading_is_an_exchange_of_two_parts"),
    ],
)
class S2Attention(nn.Module):
    """The S²-MLPv2 module: y = W_2 SA(S_1(X_1), S_2(X_2), X_3) + b_2 with [X_1; X_2; X_3] = W_1 x + b_1.

    W_1 is 3C × C. S_1 shifts the four quarters of the channels by one position down, up, right and left, S_2 right,
    left, down and up. At the edges nothing is wrapped and no zero comes in: the first or last row or column stays and
    is repeated. SA is `SplitAttentionMLP`, a weight for each part and channel, from the whole image. As a position
    sees the four next to it and the weights see a sum, a module alone mixes little; a stack of them mixes far.

    Weights of the usual copies: mlp1 → W_1, mlp2 → W_2, split_attention.mlp1 and mlp2 → attention.W1 and W2.

    Args:
        channels: C, divisible by 4.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: if channels is no multiple of 4, or for an input that is not a feature map of C channels.

    Paper:
        Yu, Li, Cai, Sun and Li, S²-MLPv2: Improved Spatial-Shift MLP Architecture for Vision, 2021,
        arXiv 2108.01072.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = check_int("channels", channels)
        if channels % 4:
            below = channels - channels % 4
            near = f"{below} and {below + 4} are" if below else "4 is"
            raise ValueError(f"channels={channels} must be divisible by 4, the directions of a shift; {near}")
        self.W1 = nn.Conv2d(channels, 3 * channels, 1)
        self.attention = SplitAttentionMLP(channels, parts=3)
        self.W2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        X_1, X_2, X_3 = self.W1(x).chunk(3, 1)
        X_1 = torch.cat([shift(q, *way) for q, way in zip(X_1.chunk(4, 1), S_1, strict=True)], 1)
        X_2 = torch.cat([shift(q, *way) for q, way in zip(X_2.chunk(4, 1), S_2, strict=True)], 1)
        X = tap("X", torch.stack([X_1, X_2, X_3], 1), "B M C H W")
        return tap("y", self.W2(self.attention(X)), "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


class SplitAttentionMLP(nn.Module):
    """Split attention of S²-MLPv2 and ViP: X̂ = Σ_m α_m ⊙ X_m with α = softmax_m(W_2 GELU(W_1 a)), a = Σ_m Σ_N X_m.

    One vector a sums M maps over all positions; W_1 is C × C and W_2 is M·C × C, both without a bias, row m · C + c of
    W_2 for part m and channel c. a is a sum and no mean, as in the paper: the logits grow with H·W, and on a large
    map the softmax is close to a choice. They are computed in float32 at least.

    Args:
        channels: C, at least 1.
        parts: M, at least 1.

    Shape:
        X (B, M, C, H, W) → (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input of another shape.

    Paper:
        As `S2Attention`.
    """

    def __init__(self, channels: int, *, parts: int = 3):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.parts = check_int("parts", parts)
        self.W1 = nn.Linear(channels, channels, bias=False)
        self.W2 = nn.Linear(channels, parts * channels, bias=False)

    def forward(self, X: Tensor) -> Tensor:
        check_tensor(X, "B M C H W", {"M": self.parts, "C": self.channels}, "X")
        a = tap("a", X.sum((1, 3, 4), dtype=torch.promote_types(X.dtype, torch.float32)), "B C")
        logits = in_float32(lambda a, W1, W2: F.linear(F.gelu(F.linear(a, W1)), W2), a, self.W1.weight, self.W2.weight)
        alpha = tap("alpha", logits.unflatten(1, (self.parts, -1)).softmax(1), "B M C")
        return tap("X_hat", torch.einsum("BMC,BMCHW->BCHW", alpha.to(X.dtype), X), "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, parts={self.parts}"


DOWN, UP, RIGHT, LEFT = (2, 1), (2, -1), (3, 1), (3, -1)  # axis and step
S_1, S_2 = (DOWN, UP, RIGHT, LEFT), (RIGHT, LEFT, DOWN, UP)


def shift(x: Tensor, axis: int, step: int) -> Tensor:
    """x moved by one position along an axis, on or back; what would be empty at the edge stays as it was."""
    size = x.shape[axis]
    if step > 0:
        return torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, size - 1)], axis)
    return torch.cat([x.narrow(axis, 1, size - 1), x.narrow(axis, size - 1, 1)], axis)
