"""Long- and short-distance attention, its dynamic position bias, and the embedding before it (CrossFormer)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_choice, check_divisible, check_feature_map, check_int
from ..ops import at_one_size, attend, ceil_div, cropped, open_size, pad_to_multiple, relative_bias
from ..tap import tap

DISTANCES = ("short", "long")


@register(
    "crossformer",
    family="self_attention",
    name="Long-short distance attention",
    summary="It attends within windows of neighbours and, in turns, within groups of pixels that lie far apart.",
    aliases=("LSDA", "CrossFormer", "SDA", "LDA", "dynamic position bias"),
    action="mix",
    papers=[Paper(
        key="wang2022crossformer", venue="ICLR", year=2022, arxiv="2108.00154",
        title="CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention",
        code="https://github.com/cheerss/CrossFormer",
    )],
    layout="B C H W",
    example=dict(channels=16, heads=2, group=4),
    measured=dict(channels=64),
    variants={
        "long": dict(channels=16, heads=2, group=4, distance="long"),
        "fixed interval": dict(channels=12, heads=3, group=None, interval=4, distance="long"),
        "release": dict(channels=48, heads=2, group=3, interval=2, distance="long", reduction=16, shrink=True),
    },
    refuses={
        "any size": "with `shrink` the size of the map decides how large a group is",
    },
    builds_on=("mhsa",),
    reduces_to={
        "window attention": "short distance, the position bias 0",
        "mhsa": "a group ≥ H and W, the position bias 0: all pixels, without positions, and W_o at the end",
    },
    errata=[
        Erratum(
            "release",
            "The hidden layers of the position bias have C/16 units, a quarter of a quarter: normalised, they leave a "
            "constant bias at 16 channels and one of two values at 32.",
            "C/4, as in the paper; `reduction=16` is the release's.",
            "test_trap_a_bias_of_one_or_two_units"),
        Erratum(
            "release",
            "A long-distance group lies within a block of G·I × G·I pixels, which is the whole map at the paper's "
            "image size alone.",
            "A group spans the map, as in the paper; with both `group` and `interval` it lies within a block.",
            "test_trap_a_group_spans_the_map_or_a_block_of_it"),
        Erratum(
            "release",
            "In the file for classification a map with a side of at most G is cut into groups as wide as its shorter "
            "side, and long distances become short ones.",
            "Groups keep their size, and what of them lies outside the map is masked; `shrink=True` is that file's.",
            "test_trap_a_map_smaller_than_a_group"),
        Erratum(
            "release",
            "The embedding takes its number of columns from the height.",
            "From the width.",
            "test_trap_an_image_that_is_not_square"),
        Erratum(
            "package",
            "In vit-pytorch the bias is computed on a grid of (2G+1)² offsets and read as one of (2G−1)², so that "
            "every pair gets the bias of another offset; all heads share it.",
            "A number for each head, of the offset that a pair has.",
            "test_trap_the_offsets_of_vit_pytorch"),
    ],
)
class LongShortDistanceAttention(nn.Module):
    """Long- or short-distance attention: y = W_o softmax(q kᵀ / √d + B) v within groups of G × G pixels.

    q, k, v = W_qkv x, in h heads of d = C/h channels, and B = DPB(Δ) is the dynamic position bias of the offset Δ of
    query and key within the group. Which pixels form a group:

        short                     a block of neighbours
        long, of `group` G        pixels ⌈H/G⌉ rows and ⌈W/G⌉ columns apart: the group spans the map
        long, of `interval` I     pixels I rows and I columns apart, as many as there are: ⌈H/I⌉ × ⌈W/I⌉
        long, of both             G × G pixels I rows and I columns apart: the group spans a block of G·I × G·I

    The three long ones are the same on a square map of G·I pixels a side, as the paper has them. Offsets are counted
    in members of the group, also where those lie far apart. Pixels that a group lacks at the border are masked.
    CrossFormer takes short and long in turns, each behind a layer normalisation and followed by an MLP.

    To load the release's weights: `qkv` is Wqkv, `proj` is Wo, and `pos` is DPB; see there.

    Args:
        channels: C, divisible by `heads`.
        heads: h; the release has C/32.
        group: G; 7 in the paper. None only with `interval`.
        interval: I, or None; for long distances alone.
        distance: "short" or "long".
        position_bias: whether there is a B.
        reduction: B is computed by layers of C/reduction units; from 1 to C.
        shrink: where a side of the map has at most G pixels, take groups of the shorter side, short ones.
        qkv_bias: whether W_qkv has a bias; W_o has one.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Wang, Yao, Chen, Lin, Cai, He and Liu, CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale
        Attention, ICLR 2022, arXiv 2108.00154.
    """

    def __init__(self, channels: int, *, heads: int = 2, group: int | None = 7, interval: int | None = None,
                 distance: str = "short", position_bias: bool = True, reduction: int = 4, shrink: bool = False,
                 qkv_bias: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.heads = check_int("heads", heads)
        check_divisible("channels", channels, "heads", heads)
        check_choice("distance", distance, DISTANCES)
        if group is None and interval is None:
            raise ValueError("group=None must come with an interval, from which the size of a group follows")
        if interval is not None and distance == "short":
            raise ValueError(f"interval={interval} must be left out with distance='short', whose pixels are neighbours")
        if shrink and group is None:
            raise ValueError("shrink=True must come with a group, which could shrink")
        self.group = None if group is None else check_int("group", group)
        self.interval = None if interval is None else check_int("interval", interval)
        self.distance, self.shrink = distance, shrink
        self.Wqkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.Wo = nn.Linear(channels, channels)
        self.DPB = DynamicPositionBias(channels, heads=heads, reduction=reduction) if position_bias else None

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        if self.shrink:  # decides by the size of the map
            x = at_one_size(x, 2, 3)[0]
        B, _, H, W = x.shape
        size, block = self.groups(H, W)
        padded, real = pad_to_multiple(x, *block)
        tokens = tap("x_g", _cut(padded, size, block), "B R n C")
        R = tokens.shape[1]
        q, k, v = (tap(name, t, "B R n C") for name, t in zip("qkv", self.Wqkv(tokens).chunk(3, -1), strict=True))
        bias = None if self.DPB is None else tap("B", self.DPB(*size), "h n n")
        if open_size(H, W) or padded.shape != x.shape:
            real = _cut(real[None, None].to(x), size, block)[0, :, :, 0] > 0                           # R n
            real = real | ~real.any(1, keepdim=True)  # a group of padding alone: its output is dropped
            mask = x.new_zeros(real.shape).masked_fill(~real, -torch.inf)[:, None, None].repeat(B, 1, 1, 1)
            bias = mask if bias is None else mask + bias
        q, k, v = (rearrange(t, "B R n (h d) -> (B R) h n d", h=self.heads) for t in (q, k, v))
        y = attend(q, k, v, bias=bias, name="A", dims="B*R h n n")
        y = self.Wo(rearrange(y, "(B R) h n d -> B R n (h d)", R=R))
        return tap("y", cropped(_join(y, size, block, *padded.shape[2:]), H, W), "B C H W")

    def groups(self, H: int, W: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """How many rows and columns a group has, and how many the block has that it spans."""
        G = self.group or 0                                             # 0: what is not given follows from the other
        I = 1 if self.distance == "short" else self.interval or 0       # noqa: E741  the paper's letters
        if self.shrink and min(H, W) <= G:
            G, I = min(H, W), 1  # noqa: E741
        rows, columns = (G or ceil_div(n, I) for n in (H, W))
        down, right = (I or ceil_div(n, G) for n in (H, W))
        return (rows, columns), (rows * down, columns * right)

    def extra_repr(self) -> str:
        names = ("channels", "heads", "group", "interval", "distance", "shrink")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class DynamicPositionBias(nn.Module):
    """Dynamic position bias: a number for each head, by an MLP of the offset of query and key, for windows of any size.

        B = W₄ φ₃(W₃ φ₂(W₂ φ₁(W₁ Δ))) with φ = ReLU(LN(·)),   Δ = query − key, in rows and columns.

    The hidden layers have D = C/reduction units. Only the (2H−1)(2W−1) offsets that occur are computed. With D = 1 the
    normalisation leaves nothing of its input, and with D = 2 only which unit is larger.

    To load the release's weights: `pos_proj` is W1, `pos1` is norm1, W2, `pos2` is norm2, W3, `pos3` is norm3, W4.

    Args:
        channels: C, at least 1.
        heads: h.
        reduction: from 1 to C; D is rounded down. 4 in the paper, 16 in the release.

    Shape:
        H, W → B (h, HW, HW), queries before keys, pixels row by row.

    Raises:
        ValueError: for an argument out of range.

    Paper:
        Wang, Yao, Chen, Lin, Cai, He and Liu, CrossFormer, ICLR 2022, arXiv 2108.00154, Section 3.3.
    """

    def __init__(self, channels: int, *, heads: int, reduction: int = 4):
        super().__init__()
        check_int("channels", channels)
        check_int("heads", heads)
        check_int("reduction", reduction)
        check_at_most("reduction", reduction, "channels", channels)
        D = channels // reduction
        self.W1, self.W2, self.W3, self.W4 = nn.Linear(2, D), nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(D) for _ in range(3))

    def forward(self, H: int, W: int) -> Tensor:
        for name, size in (("H", H), ("W", W)):
            if not open_size(size):
                check_int(name, size)
        return relative_bias(self.table(H, W), H, W)

    def table(self, H: int, W: int) -> Tensor:
        """(h, 2H−1, 2W−1), by the offset key − query, as `ops.relative_bias` takes it."""
        like = self.W1.weight
        rows, cols = (torch.arange(n - 1, -n, -1, device=like.device) for n in (H, W))  # query − key falls
        delta = torch.stack(torch.meshgrid(rows, cols, indexing="ij"), -1).to(like.dtype)
        hidden = self.W2(F.relu(self.norm1(self.W1(delta))))
        hidden = self.W3(F.relu(self.norm2(hidden)))
        return self.W4(F.relu(self.norm3(hidden))).permute(2, 0, 1)


class CrossScaleEmbedding(nn.Module):
    """Cross-scale embedding: z = [conv₁(x); …; conv_M(x)], convolutions of several kernels at the same places.

    All have the stride s of the smallest. Wider kernels have fewer channels, O/2, O/4, … and the last two the same,
    since their cost grows with the square of their side. Kernel k is padded by (k − s)/2 zeros, so that all are centred
    alike.

    To load the release's weights: `projs` of its embedding and `reductions` of its merging are `convs`; their layer
    normalisation, behind the one and before the other, is no part of this.

    Args:
        channels: C, at least 1; 3 for an image.
        out_channels: O, divisible by 2^(M−1).
        kernel_sizes: the smallest first; (4, 8, 16, 32) before the first stage, (2, 4) between stages.
        stride: s; the smallest kernel's side when None. Each k − s is even and not negative.

    Shape:
        x (B, C, H, W) → z (B, O, Ho, Wo), Ho = ⌊H/s⌋, Wo = ⌊W/s⌋, any H, W ≥ s.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels, H, W ≥ s.

    Paper:
        Wang, Yao, Chen, Lin, Cai, He and Liu, CrossFormer, ICLR 2022, arXiv 2108.00154, Section 3.1.
    """

    def __init__(self, channels: int, out_channels: int, *, kernel_sizes: tuple[int, ...] = (4, 8, 16, 32),
                 stride: int | None = None):
        super().__init__()
        self.channels = check_int("channels", channels)
        check_int("out_channels", out_channels)
        if not isinstance(kernel_sizes, tuple | list) or not kernel_sizes:
            raise ValueError(f"kernel_sizes={kernel_sizes!r} must hold one integer a scale, such as (4, 8, 16, 32)")
        self.kernel_sizes = tuple(check_int("kernel_sizes", k) for k in kernel_sizes)
        self.stride = self.kernel_sizes[0] if stride is None else check_int("stride", stride)
        for k in self.kernel_sizes:
            if k < self.stride or (k - self.stride) % 2:
                raise ValueError(f"kernel_sizes={k} must exceed stride={self.stride} by an even number, or equal it; "
                                 f"{self.stride} and {self.stride + 2} do")
        M = len(self.kernel_sizes)
        least = check_divisible("out_channels", out_channels, f"2**{M - 1}", 2 ** (M - 1))
        widths = [least * 2 ** (M - 2 - i) for i in range(M - 1)] + [least]
        self.convs = nn.ModuleList(nn.Conv2d(channels, width, k, self.stride, (k - self.stride) // 2)
                                   for width, k in zip(widths, self.kernel_sizes, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        for axis, size in zip("HW", x.shape[2:], strict=True):
            if size < self.stride:
                raise ValueError(f"x has {axis}={size}; it must be at least stride={self.stride}")
        return tap("z", torch.cat([conv(x) for conv in self.convs], 1), "B O Ho Wo")


def _cut(x: Tensor, size: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """A map (B, C, H, W) as groups (B, R, n, C), which span blocks; the groups of a block are interleaved."""
    return rearrange(x, "B C (P i u) (Q j v) -> B (P Q u v) (i j) C", i=size[0], j=size[1],
                     u=block[0] // size[0], v=block[1] // size[1])


def _join(y: Tensor, size: tuple[int, int], block: tuple[int, int], H: int, W: int) -> Tensor:
    """The map (B, C, H, W) of its groups: undoes `_cut`. Its channels stay last in memory."""
    return rearrange(y, "B (P Q u v) (i j) C -> B (P i u) (Q j v) C", P=H // block[0], Q=W // block[1], i=size[0],
                     j=size[1], u=block[0] // size[0], v=block[1] // size[1]).permute(0, 3, 1, 2)
