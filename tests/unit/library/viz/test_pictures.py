"""Photographs, feature maps, heat and points: to the pixel."""

import itertools

import numpy as np
import pytest
import torch

from attn_lib import viz
from attn_lib.viz import style
from attn_lib.viz.arrays import to_image
from attn_lib.viz.picture_grid import average, upsample
from tests.unit.library.viz.drawn import PHOTO, SAY, crop, near, pixels


def test_photographs_in_every_layout_are_the_same_picture():
    chw = to_image(PHOTO, "x")
    assert chw.shape == (20, 30, 3)
    for other in (PHOTO.permute(1, 2, 0), PHOTO.permute(1, 2, 0).numpy(), PHOTO.half(), (PHOTO * 255).round().byte()):
        assert np.abs(to_image(other, "x") - chw).max() < 3e-3
    assert to_image(torch.rand(1, 4, 5), "x").shape == (4, 5)
    grey = to_image(torch.tensor([[-3.0, 1.0]]), "x")
    assert grey.tolist() == [[0.0, 1.0]]


def test_colour_limits_of_signed_values_are_symmetric():
    assert style.colour_scale([np.array([-1.0, 3.0])]) == (-3.0, 3.0, style.DIVERGING)
    assert style.colour_scale([np.array([0.0, 2.0]), np.array([np.nan, 5.0])]) == (0.0, 5.0, style.SEQUENTIAL)
    assert style.colour_scale([np.array([1.0, 2.0])], signed=True) == (-2.0, 2.0, style.DIVERGING)
    assert style.colour_scale([np.zeros(3)])[:2] == (0.0, 1.0)


def test_zero_is_neutral_in_a_signed_map_however_lopsided():
    lopsided = torch.tensor([[[-0.1, 0.0, 9.0]]])
    picture = pixels(viz.channels(lopsided, **SAY))
    assert near(picture, "#f7f7f7", 3).sum() > 1000, "the cell that holds 0 has the middle colour"


@pytest.mark.parametrize(("small", "size"), [((3, 5), (20, 31)), ((7, 4), (7, 9)), ((1, 1), (5, 3)), ((4, 4), (4, 4))])
def test_a_hot_cell_covers_its_own_share_of_the_photograph(small, size):
    for i, j in itertools.product(*map(range, small)):
        heat = np.zeros(small)
        heat[i, j] = 1
        for (row, col), value in np.ndenumerate(upsample(heat, size)):
            inside = i <= (row + 0.5) * small[0] / size[0] < i + 1 and j <= (col + 0.5) * small[1] / size[1] < j + 1
            assert value == inside


def test_overlay_draws_the_hot_cell_where_it_is():
    photo = torch.zeros(3, 45, 75)
    heat = torch.zeros(3, 5)
    heat[1, 3] = 1
    shown = crop(pixels(viz.overlay(photo, heat, share=False, **SAY)))
    rows, cols = np.nonzero(near(shown, "#d5d8b1", 40))  # 0.85 of the last colour of the map over black
    high, wide = shown.shape[:2]
    assert np.allclose([rows.min() / high, (rows.max() + 1) / high], [1 / 3, 2 / 3], atol=0.01)
    assert np.allclose([cols.min() / wide, (cols.max() + 1) / wide], [3 / 5, 4 / 5], atol=0.01)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (1, 1)])
def test_the_thinnest_picture_can_be_drawn(size):
    viz.images(torch.rand(size), **SAY)
    viz.channels(torch.rand(3, *size), **SAY)


def test_averaging_keeps_the_mean_and_never_enlarges():
    picture = np.random.default_rng(0).random((12, 9, 3))
    small = average(picture, (4, 3))
    assert small.shape == (4, 3, 3)
    assert np.isclose(small.mean(), picture.mean())
    assert average(picture, (50, 50)) is picture
    assert average(picture[..., 0], (4, 50)).shape == (4, 9)


def test_a_panel_finds_its_own_by_any_name():
    points, weights = {1: [[1, 2], [3, 4]], 2: [[5, 6]]}, {1: [0.2, 0.9], 2: [1.0]}
    named = viz.points(PHOTO, points, weights=weights, anchor={1: (1, 1), 2: (2, 2)}, **SAY)
    points, weights = ({str(k): v for k, v in d.items()} for d in (points, weights))
    anchor = {"1": (1, 1), "2": (2, 2)}
    assert viz.points({"1": PHOTO, "2": PHOTO}, points, weights=weights, anchor=anchor, **SAY).png == named.png


def test_points_stand_where_they_are_and_weights_are_areas():
    photo = np.zeros((50, 80, 3))
    shown = crop(pixels(viz.points(photo, [[9.5, 19.5], [39.5, 59.5]], weights=[1.0, 4.0], **SAY)))
    scale = shown.shape[0] / 50
    dots = near(shown, style.ACCENT, 40)
    upper, lower = np.split(dots, 2)
    for dot, first, (row, col) in ((upper, 0, (10, 20)), (lower, len(upper), (40, 60))):
        rows, cols = np.nonzero(dot)
        centre = (rows.mean() + first + 0.5) / scale, (cols.mean() + 0.5) / scale
        assert np.allclose(centre, (row, col), atol=0.3)
    assert 2.5 < lower.sum() / upper.sum() < 6
