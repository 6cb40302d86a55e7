"""Products of features, and layers behind them, where the input is in half precision."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

T = TypeVar("T")

_HALF = (torch.float16, torch.bfloat16)
# Asked here: torch.compile of torch 2.6 cannot ask, and `is_autocast_enabled` refuses other devices (meta).
_AUTOCAST = tuple(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu")))


def in_float32(fn: Callable[..., T], *args: Any) -> T:
    """`fn(*args)` with its tensors in float32 at least, under autocast as well.

    For products of features: float16 ends at 65,504, which two vectors of a trained network exceed, and bfloat16
    has three digits. In float32 outside autocast this is the plain call.
    """
    wide = [t.float() if isinstance(t, Tensor) and t.dtype in _HALF else t for t in args]
    device = next(t.device.type for t in wide if isinstance(t, Tensor))
    if device not in _AUTOCAST or not torch.is_autocast_enabled(device):
        return fn(*wide)
    with torch.autocast(device, enabled=False):
        return fn(*wide)


def widened(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)` in float32 at least, also where the layer itself is in half precision.

    Args:
        layer: an `nn.Linear`, an `nn.Conv1d` or a batch normalisation. One in half precision that is in training
            normalises in its own type, since it keeps its statistics in it.
        x: in float32 at least.
    """
    if layer.weight.dtype not in _HALF:
        return in_float32(layer, x)
    if isinstance(layer, nn.Linear):
        return in_float32(F.linear, x, layer.weight, layer.bias)
    if isinstance(layer, nn.Conv1d):
        return in_float32(F.conv1d, x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation,
                          layer.groups)
    if layer.training:
        return layer(x.to(layer.weight.dtype)).to(x.dtype)
    return in_float32(F.batch_norm, x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0,
                      layer.eps)
