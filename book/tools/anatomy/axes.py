"""The names of axes in patterns: an axis is the symbol of its size, "B C H W -> B C".

einops and `torch.einsum` take any names. The book takes those of `book/notation.md`, in patterns as in formulas and
traces, so that one letter means one thing: B, C, H, W and N are sizes and capital, a small letter is a part of an
axis or a second index over it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .chapter import Chapter, check

QUOTED = [re.compile(rf"{quote}([^{quote}\n]*){quote}") for quote in "\"'`"]  # in code, and in prose that speaks of it
PATTERN = re.compile(r"[\w\s(){}.,+*-]*[\w).]\s*->[\w\s(){}.+*-]*")  # of einops or torch.einsum
LAYOUT = re.compile(r"[bB]( [\w+*'-]+)+")  # axes without an arrow, such as "B C H W"
SMALL = {  # letter -> the letters beside which it does not stand for the size of the same name
    "b": "",
    "c": "",
    "w": "",
    "h": "HNd",  # heads, beside their width or beside a height that is there already
    "n": "R",    # the positions of one region, beside the regions
}


def misnamed(pattern: str) -> list[str]:
    """Small letters of a pattern that stand for B, C, H, W or N."""
    axes = set(_axes(pattern))
    return [axis for axis, others in SMALL.items() if axis in axes and axes.isdisjoint(others)]


def problems(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence for each pattern of a notebook's cells that names B, C, H, W or N by a small letter.

    Args:
        cells: of a notebook as nbformat or json reads it, each with its `source`.
    """
    return [f'cell {number}: "{pattern}" has {", ".join(small)} for {", ".join(small).upper()}'
            for number, cell in enumerate(cells, 1) for pattern in _patterns("".join(cell["source"]))
            if (small := misnamed(pattern))]


@check
def axes_are_symbols(chapter: Chapter) -> list[str]:
    """Patterns in code and prose name axes as the notation does."""
    return problems(chapter.cells)


def _patterns(source: str) -> list[str]:
    """What is quoted in a cell and reads like a pattern or a layout."""
    quoted = [text for quote in QUOTED for text in quote.findall(source)]
    return [text for text in quoted if PATTERN.fullmatch(text) or LAYOUT.fullmatch(text)]


def _axes(pattern: str) -> list[str]:
    """Names of the axes: words in einops, single letters where nothing stands between them, as in torch.einsum."""
    together = " " not in re.sub(r"\s*(,|->)\s*", r"\1", pattern.strip()) and "(" not in pattern
    return re.findall(r"[A-Za-z]" if together else r"[A-Za-z_]\w*", pattern)
