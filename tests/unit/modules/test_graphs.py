"""Modules in graphs that are recorded: by tracing, by `torch.export`, in ONNX, by `torch.fx`.

A graph holds for sizes that it was not recorded at, or fails there; what a module cannot do stands in its entry
(`refuses`), and here is tested to be true.
"""

import contextlib
import inspect
import io
import warnings
from functools import cache

import pytest
import torch
from torch import nn
from torch.export import Dim

import attn_lib
from attn_lib import ops
from attn_lib.catalog import GRAPHS
from tests.unit.cases import CASES, each_case
from tests.unit.modules.test_contract import outputs
from tests.unit.reference import reference

RECORDED = {1: (40,), 2: (16, 24), 3: (10, 16, 24)}
OTHERS = {1: [(17,), (24,)], 2: [(17, 16), (24, 32)], 3: [(10, 17, 16), (10, 24, 32)]}
MADE_FOR = {"height": "H", "width": "W", "frames": "T"}  # options that fix a size


@pytest.fixture(autouse=True)
def quiet():
    """Tracing warns of every comparison of sizes; what they are worth is what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def recorded_at(id, variant=None):
    e = attn_lib.entry(id)
    return (12,) if "length" in e.options(variant) else RECORDED[len(e.layout_of(variant).free)]  # at most the length


def others(id, variant=None):
    return OTHERS[len(recorded_at(id, variant))]


def make(id, variant=None):
    module, inputs = attn_lib.example(id, variant, size=recorded_at(id, variant), generic=True)
    return module.eval(), inputs


def open_axes(id, variant=None):
    """For each input the axes whose size a graph may leave open, by number: all but batch, channels and fixed ones."""
    e = attn_lib.entry(id)
    fixed = {axis for option, axis in MADE_FOR.items() if option in e.options(variant)}
    return [{dim: axis for dim, axis in enumerate(axes) if axis not in {"B", "C", *fixed} and not axis.isdigit()}
            for axes in e.layout_of(variant).tensors]


def accepts_any_number(module):
    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())


@cache  # ONNX is made of the same
def exported(id, variant=None):
    """The example as `torch.export` records it with all sizes open, or None where it refuses."""
    module, inputs = make(id, variant)
    shapes = tuple({dim: Dim.DYNAMIC for dim in axes} for axes in open_axes(id, variant))
    shapes = (shapes,) if accepts_any_number(module) else shapes
    return refused(lambda: torch.export.export(module, inputs, dynamic_shapes=shapes))


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


def refused(record):
    """What `record()` returns, or None where it refuses."""
    try:
        return record()
    except Exception:  # whatever an exporter raises
        return None


def source(id):
    return inspect.getsource(inspect.getmodule(attn_lib.entry(id).cls))


def decides(id):
    """Whether there are steps that differ between a graph for one size and a graph for all."""
    return any(word in source(id) for word in ("open_size", "at_one_size"))


@each_case
def test_a_traced_module_is_right_at_any_size_or_fails(id, variant):
    module, inputs = make(id, variant)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, inputs, check_trace=False), file)
    graph = torch.jit.load(io.BytesIO(file.getvalue()))
    assert not failures(graph, module, id, variant, [recorded_at(id, variant)])
    failed = failures(graph, module, id, variant, others(id, variant))
    assert not failed or "any size" in attn_lib.entry(id).refuses, f"{failed}, and the entry does not say so"


@pytest.mark.parametrize("id", [id for id in attn_lib.list_modules() if "bilinear_sample" in source(id)])
def test_a_traced_module_that_samples_is_right_at_a_much_larger_size(id):
    """Where half of a map is missing, the other half may still look right."""
    module, inputs = make(id)
    graph = torch.jit.trace(module, inputs, check_trace=False)
    assert not failures(graph, module, id, None, [(64, 64)])


@pytest.mark.parametrize(("id", "variant"), [(i, v) for i, v in CASES if v is None or decides(i)],
                         ids=lambda value: str(value))
def test_an_exported_module_is_right_at_any_size_or_refuses(id, variant):
    (module, _), graph, axes = make(id, variant), exported(id, variant), open_axes(id, variant)
    if graph is None:
        failed = ["all"]
    else:
        assert not failures(graph.module(), module, id, variant, [recorded_at(id, variant)])
        failed = failures(graph.module(), module, id, variant, others(id, variant) if any(axes) else [])
    assert not failed or "any size" in attn_lib.entry(id).refuses, f"{failed}, and the entry does not say so"


def test_what_refuses_any_size_does():
    """The cases that entries speak of; all others of these modules hold for any size."""
    for id, variant in (("crossformer", "release"), ("dcnv3", "uneven"), ("pyraformer", None), ("safm", None)):
        graph, (module, _) = exported(id, variant), make(id, variant)
        assert graph is None or failures(graph.module(), module, id, variant, others(id, variant)), id
    stated = {id for id in attn_lib.list_modules() if "any size" in attn_lib.entry(id).refuses}
    assert stated == {"crossformer", "dcnv3", "pyraformer", "safm"}


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def onnx_file(id, *, dynamo, open):
    if dynamo:
        module, inputs = make(id)
        program = exported(id) if open else torch.export.export(module, inputs)
        return torch.onnx.export(program, dynamo=True, verbose=False).model_proto.SerializeToString()
    (module, inputs), file = make(id), io.BytesIO()
    names = [f"x{k}" for k in range(len(inputs))]
    dims = {name: {dim: f"{axis}_{name}" for dim, axis in axes.items()}
            for name, axes in zip(names, open_axes(id), strict=True)}
    with contextlib.redirect_stdout(io.StringIO()):  # where it fails it prints the whole graph
        torch.onnx.export(module, inputs, file, dynamo=False, opset_version=18, input_names=names,
                          dynamic_axes=dims if open else None)
    return file.getvalue()


def onnx_failures(id, *, dynamo, open):
    """The sizes at which an ONNX file of the example fails in onnxruntime, or "all" where there is none."""
    onnxruntime = reference("onnxruntime")
    file = refused(lambda: onnx_file(id, dynamo=dynamo, open=open))
    if file is None:
        return ["all"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]

    def graph(*xs):
        return tuple(session.run(None, {name: x.numpy() for name, x in zip(names, xs, strict=True)}))

    return failures(graph, make(id)[0], id, None, [recorded_at(id)] + others(id)[:1] * (open and any(open_axes(id))))


WAYS = [(id, dynamo) for id in attn_lib.list_modules() for dynamo in (False, True)]


@pytest.mark.parametrize(("id", "dynamo"), WAYS, ids=[f"{id}-{'export' if way else 'trace'}" for id, way in WAYS])
def test_onnx_gives_the_same_or_the_entry_says_why_not(id, dynamo, request):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="writing and running ONNX takes onnx, onnxscript and onnxruntime")
    if dynamo and not (decides(id) or request.config.getoption("--every-module")):
        pytest.skip("the exporter takes seconds; run for all with --every-module")
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


# ---- torch.fx --------------------------------------------------------------------------------------------------------


class OfTwo(nn.Sequential):
    def forward(self, x, z):
        return self[0](x, z)


class OfFour(nn.Sequential):
    def forward(self, x, z, u, w):
        return self[0](x, z, u, w)


AROUND = {1: nn.Sequential, 2: OfTwo, 4: OfFour}  # torch.fx does not follow any number of inputs


@each_case
def test_fx_keeps_the_module_whole_at_any_size(id, variant):
    module, inputs = make(id, variant)
    network = AROUND[len(inputs)](module)
    graph = torch.fx.symbolic_trace(network)
    assert [n.op for n in graph.graph.nodes if n.op.startswith("call")] == ["call_module"]
    assert sum(p.numel() for p in graph.parameters()) == sum(p.numel() for p in module.parameters())
    assert list(graph.state_dict()) == list(network.state_dict())
    assert not failures(graph, module, id, variant, [recorded_at(id, variant), *others(id, variant)])


@pytest.mark.parametrize("id", ["se", "biformer", "gated"])
def test_fx_traces_a_module_by_itself(id):
    module, inputs = make(id)
    graph = torch.fx.symbolic_trace(module)
    assert torch.equal(graph(*inputs), module(*inputs))
    assert getattr(graph, type(module).__name__) is module
    with pytest.raises(ValueError, match="must"):
        graph(inputs[0][:, :1], *inputs[1:])  # the checks are still there


def test_fx_does_not_take_a_subclass_for_what_it_calls():
    class Doubled(attn_lib.entry("se").cls):
        def forward(self, x):
            return 2 * super().forward(x)

    module, x = Doubled(8, reduction=2), torch.randn(1, 8, 2, 2)
    assert torch.equal(module(x), 2 * attn_lib.entry("se").cls.forward(module, x))
    with pytest.raises(ValueError, match="Doubled must be a leaf"):
        torch.fx.symbolic_trace(nn.Sequential(module))


def test_many_modules_compiled_one_by_one_are_all_compiled():
    """The compiler keeps eight graphs for a piece of code; one that all modules shared would be run eagerly then."""
    torch.compiler.reset()
    for id in ("se", "eca", "simam", "gct", "srm", "nam", "fca", "scse", "bam", "cbam"):
        module, inputs = make(id)
        torch.compile(module, backend="eager", fullgraph=True)(*inputs)  # an error, where it would be run eagerly


def test_features_are_taken_at_a_module_by_its_name():
    create = reference("torchvision.models.feature_extraction").create_feature_extractor
    module = attn_lib.create("se", channels=8, reduction=2)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(module, nn.ReLU()))
    x = torch.randn(2, 3, 9, 8)
    features = create(network, ["0", "1.0"])(x)
    assert torch.equal(features["1.0"], module(network[0](x))) and list(features) == ["0", "1.0"]


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
