"""Second-order channel attention: a gate for every channel, from the root of the channels' covariance (SAN)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_feature_map, check_int
from ..ops import covariance, in_float32
from ..tap import tap


@register(
    "soca",
    family="channel",
    name="Second-order channel attention",
    summary="It weighs a channel by how it varies with all others, after the square root has made loud ones quieter.",
    aliases=("SOCA", "SAN"),
    action="gate",
    papers=[Paper(
        key="dai2019second", venue="CVPR", year=2019,
        title="Second-Order Attention Network for Single Image Super-Resolution",
        code="https://github.com/daitao/SAN",
    )],
    layout="B C H W",
    example=dict(channels=16, reduction=2),
    measured=dict(channels=64),
    variants={"two iterations": dict(channels=6, reduction=2, iterations=2)},
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    builds_on=("se",),
    reduces_to={"variance gate": "uncorrelated channels; with many iterations SE of their deviations over C"},
    errata=[
        Erratum("release",
                "What five iterations give is called the square root.",
                "With 64 channels five iterations stop a fifth short of it; more are an option.",
                "test_five_iterations_are_not_the_root"),
        Erratum("release",
                "The mean is taken off by a product with a matrix of HW × HW.",
                "The mean is subtracted: memory grows as C² and CHW.",
                "test_memory_is_linear_in_the_positions"),
        Erratum("release",
                "On a constant map the trace is 0 up to rounding, and the gates are NaN where it is 0 or below.",
                "The covariance and its root are 0 there, and the gate is that of z = 0.",
                "test_a_constant_map_gives_no_nan"),
        Erratum("release",
                "A middle of 1000 × 1000 stands for a larger map, and at a side of exactly 1000 the cut is wrong: of "
                "600 × 1000 it takes 200 rows, of 999 × 1000 one.",
                "Every position counts, at any size.",
                "test_every_position_counts"),
        Erratum("release",
                "Its iterations are kept in torch's default type, so float64 fails.",
                "They are computed in float32 at least, and in float64 where x is.",
                "test_the_root_in_every_type"),
        Erratum("release",
                "With a single iteration the forward pass leaves A out, and the backward pass uses a name that is not "
                "defined; with more all is well.",
                "One iteration is Y₁ = A(3I − A)/2, with its gradient.",
                "test_a_single_iteration"),
    ],
)
class SOCAAttention(nn.Module):
    """Second-order channel attention: y = s · x with s = σ(W₂ δ(W₁ z)), z = mean over each row of Σ^½, δ = ReLU.

    Σ (C × C) is the covariance of the channels over the positions, ∑ (x − x̄)(x − x̄)ᵀ / HW, and its root is computed by
    N steps of Newton and Schulz, products of matrices alone:

        Y₀ = A = Σ / tr Σ,  Z₀ = I,   Yₙ = Yₙ₋₁ (3I − Zₙ₋₁Yₙ₋₁) / 2,  Zₙ = (3I − Zₙ₋₁Yₙ₋₁) Zₙ₋₁ / 2,  Σ^½ ≈ √(tr Σ) Y_N.

    The trace brings all eigenvalues below 1, where the steps converge, and is given back at the end. Small eigenvalues
    converge last, and there are many where C is large: by each step one far below 1 grows by no more than the factor
    3/2, from the eigenvalue itself on its way to its root.

    W₁ is C/r × C and W₂ is C × C/r, C/r rounded down, both with a bias as in the release. Σ and its root are computed
    in float32 at least. From the release load conv_du.0 into W1 and conv_du.2 into W2, flattened to matrices.

    Args:
        channels: C, at least 1.
        reduction: r, from 1 to C; 8 is the default of the release's class, to which its network passes 16.
        iterations: N, at least 1; 5 in the release. Where Σ is singular, Z grows with each, and with it what rounding
            left there: from about 30 on, infinities and NaN.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Dai, Cai, Zhang, Xia and Zhang, Second-Order Attention Network for Single Image Super-Resolution, CVPR 2019.
    """

    def __init__(self, channels: int, *, reduction: int = 8, iterations: int = 5):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.reduction = check_int("reduction", reduction)
        check_at_most("reduction", reduction, "channels", channels)
        self.iterations = check_int("iterations", iterations)
        hidden = channels // reduction
        self.W1 = nn.Linear(channels, hidden)
        self.W2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        cov = tap("cov", covariance(x.flatten(2)), "B C C")
        root = tap("root", in_float32(self.root, cov), "B C C")
        z = tap("z", root.mean(2).to(x.dtype), "B C")
        s = tap("s", torch.sigmoid(self.W2(F.relu(self.W1(z)))), "B C")
        return tap("y", x * s.to(x.dtype)[:, :, None, None], "B C H W")

    def root(self, cov: Tensor) -> Tensor:
        """The square root of each covariance matrix (B, C, C), as far as the iterations bring it."""
        trace = cov.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        trace = torch.where(trace > 0, trace, torch.ones_like(trace))  # of a constant map the root is 0 anyway
        identity = torch.eye(self.channels, dtype=cov.dtype, device=cov.device)
        Y, Z = cov / trace, identity
        for _ in range(self.iterations):
            step = (3 * identity - Z @ Y) / 2
            Y, Z = Y @ step, step @ Z
        return trace.sqrt() * Y

    def extra_repr(self) -> str:
        return f"channels={self.channels}, reduction={self.reduction}, iterations={self.iterations}"
