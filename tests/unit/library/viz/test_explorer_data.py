"""The numbers and readouts of explorers."""

import base64

import numpy as np
import pytest
import torch

from attn_lib import toys, viz
from tests.unit.library.viz.explored import (
    TEXTS,
    Page,
    bars,
    compared,
    photo,
    picture_of,
    scale_of,
    softmax_rows,
    texts_of,
    unpack,
)

# --- attention and maps ---


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
        ([[2e-7, 1e-7]], "largest weight 2 × 10⁻⁷ at row 0, col 0 · sum 3 × 10⁻⁷ · effective cells 1.9 of 2"),
        ([[3.0, -1.0], [0.0, -2.5]],
         "largest 3 at row 0, col 0 · smallest −2.5 at row 1, col 1"),
        ([[1.0, -1e-8]], "largest weight 1 at row 0, col 0 · effective cells 1 of 2"),
        ([[3e4, -1e-6], [0.0, -2e4]], "largest 30,000 at row 0, col 0 · smallest −20,000 at row 1, col 1"),
        ([[1 / 100] * 100], "largest weight 0.01 at row 0, col 0 · effective cells 100 of 100"),
    ],
)
def test_readout(row, says):
    assert readout(row) == f"query row 0, col 0 · {says}"


def test_a_chapter_may_say_the_finding_itself():
    a = softmax_rows(2, 3, 4, 4)
    page = Page(viz.explore_attention(photo(), a, say=lambda r, c: f"Row {r} sees {c}.", start=(1, 2), **TEXTS).html)
    assert texts_of(page) == [f"Row {r} sees {c}." for r in range(2) for c in range(3)] and "Row 1 sees 2." in page.text
    for nothing in ("", None):
        with pytest.raises(ValueError, match="say must return a sentence for every query"):
            viz.explore_attention(photo(), a, say=lambda r, c, text=nothing: text, **TEXTS)


def test_signed_rows_have_0_in_the_middle_of_their_colours():
    a = torch.tensor([[[[1.0, -1.0], [0.0, -0.5]], [[-2.0, -4.0], [0.0, 1.0]]]])
    page = Page(viz.explore_attention(photo(), a, **TEXTS).html)
    panel = page.data["panels"][0]
    assert panel["signed"] and scale_of(page) == [("−1", "1"), ("−4", "4")]
    assert unpack(panel["heat"], np.uint8).tolist() == [252, 4, 128, 64, 64, 4, 128, 160]
    unsigned = Page(viz.explore_attention(photo(), a.abs(), **TEXTS).html)
    assert not unsigned.data["panels"][0]["signed"] and scale_of(unsigned) == [("0", "1"), ("0", "4")]


def test_the_scale_says_which_number_the_last_colour_is():
    a = softmax_rows(2, 3, 4, 4)
    page = Page(viz.explore_attention(photo(), {"A": a, "half": a / 2}, **TEXTS).html)
    largest = a.reshape(6, 16).amax(1)
    for panel, factor in enumerate((1, 0.5)):
        ends = scale_of(page, panel)
        assert [low for low, _ in ends] == ["0"] * 6
        assert [float(high) for _, high in ends] == pytest.approx((factor * largest).tolist(), rel=0.05)
    levels = [unpack(panel["heat"], np.uint8) for panel in page.data["panels"]]
    assert np.array_equal(*levels), "each panel on a scale of its own"


def test_on_the_same_scale_a_colour_is_the_same_number_in_all_panels():
    a = softmax_rows(2, 3, 4, 4)
    page = Page(viz.explore_attention(photo(), {"A": a, "half": a / 2}, same_scale=True, **TEXTS).html)
    assert scale_of(page, 0) == scale_of(page, 1)
    whole, half = (unpack(panel["heat"], np.uint8).astype(int) for panel in page.data["panels"])
    assert np.abs(whole - 2 * half).max() <= 6 and (whole.reshape(6, 16).max(1) == 255).all()
    signed = Page(viz.explore_attention(photo(), {"A": a, "logits": a - 0.5}, same_scale=True, **TEXTS).html)
    assert all(panel["signed"] for panel in signed.data["panels"]) and scale_of(signed, 0) == scale_of(signed, 1)
    assert texts_of(signed)[0].split("\n")[1].startswith("A: largest weight "), "what is said stays the panel's own"

    gates = {"row": torch.tensor([[0.25, 0.5]]), "column": torch.tensor([[0.5, 1.0]])}
    page = Page(viz.explore_pixels(photo(), gates, same_scale=True, **TEXTS).html)
    assert scale_of(page, 0) == scale_of(page, 1) == [("0.25", "1")]
    row, column = (unpack(panel["heat"], np.uint8) for panel in page.data["panels"])
    assert abs(int(row[1]) - int(column[0])) <= 2 and row[0] == 0 and column[1] == 255


def test_what_rounding_leaves_is_0():
    gate = torch.tensor([[1.0, -3e-8], [0.5, 2e-8]])
    page = Page(viz.explore_pixels(photo(), gate, start=(1, 1), **TEXTS).html)
    assert not page.data["panels"][0]["signed"] and scale_of(page) == [("0", "1")]
    assert "pixel row 1, col 1 · 0 · the map runs from 0 to 1; 25 % of it lies below" in page.text


def test_pixels_read_every_map_and_use_its_whole_range():
    gate = torch.tensor([[0.60, 0.62], [0.66, 0.70]])
    page = Page(viz.explore_pixels(photo(), {"gate": gate, "x": gate - 0.65}, start=(0, 0), **TEXTS).html)
    first, second = page.data["panels"]
    assert unpack(first["heat"], np.uint8)[[0, 3]].tolist() == [0, 255] and not first["signed"]
    assert scale_of(page, 0) == [("0.6", "0.7")] and scale_of(page, 1) == [("−0.05", "0.05")]
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
    assert scale_of(page) == [("largest disc: weight 0.5 · dark dots: unmoved",)]
    assert "ends" not in Page(viz.explore_points(photo(), moved, **TEXTS).html).data["panels"][0]


def test_a_picture_of_few_pixels_is_enlarged_but_distances_stay_in_its_own():
    regular = torch.tensor([[[[5.0, 10.0]]]])
    page = Page(viz.explore_points(photo(48), regular + 3, reference=regular, **TEXTS).html)
    assert page.data["size"] == [240, 240]
    assert texts_of(page) == ["output row 0, col 0 · 1 points · moved 4.2 pixels on average, 4.2 at most"]
    assert (unpack(page.data["panels"][0]["points"], "<i2") == np.array([8.5, 13.5]) * 5 * 64).all()


# --- frames ---


def test_frames_are_drawn_once_for_every_combination():
    calls = []

    def draw(height, gain):
        calls.append((height, gain))
        return bars(height * gain), f"The first bar is {height * gain:g} tall."

    page = Page(viz.explore_frames(draw, height=[1, 3, 4], gain=("gain g, a factor", [0.5, 1.0]), **TEXTS).html)
    assert calls == [(1, 0.5), (1, 1.0), (3, 0.5), (3, 1.0), (4, 0.5), (4, 1.0)]
    assert page.data["texts"] == [f"The first bar is {h * g:g} tall." for h, g in calls]
    assert page.data["alts"][3] == "Two bars, the first 3.0 tall."
    assert page.data["sliders"] == [
        {"name": "height", "values": ["1", "3", "4"]},
        {"name": "gain g, a factor", "values": ["0.5", "1"]},
    ]
    assert page.data["frames"][0] == "" and page.all("img")[0]["src"].endswith(base64.b64encode(bars(0.5).png).decode())
    assert page.data["frames"][5].endswith(base64.b64encode(bars(4.0).png).decode())


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ([0.1 + 0.2, 1e-9, 2000.0, -0.5], ["0.3", "10⁻⁹", "2,000", "−0.5"]),
        ([1, 20_000, -3], ["1", "20,000", "−3"]),
        ([False, "3×3", None], ["False", "3×3", "None"]),
        (("left", "right"), ["left", "right"]),
        (np.array([1.5, 2.5]), ["1.5", "2.5"]),
    ],
)
def test_values_of_a_slider_can_be_read(values, read):
    heights = iter(range(1, 9))
    page = Page(viz.explore_frames(lambda pool_size: compared(next(heights)), pool_size=values, **TEXTS).html)
    assert page.data["sliders"] == [{"name": "pool size", "values": read}]
