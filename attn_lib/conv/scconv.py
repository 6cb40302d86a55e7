"""Spatial and channel reconstruction convolution (SCConv): what is redundant in a map is folded or made cheaply."""

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_divisible, check_feature_map, check_int, check_odd, check_positive
from ..tap import tap

GATES = ("fill", "mask")


class SpatialReconstructionUnit(nn.Module):
    """Spatial reconstruction unit (SRU): channels that vary little at a place are folded onto those that do.

    With GN(x) = γ (x − μ)/√(σ² + ε) + β over groups of channels, and w_γ = γ / Σγ,

        w = σ(w_γ · GN(x)),   w₁ = 1 where w > t, else w,   w₂ = 0 where w > t, else w,
        x₁ = w₁ x,  x₂ = w₂ x,   y = [x₁₁ + x₂₂; x₁₂ + x₂₁],

    where x₁ = [x₁₁; x₁₂] and x₂ = [x₂₁; x₂₂] are halves of the channels. At t = ½ and w_γ > 0, w > t says GN(x) > 0:
    with β = 0, x is above the mean of its group. The step itself has no gradient; what stays w has.

    Args:
        channels: C, even.
        norm_groups: groups of GN, divides C; the paper does not say, copies have 4 or 16.
        threshold: t; ½ in the paper. At 0 the unit is the identity, at 1 nothing is above it.
        gate: "fill", as the paper's sentence is read: above t the weights become 1 and 0, the others stay in both.
            "mask" keeps w in w₁ where it is above t, in w₂ where it is not, and is 0 elsewhere.
        epsilon: ε > 0.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.
    """

    def __init__(self, channels: int, *, norm_groups: int = 4, threshold: float = 0.5, gate: str = "fill",
                 epsilon: float = 1e-5):
        super().__init__()
        self.channels = check_int("channels", channels)
        check_divisible("channels", channels, "halves", 2)
        check_divisible("channels", channels, "norm_groups", check_int("norm_groups", norm_groups))
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold!r} must be a number from 0 to 1")
        check_choice("gate", gate, GATES)
        self.threshold, self.gate = float(threshold), gate
        self.norm = nn.GroupNorm(norm_groups, channels, eps=check_positive("epsilon", epsilon))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        dtype = torch.promote_types(x.dtype, torch.float32)  # beside ½, bfloat16 knows ½ − 1/512 and ½ + 1/256
        gamma = self.norm.weight.to(dtype)
        w_gamma = tap("w_gamma", gamma / gamma.sum(), "C")                                        # eq. 2
        w = torch.sigmoid(w_gamma[:, None, None] * self.norm(x).to(dtype))
        above = w > self.threshold
        w = tap("w", w.to(x.dtype), "B C H W")                                                    # eq. 3
        w1 = torch.where(above, 1.0, w) if self.gate == "fill" else torch.where(above, w, 0.0)
        w1 = tap("w1", w1, "B C H W")
        w2 = tap("w2", torch.where(above, 0.0, w), "B C H W")
        x1, x2 = w1 * x, w2 * x                                                                   # eq. 4
        return tap("x_w", x1 + x2.roll(self.channels // 2, 1), "B C H W")  # the halves of x₂ exchanged

    def extra_repr(self) -> str:
        return f"channels={self.channels}, threshold={self.threshold}, gate={self.gate!r}"


class ChannelReconstructionUnit(nn.Module):
    """Channel reconstruction unit (CRU): some channels get a convolution, the others are re-used, a choice mixes both.

    x = [x_up; x_low], αC and (1 − α)C channels, each squeezed by a 1 × 1 convolution to a part 1/r of them;

        Y₁ = M_G ∗ x_up + M_P1 x_up,   Y₂ = [M_P2 x_low; x_low],
        β = softmax over the two of their means over H and W, channel by channel,   Y = β₁ Y₁ + β₂ Y₂.

    M_G is k × k with g groups, M_P1 and M_P2 are 1 × 1; nothing has a bias.

    Args:
        channels: C.
        alpha: α, above 0 and below 1; αC must be an integer.
        reduction: r, at least 1; divides αC and (1 − α)C.
        groups: g, divides αC/r and C.
        kernel_size: k, odd.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.
    """

    def __init__(self, channels: int, *, alpha: float = 0.5, reduction: int = 2, groups: int = 2, kernel_size: int = 3):
        super().__init__()
        self.channels = check_int("channels", channels)
        if isinstance(alpha, bool) or not isinstance(alpha, float) or not 0 < alpha < 1:
            raise ValueError(f"alpha={alpha!r} must be a number above 0 and below 1")
        up = round(alpha * channels)
        if abs(up - alpha * channels) > 1e-6 or not 0 < up < channels:
            near = min(max(up, 1), channels - 1) / channels
            raise ValueError(f"alpha={alpha} must be a whole number of channels={channels}; {near:g} is")
        self.up, self.low = up, channels - up
        check_int("reduction", reduction)
        up = check_divisible("channels·alpha", self.up, "reduction", reduction)
        low = check_divisible("channels * (1 - alpha)", self.low, "reduction", reduction)
        check_int("groups", groups)
        check_divisible("channels·alpha/reduction", up, "groups", groups)
        check_divisible("channels", channels, "groups", groups)
        check_odd("kernel_size", kernel_size)
        self.squeeze_up = nn.Conv2d(self.up, up, 1, bias=False)
        self.squeeze_low = nn.Conv2d(self.low, low, 1, bias=False)
        self.GWC = nn.Conv2d(up, channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
        self.PWC1 = nn.Conv2d(up, channels, 1, bias=False)
        self.PWC2 = nn.Conv2d(low, channels - low, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        x_up, x_low = x.split([self.up, self.low], 1)
        x_up, x_low = self.squeeze_up(x_up), self.squeeze_low(x_low)
        tap("x_up", x_up, f"B {x_up.shape[1]} H W")
        tap("x_low", x_low, f"B {x_low.shape[1]} H W")
        Y1 = tap("Y1", self.GWC(x_up) + self.PWC1(x_up), "B C H W")            # eq. 5
        Y2 = tap("Y2", torch.cat([self.PWC2(x_low), x_low], 1), "B C H W")     # eq. 6
        s = tap("s", torch.stack([Y1.mean((2, 3)), Y2.mean((2, 3))], 1), "B 2 C")
        beta = tap("beta", s.softmax(1), "B 2 C")                              # eq. 8: of the two, for each channel
        beta1, beta2 = beta[..., None, None].to(x_up.dtype).unbind(1)
        return tap("y", beta1 * Y1 + beta2 * Y2, "B C H W")


@register(
    "scconv",
    family="conv",
    name="Spatial and channel reconstruction convolution",
    summary="It folds what says little onto what says much, then convolves half of the channels and re-uses the rest.",
    aliases=("SCConv", "SRU", "CRU"),
    action="mix",
    papers=[Paper(
        key="li2023scconv", venue="CVPR", year=2023,
        title="SCConv: Spatial and Channel Reconstruction Convolution for Feature Redundancy",
    )],
    layout="B C H W",
    example=dict(channels=32),
    measured=dict(channels=64),
    variants={
        "mask": dict(channels=8, norm_groups=2, gate="mask"),
        "uneven": dict(channels=12, norm_groups=4, alpha=0.25, reduction=3, groups=1, threshold=0.6),
    },
    commutes_with={"translation"},
    forbids={"half": "a hard choice: rounding decides about weights at the threshold, and the output jumps"},
    reduces_to={
        "identity": "t = 0: the spatial unit alone, as everything is above it",
        "channel-wise gate": "M_G = M_P1 = 0: Y = σ(mean of Y₂) · Y₂, the channel unit alone",
    },
    errata=[
        Erratum("paper", "Weights above the threshold become 1 in W₁ and 0 in W₂; of the others it says nothing.",
                "They stay as they are in both; with gate=\"mask\" the other reading, each weight in one of the two.",
                "test_two_readings_of_the_gate"),
        Erratum("copies", "The first version of the most copied code holds the softmax of γ against the threshold.",
                "The threshold is held against σ(w_γ · GN(x)), at every place.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("copies", "In it w_γ is the softmax of γ.",
                "γ / Σγ, which is negative where γ and the sum differ in sign.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("copies", "In it a map is divided by its unbiased deviation plus ε = 1e-10, and γ starts at random.",
                "A group normalisation as everywhere, with γ = 1 at the start.",
                "test_normalisation_is_group_normalisation"),
        Erratum("copies", "The fusion is a softmax over all 2C means, so that the output is about 1/C of its parts.",
                "The two branches of a channel share 1.",
                "test_two_branches_of_a_channel_share_one"),
    ],
)
class SpatialChannelReconstructionConv(nn.Module):
    """Spatial and channel reconstruction convolution: y = CRU(SRU(x)), in the place of a k × k convolution.

    SRU weighs every number by σ(w_γ · GN(x)), takes those above a threshold t whole, and adds the rest of each half of
    the channels to the other half. CRU convolves αC of the channels, squeezed to 1/r, and re-uses the others:
    β₁ Y₁ + β₂ Y₂ with β₁ + β₂ = 1 for each channel. See `SpatialReconstructionUnit`, `ChannelReconstructionUnit`.

    There is no release by the authors. The module has (αC/r)·C·(k²/g + 1) + ((1 − α)C/r)·(C − (1 − α)C/r) weights and
    those of the two squeezes, against k²·C² of a convolution.

    Args:
        channels: C, even, and divisible as the two units ask.
        norm_groups: groups of GN, divides C.
        threshold: t, from 0 to 1.
        gate: "fill", or "mask", another reading of the threshold.
        alpha: α, above 0 and below 1; αC must be an integer.
        reduction: r, at least 1; divides αC and (1 − α)C.
        groups: g, divides αC/r and C.
        kernel_size: k, odd.
        epsilon: ε of GN, above 0.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Li, Wen and He, SCConv: Spatial and Channel Reconstruction Convolution for Feature Redundancy, CVPR 2023.
    """

    def __init__(self, channels: int, *, norm_groups: int = 4, threshold: float = 0.5, gate: str = "fill",
                 alpha: float = 0.5, reduction: int = 2, groups: int = 2, kernel_size: int = 3, epsilon: float = 1e-5):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.sru = SpatialReconstructionUnit(channels, norm_groups=norm_groups, threshold=threshold, gate=gate,
                                             epsilon=epsilon)
        self.cru = ChannelReconstructionUnit(channels, alpha=alpha, reduction=reduction, groups=groups,
                                             kernel_size=kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        return self.cru(self.sru(x))
