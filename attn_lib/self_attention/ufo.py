"""UFO attention: queries meet one small matrix of keys and values, and two lengths take the place of the softmax."""

import torch
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_divisible, check_int, check_positive, check_tensor
from ..ops import from_tokens, in_float32, to_tokens
from ..tap import tap

LAYOUTS = ("B C H W", "B N C")


@register(
    "ufo",
    family="self_attention",
    name="UFO attention",
    summary="It gives up the softmax, so that keys meet values before any query comes, and the cost per position does "
            "not grow.",
    aliases=("UFO", "UFO-ViT", "XNorm", "X-ViT"),
    action="mix",
    papers=[Paper(
        key="song2021ufo", venue="arXiv", year=2021, arxiv="2109.14382",
        title="UFO-ViT: High Performance Linear Vision Transformer without Softmax",
    )],
    layout="B C H W",
    example=dict(channels=16, heads=2),
    measured=dict(channels=64),
    variants={
        "tokens": dict(channels=12, heads=2, layout="B N C"),
        "no bias": dict(channels=6, heads=1, bias=False),
    },
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    builds_on=("mhsa",),
    reduces_to={
        "linear layer": "one head, keys that are the values, channels that are orthonormal over the tokens: of q̂",
        "constant": "γ = 0: every position gets b_o",
    },
    errata=[
        Erratum("copies", "They divide KᵀV by lengths along its last axis, over the channels of the values.",
                "The lengths are those over the channels of the keys, which meet the query: what a head puts out is a "
                "cosine times γ².", "test_every_output_is_a_cosine"),
        Erratum("copies", "They divide by a length as it is, 0/0 for a query of zeros or a channel without values.",
                "No length is taken as less than ε.", "test_zeros_give_zeros"),
        Erratum("copies", "γ starts as a random normal number, which may be close to 0.",
                "It starts as 1.", "test_gamma_starts_at_one"),
        Erratum("copies", "Each head is as wide as the input.",
                "A head has C/h channels, as in other transformers.", "test_heads_divide_the_channels"),
    ],
)
class UFOAttention(nn.Module):
    """UFO attention: y = W_o [y_1; …; y_h] + b_o, in each head y = XN(Q) XN(KᵀV) with XN(a) = γ a / ‖a‖.

    Q, K and V are N × d, linear layers of the tokens split into h heads of d = C/h channels. XN divides by Euclidean
    lengths along the axis at which the two factors meet: each query by its own, each column of the d × d matrix KᵀV by
    that over the channels of the keys. So every number that a head puts out is a cosine,

        y_ie = γ² cos(Q_i, Σ_n V_ne K_n),

    and N tokens cost N · d² instead of N² · d. Nothing changes if Q, K or V are multiplied by a positive number, or if
    every token comes twice. One γ for each head serves both norms. A length is never taken as less than ε; the paper
    has no ε. KᵀV is summed in float32 at least.

    Args:
        channels: C, at least 1.
        heads: h, divides C.
        bias: whether W_q, W_k and W_v have one.
        layout: "B C H W" or "B N C".
        epsilon: ε > 0, the least length to divide by.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), or both (B, N, C); any sizes.

    Raises:
        ValueError: for an argument out of range, or an input of another layout or number of channels.

    Paper:
        Song, UFO-ViT: High Performance Linear Vision Transformer without Softmax, 2021, arXiv 2109.14382.
    """

    def __init__(self, channels: int, *, heads: int = 8, bias: bool = True, layout: str = "B C H W",
                 epsilon: float = 1e-12):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.heads = check_int("heads", heads)
        check_divisible("channels", channels, "heads", heads)
        check_choice("layout", layout, LAYOUTS)
        self.layout = layout
        self.epsilon = check_positive("epsilon", epsilon, "without it a query of zeros gives 0/0")
        self.Wq, self.Wk, self.Wv = (nn.Linear(channels, channels, bias=bias) for _ in range(3))
        self.gamma = nn.Parameter(torch.ones(heads))
        self.Wo = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(x, self.layout, {"C": self.channels})
        tokens = to_tokens(x)
        q, k, v = (rearrange(W(tokens), "B N (h d) -> B h N d", h=self.heads) for W in (self.Wq, self.Wk, self.Wv))
        q = tap("Q", self._xnorm(q, -1), "B h N d")
        kv = in_float32(lambda k, v: k.transpose(-2, -1) @ v, k, v)  # a sum over the tokens
        kv = tap("KV", self._xnorm(kv, -2).to(q.dtype), "B h d d")
        y = tap("heads", q @ kv, "B h N d")
        return tap("y", from_tokens(self.Wo(rearrange(y, "B h N d -> B N (h d)")), x), self.layout)

    def _xnorm(self, a: Tensor, dim: int) -> Tensor:
        """XN(a): γ of the head times a over its length along an axis; squares are summed in float32 at least."""
        dtype = torch.promote_types(a.dtype, torch.float32)
        length = torch.linalg.vector_norm(a, dim=dim, keepdim=True, dtype=dtype).clamp(min=self.epsilon)
        return (a * (self.gamma[:, None, None] / length)).to(a.dtype)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, heads={self.heads}, layout={self.layout!r}"
