"""Inverted residual mobile block: an inverted bottleneck that holds windowed attention beside its convolution (EMO)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_divisible, check_feature_map, check_int, check_odd, check_positive
from ..ops import attend, cropped, open_size, pad_to_multiple, unwindows, windows
from ..tap import tap

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}
NORMS = ("layer", "batch", None)
PADDING = ("masked", "zeros")


@register(
    "emo",
    family="self_attention",
    name="Inverted residual mobile block",
    summary="It puts attention into the widened middle of a mobile block, where only the convolution was.",
    aliases=("iRMB", "EMO", "EW-MHSA", "inverted residual mobile block"),
    action="mix",
    papers=[Paper(
        key="zhang2023rethinking", venue="ICCV", year=2023, arxiv="2301.01146",
        title="Rethinking Mobile Block for Efficient Attention-based Models",
        code="https://github.com/zhangzjn/EMO",
    )],
    layout="B C H W",
    output="B O Ho Wo",
    example=dict(channels=16, heads=2, expansion=2.0, window=5),
    measured=dict(channels=64),
    variants={
        "release": dict(channels=12, heads=3, expansion=2.5, window=4, attend_first=True, padding="zeros"),
        "whole map": dict(channels=8, heads=2, expansion=1.5, window=None, norm="batch", activation="silu"),
        "no attention": dict(channels=6, out_channels=9, stride=2, heads=1, attention=False, norm=None),
    },
    builds_on=("mhsa",),
    reduces_to={
        "identity": "W_o = 0",
        "self-attention": "a window ≥ H and W, γ = β = 0 in the BN of the depthwise convolution: V attended to, "
                          "between the norm and W_o",
    },
    errata=[
        Erratum(
            "release",
            "All four models attend before they expand: the softmax acts on the normalised input, W_v and its "
            "activation come behind it.",
            "As the paper's equations and the class's default: the attention acts on the expanded values; "
            "`attend_first=True` is the models'.",
            "test_trap_attention_before_or_behind_the_expansion"),
        Erratum(
            "release",
            "Where the window does not divide the map, the padded pixels are keys like any other: they hold the bias "
            "of W_qk, and the values that zeros have.",
            "They are masked; `padding=\"zeros\"` is the release's.",
            "test_trap_padding_that_takes_part"),
        Erratum(
            "copies",
            "A window is taken to be a block of neighbours.",
            "Its pixels lie H/w rows and W/w columns apart, so that every window spans the map.",
            "test_trap_windows_are_interleaved"),
        Erratum(
            "copies",
            "Without attention the block is called MobileNetV2's.",
            "It is another one: a norm in front and none behind W_v and W_o, SiLU and a skip of its own around the "
            "depthwise convolution.",
            "test_trap_without_attention_it_is_not_the_block_of_mobilenet_v2"),
    ],
)
class InvertedResidualMobileBlock(nn.Module):
    """Inverted residual mobile block: y = x + W_o (X_a + D(X_a)) with X_a = softmax(q kᵀ / √d) V, V = φ(W_v x̂).

    x̂ = norm(x). V is widened to λC channels, φ is an activation; q and k are not, [q; k] = W_qk x̂ has C channels each.
    The attention runs within windows of w × w pixels and h heads. D = SiLU(BN(depthwise convolution)), and W_v, W_qk
    and W_o are 1×1 convolutions, the last without a bias. Both skips, the inner one around D too, are there only where
    the block keeps the size: stride 1 and as many channels at the end as at the start.

    The windows are interleaved: with n₁ = ⌈H/w⌉ and n₂ = ⌈W/w⌉ a window holds the pixels whose rows are equal modulo n₁
    and whose columns are equal modulo n₂. ε is 1e-6 in all norms.

    To load the release's weights: `norm` is `norm` (`norm.norm` with layer normalisation), `qk.conv`, `v.conv` and
    `proj.conv` are Wqk, Wv and Wo, `conv_local.conv` and `.norm` are D and norm_d.

    Args:
        channels: C, divisible by `heads`.
        out_channels: O; C when None.
        expansion: λ, at least 1/C; λC is rounded down and must be divisible by `heads`.
        heads: h; the release has C/20 or so, and asks for the width of one.
        window: w, or None for one window over the whole map; 7 in the paper.
        kernel_size: of the depthwise convolution, odd; 3 or 5 in the paper.
        stride: of the depthwise convolution, at least 1.
        attention: whether there is attention; without it X_a = V.
        attend_first: V = φ(W_v softmax(q kᵀ / √d) x̂), as in the released models.
        norm: "layer", over the channels of each pixel, "batch", or None.
        activation: φ, "gelu", "silu" or "relu"; the paper has the first behind layer, the second behind batch
            normalisation.
        padding: "masked", padded pixels are no keys; "zeros", they are pixels of x̂ that hold zeros.
        qkv_bias: whether W_qk and W_v have a bias.

    Shape:
        x (B, C, H, W) → y (B, O, Ho, Wo), Ho = ⌈H/stride⌉, Wo = ⌈W/stride⌉, any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Zhang, Li, Li, Liu, Xue, Zhang, Jiang, Huang, Wang and Wang, Rethinking Mobile Block for Efficient
        Attention-based Models, ICCV 2023, arXiv 2301.01146.
    """

    def __init__(self, channels: int, out_channels: int | None = None, *, expansion: float = 4.0, heads: int = 4,
                 window: int | None = 7, kernel_size: int = 3, stride: int = 1, attention: bool = True,
                 attend_first: bool = False, norm: str | None = "layer", activation: str = "gelu",
                 padding: str = "masked", qkv_bias: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.out_channels = check_int("out_channels", channels if out_channels is None else out_channels)
        Ce = check_int("int(expansion * channels)", int(check_positive("expansion", expansion) * channels))
        self.heads = check_int("heads", heads)
        self.window = None if window is None else check_int("window", window)
        self.stride = check_int("stride", stride)
        check_odd("kernel_size", kernel_size)
        check_choice("norm", norm, NORMS)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("padding", padding, PADDING)
        self.attention, self.attend_first = attention, attend_first
        self.activation, self.padding = activation, padding
        self.skip = stride == 1 and self.out_channels == channels

        norms = {"layer": nn.LayerNorm, "batch": nn.BatchNorm2d}
        self.norm = nn.Identity() if norm is None else norms[norm](channels, eps=1e-6)
        if attention:
            check_divisible("channels", channels, "heads", heads)
            if not attend_first:
                check_divisible("int(expansion * channels)", Ce, "heads", heads)
            self.Wqk = nn.Conv2d(channels, 2 * channels, 1, bias=qkv_bias)
        self.Wv = nn.Conv2d(channels, Ce, 1, bias=qkv_bias)
        self.D = nn.Conv2d(Ce, Ce, kernel_size, stride, kernel_size // 2, groups=Ce, bias=False)
        self.norm_d = nn.BatchNorm2d(Ce, eps=1e-6)
        self.Wo = nn.Conv2d(Ce, self.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        x_hat = tap("x_hat", self.normalise(x), "B C H W")
        X_a = self.mix(x_hat) if self.attention else self.expand(x_hat)
        X_a = tap("X_a", X_a, "B Ce H W")
        X_f = F.silu(self.norm_d(self.D(X_a)))
        X_f = tap("X_f", X_a + X_f if self.skip else X_f, "B Ce Ho Wo")
        y = self.Wo(X_f)
        return tap("y", x + y if self.skip else y, "B O Ho Wo")

    def normalise(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(x)

    def expand(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](self.Wv(x))

    def mix(self, x_hat: Tensor) -> Tensor:
        """X_a by attention within interleaved windows, channels last in memory, as tokens have them."""
        H, W = x_hat.shape[2:]
        w = (H, W) if self.window is None else (self.window, self.window)
        x_hat, real = pad_to_multiple(x_hat, *w)
        tokens = windows(x_hat, *w, interleaved=True)
        q, k = _of_tokens(self.Wqk, tokens).chunk(2, -1)
        q, k = tap("q", q, "B R n C"), tap("k", k, "B R n C")
        V = tap("V", tokens, "B R n C") if self.attend_first else tap("V", _of_tokens(self.expand, tokens), "B R n Ce")
        bias = None
        if self.padding == "masked" and (open_size(H, W) or x_hat.shape[2:] != (H, W)):
            real = windows(real[None, None], *w, interleaved=True)[0, :, None, None, :, 0]  # R 1 1 n
            bias = x_hat.new_zeros(real.shape).masked_fill(~real, -torch.inf).repeat(len(q), 1, 1, 1)
        R = q.shape[1]
        q, k, V = (rearrange(t, "B R n (h d) -> (B R) h n d", h=self.heads) for t in (q, k, V))
        y = attend(q, k, V, bias=bias, name="A", dims="B*R h n n")
        y = rearrange(y, "(B R) h n d -> B R n (h d)", R=R)
        y = _of_tokens(self.expand, y) if self.attend_first else y
        return cropped(unwindows(y, *w, *x_hat.shape[2:], interleaved=True), H, W)

    def extra_repr(self) -> str:
        names = ("channels", "out_channels", "heads", "window", "stride", "attention", "attend_first", "padding")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _of_tokens(W: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A 1×1 convolution of tokens (B, R, n, C), which are a map whose channels come last in memory."""
    return W(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
