"""Contextual transformer: the weights of a neighbourhood come from a convolution of it, not from pairs (CoT)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_divisible, check_feature_map, check_int, check_odd
from ..ops import in_float32, total
from ..tap import tap


@register(
    "cot",
    family="self_attention",
    name="Contextual transformer",
    summary="It looks at a whole neighbourhood at once before it decides how much of each neighbour to take.",
    aliases=("CoT", "CoTNet", "contextual transformer block"),
    action="mix",
    papers=[Paper(
        key="li2022contextual", venue="IEEE Transactions on Pattern Analysis and Machine Intelligence", year=2022,
        arxiv="2107.12292", title="Contextual Transformer Networks for Visual Recognition",
        code="https://github.com/JDAI-CV/CoTNet",
    )],
    layout="B C H W",
    example=dict(channels=16, min_dim=8),
    measured=dict(channels=64),
    variants={"CoTNeXt": dict(channels=16, groups=8, cardinality=2, share=4, min_dim=4)},
    commutes_with={"translation"},
    forbids={"batch_one": "the fusion is normalised over the batch, and one pooled vector has no variance"},
    builds_on=("sk",),
    reduces_to={
        "convolution": "the fusion's bias for the static context → ∞: convolution, BN, ReLU",
        "mean": "W_a = 0: of the two contexts",
    },
    errata=[
        Erratum(
            "paper",
            "Its equations have no normalisation.",
            "As in the release: BN behind the convolutions and a GroupNorm over the weights of each group, over its K "
            "places and all pixels.",
            "test_weights_are_normalised_over_places_and_pixels_and_are_no_softmax"),
        Erratum(
            "copies",
            "The most copied version takes the mean of the k² weights, a softmax over all pixels, and multiplies the "
            "value of the pixel itself by it: no neighbour is read.",
            "A pixel sums over its k² neighbours, with weights that are signed and do not sum to 1.",
            "test_trap_the_most_copied_version_reads_no_neighbour"),
        Erratum(
            "copies",
            "They add the two contexts.",
            "Two numbers for each channel, from a softmax, say how much of each is taken.",
            "test_the_comparison_with_the_paper_notices"),
        Erratum(
            "copies",
            "Channels that share weights are taken to lie side by side.",
            "Channel c uses the weights of group c mod C/8, as in the release.",
            "test_trap_channels_that_share_weights_are_dealt_out"),
    ],
)
class CoTAttention(nn.Module):
    """Contextual transformer: y = a₁ · K¹ + a₂ · K² with a static context K¹ and a dynamic one, K² = V ⊛ A.

        K¹ = ReLU(BN(W_k x)),   V = BN(W_v x),   A = GN(W_δ ReLU(BN(W_θ [x; K¹]))),
        K²_c(p) = SiLU(BN(Σ_j A_{c mod G, j}(p) · V_c(p + j))),   a = softmax₂(W_a ReLU(BN(W_z mean(K¹ + K²)))).

    W_k is a k × k convolution in 4 groups, the others are 1×1. j runs over the K = k² neighbours of p, with zeros
    outside the map; A holds G = C/8 sets of K weights for every pixel, so that 8 channels share one. There is no
    softmax over j, and no product of a query with a key: the weights of a pixel come from its neighbourhood as a whole.
    The last softmax is over the two contexts, for each channel apart.

    `cardinality` cuts x and K¹ into as many parts, and each computes A and V for itself: CoTNeXt has 2, and
    groups=8.

    To load the release's weights: `key_embed` is Wk, norm_k; `embed` is Wtheta, norm_theta, Wdelta, norm_a; `conv1x1`
    is Wv, norm_v; `bn` is norm_d; `se` is Wz, norm_z, Wa, all by their order. Rows 2c and 2c + 1 of W_a belong to
    channel c, the dynamic context first. Wz and Wa are 1×1 convolutions there: flatten them. With cardinality > 1 the
    columns of W_θ are x₀, K¹₀, x₁, K¹₁ …

    Args:
        channels: C, divisible by `groups` and by share · cardinality.
        kernel_size: k, odd; 3 in the paper.
        groups: of W_k; 4 in the paper.
        share: channels that share their weights; 8 in the paper.
        cardinality: parts that do not see each other in W_θ, W_δ and W_v; 1 in CoTNet, 2 in CoTNeXt.
        reduction: r, W_z has max(2C/r, min_dim) rows.
        min_dim: the least number of them; 32 in the release.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or a batch of one
            in training.

    Paper:
        Li, Yao, Pan and Mei, Contextual Transformer Networks for Visual Recognition, IEEE Transactions on Pattern
        Analysis and Machine Intelligence 2022, arXiv 2107.12292.
    """

    def __init__(self, channels: int, *, kernel_size: int = 3, groups: int = 4, share: int = 8, cardinality: int = 1,
                 reduction: int = 4, min_dim: int = 32):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.kernel_size = check_odd("kernel_size", kernel_size)
        self.groups = check_int("groups", groups)
        check_divisible("channels", channels, "groups", groups)
        self.share = check_int("share", share)
        self.cardinality = check_int("cardinality", cardinality)
        check_divisible("channels", channels, "share * cardinality", share * cardinality)
        check_divisible("channels", channels, "2 * cardinality", 2 * cardinality)
        self.reduction = check_int("reduction", reduction)
        self.min_dim = check_int("min_dim", min_dim)

        def conv(inputs: int, outputs: int, bias: bool = False) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 1, groups=cardinality, bias=bias)

        G, K, Cr = channels // share, kernel_size**2, max(2 * channels // reduction, min_dim)
        self.Wk = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
        self.norm_k = nn.BatchNorm2d(channels)
        self.Wtheta, self.norm_theta = conv(2 * channels, channels // 2), nn.BatchNorm2d(channels // 2)
        self.Wdelta, self.norm_a = conv(channels // 2, G * K, bias=True), nn.GroupNorm(G, G * K)
        self.Wv, self.norm_v = conv(channels, channels), nn.BatchNorm2d(channels)
        self.norm_d = nn.BatchNorm2d(channels)
        self.Wz, self.norm_z = nn.Linear(channels, Cr), nn.BatchNorm1d(Cr)
        self.Wa = nn.Linear(Cr, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        if self.norm_z.training and len(x) == 1:
            raise ValueError("x is a batch of 1; in training it must hold 2 images or more, for the BN of the fusion")
        K1 = tap("K1", F.relu(self.norm_k(self.Wk(x))), "B C H W")                     # static context
        xk = torch.cat((x, K1), 1) if self.cardinality == 1 else torch.stack((x, K1), 2).flatten(1, 2)
        A = self.norm_a(self.Wdelta(F.relu(self.norm_theta(self.Wtheta(xk)))))
        A = tap("A", rearrange(A, "B (G K) H W -> B G K H W", K=self.kernel_size**2), "B G K H W")
        V = tap("V", self.norm_v(self.Wv(x)), "B C H W")
        K2 = tap("K2", F.silu(self.norm_d(self.aggregate(V, A))), "B C H W")           # dynamic context
        z = F.relu(self.norm_z(self.Wz((K1 + K2).mean((2, 3)))))
        a = tap("a", self.Wa(z).unflatten(1, (self.channels, 2)).softmax(2).to(K1.dtype), "B C 2")
        a_2, a_1 = a[:, :, None, None].unbind(-1)
        return tap("y", a_1 * K1 + a_2 * K2, "B C H W")

    def aggregate(self, V: Tensor, A: Tensor) -> Tensor:
        """V ⊛ A: sums over neighbours (B, C, H, W) with the weights (B, G, K, H, W) that S channels share."""
        return in_float32(self.sums, V, A).to(V.dtype)

    def sums(self, V: Tensor, A: Tensor) -> Tensor:
        k, H, W = self.kernel_size, *V.shape[2:]
        V = F.pad(V, (k // 2,) * 4)
        V = rearrange(V, "B (M S G) H W -> B M S G H W", M=self.cardinality, S=self.share)
        weights = rearrange(A, "B (M G) K H W -> B K M 1 G H W", M=self.cardinality).unbind(1)
        y = total(weights[i * k + j] * V[..., i:i + H, j:j + W] for i in range(k) for j in range(k))  # of views
        return y.flatten(1, 3)

    def extra_repr(self) -> str:
        names = ("channels", "kernel_size", "groups", "share", "cardinality", "reduction", "min_dim")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
