"""How nbval runs the chapters, as a pytest plugin:

    python -m pytest -p book.tools.nbval_chapters --nbval --nbval-current-env -n 2 --dist loadfile chapters

It gives the kernels the environment in which the outputs were stored (`notebooks.kernel_environment`), tells nbval
what it need not compare, and ends with each chapter's running time, failing the run if one takes too long.

nbval compares stdout, text/plain and text/html of every cell that is not tagged `nbval-ignore-output`. It compares
neither PNGs nor widget ids, and nothing at all in a cell without an execution count (`anatomy.py` refuses those).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import notebooks

COMPUTED = "seconds computed"  # a report's property
BEFORE = pytest.StashKey[float]()  # what this process's children computed before this chapter


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the limit of a chapter's running time."""
    parser.addoption(
        "--chapter-seconds",
        type=float,
        default=2.0 * notebooks.SECONDS,
        help="fail if a chapter's kernel computes for longer (default: %(default)s, twice a chapter's budget, for slow "
        "machines; `make execute` reports the budget itself)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Set the kernels' environment, nbval's defaults and the stop-watch."""
    os.environ.update(notebooks.kernel_environment())
    config.stash[BEFORE] = notebooks.seconds_of_kernels()  # not 0 where a shell became this process
    if not config.option.nbval_sanitize_with:
        config.option.nbval_sanitize_with = str(Path(__file__).with_name("nbval_sanitize.cfg"))
    if not hasattr(config, "workerinput"):  # with -n, workers run the cells and the controller hears of all of them
        config.pluginmanager.register(Stopwatch(config.option.chapter_seconds))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None):
    """After a chapter's last cell, which stops its kernel, note how long the kernel has computed.

    Computed, not taken: the machine may have other things to do at the same time.
    """
    result = yield
    if item.path.suffix == ".ipynb" and (nextitem is None or nextitem.path != item.path):
        total = notebooks.seconds_of_kernels()
        item.user_properties.append((COMPUTED, total - item.config.stash[BEFORE]))
        item.config.stash[BEFORE] = total
    return result


class Stopwatch:
    """Collects how long each chapter's kernel computed."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take up what the chapter's last cell brings."""
        computed = dict(report.user_properties).get(COMPUTED)
        if computed is not None:
            self.seconds[report.nodeid.split("::")[0]] = computed

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run if a chapter took too long."""
        if max(self.seconds.values(), default=0.0) > self.limit and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how long each chapter took, the slowest first."""
        for path, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            late = f"  TOO LONG: more than {self.limit:g} s" if seconds > self.limit else ""
            terminalreporter.write_line(f"{seconds:6.1f} s  {path}{late}", red=bool(late))
