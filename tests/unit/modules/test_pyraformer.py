"""Pyramidal attention against its definition by a graph, its limits, its memory, and known mistakes."""

import math

import pytest
import torch
from torch import Tensor

import attn_lib
from attn_lib import measure
from attn_lib.temporal import CoarserScaleConstruction, PyramidalAttention
from attn_lib.temporal.pyraformer import pyramid_mask, pyramid_neighbours, scale_lengths
from tests.unit.draw import randn, randomised

# L, b, S: divides, with a remainder, with a remainder on two scales, fewer scales than asked, one step
PYRAMIDS = [(16, 4, 3), (18, 4, 3), (11, 2, 4), (7, 4, 4), (5, 3, 2), (1, 4, 3)]


def graph(L: int, b: int, S: int, w: int) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """The paper's graph, node (scale, position) -> its neighbours, from children to parents one edge at a time."""
    lengths = [L]
    while len(lengths) < S and lengths[-1] // b > 0:
        lengths.append(lengths[-1] // b)
    edges = {(s, p): set() for s, n in enumerate(lengths) for p in range(n)}
    for s, p in edges:
        edges[s, p] |= {(s, o) for o in range(p - (w - 1) // 2, p + (w - 1) // 2 + 1) if (s, o) in edges}
        if s + 1 < len(lengths):
            parent = (s + 1, p // b)
            if parent not in edges:  # the remainder, which fills no parent of its own
                parent = (s + 1, lengths[s + 1] - 1)
            edges[s, p].add(parent)
            edges[parent].add((s, p))
    return edges


def pam(channels=4, *, heads=2, b=2, S=3, w=3, sparse=True, construct=True, seed=0) -> PyramidalAttention:
    net = PyramidalAttention(channels, heads=heads, children=b, scales=S, neighbours=w, sparse=sparse,
                             construct=construct)
    return randomised(net, scale=0.5, seed=seed).requires_grad_(False)


# ---- the graph -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w", [1, 3, 5])
@pytest.mark.parametrize(("L", "b", "S"), PYRAMIDS)
def test_neighbours_are_those_of_the_papers_graph(L, b, S, w):
    edges = graph(L, b, S, w)
    nodes = list(edges)  # scale by scale, finest first: the library's numbers
    number, there = pyramid_neighbours(scale_lengths(L, b, S), b, w)
    children = [sum(s == scale - 1 for s, _ in edges[scale, p]) for scale, p in nodes]
    assert number.shape == there.shape == (len(nodes), w + 1 + max(children)), "no place that nobody needs"
    for i, node in enumerate(nodes):
        mine = number[i][there[i]].tolist()
        assert len(mine) == len(set(mine)), "nobody counts twice"
        assert {nodes[j] for j in mine} == edges[node], node
    mask = pyramid_mask(number, there)
    assert [[j for j in range(len(nodes)) if mask[i, j] == 0] for i in range(len(nodes))] == [
        sorted(nodes.index(o) for o in edges[node]) for node in nodes]


@pytest.mark.parametrize(("L", "b", "S"), PYRAMIDS)
def test_the_graph_is_symmetric_and_every_child_has_one_parent(L, b, S):
    number, there = pyramid_neighbours(scale_lengths(L, b, S), b, 3)
    seen = pyramid_mask(number, there) == 0
    assert torch.equal(seen, seen.T) and seen.diagonal().all()


def test_the_last_parent_of_the_lowest_scale_may_have_the_most_children():
    """65, 16, 4 and 1 nodes: 5 children below, 4 at the most above. A table for 4 would lose an edge."""
    lengths = scale_lengths(65, 4, 4)
    number, there = pyramid_neighbours(lengths, 4, 3)
    assert lengths == [65, 16, 4, 1] and number.shape[1] == 3 + 1 + 5
    last = 65 + 15
    assert set(number[last][there[last]].tolist()) == {last - 1, last, 65 + 16 + 3, *range(60, 65)}
    assert all(last in number[child][there[child]] for child in range(60, 65))


def test_any_two_steps_meet_within_as_many_layers_as_the_paper_says():
    """ℓ layers reach everything if ⌊L/b^(S−1)⌋ − 1 ≤ (w − 1)ℓ/2 at the coarsest scale, and up and down the pyramid."""
    L, b, S, w = 64, 4, 3, 3
    lengths = scale_lengths(L, b, S)
    seen = (pyramid_mask(*pyramid_neighbours(lengths, b, w)) == 0).double()
    reached, layers = torch.eye(len(seen), dtype=torch.float64), 0
    while not (reached[:L, :L] > 0).all():
        reached, layers = reached @ seen, layers + 1
    assert layers == (lengths[-1] - 1) + 2 * (S - 1)  # along the top, up and down
    assert layers < (L - 1) // ((w - 1) // 2), "one scale alone needs more"


# ---- equation --------------------------------------------------------------------------------------------------------


def equations(net: PyramidalAttention, x: Tensor, b: int, S: int, w: int) -> Tensor:
    """One series (L, C): scales, then attention along the graph's edges, all with loops."""
    cscm, L = net.construct, len(x)
    edges = graph(L, b, S, w)
    lengths = [sum(s == scale for s, _ in edges) for scale in range(max(s for s, _ in edges) + 1)]
    nodes, finer = [list(x)], [cscm.down(step) for step in x] if len(lengths) > 1 else None
    for scale in range(1, len(lengths)):
        conv, norm, elu = cscm.convs[scale - 1]
        made = []
        for p in range(lengths[scale]):
            summed = conv.bias + sum(conv.weight[:, :, c] @ finer[p * b + c] for c in range(b))
            normed = (summed - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
            made.append(elu(normed))
        finer = made
        nodes.append([cscm.up(node) for node in made])
    node = {(s, p): cscm.norm(nodes[s][p]) for s, p in edges}
    q, k, v = ({n: W(t) for n, t in node.items()} for W in (net.Wq, net.Wk, net.Wv))
    d, rows = x.shape[1] // net.heads, []
    for n, others in edges.items():
        y = torch.zeros(x.shape[1], dtype=x.dtype)
        for head in range(net.heads):
            part = slice(head * d, (head + 1) * d)
            weight = {o: math.exp((q[n][part] @ k[o][part]).item() / math.sqrt(d)) for o in others}
            y[part] = sum(a / sum(weight.values()) * v[o][part] for o, a in weight.items())
        rows.append(net.Wo(y))
    return torch.stack(rows)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("L", "b", "S"), PYRAMIDS)
def test_equals_the_equations(L, b, S, sparse):
    net, x = pam(b=b, S=S, sparse=sparse), randn(2, L, 4)
    torch.testing.assert_close(net(x), torch.stack([equations(net, item, b, S, 3) for item in x]))


def test_sparse_and_masked_are_the_same_function_and_have_the_same_gradient():
    sparse, masked = pam(b=4, S=3), pam(b=4, S=3, sparse=False)
    x = [randn(2, 23, 4).requires_grad_() for _ in range(2)]
    for net, z in zip((sparse, masked), x, strict=True):
        net(z).square().sum().backward()
    torch.testing.assert_close(x[0].grad, x[1].grad)


def test_layers_stack_on_all_nodes():
    first, second, x = pam(b=2, S=3), pam(b=2, S=3, construct=False, seed=2), randn(2, 11, 4)
    nodes = first(x)
    assert nodes.shape == (2, 11 + 5 + 2, 4) == second(nodes).shape
    with attn_lib.trace() as t:
        second(nodes)
    assert t.names() == ["nodes", "q", "k", "v", "A", "y"] and t["A"].shape == (2, 2, 18, 1, 3 + 4)
    torch.testing.assert_close(t["A"].sum(-1), torch.ones(2, 2, 18, 1, dtype=torch.float64))


@pytest.mark.parametrize(("b", "S"), [(2, 4), (4, 3), (3, 1)])
def test_the_length_is_read_off_the_number_of_nodes_or_refused(b, S):
    net, possible = pam(b=b, S=S, construct=False), {sum(scale_lengths(L, b, S)): L for L in range(1, 60)}
    for N in range(1, 60):
        if N in possible:
            assert net._length(N) == possible[N]
        else:
            with pytest.raises(ValueError, match=rf"N={N}; it must be the number of nodes of a pyramid"):
                net(randn(1, N, 4))


# ---- symmetry --------------------------------------------------------------------------------------------------------


def test_a_shift_by_a_whole_group_of_the_coarsest_scale_shifts_the_output_away_from_the_ends():
    net, x = pam(b=2, S=3), randn(1, 40, 4)
    shifted = net(x.roll(4, 1))
    torch.testing.assert_close(shifted[:, 12:32], net(x)[:, 8:28])
    assert not torch.allclose(net(x.roll(1, 1))[:, 9:29], net(x)[:, 8:28]), "by one step the groups fall elsewhere"


# ---- traps -----------------------------------------------------------------------------------------------------------


def test_trap_the_finest_scale_fully_causal():
    """A circulating mask lets every step see all steps before it: another operator, and N² pairs whatever the path."""
    L, b, S = 64, 4, 3
    _, there = pyramid_neighbours(scale_lengths(L, b, S), b, 3)
    pairs = int(there[:L].sum())
    assert pairs == 3 * L - 2 + L  # neighbours, and a parent each
    causal = torch.ones(L, L).tril()
    assert causal.sum() > 8 * pairs


def test_trap_the_remainder_is_lost():
    """Without a parent the last steps would be cut off from the coarser scales."""
    net, x = pam(b=4, S=2), randn(1, 11, 4)  # 11 = 2·4 + 3: three steps beyond the last full group
    far = torch.autograd.functional.jacobian(lambda x: net(x)[0, :11].sum(-1), x)[:, 0].abs().sum(-1)  # out, in
    assert far[10, 4:8].min() > 0, "over the last parent they see its other children's summary"
    assert (1, 1) in graph(11, 4, 2, 3)[0, 10]


def test_trap_absent_neighbours_take_weight():
    """At the ends slots are empty; they carry number 0 and must have no weight."""
    net, x = pam(b=2, S=3), randn(1, 11, 4)
    with attn_lib.trace() as t:
        net(x)
    _, there = pyramid_neighbours(scale_lengths(11, 2, 3), 2, 3)
    assert (t["A"][:, :, :, 0][:, :, ~there] == 0).all()


def test_trap_one_softmax_a_scale():
    """Neighbours, parent and children share one softmax: their weights together sum to 1."""
    net, x = pam(b=2, S=3), randn(1, 12, 4)
    with attn_lib.trace() as t:
        net(x)
    own = t["A"][0, 0, :, 0, :3].sum(-1)
    assert own.max() < 1 and not torch.allclose(own, torch.ones_like(own))


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_length_and_quadratic_with_a_mask():
    for sparse, least, most in ((True, 0.97, 1.03), (False, 1.7, 2.0)):
        kept = {}
        for L in (256, 1024):
            net = PyramidalAttention(8, heads=2, scales=3, sparse=sparse)
            kept[L] = measure.saved_bytes(net, torch.randn(1, L, 8))
        assert least < measure.fit_exponent(list(kept), list(kept.values())) < most, (sparse, kept)


# ---- the coarser scales ----------------------------------------------------------------------------------------------


def test_coarser_nodes_are_made_of_their_own_steps_alone():
    torch.manual_seed(0)
    cscm, x = CoarserScaleConstruction(4, children=3, scales=3).double().eval(), randn(1, 20, 4)
    nodes = cscm(x)
    assert nodes.shape == (1, 20 + 6 + 2, 4)
    changed = x.clone()
    changed[:, 4, 0] += 1.0  # step 4 is in group 1 of the second scale, and in group 0 of the third
    different = (cscm(changed) != nodes).any(-1)[0].nonzero()[:, 0].tolist()
    assert different == [4, 20 + 1, 26 + 0]


def test_a_single_node_cannot_be_normalised_in_training():
    net = PyramidalAttention(8, scales=3)
    with pytest.raises(ValueError, match="batch of 1 with L=17: its coarsest scale has one node"):
        net(torch.randn(1, 17, 8))
    net.eval()(torch.randn(1, 17, 8))
    net.train()(torch.randn(2, 17, 8))


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=6, heads=4), "channels=6 must be divisible by heads=4"),
    (dict(channels=8, children=1), "children=1 must be an integer of at least 2"),
    (dict(channels=8, neighbours=4), "neighbours=4 must be odd"),
    (dict(channels=8, bottleneck=9), "bottleneck=9 must be at most channels=8"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        PyramidalAttention(**options)


def test_a_short_series_leaves_no_parameter_without_a_gradient():
    """Of two steps there is one scale: what makes the others has a gradient of zeros, and changes nothing."""
    module, x = PyramidalAttention(8, heads=2, children=4, scales=3), torch.randn(2, 2, 8)
    y = module(x)
    with torch.no_grad():
        assert torch.equal(module(x), y)
    y.square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    construct = module.construct
    for layer in (construct.down, construct.up, construct.convs):
        assert all((p.grad == 0).all() for p in layer.parameters())
    assert all((p.grad != 0).any() for p in (*module.Wv.parameters(), *construct.norm.parameters()))
