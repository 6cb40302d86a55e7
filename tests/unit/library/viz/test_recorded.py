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


def drawn(monkeypatch, rows, now=None, **options):
    """The figure's alternative text, which ends with its numbers and its note."""
    monkeypatch.setattr(import_module("attn_lib.viz.timing"), "records", lambda id: rows)
    return viz.timing("se", now, **SAY, **options).alt


def test_the_alternative_text_holds_the_numbers(monkeypatch):
    one_size = [r for r in recorded("cuda") if r["mode"] == "eager" or r["size"] == [56, 56]]
    alt = drawn(monkeypatch, one_size + recorded("cpu"), Timing(3e-3, 1e-4, 9, "CPU, 2 threads"), batch=2)
    assert alt.startswith(SAY["alt"] + " GPU, float32, eager: 1.75 µs at 14×14 to 7 µs at 56×56; ")
    assert "GPU, bfloat16, compiled: 7 µs at 56×56; CPU, float32, eager" in alt
    assert "now, CPU, 2 threads: 1.5 ms. Recorded 2026-01-02: Some GPU, torch 2.13.0, batches of 8." in alt
    now = {(28, 30): Timing(9e-3, 1e-4, 9, "CPU"), 14: Timing(3e-3, 1e-4, 9, "CPU")}
    alt = drawn(monkeypatch, recorded("cpu"), now)
    assert "; now, CPU: 3 ms at 14×14 to 9 ms at 28×30. No GPU measurement of 'se' is recorded." in alt
    with pytest.raises(ValueError, match="alt="):
        viz.timing("se", title="What?", alt=" ")


def test_what_failed_is_said(texts, monkeypatch):
    """A line that ends early would otherwise look as if nobody had tried."""
    errors = {("float32", "eager"): "OutOfMemoryError: CUDA out of memory. Tried to allocate",
              ("bfloat16", "eager"): "OutOfMemoryError: CUDA out of memory. Tried to allocate",
              ("bfloat16", "compiled"): "BackendCompilerFailed: backend='inductor' raised:"}
    rows = [r | {"median": None, "error": errors[r["dtype"], r["mode"]]}
            if r["size"] == [56, 56] and (r["dtype"], r["mode"]) in errors else r for r in recorded("cuda")]
    alt = drawn(monkeypatch, rows)
    assert "Out of memory at 56×56 in float32 and in bfloat16." in alt
    assert "Failed (BackendCompilerFailed) at 56×56 in bfloat16, compiled." in alt
    assert "Out of memory at 56×56" in " ".join(" ".join(texts).split()), "in the picture, too"
    none = [r | {"median": None, "error": "OutOfMemoryError: "} for r in recorded("cuda")]
    assert "No GPU measurement" not in drawn(monkeypatch, none + recorded("cpu"))
    said = import_module("attn_lib.viz.card")
    monkeypatch.setattr(said, "records", lambda id: none + recorded("cpu"))
    assert said.recorded_time("se").text == ("out of memory on 8×64×56×56 (Some GPU); "
                                             "56 µs forward on 8×64×56×56, float32 (Some CPU, 2 threads)")


@pytest.mark.parametrize(("host", "said"), [
    ({14: 9e-5, 56: 9e-5}, "up to 56×56 Python needs longer to issue a call (90 µs) than the GPU to run it (56 µs)."),
    ({14: 2e-5, 56: 2e-5}, "up to 14×14 Python needs longer to issue a call (20 µs) than the GPU to run it (14 µs)."),
    ({14: 1e-5, 56: 1e-5}, None),
])
def test_where_python_is_slower_than_the_gpu(monkeypatch, host, said):
    alt = drawn(monkeypatch, [r | {"host": host[r["size"][0]]} for r in recorded("cuda")])
    assert alt.endswith(said) if said else "Python" not in alt


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
