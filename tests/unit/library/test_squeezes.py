"""What the page *What each squeeze can see* is made of: which rows there are, and what is measured for each."""

import pytest
import torch

import attn_lib
from attn_lib import tasks
from book.tools import squeezes
from book.tools.record import load

SCREENS = ("sidelit_digits", "calm_digits", "twin_digits", "brighter_digits", "speck_digits")


def test_the_plan_has_every_module_of_the_family_on_every_task_of_it():
    assert set(squeezes.READS) == set(attn_lib.list_modules("channel"))
    own = {task for task in tasks.list_tasks() if set(tasks.task(task).chapters) & set(squeezes.READS)}
    assert set(squeezes.TASKS) == own
    order = squeezes.plan()
    assert len(order) == len(set(order))
    assert {module for task, module in order if task == "calm_digits"} == {*squeezes.READS, "none", "told"}


def test_the_record_is_whole_and_of_the_tasks_as_they_are():
    rows = load(squeezes.FILE)["rows"]
    assert [(row["task"], row["module"]) for row in rows] == squeezes.plan()
    for row in rows:
        if "refused" not in row:
            assert len(row["scores"]) == len(row["loss"]) == len(squeezes.SEEDS)
            assert all(len(loss) <= squeezes.POINTS for loss in row["loss"])
            assert ("tells" in row) == (row["module"] in squeezes.READS)
            assert row.get("tells") is None or row["task"] in SCREENS


def scores() -> dict[tuple[str, str], float]:
    """The way from chance to the best possible that each module goes."""
    rows = {(row["task"], row["module"]): row for row in load(squeezes.FILE)["rows"] if "scores" in row}
    told = {task: sum(row["scores"]) / 3 for (task, module), row in rows.items() if module == squeezes.TOLD}
    return {key: squeezes.share(row, key[0], told.get(key[0])) for key, row in rows.items()}


def test_what_the_page_says_is_what_was_recorded():
    """book/families/channel_tasks.md: which modules solve what, and which see it and do not learn it."""
    found = scores()
    solved = {task: {m for m in squeezes.READS if found[task, m] > 0.8} for task in SCREENS}
    assert solved == {"brighter_digits": {"gct"}, "calm_digits": {"srm", "gsop", "encnet"}, "sidelit_digits": {"fca"},
                      "twin_digits": {"gsop", "encnet"}, "speck_digits": {"gsop", "encnet"}}
    for task, module in (("calm_digits", "gct"), ("twin_digits", "soca"), ("sidelit_digits", "epsa")):
        assert found[task, module] < 0.1 and squeezes.told_apart(task, module) > squeezes.EXACT
    assert 0.2 < found["calm_digits", "fca"] < 0.6 and found["brighter_digits", "srm"] < -0.3
    assert max(squeezes.READS, key=lambda m: found["brighter_digits", m]) == "gct"
    assert max(squeezes.READS, key=lambda m: found["scaled_digits", m]) == "epsa"
    assert max(found[task, "epsa"] for task in SCREENS if task != "brighter_digits") < 0.1
    blind = {row["module"] for row in load(squeezes.FILE)["rows"]
             if row["task"] == "sidelit_digits" and row.get("tells") is not None and row["tells"] <= squeezes.EXACT}
    assert blind == {*squeezes.READS} - {"fca", "epsa"}


@pytest.mark.parametrize(("task", "module", "blind"), [
    ("calm_digits", "se", True), ("calm_digits", "srm", False),  # a mean, a deviation
    ("sidelit_digits", "gsop", True), ("sidelit_digits", "fca", False),  # wherever it is, where it is
    ("twin_digits", "srm", True), ("twin_digits", "gsop", False),  # one channel, two channels
    ("brighter_digits", "nam", True), ("brighter_digits", "se", False),
    ("speck_digits", "gct", True), ("speck_digits", "encnet", False),
])
def test_what_a_module_cannot_tell_apart_is_measured(task, module, blind):
    apart = squeezes.told_apart(task, module)
    assert (apart <= squeezes.EXACT) == blind and 0 <= apart <= 2


def test_what_was_recorded_of_blindness_is_still_so():
    for row in load(squeezes.FILE)["rows"]:
        if row.get("tells") is not None and row["module"] in ("se", "srm", "gct", "nam"):
            again = squeezes.told_apart(row["task"], row["module"])
            assert (again <= squeezes.EXACT) == (row["tells"] <= squeezes.EXACT)


def test_a_task_without_pairs_has_no_such_measure():
    assert squeezes.told_apart("lamplit_digits", "se") is None


def test_a_curve_is_shortened_to_means_of_equal_parts():
    assert squeezes.shortened([float(k) for k in range(48)])[:2] == [0.5, 2.5]
    assert squeezes.shortened([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    loss = torch.rand(300).tolist()
    made = squeezes.shortened(loss)
    assert len(made) == squeezes.POINTS and sum(made) / len(made) == pytest.approx(sum(loss) / 300, abs=0.02)


def test_the_way_from_chance_to_the_best():
    assert squeezes.share({"scores": [0.55, 0.95]}, "calm_digits", 0.95) == pytest.approx(0.5)
    assert squeezes.share({"scores": [0.35]}, "calm_digits", 0.95) == pytest.approx(-0.5)
    assert squeezes.share({"scores": [1.0]}, "scaled_digits", None) == pytest.approx(1.0)


def test_a_module_that_does_not_fit_says_why(monkeypatch):
    monkeypatch.setattr(squeezes, "SEEDS", (0,))
    row = squeezes.run("calm_digits", "pyraformer")
    assert "pyraformer' takes B L C" in row["refused"] and "scores" not in row


def test_a_run_that_is_interrupted_goes_on(tmp_path, monkeypatch):
    """In this process, with rows that cost nothing."""
    class Pool:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

    made = []

    def completed(pool, keys):
        for task, module in keys:
            made.append((task, module))
            yield {"task": task, "module": module, "scores": [0.5] * 3, "loss": [[1.0]] * 3}
            if len(made) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(squeezes, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(squeezes, "_completed", completed)
    monkeypatch.setattr(squeezes, "stamp", lambda device: {"kind": "cpu", "device": "d", "torch": "t", "python": "p",
                                                           "date": "2026-01-01", "commit": "a", "dirty": False})
    arguments = ["--tasks", "calm_digits", "--modules", "se", "none", "srm", "--out", str(tmp_path / "s.json")]
    assert squeezes.main(arguments) == 130 and len(made) == 2
    assert squeezes.main(arguments) == 0 and len(made) == len(set(made)) == 3
    rows = load(tmp_path / "s.json")["rows"]
    assert [row["module"] for row in rows] == ["none", "se", "srm"]  # in the order of the plan
