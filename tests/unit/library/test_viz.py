"""Figures: what they accept, what they show, and that the flow diagram tells the truth."""

import base64
import io
import itertools
import subprocess
import sys
from importlib import import_module

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import attn_lib
from attn_lib import viz
from attn_lib.measure import Timing
from attn_lib.measure.suite import sizes
from attn_lib.ops import attend
from attn_lib.tap import tap
from attn_lib.viz import style
from attn_lib.viz.arrays import to_image
from attn_lib.viz.figures import encode_png
from attn_lib.viz.flow import _plan, _routes
from attn_lib.viz.graph import dependence
from attn_lib.viz.panels import average, upsample
from attn_lib.viz.words import symbol

SAY = dict(title="What is drawn?", alt="A picture for the test.")
PHOTO = torch.linspace(0, 1, 3 * 20 * 30).reshape(3, 20, 30)


def pixels(figure: viz.Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(figure.png)).convert("RGB")).astype(int)


def near(picture: np.ndarray, colour: str, tolerance: int = 12) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(picture - rgb) <= tolerance).all(-1)


def crop(picture: np.ndarray) -> np.ndarray:
    """The smallest rectangle that holds everything black: a black photograph."""
    rows, cols = np.nonzero(near(picture, "#000002", 8))
    return picture[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]


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


class Gate(nn.Module):
    """Squeeze, excite, scale."""

    def __init__(self, channels: int = 4):
        super().__init__()
        self.W1, self.W2 = nn.Linear(channels, 2), nn.Linear(2, channels)

    def forward(self, x):
        z = tap("z", x.mean((2, 3)), "B C")
        s = tap("s", torch.sigmoid(self.W2(F.relu(self.W1(z)))), "B C")
        return tap("y", x * s[:, :, None, None], "B C H W")


class Heads(nn.Module):
    """Self-attention with one projection for queries, keys and values, and an output that is not tapped."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        q, k, v = (tap(name, a, "B h N d") for name, a in (("q", q), ("k", k), ("v", v)))
        o = tap("o", attend(q, k, v, dims="B h N N"), "B h N d")
        return self.proj(o.transpose(1, 2).flatten(2))


class Fusion(nn.Module):
    """Two inputs under one gate."""

    def __init__(self):
        super().__init__()
        self.W1, self.W2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x1, x2):
        z = tap("z", torch.sigmoid(self.W1(x1) + self.W2(x2)))
        return tap("y", z * x1 + (1 - z) * x2)


class Odds(nn.Module):
    """What else can happen: a tapped input and parameter, an index, a constant, dropout, two outputs, an alias."""

    def __init__(self):
        super().__init__()
        self.w, self.gamma = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.ones(()))
        self.drop, self.norm = nn.Dropout(), nn.BatchNorm1d(6)

    def forward(self, x):
        tap("x", x, "B N C")
        w = tap("w", self.w, "K C")
        half = tap("half", self.gamma / 2)
        S = tap("S", x @ w.T, "B N K")
        top = tap("top", S.topk(2, -1).indices, "B N 2")
        g = tap("g", torch.gather(S, -1, top), "B N 2")
        y = tap("y", self.norm(self.drop(x * g.sum(-1, keepdim=True))) * half, "B N C")
        return tap("again", y, "B N C"), S.logsumexp(-1)


class Loop(nn.Module):
    """The same name three times."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = tap("h", F.relu(layer(x)), "B C")
        return x


FLOWS = {
    "gate": (Gate, [(2, 4, 3, 5)], {("x", "z"), ("z", "s"), ("x", "y"), ("s", "y")}),
    "heads": (
        Heads, [(2, 5, 8)],
        {("x", "q"), ("x", "k"), ("x", "v"), ("q", "A"), ("k", "A"), ("A", "o"), ("v", "o"), ("o", "output")},
    ),
    "fusion": (Fusion, [(2, 8), (2, 8)], {("x1", "z"), ("x2", "z"), ("x1", "y"), ("x2", "y"), ("z", "y")}),
    "odds": (
        Odds, [(3, 6, 8)],
        {("x", "S"), ("w", "S"), ("S", "g"), ("x", "y"), ("g", "y"), ("half", "y"), ("y", "again"), ("S", "output")},
    ),
    "loop": (Loop, [(3, 4)], {("x", "h"), ("h", "h:2"), ("h:2", "h:3")}),
}


def graph_of(name: str):
    make, shapes, _ = FLOWS[name]
    return dependence(make(), [torch.randn(s, generator=torch.Generator().manual_seed(0)) for s in shapes])


# --- every figure -----------------------------------------------------------------------------------------------------


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
    assert metadata["image/png"] == {"alt": SAY["alt"], "width": figure.width, "height": figure.height}
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
        (lambda: viz.scaling([1, 2], {"a": [1, float("nan")]}, xlabel="", ylabel="", **SAY), "series 'a' has 1 values"),
        (lambda: viz.bars([1, 2], highlight=2, **SAY), "highlight=2"),
        (lambda: viz.overlay(PHOTO, torch.rand(3), **SAY), "heat has shape"),
        (lambda: viz.overlay(PHOTO, -torch.eye(3), **SAY), "negative"),
        (lambda: viz.overlay(PHOTO, torch.eye(3), mark=(20, 0), **SAY), "inside the 20×30"),
        (lambda: viz.matrix(torch.rand(3, 3, 3), **SAY), "A has shape"),
        (lambda: viz.matrix(torch.rand(3, 13), values=True, **SAY), "at most 12"),
        (lambda: viz.points(PHOTO, torch.rand(9, 3), **SAY), "last dimension must be 2"),
        (lambda: viz.points(PHOTO, torch.rand(9, 2), weights=[1.0], **SAY), "weights has 1"),
        (lambda: viz.flow(Gate(), **SAY), "inputs"),
        (lambda: viz.scaling([1], {"a": [1]}, xlabel="", ylabel="", **SAY), "two different"),
        (lambda: viz.scaling([1, 2], {"a": [0, 1]}, xlabel="", ylabel="", **SAY), "positive"),
        (lambda: viz.scaling([1, 2], {"a": [1, 2]}, xlabel="", ylabel="", theory={"b": 1}, **SAY), "must name series"),
        (lambda: viz.curves({"a": torch.rand(2, 3, 4)}, xlabel="", ylabel="", **SAY), "series 'a' has shape"),
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


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_photographs_in_every_layout_are_the_same_picture():
    chw = to_image(PHOTO, "x")
    assert chw.shape == (20, 30, 3)
    for other in (PHOTO.permute(1, 2, 0), PHOTO.permute(1, 2, 0).numpy(), PHOTO.half(), (PHOTO * 255).round().byte()):
        assert np.abs(to_image(other, "x") - chw).max() < 3e-3
    assert to_image(torch.rand(1, 4, 5), "x").shape == (4, 5)
    grey = to_image(torch.tensor([[-3.0, 1.0]]), "x")
    assert grey.tolist() == [[0.0, 1.0]]


def test_colour_limits_of_signed_values_are_symmetric():
    assert style.limits([np.array([-1.0, 3.0])]) == (-3.0, 3.0, style.DIVERGING)
    assert style.limits([np.array([0.0, 2.0]), np.array([np.nan, 5.0])]) == (0.0, 5.0, style.SEQUENTIAL)
    assert style.limits([np.array([1.0, 2.0])], signed=True) == (-2.0, 2.0, style.DIVERGING)
    assert style.limits([np.zeros(3)])[:2] == (0.0, 1.0)


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


# --- charts -----------------------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="'gate' has 3 entries, the first series has 2"):
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


@pytest.mark.parametrize(
    ("value", "said"), [(0.5, "500 m"), (1, "1"), (999.9, "1 k"), (2.5e9, "2.5 G"), (0, "0"), (3e-7, "300 n")]
)
def test_numbers_with_prefixes(value, said):
    assert style.si(value) == said


def test_words_are_wrapped_at_their_width():
    lines = style.wrap("one two three four five six seven", 0.8, 10)
    assert " ".join(lines) == "one two three four five six seven" and len(lines) > 2
    assert all(style.text_width(line, 10) <= 0.8 for line in lines)


# --- the flow ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
def test_edges_are_the_data_dependence(name):
    graph = graph_of(name)
    assert len(graph.edges) == len(set(graph.edges))
    assert set(graph.edges) == FLOWS[name][2]


@pytest.mark.parametrize("name", FLOWS)
def test_an_edge_means_that_changing_its_source_changes_its_target(name):
    """Independent of autograd's graph: gradients between the recorded tensors themselves."""
    make, shapes, _ = FLOWS[name]
    module = make().eval()
    inputs = [torch.randn(s, requires_grad=True) for s in shapes]
    names = list(graph_of(name).nodes)[: len(inputs)]
    with attn_lib.trace() as t:
        module(*inputs)
    value = {**dict(zip(names, inputs, strict=True)), **{n: t[n] for n in t.names()}}
    graph = dependence(module, inputs)
    above = {n: {n} for n in graph.nodes}
    for source, target in graph.edges:  # edges come in the order of the forward pass
        above[target] |= above[source]
    for source, target in itertools.permutations([n for n in graph.nodes if n in value], 2):
        a, b = value[source], value[target]
        if not (a.requires_grad and b.requires_grad) or a is b:
            continue
        gradient = torch.autograd.grad(b.sum(), a, retain_graph=True, allow_unused=True)[0]
        assert (gradient is not None) == (source in above[target]), (source, target)


def test_captions_name_operations_and_parameters():
    nodes = graph_of("gate").nodes
    assert {n: nodes[n].caption for n in nodes} == {
        "x": "", "z": "mean", "s": "linear W₁, relu, linear W₂, sigmoid", "y": "x × s",
    }
    assert nodes["y"].kind == "output" and nodes["x"].kind == "input"
    assert (nodes["z"].dims, nodes["z"].shape) == ("B C", (2, 4))
    assert graph_of("heads").nodes["A"].caption == "matmul, scale, softmax over N"
    assert graph_of("fusion").nodes["z"].caption == "x₁: linear W₁ · x₂: linear W₂ · +, sigmoid"
    odds = graph_of("odds").nodes
    assert (odds["w"].caption, odds["half"].caption) == ("is w", "from γ")
    assert not odds["top"].grounded and odds["w"].grounded
    assert odds["x"].dims == "B N C" and odds["again"].kind == "output" and odds["y"].kind == "tap"


def test_the_catalogs_axes_name_the_input():
    module, inputs = attn_lib.example("se")
    nodes = dependence(module, inputs).nodes
    assert nodes["x"].dims == "B C H W"
    assert nodes["z"].caption == "mean over H, W"


def test_a_tap_named_as_an_input_stays_apart_from_it():
    class Shadow(nn.Module):
        def forward(self, x):
            return tap("x", x + 1)

    assert dependence(Shadow(), [torch.ones(2)]).edges == [("x", "x:2")]


def test_drawing_the_flow_leaves_the_module_and_the_random_state_alone():
    module = Odds()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = torch.random.get_rng_state()
    x = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(1))
    viz.flow(module, x, **SAY)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in module.parameters()) and not x.requires_grad


@pytest.mark.parametrize("name", [*FLOWS, *attn_lib.list_modules()])
def test_no_line_crosses_a_box_and_no_boxes_overlap(name):
    graph = graph_of(name) if name in FLOWS else dependence(*attn_lib.example(name))
    plan = _plan(graph)
    edges = {}
    for n, b in plan.boxes.items():
        edges[n] = left, top, right, foot = (
            b.x - b.width / 2, b.y - b.height / 2, b.x + b.width / 2, b.y + b.height / 2,
        )
        assert left > 0 and top > 0 and right < plan.width and foot < plan.height
    for a, b in itertools.combinations(edges.values(), 2):
        assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
    routes = _routes(plan)
    assert set(routes) == set(graph.edges)
    for (source, target), path in routes.items():
        line = path.interpolated(1).to_polygons(closed_only=False, width=0, height=0)[0]
        line = np.concatenate([np.linspace(p, q, 40) for p, q in itertools.pairwise(line)])
        for other, (left, top, right, foot) in edges.items():
            x, y = line.T
            inside = (x > left) & (x < right) & (y > top + 1e-6) & (y < foot - 1e-6)
            assert not inside.any(), f"{source} → {target} runs through {other}"
        assert np.isclose(line[0, 1], edges[source][3]) and np.isclose(line[-1, 1], edges[target][1])
        assert (np.diff(line[:, 1]) >= -1e-9).all(), "a line never turns back"


@pytest.mark.parametrize(
    ("name", "said"),
    [("gamma", "γ"), ("W1", "W₁"), ("x_p", "xₚ"), ("z_max", "z_max"), ("H''", "H″"), ("Δp", "Δp"), ("k12", "k₁₂")],
)
def test_symbols(name, said):
    assert symbol(name) == said


# --- recorded measurements --------------------------------------------------------------------------------------------


def recorded(kind: str, flops: int = 10**6, id: str = "se") -> list[dict]:
    device = {"cuda": "Some GPU", "cpu": "Some CPU, 2 threads"}[kind]
    rows = []
    cases = itertools.product((14, 56), ("float32", "bfloat16"), ("eager", "compiled"), (False, True))
    for side, dtype, mode, backward in cases:
        rows.append({
            "id": id, "shapes": [[8, 64, side, side]], "size": [side, side], "dtype": dtype, "mode": mode,
            "backward": backward, "median": side * 1e-6, "iqr": 1e-7, "flops": flops, "min_bytes": side**2 * 4096,
            "roofline": 0.25, "error": None, "kind": kind, "device": device, "torch": "2.13.0", "date": "2026-01-02",
            "bandwidth": 1e12, "flop_rate": {"float32": 1e13, "bfloat16": 1e14},
        })
    return rows


@pytest.fixture
def texts(monkeypatch):
    """What a sheet says: every text that was drawn on the last one."""
    figures = import_module("attn_lib.viz.figures")
    said = []
    render = figures._render

    def spy(fig, *rest):
        said[:] = [t.get_text() for t in fig.findobj(matplotlib.text.Text) if t.get_text()]
        return render(fig, *rest)

    monkeypatch.setattr(figures, "_render", spy)
    return said


@pytest.mark.parametrize("draw", [viz.timing, viz.roofline])
@pytest.mark.parametrize("flops", [10**6, 0])
def test_recorded_measurements_say_where_they_come_from(draw, flops, texts, monkeypatch):
    module = import_module("attn_lib.viz.timing")
    monkeypatch.setattr(module, "records", lambda id: recorded("cuda", flops) + recorded("cpu", flops))
    draw("se", **SAY)
    assert any("Recorded 2026-01-02: Some GPU" in t for t in texts)
    assert any("float32, compiled" in t for t in texts)
    monkeypatch.setattr(module, "records", lambda id: recorded("cpu", flops))
    draw("se", **SAY)
    assert "No GPU measurement of 'se' is recorded." in " ".join(" ".join(texts).split())
    assert any("Some CPU" in t for t in texts)
    monkeypatch.setattr(module, "records", lambda id: [])
    draw("se", **SAY)
    assert any("No measurement of 'se' is recorded" in t for t in texts)


def test_this_machine_stands_alone_where_nothing_is_recorded(texts, monkeypatch):
    monkeypatch.setattr(import_module("attn_lib.viz.timing"), "records", lambda id: [])
    now = Timing(3e-3, 1e-4, 9, "A processor with a name that is rather longer than most of them are in the end")
    viz.timing("se", now, **SAY)
    assert any("Here, now: 3 ms" in " ".join(t.split()) and "\n" in t for t in texts)
    viz.timing("se", {}, **SAY)
    assert any("No measurement of 'se' is recorded." in t for t in texts)
    viz.timing("se", {np.int64(14): now, (28, 30): now}, **SAY)
    assert {"14×14", "28×30"} <= set(texts)


def test_the_latest_recording_is_shown_everywhere(monkeypatch):
    older = [{**r, "device": "A GPU", "date": "2025-01-01", "median": 1.0} for r in recorded("cuda")]
    monkeypatch.setattr(import_module("attn_lib.viz.card"), "records", lambda id: older + recorded("cuda"))
    assert "Some GPU" in next(row.text for row in attn_lib.card("se").rows if row.label == "Recorded time")


def test_this_machine_stands_beside_the_records(texts, monkeypatch):
    monkeypatch.setattr(import_module("attn_lib.viz.timing"), "records", lambda id: recorded("cuda"))
    viz.timing("se", Timing(3e-3, 1e-4, 9, "CPU, 2 threads"), batch=2, **SAY)
    assert "now, CPU, 2 threads: 1.5 ms" in texts
    viz.timing("se", {14: Timing(3e-3, 1e-4, 9, "CPU"), (28, 30): Timing(9e-3, 1e-4, 9, "CPU")}, **SAY)
    assert {"now, CPU", "14×14", "28×30", "56×56"} <= set(texts)


def test_the_scaling_legend_sets_fit_beside_theory(texts):
    viz.scaling([2, 4, 8], {"a": [4, 16, 64], "b": [1, 1, 1]}, xlabel="n", ylabel="t", theory={"a": 2}, **SAY)
    assert {"a: fit 2.00, theory 2", "b: fit 0.00"} <= set(texts)


# --- the card ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", attn_lib.list_modules())
def test_a_card_says_what_the_catalog_and_the_module_say(id):
    entry, card = attn_lib.entry(id), attn_lib.card(id)
    said = {row.label: row.text for row in card.rows}
    module, _ = attn_lib.example(id, size=sizes(entry.layout, [56])[0])
    assert said["Parameters"].startswith(f"{sum(p.numel() for p in module.parameters()):,} (")
    papers = said["Paper" if len(entry.papers) == 1 else "Papers"]
    for paper in entry.papers:
        assert paper.title in papers and f"{paper.venue} {paper.year}" in papers
    assert said["Fresh module"] == ("returns its input unchanged" if entry.identity_at_init else "changes its input")
    assert len(said["Commutes with"].split(", ")) == max(1, len(entry.commutes_with))
    assert said["Class"].endswith("." + entry.cls.__name__)
    assert card.colour == viz.FAMILY_COLOURS[entry.family]
    bundle = card._repr_mimebundle_()
    assert bundle == attn_lib.card(id)._repr_mimebundle_(), "the same on every call"
    for row in card.rows:
        assert f"{row.label}  " in bundle["text/plain"] and row.label in bundle["text/html"]


def test_the_numbers_on_the_card_of_se_are_those_of_an_independent_count():
    said = {row.label: row.text for row in attn_lib.card("se").rows}
    C, hidden = 64, 4
    assert said["Parameters"] == f"{2 * C * hidden + C + hidden:,} (channels=64)"
    assert said["FLOPs"].startswith(f"{2 * 2 * C * hidden:,} for one input of 64×56×56")
    # Kept: z (C), the hidden layer after ReLU, s (C), each in four bytes; the input exists anyway.
    assert said["Kept for backward"] == f"{4 * (C + hidden + C)} B for one input of 64×56×56; × 1.0 for 28×28 → 56×56"


def test_a_card_prefers_the_gpu_and_admits_that_there_is_none(monkeypatch):
    module = import_module("attn_lib.viz.card")
    said = {}
    for kinds in (("cuda", "cpu"), ("cpu",), ()):
        monkeypatch.setattr(module, "records", lambda id, kinds=kinds: [r for k in kinds for r in recorded(k)])
        said[kinds] = next(row.text for row in attn_lib.card("se").rows if row.label == "Recorded time")
    assert said["cuda", "cpu"] == "56 µs forward on 8×64×56×56, float32 (Some GPU), 25% of what the device could do"
    assert said["cpu",] == "56 µs forward on 8×64×56×56, float32 (no GPU recorded; Some CPU, 2 threads)"
    assert said[()] == "none yet"


def test_a_card_sets_no_text_colour_and_escapes():
    markup = attn_lib.card("se")._repr_html_()
    assert "color:#" not in markup.replace("solid #", "") and "color:inherit" in markup
    assert 'href="https://arxiv.org/abs/1709.01507"' in markup
    assert "<script" not in markup and "src=" not in markup


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


def test_a_lone_curve_is_named_once(texts):
    viz.curves({"loss": [3, 2, 1]}, xlabel="step", ylabel="loss", **SAY)
    assert texts.count("loss") == 1
    viz.curves({"SE": [3, 2, 1]}, xlabel="step", ylabel="loss", **SAY)
    assert {"SE", "loss"} <= set(texts)


# --- the family map ---


def test_family_map_links_every_module_where_it_is_drawn():
    family_map = viz.family_map(**SAY, root="../..")
    assert set(family_map.places) == set(attn_lib.list_modules())
    picture = pixels(family_map.figure)
    html = family_map._repr_html_()
    for id, (left, top, width, height) in family_map.places.items():
        entry = attn_lib.entry(id)
        assert f'<a href="../../{entry.family}/{id}.ipynb" aria-label="{entry.name}, {entry.paper.year}"' in html
        rows, cols = (slice(round(n * at), round(n * (at + size)))
                      for n, at, size in zip(picture.shape, (top, left), (height, width), strict=False))
        assert near(picture[rows, cols], style.FAMILY_COLOURS[entry.family]).sum() > 50, f"{id} has its box elsewhere"
    tops = {id: place[1] for id, place in family_map.places.items()}
    assert tops["deform"] < tops["se"] < tops["ccnet"], "years run downwards"
    data, metadata = family_map._repr_mimebundle_()
    assert {"text/html", "image/png", "text/plain"} == set(data) and metadata["image/png"]["alt"] == SAY["alt"]
