"""Search finds what is asked for by name, first; in a real browser, by the site's own script and index."""

import gzip
import html
import json
import re

import pytest
from playwright.sync_api import expect

import attn_lib
from book._ext import families
from book.tools import notebooks
from tests.site import browser as browsers
from tests.site import static_checks

REFERENCE, FAMILY, FOUNDATIONS = "book/api/{}.html", "book/families/{}.html", "chapters/foundations/{}.html"
CHAPTERS_TO_COME = 80
MEGABYTES = 0.6  # of what the search reads, compressed, when that many chapters are there

# What a reader types who knows no name, or half of one.
QUESTIONS = {
    "channel attention": FAMILY.format("channel"),
    "spatial attention": FAMILY.format("spatial"),
    "self-attention": FAMILY.format("self_attention"),
    "time series": FAMILY.format("temporal"),
    "video": FAMILY.format("temporal"),
    "forecasting": FAMILY.format("temporal"),
    "transformer": FAMILY.format("self_attention"),
    "feature fusion": FAMILY.format("fusion"),
    "gate": FOUNDATIONS.format("gating"),
    "roofline": FOUNDATIONS.format("measuring"),
    "FLOPs": FOUNDATIONS.format("measuring"),
    "einops": FOUNDATIONS.format("shapes"),
    "YOLO": FOUNDATIONS.format("yolo"),
    "Colab": "book/using.html",
    "nbgrader": "book/using.html",
    "notation": "book/notation.html",
    "errata": "book/errata.html",
    "atlas": "book/atlas.html",
    "bibliography": "book/bibliography.html",
    "sampling": REFERENCE.format("ops") + "#attn_lib.ops.bilinear_sample",
    "windows": REFERENCE.format("ops") + "#attn_lib.ops.windows",
    "channel_shuffle": REFERENCE.format("ops") + "#attn_lib.ops.channel_shuffle",
    "attn_lib.viz.roofline": REFERENCE.format("viz") + "#attn_lib.viz.roofline",
    "plug.insert": REFERENCE.format("plug") + "#attn_lib.plug.insert",
    "saved_bytes": REFERENCE.format("measure") + "#attn_lib.measure.saved_bytes",
    "SEAttention": REFERENCE.format("channel") + "#attn_lib.channel.se.SEAttention",
    "overlap": REFERENCE.format("self_attention") + "#module-osra",
    "pyra": "chapters/temporal/pyraformer.html",
    "criss cross": "chapters/spatial/ccnet.html",
    "squeeze and exc": "chapters/channel/se.html",
    "deformabl": "chapters/conv/deform.html",
    "Vision Permutator: A Permutable MLP-Like Architecture": "chapters/mlp/vip.html",
    "Srinivas bottleneck": "chapters/self_attention/mhsa.html",
    "2103.02907": "chapters/channel_spatial/coord.html",
}


def place(site, entry) -> str:
    """Where a module is explained: its chapter, or its section in the reference."""
    chapter = f"{entry.chapter}.html"
    return chapter if (site / chapter).exists() else REFERENCE.format(entry.family) + f"#{families.anchor(entry)}"


def questions(site) -> dict[str, str]:
    """More than forty: besides those above every name of every module, and every task."""
    asked = dict(QUESTIONS)
    for entry in map(attn_lib.entry, attn_lib.list_modules()):
        names = [entry.name, entry.id, *entry.aliases]
        if not (site / f"{entry.chapter}.html").exists():
            names.append(entry.cls.__name__)
        asked |= dict.fromkeys(names, place(site, entry))
    asked |= {id: REFERENCE.format("tasks") + f"#task-{id.replace('_', '-')}" for id in attn_lib.tasks.list_tasks()}
    return asked


def test_every_name_is_found_first(browser, site):
    problems = []
    asked = questions(site)
    with browsers.opened(browser, (site / "search.html").as_uri(), problems) as page:
        first = page.evaluate("""async names => Object.fromEntries(await Promise.all(names.map(
            async name => [name, (await bookSearch(name))[0]?.address])))""", [*asked])
    wrong = {name: (first[name], wanted) for name, wanted in asked.items() if first[name] != wanted}
    assert len(asked) > 40 and wrong == {} and problems == []


@pytest.mark.parametrize("over", ["file", "http"])
def test_the_search_page_lists_it_first(browser, address, site, over):
    """By name first, then by word; a result can be reached and opened with the keyboard."""
    problems, read, answered = [], [], []
    start = (site / "search.html").as_uri() if over == "file" else f"{address}/search.html"

    def wait_for_excerpts():
        """Whoever leaves the page breaks off the reading of those that are still to come."""
        for _ in range(200):
            page.wait_for_timeout(50)
            if len(read) == len(answered):
                return
        pytest.fail(f"{len(read) - len(answered)} pages were not read")

    with browsers.opened(browser, f"{start}?q=SE", problems) as page:
        results = page.locator("#search-results .found a")
        expect(results.first).to_have_attribute("href", re.compile(r"chapters/channel/se\.html$"))
        expect(page.locator("#search-results [role=status]")).to_contain_text("results for “SE”")
        page.on("request", lambda request: read.append(request.url) if request.resource_type == "fetch" else None)
        page.on("requestfinished", lambda request: answered.append(1) if request.resource_type == "fetch" else None)
        field = page.locator(".bd-search-container input[name=q]")
        field.fill("squeeze the channels of every image")  # by no name, and in many pages
        expect(page.locator("#search-results h2")).to_have_text("Results")
        expect(page.locator("#search-results [role=status]")).to_contain_text("every image")
        assert results.count() > 12
        assert all(text.strip() for text in page.locator("#search-results .found p").all_inner_texts())
        wait_for_excerpts()
        assert len(read) == (10 if over == "http" else 0), "excerpts are read for the first ten results only"
        field.fill("criss-cross")
        expect(results.first).to_contain_text("Criss-cross attention")
        wait_for_excerpts()
        field.press("ArrowDown")
        expect(results.first).to_be_focused()
        page.keyboard.press("ArrowUp")
        expect(field).to_be_focused()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.wait_for_url("**/chapters/spatial/ccnet.html")
        assert page.locator("article .highlighted").count() == 0
    assert problems == []


def test_what_is_not_there_is_said(browser, site):
    problems = []
    with browsers.opened(browser, f"{(site / 'search.html').as_uri()}?q=zyzzyva", problems) as page:
        expect(page.locator("#search-results [role=status]")).to_contain_text("Nothing is called “zyzzyva”")
    assert problems == []


def test_a_name_is_proposed_while_one_types_on_any_page(browser, site):
    problems = []
    with browsers.opened(browser, (site / "chapters" / "channel" / "se.html").as_uri(), problems) as page:
        page.keyboard.press("Control+k")
        field = page.locator(".search-button__search-container input")
        expect(field).to_be_focused()
        page.keyboard.type("dcnv2")
        options = page.locator("#search-proposals [role=option]")
        expect(options.first).to_contain_text("Deformable convolution")
        expect(field).to_have_attribute("aria-expanded", "true")
        page.keyboard.press("ArrowDown")
        expect(options.first).to_have_attribute("aria-selected", "true")
        assert field.get_attribute("aria-activedescendant") == options.first.get_attribute("id")
        page.keyboard.press("Enter")
        page.wait_for_url("**/chapters/conv/deform.html")
    assert problems == []


def test_the_search_stays_light_with_eighty_chapters(site):
    """What it reads grows with the chapters at most in proportion."""
    read = sum(len(gzip.compress((site / name).read_bytes())) for name in ("names.js", "searchindex.js"))
    assert read * CHAPTERS_TO_COME / len(notebooks.chapters()) < MEGABYTES * 1e6


def test_every_name_leads_somewhere(site):
    text = (site / "names.js").read_text(encoding="utf-8")
    for title, address, *_ in json.loads(text.removeprefix("globalThis.BOOK_NAMES=").strip().removesuffix(";")):
        page, _, anchor = address.partition("#")
        assert not anchor or anchor in static_checks.read(site / page).ids, (title, address)
        assert (site / page).is_file(), (title, address)


def test_numbers_are_no_words(site):
    """They were half of the index."""
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    terms = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))["terms"]
    assert not [term for term in terms if term[:1].isdigit()] and "attent" in terms


def test_aliases_stand_in_the_index_of_terms(site):
    """Each leads to the chapter, or to the section of the reference; below another meaning of the word if need be."""
    text = (site / "genindex.html").read_text(encoding="utf-8")
    links = {(way.split("#")[0] if "chapters/" in way else way, html.unescape(re.sub(r"<[^>]+>", "", name)).strip())
             for way, name in re.findall(r'<a href="([^"]+)">(.*?)</a>', text)}
    for entry in map(attn_lib.entry, attn_lib.list_modules()):
        for alias in entry.aliases:
            if alias.lower() != entry.name.lower():
                said = {f"{alias} ({entry.name})", f"({entry.name})"}
                assert any((place(site, entry), name) in links for name in said), alias
