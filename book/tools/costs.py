"""Where the time of the tests goes, as a pytest plugin and as the command that prints it.

    python -m pytest -p book.tools.costs --costs _build/costs/unit.json tests/unit
        notes what the tests of each chapter and each module cost
    python -m book.tools.costs unit=70 notebooks=180
        prints the tables: the seconds of each part on the clock, the dearest chapters and the dearest modules

A test's cost is the time that its worker spent on it, set-up and end included: on an idle machine the seconds of one
core. What several tests share (a browser, a course) is paid by the first of them; what runs for one chapter of each
kind (a `specimen`) is charged to none. A part that was interrupted leaves no file behind.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from . import notebooks

FOLDER = notebooks.ROOT / "_build" / "costs"
CHAPTER_SECONDS = 30  # with everything that is tested of it
MODULE_SECONDS = 8
# Seconds that a part may take on the clock of two idle cores: (without any chapter or module, for each chapter, for
# each module).
PARTS = {"lint": (10, 0, 0), "unit": (90, 0, 4), "notebooks": (5, 8, 0), "chapters": (190, 3, 0), "site": (80, 5, 0)}
DEAREST = 10  # rows of a table
SUBJECT = "subject"  # a report's property


def subject(item: pytest.Item) -> str | None:
    """The id of the module or chapter that a test is about.

    A test is about one if it is parametrised with its `id`, with its `chapter` (or `specimen`, or page: a path), if it
    is marked `module(id)`, or if it stands in test_<id>.py or in the chapter itself. A test of a task is about the
    chapter that the task was made for.
    """
    given = getattr(getattr(item, "callspec", None), "params", {})
    own = item.path.stem.removeprefix("test_")
    if item.path.parent.name == "tasks":
        return chapter_of(given.get("id", own))
    if "id" in given:
        return given["id"]
    for name in ("chapter", "specimen", "path"):
        if isinstance(given.get(name), Path):
            return given[name].stem if given[name].parent.parent.name == "chapters" else None
    mark = item.get_closest_marker("module")
    if mark:
        return mark.args[0]
    if item.path.suffix == ".ipynb":
        return item.path.stem
    return own if own in modules() else None


def modules() -> list[str]:
    """The modules of the catalog; where no test asks for them, torch is not loaded."""
    import attn_lib

    return attn_lib.list_modules()


def chapter_of(task: object) -> str | None:
    """The chapter that a task was made for; None for what is no task."""
    from attn_lib import tasks

    return tasks.task(task).chapters[0] if task in tasks.list_tasks() else None


def unknown(id: str) -> str | None:
    """What is wrong with an id that neither a module nor a chapter has."""
    known = sorted({*modules(), *(path.stem for path in notebooks.chapters())})
    if id in known:
        return None
    near = difflib.get_close_matches(id, known)
    return f"{id!r} is neither a module nor a chapter" + (f"; did you mean {near[0]!r}?" if near else "")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the costs are noted."""
    parser.addoption("--costs", metavar="FILE", type=Path, help="note here what chapters and modules cost")


def pytest_configure(config: pytest.Config) -> None:
    """With -n, workers run the tests and the controller hears of all of them."""
    if config.option.costs and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Cashier(config.option.costs.resolve()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A report says what its test is about, unless that stands for others of its kind."""
    about = subject(item)
    if about is not None and "specimen" not in getattr(getattr(item, "callspec", None), "params", {}):
        item.user_properties.append((SUBJECT, about))


class Cashier:
    """What the tests of each module or chapter cost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Adds up."""
        about = dict(report.user_properties).get(SUBJECT)
        if about is not None:
            self.seconds[about] += report.duration

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Writes the file, in one step."""
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            write(self.path, self.seconds)


def write(path: Path, seconds: dict[str, float]) -> None:
    """Writes a part's costs in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(json.dumps({name: round(value, 2) for name, value in seconds.items()}), encoding="utf-8")
    os.replace(fresh, path)


def report(clock: dict[str, float], folder: Path = FOLDER) -> str:
    """The tables: the parts with their seconds on the clock, the dearest chapters, the dearest modules."""
    chapters, ids = [path.stem for path in notebooks.chapters()], modules()
    parts = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    lines = ["Where the time went", "", "  seconds on the clock  budget on two idle cores"]
    budgets = {part: a + b * len(chapters) + c * len(ids) for part, (a, b, c) in PARTS.items()}
    rows = [*clock.items(), ("together", sum(clock.values()))]
    budgets["together"] = sum(budgets.values())
    lines += [f"  {part:10s}{value:8.0f}{budgets[part]:8.0f}{over(value, budgets[part])}" for part, value in rows]
    for title, names, of, budget in (
        ("chapters", chapters, ("notebooks", "chapters", "site"), CHAPTER_SECONDS),
        ("modules", ids, ("unit",), MODULE_SECONDS),
    ):
        noted = [part for part in of if part in parts]
        spent = {name: [parts[part].get(name, 0.0) for part in noted] for name in names}
        dearest = sorted(spent.items(), key=lambda item: -sum(item[1]))[:DEAREST]
        missing = [f"{part} left no costs" for part in of if part not in noted]
        sources = "; ".join(filter(None, [" + ".join(noted), *missing]))
        lines += ["", f"  the dearest {title}, seconds of a worker ({sources}); budget {budget}"]
        for name, costs in dearest:
            shown = "  " + " + ".join(f"{cost:.1f}" for cost in costs) if len(costs) > 1 else ""
            lines.append(f"  {sum(costs):6.1f}  {name:12s}{shown}{over(sum(costs), budget)}")
    return "\n".join(line.rstrip() for line in lines)


def over(value: float, budget: float) -> str:
    """The mark of a row that exceeds its budget."""
    return "  over budget" if value > budget else ""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m book.tools.costs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help="a part and its seconds on the clock, such as unit=70")
    parts = (part.split("=") for part in parser.parse_args().parts)
    print(report({name: float(seconds) for name, seconds in parts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
