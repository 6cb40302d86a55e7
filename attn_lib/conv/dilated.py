"""Dilated convolution: a kernel with holes sees further at the same cost; and the context module made of eight."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_feature_map, check_int, check_pair
from ..ops import Geometry, output_size, same_padding
from ..tap import recording, tap

Pair = int | tuple[int, int]  # (rows, columns); an integer stands for both

FORMS = {"basic": (1, 1, 1, 1, 1, 1, 1), "large": (2, 2, 4, 8, 16, 32, 32)}  # channels of the layers, in units of C
CONTEXT = (1, 1, 2, 4, 8, 16, 1)  # dilations of the context module's 3 × 3 layers


def receptive_field(dilations: tuple[int, ...], kernel_size: int = 3) -> list[int]:
    """Side of the square that one output spans, behind each of a row of convolutions: 1 + Σ l·(k − 1) so far.

    Raises:
        ValueError: if a dilation or the kernel's size is no integer of at least 1.
    """
    sides = [1]
    for dilation in dilations:
        sides.append(sides[-1] + check_int("dilations", dilation) * (check_int("kernel_size", kernel_size) - 1))
    return sides[1:]


def reached(dilations: tuple[int, ...], kernel_size: int = 3) -> list[int]:
    """Offsets along one axis that a row of convolutions reads; the square of them is what one output sees.

    Where it has gaps, neighbours in the output see different pixels: the gridding of dilations that share a factor.

    Raises:
        ValueError: if a dilation or the kernel's size is no integer of at least 1.
    """
    offsets = {0}
    for dilation in dilations:
        check_int("dilations", dilation)
        taps = [dilation * (i - (kernel_size - 1) // 2) for i in range(check_int("kernel_size", kernel_size))]
        offsets = {offset + tap for offset in offsets for tap in taps}
    return sorted(offsets)


@register(
    "dilated",
    family="conv",
    name="Dilated convolution",
    summary="It reads every l-th pixel, so that a few layers see the whole image without any pooling.",
    aliases=("dilated", "atrous convolution", "DilatedConv", "context module"),
    action="mix",
    papers=[Paper(
        key="yu2016multiscale", venue="ICLR", year=2016, arxiv="1511.07122",
        title="Multi-Scale Context Aggregation by Dilated Convolutions",
        code="https://github.com/fyu/dilation",
    )],
    layout="B C H W",
    output="B O Ho Wo",
    example=dict(channels=32),
    measured=dict(channels=64),
    variants={
        "stride 2": dict(channels=8, out_channels=12, dilation=4, stride=2, bias=False),
        "uneven": dict(channels=6, kernel_size=(3, 5), dilation=(2, 1), padding=(1, 0)),
    },
    commutes_with={"translation"},
    reduces_to={
        "convolution": "l = 1",
        "linear layer": "l ≥ max(H, W): all taps but the centre lie outside the map",
    },
    errata=[
        Erratum("paper", "Its equation runs over s + l·t = p, so that the kernel lies mirrored on the map.",
                "The kernel is stored as it lies on the map, k(t) = weight at −t, as in torch and in the release.",
                "test_equals_the_papers_mirrored_sum"),
        Erratum("paper", "The context module is said to start by passing its input on.",
                "It does so where the input is not negative: every truncation cuts the rest off.",
                "test_a_fresh_context_module_cuts_what_is_negative"),
        Erratum("release", "The basic context module starts with Gaussian noise of deviation 0.01 on its identity.",
                "Without, as the paper's eq. 4; `noise=0.01` of `ContextModule` is the release's.",
                "test_noise_at_the_start"),
        Erratum("copies", "Dilations such as 2, 2, 2 are stacked for a large receptive field.",
                "`reached` shows the gaps of such a stack, seven tenths of the square; 1, 2, 5 has none.",
                "test_dilations_with_a_common_factor_leave_gaps"),
    ],
)
class DilatedConv(nn.Module):
    """Dilated convolution: y(p) = Σ_t k(t) · x(p − l·t), a kernel whose taps lie l pixels apart.

    t runs over the k × k offsets around 0. With k(t) the weight at −t, the sum is y(p) = Σ_t weight(t) · x(p + l·t). It
    spans l·(k − 1) + 1 pixels with k² weights, whatever l is. So layers of dilation 1, 2, 4, … double their reach each
    time and lose no resolution (`receptive_field`), as long as they leave no gaps (`reached`).

    It is the l² phases of the map, each l-th row and column, convolved one by one.

    Args:
        channels: C, at least 1.
        out_channels: O; C when None.
        kernel_size: k; an integer of at least 1, or (rows, columns).
        dilation: l, at least 1; an integer, or (rows, columns).
        stride: of the output, at least 1.
        padding: zeros around x; None keeps the size at stride 1 (l·(k − 1) must be even).
        bias: whether the output has one.

    Shape:
        x (B, C, H, W) → y (B, O, Ho, Wo), with Ho and Wo as from `torch.nn.Conv2d`.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or one
            that is smaller than the kernel.

    Paper:
        Yu and Koltun, Multi-Scale Context Aggregation by Dilated Convolutions, ICLR 2016, arXiv 1511.07122.
    """

    def __init__(
        self, channels: int, out_channels: int | None = None, *, kernel_size: Pair = 3, dilation: Pair = 2,
        stride: Pair = 1, padding: Pair | None = None, bias: bool = True,
    ):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.out_channels = check_int("out_channels", channels if out_channels is None else out_channels)
        self.kernel_size = check_pair("kernel_size", kernel_size)
        self.dilation = check_pair("dilation", dilation)
        padding = (same_padding(self.kernel_size, self.dilation) if padding is None
                   else check_pair("padding", padding, at_least=0))
        self.geometry = Geometry(stride=check_pair("stride", stride), padding=padding, dilation=self.dilation)
        conv = nn.Conv2d(channels, self.out_channels, self.kernel_size, bias=bias)
        self.weight, self.bias = conv.weight, conv.bias  # its initialisation, and the names in its files

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        output_size(x.shape[2:], self.kernel_size, **self.geometry)           # a clear error where x is too small
        if recording():
            tap("k", self.weight.flatten(2).flip(2), "O C K")                 # k(t), mirrored
        return tap("y", F.conv2d(x, self.weight, self.bias, **self.geometry), "B O Ho Wo")

    def extra_repr(self) -> str:
        geometry = ", ".join(f"{name}={value}" for name, value in self.geometry.items())
        return f"channels={self.channels}, out_channels={self.out_channels}, kernel_size={self.kernel_size}, {geometry}"


class ContextModule(nn.Module):
    """The context module: seven 3 × 3 layers of dilation 1, 1, 2, 4, 8, 16, 1, each truncated, and a 1 × 1 layer.

    x_{i+1} = max(0, k_i ∗_l x_i + b_i), and y = k_8 x_8 + b_8 without truncation. One output sees 67 × 67 pixels of x.
    Maps are padded with zeros, so that their size stays. The layers have C channels in the basic form; in the large
    one 2C, 2C, 4C, 8C, 16C, 32C, 32C, and C at the end.

    It starts as the identity of what is not negative. Between c and c′ channels the centre of the kernel from a to b is
    C/c′ where ⌊a·C/c⌋ = ⌊b·C/c′⌋ (eq. 5; eq. 4, the basic form, is the case c = c′ = C), all else is Gaussian noise.
    Without noise the channels of a group would be alike for ever, so the large form has some.

    Args:
        channels: C, at least 1; the paper has a channel for each class.
        form: "basic" or "large".
        noise: standard deviation of the noise, in units of C/c′; None is 0 in the basic form and 0.01 in the large one.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Yu and Koltun, Multi-Scale Context Aggregation by Dilated Convolutions, ICLR 2016, arXiv 1511.07122.
    """

    def __init__(self, channels: int, *, form: str = "basic", noise: float | None = None):
        super().__init__()
        self.channels = check_int("channels", channels)
        check_choice("form", form, FORMS)
        self.form = form
        noise = (0.01 if form == "large" else 0.0) if noise is None else noise
        if isinstance(noise, bool) or not isinstance(noise, int | float) or noise < 0:
            raise ValueError(f"noise={noise!r} must be a number of at least 0")
        widths = [channels, *(channels * factor for factor in FORMS[form]), channels]
        kernels = [*((3, dilation) for dilation in CONTEXT), (1, 1)]
        layers = [DilatedConv(c, c_next, kernel_size=k, dilation=dilation)
                  for c, c_next, (k, dilation) in zip(widths[:-1], widths[1:], kernels, strict=True)]
        self.layers = nn.ModuleList(layers)
        for layer in layers:
            self._initialise(layer, noise)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        *layers, last = self.layers
        for layer in layers:
            x = F.relu(layer(x))
        return tap("y", last(x), "B C H W")

    def _initialise(self, layer: DilatedConv, noise: float) -> None:
        c_next, c, *centre = layer.weight.shape[:2] + torch.Size(k // 2 for k in layer.kernel_size)
        group_a, group_b = (torch.arange(n) * self.channels // n for n in (c, c_next))
        share = self.channels / c_next
        nn.init.normal_(layer.weight, std=noise * share)
        with torch.no_grad():
            passed = layer.weight[:, :, centre[0], centre[1]]
            passed.copy_(torch.where(group_a == group_b[:, None], share, passed))
        _, bias = layer.parameters()
        nn.init.zeros_(bias)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, form={self.form!r}"
