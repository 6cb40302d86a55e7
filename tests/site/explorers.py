"""Whether explorers answer to mouse and keyboard, and whether their picture really changes."""

from playwright.sync_api import Locator, Page

EXPLORER = ".attn-explorer"
DRAWN = """async node => {
    await node.decode?.();
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""


def look(explorer: Locator, *, on_screen: bool = False) -> tuple[bytes | str, str]:
    """An explorer's picture, and what its text says; `on_screen`: as the page shows it, which takes longer."""
    stage = explorer.locator("canvas, img").first
    stage.evaluate(DRAWN)
    if on_screen:
        explorer.page.mouse.move(0, 0)  # the pointer is no part of the picture
        picture = stage.screenshot(animations="disabled")
    else:
        picture = stage.evaluate("node => node.toDataURL?.() ?? node.src")
    return picture, said(explorer)


def said(explorer: Locator) -> str:
    """The text below the picture: the one that is seen comes before the one that a screen reader speaks."""
    return explorer.locator(".ax-said, output").first.inner_text()


def focus(explorer: Locator) -> None:
    """Give the picture the focus, as Tab does."""
    explorer.evaluate("figure => (figure.querySelector('[role=application]') ?? figure).focus()")


def answers(before: tuple[bytes | str, str], after: tuple[bytes | str, str], what: str) -> list[str]:
    """Both the picture and the text must be others."""
    parts = zip(("the picture", "the text"), before, after, strict=True)
    return [f"{part} stays the same after {what}" for part, old, new in parts if old == new]


def started(page: Page) -> list[Locator]:
    """The page's explorers, once their scripts have run."""
    explorers = page.locator(EXPLORER).all()
    for explorer in explorers:
        explorer.scroll_into_view_if_needed()
        explorer.locator("canvas, input").first.wait_for(state="visible", timeout=30_000)
    return explorers


def problems(page: Page) -> list[str]:
    """What does not answer, of all explorers on a page."""
    return [
        f"{explorer.locator('figcaption').inner_text()}: {problem}"
        for explorer in started(page)
        for problem in problems_of(explorer)
    ]


def problems_of(explorer: Locator) -> list[str]:
    """Move the query, or the slider, by keyboard and by mouse; what does not answer."""
    explorer.scroll_into_view_if_needed()
    found = []
    if explorer.get_attribute("data-kind") == "frames":
        slider = explorer.locator("input[type=range]").first
        slider.focus()
        start = look(explorer, on_screen=True)
        key = "ArrowLeft" if slider.evaluate("input => input.value === input.max") else "ArrowRight"
        explorer.page.keyboard.press(key)
        found += answers(start, look(explorer, on_screen=True), "an arrow key on the slider")
        box = slider.bounding_box()
        before = look(explorer)
        near = slider.evaluate("input => input.value === input.max")
        explorer.page.mouse.click(box["x"] + (4 if near else box["width"] - 4), box["y"] + box["height"] / 2)
        found += answers(before, look(explorer), "a click on the slider")
        return found
    focus(explorer)
    for key, opposite in (("ArrowDown", "ArrowUp"), ("ArrowRight", "ArrowLeft")):
        on_screen = key == "ArrowDown"
        before = look(explorer, on_screen=on_screen)
        explorer.page.keyboard.press(key)
        if look(explorer)[1] == before[1]:  # at the edge of the grid
            explorer.page.keyboard.press(opposite)
        found += answers(before, look(explorer, on_screen=on_screen), key)
    canvas = explorer.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    explorer.page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.8 * box["height"])
    before = look(explorer)
    explorer.page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
    found += answers(before, look(explorer), "the mouse moved over it")
    explorer.page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])  # holds the query
    held = look(explorer)
    explorer.page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.8 * box["height"])
    if look(explorer) != held:
        found.append("a click does not hold the query")
    explorer.page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])  # lets it go
    explorer.page.mouse.move(0, 0)
    return found
