"""Vision Permutator: mixes along columns, rows and channels with dense layers, and weighs the three answers."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_divisible, check_int, check_tensor
from ..tap import tap


@register(
    "vip",
    family="mlp",
    name="Weighted Permute-MLP",
    summary="It lets a position learn from its whole row and column by weights that know every position by number.",
    aliases=("ViP", "Vision Permutator", "Permute-MLP"),
    action="mix",
    papers=[Paper(
        key="hou2022vision", venue="TPAMI", year=2023, arxiv="2106.12368",
        title="Vision Permutator: A Permutable MLP-Like Architecture for Visual Recognition",
        code="https://github.com/houqb/VisionPermutator",
    )],
    layout="B C H W",
    example=dict(channels=64, height=12, width=16, segments=4),
    variants={
        "plain": dict(channels=12, height=12, width=16, segments=3, weighted=False),
        "one segment, biases": dict(channels=6, height=12, width=16, segments=1, reduction=2, bias=True),
    },
    reduces_to={
        "linear channel MLP": "plain, W_H = W_W = 0",
        "convolution": "plain, W_W = W_C = 0, W_H depends on i − i′ alone",
        "token mixing": "plain, W_W = W_C = 0, a map of one column, S = 1",
    },
    errata=[
        Erratum("release",
                "All layers are C × C, so that it runs where H·S = W·S = C alone: the number of groups, 8 unless told "
                "otherwise, must be H and W.",
                "W_H and W_W follow H, W and S, which are free.",
                "test_equals_the_paper"),
        Erratum("package",
                "einops' documentation gives the name `WeightedPermuteMLP` to the plain layer.",
                "The plain one is `weighted=False`.",
                "test_branches_equal_the_mixing_layers_of_einops"),
        Erratum("copies",
                "The height branch is summed twice and the channel branch not at all, for some weeks of 2021.",
                "Every branch is summed once.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("copies",
                "The branch for the width mixes the height once more.",
                "It mixes the width: together the branches reach a cross.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("copies",
                "The branches get their weights in the order C, W, H.",
                "They get them in the order H, W, C, as in the release.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("copies",
                "A dropout of 0.1 stands behind the logits of the branches.",
                "There is none, as in the release.",
                "test_the_comparison_with_the_paper_notices"),
    ],
)
class WeightedPermuteMLP(nn.Module):
    """Weighted Permute-MLP: y = W_P m + b_P, m = Σ_k a_k ⊙ X_k over three linear branches k = H, W, C.

    The C channels are numbered c = gS + s: G = C/S groups of S neighbours. One matrix W_H mixes the H·S numbers
    of a group in one column of the map, one matrix W_W the W·S numbers of a group in one row, W_C all channels
    of one position:

        X_H[g, s, i, j] = Σ_{i′, s′} W_H[(i, s), (i′, s′)] x[g, s′, i′, j],
        X_W[g, s, i, j] = Σ_{j′, s′} W_W[(j, s), (j′, s′)] x[g, s′, i, j′],
        X_C[c, i, j]    = Σ_{c′} W_C[c, c′] x[c′, i, j].

    The weights come from split attention, for every channel a softmax over the three branches:

        z = mean of X_H + X_W + X_C over H and W,   a[c] = softmax over k of (W₂ GELU(W₁ z + b₁) + b₂)[3c + k].

    The paper sets S so that H·S = W·S = C. Other S, and H ≠ W, only change the shapes of W_H and W_W. The
    release's `segment_dim` is G, and it takes (B, H, W, C).

    Args:
        channels: C, at least 1.
        height: H of every input, at least 1.
        width: W of every input, at least 1.
        segments: S, a divisor of C. None means C/H where H = W, as in the paper.
        weighted: False leaves the split attention out: y = W_P (X_H + X_W + X_C) + b_P, the paper's Permute-MLP.
        reduction: r, from 1 to C; the hidden layer of the split attention has Cr = C/r channels, rounded down.
        bias: whether W_H, W_W and W_C carry biases (`qkv_bias` in the release, which has no q, k or v).

    Shape:
        x (B, C, H, W) → (B, C, H, W), for the one H and W that it was made for.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels, H × W.

    Paper:
        Hou, Jiang, Yuan, Cheng, Yan and Feng, Vision Permutator: A Permutable MLP-Like Architecture for Visual
        Recognition, TPAMI 2023, arXiv 2106.12368.
    """

    def __init__(self, channels: int, *, height: int, width: int, segments: int | None = None, weighted: bool = True,
                 reduction: int = 4, bias: bool = False):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.height, self.width = check_int("height", height), check_int("width", width)
        self.segments = S = _segments(channels, height, width) if segments is None else check_int("segments", segments)
        check_divisible("channels", channels, "segments", S)
        self.reduction = check_int("reduction", reduction)
        self.Wh = nn.Linear(height * S, height * S, bias=bias)
        self.Ww = nn.Linear(width * S, width * S, bias=bias)
        self.Wc = nn.Conv2d(channels, channels, 1, bias=bias)
        self.weighted = weighted
        if weighted:
            check_at_most("reduction", reduction, "channels", channels)
            self.W1 = nn.Linear(channels, channels // reduction)
            self.W2 = nn.Linear(channels // reduction, 3 * channels)
        self.Wp = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(x, "B C H W", {"C": self.channels, "H": self.height, "W": self.width})
        columns = rearrange(x, "B (G S) H W -> B G W (H S)", S=self.segments)
        rows = rearrange(x, "B (G S) H W -> B G H (W S)", S=self.segments)
        X_H = tap("X_H", rearrange(self.Wh(columns), "B G W (H S) -> B (G S) H W", S=self.segments), "B C H W")
        X_W = tap("X_W", rearrange(self.Ww(rows), "B G H (W S) -> B (G S) H W", S=self.segments), "B C H W")
        X_C = tap("X_C", self.Wc(x), "B C H W")
        if not self.weighted:
            m = tap("m", X_H + X_W + X_C, "B C H W")
            return tap("y", self.Wp(m), "B C H W")
        z = tap("z", (X_H + X_W + X_C).mean((2, 3)), "B C")
        a = tap("a", self.W2(F.gelu(self.W1(z))).unflatten(1, (-1, 3)).softmax(2), "B C 3")
        a_H, a_W, a_C = a[..., None, None].unbind(2)  # B C 1 1 each
        m = tap("m", a_H * X_H + a_W * X_W + a_C * X_C, "B C H W")
        return tap("y", self.Wp(m), "B C H W")

    def extra_repr(self) -> str:
        return (f"channels={self.channels}, height={self.height}, width={self.width}, segments={self.segments}, "
                f"weighted={self.weighted}")


def _segments(channels: int, height: int, width: int) -> int:
    """The paper's S = C/H = C/W, with which every layer is C × C."""
    if height != width:
        raise ValueError(f"segments=None must be a number where height={height} and width={width} differ")
    return check_divisible("channels", channels, "height", height)
