"""Multi-spectral channel attention: a gate for every channel, from one frequency of its map (FcaNet)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_choice, check_divisible, check_feature_map, check_int
from ..ops import grid_means, open_size
from ..tap import tap

GRID = 7  # frequencies are named on the smallest map of an ImageNet network
RANKED = {  # row and column of 32 frequencies, in the authors' order: those that did best alone, worst, and the lowest
    "top": "00 01 60 05 02 10 12 40 50 16 30 04 06 03 35 22 46 63 33 53 55 21 61 52 54 32 31 41 23 20 65 13",
    "bot": "66 14 34 36 26 43 11 24 44 45 56 15 42 62 25 51 64 13 65 20 23 41 31 32 54 52 61 21 55 53 33 63",
    "low": "00 01 10 11 02 20 21 12 22 03 30 40 04 13 31 05 14 23 32 41 50 06 15 24 33 42 51 60 16 25 34 43",
}
METHODS = {f"{name}{n}": tuple((int(place[0]), int(place[1])) for place in ranked.split()[:n])
           for name, ranked in RANKED.items() for n in (1, 2, 4, 8, 16, 32)}


@register(
    "fca",
    family="channel",
    name="Multi-spectral channel attention",
    summary="It reads from each channel one frequency of its map where SE reads the mean, so that patterns of equal "
            "brightness differ.",
    aliases=("FCA", "FcaNet", "Frequency channel attention", "MSCA"),
    action="gate",
    papers=[Paper(
        key="qin2021fcanet", venue="ICCV", year=2021, arxiv="2012.11879",
        title="FcaNet: Frequency Channel Attention Networks",
        code="https://github.com/cfzd/FcaNet",
    )],
    layout="B C H W",
    example=dict(channels=32),
    measured=dict(channels=64),
    variants={
        "another grid": dict(channels=8, dct_h=14, dct_w=9, reduction=4, frequencies="low4"),
        "lowest alone": dict(channels=6, reduction=3, frequencies="top1"),
        "chosen": dict(channels=6, reduction=2, frequencies=((1, 0), (0, 3), (6, 6))),
    },
    builds_on=("se",),
    reduces_to={"se": "the lowest frequency alone: SE without biases, W₁ times √(PQ)"},
    errata=[
        Erratum("paper",
                "The equations of the DCT leave out its constant factors, and say that they do not matter.",
                "The basis is orthonormal as in the release, so the lowest coefficient is √(PQ) times the mean.",
                "test_the_basis_is_orthonormal"),
        Erratum("release",
                "Frequencies are multiplied by ⌊P/7⌋ and ⌊Q/7⌋, which is 0 below 7: all fall onto the lowest.",
                "Below 7 they are kept where the grid is fine enough for them; from 7 on the factors are the same.",
                "test_a_grid_below_7_keeps_what_fits_and_refuses_the_rest"),
        Erratum("release",
                "A comment calls (2, 2) on 14 × 14 identical to (1, 1) on 7 × 7.",
                "The waves are as long in pixels, but twice as many fit across the image; alike at any size is (1, 1).",
                "test_a_frequency_keeps_its_wavelength_in_pixels_on_a_finer_grid"),
        Erratum("copies",
                "Descriptions speak of a fast Fourier transform and its inverse.",
                "One fixed cosine pattern a channel is multiplied in and summed up; nothing is transformed back.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("copies",
                "The frequencies of the 7 × 7 grid are taken as they are on larger grids.",
                "They are multiplied by ⌊P/7⌋ and ⌊Q/7⌋, as the authors do.",
                "test_the_comparison_with_the_paper_notices"),
    ],
)
class FcaAttention(nn.Module):
    """Multi-spectral channel attention: y = s · x with s = σ(W₂ δ(W₁ z)), z_c = ∑ᵢⱼ Dᵍᵢⱼ p_cᵢⱼ, δ = ReLU.

    p is x, averaged to P × Q regions where it has another size, and Dᵍ is the pattern of one frequency (u, v) of the
    two-dimensional cosine transform (DCT),

        Dᵢⱼ = α_u cos(πu(i + ½)/P) · β_v cos(πv(j + ½)/Q),   α₀ = 1/√P, otherwise √(2/P); β_v with Q.

    The C channels are cut into G blocks of S = C/G neighbours, and block g gets frequency g: z_c is a single number a
    channel, and costs what the mean does. u counts along the height and v along the width. Frequencies are named on a
    grid of 7 × 7, and are multiplied by ⌊P/7⌋ and ⌊Q/7⌋: on 14 × 14 a wave is as long as on 7 × 7, in pixels. Below 14
    they stay what they are, and below 7 the grid must be fine enough for all of them: u < P, v < Q.

    Multiplied by an even number, every cosine is the same from either end. So where ⌊P/7⌋ is even, as for 14, 28 and
    56, nothing tells an image from the same image upside down; where P is 7, odd u do. The same holds for Q and v.

    P and Q are fixed, and an input of another size is averaged adaptively, up as well as down. Where P does not divide
    H the regions overlap, and even the lowest frequency is no longer exactly the mean. The authors' ResNets have P = Q
    = 56, 28, 14 and 7 in their four stages.

    W₁ is C/r × C and W₂ is C × C/r, C/r rounded down, both without a bias, where SE has them. The patterns are no
    parameters and not in the checkpoint; they are made anew when the module changes its type. From the release's
    checkpoint load fc.0.weight into W1.weight and fc.2.weight into W2.weight, and leave dct_layer.weight out.

    Args:
        channels: C, a multiple of the number of frequencies.
        dct_h: P, at least 7, or larger than every u.
        dct_w: Q, at least 7, or larger than every v.
        reduction: r, from 1 to C; the paper's default is 16.
        frequencies: "top1", "top2", … "top32" (powers of two), the frequencies that did best alone on ImageNet; "bot…",
            those that did worst; "low…", the lowest. Or pairs (u, v) of numbers from 0 to 6.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Qin, Zhang, Wu and Li, FcaNet: Frequency Channel Attention Networks, ICCV 2021, arXiv 2012.11879.
    """

    def __init__(self, channels: int, *, dct_h: int = 7, dct_w: int = 7, reduction: int = 16,
                 frequencies: str | tuple[tuple[int, int], ...] = "top16"):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.frequencies = _check_frequencies(frequencies, channels)
        u, v = (max(f) for f in zip(*self.frequencies, strict=True))
        self.dct_h, self.dct_w = _check_grid("dct_h", dct_h, u), _check_grid("dct_w", dct_w, v)
        self.reduction = check_int("reduction", reduction)
        check_at_most("reduction", reduction, "channels", channels)
        hidden = channels // reduction
        self.W1 = nn.Linear(channels, hidden, bias=False)
        self.W2 = nn.Linear(hidden, channels, bias=False)
        self.register_buffer("basis", self._basis(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        grid = (self.dct_h, self.dct_w)
        pooled = not open_size(*x.shape[2:]) and x.shape[2:] == grid  # pooling is slow where it changes nothing
        p = x if pooled else grid_means(x, *grid)
        p = tap("p", p, "B C P Q")
        z = tap("z", self.squeeze(p).to(x.dtype), "B C")
        s = tap("s", torch.sigmoid(self.W2(F.relu(self.W1(z)))), "B C")
        return tap("y", x * s[:, :, None, None], "B C H W")

    def squeeze(self, p: Tensor) -> Tensor:
        """The coefficient of each channel's frequency (B, C), in float32 at least."""
        groups = p.unflatten(1, (len(self.basis), -1))  # B G S P Q
        return (groups * self.basis[:, None]).sum((3, 4)).flatten(1)

    def _basis(self) -> Tensor:
        """The pattern of every frequency (G, P, Q), in the parameters' type, float32 at least."""
        u, v = (torch.tensor(f, dtype=torch.float64, device="cpu") for f in zip(*self.frequencies, strict=True))
        rows, cols = _cosines(u, self.dct_h), _cosines(v, self.dct_w)
        dtype = torch.promote_types(self.W1.weight.dtype, torch.float32)
        return (rows[:, :, None] * cols[:, None, :]).to(dtype).to(self.W1.weight.device)

    def _apply(self, *args: Any, **kwargs: Any) -> "FcaAttention":
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.basis = self._basis()  # not cast: what has been rounded once stays rounded
        return self

    def extra_repr(self) -> str:
        return f"channels={self.channels}, dct_h={self.dct_h}, dct_w={self.dct_w}, frequencies={self.frequencies}"


def _cosines(f: Tensor, size: int) -> Tensor:
    """Orthonormal cosines (G, size) of the frequencies f of the grid."""
    f = (f * max(1, size // GRID))[:, None]
    place = torch.arange(size, dtype=f.dtype, device=f.device) + 0.5
    a = (torch.where(f == 0, torch.ones_like(f), 2) / size).sqrt()
    return a * torch.cos(math.pi / size * f * place)


def _check_grid(name: str, value: int, highest: int) -> int:
    if check_int(name, value) <= highest:  # never from 7 on
        raise ValueError(f"{name}={value} must be larger than the highest frequency={highest} along it; "
                         f"{highest + 1} would do, with maps of any size")
    return value


def _check_frequencies(value: str | tuple[tuple[int, int], ...], channels: int) -> tuple[tuple[int, int], ...]:
    """The frequencies as pairs (u, v), as many as divide the channels."""
    if isinstance(value, str):
        check_choice("frequencies", value, METHODS)
        pairs = METHODS[value]
    else:
        if not isinstance(value, tuple | list) or not value or not all(
                isinstance(pair, tuple | list) and len(pair) == 2 for pair in value):
            raise ValueError(f"frequencies={value!r} must be a name such as 'top16', or pairs such as ((0, 0), (0, 1))")
        pairs = tuple((check_int("frequencies", u, 0), check_int("frequencies", v, 0)) for u, v in value)
        for f in (f for pair in pairs for f in pair):
            check_at_most("frequencies", f, "the highest", GRID - 1)
    check_divisible("channels", channels, "number of frequencies", len(pairs))
    return pairs
