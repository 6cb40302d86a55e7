"""Measuring the catalog: which cases, and in which order."""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from .. import catalog
from ..layout import Layout
from .case import Case, figures, measure
from .progress import progress
from .records import Row, stamp
from .roofline import ceilings
from .side_by_side import measure_compiled

BATCH = {"cuda": 32, "cpu": 2}
SIDES = {"cuda": (14, 28, 56, 112), "cpu": (14, 28, 56)}
COMPILED_SIDE = 56  # one size: to compile takes far longer than to measure
FRAMES = 8


def cases(ids: Iterable[str], kind: str, *, quick: bool = False) -> list[Case]:
    """All cases for "cuda" or "cpu", the compiled ones last; `quick` keeps the smallest size, eager, in float32."""
    gpu = kind == "cuda" and not quick
    planned = [
        Case(id, size, BATCH[kind], dtype, compiled)
        for id in ids
        for size in sizes(catalog.entry(id).layout, SIDES[kind][:1] if quick else SIDES[kind])
        for dtype in ((torch.float32, torch.bfloat16) if gpu else (torch.float32,))
        for compiled in ((False, True) if gpu and size in compiled_sizes(id) else (False,))
    ]
    return sorted(planned, key=lambda case: case.compiled)


def most_telling_first(planned: list[Case]) -> list[Case]:
    """The cases in rounds: every module at one size, eager, in each number type; then compiled; then other sizes.

    However early a run ends, what it has compares as many modules as there was time for.
    """

    def rank(case: Case) -> tuple[bool, bool, bool]:
        return (case.size not in compiled_sizes(case.id), case.compiled, case.dtype != torch.float32)

    return sorted(planned, key=rank)


def compiled_sizes(id: str) -> list[tuple[int, ...]]:
    """The sizes at which a module is also measured compiled."""
    return sizes(catalog.entry(id).layout, [COMPILED_SIDE])


def sizes(layout: str, sides: Iterable[int]) -> list[tuple[int, ...]]:
    """Sizes of the axes that vary, one tuple a side s: s × s positions, whether a map or as many tokens."""
    free = Layout(layout).free
    result = []
    for side in sides:
        tokens, steps = side if "T" in free else side**2, FRAMES if "H" in free else side
        length = {"H": side, "W": side, "N": tokens, "L": tokens, "T": steps}
        result.append(tuple(length[axis] for axis in free))
    return result


def run(planned: list[Case], device: torch.device, *, save: Callable[[dict[str, Any]], None], seconds: float = 0.3,
        jobs: int = os.cpu_count() or 1, budget: float = math.inf, commit: str | None = None) -> list[Row]:
    """Measure cases in their order, with a progress bar; returns all rows.

    Args:
        planned: see `cases` and `most_telling_first`.
        save: called with the run so far, as `records` stores it, after the last of consecutive cases of a module: what
            is measured is not lost with the machine.
        seconds: how long to measure each row.
        jobs: processes that compile at once.
        budget: seconds after which no further case is begun.
        commit: as for `stamp`.
    """
    end = time.monotonic() + budget
    when = stamp(device, commit)
    limits = ceilings(str(device))
    flop_rate = {dtype: figures(rate) for dtype, rate in limits.flop_rate.items()}
    rates = {"bandwidth": figures(limits.bandwidth), "flop_rate": flop_rate}
    rows: list[Row] = []

    def keep(more: list[Row]) -> None:
        rows.extend(more)
        save({"stamp": when, "ceilings": rates, "rows": rows})

    by_id = itertools.groupby(progress(planned, "measuring"), lambda case: None if case.compiled else case.id)
    for eager_id, own in by_id:
        if eager_id is None:
            for more in measure_compiled(list(own), device, limits, jobs=jobs, seconds=seconds, end=end):
                keep(more)
        else:
            in_time = itertools.takewhile(lambda _: time.monotonic() < end, own)
            if not (more := [row for case in in_time for row in measure(case, device, limits, seconds)]):
                break
            keep(more)
    return rows
