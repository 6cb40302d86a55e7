"""Global-local temporal representation: frames beside their dilated neighbourhoods, then attention among all (GLTR)."""

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_int, check_odd, check_tensor
from ..ops import attend
from ..tap import tap


@register(
    "gltr",
    family="temporal",
    name="Global-local temporal representation",
    summary="It shows attention among frames the near past and future of each at several paces, which attention alone "
            "cannot tell apart.",
    aliases=("GLTR", "DTP", "TSA", "dilated temporal pyramid"),
    action="mix",
    papers=[Paper(
        key="li2019gltr", venue="ICCV", year=2019, arxiv="1908.10049",
        title="Global-Local Temporal Representations for Video Person Re-Identification",
        code="https://github.com/ljn114514/GLTR",
    )],
    layout="B T C",
    output="B O",
    example=dict(channels=8),
    measured=dict(channels=64),
    variants={
        "frames": dict(channels=6, dilations=(1, 4), pool=False),
        "pyramid alone": dict(channels=6, dilations=(1, 2, 4), with_input=False, kernel_size=5, reduction=4),
    },
    variant_outputs={"frames": "B T O"},
    commutes_with={"translation"},
    builds_on=("non_local",),
    reduces_to={
        "convolution": "γ = β = 0 in its BN, where it starts: dilated convolutions, and their mean over time",
        "non_local": "no dilation: the frames alone",
    },
    errata=[
        Erratum("copies", "Dilations are 1, 2 and 4, and the frames themselves are left out.",
                "Dilations are 1, 2 and 3 and the frames come first, as in the release; both are options.",
                "test_the_comparison_with_the_release_notices"),
        Erratum("copies", "The softmax is scaled by 1/√d.", "The products are not scaled, as in the release.",
                "test_the_comparison_with_the_release_notices"),
        Erratum("release", "The number of frames is fixed at 16 in its network.", "Any number does.",
                "test_takes_any_number_of_frames"),
    ],
)
class GLTR(nn.Module):
    """Global-local temporal representation: mean over t of f'_t + BN(W_z Σ_s softmax_s(θ_t · φ_s) g_s).

    f'_t = [x_t; c₁(x)_t; c₂(x)_t; …] is the frame's feature beside one dilated convolution over time for each dilation,

        c_n(x)_t = Σ_k W_nk x_{t + r_n k}      k from −1 to 1, zeros beyond both ends, no bias and no activation,

    the dilated temporal pyramid (DTP), O = C · (1 + dilations) channels. θ, φ and g are linear in f', with bias, of
    O/r channels: the temporal self-attention (TSA), a non-local block. A dilation of T or more reads the frame
    itself alone.

    The last BN starts with γ = β = 0, so that a fresh module returns the pyramid, and its convolutions start small,
    with a standard deviation of 0.001.

    Weights of the release map as: feat1, feat2, … (O × 1 × 3 × C) → pyramid.0, pyramid.1, … (squeeze the second axis,
    exchange the last two); theta, phi, g and W.0 (with a last axis of 1) → Wtheta, Wphi, Wg and Wz; W.1 → norm.

    Args:
        channels: C, at least 1.
        dilations: r_n, one a convolution, each at least 1; may be empty where `with_input` holds.
        kernel_size: frames that a convolution reads, odd.
        with_input: whether x itself is part of f'.
        reduction: r, from 1 to O; O/r is rounded down.
        pool: return the mean over time, else every frame.

    Shape:
        x (B, T, C) → (B, O), or (B, T, O) without `pool`; any T ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is no series of C channels, or, in training, one series
            of one frame, which BN cannot take.

    Paper:
        Li, Wang, Tian, Gao and Zhang, Global-Local Temporal Representations for Video Person Re-Identification,
        ICCV 2019, arXiv 1908.10049.
    """

    def __init__(self, channels: int, *, dilations: tuple[int, ...] = (1, 2, 3), kernel_size: int = 3,
                 with_input: bool = True, reduction: int = 2, pool: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        if not isinstance(dilations, tuple | list) or not (dilations or with_input):
            raise ValueError(f"dilations={dilations!r} must hold one integer a convolution, such as (1, 2, 3)")
        self.dilations = tuple(check_int("dilations", r) for r in dilations)
        self.kernel_size = check_odd("kernel_size", kernel_size)
        self.with_input, self.pool = with_input, pool
        O = channels * (len(self.dilations) + with_input)  # noqa: E741
        check_at_most("reduction", check_int("reduction", reduction), "the pyramid's channels", O)
        self.pyramid = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, padding=r * (kernel_size // 2), dilation=r, bias=False)
            for r in self.dilations)
        for weight in self.pyramid.parameters():
            nn.init.normal_(weight, std=0.001)
        self.Wtheta, self.Wphi, self.Wg = (nn.Linear(O, O // reduction) for _ in range(3))
        self.Wz = nn.Linear(O // reduction, O)
        self.norm = nn.BatchNorm1d(O)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(x, "B T C", {"C": self.channels})
        if self.training and x.shape[:2] == (1, 1):
            raise ValueError("x is a batch of 1 with T=1; in training it must hold 2 frames or more, for the BN")
        scales = [conv(x.transpose(-2, -1)).transpose(-2, -1) for conv in self.pyramid]
        f = tap("f", torch.cat([x, *scales] if self.with_input else scales, 2), "B T O")
        theta, phi, g = (tap(name, W(f), "B T d") for name, W in
                         (("theta", self.Wtheta), ("phi", self.Wphi), ("g", self.Wg)))
        y = tap("y", attend(theta, phi, g, scale=1.0, name="A", dims="B T T"), "B T d")
        z = tap("z", f + self.norm(self.Wz(y).flatten(0, 1)).unflatten(0, f.shape[:2]), "B T O")
        return tap("v", z.mean(1), "B O") if self.pool else z

    def extra_repr(self) -> str:
        names = ("channels", "dilations", "kernel_size", "with_input", "pool")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
