"""What the figures accept: tensors, arrays and lists, alone or in a dict of panels, made into NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = torch.Tensor | NDArray[Any] | Sequence[Any]  # as a reader has them; a list may be nested
Panels = Numbers | Mapping[Any, Numbers]  # one, or several by name


def to_array(value: Any, name: str, ndim: int | tuple[int, ...] | None = None) -> Floats:
    """A float64 copy of `value` on the CPU.

    Args:
        value: tensor, array, or nested list of numbers.
        name: the argument's name, for the error.
        ndim: the number(s) of dimensions allowed.

    Raises:
        ValueError: `value` is empty, not numeric, or has another number of dimensions.
    """
    try:
        array = np.array(off_the_device(value), dtype=np.float64)
    except (TypeError, ValueError) as error:
        kind = type(value).__name__
        raise ValueError(f"{name} must be a tensor, an array or a list of numbers, not {kind}") from error
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if allowed is not None and array.ndim not in allowed:
        wanted = " or ".join(str(n) for n in allowed)
        raise ValueError(f"{name} has shape {array.shape}: it must have {wanted} dimension(s)")
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}: there is nothing to draw")
    return array


def finite(array: Floats, name: str) -> Floats:
    """The array as it is.

    Raises:
        ValueError: it holds NaN or infinities.
    """
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has {(~np.isfinite(array)).sum()} values that are NaN or infinite")
    return array


def off_the_device(value: Any) -> Any:
    """Tensors as float64 arrays on the CPU, within lists and tuples too; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().double().numpy()
    return [off_the_device(v) for v in value] if isinstance(value, list | tuple) else value


def to_image(value: Any, name: str) -> Floats:
    """A photograph as `(H, W)` or `(H, W, 3)` float64 in [0, 1].

    `(3, H, W)` and `(1, H, W)` are taken as channels first; uint8 is divided by 255. A grey picture
    with another range is stretched to [0, 1]; colours may overshoot by 0.1, as a resampled picture does.

    Raises:
        ValueError: another shape, or colours outside [0, 1].
    """
    whole = getattr(value, "dtype", None) in (torch.uint8, np.uint8)
    array = to_array(value, name, (2, 3))
    if array.ndim == 3:
        if array.shape[0] in (1, 3) and not (array.shape[2] == 3 and isinstance(value, np.ndarray)):
            array = array.transpose(1, 2, 0)
        if array.shape[2] == 1:
            array = array[..., 0]
        elif array.shape[2] != 3:
            raise ValueError(f"{name} has shape {array.shape}: it must be (H, W), (H, W, 3) or (3, H, W)")
    if whole:
        array = array / 255
    low, high = array.min(), array.max()
    if array.ndim == 3:
        if not (low >= -0.1 and high <= 1.1):
            raise ValueError(f"{name} has values from {low:.3g} to {high:.3g}: colours must lie in [0, 1]")
        return array.clip(0, 1)
    if low < 0 or high > 1:
        array = (array - low) / max(high - low, 1e-12)
    return array


def grey(picture: Floats) -> Floats:
    """The brightness `(H, W)` of a photograph as `to_image` returns it."""
    return picture if picture.ndim == 2 else picture @ (0.299, 0.587, 0.114)


def panels(value: Any) -> dict[str, Any]:
    """A dict's entries by their names as text; anything else as one nameless panel.

    Raises:
        ValueError: an empty dict.
    """
    named = {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {"": value}
    if not named:
        raise ValueError("there is nothing to draw: the dict or list is empty")
    return named


def called(argument: str, panel: str) -> str:
    """What an error calls the entry of a panel: "A['x']", or "A" where the panel has no name."""
    return f"{argument}[{panel!r}]" if panel.strip() else argument


def of_panel(value: Any, name: str, argument: str) -> Any:
    """The entry of panel `name`, where `argument` is a dict; anything else serves every panel.

    Raises:
        ValueError: a dict without that panel.
    """
    if not isinstance(value, Mapping):
        return value
    named = {str(k): v for k, v in value.items()}  # as `panels` names them
    if name not in named:
        raise ValueError(f"{argument} has the entries {list(value)}: one is needed for the panel {name!r}")
    return named[name]
