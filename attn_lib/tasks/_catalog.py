"""The tasks' own table: what a task is, finding one by its name, and putting any module into it.

A task enters the table by the constant `TASK` at the end of its file; nothing else keeps a list.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import catalog
from ..checks import check_choice
from ..layout import Layout
from ..toys import train

if TYPE_CHECKING:
    from ..viz import Figure

# A class or a function: from a number of channels to a module. None: no module.
Module = str | type[nn.Module] | Callable[[int], nn.Module] | None

_found: dict[str, "Task"] | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: data, a small network with a place for a module, and a score.

    Attributes:
        id: the file's name.
        question: one sentence: what is asked.
        chapters: names of the chapters that train on it (or show it), first the one that it was made for.
        data: makes `(train, test)`: what `toys.fit` takes, and held-out data that `score` takes.
        layout: axes of the place, see `attn_lib.layout`; of several tensors where a module gets several inputs.
        channels: number of channels that a module in the place gets.
        out_channels: number that it returns; as many as it gets when 0.
        size: sizes of the place's axes other than B and C, in their order; empty where they vary.
        build: makes the network: called with a function that makes a module for the place, which it calls once for
            each time that the place occurs. None for a task that is only shown.
        nothing: makes what stands in the place when no module does. Where it changes the number of channels, it also
            stands before a module that cannot.
        options: for a module that is named by its id and has options of these names, in place of its defaults.
        score: `(network, test) -> float`.
        score_name: what the score is, with its unit where it has one.
        higher_is_better: False where the score is an error.
        told: the same as `data`, with that given away which a module is needed for; the score that a network with
            nothing in its place reaches here is the best that a module can help to. None where that has no meaning.
        chance: the score of whoever does not solve the task: by guessing, or by doing all that can be done without
            the one thing that is asked for.
        training: steps, batch and lr, and loss or optimizer where they are not the usual ones of `toys.fit`.
        picture: draws an example of the data.
    """

    id: str
    question: str
    chapters: tuple[str, ...]
    data: Callable[[], tuple[train.Data, Sequence[Tensor]]]
    picture: Callable[[], "Figure"]
    told: Callable[[], tuple[train.Data, Sequence[Tensor]]] | None = None
    layout: str = ""
    channels: int = 0
    out_channels: int = 0
    size: tuple[int, ...] = ()
    build: Callable[[Callable[[], nn.Module]], nn.Module] | None = None
    nothing: Callable[[], nn.Module] = nn.Identity
    options: Mapping[str, Any] = field(default_factory=dict)
    score: Callable[[nn.Module, Sequence[Tensor]], float] = train.accuracy
    score_name: str = "accuracy"
    higher_is_better: bool = True
    chance: float = float("nan")
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", Layout(self.layout) if self.layout else "")
        object.__setattr__(self, "out_channels", self.out_channels or self.channels)
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        object.__setattr__(self, "training", MappingProxyType(dict(self.training)))

    @property
    def place(self) -> str:
        """Axes, channels and sizes of the place, in words."""
        if self.build is None:
            return "none"
        words = [self.layout.replace(", ", " and "), f"{self.channels} channel{'s' * (self.channels > 1)}"]
        if self.out_channels != self.channels:
            words[1] += f" to {self.out_channels}"
        if self.size:
            words.append(" × ".join(map(str, self.size)))
        return ", ".join(words)

    @property
    def takes(self) -> tuple[str, ...]:
        """Layouts of the modules that fit, its own and, for a single map or series, tokens (B, N, C) as well."""
        return (self.layout, "B N C") if self.layout in ("B C H W", "B L C") else (self.layout,)

    def network(self, module: Module = None) -> nn.Module:
        """A fresh network with a module in its place; weights are drawn from torch's global generator.

        Args:
            module: the id of a module of the library, or its class, made with the options of its example, the place's
                number of channels and size, and this task's `options`; a function from the number of channels to a
                module, where other options are wanted, or another class; None for nothing there.

        Raises:
            ValueError: if the task has no network, or the module does not fit; says what the place offers.
        """
        make = self._maker(module)
        return self.build(make)

    def fits(self, module: Module) -> bool:
        """Whether the task has a network with a place for `module`: by its layout and size, and by making one.

        Raises:
            ValueError: if `module` is nothing that `network` takes.
        """
        _entry_of(module)
        with torch.random.fork_rng(devices=[]):
            try:
                self._maker(module)()  # options of its own, such as groups, may not divide the place's channels
            except ValueError:
                return False
        return True

    def _maker(self, module: Module) -> Callable[[], nn.Module]:
        """A function that makes `module` for the place; raises where it does not fit."""
        if self.build is None:
            raise ValueError(f"task {self.id!r} has no network: its chapter shows the data and trains nothing on them")
        if module is None:
            return self.nothing
        if entry := _entry_of(module):
            return self._from(entry)

        def make() -> nn.Module:
            made = module(self.channels)
            if not isinstance(made, nn.Module):
                raise ValueError(f"module({self.channels}) must be an nn.Module, not {type(made).__name__}")
            return made

        return make

    def _from(self, entry: catalog.Entry) -> Callable[[], nn.Module]:
        """A function that makes a module of the library for the place."""
        layout, options = self._layout_and_options(entry)
        first, *names = inspect.signature(entry.cls).parameters
        if "O" in entry.output.tensors[0] and "out_channels" not in names:
            place = f"the place in task {self.id!r} offers {self.layout.replace(', ', ' and ')}"
            theirs = f"{entry.layout} and returns {entry.output} with an O of its own"
            raise ValueError(f"module {entry.id!r} takes {theirs}, but {place}")
        options |= {name: value for name, value in self.options.items() if name in names}
        options[first] = self.channels
        widens = self.out_channels == self.channels or "out_channels" in names
        if not widens:
            options[first] = self.out_channels
        elif "out_channels" in names:
            options["out_channels"] = self.out_channels

        def make() -> nn.Module:
            ahead = [] if widens else [self.nothing()]
            try:
                made = catalog.create(entry.id, **options)
            except ValueError as error:
                place = f"module {entry.id!r} cannot be made for the place in task {self.id!r}"
                raise ValueError(f"{place}, which offers {self.channels} channels: {error}") from None
            if (self.layout, layout) == ("B C H W", "B N C"):
                made = _OnTokens(made)
            return nn.Sequential(*ahead, made) if ahead else made

        return make

    def _layout_and_options(self, entry: catalog.Entry) -> tuple[str, dict[str, Any]]:
        """The layout in which a module of the library fits, and the options of its example for it."""
        layouts: dict[str, str | None] = {}  # layout -> variant, the plain example first
        for variant in (None, *entry.variants):
            layouts.setdefault(entry.layout_of(variant), variant)
        layout = next((layout for layout in self.takes if layout in layouts), None)
        if layout is None:
            theirs, ours = (" or ".join(one.replace(", ", " and ") for one in some) for some in (layouts, self.takes))
            raise ValueError(f"module {entry.id!r} takes {theirs}, but the place in task {self.id!r} offers {ours}")
        sizes = dict(zip(Layout(self.layout).free, self.size, strict=bool(self.size)))
        sizes.setdefault("N", sizes["H"] * sizes["W"] if sizes.keys() == {"H", "W"} else sizes.get("L"))
        size = tuple(sizes.get(axis) for axis in Layout(layout).free)
        known = None not in size
        options = entry.options(layouts[layout], size if known else None)
        if not known and options.keys() & {"height", "width"}:
            raise ValueError(f"module {entry.id!r} is made for one size of input; in task {self.id!r} the sizes vary")
        return layout, options


def list_tasks(module: str | None = None, *, fits: Module = None) -> list[str]:
    """Ids of all tasks, sorted.

    Args:
        module: only those on which the chapter of this module (or this chapter of the foundations) trains.
        fits: only those into whose network this module can be put; see `Task.network`.

    Raises:
        ValueError: if there is no module, and no chapter, of that name, or `fits` is nothing that `Task.network` takes.
    """
    table = _tasks()
    _entry_of(fits)
    if module is not None and not any(module in task.chapters for task in table.values()):
        catalog.entry(module)  # a module of which no task is; raises where there is no such module
    return [id for id, task in sorted(table.items())
            if (module is None or module in task.chapters) and (fits is None or task.fits(fits))]


def task(id: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: if there is none; names those that there are.
    """
    check_choice("id", id, _tasks())
    return _tasks()[id]


_task = task  # `compare` has an argument of that name


def compare(
    task: str | Task,
    modules: Iterable[Module] | Mapping[str, Module],
    *,
    seeds: Iterable[int] = (0, 1, 2),
    data: tuple[train.Data, Sequence[Tensor]] | None = None,
    metric: Callable[[nn.Module, Sequence[Tensor]], Any] | None = None,
    **training: Any,
) -> train.Scores:
    """Train a task's network with each of several modules in its place, on the same batches, and score them.

    ```python
    print(tasks.compare("lamplit_digits", ["se", "eca", None]))
    ```

    Args:
        task: a task or its id.
        modules: what `Task.network` takes, several of them; label -> module to name them otherwise than by their ids
            ("none" for None).
        seeds: each seeds the initial weights and the batches of one run of every network.
        data: `(train, test)`, in place of the task's own.
        metric: `(network, test) -> score`, in place of the task's own.
        **training: options of `toys.fit` that differ from the task's `training`.

    Returns:
        Scores, losses and the trained networks of the first seed, by label.

    Raises:
        ValueError: if there is no such task, two modules have one name, or a module does not fit.
    """
    if not isinstance(task, Task):
        task = _task(task)
    named = _named(modules)
    for module in named.values():
        task._maker(module)  # refuses what does not fit before anything is trained
    builders = {label: lambda module=module: task.network(module) for label, module in named.items()}
    parts = task.data() if data is None else data
    options = {**task.training, **training}
    return train.compare(builders, *parts, seeds=seeds, metric=metric or task.score, **options)


def _entry_of(module: Module) -> catalog.Entry | None:
    """The row of the catalog for a module of the library; None for other classes, functions and None."""
    if isinstance(module, str):
        return catalog.entry(module)
    if isinstance(module, nn.Module):
        raise ValueError(f"module={type(module).__name__}(…) is made already, and every network needs a fresh one: "
                         "give its id, its class, or a function from the number of channels to a module")
    if module is not None and not callable(module):
        raise ValueError(f"module={module!r} must be the id of a module, a class, a function from the number of "
                         "channels to a module, or None")
    return catalog.entry_of(module) if isinstance(module, type) else None


class _OnTokens(nn.Module):
    """A module of tokens (B, N, C) on a feature map, whose positions are the tokens."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.flatten(2).transpose(-2, -1)).transpose(-2, -1).unflatten(2, x.shape[2:])


def _named(modules: Iterable[Module] | Mapping[str, Module]) -> dict[str, Module]:
    if isinstance(modules, Mapping):
        return dict(modules)
    if isinstance(modules, str) or callable(modules):
        raise ValueError(f"modules={modules!r} must be a list of modules, or a dictionary label -> module")
    modules = list(modules)
    labels = ["none" if m is None else m if isinstance(m, str) else getattr(m, "__name__", repr(m)) for m in modules]
    if len(set(labels)) < len(labels):
        raise ValueError(f"modules have the names {', '.join(labels)}; give a dictionary label -> module to tell "
                         "them apart")
    return dict(zip(labels, modules, strict=True))


def _tasks() -> dict[str, Task]:
    """The table. It is set in one step, after every file has been imported: nobody sees a part of it."""
    global _found
    if _found is None:
        package = import_module(__name__.rpartition(".")[0])
        names = [file.name for file in iter_modules(package.__path__) if not file.name.startswith("_")]
        _found = {name: import_module(f"{package.__name__}.{name}").TASK for name in names}
    return _found
