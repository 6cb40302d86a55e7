"""Measuring the catalog: which cases, and what is written down of each."""

import contextlib
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from .. import catalog
from ..layout import Layout
from .call import map_tensors
from .cost import cost, flops, min_bytes
from .progress import progress
from .records import Row, stamp
from .roofline import Ceilings, ceilings, true_float32
from .timing import timing

BATCH = {"cuda": 32, "cpu": 2}
SIDES = {"cuda": (14, 28, 56, 112), "cpu": (14, 28, 56)}
COMPILED_SIDE = 56  # one size: to compile takes far longer than to measure
FRAMES = 8


@dataclass(frozen=True)
class Case:
    """One module at one size, in one number type, eager or compiled."""

    id: str
    size: tuple[int, ...]
    batch: int
    dtype: torch.dtype
    compiled: bool


def cases(ids: Iterable[str], kind: str, *, quick: bool = False) -> list[Case]:
    """All cases for "cuda" or "cpu"; `quick` keeps the smallest size, eager, in float32."""
    gpu = kind == "cuda" and not quick
    return [
        Case(id, size, BATCH[kind], dtype, compiled)
        for id in ids
        for size in sizes(catalog.entry(id).layout, SIDES[kind][:1] if quick else SIDES[kind])
        for dtype in ((torch.float32, torch.bfloat16) if gpu else (torch.float32,))
        for compiled in ((False, True) if gpu and size in compiled_sizes(id) else (False,))
    ]


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


def measure(case: Case, device: torch.device, limits: Ceilings, seconds: float = 0.3) -> list[Row]:
    """Two rows: the forward pass, and the forward and backward pass. A failure is a row too."""
    return [_row(case, device, limits, backward, seconds) for backward in (False, True)]


def run(planned: list[Case], device: torch.device, *, save: Callable[[dict[str, Any]], None], seconds: float = 0.3,
        budget: float = math.inf, commit: str | None = None) -> list[Row]:
    """Measure cases in their order, with a progress bar; returns all rows.

    Args:
        planned: see `cases` and `most_telling_first`.
        save: called with the run so far, as `records` stores it, after the last of consecutive cases of a module: what
            is measured is not lost with the machine.
        seconds: how long to measure each row.
        budget: seconds after which no further case is begun.
        commit: as for `stamp`.
    """
    end = time.monotonic() + budget
    when = stamp(device, commit)
    limits = ceilings(str(device))
    flop_rate = {dtype: _figures(rate) for dtype, rate in limits.flop_rate.items()}
    rates = {"bandwidth": _figures(limits.bandwidth), "flop_rate": flop_rate}
    rows: list[Row] = []
    in_time = itertools.takewhile(lambda _: time.monotonic() < end, progress(planned, "measuring"))
    for _, own in itertools.groupby(in_time, key=lambda case: case.id):
        for case in own:
            rows += measure(case, device, limits, seconds)
        save({"stamp": when, "ceilings": rates, "rows": rows})
    return rows


def case_of(row: Row) -> Case:
    """The case that a row was measured in."""
    return Case(row["id"], tuple(row["size"]), row["shapes"][0][0], getattr(torch, row["dtype"]),
                row["mode"] == "compiled")


def _row(case: Case, device: torch.device, limits: Ceilings, backward: bool, seconds: float) -> Row:
    dtype = str(case.dtype).removeprefix("torch.")
    row: Row = {
        "id": case.id, "shapes": None, "size": list(case.size), "dtype": dtype,
        "mode": "compiled" if case.compiled else "eager", "backward": backward,
        **dict.fromkeys(("median", "iqr", "repeats", "host", "params", "flops", "min_bytes", "saved_bytes",
                         "peak_bytes", "roofline", "error")),
    }
    try:
        shapes = catalog.entry(case.id).shapes(case.batch, case.size, catalog.MEASURED)
        row["shapes"] = [list(shape) for shape in shapes]
        module, inputs = catalog.example(case.id, catalog.MEASURED, batch=case.batch, size=case.size)
        module = module.to(device, case.dtype).train(backward)
        inputs = map_tensors(lambda t: t.to(device, case.dtype if t.is_floating_point() else t.dtype), inputs)
        with true_float32():
            counted = cost(module, inputs)
            row |= {
                "params": counted.params,
                "flops": flops(module, inputs, backward=backward),
                "min_bytes": min_bytes(module, inputs, backward=backward),
                "saved_bytes": counted.saved_bytes,
                "peak_bytes": counted.peak_bytes,
            }
            if case.compiled:
                torch.compiler.reset()  # else the second case would be compiled for sizes in general
            call = torch.compile(module) if case.compiled else module
            took = timing(call, inputs, backward=backward, seconds=seconds)
        fraction = limits.least_seconds(row["flops"], row["min_bytes"], dtype) / took.median
        row |= {"median": _figures(took.median), "iqr": _figures(took.iqr), "repeats": took.repeats,
                "host": _figures(took.host), "roofline": _figures(fraction)}
    except Exception as error:  # whatever one module does, the others are measured
        row["error"] = _first_line(error)
    finally:
        module = inputs = call = None  # type: ignore[assignment]  # for the collector, also after an error
        if device.type == "cuda":
            gc.collect()
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
    return row


def _figures(value: float | None) -> float | None:
    """Four figures: what a timing is worth, and a small file."""
    return None if value is None else float(f"{value:.4g}")


def _first_line(error: Exception) -> str:
    """Enough to know what happened; no path of the machine."""
    lines = str(error).strip().splitlines()
    text = " ".join(word for word in (lines[0].split() if lines else []) if "/" not in word)
    return f"{type(error).__name__}: {text}"[:200]
