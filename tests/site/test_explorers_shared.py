"""The site's explorers: a page loads their script and style from one file instead of carrying copies."""

from types import SimpleNamespace

import pytest
import torch
from docutils import nodes
from docutils.utils import new_document

from attn_lib import viz
from attn_lib.viz.explore.page import asset, script_tag, style_tag
from book._ext import explorers
from tests.site import static_checks


@pytest.fixture(scope="module")
def stored() -> str:
    """An explorer as a notebook holds it."""
    return viz.explore_pixels(torch.zeros(4, 4), torch.eye(4), title="Where?", alt="A diagonal.").html


def page_of(*outputs: str) -> nodes.document:
    page = new_document("page")
    page.extend(nodes.raw("", html, format="html") for html in outputs)
    return page


def test_copies_are_taken_off_and_the_explorer_stays(stored):
    page = page_of(stored, "<p>a table</p>", stored)
    explorers.share_code(None, page, "page")
    first, other, second = (node.astext() for node in page.children)
    assert first == second == stored.replace(style_tag(), "").replace(script_tag(), "")
    assert len(first) == len(stored) - len(style_tag()) - len(script_tag()) and other == "<p>a table</p>"
    assert first.startswith("<figure") and first.count("<script") == 1, "its data"


def test_a_copy_of_another_version_stays(stored):
    older = stored.replace("const make", "const older")
    page = page_of(older)
    explorers.share_code(None, page, "page")
    assert page.children[0].astext() == older.replace(style_tag(), "")


@pytest.mark.parametrize("has_explorer", [True, False])
def test_a_page_loads_the_files_where_it_has_an_explorer(stored, has_explorer):
    loaded = []
    app = SimpleNamespace(add_css_file=loaded.append, add_js_file=lambda name, **_: loaded.append(name))
    explorers.load_code(app, "page", "page.html", {}, page_of(stored) if has_explorer else None)
    assert loaded == ([*explorers.FILES] if has_explorer else [])


def test_the_shared_files_are_those_of_the_library(site):
    for name in explorers.FILES:
        assert (site / "_static" / name).read_text(encoding="ascii") == asset(name)


def test_no_page_carries_what_it_loads(site):
    for path in static_checks.pages(site):
        text = path.read_text(encoding="utf-8")
        assert style_tag() not in text and script_tag() not in text, path
        loads = [address for address in static_checks.read(path).fetched if "explorer." in address]
        assert len(loads) == (2 if "attn-explorer" in text else 0), (path, loads)
