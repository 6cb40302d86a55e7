"""Global second-order pooling: a gate for every channel, from how the channels vary together (GSoP)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_feature_map, check_int
from ..ops import covariance, grid_means, in_float32, widened
from ..tap import tap

OUTPUTS = 4  # of the row-wise convolution, for each row


class _Excitation(nn.Module):
    """σ(W₂ φ(rows)): what a covariance matrix (B, n, n) says, row by row, as `out` gates.

    The rows are normalised over the batch and their entries; then row i is multiplied by four kernels of its own, and
    outputs 4i to 4i + 3 are made of it. φ is a leaky ReLU.
    """

    def __init__(self, n: int, out: int, negative_slope: float):
        super().__init__()
        self.negative_slope = negative_slope
        self.norm = nn.BatchNorm1d(n)
        self.Wr = nn.Conv1d(n, OUTPUTS * n, n, groups=n)
        self.W2 = nn.Linear(OUTPUTS * n, out)

    def forward(self, cov: Tensor, axis: str) -> Tensor:
        R = tap("R", widened(self.norm, cov), f"B {axis} {axis}")
        q = tap("q", widened(self.Wr, R)[..., 0], f"B 4*{axis}")
        return torch.sigmoid(widened(self.W2, F.leaky_relu(q, self.negative_slope)))


@register(
    "gsop",
    family="channel",
    name="Global second-order pooling",
    summary="It sees which channels vary together, where SE and SRM see each by itself.",
    aliases=("GSoP", "GSoP-Net", "Global Second-order Pooling"),
    action="gate",
    papers=[Paper(
        key="gao2019global", venue="CVPR", year=2019, arxiv="1811.12006",
        title="Global Second-order Pooling Convolutional Networks",
        code="https://github.com/ZilinGao/Global-Second-order-Pooling-Convolutional-Networks",
    )],
    layout="B C H W",
    example=dict(channels=16, reduced=8),
    measured=dict(channels=64),
    variants={"release": dict(channels=12, reduced=6, pre_relu=True, stride=2, negative_slope=1.0)},
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    builds_on=("se",),
    reduces_to={
        "variance gate": "row kernels that are 0 off the diagonal",
        "channel scaling": "W_r = 0: the gates are constants",
    },
    errata=[
        Erratum("release",
                "Nothing stands between the row-wise convolution and the last one, so the two are one linear map.",
                "A leaky ReLU of slope 0.1 as in the paper's text; `negative_slope=1` is the release.",
                "test_without_an_activation_the_two_convolutions_are_one"),
        Erratum("release",
                "x is rectified before it is reduced, and in the first stage every second row and column is left out.",
                "x is reduced as it is; `pre_relu=True` and `stride=2` are the release.",
                "test_the_options_of_the_release"),
        Erratum("release",
                "The mean is taken off by a product with a matrix of HW × HW.",
                "The mean is subtracted: memory is linear in the positions.",
                "test_memory_is_linear_in_the_positions"),
        Erratum("release",
                "Its spatial form divides sums over the channels by the number of positions: with 128 channels and 64 "
                "positions the squared mean keeps the factor −1, where it should be gone.",
                "Sums over channels are divided by their number; `centring=\"positions\"` is the release.",
                "test_the_count_of_the_release_leaves_the_mean_in"),
    ],
)
class GSoPAttention(nn.Module):
    """Global second-order pooling: y = s · x with s = σ(W₂ φ(q)), q_i = W_r,i BN(Σ)_i, Σ = covariance of z, row by row.

    z = δ(BN(W₁ x)) has Cr channels, by a 1×1 convolution, and Σ (Cr × Cr) is their covariance over all HW positions,
    ∑ (z − z̄)(z − z̄)ᵀ / HW. Row i says how channel i varies with all others. Batch normalisation gives each row a scale
    and a shift; the row-wise convolution multiplies row i by four kernels of its own (Cr numbers each), q has 4·Cr
    numbers; φ is a leaky ReLU, and W₂ is C × 4·Cr. All layers have a bias. Σ is computed in float32 at least, without
    ever a matrix of HW × HW.

    From the release load conv_for_DR into W1, bn_for_DR into norm, row_bn into excite.norm, row_conv_group into
    excite.Wr without its last axis, and fc_adapt_channels into excite.W2, flattened to a matrix. The form that
    gates positions is `GSoPSpatialAttention`.

    Args:
        channels: C, at least 1.
        reduced: Cr, at least 1; 128 in the paper.
        stride: of the 1×1 convolution, at least 1.
        pre_relu: compute z from δ(x), as the release does, whose x has not been rectified yet.
        negative_slope: of φ; 0.1 in the paper's text, 1 for none, as in the release.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or a single pixel
            in training, where BN has nothing to take a variance of.

    Paper:
        Gao, Xie, Wang and Li, Global Second-order Pooling Convolutional Networks, CVPR 2019, arXiv 1811.12006.
    """

    def __init__(self, channels: int, *, reduced: int = 128, stride: int = 1, pre_relu: bool = False,
                 negative_slope: float = 0.1):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.reduced = check_int("reduced", reduced)
        self.stride = check_int("stride", stride)
        self.pre_relu = pre_relu
        self.W1 = nn.Conv2d(channels, reduced, 1, stride=stride)
        self.norm = nn.BatchNorm2d(reduced)
        self.excite = _Excitation(reduced, channels, negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        z = self.W1(F.relu(x) if self.pre_relu else x)
        z = tap("z", F.relu(self.norm(z)), "B Cr Ho Wo")                         # squeeze
        cov = tap("cov", covariance(z.flatten(2)), "B Cr Cr")
        s = tap("s", self.excite(cov, "Cr"), "B C")                            # excite
        return tap("y", x * s.to(x.dtype)[:, :, None, None], "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, reduced={self.reduced}, stride={self.stride}"


class GSoPSpatialAttention(nn.Module):
    """The spatial form of GSoP: y = m · x, a gate for every position from how the positions vary together.

    z = BN(W₁ x) with Cr channels is averaged to P × P regions, and Σ (P² × P²) is the covariance of the regions over
    the channels. The rows are excited as in `GSoPAttention`, with one gate for each region, and the map of P × P gates
    is averaged to H × W: where that is larger, each position takes the gate of the regions it lies in. The paper does
    not say how the gates are enlarged; this is the release's way. Behind it the release rectifies y.

    From the release load conv_for_DR_spatial into W1, bn_for_DR_spatial into norm, row_bn_for_spatial into excite.norm,
    row_conv_group_for_spatial into excite.Wr without its last axis, and fc_adapt_channels_for_spatial into excite.W2,
    flattened to a matrix.

    Args:
        channels: C, at least 1.
        reduced: Cr, at least 1; 128 in the release.
        grid: P, at least 1; 8 in the paper.
        pre_relu: compute z from δ(x), as the release does.
        negative_slope: of φ; 0.1 in the paper's text, 0 in the release.
        centring: "channels" for the covariance; "positions" for zᵀz / P² − (∑z)(∑z)ᵀ / P⁴, with sums over the Cr
            channels, as in the release: a covariance only where Cr = P².

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Gao, Xie, Wang and Li, Global Second-order Pooling Convolutional Networks, CVPR 2019, arXiv 1811.12006.
    """

    def __init__(self, channels: int, *, reduced: int = 128, grid: int = 8, pre_relu: bool = False,
                 negative_slope: float = 0.1, centring: str = "channels"):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.reduced = check_int("reduced", reduced)
        self.grid = check_int("grid", grid)
        self.pre_relu = pre_relu
        check_choice("centring", centring, ("channels", "positions"))
        self.centring = centring
        self.W1 = nn.Conv2d(channels, reduced, 1)
        self.norm = nn.BatchNorm2d(reduced)
        self.excite = _Excitation(grid * grid, grid * grid, negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        z = self.norm(self.W1(F.relu(x) if self.pre_relu else x))
        z = tap("z", grid_means(z, self.grid, self.grid), "B Cr P P").flatten(2).transpose(-2, -1)  # B P*P Cr
        relation = covariance(z) if self.centring == "channels" else in_float32(self.release, z)
        cov = tap("cov", relation, "B P*P P*P")
        gates = self.excite(cov, "P*P").unflatten(1, (1, self.grid, self.grid))
        m = tap("m", grid_means(gates, *x.shape[2:]), "B 1 H W")
        return tap("y", x * m.to(x.dtype), "B C H W")

    def release(self, z: Tensor) -> Tensor:
        """What the release computes of the positions' vectors (B, P², Cr), with P² for the count of the channels."""
        n, total = z.shape[1], z.sum(2)
        return z @ z.transpose(-2, -1) / n - total[:, :, None] * total[:, None, :] / n**2

    def extra_repr(self) -> str:
        return f"channels={self.channels}, reduced={self.reduced}, grid={self.grid}, centring={self.centring!r}"
