"""A number is missing: fill it from the same place a year ago, or from similar places in the same year?

Births per woman in 192 countries, 1960 to 2011, from the World Bank by way of statsmodels. Two guesses exist for
each country and year. The *temporal* one is the country's own number of the year before: nearly right, but the
offices that report it fail at random, and a failed report reads 0. The *spatial* one is the mean of the five
countries whose curves were most alike in the training years: always there, and rougher.

To read 0 where nothing was measured is the experiment of GMAN's Figure 8, which drops a share of all readings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from ..checks import check_choice

YEARS = range(1960, 2012)
SPLIT = 1990  # training before, test from here on
ALIKE = 5  # countries in the spatial guess
FAILS = 0.3  # share of reports that read 0


@dataclass(frozen=True)
class Panel:
    """What `panel` returns.

    Attributes:
        countries: N names.
        rates: births per woman, (T, N), one row a year of `YEARS`.
        alike: (N, 5): for each country, those whose curves lay nearest until 1989.
    """

    countries: list[str]
    rates: Tensor
    alike: Tensor


def panel() -> Panel:
    """The countries whose record is complete; fresh tensors at every call."""
    countries, rates, alike = _panel()
    return Panel(list(countries), rates.clone(), alike.clone())


def guesses(part: str = "test", batch: int = 1, *, seed: int = 0,
            fails: float = FAILS) -> tuple[Tensor, Tensor, Tensor]:
    """Spatial guess, temporal guess and truth, each (batch, T, N, 1): the items differ in which reports fail.

    Args:
        part: "train" (1961 to 1989) or "test" (1990 to 2011).
        batch: how many draws of failures.
        seed: of the failures.
        fails: probability that a report reads 0, from 0 to 1.

    Raises:
        ValueError: for an unknown part, or `fails` outside [0, 1].
    """
    return _draw(part, batch, torch.Generator().manual_seed(seed), fails)


def sampler(part: str = "train") -> Callable[[int, torch.Generator], tuple[Tensor, Tensor, Tensor]]:
    """A function that draws what `guesses` returns, with fresh failures, as `toys.fit` wants it."""
    return lambda batch, generator: _draw(part, batch, generator, FAILS)


@torch.no_grad()
def error(model: nn.Module | Callable[..., Tensor], data: Sequence[Tensor]) -> float:
    """Mean absolute error of model(spatial, temporal), in births per woman."""
    *both, truth = data
    return (model(*both) - truth).abs().mean().item()


def _draw(part: str, batch: int, generator: torch.Generator, fails: float) -> tuple[Tensor, Tensor, Tensor]:
    cut = SPLIT - YEARS[0]
    parts = {"train": slice(1, cut), "test": slice(cut, len(YEARS))}
    check_choice("part", part, parts)
    if not 0 <= fails <= 1:
        raise ValueError(f"fails={fails} must lie in [0, 1]")
    _, rates, alike = _panel()
    now, before = rates[parts[part]], rates.roll(1, 0)[parts[part]]  # the first year, which has no before, is in none
    reported = torch.rand((batch, *now.shape), generator=generator) >= fails
    spatial = rates[:, alike].mean(-1)[parts[part]]
    return tuple(t.expand(batch, -1, -1)[..., None].contiguous() for t in (spatial, reported * before, now))


@cache
def _panel() -> tuple[tuple[str, ...], Tensor, Tensor]:
    from statsmodels.datasets import fertility

    table = fertility.load_pandas().data
    numbers = table[[str(year) for year in YEARS]].astype(float)
    complete = numbers.notna().all(axis=1)
    rates = torch.tensor(numbers[complete].to_numpy().T, dtype=torch.float32)
    known = rates[: SPLIT - YEARS[0]]
    apart = (known[:, :, None] - known[:, None]).abs().mean(0).fill_diagonal_(torch.inf)
    return tuple(table["Country Name"][complete]), rates, apart.topk(ALIKE, largest=False).indices
