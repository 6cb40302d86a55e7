"""Axial attention: every pixel asks its row, then its column, and so has asked the whole map."""

import torch
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_feature_map, check_int, check_positive
from ..ops import SelfAttention
from ..tap import tap

AXES = {"row": "H W", "column": "W H"}  # the axes that stay apart, the one along which pixels attend
FORMS = ("sequence", "sum")


class AxialBlock(nn.Module):
    """Pre-norm block along one axis: x' = x + Attention(LN(x)), then x'' = x' + W_2 f(W_1 LN(x')), f(x) = x σ(1.702 x).

    Attention is softmax attention with h heads among the pixels of a row (along the width), or of a column, each apart
    from all others. Causal, a pixel sees itself and those before it: left of it in its row, above it in its column.

    Args:
        channels: C, at least 1.
        axis: "row" or "column".
        heads: h, divides C.
        mlp_ratio: hidden width over C, above 0, rounded down.
        qkv_bias: whether the matrices of q, k and v have a bias.
        causal: whether a pixel sees only those before it.

    Shape:
        x (B, C, H, W) → x'' (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.
    """

    def __init__(self, channels: int, *, axis: str = "row", heads: int = 8, mlp_ratio: float = 1.0,
                 qkv_bias: bool = True, causal: bool = False):
        super().__init__()
        self.channels = check_int("channels", channels)
        check_choice("axis", axis, AXES)
        hidden = check_int("channels * mlp_ratio", int(channels * check_positive("mlp_ratio", mlp_ratio)))
        self.axis, self.causal = axis, causal
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = SelfAttention(channels, check_int("heads", heads), qkv_bias=qkv_bias)
        self.W1, self.W2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        x = _lines(x, self.axis)
        x = x + _attend_along(self.attention, self.norm1(x), self.axis, self.causal)
        hidden = self.W1(self.norm2(x))
        x = x + self.W2(hidden * torch.sigmoid(1.702 * hidden))
        return tap(f"x_{self.axis}", _map(x, self.axis), "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, axis={self.axis!r}, causal={self.causal}"


@register(
    "axial",
    family="self_attention",
    name="Axial attention",
    summary="It reaches every pixel of the map in two steps, along the row and along the column, and never compares "
            "all pairs.",
    aliases=("Axial", "axial attention", "Axial Transformer"),
    action="mix",
    papers=[Paper(
        key="ho2019axial", venue="arXiv", year=2019, arxiv="1912.12180",
        title="Axial Attention in Multidimensional Transformers",
        code="https://github.com/google-research/google-research/tree/master/axial",
    )],
    layout="B C H W",
    example=dict(channels=16, heads=4),
    measured=dict(channels=64),
    variants={
        "causal columns": dict(channels=6, heads=2, height=12, width=16, mlp_ratio=2.0, causal="column"),
        "sum": dict(channels=8, heads=2, form="sum", qkv_bias=False),
    },
    commutes_with={"row_column_permutation", "translation", "flip_h", "flip_w"},
    builds_on=("mhsa",),
    reduces_to={
        "identity": "W_o = W_2 = 0 in every block, with their biases",
        "self-attention": "a single row, and W_o = W_2 = 0 for the columns: of all pixels, in a pre-norm block",
    },
    errata=[
        Erratum(
            "package", "axial-attention adds the attentions of both axes, of the same input, without norm, residual "
            "and MLP, and its q, k and v have no bias.",
            "Blocks in sequence, each with its MLP, as in the authors' release; form='sum', qkv_bias=False is the "
            "package's.",
            "test_the_sum_equals_the_package"),
        Erratum(
            "copies", "They say that on a single row the sum is full attention.",
            "The sequence's row block is; the sum adds to it what the columns, of one pixel each, make of every pixel.",
            "test_on_one_row_the_sum_is_full_attention_and_a_linear_map"),
        Erratum(
            "copies", "Positions are added in every layer, or inside the attention as in Axial-DeepLab, which is "
            "another operator.",
            "A vector for each row and one for each column, added once to the input.",
            "test_the_comparison_with_the_paper_notices"),
        Erratum(
            "copies", "The MLP has a GELU or a ReLU.",
            "x σ(1.702 x), as in the release.",
            "test_the_comparison_with_the_paper_notices"),
    ],
)
class AxialAttention(nn.Module):
    """Axial attention: x ← Block_column(Block_row(x + P)), each block x + Attention(LN(x)), then x + MLP(LN(x)).

    Attention in a block is among the pixels of one row (or column) alone: softmax attention with h heads. After a row
    and a column every pixel has reached every other, at H + W comparisons a pixel in place of HW. `depth` pairs follow
    each other, each with its own weights (`AxialBlock`). P = P_h[row] + P_w[column] are learned positions, added once.

    For images that are drawn pixel by pixel, the paper's decoder lets a pixel see only those before it on one axis:
    `causal`. Before such layers it shifts the map by a row or a column, so that no pixel sees itself; that is left to
    the caller.

    In the form "sum" there is no block: y = Attention_row(x + P) + Attention_column(x + P).

    Weights of the release: layernorm_attn is norm1, attn's q, k, v and proj_out are Wq, Wk, Wv and Wo, layernorm_mlp is
    norm2, mlp's proj_in and proj_out are W1 and W2 (transposed), pos_embs_h and pos_embs_w Ph and Pw. There W_o and W_2
    start close to zero, and positions with a deviation of 5/√C; here of 1/√C.

    Args:
        channels: C, at least 1.
        heads: h, divides C.
        form: "sequence" or "sum".
        depth: row-column pairs, at least 1; 1 in the form "sum".
        mlp_ratio: hidden width of the MLPs over C, above 0; 1 in the release's configuration.
        height, width: largest H and W, with positions; None for no positions.
        causal: "row" or "column", whose pixels see only those before them, or None.
        qkv_bias: whether the matrices of q, k and v have a bias.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H ≤ height, W ≤ width; any H, W ≥ 1 without positions.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels, or larger
            than height × width.

    Paper:
        Ho, Kalchbrenner, Weissenborn and Salimans, Axial Attention in Multidimensional Transformers, 2019,
        arXiv 1912.12180.
    """

    def __init__(self, channels: int, *, heads: int = 8, form: str = "sequence", depth: int = 1,
                 mlp_ratio: float = 1.0, height: int | None = None, width: int | None = None,
                 causal: str | None = None, qkv_bias: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        check_int("heads", heads)
        check_int("depth", depth)
        check_choice("form", form, FORMS)
        check_choice("causal", causal, (*AXES, None))
        self.form, self.causal, self.height, self.width = form, causal, height, width
        if form == "sequence":
            self.blocks = nn.Sequential(*(
                AxialBlock(channels, axis=axis, heads=heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias,
                           causal=axis == causal) for _ in range(depth) for axis in AXES))
        elif depth > 1:
            raise ValueError(f"depth={depth} must be 1 with form='sum', which has no residual to build on")
        else:
            self.row, self.column = (SelfAttention(channels, heads, qkv_bias=qkv_bias) for _ in range(2))
        if (height, width) != (None, None):
            self.Ph = nn.Parameter(torch.randn(check_int("height", height), channels) * channels**-0.5)
            self.Pw = nn.Parameter(torch.randn(check_int("width", width), channels) * channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        if self.height is not None:
            x = tap("x_P", x + self.positions(*x.shape[2:]).to(x.dtype), "B C H W")
        if self.form == "sequence":
            return tap("y", self.blocks(x), "B C H W")
        y_row, y_column = (
            tap(f"y_{axis}", _map(_attend_along(attention, _lines(x, axis), axis, axis == self.causal), axis),
                "B C H W") for axis, attention in (("row", self.row), ("column", self.column)))
        return tap("y", y_row + y_column, "B C H W")

    def positions(self, H: int, W: int) -> Tensor:
        """P (C, H, W), of the first H rows and W columns."""
        assert self.height is not None and self.width is not None
        for axis, size, name, most in (("H", H, "height", self.height), ("W", W, "width", self.width)):
            if size > most:
                raise ValueError(f"x has {axis}={size}; it must be at most {name}={most}, beyond it are no positions")
        return rearrange(self.Ph[:H, None] + self.Pw[:W], "H W C -> C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, form={self.form!r}, height={self.height}, width={self.width}"


def _lines(x: Tensor, axis: str) -> Tensor:
    """A map (B, C, H, W) as its rows (B, H, W, C), or as its columns (B, W, H, C)."""
    return rearrange(x, f"B C H W -> B {AXES[axis]} C")


def _map(x: Tensor, axis: str) -> Tensor:
    return rearrange(x, f"B {AXES[axis]} C -> B C H W")


def _attend_along(attention: SelfAttention, lines: Tensor, axis: str, causal: bool) -> Tensor:
    N = lines.shape[2]
    mask = lines.new_full((N, N), -torch.inf).triu(1) if causal else None
    return attention(lines, bias=mask, dims=f"B {AXES[axis]}")
