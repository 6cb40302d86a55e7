"""What the tests of the chapters share."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book" / "tools"))  # execute.py, anatomy.py … are commands, not a package

import notebooks  # noqa: E402


def pytest_generate_tests(metafunc):
    """Run a test that asks for a ``chapter`` once for each; the book without chapters is a failure, not a skip."""
    if "chapter" in metafunc.fixturenames:
        paths = notebooks.chapters()
        assert paths, "there are no chapters in chapters/"
        metafunc.parametrize("chapter", paths, ids=[path.stem for path in paths])
