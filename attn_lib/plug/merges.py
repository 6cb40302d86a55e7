"""The merges that a network writes out in its code, listed by running it: `torch.cat([a, b], 1)` and `a + b`."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from ..console import printable
from ..measure.call import Arguments, call, evaluating, tensors, unchanged
from .followed import named_modules, wrappers_of
from .fused import this_thread
from .merged import SCOPE, Merged, Operation, Scope, beneath, operation
from .probe import Example, inputs_of, without_values
from .report import table
from .sites import end_of


@dataclass(frozen=True)
class Moment:
    """When a merge happens within a pass of its owner: the fields are those of `merged.Spot`.

    Attributes:
        path, place: the sub-module that is called last before it; the owner where there is none.
    """

    path: str
    place: nn.Module = field(repr=False)
    call: int
    before: int
    entering: bool
    widths: tuple[int, ...]


@dataclass
class Merge:
    """A concatenation of maps along their channels, or an addition of two maps, in a network's own code.

    Attributes:
        index: its number in the network.
        name: the owner's name, a colon, and the number among the owner's merges of the kind: "decoder:cat0"; ":cat0"
            where the network itself is the owner.
        kind: "cat" or "add".
        owner: name of the sub-module in whose forward pass it happens, and not in one within that.
        inputs: for each map the sub-module, or the merge, that it was last an output of; "input" where it comes from
            the network's input, and None where nobody knows.
        shapes: of the maps.
        shape: of what they become.
        calls: how often it happens in a forward pass.
        module: name of the module that `plug.fuse` has put in its place; None where there is none.
    """

    index: int
    name: str
    kind: str
    owner: str
    inputs: tuple[str | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    calls: int = 1
    module: str | None = None
    _owner: nn.Module | None = field(default=None, repr=False)
    _operands: tuple[Tensor, ...] = field(default=(), repr=False)
    _moments: list[Moment] = field(default_factory=list, repr=False)


class Merges(list[Merge]):
    """The merges of a network, in their order; printed, a table."""

    def __str__(self) -> str:
        rows = [("index", "merge", "calls", "shape", "of")]
        for m in self:
            of = f" {'+' if m.kind == 'add' else '|'} ".join(
                f"{source or '?'} ({shape[1]})" for source, shape in zip(m.inputs, m.shapes, strict=True))
            rows.append((str(m.index), m.name, str(m.calls), str(m.shape), of + (f" → {m.module}" if m.module else "")))
        return printable("\n".join(table(rows, left=(1, 3, 4)))) if self else "no merges of feature maps"


def merges(model: nn.Module, example: Example) -> Merges:
    """The merges that a network writes out in its code; `plug.fuse` puts a module in the place of one.

    A merge is a `torch.cat` of maps (B, C, H, W) along their channels, or an addition of two maps of one shape,
    `a + b`, `a += b` or `torch.add`. What a module such as ultralytics' Concat merges is listed as well, with that
    module as the owner. Merges in training alone, in code compiled by `torch.jit.script`, and within modules that
    `plug` inserted are not seen.

    Args:
        model: the network; it is run in eval mode, and left as it was.
        example: an input of the network, a tuple of them, or a dictionary of its arguments by name.

    Returns:
        A list that prints as a table. Merges that were replaced keep their index and name.

    Raises:
        ValueError: without an example.
    """
    inputs = inputs_of(example)
    if inputs is None:
        raise ValueError("example= must be an input of the network: merges are found by running it")
    return Recorder(model).record(inputs)


@dataclass
class Frame:
    """A forward pass that is going on, of a sub-module that has a name."""

    path: str
    place: nn.Module
    last: nn.Module | None = None  # called last in it
    counts: Counter[str] = field(default_factory=Counter)  # of the merges listed, by kind
    since: Counter[str] = field(default_factory=Counter)  # of all merges since then, by kind
    calls: Counter[nn.Module] = field(default_factory=Counter)  # within it, at any depth


class Recorder(TorchFunctionMode):
    """Notes the merges of one forward pass.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.found: dict[str, Merge] = {}
        self._frames: list[Frame] = []
        self._sources: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> what it was last an output of
        self._paths: dict[nn.Module, str] = {}
        self._inserted: set[nn.Module] = set()  # by plug: not the network's
        self._replaced: dict[tuple[Scope, str], str] = {}  # scope and merge -> name of the new module
        for path, module in named_modules(model):
            self._paths[beneath(module)] = path
            for wrapper in wrappers_of(module):
                if wrapper._inserted is not None:
                    self._inserted.add(wrapper._inserted)
                if isinstance(wrapper, Merged):
                    self._replaced[wrapper._scope, wrapper._spot.merge] = f"{path}.{wrapper._child}"

    def record(self, inputs: Arguments) -> Merges:
        """Run the network as it is without what stands for merges."""
        scopes = {scope for scope, _ in self._replaced}
        for x in tensors(inputs):
            self._sources[x] = "input"
        handles = [handle for place in self._paths for handle in (
            place.register_forward_pre_hook(self._enter), place.register_forward_hook(self._leave))]
        try:
            for scope in scopes:
                scope.idle = this_thread()
            with evaluating(self.model), unchanged(self.model), torch.no_grad(), self:
                call(self.model, inputs)
        finally:
            for scope in scopes:
                scope.idle = None
            for handle in handles:
                handle.remove()
        return Merges(self.found.values())

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        done = operation(func, args, kwargs)
        shapes = tuple(tuple(x.shape) for x in done.tensors) if done else ()
        y = func(*args, **kwargs)
        source = next((self._sources[x] for x in tensors([args, kwargs]) if x in self._sources), None)
        if done is not None and self._frames:
            if _of_maps(done):
                source = self._note(done, shapes, y)
            self._frames[-1].since[done.kind] += 1
        for x in tensors(y) if source else ():
            self._sources[x] = source
        return y

    def _note(self, done: Operation, shapes: tuple[tuple[int, ...], ...], y: Tensor) -> str | None:
        if any(frame.place in self._inserted for frame in self._frames):
            return None
        frame = self._frames[-1]
        short = f"{done.kind}{frame.counts[done.kind]}"
        frame.counts[done.kind] += 1
        name = f"{frame.path}:{short}"
        path, place = frame.path, frame.place
        if frame.last is not None:
            path, place = end_of(self._paths[frame.last], frame.last)
        moment = Moment(path, place, frame.calls[place] - 1 if frame.last is not None else 0, frame.since[done.kind],
                        frame.last is None, tuple(shape[1] for shape in shapes))
        if name in self.found:
            merge = self.found[name]
            merge.calls += 1
            if moment not in merge._moments:
                merge._moments.append(moment)
            return name
        owner = wrappers_of(frame.place)[-1].site if wrappers_of(frame.place) else frame.place
        self.found[name] = Merge(
            len(self.found), name, done.kind, frame.path, tuple(self._sources.get(x) for x in done.tensors), shapes,
            tuple(y.shape), 1, self._replaced.get((vars(owner).get(SCOPE), short)), owner,
            tuple(without_values(x) for x in done.tensors), [moment])
        return name

    def _enter(self, place: nn.Module, args: tuple[Any, ...]) -> None:
        self._frames.append(Frame(self._paths[place], place))

    def _leave(self, place: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._frames.pop()
        for frame in self._frames:
            frame.calls[place] += 1
        if self._frames:
            self._frames[-1].last = place
            self._frames[-1].since.clear()
        for x in tensors(output):
            self._sources[x] = self._paths[place]


def _of_maps(done: Operation) -> bool:
    """Whether feature maps are merged: along the channels, or entry by entry."""
    maps = len(done.tensors) > 1 and all(x.ndim == 4 and x.is_floating_point() for x in done.tensors)
    if done.kind == "cat":
        return maps and done.dim in (1, -3)
    return maps and done.tensors[0].shape == done.tensors[1].shape
