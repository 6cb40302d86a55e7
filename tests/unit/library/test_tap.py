"""Taps and traces: names, numbering, symbolic axes, and no mark on compiled code."""

import pytest
import torch
from torch import nn

import attn_lib
from attn_lib.tap import tap, trace, tracing


class Twice(nn.Module):
    """The same tap passed twice, as in a recurrence."""

    def forward(self, x):
        for _ in range(2):
            x = tap("h", x * 2, "B C")
        return tap("y", x.repeat(1, 2), "B 2*C")


def test_records_in_order_and_numbers_repeats():
    with trace() as t:
        y = Twice()(torch.ones(1, 3))
    assert t.names() == ["h", "h:2", "y"]
    assert t.shapes() == {"h": (1, 3), "h:2": (1, 3), "y": (1, 6)}
    assert t.dims("y") == "B 2*C" and t.sizes() == {"B": 1, "C": 3}
    assert t["y"] is y and "h" in t and "z" not in t and len(t) == 3


def test_records_nothing_outside():
    x = torch.ones(1, 3)
    assert tap("x", x) is x and not tracing()
    with trace() as t:
        assert tracing()
    Twice()(x)
    assert not tracing() and t.names() == []
    with pytest.raises(KeyError, match="holds: nothing"):
        t["h"]


def test_inner_trace_takes_over_and_hands_back():
    with trace() as outer:
        with trace() as inner:
            tap("a", torch.ones(1))
        tap("b", torch.ones(1))
    assert inner.names() == ["a"] and outer.names() == ["b"]


def test_stops_recording_after_an_error():
    with pytest.raises(RuntimeError), trace():
        raise RuntimeError
    assert not tracing()


def test_names_carry_the_path_in_a_model():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(attn_lib.create("se", channels=8, reduction=2)))
    with trace(model) as t:
        model(torch.ones(1, 3, 4, 4))
    assert t.names() == ["1.0.z", "1.0.s", "1.0.y"]
    hooks = [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert hooks == []


def test_path_survives_an_error_inside_the_model():
    model = nn.Sequential(attn_lib.create("se", channels=8, reduction=2))
    with trace(model) as t:
        with pytest.raises(ValueError):
            model(torch.ones(1, 3, 4, 4))
        model(torch.ones(1, 8, 4, 4))
    assert t.names() == ["0.z", "0.s", "0.y"]


@pytest.mark.parametrize(("taps", "message"), [
    ([("a", (2, 3), "B C"), ("b", (2, 4), "B C")], "axis C is 3 elsewhere but 4 in 'b'"),
    ([("a", (2, 3), "B C H")], "claims axes 'B C H'"),
    ([("a", (2, 3), "B C"), ("b", (7,), "B+C")], r"axis B\+C is 5 by its formula but 7"),
    ([("a", (2, 3), "B C-D")], "must be made of known axes"),
])
def test_axes_that_do_not_fit_are_found(taps, message):
    with trace() as t:
        for name, shape, dims in taps:
            tap(name, torch.zeros(shape), dims)
    with pytest.raises(ValueError, match=message):
        t.sizes()


def test_check_prints_equality_and_refuses_everything_else(capsys):
    with trace() as t:
        z = tap("z", torch.tensor([[1.0, -2.0]]))
    t.check("z", z + 1e-6)
    assert capsys.readouterr().out == "z  (1, 2)  equals the library's\n"
    for wrong in (z + 1e-3, -z, z * torch.nan):
        with pytest.raises(AssertionError, match="differs from the library's"):
            t.check("z", wrong)
    with pytest.raises(AssertionError, match=r"your shape is \(2,\)"):
        t.check("z", z[0])


def test_check_takes_masked_logits(capsys):
    with trace() as t:
        D = tap("D", torch.tensor([[1.0, -torch.inf]]))
    t.check("D", D.clone())
    assert capsys.readouterr().out == "D  (1, 2)  equals the library's\n"
    for wrong in (D.nan_to_num(neginf=-1e9), -D, torch.full_like(D, -torch.inf)):
        with pytest.raises(AssertionError, match="differs from the library's"):
            t.check("D", wrong)


def test_compiled_code_is_whole_and_unmarked():
    x = torch.ones(1, 3)
    compiled = torch.compile(Twice(), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), Twice()(x))
    with trace() as t:  # a compiled module has no intermediate tensors to record, but it still runs
        compiled(x)
    assert t.names() == []


def test_a_trace_prints_as_a_table():
    _, (x,) = attn_lib.example("se")
    with trace() as t:
        assert repr(t) == "an empty trace"
        tap("z", x.mean((2, 3)), "B C")
        tap("Ms", x, "B C H W")
    assert str(t) == "z   B C      (2, 64)\nMs  B C H W  (2, 64, 12, 16)"
