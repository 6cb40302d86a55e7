"""Drawn mechanisms and exercises on the page: the SVG is the page's own, the stub is open, the solution folded."""

import re

import pytest
import torch
from docutils import nodes

from attn_lib import viz
from book._ext import drawings


@pytest.fixture(scope="module")
def stored() -> viz.Drawing:
    rows = [[viz.Grid("x", torch.eye(6)), viz.Grid("y", torch.eye(6))]]
    return viz.drawing(rows, arrows=[("x", "y", "=")], title="Same?", alt="Two grids & an arrow.")


def test_both_layouts_stand_in_the_page(stored):
    markup = drawings.inline(stored.html)
    assert markup.count("<svg") == 2 and "data:image" not in markup and "<picture" not in markup
    assert 'class="for-phone"' in markup and 'class="for-page"' in markup
    assert markup.count('aria-label="Two grids &amp; an arrow."') == 2
    assert "The numbers as text" in markup


def test_one_layout_serves_both_where_it_is_narrow():
    narrow = viz.drawing([[viz.Grid("x", torch.eye(2))]], title="Small?", alt="A grid.")
    markup = drawings.inline(narrow.html)
    assert markup.count("<svg") == 1 and 'class="for-all"' in markup


def test_only_drawings_are_touched(stored):
    page = nodes.section("", nodes.raw("", stored.html, format="html"), nodes.raw("", "<p>else</p>", format="html"))
    drawings.stand_in_the_page(None, page, "page")
    assert page[0].astext() == drawings.inline(stored.html) and page[1].astext() == "<p>else</p>"


def test_a_drawing_follows_the_theme_and_fits(stored, browser, site):
    css = (site / "_static" / "drawings.css").read_text(encoding="utf-8")
    page = browser.new_page(viewport={"width": 390, "height": 800})
    try:
        markup = drawings.inline(stored.html)
        page.set_content(f"<html data-theme='dark'><style>{css}</style><body style='--pst-color-background:#121212'>"
                         f"{markup}</body></html>")
        assert [page.locator(f".{kind}").is_visible() for kind in ("for-phone", "for-page")] == [True, False]
        ground = page.locator(".for-phone .ad-ground").evaluate("e => getComputedStyle(e).fill")
        ink = page.locator(".for-phone text").first.evaluate("e => getComputedStyle(e).fill")
        assert ground == "rgb(18, 18, 18)" and ink == "rgb(232, 234, 240)"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.set_viewport_size({"width": 1000, "height": 800})
        assert [page.locator(f".{kind}").is_visible() for kind in ("for-phone", "for-page")] == [False, True]
    finally:
        page.close()


def test_a_chapter_shows_its_drawing_at_the_top_and_where_it_is_explained(chapter):
    text = chapter.read_text(encoding="utf-8")
    if "foundations" not in chapter.parts:
        assert text.count('<figure class="attn-drawing">') >= 2
        assert text.index('<figure class="attn-drawing">') < text.index("After this chapter you can")
    assert "data:image/svg+xml" not in text


def test_an_exercise_shows_its_stub_and_folds_its_solution(chapter):
    text = chapter.read_text(encoding="utf-8")
    solutions = re.findall(r'<div class="[^"]*\btag_solution\b', text)
    stubs = re.findall(r'<div class="cell stub\b', text)
    assert len(solutions) == len(stubs) >= 3
    assert "BEGIN SOLUTION" not in text and text.count("NotImplementedError") >= len(stubs)
