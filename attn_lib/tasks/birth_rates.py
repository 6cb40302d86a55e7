"""A number is missing: fill it from the same place a year ago, or from similar places in the same year?

Births per woman in 192 countries, 1960 to 2011, from the World Bank by way of statsmodels. Two guesses exist for
each country and year. The *temporal* one is the country's own number of the year before: nearly right, but the
offices that report it fail at random, and a failed report reads 0. The *spatial* one is the mean of the five
countries whose curves were most alike in the training years: always there, and rougher.

To read 0 where nothing was measured is the experiment of GMAN's Figure 8, which drops a share of all readings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_choice
from ..toys.train import answers
from ._catalog import Task

if TYPE_CHECKING:
    from ..viz import Figure

YEARS = range(1960, 2012)
SPLIT = 1990  # training before, test from here on
ALIKE = 5  # countries in the spatial guess
FAILS = 0.3  # share of reports that read 0
SPATIAL = 0.437  # births per woman: error of the spatial guess alone on the test years; no fixed mixture learns better


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


def error(model: nn.Module | Callable[..., Tensor], data: Sequence[Tensor]) -> float:
    """Mean absolute error of model(spatial, temporal), in births per woman; a module's mode is put back."""
    *both, truth = data
    return (answers(model, *both) - truth).abs().mean().item()


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

    def batched(x: Tensor) -> Tensor:
        return x.expand(batch, -1, -1)[..., None].contiguous()

    return batched(spatial), batched(reported * before), batched(now)


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


class _Share(nn.Module):
    """One share of the spatial guess, the same for every country and year."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(1))

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        return torch.lerp(temporal, spatial, torch.sigmoid(self.share).expand_as(spatial))


def _picture() -> "Figure":
    from ..viz import curves

    n = panel().countries.index("Romania")
    names = ("like similar countries", "like the year before", "born")
    lines = {name: x[0, :, n, 0] for name, x in zip(names, guesses("train"), strict=True)}
    return curves(lines, x=YEARS[1:SPLIT - YEARS[0]], xlabel="year", ylabel="births per woman",
                  title="Which of the two guesses is to be trusted?",
                  alt="Births per woman in Romania from 1961 to 1989: about two, with a leap to 3.7 in 1967. The guess "
                      "from similar countries is smooth and knows nothing of the leap; the guess from the year before "
                      "follows it a year late, and drops to 0 in eight of the years.")


TASK = Task(
    id="birth_rates",
    question=__doc__.partition("\n")[0],
    chapters=("gated",),
    data=lambda: (sampler(), guesses(batch=4)),
    layout="B T N C, B T N C", channels=1,
    build=lambda make: make(),  # the module itself is the network
    nothing=_Share,
    score=error,
    score_name="error, births per woman",
    higher_is_better=False,
    chance=SPATIAL,
    training=dict(steps=120, batch=1, lr=0.2, loss=F.l1_loss),
    picture=_picture,
)
