"""Multi-scale dilated attention: every pixel attends to nine, which lie wider apart in some heads (DilateFormer)."""

import torch
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_divisible, check_feature_map, check_int, check_odd
from ..ops import neighbour_logits, neighbour_sum, neighbourhoods, neighbours_on_map
from ..tap import recording, tap

PADDING = ("zeros", "masked")


@register(
    "dilateformer",
    family="self_attention",
    name="Multi-scale dilated attention",
    summary="It lets some heads look at the nearest pixels and others, at the same cost, at pixels two or three away.",
    aliases=("DilateFormer", "MSDA", "SWDA", "multi-scale dilated attention"),
    action="mix",
    papers=[Paper(
        key="jiao2023dilateformer", venue="IEEE Transactions on Multimedia", year=2023, arxiv="2302.01791",
        title="DilateFormer: Multi-Scale Dilated Transformer for Visual Recognition",
        code="https://github.com/JIAOJIAYUASD/dilateformer",
    )],
    layout="B C H W",
    example=dict(channels=12, heads=3),
    measured=dict(channels=72, heads=3),
    variants={
        "masked": dict(channels=8, heads=2, dilations=(1, 4), padding="masked", qkv_bias=True),
        "one dilation": dict(channels=6, heads=2, kernel_size=5, dilations=(1,)),
    },
    commutes_with={"translation", "flip_h", "flip_w", "transpose"},
    refuses={
        "onnx by trace at any size": "the older exporter writes the recorded sizes into a reshape",
    },
    builds_on=("mhsa",),
    reduces_to={
        "linear layer": "masked, every dilation ≥ H and W: a pixel sees itself alone, y = W_o v",
        "mhsa": "masked, one dilation of 1, k ≥ 2H − 1 and 2W − 1: all pixels, without positions, and W_o at the end",
    },
    errata=[
        Erratum(
            "release",
            "It writes the result of every dilation into a view of its own input, which is lost, and the backward pass "
            "raises an error.",
            "The input is left alone.",
            "test_trap_results_written_into_the_input"),
        Erratum(
            "release",
            "The class has 8 heads and 3 dilations by default, and fails its own assertion.",
            "`heads=3`, as in the first stage of the smallest model, and an error that names numbers that fit.",
            "test_trap_defaults_that_fail"),
        Erratum(
            "release",
            "A key outside the map is 0, has the logit 0 whatever the bias of W_k, and takes its share of the softmax, "
            "so that constant values leave smaller near the border.",
            "The same by default; `padding=\"masked\"` leaves such keys out.",
            "test_trap_keys_outside_the_map_take_their_share"),
    ],
)
class DilateAttention(nn.Module):
    """Multi-scale dilated attention: y = W_o [x_1; …; x_h] with x_ij = softmax(q_ij K_rᵀ / √d) V_r.

    q, k and v are 1×1 convolutions of x, cut into h heads of d = C/h channels, and the heads into as many groups as
    there are dilations, in order. K_r and V_r hold the k × k keys and values at the places

        (i + p·r, j + q·r),   p, q = −(k−1)/2 … (k−1)/2,

    around the query at (i, j), with r the dilation of the head's group. Eq. 1 to 3 of the paper. There are no
    positions: what lies where in the neighbourhood makes no difference.

    To load the release's weights: `qkv` is `Wqkv`, and `proj`, a linear layer there, is `Wo` with two more axes.

    Args:
        channels: C, divisible by `heads`.
        heads: h, divisible by the number of dilations.
        kernel_size: k, odd; 3 in the paper.
        dilations: r, one a group of heads, each at least 1.
        padding: "zeros", keys and values outside the map are zeros, as where a convolution is padded; "masked", there
            are none.
        qkv_bias: whether q, k and v have a bias; W_o has one.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Jiao, Tang, Lin, Gao, Ma, Wang and Zheng, DilateFormer: Multi-Scale Dilated Transformer for Visual Recognition,
        IEEE Transactions on Multimedia 2023, arXiv 2302.01791.
    """

    def __init__(self, channels: int, *, heads: int = 3, kernel_size: int = 3, dilations: tuple[int, ...] = (1, 2, 3),
                 padding: str = "zeros", qkv_bias: bool = False):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.heads = check_int("heads", heads)
        check_divisible("channels", channels, "heads", heads)
        self.kernel_size = check_odd("kernel_size", kernel_size)
        if not isinstance(dilations, tuple | list) or not dilations:
            raise ValueError(f"dilations={dilations!r} must hold one integer a group of heads, such as (1, 2, 3)")
        self.dilations = tuple(check_int("dilations", r) for r in dilations)
        check_divisible("heads", heads, "len(dilations)", len(self.dilations))
        check_choice("padding", padding, PADDING)
        self.padding = padding
        self.Wqkv = nn.Conv2d(channels, 3 * channels, 1, bias=qkv_bias)
        self.Wo = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        q, k, v = (tap(name, t, "B C H W") for name, t in zip("qkv", self.Wqkv(x).chunk(3, 1), strict=True))
        if recording():
            for name, t in (("K_r", k), ("V_r", v)):
                tap(name, self.around(t), "B h N K d")                                     # eq. 3
        K = (self.kernel_size, self.kernel_size)
        groups = [t.unflatten(1, (self.heads, -1)).chunk(len(self.dilations), 1)
                  for t in (q * (self.channels // self.heads)**-0.5, k, v)]
        logits = torch.cat([neighbour_logits(q, k, K, r)
                            for q, k, r in zip(*groups[:2], self.dilations, strict=True)], 1)
        if self.padding == "masked":
            logits = logits + self.bias(logits)
        A = tap("A", rearrange(logits.softmax(2), "B h K H W -> B h (H W) 1 K"), "B h N 1 K")
        weights = rearrange(A, "B h (H W) 1 K -> B h K H W", H=x.shape[2]).chunk(len(self.dilations), 1)
        y = torch.cat([neighbour_sum(a, v, K, r)                                           # eq. 2
                       for a, v, r in zip(weights, groups[2], self.dilations, strict=True)], 1)
        return tap("y", self.Wo(y.flatten(1, 2)), "B C H W")

    def around(self, t: Tensor) -> Tensor:
        """The keys or values around every pixel, of each head at its distance (B, h, N, K, d): eq. 3."""
        near = torch.cat([neighbourhoods(group, (self.kernel_size, self.kernel_size), r)[0]
                          for group, r in zip(t.chunk(len(self.dilations), 1), self.dilations, strict=True)], 1)
        return rearrange(near, "B (h d) K H W -> B h (H W) K d", h=self.heads)

    def bias(self, logits: Tensor) -> Tensor:
        """−∞ for keys outside the map (h, K, H, W)."""
        K, (H, W) = (self.kernel_size, self.kernel_size), logits.shape[3:]
        off = ~torch.stack([neighbours_on_map(H, W, K, r, device=logits.device) for r in self.dilations])
        off = off.repeat_interleave(self.heads // len(self.dilations), 0)
        return logits.new_zeros(off.shape).masked_fill(off, -torch.inf)

    def extra_repr(self) -> str:
        names = ("channels", "heads", "kernel_size", "dilations", "padding")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
