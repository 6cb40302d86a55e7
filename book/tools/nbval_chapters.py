"""How nbval runs the chapters, as a pytest plugin:

    python -m pytest -p book.tools.nbval_chapters --nbval --nbval-current-env -n 2 --dist loadfile chapters

It gives the kernels the environment in which the outputs were stored (`notebooks.kernel_environment`), tells nbval
what it need not compare, and ends with the seconds that each chapter's kernel computed. A chapter over its budget is
named; one that takes more than twice what any chapter may fails the run.

nbval compares stdout, text/plain and text/html of every cell that is not tagged `nbval-ignore-output`. It compares
neither PNGs nor widget ids, and nothing at all in a cell without an execution count (`anatomy` refuses those).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from . import notebooks

COMPUTED = "seconds computed"  # a report's property
BEFORE = pytest.StashKey[float]()  # what this process's children computed before this chapter


def pytest_addoption(parser: pytest.Parser) -> None:
    """The limit of a chapter's running time."""
    parser.addoption(
        "--chapter-seconds",
        type=float,
        default=2.0 * notebooks.MOST_SECONDS,
        help="fail if a chapter's kernel computes for longer (default: %(default)s, twice what a chapter may take, for "
        "slow machines)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The kernels' environment, nbval's defaults and the stop-watch."""
    os.environ.update(notebooks.kernel_environment())
    config.stash[BEFORE] = notebooks.seconds_of_kernels()  # not 0 where a shell became this process
    if not config.option.nbval_sanitize_with:
        config.option.nbval_sanitize_with = str(Path(__file__).with_name("nbval_sanitize.cfg"))
    if not hasattr(config, "workerinput"):  # with -n, workers run the cells and the controller hears of all of them
        config.pluginmanager.register(Stopwatch(config.option.chapter_seconds))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None):
    """After a chapter's last cell, which stops its kernel, how long the kernel has computed.

    Computed, not taken: the machine may have other things to do at the same time.
    """
    result = yield
    if item.path.suffix == ".ipynb" and (nextitem is None or nextitem.path != item.path):
        total = notebooks.seconds_of_kernels()
        item.user_properties.append((COMPUTED, total - item.config.stash[BEFORE]))
        item.config.stash[BEFORE] = total
    return result


class Stopwatch:
    """How long each chapter's kernel computed, and what to say of it."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes up what the chapter's last cell brings."""
        computed = dict(report.user_properties).get(COMPUTED)
        if computed is not None:
            self.seconds[report.nodeid.split("::")[0]] = computed

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fails the run if a chapter took too long."""
        if max(self.seconds.values(), default=0.0) > self.limit and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Each chapter's seconds, the slowest first."""
        for path, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            verdict = self.verdict(seconds)
            terminalreporter.write_line(f"{seconds:6.1f} s  {path}{verdict}", red="TOO LONG" in verdict)

    def verdict(self, seconds: float) -> str:
        """What is to be said of a chapter that computed for so long; nothing, if it keeps its budget."""
        if seconds > self.limit:
            return f"  TOO LONG: more than {self.limit:g} s"
        if seconds > notebooks.MOST_SECONDS:
            return f"  over budget: more than the {notebooks.MOST_SECONDS} s that a chapter may take at most"
        return f"  over budget: more than {notebooks.SECONDS} s" if seconds > notebooks.SECONDS else ""
