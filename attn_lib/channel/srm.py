"""Style-based recalibration: a gate for every channel, from its own mean and standard deviation alone (SRM)."""

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_feature_map, check_int
from ..tap import tap


@register(
    "srm",
    family="channel",
    name="Style-based Recalibration",
    summary="It looks at how much a channel varies, not only at its mean, and gates each without asking the others.",
    aliases=("SRM",),
    action="gate",
    papers=[Paper(
        key="lee2019srm", venue="ICCV", year=2019, arxiv="1903.10829",
        title="SRM: A Style-based Recalibration Module for Convolutional Neural Networks",
        code="https://github.com/hyunjaelee410/style-based-recalibration-module",
    )],
    layout="B C H W",
    example=dict(channels=32),
    measured=dict(channels=64),
    variants={"release": dict(channels=12, unbiased=True), "drawn": dict(channels=6, zero_init=False)},
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    forbids={"batch_one": "z is normalised over the batch, and one style of a channel has no variance"},
    builds_on=("se",),
    reduces_to={
        "channel-wise gate": "no weight for the standard deviation",
        "channel scaling": "W_z = 0, where it starts: the gate is σ of the normalisation's shift",
    },
    errata=[
        Erratum("release",
                "The variance divides by HW − 1 and has 1e-5 added, so a map of one pixel gives NaN.",
                "It divides by HW as in equation 2, and one pixel has the deviation 0; `unbiased=True` is the release.",
                "test_one_pixel"),
        Erratum("release",
                "W_z starts at zero: the first batch has no variance, and its gradient is multiplied by 1/√1e-5 = 316.",
                "It starts at zero as well, for the same networks; `zero_init=False` draws it.",
                "test_the_first_gradient_is_316_times_too_large"),
    ],
)
class SRMAttention(nn.Module):
    """Style-based recalibration: y = g · x with g = σ(BN(z)), z_c = w_c · t_c, t_c = (mean of x_c, its deviation).

    t is the style of each channel, the mean and the standard deviation √(mean of (x − mean)²) over H and W. Two weights
    a channel, the row w_c of W_z (C × 2), make one number of it, without a bias; batch normalisation brings that, and
    σ the gate. There is no way from one channel to another: the module is C small ones side by side.

    W_z = 0 at the start, as in the release: there all gates are ½. The authors spare W_z and the normalisation weight
    decay. From the release load cfc into Wz and bn into norm.

    BN takes its mean over the batch: a training batch holds at least two images.

    Args:
        channels: C, at least 1.
        unbiased: √(v + 1e-5) for the standard deviation, v with HW − 1 for HW, as in the release.
        zero_init: start with W_z = 0 rather than at random numbers.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1; HW ≥ 2 with `unbiased`.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, a batch of one in
            training, or one pixel with `unbiased`.

    Paper:
        Lee, Kim and Nam, SRM: A Style-based Recalibration Module for Convolutional Neural Networks, ICCV 2019,
        arXiv 1903.10829.
    """

    def __init__(self, channels: int, *, unbiased: bool = False, zero_init: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.unbiased = unbiased
        self.Wz = nn.Parameter(torch.zeros(channels, 2) if zero_init else torch.randn(channels, 2) * 2**-0.5)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        if self.norm.training and len(x) == 1:
            raise ValueError("x is a batch of 1; in training it must hold 2 images or more, for the BN of z")
        t = tap("t", torch.stack([x.mean((2, 3)), self.deviation(x)], 2), "B C 2")  # style pooling,     eqs. 1, 2
        z = tap("z", (self.Wz * t).sum(2), "B C")                                    # style integration, eq. 3
        g = tap("g", torch.sigmoid(self.norm(z)), "B C")                             #                    eq. 4
        return tap("y", x * g.to(x.dtype)[:, :, None, None], "B C H W")

    def deviation(self, x: Tensor) -> Tensor:
        """Standard deviation of each channel (B, C)."""
        if not self.unbiased:
            return x.std((2, 3), correction=0)
        if x.shape[2] * x.shape[3] == 1:
            raise ValueError("x is a map of 1 × 1; with unbiased=True it must hold at least 2 positions, since the "
                             "variance divides by HW - 1; unbiased=False takes it")
        d = x.std((2, 3)).to(torch.promote_types(x.dtype, torch.float32))  # its square may exceed float16
        return (d.square() + 1e-5).sqrt().to(x.dtype)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, unbiased={self.unbiased}"
