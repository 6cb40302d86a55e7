"""What depends on what inside a module, read off its own trace and autograd's graph.

Nodes are the inputs and the taps. An edge says that one reaches the other without passing a third; it is found
by walking autograd's graph back from each tap. The operations met on the way, with the parameters they use,
become the target's caption. Nothing is written down twice, so the drawing cannot drift from the code.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import catalog
from ..measure.call import unchanged
from ..tap import trace
from .words import parameter, printed, silent, spell


@dataclass
class Node:
    """An input, a tap or the module's output.

    Attributes:
        name: as in the trace; an input's is its argument's name.
        dims: axes in symbols, or "".
        shape: sizes of this run.
        kind: "input", "tap" or "output".
        caption: how it is computed from the nodes that point at it.
        grounded: whether autograd sees what it is made of.
    """

    name: str
    dims: str
    shape: tuple[int, ...]
    kind: str
    caption: str = ""
    grounded: bool = True

    @property
    def axes(self) -> list[str]:
        return self.dims.split()


@dataclass
class Graph:
    """Nodes in the order of the forward pass, and edges (source name, target name)."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)


def dependence(module: nn.Module, inputs: Sequence[Any]) -> Graph:
    """Run `module` once and say what depends on what.

    A copy of the module runs on copies of the inputs: no running statistic, gradient or random state is touched.

    Args:
        module: any module that taps.
        inputs: its positional arguments.
    """
    module = copy.deepcopy(module)
    leaves = [x.detach().clone().requires_grad_() if _differentiable(x) else x for x in inputs]
    with unchanged(), torch.enable_grad(), trace() as t:
        output = module(*leaves)
    walk = _Walk({id(p): parameter(path) for path, p in module.named_parameters()})
    for name, dims, x in _inputs(module, leaves):
        walk.enter(Node(name, dims, tuple(x.shape), "input"), x)
    outputs = [y for y in (output if isinstance(output, list | tuple) else [output]) if isinstance(y, Tensor)]
    last = {id(t[name]): name for name in t.names()}  # a tensor tapped twice goes by its last name
    for name in t.names():
        ends = any(t[name] is y for y in outputs) and last[id(t[name])] == name
        walk.enter(Node(name, t.dims(name), tuple(t[name].shape), "output" if ends else "tap"), t[name])
    loose = [y for y in outputs if id(y) not in last]
    for i, y in enumerate(loose, start=1):
        name = "output" if len(loose) == 1 else f"output{i}"
        walk.enter(Node(name, "", tuple(y.shape), "output"), y)
    return walk.graph


class _Walk:
    """The graph so far, and where in autograd's graph its nodes stand.

    Args:
        parameters: id of a parameter → its symbol.
    """

    def __init__(self, parameters: dict[int, str]):
        self.graph = Graph()
        self._parameters = parameters
        self._named: dict[tuple[Any, int], str] = {}  # place in autograd's graph → name

    def enter(self, node: Node, x: Tensor) -> None:
        """Add a node, with edges from the nearest nodes that are there already."""
        before = self._named.get(_place(x))
        if before == node.name:  # a module that taps its own input: one box, with the tap's axes
            self.graph.nodes[node.name].dims = node.dims or self.graph.nodes[node.name].dims
            return
        base, count = node.name, 1
        while node.name in self.graph.nodes:  # a tap named as an input, of another value
            count += 1
            node.name = f"{base}:{count}"
        sources = [before] if before else []
        if not before and x.grad_fn is not None:
            sources, node.caption = self._back(x.grad_fn, node.axes)
        elif id(x) in self._parameters:
            node.caption = f"is {self._parameters[id(x)]}"
        node.grounded = node.kind == "input" or bool(sources or node.caption)
        self.graph.nodes[node.name] = node
        self.graph.edges += [(source, node.name) for source in sources]
        self._named[_place(x)] = node.name

    def _back(self, root: Any, result: list[str]) -> tuple[list[str], str]:
        """Nearest nodes behind an operation, and a caption of what happens between them and it."""
        order = list(self._behind(root))
        reach: dict[Any, set[str]] = {}  # operation → nodes it is computed from
        used: dict[Any, list[str]] = {}  # operation → parameters that enter there, or only pass silent ones before
        axes: dict[Any, list[str]] = {}
        for fn in order:
            reach[fn], used[fn] = set(), []
            for parent, number in fn.next_functions:
                if parent is None:
                    continue
                if name := self._named.get(_place_of(parent, number)):
                    reach[fn].add(name)
                    axes.setdefault(fn, self.graph.nodes[name].axes)
                elif hasattr(parent, "variable"):
                    used[fn].append(self._parameters.get(id(parent.variable), "constant"))
                else:
                    reach[fn] |= reach[parent]
                    used[fn] += [] if reach[parent] else used[parent]
        sources = [name for name in self.graph.nodes if name in reach[root]]
        if not sources:
            return [], "from " + ", ".join(dict.fromkeys(used[root])) if used[root] else ""

        def say(functions: list[Any]) -> str:
            return spell(functions, used, axes, result)

        parts = []
        if len(sources) > 1:  # what happens to one alone is told apart from what joins them
            alone = {s: say([fn for fn in order if reach[fn] == {s}]) for s in sources}
            for own in dict.fromkeys(filter(None, alone.values())):
                mine = [printed(s) for s in sources if alone[s] == own]
                who = "each" if len(mine) == len(sources) else ", ".join(mine)
                parts.append(f"1 − {who}" if own == "1 −" else f"{who}: {own}")
        joint = [fn for fn in order if len(reach[fn]) >= min(2, len(sources))]
        words = say(joint)
        if words in ("×", "+", "−") and (operands := self._operands(joint)):
            words = f" {words} ".join(printed(name) for name in operands)
        return sources, " · ".join(filter(None, [*parts, words]))

    def _behind(self, root: Any) -> Iterator[Any]:
        """Operations behind `root` up to the nodes, each after those it depends on."""
        seen, stack = set(), [(root, False)]
        while stack:
            fn, done = stack.pop()
            if done:
                yield fn
            elif fn not in seen:
                seen.add(fn)
                stack.append((fn, True))
                for parent, number in reversed(fn.next_functions):
                    if parent is not None and not hasattr(parent, "variable"):
                        if _place_of(parent, number) not in self._named:
                            stack.append((parent, False))

    def _operands(self, joint: list[Any]) -> list[str]:
        """The nodes that enter the operations of `joint`, of which a × b × c is two; none if one is no node."""
        chain = [fn for fn in joint if not silent(fn)]
        entering = [parent for fn in chain for parent in fn.next_functions if _loud(parent[0]) not in chain]
        names = [self._as_it_is(*parent) for parent in entering]
        known = [name for name in names if name]
        return known if len(known) == len(names) else []

    def _as_it_is(self, fn: Any, number: int) -> str | None:
        while fn is not None and not (name := self._named.get(_place_of(fn, number))):
            if hasattr(fn, "variable") or not silent(fn) or len(fn.next_functions) != 1:
                return None
            fn, number = fn.next_functions[0]
        return name if fn is not None else None


def _loud(fn: Any) -> Any:
    """The operation behind those that only move or copy entries."""
    while fn is not None and not hasattr(fn, "variable") and silent(fn) and len(fn.next_functions) == 1:
        fn = fn.next_functions[0][0]
    return fn


def _place(x: Tensor) -> tuple[Any, int]:
    """Where a tensor stands in autograd's graph."""
    return (x.grad_fn, x.output_nr) if x.grad_fn is not None else ("leaf", id(x))


def _place_of(fn: Any, number: int) -> tuple[Any, int]:
    return ("leaf", id(fn.variable)) if hasattr(fn, "variable") else (fn, number)


def _differentiable(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _inputs(module: nn.Module, values: Sequence[Any]) -> Iterator[tuple[str, str, Tensor]]:
    """Name, axes and value of each tensor that goes in; the axes are the catalog's."""
    names: list[str] = []
    for p in inspect.signature(module.forward).parameters.values():
        names += [f"{p.name}{i}" for i in range(1, len(values) + 1)] if p.kind is p.VAR_POSITIONAL else [p.name]
    known = catalog.layouts_of(module)
    layouts = [" ".join(axes) for axes in known[0].tensors] if known else []
    layouts += [""] * (len(values) - len(layouts))
    for name, dims, x in zip(names, layouts, values, strict=False):
        if isinstance(x, Tensor):
            yield name, dims, x
