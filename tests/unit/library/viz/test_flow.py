"""The flow diagram tells the truth."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import attn_lib
from attn_lib import viz
from attn_lib.tap import tap
from attn_lib.viz.flow import _plan, _routes
from attn_lib.viz.graph import dependence
from attn_lib.viz.words import symbol
from tests.unit.cases import CASES
from tests.unit.library.viz.drawn import SAY
from tests.unit.library.viz.tapping import FLOWS, Odds, graph_of


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


def test_inputs_have_the_axes_of_the_layout_that_the_module_was_made_for():
    several = [(id, v) for id, v in CASES if "layout" in attn_lib.entry(id).options(v)]
    assert several
    for id, variant in several:
        nodes = dependence(*attn_lib.example(id, variant)).nodes.values()
        dims = [node.dims for node in nodes if node.kind == "input"]
        assert ", ".join(dims) == attn_lib.entry(id).layout_of(variant)


def test_numbers_within_numbers_are_no_names():
    module = attn_lib.create("pyraformer", channels=8, heads=2, children=2, scales=2).eval()
    nodes = dependence(module, (torch.randn(1, 8, 8),)).nodes
    assert "conv, batch norm, elu" in nodes["nodes"].caption and "₀" not in nodes["nodes"].caption


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
    assert "batch norm" in odds["y"].caption and "norm norm" not in odds["y"].caption  # its layer is called `norm`
    assert not odds["top"].grounded and odds["w"].grounded
    assert odds["x"].dims == "B N C" and odds["again"].kind == "output" and odds["y"].kind == "tap"


def test_the_catalogs_axes_name_the_input():
    module, inputs = attn_lib.example("se")
    nodes = dependence(module, inputs).nodes
    assert nodes["x"].dims == "B C H W"
    assert nodes["z"].caption == "mean over H, W"


def test_the_librarys_own_maximum_is_spoken_like_amax():
    nodes = dependence(*attn_lib.example("cbam")).nodes
    assert nodes["c_max"].caption == "max over H, W" and nodes["s_max"].caption == "max over C"


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
    [("gamma", "γ"), ("W1", "W₁"), ("x_p", "xₚ"), ("z_max", "z_max"), ("H''", "H″"), ("Δp", "Δp"), ("k12", "k₁₂"),
     ("Delta_p", "Δₚ"), ("lam", "λ"), ("mu", "μ")],
)
def test_symbols(name, said):
    assert symbol(name) == said
