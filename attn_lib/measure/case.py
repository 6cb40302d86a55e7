"""Measuring one module at one size: what is written down of it."""

import contextlib
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .. import catalog
from .call import Arguments, map_tensors
from .cost import cost, flops, min_bytes
from .records import Row
from .roofline import Ceilings, true_float32
from .timing import timing


@dataclass(frozen=True)
class Case:
    """One module at one size, in one number type, eager or compiled."""

    id: str
    size: tuple[int, ...]
    batch: int
    dtype: torch.dtype
    compiled: bool


@dataclass(frozen=True)
class Prepared:
    """One pass of a case, counted and ready to be timed: a row that lacks the time, and what to call."""

    row: Row
    call: Callable[..., Any] | None = None  # None where the row says an error
    inputs: Arguments = ()


def measure(case: Case, device: torch.device, limits: Ceilings, seconds: float = 0.3) -> list[Row]:
    """Two rows: the forward pass, and the forward and backward pass. A failure is a row too."""
    rows = []
    for backward in (False, True):
        rows.append(timed(prepare(case, device, backward), limits, seconds))
        tidy(device)
    return rows


def prepare(case: Case, device: torch.device, backward: bool) -> Prepared:
    """All of a row but its time; a compiled module is compiled."""
    row: Row = {
        "id": case.id, "shapes": None, "size": list(case.size), "dtype": str(case.dtype).removeprefix("torch."),
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
            if not case.compiled:
                return Prepared(row, module, inputs)
            compiled = torch.compile(module, dynamic=False, fullgraph=True)  # for this very size; an error otherwise
            timing(compiled, inputs, backward=backward, seconds=1e-9)  # the first call is the one that compiles
            return Prepared(row, compiled, inputs)
    except Exception as error:  # whatever one module does, the others are measured
        return Prepared(row | {"error": _first_line(error)})


def timed(prepared: Prepared, limits: Ceilings, seconds: float) -> Row:
    """The row, complete."""
    row = prepared.row
    if prepared.call is None:
        return row
    try:
        with true_float32():
            took = timing(prepared.call, prepared.inputs, backward=row["backward"], seconds=seconds)
    except Exception as error:
        return row | {"error": _first_line(error)}
    fraction = limits.least_seconds(row["flops"], row["min_bytes"], row["dtype"]) / took.median
    return row | {"median": figures(took.median), "iqr": figures(took.iqr), "repeats": took.repeats,
                  "host": figures(took.host), "roofline": figures(fraction)}


def tidy(device: torch.device) -> None:
    """Give memory back that nothing holds any more, also after an error."""
    if device.type == "cuda":
        gc.collect()
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def case_of(row: Row) -> Case:
    """The case that a row was measured in."""
    return Case(row["id"], tuple(row["size"]), row["shapes"][0][0], getattr(torch, row["dtype"]),
                row["mode"] == "compiled")


def figures(value: float | None) -> float | None:
    """Four figures: what a timing is worth, and a small file."""
    return None if value is None else float(f"{value:.4g}")


def _first_line(error: Exception) -> str:
    """Enough to know what happened; no path of the machine."""
    lines = str(error).strip().splitlines()
    text = " ".join(word for word in (lines[0].split() if lines else []) if "/" not in word)
    return f"{type(error).__name__}: {text}"[:200]
