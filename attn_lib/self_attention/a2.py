"""Double attention: it gathers a few descriptors from the whole image, and every position takes the mix it needs."""

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_feature_map, check_int
from ..ops import in_float32
from ..tap import tap


@register(
    "a2",
    family="self_attention",
    name="Double attention",
    summary="It gathers n descriptors from the whole image, and lets every position mix its own answer of them.",
    aliases=("A²", "A2-Nets", "A²-Nets", "DoubleAttention"),
    action="mix",
    papers=[Paper(
        key="chen2018double", venue="NeurIPS", year=2018, arxiv="1810.11579",
        title="A²-Nets: Double Attention Networks",
    )],
    layout="B C H W",
    example=dict(channels=16, m=8, n=5),
    measured=dict(channels=64),
    variants={
        "no bias": dict(channels=8, m=3, n=4, bias=False),
        "defaults": dict(channels=8),
    },
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    builds_on=("non_local",),
    reduces_to={
        "mean": "W_θ = 0: every descriptor is the mean of φ, whoever asks",
        "identity": "W_z = 0, b_z = 0",
    },
    errata=[
        Erratum("paper", "Its letters A, B and V are the three features.",
                "They are φ, θ and ρ, the paper's names of the layers that make them: B is the batch.",
                "test_taps_are_the_equations"),
        Erratum("copies", "Their softmax names no axis, so that torch takes it over the images of the batch.",
                "θ has its softmax over the positions, ρ over the descriptors.", "test_a_softmax_without_an_axis"),
        Erratum("copies", "Others take both softmaxes over the positions.",
                "What a position takes of the n descriptors sums to 1.",
                "test_what_a_position_takes_sums_to_one"),
        Erratum("copies", "They end with the last convolution.",
                "The input is added to it, as in the paper's block.", "test_the_input_is_added"),
        Erratum("copies", "θ has a bias.", "It has none: the softmax over the positions cancels it.",
                "test_a_bias_of_theta_changes_nothing"),
    ],
)
class DoubleAttention(nn.Module):
    """Double attention: y = x + W_z Z + b_z with Z = [φ softmax_N(θ)ᵀ] softmax_n(ρ), three 1×1 convolutions of x.

    φ is m × N, θ and ρ are n × N, with N = HW positions. The bracket gathers: column k of the m × n matrix G is a mean
    of φ over all positions, weighed by the k-th softmax of θ. The rest distributes: position i takes Σ_k ρ_ki G_k,
    where ρ_1i … ρ_ni sum to 1. The n descriptors are keys, and m is what is left of the channels: Nk = n and Cr = m
    in the trace.

    Read the other way, φ [softmax(θ)ᵀ softmax(ρ)], it is attention with an N × N matrix of rank n at most; in this
    order it needs 2mnN multiply-adds, and no such matrix. In copies φ, θ, ρ and the last convolution are convA, convB,
    convV and conv_reconstruct; no release is known.

    Args:
        channels: C, at least 1.
        m: channels of a descriptor, at least 1; C/4, at least 1, when None.
        n: number of descriptors, at least 1; as many as m when None. With one, ρ is 1 and nothing is chosen.
        bias: whether φ, ρ and the last convolution have one.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Chen, Kalantidis, Li, Yan and Feng, A²-Nets: Double Attention Networks, NeurIPS 2018, arXiv 1810.11579.
    """

    def __init__(self, channels: int, *, m: int | None = None, n: int | None = None, bias: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.m = check_int("m", max(channels // 4, 1) if m is None else m)
        self.n = check_int("n", self.m if n is None else n)
        self.Wphi = nn.Conv2d(channels, self.m, 1, bias=bias)
        self.Wtheta = nn.Conv2d(channels, self.n, 1, bias=False)
        self.Wrho = nn.Conv2d(channels, self.n, 1, bias=bias)
        self.Wz = nn.Conv2d(self.m, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        wide = torch.promote_types(x.dtype, torch.float32)
        phi = tap("phi", self.Wphi(x).flatten(2), "B Cr N")
        theta = tap("theta", self.Wtheta(x).flatten(2).softmax(2, dtype=wide), "B Nk N")  # over the positions
        rho = tap("rho", self.Wrho(x).flatten(2).softmax(1, dtype=wide), "B Nk N")        # over the descriptors
        G = tap("G", in_float32(lambda phi, theta: phi @ theta.transpose(1, 2), phi, theta), "B Cr Nk")  # gather, eq. 3
        Z = (G.to(phi.dtype) @ rho.to(phi.dtype)).unflatten(2, x.shape[2:])                 # distribute, eq. 4
        return tap("y", x + self.Wz(tap("Z", Z, "B Cr H W")), "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, m={self.m}, n={self.n}"
