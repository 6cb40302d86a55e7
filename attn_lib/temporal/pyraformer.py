"""Pyramidal attention: a step of a series sees its neighbours, and the rest through coarser and coarser summaries."""

import torch
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_at_most, check_divisible, check_int, check_odd, check_tensor
from ..ops import at_one_size, attend
from ..tap import tap


def scale_lengths(L: int, children: int, scales: int) -> list[int]:
    """Nodes of each scale, finest first: L, ⌊L/b⌋, ⌊⌊L/b⌋/b⌋, …, for b children, as far as a scale has a node."""
    lengths = [L]
    while len(lengths) < scales and lengths[-1] >= children:
        lengths.append(lengths[-1] // children)
    return lengths


def pyramid_neighbours(lengths: list[int], children: int, neighbours: int, device: torch.device | None = None,
                       ) -> tuple[Tensor, Tensor]:
    """Whom each node of the pyramid attends to: w nodes around it in its own scale, its parent, its children.

    Nodes are numbered scale by scale, finest first. Node p's parent is node ⌊p/b⌋ of the next scale; where b does
    not divide a scale's length the last parent has the remaining nodes as children too, up to 2b−1.

    Args:
        lengths: nodes of each scale, as from `scale_lengths`.
        children: b.
        neighbours: w, odd, the node itself included.
        device: of the result.

    Returns:
        Numbers of the nodes (N, K), and which of them are there (N, K): at the ends, at the top and at the bottom some
        are not. K = w + 1 + the most children that a node has: b, or more where a last parent takes a remainder.
    """
    S = len(lengths)
    size = torch.tensor([0, *lengths, 0], device=device)        # one empty scale below and one above
    start = size.cumsum(0) - size                               # number of each scale's first node
    node = torch.arange(sum(lengths), device=device)
    scale = (node[:, None] >= start[2:-1]).sum(1) + 1           # of each node: as many as begin before it
    p = node - start[scale]                                     # position within the scale
    p, own, above, below = (t[:, None] for t in (p, size[scale], size[scale + 1], size[scale - 1]))

    same = p + torch.arange(neighbours, device=device) - neighbours // 2
    most = max([0, *(lengths[s] - children * (lengths[s + 1] - 1) for s in range(S - 1))])
    parent = torch.minimum(p // children, above - 1)
    child = p * children + torch.arange(most, device=device)
    theirs = torch.minimum(child // children, own - 1) == p     # the last parent takes the remainder
    there = torch.cat([(same >= 0) & (same < own), above > 0, theirs & (child < below)], 1)
    number = torch.cat([same + start[scale][:, None], parent + start[scale + 1][:, None],
                        child + start[scale - 1][:, None]], 1)
    return number.where(there, 0), there


class CoarserScaleConstruction(nn.Module):
    """The coarser scales of a series (CSCM): convolutions of width and stride b, one on top of the other.

    x is narrowed to Cr channels, each scale is ELU(BN(conv(finer scale))), all coarser scales are widened again
    together, set behind x, and normalised (LayerNorm).

    Args:
        channels: C, at least 1.
        children: b, nodes of a scale that make one of the next; at least 2.
        scales: S, at least 1, the series itself included.
        bottleneck: Cr, from 1 to C; C/4 when None.

    Shape:
        x (B, L, C) → (B, N, C), N = L + ⌊L/b⌋ + …, see `scale_lengths`.

    Raises:
        ValueError: for an argument out of range, an input that is no series of C channels, or, in training, a batch
            of one with a scale of one node, which batch normalisation cannot take.
    """

    def __init__(self, channels: int, *, children: int = 4, scales: int = 4, bottleneck: int | None = None):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.b = check_int("children", children, at_least=2)  # nn.Module has a method `children`
        self.scales = check_int("scales", scales)
        width = max(1, channels // 4) if bottleneck is None else check_int("bottleneck", bottleneck)
        check_at_most("bottleneck", width, "channels", channels)
        self.norm = nn.LayerNorm(channels)
        if scales == 1:
            return
        self.down, self.up = nn.Linear(channels, width), nn.Linear(width, channels)
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv1d(width, width, children, stride=children), nn.BatchNorm1d(width), nn.ELU())
            for _ in range(scales - 1))

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(x, "B L C", {"C": self.channels})
        x, L = at_one_size(x, 1)
        lengths = scale_lengths(L, self.b, self.scales)
        if self.training and len(x) == 1 and lengths[-1] == 1 < len(lengths):
            raise ValueError(f"x is a batch of 1 with L={L}: its coarsest scale has one node, and in training "
                             "batch normalisation needs two values; give a longer series, fewer scales or more items")
        if len(lengths) < self.scales and torch.is_grad_enabled():
            x = x + self._unreached(len(lengths)).to(x.dtype)
        if len(lengths) == 1:
            return self.norm(x)
        coarse, scales = self.down(x).transpose(1, 2), []
        for conv in self.convs[:len(lengths) - 1]:  # each scale is made from the one before
            coarse = conv(coarse)
            scales.append(coarse)
        return self.norm(torch.cat([x, self.up(torch.cat(scales, 2).transpose(1, 2))], 1))

    def _unreached(self, scales: int) -> Tensor:
        """0, by which what a series of so few scales leaves out has a gradient, of zeros: DDP waits for one of each."""
        layers = [*self.convs[scales - 1:], *([self.down, self.up] if scales == 1 else [])]
        return torch.stack([p.flatten()[:0].sum() for layer in layers for p in layer.parameters()]).sum()


@register(
    "pyraformer",
    family="temporal",
    name="Pyramidal attention",
    summary="It joins any two steps of a series by a short way over coarser scales, at a price linear in the length.",
    aliases=("Pyraformer", "PAM", "pyramidal attention"),
    action="mix",
    papers=[Paper(
        key="liu2022pyraformer", venue="ICLR", year=2022,
        title="Pyraformer: Low-Complexity Pyramidal Attention for Long-Range Time Series Modeling and Forecasting",
        code="https://github.com/ant-research/Pyraformer",
    )],
    layout="B L C",
    output="B N C",
    example=dict(channels=64, scales=3),
    variants={
        "masked": dict(channels=16, heads=2, scales=3, sparse=False),
        "binary, wide": dict(channels=6, heads=3, children=2, scales=4, neighbours=5, bottleneck=2),
        "one scale": dict(channels=8, heads=1, scales=1),
    },
    refuses={
        "any size": "the length decides how many scales there are, and who neighbours whom",
    },
    builds_on=("mhsa",),
    reduces_to={
        "self-attention": "S = 1, w ≥ 2L − 1",
        "banded attention": "S = 1",
    },
    errata=[
        Erratum("paper",
                "The parent of node l is node ⌈l/b⌉, which for a remainder is not there.",
                "The last parent takes the remainder, as in the release.",
                "test_trap_the_remainder_is_lost"),
        Erratum("release",
                "Unless asked for its own kernel it fills an N × N mask, which costs O(L²).",
                "Neighbours are gathered; `sparse=False` fills the mask.",
                "test_memory_is_linear_in_the_length_and_quadratic_with_a_mask"),
        Erratum("release",
                "The table of that kernel is as wide as the last parents of the upper scales need: where the lowest "
                "has more children, as at L = 65, the model cannot be built.",
                "It is as wide as the most children of any node.",
                "test_the_last_parent_of_the_lowest_scale_may_have_the_most_children"),
        Erratum("release",
                "Its attention ends with dropout, the input added and a layer normalisation.",
                "It is attention alone; the rest belongs to the layer around it.",
                "test_equals_the_equations"),
    ],
)
class PyramidalAttention(nn.Module):
    """Pyramidal attention: y_i = W_o Σ_{j ∈ J_i} softmax_j(q_i · k_j / √d) v_j over the nodes of a pyramid of scales.

    J_i holds w nodes around i in its own scale (itself included), its parent and its b children, so that a node has at
    most w + 2b neighbours and the whole costs O(L). (The paper writes A for w, C for b and ℕ_i for J_i; here A is the
    attention, C the channels and N the number of nodes.) The coarser nodes come from `CoarserScaleConstruction`. After
    several layers every node has seen every other where the coarsest scale is short enough for its neighbours.

    `sparse` gathers the neighbours of every node, as the definition asks. Without it the same is computed with an
    N × N mask, which costs O(L²).

    Args:
        channels: C, at least 1.
        heads: h, divides C; d = C/h.
        children: b, at least 2.
        scales: S, at least 1; a short series has fewer.
        neighbours: w, odd; the release has 3 or 5.
        bottleneck: channels in which the coarser scales are made; C/4 when None.
        construct: True for a series, whose coarser scales are made first; False for all nodes of a pyramid, such as
            another PyramidalAttention returns.
        sparse: True for O(L) memory, False for an N × N mask.

    Shape:
        x (B, L, C) → y (B, N, C): all nodes, y[:, :L] the finest. Without `construct`, (B, N, C) → (B, N, C).

    Raises:
        ValueError: for an argument out of range, an input that is no series of C channels, a number of nodes that no
            series has, or what `CoarserScaleConstruction` refuses.

    Paper:
        Liu, Yu, Liao, Li, Lin, Liu and Dustdar, Pyraformer: Low-Complexity Pyramidal Attention for Long-Range Time
        Series Modeling and Forecasting, ICLR 2022.
    """

    def __init__(self, channels: int, *, heads: int = 4, children: int = 4, scales: int = 4, neighbours: int = 3,
                 bottleneck: int | None = None, construct: bool = True, sparse: bool = True):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.heads = check_int("heads", heads)
        check_divisible("channels", channels, "heads", heads)
        self.b = check_int("children", children, at_least=2)  # nn.Module has a method `children`
        self.scales = check_int("scales", scales)
        self.neighbours = check_odd("neighbours", neighbours)
        self.sparse = sparse
        self.construct = (CoarserScaleConstruction(channels, children=children, scales=scales, bottleneck=bottleneck)
                          if construct else None)
        self.Wq, self.Wk, self.Wv = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.Wo = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(x, "B L C" if self.construct else "B N C", {"C": self.channels})
        x, L = at_one_size(x, 1)
        L = L if self.construct else self._length(L)
        nodes = tap("nodes", x if self.construct is None else self.construct(x), "B N C")
        q, k, v = (tap(name, rearrange(W(nodes), "B N (h d) -> B h N d", h=self.heads), "B h N d")
                   for name, W in (("q", self.Wq), ("k", self.Wk), ("v", self.Wv)))
        lengths = scale_lengths(L, self.b, self.scales)
        number, there = pyramid_neighbours(lengths, self.b, self.neighbours, x.device)
        y = self.gathered(q, k, v, number, there) if self.sparse else self.masked(q, k, v, number, there)
        return tap("y", self.Wo(rearrange(y, "B h N d -> B N (h d)")), "B N C")

    def gathered(self, q: Tensor, k: Tensor, v: Tensor, number: Tensor, there: Tensor) -> Tensor:
        """Each query beside its own K keys: memory N·K."""
        bias = q.new_zeros(there.shape).masked_fill(~there, -torch.inf)
        y = attend(q[..., None, :], k[:, :, number], v[:, :, number], bias=bias[:, None], name="A", dims="B h N 1 K")
        return y.squeeze(3)

    def masked(self, q: Tensor, k: Tensor, v: Tensor, number: Tensor, there: Tensor) -> Tensor:
        """All N × N pairs, of which the mask leaves those of the pyramid."""
        return attend(q, k, v, bias=pyramid_mask(number, there).to(q), name="A", dims="B h N N")

    def _length(self, N: int) -> int:
        """The L of a pyramid of N nodes; adding a step adds at least one node, so there is at most one."""
        short, long = 1, N
        while short < long:
            middle = (short + long) // 2
            if sum(scale_lengths(middle, self.b, self.scales)) < N:
                short = middle + 1
            else:
                long = middle
        if (there := sum(scale_lengths(short, self.b, self.scales))) != N:
            raise ValueError(f"x has N={N}; it must be the number of nodes of a pyramid: L={short} steps have {there}")
        return short

    def extra_repr(self) -> str:
        sizes = f"channels={self.channels}, heads={self.heads}, children={self.b}, scales={self.scales}"
        return f"{sizes}, neighbours={self.neighbours}, sparse={self.sparse}"


def pyramid_mask(number: Tensor, there: Tensor) -> Tensor:
    """What `pyramid_neighbours` returns as an additive mask (N, N): 0 where i attends to j, −inf elsewhere."""
    N = len(number)
    seen = torch.zeros(N, N + 1, device=number.device).scatter(1, number.where(there, N), 1.0)[:, :N]
    return torch.zeros_like(seen).masked_fill(seen == 0, -torch.inf)
