"""Multi-scale selective fusion: maps of several scales become one, and every channel weighs the scales anew."""

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_feature_map, check_int
from ..ops import scale_weights, weighted_sum
from ..tap import tap


@register(
    "msf",
    family="fusion",
    name="Multi-scale selective fusion",
    summary="It looks at each of several maps as a whole before every channel decides how much of each it takes.",
    aliases=("MSF", "MSFblock", "SHISRCNet"),
    action="mix",
    papers=[Paper(
        key="xie2023shisrcnet", venue="MICCAI", year=2023, arxiv="2306.14119",
        title="SHISRCNet: Super-resolution And Classification Network For Low-resolution Breast Cancer "
              "Histopathology Image",
        code="https://github.com/xiely-123/SHISRCNet",
    )],
    layout="B C H W, B C H W, B C H W, B C H W",
    example=dict(channels=16),
    measured=dict(channels=64),
    variants={"narrow": dict(channels=3)},
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    builds_on=("sk",),
    reduces_to={"mean": "W_m = 0: of the inputs, before the projection"},
    errata=[
        Erratum("release", "Its file defines the layer of the scores twice, and the second runs: with a bias, batch "
                "normalisation and ReLU, so that no score is negative and a weight lies between 0.168 and 0.355.",
                "The scores are a matrix product, as written first; score_norm=True is the release as it runs.",
                "test_scores_of_the_release_leave_less_to_choose"),
        Erratum("release", "It normalises one pooled vector per image over the batch, which a batch of one cannot.",
                "Without score_norm a batch of one trains.", "test_a_batch_of_one_has_no_normalised_scores"),
    ],
)
class MultiScaleSelectiveFusion(nn.Module):
    """Multi-scale selective fusion: y = δ(BN(W_p Σ_m w_m ⊙ y_m)) with w = softmax_m(σ(W_m z_m)), z_m = mean of y_m.

    The mean runs over H and W, the softmax over the M inputs, for each channel apart; δ = ReLU. No layer has a bias.

    A softmax of numbers between 0 and 1 is never far from equal weights: w lies between 1/(1 + (M − 1)e) and
    e/(e + M − 1), which is 0.109 and 0.475 for four inputs, whatever they hold. One that is all noise keeps a tenth.

    Weights of the release, where the fusion stands inside its MFEblock: SE1 … SE4 one below the other → W_m, project →
    W_p and norm. With score_norm, subtract the biases of SE1 … SE4 from the running means.

    Args:
        channels: C of all inputs, at least 1.
        scales: M, number of inputs, at least 1.
        score_norm: ReLU(BN(W_m z_m)) in place of W_m z_m, as the release runs.

    Shape:
        y_1, …, y_M (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1, the same for all.

    Raises:
        ValueError: for an argument out of range, another number of inputs, an input that is not a feature map of C
            channels, inputs of different shapes, or a batch of one in training with score_norm.

    Paper:
        Xie, Li, Wang, Zhang, Chen, Shen and Wu, SHISRCNet: Super-resolution And Classification Network For
        Low-resolution Breast Cancer Histopathology Image, MICCAI 2023, arXiv 2306.14119.
    """

    def __init__(self, channels: int, *, scales: int = 4, score_norm: bool = False):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.scales = check_int("scales", scales)
        self.Wm = nn.Parameter(torch.randn(scales, channels, channels) * channels**-0.5)
        self.score_norm = nn.BatchNorm1d(scales * channels) if score_norm else None
        self.Wp = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, *maps: Tensor) -> Tensor:
        self._check(maps)
        w = scale_weights(maps, self.Wm, self.score_norm)
        mixed = tap("mixed", weighted_sum(maps, w), "B C H W")
        return tap("y", torch.relu(self.norm(self.Wp(mixed))), "B C H W")

    def _check(self, maps: tuple[Tensor, ...]) -> None:
        if len(maps) != self.scales:
            raise ValueError(f"{len(maps)} inputs were given; there must be scales={self.scales}")
        for m, y in enumerate(maps, 1):
            check_feature_map(y, self.channels, f"y_{m}")
            if y.shape != maps[0].shape:
                raise ValueError(f"y_1 {tuple(maps[0].shape)} and y_{m} {tuple(y.shape)} must have the same shape")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, scales={self.scales}"
