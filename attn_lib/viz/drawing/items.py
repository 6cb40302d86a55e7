"""The things a drawing can hold."""

from __future__ import annotations

from ...tap import trace as Trace
from .dots import Dots, dots_picture
from .grids import Grid, grid_picture
from .shapes import Picture

Item = Grid | Dots


def picture(item: Item, trace: Trace | None, limit: float) -> Picture:
    """The item drawn, at most `limit` wide where it has a choice.

    Raises:
        ValueError: numbers that are not there or do not fit one another.
    """
    return dots_picture(item) if isinstance(item, Dots) else grid_picture(item, trace, limit)


def names_of(item: Item) -> list[str]:
    """What arrows may refer to."""
    margins = () if isinstance(item, Dots) else (item.right, item.below)
    return [item.name, *(margin.name for margin in margins if margin)]
