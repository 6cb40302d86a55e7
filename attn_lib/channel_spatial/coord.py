"""Coordinate attention: one gate for every row and one for every column, in each channel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_feature_map, check_int
from ..ops import strip_means
from ..tap import tap


@register(
    "coord",
    family="channel_spatial",
    name="Coordinate attention",
    summary="It says where as well as which channel, by one factor for each row and one for each column.",
    aliases=("CA", "CoordAtt", "CoordAttention"),
    action="gate",
    papers=[Paper(
        key="hou2021coordinate", venue="CVPR", year=2021, arxiv="2103.02907",
        title="Coordinate Attention for Efficient Mobile Network Design",
        code="https://github.com/houqb/CoordAttention",
    )],
    layout="B C H W",
    example=dict(channels=64),
    variants={
        "no minimum": dict(channels=16, reduction=4, min_hidden=1),
        "few channels": dict(channels=6),
    },
    commutes_with={"row_column_permutation", "translation", "flip_h", "flip_w"},
    builds_on=("se", "cbam"),
    reduces_to={
        "row gate": "bias of F_w → ∞: only the rows are gated",
        "identity": "biases of F_h and F_w → ∞",
        "se": "a map of one row, bias of F_w → ∞, h-swish(k·v)/k → ReLU(v)",
    },
    counterpart=Counterpart(
        "timm CoordAttn", "timm.layers.coord_attn",
        lambda timm, channels: timm.CoordAttn(channels, rd_channels=8, bias=True)),
    errata=[
        Erratum("paper",
                "Equation 6 has no normalisation, and does not say which nonlinearity δ is.",
                "BN is that of Figure 2, and δ is h-swish as in the release: v · min(max(v + 3, 0), 6) / 6.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("paper",
                "The hidden width is C/r, though the parameters in the authors' table ask for 8 at least.",
                "It is max(8, C/r) as in the release; `min_hidden=1` is the paper to the letter.",
                "test_parameters_in_mobilenet_v2_are_those_of_the_authors"),
        Erratum("release",
                "F₁ has a bias in front of BN, which takes it away again in training.",
                "F₁ has none: subtract the release's from the running mean of BN.",
                "test_in_training_a_bias_of_f1_would_change_nothing"),
        Erratum("package",
                "timm's `CoordAttn` has no biases unless told otherwise, and the hidden width ⅔ C/16, rounded to a "
                "multiple of 8.",
                "F_h and F_w have biases, and the width is the release's.",
                "test_timm_differs_by_default"),
    ],
)
class CoordinateAttention(nn.Module):
    """Coordinate attention: y = x · gʰ · gʷ, a gate gʰ = σ(F_h fʰ) for each row and gʷ = σ(F_w fʷ) for each column.

    [fʰ, fʷ] = hswish(BN(F₁ [zʰ, zʷ])) with zʰ = mean of x over each row, zʷ = mean of x over each column.
    F₁, F_h and F_w are 1 × 1 convolutions; F₁ and BN serve rows and columns alike.

    f has Cr = max(8, C/r) channels. F_h and F_w have biases, F₁ has none: BN would cancel it.

    Args:
        channels: C, at least 1.
        reduction: r, at least 1; the release's default is 32. C/r is rounded down where r does not divide C.
        min_hidden: the least Cr, at least 1.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Hou, Zhou and Feng, Coordinate Attention for Efficient Mobile Network Design, CVPR 2021, arXiv 2103.02907.
    """

    def __init__(self, channels: int, *, reduction: int = 32, min_hidden: int = 8):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.reduction = check_int("reduction", reduction)
        Cr = max(check_int("min_hidden", min_hidden), channels // reduction)
        self.F1 = nn.Conv1d(channels, Cr, 1, bias=False)
        self.norm = nn.BatchNorm1d(Cr)
        self.Fh = nn.Conv1d(Cr, channels, 1)
        self.Fw = nn.Conv1d(Cr, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        H, W = x.shape[2:]
        zh, zw = strip_means(x)
        zh, zw = tap("zh", zh, "B C H"), tap("zw", zw, "B C W")                          # eq. 4 and 5
        f = tap("f", F.hardswish(self.norm(self.F1(torch.cat([zh, zw], 2)))), "B Cr H+W")  # eq. 6
        fh, fw = f.split([H, W], dim=2)
        gh = tap("gh", torch.sigmoid(self.Fh(fh)), "B C H")                              # eq. 7
        gw = tap("gw", torch.sigmoid(self.Fw(fw)), "B C W")                              # eq. 8
        return tap("y", x * gh[:, :, :, None] * gw[:, :, None, :], "B C H W")            # eq. 9

    def extra_repr(self) -> str:
        return f"channels={self.channels}, reduction={self.reduction}"
