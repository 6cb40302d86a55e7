"""MTGNN's layers against their paper, their release, their limits, and the errors in circulation.

No package that is kept well holds them.
"""

import copy
import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.temporal import DilatedInception, GraphLearning, MixHopPropagation, TemporalConv
from tests.unit.draw import D, permutation, randn, randomised

# options of the layer, and T, N
CASES = [
    (dict(channels=4), (9, 2)),
    (dict(channels=2, out_channels=7, kernel_sizes=(2, 3, 1), dilation=2), (8, 3)),
    (dict(channels=3, out_channels=4, kernel_sizes=(4, 2)), (2, 1)),
    (dict(channels=4, dilation=3), (19, 1)),
    (dict(channels=1, kernel_sizes=(1,)), (1, 2)),
]


def make(channels=4, *, seed=0, **options):
    return randomised(TemporalConv(channels, **options), scale=0.6, seed=seed).requires_grad_(False)


# ---- the temporal convolution ----------------------------------------------------------------------------------------


def inception(x, layer):
    """Branch by branch and step by step: Σₛ f(s) · x(t − d s) + b, with zeros before the series begins."""
    B, T, N, C = x.shape
    d, widest = layer.dilation, max(layer.kernel_sizes)
    To = max(1, T - d * (widest - 1))
    columns = []
    for k, conv in zip(layer.kernel_sizes, layer.tconv, strict=True):
        weight, bias = conv.weight[:, :, 0].tolist(), conv.bias.tolist()
        for o in range(len(bias)):
            y = torch.zeros(B, To, N, dtype=D)
            for b, n, i in product(range(B), range(N), range(To)):
                t = T - To + i  # all branches end where the series ends
                total = bias[o]
                for s, c in product(range(k), range(C)):
                    if t - d * s >= 0:
                        total += weight[o][c][k - 1 - s] * x[b, t - d * s, n, c].item()
                y[b, i, n] = total
            columns.append(y)
    return torch.stack(columns, 3)


def from_the_paper(x, layer):
    """y = tanh(f(x)) ⊙ σ(g(x)) in plain numbers."""
    f, g = inception(x, layer.filter), inception(x, layer.gate)
    y = [math.tanh(a) / (1 + math.exp(-b)) for a, b in zip(f.flatten().tolist(), g.flatten().tolist(), strict=True)]
    return torch.tensor(y, dtype=D).view(f.shape)


@pytest.mark.parametrize(("options", "size"), CASES)
def test_equals_the_paper(options, size):
    layer = make(**options)
    x = randn(2, *size, layer.filter.channels)
    torch.testing.assert_close(layer(x), from_the_paper(x, layer), rtol=0, atol=1e-13)


class Wrong(TemporalConv):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def one(self, x, layer):
        e, widest = self.mistake, max(layer.kernel_sizes)
        x, d = x.permute(0, 3, 2, 1), layer.dilation
        To, parts = x.shape[3] - d * (widest - 1), []
        for k, conv in zip(layer.kernel_sizes, layer.tconv, strict=True):
            weight = conv.weight.flip(3) if e == "kernels turned round" else conv.weight
            dilation = 1 if e == "dilation ignored" else d
            y = F.conv2d(x, weight, None if e == "bias dropped" else conv.bias, dilation=(1, dilation))
            if e == "padded to the same length":
                y = F.conv2d(F.pad(x, (d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2)), weight, conv.bias,
                             dilation=(1, d))
            parts.append(y[..., :To] if e == "cut off at the end" else y[..., -To:])
        return torch.cat(parts[::-1] if e == "branches reversed" else parts, 1).permute(0, 3, 2, 1)

    def forward(self, x):
        e = self.mistake
        f = self.one(x, self.filter)
        g = self.one(x, self.filter if e == "one layer for both" else self.gate)
        return {"gates exchanged": lambda: f.sigmoid() * g.tanh(), "ReLU for tanh": lambda: f.relu() * g.sigmoid(),
                "no tanh": lambda: f * g.sigmoid(), "sum": lambda: f.tanh() + g.sigmoid(),
                "softmax": lambda: f.tanh() * g.softmax(3)}.get(e, lambda: f.tanh() * g.sigmoid())()


@pytest.mark.parametrize("mistake", [
    "kernels turned round", "dilation ignored", "bias dropped", "padded to the same length", "cut off at the end",
    "branches reversed", "one layer for both", "gates exchanged", "ReLU for tanh", "no tanh", "sum", "softmax",
])
def test_the_comparison_with_the_paper_notices(mistake):
    layer, x = make(dilation=2), randn(2, 15, 2, 4)
    wrong = Wrong(4, dilation=2).to(D)
    wrong.load_state_dict(layer.state_dict())
    expected = from_the_paper(x, layer)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-13)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equation():
    layer, x = make(), randn(2, 10, 3, 4)
    with attn_lib.trace() as t:
        y = layer(x)
    assert t.names() == ["f", "g", "y"] and t.sizes() == {"B": 2, "To": 4, "N": 3, "O": 4}
    assert torch.equal(y, t["f"] * t["g"])


def test_the_future_is_not_seen():
    layer, x = make(), randn(1, 12, 2, 4)
    y = layer(x)
    assert y.shape == (1, 6, 2, 4)
    for step in range(12):
        other = x.clone()
        other[:, step] += 1.0
        changed = ((layer(other) - y).abs().amax((0, 2, 3)) > 1e-12).nonzero()[:, 0].tolist()
        assert changed == [i for i in range(6) if i <= step <= i + 6]  # step i of y ends at i + 6 and begins at i
    # a linear layer along time, which restores 12 steps, joins all of them
    restored = (y.movedim(1, 3) @ randn(6, 12)).movedim(3, 1)
    other = x.clone()
    other[:, -1] += 1.0
    assert ((layer(other).movedim(1, 3) @ randn(6, 12)).movedim(3, 1) - restored)[:, 0].abs().max() > 1e-2


def test_a_short_series_is_padded_in_front():
    layer, x = make(dilation=2), randn(2, 5, 3, 4)
    padded = torch.cat([torch.zeros(2, 8, 3, 4, dtype=D), x], 1)  # 13 steps: 2 · (7 − 1) + 1
    assert layer(x).shape == (2, 1, 3, 4)
    torch.testing.assert_close(layer(x), layer(padded), rtol=0, atol=1e-14)
    with pytest.raises(RuntimeError, match="greater than actual input size"):
        layer.filter.tconv[3](x.permute(0, 3, 2, 1))


@pytest.mark.parametrize("O", [4, 5, 6, 7, 32])
def test_no_channel_is_lost(O):  # noqa: E741
    layer = TemporalConv(3, O)
    assert layer(torch.randn(1, 9, 2, 3)).shape[3] == O
    widths = [conv.out_channels for conv in layer.filter.tconv]
    assert sum(widths) == O and max(widths) - min(widths) <= 1 and widths == sorted(widths, reverse=True)
    assert 4 * int(O / 4) == O - O % 4  # the release's


def test_a_shift_in_time_shifts_the_output():
    layer, x = make(), randn(1, 20, 2, 4)
    torch.testing.assert_close(layer(x[:, 3:]), layer(x)[:, 3:], rtol=0, atol=1e-13)


def test_places_are_convolved_each_by_itself():
    layer, x = make(), randn(2, 10, 5, 4)
    torch.testing.assert_close(layer(x[:, :, 2:3]), layer(x)[:, :, 2:3], rtol=0, atol=1e-13)


def test_an_exported_layer_takes_other_lengths():
    layer, x = make().float(), torch.randn(2, 10, 3, 4)
    T = torch.export.Dim("T", min=8, max=60)
    graph = torch.export.export(layer, (x,), dynamic_shapes=({1: T},)).module()
    for steps in (9, 10, 33):
        x = torch.randn(2, steps, 3, 4)
        torch.testing.assert_close(graph(x), layer(x))


def test_a_state_of_the_release_loads():
    shapes = {"tconv.0": 2, "tconv.1": 3, "tconv.2": 6, "tconv.3": 7}
    state = {name: tuple(p.shape) for name, p in DilatedInception(32).state_dict().items()}
    assert state == {f"{name}.weight": (8, 32, 1, k) for name, k in shapes.items()} | {
        f"{name}.bias": (8,) for name in shapes}


@pytest.mark.parametrize(("call", "message"), [
    (lambda: TemporalConv(4, 3), "out_channels=3 must be at least 4, one for each of kernel_sizes"),
    (lambda: TemporalConv(4, kernel_sizes=()), r"kernel_sizes=\(\) must hold one integer a branch, such as \(2, 3"),
    (lambda: TemporalConv(4, kernel_sizes=3), "kernel_sizes=3 must hold"),
    (lambda: TemporalConv(4, kernel_sizes=(2, 0, 3)), "kernel_sizes=0 must be an integer of at least 1"),
    (lambda: TemporalConv(4, dilation=0), "dilation=0 must be an integer of at least 1"),
    (lambda: DilatedInception(4)(torch.randn(2, 9, 3, 5)), "axis C must be 4, not 5"),
    (lambda: GraphLearning(4, nodes=0), "nodes=0 must be an integer of at least 1"),
    (lambda: GraphLearning(4, nodes=3, alpha=0.0), "alpha=0.0 must be a positive number"),
    (lambda: GraphLearning(4, nodes=3, noise=-0.1), "noise=-0.1 must be a positive number"),
    (lambda: GraphLearning(4, nodes=3, features=torch.randn(4, 2)), "features has shape .* axis N must be 3, not 4"),
    (lambda: MixHopPropagation(4, depth=0), "depth=0 must be an integer of at least 1"),
    (lambda: MixHopPropagation(4, beta=1.5), "beta=1.5 must lie between 0 and 1"),
    (lambda: MixHopPropagation(4)(torch.randn(1, 2, 3, 4), torch.rand(4, 4)), r"A .* \(4, 4\); it must be \(3, 3\)"),
])
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- the graph -------------------------------------------------------------------------------------------------------


def make_graph(nodes=6, *, d=3, topk=20, scale=0.3, seed=0, **options):
    torch.manual_seed(seed)
    graph = GraphLearning(d, nodes=nodes, topk=topk, **options).to(D)
    return randomised(graph, scale=scale, seed=seed).requires_grad_(False)


def learned(graph, index):
    """Equations 1 to 6 in plain numbers."""
    E1, E2 = (graph.E1, graph.E2) if graph.Z is None else (graph.Z, graph.Z)

    def nodes(E, layer):
        bias = layer.bias.tolist() if layer.bias is not None else [0.0] * layer.out_features
        return [[math.tanh(graph.alpha * (b + sum(w * e for w, e in zip(row, E[i].tolist(), strict=True))))
                 for row, b in zip(layer.weight.tolist(), bias, strict=True)] for i in index]

    M1, M2 = nodes(E1, graph.Wm1), nodes(E2, graph.Wm2)
    A = []
    for i in range(len(index)):
        row = []
        for j in range(len(index)):
            both = sum(a * b - c * d for a, b, c, d in zip(M1[i], M2[j], M2[i], M1[j], strict=True))
            row.append(max(0.0, math.tanh(graph.alpha * both)))
        best = sorted(range(len(row)), key=lambda j: -row[j])[:graph.topk]
        A.append([v if j in best else 0.0 for j, v in enumerate(row)])
    return torch.tensor(A, dtype=D)


@pytest.mark.parametrize("options", [dict(), dict(topk=2), dict(bias=True, topk=3, alpha=1.0), dict(topk=1, alpha=0.5)])
def test_the_graph_is_the_papers(options):
    graph = make_graph(**options)
    torch.testing.assert_close(graph(), learned(graph, range(6)), rtol=0, atol=1e-14)
    index = torch.tensor([4, 0, 3])  # a part of the nodes, as in training on sub-graphs
    torch.testing.assert_close(graph(index), learned(graph, index.tolist()), rtol=0, atol=1e-14)
    assert (graph.Wm1.bias is None) == (not options.get("bias"))
    if options.get("bias"):
        for layer in (graph.Wm1, graph.Wm2):
            layer.bias.fill_(0.0)
        assert (graph() - learned(make_graph(**options), range(6))).abs().max() > 1e-2


def test_the_graph_of_features_is_the_papers():
    graph = make_graph(features=randn(6, 4), topk=3)
    assert graph.E1 is None and graph.Wm1.in_features == 4 and "Z" in graph.state_dict()
    torch.testing.assert_close(graph(), learned(graph, range(6)), rtol=0, atol=1e-14)


class WrongGraph(GraphLearning):
    """Readings of the graph that differ from the paper."""

    mistake = None

    def forward(self):
        e, a = self.mistake, self.alpha
        M1, M2 = (torch.tanh((1 if e == "α once" else a) * W(E)) for W, E in ((self.Wm1, self.E1), (self.Wm2, self.E2)))
        if e == "one embedding":
            M2 = torch.tanh(a * self.Wm2(self.E1))
        both = M1 @ M2.T if e == "symmetric part, too" else M1 @ M2.T - M2 @ M1.T
        A = {"no ReLU": torch.tanh(a * both), "sigmoid": torch.sigmoid(a * both)}.get(e, torch.tanh(a * both).relu())
        if e == "softmax":
            A = both.softmax(1)
        _, best = A.topk(self.topk, 0 if e == "best of a column" else 1)
        mask = torch.zeros_like(A).scatter(0 if e == "best of a column" else 1, best, 1.0)
        return A if e == "all edges" else mask if e == "edges without weights" else A * mask


@pytest.mark.parametrize("mistake", ["α once", "one embedding", "symmetric part, too", "no ReLU", "sigmoid", "softmax",
                                     "best of a column", "all edges", "edges without weights"])
def test_the_comparison_of_graphs_notices(mistake):
    graph = make_graph(topk=3 if mistake != "no ReLU" else 5)
    wrong = WrongGraph(3, nodes=6, topk=graph.topk).to(D)
    wrong.load_state_dict(graph.state_dict())
    expected = learned(graph, range(6))
    torch.testing.assert_close(wrong(), expected, rtol=0, atol=1e-14)
    wrong.mistake = mistake
    assert (wrong() - expected).abs().max() > 1e-2


def test_of_each_pair_one_direction_survives_and_a_row_may_be_empty():
    graph = make_graph(8)
    A = graph()
    assert (A * A.T).abs().max() == 0 and (A.diagonal() == 0).all() and (A + A.T + torch.eye(8) > 0).all()
    assert (0 <= A).all() and (A < 1).all()
    rows = [(make_graph(4, seed=seed)() > 0).any(1).all().item() for seed in range(20)]
    assert not all(rows)


def test_the_graph_is_learned():
    """Nobody gives one: a gradient reaches both embeddings and both matrices, and the edges move."""
    graph = GraphLearning(3, nodes=6, topk=3).to(D)
    with torch.no_grad():
        for seed, p in enumerate(graph.parameters()):
            p.copy_(0.3 * randn(*p.shape, seed=seed))
    before, wanted = graph().detach(), torch.diag(torch.full((5,), 0.9, dtype=D), 1)
    optimiser = torch.optim.Adam(graph.parameters(), lr=0.03)
    for _ in range(150):
        optimiser.zero_grad()
        (graph() - wanted).square().sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in graph.parameters())
        optimiser.step()
    assert (graph() - wanted).square().sum() < 0.3 * (before - wanted).square().sum()


def test_the_choice_is_deterministic():
    graph = GraphLearning(40, nodes=30, topk=3).eval()
    assert torch.equal(graph(), graph())
    noisy = GraphLearning(40, nodes=30, topk=3, noise=0.01).eval()
    assert any((noisy() != noisy()).any() for _ in range(5))
    # where no two values lie within the noise it changes nothing
    calm = GraphLearning(2, nodes=3, topk=1, noise=1e-9).to(D)
    calm.load_state_dict(make_graph(3, d=2, topk=1).state_dict())
    torch.testing.assert_close(calm(), learned(calm, range(3)), rtol=0, atol=1e-14)


def test_ties_go_to_the_first_node():
    torch.manual_seed(0)
    graph = GraphLearning(40, nodes=30, topk=3)
    full = GraphLearning(40, nodes=30, topk=30)
    full.load_state_dict(graph.state_dict())
    assert ((full() == 1).sum(1) > 3).sum() > 10, "N(0, 1) embeddings saturate: many rows have more than 3 ones"
    for row, kept in zip(full().tolist(), graph().tolist(), strict=True):
        best = sorted(range(30), key=lambda j: (-row[j], j))[:3]
        assert [j for j, v in enumerate(kept) if v] == sorted(j for j in best if row[j])


def test_a_mask_of_another_type_is_a_trap():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        A = GraphLearning(4, nodes=5, topk=2).to(dtype)()
        assert A.dtype == dtype and A.isfinite().all()
    adjacency = torch.rand(5, 5, dtype=D)
    with pytest.raises(RuntimeError, match="Expected self"):
        values, best = adjacency.topk(2, 1)
        torch.zeros(5, 5).scatter_(1, best, values.fill_(1))


def test_fewer_nodes_than_k():
    graph = make_graph(6)
    assert graph.topk == 20
    everything = make_graph(6, topk=6)
    assert torch.equal(graph(), everything())
    with pytest.raises(RuntimeError, match="out of range"):
        graph().topk(20, 1)


def test_graphs_of_permuted_nodes_are_permuted():
    graph, order = make_graph(), permutation(6)
    torch.testing.assert_close(graph(order), graph()[order][:, order], rtol=0, atol=1e-14)


# ---- mix-hop propagation ---------------------------------------------------------------------------------------------


def make_hops(C=3, O=2, *, seed=0, **options):  # noqa: E741
    return randomised(MixHopPropagation(C, O, **options), seed=seed).requires_grad_(False)


def mixed(x, A, layer):
    """Hop by hop and node by node: means of a node and its neighbours, then Σₖ H⁽ᵏ⁾ W⁽ᵏ⁾."""
    (N, C), beta, y, H = x.shape[2:], layer.beta, None, x.clone()
    for k in range(layer.depth + 1):
        if k:
            hop = torch.zeros_like(x)
            for i in range(N):
                share = [A[i, j].item() + (i == j) for j in range(N)]
                hop[:, :, i] = sum(w / sum(share) * H[:, :, j] for j, w in enumerate(share))
            H = beta * x + (1 - beta) * hop
        W = layer.Wh.weight[:, k * C:(k + 1) * C]
        part = torch.stack([sum(W[o, c] * H[..., c] for c in range(C)) for o in range(len(W))], 3)
        y = part + layer.Wh.bias if y is None else y + part
    return y


@pytest.mark.parametrize("options", [dict(), dict(depth=1, beta=0.3), dict(depth=3, beta=0.0), dict(beta=1.0)])
def test_mix_hop_is_the_papers(options):
    layer, x, A = make_hops(**options), randn(2, 3, 4, 3), randn(4, 4, seed=5).relu()
    torch.testing.assert_close(layer(x, A), mixed(x, A, layer), rtol=0, atol=1e-13)


class WrongHops(MixHopPropagation):
    """Readings of the propagation that differ from the paper."""

    mistake = None

    def forward(self, x, A):
        e, b = self.mistake, self.beta
        S = A if e == "no self-loop" else A + torch.eye(len(A), dtype=A.dtype)
        S = {"columns normalised": S / S.sum(0), "not normalised": S}.get(e, S / S.sum(1, keepdim=True))
        if e == "symmetrically normalised":
            S = (A + torch.eye(len(A), dtype=A.dtype)) / (S.sum(1)[:, None] * S.sum(1)).sqrt()
        if e == "transposed":
            S = S.T
        H = [x]
        for _ in range(self.depth):
            hop = torch.einsum("ij,btjc->btic", S, H[-1])
            H.append(hop if e == "nothing of x kept" else b * H[-1] + (1 - b) * hop if e == "β of the last hop" else
                     b * hop + (1 - b) * x if e == "β and 1 − β exchanged" else b * x + (1 - b) * hop)
        if e == "last hop alone":
            H = [torch.zeros_like(x)] * self.depth + [H[-1]]
        return self.Wh(torch.cat(H[::-1] if e == "hops reversed" else H, 3))


@pytest.mark.parametrize("mistake", ["no self-loop", "columns normalised", "not normalised", "symmetrically normalised",
                                     "transposed", "nothing of x kept", "β of the last hop", "β and 1 − β exchanged",
                                     "last hop alone", "hops reversed"])
def test_the_comparison_of_hops_notices(mistake):
    layer, x, A = make_hops(beta=0.3), randn(2, 3, 4, 3), randn(4, 4, seed=5).abs()
    wrong = WrongHops(3, 2, beta=0.3).to(D)
    wrong.load_state_dict(layer.state_dict())
    torch.testing.assert_close(wrong(x, A), mixed(x, A, layer), rtol=0, atol=1e-13)
    wrong.mistake = mistake
    assert (wrong(x, A) - mixed(x, A, layer)).abs().max() > 1e-2


def test_mix_hop_along_the_transpose_is_a_trap():
    """Rows of Ã sum to 1, so a constant over the nodes stays as it is; columns do not."""
    layer, A = make_hops(), randn(4, 4, seed=5).abs()
    x = randn(2, 3, 1, 3).expand(2, 3, 4, 3)
    with attn_lib.trace() as t:
        layer(x, A)
    torch.testing.assert_close(t["A_hat"].sum(1), torch.ones(4, dtype=D))
    torch.testing.assert_close(t["H:3"], x)
    assert (torch.einsum("ij,btic->btjc", t["A_hat"], x) - x).abs().max() > 0.1  # the first version's


def test_with_beta_one_no_hop_goes_anywhere():
    layer, x, A = make_hops(beta=1.0), randn(2, 3, 4, 3), randn(4, 4, seed=5).relu()
    assert torch.equal(layer(x, A), layer.Wh(torch.cat([x, x, x], 3)))


def test_without_edges_every_node_is_by_itself():
    layer, x = make_hops(), randn(2, 3, 4, 3)
    torch.testing.assert_close(layer(x, torch.zeros(4, 4, dtype=D)), layer.Wh(torch.cat([x, x, x], 3)))


def test_both_directions_together_do_not_tell_a_graph_from_its_transpose():
    """Where the network adds one layer on A and another on Aᵀ, Aᵀ and exchanged layers are the same network."""
    one, two, x, A = make_hops(), make_hops(seed=2), randn(2, 3, 4, 3), randn(4, 4, seed=5).relu()

    def network(A, forth, back):
        return forth(x, A) + back(x, A.T)

    torch.testing.assert_close(network(A.T, two, one), network(A, one, two), rtol=0, atol=1e-14)
    assert (network(A.T, one, two) - network(A, one, two)).abs().max() > 1e-2


# ---- contract and cost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [DilatedInception, MixHopPropagation])
def test_the_further_layers_keep_the_contract(cls):
    torch.manual_seed(0)
    layer = cls(8, 9)
    x = torch.randn(2, 9, 5, 8, requires_grad=True)
    inputs = (x, torch.rand(5, 5)) if isinstance(layer, MixHopPropagation) else (x,)
    y = layer(*inputs)
    y.square().sum().backward()
    assert x.grad.abs().sum() > 0 and all(p.grad.abs().sum() > 0 for p in layer.parameters())
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(*inputs), y)
    torch.testing.assert_close(torch.export.export(layer, inputs).module()(*inputs), y)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.no_grad(), torch.autocast("cpu", dtype):
            cast = layer(*inputs)
        half = copy.deepcopy(layer).to(dtype)(*(t.detach().to(dtype) for t in inputs))
        for h in (cast, half):
            assert h.dtype == dtype and (h.float() - y).abs().max() < 0.05 * y.abs().max()


def test_the_graph_keeps_the_contract():
    graph = make_graph().float()
    with attn_lib.trace() as t:
        A = graph()
    assert t.names() == ["M1", "M2", "A"] and t.sizes() == {"N": 6, "d": 3}
    torch.testing.assert_close(torch.compile(graph, fullgraph=True, backend="aot_eager")(), A)
    assert torch.autograd.gradcheck(lambda E: torch.func.functional_call(make_graph(topk=2), {"E1": E}, ()),
                                    make_graph(topk=2).E1.clone().requires_grad_())


def test_memory_is_linear_in_time_and_places_and_quadratic_in_the_graph_alone():
    layer, saved = TemporalConv(8), {}
    for T, N in ((26, 16), (46, 16), (46, 32)):
        saved[T, N] = measure.saved_bytes(layer, torch.randn(2, T, N, 8))
    assert saved[46, 32] == pytest.approx(2 * saved[46, 16], rel=0.02)
    assert saved[46, 16] / saved[26, 16] == pytest.approx(40 / 20, rel=0.2)  # outputs, and inputs cut for each width
    hops, A = MixHopPropagation(8), torch.rand(12, 12)
    kept = [measure.saved_bytes(lambda x: hops(x, A), torch.randn(2, T, 12, 8)) for T in (20, 40, 80)]
    assert kept[2] - kept[1] == pytest.approx(2 * (kept[1] - kept[0]), rel=0.02)
    graphs = {N: GraphLearning(8, nodes=N) for N in (128, 256, 512)}
    kept = [measure.saved_bytes(lambda i, N=N: graphs[N](), torch.randn(1)) for N in graphs]
    assert measure.fit_exponent(list(graphs), kept) == pytest.approx(2, abs=0.1)
