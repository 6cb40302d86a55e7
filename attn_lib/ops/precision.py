"""Products of features where the input is in half precision."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
# Asked here: torch.compile of the oldest torch cannot ask, and `is_autocast_enabled` refuses other devices (meta).
_AUTOCAST = tuple(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu")))


def in_float32(fn: Callable[..., Tensor], *args: Any) -> Tensor:
    """`fn(*args)` with its tensors in float32 at least, under autocast as well.

    For products of features: float16 ends at 65,504, which two vectors of a trained network exceed, and bfloat16
    has three digits. In float32 outside autocast this is the plain call.
    """
    args = [t.float() if isinstance(t, Tensor) and t.dtype in _HALF else t for t in args]
    device = next(t.device.type for t in args if isinstance(t, Tensor))
    if device not in _AUTOCAST or not torch.is_autocast_enabled(device):
        return fn(*args)
    with torch.autocast(device, enabled=False):
        return fn(*args)
