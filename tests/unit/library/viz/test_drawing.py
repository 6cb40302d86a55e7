"""A drawn mechanism holds the trace's own numbers, and its arrows cross nothing."""

import base64
import html
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest
import torch

import attn_lib
from attn_lib import viz
from attn_lib.viz.drawing import PAGE, PHONE, _arrow, _column
from attn_lib.viz.drawing.items import names_of, picture
from attn_lib.viz.drawing.layout import Arrow, _crossings, lay_out
from attn_lib.viz.drawing.shapes import Box, Line, Picture, Rect, Words, pieces, wide
from attn_lib.viz.drawing.writing import decimals, number
from tests.unit.library.viz.drawn import SAY

SVG = "{http://www.w3.org/2000/svg}"


def traced():
    """Squeeze-and-excitation on two channels of 2×3: its input and its trace."""
    module = attn_lib.create("se", channels=2, reduction=2).eval()
    x = torch.tensor([[[[1.0, 3, 2], [5, 7, 6]], [[0, 0, 0], [2, 2, 2]]]])
    with torch.no_grad(), attn_lib.trace() as t:
        module(x)
    return x, t


def svgs(drawing):
    """The SVG elements in a drawing's HTML: for a phone, where it differs, and for the page."""
    found = re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", drawing.html)
    roots = [ET.fromstring(base64.b64decode(text)) for text in found]
    return roots * 2 if len(roots) == 1 else roots


def texts(root):
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def gate():
    x, t = traced()
    rows = [[viz.Grid("x", x, axes="B C H W", colours=[[[0]], [[1]]])],
            [viz.Grid("z", upright=True, colours=[0, 1]), viz.Grid("s", upright=True, colours=[0, 1]), "y"]]
    arrows = [("x", "z", "mean (1)"), ("z", "s", "(2)"), ("s", "y", "(3)"), ("x", "y", "x", 2), (("z", 0), "y", "")]
    return rows, arrows, t


def strips():
    """Margins, a column in a row, arrows that skip a row, that run past an item, and that end inside a column."""
    x = torch.arange(12.0).reshape(2, 2, 3)
    rows = [
        [viz.Grid("x", x, right=viz.Grid("r", x.mean(2)), below=viz.Grid("c", x.mean(1))),
         [viz.Grid("strip", torch.cat([x.mean(2), x.mean(1)], 1)), viz.Grid("f", -x[0])]],
        [viz.Grid("between", x[0]), viz.Dots("nodes", [[1.5], [1, 2, -3]], edges=[(1, 0, "½", 0), (1, 2, "", 1)])],
        [[viz.Grid("g", x[0, :1]), viz.Grid("h", x[0, :1])], viz.Grid("y", x, across=True)],
    ]
    arrows = [("r", "strip", "(1)"), ("c", "strip", "(2)"), ("strip", "f", "(3)"), ("strip", "g", "skips"),
              ("f", "h", "ends inside"), ("x", "y", "(9)"), ("g", "y", ""), ("h", "y", ""), ("x", "between", ""),
              ("f", "nodes", "a label that is longer than its line")]
    return rows, arrows, None


def places():
    weights = np.array([[0.5, 0.25], [0.25, 0.0]])
    rows = [[viz.Grid("map", np.eye(4), rows=list("0123"), cols=list("abcd"), moves=[((1, 1), (1.4, 2.3), 3)],
                      outlines=[(np.s_[0:2, 0:2], 1)]),
             viz.Grid("w", weights, shade=True), viz.Grid("one", 3.0)]]
    return rows, [(("map", np.s_[1, 2]), "w", "around"), ("w", "one", "Σ"), ("map", "one", "under")], None


SCENES = {"gate": gate, "strips": strips, "places": places}


def layouts(rows, arrows, trace):
    """The page's layout and the phone's, with the places of the items."""
    names = [n for row in rows for unit in row for item in _column(unit) for n in names_of(item)]
    ends = [_arrow(a, names) for a in arrows]
    for limit, flow in ((PAGE, False), (PHONE, True)):
        pictures = [[[picture(i, trace, limit) for i in _column(unit)] for unit in row] for row in rows]
        yield lay_out(pictures, ends, limit, flow), limit


@pytest.fixture(params=SCENES)
def scene(request):
    rows, arrows, trace = SCENES[request.param]()
    return viz.drawing(rows, arrows=arrows, trace=trace, key={"first": 0, "second": 1}, **SAY)


def test_the_numbers_are_those_of_the_trace():
    rows, arrows, t = gate()
    drawing = viz.drawing(rows, arrows=arrows, trace=t, **SAY)
    for root in svgs(drawing):
        shown = [v for v in texts(root) if re.fullmatch(r"−?[\d.]+", v)]
        digits = {"z": 0, "s": 2, "y": 2}
        x = [f"{v:.0f}" for v in (1, 3, 2, 5, 7, 6, 0, 0, 0, 2, 2, 2)]
        want = x + [f"{v:.{digits[n]}f}" for n in "zsy" for v in t[n].flatten().tolist()]
        assert shown == want
    assert "z (2): 4; 1" in drawing.spoken
    assert "x → z: mean (1)" in drawing.spoken


def test_a_changed_trace_changes_the_drawing():
    rows, arrows, t = gate()
    once = viz.drawing(rows, arrows=arrows, trace=t, **SAY)
    assert once.html == viz.drawing(rows, arrows=arrows, trace=t, **SAY).html  # the same bytes on every run
    t["s"].mul_(0.5)
    again = viz.drawing(rows, arrows=arrows, trace=t, **SAY)
    assert again.html != once.html and again.png != once.png and again.spoken != once.spoken


def test_the_page_and_the_phone_have_room(scene):
    roots = svgs(scene)
    assert len(roots) == 2
    assert float(roots[0].get("width")) <= PHONE and float(roots[1].get("width")) <= PAGE
    for root in roots:
        width, height = float(root.get("width")), float(root.get("height"))
        groups = {text: group for group in root.iter(f"{SVG}g") for text in group}
        for text in root.iter(f"{SVG}text"):
            assert 0 <= float(text.get("x")) <= width and 0 < float(text.get("y")) <= height, text.text
            assert int(text.get("font-size") or groups[text].get("font-size")) >= 12


def test_both_layouts_hold_the_same(scene):
    phone, page = svgs(scene)
    assert sorted(texts(phone)) == sorted(texts(page))


def test_everything_can_be_read_as_text(scene):
    listed = html.unescape(re.search(r"<pre>(.*)</pre>", scene.html, re.DOTALL)[1])
    assert listed.splitlines() == list(scene.spoken) and len(scene.spoken) > 3
    scene.html.encode("ascii")
    assert "<script" not in scene.html


def segments(line):
    return list(pairwise(line.points))


def meets(a, b, rect, slack=1.0):
    """Whether an upright or level segment passes through a rectangle."""
    (x0, y0), (x1, y1) = a, b
    return (min(x0, x1) < rect.right - slack and max(x0, x1) > rect.x + slack
            and min(y0, y1) < rect.foot - slack and max(y0, y1) > rect.y + slack)


@pytest.mark.parametrize("name", SCENES)
def test_no_arrow_crosses_a_cell(name):
    rows, arrows, trace = SCENES[name]()
    for layout, limit in layouts(rows, arrows, trace):
        cells = [shape.rect for shape in layout.shapes if type(shape).__name__ == "Box"]
        lines = [shape for shape in layout.shapes[: len(arrows)]]
        assert all(isinstance(line, Line) and line.arrow for line in lines)
        for line in lines:
            crossed = [rect for a, b in segments(line) for rect in cells if meets(a, b, rect)]
            assert not crossed, (name, limit, line)


@pytest.mark.parametrize("name", SCENES)
def test_arrows_are_upright_and_level_and_end_at_an_item(name):
    rows, arrows, trace = SCENES[name]()
    for layout, _ in layouts(rows, arrows, trace):
        for line in layout.shapes[: len(arrows)]:
            assert all(a[0] == b[0] or a[1] == b[1] for a, b in segments(line)), line
            assert all(0 < x < layout.width and 0 < y < layout.height for x, y in line.points), line
            assert len(set(line.points)) == len(line.points)


@pytest.mark.parametrize("name", SCENES)
def test_items_do_not_overlap(name):
    rows, arrows, trace = SCENES[name]()
    for layout, _ in layouts(rows, arrows, trace):
        cells = [shape.rect for shape in layout.shapes if type(shape).__name__ == "Box"]
        for i, a in enumerate(cells):
            for b in cells[:i]:
                assert a.right <= b.x + 0.1 or b.right <= a.x + 0.1 or a.foot <= b.y + 0.1 or b.foot <= a.y + 0.1


def test_lines_in_a_gap_take_the_order_in_which_they_cross_least():
    # Both run to the left; the one that starts further left must run above the other.
    spans = [(300.0, 100.0, True), (200.0, 50.0, True)]
    assert _crossings(spans, (1, 0)) == 0 < _crossings(spans, (0, 1))

    def box(name, width=80):
        return [Picture([], width, 40, {name: Rect(0, 0, width, 40)}, {})]

    layout = lay_out([[box("a"), box("b"), box("c")], [box("d"), box("e"), box("f", 200)]],
                     [Arrow("c", "e"), Arrow("b", "d")], 700, False)
    first, second = (line.points[1][1] for line in layout.shapes)
    assert second < first


def test_a_margin_stands_beside_its_lines():
    x = torch.arange(6.0).reshape(2, 3)
    drawn = picture(viz.Grid("x", x, right=viz.Grid("r", x.sum(1)), below=viz.Grid("c", x.sum(0))), None, PAGE)
    for row in range(2):
        assert drawn.cells["r"][row].y == drawn.cells["x"][row, 0].y
    for column in range(3):
        assert drawn.cells["c"][column].x == drawn.cells["x"][0, column].x
    assert drawn.cells["r"][0].x > drawn.cells["x"][0, 2].right - 1


def test_a_parent_stands_over_its_children():
    drawn = picture(viz.Dots("v", [[0, 0], [1, 2, 3, 4]], edges=[(2, 0, "", 0), (3, 0, "", 0), (4, 1, "", 0),
                                                                  (5, 1, "", 0)]), None, PAGE)
    middle = [rect.middle for rect in drawn.cells["v"]]
    assert middle[0][0] == pytest.approx((middle[2][0] + middle[3][0]) / 2)
    assert middle[1][0] == pytest.approx((middle[4][0] + middle[5][0]) / 2)
    assert middle[0][1] < middle[2][1]


def test_a_stack_stands_side_by_side_where_there_is_room():
    grid = viz.Grid("x", torch.ones(3, 2, 4), across=True)
    assert picture(grid, None, 700).width > 2 * picture(grid, None, 344).width


def test_words_wider_than_their_grid_have_their_room():
    long = "a name that is wider than two cells"
    short = picture(viz.Grid("x", torch.ones(1, 1, 2), parts=["a"]), None, PAGE).width
    assert picture(viz.Grid("x", torch.ones(1, 1, 2), parts=[long]), None, PAGE).width > 2 * short
    below = viz.Grid("x", torch.ones(1, 2), below=viz.Grid("z", torch.ones(2), label=long))
    assert picture(below, None, PAGE).width > 2 * short


def boxes(picture):
    """The cells in the order of reading."""
    return sorted((s for s in picture.shapes if isinstance(s, Box)), key=lambda s: (s.rect.y, s.rect.x))


def test_colours_belong_to_cells():
    drawn = boxes(picture(viz.Grid("x", torch.ones(2, 2), colours=[[0, -1], [3, 3]]), None, PAGE))
    assert [(b.colour, b.strength > 0) for b in drawn] == [(0, True), (None, False), (3, True), (3, True)]
    shaded = boxes(picture(viz.Grid("x", torch.tensor([1.0, -2.0, 0.0]), shade=True), None, PAGE))
    assert [b.colour for b in shaded] == [0, 1, 0]
    assert shaded[1].strength > shaded[0].strength > shaded[2].strength


def test_colours_may_lie_on_a_gpu(monkeypatch):
    colours = torch.empty(2, dtype=torch.long, device="meta")  # plays it: numpy cannot read it where it lies
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: torch.tensor([1, 0]) if t.is_meta else t)
    drawn = boxes(picture(viz.Grid("x", torch.ones(2), colours=colours), None, PAGE))
    assert [b.colour for b in drawn] == [1, 0]


def test_an_index_stands_below_its_letter():
    assert pieces("W_H x") == [("W", False), ("H", True), (" x", False)] and pieces("√d_k: ½")[-1] == (": ½", False)
    assert pieces("a_b_c")[1] == ("b_c", True) and pieces("2_a") == [("2_a", False)]
    drawn = viz.drawing([[viz.Grid("x", torch.ones(1, 2), label="W_H x", note="by W_o: ½")]], **SAY)
    for root in svgs(drawn):
        assert {"WH x", "by Wo: ½"} <= set(texts(root))
        shifts = [(t.text, float(t.get("dy", 0)), t.get("font-size")) for t in root.iter(f"{SVG}tspan")]
        assert shifts == [("H", 3.1, "11.2"), (" x", -3.1, None), ("o", 2.6, "9.6"), (": ½", -2.6, None)]
    assert "W_H x" in drawn.spoken[0]
    assert wide("W", 14) + wide("H", 14) > wide("W_H", 14) > wide("W", 14) + 5


def test_the_key_shows_a_frame_as_a_frame():
    def signs(key):
        root = svgs(viz.drawing([[viz.Grid("x", torch.ones(1, 2))]], key=key, **SAY))[0]
        return [path.get("class") for path in root.iter(f"{SVG}path")][-1]

    assert signs({"its row": 1}) == "cell c1" and signs({"its row": (1,)}) == "out s1"
    with pytest.raises(ValueError, match="the colour of 'its row'"):
        signs({"its row": (1, 2)})


def test_cells_that_look_alike_share_an_element():
    colours = np.zeros((6, 6), int)
    colours[2] = 1
    once = viz.drawing([[viz.Grid("x", np.eye(6), colours=colours)]], **SAY)
    cells = [path for path in svgs(once)[0].iter(f"{SVG}path") if "cell" in path.get("class")]
    assert sorted(path.get("d").count("z") for path in cells) == [6, 30]


def test_numbers_are_for_people():
    assert number(-0.001, 2) == "0.00" and number(-1.5, 1) == "−1.5" and number(2.0, 0) == "2"
    assert decimals(np.array([1.0, 2.0])) == 0 and decimals(np.array([0.5, 2.0])) == 1
    assert decimals(np.array([1 / 3])) == 2


def test_where_places_are_marked_the_numbers_stand_aside():
    rows, _, _ = places()
    drawn = picture(rows[0][0], None, PAGE)
    words = [s for s in drawn.shapes if isinstance(s, Words) and s.text in "01" and s.anchor == "start"]
    first = drawn.cells["map"][0, 0]
    assert words[0].x < first.middle[0] - 10 and words[0].y < first.middle[1]


def test_what_cannot_be_drawn_is_said():
    _, t = traced()

    def draw(rows, **more):
        return viz.drawing(rows, **{"trace": t, **SAY, **more})
    for call, says in [
        (lambda: draw([["q"]]), "'q' is not in the trace, which holds z, s, y"),
        (lambda: draw([["z"]], trace=None), "no trace"),
        (lambda: draw([["z", "z"]]), "z stands in the drawing more than once"),
        (lambda: draw([]), "nothing to draw"),
        (lambda: draw([[3]]), "viz.Grid, viz.Dots, or the name of a tap, not 3"),
        (lambda: draw([["z", "s"]], arrows=[("s", "z", "")]), "runs back: put 'z' after 's'"),
        (lambda: draw([["z", "s"]], arrows=[("z", "gate", "")]), "an arrow's end"),
        (lambda: draw([["z", "s"]], arrows=[("z", "s")]), "an arrow is"),
        (lambda: draw([[viz.Grid("w", torch.ones(2, 30))]]), "the row of w is 904 pixels wide and there is room for"),
        (lambda: draw([[viz.Grid("w", torch.ones(2, 12))]]), "room for 344"),
        (lambda: draw([[viz.Grid("w", torch.tensor([1.0, float("nan")]))]]), "NaN"),
        (lambda: draw([[viz.Grid("w", torch.ones(2, 2), colours=[0, 1, 2])]]), "must broadcast"),
        (lambda: draw([[viz.Grid("w", torch.ones(2, 2), colours=9)]]), "must lie in -1..7"),
        (lambda: draw([[viz.Grid("w", torch.ones(2, 2, 2, 2))]]), "index it"),
        (lambda: draw([[viz.Grid("w", torch.ones(2, 2), right=viz.Grid("r", torch.ones(3)))]]), "2 number(s)"),
        (lambda: draw([[viz.Grid("w", torch.ones(2, 2), rows=["a"])]]), "1 labels for 2 lines"),
        (lambda: draw([[viz.Dots("v", [[1, 2]], edges=[(0, 5, "", 0)])]]), "a node of the edges of 'v'"),
        (lambda: draw([["z"]], key={"first": 9}), "the colour of 'first'"),
        (lambda: viz.drawing([["z"]], trace=t, title="", alt="x"), "title"),
    ]:
        with pytest.raises(ValueError) as error:
            call()
            pytest.fail(says)
        assert says in str(error.value), error.value


def test_it_shows_itself_everywhere(scene):
    data, metadata = scene._repr_mimebundle_()
    assert set(data) == {"text/html", "image/png", "text/plain"}
    assert metadata["image/png"]["alt"] == scene.alt
    for root in svgs(scene):
        assert root.get("role") == "img" and root.get("aria-label") == scene.alt
