"""CloFormer's attention: some heads sharpen what lies nearby, the others look at a pooled map (AttnConv)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_divisible, check_feature_map, check_int, check_odd
from ..ops import attend, in_float32
from ..tap import tap


class AttnConv(nn.Module):
    """A convolution in the manner of attention: y = tanh(F(q ⊙ k) / √d) ⊙ v, F = W_2 swish(W_1 ·).

    q, k and v come from one 1 × 1 convolution of x and a depthwise k × k convolution behind it, so that all three hold
    what lies around a pixel, by weights that are the same everywhere. The gate, a signed number for each channel and
    pixel, is what depends on the content. F is two 1 × 1 convolutions over the channels of this branch.

    Args:
        channels: C of x, at least 1.
        heads: h of this branch, at least 1.
        head_dim: d, at least 1.
        kernel_size: k, odd.
        qkv_bias: whether the first 1 × 1 convolution has a bias.

    Shape:
        x (B, C, H, W) → y (B, h·d, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.
    """

    def __init__(self, channels: int, *, heads: int, head_dim: int, kernel_size: int, qkv_bias: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.heads, self.head_dim = check_int("heads", heads), check_int("head_dim", head_dim)
        width = heads * head_dim
        self.Wqkv = nn.Conv2d(channels, 3 * width, 1, bias=qkv_bias)
        self.DWConv = nn.Conv2d(3 * width, 3 * width, check_odd("kernel_size", kernel_size), padding=kernel_size // 2,
                                groups=3 * width)
        self.W1, self.W2 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        h, d = self.heads, self.head_dim
        qkv = self.DWConv(self.Wqkv(x)).unflatten(1, (3, h, d))
        q, k, v = (tap(name, t, f"B {h} d H W") for name, t in zip(("q", "k", "v"), qkv.unbind(1), strict=True))
        F_qk = in_float32(_context, q, k, self.W1.weight, self.W1.bias, self.W2.weight, self.W2.bias)
        gate = tap("gate", torch.tanh(F_qk * d**-0.5).to(v.dtype).unflatten(1, (h, d)), f"B {h} d H W")
        return (gate * v).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, heads={self.heads}, head_dim={self.head_dim}"


def _context(q: Tensor, k: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor) -> Tensor:
    """W_2 swish(W_1 (q ⊙ k))"""
    return F.conv2d(F.silu(F.conv2d((q * k).flatten(1, 2), W1, b1)), W2, b2)


@register(
    "cloformer",
    family="self_attention",
    name="CloFormer attention",
    summary="It gives some heads to the neighbourhood, as a convolution with a gate that looks, and the others to a "
            "pooled map.",
    aliases=("CloFormer", "AttnConv"),
    action="mix",
    papers=[Paper(
        key="fan2023rethinking", venue="arXiv", year=2023, arxiv="2303.17803",
        title="Rethinking Local Perception in Lightweight Vision Transformer",
        code="https://github.com/qhfan/CloFormer",
    )],
    layout="B C H W",
    example=dict(channels=16, heads=4, group_split=(2, 2), kernel_sizes=(5,), window_size=2),
    measured=dict(channels=64),
    variants={
        "two kernels": dict(channels=12, heads=4, group_split=(2, 1, 1), kernel_sizes=(3, 5), window_size=5),
        "local": dict(channels=4, heads=2, group_split=(2, 0), kernel_sizes=(3,), qkv_bias=False),
        "global": dict(channels=6, heads=2, group_split=(2,), kernel_sizes=(), window_size=3),
    },
    builds_on=("mhsa",),
    reduces_to={
        "mhsa": "global heads alone, window 1: without positions, and with W_o at the end",
        "convolution": "local heads alone, b₂ → ∞: 1 × 1, depthwise, 1 × 1",
    },
    errata=[
        Erratum(
            "release", "A map that the window does not divide fails in its global branch, or, where it is small, loses "
            "its last rows and columns.",
            "The last windows are cut smaller, and their means are of the pixels there are.",
            "test_equals_the_paper"),
        Erratum(
            "paper", "Keys and values are pooled, and in the release x before them.",
            "x; both are equal, for nothing but a matrix and a bias stands between.",
            "test_pooling_before_and_behind_the_keys_are_equal"),
        Erratum(
            "copies", "The values pass by the depthwise convolution, or the gate is a sigmoid or a softmax.",
            "q, k and v pass through it together; the gate is a tanh, and signed.",
            "test_the_comparison_with_the_paper_notices"),
    ],
)
class CloAttention(nn.Module):
    """CloFormer attention: y = W_o [local_1; …; global], local = tanh(F(q ⊙ k) / √d) ⊙ v, global = Attention(q, k̄, v̄).

    The h heads of d = C/h channels are dealt out: `group_split` names how many each local branch gets, and how many
    the global one. A local branch is an `AttnConv`, with a kernel of its own. The global branch is softmax attention of
    every pixel to the means of windows of w × w pixels; where w does not divide H or W the last windows are smaller. A
    branch without heads is not there. In CloFormer a group normalisation of one group stands before the module. The
    defaults are those of the third stage of CloFormer-XXS.

    Weights of the release: qkvs.0, convs.0 and act_blocks.0.act_block's 0 and 2 are local.0's Wqkv, DWConv, W1 and W2,
    global_q is Wq, the rows of global_kv are Wk and then Wv, proj Wo.

    Args:
        channels: C, at least 1.
        heads: h, divides C.
        group_split: heads of each local branch, and last those of the global one; their sum is h.
        kernel_sizes: of the local branches, odd, one fewer than there are groups.
        window_size: w, at least 1.
        qkv_bias: whether the 1 × 1 convolutions before the branches and W_o have a bias.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Fan, Huang, Guan and He, Rethinking Local Perception in Lightweight Vision Transformer, 2023, arXiv 2303.17803.
    """

    def __init__(self, channels: int, *, heads: int = 8, group_split: tuple[int, ...] = (4, 4),
                 kernel_sizes: tuple[int, ...] = (7,), window_size: int = 2, qkv_bias: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        d = check_divisible("channels", channels, "heads", check_int("heads", heads))
        *local, self.global_heads = _groups(group_split, heads)
        if not isinstance(kernel_sizes, tuple | list) or len(kernel_sizes) != len(local):
            raise ValueError(f"kernel_sizes={kernel_sizes!r} must hold {len(local)} odd integers, one fewer than "
                             f"group_split={group_split}")
        self.window_size = check_int("window_size", window_size)
        self.local = nn.ModuleList(
            AttnConv(channels, heads=h, head_dim=d, kernel_size=check_odd("kernel_sizes", k), qkv_bias=qkv_bias)
            for h, k in zip(local, kernel_sizes, strict=True) if h)
        if self.global_heads:
            width = self.global_heads * d
            self.Wq, self.Wk, self.Wv = (nn.Conv2d(channels, width, 1, bias=qkv_bias) for _ in range(3))
        self.Wo = nn.Conv2d(channels, channels, 1, bias=qkv_bias)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        branches = [branch(x) for branch in self.local]
        if self.global_heads:
            branches.append(self.global_attention(x))
        return tap("y", self.Wo(torch.cat(branches, 1)), "B C H W")

    def global_attention(self, x: Tensor) -> Tensor:
        """Attention of all pixels to the means of windows."""
        h = self.global_heads
        x_w = tap("x_w", F.avg_pool2d(x, self.window_size, ceil_mode=True), "B C Hk Wk")
        q, k, v = (tap(name, rearrange(W(t), "B (h d) H W -> B h (H W) d", h=h), dims)
                   for name, W, t, dims in (("q_g", self.Wq, x, f"B {h} N d"), ("k_g", self.Wk, x_w, f"B {h} Nk d"),
                                            ("v_g", self.Wv, x_w, f"B {h} Nk d")))
        y = attend(q, k, v, name="A", dims=f"B {h} N Nk")
        return rearrange(y, "B h (H W) d -> B (h d) H W", H=x.shape[2])

    def extra_repr(self) -> str:
        return f"channels={self.channels}, global_heads={self.global_heads}, window_size={self.window_size}"


def _groups(group_split: tuple[int, ...], heads: int) -> tuple[int, ...]:
    """`group_split` as a tuple of at least one number of heads; their sum is `heads`."""
    if not isinstance(group_split, tuple | list) or not group_split:
        raise ValueError(f"group_split={group_split!r} must hold the heads of each local branch and of the global one, "
                         "such as (4, 4)")
    groups = tuple(check_int("group_split", h, at_least=0) for h in group_split)
    if sum(groups) != heads:
        raise ValueError(f"group_split={groups} must add up to heads={heads}, not {sum(groups)}")
    return groups
