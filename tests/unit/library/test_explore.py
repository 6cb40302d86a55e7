"""Explorers without a browser: what they store, what they say, what they refuse. tests/site drives them."""

import base64
import functools
import io
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attn_lib import toys, viz
from attn_lib.viz import explore_page
from attn_lib.viz.explore import MAX_FRAMES

TEXTS = {"title": "Where does a query look?", "alt": "A photograph under a heat map."}
WIDGET = "application/vnd.jupyter.widget-view+json"


class Page(HTMLParser):
    """Tags with their attributes, text, and the explorer's data."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.data = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, text):
        if self.lasttag == "script" and self.data is None and self.tags[-1] == ("script", {"type": "application/json"}):
            self.data = json.loads(text)
        elif self.tags[-1][0] not in ("script", "style"):
            self.text.append(text)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def unpack(text: str, dtype) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def texts_of(page: Page) -> list[str]:
    return json.loads(unpack(page.data["texts"], np.uint8).tobytes())


def picture_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


@functools.cache
def photo(size: int = 64) -> torch.Tensor:
    return toys.image("astronaut", size=size)


def softmax_rows(*grid: int, seed: int = 0, sharpness: float = 3.0) -> torch.Tensor:
    logits = torch.randn(*grid[:2], grid[2] * grid[3], generator=torch.Generator().manual_seed(seed))
    return (sharpness * logits).softmax(-1).reshape(grid)


def bars(height: float) -> viz.Figure:
    return viz.bars([height, 1.0], title="How tall?", alt=f"Two bars, the first {height} tall.")


# --- what is stored ---


KINDS = ["attention", "pixels", "points", "frames"]


def all_kinds() -> dict[str, viz.Explorer]:
    ticks = torch.arange(4) * 16.0
    points = torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), -1)[:, :, None]
    return {
        "attention": viz.explore_attention(photo(), softmax_rows(4, 4, 4, 4), **TEXTS),
        "pixels": viz.explore_pixels(photo(), {"x": ticks[:, None] + ticks, "gate": ticks.repeat(4, 1)}, **TEXTS),
        "points": viz.explore_points(photo(), points, **TEXTS),
        "frames": viz.explore_frames(bars, height=[0.5, 2.0], **TEXTS),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_bundle_holds_html_picture_and_text(kind):
    data, metadata = all_kinds()[kind]._repr_mimebundle_()
    assert set(data) == {"text/html", "image/png", "text/plain"}
    assert data["text/plain"] == "Explorer: Where does a query look?"
    assert metadata == {"image/png": {"alt": TEXTS["alt"]}}
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).format == "PNG"

    page = Page(data["text/html"])
    (figure,), (image,), (output,) = page.all("figure"), page.all("img"), page.all("output")
    assert figure["class"] == "attn-explorer" and figure["data-kind"] == kind and figure["aria-label"] == TEXTS["title"]
    assert image["alt"] == (TEXTS["alt"] if kind != "frames" else "Two bars, the first 0.5 tall.")
    assert picture_of(image["src"]).width > 32
    assert output == {"aria-live": "polite"}


@pytest.mark.parametrize("kind", KINDS)
def test_html_is_self_contained_and_the_same_on_every_run(kind):
    one, two = all_kinds()[kind], all_kinds()[kind]
    assert (one.html, one.png) == (two.html, two.png)
    assert one.html.isascii()
    page = Page(one.html)
    addresses = [a[key] for _, a in page.tags for key in ("src", "href", "srcset", "data", "action") if key in a]
    assert addresses and all(a.startswith("data:image/") for a in addresses)
    assert not re.search(
        r"https?:|//\w+\.\w|\bimport\b|fetch\(|XMLHttpRequest|eval\(", one.html.replace("data:image", "")
    )
    assert not [a for _, a in page.tags if "id" in a or "name" in a], "several explorers must be able to share a page"


def test_script_and_style_stay_small():
    folder = Path(explore_page.__file__).parent
    assert sum((folder / name).stat().st_size for name in ("explore.js", "explore.css")) < 10_000


def test_a_16_by_16_explorer_stays_small():
    a = softmax_rows(16, 16, 16, 16, sharpness=1.0)  # noise: hardly any redundancy to compress
    assert viz.explore_attention(photo(256), a, **TEXTS).size < 150_000


def test_texts_are_escaped():
    nasty = '</script><script>alert("1")</script><!-- & \' ∞'
    explorer = viz.explore_attention(
        photo(), {nasty: softmax_rows(2, 2, 2, 2), "b": softmax_rows(2, 2, 2, 2)}, title=nasty, alt=nasty
    )
    page = Page(explorer.html)
    assert len(page.all("script")) == 2  # data and code
    assert page.all("figure")[0]["aria-label"] == page.all("img")[0]["alt"] == nasty
    assert nasty in page.text and page.data["panels"][0]["label"] == nasty


def test_save_writes_a_page(tmp_path):
    path = tmp_path / "explorer.html"
    explorer = all_kinds()["attention"]
    explorer.save(path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>") and explorer.html in path.read_text(
        encoding="utf-8"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["explorer.html"]


# --- attention: numbers ---


def test_rows_survive_quantisation():
    a = softmax_rows(3, 5, 4, 6)
    page = Page(viz.explore_attention(photo(), a, **TEXTS).html)
    panel = page.data["panels"][0]
    assert page.data["grid"] == [3, 5] and panel["shape"] == [4, 6]
    levels = unpack(panel["heat"], np.uint8).reshape(15, 24)
    rows = a.reshape(15, 24).double().numpy()
    top = rows.max(1, keepdims=True)
    assert np.abs(levels / 255 - rows / top).max() < 0.02
    assert (levels == 255).sum(1).tolist() == [1] * 15
    assert levels.argmax(1).tolist() == rows.argmax(1).tolist()


def test_a_faint_row_is_as_visible_as_a_strong_one():
    a = softmax_rows(1, 2, 3, 3)
    a[0, 1] = a[0, 0] * 1e-6
    levels = unpack(Page(viz.explore_attention(photo(), a, **TEXTS).html).data["panels"][0]["heat"], np.uint8)
    assert levels[:9].tolist() == levels[9:].tolist()


def readout(row: list[list[float]]) -> str:
    page = Page(viz.explore_attention(photo(), torch.tensor([[row]]), **TEXTS).html)
    (text,) = texts_of(page)
    assert text in page.text  # the picture without scripts says the same
    return text


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([[0.25, 0.25], [0.25, 0.25]], "largest weight 0.25 at row 0, col 0 · effective cells 4 of 4"),
        ([[0.0, 0.0], [0.0, 1.0]], "largest weight 1 at row 1, col 1 · effective cells 1 of 4"),
        ([[0.0, 2.0], [2.0, 0.0]], "largest weight 2 at row 0, col 1 · sum 4 · effective cells 2 of 4"),
        ([[0.0, 0.0], [0.0, 0.0]], "all weights are 0"),
        ([[0.9, 0.1]], "largest weight 0.9 at row 0, col 0 · effective cells 1.4 of 2"),
        ([[2e-7, 1e-7]], "largest weight 2e-7 at row 0, col 0 · sum 3e-7 · effective cells 1.9 of 2"),
        ([[3.0, -1.0], [0.0, -2.5]],
         "largest 3 at row 0, col 0 · smallest −2.5 at row 1, col 1"),
        ([[1 / 100] * 100], "largest weight 0.01 at row 0, col 0 · effective cells 100 of 100"),
    ],
)
def test_readout(row, says):
    assert readout(row) == f"query row 0, col 0 · {says}"


def test_signed_rows_have_0_in_the_middle_of_their_colours():
    a = torch.tensor([[[[1.0, -1.0], [0.0, -0.5]], [[-2.0, -4.0], [0.0, 1.0]]]])
    page = Page(viz.explore_attention(photo(), a, **TEXTS).html)
    panel = page.data["panels"][0]
    assert panel["signed"] and "Red is above 0" in page.data["hint"]
    assert unpack(panel["heat"], np.uint8).tolist() == [252, 4, 128, 64, 64, 4, 128, 160]
    unsigned = Page(viz.explore_attention(photo(), a.abs(), **TEXTS).html)
    assert not unsigned.data["panels"][0]["signed"] and "Pale yellow is the row's" in unsigned.data["hint"]


def test_pixels_read_every_map_and_use_its_whole_range():
    gate = torch.tensor([[0.60, 0.62], [0.66, 0.70]])
    page = Page(viz.explore_pixels(photo(), {"gate": gate, "x": gate - 0.65}, start=(0, 0), **TEXTS).html)
    first, second = page.data["panels"]
    assert unpack(first["heat"], np.uint8)[[0, 3]].tolist() == [0, 255] and not first["signed"]
    assert second["signed"] and all(p["still"] and len(unpack(p["heat"], np.uint8)) == 4 for p in (first, second))
    assert texts_of(page)[2].split("\n") == [
        "pixel row 1, col 0",
        "gate: 0.66 · the map runs from 0.6 to 0.7; 50 % of it lies below",
        "x: 0.01 · the map runs from −0.05 to 0.05; 50 % of it lies below",
    ]
    flat = Page(viz.explore_pixels(photo(), torch.full((2, 2), 0.5), **TEXTS).html)
    assert "0.5 · the map runs from 0.5 to 0.5; 0 % of it lies below" in texts_of(flat)[0]


def test_every_query_has_its_readout():
    a = torch.zeros(2, 3, 2, 3)
    for r in range(2):
        for c in range(3):
            a[r, c, r, c] = 1  # each attends to itself
    page = Page(viz.explore_attention(photo(), a, **TEXTS).html)
    wanted = [
        f"query row {r}, col {c} · largest weight 1 at row {r}, col {c} · effective cells 1 of 6"
        for r in range(2)
        for c in range(3)
    ]
    assert texts_of(page) == wanted
    assert page.data["start"] == [1, 1]


def test_a_callable_is_the_tensor_it_returns():
    a = softmax_rows(3, 2, 4, 4)
    tensor = viz.explore_attention(photo(), a, **TEXTS)
    assert viz.explore_attention(photo(), lambda r, c: a[r, c], grid=(3, 2), **TEXTS).html == tensor.html
    assert viz.explore_attention(photo(), a.numpy(), **TEXTS).html == tensor.html


def test_panels_share_the_query_and_keep_their_own_keys():
    maps = {"fine": softmax_rows(2, 2, 8, 8), "coarse": softmax_rows(2, 2, 2, 2, seed=1)}
    page = Page(viz.explore_attention(photo(), maps, start=(0, 1), **TEXTS).html)
    assert [(p["label"], p["shape"]) for p in page.data["panels"]] == [("fine", [8, 8]), ("coarse", [2, 2])]
    head, fine, coarse = texts_of(page)[1].split("\n")
    assert head == "query row 0, col 1" and fine.startswith("fine: largest") and coarse.endswith("of 4")


def test_names_and_places_of_any_type():
    a = softmax_rows(3, 4, 2, 2)
    plain = viz.explore_attention(photo(), a, start=(1, 2), **TEXTS).html
    for start in (np.unravel_index(6, (3, 4)), torch.tensor([1, 2]), (1.0, 2.0)):
        assert viz.explore_attention(photo(), a, start=start, **TEXTS).html == plain
    p, w = torch.rand(3, 4, 5, 2), torch.rand(3, 4, 5)
    numbered = viz.explore_points(photo(), {1: p}, weights={1: w}, **TEXTS)
    assert numbered.html == viz.explore_points(photo(), {"1": p}, weights={"1": w}, **TEXTS).html


def test_a_label_map_stays_exact():
    labels = torch.randint(0, 5, (8, 8), generator=torch.Generator().manual_seed(0)).float() / 4
    page = Page(viz.explore_attention(photo(256), softmax_rows(2, 2, 2, 2), reference={"labels": labels}, **TEXTS).html)
    assert page.data["panels"][1] == {"label": "labels", "picture": 1}
    shown = np.asarray(picture_of(page.data["pictures"][1]).convert("L"))
    wanted = np.rint(255 * labels.numpy()).astype(np.uint8).repeat(32, 0).repeat(32, 1)
    assert np.array_equal(shown, wanted)


def test_photographs_of_any_layout_look_the_same():
    image, a = photo(), softmax_rows(2, 2, 2, 2)
    html = viz.explore_attention(image, a, **TEXTS).html
    assert viz.explore_attention(image.permute(1, 2, 0).numpy(), a, **TEXTS).html == html
    assert viz.explore_attention((image * 255).round().to(torch.uint8), a, **TEXTS).html == html
    wide = viz.explore_attention(toys.image("astronaut", size=512)[:, :300], a, **TEXTS)
    assert Page(wide.html).data["size"] == [256, 150]


# --- points ---


def test_points_are_kept_to_a_fraction_of_a_pixel():
    points = torch.tensor([[[[-0.5, -0.5], [63.5, 63.5], [10.0, 20.25]]]])  # the corners of the photograph, and inside
    page = Page(viz.explore_points(photo(), points, **TEXTS).html)
    assert unpack(page.data["panels"][0]["points"], "<i2").tolist() == [0, 0, 64 * 64, 64 * 64, 672, 1328]
    assert page.data["pad"] == 0


def test_points_follow_the_photograph_when_it_is_reduced():
    points = torch.tensor([[[[255.5, 127.5]]]])
    page = Page(viz.explore_points(toys.image("astronaut", size=512), points, **TEXTS).html)
    assert page.data["size"] == [256, 256]
    assert unpack(page.data["panels"][0]["points"], "<i2").tolist() == [128 * 64, 64 * 64]


def test_points_outside_get_a_margin_and_are_counted():
    points = torch.tensor([[[[-3.5, 10.0], [10.0, 10.0], [10.0, 900.0]]]])
    page = Page(viz.explore_points(photo(), points, **TEXTS).html)
    assert texts_of(page) == ["output row 0, col 0 · 3 points · 2 outside the image"]
    assert page.data["pad"] == 8  # an eighth, no more
    near = Page(viz.explore_points(photo(), points[:, :, :2], **TEXTS).html)
    assert near.data["pad"] == 3


def test_points_say_how_far_they_moved_and_what_they_weigh():
    regular = torch.tensor([[[[10.0, 10.0], [10.0, 20.0]]]])
    moved = regular + torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    page = Page(
        viz.explore_points(photo(), moved, reference=regular, weights=torch.tensor([[[0.25, 0.5]]]), **TEXTS).html
    )
    assert texts_of(page) == [
        "output row 0, col 0 · 2 points · weights 0.25 to 0.5 · moved 3.0 pixels on average, 5.0 at most"
    ]
    assert unpack(page.data["panels"][0]["weights"], np.uint8).tolist() == [128, 255]


# --- frames ---


def test_frames_are_drawn_once_for_every_combination():
    calls = []

    def draw(height, gain):
        calls.append((height, gain))
        return bars(height * gain)

    page = Page(viz.explore_frames(draw, height=[1, 2, 4], gain=[0.5, 1.0], **TEXTS).html)
    assert calls == [(1, 0.5), (1, 1.0), (2, 0.5), (2, 1.0), (4, 0.5), (4, 1.0)]
    assert page.data["texts"] == [f"height = {h}, gain = {g:.3g}" for h, g in calls]
    assert page.data["alts"][3] == "Two bars, the first 2.0 tall."
    assert page.data["sliders"] == [
        {"name": "height", "values": ["1", "2", "4"]},
        {"name": "gain", "values": ["0.5", "1"]},
    ]
    assert page.data["frames"][0] == "" and page.all("img")[0]["src"].endswith(base64.b64encode(bars(0.5).png).decode())
    assert page.data["frames"][5].endswith(base64.b64encode(bars(4.0).png).decode())


# --- bad input ---

A = softmax_rows(2, 2, 2, 2)
P = torch.zeros(2, 2, 3, 2)


def with_value(value: float) -> torch.Tensor:
    a = A.clone()
    a[0, 1, 1, 0] = value
    return a


def attention(a, image=None, **more):
    return viz.explore_attention(photo() if image is None else image, a, **(TEXTS | more))


def points(p, **more):
    return viz.explore_points(photo(), p, **(TEXTS | more))


def frames(draw=bars, **settings):
    return viz.explore_frames(draw, **TEXTS, **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention(A[0]), r"A has shape \(2, 2, 2\): it must be \(Hq, Wq, Hk, Wk\)"),
        (lambda: attention([A, A]), r"A has shape \(2, 2, 2, 2, 2\)"),
        (lambda: attention("A"), "A must be a tensor"),
        (lambda: attention({}), "empty"),
        (lambda: attention({"x": with_value(float("nan"))}), r"A\['x'\] has 1 values that are NaN"),
        (lambda: attention(with_value(float("inf"))), "NaN or infinite"),
        (lambda: viz.explore_pixels(photo(), A, **TEXTS), r"maps has shape \(2, 2, 2, 2\): it must be \(H, W\)"),
        (lambda: viz.explore_pixels(photo(), {"a": A[0, 0], "b": A[0, 0, :1]}, **TEXTS), "share one query grid"),
        (lambda: viz.explore_pixels(photo(), A[0, 0] / 0, **TEXTS), "maps has 4 values that are NaN or infinite"),
        (lambda: attention({"a": A, "b": softmax_rows(2, 3, 2, 2)}), "share one query grid"),
        (lambda: attention(A, start=1), "start=1 must be a "),
        (lambda: attention(A, start=(2, 0)), r"start=\(2, 0\) must be .* 2×2 query grid"),
        (lambda: attention(A, mark="star"), "mark='star' must be 'query' or None"),
        (lambda: attention(A, title=""), "title='' must be a non-empty string"),
        (lambda: attention(A, alt=" "), "alt=' ' must be a non-empty string"),
        (lambda: attention(lambda r, c: A[r, c]), r"grid=None must be \(Hq, Wq\)"),
        (lambda: attention(lambda r, c: A[0, 0, : r + 1], grid=(2, 2)), "different shapes"),
        (lambda: attention(A, photo()[None]), r"image has shape \(1, 3, 64, 64\)"),
        (lambda: attention(A, photo() * 255), r"colours must lie in \[0, 1\]"),
        (lambda: attention(A, torch.full((4, 4), float("nan"))), "image has 16 values that are NaN"),
        (lambda: attention(A, reference=photo()[:2]), "reference has shape"),
        (lambda: attention(softmax_rows(28, 28, 28, 28, sharpness=1.0)), r"takes \d+ kB; the budget is 250 kB"),
        (lambda: points(P[0]), r"points has shape \(2, 3, 2\): it must be \(Hq, Wq, K, 2\)"),
        (lambda: points(P[..., :1]), "last dimension must be 2"),
        (lambda: points(P, weights=P[:1, ..., 0]), r"weights has shape \(1, 2, 3\): it must be \(2, 2, 3\)"),
        (lambda: points(P, weights=P[..., 0] - 1), "weights has the negative value -1"),
        (lambda: points(P, reference=P[:, :, :1]), "reference has shape"),
        (lambda: points({"a": P, "b": P}, weights={"a": P[..., 0]}), "one is needed for the panel 'b'"),
        (lambda: frames(), "one or two settings"),
        (lambda: frames(a=[1, 2], b=[1, 2], c=[1, 2]), "not 3"),
        (lambda: frames(height=[1]), r"height=\[1\] must be a list of at least two values"),
        (lambda: frames(height="ab"), "height='ab' must be a list"),
        (lambda: frames(height=range(1, MAX_FRAMES + 2)), f"{MAX_FRAMES + 1} frames: .* at most {MAX_FRAMES}"),
        (
            lambda: frames(lambda height: None, height=[1, 2]),
            r"draw\(height=1\) must return a viz.Figure, not NoneType",
        ),
        (lambda: frames(None, height=[1, 2]), "draw=None must be a function"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- with a kernel: ipywidgets work without a front end, so their values can be driven from here ---


def test_a_kernel_gets_widgets_beside_the_stored_formats(monkeypatch):
    pytest.importorskip("ipywidgets")
    explorer = all_kinds()["attention"]
    stored, _ = explorer._repr_mimebundle_()
    monkeypatch.setattr(explore_page, "kernel_with_widgets", lambda: True)
    live, metadata = explorer._repr_mimebundle_()
    view = live.pop(WIDGET)
    assert live == stored and metadata["image/png"]["alt"] == TEXTS["alt"]
    assert view["version_major"] == 2 and view["model_id"]


def test_live_attention_recomputes():
    pytest.importorskip("ipywidgets")
    a = softmax_rows(4, 4, 4, 4)
    explorer = viz.explore_attention(photo(), a, **TEXTS)
    row, col, overlay, view = explorer.widget().children
    texts = texts_of(Page(explorer.html))
    assert (row.max, col.max) == (3, 3) and texts[10] in view.value and f'alt="{TEXTS["alt"]}"' in view.value
    before = view.value
    row.value = 0
    assert texts[2] in view.value and Page(view.value).all("img")[0]["src"] != Page(before).all("img")[0]["src"]
    before = view.value
    overlay.value = 0.0
    assert texts[2] in view.value and view.value != before


def test_live_points_recompute():
    pytest.importorskip("ipywidgets")
    explorer = all_kinds()["points"]
    row, col, view = explorer.widget().children
    row.value, col.value = 3, 1
    assert texts_of(Page(explorer.html))[13] in view.value


def test_live_frames_draw_settings_between_the_stored_ones():
    pytest.importorskip("ipywidgets")
    calls = []

    def draw(height):
        calls.append(height)
        return bars(height)

    explorer = viz.explore_frames(draw, height=[1.0, 2.0, 3.0], **TEXTS)
    calls.clear()
    slider, view = explorer.widget().children
    assert calls == [] and "height = 1" in view.value  # the first frame is there already
    slider.value = 2.5
    assert calls == [2.5] and "first 2.5 tall" in view.value


def test_live_frames_keep_uneven_settings_and_show_errors():
    pytest.importorskip("ipywidgets")

    def draw(r):
        if r == 4 and broken:
            raise ValueError("r=4 is <broken>")
        return bars(r)

    broken = False
    explorer = viz.explore_frames(draw, r=[1, 2, 4], **TEXTS)
    broken = True
    slider, view = explorer.widget().children
    assert [value for _, value in slider.options] == [1, 2, 4]
    slider.value = 4
    assert "ValueError: r=4 is &lt;broken&gt;" in view.value and "<img" not in view.value
    slider.value = 2
    assert "r = 2" in view.value and "<img" in view.value
