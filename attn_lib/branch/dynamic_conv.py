"""Dynamic convolution: attention over a few kernels, soft at first, decides with which an image is convolved."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_feature_map, check_int, check_positive
from ..ops import KernelMixture, conv2d_per_image
from ..ops.kernels import Pair
from ..tap import tap


@register(
    "dynamic_conv",
    family="branch",
    name="Dynamic convolution",
    summary="It lets a few kernels share an image by a softmax, whose temperature falls while they learn to differ.",
    aliases=("DynamicConv", "DY-Conv", "dynamic filter"),
    action="mix",
    papers=[Paper(
        key="chen2020dynamic", venue="CVPR", year=2020, arxiv="1912.03458",
        title="Dynamic Convolution: Attention over Convolution Kernels",
    )],
    layout="B C H W",
    output="B O Ho Wo",
    example=dict(channels=32, temperature=1.0),
    measured=dict(channels=64),
    variants={
        "stride 2": dict(channels=6, out_channels=9, kernels=2, kernel_size=(3, 5), stride=(2, 1), dilation=(1, 2),
                         groups=3, reduction=2, bias=False),
    },
    commutes_with={"translation"},
    builds_on=("se", "condconv"),
    reduces_to={
        "convolution": "a single kernel",
        "mean": "T → ∞: of the convolutions with each kernel",
    },
    errata=[
        Erratum("copies", "The temperature is a Python number that no checkpoint keeps: a network that is read again "
                "answers at the temperature of a new one.", "It is a buffer, and comes with the weights.",
                "test_a_checkpoint_keeps_the_temperature"),
        Erratum("copies", "The temperature falls by 3, or by 1, with every call of a helper, and only from values that "
                "fit: 34, 31, ….", "`anneal(epoch)` is the paper's line from 30 to 1, of the epoch alone.",
                "test_the_temperature_falls_in_a_line_over_the_first_epochs"),
        Erratum("copies", "The hidden layer has ⌊C/4⌋ units, so that C = 3 is refused or has a rule of its own.",
                "max(1, ⌊C/r⌋) units for every C.", "test_width_of_the_hidden_layer"),
        Erratum("copies", "The mixed kernels are given C input channels whatever the groups, and groups fail.",
                "C/groups of them, as a convolution has.", "test_kernels_of_all_channels_are_a_trap"),
        Erratum("copies", "The biases of the kernels start uninitialised, or as standard normal numbers.",
                "Every kernel starts as a convolution of its own.", "test_every_kernel_starts_as_a_convolution"),
        Erratum("paper", "It does not say how the kernels start, and equal ones would have equal gradients for ever.",
                "Each is drawn for itself.", "test_equal_kernels_never_separate"),
        Erratum("paper", "It does not say whether the two layers of the attention have biases.", "Both have one, as in "
                "squeeze-and-excitation.", "test_both_layers_of_the_attention_have_a_bias"),
    ],
)
class DynamicConv2d(KernelMixture):
    """Dynamic convolution: y = W̃ * x + b̃ with W̃ = Σₘ πₘ Wₘ, b̃ = Σₘ πₘ bₘ, π = softmax(W₂ δ(W₁ z) / T).

    z is the mean of x over H and W, δ = ReLU, W₁ is C/r × C and W₂ is M × C/r, both with a bias. Each image has
    its own π (B, M), which sums to 1, and so a kernel of its own; since convolution is linear in its kernel, y is also
    the mixture of what the kernels give. M is the paper's K. Batch normalisation and activation follow in the network.

    A softmax that is nearly one-hot early on would train one kernel and starve the others. So T starts at 30, where
    all learn, and falls to 1 in the first ten epochs: call `anneal(epoch)` once an epoch, or set `temperature`. It is
    kept with the weights, in the buffer `T`. Nobody's weights load by name: there is no authors' release.

    Args:
        channels: C, at least 1.
        out_channels: O; C when None.
        kernels: M, at least 1.
        kernel_size: (kH, kW), or one integer for both.
        stride, dilation: as in `torch.nn.Conv2d`.
        padding: zeros around x; None keeps the size at stride 1 (dilation·(kernel_size − 1) must be even).
        groups: divides C and O.
        bias: whether every kernel has a bias.
        reduction: r, from 1 on; C/r is rounded down, and at least 1.
        temperature: T at the start, above 0.

    Shape:
        x (B, C, H, W) → y (B, O, Ho, Wo), with Ho and Wo as from `torch.nn.Conv2d`.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Chen, Dai, Liu, Chen, Yuan and Liu, Dynamic Convolution: Attention over Convolution Kernels, CVPR 2020,
        arXiv 1912.03458.
    """

    T: Tensor

    def __init__(self, channels: int, out_channels: int | None = None, *, kernels: int = 4, kernel_size: Pair = 3,
                 stride: Pair = 1, padding: Pair | None = None, dilation: Pair = 1, groups: int = 1,
                 bias: bool = True, reduction: int = 4, temperature: float = 30.0):
        channels = check_int("channels", channels)
        out_channels = check_int("out_channels", channels if out_channels is None else out_channels)
        super().__init__(channels, out_channels, kernels=check_int("kernels", kernels), kernel_size=kernel_size,
                         stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias)
        self.channels, self.out_channels = channels, out_channels
        self.reduction = check_int("reduction", reduction)
        hidden = max(1, channels // reduction)
        self.W1, self.W2 = nn.Linear(channels, hidden), nn.Linear(hidden, kernels)
        self.register_buffer("T", torch.ones(1))
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        z = tap("z", x.mean((2, 3)), "B C")
        logits = self.W2(F.relu(self.W1(z)))
        pi = tap("pi", (logits / self.T.to(logits.dtype)).softmax(1).to(logits.dtype), "B M")
        W, b = self.mixed(pi)                                                     # eq. 2
        W = tap("W", W, self.kernel_axes())
        return tap("y", conv2d_per_image(x, W, b, **self.geometry), "B O Ho Wo")  # eq. 1, before its activation

    @property
    def temperature(self) -> float:
        """T: the larger, the more alike the kernels count."""
        return self.T.item()

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.T.fill_(check_positive("temperature", value, "the weights are a softmax of logits over it"))

    def anneal(self, epoch: int, *, epochs: int = 10, start: float = 30.0, end: float = 1.0) -> float:
        """Set T for an epoch, counted from 0: a line from `start` to `end` over the first `epochs`, then `end`.

        Returns:
            T.
        """
        check_int("epoch", epoch, at_least=0)
        done = min(1.0, epoch / check_int("epochs", epochs))
        check_at_most("end", check_positive("end", end), "start", check_positive("start", start))
        self.temperature = start + (end - start) * done
        return self.temperature

    def extra_repr(self) -> str:
        sizes = f"channels={self.channels}, out_channels={self.out_channels}, kernels={len(self.weight)}"
        return f"{sizes}, {self.geometry_repr()}, reduction={self.reduction}"
