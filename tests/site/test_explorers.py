"""Explorers answer to mouse and keyboard, and the picture really changes; without scripts a picture is left."""

import browser as browsers
import pytest
import static_checks
from playwright.sync_api import Locator, Page

EXPLORER = ".attn-explorer"


def look(explorer: Locator) -> tuple[bytes, str]:
    """The pixels of an explorer's pictures, and what its text says."""
    explorer.page.mouse.move(0, 0)
    explorer.page.wait_for_timeout(100)
    stage = explorer.locator("canvas, img").first
    return stage.screenshot(animations="disabled"), explorer.locator("output").inner_text()


def answers(before: tuple[bytes, str], after: tuple[bytes, str], what: str) -> list[str]:
    """Both the picture and the text must be others."""
    parts = zip(("the picture", "the text"), before, after, strict=True)
    return [f"{part} stays the same after {what}" for part, old, new in parts if old == new]


def started(page: Page) -> list[Locator]:
    """The page's explorers, once their scripts have run."""
    explorers = page.locator(EXPLORER).all()
    for explorer in explorers:
        explorer.scroll_into_view_if_needed()
        explorer.locator("canvas, input").first.wait_for(state="visible", timeout=10_000)
    return explorers


def problems_of(explorer: Locator) -> list[str]:
    """Move the query, or the slider, by keyboard and by mouse; what does not answer."""
    explorer.scroll_into_view_if_needed()
    found = []
    start = look(explorer)
    if explorer.get_attribute("data-kind") == "frames":
        slider = explorer.locator("input[type=range]").first
        slider.focus()
        explorer.page.keyboard.press("ArrowRight")
        found += answers(start, look(explorer), "an arrow key on the slider")
        box = slider.bounding_box()
        before = look(explorer)
        explorer.page.mouse.click(box["x"] + box["width"] - 4, box["y"] + box["height"] / 2)
        found += answers(before, look(explorer), "a click on the slider")
        return found
    explorer.focus()
    for key, opposite in (("ArrowDown", "ArrowUp"), ("ArrowRight", "ArrowLeft")):
        before = look(explorer)
        explorer.page.keyboard.press(key)
        if look(explorer) == before:  # at the edge of the grid
            explorer.page.keyboard.press(opposite)
        found += answers(before, look(explorer), key)
    canvas = explorer.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    explorer.page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.8 * box["height"])
    before = look(explorer)
    explorer.page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
    explorer.page.wait_for_timeout(100)
    if explorer.locator("output").inner_text() == before[1]:
        found.append("the text stays the same after the mouse moved over it")
    explorer.page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])  # holds the query
    found += answers(before, look(explorer), "a click")
    return found


def test_chapter_has_an_explorer(chapter):
    assert 'class="attn-explorer"' in chapter.read_text(encoding="utf-8")


@pytest.mark.parametrize("viewport", [browsers.WIDE, browsers.PHONE], ids=["wide", "phone"])
def test_explorers_answer(browser, path, viewport):
    if 'class="attn-explorer"' not in path.read_text(encoding="utf-8"):
        return  # a page of text
    problems = []
    with browsers.opened(browser, path.as_uri(), problems, viewport=viewport) as page:
        for explorer in started(page):
            title = explorer.locator("figcaption").inner_text()
            problems += [f"{title}: {problem}" for problem in problems_of(explorer)]
    assert problems == []


def test_without_scripts_a_picture_is_left(browser, chapter):
    with browsers.opened(browser, chapter.as_uri(), [], java_script_enabled=False) as page:
        for explorer in page.locator(EXPLORER).all():
            picture = explorer.locator("img").first
            assert picture.is_visible() and picture.get_attribute("alt").strip()
            assert picture.evaluate("image => image.naturalWidth && image.getBoundingClientRect().width") > 100


def test_the_landing_page_has_one(site):
    page = static_checks.read(site / "book" / "index.html")
    assert 'class="attn-explorer"' in page.path.read_text(encoding="utf-8")
