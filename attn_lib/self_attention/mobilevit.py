"""MobileViT block: convolutions look around a pixel, and attention looks at the same place of every other patch."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_feature_map, check_int, check_odd, check_positive
from ..ops import SelfAttention, ceil_div, resize, unwindows, windows
from ..tap import tap


@register(
    "mobilevit",
    family="self_attention",
    name="MobileViT block",
    summary="It puts a transformer between two convolutions, so that a pixel asks only one of every patch and still "
            "hears of all.",
    aliases=("MobileViT",),
    action="mix",
    papers=[Paper(
        key="mehta2022mobilevit", venue="ICLR", year=2022, arxiv="2110.02178",
        title="MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer",
        code="https://github.com/apple/ml-cvnets",
    )],
    layout="B C H W",
    example=dict(channels=16, dim=24, heads=2),
    measured=dict(channels=64),
    variants={"patch 3": dict(channels=6, dim=8, heads=2, depth=1, patch_size=3, kernel_size=1)},
    commutes_with={"translation"},
    builds_on=("vit",),
    reduces_to={
        "self-attention": "p = 1: of all pixels, between the two convolutions",
        "linear layer": "p ≥ H, W: a pixel is alone in its sequence, the attention is W_o W_v",
    },
    counterpart=Counterpart(
        "timm MobileVitBlock", "timm.models.mobilevit",
        lambda timm, channels, dim, heads: timm.MobileVitBlock(
            channels, transformer_dim=dim, num_heads=heads, patch_size=2,
            layers=timm.LayerFn(partial(timm.LayerFn.conv_norm_act, act_layer=nn.SiLU), act=nn.SiLU))),
    errata=[
        Erratum(
            "paper", "It does not say what to do with a map that the patches do not divide.",
            "As in the release, the map is enlarged to the next multiple by bilinear interpolation, and brought back.",
            "test_a_map_that_does_not_divide_is_resized_in_one_way_only"),
        Erratum(
            "copies", "They fail on a map that the patches do not divide.",
            "Any size.",
            "test_equals_the_paper"),
        Erratum(
            "copies", "Attention within a patch, or along it.",
            "Among the pixels that have the same place in their patches, all patches.",
            "test_a_pixel_sees_its_own_place_in_every_patch"),
        Erratum(
            "copies", "Convolutions without batch normalisation and SiLU, no normalisation behind the encoders, the "
            "input behind the features at the end.",
            "As in the release: only the 1×1 convolution before the encoders is bare, and the input comes first.",
            "test_the_comparison_with_the_paper_notices"),
        Erratum(
            "package", "timm's block has ReLU unless it is given other layers.",
            "SiLU.",
            "test_equals_timm"),
    ],
)
class MobileViTBlock(nn.Module):
    """MobileViT block: y = f([x; g(Fold(Transformer(Unfold(W_l local(x)))))]), [;] along the channels.

    local, g and f are convolutions k × k, 1 × 1 and k × k, each with batch normalisation and SiLU; W_l is a bare 1 × 1
    convolution to Cr channels. Unfold cuts the map into R patches of p × p = n pixels and gathers the pixels with the
    same place in their patch: n sequences of R tokens. L pre-norm encoders follow, z + Attention(LN(z)), then
    z + W_2 SiLU(W_1 LN(z)), and a last LN; all sequences share their weights, and no position is encoded: a token's own
    place is known from its convolution, the order within a sequence is not. Through local a pixel has seen its
    neighbours, so that each sequence hears of the whole map, at N²/n comparisons.

    (The paper writes P and N for n and R, and d for Cr.)

    Weights of the release: local_rep.conv_3x3 is local, local_rep.conv_1x1 Wl, global_rep.0 blocks.0 (pre_norm_mha.0
    norm1, pre_norm_mha.1.qkv_proj Wq, Wk and Wv one below the other, out_proj Wo, pre_norm_ffn.0, .1 and .4 norm2, W1
    and W2), the last of global_rep norm, conv_proj project, fusion fuse.

    Args:
        channels: C, at least 1.
        dim: Cr, the width of a token; 144 in the paper's MobileViT-S, first stage.
        heads: h, divides dim.
        depth: L, encoders, at least 1.
        patch_size: p, at least 1; 2 in the paper.
        mlp_ratio: hidden width of the encoders over Cr, above 0, rounded down.
        kernel_size: k, odd.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Mehta and Rastegari, MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer,
        ICLR 2022, arXiv 2110.02178.
    """

    def __init__(self, channels: int, *, dim: int = 144, heads: int = 4, depth: int = 2, patch_size: int = 2,
                 mlp_ratio: float = 2.0, kernel_size: int = 3):
        super().__init__()
        self.channels = check_int("channels", channels)
        check_int("dim", dim)
        check_int("heads", heads)
        self.patch_size = check_int("patch_size", patch_size)
        check_odd("kernel_size", kernel_size)
        hidden = check_int("dim * mlp_ratio", int(dim * check_positive("mlp_ratio", mlp_ratio)))
        self.local = _conv_bn_silu(channels, channels, kernel_size)
        self.Wl = nn.Conv2d(channels, dim, 1, bias=False)
        self.blocks = nn.Sequential(*(_Encoder(dim, heads, hidden) for _ in range(check_int("depth", depth))))
        self.norm = nn.LayerNorm(dim)
        self.project = _conv_bn_silu(dim, channels, 1)
        self.fuse = _conv_bn_silu(2 * channels, channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        p, (H, W) = self.patch_size, x.shape[2:]
        Hp, Wp = ceil_div(H, p), ceil_div(W, p)  # patches along the height and along the width
        x_L = tap("x_L", self.Wl(self.local(x)), "B Cr H W")
        x_U = tap("x_U", windows(resize(x_L, p * Hp, p * Wp), Hp, Wp, interleaved=True), "B n R Cr")
        x_G = tap("x_G", self.norm(self.blocks(x_U)), "B n R Cr")
        x_F = tap("x_F", resize(unwindows(x_G, Hp, Wp, p * Hp, p * Wp, interleaved=True), H, W), "B Cr H W")
        return tap("y", self.fuse(torch.cat([x, self.project(x_F)], 1)), "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, patch_size={self.patch_size}"


class _Encoder(nn.Module):
    """Pre-norm encoder of sequences (B, n, R, Cr)."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.W1, self.W2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, z: Tensor) -> Tensor:
        z = z + self.attention(self.norm1(z), dims="B n R")
        return z + self.W2(F.silu(self.W1(self.norm2(z))))


def _conv_bn_silu(channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.SiLU())
