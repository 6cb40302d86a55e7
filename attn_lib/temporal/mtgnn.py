"""MTGNN: convolutions of several widths along time, a graph that is learned, and what spreads along it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_int, check_positive, check_tensor
from ..ops import open_size
from ..tap import tap

KERNEL_SIZES = (2, 3, 6, 7)


class DilatedInception(nn.Module):
    """The dilated inception layer of MTGNN: y = [x ⋆ f₁; …; x ⋆ f_M], convolutions along time of several widths.

    Step t of branch m is Σₛ f_m(s) · x(t − d · s) + b_m: no branch sees what comes later, and all end at the same step.
    (The latest step meets the last weight of a kernel.) The widest kernel K decides how many steps there are; what
    narrower ones could give before that is cut off. A series shorter than it reaches, d(K − 1) + 1 steps, is padded in
    front with zeros. The O channels are shared out among the branches, one more to the first where M does not divide O.

    Of 2, 3, 6 and 7, the paper's widths, the periods of clocks and calendars can be put together: 7, 12, 24, 28 or 60.
    Names and shapes are those of the release's `dilated_inception`.

    Args:
        channels: C, at least 1.
        out_channels: O, at least M; C when None.
        kernel_sizes: a width for each of M branches, in steps, at least 1.
        dilation: d, steps from one tap to the next.

    Shape:
        x (B, T, N, C) → y (B, To, N, O), To = T − d(K − 1), or 1 where the series is shorter. Any T, N ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is no series of C channels.
    """

    def __init__(self, channels: int, out_channels: int | None = None, *,
                 kernel_sizes: tuple[int, ...] = KERNEL_SIZES, dilation: int = 1):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.out_channels = check_int("out_channels", channels if out_channels is None else out_channels)
        if not isinstance(kernel_sizes, tuple | list) or not kernel_sizes:
            raise ValueError(f"kernel_sizes={kernel_sizes!r} must hold one integer a branch, such as {KERNEL_SIZES}")
        self.kernel_sizes = tuple(check_int("kernel_sizes", k) for k in kernel_sizes)
        self.dilation, M = check_int("dilation", dilation), len(kernel_sizes)
        if M > self.out_channels:
            raise ValueError(f"out_channels={self.out_channels} must be at least {M}, one for each of kernel_sizes")
        widths = [self.out_channels // M + (m < self.out_channels % M) for m in range(M)]
        self.tconv = nn.ModuleList(  # the release's name, and its order of axes: places, then steps
            nn.Conv2d(channels, width, (1, k), dilation=(1, dilation))
            for width, k in zip(widths, self.kernel_sizes, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        return _inception(x, self)[0]

    def extra_repr(self) -> str:
        names = ("channels", "out_channels", "kernel_sizes", "dilation")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _inception(x: Tensor, *layers: DilatedInception) -> list[Tensor]:
    """What each of the layers, of the same widths and dilation, makes of x: one convolution a width serves them all."""
    first = layers[0]
    check_tensor(x, "B T N C", {"C": first.channels})
    widest = max(first.kernel_sizes)
    reach = first.dilation * (widest - 1)
    missing = reach + 1 - x.shape[1]        # to the least that the convolutions take; a tensor in torch.jit.trace
    if isinstance(missing, Tensor):
        missing = missing.clamp(min=0)
    else:  # torch 2.6 compiles no sym_max of numbers
        missing = torch.sym_max(0, missing) if open_size(missing) else max(0, missing)
    x = F.pad(x, (0, 0, 0, 0, missing, 0)).permute(0, 3, 1, 2)              # B C T N, in memory still channels last
    branches = []
    for k, *convs in zip(first.kernel_sizes, *(layer.tconv for layer in layers), strict=True):
        weight = torch.cat([conv.weight for conv in convs]).transpose(-2, -1)
        y = F.conv2d(x, weight, torch.cat([conv.bias for conv in convs]), dilation=(first.dilation, 1))
        # Cutting here what is too early, not from x, is the cheaper backward: an output has fewer channels.
        branches.append(y[:, :, first.dilation * (widest - k):].permute(0, 2, 3, 1).chunk(len(layers), 3))
    return [torch.cat(parts, 3) for parts in zip(*branches, strict=True)]


@register(
    "mtgnn",
    family="temporal",
    name="MTGNN's temporal convolution",
    summary="It looks for rhythms of several lengths at once, and gates what it finds, without ever seeing the future.",
    aliases=("MTGNN", "dilated inception", "TemporalConv"),
    action="mix",
    papers=[Paper(
        key="wu2020mtgnn", venue="KDD", year=2020, arxiv="2005.11650",
        title="Connecting the Dots: Multivariate Time Series Forecasting with Graph Neural Networks",
        code="https://github.com/nnzhan/MTGNN",
    )],
    layout="B T N C",
    output="B To N O",
    example=dict(channels=16),
    measured=dict(channels=64),
    variants={"dilated": dict(channels=5, out_channels=7, kernel_sizes=(2, 3, 1), dilation=2)},
    commutes_with={"spatial_permutation", "translation"},
    reduces_to={"convolution": "a single kernel and an open gate: a dilated causal convolution, then tanh"},
    errata=[
        Erratum(
            "release", "A branch has ⌊O/4⌋ channels, and what is left of O is lost.",
            "The first branches take one channel more, and all O are there.", "test_no_channel_is_lost"),
        Erratum(
            "release", "The network pads what is shorter than all of its layers reach; a single layer fails.",
            "The layer pads what is shorter than itself reaches, in front, with zeros.",
            "test_a_short_series_is_padded_in_front"),
        Erratum(
            "copies", "Two linear layers along time restore the length; they fix it, and every step sees the future.",
            "The output is shorter, and each step of it depends on none that comes later.",
            "test_the_future_is_not_seen"),
        Erratum(
            "copies", "The model is described as one of several given road graphs.",
            "The graph is learned: `GraphLearning` starts from embeddings of the nodes, or of their features.",
            "test_the_graph_is_learned"),
        Erratum(
            "release", "Edges are chosen after noise up to 0.01 was added, in evaluation too: one input has many "
            "outputs.", "No noise; `noise=0.01`.", "test_the_choice_is_deterministic"),
        Erratum(
            "release", "The mask of the graph is made in float32, which a model in float64 cannot fill.",
            "Any floating-point type.", "test_a_mask_of_another_type_is_a_trap"),
        Erratum(
            "release", "A k of 20 fails for fewer than 20 nodes.", "Then every edge is kept.",
            "test_fewer_nodes_than_k"),
        Erratum(
            "release", "Both layers of the graph learning have a bias, and the paper's equation has none.",
            "`bias=True`.", "test_the_graph_is_the_papers"),
        Erratum(
            "release", "Embeddings start at N(0, 1), saturate both tanh, and leave the choice to be made among equals.",
            "The same start; of equals the first node is taken, everywhere.", "test_ties_go_to_the_first_node"),
        Erratum(
            "release", "Its first version propagates along Ãᵀ, whose weights do not sum to 1.",
            "Along Ã, as in the paper and in later versions.", "test_mix_hop_along_the_transpose_is_a_trap"),
    ],
)
class TemporalConv(nn.Module):
    """The temporal convolution of MTGNN: y = tanh(f(x)) ⊙ σ(g(x)), f and g a dilated inception layer each.

    The filter f finds patterns of several lengths, the gate g lets some through. Both are a `DilatedInception`, without
    a shared weight. Every place of the series is convolved by itself; what lies between places is the business of
    `GraphLearning`, which finds who influences whom, and of `MixHopPropagation`, which passes it on.

    The release has these layers in its network, and maps of (B, C, N, T): `filter` and `gate` are an entry each of its
    filter_convs and gate_convs, with the same names and shapes within.

    Args:
        channels: C, at least 1.
        out_channels: O, at least as many as there are kernels; C when None.
        kernel_sizes: widths in steps, at least 1; 2, 3, 6 and 7 in the paper.
        dilation: steps from one tap to the next, at least 1.

    Shape:
        x (B, T, N, C) → y (B, To, N, O), To = T − dilation · (widest − 1), or 1 where the series is shorter: it is
        padded in front. Any T, N ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is no series of C channels.

    Paper:
        Wu, Pan, Long, Jiang, Chang and Zhang, Connecting the Dots: Multivariate Time Series Forecasting with Graph
        Neural Networks, KDD 2020, arXiv 2005.11650.
    """

    def __init__(self, channels: int, out_channels: int | None = None, *,
                 kernel_sizes: tuple[int, ...] = KERNEL_SIZES, dilation: int = 1):
        super().__init__()
        self.filter, self.gate = (
            DilatedInception(channels, out_channels, kernel_sizes=kernel_sizes, dilation=dilation) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        f, g = _inception(x, self.filter, self.gate)
        f, g = tap("f", torch.tanh(f), "B To N O"), tap("g", torch.sigmoid(g), "B To N O")
        return tap("y", f * g, "B To N O")


class GraphLearning(nn.Module):
    """The graph learning layer of MTGNN: A = ReLU(tanh(α(M₁M₂ᵀ − M₂M₁ᵀ))), of each row the k largest kept.

    M₁ = tanh(α E₁Θ₁) and M₂ = tanh(α E₂Θ₂), where E₁ and E₂ are learned embeddings of the nodes, or both the features Z
    of the nodes where such are known. What stands under the last tanh is antisymmetric: of two nodes one influences the
    other, never both, and a node's row may be empty. Entries lie in [0, 1). The choice itself has no gradient.

    From the release: E1 and E2 are emb1.weight and emb2.weight, Wm1 and Wm2 its lin1 and lin2.

    Args:
        channels: d, the width of an embedding and of M₁, at least 1; 40 in the paper's release.
        nodes: N, at least 1.
        topk: k, edges that a node keeps at most; 20 in the release.
        alpha: α > 0, how fast both tanh saturate; 3 in the paper.
        bias: whether Θ₁ and Θ₂ come with biases, as in the release.
        noise: uniform noise up to this is added to A for the choice alone; 0.01 in the release, also in evaluation.
        features: Z (N, F), in place of embeddings.

    Shape:
        index, whole numbers (n,), or nothing for all nodes → A (n, n). A_ij says how much i takes from j.

    Raises:
        ValueError: for an argument out of range, or features that are no matrix of N rows.
    """

    Z: Tensor | None

    def __init__(self, channels: int = 40, *, nodes: int, topk: int = 20, alpha: float = 3.0, bias: bool = False,
                 noise: float = 0.0, features: Tensor | None = None):
        super().__init__()
        self.channels, self.nodes = check_int("channels", channels), check_int("nodes", nodes)
        self.topk = check_int("topk", topk)
        self.alpha = check_positive("alpha", alpha)
        self.noise = check_positive("noise", noise) if noise else 0.0
        width = channels if features is None else check_tensor(features, "N F", {"N": nodes}, "features").shape[1]
        self.register_buffer("Z", features)
        self.E1, self.E2 = (None if features is not None else nn.Parameter(torch.randn(nodes, channels))
                            for _ in range(2))
        self.Wm1, self.Wm2 = (nn.Linear(width, channels, bias=bias) for _ in range(2))

    def forward(self, index: Tensor | None = None) -> Tensor:
        E1, E2 = (self.E1, self.E2) if self.Z is None else (self.Z, self.Z)
        assert E1 is not None and E2 is not None
        if index is not None:
            E1, E2 = E1[index], E2[index]
        M1 = tap("M1", torch.tanh(self.alpha * self.Wm1(E1)), "N d")                  # eq. 1
        M2 = tap("M2", torch.tanh(self.alpha * self.Wm2(E2)), "N d")                  # eq. 2
        S = M1 @ M2.T
        A = torch.relu(torch.tanh(self.alpha * (S - S.T)))                            # eq. 3
        liked = A.detach() + self.noise * torch.rand_like(A) if self.noise else A.detach()
        k = min(self.topk, len(A))
        least = liked.topk(k).values[:, -1:]                                          # eq. 5
        above, equal = liked > least, liked == least
        left = k - above.sum(1, keepdim=True)                                         # places for the first of equals
        return tap("A", A * (above | equal & (equal.cumsum(1) <= left)), "N N")       # eq. 6

    def extra_repr(self) -> str:
        return f"channels={self.channels}, nodes={self.nodes}, topk={self.topk}, alpha={self.alpha:g}"


class MixHopPropagation(nn.Module):
    """The mix-hop propagation layer of MTGNN: y = Σₖ H⁽ᵏ⁾ W⁽ᵏ⁾ with H⁽ᵏ⁾ = β x + (1 − β) Ã H⁽ᵏ⁻¹⁾, H⁽⁰⁾ = x.

    Ã = (A + I) / row sums: every node takes a mean of itself and those it looks at. β of the original stays at every
    hop, so that nodes do not all become alike. k runs from 0 to the depth, and the matrices of all hops stand in one
    layer, `Wh`, with a bias: first those for x itself. In the network two such layers run, on A and on Aᵀ, and are
    added; what it learns is therefore a graph up to its direction.

    From the release: Wh is mlp.mlp with its two last axes flattened away, and its propalpha is β.

    Args:
        channels: C, at least 1.
        out_channels: O; C when None.
        depth: hops, at least 1; 2 in the paper.
        beta: β in [0, 1]; 0.05 in the paper.

    Shape:
        x (B, T, N, C), A (N, N) of no negative entry → y (B, T, N, O), any T, N ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is no series of C channels, or a graph of other nodes.
    """

    def __init__(self, channels: int, out_channels: int | None = None, *, depth: int = 2, beta: float = 0.05):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.out_channels = check_int("out_channels", channels if out_channels is None else out_channels)
        self.depth = check_int("depth", depth)
        self.beta = check_positive("beta", beta) if beta else 0.0
        if self.beta > 1:
            raise ValueError(f"beta={beta} must lie between 0 and 1")
        self.Wh = nn.Linear((depth + 1) * channels, self.out_channels)

    def forward(self, x: Tensor, A: Tensor) -> Tensor:
        N = check_tensor(x, "B T N C", {"C": self.channels}).shape[2]
        check_tensor(A, "N N", name="A")
        if A.shape != (N, N):
            raise ValueError(f"A has shape {tuple(A.shape)}; it must be ({N}, {N}), as x has {N} nodes")
        A_self = A + torch.eye(N, dtype=A.dtype, device=A.device)
        A_hat = tap("A_hat", (A_self / A_self.sum(1, keepdim=True)).to(x.dtype), "N N")
        H = [tap("H", x, "B T N C")]
        for _ in range(self.depth):                                                   # eq. 7
            hop = torch.einsum("ij,BTjC->BTiC", A_hat, H[-1])
            H.append(tap("H", self.beta * x + (1 - self.beta) * hop, "B T N C"))
        return tap("y", self.Wh(torch.cat(H, 3)), "B T N O")                          # eq. 8

    def extra_repr(self) -> str:
        return f"channels={self.channels}, out_channels={self.out_channels}, depth={self.depth}, beta={self.beta:g}"
