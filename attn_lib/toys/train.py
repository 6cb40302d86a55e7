"""A short training loop for experiments that last seconds: seeded, silent, the same in every chapter."""

import inspect
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
    (history,) = _by_turns([model], data, steps=steps, batch=batch, lr=lr, seed=seed, loss=loss, optimizer=optimizer,
                           weight_decay=weight_decay)
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

    Each learns exactly what `fit` would teach it alone. But a batch is drawn once, and the models take turns on it.

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
    recipe = inspect.signature(fit).bind(None, train, seed=0, **options)  # refuses what `fit` does not take
    recipe.apply_defaults()
    for seed in _progress(list(seeds)):
        models = {}
        for label, build in builders.items():
            with seeded(seed):
                models[label] = build()
        histories = _by_turns([*models.values()], train, **{**recipe.kwargs, "seed": seed})
        for (label, model), history in zip(models.items(), histories, strict=True):
            result.loss[label].append(history.loss)
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
    with _Stream(seed):
        yield


def _by_turns(
    models: Sequence[nn.Module],
    data: Data,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: str,
    weight_decay: float,
) -> list[History]:
    """What `fit` does, for several models that take turns on each batch."""
    for name, number in (("steps", steps), ("batch", batch), ("lr", lr)):
        if number <= 0:
            raise ValueError(f"{name}={number} must be positive")
    makers: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=weight_decay),
        "sgd": lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=weight_decay),
    }
    if optimizer not in makers:
        raise ValueError(f"optimizer={optimizer!r} must be one of {', '.join(makers)}")
    learners = [_Learner(model, makers[optimizer], steps, loss, seed) for model in models]
    draw = data if callable(data) else _batches(data)
    generator, drawing = torch.Generator().manual_seed(seed), _Stream(seed)
    together, start = nn.ModuleList(models), time.perf_counter()
    with same_modes(together):
        together.train()
        for _ in _progress(range(steps)):
            with drawing:
                drawn = draw(batch, generator)
            for learner in learners:
                learner.step(drawn)
    return [History(learner.losses, time.perf_counter() - start) for learner in learners]


class _Learner:
    """A model in training, which takes a step whenever it is given a batch."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        steps: int,
        loss: Callable[[Tensor, Tensor], Tensor],
        seed: int,
    ):
        self.model, self.loss, self.dropout = model, loss, _Stream(seed)
        self.optimizer = optimizer([p for p in model.parameters() if p.requires_grad])
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.device = next(model.parameters()).device
        self.losses: list[float] = []

    def step(self, drawn: Sequence[Tensor]) -> None:
        # copies: a model may write on its inputs, and the others get the same batch
        *inputs, target = (t.to(self.device, copy=True) for t in drawn)
        with self.dropout:
            value = self.loss(self.model(*inputs), target)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            self.optimizer.step()
        self.schedule.step()
        self.losses.append(value.item())


class _Stream:
    """A context in which torch's global random numbers follow a seed; entered again, it goes on where it ended.

    So whoever takes turns with others draws the same numbers as alone.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.state: list[Tensor] | None = None

    def __enter__(self) -> None:
        self.outside = _random_state()
        if self.state is None:
            torch.manual_seed(self.seed)
        else:
            _set_random_state(self.state)

    def __exit__(self, *error: object) -> None:
        seeded_anew, self.state = self.state is None, _random_state()
        _set_random_state(self.outside)
        if seeded_anew and not torch.cuda.is_initialized():
            # a GPU at rest has no state to put back: it starts from the seed that it would have had
            torch.cuda.manual_seed_all(torch.initial_seed())


def _random_state() -> list[Tensor]:
    """Of the CPU and, if they are in use, of the GPUs."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def _set_random_state(state: list[Tensor]) -> None:
    cpu, *gpus = state
    torch.set_rng_state(cpu)
    if gpus:
        torch.cuda.set_rng_state_all(gpus)


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
