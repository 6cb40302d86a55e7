"""What every module of the catalogue does so that it can live in other people's networks."""

from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy


def as_leaf(cls: type[nn.Module]) -> None:
    """Let `torch.fx.symbolic_trace`, and whatever builds on it, keep modules of `cls` whole.

    A tracer follows a `forward` with stand-ins that have no shape and no type. Our modules decide by both: followed
    inside, a graph would lose their checks, or be bound to decisions for one size. So the node `call_module` is made
    here, where the tracer would enter; the graph holds the module itself, which runs as ever, at any size. A module
    that is traced by itself becomes the one sub-module of the graph (but one of any number of inputs cannot be).

    `forward` is exchanged in place. A subclass with a `forward` of its own is followed inside, and cannot call ours
    with stand-ins: it would be two things in one node.
    """
    forward = cls.forward

    @wraps(forward)
    def leaf(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        proxies = [a for a in (*args, *kwargs.values()) if isinstance(a, Proxy)]  # torch 2.6 compiles no next(…, None)
        if not proxies:
            return forward(self, *args, **kwargs)
        if type(self).forward is not leaf:
            raise ValueError(f"{type(self).__name__} must be a leaf to torch.fx, as it calls the forward of "
                             f"{cls.__name__}: give the tracer an `is_leaf_module` that says so")
        tracer = proxies[0].tracer
        return tracer.create_proxy("call_module", _path(tracer, self), args, kwargs)

    # Code of its own for each class: the compiler keeps at most eight graphs a piece of code, and then runs it eagerly.
    leaf.__code__ = leaf.__code__.replace(co_name=f"{cls.__name__}_forward")  # type: ignore[attr-defined]
    cls.forward = leaf


def _path(tracer: Any, module: nn.Module) -> str:
    """Where the graph's owner holds the module; the owner of a module that is traced by itself is made here."""
    if tracer.root is not module:
        path: str = tracer.path_of_module(module)
        return path
    name = type(module).__name__
    tracer.root = nn.ModuleDict({name: module})
    return name


def loads_scalars(cls: type[nn.Module]) -> None:
    """Let modules of `cls` load files in which a parameter of shape (1,) is a number without axes.

    Criss-cross attention's γ was one here, and is one in code in circulation; FSDP cannot shard such parameters.
    """
    load = cls._load_from_state_dict

    @wraps(load)
    def scalars_as_vectors(self: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name, p in self.named_parameters():
            found = state_dict.get(prefix + name)
            if p.shape == (1,) and isinstance(found, Tensor) and found.ndim == 0:
                state_dict[prefix + name] = found[None]  # torch passes a copy of the caller's dictionary
        load(self, state_dict, prefix, *args)

    setattr(cls, "_load_from_state_dict", scalars_as_vectors)  # noqa: B010  a type checker takes no other method here
