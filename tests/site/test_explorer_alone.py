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
from tests.site import browser as browsers

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
    def draw(height: int, gain: float) -> viz.Figure:
        return viz.bars([height * gain, 4.0], title="How tall?", alt=f"Two bars, the first {height * gain:g} tall.")

    return viz.explore_frames(draw, height=[1, 2, 3], gain=[0.5, 1.0], **TEXTS)


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
    return figure.locator("output").inner_text()


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
    figure.focus()
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
    assert text(figure) == "height = 1, gain = 0.5"
    for slider, key, says, alt in (
        (0, "ArrowRight", "height = 2, gain = 0.5", "1"),
        (1, "End", "height = 2, gain = 1", "2"),
        (0, "End", "height = 3, gain = 1", "3"),
        (0, "Home", "height = 1, gain = 1", "1"),
    ):
        before = page.locator("img").get_attribute("src")
        sliders.nth(slider).focus()
        page.keyboard.press(key)
        assert text(figure) == says
        assert page.locator("img").get_attribute("src") != before
        assert page.locator("img").get_attribute("alt") == f"Two bars, the first {alt} tall."
        assert says.split(", ")[slider].endswith(f"= {sliders.nth(slider).get_attribute('aria-valuetext')}")


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


@pytest.mark.parametrize("width", [320, 390])
def test_a_finger_moves_the_query_on_a_phone(show, width):
    page = show(
        attention(), points(), frames(), viewport={"width": width, "height": 700}, has_touch=True, is_mobile=True
    )
    figure = page.locator("figure").first
    box = figure.locator("canvas").bounding_box()
    for row, col in ((5, 1), (0, 6)):
        page.touchscreen.tap(box["x"] + (col + 0.5) / 8 * box["width"], box["y"] + (row + 0.5) / 6 * box["height"])
        assert text(figure) == attention_text(row, col)
    assert browsers.overflow(page) == []
    assert (
        figure.locator("canvas").evaluate("c => getComputedStyle(c).touchAction") == "pan-y"
    )  # the page still scrolls


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
    figure.focus()
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
    canvas = Image.fromarray(pixels(page.locator("figure")).astype(np.uint8)).resize(
        stored.size, Image.Resampling.LANCZOS
    )
    difference = np.abs(np.asarray(canvas, dtype=float) - np.asarray(stored, dtype=float))
    assert difference.mean() < 7 and np.quantile(difference, 0.98) < 40


@pytest.mark.parametrize("kind", KINDS)
def test_without_scripts_the_picture_stays(show, kind):
    stripped = re.sub(r"(?s)<(script|style).*?</\1>", "", explorer(kind).html)  # what GitHub keeps
    for page in (show(explorer(kind), started=False, java_script_enabled=False), show(stripped, started=False)):
        image = page.locator("figure img")
        assert image.is_visible() and image.evaluate("i => i.naturalWidth") >= 96 and image.get_attribute("alt")
        assert page.locator("figcaption").inner_text() == TEXTS["title"]
        assert page.locator("canvas, input, [role=application]").count() == 0
        assert "{" not in page.locator("body").inner_text()


def test_an_old_browser_keeps_the_picture(show):
    page = show("<script>delete window.DecompressionStream</script>", attention(), started=False)
    page.wait_for_function("document.querySelector('figure').dataset.state === 'picture'")
    assert page.locator("figure img").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_card_is_light_in_both_schemes(show, scheme):
    dark = "<style>html { color-scheme: dark; background: #111; color: #eee } figcaption { color: #eee }</style>"
    page = show(dark, attention(), color_scheme=scheme)
    figure = page.locator("figure")
    colours = figure.evaluate("""f => [f, ...f.querySelectorAll("figcaption, output, label")]
        .map(part => getComputedStyle(part).color)""")
    assert set(colours) == {"rgb(31, 36, 48)"}
    assert figure.evaluate("f => getComputedStyle(f).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.parametrize("kind", KINDS)
def test_tab_reaches_it_and_shows_a_ring(show, kind):
    page = show("<a href='#'>before</a>", explorer(kind))
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    focused = page.evaluate("""() => {
        const e = document.activeElement, style = getComputedStyle(e);
        const name = e.getAttribute("aria-label") ?? e.labels?.[0].textContent;
        return [!!e.closest("figure"), name, style.outlineStyle, parseFloat(style.outlineWidth)];
    }""")
    assert focused[0] and focused[1] and focused[2] == "solid" and focused[3] >= 2


def test_a_screen_reader_hears_name_picture_and_readout(show):
    page = show(attention())
    assert page.get_by_role("application", name=TEXTS["title"]).count() == 1
    assert page.get_by_role("img", name=TEXTS["alt"]).count() == 1
    assert page.get_by_role("status").get_attribute("aria-live") == "polite"
    assert page.get_by_role("slider", name="overlay").count() == 1


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
        (check_mouse, attention, "box.left) / box.width", "box.left) / 2 / box.width"),
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
