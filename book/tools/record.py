"""Records from which pages are made: rows, each with the number of the run that it comes from.

    {"schema": 1,
     "runs": [{"torch": …, "commit": …, …}, …],
     "rows": [{"run": 0, …}, …]}

What the other fields of a row are is the page's own; some of them, its key, tell it from all others.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
Row = dict[str, Any]
Key = tuple[Any, ...]


def load(file: Path) -> dict[str, Any]:
    """The record; an empty one where there is no file.

    Raises:
        ValueError: if the file is of another schema.
    """
    if not file.exists():
        return {"schema": SCHEMA, "runs": [], "rows": []}
    data = json.loads(file.read_text(encoding="utf-8"))
    if data.get("schema") != SCHEMA:
        raise ValueError(f"{file}: schema={data.get('schema')!r} must be {SCHEMA}")
    return data


def write(data: dict[str, Any], file: Path) -> None:
    """All of it or nothing, a row a line; stamps that no row needs any more are left out."""
    used = sorted({row["run"] for row in data["rows"]})
    rows = [{**row, "run": used.index(row["run"])} for row in data["rows"]]
    runs = ",\n".join(f"  {json.dumps(data['runs'][k])}" for k in used)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(f'{{"schema": {SCHEMA},\n "runs": [\n{runs}\n ],\n "rows": [\n{lines}\n ]}}\n',
                         encoding="utf-8")
    os.replace(temporary, file)


def up_to_date(data: dict[str, Any], now: dict[str, Any], key: Sequence[str]) -> set[Key]:
    """Keys of the rows that come from this very state of the library, with these versions."""
    if now["dirty"] or not now["commit"]:
        return set()
    same = [k for k, then in enumerate(data["runs"]) if {**then, "date": None} == {**now, "date": None}]
    return {tuple(row[field] for field in key) for row in data["rows"] if row["run"] in same}


def replace(data: dict[str, Any], row: Row, now: dict[str, Any], order: Sequence[Key],
            key: Sequence[str]) -> dict[str, Any]:
    """The record with one row replaced or added, in the order of the plan; what the plan has lost goes."""
    runs = data["runs"] if now in data["runs"] else [*data["runs"], now]
    rows = {tuple(r[field] for field in key): r for r in [*data["rows"], {**row, "run": runs.index(now)}]}
    return {**data, "runs": runs, "rows": [rows[one] for one in order if one in rows]}
