"""Depthwise separable convolution: neighbours and channels are mixed one after the other."""

import torch
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_at_most, check_choice, check_feature_map, check_int, check_pair, check_positive
from ..ops import Geometry, output_size, same_padding
from ..tap import tap

Pair = int | tuple[int, int]  # (rows, columns); an integer stands for both

FORMS = ("xception", "mobilenet")
ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6}


@register(
    "depthwise_separable",
    family="conv",
    name="Depthwise separable convolution",
    summary="It looks at neighbours in each channel alone, then mixes the channels: a ninth of the weights of a 3 × 3 "
            "convolution, and nearly all of its reach.",
    aliases=("SepConv", "separable convolution", "SeparableConv2d", "Xception", "MobileNet"),
    action="mix",
    papers=[Paper(
        key="chollet2017xception", venue="CVPR", year=2017, arxiv="1610.02357",
        title="Xception: Deep Learning with Depthwise Separable Convolutions",
        code="https://github.com/keras-team/keras",
    ), Paper(
        key="howard2017mobilenets", venue="arXiv", year=2017, arxiv="1704.04861",
        title="MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
        code="https://github.com/tensorflow/models",
    )],
    layout="B C H W",
    output="B O Ho Wo",
    example=dict(channels=32),
    measured=dict(channels=64),
    variants={
        "MobileNet": dict(channels=8, out_channels=12, stride=2, form="mobilenet"),
        "release": dict(channels=8, form="mobilenet", activation="relu6"),
        "multiplier 2": dict(channels=6, out_channels=10, kernel_size=(3, 5), dilation=(2, 1), multiplier=2,
                             bias=False),
    },
    commutes_with={"translation"},
    reduces_to={
        "convolution": "no activation between: the dense kernel W[o, c] = p[o, c] · d[c], of rank one for each c",
        "linear layer": "1 × 1 kernels",
    },
    counterpart=Counterpart(
        "timm SeparableConv2d", "timm.layers.separable_conv",
        lambda timm, channels: timm.SeparableConv2d(channels, channels, bias=True)),
    errata=[
        Erratum("copies", "Normalisation and an activation stand between the two convolutions, under Xception's name.",
                "Nothing stands between them; that module is form=\"mobilenet\".",
                "test_the_forms_are_two_modules"),
        Erratum("copies", "The parameters are said to shrink by 1/C + 1/k² with C the input's channels.",
                "By 1/O + 1/k², with O the output's.",
                "test_parameters_shrink_by_the_outputs_channels"),
        Erratum("copies", "Both convolutions have a bias.",
                "One bias stands behind both: the depthwise one would only add a constant to it.",
                "test_a_bias_of_the_depthwise_part_is_one_of_the_whole"),
        Erratum("copies", "It is credited to DeepLabv3.",
                "It is Xception's and MobileNet's; DeepLabv3's atrous convolutions are dense.",
                "test_deeplabv3_has_none"),
        Erratum("release", "MobileNet's activation is min(δ(x), 6).",
                "δ(x), as the paper writes; activation=\"relu6\" is the release's.",
                "test_the_releases_activation_ends_at_six"),
    ],
)
class DepthwiseSeparableConv(nn.Module):
    """Depthwise separable convolution: y_o = b_o + Σ_c p[o, c] · (d[c] ∗ x_c): a kernel a channel, then a 1 × 1.

    d is C·m kernels of k × k, m for each channel, and p is O × C·m. So k²·C·m + O·C·m weights stand where a dense
    convolution has k²·C·O: for m = 1 the part 1/O + 1/k² of them. As one dense kernel it is W[o, c] = Σ p·d over the m
    kernels of c, a matrix of rank m for each input channel; with m = k² it can be any convolution (see `from_conv`).

    form="xception" is this, linear. form="mobilenet" is another module, δ(BN(p δ(BN(d ∗ x)))), without bias. DeepLab's
    split version is that, too. The kernels of channel c are the channels c·m to c·m + m − 1 between the two.

    timm's names for the weights are `conv_dw` for `depthwise` and `conv_pw` for `pointwise`.

    Args:
        channels: C, at least 1.
        out_channels: O; C when None.
        kernel_size, stride, dilation: of the depthwise convolution, at least 1; an integer, or (rows, columns).
        padding: zeros around x; None keeps the size at stride 1 (dilation·(kernel_size − 1) must be even).
        multiplier: m, at least 1; Keras calls it the depth multiplier. MobileNet's width multiplier is none of it.
        form: "xception" or "mobilenet".
        activation: of the MobileNet form, "relu", or "relu6" as in its release.
        epsilon: of BN in the MobileNet form, above 0; the release's by default.
        bias: whether the Xception form has a bias.

    Shape:
        x (B, C, H, W) → y (B, O, Ho, Wo), with Ho and Wo as from `torch.nn.Conv2d`.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or one
            that is smaller than the kernel.

    Paper:
        Chollet, Xception: Deep Learning with Depthwise Separable Convolutions, CVPR 2017, arXiv 1610.02357;
        Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto and Adam, MobileNets: Efficient Convolutional Neural
        Networks for Mobile Vision Applications, 2017, arXiv 1704.04861.
    """

    def __init__(
        self, channels: int, out_channels: int | None = None, *, kernel_size: Pair = 3, stride: Pair = 1,
        padding: Pair | None = None, dilation: Pair = 1, multiplier: int = 1, form: str = "xception",
        activation: str = "relu", epsilon: float = 1e-3, bias: bool = True,
    ):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.out_channels = check_int("out_channels", channels if out_channels is None else out_channels)
        self.kernel_size = check_pair("kernel_size", kernel_size)
        dilation = check_pair("dilation", dilation)
        self.geometry = Geometry(
            stride=check_pair("stride", stride), dilation=dilation,
            padding=same_padding(self.kernel_size, dilation) if padding is None else check_pair("padding", padding, 0))
        self.multiplier = check_int("multiplier", multiplier)
        check_choice("form", form, FORMS)
        check_choice("activation", activation, ACTIVATIONS)
        check_positive("epsilon", epsilon)
        self.form = form

        def behind(width: int) -> nn.Module:
            if form == "xception":
                return nn.Identity()
            return nn.Sequential(nn.BatchNorm2d(width, eps=epsilon), ACTIVATIONS[activation]())

        Ce = channels * multiplier
        self.depthwise = nn.Conv2d(channels, Ce, self.kernel_size, **self.geometry, groups=channels, bias=False)
        self.between = behind(Ce)
        self.pointwise = nn.Conv2d(Ce, self.out_channels, 1, bias=bias and form == "xception")
        self.behind = behind(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        output_size(x.shape[2:], self.kernel_size, **self.geometry)    # a clear error where x is too small
        d = tap("d", self.between(self.depthwise(x)), "B Ce Ho Wo")    # neighbours, in every channel alone
        return tap("y", self.behind(self.pointwise(d)), "B O Ho Wo")   # channels, at every position alone

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, *, multiplier: int = 1) -> "DepthwiseSeparableConv":
        """The separable convolution that is nearest to a dense one, in the sum of squares of their kernels.

        The kernels that read one input channel are a matrix O × k²; kept are its `multiplier` largest singular
        values. With min(O, k²) of them nothing is lost.

        Args:
            conv: a convolution without groups, with zero padding.
            multiplier: m, from 1 to min(O, k²).

        Raises:
            ValueError: if `conv` is none such, or m is out of range.
        """
        if type(conv) is not nn.Conv2d or conv.groups != 1 or conv.padding_mode != "zeros":
            raise ValueError(f"conv={conv} must be a torch.nn.Conv2d with groups=1 and zero padding")
        K, m = conv.weight[0, 0].numel(), check_int("multiplier", multiplier)
        check_at_most("multiplier", m, "min(out_channels, kernel size)", min(conv.out_channels, K))
        padding = ({"same": None, "valid": 0}[conv.padding] if isinstance(conv.padding, str)
                   else check_pair("padding", conv.padding, at_least=0))
        kernel_size, stride, dilation = (check_pair(name, getattr(conv, name))
                                         for name in ("kernel_size", "stride", "dilation"))
        separable = cls(conv.in_channels, conv.out_channels, kernel_size=kernel_size, stride=stride,
                        padding=padding, dilation=dilation, multiplier=m, bias=conv.bias is not None)
        separable.to(conv.weight)
        with torch.no_grad():
            U, s, V_T = torch.linalg.svd(conv.weight.flatten(2).transpose(0, 1), full_matrices=False)  # of C O K
            separable.depthwise.weight.copy_(V_T[:, :m].reshape_as(separable.depthwise.weight))
            p = (U * s[:, None])[..., :m]  # C O m
            separable.pointwise.weight.copy_(p.transpose(0, 1).flatten(1)[..., None, None])
            if conv.bias is not None and separable.pointwise.bias is not None:
                separable.pointwise.bias.copy_(conv.bias)
        return separable.train(conv.training)

    def extra_repr(self) -> str:
        names = ("channels", "out_channels", "kernel_size", "multiplier", "form")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
