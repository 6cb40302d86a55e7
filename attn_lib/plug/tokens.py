"""Tokens as a map, and back: what stands between a network of tokens and a module that was put into it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ..checks import check_int
from ..layout import Axes

SEQUENCE, GRID = ("B", "N", "C"), ("B", "H", "W", "C")

Tokens = Sequence[int] | bool | None


@dataclass(frozen=True)
class View:
    """How a module sees the tokens of a site: (B, p + H·W, C), or (B, H, W, C).

    Attributes:
        axes: of what the site returns, `SEQUENCE` or `GRID`.
        as_map: whether the module sees a map (B, C, H, W), or else a sequence (B, H·W, C).
        size: (H, W) of a sequence that is seen as a map; a grid says itself how large it is.
        prefix: p, how many tokens at the beginning (class tokens, registers) go past the module.
    """

    axes: Axes
    as_map: bool
    size: tuple[int, int] | None = None
    prefix: int = 0

    def enter(self, tokens: Tensor) -> Tensor:
        """What the module sees.

        Raises:
            ValueError: if a sequence is not as long as the map is large.
        """
        if self.axes == GRID:
            return tokens.permute(0, 3, 1, 2) if self.as_map else tokens.flatten(1, 2)
        rest = tokens[:, self.prefix:]
        if not self.as_map:
            return rest
        assert self.size is not None  # of a sequence that is seen as a map
        if not isinstance(tokens, Proxy) and rest.shape[1] != math.prod(self.size):
            raise ValueError(f"the sequence has {tokens.shape[1]} tokens; tokens={self.size} and prefix={self.prefix} "
                             f"make {math.prod(self.size) + self.prefix}")
        return rest.transpose(1, 2).unflatten(2, self.size)

    def leave(self, y: Tensor, tokens: Tensor) -> Tensor:
        """`y`, of the module, in the form of the tokens."""
        if self.axes == GRID:
            return y.permute(0, 2, 3, 1) if self.as_map else y.unflatten(1, tokens.shape[1:3])
        y = y.flatten(2).transpose(1, 2) if self.as_map else y
        return torch.cat((tokens[:, :self.prefix], y), 1) if self.prefix else y


class OnTokens(nn.Module):
    """y = module(x), where x and y are tokens, and the module sees them by a view.

    Args:
        module: the module.
        view: how it sees the tokens.

    Raises:
        TypeError: if the network gives it more to heed, such as a mask; None and False are nothing.
    """

    def __init__(self, module: nn.Module, view: View):
        super().__init__()
        self.module, self.view = module, view

    def forward(self, tokens: Tensor, **others: Any) -> Tensor:
        for name, value in others.items():
            if value is not None and value is not False:
                raise TypeError(f"{name} is given, but {type(self.module).__name__} takes tokens alone")
        # Contiguous: the network may view what it gets as something else.
        return self.view.leave(self.module(self.view.enter(tokens)), tokens).contiguous()

    def extra_repr(self) -> str:
        return str(self.view)


def view_of(path: str, site: nn.Module, output: Tensor | None, axes: Axes | None, tokens: Tokens,
            prefix: int) -> View | None:
    """How a module sees what a site returns; None where it takes it as it is.

    Args:
        path: the site's name.
        site: the site.
        output: as from `one_output`; None where there was no forward pass.
        axes: those that the module takes; None where unknown, and then `tokens` means that it takes maps.
        tokens: (H, W), or True for what the example shows; None for no map.
        prefix: how many tokens at the beginning go past the module.

    Raises:
        ValueError: if tokens, prefix, the site's output and the module do not go together.
    """
    check_int("prefix", prefix, 0)
    if tokens is None and not prefix:
        return None
    if output is None:
        raise ValueError("tokens= and prefix= need example=, an input of the network")
    shape = tuple(output.shape)
    if len(shape) not in (3, 4):
        raise ValueError(f"site {path!r} returns shape {shape}; tokens are (B, N, C) or (B, H, W, C)")
    as_map = tokens is not None if axes is None else len(axes) == 4
    if not as_map and axes not in (None, SEQUENCE) and len(axes) != 3:
        raise ValueError(f"site {path!r}: the module needs ({', '.join(axes)}), which tokens cannot be")
    size = _size(path, shape, tokens, prefix)
    if len(shape) == 4:
        return View(GRID, as_map)
    if as_map and size is None:
        raise ValueError(f"site {path!r} returns tokens {shape}; the module needs maps: pass tokens=(H, W)")
    return View(SEQUENCE, as_map, size if as_map else None, prefix)


def _size(path: str, shape: tuple[int, ...], tokens: Tokens, prefix: int) -> tuple[int, int] | None:
    """(H, W) of a site's tokens; None where nobody says."""
    if isinstance(tokens, Sequence) and len(tokens) == 2:
        size = check_int("tokens[0]", tokens[0]), check_int("tokens[1]", tokens[1])
    elif tokens is True or tokens is None:
        size = None
    else:
        raise ValueError(f"tokens={tokens!r} must be (H, W), or True for what the example shows")
    if len(shape) == 4:
        if prefix:
            raise ValueError(f"site {path!r} returns shape {shape}; prefix={prefix} needs tokens (B, N, C)")
        if size not in (None, shape[1:3]):
            raise ValueError(f"site {path!r} returns shape {shape}; tokens={size} must be {shape[1:3]}")
        return shape[1:3]
    count = shape[1] - prefix
    if size is None and tokens is True:
        side = math.isqrt(max(count, 0))
        if not side or side * side != count:
            raise ValueError(f"site {path!r} returns {shape[1]} tokens, {count} without the prefix of {prefix}: "
                             "no square; pass tokens=(H, W)")
        return side, side
    if size is not None and math.prod(size) != count:
        rest = shape[1] - math.prod(size)
        hint = f"; prefix={rest} would fit" if rest > 0 else ""
        raise ValueError(f"site {path!r} returns {shape[1]} tokens; tokens={size} and prefix={prefix} make "
                         f"{math.prod(size) + prefix}{hint}")
    if size is None and count < 1:
        raise ValueError(f"site {path!r} returns {shape[1]} tokens; prefix={prefix} leaves none")
    return size
