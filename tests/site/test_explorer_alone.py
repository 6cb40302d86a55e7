"""Explorers by themselves, without the book around them: mouse, finger, keyboard, many on a page, scripts or none.

test_pages.py asks the same of those in the built site; here every number shown is known beforehand.
"""

import base64
import functools
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Locator, Page

from attn_lib import toys, viz
from attn_lib.viz.explore.page import asset, script_tag, style_tag
from tests.site import browser as browsers
from tests.site import explorers

TEXTS = {"title": "Where does a query look?", "alt": "A photograph under a heat map."}
KINDS = ("attention", "points", "frames")


@functools.cache
def attention(rows: int = 6, cols: int = 8) -> viz.Explorer:
    """Each query of a 6×8 grid attends mostly to its mirror image."""
    n = rows * cols
    matrix = 0.9 * torch.eye(n).flip(0) + 0.1 / n
    return viz.explore_attention(
        toys.image("astronaut", size=128)[:, :96], matrix.reshape(rows, cols, rows, cols), **TEXTS
    )


def attention_text(row: int, col: int) -> str:
    return f"query row {row}, col {col} · largest weight 0.9 at row {5 - row}, col {7 - col} · effective cells 2 of 48"


@functools.cache
def points() -> viz.Explorer:
    """On a 4×4 grid, cell (r, c) samples the corners of a square that grows with r, weighted by c."""
    centre = (
        torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1)[:, :, None] * 32 + 15.5
    )
    corners = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    reach = (torch.arange(4.0) + 1)[:, None, None, None] * 8
    weights = ((torch.arange(4.0) + 1) / 4)[None, :, None].expand(4, 4, 4)
    options = {"weights": weights, "reference": centre + corners * 8, **TEXTS}
    return viz.explore_points(toys.image("astronaut", size=128), centre + corners * reach, **options)


@functools.cache
def frames() -> viz.Explorer:
    def draw(height: int, gain: float) -> tuple[viz.Figure, str]:
        tall = height * gain
        figure = viz.bars([tall, 4.0], title="How tall?", alt=f"Two bars, the first {tall:g} tall.")
        return figure, f"The first bar is {tall:g} tall."

    return viz.explore_frames(draw, height=("height of the first bar", [1, 3, 4]), gain=[0.5, 1.0], **TEXTS)


def explorer(kind: str) -> viz.Explorer:
    return {"attention": attention, "points": points, "frames": frames}[kind]()


@pytest.fixture
def show(browser, tmp_path):
    """Open a page of explorers; at the end nothing may have gone wrong on it."""
    problems, contexts = [], []

    def open_page(*pieces: str | viz.Explorer, started: bool = True, **options) -> Page:
        file = tmp_path / f"{len(contexts)}.html"
        body = "".join(p if isinstance(p, str) else p.html for p in pieces)
        head = '<!doctype html><html lang="en"><title>t</title><meta name="viewport" content="width=device-width">'
        file.write_text(f"{head}<body>{body}", encoding="ascii")
        contexts.append(browsers.opened(browser, file.as_uri(), problems, **options))
        page = contexts[-1].__enter__()
        if started:
            page.wait_for_function("[...document.querySelectorAll('figure')].every(f => f.dataset.state === 'ready')")
        return page

    yield open_page
    for context in contexts:
        context.__exit__(None, None, None)
    assert problems == []


def pixels(figure: Locator) -> np.ndarray:
    """What the first picture of an explorer holds, not how large it is shown."""
    address = figure.evaluate("f => f.querySelector('canvas')?.toDataURL() ?? f.querySelector('img').src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"), dtype=float)


def text(figure: Locator) -> str:
    return figure.locator(".ax-said").inner_text()


def hottest(figure: Locator, rows: int = 6, cols: int = 8) -> tuple[int, int]:
    """The cell with most of the colour that large weights have."""
    image = pixels(figure)
    height, width = image.shape[0] // rows, image.shape[1] // cols
    cells = (image[..., 0] - image[..., 2])[: rows * height, : cols * width].reshape(rows, height, cols, width)
    return divmod(int(cells.mean((1, 3)).argmax()), cols)


def hover(figure: Locator, row: float, col: float, rows: int = 6, cols: int = 8) -> None:
    """Move the mouse to the middle of a cell."""
    canvas = figure.locator("canvas").first
    box = canvas.bounding_box()
    figure.page.mouse.move(box["x"] + (col + 0.5) / cols * box["width"], box["y"] + (row + 0.5) / rows * box["height"])


def check_mouse(page: Page) -> None:
    figure = page.locator("figure")
    for row, col in ((0, 0), (5, 7), (2, 6)):
        hover(figure, row, col)
        assert text(figure) == attention_text(row, col)
        assert hottest(figure) == (5 - row, 7 - col)


def check_keys(page: Page) -> None:
    figure = page.locator("figure")
    explorers.focus(figure)
    at = [3, 4]
    assert text(figure) == attention_text(*at)
    steps = {"ArrowUp": (2, 4), "ArrowLeft": (2, 3), "ArrowDown": (3, 3), "ArrowRight": (3, 4), "Shift+ArrowUp": (0, 4),
             "Shift+ArrowLeft": (0, 0), "Home": (3, 4), "End": (5, 7)}
    for key, cell in steps.items():
        page.keyboard.press(key)
        assert text(figure) == attention_text(*cell), key
        assert hottest(figure) == (5 - cell[0], 7 - cell[1]), key


def check_slider(page: Page) -> None:
    figure, sliders = page.locator("figure"), page.locator("input[type=range]")
    assert text(figure) == "The first bar is 0.5 tall."
    for slider, key, value, tall in (
        (0, "ArrowRight", "3", "1.5"), (1, "End", "1", "3"), (0, "End", "4", "4"), (0, "Home", "1", "1"),
    ):
        before = page.locator("img").get_attribute("src")
        sliders.nth(slider).focus()
        page.keyboard.press(key)
        assert text(figure) == f"The first bar is {tall} tall."
        assert page.locator("img").get_attribute("src") != before
        assert page.locator("img").get_attribute("alt") == f"Two bars, the first {tall} tall."
        assert sliders.nth(slider).get_attribute("aria-valuetext") == value
        assert page.locator("label b").nth(slider).inner_text() == value


# --- each way to use one ---


def test_mouse_moves_the_query(show):
    check_mouse(show(attention()))


def test_keys_move_the_query(show):
    check_keys(show(attention()))


def test_keys_move_sliders(show):
    check_slider(show(frames()))


def test_a_click_holds_the_query_and_lets_it_go(show):
    page = show(attention())
    figure = page.locator("figure")
    hover(figure, 1, 2)
    page.mouse.down()
    page.mouse.up()
    hover(figure, 4, 4)
    assert text(figure) == attention_text(1, 2)
    page.keyboard.press("ArrowDown")  # the click has given the explorer the focus
    assert text(figure) == attention_text(2, 2)
    page.mouse.down()
    page.mouse.up()
    assert text(figure) == attention_text(4, 4)
    hover(figure, 5, 0)
    assert text(figure) == attention_text(5, 0)


def on_phone(show, *pieces: str | viz.Explorer, width: int = 390) -> Page:
    return show(*pieces, viewport={"width": width, "height": 700}, has_touch=True, is_mobile=True)


def drag(page: Page, *places: tuple[float, float]) -> None:
    """One finger: down at the first place, to the others in turn, and up again."""
    touch = page.context.new_cdp_session(page)
    for kind, (x, y) in zip(["touchStart"] + ["touchMove"] * (len(places) - 1), places, strict=True):
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(100)


@pytest.mark.parametrize("width", [320, 390])
def test_a_finger_moves_the_query_on_a_phone(show, width):
    page = on_phone(show, attention(), points(), frames(), width=width)
    figure = page.locator("figure").first
    box = figure.locator("canvas").bounding_box()
    assert box["width"] > 0.85 * width
    for row, col in ((5, 1), (0, 6)):
        page.touchscreen.tap(box["x"] + (col + 0.5) / 8 * box["width"], box["y"] + (row + 0.5) / 6 * box["height"])
        assert text(figure) == attention_text(row, col)
    assert browsers.overflow(page) == []


def test_a_finger_drawn_over_the_picture_moves_the_query_and_not_the_page(show):
    page = on_phone(show, attention(), "<p style='height: 2000px'>")
    figure = page.locator("figure")
    box = figure.locator("canvas").bounding_box()
    place = [(box["x"] + (col + 0.5) / 8 * box["width"], box["y"] + (row + 0.5) / 6 * box["height"])
             for row, col in ((5, 2), (4, 2), (3, 3), (2, 3), (0, 3))]
    drag(page, *place)
    assert text(figure) == attention_text(0, 3) and page.evaluate("scrollY") == 0
    drag(page, *place[:3], (box["x"] + box["width"] / 2, 2.0))  # the finger leaves the picture: the nearest cell
    assert text(figure) == attention_text(0, 4) and page.evaluate("scrollY") == 0


@pytest.mark.parametrize("start", ["figcaption", ".ax-said", ".ax-hint"])
def test_beside_the_picture_a_finger_scrolls_the_page(show, start):
    page = on_phone(show, attention(), "<p style='height: 2000px'>")
    box = page.locator(start).bounding_box()
    y = box["y"] + box["height"] / 2
    touch = page.context.new_cdp_session(page)
    touch.send("Input.synthesizeScrollGesture", {"x": box["x"] + 20, "y": y, "yDistance": -150, "speed": 2000})
    assert page.evaluate("scrollY") > 50


def test_a_tall_picture_leaves_room_to_scroll_past_it(show):
    tall = viz.explore_pixels(torch.zeros(120, 40), torch.rand(12, 4), **TEXTS)
    page = on_phone(show, tall, "<p style='height: 2000px'>")
    box = page.locator("canvas").bounding_box()
    assert box["height"] <= 0.61 * 700 and abs(box["height"] - 3 * box["width"]) < 1


def test_arrows_for_fingers_move_the_query_by_one_cell(show):
    page = on_phone(show, attention())
    figure = page.locator("figure")
    for name, cell in (("up", (2, 4)), ("left", (2, 3)), ("down", (3, 3)), ("right", (3, 4))):
        button = page.get_by_role("button", name=f"query {name}")
        size = button.bounding_box()
        assert size["width"] >= 44 and size["height"] >= 44
        button.tap()
        assert text(figure) == attention_text(*cell)
    assert "finger" in page.locator(".ax-hint").inner_text() and "Hover" not in page.locator(".ax-hint").inner_text()
    desk = show(attention())
    assert not desk.locator(".ax-steps").is_visible() and "Hover" in desk.locator(".ax-hint").inner_text()


def test_on_a_phone_one_panel_is_large_and_the_others_answer_in_sight(show):
    matrix = (0.9 * torch.eye(36).flip(0) + 0.1 / 36).reshape(6, 6, 6, 6)
    panels = {name: matrix for name in ("first", "second", "third")}
    page = on_phone(show, viz.explore_attention(toys.image("astronaut", size=96), panels, **TEXTS))
    boxes = page.locator("canvas")

    def widths() -> list[int]:
        return [round(boxes.nth(i).bounding_box()["width"]) for i in range(3)]

    first = widths()
    assert first[0] > 300 and first[0] > 1.9 * first[1] and first[1] == first[2]
    window = [boxes.nth(i).bounding_box() for i in range(3)]
    assert all(box["y"] >= 0 and box["y"] + box["height"] <= 700 for box in window), "all in sight"

    before = [box.evaluate("c => c.toDataURL()") for box in boxes.all()]
    page.touchscreen.tap(window[0]["x"] + 10, window[0]["y"] + 10)
    assert all(box.evaluate("c => c.toDataURL()") != old for box, old in zip(boxes.all(), before, strict=True))
    said = text(page.locator("figure"))
    assert said.startswith("query row 0, col 0")
    boxes.nth(2).tap()  # comes forward, and the query stays
    assert widths() == [first[1], first[1], first[0]] and text(page.locator("figure")) == said
    explorers.focus(page.locator("figure"))
    page.keyboard.press("Enter")
    assert widths() == first


def test_on_a_phone_panels_that_fit_stand_one_above_the_other(show):
    matrix = (0.9 * torch.eye(48).flip(0) + 0.1 / 48).reshape(6, 8, 6, 8)
    wide = toys.image("astronaut", size=128)[:, :64]
    page = on_phone(show, viz.explore_attention(wide, {"first": matrix, "second": matrix}, **TEXTS))
    first, second = (page.locator("canvas").nth(i).bounding_box() for i in (0, 1))
    assert first["width"] == second["width"] > 300 and second["y"] > first["y"] + first["height"]
    assert second["y"] + second["height"] < 700


def test_on_a_phone_a_tap_shows_a_frame_at_the_size_it_was_drawn_for(show):
    page = on_phone(show, frames())
    image = page.locator("img")
    drawn = float(image.get_attribute("width"))
    assert image.bounding_box()["width"] < 0.6 * drawn
    box = image.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] - 20, box["y"] + 50)
    assert image.bounding_box()["width"] == drawn and page.locator(".ax-stage").evaluate("s => s.scrollLeft") > 200
    assert browsers.overflow(page) == []
    image.tap()
    assert image.bounding_box()["width"] < 0.6 * drawn


def test_overlay_slider_uncovers_the_photograph(show):
    page = show(attention())
    figure = page.locator("figure")
    covered = pixels(figure)
    page.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    bare = pixels(figure)
    saturation = [np.ptp(image, axis=2).mean() for image in (covered, bare)]
    assert saturation[0] < 25 < 30 < saturation[1], "under the overlay the photograph is grey"
    assert text(figure) == attention_text(3, 4), "the slider's keys are its own"


def test_points_follow_the_output_cell(show):
    page = show(points())
    figure = page.locator("figure")
    said = set()
    explorers.focus(figure)
    for key in ("Shift+ArrowUp", "ArrowDown", "ArrowDown", "ArrowRight"):
        before = pixels(figure)
        page.keyboard.press(key)
        said.add(text(figure))
        assert np.abs(pixels(figure) - before).max() > 50
    assert said == {
        "output row 0, col 2 · 4 points · weights 0.75 to 0.75 · moved 0.0 pixels on average, 0.0 at most",
        "output row 1, col 2 · 4 points · weights 0.75 to 0.75 · moved 11.3 pixels on average, 11.3 at most",
        "output row 2, col 2 · 4 points · weights 0.75 to 0.75 · moved 22.6 pixels on average, 22.6 at most",
        "output row 2, col 3 · 4 points · weights 1 to 1 · moved 22.6 pixels on average, 22.6 at most"
        " · 2 outside the image",
    }


def test_a_point_is_drawn_where_it_samples(show):
    image = torch.zeros(3, 256, 256)
    where = torch.tensor([[[[64.0, 192.0]]]])
    page = show(viz.explore_points(image, where, **TEXTS))
    drawn = pixels(page.locator("figure"))
    orange = np.argwhere(np.abs(drawn - (213, 94, 0)).sum(2) < 30)
    assert np.abs(orange.mean(0) / drawn.shape[0] * 256 - (64.5, 192.5)).max() < 0.6


def test_margin_keeps_mouse_and_photograph_aligned(show):
    image = toys.image("astronaut", size=128)
    where = torch.full((4, 4, 1, 2), 50.0)
    where[0, 0] = -12.0
    page = show(viz.explore_points(image, where, **TEXTS))
    figure = page.locator("figure")
    box = figure.locator("canvas").bounding_box()
    pad, side = 12 / (128 + 24), 128 / (128 + 24)
    for row, col in ((0, 0), (3, 0), (1, 3)):
        page.mouse.move(
            box["x"] + box["width"] * (pad + (col + 0.1) / 4 * side),
            box["y"] + box["height"] * (pad + (row + 0.1) / 4 * side),
        )
        assert text(figure).startswith(f"output row {row}, col {col} ")


# --- maps and signs ---


def test_pixels_keep_their_map_and_read_it(show):
    values = torch.zeros(6, 8)
    values[1, 2], values[4, 7] = 1.0, 0.5
    page = show(viz.explore_pixels(torch.zeros(48, 64), values, start=(0, 0), **TEXTS))
    figure = page.locator("figure")
    assert text(figure) == "pixel row 0, col 0 · 0 · the map runs from 0 to 1; 0 % of it lies below"
    assert hottest(figure) == (1, 2)
    hover(figure, 4, 7)
    assert text(figure) == "pixel row 4, col 7 · 0.5 · the map runs from 0 to 1; 95 % of it lies below"
    assert hottest(figure) == (1, 2)


def test_signed_weights_are_red_above_0_and_blue_below(show):
    A = torch.zeros(6, 8, 6, 8)
    A[:, :, 1, 2], A[:, :, 4, 6] = 1.0, -1.0
    page = show(viz.explore_attention(torch.full((48, 64), 0.5), A, mark=None, **TEXTS))
    image = pixels(page.locator("figure"))
    height, width = image.shape[0] // 6, image.shape[1] // 8

    def colour(row: int, col: int) -> np.ndarray:
        return image[row * height + height // 2, col * width + width // 2]

    assert colour(1, 2)[0] > colour(1, 2)[2] + 60 and colour(4, 6)[2] > colour(4, 6)[0] + 60
    assert np.ptp(colour(0, 0)) < 10, "0 has no colour"


# --- on a page with others, in dark, without scripts ---


def test_explorers_on_one_page_are_independent(show):
    page = show(attention(), "<p>between</p>", attention(), frames(), points(), frames())
    figures = page.locator("figure").all()
    before = [(pixels(f), text(f)) for f in figures]
    hover(figures[1], 0, 0)
    figures[2].locator("input").first.focus()
    page.keyboard.press("ArrowRight")
    changed = [
        text(f) != said and not np.array_equal(pixels(f), image)
        for f, (image, said) in zip(figures, before, strict=True)
    ]
    assert changed == [False, True, True, False, False]


def test_text_of_the_page_without_scripts_is_what_the_script_says(show):
    for kind in KINDS:
        stored = re.search(r"<output[^>]*>([^<]*)<", explorer(kind).html).group(1).replace("&#183;", "·")
        assert text(show(explorer(kind)).locator("figure")) == stored


@pytest.mark.parametrize("kind", ["attention", "points"])
def test_script_paints_what_python_paints(show, kind):
    """Two painters, one picture: the canvas at its start and the picture stored for viewers without scripts."""
    page = show(explorer(kind))
    stored = Image.open(io.BytesIO(explorer(kind).png)).convert("RGB")
    canvas = Image.fromarray(pixels(page.locator("figure")).astype(np.uint8))
    stored = stored.crop((0, 0, stored.width, round(stored.width * canvas.height / canvas.width)))  # its scale is below
    canvas = canvas.resize(stored.size, Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(canvas, dtype=float) - np.asarray(stored, dtype=float))
    assert difference.mean() < 7 and np.quantile(difference, 0.98) < 40


@pytest.mark.parametrize("kind", KINDS)
def test_without_scripts_the_picture_stays(show, kind):
    stripped = re.sub(r"(?s)<(script|style).*?</\1>", "", explorer(kind).html)  # what GitHub keeps
    for page in (show(explorer(kind), started=False, java_script_enabled=False), show(stripped, started=False)):
        image = page.locator("figure img")
        assert image.is_visible() and image.evaluate("i => i.naturalWidth") >= 96 and image.get_attribute("alt")
        assert page.locator("figcaption").inner_text() == TEXTS["title"]
        assert page.locator("canvas, input, button, [role=application]").count() == 0
        assert "{" not in page.locator("body").inner_text()


def test_an_old_browser_keeps_the_picture(show):
    page = show("<script>delete window.DecompressionStream</script>", attention(), started=False)
    page.wait_for_function("document.querySelector('figure').dataset.state === 'picture'")
    assert page.locator("figure img").is_visible()


@pytest.mark.parametrize(
    ("ground", "ink"), [("rgb(255, 255, 255)", "rgb(31, 36, 48)"), ("rgb(18, 18, 18)", "rgb(206, 214, 221)")],
    ids=["light", "dark"],
)
def test_words_and_frame_follow_the_page_and_pictures_keep_a_light_ground(show, ground, ink):
    theme = f"html {{ background: {ground}; color: {ink} }} figure img {{ background: {ink}; padding: 8px }}"
    page = show(f"<style>{theme}</style>", attention(), frames())
    for figure in page.locator("figure").all():
        colours = figure.evaluate("""f => [...f.querySelectorAll("figcaption, .ax-said, label")]
            .map(part => getComputedStyle(part).color)""")
        assert set(colours) == {ink}
        assert figure.evaluate("f => getComputedStyle(f).backgroundColor") == "rgba(0, 0, 0, 0)"
    picture = page.locator("img").evaluate("i => [getComputedStyle(i).backgroundColor, getComputedStyle(i).padding]")
    assert picture == ["rgb(255, 255, 255)", "0px"]


@pytest.mark.parametrize(("kind", "stops"), [("attention", 2), ("points", 1), ("frames", 2)])
def test_tab_stops_at_the_picture_and_at_each_slider_and_shows_a_ring(show, kind, stops):
    page = show("<a href='#'>before</a>", explorer(kind), "<a href='#'>after</a>", has_touch=True)
    page.keyboard.press("Tab")
    names = []
    for _ in range(stops):
        page.keyboard.press("Tab")
        inside, name, outline, width = page.evaluate("""() => {
            const e = document.activeElement, style = getComputedStyle(e);
            const name = e.getAttribute("aria-label") ?? e.labels?.[0].textContent;
            return [!!e.closest("figure"), name, style.outlineStyle, parseFloat(style.outlineWidth)];
        }""")
        assert inside and outline == "solid" and width >= 2
        names.append(name)
    assert all(names) and len(set(names)) == stops
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "after"


def test_a_screen_reader_hears_name_picture_and_readout(show):
    page = show(attention())
    assert page.get_by_role("figure", name=TEXTS["title"]).count() == 1
    assert page.get_by_role("application", name=TEXTS["title"]).count() == 1
    assert page.get_by_role("img", name=TEXTS["alt"]).count() == 1
    assert page.get_by_role("status").inner_text() == attention_text(3, 4)
    assert page.get_by_role("slider", name="strength of the colours", exact=True).count() == 1
    page = show(frames())
    for name in ("height of the first bar", "gain"):
        assert page.get_by_role("slider", name=name, exact=True).count() == 1


SPOKEN = """<script>
    window.spoken = [];
    new MutationObserver(changes => {
        for (const {target} of changes)
            if (target.nodeName === "OUTPUT") spoken.push(target.textContent);
    }).observe(document, {subtree: true, childList: true, characterData: true});
</script>"""


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_spoken_before_the_reader_moves_and_then_once_where_the_reader_stays(show, kind):
    html = explorer(kind).html
    page = show("<div id=cell></div>", started=False)
    page.evaluate("html => { document.getElementById('cell').innerHTML = html; }", html)  # read, not yet started
    page.add_script_tag(content=SPOKEN.split("\n", 1)[1].rsplit("\n", 1)[0])
    page.add_script_tag(content=asset("explorer.js"))
    figure = page.locator("figure")
    page.wait_for_function("document.querySelector('figure').dataset.state === 'ready'")
    page.wait_for_timeout(700)
    assert page.evaluate("spoken") == []
    if kind == "frames":
        figure.locator("input").first.focus()
    else:
        explorers.focus(figure)
    for _ in range(2):
        page.keyboard.press("ArrowRight" if kind == "frames" else "ArrowUp")
    assert page.evaluate("spoken") == [] and page.get_by_role("status").inner_text() != text(figure)
    page.wait_for_function("spoken.length")
    assert page.evaluate("spoken") == [text(figure)]


def test_text_of_another_length_does_not_move_what_follows(show):
    page = show(points(), "<p id=after>after", viewport={"width": 480, "height": 900})
    figure = page.locator("figure")
    explorers.focus(figure)
    page.keyboard.press("End")
    after = page.locator("#after").bounding_box()["y"]  # the longest text: two of its points lie outside
    page.keyboard.press("Home")
    page.keyboard.press("Shift+ArrowUp")
    assert page.locator("#after").bounding_box()["y"] == after


def test_keys_faster_than_the_screen_do_not_move_what_follows(show):
    page = show(points(), "<p id=after>after", viewport={"width": 480, "height": 900})
    explorers.focus(page.locator("figure"))
    longest, settled = page.evaluate("""async () => {
        const place = () => document.getElementById("after").getBoundingClientRect().y;
        const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
        press("End");
        const longest = place();
        press("Home");  // before the browser has told anybody that the figure grew
        for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
        return [longest, place()];
    }""")
    assert settled == longest


def test_the_scale_below_a_panel_follows_the_query(show):
    weights = torch.full((2, 2, 2, 2), 0.25)
    weights[0, 0] = torch.tensor([[0.7, 0.1], [0.1, 0.1]])
    page = show(viz.explore_attention(torch.zeros(64, 64), {"A": weights, "A − ¼": weights - 0.25}, **TEXTS))
    keys = page.locator(".ax-key")
    assert [key.inner_text().split() for key in keys.all()] == [["0", "0.25"], ["0", "0"]]
    explorers.focus(page.locator("figure"))
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Shift+ArrowLeft")
    assert [key.inner_text().split() for key in keys.all()] == [["0", "0.7"], ["−0.45", "0.45"]]


def test_the_scale_below_a_panel_has_the_panel_s_colours(show):
    """On a photograph as grey as the ground of the scale."""
    ramp = torch.linspace(0, 1, 32).expand(4, 32)
    page = show(viz.explore_pixels(torch.full((64, 256), 128 / 255), ramp, start=(3, 0), **TEXTS))
    panel = pixels(page.locator("figure"))[40]
    bar = Image.open(io.BytesIO(page.locator(".ax-key i").screenshot())).convert("RGB")
    bar = np.asarray(bar, dtype=float)[bar.height // 2]
    for share in (0.15, 0.4, 0.65, 0.9):
        assert np.abs(panel[int(share * len(panel))] - bar[int(share * len(bar))]).max() < 14


def test_a_page_may_load_script_and_style_once(show, tmp_path):
    """As the book's site does it."""
    for name in ("explorer.js", "explorer.css"):
        (tmp_path / name).write_text(asset(name), encoding="ascii")
    bare = [e.html.replace(style_tag(), "").replace(script_tag(), "") for e in (attention(), frames())]
    assert all("<style" not in html and html.count("<script") == 1 for html in bare)
    check_keys(show("<script defer src=explorer.js></script><link rel=stylesheet href=explorer.css>", bare[0]))
    check_slider(show("<script defer src=explorer.js></script><link rel=stylesheet href=explorer.css>", bare[1]))


def test_scripts_inserted_later_also_start(show):
    """As notebooks do it: the output's HTML is set first, then each script is replaced by a fresh copy."""
    page = show("<div id='cell'></div>", started=False)
    page.evaluate(
        """html => {
        const cell = document.getElementById("cell");
        cell.innerHTML = html;
        for (const script of [...cell.querySelectorAll("script")]) {
            const copy = document.createElement("script");
            for (const {name, value} of script.attributes) copy.setAttribute(name, value);
            copy.textContent = script.textContent;
            script.replaceWith(copy);
        }
    }""",
        attention().html,
    )
    page.wait_for_function("document.querySelector('figure').dataset.state === 'ready'")
    check_keys(page)


# --- the checks themselves: a broken explorer does not pass them ---


@pytest.mark.parametrize(
    ("check", "make", "old", "new"),
    [
        (check_mouse, attention, '"pointermove"', '"no-such-event"'),
        (check_mouse, attention, "box.left) / box.width, width", "box.left) / 2 / box.width, width"),
        (check_keys, attention, '"keydown"', '"no-such-event"'),
        (check_keys, attention, "event.shiftKey ? 4 : 1", "1"),
        (check_keys, attention, "ctx.drawImage(panel.small, 0, 0, width, height);", ""),
        (check_slider, frames, 'input.addEventListener("input"', 'input.addEventListener("no-such-event"'),
        (check_slider, frames, "src: data.frames[i], ", ""),
    ],
)
def test_a_broken_explorer_is_noticed(show, check, make, old, new):
    html = make().html
    assert html.count(old) == 1
    page = show(html.replace(old, new))
    with pytest.raises(AssertionError):
        check(page)
