"""Non-local block: every position takes what it needs from all positions, however far away they are."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_at_most, check_choice, check_feature_map, check_int
from ..ops import attend, in_float32
from ..tap import tap, tracing

PAIRWISE = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")


@register(
    "non_local",
    family="spatial",
    name="Non-local block",
    summary="It lets every position compare itself with all others and collect from those that matter to it.",
    aliases=("NL", "non-local", "NLNet"),
    action="mix",
    papers=[Paper(
        key="wang2018nonlocal", venue="CVPR", year=2018, arxiv="1711.07971",
        title="Non-local Neural Networks",
        code="https://github.com/facebookresearch/video-nonlocal-net",
    )],
    layout="B C H W",
    example=dict(channels=64),
    variants={
        "Gaussian": dict(channels=16, pairwise="gaussian"),
        "dot product": dict(channels=16, pairwise="dot_product"),
        "concatenation": dict(channels=6, pairwise="concatenation"),
        "sub-sampled": dict(channels=16, pairwise="gaussian", subsample=2),
        "release": dict(channels=16, scale=None, subsample=2, pool_first=True, bias=True, norm=True),
    },
    identity_at_init=True,
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    reduces_to={
        "identity": "W_z = 0, where it starts",
        "self-attention": "embedded Gaussian with scale 1/√d",
        "mean": "θ = 0: every position gets the same average",
    },
    counterpart=Counterpart(
        "timm NonLocalAttn", "timm.layers.non_local_attn",
        lambda timm, channels: timm.NonLocalAttn(channels, rd_channels=channels // 2),
        options=dict(scale=64**-0.5, bias=True, norm=True)),
    errata=[
        Erratum("release",
                "The logits of the softmax are divided by √d, of which no weight keeps a trace.",
                "They are not, as in the equations; `scale=None` divides.",
                "test_scale_multiplies_the_logits"),
        Erratum("release",
                "The 1×1 convolutions have biases, where the equations write none.",
                "They have none; `bias=True` is the release.",
                "test_equals_the_paper"),
        Erratum("release",
                "Of the four pairwise functions it has two, the embedded Gaussian and the dot product.",
                "It has all four.",
                "test_equals_the_paper"),
        Erratum("paper",
                "Section 3.3 pools x in its formula, and φ and g in the sentence below it.",
                "φ and g are pooled; `pool_first=True` pools x, as the release does.",
                "test_pooling_before_and_after_are_two_operators"),
        Erratum("release",
                "Max pooling drops the last row or column of a map of odd size, so that nobody attends to it.",
                "The last windows are smaller, and every position is in one.",
                "test_pooling_keeps_the_last_row_and_column_of_an_odd_map"),
        Erratum("package",
                "timm's `NonLocalAttn` divides the logits by √C, the width before the bottleneck.",
                "With `scale=C**-0.5`, `bias=True` and `norm=True` the two are equal.",
                "test_equals_timm"),
        Erratum("copies",
                "The dot product is taken for a form that lacks its softmax, and is given one.",
                "It is divided by the number of keys, and by nothing else.",
                "test_the_comparison_with_the_paper_notices"),
    ],
)
class NonLocalAttention(nn.Module):
    """Non-local block: z_i = W_z y_i + x_i with y_i = 1/C(x) Σ_j f(x_i, x_j) g(x_j), j over all N = HW positions.

    θ = W_θ x, φ = W_φ x and g = W_g x are 1×1 convolutions to Cr = C/r channels. The pairwise function f and the
    normaliser C(x) are

        embedded Gaussian   f = exp(θ_i · φ_j)            C(x) = Σ_j f      (so f / C(x) is a softmax)
        Gaussian            f = exp(x_i · x_j)            C(x) = Σ_j f
        dot product         f = θ_i · φ_j                 C(x) = N          (no softmax: A may be negative)
        concatenation       f = ReLU(w_f · [θ_i, φ_j])    C(x) = N

    and A = f / C(x) is N × N. Outside a trace only concatenation holds it: the Gaussian forms run through
    `ops.attend`, the dot product is regrouped, (θ φᵀ) g = θ (φᵀ g), where that is cheaper.

    Args:
        channels: C, at least 1.
        pairwise: one of the four above.
        reduction: r, from 1 to C; Cr is rounded down. The paper halves.
        subsample: side s of the max pooling behind φ and g, at least 1: A becomes N × Nk, Nk = N/s² keys. The paper
            has 2, and 1 is its eq. 1. Where s does not divide H or W the last windows are smaller; the release drops
            what is left over.
        pool_first: pool x before φ and g, as the authors' release does; the paper's text says after.
        scale: factor of the logits of both Gaussian forms; 1 in the paper. None divides by √d, as the release does,
            with d the width of θ and φ: Cr, or C where they are x.
        bias: whether the 1×1 convolutions have one; the paper's equations have none, the release has.
        norm: batch normalisation behind W_z, as the paper's models have (Section 4.1).
        zero_init: start with W_z = 0 (with `norm`, its scale and shift), so that a fresh block is the identity.

    Shape:
        x (B, C, H, W) → z (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Wang, Girshick, Gupta and He, Non-local Neural Networks, CVPR 2018, arXiv 1711.07971.
    """

    def __init__(self, channels: int, *, pairwise: str = "embedded_gaussian", reduction: int = 2, subsample: int = 1,
                 pool_first: bool = False, scale: float | None = 1.0, bias: bool = False, norm: bool = False,
                 zero_init: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        check_choice("pairwise", pairwise, PAIRWISE)
        self.pairwise = pairwise
        self.reduction = check_int("reduction", reduction)
        check_at_most("reduction", reduction, "channels", channels)
        self.subsample = check_int("subsample", subsample)
        if scale != 1.0 and "gaussian" not in pairwise:
            raise ValueError(f"scale={scale} must stay 1.0 with pairwise={pairwise!r}: only Gaussian forms have one")
        self.scale = scale
        Cr = channels // reduction

        def embed() -> nn.Module:
            return nn.Identity() if pairwise == "gaussian" else nn.Conv2d(channels, Cr, 1, bias=bias)

        self.Wtheta, self.Wphi = embed(), embed()
        self.Wg = nn.Conv2d(channels, Cr, 1, bias=bias)
        self.Wz = nn.Conv2d(Cr, channels, 1, bias=bias)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        if pairwise == "concatenation":
            self.wf = nn.Parameter(torch.randn(2 * Cr) * (2 * Cr) ** -0.5)
        if zero_init:
            for p in (self.norm if norm else self.Wz).parameters():
                nn.init.zeros_(p)
        pool: nn.Module = nn.MaxPool2d(subsample, ceil_mode=True) if subsample > 1 else nn.Identity()
        self.pool_before = pool if pool_first else nn.Identity()
        self.pool_after = nn.Identity() if pool_first else pool

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        x_hat = self.pool_before(x)
        theta = tap("theta", self.Wtheta(x), "B d H W")
        phi = tap("phi", self.pool_after(self.Wphi(x_hat)), "B d Hk Wk")
        g = tap("g", self.pool_after(self.Wg(x_hat)), "B Cr Hk Wk")
        pairwise = getattr(self, self.pairwise)
        if "gaussian" in self.pairwise:
            y = pairwise(_tokens(theta), _tokens(phi), _tokens(g))              # B N Cr, eq. 1
        else:  # no weights that sum to 1: y may be as large as a product of three features
            y = in_float32(pairwise, _tokens(theta), _tokens(phi), _tokens(g))
        y = tap("y", y.transpose(1, 2).reshape(-1, g.shape[1], *x.shape[2:]), "B Cr H W")
        Wz_y = self.Wz(y) if y.dtype == g.dtype else self._widened(y).to(g.dtype)
        return tap("z", self.norm(Wz_y) + x, "B C H W")                         # eq. 6

    def embedded_gaussian(self, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        """y with f = exp(θ_i · φ_j) over its sum, a softmax: eqs. 2 and 3."""
        return attend(theta, phi, g, scale=self.scale, name="A", dims="B N Nk")

    gaussian = embedded_gaussian  # θ(x) = φ(x) = x

    def dot_product(self, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        """y with f = θ_i · φ_j over the number of positions: eq. 4."""
        N, Nk, d = theta.shape[1], *phi.shape[1:]
        if tracing() or N * Nk < (N + Nk) * d / 2:  # the N × Nk matrix costs less than the two d × d products
            A = tap("A", theta @ (phi.transpose(1, 2) / Nk), "B N Nk")
            return A @ g
        return theta @ (phi.transpose(1, 2) @ (g / Nk))

    def concatenation(self, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        """y with f = ReLU(w_f · [θ_i, φ_j]) over the number of positions: eq. 5."""
        w_theta, w_phi = self.wf.to(theta.dtype).chunk(2)  # a product with a concatenation is a sum of two products
        f = F.relu((theta @ w_theta)[:, :, None] + (phi @ w_phi)[:, None, :])
        return tap("A", f / phi.shape[1], "B N Nk") @ g

    def _widened(self, y: Tensor) -> Tensor:
        """W_z y of a y in float32 where the rest is in half precision; a call of W_z, with the hooks that it has."""
        wide = {name: p.float() for name, p in self.Wz.named_parameters()}
        return in_float32(lambda y: functional_call(self.Wz, wide, y), y)

    def extra_repr(self) -> str:
        options = f"pairwise={self.pairwise!r}, reduction={self.reduction}, subsample={self.subsample}"
        return f"channels={self.channels}, {options}, scale={self.scale}"


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, HW, C)"""
    return x.flatten(2).transpose(1, 2)
