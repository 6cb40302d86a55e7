"""What a page is to a reader who does not see it, or who moves by keyboard alone."""

from contextlib import suppress
from functools import cache
from pathlib import Path

import axe_playwright_python
from playwright.sync_api import Page, TimeoutError

STOPS = 80  # of the Tab key in a chapter, from the skip link to its end
STOPS_TO_EXPLORER = 50  # of those, until the first explorer; each folded drawing before it is one

GRAVE = {"serious", "critical"}
ALSO = ("duplicate-id", "duplicate-id-active", "label-content-name-mismatch")  # which axe leaves out unless asked
COLOURS = ("color-contrast", "link-in-text-block")

# A chapter has thousands of coloured words of code, in a dozen colours: one of each kind is looked at.
PREPARE = """() => {
    document.head.append(Object.assign(document.createElement("style"),
        {textContent: "* { transition: none !important; animation: none !important }"}));
    document.querySelectorAll("article details").forEach(fold => { fold.open = true; });
    const seen = new Set();
    document.querySelectorAll(".highlight pre span").forEach(word => {
        const kind = word.className + (word.closest(".cell_output") ? " printed" : "");
        if (!word.childElementCount && seen.has(kind)) word.replaceWith(word.textContent);
        seen.add(kind);
    });
    document.querySelectorAll(".highlight pre").forEach(code => code.normalize());
}"""
RUN = """async options => (await axe.run(document, options)).violations.map(({id, impact, help, nodes}) =>
    [id, impact, `${help}: ${nodes.length} such as ${nodes[0].target} ${nodes[0].html.slice(0, 120)}`])"""


@cache
def script() -> str:
    """The rules; the package carries them."""
    return Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")


def prepare(page: Page) -> None:
    """Unfold everything, and bring axe; what the page looks like is not changed."""
    page.evaluate(PREPARE)
    page.evaluate(script())


def settle(page: Page) -> None:
    """Let the page see its new size: what scrolls becomes a stop of the Tab key. What never does is left to axe."""
    settled = """() => [...document.querySelectorAll(
        "mjx-container[display=true], pre, .pst-scrollable-table-container")].every(node =>
            node.scrollWidth <= node.clientWidth || node.tabIndex === 0 ||
            node.querySelector("a[href], button, input, select, summary, [tabindex='0']"))"""
    with suppress(TimeoutError):
        page.wait_for_function(settled, timeout=5_000)


def axe(page: Page, *, colours: bool | None = None) -> list[str]:
    """What axe calls serious or critical; `colours`: its rules on colours alone, or all but those."""
    rules = {rule: {"enabled": True} for rule in ALSO}
    if colours is not None:
        rules |= {rule: {"enabled": colours} for rule in COLOURS}
    options = {"resultTypes": ["violations"], "preload": False, "rules": rules}
    if colours:
        options |= {"runOnly": list(COLOURS), "rules": {}}
    return [f"{rule}: {text}" for rule, impact, text in page.evaluate(RUN, options)
            if impact in GRAVE or rule in ALSO]


def stops(page: Page) -> list[str]:
    """The first Tab leads to a link past the list of pages; from there few stops lead to the explorer and the end."""
    # An explorer is a picture, and no stop, until its script has run.
    page.wait_for_function("""() => !document.querySelector(
        ".attn-explorer[data-state=stored], .attn-explorer[data-state=starting]")""")
    page.keyboard.press("Tab")
    if page.evaluate("document.activeElement.getAttribute('href')") != "#main-content":
        return ["the first stop of the Tab key is no skip link"]
    page.keyboard.press("Enter")
    where = """() => { const node = document.activeElement;
        return [!!node.closest("main"), !!node.closest("article"), !!node.closest(".attn-explorer")]; }"""
    explorer, count, inside, found = 0, 0, False, []
    for count in range(1, STOPS + 2):
        page.keyboard.press("Tab")
        in_main, in_article, in_explorer = page.evaluate(where)
        if not in_main:
            return ["the skip link does not lead into the page"]
        if inside and not in_article:
            break
        inside = inside or in_article
        explorer = explorer or in_explorer * count
    if count > STOPS:
        found.append(f"a chapter has more than {STOPS} stops of the Tab key")
    if not 0 < explorer <= STOPS_TO_EXPLORER:
        found.append(f"the first explorer is stop {explorer or 'beyond the end'}, later than {STOPS_TO_EXPLORER}")
    return found


def spoken_formulas(page: Page) -> list[str]:
    """Every formula is there as MathML for whoever listens, and is no stop of the Tab key unless it scrolls."""
    found = page.evaluate("""() => [...document.querySelectorAll("mjx-container")].filter(formula =>
        formula.tabIndex >= 0 && !formula.matches("[display=true][role=group]") ||
        !formula.querySelector("mjx-assistive-mml math")).length""")
    return [f"{found} formulas are stops of the Tab key or have no MathML"] if found else []


def language(page: Page) -> list[str]:
    """The page says its language, and has one main part with one first heading."""
    told = page.evaluate("""() => [document.documentElement.lang.slice(0, 2),
        document.querySelectorAll("main").length,
        [...document.querySelectorAll("h1")].filter(head => head.checkVisibility()).length]""")
    return [] if told == ["en", 1, 1] else [f"language, main parts and first headings: {told}"]
