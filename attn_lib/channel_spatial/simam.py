"""SimAM: a gate for every neuron, from how far it stands out of its own channel. No parameters."""

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_feature_map, check_int, check_positive
from ..tap import tap


@register(
    "simam",
    family="channel_spatial",
    name="SimAM",
    summary="It gives every position of every channel a gate of its own without a single weight: the further a value "
            "lies from the mean of its channel, the more of it passes.",
    aliases=("SimAM", "parameter-free attention"),
    action="gate",
    papers=[Paper(
        key="yang2021simam", venue="ICML", year=2021,
        title="SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks",
        code="https://github.com/ZjjConan/SimAM",
    )],
    layout="B C H W",
    example=dict(channels=64),
    variants={"ImageNet": dict(channels=6, lam=0.1), "biased": dict(channels=3, unbiased=False)},
    commutes_with={"channel_permutation", "spatial_permutation", "row_column_permutation", "translation", "flip_h",
                   "flip_w", "transpose"},
    reduces_to={
        "constant gate": "λ → ∞: every gate is σ(½)",
        "activation function": "on standardised channels, λ → 0: y = x · σ(x²/4 + ½)",
    },
    errata=[
        Erratum("paper",
                "The line below equation 5 divides the variance by N; the listing in Figure 3 and the release divide "
                "by N − 1.",
                "It is divided by N − 1; `unbiased=False` divides by N.",
                "test_hw_minus_1_only_scales"),
        Erratum("paper",
                "The weight in equation 3 is printed with a minus sign, with which the energy is not minimal.",
                "The gate is that of the least energy, which the slip does not touch.",
                "test_with_the_printed_sign_of_equation_3_the_energy_is_not_minimal"),
        Erratum("paper",
                "The listing in Figure 3, and in the README of the release, takes its sums without `keepdim`: it fails "
                "on most maps, and on some subtracts the mean of another channel.",
                "Every channel has its own mean, as in the release's module.",
                "test_the_printed_listing_mixes_channels_and_columns"),
        Erratum("release",
                "The ImageNet models have λ = 0.1, of which no checkpoint keeps a trace; the module's default is 1e-4.",
                "`lam=1e-4` is the default; pass `lam=0.1` for those models.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("release",
                "A map of 1 × 1 gives NaN.",
                "It is refused: there is nothing to differ from.",
                "test_one_pixel_is_refused"),
        Erratum("copies",
                "The numerator is summed over the map as well: the distances cancel, and all gates are near 1.",
                "The numerator is the distance of the neuron alone.",
                "test_the_comparison_with_the_paper_notices"),
    ],
)
class SimAM(nn.Module):
    """SimAM: y = σ(1/e*) · x with 1/e* = (x − μ)² / (4 (v + λ)) + ½, μ and v the mean and variance of each channel.

    e* is the least energy of a line w·x + b that should be 1 at one neuron and −1 at all others of its channel:
    e(w, b) = (1 − (w t + b))² + mean of (−1 − (w xᵢ + b))² over the others + λ w². The lower e*, the better the
    neuron can be told apart. Every gate lies in [σ(½), 1) = [0.62, 1).

    The statistics are those of all N = HW neurons (the paper's M), not of all others: the paper's approximation, the
    same for all neurons of a channel. v divides by N − 1. Half precision is computed in float32.

    Args:
        channels: C, at least 1. There are no weights to size by it; inputs are checked against it.
        lam: λ > 0; 1e-4 is the paper's value for CIFAR and the default of the released module, 0.1 the one for
            ImageNet and COCO.
        unbiased: whether v divides by N − 1 rather than N.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W with HW ≥ 2.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or a map of
            1 × 1, where there is no other neuron to differ from.

    Paper:
        Yang, Zhang, Li and Xie, SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural
        Networks, ICML 2021.
    """

    def __init__(self, channels: int, *, lam: float = 1e-4, unbiased: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.lam = check_positive("lam", lam, "without it a constant channel gives 0/0")
        self.unbiased = unbiased

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        N = x.shape[2] * x.shape[3]
        if N == 1:
            raise ValueError("x is a map of 1 × 1; it must hold at least 2 positions: a neuron is measured "
                             "against the others of its channel")
        t = x.to(torch.promote_types(x.dtype, torch.float32))  # float16 has no squares above 256²
        mu = tap("mu", t.mean((2, 3), keepdim=True), "B C 1 1")
        d = tap("d", (t - mu).square(), "B C H W")
        v = tap("v", d.sum((2, 3), keepdim=True) / (N - int(self.unbiased)), "B C 1 1")
        E_inv = tap("E_inv", d / (4 * (v + self.lam)) + 0.5, "B C H W")  # 1/e*, eq. 5
        g = tap("g", torch.sigmoid(E_inv), "B C H W")
        return tap("y", x * g.to(x.dtype), "B C H W")                    # refine, eq. 6

    def extra_repr(self) -> str:
        return f"channels={self.channels}, lam={self.lam:g}"
