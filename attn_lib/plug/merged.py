"""A module in the place of a merge that a network writes out, `torch.cat([a, b], 1)` or `a + b`.

No sub-module stands there that could be wrapped. Two things together take its place:

    Merged  stands for the sub-module that is called last before the merge, and announces it
    Scope   sees the operations of the module whose `forward` writes the merge, and gives the one that was announced to
            the new module

No other sub-module is called between the two, so that nothing that is later put into the network, or converted in it,
is taken for the merge. Whatever goes past the scope meets an error in `Merged`.
"""

import copyreg
import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.overrides import TorchFunctionMode

from ..tap import recording
from .followed import SITE, Wrapper
from .fused import this_thread
from .probe import memory_format

SCOPE = "_scope_of_merges"  # attribute of a module whose merges were replaced

# Tuples, since torch.compile before 2.7 looks nothing up in sets. The operators themselves come in strict export.
CATS = torch.cat, torch.concat, torch.concatenate
IN_PLACE = Tensor.add_, operator.iadd  # `a += b`
ADDS = torch.add, Tensor.add, operator.add, *IN_PLACE


class Operation(NamedTuple):
    """A concatenation, or an addition of two tensors.

    Attributes:
        kind: "cat" or "add".
        tensors: what it merges.
        dim: the axis of a concatenation.
        in_place: whether the first is written into.
    """

    kind: str
    tensors: tuple[Tensor, ...]
    dim: int = 0
    in_place: bool = False


def operation(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    """What a call of torch merges; None if it is no merge. Scaled additions and `out=` are none."""
    if func in CATS:
        tensors = args[0] if args else kwargs["tensors"]
        dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
        return None if "out" in kwargs else Operation("cat", tuple(tensors), dim)
    if func in ADDS:
        operands = (*args, kwargs["other"]) if "other" in kwargs else args
        of_tensors = len(operands) == 2 and all(isinstance(x, (Tensor, Proxy)) for x in operands)
        if of_tensors and all(name == "other" for name in kwargs):
            return Operation("add", tuple(operands), in_place=func in IN_PLACE)
    return None


@dataclass(frozen=True)
class Spot:
    """Where a merge is within a forward pass of its owner, the module that writes it, and what stands there.

    Attributes:
        merge: its name within the owner, such as "cat0".
        kind: "cat" or "add".
        call: which call of the sub-module before it, from 0.
        before: how many of the kind come between that call and the merge.
        entering: whether no sub-module is called before it: it is announced as the owner is called.
        widths: the channels of what is merged.
        first: whether the new module stands for the first input of a concatenation, and not for all of it.
        copies: whether the output is copied; see `Followed`.
    """

    merge: str
    kind: str
    call: int
    before: int
    entering: bool
    widths: tuple[int, ...]
    first: bool
    copies: bool


class Merged(Wrapper):
    """y = site(x), behind which a merge of the network's code is `child(a, b)`.

    Args:
        site, child, name: as for `Wrapper`.
        scope: of the module that writes the merge.
        spot: which merge that is.
    """

    _scope: "Scope | None" = None
    _spot: Spot | None = None

    def __init__(self, site: nn.Module, child: nn.Module, name: str, scope: "Scope", spot: Spot):
        super().__init__(site, child, name)
        self._scope, self._spot = scope, spot

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        site = self._modules[SITE]
        if self._scope.idle is not None and self._scope.idle == this_thread():
            return site(*args, **kwargs)
        if self._spot.entering:
            self._scope.expect(self)
            output = site(*args, **kwargs)
            self._scope.check_opened(self)
            return output
        watch = self._scope.watch_of(self)
        watch.check_met()
        output = site(*args, **kwargs)
        watch.announce(self, output)
        return output

    def merge(self, done: Operation) -> Tensor:
        """What the new module makes of the merge that was announced."""
        child, spot, tensors = self._modules[self._child], self._spot, done.tensors
        recorded = isinstance(tensors[0], Proxy)
        if not recorded and tuple(x.shape[1] for x in tensors if x.ndim == 4) != spot.widths:
            raise RuntimeError(f"{spot.merge!r} merges {', '.join(str(tuple(x.shape)) for x in tensors)}, not maps of "
                               f"{', '.join(map(str, spot.widths))} channels as in the example of plug.fuse: the "
                               "network takes another way here")
        if spot.first:
            return torch.cat((child(*tensors), *tensors[1:]), done.dim)
        if done.in_place:  # others may hold the tensor that is written into
            return tensors[0].copy_(child(tensors[0].clone(), *tensors[1:]))
        y = child(*tensors)
        if not recorded:
            y = y.contiguous(memory_format=memory_format(tensors[0]))
        return y.clone() if spot.copies or recording() else y

    @property
    def _what(self) -> str:
        return f"the {type(self._inserted).__name__} in the place of {self._spot.merge!r} after it"


class Watch(TorchFunctionMode):
    """Sees every operation of one forward pass of an owner, and gives merges that are announced to their modules."""

    def __init__(self) -> None:
        super().__init__()
        self._grad = torch.is_grad_enabled()
        self._calls: dict[str, int] = {}  # of what stands before a merge, so far
        self._awaited: dict[str, tuple[Merged, int]] = {}  # and how many of its kind come before it

    def announce(self, merged: Merged, output: Any = None) -> None:
        """What stands before a merge has been called."""
        spot = merged._spot
        call = self._calls.get(spot.merge, 0)
        self._calls[spot.merge] = call + 1
        if call != spot.call:
            return
        if isinstance(output, Proxy) and spot.kind == "add":
            raise RuntimeError(f"torch.fx cannot record {spot.merge!r}, for which a {type(merged._inserted).__name__} "
                               "stands: it records additions without asking anyone. Use torch.export, or make the "
                               "addition a module and plug.replace that")
        self._awaited[spot.merge] = merged, spot.before

    def check_met(self) -> None:
        """Nothing that was announced may still be awaited.

        Raises:
            RuntimeError: naming the merge.
        """
        for merge, (merged, _) in self._awaited.items():
            raise RuntimeError(f"{merge!r} did not come where the example of plug.fuse had it, and so its "
                               f"{type(merged._inserted).__name__} did not run: the network takes another way here, or "
                               "its operations are not seen")

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        done = operation(func, args, kwargs) if self._awaited else None
        if done is None:
            return func(*args, **kwargs)
        due = None
        for merge, (merged, before) in list(self._awaited.items()):
            if merged._spot.kind == done.kind:
                if before:
                    self._awaited[merge] = merged, before - 1
                else:
                    due = merged
                    del self._awaited[merge]
        if due is None:
            return func(*args, **kwargs)
        if self._grad and not torch.is_grad_enabled():
            raise RuntimeError(f"{due._spot.merge!r} is computed without gradients within a pass that has them, as "
                               "checkpointing by torch.utils.checkpoint(…, use_reentrant=True) does; computed again, "
                               f"it would go past its {type(due._inserted).__name__}")
        return due.merge(done)


class Scope:
    """The open forward passes of an owner; those of several threads, and passes within passes, have each their own.

    Attributes:
        idle: the thread in which merges stay what they are, because it looks at the network; None where none does.
    """

    def __init__(self) -> None:
        self.idle: int | None = None
        self._passes: dict[int, list[Watch]] = {}  # of each thread, the innermost last
        self._expected: dict[int, list[Merged]] = {}  # announced before the owner is called

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def run(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The owner's own forward pass, seen."""
        watch = Watch()
        for merged in self._expected.pop(this_thread(), []):
            watch.announce(merged, [*args, *kwargs.values(), None][0])
        self._passes.setdefault(this_thread(), []).append(watch)
        try:
            with watch:
                output = forward(*args, **kwargs)
        finally:
            passes = self._passes[this_thread()]
            passes.pop()
            if not passes:
                del self._passes[this_thread()]
        watch.check_met()
        return output

    def watch_of(self, merged: Merged) -> Watch:
        """That of the pass that is open.

        Raises:
            RuntimeError: if none is.
        """
        passes = self._passes.get(this_thread())
        if not passes:
            raise RuntimeError(_bypassed(merged))
        return passes[-1]

    def expect(self, merged: Merged) -> None:
        """The owner is about to be called."""
        self._expected.setdefault(this_thread(), []).append(merged)

    def check_opened(self, merged: Merged) -> None:
        """The owner was called by its `forward`.

        Raises:
            RuntimeError: if it was not.
        """
        if self._expected.pop(this_thread(), None):
            raise RuntimeError(_bypassed(merged))


def _bypassed(merged: Merged) -> str:
    return (f"a {type(merged._inserted).__name__} stands for {merged._spot.merge!r} within a forward pass of the "
            "module that writes it, alone: call that module, and not methods or parts of it; checkpointed activations "
            "cannot be computed again, and what gives it another `forward` comes before plug.fuse")


def open_scope(path: str, owner: nn.Module) -> Scope:
    """The scope of an owner, which is of a class of its own from then on: its own, with another `forward`.

    Raises:
        ValueError: if the owner cannot have one.
    """
    if SCOPE in vars(owner):
        return vars(owner)[SCOPE]
    cls = type(owner)
    reduced = cls.__reduce__ is not object.__reduce__ or cls.__reduce_ex__ is not object.__reduce_ex__
    if "forward" in vars(owner) or reduced:
        raise ValueError(f"merge {path!r} is written by a {cls.__name__} that was recorded, or given another `forward` "
                         "or another way to be copied; fuse before that")
    scope = vars(owner)[SCOPE] = Scope()
    owner.__class__ = _with_scope(cls)
    return scope


def close_scopes(model: nn.Module) -> None:
    """Let every owner in a network, none of whose merges is replaced any more, be of its own class again."""
    needed = [module._scope for module in model.modules() if isinstance(module, Merged)]
    for owner in model.modules():
        if is_owner(owner) and vars(owner)[SCOPE] not in needed:
            if not is_intact(owner):
                raise ValueError(f"a {type(owner).__name__}, whose merge was replaced, is of another class since; undo "
                                 "that first")
            owner.__class__ = type(owner).__base__
            del vars(owner)[SCOPE]


def is_owner(module: nn.Module) -> bool:
    """Whether a merge that the module writes is replaced."""
    return SCOPE in vars(module)


def is_intact(owner: nn.Module) -> bool:
    """Whether an owner is still of the class that `open_scope` gave it."""
    return is_owner(owner) and type(owner) is _with_scope(type(owner).__base__)


def beneath(module: nn.Module) -> nn.Module:
    """A module without what announces merges after it: these come last, whatever else is put there later."""
    while isinstance(module, Merged):
        module = module.site
    return module


@functools.cache
def _with_scope(base: type[nn.Module]) -> type[nn.Module]:
    class Owner(base):  # type: ignore[valid-type]
        @functools.wraps(base.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(self, SCOPE).run(super().forward, args, kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            _, _, *rest = super().__reduce_ex__(max(protocol, 2))
            return _new_owner, (base,), *rest

    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(Owner, name, getattr(base, name))
    return Owner


def _new_owner(base: type[nn.Module]) -> nn.Module:
    """An empty instance, for copies and pickles: the class itself is not to be found by its name."""
    return copyreg.__newobj__(_with_scope(base))
