"""Residual attention: a small hourglass looks at the map from far away and says, place by place, what to amplify."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_choice, check_feature_map, check_int
from ..tap import tap

MASK = ("mixed", "channel", "spatial")
TINY = 1e-12


class ResidualUnit(nn.Module):
    """Pre-activation residual unit: y = x + W₃ * δ(BN(W₂ * δ(BN(W₁ * δ(BN(x)))))), δ = ReLU.

    W₁ is a 1 × 1 convolution to C/r channels, W₂ a 3 × 3 convolution of them, W₃ leads back; none has a bias. In the
    release they are `conv1_1x1`, `conv2_3x3` and `conv3_1x1`, and norm1 the normalisation of what the unit reads.

    Args:
        channels: C, at least 1.
        reduction: from 1 to C; C/r is rounded down.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.
    """

    def __init__(self, channels: int, *, reduction: int = 4):
        super().__init__()
        Cr = channels // reduction
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(channels), nn.BatchNorm2d(Cr), nn.BatchNorm2d(Cr)
        self.W1 = nn.Conv2d(channels, Cr, 1, bias=False)
        self.W2 = nn.Conv2d(Cr, Cr, 3, padding=1, bias=False)
        self.W3 = nn.Conv2d(Cr, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.W1(F.relu(self.norm1(x)))
        y = self.W2(F.relu(self.norm2(y)))
        return x + self.W3(F.relu(self.norm3(y)))


@register(
    "residual_attention",
    family="channel_spatial",
    name="Residual attention",
    summary="It finds out where to look at a coarser scale, and adds what it amplifies to what was there, so that many "
            "can be stacked.",
    aliases=("RAN", "residual attention network", "attention module"),
    action="gate",
    papers=[Paper(
        key="wang2017residual", venue="CVPR", year=2017, arxiv="1704.06904",
        title="Residual Attention Network for Image Classification",
        code="https://github.com/fwang91/residual-attention-network",
    )],
    layout="B C H W",
    example=dict(channels=16, levels=1, t=1),
    measured=dict(channels=64),
    variants={
        "three levels": dict(channels=8, levels=3, t=1),
        "naive": dict(channels=8, levels=2, t=1, residual=False, align_corners=True),
        "channel": dict(channels=8, levels=1, t=1, mask="channel"),
        "spatial": dict(channels=8, levels=1, t=1, mask="spatial"),
    },
    reduces_to={
        "identity": "units of the trunk 0, M = 0",
        "constant gate": "units of the trunk 0, W₂ = 0: M = ½, y = 1½ · x",
    },
    errata=[
        Erratum("copies", "The map is multiplied by the mask alone, and shrinks with every module that is stacked.",
                "The mask is added to 1, as in the paper's eq. 3; `residual=False` is what the paper calls naive.",
                "test_stacked_naive_masks_shrink_the_map_and_residual_ones_do_not"),
        Erratum("copies", "The sizes of the hourglass are written for inputs of 224 × 224.",
                "Every level is enlarged to the size of its partner, as in the release; any size works.",
                "test_any_size_returns_to_its_own"),
        Erratum("copies", "The 3 × 3 pools are padded by one pixel, so that their windows are centred on even rows.",
                "They are not padded and round up, as in the release: windows begin at even rows, and the last is cut.",
                "test_pools_are_not_padded_and_round_up"),
        Erratum("release", "Maps are enlarged with the corners of both at the same place, by Caffe's Interp layer.",
                "The borders are at the same place, as everywhere in this library; the paper says no more than "
                "bilinear, and `align_corners=True` is the release.", "test_the_release_aligns_the_corners"),
        Erratum("copies", "The mask branch reads what the module reads.", "It reads what the first unit makes of it, "
                "as in the paper's figure, p = 1, and in the release.", "test_the_comparison_with_the_paper_notices"),
        Erratum("copies", "A popular file of this name holds another paper, residual attention for multi-label "
                "recognition, which returns one score a class.", "The module of the Residual Attention Network, from "
                "a map to a map.", "test_a_popular_file_of_this_name_returns_scores"),
    ],
)
class ResidualAttentionModule(nn.Module):
    """Residual attention: y = post(z) with z = (1 + M) · T, the trunk T = trunk(u), the mask M = mask(u), u = pre(x).

    pre and post are p pre-activation residual units, trunk is t of them: see `ResidualUnit`. The mask is an hourglass:

        down     for each of the levels, 3 × 3 max pooling with stride 2, then r units; the lowest level has r more
        up       enlarged bilinearly to the size of the level above, whose map is added by way of a unit, then r units;
                 the last step leads to the size of u, where nothing is added
        end      s = W₂ * δ(BN(W₁ * δ(BN(·)))), 1 × 1 convolutions of C channels, and one of

        mixed    M = σ(s)
        channel  M = s / ‖s‖, over the channels at every position
        spatial  M = σ((s − mean s) / std s), over the positions of every channel

    z is the paper's H, and its figures have 3, 2 and 1 levels for the stages of its network, on maps of 56, 28 and 14.
    Sizes need not be divisible: pools round up and cut their last window, a level of one row or column stays one, and
    what is enlarged gets the size of its partner, so that every pixel of u counts.

    Names of the release's weights, for a module A: `trunk/res1` is pre.0 and `trunk/res2`, `res3` are trunk.0 and 1;
    `mask/down_sample/res1_1` is down.0.0 and so on, the second unit of the lowest level is bottom.0, `mask/skip/res1`
    skip.0 and `mask/up_sample/res1_1` up.0.0; `mask/linear_1` and `_2` are W1 and W2; `A/branch1` is post.0.

    Args:
        channels: C, at least 1.
        levels: max pools of the mask, at least 1.
        p: units before the two branches part, and after they have met, at least 0.
        t: units of the trunk, at least 0.
        r: units between two pools, at least 1.
        reduction: units have C/reduction channels within, rounded down; from 1 to C, 4 in the release.
        mask: "mixed", "channel" or "spatial".
        residual: whether z = (1 + M) · T, or z = M · T.
        align_corners: of what is enlarged, as in `F.interpolate`.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or, in training, a
            single image of which the lowest level keeps one pixel.

    Paper:
        Wang, Jiang, Qian, Yang, Li, Zhang, Wang and Tang, Residual Attention Network for Image Classification,
        CVPR 2017, arXiv 1704.06904.
    """

    def __init__(self, channels: int, *, levels: int = 3, p: int = 1, t: int = 2, r: int = 1, reduction: int = 4,
                 mask: str = "mixed", residual: bool = True, align_corners: bool = False):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.levels = check_int("levels", levels)
        self.reduction = check_int("reduction", reduction)
        check_at_most("reduction", reduction, "channels", channels)
        check_choice("mask", mask, MASK)
        self.mask, self.residual, self.align_corners = mask, residual, align_corners
        check_int("p", p, at_least=0), check_int("t", t, at_least=0), check_int("r", r)

        def units(n: int) -> nn.Sequential:
            return nn.Sequential(*(ResidualUnit(channels, reduction=reduction) for _ in range(n)))

        self.pre, self.trunk, self.post = units(p), units(t), units(p)
        self.down = nn.ModuleList(units(r) for _ in range(levels))
        self.bottom = units(r)
        self.skip = nn.ModuleList(ResidualUnit(channels, reduction=reduction) for _ in range(levels - 1))
        self.up = nn.ModuleList(units(r) for _ in range(levels - 1))
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.W1, self.W2 = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        least = 2 ** (self.levels + 1)
        if self.training and len(x) == 1 and max(x.shape[2:]) < least:
            raise ValueError(f"x is a batch of 1, of which {self.levels} levels leave one pixel; in training it must "
                             f"hold 2 images or more, or a side of {least}, for the BN of that level")
        u = tap("u", self.pre(x), "B C H W")
        T = tap("T", self.trunk(u), "B C H W")
        s = tap("s", self.hourglass(u), "B C H W")
        M = tap("M", self.squash(s).to(T.dtype), "B C H W")
        z = tap("z", (1 + M) * T if self.residual else M * T, "B C H W")                  # eq. 3, or eq. 1
        return tap("y", self.post(z), "B C H W")

    def hourglass(self, u: Tensor) -> Tensor:
        """s, the mask before it is squashed."""
        maps = [u]
        for units in self.down:
            maps.append(units(_halved(maps[-1])))
        s = self.bottom(maps.pop())
        for skip, units in zip(reversed(self.skip), reversed(self.up), strict=True):
            partner = maps.pop()
            s = units(skip(partner) + self.enlarge(s, partner))
        s = self.enlarge(s, u)
        s = self.W1(F.relu(self.norm1(s)))
        return self.W2(F.relu(self.norm2(s)))

    def enlarge(self, s: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(s, like.shape[2:], mode="bilinear", align_corners=self.align_corners)

    def squash(self, s: Tensor) -> Tensor:
        """M: eqs. 4 to 6."""
        if self.mask == "mixed":
            return torch.sigmoid(s)
        s = s.to(torch.promote_types(s.dtype, torch.float32))  # squares
        if self.mask == "channel":
            return s * s.square().sum(1, keepdim=True).clamp_min(TINY).rsqrt()
        d = s - s.mean((2, 3), keepdim=True)
        return torch.sigmoid(d * d.square().mean((2, 3), keepdim=True).clamp_min(TINY).rsqrt())

    def extra_repr(self) -> str:
        names = ("channels", "levels", "reduction", "mask", "residual")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _halved(x: Tensor) -> Tensor:
    """Maxima of 3 × 3 windows that begin at even rows and columns; the last are cut, and a single row stays one."""
    H, W = x.shape[2:]
    if H == 1 or W == 1:  # a graph that was recorded with more does not run with one
        x = F.pad(x, (0, int(W == 1), 0, int(H == 1)), mode="replicate")
    return F.max_pool2d(x, 3, 2, ceil_mode=True)
