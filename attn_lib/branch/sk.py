"""Selective kernel attention: every channel chooses, image by image, how wide its kernel is."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_divisible, check_feature_map, check_int
from ..tap import tap


@register(
    "sk",
    family="branch",
    name="Selective kernel",
    summary="It looks at the whole image before each channel chooses between a narrow and a wide kernel.",
    aliases=("SK", "SKNet", "Selective Kernel"),
    action="mix",
    papers=[Paper(
        key="li2019selective", venue="CVPR", year=2019, arxiv="1903.06586",
        title="Selective Kernel Networks",
        code="https://github.com/implus/SKNet",
    )],
    layout="B C H W",
    output="B O Ho Wo",
    example=dict(channels=64),
    variants={
        "three branches": dict(channels=12, dilations=(1, 2, 3), groups=4, reduction=4, min_dim=2),
        "stride 2": dict(channels=6, out_channels=9, stride=2, groups=3, min_dim=4),
    },
    commutes_with={"translation"},
    forbids={"batch_one": "z is normalised over the batch, and one pooled vector has no variance"},
    builds_on=("se",),
    reduces_to={"convolution": "M = 1: convolution, BN, ReLU", "mean": "W_a = 0: of the branches"},
    counterpart=Counterpart(
        "timm SelectiveKernel", "timm.layers.selective_kernel",
        lambda timm, channels: timm.SelectiveKernel(channels, groups=32, rd_divisor=32, split_input=False)),
    errata=[
        Erratum("release",
                "In the later PyTorch ResNets no branch is dilated and one has no groups, so that there is no size to "
                "choose.",
                "The dilations are 1 and 2, in 32 groups each, as in the paper and in the Caffe release.",
                "test_defaults_are_the_papers"),
        Erratum("release",
                "Those ResNets leave L out: Cr is C/16, 4 in the first stage.",
                "Cr is max(O/r, L), 32 at least.",
                "test_width_of_z"),
        Erratum("package",
                "timm's `SelectiveKernel` divides the channels among the branches by default. Its Cr is O/16, rounded "
                "to a multiple of `rd_divisor`, 8 by default: below 512 channels it can be the shorter one.",
                "Every branch sees all channels, and Cr is a maximum.",
                "test_timm_differs_in_its_defaults"),
        Erratum("copies",
                "Neither BN nor ReLU stands between W_z and W_a, which are then one matrix.",
                "Both do, by equation 3.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("copies",
                "Kernels of 1, 3, 5 and 7 without groups: 84 C² weights in place of 18 C²/32.",
                "All kernels are 3 × 3, dilated and in groups.",
                "test_defaults_are_the_papers"),
    ],
)
class SKAttention(nn.Module):
    """Selective kernel convolution: V = Σₘ aₘ · Uₘ with a = softmaxₘ(W_a z), z = δ(BN(W_z s)), s = mean of ΣₘUₘ.

    Uₘ = δ(BN(convₘ(x))) is a 3 × 3 convolution with G groups and dilation dₘ, δ = ReLU; the paper's wider kernels,
    5 × 5 and 7 × 7, are 3 × 3 with dilation 2 and 3. The mean runs over H and W, the softmax over the M branches,
    for each channel apart. W_z is Cr × O and W_a is M·O × Cr with Cr = max(O/r, L), O/r rounded down; the paper writes
    W, A and B, and d for Cr. No layer has a bias, as in the authors' Caffe release, which is the paper's module.

    BN of s takes its mean over the batch: a training batch holds at least two images.

    Args:
        channels: C, at least 1.
        out_channels: O; C when None.
        dilations: dₘ, one a branch, each at least 1; M is their number.
        stride: of every branch, at least 1.
        groups: G, divides C and O; 32 in the paper.
        reduction: r, at least 1.
        min_dim: L, the least Cr, at least 1.

    Shape:
        x (B, C, H, W) → V (B, O, Ho, Wo), Ho = ⌈H/stride⌉, Wo = ⌈W/stride⌉, any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or a batch of
            one in training.

    Paper:
        Li, Wang, Hu and Yang, Selective Kernel Networks, CVPR 2019, arXiv 1903.06586.
    """

    def __init__(self, channels: int, out_channels: int | None = None, *, dilations: tuple[int, ...] = (1, 2),
                 stride: int = 1, groups: int = 32, reduction: int = 16, min_dim: int = 32):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.out_channels = check_int("out_channels", channels if out_channels is None else out_channels)
        self.dilations = _dilations(dilations)
        self.stride = check_int("stride", stride)
        self.groups = check_int("groups", groups)
        check_divisible("channels", channels, "groups", groups)
        check_divisible("out_channels", self.out_channels, "groups", groups)
        self.reduction = check_int("reduction", reduction)
        self.min_dim = check_int("min_dim", min_dim)

        Cr = max(self.out_channels // reduction, min_dim)  # eq. 4
        self.branches = nn.ModuleList(self._branch(dilation) for dilation in self.dilations)
        self.Wz = nn.Linear(self.out_channels, Cr, bias=False)
        self.norm = nn.BatchNorm1d(Cr)
        self.Wa = nn.Linear(Cr, len(self.dilations) * self.out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        if self.norm.training and len(x) == 1:
            raise ValueError("x is a batch of 1; in training it must hold 2 images or more, for the BN of s")
        U_m = tap("U_m", torch.stack([branch(x) for branch in self.branches], 1), "B M O Ho Wo")  # split
        U = tap("U", U_m.sum(1), "B O Ho Wo")                                     # fuse,   eq. 1
        s = tap("s", U.mean((2, 3)), "B O")                                       #         eq. 2
        z = tap("z", F.relu(self.norm(self.Wz(s))), "B Cr")                       #         eq. 3
        a = tap("a", self.Wa(z).unflatten(1, U_m.shape[1:3]).softmax(1), "B M O")  # select, eq. 5
        return tap("V", torch.einsum("BMO,BMOHW->BOHW", a, U_m), "B O Ho Wo")     #         eq. 6

    def extra_repr(self) -> str:
        names = ("channels", "out_channels", "dilations", "stride", "groups", "reduction", "min_dim")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _branch(self, dilation: int) -> nn.Sequential:
        conv = nn.Conv2d(self.channels, self.out_channels, 3, stride=self.stride, padding=dilation,
                         dilation=dilation, groups=self.groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(self.out_channels), nn.ReLU())


def _dilations(value: tuple[int, ...]) -> tuple[int, ...]:
    """`value` as a tuple of at least one dilation."""
    if not isinstance(value, tuple | list) or not value:
        raise ValueError(f"dilations={value!r} must hold one integer a branch, such as (1, 2)")
    return tuple(check_int("dilations", dilation) for dilation in value)
