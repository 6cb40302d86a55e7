"""Ways through eighty chapters: the sidebar, the landing page, the families' pages, and one order for all of them."""

import json
import re

import pytest
import yaml
from playwright.sync_api import expect

import attn_lib
from attn_lib.catalog import FAMILIES
from book._ext import families
from book.tools import notebooks
from tests.site import browser as browsers
from tests.site import static_checks

ROOT = notebooks.ROOT
PARTS = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]


def files(part: dict) -> list[str]:
    return [chapter["file"] for chapter in part["chapters"]]


# --- one source for titles and their order ----------------------------------------------------------------------------


def test_the_parts_are_the_families_in_the_catalogues_order():
    """Captions are the titles in the packages' docstrings. A part begins with its family's page and holds all of it;
    where the family has a page on its tasks, it ends with that."""
    parts = [part for part in PARTS if files(part)[0].startswith("book/families/")]
    assert [part["caption"] for part in parts] == [families.words(family).title for family in FAMILIES]
    for part, family in zip(parts, FAMILIES, strict=True):
        assert files(part)[0] == families.PAGE.format(family)
        written = {path.relative_to(ROOT).with_suffix("").as_posix() for path in notebooks.chapters()
                   if path.parent.name == family}
        tasks = f"{families.PAGE.format(family)}_tasks"
        last = [tasks] if (ROOT / f"{tasks}.md").exists() else []
        chapters = files(part)[1 : len(files(part)) - len(last)]
        assert sorted(chapters) == sorted(written) and files(part)[1 + len(chapters) :] == last


def test_the_reference_lists_the_families_in_the_catalogues_order():
    sections = [section["file"] for part in PARTS for chapter in part["chapters"]
                for section in chapter.get("sections", ())]
    assert sections[:len(FAMILIES)] == [families.REFERENCE.format(family) for family in FAMILIES]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_says_what_it_is(family):
    """The short caption of cards and maps begins the title; a sentence and some more follow."""
    about = families.words(family)
    assert about.title.startswith(FAMILIES[family])
    assert about.sentence.endswith(".") and len(about.sentence) < 90
    assert about.text.count(". ") >= 2 or about.text.count(".") >= 2


def test_every_chapters_title_begins_with_a_name_of_its_module():
    """The title is written once more in the notebook; it must be one under which the catalogue knows the module."""
    for path in notebooks.chapters():
        if path.parent.name == "foundations":
            continue
        entry = attn_lib.entry(path.stem)
        opening = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        title = opening.splitlines()[0].removeprefix("# ").lower()
        names = [name.lower() for name in (entry.name, *entry.aliases)]
        assert any(name in title for name in names), (title, names)


# --- the sidebar ------------------------------------------------------------------------------------------------------


def test_the_sidebar_folds_by_family_and_remembers(browser, site):
    """The part of the page is open, all others are shut; Enter on a caption opens one, also for the next page."""
    problems = []
    with browsers.opened(browser, (site / "chapters" / "channel" / "se.html").as_uri(), problems) as page:
        parts = page.locator(".bd-sidebar-primary li.toctree-l0 > details")
        captions = [part["caption"] for part in PARTS]
        assert [text.strip() for text in parts.locator("summary .caption-text").all_inner_texts()] == captions

        def unfolded():
            return parts.evaluate_all("parts => parts.filter(part => part.open)"
                                      ".map(part => part.querySelector('.caption-text').textContent)")

        assert unfolded() == ["Channel attention"]
        expect(page.locator(".bd-sidebar-primary a.current")).to_be_visible()
        own = next(part for part in PARTS if part["caption"] == "Channel attention")
        assert page.locator(".bd-sidebar-primary a:visible").count() == 1 + len(files(own))  # the logo, and its pages
        parts.locator("summary", has_text="Convolution").press("Enter")
        assert unfolded() == ["Channel attention", "Convolution"]
        page.locator(".bd-sidebar-primary a", has_text="Deformable convolution").click()
        page.wait_for_url("**/conv/deform.html")
        assert unfolded() == ["Convolution"]
        page.go_back()
        assert "Channel attention" in unfolded()
    assert problems == []


def test_without_a_script_the_sidebar_folds_too(browser, site):
    problems = []
    page_of = (site / "chapters" / "channel" / "se.html").as_uri()
    with browsers.opened(browser, page_of, problems, java_script_enabled=False) as page:
        shut = page.locator(".bd-sidebar-primary li.toctree-l0 > details", has_text="Convolution")
        expect(shut.locator("a").first).to_be_hidden()
        shut.locator("summary").first.click()
        expect(shut.locator("a").first).to_be_visible()
    assert problems == []


# --- the landing page -------------------------------------------------------------------------------------------------


def test_the_landing_page_has_a_tile_for_each_family(site):
    """Each leads to its page and counts right."""
    text = (site / "book" / "index.html").read_text(encoding="utf-8")
    tiles = re.findall(r'<li style="--f:(#\w+)">.*?<a href="([^"]+)">([^<]+)</a>.*?<small>(\d+) modules? · (\d+)', text)
    assert [title for _, _, title, *_ in tiles] == [families.words(family).title for family in FAMILIES]
    for (colour, way, _, modules, chapters), family in zip(tiles, FAMILIES, strict=True):
        assert colour == attn_lib.viz.FAMILY_COLOURS[family] and way == f"families/{family}.html"
        assert int(modules) == len(attn_lib.list_modules(family))
        assert int(chapters) == len(list((site / "chapters" / family).glob("*.html")))


@pytest.mark.parametrize(("size", "tiles"), [(browsers.WIDE, 1), (browsers.PHONE, 0)], ids=["wide", "phone"])
def test_the_first_screen_says_what_the_book_is(browser, site, size, tiles):
    """Title, statement and, where it is wide enough, the routes and the first tiles."""
    problems = []
    with browsers.opened(browser, (site / "book" / "index.html").as_uri(), problems, viewport=size) as page:
        def bottom(selector):
            box = page.locator(selector).first.bounding_box()
            return box["y"] + box["height"]

        assert bottom("article h1 + p") < size["height"]
        for route in ("Read", "Teach", "Build"):
            assert page.locator(".landing-routes .sd-card", has_text=route).locator("a[href]").count() >= 1
        if tiles:
            assert bottom(".landing-routes") < size["height"] and bottom(".family-tiles > li") < size["height"]
            lefts = page.locator(".family-tiles > li").evaluate_all("all => all.map(tile => tile.offsetLeft)")
            assert len(set(lefts)) == 3
    assert problems == []


# --- a family's page --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_page_shows_every_module(site, family):
    """On its map and in its table, each a link to the chapter or, as long as there is none, to the reference."""
    path = site / f"{families.PAGE.format(family)}.html"
    text = path.read_text(encoding="utf-8")
    assert re.findall(r'<tr data-id="(\w+)">', text) == [entry.id for entry in families.members(family)]
    links = static_checks.read(path).links
    for id in attn_lib.list_modules(family):
        entry = attn_lib.entry(id)
        chapter = (site / f"{entry.chapter}.html").exists()
        way = f"../../{entry.chapter}.html" if chapter else f"../api/{family}.html#{families.anchor(entry)}"
        assert links.count(way) >= 2, f"{id} is missing on the map or in the table"
    assert families.words(family).sentence in re.sub(r"&#39;|’", "'", text)


def test_the_map_of_a_family_can_be_read_on_a_phone(browser, site):
    """Letters of ten pixels at least, none cut; and in the dark they stand out."""
    problems = []
    largest = max(FAMILIES, key=lambda family: len(attn_lib.list_modules(family)))
    address = (site / f"{families.PAGE.format(largest)}.html").as_uri()
    with browsers.opened(browser, address, problems, viewport=browsers.PHONE, color_scheme="dark") as page:
        found = page.locator(".family-map .chip").evaluate_all("""chips => chips.map(chip => {
            const text = chip.querySelector("text"), box = chip.querySelector("rect").getBoundingClientRect();
            const own = text.getBoundingClientRect(), scale = own.height / text.getBBox().height;
            return [text.textContent, parseFloat(text.getAttribute("font-size")) * scale,
                    own.left >= box.left && own.right <= box.right];
        })""")
    assert len(found) >= len(attn_lib.list_modules(largest)) and problems == []
    assert [name for name, size, inside in found if size < 8 or not inside] == []
