"""Recorded measurements in figures say where they come from."""

from importlib import import_module

import numpy as np
import pytest

from attn_lib import viz
from attn_lib.measure import Timing
from tests.unit.library.viz.drawn import SAY, recorded


@pytest.mark.parametrize("draw", [viz.timing, viz.roofline])
@pytest.mark.parametrize("flops", [10**6, 0])
def test_recorded_measurements_say_where_they_come_from(draw, flops, texts, monkeypatch):
    module = import_module("attn_lib.viz.timing")
    monkeypatch.setattr(module, "records", lambda id: recorded("cuda", flops) + recorded("cpu", flops))
    draw("se", **SAY)
    assert any("Recorded 2026-01-02: Some GPU" in t for t in texts)
    assert any("float32, compiled" in t for t in texts)
    monkeypatch.setattr(module, "records", lambda id: recorded("cpu", flops))
    draw("se", **SAY)
    assert "No GPU measurement of 'se' is recorded." in " ".join(" ".join(texts).split())
    assert any("Some CPU" in t for t in texts)
    monkeypatch.setattr(module, "records", lambda id: [])
    draw("se", **SAY)
    assert any("No measurement of 'se' is recorded" in t for t in texts)


def test_this_machine_stands_alone_where_nothing_is_recorded(texts, monkeypatch):
    monkeypatch.setattr(import_module("attn_lib.viz.timing"), "records", lambda id: [])
    now = Timing(3e-3, 1e-4, 9, "A processor with a name that is rather longer than most of them are in the end")
    viz.timing("se", now, **SAY)
    assert any("Here, now: 3 ms" in " ".join(t.split()) and "\n" in t for t in texts)
    viz.timing("se", {}, **SAY)
    assert any("No measurement of 'se' is recorded." in t for t in texts)
    viz.timing("se", {np.int64(14): now, (28, 30): now}, **SAY)
    assert {"14×14", "28×30"} <= set(texts)


def test_the_latest_recording_is_shown_everywhere(monkeypatch):
    older = [{**r, "device": "A GPU", "date": "2025-01-01", "median": 1.0} for r in recorded("cuda")]
    monkeypatch.setattr(import_module("attn_lib.viz.card"), "records", lambda id: older + recorded("cuda"))
    assert "Some GPU" in import_module("attn_lib.viz.card").recorded_time("se").text


def test_this_machine_stands_beside_the_records(texts, monkeypatch):
    monkeypatch.setattr(import_module("attn_lib.viz.timing"), "records", lambda id: recorded("cuda"))
    viz.timing("se", Timing(3e-3, 1e-4, 9, "CPU, 2 threads"), batch=2, **SAY)
    assert "now, CPU, 2 threads: 1.5 ms" in texts
    viz.timing("se", {14: Timing(3e-3, 1e-4, 9, "CPU"), (28, 30): Timing(9e-3, 1e-4, 9, "CPU")}, **SAY)
    assert {"now, CPU", "14×14", "28×30", "56×56"} <= set(texts)
