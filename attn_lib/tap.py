"""Naming intermediate tensors, and recording them.

A module passes each tensor that its paper names through `tap`, which returns it unchanged:

    z = tap("z", x.mean((2, 3)), "B C")

Inside `with trace() as t:` it is also recorded. Outside, `tap` costs one look at an empty list; it leaves no
mark on `torch.compile(fullgraph=True)` or `torch.export`, which see a plain Python `if` on that list.

A trace records what its own thread computes, and what is computed for the first time: not what other threads run
meanwhile, nor what activation checkpointing computes again during a backward pass.
"""

import ast
import operator
import sys
import traceback
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from .console import printable

_ACTIVE: list["trace"] = []  # of all threads


def tap(name: str, tensor: Tensor, dims: str = "") -> Tensor:
    """`tensor` itself; inside a trace, recorded under `name`.

    Args:
        name: the paper's symbol.
        dims: the axes in symbols, separated by spaces ("B C H W"); arithmetic such as "H+W-1" is allowed.
            Tests hold that one letter means one size throughout a forward pass.
    """
    if _ACTIVE and (recorder := _recorder()) is not None:
        recorder._record(name, tensor, dims)
    return tensor


def recording() -> bool:
    """Whether `tap` records what it is given here and now."""
    return bool(_ACTIVE) and _recorder() is not None


def tracing() -> bool:
    """Whether a module should compute y by way of what it could fuse, for a trace to show.

    Not inside activation checkpointing, which computes the same a second time when nobody records any more, and
    wants to find the same tensors.
    """
    return bool(_ACTIVE) and _recorder() is not None and not _checkpointed()


def _recorder() -> "trace | None":
    """The innermost trace that records here and now."""
    if torch.compiler.is_compiling():
        return None
    here = _here()
    return next((t for t in _ACTIVE[::-1] if t._where == here), None)  # a copy: other threads write into the list


def _here() -> tuple[int, int]:
    """This thread, and the backward pass that is under way in it (-1 for none)."""
    return get_ident(), torch._C._current_graph_task_id()


def _checkpointed() -> bool:
    """Whether this is called from within `torch.utils.checkpoint`, which gives no other sign."""
    return any(frame.f_globals.get("__name__") == "torch.utils.checkpoint"
               for frame, _ in traceback.walk_stack(sys._getframe()))


class trace:
    """Context manager that records what passes through `tap`.

    Args:
        model: with a model given, names carry the path of the sub-module they come from: "layer1.0.se.s".

    What another thread runs is not recorded, nor what a backward pass computes again; a trace within a trace takes
    over until it ends. A name that occurs again is numbered: "A", "A:2", "A:3". Tensors are kept as they are, with
    their autograd history, until the trace itself is let go.

    >>> with attn_lib.trace() as t:
    ...     y = se(x)
    >>> print(t)
    z  B C      (2, 64)
    s  B C      (2, 64)
    y  B C H W  (2, 64, 12, 16)
    >>> t["s"], t.shapes(), t.dims("s")
    """

    def __init__(self, model: nn.Module | None = None):
        self._model = model
        self._tensors: dict[str, Tensor] = {}
        self._dims: dict[str, str] = {}
        self._paths: dict[nn.Module, str] = {}
        self._path: list[str] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> "trace":
        self._where = _here()
        if self._model is not None:
            self._paths = {module: path for path, module in _named_modules(self._model) if path}
            # Torch's hooks on all modules, not hooks of the model's own: a copy or a file of the model has none.
            self._hooks = [register_module_forward_pre_hook(self._enter),
                           register_module_forward_hook(self._leave, always_call=True)]
        _ACTIVE.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _ACTIVE.remove(self)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._paths.clear()
        self._path.clear()

    def _enter(self, module: nn.Module, *_: object) -> None:
        if not torch.compiler.is_compiling() and module in self._paths and _here() == self._where:
            self._path.append(self._paths[module])

    def _leave(self, module: nn.Module, *_: object) -> None:
        if not torch.compiler.is_compiling() and module in self._paths and _here() == self._where:
            self._path.pop()

    def _record(self, name: str, tensor: Tensor, dims: str) -> None:
        name = ".".join([*self._path[-1:], name])
        count, base = 1, name
        while name in self._tensors:
            count += 1
            name = f"{base}:{count}"
        self._tensors[name] = tensor
        self._dims[name] = dims

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise KeyError(f"{name!r} was not recorded; the trace holds: {', '.join(self._tensors) or 'nothing'}")
        return self._tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        """A line a tensor: its name, its axes in symbols, its shape."""
        rows = [(name, self._dims[name], shape) for name, shape in self.shapes().items()]
        name, axes = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
        lines = [f"{row[0]:{name}}  {row[1]:{axes}}  {row[2]}" for row in rows]
        return printable("\n".join(lines)) or "an empty trace"

    def names(self) -> list[str]:
        """Recorded names, in the order of the forward pass."""
        return list(self._tensors)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def dims(self, name: str) -> str:
        """The axes in symbols ("B C H W"), or "" where the module does not say."""
        self[name]
        return self._dims[name]

    def sizes(self) -> dict[str, int]:
        """Letter -> size, read from all shapes and dims together.

        Raises:
            ValueError: if a letter stands for two sizes, or a shape does not have the axes it claims.
        """
        sizes: dict[str, int] = {}
        claims = [(name, self._dims[name].split(), shape) for name, shape in self.shapes().items() if self._dims[name]]
        for name, axes, shape in claims:
            if len(axes) != len(shape):
                raise ValueError(f"{name!r} has shape {shape} but claims axes {' '.join(axes)!r}")
            for axis, size in zip(axes, shape, strict=True):
                if axis.isidentifier() and sizes.setdefault(axis, size) != size:
                    raise ValueError(f"axis {axis} is {sizes[axis]} elsewhere but {size} in {name!r} {shape}")
        for name, axes, shape in claims:
            for axis, size in zip(axes, shape, strict=True):
                if not axis.isidentifier() and (value := _evaluate(axis, sizes)) != size:
                    raise ValueError(f"axis {axis} is {value} by its formula but {size} in {name!r} {shape}")
        return sizes

    def check(self, name: str, mine: Tensor) -> None:
        """Print that `mine` equals what the library computed under `name`.

        Equal means: same shape, and no entry further off than rounding allows (1e-5 of the largest entry in
        float32, 1e-10 in float64, 1e-2 in half precision).

        Raises:
            AssertionError: with the largest deviation, if it does not.
        """
        theirs = self[name].detach()
        shape = tuple(theirs.shape)
        if tuple(mine.shape) != shape:
            raise AssertionError(printable(f"{name}: your shape is {tuple(mine.shape)}, the library's is {shape}"))
        a, b = mine.detach().cpu().double().flatten(), theirs.cpu().double().flatten()
        a, b = a[a != b], b[a != b]  # an infinity equals itself, but does not differ from itself by 0
        finite = theirs[theirs.isfinite()]
        largest = finite.abs().max().item() if finite.numel() else 0.0
        off = (a - b).abs().max().item() if a.numel() else 0.0
        allowed = {torch.float64: 1e-10, torch.float32: 1e-5}.get(theirs.dtype, 1e-2) * max(largest, 1e-6)
        if not off <= allowed:  # also catches NaN
            by = f"by up to {off:.3g} (largest entry {largest:.3g})"
            raise AssertionError(printable(f"{name} {shape}: differs from the library's {by}"))
        print(printable(f"{name}  {shape}  equals the library's"))


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `model.named_modules()`; the child that a wrapper of `plug` stands for has the wrapper's name."""
    inner: list[str] = []
    for path, module in model.named_modules():
        if child := getattr(type(module), "stands_for", ""):
            inner.append(f"{path}.{child}")
        for other in reversed(inner):  # the innermost first
            if f"{path}.".startswith(f"{other}."):
                path = other.rpartition(".")[0] + path[len(other):]
        yield path, module


_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
}


def _evaluate(formula: str, sizes: dict[str, int]) -> int:
    """Value of an axis formula such as "H+W-1" or "2*k"; names are axes already known."""

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name) and node.id in sizes:
            return sizes[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return _ARITHMETIC[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"axis {formula!r} must be made of known axes ({', '.join(sizes)}), integers and + - * //")

    return value(ast.parse(formula, mode="eval").body)
