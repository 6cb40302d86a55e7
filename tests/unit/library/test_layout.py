"""The language of axes: what it reads, what it answers, and what it refuses."""

import pytest

from attn_lib.layout import Layout, role


@pytest.mark.parametrize(("text", "tensors", "free"), [
    ("B C H W", (("B", "C", "H", "W"),), ("H", "W")),
    (" B  C H W,B N C ", (("B", "C", "H", "W"), ("B", "N", "C")), ("H", "W", "N")),
    ("B T N C, B 2", (("B", "T", "N", "C"), ("B", "2")), ("T", "N")),
    ("B C T H W", (("B", "C", "T", "H", "W"),), ("T", "H", "W")),
    ("B O Ho Wo", (("B", "O", "Ho", "Wo"),), ("O", "Ho", "Wo")),
])
def test_reads(text, tensors, free):
    layout = Layout(text)
    assert (layout.tensors, layout.free) == (tensors, free)
    assert layout == ", ".join(map(" ".join, tensors)), "one spelling, and equal to the string"
    assert layout.first == " ".join(tensors[0]) and layout.each("B L C").tensors == (("B", "L", "C"),) * len(tensors)


@pytest.mark.parametrize("text", ["", "B C,", ", B C", "b c h w", "B C H'", "B C H\u2032", "B (H W)", "B H-W", "B 02"])
def test_refuses(text):
    with pytest.raises(ValueError, match=r"layout=.* must name the axes of each tensor"):
        Layout(text)


def test_shapes_and_sizes_are_each_others_inverse():
    layout, sizes = Layout("B T N C, B 2, B C"), {"B": 8, "T": 5, "N": 7, "C": 16}
    assert layout.shapes(sizes) == [(8, 5, 7, 16), (8, 2), (8, 16)]
    assert layout.sizes(layout.shapes(sizes)) == sizes


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Layout("B C H W").shapes({"B": 1, "C": 2, "H": 3}), "must name axis W of layout 'B C H W'; .* B, C, H"),
    (lambda: Layout("B C, B C").sizes([(1, 2), (1, 3)]), "give axis C of layout 'B C, B C' two sizes, 2 and 3"),
    (lambda: Layout("B 2").sizes([(1, 3)]), "give axis 2 of layout 'B 2' two sizes, 2 and 3"),
    (lambda: Layout("B C").sizes([(1, 2, 3)]), r"shapes \[\(1, 2, 3\)\] must have the axes of layout 'B C'"),
    (lambda: Layout("B C").sizes([(1, 2), (1, 2)]), "must have the axes"),
    (lambda: Layout("B N C, B C H W").dim("H"), "axis='H' must be one of B, N, C"),
])
def test_errors_name_the_axis(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_where_an_axis_stands_and_which_it_belongs_to():
    layout = Layout("B N C, B C Ho Wo")
    assert (layout.dim("C"), layout.dim("C", 1)) == (2, 1)
    assert list(map(role, layout.tensors[1])) == ["B", "C", "H", "W"]
