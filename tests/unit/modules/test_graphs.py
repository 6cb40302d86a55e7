"""Modules in graphs that are recorded: by tracing, by `torch.export`, in ONNX, by `torch.fx`.

A graph holds for sizes that it was not recorded at, or fails there; what a module cannot do stands in its entry
(`refuses`), and here is tested to be true.
"""

import inspect
import io
import warnings

import pytest
import torch
from torch import nn
from torch.export import Dim

import attn_lib
from attn_lib import ops
from attn_lib.catalog import GRAPHS
from tests.unit.cases import CASES, each_case, each_module
from tests.unit.modules.test_contract import outputs
from tests.unit.reference import reference

RECORDED = {1: (40,), 2: (16, 24), 3: (10, 16, 24)}
OTHERS = {1: [(17,), (24,)], 2: [(17, 16), (24, 32)], 3: [(10, 17, 16), (10, 24, 32)]}
MADE_FOR = {"height": "H", "width": "W", "frames": "T", "length": "N"}  # options that fix a size


@pytest.fixture(autouse=True)
def quiet():
    """Tracing warns of every comparison of sizes; what they are worth is what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def recorded_at(id, variant):
    return RECORDED[len(attn_lib.entry(id).layout_of(variant).free)]


def make(id, variant=None):
    e = attn_lib.entry(id)
    free = len(e.layout_of(variant).free)
    size = RECORDED[free] if "length" not in e.options(variant) else (20,)
    module, inputs = attn_lib.example(id, variant, size=size, generic=True)
    return module.eval(), inputs


def open_axes(id, variant=None):
    """For each input the axes whose size a graph may leave open, by number: all but batch, channels and fixed ones."""
    e = attn_lib.entry(id)
    fixed = {axis for option, axis in MADE_FOR.items() if option in e.options(variant)}
    return [{dim: axis for dim, axis in enumerate(axes) if axis not in {"B", "C", *fixed} and not axis.isdigit()}
            for axes in e.layout_of(variant).tensors]


def accepts_any_number(module):
    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())


def exported(module, inputs, axes):
    shapes = tuple({dim: Dim.DYNAMIC for dim in dims} for dims in axes)
    return torch.export.export(module, inputs, dynamic_shapes=(shapes,) if accepts_any_number(module) else shapes)


def failures(graph, module, id, variant, sizes):
    """At which sizes the graph fails, of those that the module takes; where it does not, it is right."""
    failed = []
    for size in sizes:
        inputs = attn_lib.entry(id).make_inputs(size=size, variant=variant)
        try:
            expected = outputs(module(*inputs))
        except (ValueError, RuntimeError):  # a module for one size
            continue
        try:
            found = outputs(graph(*inputs))
        except Exception:  # whatever a runtime raises
            failed.append(size)
            continue
        for y, e in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.as_tensor(y), e.detach(), rtol=1e-4, atol=1e-4, msg=f"wrong at {size}")
    return failed


def refused(record, *args):
    """What `record(*args)` returns, or None where it refuses."""
    try:
        return record(*args)
    except Exception:  # whatever an exporter raises
        return None


@each_case
def test_a_traced_module_is_right_at_any_size_or_fails(id, variant):
    module, inputs = make(id, variant)
    graph = torch.jit.trace(module, inputs, check_trace=False)
    others = OTHERS[len(recorded_at(id, variant))] + [(64, 64)] * (variant is None and inputs[0].ndim == 4)
    assert not failures(graph, module, id, variant, [s for s in [recorded_at(id, variant)] if variant is None])
    failed = failures(graph, module, id, variant, others)
    assert not failed or "any size" in attn_lib.entry(id).refuses, f"{failed}, and the entry does not say so"


DECIDES = {id for id in attn_lib.list_modules() if any(
    word in inspect.getsource(inspect.getmodule(attn_lib.entry(id).cls))
    for word in ("open_size", "at_one_size", "bilinear_sample", "grid_means", "pad_to_multiple"))}


@pytest.mark.parametrize(("id", "variant"), [(i, v) for i, v in CASES if v is None or i in DECIDES],
                         ids=lambda value: str(value))
def test_an_exported_module_is_right_at_any_size_or_refuses(id, variant):
    module, inputs = make(id, variant)
    graph = refused(exported, module, inputs, open_axes(id, variant))
    failed = ["all"] if graph is None else failures(graph.module(), module, id, variant,
                                                    OTHERS[len(recorded_at(id, variant))])
    assert not failed or "any size" in attn_lib.entry(id).refuses, f"{failed}, and the entry does not say so"


@pytest.mark.parametrize("id", [id for id in attn_lib.list_modules() if "any size" in attn_lib.entry(id).refuses])
def test_what_refuses_any_size_does(id):
    sizes = OTHERS[len(recorded_at(id, None))]
    for variant in (None, *attn_lib.entry(id).variants):
        module, inputs = make(id, variant)
        graph = refused(exported, module, inputs, open_axes(id, variant))
        if graph is None or failures(graph.module(), module, id, variant, sizes):
            return
    pytest.fail(f"{id} holds for any size: its entry may say so")


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def onnx_file(module, inputs, axes, *, dynamo):
    names = [f"x{k}" for k in range(len(inputs))]
    if dynamo:
        shapes = tuple({dim: Dim.DYNAMIC for dim in dims} for dims in axes)
        shapes = (shapes,) if accepts_any_number(module) else shapes
        program = torch.onnx.export(module, inputs, dynamo=True, verbose=False, input_names=names,
                                    dynamic_shapes=shapes)
        return program.model_proto.SerializeToString()
    file = io.BytesIO()
    dims = {name: {dim: f"{axis}{name}" for dim, axis in dims.items()} for name, dims in zip(names, axes, strict=True)}
    torch.onnx.export(module, inputs, file, dynamo=False, opset_version=18, input_names=names, dynamic_axes=dims)
    return file.getvalue()


def onnx_failures(id, *, dynamo, open):
    """The sizes at which an ONNX file of the example fails in onnxruntime, or "all" where there is none."""
    onnxruntime = reference("onnxruntime")
    module, inputs = make(id)
    axes = open_axes(id) if open else [{} for _ in inputs]
    file = refused(lambda: onnx_file(module, inputs, axes, dynamo=dynamo))
    if file is None:
        return ["all"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]

    def graph(*xs):
        return tuple(session.run(None, {name: x.numpy() for name, x in zip(names, xs, strict=True)}))

    size = (20,) if "length" in attn_lib.entry(id).options() else recorded_at(id, None)
    return failures(graph, module, id, None, [size] + OTHERS[len(size)][:1] * open)


@pytest.mark.parametrize("dynamo", [True, False], ids=["export", "trace"])
@each_module
def test_onnx_gives_the_same_or_the_entry_says_why_not(id, dynamo):
    if not dynamo:
        pytest.importorskip("onnx", reason="the older exporter needs it")
    pytest.importorskip("onnxruntime", reason="runs the files; the extra 'test' holds it")
    pytest.importorskip("onnxscript", reason="torch.onnx needs it; the extra 'test' holds it")
    how, refuses = "onnx" if dynamo else "onnx by trace", attn_lib.entry(id).refuses
    closed = {how, f"{how} at any size"} & set(refuses)
    failed = onnx_failures(id, dynamo=dynamo, open=True)
    assert not failed or closed or "any size" in refuses, f"{failed}, and the entry does not say so"
    assert failed or not closed, f"works: the entry need not refuse {closed}"
    if failed:
        assert bool(onnx_failures(id, dynamo=dynamo, open=False)) == (how in refuses)


def test_reasons_are_sentences():
    for id in attn_lib.list_modules():
        for graph, reason in attn_lib.entry(id).refuses.items():
            assert graph in GRAPHS and len(reason) > 20, id


# ---- what they share -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 3), (5, 7), (9, 16)])
def test_means_of_a_grid_are_those_of_torch_also_in_a_graph(rows, cols):
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    expected = torch.nn.functional.adaptive_avg_pool2d(x, (rows, cols))
    assert torch.equal(ops.grid_means(x, rows, cols), expected)
    graph = torch.jit.trace(lambda x: ops.grid_means(x, rows, cols), torch.randn(2, 3, 4, 4, dtype=torch.float64))
    torch.testing.assert_close(graph(x), expected)


def test_a_graph_that_is_bound_to_one_size_says_so():
    class Bound(nn.Module):
        def forward(self, x):
            x, H = ops.at_one_size(x, 2)
            assert type(H) is int
            return x * H

    x = torch.randn(1, 2, 4, 5)
    graph = torch.jit.trace(Bound(), x)
    assert torch.equal(graph(x), 4 * x)
    assert torch.equal(graph(x[..., :2]), 4 * x[..., :2]), "the other axis is free"
    with pytest.raises(RuntimeError, match="sum exactly to 5"):
        graph(torch.randn(1, 2, 5, 4))
    with pytest.raises(Exception, match="constant"):
        torch.export.export(Bound(), (x,), dynamic_shapes=({2: Dim.DYNAMIC},))


@pytest.mark.parametrize(("n", "d", "expected"), [(1, 1, 1), (7, 7, 1), (8, 7, 2), (6, 7, 1), (21, 7, 3)])
def test_ceil_div(n, d, expected):
    assert ops.ceil_div(n, d) == expected
