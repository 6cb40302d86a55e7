"""Efficient additive attention: one query for the whole image, and every key is multiplied by it."""

import torch
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_choice, check_int, check_positive, check_tensor
from ..ops import from_tokens, in_float32, to_tokens
from ..tap import tap

LAYOUTS = ("B C H W", "B N C")


@register(
    "swiftformer",
    family="self_attention",
    name="Efficient additive attention",
    summary="It sums all queries into one by learned weights, and lets that one meet the keys without any product of "
            "matrices.",
    aliases=("SwiftFormer", "additive attention", "EfficientAdditiveAttention"),
    action="mix",
    papers=[Paper(
        key="shaker2023swiftformer", venue="ICCV", year=2023, arxiv="2303.15446",
        title="SwiftFormer: Efficient Additive Attention for Transformer-based Real-time Mobile Vision Applications",
        code="https://github.com/Amshaker/SwiftFormer",
    )],
    layout="B C H W",
    example=dict(channels=16),
    measured=dict(channels=64),
    variants={
        "tokens": dict(channels=8, layout="B N C"),
        "wide": dict(channels=6, out_channels=4, heads=3),
        "as printed": dict(channels=6, normalise=False),
    },
    output="B O H W",
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    builds_on=("mhsa",),
    reduces_to={
        "linear layer": "w_a = 0: of the normalised queries, nothing is mixed",
    },
    counterpart=Counterpart(
        "timm EfficientAdditiveAttention", "timm.models.swiftformer",
        lambda timm, channels: timm.EfficientAdditiveAttention(channels, channels)),
    errata=[
        Erratum("paper", "Its equation for α ends with q · w_a / √d.",
                "α is divided by its length as well, as in the release and all that was trained with it; "
                "normalise=False is the equation as printed.", "test_without_its_length_alpha_is_the_printed_equation"),
        Erratum("release", "It divides q · w_a by √d before it divides α by its length.",
                "The second division takes the first away, so it is left out.",
                "test_the_scale_of_the_release_cancels"),
        Erratum("release", "Its heads are no heads: they widen q and k, and one α serves all.",
                "heads=h does the same, and W_o leads back to O channels.", "test_heads_share_one_alpha"),
        Erratum("copies", "Texts and drawings make a softmax of α.",
                "There is none: α may be negative, and its squares sum to 1.",
                "test_weights_have_signs_and_squares_that_sum_to_one"),
        Erratum("copies", "Texts add the query to the output as W_q makes it.",
                "The query that is added has length 1.", "test_the_query_that_is_added_has_length_one"),
    ],
)
class EfficientAdditiveAttention(nn.Module):
    """Efficient additive attention: y = W_o (W_p (G ⊙ k̂) + b_p + q̂) + b_o, with one global query G = Σ_n α_n q̂_n.

    q = W_q x and k = W_k x, both with biases, and everything is divided by its Euclidean length: q̂ and k̂ over the
    channels of a token, α over the tokens,

        q̂_n = q_n / ‖q_n‖,   k̂_n = k_n / ‖k_n‖,   a_n = q̂_n · w_a,   α = a / ‖a‖.

    A length is never taken as less than ε. N products of vectors are all that is mixed: no N × N matrix, and no
    d × d one. As Σ α² = 1 and not Σ α = 1, G grows with the number of tokens that agree: where all queries are equal
    α = ±1/√N and G = ±√N q̂, so the output depends on the size of a map even where it is flat.

    Weights of the release: to_query → W_q, to_key → W_k, w_g without its last axis → w_a, Proj (in timm proj) → W_p,
    final → W_o.

    Args:
        channels: C, at least 1.
        out_channels: O, d of one head; C when None.
        heads: h, at least 1: q and k have h · O channels.
        normalise: False for α = a / √O, without its length.
        layout: "B C H W" or "B N C".
        epsilon: ε > 0, the least length to divide by; 1e-12 in the release.

    Shape:
        x (B, C, H, W) → y (B, O, H, W), or (B, N, C) → (B, N, O); any sizes.

    Raises:
        ValueError: for an argument out of range, or an input of another layout or number of channels.

    Paper:
        Shaker, Maaz, Rasheed, Khan, Yang and Khan, SwiftFormer: Efficient Additive Attention for Transformer-based
        Real-time Mobile Vision Applications, ICCV 2023, arXiv 2303.15446.
    """

    def __init__(self, channels: int, out_channels: int | None = None, *, heads: int = 1, normalise: bool = True,
                 layout: str = "B C H W", epsilon: float = 1e-12):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.out_channels = check_int("out_channels", channels if out_channels is None else out_channels)
        self.heads = check_int("heads", heads)
        check_choice("layout", layout, LAYOUTS)
        self.layout, self.normalise = layout, normalise
        self.epsilon = check_positive("epsilon", epsilon, "without it a query of zeros gives 0/0")
        d = heads * self.out_channels
        self.Wq, self.Wk = nn.Linear(channels, d), nn.Linear(channels, d)
        self.wa = nn.Parameter(torch.randn(d))
        self.Wp, self.Wo = nn.Linear(d, d), nn.Linear(d, self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(x, self.layout, {"C": self.channels})
        tokens = to_tokens(x)
        q = tap("q", self._unit(self.Wq(tokens), -1), "B N d")
        k = tap("k", self._unit(self.Wk(tokens), -1), "B N d")
        a = in_float32(torch.matmul, q, self.wa)
        alpha = tap("alpha", self._unit(a, -1) if self.normalise else a * self.out_channels**-0.5, "B N")
        G = tap("G", in_float32(lambda a, q: torch.einsum("BN,BNd->Bd", a, q), alpha, q), "B d")
        y = self.Wo(self.Wp(G[:, None].to(k.dtype) * k) + q)
        return tap("y", from_tokens(y, x), self.layout.replace("C", "O"))

    def _unit(self, t: Tensor, dim: int) -> Tensor:
        """t over its length along an axis; squares are summed in float32 at least."""
        dtype = torch.promote_types(t.dtype, torch.float32)
        length = torch.linalg.vector_norm(t, dim=dim, keepdim=True, dtype=dtype).clamp(min=self.epsilon)
        return (t / length).to(t.dtype)

    def extra_repr(self) -> str:
        return (f"channels={self.channels}, out_channels={self.out_channels}, heads={self.heads}, "
                f"normalise={self.normalise}, layout={self.layout!r}")
