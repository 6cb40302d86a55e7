"""Efficient multi-head self-attention: fewer keys, heads that hear each other, a normalised attention map (ResT)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_divisible, check_feature_map, check_int, check_positive
from ..ops import attend, in_float32
from ..tap import tap


@register(
    "emsa",
    family="self_attention",
    name="Efficient multi-head self-attention",
    summary="It attends to a map that a strided convolution has shrunk, and lets the heads mix their logits.",
    aliases=("EMSA", "ResT"),
    action="mix",
    papers=[Paper(
        key="zhang2021rest", venue="NeurIPS", year=2021, arxiv="2105.13677",
        title="ResT: An Efficient Transformer for Visual Recognition",
        code="https://github.com/wofmanaf/ResT",
    )],
    layout="B C H W",
    example=dict(channels=16, heads=4, ratio=4),
    measured=dict(channels=64, heads=1, ratio=8),
    variants={
        "no transform": dict(channels=6, heads=2, ratio=2, transform=False),
        "ratio 1": dict(channels=6, heads=1, ratio=1, transform=True, qkv_bias=False),
        "odd ratio": dict(channels=6, heads=3, ratio=3),
    },
    builds_on=("mhsa",),
    reduces_to={"mhsa": "s = 1, no transform: without positions, and with W_o at the end"},
    errata=[
        Erratum(
            "release", "With a single head it mixes and normalises nothing; the second version, ResTv2, never does.",
            "transform=None does as the release; True is the equation for any number of heads, False the attention of "
            "ResTv2, which adds its values to that, enlarged.",
            "test_a_single_head_is_transformed_on_request_alone"),
        Erratum(
            "paper", "It says that the normalisation lets heads differ again, and not that every row of the map then "
            "sums to 0: the bias of the values is dead, and a uniform attention gives nothing.",
            "The same operator, and what follows from it is said.",
            "test_a_normalised_map_ignores_what_all_values_share"),
        Erratum(
            "copies", "Height and width are given once and for all, 7 × 7 by default.",
            "Any H and W.",
            "test_equals_the_paper"),
        Erratum(
            "copies", "Instance normalisation over the keys of each query, or with a learned scale and shift.",
            "Over all queries and keys of a head at once, and without parameters.",
            "test_the_comparison_with_the_paper_notices"),
    ],
)
class EMSA(nn.Module):
    """Efficient multi-head self-attention: y = W_o IN(softmax(Conv(q kᵀ / √d))) v, k and v from LN(DWConv(x)).

    DWConv is a depthwise convolution with kernel s + 1, stride s and padding ⌊s/2⌋, which leaves Nk keys, about N/s²;
    with s = 1 there is neither it nor LN. Conv mixes the h heads' logits, a 1 × 1 convolution with the heads for
    channels. IN takes from each head's map its mean, which is 1/Nk, and divides by its deviation, √(var + ε), over all
    queries and keys.

    A row of IN(A) sums to 0. So what all values share is lost, the bias of W_v too; attention that is uniform gives
    y = b_o; and what one query gets depends on how the others attend. On large maps a fresh map's variance lies far
    below ε, and y starts near b_o. The biases of W_k and of Conv do nothing either, before a softmax. The map, N × Nk
    for each head, has to exist; without the transform it does not.

    Weights of the release: q is Wq, the rows of kv are Wk and then Wv, sr is DWConv, sr_norm norm, transform_conv Wt,
    proj Wo; where they belong to linear layers here they are 1 × 1 convolutions: add two axes.

    Args:
        channels: C, at least 1.
        heads: h, divides C; 1, 2, 4 and 8 in the stages of ResT.
        ratio: s, at least 1; 8, 4, 2 and 1 in the stages of ResT.
        transform: whether Conv and IN are there; None: with more than one head.
        qkv_bias: whether W_q, W_k and W_v have a bias, as in the released models.
        epsilon: ε of IN, above 0.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1; ≥ 2 with an odd s above 1, whose kernel would not fit.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels, or too small.

    Paper:
        Zhang and Yang, ResT: An Efficient Transformer for Visual Recognition, NeurIPS 2021, arXiv 2105.13677.
    """

    def __init__(self, channels: int, *, heads: int = 8, ratio: int = 1, transform: bool | None = None,
                 qkv_bias: bool = True, epsilon: float = 1e-5):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.heads = check_int("heads", heads)
        check_divisible("channels", channels, "heads", heads)
        self.ratio = check_int("ratio", ratio)
        check_choice("transform", transform, (True, False, None))
        self.epsilon = check_positive("epsilon", epsilon, "without it a uniform attention gives 0/0")
        self.Wq, self.Wk, self.Wv = (nn.Conv2d(channels, channels, 1, bias=qkv_bias) for _ in range(3))
        self.Wo = nn.Conv2d(channels, channels, 1)
        if ratio > 1:
            self.DWConv = nn.Conv2d(channels, channels, ratio + 1, stride=ratio, padding=ratio // 2, groups=channels)
            self.norm = nn.LayerNorm(channels)
        self.Wt = nn.Conv2d(heads, heads, 1) if transform or (transform is None and heads > 1) else None

    def forward(self, x: Tensor) -> Tensor:
        H, W = check_feature_map(x, self.channels).shape[2:]
        x_s = tap("x_s", self.reduce(x), "B C Hk Wk")
        q = tap("q", self.split(self.Wq(x)), "B h N d")
        k, v = tap("k", self.split(self.Wk(x_s)), "B h Nk d"), tap("v", self.split(self.Wv(x_s)), "B h Nk d")
        if self.Wt is None:
            y = attend(q, k, v, name="A", dims="B h N Nk")
        else:
            A = tap("A", self.transformed(q, k), "B h N Nk")
            y = A.to(v.dtype) @ v
        return tap("y", self.Wo(rearrange(y, "B h (H W) d -> B (h d) H W", H=H, W=W)), "B C H W")

    def reduce(self, x: Tensor) -> Tensor:
        """LN(DWConv(x)), or x itself."""
        if self.ratio == 1:
            return x
        least = self.ratio + 1 - 2 * (self.ratio // 2)
        if min(x.shape[2:]) < least:
            raise ValueError(f"x has shape {tuple(x.shape)}; H and W must be at least {least} with ratio={self.ratio}")
        return self.norm(self.DWConv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def transformed(self, q: Tensor, k: Tensor) -> Tensor:
        """IN(softmax(Conv(q kᵀ / √d))), in float32 at least: the variance of a map is far too small for half."""
        assert self.Wt is not None
        logits = in_float32(torch.matmul, q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
        A = in_float32(F.conv2d, logits, self.Wt.weight, self.Wt.bias).softmax(-1)
        centred = A - 1 / A.shape[-1]  # rows sum to 1, so this is their mean; taken away first, nothing cancels
        return torch.group_norm(centred, self.heads, None, None, self.epsilon)  # instance_norm refuses a single number

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "B (h d) H W -> B h (H W) d", h=self.heads)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, heads={self.heads}, ratio={self.ratio}"
