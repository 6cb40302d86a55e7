"""Multi-head self-attention on a feature map, with positions in two dimensions (BoTNet)."""

import torch
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_choice, check_divisible, check_feature_map, check_int
from ..ops import attend, relative_logits
from ..tap import tap

POSITIONS = ("relative", "absolute", None)


@register(
    "mhsa",
    family="self_attention",
    name="Multi-head self-attention",
    summary="It lets every position ask all others, by what they hold and by where they lie.",
    aliases=("MHSA", "BoTNet", "bottleneck transformer"),
    action="mix",
    papers=[Paper(
        key="srinivas2021bottleneck", venue="CVPR", year=2021, arxiv="2101.11605",
        title="Bottleneck Transformers for Visual Recognition",
        code="https://gist.github.com/aravindsrinivas/56359b79f0ce4449bcb04ab4b56a57a2",
    )],
    layout="B C H W",
    example=dict(channels=64, height=12, width=16),
    variants={
        "absolute": dict(channels=12, heads=3, height=12, width=16, position="absolute"),
        "no positions": dict(channels=6, heads=1, position=None),
    },
    builds_on=("non_local",),
    reduces_to={
        "self-attention": "R_h = R_w = 0, or no positions",
        "mean": "W_q = 0: every position gets the mean value",
    },
    counterpart=Counterpart(
        "timm BottleneckAttn", "timm.layers.bottleneck_attn",
        lambda timm, channels, height, width: timm.BottleneckAttn(
            channels, feat_size=(height, width), num_heads=4, dim_head=channels // 4, scale_pos_embed=True)),
    errata=[
        Erratum("paper",
                "Figure 4 adds qkᵀ and qrᵀ, and shows no √d.",
                "Both are divided by √d, as in the ports of the authors' TensorFlow code.",
                "test_equals_the_equations"),
        Erratum("package",
                "timm's `BottleneckAttn` divides the content term alone unless `scale_pos_embed=True`.",
                "Both terms are divided: its tables are ours over √d.",
                "test_timm_leaves_the_position_logits_unscaled_by_default"),
        Erratum("package",
                "bottleneck-transformer-pytorch has absolute positions unless `rel_pos_emb=True`.",
                "Positions are relative unless `position=\"absolute\"`.",
                "test_positions_are_relative_by_default"),
        Erratum("copies",
                "The position term is transposed, r_i · q_j: where all contents are alike it has no effect.",
                "It is q_i · r, the place of the key with the query that asks.",
                "test_trap_of_copies_changes_the_output_even_on_square_maps"),
        Erratum("copies",
                "No logit is divided by √d.",
                "All logits are.",
                "test_trap_of_copies_changes_the_output_even_on_square_maps"),
        Erratum("copies",
                "What is called the width is the height: `rel_w` belongs to the rows, and `rel_h` to the columns.",
                "R_h belongs to the rows, and R_w to the columns.",
                "test_trap_of_copies_changes_the_output_even_on_square_maps"),
    ],
)
class MHSA2d(nn.Module):
    """Multi-head self-attention: y_i = Σ_j softmax_j((q_i · k_j + q_i · r_ij) / √d) v_j over all N = HW positions j.

    q, k and v are 1×1 convolutions of x without biases, split into h heads of d = C/h channels. r is what a query
    finds at a place, whatever is there. `relative`: r_ij = R_h[y_j − y_i] + R_w[x_j − x_i], a vector for each
    distance in rows and one for each in columns, shared by all heads. `absolute`: r_j = R_h[y_j] + R_w[x_j],
    whatever i. There is no output projection: in BoTNet's block the next 1×1 convolution is one.

    The map may be smaller than height × width: the vectors of the distances that occur are used.

    Args:
        channels: C, at least 1.
        heads: h, divides C; 4 in the paper.
        height, width: largest H and W; only needed, and only allowed, with positions.
        position: "relative", "absolute" or None.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H ≤ height, W ≤ width; any H, W ≥ 1 without positions.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels, or larger
            than height × width.

    Paper:
        Srinivas, Lin, Parmar, Shlens, Abbeel and Vaswani, Bottleneck Transformers for Visual Recognition, CVPR 2021,
        arXiv 2101.11605.
    """

    def __init__(self, channels: int, *, heads: int = 4, height: int | None = None, width: int | None = None,
                 position: str | None = "relative"):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.heads = check_int("heads", heads)
        d = check_divisible("channels", channels, "heads", heads)
        check_choice("position", position, POSITIONS)
        self.position = position
        self.Wq, self.Wk, self.Wv = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(3))
        self.height, self.width = height, width
        if position is None:
            for name, value in (("height", height), ("width", width)):
                if value is not None:
                    raise ValueError(f"{name}={value} must be left out with position=None, which takes any size")
            return
        height, width = check_int("height", height), check_int("width", width)
        rows, columns = (height, width) if position == "absolute" else (2 * height - 1, 2 * width - 1)
        self.Rh = nn.Parameter(torch.randn(rows, d) * d**-0.5)
        self.Rw = nn.Parameter(torch.randn(columns, d) * d**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        H, W = x.shape[2:]
        q, k, v = (tap(name, rearrange(conv(x), "B (h d) H W -> B h (H W) d", h=self.heads), "B h N d")
                   for name, conv in (("q", self.Wq), ("k", self.Wk), ("v", self.Wv)))
        scale = q.shape[-1] ** -0.5
        bias = None
        if self.position is not None:
            bias = scale * tap("qr", self.position_logits(q, H, W), "B h N N")
        y = attend(q, k, v, scale=scale, bias=bias, name="A", dims="B h N N")
        return tap("y", rearrange(y, "B h (H W) d -> B (h d) H W", H=H), "B C H W")

    def position_logits(self, q: Tensor, H: int, W: int) -> Tensor:
        """q_i · r_ij (B, h, N, N) for queries q (B, h, N, d)."""
        Rh, Rw = self.positions(H, W)
        if self.position == "absolute":
            r = rearrange(Rh[:, None] + Rw, "H W d -> (H W) d")
            return q @ r.T.expand(*q.shape[:2], -1, -1)
        q = rearrange(q, "B h (H W) d -> B h H W d", H=H)
        rows = rearrange(relative_logits(q.transpose(2, 3), Rh), "B h W H i -> B h (H W) i 1")
        columns = rearrange(relative_logits(q, Rw), "B h H W j -> B h (H W) 1 j")
        return (rows + columns).flatten(3)

    def positions(self, H: int, W: int) -> tuple[Tensor, Tensor]:
        """R_h and R_w as far as a map of H × W needs them."""
        assert self.height is not None and self.width is not None
        for axis, size, name, most in (("H", H, "height", self.height), ("W", W, "width", self.width)):
            if size > most:
                raise ValueError(f"x has {axis}={size}; it must be at most {name}={most}, beyond it are no positions")
        if self.position == "absolute":
            return self.Rh[:H], self.Rw[:W]
        return self.Rh[self.height - H:self.height + H - 1], self.Rw[self.width - W:self.width + W - 1]

    def extra_repr(self) -> str:
        size = "" if self.position is None else f", height={self.height}, width={self.width}"
        return f"channels={self.channels}, heads={self.heads}{size}, position={self.position!r}"
