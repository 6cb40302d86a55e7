"""Recurrent attention model: a small window that is moved over the image, and a network that learns where to (RAM)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_feature_map, check_int, check_pair, check_positive, check_tensor
from ..ops import in_float32
from ..tap import tap

Size = int | tuple[int, int]


@register(
    "ram",
    family="spatial",
    name="Recurrent attention model",
    summary="It reads a few small windows of the image instead of all of it, sharp in the middle and coarse around, "
            "and learns where to put them.",
    aliases=("RAM", "glimpse sensor", "recurrent visual attention"),
    action="move",
    papers=[Paper(
        key="mnih2014recurrent", venue="NIPS", year=2014, arxiv="1406.6247",
        title="Recurrent Models of Visual Attention",
    )],
    layout="B C H W, B 2",
    output="B M C Ho Wo",
    example=dict(channels=8, size=4),
    measured=dict(channels=64),
    variants={"no whole factor": dict(channels=4, size=(3, 5), scales=2, factor=1.5)},
    commutes_with={"channel_permutation"},
    reduces_to={
        "identity": "one patch as large as the image, l = 0",
        "mean": "a patch of one pixel that is as wide as the image, l = 0",
    },
    errata=[
        Erratum("copies", "The height of the image stands for its width when l is turned into pixels.",
                "Rows are counted by the height and columns by the width.",
                "test_l_counts_columns_first_and_by_the_width"),
        Erratum("copies", "Positions are truncated to whole pixels.",
                "A patch is read between pixels, bilinearly, and follows l continuously.",
                "test_a_patch_follows_l_by_parts_of_a_pixel"),
        Erratum("copies", "Patches are shrunk by a pooling that takes whole factors alone.",
                "Each cell is the mean of evenly spaced places in it, at any factor.", "test_equals_the_paper"),
        Erratum("copies", "The mean of the location goes through a hidden layer and a tanh.",
                "It is linear in h, and may lie outside the image.", "test_the_location_is_linear_in_h"),
        Erratum("copies", "The probability is that of the location after it was clamped to the image.",
                "It is that of the sample itself; only the sensor clamps.",
                "test_the_log_probability_is_of_the_sample"),
        Erratum("copies", "h is cut off from the gradient before the location and the baseline.",
                "The gradient of log π runs on into the core, as that of any output.",
                "test_gradient_of_the_policy_reaches_the_core"),
        Erratum("paper", "Where the first glimpse goes is left open.",
                "It goes to the middle of the image, or where it is told to.",
                "test_the_first_glimpse_is_in_the_middle"),
    ],
)
class GlimpseSensor(nn.Module):
    """Glimpse sensor: ρ(x, l) = M patches of the image around l, each f times as wide as the one before, all g × g.

    l = (l_x, l_y) runs from −1 at the left and upper border of the image to 1 at the right and lower one, column first,
    and is clamped to that. Cell (i, j) of patch m covers f^m × f^m pixels and is the mean of ⌈f^m⌉² evenly spaced
    places in it, which are the pixels' centres where f^m is whole and l lies on one; between pixels the image is
    bilinear, beyond its border zero. What is read is M · g² numbers a channel, however large the image.

    Args:
        channels: C, at least 1.
        size: g, or (rows, columns) of a patch, each at least 1; 8 or 12 in the paper.
        scales: M, at least 1.
        factor: f, above 0; 2 in the paper.

    Shape:
        x (B, C, H, W) and loc = l (B, 2) → ρ (B, M, C, Ho, Wo), (Ho, Wo) = size, any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an x that is not a feature map of C channels, or a loc that is not
            (B, 2).

    Paper:
        Mnih, Heess, Graves and Kavukcuoglu, Recurrent Models of Visual Attention, NIPS 2014, arXiv 1406.6247.
    """

    def __init__(self, channels: int, *, size: Size = 8, scales: int = 3, factor: float = 2.0):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.size = check_pair("size", size)
        self.scales = check_int("scales", scales)
        self.factor = check_positive("factor", factor)

    def forward(self, x: Tensor, loc: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        check_tensor(loc, "B 2", {"B": len(x), "2": 2}, "loc")
        l_x, l_y = loc.clamp(-1, 1).to(torch.promote_types(loc.dtype, torch.float32)).unbind(1)
        row = tap("row", (l_y + 1) * (x.shape[2] / 2) - 0.5, "B")
        col = tap("col", (l_x + 1) * (x.shape[3] / 2) - 0.5, "B")
        patches = [in_float32(self.patch, x, row, col, self.factor**m) for m in range(self.scales)]
        return tap("rho", torch.stack(patches, 1).to(x.dtype), "B M C Ho Wo")

    def patch(self, x: Tensor, row: Tensor, col: Tensor, wide: float) -> Tensor:
        """Cells (B, C, Ho, Wo), each `wide` pixels wide, around a position in pixels."""
        n = math.ceil(wide)
        rows, cols = (at[:, None] + ((torch.arange(n * g, device=x.device, dtype=at.dtype) + 0.5) / n - g / 2) * wide
                      for at, g in ((row, self.size[0]), (col, self.size[1])))
        return F.avg_pool2d(_bilinear(x, rows, cols), n)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, size={self.size}, scales={self.scales}, factor={self.factor}"


class Rollout(NamedTuple):
    """What a `RecurrentAttention` saw and did in T glimpses.

    Attributes:
        logits: of the classes, after the last glimpse (B, O).
        loc: the l of each glimpse, not clamped (B, T, 2).
        log_pi: log π of each location but the first, which the policy did not choose (B, T−1).
        b: baseline, what reward was expected at each of these choices (B, T−1).
    """

    logits: Tensor
    loc: Tensor
    log_pi: Tensor
    b: Tensor


class RecurrentAttention(nn.Module):
    """Recurrent attention model: h_t = δ(W h_{t−1} + W g_t), g_t = δ(W δ(W ρ(x, l_t)) + W δ(W l_t)), δ = ReLU.

    h₀ = 0, and after T glimpses the class is softmax(W_a h_T). In between each location is drawn from a normal
    distribution with a fixed variance around a mean that is linear in h,

        l_{t+1} ~ π = N(W_l h_t, σ² 1)      log π = Σ over x and y of −(l − μ)² / 2σ² − log σ√2π

    All layers have biases. A location cannot be learned by following the gradient through the glimpse. In its place
    `loss` has REINFORCE: with a reward R of 1 for the right class at the end, else 0, the paper's hybrid loss is

        cross-entropy − Σ_t log π(l_{t+1}) (R − b_t) + Σ_t (R − b_t)²,      b_t = W_b h_t,

    whose second term takes R − b_t for a number: the third alone trains the baseline. There is a reward at the
    last step only, so R is also what is left to come.

    Without a generator each location is its mean: the same input has the same output, in training mode too.

    Args:
        channels: C, at least 1.
        classes: O, at least 1.
        glimpses: T, at least 1.
        size, scales, factor: of the `GlimpseSensor`.
        embed: width of δ(W ρ) and δ(W l), at least 1; 128 in the paper.
        hidden: width of g and h, at least 1; 256 in the paper.
        std: σ, above 0.

    Shape:
        x (B, C, H, W) → logits (B, O), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an x that is not a feature map of C channels, or a loc that is not
            (B, 2).

    Paper:
        Mnih, Heess, Graves and Kavukcuoglu, Recurrent Models of Visual Attention, NIPS 2014, arXiv 1406.6247.
    """

    def __init__(self, channels: int, *, classes: int = 10, glimpses: int = 6, size: Size = 8, scales: int = 3,
                 factor: float = 2.0, embed: int = 128, hidden: int = 256, std: float = 0.1):
        super().__init__()
        self.sensor = GlimpseSensor(channels, size=size, scales=scales, factor=factor)
        self.glimpses = check_int("glimpses", glimpses)
        self.std = check_positive("std", std, "a policy without variance does not explore")
        self.hidden = check_int("hidden", hidden)
        Ho, Wo = self.sensor.size
        self.Whg = nn.Linear(scales * channels * Ho * Wo, check_int("embed", embed))
        self.Whl = nn.Linear(2, embed)
        self.Wg1, self.Wg2 = nn.Linear(embed, hidden), nn.Linear(embed, hidden)      # from δ(W ρ), from δ(W l)
        self.Wh1, self.Wh2 = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)    # from h, from g
        self.Wa = nn.Linear(hidden, check_int("classes", classes))
        self.Wl, self.Wb = nn.Linear(hidden, 2), nn.Linear(hidden, 1)

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None, loc: Tensor | None = None) -> Tensor:
        """Logits of the classes (B, O); arguments as in `rollout`."""
        return self.rollout(x, generator=generator, loc=loc).logits

    def rollout(self, x: Tensor, *, generator: torch.Generator | None = None, loc: Tensor | None = None) -> Rollout:
        """T glimpses.

        Args:
            x: images (B, C, H, W).
            generator: draws the locations; their means are taken when None.
            loc: the first location (B, 2); the middle of the image when None.
        """
        check_feature_map(x, self.sensor.channels)
        like = self.Wh1.weight
        loc = like.new_zeros(len(x), 2) if loc is None else check_tensor(loc, "B 2", {"B": len(x), "2": 2}, "loc")
        h = self._step(x, loc, like.new_zeros(len(x), self.hidden))
        locs, log_pis, bs = [loc], [], []
        for _ in range(1, self.glimpses):
            mu = tap("mu", self.Wl(h), "B 2")
            loc = tap("l", self._look(mu, generator), "B 2")
            locs.append(loc)
            log_pis.append(self._log_pi(loc, mu))
            bs.append(tap("b", self.Wb(h)[:, 0], "B"))
            h = self._step(x, loc, h)
        none = h.new_zeros(len(x), 0)
        log_pi, b = torch.stack(log_pis, 1) if log_pis else none, torch.stack(bs, 1) if bs else none
        return Rollout(tap("a", self.Wa(h), "B O"), torch.stack(locs, 1), log_pi, b)

    def _step(self, x: Tensor, loc: Tensor, h: Tensor) -> Tensor:
        """The next h: what is seen at a location, where that is, and what was seen before."""
        h_g = F.relu(self.Whg(self.sensor(x, loc).flatten(1)))
        h_l = F.relu(self.Whl(loc.to(h_g.dtype)))
        g = tap("g", F.relu(self.Wg1(h_g) + self.Wg2(h_l)), "B d")
        return tap("h", F.relu(self.Wh1(h) + self.Wh2(g)), "B d")

    @staticmethod
    def loss(rollout: Rollout, target: Tensor) -> Tensor:
        """The hybrid loss of a rollout, the mean over the batch; `target` holds the right classes (B)."""
        dtype = torch.promote_types(rollout.logits.dtype, torch.float32)
        logits, b = rollout.logits.to(dtype), rollout.b.to(dtype)
        R = (logits.argmax(1) == target).to(b.dtype)[:, None]
        advantage = R - b
        return (F.cross_entropy(logits, target) - (rollout.log_pi * advantage.detach()).sum(1).mean()
                + advantage.square().sum(1).mean())

    def _look(self, mu: Tensor, generator: torch.Generator | None) -> Tensor:
        """A location: no gradient runs through it."""
        mu = mu.detach()
        if generator is None:
            return mu
        return mu + self.std * torch.randn(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device)

    def _log_pi(self, loc: Tensor, mu: Tensor) -> Tensor:
        """log π(l) of an l as it was drawn, in float32 at least."""
        dtype = torch.promote_types(mu.dtype, torch.float32)
        z = (loc.to(dtype) - mu.to(dtype)) / self.std
        return (-0.5 * z.square() - math.log(self.std * math.sqrt(2 * math.pi))).sum(1)

    def extra_repr(self) -> str:
        return f"glimpses={self.glimpses}, hidden={self.hidden}, std={self.std}"


def _bilinear(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """x (B, C, H, W) on the grid of rows (B, P) and columns (B, Q), in pixels: (B, C, P, Q), zero outside.

    What `ops.bilinear_sample` computes, for rows and columns apart: four pixels are read for each place, and the image
    is not copied, so that its size costs nothing.
    """
    i, row_weight = _two_nearest(rows, x.shape[2])
    j, col_weight = _two_nearest(cols, x.shape[3])
    item = torch.arange(len(x), device=x.device)[:, None, None, None, None]
    pixels = x[item, :, i[..., None, None], j[:, None, None]]                    # B P 2 Q 2 C
    return torch.einsum("BPi,BQj,BPiQjC->BCPQ", row_weight.to(x.dtype), col_weight.to(x.dtype), pixels)


def _two_nearest(at: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The pixels before and behind each place (B, P, 2), of n along an axis, and their weights; 0 for those outside."""
    before = at.detach().floor()
    part = at - before
    number = before.long()[..., None] + torch.arange(2, device=at.device)
    inside = (number >= 0) & (number < n)
    return number.clamp(0, n - 1), torch.stack([1 - part, part], -1) * inside
