"""Checks of arguments and shapes that end in a `ValueError` a person can act on.

Each message names the argument, what it was, and what it must be. Under `torch.compile` and `torch.export` the
checks are ordinary guards on shapes: they cost nothing at run time.
"""

import math
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from numbers import Real
from typing import Any

import torch
from torch import Tensor

Device = torch.device | str | int | None
MANY = 24  # choices: more of them are not listed


def check_int(name: str, value: Any, at_least: int = 1) -> int:
    """`value` as an int that is at least `at_least`; bools and floats are refused."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}={value!r} must be an integer of at least {at_least}")
    return value


def check_positive(name: str, value: Any, why: str = "") -> float:
    """`value` as a finite float above 0; `why` says what would happen otherwise."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name}={value!r} must be a positive number" + (f": {why}" if why else ""))
    return float(value)


def check_odd(name: str, value: Any) -> int:
    """`value` as a positive odd integer (a kernel that has a centre)."""
    number = check_int(name, value)
    if number % 2 == 0:
        raise ValueError(f"{name}={value} must be odd, so that the kernel has a centre")
    return number


def check_pair(name: str, value: Any, at_least: int = 1) -> tuple[int, int]:
    """`value` as a (rows, columns) pair of integers that are at least `at_least`; an integer stands for both."""
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name}={value!r} must be an integer or a (rows, columns) pair")
    return check_int(name, pair[0], at_least), check_int(name, pair[1], at_least)


def check_divisible(name: str, value: int, by_name: str, by: int) -> int:
    """The quotient `value // by`, which must be exact; the message names the nearest values for which it is."""
    if value % by:
        below, above = value - value % by, value - value % by + by
        near = f"{below} and {above} are" if below else f"{above} is"
        raise ValueError(f"{name}={value} must be divisible by {by_name}={by}; {near}")
    return value // by


def check_at_most(name: str, value: float, limit_name: str, limit: float) -> None:
    """`value` must not exceed another argument."""
    if value > limit:
        raise ValueError(f"{name}={value} must be at most {limit_name}={limit}")


def check_choice(name: str, value: Any, choices: Collection[Any],
                 other_names: Mapping[str, str] | None = None) -> None:
    """`value` must be one of `choices`; the message names the nearest, and not more than a reader can take in.

    Args:
        other_names: of choices, to which a reader is pointed who wrote one of these: "SENet" -> "se".
    """
    if value in choices:
        return
    many = len(choices) > MANY
    names = dict(other_names or {}) | {choice: choice for choice in choices if isinstance(choice, str)}
    near = _nearest(str(value), names, 3 if many else 1)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    listed = ", ".join(map(repr, list(choices)[:MANY // 2 if many else None])) or "(none)"
    rest = f", … ({len(choices)} in all)" if many else ""
    raise ValueError(f"{name}={value!r} must be one of {listed}{rest}{hint}")


def _nearest(value: str, names: dict[str, str], most: int) -> list[str]:
    """What the names most like `value` stand for, whatever their capitals and spaces; one alone if it is the same."""
    def plain(text: str) -> str:
        return "".join(filter(str.isalnum, text.lower()))

    meant: dict[str, list[str]] = {}
    for name, choice in names.items():
        meant.setdefault(plain(name), []).append(choice)
    near = meant.get(plain(value)) or [c for n in get_close_matches(plain(value), meant, n=most) for c in meant[n]]
    return list(dict.fromkeys(near))[:most]


def check_device(device: Any) -> torch.device | None:
    """`device` as a `torch.device`; None stays None."""
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device={device!r} must name a device, such as 'cpu' or 'cuda:0'") from None


def check_floating_type(dtype: Any) -> torch.dtype | None:
    """`dtype` as a floating-point `torch.dtype`; None stays None."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype={dtype!r} must be a floating-point type, such as torch.bfloat16")
    return dtype


def check_tensor(x: Any, dims: str, sizes: dict[str, int] | None = None, name: str = "x") -> Tensor:
    """`x` must be a non-empty floating-point tensor with the axes `dims`.

    Args:
        dims: axes in symbols, such as "B C H W".
        sizes: axes whose size is fixed, such as {"C": 64}.
    """
    axes = dims.split()
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a tensor of shape ({', '.join(axes)}), not {type(x).__name__}")
    shape = tuple(x.shape)
    if len(shape) != len(axes):
        raise ValueError(f"{name} has shape {shape}; it must have {len(axes)} axes ({', '.join(axes)})")
    if not x.is_floating_point():
        raise ValueError(f"{name} has dtype {x.dtype}; it must be a floating-point tensor")
    for axis, size in zip(axes, shape, strict=True):
        if size == 0:
            raise ValueError(f"{name} has shape {shape}; axis {axis} must not be empty")
        if sizes and axis in sizes and size != sizes[axis]:
            raise ValueError(f"{name} has shape {shape}; axis {axis} must be {sizes[axis]}, not {size}")
    return x


def check_feature_map(x: Any, channels: int, name: str = "x") -> Tensor:
    """`x` must be a feature map (B, C, H, W) with C = `channels`."""
    return check_tensor(x, "B C H W", {"C": channels}, name)
