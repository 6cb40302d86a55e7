"""Every figure: its texts, its bytes, its style, and what it refuses."""

import base64
import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

import attn_lib
from attn_lib import viz
from attn_lib.measure import Timing
from attn_lib.viz import style
from attn_lib.viz.figures import encode_png
from tests.unit.library.viz.drawn import PHOTO, SAY, pixels
from tests.unit.library.viz.tapping import Gate

DRAW = {
    "images": lambda **say: viz.images({"a": PHOTO, "b": PHOTO[0]}, **say),
    "channels": lambda **say: viz.channels(torch.linspace(-1, 1, 5 * 6 * 7).reshape(5, 6, 7), **say),
    "bars": lambda **say: viz.bars({"a": [0.1, 0.5], "b": [0.2, -0.3]}, labels=["p", "q"], highlight=1, **say),
    "overlay": lambda **say: viz.overlay(PHOTO, torch.eye(4), mark=(3, 5), **say),
    "matrix": lambda **say: viz.matrix(torch.eye(4), values=True, **say),
    "points": lambda **say: viz.points(PHOTO, [[1.0, 2.0], [-4.0, 8.5]], weights=[1, 2], anchor=(5, 5), **say),
    "flow": lambda **say: viz.flow(Gate(), torch.ones(2, 4, 3, 3), **say),
    "scaling": lambda **say: viz.scaling([1, 2, 4], {"a": [1, 4, 16]}, xlabel="n", ylabel="t", theory={"a": 2}, **say),
    "curves": lambda **say: viz.curves({"a": np.ones((3, 9)), "b": np.arange(9)}, xlabel="s", ylabel="l", **say),
    "compare": lambda **say: viz.compare({"with": [0.9, 0.8], "without": [0.7]}, xlabel="accuracy", **say),
    "timing": lambda **say: viz.timing("se", Timing(1e-3, 1e-4, 9, "CPU, 2 threads"), **say),
    "roofline": lambda **say: viz.roofline("se", **say),
}


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("say", [dict(SAY, title=" "), dict(SAY, alt=""), dict(SAY, alt=None)])
def test_title_and_alternative_text_are_obligatory(name, say):
    with pytest.raises(ValueError, match=r"must be a non-empty string"):
        DRAW[name](**say)


@pytest.mark.parametrize("name", DRAW)
def test_a_figure_shows_itself_the_same_on_every_run(name):
    figure = DRAW[name](**SAY)
    data, metadata = figure._repr_mimebundle_()
    assert data["text/plain"] == "Figure: What is drawn?"
    assert metadata["image/png"] == {"alt": figure.alt, "width": figure.width, "height": figure.height}
    assert figure.alt.startswith(SAY["alt"]) and (name == "timing" or figure.alt == SAY["alt"])
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as picture:
        assert picture.mode == "P" and not picture.info.keys() & {"Software", "date", "transparency"}
        assert abs(picture.width / figure.width - 1.5) < 0.01
    assert figure.width <= 700
    assert (pixels(figure)[0] == 255).all(), "paper is opaque white at the edge"
    assert DRAW[name](**SAY).png == figure.png
    assert len(figure.png) < 60_000


def test_the_readers_own_style_neither_enters_nor_changes():
    expected = DRAW["bars"](**SAY).png
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        assert DRAW["bars"](**SAY).png == expected
        assert matplotlib.rcParams["font.size"] == 30


def test_no_pyplot():
    code = (
        "import sys, torch; from attn_lib import viz\n"
        "viz.bars([1, 2], title='?', alt='a'); viz.matrix(torch.eye(3), title='?', alt='a')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_saving_is_whole_or_not_at_all(tmp_path):
    figure = DRAW["bars"](**SAY)
    figure.save(tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_mode & 0o777 == 0o644  # a web server can read it
    assert (tmp_path / "bars.png").read_bytes() == figure.png
    assert [p.name for p in tmp_path.iterdir()] == ["bars.png"]


def test_one_colour_a_family():
    assert list(viz.FAMILY_COLOURS) == list(attn_lib.catalog.FAMILIES)
    assert len(set(viz.FAMILY_COLOURS.values())) == len(viz.FAMILY_COLOURS)


def test_a_palette_keeps_few_colours_exactly_and_many_nearly():
    few = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8).repeat(9, 0)
    assert (np.asarray(Image.open(io.BytesIO(encode_png(few))).convert("RGB")) == few).all()
    ramp = np.full((256, 256, 3), 90, dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.meshgrid(np.arange(256), np.arange(256))
    ramp[:128] = 255  # much paper beside it, which stays exactly white
    seen = np.asarray(Image.open(io.BytesIO(encode_png(ramp))).convert("RGB")).astype(int)
    assert (seen[:128] == 255).all()
    assert np.abs(seen - ramp).max() < 24
    file = encode_png(ramp)
    with torch.device("meta"):  # whatever torch's default device is
        assert encode_png(ramp) == file


def test_a_chart_keeps_the_colours_of_its_lines():
    """Each with its own soft edges, however short it is."""
    chart = np.full((400, 600, 3), 255, dtype=np.uint8)
    inks = np.array([(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233)])
    for n, ink in enumerate(inks):
        for edge in range(13):
            chart[20 + 50 * n + edge, 30 : 90 - 8 * n] = (255 + (ink - 255) * min(edge, 12 - edge) / 6).round()
        chart[26 + 50 * n, 30:560] = ink
    seen = np.asarray(Image.open(io.BytesIO(encode_png(chart))).convert("RGB")).astype(int)
    assert (seen[26:320:50, 30] == inks).all()
    assert np.abs(seen - chart).max() <= 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: viz.images(torch.rand(4, 5, 6), **SAY), r"\(H, W\), \(H, W, 3\) or \(3, H, W\)"),
        (lambda: viz.images(torch.rand(3, 5, 6) * 9, **SAY), r"must lie in \[0, 1\]"),
        (lambda: viz.images({}, **SAY), "nothing to draw"),
        (lambda: viz.images(PHOTO, ncols=0, **SAY), "ncols=0"),
        (lambda: viz.channels(torch.rand(2, 4, 5, 6), **SAY), r"x has shape \(2, 4, 5, 6\)"),
        (lambda: viz.channels(torch.rand(4, 5, 6), names=["a"], **SAY), "names has 1"),
        (lambda: viz.channels(torch.rand(4, 5, 6), n=0, **SAY), "n=0"),
        (lambda: viz.bars(torch.rand(4, 5), **SAY), "values has shape"),
        (lambda: viz.bars({"a": [1, 2], "b": [1]}, **SAY), "must agree"),
        (lambda: viz.bars([1, 2], labels=["a"], **SAY), "labels has 1"),
        (lambda: viz.overlay(PHOTO, [[0.0, float("nan")]], **SAY), "heat has 1 values that are NaN or infinite"),
        (lambda: viz.points(PHOTO, [[0.0, float("inf")]], **SAY), "points has 1 values that are NaN or infinite"),
        (lambda: viz.points(PHOTO, [[0.0, 1.0]], weights=[float("nan")], **SAY), "weights has 1 values that are NaN"),
        (lambda: viz.points(PHOTO, {"a": [[0, 1]], "b": [[0, 1]]}, weights={"a": [1]}, **SAY), "panel 'b'"),
        (lambda: viz.points({"a": PHOTO}, {"a": [[0, 1]], "b": [[0, 1]]}, **SAY), "image has the entries .* panel 'b'"),
        (lambda: viz.scaling([1, 2], {"a": [1, np.nan]}, xlabel="", ylabel="", **SAY), r"series\['a'\] has 1 values"),
        (lambda: viz.bars([1, 2], highlight=2, **SAY), "highlight=2"),
        (lambda: viz.overlay(PHOTO, torch.rand(3), **SAY), "heat has shape"),
        (lambda: viz.overlay(PHOTO, -torch.eye(3), **SAY), "heat has the negative value -1"),
        (lambda: viz.overlay(PHOTO, {"a": -torch.eye(3)}, **SAY), r"heat\['a'\] has the negative value -1"),
        (lambda: viz.overlay(PHOTO, torch.eye(3), mark=(20, 0), **SAY), "inside the 20×30"),
        (lambda: viz.matrix(torch.rand(3, 3, 3), **SAY), "A has shape"),
        (lambda: viz.matrix(torch.rand(3, 13), values=True, **SAY), "at most 12"),
        (lambda: viz.points(PHOTO, torch.rand(9, 3), **SAY), "last dimension must be 2"),
        (lambda: viz.points(PHOTO, torch.rand(9, 2), weights=[1.0], **SAY), "weights has 1"),
        (lambda: viz.flow(Gate(), **SAY), "inputs"),
        (lambda: viz.scaling([1], {"a": [1]}, xlabel="", ylabel="", **SAY), "two different"),
        (lambda: viz.scaling([1, 2], {"a": [0, 1]}, xlabel="", ylabel="", **SAY), "positive"),
        (lambda: viz.scaling([1, 2], {"a": [1, 2]}, xlabel="", ylabel="", theory={"b": 1}, **SAY), "must name series"),
        (lambda: viz.curves({"a": torch.rand(2, 3, 4)}, xlabel="", ylabel="", **SAY), r"series\['a'\] has shape"),
        (lambda: viz.compare({"a": []}, xlabel="", **SAY), "nothing to draw"),
        (lambda: viz.timing("se", batch=0, **SAY), "batch=0"),
        (lambda: viz.timing("sea", **SAY), "id='sea'"),
        (lambda: viz.roofline("sea", **SAY), "id='sea'"),
        (lambda: viz.bars("abc", **SAY), "numbers"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("value", "said"), [(0.5, "500 m"), (1, "1"), (999.9, "1 k"), (2.5e9, "2.5 G"), (0, "0"), (3e-7, "300 n")]
)
def test_numbers_with_prefixes(value, said):
    assert style.si(value) == said


def test_words_are_wrapped_at_their_width():
    lines = style.wrap("one two three four five six seven", 0.8, 10)
    assert " ".join(lines) == "one two three four five six seven" and len(lines) > 2
    assert all(style.text_width(line, 10) <= 0.8 for line in lines)
