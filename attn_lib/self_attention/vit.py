"""The vision transformer: an image is a sentence of patches, and every patch asks all others."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_divisible, check_int, check_positive, check_tensor
from ..ops import SelfAttention
from ..tap import tap

GELU = ("none", "tanh")
POOLS = ("token", "mean")


@register(
    "vit",
    family="self_attention",
    name="Vision transformer",
    summary="It cuts the image into patches and lets each ask all others from the first layer on, with no convolution.",
    aliases=("ViT", "Vision Transformer", "transformer encoder block"),
    action="mix",
    papers=[Paper(
        key="dosovitskiy2021image", venue="ICLR", year=2021, arxiv="2010.11929",
        title="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        code="https://github.com/google-research/vision_transformer",
    )],
    layout="B N C",
    example=dict(channels=24, heads=3),
    measured=dict(channels=64, heads=4),
    variants={"release": dict(channels=8, heads=2, mlp_ratio=2.5, approximate="tanh")},
    commutes_with={"spatial_permutation", "translation"},
    builds_on=("mhsa",),
    reduces_to={
        "identity": "W_o = W_2 = 0, with their biases",
        "self-attention": "W_2 = b_2 = 0: of the normalised tokens, added to them",
    },
    errata=[
        Erratum(
            "release", "Its GELU is the approximation by tanh.",
            "The exact GELU, as the paper's text says; approximate='tanh' is the release's.",
            "test_release_gelu_is_an_approximation"),
        Erratum(
            "copies", "Layer normalisation with torch's default ε = 1e-5.",
            "1e-6, as in the release; it counts where the tokens of a layer are small.",
            "test_the_comparison_with_the_paper_notices"),
        Erratum(
            "copies", "They normalise behind the sums, or leave out the last normalisation of the network.",
            "In front of both halves of every block, and once more behind the last.",
            "test_the_comparison_with_the_paper_notices"),
        Erratum(
            "release", "A row or column of pixels that fills no patch is dropped without a word.",
            "VisionTransformer refuses such an image and names sizes that it takes.",
            "test_a_remainder_is_refused_and_not_dropped"),
        Erratum(
            "release", "For images of another size it resizes the positions of square grids alone.",
            "`resize_positions` takes any grid, and does to square ones what the release does.",
            "test_positions_are_resized_with_corners_on_corners"),
        Erratum(
            "copies", "They add positions to the patches alone.",
            "The class token has a position as well.",
            "test_the_comparison_of_the_network_notices"),
    ],
)
class EncoderBlock(nn.Module):
    """Encoder block of the vision transformer: z' = MSA(LN(z)) + z, then z'' = MLP(LN(z')) + z'.

    MSA is self-attention with h heads: softmax(q kᵀ / √d) v for each, d = C/h, joined and multiplied by W_o. The MLP is
    W_2 GELU(W_1 z), hidden width mlp_ratio · C, for each token alone. LN normalises each token over its channels. All
    matrices have a bias; that of the keys adds the same to every logit of a query and changes nothing.

    The block does not know where a token lies. Positions enter once, in front of the first block: see
    `VisionTransformer`, the whole network. Matrices start as Glorot's uniform ones, as in the release.

    Weights of the release: LayerNorm_0 is norm1, MultiHeadDotProductAttention_1's query, key, value and out are Wq, Wk,
    Wv and Wo of MSA, LayerNorm_2 is norm2, MlpBlock_3's Dense_0 and Dense_1 are W1 and W2. Its kernels are in × out
    (those of the heads in × h × d and h × d × out): flatten and transpose them.

    Args:
        channels: C, the width of a token, at least 1.
        heads: h, divides C; 12 in ViT-B.
        mlp_ratio: hidden width of the MLP over C, above 0, rounded down; 4 in the paper's models.
        approximate: "none" for GELU(x) = x Φ(x), "tanh" for the release's approximation.
        dropout: rate in training, behind W_o, GELU and W_2, from 0 to below 1; the paper has 0.1 on ImageNet, and 0 on
            the largest data set.
        epsilon: ε of LN, above 0.

    Shape:
        z (B, N, C) → z'' (B, N, C), any N ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not tokens of C channels.

    Paper:
        Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, ICLR 2021,
        arXiv 2010.11929.
    """

    def __init__(self, channels: int, *, heads: int = 12, mlp_ratio: float = 4.0, approximate: str = "none",
                 dropout: float = 0.0, epsilon: float = 1e-6):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.heads = check_int("heads", heads)
        check_choice("approximate", approximate, GELU)
        self.approximate = approximate
        hidden = check_int("channels * mlp_ratio", int(channels * check_positive("mlp_ratio", mlp_ratio)))
        check_positive("epsilon", epsilon)
        self.norm1, self.norm2 = (nn.LayerNorm(channels, eps=epsilon) for _ in range(2))
        self.MSA = SelfAttention(channels, heads)
        self.W1, self.W2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.dropout = nn.Dropout(_rate(dropout))
        for W in (self.MSA.Wq, self.MSA.Wk, self.MSA.Wv, self.MSA.Wo, self.W1, self.W2):
            nn.init.xavier_uniform_(W.weight)
            nn.init.normal_(W.bias, std=1e-6) if W in (self.W1, self.W2) else nn.init.zeros_(W.bias)

    def forward(self, z: Tensor) -> Tensor:
        check_tensor(z, "B N C", {"C": self.channels}, name="z")
        z = tap("z'", self.dropout(self.MSA(self.norm1(z))) + z, "B N C")  # eq. 2
        return tap("z''", self.dropout(self.MLP(self.norm2(z))) + z, "B N C")  # eq. 3

    def MLP(self, z: Tensor) -> Tensor:
        """W_2 GELU(W_1 z)"""
        return self.W2(self.dropout(F.gelu(self.W1(z), approximate=self.approximate)))

    def extra_repr(self) -> str:
        return f"channels={self.channels}, heads={self.heads}, approximate={self.approximate!r}"


class VisionTransformer(nn.Module):
    """Vision transformer: z = [x_class; E patch_1; …; E patch_N] + E_pos, L encoder blocks, y = LN(z_class), W_head y.

    The image is cut into N patches of P × P pixels, row by row, and E, a convolution with stride P, makes a token of
    each. A learned class token comes first; E_pos, a learned vector for each place, is added to all N + 1. The answer
    is read from the class token, or, with `pool="mean"`, from the mean of all tokens, none of which is then a class.
    The paper trains first with a hidden layer, W_head tanh(W_rep y), and fine-tunes without.

    The class token and W_head start at zero, E_pos normal with deviation 0.02. Weights of the release: embedding is E,
    cls x_class, pos_embedding Epos, encoderblock_0 blocks.0, encoder_norm norm, pre_logits Wrep, head Whead; the first
    axis of cls and pos_embedding is left out.

    Args:
        channels: C, the width of a token; 768 in ViT-B.
        height, width: of the image; only needed, and only allowed, with positions.
        in_channels: of the image.
        patch_size: P, divides height and width.
        depth: L, blocks, at least 0.
        classes: of the answer; None returns y, or the hidden layer.
        representation_size: width of the hidden layer; None for none.
        positions: whether there is E_pos.
        pool: "token" or "mean".
        heads, mlp_ratio, approximate, dropout, epsilon: of every block, see `EncoderBlock`; dropout follows E_pos too.

    Shape:
        image (B, in_channels, H, W) → (B, classes), or y (B, C); H, W = height, width, or any that P divides.

    Raises:
        ValueError: for an argument out of range, or an input of another shape.
    """

    def __init__(self, channels: int = 768, *, height: int | None = None, width: int | None = None,
                 in_channels: int = 3, patch_size: int = 16, depth: int = 12, heads: int = 12,
                 classes: int | None = 1000, representation_size: int | None = None, positions: bool = True,
                 pool: str = "token", mlp_ratio: float = 4.0, approximate: str = "none", dropout: float = 0.0,
                 epsilon: float = 1e-6):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.in_channels = check_int("in_channels", in_channels)
        self.patch_size = P = check_int("patch_size", patch_size)
        check_int("depth", depth, at_least=0)
        check_choice("pool", pool, POOLS)
        self.E = nn.Conv2d(in_channels, channels, P, stride=P)
        self.x_class = nn.Parameter(torch.zeros(channels)) if pool == "token" else None
        self.height, self.width, self.fixed = height, width, {}
        if positions:
            self.fixed = {"H": check_int("height", height), "W": check_int("width", width)}
            N = check_divisible("height", self.fixed["H"], "patch_size", P) \
                * check_divisible("width", self.fixed["W"], "patch_size", P)
            self.Epos: nn.Parameter | None = nn.Parameter(torch.randn(N + (pool == "token"), channels) * 0.02)
        else:
            self.Epos = None
            for name, value in (("height", height), ("width", width)):
                if value is not None:
                    raise ValueError(f"{name}={value} must be left out with positions=False, which takes any size")
        self.dropout = nn.Dropout(_rate(dropout))
        self.blocks = nn.Sequential(*(
            EncoderBlock(channels, heads=heads, mlp_ratio=mlp_ratio, approximate=approximate, dropout=dropout,
                         epsilon=epsilon) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels, eps=epsilon)
        self.Wrep = self.Whead = None
        if representation_size is not None:
            self.Wrep = nn.Linear(channels, check_int("representation_size", representation_size))
        if classes is not None:
            self.Whead = nn.Linear(representation_size or channels, check_int("classes", classes))
            nn.init.zeros_(self.Whead.weight)
            nn.init.zeros_(self.Whead.bias)

    def forward(self, x: Tensor) -> Tensor:
        _, _, H, W = check_tensor(x, "B C H W", {"C": self.in_channels, **self.fixed}).shape
        check_divisible("H", H, "patch_size", self.patch_size)
        check_divisible("W", W, "patch_size", self.patch_size)
        z = self.E(x).flatten(2).transpose(-2, -1)
        if self.x_class is not None:
            z = torch.cat([self.x_class.expand(len(z), 1, -1), z], 1)
        if self.Epos is not None:
            z = z + self.Epos
        z = self.blocks(tap("z", self.dropout(z), "B N C"))                                       # eqs. 1 to 3
        z = self.norm(z)
        y = tap("y", z.mean(1) if self.x_class is None else z[:, 0], "B C")                       # eq. 4
        if self.Wrep is not None:
            y = tap("y_rep", torch.tanh(self.Wrep(y)), "B Cr")
        return y if self.Whead is None else tap("logits", self.Whead(y), "B O")


def resize_positions(Epos: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """E_pos of one grid of patches made into that of another, for images of another size (Section 3.2 of the paper).

    Bilinear, corners on corners: row i of the new grid reads row i (H − 1) / (Ho − 1) of the old. The vector of a class
    token, which comes first, stays.

    Args:
        Epos: (N, C) for the N = H · W patches of the old grid, or (N + 1, C) with a class token.
        old, new: grids (H, W) and (Ho, Wo), in patches.

    Returns:
        (Ho · Wo, C), or one more row.

    Raises:
        ValueError: if Epos has another number of rows.
    """
    N = old[0] * old[1]
    if Epos.ndim != 2 or len(Epos) not in (N, N + 1):
        raise ValueError(f"Epos has shape {tuple(Epos.shape)}; it must have {N} or {N + 1} rows for the grid old={old}")
    first, grid = Epos[:len(Epos) - N], Epos[len(Epos) - N:].unflatten(0, old)
    grid = F.interpolate(grid.movedim(2, 0)[None], new, mode="bilinear", align_corners=True)[0]
    return torch.cat([first, grid.flatten(1).T])


def _rate(dropout: float) -> float:
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r} must be a number from 0 to below 1")
    return float(dropout)
