"""Taps and traces: names, numbering, symbolic axes, and no mark on compiled code."""

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import attn_lib
from attn_lib.tap import recording, tap, trace, tracing


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


# ---- other threads ---------------------------------------------------------------------------------------------------


def elsewhere(fn, *args):
    """`fn(*args)` in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fn, *args).result()


def test_what_another_thread_runs_is_not_recorded():
    x = torch.ones(1, 3)
    with trace() as t:
        assert not elsewhere(tracing) and not elsewhere(recording)
        elsewhere(Twice(), x)
        tap("mine", x)
    assert t.names() == ["mine"]


def test_each_thread_has_its_own_innermost_trace():
    x, theirs = torch.ones(1, 3), trace()
    with ThreadPoolExecutor(1) as other:
        other.submit(theirs.__enter__).result()
        with trace() as mine:
            other.submit(tap, "theirs", x).result()
            tap("mine", x)
        other.submit(theirs.__exit__).result()
    assert (theirs.names(), mine.names()) == (["theirs"], ["mine"]) and not elsewhere(tracing)


def test_another_thread_in_the_same_model_leaves_the_paths_alone():
    class Asks(nn.Module):
        def forward(self, x):
            if not asked:
                asked.append(True)
                elsewhere(model, x)
            return tap("y", x + 1)

    asked, x = [], torch.ones(1, 3)
    model = nn.Sequential(nn.Identity(), nn.Sequential(Asks()))
    with trace(model) as t:
        model(x)
    assert t.names() == ["1.0.y"]


# ---- copies and files ------------------------------------------------------------------------------------------------


def test_a_copy_made_within_a_trace_takes_no_hooks_along():
    model = nn.Sequential(attn_lib.create("se", channels=8, reduction=2))
    x, keys = torch.ones(1, 8, 4, 4), list(model.state_dict())
    with trace(model) as t:
        twin = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        assert list(model.state_dict()) == keys
        model(x)
        twin(x)  # no part of the model that is traced: its names carry no path
    file.seek(0)
    for other in (twin, torch.load(file, weights_only=False), copy.deepcopy(model)):
        assert not [h for m in other.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
        other(x)
    assert t.names() == ["0.z", "0.s", "0.y", "z", "s", "y"]


def test_a_trace_of_a_model_leaves_no_hook_behind():
    hooks = torch.nn.modules.module
    with trace(nn.Sequential(nn.ReLU())):
        assert hooks._global_forward_hooks and hooks._global_forward_pre_hooks
    assert not (hooks._global_forward_hooks or hooks._global_forward_pre_hooks)
    assert not hooks._global_forward_hooks_always_called


# ---- activation checkpointing ----------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, inner, use_reentrant):
        super().__init__()
        self.inner, self.use_reentrant = inner, use_reentrant

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.use_reentrant)


def in_place(fn):
    return fn()


ATTENDING = [("mhsa", None), ("mhsa", "no positions"), ("non_local", None), ("non_local", "dot product")]


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved", "reentrant"])
@pytest.mark.parametrize("thread", [in_place, elsewhere], ids=["same thread", "thread"])  # as CUDA's backward passes
@pytest.mark.parametrize(("id", "variant"), ATTENDING)
def test_checkpointing_neither_records_twice_nor_fails(id, variant, use_reentrant, thread):
    inner, (x,) = attn_lib.example(id, variant, generic=True)
    model = nn.Sequential(Checkpointed(inner, use_reentrant))
    parameters = list(model.parameters())
    expected = torch.autograd.grad(inner(x.requires_grad_()).square().mean(), parameters)
    with trace() as plain:
        inner(x)

    def gradients(loss):
        for p in parameters:
            p.grad = None
        thread(loss.backward)  # a reentrant checkpoint forbids torch.autograd.grad
        torch.testing.assert_close([p.grad for p in parameters], list(expected), rtol=1e-4, atol=1e-6)

    with trace(model) as t:
        loss = model(x).square().mean()
        names = t.names()
        gradients(loss)
    assert t.names() == names
    assert {n.removeprefix("0.inner.") for n in names} >= set(plain.names()) - {"A"}
    if (id, variant) != ("non_local", "dot product"):  # whose fused form holds no matrix
        assert len(names) == len(plain)

    with trace(model):
        loss = model(x).square().mean()
    gradients(loss)  # the trace has ended when it is computed again
    loss = model(x).square().mean()
    with trace(model) as t:  # and begins between the two
        gradients(loss)
    assert t.names() == []


def test_a_trace_opened_in_a_backward_pass_records():
    traces, x = [], torch.ones(1, 3, requires_grad=True)

    def hook(gradient):
        with trace() as t:
            Twice()(gradient)
        traces.append(t)

    y = Twice()(x)
    y.register_hook(hook)
    with trace() as outer:
        y.sum().backward()
    assert traces[0].names() == ["h", "h:2", "y"] and outer.names() == []


# ---- compiled and exported within a trace ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks")  # harmless here
@pytest.mark.parametrize("whole", [False, True], ids=["trace()", "trace(model)"])
def test_compiles_and_exports_within_a_trace(whole):
    inner, (x,) = attn_lib.example("mhsa", "no positions")
    model = nn.Sequential(inner).eval()
    expected = model(x)
    with trace(model if whole else None) as t:
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected)
        assert t.names() == []
        model(x)
        assert t.names()[-1] == ("0.y" if whole else "y")
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(exported(x), expected)


def test_check_compares_across_devices(monkeypatch, capsys):
    """A formula that was computed on the CPU beside a module on a GPU, which "meta" plays here."""
    x = torch.arange(6.0)
    with attn_lib.trace() as t:
        tap("y", x)
    mine = torch.empty(6, device="meta")
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: x.clone() if self.is_meta else self)
    t.check("y", mine)
    assert "equals the library's" in capsys.readouterr().out
