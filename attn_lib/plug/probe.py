"""Looking at a network: what flows through its sub-modules, and whether its output is still the same.

Nothing here edits a network: hooks that record are removed, and modes, running statistics and the random state put
back.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..measure import compare_timings, flops
from ..measure.call import Arguments, call, evaluating, kept_for_backward, state, tensors, unchanged


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


def watch(model: nn.Module, inputs: Arguments, modules: Iterable[nn.Module],
          check: Callable[[nn.Module, Any], None] | None = None) -> tuple[Any, dict[nn.Module, Flow]]:
    """One forward pass in eval mode without gradients; returns the output, and what each module saw.

    `check` is called with each module and its output, and may raise before the network trips over it.
    """
    flows = {module: Flow() for module in modules}

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        flows[module].inputs.append(_without_values(args[0] if args else None))
        flows[module].outputs.append(_without_values(output))
        if check is not None:
            check(module, output)

    # Prepended: what a module itself gives, before what hooks make of it.
    handles = [module.register_forward_hook(record, prepend=True) for module in flows]
    try:
        with evaluating(model), unchanged(model), torch.no_grad():
            output = call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return output, flows


class Probe:
    """A network before it is edited, to be looked at again afterwards.

    Args:
        model: the network.
        inputs: of an example; None where there is none, and then nothing but parameters is known.
        sites: the sub-modules to be watched.
        measure_time: whether the forward pass is also timed.

    Attributes:
        params: how many parameters the network has.
        flows: site -> what went through it; empty without an example.
    """

    def __init__(self, model: nn.Module, inputs: Arguments | None, sites: Iterable[nn.Module], measure_time: bool):
        if measure_time and inputs is None:
            raise ValueError("measure_time=True needs example=, an input of the network")
        self.params = count(model)
        self.flows: dict[nn.Module, Flow] = {}
        self._model, self._inputs = model, inputs
        self._copy = copy.deepcopy(model) if measure_time else None
        if inputs is not None:
            output, self.flows = watch(model, inputs, sites)
            self._output = [y.clone() for y in tensors(output)]
            with evaluating(model):
                self._flops = flops(model, inputs)

    def again(self, check: Callable[[nn.Module, Any], None] | None = None
              ) -> tuple[dict[str, Any], dict[nn.Module, Flow]]:
        """Look at the edited network; `check` as for `watch`.

        Returns:
            What the report says of it, by the names of its fields, and what went through every module; both are
            empty without an example.
        """
        if self._inputs is None:
            return {}, {}
        output, flows = watch(self._model, self._inputs, self._model.modules(), check)
        said: dict[str, Any] = {}
        output = tensors(output)
        if output or self._output:
            said["change"] = _largest_change(self._output, output)
            said["scale"] = max(map(_largest, self._output), default=0.0)
        precision = max((torch.finfo(y.dtype).eps for y in output if y.is_floating_point()), default=0.0)
        said["rounding"] = min(100 * precision, 0.02) * said.get("scale", 0.0)
        with evaluating(self._model):
            said["flops"] = self._flops, flops(self._model, self._inputs)
            if self._copy is not None:
                calls = {"before": (self._copy.eval(), self._inputs), "after": (self._model, self._inputs)}
                said["time"], self._copy = compare_timings(calls), None
        return said, flows


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


def channels_of(path: str, site: nn.Module, output: Tensor | None, axes: Sequence[str] | None) -> int:
    """C at a site: from what it returns, or else from what it declares.

    Args:
        output: as from `one_output`; None where there was no forward pass.
        axes: those of the tensor that the module to be put there expects; None where unknown.

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
    if axes is not None and len(axes) != len(shape):
        raise ValueError(f"site {path!r} returns shape {shape}; the module needs ({', '.join(axes)})")
    if len(shape) < 2:
        raise ValueError(f"site {path!r} returns shape {shape}; it must have a channel axis")
    axis = axes.index("C") if axes else (-1 if len(shape) == 3 else 1)
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


def keeps_its_output(path: str, module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether autograd keeps the very tensor that `module` returns, as it does where a sigmoid comes last.

    Raises:
        ValueError: if the module does not return the shape that it is given.
    """
    device, dtype = device_and_dtype(module) or (None, None)
    x = torch.ones(shape, device=device, dtype=dtype)
    with evaluating(module), unchanged(module):
        try:
            y, kept = kept_for_backward(module, (x,))
        except ValueError as error:
            raise ValueError(f"site {path!r}: {error}") from None
    check_fits(path, shape, y)
    return y.untyped_storage() in kept


def check_fits(path: str, shape: tuple[int, ...], y: Any) -> None:
    """`y`, from a new module, must be a tensor of the `shape` that the site returned without it."""
    if getattr(y, "shape", None) != shape:
        what = f"the new module's shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise ValueError(f"site {path!r} returns shape {shape}; {what} does not fit there")


def memory_format(t: Tensor) -> torch.memory_format:
    """`channels_last` or `contiguous_format`."""
    channels_last = t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def device_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    """Device and floating-point type of a module; None if it holds no such tensor."""
    return next(((t.device, t.dtype) for t in state(module) if t.is_floating_point()), None)


def count(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(p.numel() for p in module.parameters())


def _without_values(value: Any) -> Tensor | type:
    # Shape, type and strides are all that is asked for; to hold every activation would need far more memory.
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else type(value)


def _largest_change(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest change of an entry; NaN where one is not a number, infinite where the shapes differ."""
    if [y.shape for y in before] != [y.shape for y in after]:
        return math.inf
    changes = [_largest(b.double() - a.double()) for a, b in zip(before, after, strict=True) if not torch.equal(a, b)]
    return max(changes, key=lambda change: (math.isnan(change), change), default=0.0)


def _largest(t: Tensor) -> float:
    return t.abs().max().item() if t.numel() else 0.0
