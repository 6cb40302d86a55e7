"""The records from which pages are made: kept in order, written whole, and gone on with at the same state alone."""

import pytest

from book.tools import record

KEY = ("network", "module")
NOW = {"torch": "2.13.0", "date": "2026-01-01T00:00:00+00:00", "commit": "a", "dirty": False}
ORDER = [("n", None), ("n", "se"), ("n", "eca")]


def row(module, **cells):
    return {"network": "n", "module": module, "cells": cells}


def test_rows_are_kept_in_the_order_of_the_plan_and_replaced(tmp_path):
    file, data = tmp_path / "record.json", record.load(tmp_path / "none.json")
    for one, now in ((row("eca", trace="yes"), NOW), (row(None, trace="yes"), NOW), (row("gone"), NOW),
                     (row("eca", trace="no: x"), {**NOW, "commit": "b"})):
        data = record.replace(data, one, now, [*ORDER, ("n", "gone")], KEY)
    data = record.replace(data, row("se", trace="yes"), {**NOW, "commit": "b"}, ORDER, KEY)
    record.write(data, file)
    data = record.load(file)
    assert [(r["module"], data["runs"][r["run"]]["commit"], r["cells"]["trace"]) for r in data["rows"]] == [
        (None, "a", "yes"), ("se", "b", "yes"), ("eca", "b", "no: x")]
    assert not list(tmp_path.glob("*.tmp"))
    record.write({**data, "rows": data["rows"][1:]}, file)  # nothing is left of the first run
    assert [run["commit"] for run in record.load(file)["runs"]] == ["b"]


def test_a_second_run_goes_on_only_at_the_same_state():
    data = {"schema": 1, "runs": [NOW], "rows": [{**row("se"), "run": 0}]}
    assert record.up_to_date(data, {**NOW, "date": "later"}, KEY) == {("n", "se")}
    for change in ({"commit": "b"}, {"dirty": True}, {"commit": None}, {"torch": "2.12.0"}):
        assert record.up_to_date(data, {**NOW, **change}, KEY) == set()


def test_a_record_of_another_schema_is_refused(tmp_path):
    (tmp_path / "record.json").write_text('{"schema": 2}')
    with pytest.raises(ValueError, match="schema=2 must be 1"):
        record.load(tmp_path / "record.json")
