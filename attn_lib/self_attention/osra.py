"""Overlapping spatial reduction attention: keys from windows that overlap, refined by their neighbours (TransXNet)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_divisible, check_feature_map, check_int
from ..ops import attend, open_size
from ..tap import tap


@register(
    "osra",
    family="self_attention",
    name="Overlapping spatial reduction attention",
    summary="It shrinks the map for the keys by windows that overlap, so that nothing is lost along their edges.",
    aliases=("OSRA", "TransXNet"),
    action="mix",
    papers=[Paper(
        key="lou2023transxnet", venue="arXiv", year=2023, arxiv="2310.19380",
        title="TransXNet: Learning Both Global and Local Dynamics with a Dual Dynamic Token Mixer for Visual "
              "Recognition",
        code="https://github.com/LMMMEng/TransXNet",
    )],
    layout="B C H W",
    example=dict(channels=16, heads=2, ratio=4),
    measured=dict(channels=64, heads=1, ratio=8),
    variants={
        "bias": dict(channels=6, heads=2, ratio=2, height=12, width=16),
        "ratio 1": dict(channels=4, heads=1),
        "odd ratio": dict(channels=6, heads=3, ratio=3),
    },
    builds_on=("mhsa", "emsa"),
    reduces_to={"mhsa": "s = 1, LR = 0, no bias: without positions"},
    errata=[
        Erratum(
            "copies", "s = 1 is said to be plain multi-head self-attention.",
            "The refinement LR stays with s = 1, as in the release; only LR = 0 takes it away.",
            "test_without_reduction_the_refinement_stays"),
        Erratum(
            "release", "What the paper calls a relative position bias is a free number for each pair of query and key.",
            "The same; two pairs of one offset need not agree.",
            "test_the_bias_knows_pairs_and_not_offsets"),
        Erratum(
            "release", "For a map of another size the bias is resized bicubically over the plane of queries and keys, "
            "as if that were a picture; neighbours in it are not neighbours on the map.",
            "The same, for the numbers to agree; with height and width of the map it never happens.",
            "test_the_bias_is_resized_over_queries_and_keys"),
        Erratum(
            "copies", "ReLU behind the reduction, where the release's layers were put together anew.",
            "GELU, as in the release.",
            "test_the_comparison_with_the_paper_notices"),
    ],
)
class OSRAttention(nn.Module):
    """Overlapping spatial reduction attention: Z = softmax(Q Kᵀ / √d + B) V, K and V from Y + LR(Y), Y = OSR(X).

    OSR is a depthwise convolution with kernel s + 3, stride s and padding ⌊(s + 3)/2⌋, so that windows overlap by 3,
    with batch normalisation and GELU, and behind it a factor for each channel with batch normalisation again. With
    s = 1 it is left out. LR, the local refinement, is a depthwise 3 × 3 convolution. Q, K and V are 1 × 1 convolutions
    with biases, in h heads; there is no projection at the end. The bias B holds a number for each head, query and key,
    zero at the start; a map of another size than height × width has it resized. The blocks of a stage of TransXNet
    share one: let their `bias` be the same parameter.

    The keys number ⌈H/s⌉ · ⌈W/s⌉ for an even s, (⌊H/s⌋ + 1) · (⌊W/s⌋ + 1) for an odd s above 1.

    Weights of the release: sr.0.conv, sr.0.bn, sr.1.conv and sr.1.bn are OSR.0, OSR.1, OSR.3 and OSR.4, local_conv is
    LR, q Wq, the rows of kv are Wk and then Wv, relative_pos_enc of the stage is bias, without its first axis.

    Args:
        channels: C, at least 1.
        heads: h, divides C.
        ratio: s, at least 1; 8, 4, 2 and 1 in the stages of TransXNet.
        height, width: of the map that B is made for; None for no bias.

    Shape:
        X (B, C, H, W) → Z (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Lou, Zhang, Zhou, Yang, Wu and Yu, TransXNet: Learning Both Global and Local Dynamics with a Dual Dynamic Token
        Mixer for Visual Recognition, 2023, arXiv 2310.19380.
    """

    def __init__(self, channels: int, *, heads: int = 1, ratio: int = 1, height: int | None = None,
                 width: int | None = None):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.heads = check_int("heads", heads)
        check_divisible("channels", channels, "heads", heads)
        self.ratio = s = check_int("ratio", ratio)
        self.OSR = nn.Identity() if s == 1 else nn.Sequential(
            nn.Conv2d(channels, channels, s + 3, stride=s, padding=(s + 3) // 2, groups=channels, bias=False),
            nn.BatchNorm2d(channels), nn.GELU(),
            nn.Conv2d(channels, channels, 1, groups=channels, bias=False), nn.BatchNorm2d(channels))
        self.LR = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.Wq, self.Wk, self.Wv = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.height, self.width, self.bias = height, width, None
        if (height, width) != (None, None):
            H, W = check_int("height", height), check_int("width", width)
            self.bias = nn.Parameter(torch.zeros(heads, H * W, _reduced(H, s) * _reduced(W, s)))

    def forward(self, x: Tensor) -> Tensor:
        H, W = check_feature_map(x, self.channels).shape[2:]
        y = tap("Y", self.OSR(x), "B C Hk Wk")
        y = tap("Y_LR", y + self.LR(y), "B C Hk Wk")
        Q, K, V = (tap(name, rearrange(conv(t), "B (h d) H W -> B h (H W) d", h=self.heads), dims)
                   for name, conv, t, dims in (("Q", self.Wq, x, "B h N d"), ("K", self.Wk, y, "B h Nk d"),
                                               ("V", self.Wv, y, "B h Nk d")))
        bias = None if self.bias is None else tap("bias", self.resized(Q.shape[2], K.shape[2]).to(Q.dtype), "h N Nk")
        z = attend(Q, K, V, bias=bias, name="A", dims="B h N Nk")
        return tap("Z", rearrange(z, "B h (H W) d -> B (h d) H W", H=H, W=W), "B C H W")

    def resized(self, N: int, Nk: int) -> Tensor:
        """B for another number of queries and keys (h, N, Nk)."""
        assert self.bias is not None
        if not open_size(N, Nk) and self.bias.shape[1:] == (N, Nk):
            return self.bias  # the interpolation would be the identity, and dear
        return F.interpolate(self.bias[None], (N, Nk), mode="bicubic", align_corners=False)[0]

    def extra_repr(self) -> str:
        return f"channels={self.channels}, heads={self.heads}, ratio={self.ratio}, height={self.height}, " \
               f"width={self.width}"


def _reduced(size: int, ratio: int) -> int:
    """Height or width of OSR(X)."""
    return size if ratio == 1 else (size + 2 * ((ratio + 3) // 2) - ratio - 3) // ratio + 1
