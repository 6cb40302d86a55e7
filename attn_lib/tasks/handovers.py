"""Four analysers take turns at one record, and the log names them at the start of a turn only: whose is this week?

The record is real: CO₂ above Mauna Loa, week by week from 1958 to 2001, from statsmodels. The turns and the log are
made up. A reading carries nothing of who made it, so that the evidence of a week lies where the log was last written,
up to half of a window and more away.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice

STEPS = 256  # weeks in a window
ANALYSERS = 4
NAMED = 16  # weeks at the start of a turn in which the log has the name
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
