"""What the tests of the chapters share."""

from book.tools import notebooks


def pytest_generate_tests(metafunc):
    """Runs a test that asks for a `chapter` once for each, and one that asks for a `specimen` for one of each kind.

    The book without chapters is a failure, not a skip.
    """
    paths = notebooks.chapters()
    assert paths, "there are no chapters in chapters/"
    every = metafunc.config.getoption("--every-chapter")
    for name, chosen in {"chapter": paths, "specimen": paths if every else notebooks.specimens()}.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, chosen, ids=[path.stem for path in chosen])
