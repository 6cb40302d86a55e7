"""Every page of the built site, as a file and in a browser."""

import json
import re

import pytest
from playwright.sync_api import expect

import attn_lib
from book.tools import notebooks
from tests.site import browser as browsers
from tests.site import explorers, static_checks

ROOT = notebooks.ROOT


def test_the_site_has_its_pages(site):
    names = {path.relative_to(site).as_posix() for path in static_checks.pages(site)}
    chapters = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in notebooks.chapters()}
    assert chapters <= names and chapters
    assert {"index.html", "book/index.html", "book/using.html", "book/notation.html", "book/bibliography.html",
            "book/api/index.html", "book/atlas.html", "book/errata.html", "book/networks.html", "search.html",
            "genindex.html"} <= names


@pytest.mark.parametrize("check", static_checks.CHECKS, ids=lambda check: check.__name__)
def test_file(path, check):
    assert check(path) == []


def test_page_in_a_browser(browser, path):
    """From a folder: no error, no request that fails or leaves, and all that can be said of the open page.

    One load serves all: wide, at phone width, and in the dark.
    """
    problems = []
    with browsers.opened(browser, path.as_uri(), problems) as page:
        problems += browsers.formulas(page) + browsers.pictures(page)
        problems += browsers.overflow(page) + browsers.distorted(page)
        if static_checks.is_chapter(path):
            problems += browsers.folds(page) + browsers.focus(page)
            problems += [] if page.locator(explorers.EXPLORER).count() else ["the chapter has no explorer"]
        problems += explorers.problems(page)
        page.set_viewport_size(browsers.PHONE)
        problems += browsers.overflow(page) + browsers.distorted(page)
        problems += [f"at phone width: {problem}" for problem in explorers.problems(page)]
        page.emulate_media(color_scheme="dark")
        if page.locator("html[data-theme]").count():  # the page for wrong addresses has a style of its own
            expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        problems += browsers.overflow(page) + browsers.dark_figures(page)
    assert problems == []


@pytest.mark.parametrize("name", ["index.html", "book/index.html", "book/using.html"])
def test_page_over_http(browser, address, name):
    problems = []
    with browsers.opened(browser, f"{address}/{name}", problems) as page:
        expect(page.locator("article h1")).to_be_visible()
        problems += browsers.formulas(page) + browsers.overflow(page)
    assert problems == []


def test_chapter_over_http(browser, address, site, specimen):
    problems = []
    with browsers.opened(browser, f"{address}/{specimen.relative_to(site).as_posix()}", problems) as page:
        assert page.locator("mjx-container").count() > 0
        problems += browsers.formulas(page)
    assert problems == []


def test_without_scripts_a_picture_is_left(browser, address, site, chapter):
    """Over HTTP: so what a chapter shows without them is fetched in both ways."""
    problems = []
    url = f"{address}/{chapter.relative_to(site).as_posix()}"
    with browsers.opened(browser, url, problems, java_script_enabled=False) as page:
        for explorer in page.locator(explorers.EXPLORER).all():
            picture = explorer.locator("img").first
            assert picture.is_visible() and picture.get_attribute("alt").strip()
            assert picture.evaluate("image => image.naturalWidth && image.getBoundingClientRect().width") > 100
    assert problems == []


def test_the_landing_page_has_an_explorer(site):
    assert 'class="attn-explorer"' in (site / "book" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("over", ["file", "http"])
def test_search_finds_a_chapter(browser, address, site, over):
    problems = []
    start = (site / "search.html").as_uri() if over == "file" else f"{address}/search.html"
    with browsers.opened(browser, f"{start}?q=squeeze", problems) as page:
        expect(page.locator("#search-results a[href*='chapters/channel/se.html']").first).to_be_visible()
        page.wait_for_load_state("networkidle")
    assert problems == []


def test_pictures_carry_the_text_that_was_stored_with_them(site, chapter):
    """One source: what viz stored in the notebook is what the page's <img> says."""
    notebook = json.loads((ROOT / chapter.relative_to(site)).with_suffix(".ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", []) if "data" in output]
    stored = {output["metadata"]["image/png"]["alt"] for output in outputs
              if "image/png" in output["data"] and "text/html" not in output["data"]}
    shown = {alt for _, alt in static_checks.read(chapter).pictures}
    assert stored and stored <= shown


def test_chapter_and_class_link_to_each_other(site, chapter):
    if chapter.parent.name == "foundations":
        return  # it explains no class
    entry = attn_lib.entry(chapter.stem)
    name = f"{entry.cls.__module__}.{entry.cls.__qualname__}"
    assert any(link.endswith(f"api/{entry.family}.html#{name}") for link in static_checks.read(chapter).links)
    reference = static_checks.read(site / "book" / "api" / f"{entry.family}.html").links
    assert f"../../{chapter.relative_to(site).as_posix()}" in reference


def test_the_family_map_leads_to_the_chapters_of_what_it_shows(browser, site):
    """It is drawn on the foundations' first page; a click, or Enter on the focused name, opens the chapter."""
    named = {f"{entry.name}, {entry.paper.year}": entry for entry in map(attn_lib.entry, attn_lib.list_modules())}
    page_of_map = site / "chapters" / "foundations" / "gating.html"
    problems = []
    with browsers.opened(browser, page_of_map.as_uri(), problems) as page:
        links = page.locator(".attn-map a[href]")
        addresses = [link.get_attribute("href") for link in links.all()]
        chapters = [address for address in addresses if "/api/" not in address]  # the others have a reference alone
        shown = [named[name.get_attribute("aria-label")] for name in page.locator(".attn-map a").all()]
        there = [f"../{entry.family}/{entry.id}.html" for entry in shown if (site / f"{entry.chapter}.html").exists()]
        assert len(there) >= 15 and sorted(chapters) == sorted(there)
        targets = [page_of_map.parent / address.partition("#")[0] for address in addresses]
        assert all(target.exists() for target in targets), [t for t in targets if not t.exists()]
        se = page.locator(".attn-map a[href$='channel/se.html']")
        se.locator("i").hover()
        expect(se.locator("span")).to_be_visible()
        expect(se.locator("span")).to_contain_text("Squeeze-and-Excitation")
        se.focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/channel/se.html")
    assert problems == []


def test_chapter_opens_in_colab(chapter):
    colab = re.compile(r"https://colab\.research\.google\.com/github/[^/]+/[^/]+/blob/[^/]+/chapters/\w+/\w+\.ipynb")
    assert any(colab.fullmatch(link) for link in static_checks.read(chapter).links)
