"""Slides: nothing is cut, nothing comes from elsewhere, and beside a picture stand few words."""

import re

import nbformat
import pytest

from book.tools import notebooks
from book.tools.slides import text
from book.tools.slides.content import Deck
from book.tools.slides.deck import SlidesError, package, write
from tests.site import browser as browsers

SCREEN = {"width": 1280, "height": 720}
LOOK = """() => [...document.querySelectorAll(".slide")].map(slide => {
    const box = node => node.getBoundingClientRect(), whole = box(slide);
    const shown = [...slide.querySelectorAll(".picture img, .drawing svg, .attn-explorer, .source, p, li, table")];
    return {
        title: slide.querySelector("h2").innerText,
        cut: slide.scrollHeight > slide.clientHeight + 1 || slide.scrollWidth > slide.clientWidth + 1 ||
             shown.some(node => box(node).bottom > whole.bottom + 1 || box(node).right > whole.right + 1) ||
             [...slide.querySelectorAll(".formula mjx-math")].some(  // its number stands beside it
                 node => box(node).width > box(node.closest(".formula > div")).width + 2),
        small: parseFloat(slide.style.fontSize) <= 60 || [...slide.querySelectorAll(".source pre")]
            .some(node => parseFloat(getComputedStyle(node).fontSize) < 14) ||
            shown.some(node => node.closest(".picture") && node.matches("img, svg, figure") && box(node).height < 150),
        words: [...slide.querySelectorAll(".pair > p")].map(node => {
            const copy = node.cloneNode(true);
            copy.querySelectorAll("mjx-container").forEach(formula => formula.replaceWith("x"));
            return copy.textContent.trim().split(/\\s+/).length;
        }),
    };
})"""


def test_a_deck(browser, specimen, site, tmp_path):
    """In a browser: each slide whole and readable, every formula set, explorers awake, no other host asked."""
    chapter = notebooks.ROOT / specimen.relative_to(site).with_suffix(".ipynb")
    problems = []
    with browsers.opened(browser, write(chapter, tmp_path).as_uri(), problems, viewport=SCREEN) as page:
        page.wait_for_function("document.documentElement.dataset.ready === 'yes'", timeout=60_000)
        slides = page.evaluate(LOOK)
        problems += browsers.pictures(page)
        raw = page.evaluate("document.querySelector('.slides').innerText")
        assert not re.search(r"\\\(|\\\[|\{(cite|eq|doc|py:\w+)\}", raw)
        assert page.locator("mjx-merror").count() == 0
        assert page.locator(".attn-explorer[data-state=ready]").count() == page.locator(".attn-explorer").count() > 0
    assert problems == []
    assert len(slides) >= 8 and slides[0]["title"]
    assert [slide["title"] for slide in slides if slide["cut"]] == []
    assert [slide["title"] for slide in slides if slide["small"]] == []
    crowded = [slide["title"] for slide in slides if max(slide["words"], default=0) > 40 + 3]  # a citation is words
    assert crowded == []


def test_the_speakers_view(browser, tmp_path):
    """S opens it; it shows the chapter's text of the slide that is shown."""
    problems = []
    file = write(notebooks.find(["se"])[0], tmp_path)
    with browsers.opened(browser, f"{file.as_uri()}#/2", problems, viewport=SCREEN) as page:
        page.wait_for_function("document.documentElement.dataset.ready === 'yes'", timeout=60_000)
        with page.expect_popup() as opened:
            page.keyboard.press("s")
        opened.value.wait_for_selector(".speaker-controls-notes:not(.hidden) .value", timeout=60_000)
        said = opened.value.locator(".speaker-controls-notes .value").inner_text()
        assert "Under warm light the red digit counts, under cold light the blue one." in " ".join(said.split())
        assert "Prerequisites" not in said  # which belong to a slide before
    assert problems == []


def test_every_chapter_gives_a_deck(site):
    """Its title, its drawing or its first picture, its equations in their order, what to take away."""
    for path in notebooks.chapters():
        deck = Deck(path)
        slides = deck.slides()
        kinds = [slide.kind for slide in slides]
        assert kinds[:2] == ["title", "list"] and "exercise" in kinds and "question" in kinds, path
        assert sum(kind in ("wide", "tall", "explorer") for kind in kinds) >= 3, path
        shown = "".join(slide.body for slide in slides if slide.kind == "equations")
        equations = [int(number) for number in re.findall(r"<b>\((\d+)\)", shown)]
        assert equations == sorted(equations) and (equations or deck.chapter.is_foundation), path
        assert "BEGIN SOLUTION" not in "".join(slide.body + slide.notes for slide in slides), path


def test_marks_leave_out_and_add(site, tmp_path):
    path = notebooks.find(["eca"])[0]
    notebook = notebooks.read(path)
    before = Deck(path).slides()
    shown = next(slide for slide in before if slide.kind == "wide")
    notebook.cells[int(shown.place)].metadata["slideshow"] = {"slide_type": "skip"}
    notebook.cells[1].metadata["slideshow"] = {"slide_type": "slide"}
    assert notebooks.normalise(notebook).cells[1].metadata["slideshow"] == {"slide_type": "slide"}
    deck = Deck(path)
    deck.cells[:] = notebook.cells
    after = deck.slides()
    assert len(after) == len(before) and shown.place not in [slide.place for slide in after]
    assert next(slide for slide in after if slide.place == 1).kind == "code"


def test_sentences_are_cut_where_they_end():
    told = "Take $x. Y$ for {eq}`eq-a`, e.g. {cite}`hu2018squeeze`. **Then** see eq. 3. Why? So."
    assert text.sentences(told) == ["Take $x. Y$ for {eq}`eq-a`, e.g. {cite}`hu2018squeeze`.", "**Then** see eq. 3.",
                                    "Why?", "So."]
    assert text.words("Two $a + b$ words {cite}`x`.") == 4
    assert text.shortened("One two. Three four. Five.", 4) == "One two. Three four."
    assert text.before(["One two. **Three** four:"], 9) == "**Three** four."
    assert list(text.bold_heads("**A mistake.** Text.\n\nNo **head** here.")) == ["A mistake"]


def test_roles_and_links_become_words(site):
    path = notebooks.find(["se"])[0]
    made = text.Text(path, nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("$$ a $$ (eq-se-a)")]))
    said = made.inline("{eq}`eq-se-a` of {cite}`hu2018squeeze`, [ECA](eca.ipynb), {py:class}`attn_lib.x.SE`, $x<y$")
    assert "(1) of (Hu et al., 2018)" in said and "<code>SE</code>" in said and r"\(x&lt;y\)" in said
    assert re.search(r'<a href="https://[^"]+/chapters/channel/eca.html">ECA</a>', said)


def test_what_is_missing_is_named():
    with pytest.raises(SlidesError, match="need the package no-such-package"):
        package("no_such_package", "static")
