"""Bars, matrices, curves, comparisons and power laws: what they show is what they were given."""

import io

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from attn_lib import viz
from attn_lib.viz import style
from tests.unit.library.viz.drawn import SAY, near, pixels


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5, 4.0])
def test_the_fitted_line_of_a_power_law_runs_through_its_points(exponent, monkeypatch):
    x = np.array([3.0, 8.0, 20.0, 64.0])
    drawn, plot = [], matplotlib.axes.Axes.plot
    monkeypatch.setattr(matplotlib.axes.Axes, "plot", lambda ax, *args, **k: drawn.append(args) or plot(ax, *args, **k))
    viz.scaling(x, {"a": 7.0 * x**exponent}, xlabel="n", ylabel="t", **SAY)
    ends, fitted = drawn[0]
    assert np.allclose(ends, [3, 64]) and np.allclose(fitted, 7.0 * ends**exponent)


def test_entries_are_highlighted_by_integers_of_any_type():
    values = torch.tensor([0.1, 0.9, 0.4])
    one = viz.bars(values, highlight=1, **SAY).png
    assert all(viz.bars(values, highlight=i, **SAY).png == one for i in (values.argmax(), np.int64(1), [1], {1}))
    two = viz.bars(values, highlight=(0, 2), **SAY).png
    assert all(viz.bars(values, highlight=i, **SAY).png == two for i in (torch.tensor([0, 2]), np.array([2, 0])))
    assert one != two != viz.bars(values, highlight=[], **SAY).png


def test_a_training_that_diverged_does_not_take_the_figure_with_it(texts):
    viz.compare({"a": [0.5, float("nan")], "b": [float("nan")], "c": [0.25]}, xlabel="score", **SAY)
    assert {"nan", "0.250"} <= set(texts)


def test_bars_are_as_high_as_their_values():
    picture = pixels(viz.bars([1.0, 0.5, 0.25], **SAY))
    filled = near(picture, style.SERIES_COLOURS[0])
    columns = np.nonzero(filled.any(0))[0]
    groups = np.split(columns, np.nonzero(np.diff(columns) > 1)[0] + 1)
    heights = [filled[:, g[len(g) // 2]].sum() for g in groups]
    assert len(heights) == 3
    assert np.allclose(np.array(heights) / heights[0], [1, 0.5, 0.25], atol=0.02)


def test_bars_in_panels_share_one_scale():
    nested = {"k = 1": {"gate": [1.0, 0.2]}, "k = 3": {"gate": [0.5, 0.1]}}
    picture = pixels(viz.bars(nested, **SAY))
    filled = near(picture, style.SERIES_COLOURS[0])
    rows = np.nonzero(filled.any(1))[0]
    panels = np.split(rows, np.nonzero(np.diff(rows) > 3)[0] + 1)
    assert len(panels) == 2
    assert len(panels[1]) / len(panels[0]) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ValueError, match=r"values\['gate'\] has 3 entries, the first series has 2"):
        viz.bars({"a": {"gate": [1.0, 2.0]}, "b": {"gate": [1.0, 2.0, 3.0]}}, **SAY)


def test_compare_draws_its_reference_where_it_lies():
    scores = {"model": [0.2, 0.2], "other": [1.0, 1.0]}
    picture = pixels(viz.compare(scores, **SAY, xlabel="accuracy", reference={"chance": 0.6}))
    first, last = (near(picture, style.SERIES_COLOURS[k]) for k in (0, 1))  # the bars of the two means
    top, bottom = (np.nonzero(bar.any(1))[0].mean().astype(int) for bar in (first, last))
    grey = (picture[top:bottom] < 200).all(-1).mean(0) > 0.3  # dashes: about half of the rows
    left, right = (np.nonzero(bar.any(0))[0].mean() for bar in (first, last))
    between = [x for x in np.nonzero(grey)[0] if left + 8 < x < right - 8]
    assert between == [pytest.approx((left + right) / 2, abs=3)]


def test_the_scaling_legend_sets_fit_beside_theory(texts):
    viz.scaling([2, 4, 8], {"a": [4, 16, 64], "b": [1, 1, 1]}, xlabel="n", ylabel="t", theory={"a": 2}, **SAY)
    assert {"a: fit 2.00, theory 2", "b: fit 0.00"} <= set(texts)


@pytest.mark.parametrize("shape", [(11, 15), (15, 11), (4, 30), (30, 4), (8, 8)], ids=str)
@pytest.mark.parametrize("title", ["Short?", "Which of all the cells does a network get right, seen from the frame?"])
@pytest.mark.parametrize("panels", [1, 3])
def test_no_label_of_a_matrix_is_cut_off(shape, title, panels):
    maps = torch.rand(shape) if panels == 1 else {f"map {i}": torch.rand(shape) for i in range(panels)}
    figure = viz.matrix(maps, title=title, alt="a", xlabel="key, gjpqy", ylabel="query")
    picture = np.asarray(Image.open(io.BytesIO(figure.png)).convert("L"))
    rim = np.concatenate([picture[:2].ravel(), picture[-2:].ravel(), picture[:, :2].ravel(), picture[:, -2:].ravel()])
    assert rim.min() > 250, "something is drawn up to the rim"


@pytest.mark.parametrize(("short", "long"), [((3, 3), (3, 4)), ((6, 6), (6, 11)), ((6, 6), (24, 24))])
def test_matrices_side_by_side_are_equally_tall_and_fill_their_sheet(short, long):
    figure = viz.matrix({"short": torch.zeros(short), "long": torch.ones(long)}, **SAY)
    picture = pixels(figure)
    left, right = (int(near(picture, colour).any(1).sum()) for colour in ("#440154", "#fde725"))  # 0 and 1
    assert left == pytest.approx(right, abs=4) and left > len(picture) / 2


def test_a_single_column_has_a_single_tick(monkeypatch):
    axes, imshow = [], matplotlib.axes.Axes.imshow
    monkeypatch.setattr(matplotlib.axes.Axes, "imshow", lambda ax, *a, **k: axes.append(ax) or imshow(ax, *a, **k))
    viz.matrix(torch.tensor([[0.0], [5.0], [10.0]]), **SAY)
    assert [x for x in axes[0].get_xticks() if abs(x) <= 0.5] == [0]


def test_a_lone_curve_is_named_once(texts):
    viz.curves({"loss": [3, 2, 1]}, xlabel="step", ylabel="loss", **SAY)
    assert texts.count("loss") == 1
    viz.curves({"SE": [3, 2, 1]}, xlabel="step", ylabel="loss", **SAY)
    assert {"SE", "loss"} <= set(texts)
