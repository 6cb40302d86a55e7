"""Measure the catalog on this machine and record it: `python -m attn_lib.measure`."""

import argparse
import ctypes
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import catalog
from ..console import printable
from . import suite
from .case import Case, case_of
from .counterparts import against
from .records import Data, Row, destination, file_name, load_text, merge, stamp, write

SECONDS = {"cuda": 0.1, "cpu": 0.3}  # a GPU's own clock is steadier, and there are more cases


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 where a module could not be measured, or 130 where it was interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m attn_lib.measure",
        description="Time every module of the catalog, forward and backward, and record it in one JSON file.",
    )
    parser.add_argument("--ids", nargs="+", metavar="ID", help="only these modules; a file keeps the others")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="where to write; by default a file named after the device and torch, in the current "
                             "folder, or among the recorded ones in a clone of the repository")
    parser.add_argument("--quick", action="store_true",
                        help="the smallest size only, eager, in float32, little repeated")
    parser.add_argument("--budget", type=float, metavar="SECONDS",
                        help="begin no case after so many seconds: what the file lacks comes first, of that the most "
                             "telling; a second run at the same commit goes on where this one ended")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="cuda or cpu")
    parser.add_argument("--commit", metavar="HASH", help="to stamp a copy with that was sent without its repository")
    options = parser.parse_args(arguments)
    try:
        device = torch.device(options.device)
        ids = [catalog.entry(id).id for id in dict.fromkeys(options.ids or catalog.list_modules())]
    except (ValueError, RuntimeError) as error:
        parser.error(str(error).splitlines()[0])
    if device.type not in suite.SIDES or (device.type == "cuda" and not torch.cuda.is_available()):
        parser.error(f"--device {options.device}: there is no such device here")

    out = options.out or destination() / file_name(stamp(device))
    if options.budget is not None and not options.budget > 0:
        parser.error(f"--budget {options.budget:g}: it must be a positive number of seconds")
    # Read first: a file that cannot be merged should not cost an hour of measuring.
    old = load_text(out.read_text(encoding="utf-8")) if out.exists() else None
    partial, planned = options.budget is not None, suite.cases(ids, device.type, quick=options.quick)
    if partial:
        now = stamp(device, options.commit)
        done, known = measured_at(old, now), measured_at(old, now, any_state=True)
        planned = suite.most_telling_first([case for case in planned if case not in done])
        planned.sort(key=lambda case: case in known)  # what is not recorded at all comes first
    keep_freed_memory()
    try:
        rows = suite.run(planned, device, save=lambda run: write(merge(old, run, partial=partial), out),
                         seconds=0.05 if options.quick else SECONDS[device.type], budget=options.budget or math.inf,
                         commit=options.commit)
    except KeyboardInterrupt:
        print(printable(f"\ninterrupted: modules measured to the end are in {out}"), file=sys.stderr)
        return 130
    print(summary(rows))
    left = len(planned) - len(rows) // 2
    if left:
        print(f"{left} of {len(planned)} cases are left: the same command goes on with them")
    elif not partial:
        print(printable(beside_counterparts(ids, device)))
    print(printable(f"{len(rows)} rows in {out}"))
    unsteady = sum(row["iqr"] > row["median"] / 4 for row in rows if not row["error"])
    if unsteady:
        print(f"{unsteady} of them spread by more than a quarter of their median: was the machine busy?")
    return int(any(row["error"] for row in rows))


def measured_at(old: Data | None, now: Row, *, any_state: bool = False) -> set[Case]:
    """Cases that a file holds without an error, from this device and torch, at this state of the library or any."""
    same = ("device", "torch") if any_state else ("device", "torch", "commit")
    runs = [run for run in old["runs"] if all(run["stamp"].get(key) == now[key] for key in same)] if old else []
    known = [row for run in runs
             if any_state or (now["commit"] and not (run["stamp"].get("dirty") or now["dirty"])) for row in run["rows"]]
    failed = {case_of(row) for row in known if row["error"] and row["shapes"]}
    return {case_of(row) for row in known if row["shapes"]} - failed


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where its allocator is glibc's.

    By default large temporaries may go back to the system and be fetched page by page at the next call. Whether they
    do depends on what the process did before: the same module then takes once or twice the time.
    """
    mmap_max, trim_threshold = -4, -1  # malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another allocator, or Windows
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def summary(rows: list[Row]) -> str:
    """A line a row."""
    lines = []
    for row in rows:
        what = f"{row['id']:<20} {'×'.join(map(str, row['size'])):<9} {row['dtype']:<9} {row['mode']:<9}"
        what += "forward+backward " if row["backward"] else "forward          "
        result = row["error"] or f"{row['median'] * 1e3:10.4f} ms  {row['roofline']:7.1%} of the roofline"
        lines.append(what + result)
    return printable("\n".join(lines))


def beside_counterparts(ids: Sequence[str], device: torch.device) -> str:
    """A line for each module that a well-kept package has as well: our time over theirs, from one run."""
    lines = ["", "forward+backward, our time over that of"]
    for id in ids:
        other = catalog.entry(id).counterpart
        if other is not None:
            try:
                result = str(against(id, device, side=suite.COMPILED_SIDE, batch=suite.BATCH[device.type])[id])
            except ImportError as error:
                result = str(error).splitlines()[0]
            lines.append(f"{id:<20} {other.label:<30} {result}")
    return "\n".join(lines) if len(lines) > 2 else ""


if __name__ == "__main__":
    sys.exit(main())
