"""Highway layers: a gate decides, for every unit, how much of it is transformed and how much is carried through."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_feature_map, check_int, check_odd, check_tensor
from ..tap import tap

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh}


class Highway(nn.Module):
    """The dense highway layer: y = T · H + (1 − T) · x with H = f(W_H x + b_H), T = σ(W_T x + b_T).

    The last axis of x holds the units; it is kept, since y is a mixture of H and x. All else is said at
    `HighwayConv2d`, of which this is the layer with a 1 × 1 kernel.

    Args:
        channels: C, the units, at least 1.
        activation: f, "relu" or "tanh".
        transform_bias: b_T at the start.

    Shape:
        x (B, C) → y (B, C), vectors; or tokens (B, N, C), or a series (B, T, N, C).

    Raises:
        ValueError: for an argument out of range, or an input whose last axis is not C.
    """

    def __init__(self, channels: int, *, activation: str = "relu", transform_bias: float = -1.0):
        super().__init__()
        self.channels = check_int("channels", channels)
        check_choice("activation", activation, ACTIVATIONS)
        self.activation = activation
        self.Wh, self.Wt = nn.Linear(channels, channels), nn.Linear(channels, channels)
        nn.init.constant_(self.Wt.bias, _number("transform_bias", transform_bias))

    def forward(self, x: Tensor) -> Tensor:
        axes = {2: "B C", 3: "B N C"}.get(getattr(x, "ndim", 2), "B T N C")
        check_tensor(x, axes, {"C": self.channels})
        return highway(x, self.Wh, self.Wt, ACTIVATIONS[self.activation], axes)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, activation={self.activation!r}"


@register(
    "highway",
    family="branch",
    name="Highway layer",
    summary="It lets every unit choose between being computed anew and being carried through, so that depth costs "
            "nothing.",
    aliases=("Highway", "Highway Networks", "highway convolution"),
    action="mix",
    papers=[Paper(
        key="srivastava2015highway", venue="ICML Deep Learning Workshop", year=2015, arxiv="1505.00387",
        title="Highway Networks",
    )],
    layout="B C H W",
    example=dict(channels=32),
    measured=dict(channels=64),
    variants={"dense": dict(channels=6, kernel_size=1), "tanh": dict(channels=4, activation="tanh")},
    commutes_with={"translation"},
    reduces_to={
        "identity": "b_T → −∞: everything is carried, and the Jacobian is the identity too",
        "convolution": "b_T → ∞: a convolution, then f",
    },
    errata=[
        Erratum(
            "copies", "The gate multiplies x, and 1 − gate multiplies H: a carry gate, which wants a positive bias.",
            "T multiplies H, and its bias starts below zero.", "test_a_carry_gate_is_the_transform_gate_of_other_sign"),
        Erratum(
            "copies", "The gate's bias starts near zero as any other, and every layer loses half of what it carries.",
            "It starts at `transform_bias`, −1; lower for deeper networks.", "test_depth_needs_a_negative_bias"),
    ],
)
class HighwayConv2d(nn.Module):
    """The convolutional highway layer: y = T · H + (1 − T) · x with H = f(W_H * x + b_H), T = σ(W_T * x + b_T).

    The block state H and the transform gate T are two convolutions of x with zeros around it, so that both have the
    size of x; they share nothing. T has a value for every channel of every position, and every entry of y lies
    between those of H and of x. Input and output have the same channels: where a network changes its width, the paper
    puts a plain layer.

    b_T starts below zero, so that at first a layer mostly carries: −1 to −3 in the paper, lower the deeper the network.
    `Highway` is the dense layer, on vectors. There is no authors' code for PyTorch; the names are the paper's.

    Args:
        channels: C, at least 1.
        kernel_size: of both convolutions, odd; 1 is the dense layer at every position.
        activation: f, "relu" or "tanh".
        transform_bias: b_T at the start.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Srivastava, Greff and Schmidhuber, Highway Networks, ICML Deep Learning Workshop 2015, arXiv 1505.00387.
    """

    def __init__(self, channels: int, *, kernel_size: int = 3, activation: str = "relu", transform_bias: float = -1.0):
        super().__init__()
        self.channels = check_int("channels", channels)
        check_odd("kernel_size", kernel_size)
        check_choice("activation", activation, ACTIVATIONS)
        self.activation = activation
        self.Wh, self.Wt = (nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2) for _ in range(2))
        _, b_T = self.Wt.parameters()
        nn.init.constant_(b_T, _number("transform_bias", transform_bias))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        return highway(x, self.Wh, self.Wt, ACTIVATIONS[self.activation], "B C H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, activation={self.activation!r}"


def highway(x: Tensor, Wh: nn.Module, Wt: nn.Module, f: Callable[[Tensor], Tensor], axes: str) -> Tensor:
    """y from x and the layers of H and T: eq. 3 of the paper, whatever the layers are."""
    H_x = tap("H_x", f(Wh(x)), axes)                # H(x, W_H), the block state
    T_x = tap("T_x", torch.sigmoid(Wt(x)), axes)    # T(x, W_T), the transform gate
    return tap("y", T_x * H_x + (1 - T_x) * x, axes)


def _number(name: str, value: Any) -> float:
    """`value` as a float; −∞, a layer that only carries, is one."""
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise ValueError(f"{name}={value!r} must be a number")
    return float(value)
