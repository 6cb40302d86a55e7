"""BAM: one gate for every position of every channel, from a channel branch and a spatial branch side by side."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_choice, check_feature_map, check_int
from ..ops import in_float32
from ..tap import tap

COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add, "product": torch.mul, "maximum": torch.maximum,
}
NORM = ("end", "inside")


@register(
    "bam",
    family="channel_spatial",
    name="Bottleneck attention module",
    summary="It asks which channel and which place at the same time, adds the answers before the gate, and keeps the "
            "input beside it.",
    aliases=("BAM",),
    action="gate",
    papers=[Paper(
        key="park2018bam", venue="BMVC", year=2018, arxiv="1807.06514",
        title="BAM: Bottleneck Attention Module",
        code="https://github.com/Jongchan/attention-module",
    )],
    layout="B C H W",
    example=dict(channels=64),
    variants={
        "release": dict(channels=8, reduction=4, combine="product", norm="inside"),
        "product": dict(channels=8, reduction=4, combine="product", dilation=1),
        "maximum": dict(channels=8, reduction=4, combine="maximum", dilation=2),
        "to the letter": dict(channels=6, reduction=2, relu=False),
    },
    commutes_with={"translation"},
    forbids={"batch_one": "the channel branch is normalised over the batch, and one pooled vector has no variance"},
    builds_on=("se",),
    reduces_to={
        "identity": "the sum, both branches → −∞",
        "constant gate": "the product, both branches → −∞: their signs cancel, and y = 2 · x",
    },
    errata=[
        Erratum("release", "The logits of the branches are multiplied, so that two that are both shut open the gate.",
                "They are added, as in the paper's eq. 2; `combine=\"product\"` multiplies.",
                "test_of_two_shut_branches_the_sum_shuts_and_the_product_opens"),
        Erratum("release", "Batch normalisation and ReLU follow every inner layer, and nothing the last one.",
                "One normalisation ends each branch, as in eqs. 3 and 4; `norm=\"inside\"` is the release's place.",
                "test_the_release_normalises_inside"),
        Erratum("release", "The class stops with a NameError, since its channel branch names a variable that is "
                "nowhere defined.", "It can be built, with the release's layers and weights.",
                "test_the_release_normalises_inside"),
        Erratum("release", "The pooling window is H × H: columns beyond the first H count for nothing, and a map "
                "twice as wide as high, or higher than wide, stops.", "The mean runs over the whole map, of any size.",
                "test_a_map_that_is_not_square_exposes_a_square_window"),
        Erratum("release", "With fewer channels than the reduction the branches have no hidden channel and go on.",
                "`reduction` must be at most `channels`.", "test_a_reduction_that_leaves_no_hidden_channel_is_refused"),
        Erratum("paper", "Eqs. 3 and 4 write no activation between the layers, and call them an MLP.",
                "A ReLU follows every inner layer, as in the release; `relu=False` is the equation to the letter.",
                "test_without_relu_a_branch_is_linear"),
    ],
)
class BAM(nn.Module):
    """Bottleneck attention: y = x + M · x with M = σ(M_c + M_s), M_c a logit a channel, M_s a logit a position.

        M_c = BN(W₁ δ(W₀ mean(x) + b₀) + b₁)        the mean runs over H and W, W₀ is C/r × C, δ = ReLU
        M_s = BN(f₃ δ(f₂ δ(f₁ δ(f₀ x))))            f₀ 1 × 1 to C/r channels, f₁ and f₂ 3 × 3 with dilation d, f₃ to one

    The paper calls x F. The branches meet before the sigmoid, so a loud channel can outvote a quiet place. The gate
    1 + M lies in (1, 2): nothing is ever removed, and BAM can at most halve one thing against another. The paper
    compares the sum with the product and the maximum of the two logits, and keeps the sum.

    Names of the release's weights: `gate_c_fc_0` is channel.W0, `gate_c_bn_1` channel.norm0, `gate_c_fc_final`
    channel.W1; `gate_s_conv_reduce0` is spatial.f0, `gate_s_conv_di_0` and `_1` are spatial.f1 and f2,
    `gate_s_conv_final` is spatial.f3, and their `bn`s are spatial.norm0, norm1 and norm2.

    The channel branch is normalised over the batch: a training batch holds at least two images.

    Args:
        channels: C, at least 1.
        reduction: r, from 1 to C; C/r is rounded down. The paper's default is 16.
        dilation: d, at least 1; 4 in the paper.
        combine: "sum", "product" or "maximum" of the two logits.
        norm: "end", a batch normalisation behind each branch, or "inside", one behind every inner layer.
        relu: whether a ReLU follows every inner layer.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or a batch of one
            in training.

    Paper:
        Park, Woo, Lee and Kweon, BAM: Bottleneck Attention Module, BMVC 2018, arXiv 1807.06514.
    """

    def __init__(self, channels: int, *, reduction: int = 16, dilation: int = 4, combine: str = "sum",
                 norm: str = "end", relu: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.reduction = check_int("reduction", reduction)
        check_at_most("reduction", reduction, "channels", channels)
        self.dilation = check_int("dilation", dilation)
        check_choice("combine", combine, COMBINE)
        check_choice("norm", norm, NORM)
        self.combine, self.norm, self.relu = combine, norm, relu

        Cr = channels // reduction
        self.channel = self._branch(nn.BatchNorm1d, "W", nn.Linear(channels, Cr), nn.Linear(Cr, channels))
        wide = partial(nn.Conv2d, Cr, Cr, 3, padding=dilation, dilation=dilation)
        self.spatial = self._branch(nn.BatchNorm2d, "f", nn.Conv2d(channels, Cr, 1), wide(), wide(),
                                    nn.Conv2d(Cr, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        if self.training and len(x) == 1:
            raise ValueError("x is a batch of 1; in training it must hold 2 images or more, for the BN of M_c")
        z = tap("z", x.mean((2, 3)), "B C")
        M_c = tap("M_c", self.channel(z), "B C")                                         # eq. 3
        M_s = tap("M_s", self.spatial(x), "B 1 H W")                                     # eq. 4
        logits = in_float32(COMBINE[self.combine], M_c[:, :, None, None], M_s)           # a product may be large
        M = tap("M", torch.sigmoid(logits).to(x.dtype), "B C H W")                       # eq. 2
        return tap("y", x + x * M, "B C H W")                                            # eq. 1

    def extra_repr(self) -> str:
        names = ("channels", "reduction", "dilation", "combine", "norm", "relu")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _branch(self, norm: type[nn.Module], symbol: str, *layers: nn.Linear | nn.Conv2d) -> nn.Sequential:
        """The layers, numbered, and what stands behind each of them."""
        steps: OrderedDict[str, nn.Module] = OrderedDict()
        for i, layer in enumerate(layers):
            steps[f"{symbol}{i}"], last = layer, i == len(layers) - 1
            width = layer.weight.shape[0]
            if self.norm == "inside" and not last:
                steps[f"norm{i}"] = norm(width)
            if self.relu and not last:
                steps[f"relu{i}"] = nn.ReLU()
            if self.norm == "end" and last:
                steps["norm"] = norm(width)
        return nn.Sequential(steps)
