"""Pyramid squeeze attention: every channel of every kernel size is weighed against its peers of the other sizes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_divisible, check_feature_map, check_int, check_odd
from ..tap import tap


@register(
    "epsa",
    family="channel",
    name="Pyramid squeeze attention",
    summary="It looks with kernels of several sizes at once and weighs what each of them says.",
    aliases=("EPSA", "EPSANet", "Pyramid Squeeze Attention"),
    action="gate",
    papers=[Paper(
        key="zhang2022epsanet", venue="ACCV", year=2022, arxiv="2105.14447",
        title="EPSANet: An Efficient Pyramid Squeeze Attention Block on Convolutional Neural Network",
        code="https://github.com/murufeng/EPSANet",
    )],
    layout="B C H W",
    output="B O Ho Wo",
    example=dict(channels=64),
    variants={"stride 2": dict(channels=8, out_channels=24, kernel_sizes=(3, 1, 5), groups=(1, 4, 2), stride=2,
                               reduction=2)},
    commutes_with={"translation"},
    builds_on=("se", "sk"),
    reduces_to={"convolution": "one branch: the softmax of a single number is 1"},
    errata=[
        Erratum("paper",
                "The branches are compared by a softmax of numbers that are gates already, between 0 and 1.",
                "So they are here: with four branches no weight leaves 0.109 to 0.475, and none can be chosen.",
                "test_the_gates_bound_the_weights"),
        Erratum("release",
                "The branches are put together in reverse, the widest kernel first.",
                "They stand in the paper's order, the narrowest first.",
                "test_the_release_puts_the_branches_together_in_reverse"),
        Erratum("copies",
                "Each branch sees only its own quarter of the channels and has an SE of its own.",
                "Each branch sees all channels, and one SE is shared.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("copies",
                "A popular one writes the branches into its input, and keeps its layers in plain lists.",
                "The input is left alone, and every layer is registered.",
                "test_the_input_stays_and_all_layers_are_parameters"),
    ],
)
class PSAAttention(nn.Module):
    """Pyramid squeeze attention: y = [a₁ · F₁; …; a_M · F_M] with a = softmaxₘ(Zₘ), Zₘ = σ(W₂ δ(W₁ zₘ)), δ = ReLU.

    Fₘ = convₘ(x) has O/M channels: each of the M branches sees all of x, with a kernel and groups of its own, wider
    kernels with more groups: 2^((k − 1)/2) for k × k, and one for 3 × 3. zₘ is the mean of Fₘ over H and W. All
    branches share one SE, with O/M channels of its own, W₁ of O/(M·r) × O/M, rounded down, and W₂ the other way, both
    with a bias. The softmax compares what the branches say of their channels of the same number; the results are put
    side by side, not summed. The convolutions have no bias. The paper writes S for M.

    As σ comes before the softmax, each weight lies between 1/(1 + (M − 1)e) and e/(e + M − 1).

    From the release load conv_1 … conv_4 into convs.0 … convs.3, and se.fc1 and se.fc2 into W1 and W2, flattened to
    matrices. It puts the branches together in reverse: the channels of the normalisation and the layer behind have to
    be turned round too, block by block.

    Args:
        channels: C, divisible by every number of groups.
        out_channels: O, divisible by M times every number of groups; C when None.
        kernel_sizes: one a branch, odd; M is their number.
        groups: one a branch, or one number for all.
        stride: of every branch, at least 1.
        reduction: r of the shared SE, from 1 to O/M; 16 in the release, so that the default needs O ≥ 64.

    Shape:
        x (B, C, H, W) → y (B, O, Ho, Wo), Ho = ⌈H/stride⌉, Wo = ⌈W/stride⌉, any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Zhang, Zu, Lu, Zou and Meng, EPSANet: An Efficient Pyramid Squeeze Attention Block on Convolutional Neural
        Network, ACCV 2022, arXiv 2105.14447.
    """

    def __init__(self, channels: int, out_channels: int | None = None, *,
                 kernel_sizes: tuple[int, ...] = (3, 5, 7, 9), groups: tuple[int, ...] | int = (1, 4, 8, 16),
                 stride: int = 1, reduction: int = 16):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.out_channels = check_int("out_channels", channels if out_channels is None else out_channels)
        self.kernel_sizes, self.groups = _check_branches(kernel_sizes, groups)
        self.stride = check_int("stride", stride)
        self.reduction = check_int("reduction", reduction)
        M, common = len(self.kernel_sizes), math.lcm(*self.groups)
        lcm = f"lcm({', '.join(map(str, self.groups))})"
        check_divisible("channels", channels, lcm, common)
        check_divisible("out_channels", self.out_channels, f"{M}·{lcm}", M * common)
        S = self.out_channels // M
        check_at_most("reduction", reduction, f"out_channels/{M}", S)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, S, k, stride=stride, padding=k // 2, groups=g, bias=False)
            for k, g in zip(self.kernel_sizes, self.groups, strict=True))
        self.W1 = nn.Linear(S, S // reduction)
        self.W2 = nn.Linear(S // reduction, S)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        F_m = tap("F_m", torch.stack([conv(x) for conv in self.convs], 1), "B M S Ho Wo")  # split and squeeze
        z = tap("z", F_m.mean((3, 4)), "B M S")
        Z = tap("Z", torch.sigmoid(self.W2(F.relu(self.W1(z)))), "B M S")                   # SE, shared
        a = tap("a", Z.softmax(1), "B M S")
        y = F_m * a.to(F_m.dtype)[..., None, None]
        return tap("y", y.flatten(1, 2), "B O Ho Wo")                                       # side by side

    def extra_repr(self) -> str:
        names = ("channels", "out_channels", "kernel_sizes", "groups", "stride", "reduction")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _check_branches(kernel_sizes: tuple[int, ...],
                    groups: tuple[int, ...] | int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel sizes and groups as tuples, one of each a branch."""
    if isinstance(groups, int) and isinstance(kernel_sizes, tuple | list):
        groups = (groups,) * len(kernel_sizes)
    for name, value in (("kernel_sizes", kernel_sizes), ("groups", groups)):
        if not isinstance(value, tuple | list) or not value:
            raise ValueError(f"{name}={value!r} must hold one integer a branch, such as (3, 5)")
    if len(kernel_sizes) != len(groups):
        raise ValueError(f"kernel_sizes={kernel_sizes} and groups={groups} must hold one number a branch each")
    return (tuple(check_odd("kernel_sizes", k) for k in kernel_sizes), tuple(check_int("groups", g) for g in groups))
