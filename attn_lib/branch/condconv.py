"""Conditionally parameterised convolution: every image is convolved with a kernel that was mixed for it."""

from types import ModuleType

import torch
from torch import Tensor, nn

from ..catalog import Counterpart, Erratum, Paper, register
from ..checks import check_feature_map, check_int, check_tensor
from ..ops import KernelMixture, conv2d_per_image
from ..ops.kernels import Pair
from ..tap import tap


def _timm(timm: ModuleType, channels: int) -> nn.Module:
    """timm's layer, which is handed its routing, behind a layer that routes."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.routing = nn.Linear(channels, 8, bias=False)
            self.conv = timm.CondConv2d(channels, channels, 3, padding=1, num_experts=8)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x, torch.sigmoid(self.routing(x.mean((2, 3)))))

    return Routed()


@register(
    "condconv",
    family="branch",
    name="CondConv",
    summary="It mixes its kernel anew for every image, so that a layer grows by experts and costs one convolution.",
    aliases=("CondConv", "conditionally parameterized convolution"),
    action="mix",
    papers=[Paper(
        key="yang2019condconv", venue="NeurIPS", year=2019, arxiv="1904.04971",
        title="CondConv: Conditionally Parameterized Convolutions for Efficient Inference",
        code="https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/condconv",
    )],
    layout="B C H W",
    output="B O Ho Wo",
    example=dict(channels=32),
    measured=dict(channels=64),
    variants={
        "release": dict(channels=4, experts=3, routing_bias=True, bias=True),
        "stride 2": dict(channels=6, out_channels=9, experts=2, kernel_size=(3, 5), stride=(2, 1), dilation=(1, 2),
                         groups=3),
    },
    commutes_with={"translation"},
    builds_on=("se",),
    reduces_to={"convolution": "one expert, α = 1"},
    counterpart=Counterpart("timm CondConv2d", "timm.layers.cond_conv2d", _timm),
    errata=[
        Erratum("release", "The routing is a dense layer with a bias, of which the paper's equation knows nothing.",
                "`routing_bias=True`.", "test_the_releases_routing_has_a_bias"),
        Erratum("release", "One routing, from the input of a block, serves all of its convolutions.",
                "A layer routes by its own input, as in the paper's equation, or is handed the routing of another.",
                "test_one_routing_can_serve_a_block"),
        Erratum("copies", "The result is reshaped to the height and width of the input, so only a stride of 1 runs.",
                "Any stride, dilation and groups, on maps of any size.", "test_a_result_of_the_inputs_size_is_a_trap"),
        Erratum("copies", "The batch is flattened by `view`, which refuses an input that lies channels-last in memory.",
                "Any memory layout.", "test_an_input_that_lies_channels_last_is_a_trap"),
        Erratum("copies", "The experts are one parameter of five axes, and no model that has it can lie channels-last.",
                "An expert is a row of a matrix.", "test_a_parameter_of_five_axes_is_a_trap"),
        Erratum("copies", "The biases of the experts start as standard normal numbers, as large as the features.",
                "Every expert starts as a convolution of its own, bounded by its own fan.",
                "test_every_expert_starts_by_its_own_fan"),
    ],
)
class CondConv2d(KernelMixture):
    """CondConv: y = (α₁ W₁ + … + α_M W_M) * x with α = σ(R z), z = mean of x over H and W.

    Each image has its own routing weights α (B, M), and so a kernel of its own; the M experts are mixed before the
    convolution, not behind it, which is the same, α₁ (W₁ * x) + … + α_M (W_M * x), for the price of one. A bias, where
    the layer has one, is mixed alike. α is a sigmoid for each expert, not a softmax. M is the paper's n.

    For a routing that several layers share, give α as the second input, and leave out the layer's own by
    `routing=False`. `weight` and `bias` are those of `timm.layers.CondConv2d`, with an expert a row; `kernels` is
    the same by their axes.

    Args:
        channels: C, at least 1.
        out_channels: O; C when None.
        experts: M, at least 1.
        kernel_size: (kH, kW), or one integer for both.
        stride, dilation: as in `torch.nn.Conv2d`.
        padding: zeros around x; None keeps the size at stride 1 (dilation·(kernel_size − 1) must be even).
        groups: divides C and O; C for a depthwise convolution.
        bias: whether every expert has a bias.
        routing: whether the layer routes; False wants α with every call.
        routing_bias: whether the routing has a bias, as in the authors' release.

    Shape:
        x (B, C, H, W), and α (B, M) if it is given → y (B, O, Ho, Wo), with Ho and Wo as from `torch.nn.Conv2d`.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or an α that is
            missing or of another shape.

    Paper:
        Yang, Bender, Le and Ngiam, CondConv: Conditionally Parameterized Convolutions for Efficient Inference,
        NeurIPS 2019, arXiv 1904.04971.
    """

    def __init__(self, channels: int, out_channels: int | None = None, *, experts: int = 8, kernel_size: Pair = 3,
                 stride: Pair = 1, padding: Pair | None = None, dilation: Pair = 1, groups: int = 1,
                 bias: bool = False, routing: bool = True, routing_bias: bool = False):
        channels = check_int("channels", channels)
        out_channels = check_int("out_channels", channels if out_channels is None else out_channels)
        super().__init__(channels, out_channels, kernels=check_int("experts", experts), kernel_size=kernel_size,
                         stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias)
        self.channels, self.out_channels, self.experts = channels, out_channels, experts
        self.Walpha = nn.Linear(channels, experts, bias=routing_bias) if routing else None  # R

    def forward(self, x: Tensor, alpha: Tensor | None = None) -> Tensor:
        check_feature_map(x, self.channels)
        alpha = tap("alpha", self.route(x) if alpha is None else self._given(alpha, x), "B M")  # eq. 2
        W, b = self.mixed(alpha)                                                                # α₁ W₁ + … + α_M W_M
        W = tap("W", W, self.kernel_axes())
        return tap("y", conv2d_per_image(x, W, b, **self.geometry), "B O Ho Wo")                # eq. 1

    def route(self, x: Tensor) -> Tensor:
        """α (B, M) of x (B, C, H, W), for this layer or others of its block."""
        if self.Walpha is None:
            raise ValueError("alpha=None must be routing weights (B, M): with routing=False the layer makes none")
        z = tap("z", x.mean((2, 3)), "B C")
        return torch.sigmoid(self.Walpha(z))

    def _given(self, alpha: Tensor, x: Tensor) -> Tensor:
        return check_tensor(alpha, "B M", {"B": len(x), "M": self.experts}, "alpha")

    def extra_repr(self) -> str:
        sizes = f"channels={self.channels}, out_channels={self.out_channels}, experts={self.experts}"
        return f"{sizes}, {self.geometry_repr()}"
