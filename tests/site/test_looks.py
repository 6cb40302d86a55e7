"""How a page looks: its own faces, one column, figures in the middle, formulas and figures on a phone, and on paper."""

import pytest

from tests.site import browser as browsers
from tests.site import static_checks

BUTTONS = ".bd-header-article, .bd-sidebar-primary, .bd-sidebar-secondary, .copybtn, .prev-next-area"


@pytest.fixture
def opened(browser):
    """Returns a function that opens a page; problems fail the test when it ends."""
    stack, problems = [], []

    def start(path, **options):
        stack.append(browsers.opened(browser, path.as_uri(), problems, **options))
        return stack[-1].__enter__()

    yield start
    for manager in stack:
        manager.__exit__(None, None, None)
    assert problems == []


def boxes(page, selector: str) -> list[dict]:
    """Left, right, top and bottom of what is seen of a selector."""
    return page.evaluate("""selector => [...document.querySelectorAll(selector)].filter(node => node.checkVisibility())
        .map(node => (({left, right, top, bottom}) => ({left, right, top, bottom}))(node.getBoundingClientRect()))""",
                         selector)


def test_a_page_is_set_in_the_books_own_faces(opened, specimen):
    """Of what is drawn on it, no character comes from a font of the machine."""
    page = opened(specimen)
    session = page.context.new_cdp_session(page)
    session.send("DOM.enable")
    session.send("CSS.enable")
    root = session.send("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
    used, other = set(), {}
    for selector in ("article p", "article li", "article h2", "article div.highlight pre", "article summary"):
        for node in session.send("DOM.querySelectorAll", {"nodeId": root, "selector": selector})["nodeIds"][:60]:
            for font in session.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]:
                used.add(selector)
                if not font["isCustomFont"]:
                    other[font["familyName"]] = other.get(font["familyName"], 0) + font["glyphCount"]
    assert len(used) == 5 and other == {}
    assert page.evaluate("document.fonts.check('1rem \"Book Text\"') && document.fonts.check('1rem \"Book Code\"')")


def test_text_code_and_figures_share_a_column(opened, specimen):
    page = opened(specimen)
    column = boxes(page, "article section > p")[0]
    for box in boxes(page, "article section > div.cell > div.cell_input"):
        assert abs(box["left"] - column["left"]) < 1 and abs(box["right"] - column["right"]) < 1
    figures = boxes(page, "article .cell_output > a.image-reference, article .cell_output .attn-explorer")
    middle = (column["left"] + column["right"]) / 2
    assert figures and all(abs((box["left"] + box["right"]) / 2 - middle) < 1.5 for box in figures)
    wide = page.evaluate("""() => [...document.querySelectorAll("article div.cell_input pre")]
        .filter(pre => pre.checkVisibility() && pre.scrollWidth > pre.clientWidth)
        .map(pre => pre.innerText.slice(0, 60))""")
    assert wide == []  # the longest line of code that a cell may hold fits


def test_a_cell_and_its_output_stand_together(opened, specimen):
    gaps = opened(specimen).evaluate("""() => [...document.querySelectorAll("article div.cell")].map(cell => {
        const part = name => cell.querySelector(`:scope > ${name}`)?.getBoundingClientRect();
        const input = part(".cell_input"), output = part(".cell_output");
        const next = cell.nextElementSibling?.getBoundingClientRect(), whole = cell.getBoundingClientRect();
        return input && output && next ? [output.top - input.bottom, next.top - whole.bottom] : null;
    }).filter(Boolean)""")
    assert gaps and all(near * 2 < far for near, far in gaps)


def test_no_fold_is_nameless(path):
    text = path.read_text(encoding="utf-8")
    assert "Toggle hidden content" not in text and "Click to show" not in text


def test_formulas_on_a_phone(opened, chapter):
    """The number stands below; what is too wide scrolls within itself and is shaded at its edge."""
    page = opened(chapter, viewport=browsers.PHONE)
    found = page.evaluate("""() => [...document.querySelectorAll("article div.math > mjx-container[display]")]
        .map(formula => {
            const number = formula.parentElement.querySelector(".eqno"), style = getComputedStyle(formula);
            const box = formula.getBoundingClientRect(), fits = formula.scrollWidth <= formula.clientWidth + 1;
            return {
                below: !number || number.getBoundingClientRect().top >= box.bottom - 1,
                inside: box.left >= 0 && box.right <= innerWidth,
                scrolls: fits || style.overflowX === "auto",
                shaded: /gradient.*gradient/.test(style.backgroundImage),
            };
        })""")
    assert all(all(formula.values()) for formula in found), found


@pytest.mark.parametrize("way", ["touch", "keyboard"])
def test_a_figure_opens_at_reading_size(opened, specimen, way):
    options = {"has_touch": True, "is_mobile": True} if way == "touch" else {}
    page = opened(specimen, viewport=browsers.PHONE, **options)
    link = page.locator(".cell_output a.image-reference").filter(has=page.locator("img[style*='700px']")).first
    link.scroll_into_view_if_needed()
    if way == "touch":
        link.tap()
    else:
        link.focus()
        page.keyboard.press("Enter")
    layer = page.locator("dialog.enlarged")
    layer.locator("img").wait_for()
    page.wait_for_function("document.querySelector('dialog.enlarged img').getBoundingClientRect().width >= 700")
    view = layer.locator("> div")
    assert layer.locator("img").get_attribute("alt") and view.evaluate("node => node === document.activeElement")
    assert view.evaluate("node => { node.scrollLeft = 1e4; return node.scrollLeft; }") > 250  # it pans
    before = layer.locator("img").bounding_box()["width"]
    page.keyboard.press("+")
    assert layer.locator("img").bounding_box()["width"] > before
    if way == "touch":
        layer.get_by_role("button", name="Close").tap()
    else:
        page.keyboard.press("Escape")
    assert not layer.is_visible() and link.evaluate("node => node === document.activeElement")


def test_dark_pages_have_no_pale_slabs(opened, site):
    """What is light in the dark is a picture on its own ground, and has no rim."""
    page = opened(site / "chapters" / "channel" / "se.html", color_scheme="dark")
    rims = page.evaluate("""() => [...document.querySelectorAll("article .attn-explorer img")]
        .map(image => getComputedStyle(image)).map(style => [style.paddingTop, style.backgroundColor])""")
    assert rims and all(rim == ["0px", "rgb(255, 255, 255)"] for rim in rims)
    page = opened(site / "chapters" / "foundations" / "gating.html", color_scheme="dark")
    ground = "node => getComputedStyle(node).backgroundColor"
    assert page.locator(".text_html:has(> .attn-map)").evaluate(ground) == "rgba(0, 0, 0, 0)"


def test_on_paper(opened, specimen):
    """Nothing is cut, no button is left, a fold stays folded, and a figure leaves room for others on its page."""
    page = opened(specimen, viewport={"width": 680, "height": 980})  # A4 between its margins
    assert static_checks.is_chapter(specimen)
    page.emulate_media(media="print")
    assert boxes(page, BUTTONS) == []
    cut = page.evaluate("""() => [...document.querySelectorAll("article pre, article table")]
        .filter(node => node.checkVisibility() && node.scrollWidth > node.clientWidth + 1)
        .map(node => node.innerText.slice(0, 60))""")
    assert cut == [] and boxes(page, "details.fold > .cell_input") == []
    assert all(box["bottom"] - box["top"] <= 420 for box in boxes(page, ".cell_output > a.image-reference img"))
