"""Recorded measurements: one JSON file per device and torch version, in `recorded/`.

    {"schema": 1, "runs": [{"stamp": {…}, "ceilings": {…}, "rows": [{…}, …]}, …]}

A file holds the runs that measured different modules at different times; measuring a module again replaces
its rows. A run under a budget replaces only the rows that it came to. `records()` returns flat rows, each carrying its
run's stamp:

    id               module
    shapes           shapes of the inputs
    size             the sizes that vary, such as [56, 56]
    dtype            "float32" or "bfloat16"
    mode             "eager" or "compiled"
    backward         False: forward pass without gradients; True: forward and backward pass
    median, iqr      seconds; repeats: samples behind them; host: seconds to issue the call (GPU), or null
    params, saved_bytes, peak_bytes    see `cost`, of the eager module; peak_bytes is null on a CPU
    flops, min_bytes of this pass (with the backward pass where it has one)
    roofline         least time by the ceilings over the median: 1 is the physical limit (a CPU may pass it where
                     its caches hold the inputs; on a GPU they are emptied before each call)
    error            null, or why there is no measurement; then the numbers that are missing are null
    kind             "cuda" or "cpu"; device: its name
    torch, python    versions
    date             UTC
    commit, dirty    of the library's repository, and whether the library differed from it; or null
    bandwidth        measured ceiling of the device, bytes per second
    flop_rate        measured ceilings, dtype -> FLOP per second
"""

import json
import os
import platform
import re
import subprocess
import tempfile
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from .timing import device_name

SCHEMA = 1
RECORDED = Path(__file__).parent / "recorded"
Row = dict[str, Any]
Data = dict[str, Any]  # of a file


def destination() -> Path:
    """The folder that a run writes into: the package's own in a source tree, else the current one.

    An installed package is no place to write into: it may belong to another user, and the next update takes it away.
    """
    return RECORDED if (Path(__file__).resolve().parents[2] / "pyproject.toml").exists() else Path.cwd()


def records(id: str | None = None) -> list[Row]:
    """Recorded rows, of one module if named; this file's head names the keys. Empty where there are none.

    Sorted: GPUs before CPUs, then by device, module, type, mode, pass and size.

    Args:
        id: a module of the catalog.
    """
    folder = resources.files(__package__) / RECORDED.name
    files = [file for file in folder.iterdir() if file.name.endswith(".json")] if folder.is_dir() else []
    files.sort(key=lambda file: file.name)  # a folder has no order of its own
    rows = [row for file in files for row in flatten(load_text(file.read_text(encoding="utf-8")))]
    keys = ("device", "id", "dtype", "mode", "backward")
    rows.sort(key=lambda row: (row["kind"] != "cuda", *(row[k] for k in keys), row["size"]))
    return [row for row in rows if id in (None, row["id"])]


def flatten(data: Data) -> list[Row]:
    """The rows of a file, each with its run's stamp and ceilings."""
    return [{**run["stamp"], **run["ceilings"], **row} for run in data["runs"] for row in run["rows"]]


def load_text(text: str) -> Data:
    """A file's content, checked for its schema.

    Raises:
        ValueError: if it is not a file of measurements, or of a later schema.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        raise ValueError(f"schema={found!r} must be {SCHEMA}: recorded by another version of attn_lib")
    return data


def merge(old: Data | None, run: Data, *, partial: bool = False) -> Data:
    """`old` with the modules that `run` measured replaced; of a partial run, only the very rows that it measured."""

    def what(row: Row) -> object:
        return tuple(map(str, map(row.get, ("id", "size", "dtype", "mode", "backward")))) if partial else row["id"]

    measured = set(map(what, run["rows"]))
    runs = []
    for before in old["runs"] if old else []:
        rows = [row for row in before["rows"] if what(row) not in measured]
        if rows:
            runs.append({**before, "rows": rows})
    return {"schema": SCHEMA, "runs": [*runs, run]}


def write(data: Data, path: Path) -> None:
    """Write all of it or nothing: a reader sees the old file until the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(_dump(data))
        os.chmod(temporary, 0o644)  # mkstemp's own mode would hide it from other users
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def stamp(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """What a measurement depends on besides the module.

    Args:
        commit: what to write in place of what the repository says that this copy of the library lies in: it may have
            been sent without it, or with an older state of it.
    """
    name = device_name(device)
    if device.type == "cpu":
        name = f"{_cpu_model()}, {name.partition(', ')[2]}"
    found, dirty = _commit()
    if commit not in (None, found):
        found, dirty = commit, None
    return {
        "kind": device.type,
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": found,
        "dirty": dirty,
    }


def file_name(stamp: dict[str, Any]) -> str:
    """"NVIDIA H200", "2.11.0+cu130" -> "nvidia-h200-torch-2.11.0+cu130.json"."""
    device = re.sub(r"[^a-z0-9]+", "-", stamp["device"].lower()).strip("-")
    return f"{device}-torch-{stamp['torch']}.json"


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return (found.group(1).strip() if found else platform.processor() or platform.machine()) + " CPU"


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the repository this package lies in, and whether the package differs from it."""
    package = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=package, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != package.parent:
            return None, None  # installed into somebody else's repository
        # Earlier recordings do not change what is measured.
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", ".", ":!measure/recorded"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _dump(data: Data) -> str:
    """JSON with one row a line, so that a diff shows which measurements changed."""
    runs = []
    for run in data["runs"]:
        rows = ",\n".join(f"   {json.dumps(row, allow_nan=False)}" for row in run["rows"])
        stamp, ceilings = json.dumps(run["stamp"]), json.dumps(run["ceilings"])
        runs.append(f'  {{"stamp": {stamp},\n   "ceilings": {ceilings},\n   "rows": [\n{rows}\n  ]}}')
    return f'{{"schema": {data["schema"]}, "runs": [\n' + ",\n".join(runs) + "\n]}\n"
