"""Halo attention: a block of pixels asks itself and a rim around it, so that blocks learn from each other (HaloNet)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_divisible, check_feature_map, check_int
from ..ops import attend, cropped, pad_to_multiple, relative_logits, unwindows, windows
from ..tap import tap


@register(
    "halo",
    family="self_attention",
    name="Halo attention",
    summary="It shares one neighbourhood among all queries of a block, so that local attention becomes a few large "
            "products.",
    aliases=("Halo", "HaloNet", "halo attention", "blocked local attention"),
    action="mix",
    papers=[Paper(
        key="vaswani2021scaling", venue="CVPR", year=2021, arxiv="2103.12731",
        title="Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
    )],
    layout="B C H W",
    output="B C Ho Wo",
    example=dict(channels=16, heads=2, block_size=4, halo_size=1),
    measured=dict(channels=64),
    variants={
        "stride 2": dict(channels=6, heads=3, block_size=4, halo_size=2, stride=2),
        "unmasked": dict(channels=8, heads=1, block_size=5, halo_size=3, masked=False, scale_positions=False),
    },
    refuses={
        "onnx by trace": "the older exporter does not see the size of the map that is cut into overlapping windows",
    },
    builds_on=("mhsa",),
    reduces_to={
        "mhsa": "a block that holds the map: with relative positions",
        "window attention": "halo 0, R_h = R_w = 0",
    },
    counterpart=Counterpart(
        "timm HaloAttn", "timm.layers.halo_attn",
        lambda timm, channels, heads, block_size, halo_size: timm.HaloAttn(
            channels, num_heads=heads, dim_head=channels // heads, block_size=block_size, halo_size=halo_size,
            scale_pos_embed=True),
        options=dict(masked=False)),
    errata=[
        Erratum(
            "paper", "It leaves open whether the zeros around the map are keys.",
            "They are masked; masked=False lets them take their share.",
            "test_only_a_masked_border_leaves_a_constant_alone"),
        Erratum(
            "package", "timm's HaloAttn does not mask: keys outside the map hold q · r and take part in the softmax.",
            "masked=False is timm's.",
            "test_equals_timm"),
        Erratum(
            "package", "halonet-pytorch before 0.0.5 masks the keys on the map, and leaves those outside.",
            "The other way round.",
            "test_the_comparison_with_the_paper_notices"),
        Erratum(
            "package", "timm divides only q · k by √d unless it is told otherwise.",
            "Both terms, as the same authors do in BoTNet; scale_positions=False is timm's default.",
            "test_equals_timm"),
        Erratum(
            "package", "timm and halonet-pytorch take no map that the block does not divide.",
            "Any size: what is padded is no key.",
            "test_equals_the_paper"),
        Erratum(
            "package", "Their tables of positions have 2(b + 2m) − 1 rows, of which the first 2m belong to no pair.",
            "2b + 2m − s rows, all in use; leave the first 2m + s − 1 out to load theirs.",
            "test_rows_of_the_packages_tables_are_dead"),
        Erratum(
            "package", "With stride 2 timm counts the offset of a query as if it stood at half its place.",
            "Offsets are those of the pixels.",
            "test_timm_misplaces_strided_queries"),
    ],
)
class HaloAttention(nn.Module):
    """Halo attention: y_i = Σ_j softmax_j((q_i · k_j + q_i · r_{j−i}) / √d) v_j over j in the block of i and its halo.

    The map is cut into blocks of b × b pixels. All queries of a block attend to the same (b + 2m)² pixels, the block
    and a halo of m around it, what lies outside the map left out. q, k and v are 1 × 1 convolutions without biases, in
    h heads of d = C/h channels. r = R_h[rows] + R_w[columns], a vector for each distance in rows and one for each in
    columns, shared by the heads, from s − b − m to b − 1 + m. There is no projection at the end. (The paper writes h
    for m.)

    A query in the middle of a block sees b/2 + m pixels in each direction, one at its edge b + m on one side and m on
    the other. Every key is copied ((b + 2m)/b)² times; with blocks of one pixel, where every query is the centre of its
    neighbourhood, (1 + 2m)² times. With a stride s only every s-th pixel of every s-th row asks: the paper's way to
    shrink a map.

    Args:
        channels: C, at least 1.
        heads: h, divides C.
        block_size: b, at least 1; 8 in the paper.
        halo_size: m, at least 0; 3 in the paper.
        stride: s, divides b.
        masked: whether keys outside the map are left out.
        scale_positions: whether q · r is divided by √d as q · k is.

    Shape:
        x (B, C, H, W) → y (B, C, Ho, Wo), Ho = ⌈H/s⌉, Wo = ⌈W/s⌉, any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Vaswani, Ramachandran, Srinivas, Parmar, Hechtman and Shlens, Scaling Local Self-Attention for Parameter
        Efficient Visual Backbones, CVPR 2021, arXiv 2103.12731.
    """

    def __init__(self, channels: int, *, heads: int = 8, block_size: int = 8, halo_size: int = 3, stride: int = 1,
                 masked: bool = True, scale_positions: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.heads = check_int("heads", heads)
        d = check_divisible("channels", channels, "heads", heads)
        self.block_size = b = check_int("block_size", block_size)
        self.halo_size = m = check_int("halo_size", halo_size, at_least=0)
        self.stride = check_int("stride", stride)
        check_divisible("block_size", b, "stride", stride)
        self.masked, self.scale_positions = masked, scale_positions
        self.Wq, self.Wk, self.Wv = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(3))
        self.Rh, self.Rw = (nn.Parameter(torch.randn(2 * b + 2 * m - stride, d) * d**-0.5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        b, m, s, h = self.block_size, self.halo_size, self.stride, self.heads
        q_map = self.Wq(x[..., ::s, ::s])
        Ho, Wo = q_map.shape[2:]
        q_map = pad_to_multiple(q_map, b // s, b // s)[0]
        q = tap("q", windows(q_map, b // s, b // s), "B R n C")
        k, v = (tap(name, self.neighbourhoods(W(x)), "B R Nk C") for name, W in (("k", self.Wk), ("v", self.Wv)))
        q, k, v = (rearrange(t, "B R n (h d) -> (B R) h n d", h=h) for t in (q, k, v))

        scale = q.shape[-1] ** -0.5
        bias = tap("qr", self.position_logits(q), "B*R h n Nk") * (scale if self.scale_positions else 1.0)
        if self.masked:
            on_map = F.pad(pad_to_multiple(x[:1, :1], b, b)[1], (m,) * 4)
            on_map = _blocks(on_map, b, m).flatten(0, 1).flatten(1)  # R Nk
            bias = bias.masked_fill(~on_map.repeat(len(x), 1)[:, None, None], -torch.inf)
        y = attend(q, k, v, scale=scale, bias=bias, name="A", dims="B*R h n Nk")
        y = unwindows(rearrange(y, "(B R) h n d -> B R n (h d)", B=len(x)), b // s, b // s, *q_map.shape[2:])
        return tap("y", cropped(y, Ho, Wo), "B C Ho Wo")

    def neighbourhoods(self, t: Tensor) -> Tensor:
        """Every block of a map (B, C, H, W) with its halo (B, R, Nk, C), Nk = (b + 2m)²."""
        t = F.pad(pad_to_multiple(t, self.block_size, self.block_size)[0], (self.halo_size,) * 4)
        return rearrange(_blocks(t, self.block_size, self.halo_size), "B C P Q i j -> B (P Q) (i j) C")

    def position_logits(self, q: Tensor) -> Tensor:
        """q · r (BR, h, n, Nk), by rows and by columns, of queries (BR, h, n, d)."""
        q = q.unflatten(2, (self.block_size // self.stride, -1))  # … i j d
        rows = relative_logits(q.transpose(2, 3), self.Rh, self.stride).transpose(2, 3)
        columns = relative_logits(q, self.Rw, self.stride)
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)

    def extra_repr(self) -> str:
        names = ("channels", "heads", "block_size", "halo_size", "stride", "masked", "scale_positions")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _blocks(t: Tensor, b: int, m: int) -> Tensor:
    """Windows of b + 2m pixels, b apart, along the last two axes: (…, P, Q, b + 2m, b + 2m)."""
    return t.unfold(-2, b + 2 * m, b).unfold(-2, b + 2 * m, b)
