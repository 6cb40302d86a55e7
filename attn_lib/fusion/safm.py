"""Spatially-adaptive feature modulation: groups of channels look at coarser and coarser maps, and gate the input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_feature_map, check_int, check_positive
from ..ops import at_one_size, resize, traced
from ..tap import tap


@register(
    "safm",
    family="fusion",
    name="Spatially-adaptive feature modulation",
    summary="Each group of channels looks at the map from another distance, and gates the input by what all see.",
    aliases=("SAFM", "SAFMN"),
    action="gate",
    papers=[Paper(
        key="sun2023safmn", venue="ICCV", year=2023, arxiv="2302.13800",
        title="Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution",
        code="https://github.com/sunny2109/SAFMN",
    )],
    layout="B C H W",
    example=dict(channels=16, levels=2),
    measured=dict(channels=64),
    variants={"one level": dict(channels=5, levels=1), "three levels": dict(channels=12, levels=3)},
    refuses={
        "any size": "exporters bind maxima in a grid to its size; torch.jit.trace does not",
    },
    reduces_to={
        "channel scaling": "W_a = 0: every channel times GELU(b_a)",
        "activation function": "one level that looks at its own pixel, W_a = 1: x · GELU(x)",
    },
    errata=[
        Erratum("copies", "Texts call the gate a map of weights, as behind a sigmoid.",
                "The gate is a GELU: it may be as large as the features, and is a little negative at times.",
                "test_the_gate_is_no_weight"),
        Erratum("release", "A map that is too small for the deepest level fails within its convolution.",
                "The error names the size that the levels need.", "test_maps_too_small_for_the_levels_are_refused"),
        Erratum("release", "Channels that the levels do not divide fail within the first convolution.",
                "The error names numbers of channels that they do.", "test_channels_that_levels_do_not_divide"),
    ],
)
class SAFM(nn.Module):
    """Spatially-adaptive feature modulation: y = GELU(W_a [X̂_0; …; X̂_{L−1}] + b_a) ⊙ x with X̂_i = ↑ dw_i(↓_i X_i).

    The channels of x are cut into L groups X_i, one a level. ↓_i takes largest entries on a grid of ⌊H/2^i⌋ × ⌊W/2^i⌋
    windows, dw_i is a depthwise 3 × 3 convolution with a bias, and ↑ repeats pixels until the map has its size again.
    Windows overlap where 2^i does not divide H or W: window p of n reaches from row ⌊pH/n⌋ to row ⌈(p + 1)H/n⌉ − 1.
    The first level has neither ↓ nor ↑. W_a is C × C. Of a map of 8 × 8 the fourth level sees one pixel.

    Weights of the release: mfr → dw, aggr → W_a.

    Args:
        channels: C, divisible by the number of levels.
        levels: L, at least 1; 4 in the paper.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 2^(L−1): 8 with four levels.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels, or smaller than
            the levels need.

    Paper:
        Sun, Dong, Tang and Pan, Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution, ICCV 2023,
        arXiv 2302.13800.
    """

    def __init__(self, channels: int, *, levels: int = 4):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.levels = check_int("levels", levels)
        if channels % levels:
            below = channels - channels % levels
            near = f"{below} and {below + levels} are" if below else f"{levels} is"
            raise ValueError(f"channels={channels} must be divisible by levels={levels}; {near}")
        S = channels // levels
        self.dw = nn.ModuleList(nn.Conv2d(S, S, 3, padding=1, groups=S) for _ in range(levels))
        self.Wa = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        if not traced():  # which alone leaves the grid of the maxima open
            x, *_ = at_one_size(x, 2, 3)
        H, W = x.shape[2:]
        X_hat = []
        for i, (X_i, dw_i) in enumerate(zip(x.chunk(self.levels, 1), self.dw, strict=True)):
            if i > 0:
                X_i = tap("X_down", F.adaptive_max_pool2d(X_i, (H // 2**i, W // 2**i)), f"B S H//{2**i} W//{2**i}")
            X_i = dw_i(X_i)
            X_hat.append(tap("X_hat", X_i if i == 0 else resize(X_i, H, W, "nearest"), "B S H W"))
        gate = tap("gate", F.gelu(self.Wa(torch.cat(X_hat, 1))), "B C H W")
        return tap("y", gate * x, "B C H W")

    def _check(self, x: Tensor) -> None:
        check_feature_map(x, self.channels)
        least = 2 ** (self.levels - 1)
        for axis, size in zip("HW", x.shape[2:], strict=True):
            if size < least:
                raise ValueError(f"x has {axis}={size}; it must be at least {least} with levels={self.levels}, so that "
                                 "the coarsest level has a pixel")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, levels={self.levels}"


class ConvChannelMixer(nn.Module):
    """SAFMN's second half, the convolutional channel mixer: y = W_2 GELU(W_1 * x + b_1) + b_2, W_1 of 3 × 3 taps.

    In the network both halves stand behind a layer norm over the channels and beside a residual,
    x + SAFM(LN(x)) and then x + CCM(LN(x)), with ε = 1e-6.

    Weights of the release: ccm.0 → W_1, ccm.2 → W_2.

    Args:
        channels: C, at least 1.
        growth_rate: width of the hidden layer over C, above 0; rounded down, at least 1 channel. 2 in the paper.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        As `SAFM`.
    """

    def __init__(self, channels: int, *, growth_rate: float = 2.0):
        super().__init__()
        self.channels = check_int("channels", channels)
        hidden = max(int(channels * check_positive("growth_rate", growth_rate)), 1)
        self.W1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.W2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        hidden = tap("hidden", F.gelu(self.W1(x)), "B Cr H W")
        return tap("y", self.W2(hidden), "B C H W")
