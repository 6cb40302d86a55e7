"""Squeeze-enhanced axial attention: rows attend to rows and columns to columns, beside a convolution (SeaFormer)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_feature_map, check_int, check_positive
from ..ops import attend, resize, strip_means
from ..tap import tap


@register(
    "seaformer",
    family="self_attention",
    name="Squeeze-enhanced axial attention",
    summary="It attends between means of rows and between means of columns, and puts the detail back by a convolution.",
    aliases=("SeaFormer", "SEA attention", "squeeze-enhanced axial attention"),
    action="gate",
    papers=[Paper(
        key="wan2023seaformer", venue="ICLR", year=2023, arxiv="2301.13156",
        title="SeaFormer: Squeeze-enhanced Axial Transformer for Mobile Semantic Segmentation",
        code="https://github.com/fudan-zvg/SeaFormer",
    )],
    layout="B C H W",
    example=dict(channels=16, key_dim=4, heads=2),
    measured=dict(channels=64),
    variants={"narrow": dict(channels=6, key_dim=2, heads=3, attn_ratio=1.5, positions=5, zero_init=False)},
    builds_on=("coord", "mhsa"),
    reduces_to={
        "self-attention": "a map of one row, no positions: y_col comes of pixels that attend to all, in the gate",
        "mean": "q = 0, no positions: y_row and y_col come of the mean of v, in the gate",
    },
    errata=[
        Erratum(
            "release",
            "In the file for segmentation the detail branch has twice as many channels as v, and fails unless "
            "attn_ratio is 2.",
            "It has those of q, k and v together, as in the file for classification.",
            "test_trap_a_detail_branch_that_fits_one_ratio"),
        Erratum(
            "release",
            "Three of its norms start with γ = 0, so that the gate is ½ everywhere and nothing but the detail branch "
            "and the gate's norm learns at first.",
            "The same by default; `zero_init=False` starts them at 1.",
            "test_trap_at_the_start_the_gate_is_a_half_and_attention_does_not_learn"),
        Erratum(
            "copies",
            "They call layers of another package, or some that are nowhere defined.",
            "Layers of torch alone.",
            "test_trap_nothing_but_torch_is_needed"),
        Erratum(
            "copies",
            "Positions are made for one size.",
            "They are learned at 16 places and interpolated to the height and to the width of the map.",
            "test_trap_positions_fit_every_size"),
    ],
)
class SeaAttention(nn.Module):
    """Squeeze-enhanced axial attention: y = hσ(BN(W_o φ(v + y_row + y_col))) · detail, φ = ReLU6, hσ(x) = φ(x + 3)/6.

    q, k and v are 1×1 convolutions of x with BN. Their means over each row, H of them, attend to each other, and so do
    the W means over each column:

        y_row = BN(W_row φ(softmax((q̄ + r^q)(k̄ + r^k)ᵀ / √d) v̄)),   the same for y_col,

    with h heads of d channels in q and k. The results are added to v along their axis. r^q and r^k are learned at
    16 places and interpolated linearly, and v̄ has none. The detail branch sees what the means lost:

        detail = BN(W_d φ(BN(depthwise 3 × 3 convolution of [q; k; v]))).

    No convolution has a bias. The cost of the attention grows with H² + W², not with (HW)².

    To load the release's weights, of which each `.c` is a convolution and `.bn` its norm: `to_q`, `to_k`, `to_v` are
    Wq, Wk, Wv with norm_q, norm_k, norm_v; `proj_encode_row.1` is Wrow, norm_row; `proj_encode_column.1` is Wcol,
    norm_col; `proj.1` is Wo, norm_o; `dwconv` is DW, norm_dw; `pwconv` is Wd, norm_d; `pos_emb_rowq.pos_embed`, without
    its first axis, is rq_row, and so on.

    Args:
        channels: C, at least 1.
        key_dim: d.
        heads: h; 8 in the release for segmentation, 4 in its smaller models.
        attn_ratio: channels of v over those of q, per head; rounded down. 2 in the paper.
        positions: places at which r is learned; 16 in the release.
        zero_init: start the norms of y_row, y_col and the gate with γ = 0: a fresh module is half its detail branch.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or, in training, a
            single image of one row or column, whose mean has no variance.

    Paper:
        Wan, Huang, Lu, Yu and Zhang, SeaFormer: Squeeze-enhanced Axial Transformer for Mobile Semantic Segmentation,
        ICLR 2023, arXiv 2301.13156.
    """

    def __init__(self, channels: int, *, key_dim: int = 16, heads: int = 8, attn_ratio: float = 2.0,
                 positions: int = 16, zero_init: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.key_dim = check_int("key_dim", key_dim)
        self.heads = check_int("heads", heads)
        self.attn_ratio = check_positive("attn_ratio", attn_ratio)
        check_int("positions", positions)
        Ck = heads * key_dim
        Cv = heads * check_int("int(attn_ratio * key_dim)", int(attn_ratio * key_dim))

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 1, bias=False)

        self.Wq, self.Wk, self.Wv = conv(channels, Ck), conv(channels, Ck), conv(channels, Cv)
        self.norm_q, self.norm_k, self.norm_v = nn.BatchNorm2d(Ck), nn.BatchNorm2d(Ck), nn.BatchNorm2d(Cv)
        self.rq_row, self.rk_row, self.rq_col, self.rk_col = (
            nn.Parameter(torch.randn(Ck, positions)) for _ in range(4))
        self.Wrow, self.norm_row = conv(Cv, Cv), nn.BatchNorm2d(Cv)
        self.Wcol, self.norm_col = conv(Cv, Cv), nn.BatchNorm2d(Cv)
        self.Wo, self.norm_o = conv(Cv, channels), nn.BatchNorm2d(channels)
        all_three = 2 * Ck + Cv
        self.DW = nn.Conv2d(all_three, all_three, 3, padding=1, groups=all_three, bias=False)
        self.norm_dw = nn.BatchNorm2d(all_three)
        self.Wd, self.norm_d = conv(all_three, channels), nn.BatchNorm2d(channels)
        if zero_init:
            for norm in (self.norm_row, self.norm_col, self.norm_o):
                nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        if self.norm_row.training and len(x) * min(x.shape[2:]) == 1:
            raise ValueError(f"x has shape {tuple(x.shape)}; in training it must hold 2 images or more, or 2 rows and "
                             "columns or more, for the BN of their means")
        q, k, v = self.norm_q(self.Wq(x)), self.norm_k(self.Wk(x)), self.norm_v(self.Wv(x))
        q_row, q_col, k_row, k_col, v_row, v_col = (mean for t in (q, k, v) for mean in strip_means(t))  # squeeze

        y_row = self.along("row", _placed(q_row, self.rq_row), _placed(k_row, self.rk_row), v_row)
        y_col = self.along("col", _placed(q_col, self.rq_col), _placed(k_col, self.rk_col), v_col)
        y_row = tap("y_row", self.norm_row(self.Wrow(F.relu6(y_row)[..., None])), "B Ce H 1")
        y_col = tap("y_col", self.norm_col(self.Wcol(F.relu6(y_col)[:, :, None])), "B Ce 1 W")
        v = tap("v", v, "B Ce H W")
        logits = self.norm_o(self.Wo(F.relu6(v + y_row + y_col)))
        gate = tap("g", F.relu6(logits + 3) / 6, "B C H W")  # F.hardsigmoid, which has no second derivative

        detail = F.relu6(self.norm_dw(self.DW(torch.cat((q, k, v), 1))))
        detail = tap("detail", self.norm_d(self.Wd(detail)), "B C H W")
        return tap("y", gate * detail, "B C H W")

    def along(self, axis: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the rows, or of the columns, to each other (B, Ce, N)."""
        N = {"row": "H", "col": "W"}[axis]
        q, k, v = (rearrange(t, "B (h d) N -> B h N d", h=self.heads) for t in (q, k, v))
        q, k = tap(f"q_{axis}", q, f"B h {N} d"), tap(f"k_{axis}", k, f"B h {N} d")
        return rearrange(attend(q, k, v, name=f"A_{axis}", dims=f"B h {N} {N}"), "B h N d -> B (h d) N")

    def extra_repr(self) -> str:
        names = ("channels", "key_dim", "heads", "attn_ratio")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _placed(t: Tensor, r: Tensor) -> Tensor:
    """Means (B, C, N) with positions r (C, places) at N places between."""
    return t + resize(r[None, :, :, None], t.shape[2], 1)[..., 0].to(t.dtype)
