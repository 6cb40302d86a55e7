"""Normalization-based attention: a gate for every number, from the scales that batch normalisation learns anyway."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_int, check_tensor
from ..tap import tap

FORMS = ("channel", "spatial", "both")


@register(
    "nam",
    family="channel",
    name="Normalization-based attention",
    summary="It reads off the scales of a batch normalisation which channels matter, and needs no other weights.",
    aliases=("NAM",),
    action="gate",
    papers=[Paper(
        key="liu2021nam", venue="NeurIPS workshop", year=2021, arxiv="2111.12419",
        title="NAM: Normalization-based Attention Module",
        code="https://github.com/Christian-lyc/NAM",
    )],
    layout="B C H W",
    example=dict(channels=32),
    measured=dict(channels=64),
    variants={
        "spatial": dict(channels=6, form="spatial", height=12, width=16),
        "both": dict(channels=6, form="both", height=12, width=16),
    },
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    reduces_to={
        "SiLU": "one channel that is standardised already",
        "constant gate": "γ = 0: every gate is ½",
    },
    errata=[
        Erratum("paper",
                "Its formulas end with the gate.",
                "The gate is multiplied with x, as in the release.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("paper",
                "A channel's share is written γᵢ / ∑γⱼ, which has any sign, and no value where the scales cancel.",
                "The scales are taken by their absolute values, as in the release.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("paper",
                "It does not say over what the statistics of a pixel are taken.",
                "Over the batch and the channels, as the release had it in its first days.",
                "test_the_spatial_form_is_the_channel_form_of_the_transposed_map"),
        Erratum("release",
                "It holds the channel part alone: the spatial one was taken out four days after it had been uploaded.",
                "Both are here, and one behind the other, by `form`.",
                "test_equals_the_paper"),
        Erratum("release",
                "The shares are computed from `.data` and pass no gradient; γ learns through the normalisation alone.",
                "The gradient passes through both; `detach=True` is the release.",
                "test_gamma_learns_with_and_without_the_shares"),
        Erratum("release",
                "Its flag for the penalty changes nothing: the stages are looked for by their names in a model that "
                "has been wrapped before, and not found.",
                "The penalty is one line of the training loop, over all modules of the class.",
                "test_the_release_finds_no_scale_to_penalise"),
        Erratum("release",
                "Where all scales are 0, as its penalty wants them, the shares are 0/0 and the output is NaN.",
                "The shares are 0 there, and the gates ½.",
                "test_scales_of_zero_give_no_nan"),
    ],
)
class NAMAttention(nn.Module):
    """Normalization-based attention: y = M_c · x with M_c = σ(w · BN(x)), w_c = |γ_c| / ∑|γ|, a gate for every number.

    γ is the scale of the batch normalisation BN, and w the share that a channel has of all scales. Nothing is pooled:
    each pixel of each channel has a gate of its own. The shares sum to 1, so each is about 1/C and the gates stay near
    ½; with 64 channels at the start they lie between 0.48 and 0.52. The authors train with a penalty on ∑|γ|, which
    sends scales to 0. A channel without a scale has the gate ½: half of it passes, so a small scale says that the gate
    is not needed, not that the channel is not. At test time the module is an activation function,
    x · σ(a x + b) with two numbers for each channel.

    The spatial form is the same with pixels for channels: M_s = σ(w · BN_s(x)), where BN_s has a scale λ, a shift and
    statistics for every pixel, over the batch and the channels, and w are the shares |λ| / ∑|λ|. It is made for one
    size of map. "both" is the spatial form behind the channel form, in the order of CBAM.

    From the release load Channel_Att.bn2 into norm_c.

    Args:
        channels: C, at least 1.
        form: "channel", "spatial" or "both".
        height: H of the map, at least 1; for the spatial form alone.
        width: W of the map, likewise.
        detach: pass no gradient through the shares, as in the release; γ then learns by a part of its gradient.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1; with the spatial form H = height and W = width.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels and the size, or one
            number to take statistics of, in training.

    Paper:
        Liu, Shao, Teng and Hoffmann, NAM: Normalization-based Attention Module, NeurIPS workshop ImageNet: Past,
        Present, and Future, 2021, arXiv 2111.12419.
    """

    def __init__(self, channels: int, *, form: str = "channel", height: int | None = None, width: int | None = None,
                 detach: bool = False):
        super().__init__()
        self.channels = check_int("channels", channels)
        check_choice("form", form, FORMS)
        self.form, self.detach = form, detach
        self.height, self.width = height, width
        if form != "spatial":
            self.norm_c = nn.BatchNorm2d(channels)
        self.fixed = {}
        if form != "channel":
            self.fixed = {"H": check_int("height", height), "W": check_int("width", width)}
            self.norm_s = nn.BatchNorm1d(self.fixed["H"] * self.fixed["W"])
        elif height is not None or width is not None:
            raise ValueError(f"height={height} and width={width} must be None with form='channel', which takes any map")

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(x, "B C H W", {"C": self.channels, **self.fixed})
        if self.form != "spatial":
            _check_many(self.norm_c, x, x.numel() // self.channels, "2 pixels in all")
            w_c = tap("w_c", self.shares(self.norm_c), "C")
            M_c = tap("M_c", torch.sigmoid(w_c[:, None, None] * self.norm_c(x)), "B C H W")  # eq. 2
            x = tap("y" if self.form == "channel" else "x_c", x * M_c.to(x.dtype), "B C H W")
        if self.form != "channel":
            _check_many(self.norm_s, x, x.shape[0] * x.shape[1], "2 channels in all")
            w_s = tap("w_s", self.shares(self.norm_s), "H*W")
            pixels = self.norm_s(x.flatten(2).transpose(1, 2)).transpose(1, 2)               # B C HW
            M_s = tap("M_s", torch.sigmoid(w_s * pixels).unflatten(2, x.shape[2:]), "B C H W")  # eq. 3
            x = tap("y", x * M_s.to(x.dtype), "B C H W")
        return x

    def shares(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
        """|γ| / ∑|γ| of a normalisation, and 0 where all scales are 0; in float32 at least."""
        gamma = norm.weight.detach() if self.detach else norm.weight
        return F.normalize(gamma.abs().to(torch.promote_types(gamma.dtype, torch.float32)), p=1, dim=0)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, form={self.form!r}, height={self.height}, width={self.width}"


def _check_many(norm: nn.Module, x: Tensor, n: int, needed: str) -> None:
    """In training there must be several numbers to take a variance of."""
    if norm.training and n == 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; in training it must hold {needed}, for the BN")
