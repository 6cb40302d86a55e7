"""ParNet's blocks: instead of depth a few branches side by side, one of them gated, which are one convolution later."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_divisible, check_feature_map, check_int
from ..ops import channel_shuffle
from ..tap import tap


class ConvNorm(nn.Module):
    """A convolution without a bias, then batch normalisation: two linear maps in evaluation, and then one.

    Args:
        channels, out_channels, kernel_size, stride, groups: of the convolution; zeros keep the size at stride 1.
    """

    def __init__(self, channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the convolution that it is in evaluation."""
        mean, var = self.bn.running_mean, self.bn.running_var
        assert mean is not None and var is not None
        scale = self.bn.weight / (var + self.bn.eps).sqrt()
        return self.conv.weight * scale[:, None, None, None], self.bn.bias - mean * scale


class Reparameterised(nn.Module):
    """What the blocks share: W3 and W1, a 3 × 3 and a 1 × 1 branch, and `fuse`, which makes one convolution of them."""

    W3: ConvNorm | nn.Conv2d
    W1: ConvNorm | None  # None once it is in W3

    def fuse(self) -> "Reparameterised":
        """The same function with one 3 × 3 convolution for both branches, for inference. In place; returns itself.

        A 1 × 1 kernel is a 3 × 3 kernel of zeros but for its centre; behind a 2 × 2 mean it is four quarters of
        itself. What is normalised but not convolved stays as it is. A state dict holds one form or the other: fuse
        first, to load that of a fused block.

        Raises:
            ValueError: in training, where a batch normalisation is no fixed map.
        """
        if self.training:
            raise ValueError("training=True must be False to fuse: batch normalisation is a fixed map in eval mode")
        if self.W1 is not None:
            assert isinstance(self.W3, ConvNorm)
            (weight, bias), (point, shift) = self.W3.folded(), self.W1.folded()
            old = self.W3.conv
            if old.stride == (2, 2):
                weight = weight + F.pad((point / 4).expand(-1, -1, 2, 2), (1, 0, 1, 0))  # rows and columns 2i, 2i + 1
            else:
                weight = weight + F.pad(point, (1, 1, 1, 1))
            conv = nn.Conv2d(old.in_channels, old.out_channels, 3, old.stride[0], 1, groups=old.groups, device="meta")
            conv.weight, conv.bias = nn.Parameter(weight.detach()), nn.Parameter((bias + shift).detach())
            self.W3, self.W1 = conv, None
        return self


@register(
    "parnet",
    family="channel_spatial",
    name="ParNet block",
    summary="It widens a layer instead of deepening the network: a gate of the whole map beside two convolutions that "
            "become one.",
    aliases=("ParNet", "Skip-Squeeze-Excitation", "Partnet"),
    action="mix",
    papers=[Paper(
        key="goyal2022parnet", venue="NeurIPS", year=2022, arxiv="2110.07641",
        title="Non-deep Networks",
        code="https://github.com/imankgoyal/NonDeepNetworks",
    )],
    layout="B C H W",
    example=dict(channels=32),
    measured=dict(channels=64),
    variants={"narrow": dict(channels=3)},
    commutes_with={"translation"},
    builds_on=("se",),
    reduces_to={"convolution": "W_s = 0: one 3 × 3 convolution made of all three branches, then SiLU"},
    errata=[
        Erratum(
            "copies", "The gate is computed from x and gates x: the skip's batch normalisation is missing.",
            "Skip-squeeze-excitation gates BN(x), and is computed from it.",
            "test_the_comparison_with_the_paper_notices"),
        Erratum(
            "copies", "The gate's layer has a bias, and so have convolutions in front of a batch normalisation.",
            "None of them has, as in the release.", "test_nothing_but_the_norms_has_a_bias"),
        Erratum(
            "copies", "There is nothing to fuse: three branches run at inference, too.",
            "`fuse()` makes one convolution of two of them, exactly.", "test_a_fused_block_is_the_same_function"),
        Erratum(
            "release", "The downsampling block fails on maps of odd height or width, where the 3 × 3 convolution has a "
            "row more than the 2 × 2 mean.", "The mean reads zeros below and to the right, as the convolution does.",
            "test_downsampling_takes_odd_sizes"),
        Erratum(
            "paper", "It has no equation for the gate of the downsampling and the fusion block.",
            "2σ of the raw input's means, on the sum of both branches, as in the release.",
            "test_the_downsampling_block_is_the_releases"),
    ],
)
class ParNetBlock(Reparameterised):
    """ParNet's block: y = SiLU(BN(W₃ * x) + BN(W₁ x) + s · x̂) with x̂ = BN(x), s = σ(W_s z), z = mean of x̂ over H, W.

    W₃ is a 3 × 3 convolution with zeros around x, W₁ a 1 × 1, and s · x̂ skip-squeeze-excitation: one layer and no
    ReLU, since a gate in the skip must not deepen the network. No layer has a bias. W₃ and W₁ become one convolution by
    `fuse()`, for inference; the gated skip stays beside it. `ParNetDownsampling` and `ParNetFusion` are the paper's
    blocks where a stream becomes narrower, and where two streams meet.

    From the release: W3 is rbr_dense, W1 is rbr_1x1, norm is rbr_identity, and Ws is se.cvsig.conv.

    Args:
        channels: C, at least 1.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Goyal, Bochkovskiy, Deng and Koltun, Non-deep Networks, NeurIPS 2022, arXiv 2110.07641.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.W3, self.W1 = ConvNorm(channels, channels, 3), ConvNorm(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.Ws = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        x_hat = tap("x_hat", self.norm(x), "B C H W")
        s = tap("s", _gate(self.Ws, x_hat), "B C")
        y = self.W3(x) if self.W1 is None else self.W3(x) + self.W1(x)
        return tap("y", F.silu(y + s[..., None, None] * x_hat), "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, fused={self.W1 is None}"


class ParNetDownsampling(Reparameterised):
    """ParNet's downsampling block: y = SiLU(2s · (BN(W₃ * x) + BN(W₁ x̄))) with s = σ(W_s z), z = mean of x over H, W.

    W₃ has stride 2, and x̄ are the means of 2 × 2 pixels. There is no skip, so the gate, twice a sigmoid, lies on the
    sum. With groups the channels of the result are shuffled, one of each group in turn.

    Args:
        channels, out_channels: C and O, both divisible by `groups`.
        stride: 2, or 1 with no mean in front of W₁.
        groups: of all three layers.

    Shape:
        x (B, C, H, W) → y (B, O, Ho, Wo), Ho = ⌈H/stride⌉, Wo = ⌈W/stride⌉, any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.
    """

    def __init__(self, channels: int, out_channels: int, *, stride: int = 2, groups: int = 1):
        super().__init__()
        self.channels, self.out_channels = check_int("channels", channels), check_int("out_channels", out_channels)
        check_divisible("channels", channels, "groups", check_int("groups", groups))
        check_divisible("out_channels", out_channels, "groups", groups)
        if check_int("stride", stride) > 2:
            raise ValueError(f"stride={stride} must be 1 or 2")
        self.stride, self.groups = stride, groups
        self.W3 = ConvNorm(channels, out_channels, 3, stride=stride, groups=groups)
        self.W1 = ConvNorm(channels, out_channels, 1, groups=groups)
        self.Ws = nn.Conv2d(channels, out_channels, 1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        s = tap("s", _gate(self.Ws, x), "B O")
        y = self.W3(x) if self.W1 is None else self.W3(x) + self.W1(self._means(x))
        y = F.silu(2 * s[..., None, None] * y)
        return tap("y", channel_shuffle(y, self.groups), "B O Ho Wo")

    def _means(self, x: Tensor) -> Tensor:
        """Of 2 × 2 pixels; where a size is odd the last are quarters of a sum, as if zeros lay beside them."""
        return x if self.stride == 1 else F.avg_pool2d(x, 2, ceil_mode=True, divisor_override=4)

    def extra_repr(self) -> str:
        names = ("channels", "out_channels", "stride", "groups")
        return f"{', '.join(f'{name}={getattr(self, name)}' for name in names)}, fused={self.W1 is None}"


class ParNetFusion(nn.Module):
    """ParNet's fusion block: two streams, each normalised, their channels in turn, then a downsampling block.

    Channel 2i of what is convolved is channel i of BN(x₁), and 2i + 1 that of BN(x₂): each of its two groups sees half
    of both streams.

    Args:
        channels: C of each stream.
        out_channels: O, even.
        stride: 2, or 1 where the streams meet at the end.

    Shape:
        x₁, x₂ (B, C, H, W) → y (B, O, Ho, Wo), Ho = ⌈H/stride⌉, Wo = ⌈W/stride⌉, any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or two inputs of
            different shapes.
    """

    def __init__(self, channels: int, out_channels: int, *, stride: int = 2):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.down = ParNetDownsampling(2 * channels, out_channels, stride=stride, groups=2)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        check_feature_map(x1, self.channels, "x1")
        check_feature_map(x2, self.channels, "x2")
        if x1.shape != x2.shape:
            raise ValueError(f"x1 {tuple(x1.shape)} and x2 {tuple(x2.shape)} must have the same shape")
        return self.down(channel_shuffle(torch.cat([self.norm1(x1), self.norm2(x2)], 1), 2))

    def fuse(self) -> "ParNetFusion":
        """See `Reparameterised.fuse`; the norms in front stay, since they see no zeros around the map."""
        self.down.fuse()
        return self


def _gate(Ws: nn.Module, x: Tensor) -> Tensor:
    """σ(W_s z), z the means of x."""
    z = tap("z", x.mean((2, 3)), "B C")
    return torch.sigmoid(Ws(z[..., None, None])).flatten(1)
