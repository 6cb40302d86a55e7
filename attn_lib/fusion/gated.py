"""Gated fusion: two maps become one, and a gate decides at every position and channel which of them counts."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_int, check_tensor
from ..tap import tap

LAYOUTS = ("B C H W", "B T N C")


@register(
    "gated",
    family="fusion",
    name="Gated fusion",
    summary="It decides at every position and channel, from both inputs, how much of each comes through.",
    aliases=("gated", "gated fusion", "GMAN fusion"),
    action="mix",
    papers=[Paper(
        key="zheng2020gman", venue="AAAI", year=2020, arxiv="1911.08415",
        title="GMAN: A Graph Multi-Attention Network for Traffic Prediction",
        code="https://github.com/zhengchuanpan/GMAN",
    )],
    layout="B C H W, B C H W",
    example=dict(channels=64),
    variants={
        "series": dict(channels=8, layout="B T N C"),
        "release": dict(channels=8, output_mlp=True),
        "release, series": dict(channels=8, layout="B T N C", output_mlp=True),
    },
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    reduces_to={
        "mean": "W_z1 = W_z2 = 0 and b_z = 0",
        "identity": "b_z → ∞: the first input comes through untouched",
        "highway": "W_z1 = 0, and the first input is a layer of the second",
    },
    errata=[
        Erratum("release",
                "The fusion goes on through two layers that no equation has.",
                "It ends with H; `output_mlp=True` adds them.",
                "test_output_mlp_is_the_release"),
        Erratum("release",
                "The first of them has a bias in front of BN, which takes it away again in training.",
                "It has none: subtract the release's from the running mean of BN.",
                "test_in_training_a_bias_of_w1_would_change_nothing"),
        Erratum("copies",
                "A port to PyTorch normalises before the gate as well: in training a gate then depends on the rest of "
                "the batch, and b_z does nothing.",
                "The gate sees the features as they are, as in the release.",
                "test_the_comparison_with_the_paper_notices"),
    ],
)
class GatedFusion(nn.Module):
    """Gated fusion: H = z ⊙ H_S + (1 − z) ⊙ H_T with z = σ(W_z1 H_S + W_z2 H_T + b_z).

    W_z1 and W_z2 are C × C and act on the channels of one position at a time: 1 × 1 convolutions on an image,
    linear layers on a series. The gate has a value for every channel of every position, and every entry of H
    lies between those of H_S and H_T. In GMAN the two come from spatial and from temporal attention.

    With `output_mlp` H goes on through the release's two layers: W_2 ReLU(BN(W_1 H)) + b_2.

    Args:
        channels: C of both inputs, at least 1.
        layout: axes of both inputs: "B C H W", or the paper's "B T N C" (time steps, places).
        output_mlp: whether the release's two layers follow.

    Shape:
        H_S, H_T (B, C, H, W) → H (B, C, H, W); or all three (B, T, N, C). Any sizes, the same for both inputs.

    Raises:
        ValueError: for an argument out of range, an input of another layout or number of channels, or two inputs
            of different shapes: nothing is broadcast.

    Paper:
        Zheng, Fan, Wang and Qi, GMAN: A Graph Multi-Attention Network for Traffic Prediction, AAAI 2020,
        arXiv 1911.08415.
    """

    def __init__(self, channels: int, *, layout: str = "B C H W", output_mlp: bool = False):
        super().__init__()
        self.channels = check_int("channels", channels)
        check_choice("layout", layout, LAYOUTS)
        self.layout = layout
        linear = nn.Linear if layout == "B T N C" else partial(nn.Conv2d, kernel_size=1)
        self.Wz1 = linear(channels, channels, bias=False)
        self.Wz2 = linear(channels, channels)
        self.mlp = OutputMLP(linear, channels, layout.split().index("C")) if output_mlp else None
        for W in (self.Wz1, self.Wz2):  # as released; the paper does not say
            nn.init.xavier_uniform_(W.weight)
        _, b_z = self.Wz2.parameters()
        nn.init.zeros_(b_z)

    def forward(self, H_S: Tensor, H_T: Tensor) -> Tensor:
        self._check(H_S, H_T)
        z = tap("z", torch.sigmoid(self.Wz1(H_S) + self.Wz2(H_T)), self.layout)  # eq. 12
        H = tap("H", mix(z, H_S, H_T), self.layout)                              # eq. 11
        return H if self.mlp is None else tap("Y", self.mlp(H), self.layout)

    def _check(self, H_S: Tensor, H_T: Tensor) -> None:
        for name, x in (("H_S", H_S), ("H_T", H_T)):
            check_tensor(x, self.layout, {"C": self.channels}, name)
        if H_S.shape != H_T.shape:
            raise ValueError(f"H_S {tuple(H_S.shape)} and H_T {tuple(H_T.shape)} must have the same shape")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, layout={self.layout!r}"


class OutputMLP(nn.Module):
    """The release's two layers behind the fusion: Y = W_2 ReLU(BN(W_1 H)) + b_2.

    Its W_1 also has a bias, which the batch norm takes away again.
    """

    def __init__(self, linear: Callable[..., nn.Module], channels: int, axis: int):
        super().__init__()
        self.axis = axis
        self.W1 = linear(channels, channels, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=1e-3)
        self.W2 = linear(channels, channels)

    def forward(self, H: Tensor) -> Tensor:
        normed = self.norm(self.W1(H).movedim(self.axis, 1)).movedim(1, self.axis)  # BN wants channels second
        return self.W2(torch.relu(normed))


def mix(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """z ⊙ a + (1 − z) ⊙ b in one kernel, which keeps z alone, and is exact where z is 0 or 1 or a equals b."""
    dtype = torch.promote_types(a.dtype, b.dtype)  # under autocast the three may differ
    return torch.lerp(b.to(dtype), a.to(dtype), z.to(dtype))
