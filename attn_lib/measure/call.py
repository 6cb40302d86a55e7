"""Calling a module for a measurement without leaving a trace on it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]  # as a caller gives them
Arguments = tuple[Any, ...] | dict[str, Any]


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (tuple, list)):
        return []
    return [t for branch in tree for t in tensors(branch)]


def map_tensors(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """The same nest with `fn` applied to each tensor."""
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(fn, branch) for key, branch in tree.items()}
    if isinstance(tree, (tuple, list)):
        branches = [map_tensors(fn, branch) for branch in tree]
        return type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)
    return tree


def as_inputs(inputs: Inputs) -> Arguments:
    """The arguments of a call: a lone tensor is one of them, a dictionary holds them by name."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def call(fn: Callable[..., Any], inputs: Arguments) -> Any:
    """`fn` of arguments as `as_inputs` gives them."""
    return fn(**inputs) if isinstance(inputs, dict) else fn(*inputs)


def state(fn: Callable[..., Any]) -> list[Tensor]:
    """Parameters and buffers of a module; nothing for a plain function."""
    return [*fn.parameters(), *fn.buffers()] if isinstance(fn, nn.Module) else []


def device_of(fn: Callable[..., Any], inputs: Arguments) -> torch.device:
    """Where the call runs: the device of the first input, else of the first parameter, else the CPU."""
    return next((t.device for t in [*tensors(inputs), *state(fn)]), torch.device("cpu"))


def has_numbers(t: Tensor) -> bool:
    """False for a tensor that is a shape only: on the meta device, or torch's fake tensor."""
    return not (t.is_meta or isinstance(t, FakeTensor))


def with_grad(inputs: Arguments) -> Any:
    """The inputs as they are inside a network: floating-point ones ask for a gradient. Memory is shared."""
    return map_tensors(lambda t: t.detach().requires_grad_(t.is_floating_point()), inputs)


@contextmanager
def same_modes(model: nn.Module) -> Iterator[None]:
    """Afterwards each sub-module is in the mode (train or eval) it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within; afterwards each sub-module is in the mode it was in."""
    with same_modes(model):
        model.eval()
        yield


@contextmanager
def unchanged(*fns: Callable[..., Any]) -> Iterator[None]:
    """Put buffers (running statistics, counters), training mode and the random state back afterwards."""
    modules = {module for fn in fns if isinstance(fn, nn.Module) for module in fn.modules()}
    kept = [(module, module.training, dict(module._buffers.items()), set(module._non_persistent_buffers_set))
            for module in modules]
    values = {b: b.detach().clone() for *_, buffers, _ in kept for b in buffers.values() if b is not None}
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            for module, training, buffers, transient in kept:
                module.training = training
                for name in set(module._buffers.keys()) - buffers.keys():
                    delattr(module, name)
                for name, buffer in buffers.items():
                    if name not in module._buffers.keys():  # the call deleted it
                        module.register_buffer(name, buffer, persistent=name not in transient)
                    elif module._buffers[name] is not buffer:  # the call put another tensor in its place
                        setattr(module, name, buffer)
            for buffer, value in values.items():
                buffer.data.copy_(value)  # .data: a graph that holds the buffer sees no change, as there is none


def one_step(fn: Callable[..., Any], inputs: Arguments, backward: bool) -> Callable[[], Any]:
    """A function of no arguments that calls `fn` once, and its backward pass if asked for.

    The backward pass leaves `.grad` alone. Its incoming gradient is the output itself (the gradient of
    |y|²/2): real values, made beforehand.
    """
    if not backward:
        return lambda: call(fn, inputs)
    inputs = with_grad(inputs)
    incoming = [y.detach().clone() for y in outputs_with_grad(fn, inputs)]
    return lambda: gradients(fn, inputs, outputs_with_grad(fn, inputs), incoming)


def outputs_with_grad(fn: Callable[..., Any], inputs: Arguments) -> list[Tensor]:
    """The outputs of a call from which a backward pass can start."""
    outputs = [y for y in tensors(call(fn, inputs)) if y.requires_grad]
    if not outputs:
        raise ValueError("backward=True needs an output that depends on an input or a parameter")
    return outputs


def gradients(fn: Callable[..., Any], inputs: Arguments, outputs: list[Tensor],
              incoming: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The backward pass, to the inputs and to every parameter that asks for a gradient."""
    leaves = [t for t in [*tensors(inputs), *state(fn)] if t.requires_grad]
    return torch.autograd.grad(outputs, leaves, incoming, allow_unused=True)


def kept_for_backward(fn: Callable[..., Any], inputs: Arguments) -> tuple[Any, set[torch.UntypedStorage]]:
    """The output of a call, and the storages of everything that autograd keeps of it.

    The inputs ask for a gradient, as they would inside a network. No backward pass can start from the output.
    """
    kept: set[torch.UntypedStorage] = set()

    def pack(t: Tensor) -> None:
        kept.add(t.untyped_storage())  # the storage, not its address: on the meta device all have the address 0

    def unpack(_: None) -> Tensor:
        raise RuntimeError("what the backward pass needs was only counted, not kept")

    with torch.enable_grad(), saved_tensors_hooks(pack, unpack):
        return call(fn, with_grad(inputs)), kept
