"""Self-calibrated convolution: half of the channels is gated by its own surroundings, seen at a coarser scale."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_divisible, check_feature_map, check_int
from ..ops import resize
from ..tap import tap

UP = ("bilinear", "nearest")


@register(
    "scnet",
    family="channel_spatial",
    name="Self-calibrated convolution",
    summary="It looks around each place at a coarser scale before it decides how much of a convolution passes there.",
    aliases=("SCNet", "SC-Conv", "self-calibrated convolutions"),
    action="gate",
    papers=[Paper(
        key="liu2020improving", venue="CVPR", year=2020,
        title="Improving Convolutional Networks With Self-Calibrated Convolutions",
        code="https://github.com/MCG-NKU/SCNet",
    )],
    layout="B C H W",
    output="B C Ho Wo",
    example=dict(channels=64),
    variants={
        "release": dict(channels=8, up="nearest", norm=True, project=True),
        "stride 2": dict(channels=6, stride=2, pooling_r=3),
    },
    builds_on=("se",),
    reduces_to={
        "convolution": "with norm, bias of BN₂ → ∞: the gate is open",
        "SiLU": "K₂ = 0, and K₁, K₃, K₄ the identity: of the first half, the second as it was",
    },
    errata=[
        Erratum("release", "Two 1 × 1 convolutions, each with batch normalisation and ReLU, make the two halves.",
                "The channels are cut in the middle, as in the paper; `project=True` is the release.",
                "test_the_release_projects_and_normalises"),
        Erratum("release", "Batch normalisation follows every convolution, and a ReLU each path.",
                "Convolutions stand alone, as in eqs. 2 to 5; `norm=True` adds both.",
                "test_the_release_projects_and_normalises"),
        Erratum("release", "The context is enlarged by repeating pixels.",
                "It is enlarged bilinearly, as in the paper; `up=\"nearest\"` is the release.",
                "test_the_release_repeats_the_pixels_of_the_context"),
        Erratum("release", "Rows and columns that do not fill a pooling window are dropped, on a 7 × 7 map rows 4 to "
                "6, and a map of fewer than 4 stops.", "The last windows are smaller and nothing is dropped; any size "
                "works.", "test_the_last_rows_enter_the_context"),
        Erratum("release", "The half of K₁ comes first in the output.", "The calibrated half comes first, as in the "
                "paper's figure: exchange the halves of the next layer's input to use the release's weights.",
                "test_the_release_projects_and_normalises"),
    ],
)
class SelfCalibratedConv(nn.Module):
    """Self-calibrated convolution: y = [Y₁; Y₂] of the two halves X₁ and X₂ of the channels.

        T₁  = AvgPool_r(X₁)                   means of r × r windows
        X₁' = Up(K₂ * T₁)                     the context, at the size of X₁ again
        Y₁' = (K₃ * X₁) ⊙ σ(X₁ + X₁')         the calibration
        Y₁  = K₄ * Y₁'
        Y₂  = K₁ * X₂

    K₁ … K₄ are 3 × 3 convolutions of C/2 channels without biases, as many weights as one of C. The gate of a place sees
    its window and those around it, at r = 4 twelve rows and columns, where a convolution sees three. Where r does not
    divide H or W the last windows hold the pixels that are left, and their mean is over those; the context is enlarged
    r times and cut to H × W, so that every pixel stays in its window.

    Names of the release's weights: `k1.0` and `k1.1` are K1 and norm1, `scconv.k2.1` and `.2` K2 and norm2, and so on;
    `conv1_a`, `bn1_a` are Wa and norm_a, which make X₂, `conv1_b`, `bn1_b` are Wb and norm_b, which make X₁.

    Args:
        channels: C, even.
        stride: of K₁ and K₄, at least 1.
        pooling_r: r, at least 1.
        up: "bilinear" or "nearest".
        norm: batch normalisation behind K₁ … K₄, and a ReLU at the end of both paths.
        project: make the halves by 1 × 1 convolutions of all channels, with batch normalisation and ReLU.

    Shape:
        x (B, C, H, W) → y (B, C, Ho, Wo), Ho = ⌈H/stride⌉, Wo = ⌈W/stride⌉, any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Liu, Hou, Cheng, Wang and Feng, Improving Convolutional Networks With Self-Calibrated Convolutions, CVPR 2020.
    """

    def __init__(self, channels: int, *, stride: int = 1, pooling_r: int = 4, up: str = "bilinear", norm: bool = False,
                 project: bool = False):
        super().__init__()
        self.channels = check_int("channels", channels)
        half = check_divisible("channels", channels, "halves", 2)
        self.stride = check_int("stride", stride)
        self.pooling_r = check_int("pooling_r", pooling_r)
        check_choice("up", up, UP)
        self.up, self.project = up, project

        def K(stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(half, half, 3, stride, padding=1, bias=False)

        self.K1, self.K2, self.K3, self.K4 = K(stride), K(), K(), K(stride)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.BatchNorm2d(half) if norm else nn.Identity()
                                                          for _ in range(4))
        self.relu = nn.ReLU() if norm else nn.Identity()
        if project:
            self.Wa, self.Wb = (nn.Conv2d(channels, half, 1, bias=False) for _ in range(2))
            self.norm_a, self.norm_b = nn.BatchNorm2d(half), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        X1, X2 = self.halves(x)
        X1, X2 = tap("X1", X1, "B S H W"), tap("X2", X2, "B S H W")
        T1 = tap("T1", F.avg_pool2d(X1, self.pooling_r, ceil_mode=True), "B S P Q")       # eq. 2
        context = tap("X1'", self.enlarge(self.norm2(self.K2(T1)), X1), "B S H W")        # eq. 3
        g = tap("g", torch.sigmoid(X1 + context), "B S H W")
        calibrated = tap("Y1'", self.norm3(self.K3(X1)) * g, "B S H W")                   # eq. 4
        Y1 = tap("Y1", self.relu(self.norm4(self.K4(calibrated))), "B S Ho Wo")           # eq. 5
        Y2 = tap("Y2", self.relu(self.norm1(self.K1(X2))), "B S Ho Wo")
        return tap("y", torch.cat([Y1, Y2], 1), "B C Ho Wo")

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X₁, which is calibrated, and X₂, which is not."""
        if self.project:
            return F.relu(self.norm_b(self.Wb(x))), F.relu(self.norm_a(self.Wa(x)))
        X1, X2 = x.chunk(2, 1)
        return X1, X2

    def enlarge(self, t: Tensor, like: Tensor) -> Tensor:
        """The context r times as large, cut to the map that it came from: windows at the end may be smaller."""
        H, W = like.shape[2:]
        down, right = (n * self.pooling_r for n in t.shape[2:])
        t = resize(t, down, right, self.up)
        return F.pad(t, (0, W - right, 0, H - down))  # cut: a slice ties a recorded graph to its size

    def extra_repr(self) -> str:
        names = ("channels", "stride", "pooling_r", "up", "project")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
