"""The page *Teach*: its numbers are those of the notebooks, its graph leads to every chapter, also on a phone."""

import re

import pytest

from book.tools import teaching
from tests.site import browser as browsers
from tests.site import static_checks

PAGE = "book/teach.html"


@pytest.fixture(scope="module")
def book():
    return teaching.book()


def test_every_chapter_has_its_row(site, book):
    text = (site / PAGE).read_text(encoding="utf-8")
    rows = dict(re.findall(r'<tbody id="teach-(\w+)">(.*?)</tbody>', text, re.DOTALL))
    assert list(rows) == list(book)
    for id, row in rows.items():
        facts = book[id]
        cells = re.findall(r'<td data-h="([\w ]+)"[^>]*>(.*?)</td>', row)
        shown = {head: re.sub(r"<[^>]+>", "", cell) for head, cell in cells}
        assert shown["reading"] == str(facts.reading) and shown["points"] == str(facts.points)
        assert shown["exercises"].startswith(f"{facts.practice} = ")
        assert row.count("<li>") == len(facts.objectives)
    assert f'<td data-h="points">{sum(facts.points for facts in book.values())}</td>' in text


def test_every_week_shows_its_sums(site, book):
    text = (site / PAGE).read_text(encoding="utf-8")
    shown = re.findall(r'<p class="teach-sum"><b>([^<]+)</b> minutes, <b>([^<]+)</b> points', text)
    weeks = [week for course in teaching.courses(book).values() for week in course]
    assert shown == [(teaching.span(week.minutes), teaching.span(week.points)) for week in weeks]


def test_every_chapter_is_reached_from_the_table_and_the_graph(site, book):
    links = static_checks.read(site / PAGE).links
    assert {id: links.count(f"../{facts.page}.html") >= 2 for id, facts in book.items()} == dict.fromkeys(book, True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_graph_can_be_read_on_a_phone_and_by_keyboard(browser, site, book, scheme):
    problems, options = [], {"viewport": browsers.PHONE, "color_scheme": scheme}
    with browsers.opened(browser, (site / PAGE).as_uri(), problems, **options) as page:
        chips = page.locator(".teach-order .chip").evaluate_all("""chips => chips.map(chip => {
            const text = chip.querySelector("text"), box = chip.querySelector("rect").getBoundingClientRect();
            const own = text.getBoundingClientRect(), scale = own.height / text.getBBox().height;
            chip.focus();
            return [text.textContent, parseFloat(text.getAttribute("font-size")) * scale,
                    own.left >= box.left && own.right <= box.right && document.activeElement === chip];
        })""")
        assert browsers.overflow(page) == []
        outside = page.locator(".teach-order .year").evaluate_all("""words => words.filter(text =>
            text.getBoundingClientRect().right > text.closest("svg").getBoundingClientRect().right + 1)
            .map(text => text.textContent)""")
    assert problems == [] and outside == []
    assert len(chips) == len(book) and [name for name, size, fine in chips if size < 8 or not fine] == []
