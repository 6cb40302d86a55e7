"""Split attention: the splits of a grouped convolution compete, channel by channel (ResNeSt)."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_divisible, check_feature_map, check_int
from ..tap import tap


@register(
    "resnest",
    family="branch",
    name="Split attention",
    summary="It lets the splits of a grouped convolution compete for every channel, each with its own share of the "
            "input.",
    aliases=("ResNeSt", "Split-Attention", "SplAtConv2d"),
    action="mix",
    papers=[Paper(
        key="zhang2022resnest", venue="CVPR Workshops", year=2022, arxiv="2004.08955",
        title="ResNeSt: Split-Attention Networks",
        code="https://github.com/zhanghang1989/ResNeSt",
    )],
    layout="B C H W",
    output="B O Ho Wo",
    example=dict(channels=32),
    measured=dict(channels=64),
    variants={
        "cardinal groups": dict(channels=12, out_channels=8, cardinality=2, radix=3, stride=2, reduction=3,
                                min_dim=4),
        "one split": dict(channels=6, radix=1, min_dim=5),
    },
    commutes_with={"translation"},
    forbids={"batch_one": "the pooled vector is normalised over the batch, and one vector has no variance"},
    builds_on=("se", "sk"),
    reduces_to={
        "se": "one split: convolution, BN, ReLU, then SE with a BN of its hidden layer",
        "mean": "the last layer's weights and bias 0: of the splits",
    },
    counterpart=Counterpart(
        "timm SplitAttn", "timm.layers.split_attn",
        lambda timm, channels: timm.SplitAttn(channels, norm_layer=nn.BatchNorm2d)),
    errata=[
        Erratum("paper", "Its Uᵢ = Fᵢ(X) does not say which channels of X a split sees; in SKNet it is all.",
                "As in the release: each split convolves C/(M · G) channels of its own.",
                "test_each_split_sees_its_own_share_of_the_input"),
        Erratum("release", "The splits are radix-major in the convolution and cardinality-major behind the last layer.",
                "The same orders, so that weights load by name.", "test_orders_of_the_splits_are_a_trap"),
        Erratum("release", "A cardinality that does not divide the hidden width ends in torch's message about groups.",
                "It is refused with the widths that would do.", "test_arguments_out_of_range"),
        Erratum("package", "timm rounds the hidden width to a multiple of 8.", "max(C · M / r, L), rounded down.",
                "test_timm_rounds_the_hidden_width"),
    ],
)
class SplitAttention(nn.Module):
    """Split attention: V = Σₘ aₘ · Uₘ with a = r-softmaxₘ(fc₂ δ(BN(fc₁ s))), s = mean of Σₘ Uₘ over H and W.

    U = δ(BN(conv(x))) has M · O channels, in M splits of O, from a convolution of M · G groups: each of G cardinal
    groups has M splits of O/G channels. Unlike the branches of selective kernels the splits have one kernel size, and
    see different input. r-softmax is a softmax over the splits, for each channel apart, and a sigmoid where there is
    one split only. fc₁ and fc₂ act within a cardinal group, with Cr = max(C · M / r, L) channels between them, rounded
    down, and have biases; the convolution has none. δ is ReLU. M is the paper's radix R, G its cardinality K.

    BN of fc₁ s takes its mean over the batch: a training batch holds at least two images.

    Names and shapes are the release's and timm's `SplitAttn`, weights load as they are. Channel m · O + g · O/G + o of
    the convolution is channel o of split m of group g; output g · M · O/G + m · O/G + o of fc₂ is its logit.

    Args:
        channels: C, divisible by M · G.
        out_channels: O, divisible by G; C when None.
        kernel_size, stride, dilation: of the convolution, at least 1; zeros around x keep the size at stride 1.
        cardinality: G, at least 1; divides Cr too.
        radix: M, at least 1.
        reduction: r, at least 1.
        min_dim: L, the least Cr, at least 1.

    Shape:
        x (B, C, H, W) → V (B, O, Ho, Wo), Ho = ⌈H/stride⌉, Wo = ⌈W/stride⌉ for an odd kernel, any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or a batch of
            one in training.

    Paper:
        Zhang, Wu, Zhang, Zhu, Lin, Zhang, Sun, He, Mueller, Manmatha, Li and Smola, ResNeSt: Split-Attention Networks,
        CVPR Workshops 2022, arXiv 2004.08955.
    """

    def __init__(self, channels: int, out_channels: int | None = None, *, kernel_size: int = 3, stride: int = 1,
                 dilation: int = 1, cardinality: int = 1, radix: int = 2, reduction: int = 4, min_dim: int = 32):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.out_channels = check_int("out_channels", channels if out_channels is None else out_channels)
        self.cardinality, self.radix = check_int("cardinality", cardinality), check_int("radix", radix)
        check_divisible("channels", channels, "radix·cardinality", radix * cardinality)
        check_divisible("out_channels", self.out_channels, "cardinality", cardinality)
        Cr = max(channels * radix // check_int("reduction", reduction), check_int("min_dim", min_dim))
        check_divisible("max(channels·radix // reduction, min_dim)", Cr, "cardinality", cardinality)

        width = radix * self.out_channels
        padding = check_int("dilation", dilation) * (check_int("kernel_size", kernel_size) // 2)
        self.conv = nn.Conv2d(channels, width, kernel_size, check_int("stride", stride), padding, dilation,
                              groups=radix * cardinality, bias=False)
        # The release's names, and its 1 × 1 convolutions for layers of vectors.
        self.bn0 = nn.BatchNorm2d(width)
        self.fc1 = nn.Conv2d(self.out_channels, Cr, 1, groups=cardinality)
        self.bn1 = nn.BatchNorm2d(Cr)
        self.fc2 = nn.Conv2d(Cr, width, 1, groups=cardinality)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        if self.bn1.training and len(x) == 1:
            raise ValueError("x is a batch of 1; in training it must hold 2 images or more, for the BN of s")
        U_m = F.relu(self.bn0(self.conv(x))).unflatten(1, (self.radix, self.out_channels))
        U_m = tap("U_m", U_m, "B M O Ho Wo")
        s = tap("s", U_m.sum(1).mean((2, 3)), "B O")                               # eq. 1
        z = tap("z", F.relu(self.bn1(self.fc1(s[:, :, None, None]))).flatten(1), "B Cr")
        a = tap("a", self.r_softmax(self.fc2(z[:, :, None, None])), "B M O")       # eq. 3
        return tap("V", (a[..., None, None] * U_m).sum(1).to(U_m.dtype), "B O Ho Wo")  # eq. 2

    def r_softmax(self, logits: Tensor) -> Tensor:
        """a (B, M, O) of logits (B, G·M·O/G, 1, 1): over the splits, or a sigmoid of the only one."""
        logits = rearrange(logits, "B (G M S) 1 1 -> B M (G S)", G=self.cardinality, M=self.radix)
        return logits.softmax(1).to(logits.dtype) if self.radix > 1 else logits.sigmoid()

    def extra_repr(self) -> str:
        names = ("channels", "out_channels", "cardinality", "radix")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
