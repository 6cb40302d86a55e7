"""The tests of one module can be chosen, and the cost of a chapter's and a module's tests is noted."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from book.tools import costs, notebooks

SAMPLE = """
import pytest

@pytest.mark.parametrize("id", ["se", "eca"])
def test_of_a_module(id):
    assert id == "se"

@pytest.mark.module("sk")
def test_marked():
    pass

def test_of_nothing():
    pass
"""


def run(*arguments):
    """What pytest says."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "book.tools.costs", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=notebooks.ROOT, capture_output=True, text=True)


def collected(*arguments):
    """The tests that pytest would run."""
    return {line for line in run("--collect-only", *arguments).stdout.splitlines() if "::" in line}


def test_an_id_chooses_the_tests_of_its_module():
    """All that are parametrised with it, its limits, its own file; `se` is not "passes", and not "base"."""
    everything = collected("tests/unit/modules")
    own = {
        test for test in everything
        if "/test_se.py::" in test or "/limits/test_channel.py::test_se_" in test
        or ("/test_se.py" not in test and "se" in re.split(r"[-\[\]]", test.partition("::")[2]))
    }
    files = {test.split("::")[0].rpartition("/")[2] for test in own}
    assert files >= {"test_se.py", "test_channel.py", "test_contract.py"}
    assert collected("--id", "se", "tests/unit/modules") == own


def test_an_id_chooses_the_tests_of_its_chapter():
    chosen = collected("--id", "gating", "tests/chapters")
    assert "tests/chapters/test_anatomy.py::test_chapter_passes[gating-opening]" in chosen
    assert "tests/chapters/test_classroom.py::test_solutions_get_full_marks_and_stubs_none[gating]" in chosen
    assert all("gating" in test for test in chosen)


def test_an_unknown_id_is_refused():
    done = run("--id", "see", "tests/chapters")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "'see' is neither a module nor a chapter; did you mean 'se'?" in done.stderr


def test_costs_are_noted_by_module_also_where_tests_fail(tmp_path):
    """On two workers, of which the controller hears."""
    (tmp_path / "test_sample.py").write_text(SAMPLE, encoding="utf-8")
    noted = tmp_path / "costs" / "unit.json"
    done = run("-n", "2", "--costs", noted, "-c", notebooks.ROOT / "pyproject.toml", tmp_path)
    assert "1 failed, 3 passed" in done.stdout, done.stdout + done.stderr
    assert json.loads(noted.read_text(encoding="utf-8")).keys() == {"se", "eca", "sk"}
    assert [path.name for path in noted.parent.iterdir()] == [noted.name]


def test_an_interrupted_run_notes_nothing(tmp_path):
    cashier = costs.Cashier(tmp_path / "unit.json")
    cashier.pytest_runtest_logreport(SimpleNamespace(user_properties=[(costs.SUBJECT, "se")], duration=3.0))
    cashier.pytest_sessionfinish(pytest.ExitCode.INTERRUPTED)
    assert list(tmp_path.iterdir()) == []
    cashier.pytest_sessionfinish(pytest.ExitCode.TESTS_FAILED)
    assert json.loads((tmp_path / "unit.json").read_text(encoding="utf-8")) == {"se": 3.0}


def test_the_table_names_what_is_dear(tmp_path):
    """Also where a part left no file behind."""
    costs.write(tmp_path / "unit.json", {"se": 1.0, "eca": costs.MODULE_SECONDS + 1.0})
    costs.write(tmp_path / "notebooks.json", {"gating": 2.0, "se": 20.0})
    costs.write(tmp_path / "chapters.json", {"se": costs.CHAPTER_SECONDS - 19.0})
    lines = costs.report({"lint": 1.0, "unit": 1e4}, tmp_path).splitlines()
    marked = [line.split() for line in lines if line.endswith("over budget")]
    assert [words[0] for words in marked] == ["unit", "together", f"{costs.CHAPTER_SECONDS + 1:.1f}", "9.0"]
    chapters = next(number for number, line in enumerate(lines) if "dearest chapters" in line)
    assert f"(notebooks + chapters; site left no costs); budget {costs.CHAPTER_SECONDS}" in lines[chapters]
    assert f"20.0 + {costs.CHAPTER_SECONDS - 19:.1f}" in lines[chapters + 1]
    assert [line.split()[1] for line in lines[chapters + 1 : chapters + 3]] == ["se", "gating"]


def test_a_subject_is_a_chapter_only_where_a_page_is_one():
    def item(file, **params):
        callspec = SimpleNamespace(params=params)
        return SimpleNamespace(callspec=callspec, path=Path(file), get_closest_marker=lambda name: None)

    assert costs.subject(item("tests/site/test_pages.py", path=Path("html/chapters/channel/se.html"))) == "se"
    assert costs.subject(item("tests/site/test_pages.py", path=Path("html/book/index.html"))) is None
    assert costs.subject(item("chapters/channel/se.ipynb")) == "se"
    assert costs.subject(item("tests/unit/modules/test_se.py", size=(7, 9))) == "se"
    assert costs.subject(item("tests/unit/modules/test_catalog.py")) is None
