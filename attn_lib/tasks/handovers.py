"""Four analysers take turns at one record, and the log names them at the start of a turn only: whose is this week?

The record is real: CO₂ above Mauna Loa, week by week from 1958 to 2001, from statsmodels. The turns and the log are
made up. A reading carries nothing of who made it, so that the evidence of a week lies where the log was last written,
up to half of a window and more away.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_choice
from ._catalog import Task

if TYPE_CHECKING:
    from ..viz import Figure

STEPS = 256  # weeks in a window
ANALYSERS = 4
NAMED = 16  # weeks at the start of a turn in which the log has the name
CHANNELS = 16  # of the network
ALONE = 2 * NAMED / STEPS + (1 - 2 * NAMED / STEPS) / ANALYSERS  # best accuracy of whoever sees one week at a time
SPLIT = 1700  # windows of the test lie behind this week, those of the training before it


def record() -> Tensor:
    """CO₂ in parts per million, 2284 weeks; the 59 weeks without a number are filled in linearly."""
    return _record().clone()


def windows(n: int, *, part: str = "test", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Windows of two turns each.

    The first turn begins with the window, the second, of another analyser, between weeks 128 and 240.

    Args:
        n: number of windows, at least 1.
        part: "train" or "test": the weeks that the windows are cut from.
        seed: of places, turns and names.

    Returns:
        x (n, 256, 5): the reading (in every window of mean 0 and standard deviation 1), and four channels of the log:
        1 in the channel of the analyser where it is named. Who made each reading, (n, 256), from 0 to 3.

    Raises:
        ValueError: for an n below 1, or an unknown part.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    return _draw(n, torch.Generator().manual_seed(seed), part)


def sampler(part: str = "train") -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """A function that draws fresh windows, as `toys.fit` wants it."""
    return lambda batch, generator: _draw(batch, generator, part)


def distance(x: Tensor) -> Tensor:
    """How many weeks ago the log was last written, (n, 256): 0 where the week itself is named."""
    week = torch.arange(x.shape[1])
    return week - torch.where(x[..., 1:].any(-1), week, 0).cummax(1).values


def _draw(n: int, g: torch.Generator, part: str) -> tuple[Tensor, Tensor]:
    parts = {"train": slice(None, SPLIT), "test": slice(SPLIT, None)}
    check_choice("part", part, parts)
    cut = _record()[parts[part]].unfold(0, STEPS, 1)
    reading = cut[torch.randint(len(cut), (n,), generator=g)]
    reading = (reading - reading.mean(1, keepdim=True)) / reading.std(1, keepdim=True)
    start = torch.randint(STEPS // 2, STEPS - NAMED + 1, (n, 1), generator=g)  # of the second turn
    first = torch.randint(ANALYSERS, (n, 1), generator=g)
    second = (first + torch.randint(1, ANALYSERS, (n, 1), generator=g)) % ANALYSERS
    week = torch.arange(STEPS)
    whose = torch.where(week < start, first, second)
    named = (week < NAMED) | ((week >= start) & (week < start + NAMED))
    return torch.cat([reading[..., None], F.one_hot(whose, ANALYSERS) * named[..., None]], 2), whose


@cache
def _record() -> Tensor:
    from statsmodels.datasets import co2

    return torch.tensor(co2.load_pandas().data["co2"].interpolate().to_numpy(), dtype=torch.float32)


class _Network(nn.Module):
    """An embedding that knows the week, the layer in question twice, each with normalisation and skip, and a head.

    What a layer returns beyond the weeks, the coarser nodes of a pyramid, is averaged and added to every week.
    """

    def __init__(self, make: Callable[[], nn.Module]):
        super().__init__()
        phase = torch.arange(STEPS)[:, None] * torch.exp(-6.9 * torch.arange(0, 1, 2 / CHANNELS))
        self.register_buffer("time", torch.cat([phase.sin(), phase.cos()], 1))  # L C
        self.embed = nn.Linear(1 + ANALYSERS, CHANNELS)
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(2))
        self.layers = nn.ModuleList(make() for _ in range(2))
        self.head = nn.Linear(CHANNELS, ANALYSERS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.time  # B L C
        for norm, layer in zip(self.norms, self.layers, strict=True):
            weeks, coarser = layer(norm(x)).tensor_split([STEPS], 1)
            x = x + weeks
            if coarser.shape[1]:
                x = x + coarser.mean(1, keepdim=True)
        return self.head(x).transpose(-2, -1)  # B 4 L


def _picture() -> "Figure":
    from ..viz import curves

    x, whose = windows(1)
    lines = {"CO₂": x[0, :, 0]}
    for analyser in whose[0].unique().tolist():
        named = x[0, :, 1 + analyser].bool()
        lines[f"the log names {analyser}"] = torch.where(named, -2.0, torch.nan)
        lines[f"it is {analyser}'s turn"] = torch.where(whose[0] == analyser, -2.3, torch.nan)
    return curves(lines, xlabel="week", ylabel="reading", title="Whose is the reading of this week?",
                  alt="A window of 256 weeks of CO₂, a wave of five years. Below it, short bars where the log names an "
                      "analyser, at the start of the window and at the start of the second turn, and long bars for "
                      "the turns.")


TASK = Task(
    id="handovers",
    question=__doc__.partition("\n")[0],
    chapters=("pyraformer",),
    data=lambda: (sampler(), windows(32)),
    layout="B L C", channels=CHANNELS, size=(STEPS,),
    build=_Network,
    chance=ALONE,
    training=dict(steps=110, batch=5, lr=0.012),
    picture=_picture,
)
