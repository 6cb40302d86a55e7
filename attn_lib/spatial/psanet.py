"""Point-wise spatial attention: every pixel draws a map of whom it listens to, and another of whom it speaks to."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_choice, check_int, check_tensor
from ..ops import at_one_size, in_float32, open_size
from ..tap import tap

BRANCHES = ("both", "collect", "distribute")


@register(
    "psanet",
    family="spatial",
    name="Point-wise spatial attention",
    summary="It predicts from a pixel alone how much each place around it matters, so that where to look can be said "
            "without looking there.",
    aliases=("PSA", "PSANet"),
    action="mix",
    papers=[Paper(
        key="zhao2018psanet", venue="ECCV", year=2018,
        title="PSANet: Point-wise Spatial Attention Network for Scene Parsing",
        code="https://github.com/hszhao/semseg",
    )],
    layout="B C H W",
    output="B O H W",
    example=dict(channels=8, height=12, width=16, reduction=2),
    measured=dict(channels=64, height=12, width=16),
    variants={
        "collect, no softmax": dict(channels=8, height=12, width=16, branches="collect", softmax=False),
        "distribute, compact": dict(channels=8, height=12, width=16, branches="distribute", compact=True),
        "release": dict(channels=8, height=12, width=16, shrink=2),
    },
    builds_on=("non_local",),
    reduces_to={
        "mean": "maps of zeros: all pixels count alike",
        "convolution": "one map for all pixels, without softmax",
    },
    errata=[
        Erratum("paper", "Its sums are divided by the number N of positions.",
                "A softmax over the sources stands for it, as in the release; softmax=False divides by N.",
                "test_without_softmax_sums_are_divided_by_the_positions"),
        Erratum("copies", "Both branches are one class and collect, though one of them is called distribute.",
                "The maps of the distribute branch are turned round: the source draws them, not the target.",
                "test_collect_and_distribute_look_in_opposite_directions"),
        Erratum("release", "With shrink = 2 it fails on a map of even height or width.",
                "The result is brought back to the size of the input, whatever it is; on odd sizes the two agree.",
                "test_shrinking_takes_even_sizes"),
        Erratum("release", "Places beyond a mask that is smaller than (2H − 1)(2W − 1) keep a logit of 0, and the "
                "softmax counts them.", "The map holds every offset, and an input that has more is refused.",
                "test_a_mask_that_is_too_small_leaks"),
        Erratum("copies", "The operator is said to exist for CUDA alone.",
                "It is plain indexing, on any device; the release has one for the CPU, too.", "test_equals_the_paper"),
    ],
)
class PointwiseSpatialAttention(nn.Module):
    """Point-wise spatial attention: z^c_i = Σ_j softmax_j(m^c_i[j − i]) x_j, z^d_i = Σ_j softmax_j(m^d_j[i − j]) x_j.

    The first sum collects: pixel i says how much each offset j − i matters to it. The second distributes: pixel j says
    to which offset its feature matters. Both maps m are over-complete: at every pixel they hold a number for each of
    the (2H − 1)(2W − 1) offsets that occur in the image, of which a pixel uses those H·W that lie on it. With x₁ and x₂
    two reductions of x to Cr = C/r channels (1×1, BN, ReLU), each branch has

        m = W₂ δ(BN(W₁ x₁))      (2H − 1)(2W − 1) channels, all convolutions 1×1 and without bias

    and the output is [x; δ(BN(W [z^c; z^d]))], 2C channels. Memory grows with (HW)², as the paper's maps do.

    Weights of the release load by their names: reduce, attention, reduce_p, attention_p, proj; a single branch has
    reduce and attention.

    Args:
        channels: C, at least 1.
        height, width: largest size of the map, at least 1; smaller maps use the offsets that they have.
        branches: "both", "collect" or "distribute".
        reduction: r, from 1 to C; 4 in the release (2048 to 512). C/r is rounded down.
        shrink: the attention runs on a map of ⌈H/shrink⌉ × ⌈W/shrink⌉, at least 1; the release has 2. Sizes are changed
            bilinearly, with the corner pixels of both maps on each other.
        compact: maps of H·W places of the image in place of offsets, as the release offers; for H = height and
            W = width alone.
        softmax: normalise the weights of each target over its sources; else they are divided by their number.

    Shape:
        x (B, C, H, W) → (B, 2C, H, W), 1 ≤ H ≤ height, 1 ≤ W ≤ width.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels or is larger than
            height × width, or, in training, one image of a single pixel, which BN cannot take.

    Paper:
        Zhao, Zhang, Liu, Shi, Loy, Lin and Jia, PSANet: Point-wise Spatial Attention Network for Scene Parsing,
        ECCV 2018.
    """

    def __init__(self, channels: int, *, height: int, width: int, branches: str = "both", reduction: int = 4,
                 shrink: int = 1, compact: bool = False, softmax: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.out_channels = 2 * channels
        self.height, self.width = check_int("height", height), check_int("width", width)
        check_choice("branches", branches, BRANCHES)
        self.branches = branches
        check_at_most("reduction", check_int("reduction", reduction), "channels", channels)
        self.shrink = check_int("shrink", shrink)
        self.compact, self.softmax = compact, softmax
        Cr, (tall, wide) = channels // reduction, self._small(height, width)
        places = tall * wide if compact else (2 * tall - 1) * (2 * wide - 1)
        self.reduce, self.attention = _conv(channels, Cr), _attention(Cr, places)
        if branches == "both":
            self.reduce_p, self.attention_p = _conv(channels, Cr), _attention(Cr, places)
        self.proj = _conv(2 * Cr if branches == "both" else Cr, channels)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        if self.branches == "both":
            z = torch.cat([self.branch("c", x, self.reduce, self.attention),
                           self.branch("d", x, self.reduce_p, self.attention_p)], 1)
        else:
            z = self.branch(self.branches[0], x, self.reduce, self.attention)
        return tap("y", torch.cat([x, _resize(self.proj(z), *x.shape[2:])], 1), "B O H W")

    def branch(self, name: str, x: Tensor, reduce: nn.Module, attention: nn.Sequential) -> Tensor:
        """z of the collect branch, "c", or of the distribute branch, "d": (B, Cr, Hk, Wk)."""
        x = _resize(reduce(x), *self._small(*x.shape[2:]))
        last: Any = attention[-1]  # an nn.Conv2d
        embedded, W2 = attention[:-1](x), last.weight.flatten(1)
        maps = F.linear(embedded.flatten(2).transpose(1, 2), W2)   # B N K: the map of each pixel in one piece
        m = tap(f"m_{name}", maps.transpose(1, 2).unflatten(2, x.shape[2:]), "B K Hk Wk")
        A = self.on_the_map(m)                                     # B N N: who predicts, and of whom
        A = A.transpose(1, 2) if name == "d" else A                # B N N: targets, and their sources
        A = tap(f"A_{name}", A.softmax(-1) if self.softmax else A / A.shape[-1], "B Nk Nk")
        z = in_float32(torch.matmul, A, x.flatten(2).transpose(1, 2)).transpose(1, 2)
        z = z.unflatten(2, x.shape[2:]).to(x.dtype)
        return tap(f"z_{name}", z, "B Cr Hk Wk")

    def on_the_map(self, m: Tensor) -> Tensor:
        """Of each pixel's map (B, K, H, W) the entries that lie on the image: (B, N, N), row by row."""
        m, H, W = at_one_size(m, 2, 3)
        maps = m.flatten(2).transpose(1, 2)
        if self.compact:
            return maps
        tall, wide = self._small(self.height, self.width)
        row, K = 2 * wide - 1, maps.shape[2]                       # entries in a row of a map, and in a map
        # Maps follow one another. One pixel on, the map begins K further on and a given place lies one entry earlier in
        # it; one row on, K · W further on and one row earlier. So what lies on the image is a view.
        A = maps.contiguous().as_strided((len(m), H, W, H, W), (H * W * K, W * K - row, K - 1, row, 1),
                                         (tall - 1) * row + wide - 1)
        return A.flatten(3).flatten(1, 2)

    def _small(self, H: int, W: int) -> tuple[int, int]:
        return (H - 1) // self.shrink + 1, (W - 1) // self.shrink + 1

    def _check(self, x: Tensor) -> None:
        check_tensor(x, "B C H W", {"C": self.channels})
        for axis, size, name, limit in zip("HW", x.shape[2:], ("height", "width"), (self.height, self.width),
                                           strict=True):
            if size > limit or (self.compact and size != limit):
                rule = "equal" if self.compact else "be at most"
                raise ValueError(f"x has {axis}={size}; it must {rule} {name}={limit}, for which the module was made")
        if self.training and len(x) == 1 and max(x.shape[2:]) <= self.shrink:
            raise ValueError("x is a batch of 1 whose map has one pixel for the attention; in training it must hold 2 "
                             "images or more, for the BN")

    def extra_repr(self) -> str:
        names = ("channels", "height", "width", "branches", "shrink", "compact", "softmax")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _conv(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU())


def _attention(channels: int, places: int) -> nn.Sequential:
    return nn.Sequential(*_conv(channels, channels), nn.Conv2d(channels, places, 1, bias=False))


def _resize(x: Tensor, H: int, W: int) -> Tensor:
    """Bilinear with the corner pixels on each other, as the release has it, where the size differs at all."""
    if not open_size(*x.shape[2:], H, W) and x.shape[2:] == (H, W):
        return x
    return F.interpolate(x, (H, W), mode="bilinear", align_corners=True).to(x.dtype)
