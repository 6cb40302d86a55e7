"""Multi-feature extraction: a chain of ever wider kernels, each of which sees the input again, and a choice of them."""

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_feature_map, check_int
from ..ops import scale_weights, weighted_sum
from ..tap import tap


@register(
    "mfe",
    family="fusion",
    name="Multi-feature extraction",
    summary="It lets each kernel start from what the narrower one before it found, and fuses what all of them saw.",
    aliases=("MFE", "MFEblock"),
    action="mix",
    papers=[Paper(
        key="xie2023shisrcnet", venue="MICCAI", year=2023, arxiv="2306.14119",
        title="SHISRCNet: Super-resolution And Classification Network For Low-resolution Breast Cancer "
              "Histopathology Image",
        code="https://github.com/xiely-123/SHISRCNet",
    )],
    layout="B C H W",
    example=dict(channels=16, atrous_rates=(2, 3)),
    measured=dict(channels=64),
    variants={"paper": dict(channels=6)},
    commutes_with={"translation"},
    builds_on=("msf",),
    reduces_to={
        "convolution": "BN of all branches with γ = β = 0: 1 × 1 of the input, BN, ReLU",
    },
    errata=[
        Erratum("release", "Its file defines the layer of the scores twice, and the second runs: with a bias, batch "
                "normalisation and ReLU.", "The scores are a matrix product, as written first; score_norm=True is the "
                "release as it runs.", "test_score_norm_is_the_release_as_it_runs"),
        Erratum("copies", "Texts count three branches, with the rates 2, 4 and 8.",
                "A branch of rate 1 comes before them.", "test_branches_reach_3_7_15_and_31_pixels"),
        Erratum("copies", "Texts hand each branch the output of the one before it.",
                "It gets the input as well, added to that output.", "test_every_branch_sees_the_input_again"),
        Erratum("copies", "Texts call it a residual block.",
                "The input is added before the projection, which ends with a ReLU: nothing passes by it.",
                "test_no_output_is_negative"),
    ],
)
class MultiFeatureExtraction(nn.Module):
    """Multi-feature extraction: y = δ(BN(W_p (Σ_m w_m ⊙ y_m + x))) with y_m = δ(BN(conv_m(y_{m−1} + x))), y_0 = 0.

    conv_m is 3 × 3; its dilation is 1 for the first branch, then the given rates: with 2, 4 and 8 the branches see
    3, 7, 15 and 31 pixels in a row. The weights are those of `MultiScaleSelectiveFusion`, w = softmax_m(σ(W_m z_m))
    with z_m the mean of y_m over H and W. δ = ReLU, and no layer has a bias.

    Weights of the release: layer1 … layer4 → branches, SE1 … SE4 one below the other → W_m, project → W_p and norm.
    With score_norm, subtract the biases of SE1 … SE4 from the running means.

    Args:
        channels: C, at least 1.
        atrous_rates: dilations of the branches behind the first, each at least 1.
        score_norm: ReLU(BN(W_m z_m)) in place of W_m z_m, as the release runs.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or a batch of one
            in training with score_norm.

    Paper:
        Xie, Li, Wang, Zhang, Chen, Shen and Wu, SHISRCNet: Super-resolution And Classification Network For
        Low-resolution Breast Cancer Histopathology Image, MICCAI 2023, arXiv 2306.14119.
    """

    def __init__(self, channels: int, *, atrous_rates: tuple[int, ...] = (2, 4, 8), score_norm: bool = False):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.atrous_rates = _rates(atrous_rates)
        self.branches = nn.ModuleList(self._branch(rate) for rate in (1, *self.atrous_rates))
        M = len(self.branches)
        self.Wm = nn.Parameter(torch.randn(M, channels, channels) * channels**-0.5)
        self.score_norm = nn.BatchNorm1d(M * channels) if score_norm else None
        self.Wp = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        maps = [self.branches[0](x)]
        for branch in self.branches[1:]:
            maps.append(branch(maps[-1] + x))
        for y_m in maps:
            tap("y_m", y_m, "B C H W")
        w = scale_weights(maps, self.Wm, self.score_norm)
        mixed = tap("mixed", weighted_sum(maps, w) + x, "B C H W")
        return tap("y", torch.relu(self.norm(self.Wp(mixed))), "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, atrous_rates={self.atrous_rates}"

    def _branch(self, rate: int) -> nn.Sequential:
        conv = nn.Conv2d(self.channels, self.channels, 3, padding=rate, dilation=rate, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(self.channels), nn.ReLU())


def _rates(value: tuple[int, ...]) -> tuple[int, ...]:
    """`value` as a tuple of dilations."""
    if not isinstance(value, tuple | list):
        raise ValueError(f"atrous_rates={value!r} must hold one integer a branch, such as (2, 4, 8)")
    return tuple(check_int("atrous_rates", rate) for rate in value)
