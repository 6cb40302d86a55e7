"""Explorers with a kernel: ipywidgets work without a front end, so their values can be driven from here."""

import pytest

from attn_lib import viz
from attn_lib.viz import explore
from tests.unit.library.viz.explored import TEXTS, Page, all_kinds, compared, photo, softmax_rows, texts_of

WIDGET = "application/vnd.jupyter.widget-view+json"


def test_a_kernel_gets_widgets_beside_the_stored_formats(monkeypatch):
    pytest.importorskip("ipywidgets")
    explorer = all_kinds()["attention"]
    stored, _ = explorer._repr_mimebundle_()
    monkeypatch.setattr(explore.page, "kernel_with_widgets", lambda: True)
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
    assert [s.description for s in (row, col, overlay)] == ["query row", "query col", "strength of the colours"]
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
        return compared(height)

    explorer = viz.explore_frames(draw, height=("height of the first bar", [0.1, 1.1, 2.1]), **TEXTS)
    calls.clear()
    slider, view = explorer.widget().children
    assert slider.description == "height of the first bar"
    assert calls == [] and "The first bar is 0.1 times as tall" in view.value  # the first frame is there already
    slider.value = 0.1 + 0.2
    assert calls == [0.3] and "The first bar is 0.3 times as tall" in view.value and "first 0.3 tall" in view.value
    slider.value = 0.1
    assert calls == [0.3, 0.1] and "The first bar is 0.1 times as tall" in view.value


def test_live_frames_keep_uneven_settings_and_show_errors():
    pytest.importorskip("ipywidgets")

    def draw(r):
        if r == 4 and broken:
            raise ValueError("r=4 is <broken>")
        return compared(r)

    broken = False
    explorer = viz.explore_frames(draw, r=("reduction ratio r", [1, 2, 4]), **TEXTS)
    broken = True
    slider, view = explorer.widget().children
    assert [value for _, value in slider.options] == [1, 2, 4]
    slider.value = 4
    assert "ValueError: r=4 is &lt;broken&gt;" in view.value and "<img" not in view.value
    slider.value = 2
    assert "The first bar is 2 times as tall" in view.value and "<img" in view.value
