"""Modules that tap, and what depends on what in them."""

import torch
import torch.nn.functional as F
from torch import nn

from attn_lib.ops import attend
from attn_lib.tap import tap
from attn_lib.viz.graph import dependence


class Gate(nn.Module):
    """Squeeze, excite, scale."""

    def __init__(self, channels: int = 4):
        super().__init__()
        self.W1, self.W2 = nn.Linear(channels, 2), nn.Linear(2, channels)

    def forward(self, x):
        z = tap("z", x.mean((2, 3)), "B C")
        s = tap("s", torch.sigmoid(self.W2(F.relu(self.W1(z)))), "B C")
        return tap("y", x * s[:, :, None, None], "B C H W")


class Heads(nn.Module):
    """Self-attention with one projection for queries, keys and values, and an output that is not tapped."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        q, k, v = (tap(name, a, "B h N d") for name, a in (("q", q), ("k", k), ("v", v)))
        o = tap("o", attend(q, k, v, dims="B h N N"), "B h N d")
        return self.proj(o.transpose(1, 2).flatten(2))


class Fusion(nn.Module):
    """Two inputs under one gate."""

    def __init__(self):
        super().__init__()
        self.W1, self.W2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x1, x2):
        z = tap("z", torch.sigmoid(self.W1(x1) + self.W2(x2)))
        return tap("y", z * x1 + (1 - z) * x2)


class Odds(nn.Module):
    """What else can happen: a tapped input and parameter, an index, a constant, dropout, two outputs, an alias."""

    def __init__(self):
        super().__init__()
        self.w, self.gamma = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.ones(()))
        self.drop, self.norm = nn.Dropout(), nn.BatchNorm1d(6)

    def forward(self, x):
        tap("x", x, "B N C")
        w = tap("w", self.w, "K C")
        half = tap("half", self.gamma / 2)
        S = tap("S", x @ w.T, "B N K")
        top = tap("top", S.topk(2, -1).indices, "B N 2")
        g = tap("g", torch.gather(S, -1, top), "B N 2")
        y = tap("y", self.norm(self.drop(x * g.sum(-1, keepdim=True))) * half, "B N C")
        return tap("again", y, "B N C"), S.logsumexp(-1)


class Loop(nn.Module):
    """The same name three times."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = tap("h", F.relu(layer(x)), "B C")
        return x


FLOWS = {
    "gate": (Gate, [(2, 4, 3, 5)], {("x", "z"), ("z", "s"), ("x", "y"), ("s", "y")}),
    "heads": (
        Heads, [(2, 5, 8)],
        {("x", "q"), ("x", "k"), ("x", "v"), ("q", "A"), ("k", "A"), ("A", "o"), ("v", "o"), ("o", "output")},
    ),
    "fusion": (Fusion, [(2, 8), (2, 8)], {("x1", "z"), ("x2", "z"), ("x1", "y"), ("x2", "y"), ("z", "y")}),
    "odds": (
        Odds, [(3, 6, 8)],
        {("x", "S"), ("w", "S"), ("S", "g"), ("x", "y"), ("g", "y"), ("half", "y"), ("y", "again"), ("S", "output")},
    ),
    "loop": (Loop, [(3, 4)], {("x", "h"), ("h", "h:2"), ("h:2", "h:3")}),
}


def graph_of(name: str):
    make, shapes, _ = FLOWS[name]
    return dependence(make(), [torch.randn(s, generator=torch.Generator().manual_seed(0)) for s in shapes])
