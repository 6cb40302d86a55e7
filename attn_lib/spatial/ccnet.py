"""Criss-cross attention: every pixel looks along its row and column, twice, and so sees the whole image."""

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_feature_map, check_int
from ..ops import in_float32
from ..tap import tap


@register(
    "ccnet",
    family="spatial",
    name="Criss-cross attention",
    summary="It lets every pixel learn from every other at the price of its row and its column.",
    aliases=("CCA", "CCNet", "criss-cross"),
    action="mix",
    papers=[Paper(
        key="huang2019ccnet", venue="ICCV", year=2019, arxiv="1811.11721",
        title="CCNet: Criss-Cross Attention for Semantic Segmentation",
        code="https://github.com/speedinghzl/CCNet",
    )],
    layout="B C H W",
    example=dict(channels=64),
    variants={
        "one loop": dict(channels=16, recurrence=1),
        "three loops": dict(channels=6, reduction=2, recurrence=3),
    },
    identity_at_init=True,
    commutes_with={"row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    builds_on=("non_local",),
    reduces_to={"identity": "γ = 0, where it starts", "self-attention": "a map of one row, R = 1"},
    errata=[
        Erratum("paper",
                "Equation 2 has no γ, which is γ = 1.",
                "γ is learned and starts at 0 as in the release, so that a fresh module changes nothing.",
                "test_a_fresh_module_is_the_identity_bit_for_bit"),
        Erratum("release",
                "The number of loops is in no checkpoint: left out, it is 0 in training and 1 in evaluation, where the "
                "paper has 2.",
                "It is 2; any other takes the same weights.",
                "test_recurrence_shares_its_weights"),
        Erratum("release",
                "The PyTorch version makes its mask on a GPU, and cannot run without one.",
                "The mask is made where x is.",
                "test_the_mask_is_made_where_the_input_is"),
        Erratum("copies",
                "The mask is made on the CPU, and cannot be added to a map that is elsewhere.",
                "The mask is made where x is.",
                "test_the_mask_is_made_where_the_input_is"),
    ],
)
class CrissCrossAttention(nn.Module):
    """Criss-cross attention: softmax attention of each position u to the H+W−1 of its row and its column.

    With Q, K, V = 1×1 convolutions of the feature map x, which the paper calls H in bold, and Ω_u, Φ_u the vectors
    of K and V that lie in the row or the column of u, one loop computes

        d_{i,u} = Q_u · Ω_{i,u},   A = softmax of D over i,   x′_u = γ Σ_i A_{i,u} Φ_{i,u} + x_u,

    and R loops with the same weights give x′, x″, … The logits are not scaled by 1/√Cr. γ is a
    learned scalar that starts at 0.

    The last axis of D and A holds the H positions of the column, then the W of the row. The position u itself
    is in both: it counts in the row; in the column its d is −∞ and its A exactly 0. Memory grows as HW·(H+W).

    Args:
        channels: C, at least 1.
        reduction: r, from 1 to C; Q and K have Cr = C/r channels (the paper's C′), rounded down. The release has 8.
        recurrence: R, at least 1. From R = 2 on every position depends on every other.

    Shape:
        x (B, C, H, W) → (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Huang, Wang, Huang, Huang, Wei and Liu, CCNet: Criss-Cross Attention for Semantic Segmentation,
        ICCV 2019, arXiv 1811.11721.
    """

    def __init__(self, channels: int, *, reduction: int = 8, recurrence: int = 2):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.reduction = check_int("reduction", reduction)
        self.recurrence = check_int("recurrence", recurrence)
        check_at_most("reduction", reduction, "channels", channels)
        self.Wq = nn.Conv2d(channels, channels // reduction, 1)
        self.Wk = nn.Conv2d(channels, channels // reduction, 1)
        self.Wv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        for r in range(self.recurrence):
            x = self.loop(x, "'" * r)
        return x

    def loop(self, x: Tensor, prime: str = "") -> Tensor:
        """One pass over rows and columns; `prime` tells its symbols from those of other passes (A, A′, …)."""
        Q = tap("Q" + prime, self.Wq(x), "B Cr H W")
        K = tap("K" + prime, self.Wk(x), "B Cr H W")
        V = tap("V" + prime, self.Wv(x), "B C H W")
        H, W = x.shape[2:]

        column = in_float32(torch.einsum, "BCHW,BCiW->BHWi", Q, K)  # B H W H
        row = in_float32(torch.einsum, "BCHW,BCHi->BHWi", Q, K)     # B H W W
        i = torch.arange(H, device=x.device)
        u = (i[:, None] == i)[:, None]    # i = y, which the row holds as well
        D = torch.cat([column.masked_fill(u, -torch.inf), row], -1)
        D = tap("D" + prime, D, "B H W H+W")            # affinity, eq. 1
        A = tap("A" + prime, D.softmax(-1), "B H W H+W")

        column, row = A.to(V.dtype).split([H, W], -1)
        context = torch.einsum("BHWi,BCiW->BCHW", column, V) + torch.einsum("BHWi,BCHi->BCHW", row, V)
        gamma = self.gamma.to(context.dtype)  # under autocast
        return tap(f"H{prime}'", x + gamma * context, "B C H W")  # aggregation, eq. 2

    def extra_repr(self) -> str:
        return f"channels={self.channels}, reduction={self.reduction}, recurrence={self.recurrence}"
