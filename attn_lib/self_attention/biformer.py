"""Bi-level routing attention: regions choose regions, then pixels attend within what their region chose (BiFormer)."""

import torch
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_choice, check_divisible, check_feature_map, check_int, check_odd
from ..ops import attend, ceil_div, cropped, in_float32, open_size, pad_to_multiple, unwindows, windows
from ..tap import tap

SCALES = ("head", "dim")


@register(
    "biformer",
    family="self_attention",
    name="Bi-level routing attention",
    summary="It asks first which regions matter to a region, and looks at single pixels only there.",
    aliases=("BRA", "BiFormer"),
    action="mix",
    papers=[Paper(
        key="zhu2023biformer", venue="CVPR", year=2023, arxiv="2303.08810",
        title="BiFormer: Vision Transformer with Bi-Level Routing Attention",
        code="https://github.com/rayleizhu/BiFormer",
    )],
    layout="B C H W",
    example=dict(channels=64, heads=2),
    variants={
        "divides": dict(channels=12, heads=3, regions=4, topk=2, lepe_kernel=3),
        "all regions": dict(channels=6, heads=1, regions=2, topk=4),
        "release": dict(channels=8, heads=2, regions=3, topk=1, scale="dim"),
    },
    forbids={"half": "a hard choice: rounding decides between regions that are nearly equal, and the output jumps"},
    builds_on=("mhsa",),
    reduces_to={
        "mhsa": "K = S², LCE = 0: all pixels, without positions, and W_o at the end",
        "window attention": "K = 1, where every region chooses itself",
    },
    errata=[
        Erratum("release",
                "Logits are divided by √C, however many heads there are.",
                "They are divided by √d, d the width of a head; `scale=\"dim\"` is for the release's weights.",
                "test_trap_the_release_scales_by_the_whole_width"),
        Erratum("release",
                "Where S does not divide the map, x is padded before the projections, and the padding takes part as "
                "keys and in the means.",
                "Padding is no key, and counts in no mean.",
                "test_trap_padding_that_takes_part"),
        Erratum("release",
                "Its later version leaves the padding out of the means, but in the attention zeros are still keys.",
                "Padding is no key.",
                "test_trap_padding_that_takes_part"),
        Erratum("release",
                "Its later version rounds the size of a region down: a side of 15 in 7 regions becomes 8 regions.",
                "It is rounded up, to S regions a side, of which the last may be empty.",
                "test_equals_the_equations"),
        Erratum("release",
                "Keys are gathered by `torch.gather`, whose gradient holds all S² regions for every region.",
                "Rows of one list are taken, and no tensor is larger than what was gathered.",
                "test_gathering_makes_nothing_larger_than_what_was_gathered"),
    ],
)
class BiLevelRoutingAttention(nn.Module):
    """Bi-level routing attention: y = W_o (Attention(q, K_g, V_g) + LCE(v)), K_g and V_g from the K best regions.

    The map is cut into S × S regions. With q, k, v = 1×1 convolutions of x, and q_r, k_r their means over each region,

        A_r = q_r k_rᵀ (S² × S²),   I_r = the K largest of each row,
        K_g, V_g = keys and values of all pixels in the regions I_r,   Attention = softmax(q K_gᵀ / √d) V_g,

    so that a pixel sees K·HW/S² pixels. LCE is a depthwise convolution. The choice itself has no gradient. (The paper
    writes k for K; here k are the keys.)

    Where S does not divide H or W the last regions are cut smaller: padded pixels are no keys, count in no mean, and a
    region without a real pixel is never preferred to one with.

    Args:
        channels: C, at least 1.
        heads: h, divides C; the release has C/32.
        regions: S, at least 1; 7 in the paper.
        topk: K, from 1 to S².
        lepe_kernel: of LCE, odd; 5 in the paper.
        scale: "head" for 1/√d with d = C/h, "dim" for 1/√C, as in the release.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Zhu, Wang, Ke, Zhang and Lau, BiFormer: Vision Transformer with Bi-Level Routing Attention, CVPR 2023,
        arXiv 2303.08810.
    """

    def __init__(self, channels: int, *, heads: int = 8, regions: int = 7, topk: int = 4, lepe_kernel: int = 5,
                 scale: str = "head"):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.heads = check_int("heads", heads)
        d = check_divisible("channels", channels, "heads", heads)
        self.regions = check_int("regions", regions)
        self.topk = check_int("topk", topk)
        check_at_most("topk", topk, "regions**2", regions**2)
        check_odd("lepe_kernel", lepe_kernel)
        check_choice("scale", scale, SCALES)
        self.scale = (d if scale == "head" else channels) ** -0.5
        self.Wq, self.Wk, self.Wv, self.Wo = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        self.LCE = nn.Conv2d(channels, channels, lepe_kernel, padding=lepe_kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        S, (H, W) = self.regions, x.shape[2:]
        rows, cols = ceil_div(H, S), ceil_div(W, S)  # of a region
        v_map = self.Wv(x)
        q, k, v = (windows(pad_to_multiple(t, S, S)[0], rows, cols) for t in (self.Wq(x), self.Wk(x), v_map))
        q, k, v = tap("q", q, "B R n C"), tap("k", k, "B R n C"), tap("v", v, "B R n C")
        real = windows(pad_to_multiple(x[:1, :1], S, S)[1][None, None], rows, cols)[0, :, :, 0]  # R n, False is padding

        I_r = self.route(q, k, real)
        K_g, V_g = tap("K_g", _gather(k, I_r), "B R K n C"), tap("V_g", _gather(v, I_r), "B R K n C")
        whole = not open_size(H, W) and (H, W) == (S * rows, S * cols)
        y = self.attention(q, K_g, V_g, None if whole else real[I_r])
        y = cropped(unwindows(y, rows, cols, S * rows, S * cols), H, W) + tap("LCE", self.LCE(v_map), "B C H W")
        return tap("y", self.Wo(y), "B C H W")

    def route(self, q: Tensor, k: Tensor, real: Tensor) -> Tensor:
        """I_r (B, R, K): the K regions that each region's mean query likes best."""
        size = real.sum(1)[:, None]
        dtype = torch.promote_types(q.dtype, torch.float32)  # sums over pixels, products of features
        q_r, k_r = (tap(name, t.detach().sum(2, dtype=dtype) / size.clamp(min=1), "B R C")
                    for name, t in (("q_r", q), ("k_r", k)))
        A_r = in_float32(torch.matmul, q_r, k_r.transpose(-2, -1)).masked_fill(size.T == 0, -torch.inf)
        return tap("I_r", tap("A_r", A_r, "B R R").topk(self.topk, sorted=False).indices, "B R K")

    def attention(self, q: Tensor, K_g: Tensor, V_g: Tensor, real: Tensor | None) -> Tensor:
        """Attention of each region's pixels (B, R, n, C) to the gathered ones (B, R, K, n, C) that are real."""
        bias = None
        if real is not None:
            bias = rearrange(q.new_zeros(real.shape).masked_fill(~real, -torch.inf), "B R K n -> (B R) 1 1 (K n)")
        R = q.shape[1]
        q = rearrange(q, "B R n (h d) -> (B R) h n d", h=self.heads)
        K_g, V_g = (rearrange(t, "B R K n (h d) -> (B R) h (K n) d", h=self.heads) for t in (K_g, V_g))
        y = attend(q, K_g, V_g, scale=self.scale, bias=bias, name="A", dims="B*R h n K*n")
        return rearrange(y, "(B R) h n d -> B R n (h d)", R=R)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, heads={self.heads}, regions={self.regions}, topk={self.topk}"


def _gather(t: Tensor, I_r: Tensor) -> Tensor:
    """The chosen regions (B, R, K, n, C) of t (B, R, n, C).

    Rows of one long list of regions: torch.gather on an expanded tensor would have a gradient with R² regions.
    """
    B, R = t.shape[:2]
    return t.flatten(0, 1)[I_r + R * torch.arange(B, device=t.device)[:, None, None]]
