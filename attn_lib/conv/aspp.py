"""Atrous spatial pyramid pooling (DeepLabv3): one map seen at several rates, and as a whole, side by side."""

from typing import Any

import torch
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_feature_map, check_int, check_positive
from ..tap import tap


def valid_weights(height: int, width: int, rate: int) -> Tensor:
    """How many of the nine taps of a 3 × 3 convolution lie on the map, for every position (H, W).

    At rate 1 it is 9 but for the border; from rate max(H, W) on it is 1, the centre: figure 4 of the paper.

    Raises:
        ValueError: if an argument is no integer of at least 1.
    """
    along = []
    for name, n in (("height", height), ("width", width)):
        i = torch.arange(check_int(name, n))
        along.append(1 + (i >= check_int("rate", rate)).long() + (i + rate < n).long())
    return along[0][:, None] * along[1]


@register(
    "aspp",
    family="conv",
    name="Atrous spatial pyramid pooling",
    summary="It looks at every place at several scales and at the whole image at once, then lets the channels choose.",
    aliases=("ASPP", "DeepLabv3", "DeepLab"),
    action="mix",
    papers=[Paper(
        key="chen2017rethinking", venue="arXiv", year=2017, arxiv="1706.05587",
        title="Rethinking Atrous Convolution for Semantic Image Segmentation",
        code="https://github.com/tensorflow/models",
    )],
    layout="B C H W",
    output="B O H W",
    example=dict(channels=16, out_channels=8),
    measured=dict(channels=64),
    variants={"two rates": dict(channels=6, out_channels=8, rates=(1, 3), image_pooling=False)},
    commutes_with={"translation"},
    forbids={"batch_one": "the pooled vector is normalised over the batch, and one vector has no variance"},
    builds_on=("dilated",),
    reduces_to={
        "dilated": "a projection that takes one branch alone: dilated convolution, BN, ReLU",
        "linear layer": "rate ≥ max(H, W): that branch is a 1 × 1 convolution of the centre taps, BN, ReLU",
    },
    counterpart=Counterpart(
        "torchvision ASPP", "torchvision.models.segmentation.deeplabv3",
        lambda torchvision, channels, out_channels: torchvision.ASPP(channels, (6, 12, 18), out_channels)),
    errata=[
        Erratum("release", "Image pooling comes first among the branches, then 1 × 1, then the rates.",
                "1 × 1, the rates, image pooling, as in torchvision: the projection's columns are ordered so.",
                "test_the_order_of_the_branches_is_that_of_the_projections_columns"),
        Erratum("release", "Image pooling averages a window of the size of the training crop.",
                "It averages the whole map, as the paper says.",
                "test_image_pooling_averages_the_whole_map"),
        Erratum("release", "One tenth of the projection is dropped in training, and half of it in torchvision.",
                "Nothing is, as the paper says nothing of it; `dropout` takes either.",
                "test_dropout_is_an_option"),
        Erratum("package", "torchvision's running statistics have momentum 0.1.",
                "0.0003, the paper's decay of 0.9997; `momentum` is an option.",
                "test_running_statistics_decay_as_the_paper_says"),
        Erratum("copies", "A batch of one image fails in training, from the depth of a batch normalisation.",
                "It is refused with a sentence that names the ways out.",
                "test_one_image_in_training_is_refused_with_a_sentence"),
    ],
)
class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: y = δ(BN(W [f₀; f₁; …; f_M; g])), branches of one map side by side.

    f₀ is a 1 × 1 convolution of x, f_m a 3 × 3 one of rate r_m, and g a 1 × 1 convolution of the mean of x over H and
    W, at every position the same. Each has O channels and is followed by BN and δ = ReLU; no convolution has a bias.
    W is O × (M + 2)·O.

    With r_m ≥ max(H, W) only the centre of the kernel lies on the map (`valid_weights`): a large rate on a small map is
    a 1 × 1 convolution, which is why the paper adds g. The rates are those of features at a sixteenth of the image's
    size; the paper doubles them at an eighth.

    BN of g takes its mean over the batch: a training batch holds at least two images.

    The names of the weights are torchvision's, `convs.<branch>` and `project`.

    Args:
        channels: C, at least 1.
        out_channels: O, at least 1.
        rates: r_m, one a branch, each at least 1.
        image_pooling: whether there is g.
        momentum: of the running statistics, above 0 and at most 1.
        dropout: what part of y is dropped in training, from 0 to below 1: 0.1 in the release, 0.5 in torchvision.

    Shape:
        x (B, C, H, W) → y (B, O, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or a batch of
            one in training.

    Paper:
        Chen, Papandreou, Schroff and Adam, Rethinking Atrous Convolution for Semantic Image Segmentation, 2017,
        arXiv 1706.05587.
    """

    def __init__(self, channels: int, out_channels: int = 256, *, rates: tuple[int, ...] = (6, 12, 18),
                 image_pooling: bool = True, momentum: float = 3e-4, dropout: float = 0.0):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.out_channels = O = check_int("out_channels", out_channels)  # noqa: E741
        if not isinstance(rates, tuple | list) or not rates:
            raise ValueError(f"rates={rates!r} must hold one integer a branch, such as (6, 12, 18)")
        self.rates = tuple(check_int("rates", rate) for rate in rates)
        self.image_pooling = image_pooling
        if check_positive("momentum", momentum) > 1:
            raise ValueError(f"momentum={momentum} must be at most 1")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout!r} must be a number from 0 to below 1")

        def layer(conv: nn.Conv2d) -> list[nn.Module]:
            return [conv, nn.BatchNorm2d(O, momentum=momentum), nn.ReLU()]

        def atrous(rate: int) -> nn.Conv2d:
            return nn.Conv2d(channels, O, 3, padding=rate, dilation=rate, bias=False)

        pointwise = nn.Sequential(*layer(nn.Conv2d(channels, O, 1, bias=False)))
        pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), *layer(nn.Conv2d(channels, O, 1, bias=False)))
        self.convs = nn.ModuleList([pointwise, *(nn.Sequential(*layer(atrous(rate))) for rate in self.rates),
                                    *[pooling] * image_pooling])
        joined = len(self.convs) * O
        self.project = nn.Sequential(*layer(nn.Conv2d(joined, O, 1, bias=False)), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        branches = self.convs[:1 + len(self.rates)]
        f = [tap("f", branch(x), "B O H W") for branch in branches]                     # one a rate
        if self.image_pooling:
            pooling: Any = self.convs[-1]  # an nn.Sequential
            if pooling[2].training and len(x) == 1:
                raise ValueError("x is a batch of 1; in training it must hold 2 images or more, for the BN of g; "
                                 "image_pooling=False takes one, and so does BN in evaluation mode")
            g = tap("g", pooling(x), "B O 1 1")                                         # of the whole image
            f.append(g.expand_as(f[0]))
        return tap("y", self.project(torch.cat(f, 1)), "B O H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, out_channels={self.out_channels}, rates={self.rates}"
