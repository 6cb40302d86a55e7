"""What leaves the site: descriptions and previews, the link to edit a page, the page for a wrong address; citations."""

import html
import re

import pytest

import attn_lib
from attn_lib.catalog import FAMILIES
from book._ext import families, sharing
from book.tools.address import read_address
from tests.site import browser as browsers
from tests.site import static_checks

ADDRESS = read_address()


def tags(path) -> dict[str, str]:
    text = path.read_text(encoding="utf-8")
    return {name: html.unescape(value) for name, value in
            re.findall(r'<meta (?:name|property)="([\w:]+)" content="([^"]*)"', text)}


def shared(path, site) -> bool:
    """The site's root only forwards, and the page for a wrong address is nobody's."""
    return path.relative_to(site).as_posix() not in ("index.html", "404.html")


def test_every_page_describes_itself(site, path):
    if not shared(path, site):
        return
    found, name = tags(path), path.relative_to(site).as_posix()
    assert 20 <= len(found["description"]) <= sharing.LONGEST + 2
    assert not re.search(r"[\\$<>{}]", found["description"]), found["description"]
    assert found["og:description"] == found["description"] and found["og:title"]
    assert found["og:site_name"] == "Visual attention"
    assert found["og:url"] == f"{ADDRESS.site}/{name}"
    picture = found["og:image"].removeprefix(f"{ADDRESS.site}/")
    assert (site / picture).is_file() and found["og:image:alt"]
    assert f'<link rel="canonical" href="{ADDRESS.site}/{name}"' in path.read_text(encoding="utf-8")


def test_descriptions_tell_pages_apart(site):
    """Of chapters and families, each by its own first sentence."""
    pages = [path for path in static_checks.pages(site)
             if static_checks.is_chapter(path) or path.parent.name == "families"]
    said = [tags(path)["description"] for path in pages]
    assert len(set(said)) == len(said) > len(FAMILIES)


def test_a_chapter_is_described_by_its_first_sentence(site):
    se = tags(site / "chapters" / "channel" / "se.html")["description"]
    assert se.startswith("A squeeze-and-excitation block looks at the whole image before it decides")


@pytest.mark.parametrize(("text", "kept"), [
    ("One. Two.", "One. Two."),
    ("Short one. " + "x" * 300, "Short one. " + "x" * 300),
    ("word " * 60, None),
])
def test_a_description_ends_where_it_should(text, kept):
    result = sharing.beginning(text.strip())
    assert len(result) <= sharing.LONGEST + 2
    assert result == kept or result.endswith(" …") or text.startswith(result)


@pytest.mark.parametrize("name", ["chapters/channel/se", "book/notation", "book/families/channel"])
def test_a_page_can_be_edited(site, name):
    """The link leads to the page's source, in the repository that `_config.yml` names."""
    links = static_checks.read(site / f"{name}.html").links
    source = f"{name}.ipynb" if name.startswith("chapters") else f"{name}.md"
    assert f"{ADDRESS.repository}/edit/{ADDRESS.branch}/{source}" in links


def test_a_wrong_address_is_answered(browser, site):
    """At any depth: every address is whole, nothing is fetched, and what was asked for is the first guess."""
    path = site / "404.html"
    page = static_checks.read(path)
    assert [link for link in page.links if not link.startswith(f"{ADDRESS.site}/")] == []
    assert [address for address in page.fetched if not address.startswith("data:")] == []
    for family in FAMILIES:
        assert f"{ADDRESS.site}/{families.PAGE.format(family)}.html" in page.links
    assert f'<form action="{ADDRESS.site}/search.html"' in path.read_text(encoding="utf-8")
    problems = []
    with browsers.opened(browser, path.as_uri(), problems, viewport=browsers.PHONE) as shown:
        assert shown.locator("h1").inner_text() == "There is no page at this address"
        assert shown.locator("main a").first.inner_text() == "Visual attention"
        problems += browsers.overflow(shown)
    assert problems == []


def test_the_bibliography_says_where_a_paper_is_used(site):
    """By links to the chapters that cite it, and to the modules that come from it."""
    text = (site / "book" / "bibliography.html").read_text(encoding="utf-8")
    rows = text.split('<div class="citation"')[1:]
    told = {row: set(re.findall(r'href="([^"]+)"', row.partition('class="cited-in"')[2])) for row in rows}
    assert len(rows) > 50 and [row for row, links in told.items() if not links] == []
    for entry in map(attn_lib.entry, attn_lib.list_modules()):
        chapter = (site / f"{entry.chapter}.html").exists()
        way = f"../{entry.chapter}.html" if chapter else f"api/{entry.family}.html#{families.anchor(entry)}"
        for paper in entry.papers:
            if paper.arxiv:
                assert [row for row in rows if f"abs/{paper.arxiv}" in row and way in told[row]], (paper.key, way)


def test_a_citation_in_a_chapter_is_listed(site):
    """From the other side: where a chapter's citation leads, the chapter is named."""
    text = (site / "book" / "bibliography.html").read_text(encoding="utf-8")
    chapter = site / "chapters" / "channel" / "eca.html"
    cited = {link.partition("#")[2] for link in static_checks.read(chapter).links if "bibliography.html#" in link}
    for id in cited:
        row = text.partition(f'<div class="citation" id="{id}"')[2].partition('<div class="citation"')[0]
        assert "../chapters/channel/eca.html" in row.partition('class="cited-in"')[2], id
    assert cited
