"""How numbers and names are written in a drawing."""

from __future__ import annotations

import numpy as np

from ..arrays import Floats
from .shapes import NAME, NOTE, Shape, Words, base, wide

HEADING = 24  # height of an item's name, CSS pixels


def decimals(values: Floats, most: int = 2) -> int:
    """As few decimals as tell the numbers from one another and from what they are, at most `most`."""
    for digits in range(most):
        if np.allclose(np.round(values, digits), values, atol=1e-6):
            return digits
    return most


def number(value: float, digits: int) -> str:
    """A number as it stands in a cell, with a true minus and no negative zero."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def heading(label: str, note: str) -> list[Shape]:
    """An item's name, and beside it in small type what it is."""
    shapes: list[Shape] = [Words(0, base(HEADING / 2 - 2, NAME), label, NAME, "start", bold=True)]
    if note:
        shapes.append(Words(wide(label, NAME, True) + 8, base(HEADING / 2 - 2, NAME), note, NOTE, "start", "muted"))
    return shapes


def heading_width(label: str, note: str) -> float:
    return wide(label, NAME, True) + (8 + wide(note, NOTE) if note else 0)
