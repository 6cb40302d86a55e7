"""What a call costs, counted rather than timed."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from .. import ops  # noqa: F401  has operators of its own
from .call import (
    Arguments,
    Inputs,
    as_inputs,
    call,
    device_of,
    gradients,
    has_numbers,
    kept_for_backward,
    map_tensors,
    one_step,
    outputs_with_grad,
    state,
    tensors,
    unchanged,
    with_grad,
)

Shape = Sequence[int]


@dataclass(frozen=True)
class Cost:
    """What one call costs.

    Attributes:
        params: entries of all parameters, shared ones once.
        flops: of the forward pass, see `flops`.
        saved_bytes: what autograd keeps for the backward pass, see `saved_bytes`.
        peak_bytes: most memory in use during a forward and a backward pass, above what was in use before;
            None where there is no GPU.
        min_bytes: inputs, outputs and parameters, each moved once: no implementation moves less.
    """

    params: int
    flops: int
    saved_bytes: int
    peak_bytes: int | None
    min_bytes: int

    def __str__(self) -> str:
        rows = [
            ("parameters", f"{self.params:,}"),
            ("FLOPs, forward", f"{self.flops:,}"),
            ("bytes kept for backward", f"{self.saved_bytes:,}"),
            ("least bytes moved, forward", f"{self.min_bytes:,}"),
        ]
        if self.peak_bytes is not None:
            rows.append(("peak bytes, forward and backward", f"{self.peak_bytes:,}"))
        left, right = (max(len(row[i]) for row in rows) for i in (0, 1))
        return "\n".join(f"{name:<{left}}  {value:>{right}}" for name, value in rows)


def cost(module: Callable[..., Any], inputs: Inputs) -> Cost:
    """Everything that can be counted about `module(*inputs)`.

    Args:
        module: a module, or any function of tensors. It is called in the mode (train or eval) it is in; its
            buffers, its gradients and the random state are left as they were.
        inputs: the arguments; a lone tensor counts as one argument, a dictionary holds them by name.
            Module and inputs may lie on the meta device, or be fake tensors (within their mode): then nothing is
            computed, and the counts are the same.
    """
    inputs = as_inputs(inputs)
    parameters = list(module.parameters()) if isinstance(module, nn.Module) else []
    return Cost(
        params=sum(p.numel() for p in parameters),
        flops=flops(module, inputs),
        saved_bytes=saved_bytes(module, inputs),
        peak_bytes=peak_bytes(module, inputs),
        min_bytes=min_bytes(module, inputs),
    )


def flops(module: Callable[..., Any], inputs: Inputs, *, backward: bool = False) -> int:
    """Floating-point operations of one call: 2 for every multiply-add of a matrix product or convolution.

    Counted by `torch.utils.flop_counter`. Element-wise work (activations, softmax, gating, interpolation,
    pooling, normalisation) and custom operators count nothing. Fused attention counts as its two matrix products,
    or four in the backward pass, whichever kernel the device chooses.

    Args:
        module: a module, in the mode (train or eval) it is in, or any function of tensors.
        inputs: the arguments; a lone tensor counts as one argument, a dictionary holds them by name.
        backward: count the backward pass too.

    Raises:
        ValueError: if there is no backward pass to count.
    """
    arguments = as_inputs(inputs)
    # In eval mode nn.MultiheadAttention would run as one operator that has no formula.
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with unchanged(module):
            with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
                call(module, arguments)
            total = counter.get_total_flops()
            if backward:
                # The counter's own module hooks forbid torch.autograd.grad, so the graph is made outside it.
                leaves = with_grad(arguments)
                with torch.enable_grad():
                    outputs = outputs_with_grad(module, leaves)
                with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
                    gradients(module, leaves, outputs, [y.detach() for y in outputs])
                total += counter.get_total_flops()
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    return int(total)


def saved_bytes(module: Callable[..., Any], inputs: Inputs) -> int:
    """Bytes that autograd keeps from the forward pass for the backward pass.

    Each storage counts once and whole, however many views of it are kept. Parameters, buffers and inputs are
    excluded: they exist anyway. The inputs are taken to ask for a gradient, as they would inside a network.

    Tensors on the meta device count as on a CPU, fake tensors as on the device that they stand for.

    Args:
        module: a module, in the mode (train or eval) it is in, or any function of tensors, whose own parameters
            are not known and count.
        inputs: the arguments; a lone tensor counts as one argument, a dictionary holds them by name.

    Raises:
        ValueError: for a function that holds tensors of the meta device itself.
    """
    inputs, own = as_inputs(inputs), state(module)
    with unchanged(module):
        if any(t.device.type == "meta" for t in [*tensors(inputs), *own]):
            inputs, own, kept = _kept_on_a_cpu(module, inputs)
        else:
            _, kept = kept_for_backward(module, inputs)
    known = {t.untyped_storage() for t in [*tensors(inputs), *own]}
    return sum(storage.nbytes() for storage in kept - known)


def _kept_on_a_cpu(module: Callable[..., Any], inputs: Arguments
                   ) -> tuple[Arguments, list[Tensor], set[torch.UntypedStorage]]:
    """Inputs, parameters and what is kept of a call, all of fake tensors: the meta device has no fused attention."""
    def twin(t: Tensor) -> Tensor:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).requires_grad_(t.requires_grad)

    with FakeTensorMode():
        inputs = map_tensors(twin, inputs)
        if isinstance(module, nn.Module):
            own = {name: twin(t) for name, t in [*module.named_parameters(), *module.named_buffers()]}
            _, kept = kept_for_backward(
                lambda *xs, **named: torch.func.functional_call(module, own, xs, named), inputs)
            return inputs, list(own.values()), kept
        try:
            return inputs, [], kept_for_backward(module, inputs)[1]
        except (RuntimeError, AssertionError) as error:
            raise ValueError("module is a function that holds tensors of the meta device, which cannot be counted as "
                             "on a CPU: pass the module itself, or make both under FakeTensorMode") from error


def min_bytes(module: Callable[..., Any], inputs: Inputs, *, backward: bool = False) -> int:
    """Bytes that must move at least: inputs, outputs and parameters once.

    Args:
        backward: add a backward pass, which reads the inputs, the parameters and the output's gradient, and
            writes the gradients of inputs and parameters.
    """
    inputs = as_inputs(inputs)
    with unchanged(module), torch.no_grad():
        outputs = _bytes(tensors(call(module, inputs)))
    entering = _bytes(tensors(inputs)) + _bytes(module.parameters() if isinstance(module, nn.Module) else [])
    return 3 * entering + 2 * outputs if backward else entering + outputs


def peak_bytes(module: Callable[..., Any], inputs: Inputs) -> int | None:
    """Most memory in use during a forward pass, and a backward pass if there is one, above that before.

    None without a GPU, and for tensors without numbers.
    """
    inputs = as_inputs(inputs)
    device = device_of(module, inputs)
    if device.type != "cuda" or not all(map(has_numbers, [*tensors(inputs), *state(module)])):
        return None
    with unchanged(module), torch.enable_grad():
        # Some calls, such as an argmax, have no backward pass.
        backward = any(y.requires_grad for y in tensors(call(module, with_grad(inputs))))
        step = one_step(module, inputs, backward)
        step()  # libraries take their workspaces on first use
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before


def fit_exponent(xs: Iterable[float], ys: Iterable[float]) -> float:
    """The power p of the law y ∝ x^p that fits best: the least-squares slope of log y over log x.

    Args:
        xs: sizes.
        ys: what was counted or timed at each of them.

    Raises:
        ValueError: if the lengths differ, a value is not positive, or there are not two different x.
    """
    xs, ys = [float(x) for x in xs], [float(y) for y in ys]
    if len(xs) != len(ys):
        raise ValueError(f"xs has {len(xs)} values and ys has {len(ys)}; they must have the same length")
    for name, values in (("xs", xs), ("ys", ys)):
        if not all(0 < v < math.inf for v in values):
            raise ValueError(f"{name}={values} must hold positive, finite numbers")
    if len(set(xs)) < 2:
        raise ValueError(f"xs={xs} must hold at least two different numbers")
    u, v = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    across = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True))
    return across / sum((a - mean_u) ** 2 for a in u)


def _bytes(items: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in items)


def _mv_flops(matrix: Shape, vector: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _conv_backward_flops(grad: Shape, x: Shape, weight: Shape, _bias: Any, _stride: Any, _padding: Any, _dilation: Any,
                         transposed: bool, _output_padding: Any, _groups: Any, mask: Sequence[bool], **__: Any) -> int:
    # Each of the two gradients costs what the forward pass does; torch's own formula is too high with groups.
    positions = (x if transposed else grad)[2:]
    return (mask[0] + mask[1]) * 2 * x[0] * math.prod(positions) * math.prod(weight)


def _attention_flops(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])  # q kᵀ, and the weights times v


def _attention_backward_flops(grad: Shape, q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return 2 * _attention_flops(q, k, v)  # torch's formulas add what a kernel computes a second time


def _neighbour_flops(left: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    return 2 * math.prod(left) * out_shape[2]  # its axis 2 is K or d, and that of `left` the other


# What torch's counter lacks, or counts differently from one kernel to another.
_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: _mv_flops,
    torch.ops.aten.addmv: lambda _, matrix, vector, **k: _mv_flops(matrix, vector),
    torch.ops.aten.dot: lambda a, b, **_: 2 * math.prod(a),
    torch.ops.aten.convolution_backward: _conv_backward_flops,
}
for _product in ("dot", "mix", "spread"):
    _FORMULAS[getattr(torch.ops.attn_lib, f"neighbour_{_product}")] = _neighbour_flops
for _kernel in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention"):
    for _pass, _formula in (("", _attention_flops), ("_backward", _attention_backward_flops)):
        if _operator := getattr(torch.ops.aten, f"_scaled_dot_product_{_kernel}{_pass}", None):
            _FORMULAS[_operator] = _formula
