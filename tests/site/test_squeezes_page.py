"""The page *What each squeeze can see*: its numbers are those of the record, and the panel shows their curves."""

import html
import re

import pytest
from playwright.sync_api import expect

import attn_lib
from book.tools.record import load
from book.tools.squeezes import EXACT, FILE, READS, TASKS, TOLD
from tests.site import browser as browsers

PAGE = "book/families/channel_tasks.html"


def recorded():
    return {(row["task"], row["module"]): row for row in load(FILE)["rows"]}


def test_every_number_of_the_table_is_that_of_the_record(site):
    page = (site / PAGE).read_text(encoding="utf-8")
    cell = r'<td data-kind="(\w+)" data-key="(\w+) (\w+)"[^>]*><span>([\d.]+)</span>(<small>blind</small>)?'
    cells = re.findall(cell, page)
    rows = {key: row for key, row in recorded().items() if "scores" in row}
    assert {(task, module) for _, task, module, *_ in cells} == set(rows)
    for kind, task, module, shown, blind in cells:
        row = rows[task, module]
        assert shown == f"{sum(row['scores']) / 3:.2f}"
        exact = row.get("tells") is not None and row["tells"] <= EXACT
        assert bool(blind) == exact == (kind == "blind")
    heads = re.findall(r'<th scope="row"><a href="([^"]+)">([^<]+)</a><small>([^<]+)</small>', page)
    assert [html.unescape(cue) for *_, cue in heads] == list(TASKS.values())
    for address, *_ in heads:
        assert ((site / PAGE).parent / address.partition("#")[0]).resolve().exists()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_panel_shows_what_lies_behind_a_number(browser, site, width):
    problems = []
    with browsers.opened(browser, (site / PAGE).as_uri(), problems, viewport={"width": width, "height": 900}) as page:
        row, panel = recorded()["calm_digits", "srm"], page.locator(".squeezes-panel")
        expect(panel).to_contain_text("Point at one")
        button = page.locator('td[data-key="calm_digits srm"] button')
        button.focus()
        expect(panel.locator("strong")).to_have_text("SRM, calm digits")
        for score in row["scores"]:
            expect(panel).to_contain_text(f"{score:.3f}")
        assert panel.locator("polyline").count() == 3
        before = panel.bounding_box()["y"]
        page.keyboard.press("ArrowRight")
        following = [*READS, TOLD]
        name = attn_lib.entry(following[following.index("srm") + 1]).aliases[0]
        expect(panel.locator("strong")).to_have_text(f"{name}, calm digits")
        page.keyboard.press("ArrowDown")
        below = list(TASKS)[list(TASKS).index("calm_digits") + 1].replace("_", " ")
        expect(panel.locator("strong")).to_have_text(f"{name}, {below}")
        assert panel.bounding_box()["y"] == before
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert problems == []
