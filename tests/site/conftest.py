"""The built site, its pages, and a browser."""

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from book.tools import notebooks
from tests.site import browser as browsers
from tests.site import static_checks

expect.set_options(timeout=30_000)  # ms; the machine may have other things to do
SITE = Path(os.environ.get("BOOK_SITE", notebooks.ROOT / "_build" / "html")).resolve()


def pytest_generate_tests(metafunc):
    """Runs a test that asks for a `path` once a page, one that asks for a `chapter` once a chapter, and one that asks
    for a `specimen` for a chapter of each kind, or for every chapter with `--every-chapter`."""
    found = static_checks.pages(SITE)
    chapters = [path for path in found if static_checks.is_chapter(path)]
    specimens = [SITE / path.relative_to(notebooks.ROOT).with_suffix(".html") for path in notebooks.specimens()]
    if metafunc.config.getoption("--every-chapter"):
        specimens = chapters
    for name, paths in {"path": found, "chapter": chapters, "specimen": specimens}.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, paths, ids=[path.relative_to(SITE).as_posix() for path in paths])


@pytest.fixture(scope="session")
def site():
    assert (SITE / "index.html").exists(), f"there is no site at {SITE}: run `make book` first"
    return SITE


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        try:
            started = browsers.launch(playwright)
        except browsers.NoBrowser as error:
            pytest.fail(str(error), pytrace=False)
        yield started
        started.close()


@pytest.fixture(scope="session")
def address(site):
    """The site over HTTP, on this machine only."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
