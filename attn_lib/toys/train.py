"""A short training loop for experiments that last seconds: seeded, silent, the same in every chapter."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..console import printable
from ..measure.call import evaluating, same_modes

T = TypeVar("T")

# Data is a tuple of tensors (inputs …, target), or a function that draws one: (batch size, generator) -> tuple.
Data = Sequence[Tensor] | Callable[[int, torch.Generator], Sequence[Tensor]]


@dataclass
class History:
    """What `fit` returns.

    Attributes:
        loss: training loss of every step.
        seconds: wall time of the whole run.
    """

    loss: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        tail = self.loss[-max(1, len(self.loss) // 10) :]
        loss = f"{self.loss[0]:.2f} → {sum(tail) / len(tail):.2f}"
        return printable(f"{len(self.loss)} steps, loss {loss}, {self.seconds:.1f} s")


@dataclass
class Scores:
    """What `compare` returns; each dictionary has one entry a model, in the order given.

    Attributes:
        scores: test score for every seed.
        loss: training loss, one list a seed: what `viz.curves` draws.
        models: the trained model of the first seed.
        seconds: wall time of everything.
    """

    scores: dict[str, list[float]]
    loss: dict[str, list[list[float]]]
    models: dict[str, nn.Module]
    seconds: float

    def mean(self, label: str) -> float:
        """Mean score of one model over the seeds."""
        return sum(self.scores[label]) / len(self.scores[label])

    def __str__(self) -> str:
        width = max(map(len, self.scores))
        rows = [
            f"{label:<{width}}  {self.mean(label):.3f}   (seeds: {', '.join(f'{s:.3f}' for s in scores)})"
            for label, scores in self.scores.items()
        ]
        return printable("\n".join(rows))


def fit(
    model: nn.Module,
    data: Data,
    *,
    steps: int = 200,
    batch: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    optimizer: str = "adamw",
    weight_decay: float = 0.0,
) -> History:
    """Train `model` in place; the learning rate falls to zero along half a cosine.

    The same seed, number of threads and machine give the same weights. Batches (and dropout) follow `seed`; the
    initial weights are the caller's, see `seeded`. The global random state is left as it was, and every part of the
    model in the mode (train or eval) in which it came, also where a step fails. Nothing is printed; a progress bar
    shows while somebody is watching.

    Args:
        model: called as `model(*inputs)`.
        data: tensors `(inputs …, target)` with the same first dimension, or a function
            `(batch, generator) -> (inputs …, target)` that draws a fresh batch.
        steps: number of updates, ≥ 1.
        batch: rows drawn for each update, without replacement within an update, ≥ 1.
        lr: initial learning rate, > 0.
        seed: of the batches.
        loss: `(output, target) -> scalar`.
        optimizer: `"adamw"` or `"sgd"` (momentum 0.9).
        weight_decay: ≥ 0.

    Returns:
        The loss of every step and the seconds taken.

    Raises:
        ValueError: for a non-positive `steps`, `batch` or `lr`, an unknown optimizer, or tensors of different length.
    """
    for name, number in (("steps", steps), ("batch", batch), ("lr", lr)):
        if number <= 0:
            raise ValueError(f"{name}={number} must be positive")
    makers: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=weight_decay),
        "sgd": lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=weight_decay),
    }
    if optimizer not in makers:
        raise ValueError(f"optimizer={optimizer!r} must be one of {', '.join(makers)}")
    optim = makers[optimizer]([p for p in model.parameters() if p.requires_grad])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, steps)
    generator = torch.Generator().manual_seed(seed)
    draw = data if callable(data) else _batches(data)
    device = next(model.parameters()).device
    history, start = History(), time.perf_counter()
    with same_modes(model), seeded(seed):
        model.train()
        for _ in _progress(range(steps)):
            *inputs, target = (t.to(device) for t in draw(batch, generator))
            value = loss(model(*inputs), target)
            optim.zero_grad(set_to_none=True)
            value.backward()
            optim.step()
            schedule.step()
            history.loss.append(value.item())
    history.seconds = time.perf_counter() - start
    return history


@torch.no_grad()
def answers(model: nn.Module | Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`model(*inputs)` without gradients, that of a module in eval mode; its mode is put back."""
    with evaluating(model) if isinstance(model, nn.Module) else nullcontext():
        return model(*inputs)


@torch.no_grad()
def accuracy(model: nn.Module, data: Sequence[Tensor], *, batch: int = 512) -> float:
    """Fraction of right answers, in [0, 1], with the model in eval mode (restored afterwards).

    Args:
        model: its output holds class scores along dimension 1.
        data: tensors `(inputs …, labels)`. Labels may be one a row or one a pixel.
        batch: rows at a time; changes the memory needed, not the result.
    """
    device = next(model.parameters()).device
    right = total = 0
    with evaluating(model):
        for rows in zip(*(t.split(batch) for t in data), strict=True):
            *inputs, labels = (t.to(device) for t in rows)
            hits = model(*inputs).argmax(1) == labels
            right, total = right + hits.sum().item(), total + hits.numel()
    return right / total


def compare(
    builders: Mapping[str, Callable[[], nn.Module]],
    train: Data,
    test: Sequence[Tensor],
    *,
    seeds: Iterable[int] = (0, 1, 2),
    metric: Callable[[nn.Module, Sequence[Tensor]], float] = accuracy,
    **options: Any,
) -> Scores:
    """Train several models on the same batches, once a seed, and score them on the same test data.

    Args:
        builders: label -> function that makes a freshly initialised model.
        train: what `fit` takes.
        test: what `metric` takes.
        seeds: each seeds the initial weights and the batches of one run of every model.
        metric: `(model, test) -> float`.
        **options: passed to `fit`.

    Returns:
        Scores, losses and the trained models of the first seed.
    """
    start = time.perf_counter()
    result = Scores({label: [] for label in builders}, {label: [] for label in builders}, {}, 0.0)
    runs = [(seed, label) for seed in seeds for label in builders]
    for seed, label in _progress(runs):
        with seeded(seed):
            model = builders[label]()
        result.loss[label].append(fit(model, train, seed=seed, **options).loss)
        result.scores[label].append(metric(model, test))
        result.models.setdefault(label, model)
    result.seconds = time.perf_counter() - start
    return result


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block under a fixed seed and put the global random state back afterwards.

    ```python
    with toys.seeded(0):
        model = build()
    ```
    """
    started = torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if started else []):
            torch.manual_seed(seed)
            yield
    finally:
        if not started:  # a GPU at rest has no state to put back: it starts from the seed that it would have had
            torch.cuda.manual_seed_all(torch.initial_seed())


def _batches(data: Sequence[Tensor]) -> Callable[[int, torch.Generator], list[Tensor]]:
    lengths = sorted({len(t) for t in data})
    if len(lengths) != 1:
        raise ValueError(f"data must share their first dimension, got lengths {lengths}")

    def draw(batch: int, generator: torch.Generator) -> list[Tensor]:
        rows = torch.randperm(lengths[0], generator=generator, device="cpu")[:batch]
        return [t[rows] for t in data]

    return draw


def _progress(steps: Iterable[T]) -> Iterable[T]:
    """A tqdm bar that vanishes when done; the bare iterable when nobody watches or tqdm is not installed."""
    if not _watched():
        return steps
    try:
        from tqdm import tqdm
    except ImportError:
        return steps
    bar: Iterable[T] = tqdm(steps, leave=False)
    return bar


def _watched() -> bool:
    """True in a terminal and in a live notebook; false under nbclient and nbval, which store what is printed."""
    if sys.stderr.isatty():
        return True
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    # A frontend with a person at it lets the kernel ask for input; programs that execute notebooks do not.
    return bool(getattr(getattr(shell, "kernel", None), "_allow_stdin", False))
