"""Looking at a network: what flows through its sub-modules, and whether its output is still the same.

Nothing here edits a network: hooks that record are removed, and modes, running statistics and the random state put
back.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..measure import compare_timings, flops
from ..measure.call import Arguments, Inputs, as_inputs, call, evaluating, kept_for_backward, state, tensors, unchanged

Example = Inputs | None


def inputs_of(example: Example) -> Arguments | None:
    """An example as the arguments of a call; None where there is none."""
    return None if example is None else as_inputs(example)


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
        flows[module].inputs.append(without_values(args[0] if args else None))
        flows[module].outputs.append(without_values(output))
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
            said.update(_comparison(self._output, output))
        with evaluating(self._model):
            said["flops"] = self._flops, flops(self._model, self._inputs)
            if self._copy is not None:
                calls = {"before": (self._copy.eval(), self._inputs), "after": (self._model, self._inputs)}
                said["time"], self._copy = compare_timings(calls), None
        return said, flows


def order(model: nn.Module, inputs: Arguments, modules: Sequence[nn.Module]) -> tuple[list[int], list[bool]]:
    """In which order modules are called in a forward pass, and which outputs the network writes into afterwards.

    Returns:
        The modules' numbers, call by call, and for each module whether something was written into an output of it.
    """
    called: list[int] = []
    held: list[tuple[int, Tensor, int]] = []

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        number = modules.index(module)
        called.append(number)
        if isinstance(output, Tensor):
            held.append((number, output, output._version))

    handles = [module.register_forward_hook(record) for module in modules]
    try:
        with evaluating(model), unchanged(model), torch.no_grad():
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    written = {number for number, output, version in held if output._version != version}
    return called, [number in written for number in range(len(modules))]


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
        raise ValueError(f"site {path!r} returns shape {shape}; the module needs ({', '.join(axes)})"
                         + ("; for tokens pass tokens=(H, W)" if (len(shape), len(axes)) == (3, 4) else ""))
    if len(shape) < 2:
        raise ValueError(f"site {path!r} returns shape {shape}; it must have a channel axis")
    axis = axes.index("C") if axes else (-1 if len(shape) == 3 else 1)
    if declared not in (None, shape[axis]):
        raise ValueError(f"site {path!r} has {declared} channels but returns shape {shape}: "
                         f"axis {axis} of size {shape[axis]} is not its channels"
                         + ("; for (B, H, W, C) pass tokens=(H, W)" if shape[-1] == declared else ""))
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


def keeps_its_output(path: str, module: nn.Module, *shapes: tuple[int, ...]) -> bool:
    """Whether autograd keeps the very tensor that `module` returns, as it does where a sigmoid comes last.

    Args:
        path: the site's name.
        module: the new module.
        *shapes: of its inputs, the one first that it must return.

    Raises:
        ValueError: if the module does not return the shape that it is given.
    """
    y, kept = tried(path, module, *shapes)
    check_fits(path, shapes[0], y)
    return kept


def tried(path: str, module: nn.Module, *shapes: tuple[int, ...]) -> tuple[Any, bool]:
    """What a new module returns for inputs of these shapes, and whether autograd keeps that very tensor."""
    device, dtype = device_and_dtype(module) or (None, None)
    inputs = tuple(torch.ones(shape, device=device, dtype=dtype) for shape in shapes)
    with evaluating(module), unchanged(module):
        try:
            y, kept = kept_for_backward(module, inputs)
        except ValueError as error:
            raise ValueError(f"site {path!r}: {error}") from None
    return y, isinstance(y, Tensor) and y.untyped_storage() in kept


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


def usual_dtype(model: nn.Module) -> torch.dtype | None:
    """The floating-point type of most of a model's numbers; None if it holds none."""
    sizes: Counter[torch.dtype] = Counter()
    for t in state(model):
        if t.is_floating_point():
            sizes[t.dtype] += t.numel()
    return sizes.most_common(1)[0][0] if sizes else None


def count(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(p.numel() for p in module.parameters())


def without_values(value: Any) -> Tensor | type:
    # Shape, type and strides are all that is asked for; to hold every activation would need far more memory.
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else type(value)


def _comparison(before: list[Tensor], after: list[Tensor]) -> dict[str, Any]:
    """Change, scale and rounding of the tensor that changed most, as measured by its own rounding.

    The change is NaN where an entry is not a number, and infinite where the shapes differ.
    """
    if [y.shape for y in before] != [y.shape for y in after]:
        return {"change": math.inf, "scale": max(map(_largest, before), default=0.0), "rounding": 0.0}
    rows = []
    for b, a in zip(before, after, strict=True):
        change = 0.0 if torch.equal(b, a) else _largest(b.double() - a.double())
        scale = _largest(b)
        precision = torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
        rows.append({"change": change, "scale": scale, "rounding": min(100 * precision, 0.02) * scale})

    def severity(tensor: int) -> tuple[bool, float, float]:
        change, scale, rounding = rows[tensor].values()
        return math.isnan(change), change and (change / rounding if rounding else math.inf), scale

    worst = max(range(len(rows)), key=severity)
    return rows[worst] | {"tensor": worst if len(rows) > 1 else None}


def _largest(t: Tensor) -> float:
    return t.abs().max().item() if t.numel() else 0.0
