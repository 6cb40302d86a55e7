"""Squeeze-and-Excitation: a gate for every channel, computed from all of them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_at_most, check_feature_map, check_int
from ..tap import tap


@register(
    "se",
    family="channel",
    name="Squeeze-and-Excitation",
    summary="It looks at the whole image before it decides how much each channel may say.",
    aliases=("SE", "SENet", "squeeze and excite"),
    action="gate",
    papers=[Paper(
        key="hu2018squeeze", venue="CVPR", year=2018, arxiv="1709.01507",
        title="Squeeze-and-Excitation Networks",
        code="https://github.com/hujie-frank/SENet",
    )],
    layout="B C H W",
    example=dict(channels=64),
    variants={"no bias": dict(channels=16, reduction=4, bias=False), "narrow": dict(channels=6, reduction=6)},
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    reduces_to={"identity": "gate bias b₂ → ∞"},
    counterpart=Counterpart(
        "timm SEModule", "timm.layers.squeeze_excite",
        lambda timm, channels: timm.SEModule(channels, rd_channels=channels // 16, bias=True)),
    errata=[
        Erratum("paper",
                "Equation 3 writes no biases, and the journal version speaks against them.",
                "W₁ and W₂ have one each, as in the released models; `bias=False` is the equation.",
                "test_equals_the_paper"),
        Erratum("copies",
                "Many drop the biases: where all means are zero the gate is then ½, whatever was learned.",
                "The biases are there unless `bias=False` says otherwise.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("copies",
                "Where r is larger than C no hidden unit is left, and the gate is a constant.",
                "r is at most C.",
                "test_a_reduction_that_leaves_no_hidden_unit_is_refused"),
        Erratum("package",
                "timm's `SEModule` rounds the hidden width to a multiple of 8: 8 and not 4 for C = 64, r = 16.",
                "C/r is rounded down.",
                "test_timm_rounds_the_width_to_eight"),
        Erratum("package",
                "torchvision's `SqueezeExcitation` takes the hidden width itself where others take r.",
                "`reduction` is r, and the hidden width is C/r.",
                "test_equals_torchvision"),
    ],
)
class SEAttention(nn.Module):
    """Squeeze-and-Excitation: y = s · x with s = σ(W₂ δ(W₁ z)), z = mean of x over H and W, δ = ReLU.

    W₁ is C/r × C and W₂ is C × C/r, both with a bias. C/r is rounded down where r does not divide C.

    Args:
        channels: C, at least 1.
        reduction: r, from 1 to C; the paper's default is 16.
        bias: whether W₁ and W₂ carry a bias.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Hu, Shen and Sun, Squeeze-and-Excitation Networks, CVPR 2018, arXiv 1709.01507.
    """

    def __init__(self, channels: int, *, reduction: int = 16, bias: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.reduction = check_int("reduction", reduction)
        check_at_most("reduction", reduction, "channels", channels)
        hidden = channels // reduction
        self.W1 = nn.Linear(channels, hidden, bias=bias)
        self.W2 = nn.Linear(hidden, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        z = tap("z", x.mean((2, 3)), "B C")                              # squeeze, eq. 2
        s = tap("s", torch.sigmoid(self.W2(F.relu(self.W1(z)))), "B C")  # excite,  eq. 3
        return tap("y", x * s[:, :, None, None], "B C H W")              # scale,   eq. 4

    def extra_repr(self) -> str:
        return f"channels={self.channels}, reduction={self.reduction}"
