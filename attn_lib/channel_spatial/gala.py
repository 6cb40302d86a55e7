"""GALA: what to attend to and where, added and multiplied, in one gate that may turn signs around."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_choice, check_feature_map, check_int, check_odd
from ..ops import in_float32
from ..tap import tap

SQUASH = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}


@register(
    "gala",
    family="channel_spatial",
    name="Global-and-local attention",
    summary="It learns channel by channel whether what and where are added or multiplied, and shows its gate to be "
            "trained on where people look.",
    aliases=("GALA", "GALA attention", "ClickMe"),
    action="gate",
    papers=[Paper(
        key="linsley2019learning", venue="ICLR", year=2019, arxiv="1805.08819",
        title="Learning what and where to attend",
        code="https://github.com/serre-lab/gala_tpu",
    )],
    layout="B C H W",
    example=dict(channels=64),
    variants={
        "release": dict(channels=8, squash="sigmoid", extra_kernel=5, rectify=True),
        "no bias": dict(channels=6, reduction=2, bias=False),
    },
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    builds_on=("se", "scse"),
    reduces_to={
        "se": "sigmoid, S = 0, a = 1",
        "identity": "a = 1, m = 0, bias of V₂ → ∞",
    },
    errata=[
        Erratum("release", "The gate is a sigmoid, and cannot turn a sign around.",
                "It is a hyperbolic tangent, as in the paper; `squash=\"sigmoid\"` is the release.",
                "test_the_tangent_turns_signs_around_and_the_sigmoid_does_not"),
        Erratum("release", "The global path ends in a ReLU, which its framework's fully connected layer adds unasked, "
                "so that no channel can vote against.", "It ends in a linear layer, as in the paper; `rectify=True` is "
                "the release.", "test_the_release_rectifies_the_global_path"),
        Erratum("release", "A 5 × 5 convolution stands in the middle of the local path.",
                "Two 1 × 1 convolutions are all, as in the paper; `extra_kernel=5` adds the third.",
                "test_the_extra_convolution_lets_the_local_path_look_around"),
    ],
)
class GALAAttention(nn.Module):
    """Global-and-local attention: y = A · x with A = tanh(a · (g + S) + m · (g · S)).

        g = W₂ δ(W₁ p)            what: a number a channel, from p, the mean of x over H and W; δ = ReLU
        S = V₂ * δ(V₁ * x)        where: a number a position, by two 1 × 1 convolutions, C to C/r channels to one

    a and m are a number a channel each, and say how far the two are added and multiplied. The paper calls x U. Both
    paths are linear at their ends: it is their combination that is squashed. A lies in (−1, 1), so a gate can also turn
    the sign of a feature around.

    The paper trains A, summed over its channels, on maps of where people clicked, ClickMe: A is in the trace.

    Names of the release's weights, TensorFlow's: `…_ATTENTION_intermediate/weights` and `…_ATTENTION_output/weights`
    are W1 and W2, transposed; the `kernel`s of the same names V1 and V2, `…_intermediate_0/kernel` Vextra, from
    (rows, columns, in, out) to (out, in, rows, columns); `alpha` and `beta` are a and m. Both start as truncated normal
    numbers, as there.

    Args:
        channels: C, at least 1.
        reduction: r, from 1 to C; 4 in the paper. C/r is rounded down.
        squash: "tanh" or "sigmoid".
        extra_kernel: side of a further convolution with ReLU between V₁ and V₂, odd; none when None.
        rectify: whether g ends in a ReLU.
        bias: whether the matrices and convolutions carry biases.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an even kernel, or an input that is not a feature map of C channels.

    Paper:
        Linsley, Shiebler, Eberhardt and Serre, Learning what and where to attend, ICLR 2019, arXiv 1805.08819.
    """

    def __init__(self, channels: int, *, reduction: int = 4, squash: str = "tanh", extra_kernel: int | None = None,
                 rectify: bool = False, bias: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.reduction = check_int("reduction", reduction)
        check_at_most("reduction", reduction, "channels", channels)
        check_choice("squash", squash, SQUASH)
        self.squash, self.rectify = squash, rectify
        Cr = channels // reduction
        self.W1, self.W2 = nn.Linear(channels, Cr, bias=bias), nn.Linear(Cr, channels, bias=bias)
        self.V1, self.V2 = nn.Conv2d(channels, Cr, 1, bias=bias), nn.Conv2d(Cr, 1, 1, bias=bias)
        self.Vextra = None
        if extra_kernel is not None:
            k = check_odd("extra_kernel", extra_kernel)
            self.Vextra = nn.Conv2d(Cr, Cr, k, padding=k // 2, bias=bias)
        self.a, self.m = (nn.Parameter(_truncated_normal(channels)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        p = tap("p", x.mean((2, 3)), "B C")
        g = self.W2(F.relu(self.W1(p)))
        g = tap("g", F.relu(g) if self.rectify else g, "B C")
        s = F.relu(self.V1(x))
        s = s if self.Vextra is None else F.relu(self.Vextra(s))
        S = tap("S", self.V2(s), "B 1 H W")
        A = SQUASH[self.squash](in_float32(self.integrate, g, S, self.a, self.m)).to(x.dtype)
        return tap("y", tap("A", A, "B C H W") * x, "B C H W")

    @staticmethod
    def integrate(g: Tensor, S: Tensor, a: Tensor, m: Tensor) -> Tensor:
        """a · (g + S) + m · (g · S), with all that has no position multiplied out first: S is then read once."""
        return (a * g)[:, :, None, None] + (a + m * g)[:, :, None, None] * S

    def extra_repr(self) -> str:
        return f"channels={self.channels}, reduction={self.reduction}, squash={self.squash!r}, rectify={self.rectify}"


def _truncated_normal(n: int) -> Tensor:
    """n standard normal numbers between −2 and 2; torch's own cannot be made on the meta device."""
    return torch.empty(n).uniform_(-1, 1).mul(math.erf(2**0.5)).erfinv() * 2**0.5
