"""scSE: a gate for every channel and a gate for every position, at the same time, and four ways to join them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_choice, check_feature_map, check_int
from ..tap import tap

FUSION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "max": torch.maximum,
    "multiply": torch.mul,
    "concatenate": lambda x_c, x_s: torch.cat([x_c, x_s], 1),
}


class CSEAttention(nn.Module):
    """Spatial squeeze and channel excitation: x_c = s_c · x with s_c = σ(W₂ δ(W₁ z)), z = mean of x over H and W.

    Squeeze-and-Excitation with r = 2. The paper numbers the two matrices the other way round.

    Args:
        channels: C, at least 1.
        reduction: r, from 1 to C; W₁ is C/r × C, rounded down where r does not divide C.
        bias: whether W₁ and W₂ carry a bias.

    Shape:
        x (B, C, H, W) → x_c (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.
    """

    def __init__(self, channels: int, *, reduction: int = 2, bias: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.reduction = check_int("reduction", reduction)
        check_at_most("reduction", reduction, "channels", channels)
        hidden = channels // reduction
        self.W1 = nn.Linear(channels, hidden, bias=bias)
        self.W2 = nn.Linear(hidden, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        z = tap("z", x.mean((2, 3)), "B C")
        s_c = tap("s_c", torch.sigmoid(self.W2(F.relu(self.W1(z)))), "B C")
        return tap("x_c", s_c[:, :, None, None] * x, "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, reduction={self.reduction}"


class SSEAttention(nn.Module):
    """Channel squeeze and spatial excitation: x_s = s_s · x with s_s = σ(q), q = W_q x, one number a position.

    W_q is a 1 × 1 convolution to one channel: the position decides by its own channels alone.

    Args:
        channels: C, at least 1.
        bias: whether W_q carries a bias.

    Shape:
        x (B, C, H, W) → x_s (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.
    """

    def __init__(self, channels: int, *, bias: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.Wq = nn.Conv2d(channels, 1, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        q = tap("q", self.Wq(x), "B 1 H W")
        s_s = tap("s_s", torch.sigmoid(q), "B 1 H W")
        return tap("x_s", s_s * x, "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


@register(
    "scse",
    family="channel_spatial",
    name="Concurrent squeeze and excitation",
    summary="It gates every pixel beside every channel, so that a channel that is closed can still be seen where it "
            "counts.",
    aliases=("scSE", "cSE", "spatial squeeze and excitation", "concurrent squeeze and excitation"),
    action="gate",
    papers=[
        Paper(
            key="roy2018concurrent", venue="MICCAI", year=2018, arxiv="1803.02579",
            title="Concurrent Spatial and Channel 'Squeeze & Excitation' in Fully Convolutional Networks",
            code="https://github.com/ai-med/squeeze_and_excitation",
        ),
        Paper(
            key="roy2019recalibrating", venue="IEEE Transactions on Medical Imaging", year=2019, arxiv="1808.08127",
            title="Recalibrating Fully Convolutional Networks With Spatial and Channel 'Squeeze and Excitation' Blocks",
            code="https://github.com/ai-med/squeeze_and_excitation",
        ),
    ],
    layout="B C H W",
    example=dict(channels=64),
    variants={  # not "multiply": a product of two features of trained networks exceeds float16, by the paper's equation
        "release": dict(channels=8, fusion="max"),
        "concatenate": dict(channels=6, reduction=3, fusion="concatenate"),
        "no bias": dict(channels=6, bias=False),
    },
    variant_outputs={"concatenate": "B O H W"},
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    builds_on=("se",),
    reduces_to={
        "se": "addition, bias of W_q → −∞: the spatial gate is shut",
        "identity": "addition, all weights and biases 0: twice one half",
    },
    errata=[
        Erratum("release", "It fuses the two maps by their maximum, and in no other way.",
                "They are added, as in the paper that names the block; `fusion=\"max\"` is the release.",
                "test_the_release_is_the_maximum_of_two_maps"),
        Erratum("copies", "The maximum is taken of the two gates, which are then applied once.",
                "It is taken of the two gated maps: where x is negative, the smaller gate wins.",
                "test_where_x_is_negative_the_maximum_takes_the_smaller_gate"),
        Erratum("package", "segmentation-models-pytorch reduces to C/16 by default.",
                "The default is C/2, as in both papers and the release; `reduction=16` is the package's.",
                "test_defaults_are_the_papers"),
    ],
)
class SCSEAttention(nn.Module):
    """Concurrent squeeze and excitation: y = x_c + x_s, the channel-gated map and the position-gated map.

    x_c = s_c · x with s_c = σ(W₂ δ(W₁ z)), z the mean over H and W: see `CSEAttention`. x_s = s_s · x with
    s_s = σ(W_q x): see `SSEAttention`. The first paper adds, so that a value that both gates let through is up to
    doubled. The second compares four fusions:

        add           y = x_c + x_s
        max           y = max(x_c, x_s), number by number
        multiply      y = x_c · x_s = s_c · s_s · x², without the sign of x
        concatenate   y = [x_c; x_s], 2C channels

    The product of two features may exceed half precision: it is made in the type of the input.

    Names of the release's weights: `cSE.fc1` is cse.W1, `cSE.fc2` cse.W2, `sSE.conv` sse.Wq. The papers call x U, and
    write no biases, which the release has.

    Args:
        channels: C, at least 1.
        reduction: r, from 1 to C; 2 in the papers. C/r is rounded down.
        fusion: "add", "max", "multiply" or "concatenate".
        bias: whether W₁, W₂ and W_q carry a bias.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1; (B, 2C, H, W) if concatenated.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Roy, Navab and Wachinger, Concurrent Spatial and Channel 'Squeeze & Excitation' in Fully Convolutional
        Networks, MICCAI 2018, arXiv 1803.02579; the four fusions in: Recalibrating Fully Convolutional Networks With
        Spatial and Channel 'Squeeze and Excitation' Blocks, IEEE Transactions on Medical Imaging 2019,
        arXiv 1808.08127.
    """

    def __init__(self, channels: int, *, reduction: int = 2, fusion: str = "add", bias: bool = True):
        super().__init__()
        check_choice("fusion", fusion, FUSION)
        self.fusion = fusion
        self.out_channels = 2 * channels if fusion == "concatenate" else channels
        self.cse = CSEAttention(channels, reduction=reduction, bias=bias)
        self.sse = SSEAttention(channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x_c = self.cse(x)
        x_s = self.sse(x)
        return tap("y", FUSION[self.fusion](x_c, x_s), "B O H W" if self.fusion == "concatenate" else "B C H W")

    def extra_repr(self) -> str:
        return f"fusion={self.fusion!r}"
