"""Putting modules in: after a sub-module, by a hook, or instead of it."""

import copy
import inspect
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import catalog
from ..measure import compare_timings, flops
from ..measure.call import as_inputs, kept_for_backward, state, tensors, unchanged
from ..tap import tracing
from .report import Change, Report, Site
from .sites import Flow, channels_of, evaluating, find, one_output, watch

Module = str | type[nn.Module] | Callable[..., nn.Module]
Example = Tensor | Sequence[Any] | None


def insert(model: nn.Module, pattern: str, module: Module, *, example: Example = None,
           measure_time: bool = False, **options: Any) -> Report:
    """Put a new module after every sub-module whose name matches: y = module(site(x)).

    Each new module becomes a child of its site and is called by a forward hook there, so the network's own
    modules, names, weights and references stay what they are, and `deepcopy`, `state_dict`, `torch.compile` and
    `torch.export` see a module like any other. It takes over the site's device, type, memory format and
    mode. After an `nn.Sequential` means after its last layer.

    Args:
        model: the network; changed in place.
        pattern: names of sites, such as "layer[1-4].*.bn3"; the rules are those of `plug.sites.find`: `*` stays
            within one part of a dotted name, `**` stands for any number of parts.
        module: id of a module of the catalog, its class, or a function from the number of channels to a module.
        example: an input of the network, or a tuple of them, on its device. It is passed through in eval mode
            to learn shapes and channels and to compare outputs, and leaves running statistics alone. Without
            it the sites must declare their channels, and nothing is compared.
        measure_time: also time the network's forward pass before and after, in turns.
        **options: of the module, `channels` excepted.

    Returns:
        What changed; `report.undo()` takes it back.

    Raises:
        ValueError: if nothing matches; a site is not called, returns no single tensor, or returns axes that the
            module does not take; channels or options do not fit; or a site has such a module already. The
            network is then unchanged.

    Warns:
        UserWarning: if the network holds such modules already, a site is called more than once, or a module that
            the catalog says starts as the identity changed the output.
    """
    label, entry = _identify(module)
    if entry is not None and "," in entry.layout:
        raise ValueError(f"module={label!r} takes several inputs ({entry.layout}); it cannot follow one sub-module")
    if "channels" in options:
        raise ValueError(f"channels={options['channels']!r} must be left out: it is read off the network")
    sites = {}
    for path, site in find(model, pattern).items():
        path, site = _end_of_sequential(path, site)
        if all(site is not other for other in sites.values()):
            sites[path] = site
    _warn_of_similar(model, label, entry)
    inputs = None if example is None else as_inputs(example)
    before = _Before(model, inputs, list(sites.values()), measure_time)

    rows, changes = [], []
    try:
        new: dict[nn.Module, nn.Module] = {}
        for path, site in sites.items():
            output = one_output(path, before.flows[site]) if inputs is not None else None
            channels = channels_of(path, site, output, entry.layout if entry else None)
            child = _make(module, entry, channels, options)
            if any(isinstance(hook, _After) and type(getattr(site, hook.name)) is type(child)
                   for hook in site._forward_hooks.values()):
                raise ValueError(f"site {path!r} has a {type(child).__name__} inserted already; undo() that first")
            _settle(child, site, output, model)
            new[site] = child
            calls = None if output is None else before.flows[site].calls
            if calls is not None and calls > 1:
                warnings.warn(f"site {path!r} is called {calls} times in a forward pass; the one new module acts "
                              "each time", UserWarning, stacklevel=2)
            shape = None if output is None else tuple(output.shape)
            rows.append(Site(path, channels, shape, calls, _count(child)))
        for row, (site, child) in zip(rows, new.items(), strict=True):
            copies = row.shape is None or _keeps_its_output(row.path, child, row.shape)
            changes.append(_Insertion(row.path, site, child, label, copies))
        report = Report("insert", label, tuple(rows), (before.params, _count(model)), _changes=changes)
        report.identity = entry.identity_at_init if entry else None
        after = before.compare(report)
        for path, site in sites.items() if after else ():
            if after[new[site]].calls != before.flows[site].calls:
                raise ValueError(f"site {path!r} calls its own children, the new one included; name one of those")
    except BaseException:
        _roll_back(changes)
        raise
    if report.identity and report.change:
        warnings.warn(f"{label} should start as the identity, but the output of the network changed by up to "
                      f"{report.change:.1e}", UserWarning, stacklevel=2)
    return report


def replace(model: nn.Module, pattern: str, module: Module, *, example: Example = None,
            measure_time: bool = False, **options: Any) -> Report:
    """Put a new module in the place of every sub-module whose name matches.

    A class of the catalog that can take over a convolution does so: `DeformConv2d` keeps weight, bias, stride,
    padding, dilation and groups (its `from_conv`). Another class is made for the site's channels, which must be
    the same before and after it. A function is given the sub-module and returns the new one.

    Args:
        model, pattern, example, measure_time: as for `insert`.
        module: id of a module of the catalog, its class, or a function from the replaced module to the new one.
        **options: of the module.

    Returns:
        What changed; `report.undo()` puts the replaced modules back.

    Raises:
        ValueError: as for `insert`; also if a site carries hooks, or the new module returns another shape. The
            network is then unchanged.
    """
    label, entry = _identify(module)
    sites = find(model, pattern)
    inside = next((p for p in sites for q in sites if p.startswith(q + ".")), None)
    if inside is not None:
        raise ValueError(f"pattern={pattern!r} matches {inside!r} and a module that holds it; name one of them")
    for path, site in sites.items():
        if site._forward_hooks or site._forward_pre_hooks or site._backward_hooks:
            raise ValueError(f"site {path!r} carries hooks, which its replacement would lose; remove them first")
    inputs = None if example is None else as_inputs(example)
    before = _Before(model, inputs, list(sites.values()), measure_time)

    rows, changes = [], []
    try:
        new = {}
        for path, site in sites.items():
            flow = before.flows[site] if inputs is not None else None
            output = one_output(path, flow) if flow else None
            child = _stand_in(path, site, module, entry, flow, options)
            _settle(child, site, output, model)
            new[site] = child
            shape = None if output is None else tuple(output.shape)
            rows.append(Site(path, getattr(site, "out_channels", None), shape, flow and flow.calls, _count(child)))
        changes += [_Replacement(model, path, site, new[site]) for path, site in sites.items()]
        report = Report("replace", label, tuple(rows), (before.params, _count(model)), _changes=changes)
        expected = {new[site]: row for site, row in zip(sites.values(), rows, strict=True)}

        def check(child: nn.Module, y: Any) -> None:
            row = expected.get(child)
            if row is not None and getattr(y, "shape", None) != row.shape:
                raise ValueError(f"site {row.path!r} returned shape {row.shape}; {_what(y)} does not fit there")

        before.compare(report, check)
    except BaseException:
        _roll_back(changes)
        raise
    return report


class _After:
    """Forward hook that passes a site's output through one of its children.

    An object, not a closure: `deepcopy` copies it along with the site, and the child is looked up on whichever
    site calls it.
    """

    def __init__(self, name: str, copies: bool):
        self.name, self.copies = name, copies

    def __call__(self, site: nn.Module, args: tuple, output: Tensor) -> Tensor:
        # In the memory format the network had here: later kernels, and with them the rounding, depend on it.
        y = getattr(site, self.name)(output).contiguous(memory_format=_memory_format(output))
        # The network may go on to write into y (an in-place ReLU, `out += identity`), which must not reach a
        # tensor that the backward pass needs or that a trace shows.
        return y.clone() if self.copies or tracing() else y


class _Insertion:
    """`child` called after `site`."""

    def __init__(self, path: str, site: nn.Module, child: nn.Module, label: str, copies: bool):
        name = label
        while hasattr(site, name):
            name += "_"
        self.path, self.site, self.child, self.name = path, site, child, name
        site.add_module(name, child)
        self.handle = site.register_forward_hook(_After(name, copies))

    def intact(self) -> bool:
        return getattr(self.site, self.name, None) is self.child

    def revert(self) -> None:
        self.handle.remove()
        delattr(self.site, self.name)


class _Replacement:
    """`new` wherever the network held `old`."""

    def __init__(self, model: nn.Module, path: str, old: nn.Module, new: nn.Module):
        self.path, self.old, self.new = path, old, new
        self.places = [(parent, name) for parent in model.modules()
                       for name, m in parent._modules.items() if m is old]
        self.type = _type(new)
        self._put(new)

    def intact(self) -> bool:
        held = all(parent._modules.get(name) is self.new for parent, name in self.places)
        return held and not self.new._forward_hooks

    def revert(self) -> None:
        here = _type(self.new)
        if here != self.type:  # the network moved in between
            self.old.to(*here)
        self.old.train(self.new.training)
        self._put(self.old)

    def _put(self, module: nn.Module) -> None:
        for parent, name in self.places:
            setattr(parent, name, module)


class _Before:
    """The network before the change, as far as the report needs it."""

    def __init__(self, model: nn.Module, inputs: tuple | None, sites: list[nn.Module], measure_time: bool):
        if measure_time and inputs is None:
            raise ValueError("measure_time=True needs example=, an input of the network")
        self.model, self.inputs, self.params = model, inputs, _count(model)
        self.flows: dict[nn.Module, Flow] = {}
        self.copy = copy.deepcopy(model) if measure_time else None
        if inputs is not None:
            output, self.flows = watch(model, inputs, sites)
            self.output = [y.clone() for y in tensors(output)]
            with evaluating(model):
                self.flops = flops(model, inputs)

    def compare(self, report: Report, check: Callable[[nn.Module, Any], None] | None = None) -> dict[nn.Module, Flow]:
        """Fill in what a forward pass tells; returns what went through every module after the change."""
        if self.inputs is None:
            return {}
        output, flows = watch(self.model, self.inputs, self.model.modules(), check)
        output = tensors(output)
        if output or self.output:
            report.change = _change(self.output, output)
            report.scale = max(map(_largest, self.output), default=0.0)
        precision = max((torch.finfo(y.dtype).eps for y in output if y.is_floating_point()), default=0.0)
        report.rounding = min(100 * precision, 0.02) * (report.scale or 0.0)
        with evaluating(self.model):
            report.flops = self.flops, flops(self.model, self.inputs)
            if self.copy is not None:
                calls = {"before": (self.copy.eval(), self.inputs), "after": (self.model, self.inputs)}
                report.time, self.copy = compare_timings(calls), None
        return flows


def _identify(module: Module) -> tuple[str, catalog.Entry | None]:
    """A short name, and the catalog's entry if there is one."""
    if isinstance(module, str):
        return module, catalog.entry(module)
    if isinstance(module, nn.Module) or not callable(module):
        raise ValueError(f"module={module!r} must be an id, a class, or a function that makes a module: every "
                         "site needs one of its own")
    entry = catalog.entry_of(module)
    name = getattr(module, "__name__", type(module).__name__)
    return entry.id if entry else (name if name.isidentifier() else "module"), entry


def _make(module: Module, entry: catalog.Entry | None, channels: int, options: dict[str, Any]) -> nn.Module:
    if entry is not None:
        first = next(iter(inspect.signature(entry.cls).parameters))
        child = catalog.create(entry.id, **{first: channels}, **options)
    else:
        child = module(channels, **options)
    if not isinstance(child, nn.Module):
        raise ValueError(f"module={module!r} must make a torch.nn.Module, not a {type(child).__name__}")
    return child


def _stand_in(path: str, site: nn.Module, module: Module, entry: catalog.Entry | None, flow: Flow | None,
              options: dict[str, Any]) -> nn.Module:
    """What comes in the place of `site`."""
    cls = entry.cls if entry else module
    if hasattr(cls, "from_conv") and isinstance(site, nn.modules.conv._ConvNd):
        try:
            return cls.from_conv(site, **options)
        except ValueError as error:
            raise ValueError(f"site {path!r}: {error}") from None
    if not inspect.isclass(cls):
        child = module(site, **options)
        if not isinstance(child, nn.Module):
            raise ValueError(f"module={module!r} must make a torch.nn.Module, not a {type(child).__name__}")
        return child
    if flow is None:
        raise ValueError(f"site {path!r}: replacing it by a {cls.__name__} needs example=, an input of the network")
    output = one_output(path, flow)
    entering = {tuple(x.shape) if isinstance(x, Tensor) else None for x in flow.inputs}
    if entering != {tuple(output.shape)}:
        raise ValueError(f"site {path!r} turns {entering} into {tuple(output.shape)}; a {cls.__name__} can only "
                         "replace what keeps the shape")
    return _make(module, entry, channels_of(path, site, output, entry.layout if entry else None), options)


def _settle(child: nn.Module, site: nn.Module, output: Tensor | None, model: nn.Module) -> None:
    """Give a new module the device, type, memory format and mode of its site."""
    own = _type(site) or _type(model)
    if own:
        child.to(*own)
    if output is not None:
        child.to(memory_format=_memory_format(output))
    child.train(site.training)


def _memory_format(t: Tensor) -> torch.memory_format:
    channels_last = t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def _end_of_sequential(path: str, site: nn.Module) -> tuple[str, nn.Module]:
    """The layer whose output is that of a plain `nn.Sequential`; a child of the latter would be called by it."""
    while isinstance(site, nn.Sequential) and type(site).forward is nn.Sequential.forward and len(site):
        name, site = list(site._modules.items())[-1]
        path = f"{path}.{name}"
    return path, site


def _keeps_its_output(path: str, child: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether autograd keeps the very tensor that `child` returns, as it does where a sigmoid comes last."""
    device, dtype = _type(child) or (None, None)
    x = torch.ones(shape, device=device, dtype=dtype)
    with evaluating(child), unchanged(child):
        try:
            y, kept = kept_for_backward(child, (x,))
        except ValueError as error:
            raise ValueError(f"site {path!r}: {error}") from None
    if getattr(y, "shape", None) != shape:
        raise ValueError(f"site {path!r} returns shape {shape}; {_what(y)} does not fit there")
    return y.untyped_storage() in kept


def _warn_of_similar(model: nn.Module, label: str, entry: catalog.Entry | None) -> None:
    """Warn if the network has such modules already, by this library's class or by another's name for it."""
    if entry is None:
        return
    words = re.sub(r"[^a-z]", "", entry.name.lower().replace(" and ", " ").replace("-and-", "-"))
    names = {entry.id.replace("_", "") + ending for ending in ("", "module", "block", "layer", "attn", "attention")}

    def same(name: str) -> bool:  # "squeezeexcite" is the beginning of "squeezeexcitation", up to its last letter
        return name in names | {words} or (len(name) > 8 and words.startswith(name[:-1]))

    similar = [path for path, m in model.named_modules()
               if isinstance(m, entry.cls) or same(type(m).__name__.lower().replace("_", ""))]
    if similar:
        warnings.warn(f"the network holds {len(similar)} of {label} already, such as {similar[0]!r}", UserWarning,
                      stacklevel=3)


def _type(module: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    """Device and floating-point type of a module; None if it holds no such tensor."""
    return next(((t.device, t.dtype) for t in state(module) if t.is_floating_point()), None)


def _what(y: Any) -> str:
    return f"the new module's shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _change(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest change of an entry; NaN where one is not a number, infinite where the shapes differ."""
    if [y.shape for y in before] != [y.shape for y in after]:
        return math.inf
    changes = [_largest(b.double() - a.double()) for a, b in zip(before, after, strict=True) if not torch.equal(a, b)]
    return max(changes, key=lambda change: (math.isnan(change), change), default=0.0)


def _largest(t: Tensor) -> float:
    return t.abs().max().item() if t.numel() else 0.0


def _roll_back(changes: list[Change]) -> None:
    while changes:
        changes.pop().revert()
