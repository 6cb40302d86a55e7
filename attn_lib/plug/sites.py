"""Finding the places in a network: by name, and by what flows through them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..measure.call import unchanged


def find(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """The sub-modules whose dotted name matches, in the network's order; a module of two names counts once.

    Patterns are the shell's, one part at a time: `*` and `?` stand for characters within a part, `[1-4]` for one
    of them, and `**` for any number of whole parts. "layer1.*" is the blocks of layer1, "layer1.**" all
    that layer1 holds, "**.bn3" every bn3.

    Raises:
        ValueError: if nothing matches; names what is near.
    """
    names = {name: module for name, module in model.named_modules() if name}
    found = {name: module for name, module in names.items() if _matches(name.split("."), pattern.split("."))}
    if not found:
        near = get_close_matches(pattern, names, n=4, cutoff=0.3) or list(names)[:4]
        raise ValueError(f"pattern={pattern!r} matches no sub-module; there are {', '.join(near) or 'none'} …")
    return found


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


@dataclass
class Flow:
    """What went through a sub-module in one forward pass: its first input and its output, call by call.

    A tensor stands without its values, anything else as its type.
    """

    inputs: list[Tensor | type] = field(default_factory=list)
    outputs: list[Tensor | type] = field(default_factory=list)

    @property
    def calls(self) -> int:
        return len(self.outputs)


def watch(model: nn.Module, inputs: tuple, modules: Iterable[nn.Module],
          check: Callable[[nn.Module, Any], None] | None = None) -> tuple[Any, dict[nn.Module, Flow]]:
    """One forward pass in eval mode without gradients; returns the output, and what each module saw.

    Modes, running statistics and the random state are put back. Tensors are recorded without their values.
    `check` is called with each module and its output, and may raise before the network trips over it.
    """
    flows = {module: Flow() for module in modules}

    def record(module: nn.Module, args: tuple, output: Any) -> None:
        flows[module].inputs.append(_without_values(args[0] if args else None))
        flows[module].outputs.append(_without_values(output))
        if check is not None:
            check(module, output)

    # Prepended: what a module itself gives, before what hooks make of it.
    handles = [module.register_forward_hook(record, prepend=True) for module in flows]
    try:
        with evaluating(model), unchanged(model), torch.no_grad():
            output = model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return output, flows


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within; afterwards each sub-module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def one_output(path: str, flow: Flow) -> Tensor:
    """The tensor, without values, that a site returns.

    Raises:
        ValueError: if the site is not reached, returns no tensor, or differs from one call to the next.
    """
    if not flow.calls:
        raise ValueError(f"site {path!r} is not called in a forward pass of the example")
    for output in flow.outputs:
        if not isinstance(output, Tensor):
            raise ValueError(f"site {path!r} returns a {output.__name__}; it must return one tensor")
    shapes = [tuple(output.shape) for output in flow.outputs]
    if len(set(shapes)) > 1:
        listed = ", ".join(map(str, dict.fromkeys(shapes)))
        raise ValueError(f"site {path!r} is one module used {len(shapes)} times, for shapes {listed}; "
                         "name a module that is used once")
    return flow.outputs[0]


def channels_of(path: str, site: nn.Module, output: Tensor | None, layout: str | None) -> int:
    """C at a site: from what it returns, or else from what it declares.

    Args:
        output: as from `one_output`; None where there was no forward pass.
        layout: the axes that the module to be put there expects; None where unknown.

    Raises:
        ValueError: if the site's output has other axes, or it does not say how many channels it has.
    """
    declared = _declared_channels(site)
    if output is None:
        if declared is None:
            raise ValueError(f"site {path!r} ({type(site).__name__}) does not say how many channels it returns; "
                             "pass example=, an input of the network")
        return declared
    shape = tuple(output.shape)
    if layout is not None and len(layout.split()) != len(shape):
        raise ValueError(f"site {path!r} returns shape {shape}; the module needs ({', '.join(layout.split())})")
    if len(shape) < 2:
        raise ValueError(f"site {path!r} returns shape {shape}; it must have a channel axis")
    axis = layout.split().index("C") if layout else (-1 if len(shape) == 3 else 1)
    if declared not in (None, shape[axis]):
        raise ValueError(f"site {path!r} has {declared} channels but returns shape {shape}: "
                         f"axis {axis} of size {shape[axis]} is not its channels")
    return shape[axis]


def _declared_channels(site: nn.Module) -> int | None:
    for name in ("out_channels", "num_features", "num_channels", "normalized_shape", "out_features", "embed_dim"):
        value = getattr(site, name, None)
        value = value[-1] if isinstance(value, (tuple, list, torch.Size)) and value else value
        if isinstance(value, int):
            return value
    # Blocks of channels-last networks (Swin, ConvNeXt) declare nothing; the norm at their head does.
    norms = {m.normalized_shape[-1] for m in site.modules() if isinstance(m, nn.LayerNorm)}
    others = any(isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)) for m in site.modules())
    return norms.pop() if len(norms) == 1 and not others else None


def _without_values(value: Any) -> Tensor | type:
    # Shape, type and strides are all that is asked for; to hold every activation would need far more memory.
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else type(value)
