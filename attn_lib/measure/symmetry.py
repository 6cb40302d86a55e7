"""What a module commutes with: f(g·x) = g·f(x), computed.

An action g is defined by the axes it moves, so that the same code serves feature maps, tokens, series and
video. On an output that lacks the moved axis, g does nothing, and commuting means being invariant.
"""

import copy
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import catalog
from ..layout import Axes, Layout, role
from .call import Arguments, Inputs, as_inputs, call, has_numbers, map_tensors, state, tensors

Action = Callable[[Tensor, Axes], Tensor]
Run = Callable[[list[Tensor]], list[Tensor]]

SCALE = 1.7
MARGIN, CROP, MULTIPLE = 16, 8, 16

_BY_RANK = {3: "B N C", 4: "B C H W", 5: "B C T H W"}


class Undefined(Exception):
    """The action means nothing for this layout, or this pair of sizes."""


def symmetries(module: Callable[..., Any], inputs: Inputs, *, layout: str | None = None,
               output: str | None = None, seed: int = 0) -> dict[str, float]:
    """How far `module` is from commuting with each action of `catalog.SYMMETRIES`.

    Computed in float64 on a copy in eval mode. With weights at their initialisation the answer is about that
    initialisation: a zero-initialised residual branch commutes with everything. Ask about
    `attn_lib.example(id, generic=True)` to learn about the mechanism.

    Args:
        module: a module, or any function of tensors.
        inputs: the arguments; a lone tensor counts as one argument, a dictionary holds them by name.
            Every floating-point tensor is acted on.
        layout: axes of each input, as in `Entry.layout`. By default the catalog's for its own classes, else
            "B C H W" for 4 axes, "B N C" for 3 and "B C T H W" for 5.
        output: axes of the output; the input's by default. Sizes may differ.
        seed: of the permutations.

    Returns:
        Name -> largest |f(g·x) − g·f(x)| over largest |g·f(x)|: 0, up to rounding, where it commutes.
        NaN where the action has no meaning: the layout lacks the axis, the output has another number of
        channels or positions to permute, or the module refuses the acted-on input.

    Raises:
        ValueError: if the layouts do not fit the inputs and the output, the output is not finite, or the tensors hold
            no numbers.
    """
    inputs = as_inputs(inputs)
    if not all(map(has_numbers, [*tensors(inputs), *state(module)])):
        raise ValueError("inputs and parameters must be real tensors: those on the meta device hold no numbers")
    ins, outs = _layouts(module, inputs, layout, output)
    f = copy.deepcopy(module).double().eval() if isinstance(module, nn.Module) else module
    double = map_tensors(lambda t: t.detach().double() if t.is_floating_point() else t, inputs)

    def run(xs: list[Tensor]) -> list[Tensor]:
        filled = iter(xs)
        ys = call(f, map_tensors(lambda t: next(filled) if t.is_floating_point() else t, double))
        return tensors(ys)[:len(outs)]

    xs = [t for t in tensors(double) if t.is_floating_point()]
    deviations = {}
    with torch.no_grad():
        ys = run(xs)
        if [y.ndim for y in ys] != [len(axes) for axes in outs]:
            named = ", ".join(map(" ".join, outs))
            raise ValueError(f"output={named!r} must name the axes of {[tuple(y.shape) for y in ys]}")
        if not all(y.isfinite().all() for y in ys):
            raise ValueError("inputs must give a finite output; this one holds NaN or infinities")
        for name in catalog.SYMMETRIES:
            try:
                if name == "translation":
                    deviations[name] = _translation(run, xs, ins, outs)
                else:
                    deviations[name] = _equivariance(run, xs, ys, ins, outs, _action(name, xs, ins, seed))
            except Undefined:
                deviations[name] = math.nan
    return deviations


def _equivariance(run: Run, xs: list[Tensor], ys: list[Tensor], ins: Sequence[Axes], outs: Sequence[Axes],
                  act: Action) -> float:
    expected = [act(y, axes) for y, axes in zip(ys, outs, strict=True)]
    return _deviation(_attempt(run, [act(x, axes) for x, axes in zip(xs, ins, strict=True)]), expected)


def _action(name: str, xs: list[Tensor], ins: list[Axes], seed: int) -> Action:
    """The action `name`; it means the same on every input and on the output."""
    sizes = _sizes(xs, ins)
    generator = torch.Generator().manual_seed(seed)

    def need(*axes: str) -> None:
        if not set(axes) <= set(sizes):
            raise Undefined

    def shuffled(n: int, device: torch.device) -> Tensor:
        order = torch.randperm(n, generator=generator, device="cpu")
        if torch.equal(order, torch.arange(n, device="cpu")):
            order = order.roll(1)  # the identity would prove nothing
        return order.to(device)

    device = xs[0].device
    if name == "scaling":
        return lambda t, axes: SCALE * t
    if name in ("flip_h", "flip_w"):
        axis = name[-1].upper()
        need(axis)
        return lambda t, axes: t.flip(axes.index(axis)) if axis in axes else t
    if name == "transpose":
        need("H", "W")
        return lambda t, axes: t.transpose(axes.index("H"), axes.index("W")) if {"H", "W"} <= set(axes) else t
    if name == "channel_permutation":
        need("C")
        orders = {"C": shuffled(sizes["C"], device)}
    elif name == "row_column_permutation":
        need("H", "W")
        orders = {"H": shuffled(sizes["H"], device), "W": shuffled(sizes["W"], device)}
    elif name == "spatial_permutation" and "H" in sizes:
        need("H", "W")
        return _permute_positions(shuffled(sizes["H"] * sizes["W"], device))
    elif name == "spatial_permutation":
        need("N")
        orders = {"N": shuffled(sizes["N"], device)}
    else:
        raise Undefined
    return lambda t, axes: _permute(t, axes, orders)


def _permute(t: Tensor, axes: Axes, orders: dict[str, Tensor]) -> Tensor:
    for axis, order in orders.items():
        if axis in axes:
            dim = axes.index(axis)
            if t.shape[dim] != len(order):
                raise Undefined
            t = t.index_select(dim, order)
    return t


def _permute_positions(order: Tensor) -> Action:
    def act(t: Tensor, axes: Axes) -> Tensor:
        if not {"H", "W"} & set(axes):
            return t
        if not {"H", "W"} <= set(axes):
            raise Undefined
        h, w = axes.index("H"), axes.index("W")
        last = t.movedim((h, w), (-2, -1))
        if last.shape[-2] * last.shape[-1] != len(order):
            raise Undefined
        return last.flatten(-2)[..., order].view(last.shape).movedim((-2, -1), (h, w))

    return act


def _translation(run: Run, xs: list[Tensor], ins: Sequence[Axes], outs: Sequence[Axes]) -> float:
    """Move the input on an empty canvas by the least step that is whole in the output too."""
    sizes = _sizes(xs, ins)
    moved = set("HWT") & set(sizes) or {"N"} & set(sizes)
    if not moved:
        raise Undefined

    def place(shift: dict[str, int]) -> list[Tensor]:
        return _attempt(run, [_on_canvas(x, axes, shift) for x, axes in zip(xs, ins, strict=True)])

    placed = place(dict.fromkeys(moved, 0))
    ratio = {axis: _ratio(_canvas_size(sizes[axis]), size) for axis, size in _sizes(placed, outs).items()
             if axis in moved}
    if any(max(r.numerator, r.denominator) > CROP for r in ratio.values()):
        raise Undefined
    shifted = place({axis: ratio.get(axis, Fraction(1)).numerator for axis in moved})

    got, expected = [], []
    for y, before, axes in zip(shifted, placed, outs, strict=True):
        for dim, axis in enumerate(axes):
            if axis in moved:
                crop = math.ceil(CROP / ratio[axis])  # what the canvas's border reaches says nothing
                before = before.roll(ratio[axis].denominator, dim)
                before, y = (t.narrow(dim, crop, t.shape[dim] - 2 * crop) for t in (before, y))
        got.append(y)
        expected.append(before)
    return _deviation(got, expected)


def _ratio(size: int, out: int) -> Fraction:
    """Input positions to one output position, such as 2 after a stride of 2, 1/2 after an upsampling by 2.

    An output that is somewhat shorter has lost a border, as by a convolution without padding, and no stride.
    """
    return Fraction(1) if size * 2 < out * 3 <= size * 3 else Fraction(size, out)


def _canvas_size(size: int) -> int:
    return -(-(size + 2 * MARGIN) // MULTIPLE) * MULTIPLE  # divisible: strided modules keep a whole ratio


def _on_canvas(x: Tensor, axes: Axes, shift: dict[str, int]) -> Tensor:
    padding: list[int] = []
    for axis, size in zip(reversed(axes), reversed(x.shape), strict=True):
        before = MARGIN + shift[axis] if axis in shift else 0
        padding += [before, _canvas_size(size) - size - before if axis in shift else 0]
    return F.pad(x, padding)


def _sizes(ts: Sequence[Tensor], layouts: Sequence[Axes]) -> dict[str, int]:
    """Axis -> size; the action has no meaning where one letter has two sizes."""
    sizes: dict[str, int] = {}
    for t, axes in zip(ts, layouts, strict=True):
        for axis, size in zip(axes, t.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise Undefined
    return sizes


def _attempt(run: Run, xs: list[Tensor]) -> list[Tensor]:
    try:
        return run(xs)
    except (ValueError, RuntimeError):  # the library's own refusal, or torch's where a size is built in
        raise Undefined from None


def _deviation(got: list[Tensor], expected: list[Tensor]) -> float:
    if [t.shape for t in got] != [t.shape for t in expected]:
        raise Undefined
    off = max((a - b).abs().max().item() for a, b in zip(got, expected, strict=True))
    largest = max(t.abs().max().item() for t in expected)
    return off / largest if largest else (0.0 if off == 0 else math.inf)


def _layouts(module: Callable[..., Any], inputs: Arguments, layout: str | None,
             output: str | None) -> tuple[list[Axes], list[Axes]]:
    """Axes of each input and of each output."""
    shapes = [tuple(t.shape) for t in tensors(inputs) if t.is_floating_point()]
    if not shapes:
        raise ValueError("inputs must hold at least one floating-point tensor")
    if layout is None:
        known = catalog.layouts_of(module)
        if known is not None:
            layout, output = known[0], output or known[1]
        elif not all(len(shape) in _BY_RANK for shape in shapes):
            raise ValueError(f"layout=None cannot name the axes of {shapes}; give them, such as 'B C'")
        else:
            layout = ", ".join(_BY_RANK[len(shape)] for shape in shapes)
    ins = Layout(layout).tensors
    if [len(axes) for axes in ins] != [len(shape) for shape in shapes]:
        raise ValueError(f"layout={layout!r} must name the axes of {shapes}")
    outs = Layout(output).tensors if output else ins[:1]
    return list(ins), [tuple(map(role, axes)) for axes in outs]
