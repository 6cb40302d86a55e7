"""Gather-Excite: every pixel is gated by what its own channel shows around it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_at_most, check_choice, check_int, check_tensor
from ..ops import resize
from ..tap import tap

GATHERS = ("mean", "conv")
EXCITES = ("sigmoid", "mlp")


@register(
    "genet",
    family="spatial",
    name="Gather-Excite",
    summary="It gates a pixel by a summary of its surroundings, near or wide, up to the whole image.",
    aliases=("GE", "GENet", "gather and excite"),
    action="gate",
    papers=[Paper(
        key="hu2018gather", venue="NeurIPS", year=2018, arxiv="1810.12348",
        title="Gather-Excite: Exploiting Feature Context in Convolutional Neural Networks",
        code="https://github.com/hujie-frank/GENet",
    )],
    layout="B C H W",
    example=dict(channels=32, extent=4),
    measured=dict(channels=64),
    variants={
        "global": dict(channels=8),
        "mean and MLP": dict(channels=8, extent=2, excite="mlp", reduction=2),
        "theta": dict(channels=8, extent=8, gather="conv"),
        "theta, global": dict(channels=6, gather="conv", height=12, width=16),
        "theta plus": dict(channels=8, extent=2, gather="conv", excite="mlp", reduction=2),
    },
    commutes_with={"channel_permutation", "transpose"},
    forbids={"batch_one": "with weights, the global gather normalises one number a channel and image over the batch"},
    builds_on=("se",),
    reduces_to={
        "se": "global mean, excite by an MLP",
        "channel-wise gate": "global mean",
        "SiLU": "e = 1: the mean of a pixel alone",
    },
    counterpart=Counterpart(
        "timm GatherExcite", "timm.layers.gather_excite",
        lambda timm, channels, extent: timm.GatherExcite(channels, extent=extent, use_mlp=False)),
    errata=[
        Erratum("paper", "Whether zeros beyond the border count in the mean is not said.",
                "They do not; count_padding=True counts them.", "test_padding_counts_only_on_request"),
        Erratum("release", "Only the global forms are published.",
                "The smaller extents follow the paper: log₂ e depthwise convolutions of stride 2.",
                "test_extent_of_the_gather_is_2e_minus_1"),
        Erratum("copies", "The window of the mean is as wide as its stride.",
                "It is 2e − 1 wide at stride e, so that windows overlap.", "test_extent_of_the_gather_is_2e_minus_1"),
        Erratum("copies", "The gathered map is interpolated bilinearly.", "The nearest entry is repeated.",
                "test_the_gate_is_constant_on_cells"),
        Erratum("package", "timm 1.0 fails to construct the forms that have weights.",
                "All four forms can be made; the one without weights equals timm's.",
                "test_timm_cannot_make_the_forms_with_weights"),
    ],
)
class GatherExcite(nn.Module):
    """Gather-excite: y = x · interp(σ(f(x̂))), x̂ = gather(x) over windows of 2e − 1 pixels, one every e pixels.

    The gather is depthwise, one of

        mean    of each window; of the whole map when the extent is global
        conv    log₂ e depthwise 3 × 3 convolutions of stride 2, each with BN, ReLU between them; globally one
                depthwise convolution as large as the map, with BN. No layer has a bias.

    and the excitation works on the gathered map, ⌈H/e⌉ × ⌈W/e⌉,

        sigmoid    f(x̂) = x̂
        mlp        f(x̂) = W₂ δ(W₁ x̂), δ = ReLU, with biases, as in squeeze-and-excitation; after a conv gather, x̂
                   goes through a ReLU first

    before interp repeats the nearest entry. The paper's GE-θ⁻ is mean with sigmoid, GE-θ conv with sigmoid, GE-θ⁺ conv
    with mlp; mean with mlp is a squeeze-and-excitation that looks at a part of the image. Window p is centred at pixel
    p·e, and pixel i reads entry ⌊i · ⌈H/e⌉ / H⌋, which is ⌊i/e⌋ where e divides H.

    Weights of the release map as: gather → gather.0, gather/bn → gather.1, excite/1x1_down → W1, excite/1x1_up → W2.

    Args:
        channels: C, at least 1.
        extent: e, at least 1; a power of two from 2 on with a conv gather. None is global.
        gather: "mean" or "conv".
        excite: "sigmoid" or "mlp".
        reduction: of the MLP, from 1 to C; 16 in the paper. C/reduction is rounded down.
        count_padding: whether zeros beyond the border count in the mean.
        height, width: of the map, for a global conv gather alone.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1, or H = height and W = width with a global conv gather.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or one in training
            whose gathered map is a single number for each channel, where there is a BN.

    Paper:
        Hu, Shen, Albanie, Sun and Vedaldi, Gather-Excite: Exploiting Feature Context in Convolutional Neural Networks,
        NeurIPS 2018, arXiv 1810.12348.
    """

    def __init__(self, channels: int, *, extent: int | None = None, gather: str = "mean", excite: str = "sigmoid",
                 reduction: int = 16, count_padding: bool = False, height: int | None = None,
                 width: int | None = None):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.extent = None if extent is None else check_int("extent", extent)
        check_choice("gather", gather, GATHERS)
        check_choice("excite", excite, EXCITES)
        self.count_padding = count_padding
        check_int("reduction", reduction)
        whole = gather == "conv" and extent is None
        if whole != (height is not None) or whole != (width is not None):
            raise ValueError(f"height={height} and width={width} must be " + (
                "the size of the map, such as 14 and 14: a global gather with weights has one for every pixel" if whole
                else "None: only a global gather with weights is made for one size"))
        self.fixed = {"H": check_int("height", height), "W": check_int("width", width)} if whole else {}
        self.gather = self._convs() if gather == "conv" else None
        if excite == "mlp":
            check_at_most("reduction", reduction, "channels", channels)
            self.W1 = nn.Conv2d(channels, channels // reduction, 1)
            self.W2 = nn.Conv2d(channels // reduction, channels, 1)
        self.excite = excite

    def forward(self, x: Tensor) -> Tensor:
        _, _, H, W = check_tensor(x, "B C H W", {"C": self.channels, **self.fixed}).shape
        x_hat = tap("x_hat", self.gathered(x), "B C P Q")
        s = tap("s", torch.sigmoid(self.W2(F.relu(self.W1(self._rectified(x_hat))))
                                   if self.excite == "mlp" else x_hat), "B C P Q")
        return tap("y", x * (s if self.extent is None else resize(s, H, W, mode="nearest")), "B C H W")

    def gathered(self, x: Tensor) -> Tensor:
        """x̂: (B, C, ⌈H/e⌉, ⌈W/e⌉), or (B, C, 1, 1)."""
        if self.gather is not None:
            if self.training and len(x) == 1 and (self.extent is None or max(x.shape[2:]) <= self.extent):
                raise ValueError("x is a batch of 1 whose gathered map has one number a channel; in training it must "
                                 "hold 2 images or more, for the BN")
            return self.gather(x)
        if self.extent is None:
            return x.mean((2, 3), keepdim=True)
        e = self.extent
        return F.avg_pool2d(x, 2 * e - 1, e, padding=e - 1, count_include_pad=self.count_padding)

    def _rectified(self, x_hat: Tensor) -> Tensor:
        return x_hat if self.gather is None else F.relu(x_hat)

    def _convs(self) -> nn.Sequential:
        def conv(kernel: tuple[int, int], stride: int = 1, padding: int = 0) -> list[nn.Module]:
            return [nn.Conv2d(self.channels, self.channels, kernel, stride, padding, groups=self.channels, bias=False),
                    nn.BatchNorm2d(self.channels)]

        if self.extent is None:
            return nn.Sequential(*conv((self.fixed["H"], self.fixed["W"])))
        steps = self.extent.bit_length() - 1
        if steps == 0 or self.extent != 2**steps:
            raise ValueError(f"extent={self.extent} must be a power of two with gather='conv'; {max(2, 2**steps)} and "
                             f"{max(4, 2 ** (steps + 1))} are")
        layers = [layer for _ in range(steps) for layer in (*conv((3, 3), stride=2, padding=1), nn.ReLU())]
        return nn.Sequential(*layers[:-1])

    def extra_repr(self) -> str:
        gather = "mean" if self.gather is None else "conv"
        return f"channels={self.channels}, extent={self.extent}, gather={gather!r}, excite={self.excite!r}"
