"""Making what is put in: from an id, a class or a function, for each site anew."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from .. import catalog
from ..layout import Axes, Layout
from ..measure.call import state
from .probe import Flow, channels_of, device_and_dtype, memory_format, one_output, usual_dtype
from .tokens import OnTokens, View

NORMS = nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm

# Options of modules that are made for one size: the axis.
SIZES = {"height": "H", "width": "W", "frames": "T", "length": "N"}

Module = str | type[nn.Module] | Callable[..., nn.Module]


@dataclass(frozen=True)
class Place:
    """Where a module is to stand: what an option that is a function of the site is given.

    Attributes:
        path: the site's dotted name.
        module: the sub-module there.
        channels: C, as the new module sees it; None where a replacement does not need to know.
        shape: of the tensor there, as the new module sees it; None without an example.
    """

    path: str
    module: nn.Module
    channels: int | None
    shape: tuple[int, ...] | None


class Recipe:
    """How a new module is made for a site.

    Args:
        module: id of a module of the catalog, its class, or a function that makes a module.
        options: of the module; for one of the catalog, a function stands for what it returns of a `Place`.
        fuses: whether the module is to take several tensors, or else one.

    Attributes:
        label: a short name.
        entry: the catalog's; None for others' modules.
        axes: of the tensor that the module takes; None where the catalog does not know.

    Raises:
        ValueError: if `module` is none of these, or takes another number of inputs.
    """

    def __init__(self, module: Module, options: dict[str, Any], fuses: bool = False):
        self.entry: catalog.Entry | None
        self._make: Callable[..., nn.Module]
        if isinstance(module, str):
            self.label = self._name = module
            self.entry = catalog.entry(module)
            self._make = self.entry.cls
        elif isinstance(module, nn.Module) or not callable(module):
            raise ValueError(f"module={module!r} must be an id, a class, or a function that makes a module: every "
                             "site needs one of its own")
        else:
            self.entry = catalog.entry_of(module) if isinstance(module, type) else None
            self._make = module
            self._name = getattr(module, "__name__", type(module).__name__)
            self.label = self.entry.id if self.entry else (self._name if self._name.isidentifier() else "module")
        self._options = options
        self.axes = self._axes(fuses)

    def _axes(self, fuses: bool) -> Axes | None:
        if self.entry is None:
            return None
        several = len(self.entry.layout.tensors) > 1
        inputs = " and ".join(f"({', '.join(axes)})" for axes in self.entry.layout.tensors)
        if several and not fuses:
            raise ValueError(f"module={self.label!r} takes several inputs, {inputs}; it can neither follow nor replace "
                             "one sub-module; plug.fuse gives it the outputs of several")
        if fuses and not several:
            raise ValueError(f"module={self.label!r} takes one input, {inputs}, and cannot fuse several; plug.insert "
                             "puts it after one sub-module")
        own = self._options.get("layout", self.entry.layout)  # a module of several layouts takes `layout`
        return Layout(own).tensors[0]

    def for_place(self, place: Place) -> nn.Module:
        """A new module for a place, made for its channels, and where it is made for one size, for its size."""
        return self._call(self._make, place.channels, place)

    def in_place_of(self, path: str, site: nn.Module, flow: Flow | None, view: View | None = None) -> nn.Module:
        """A new module for the place of `site`, through which `flow` went and which the module sees by `view`."""
        new = self._in_place_of(path, site, flow, view)
        return new if view is None else OnTokens(new, view)

    def _in_place_of(self, path: str, site: nn.Module, flow: Flow | None, view: View | None) -> nn.Module:
        seen = None if flow is None else one_output(path, flow)
        if view is not None and seen is not None:
            seen = view.enter(seen)
        shape = None if seen is None else tuple(seen.shape)
        place = Place(path, site, getattr(site, "out_channels", None), shape)
        if hasattr(self._make, "from_conv") and isinstance(site, nn.modules.conv._ConvNd):
            try:
                return self._call(self._make.from_conv, site, place)
            except ValueError as error:
                raise ValueError(f"site {path!r}: {error}") from None
        if not inspect.isclass(self._make):
            return self._call(self._make, site, place)
        name = self._make.__name__
        if flow is None:
            raise ValueError(f"site {path!r}: replacing it by a {name} needs example=, an input of the network")
        output = one_output(path, flow)
        entering = {tuple(x.shape) if isinstance(x, Tensor) else None for x in flow.inputs}
        if entering != {tuple(output.shape)}:
            raise ValueError(f"site {path!r} turns {entering} into {tuple(output.shape)}; a {name} can only "
                             "replace what keeps the shape")
        channels = channels_of(path, site, output, view.axes if view else self.axes)
        return self.for_place(replace(place, channels=channels))

    def _call(self, make: Callable[..., nn.Module], given: Any, place: Place) -> nn.Module:
        """`make(given, **options)`; options that it does not take are named."""
        signature = inspect.signature(make)
        parameters = signature.parameters
        positional = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name, value in self._options.items():
            if name in positional[:1]:
                raise ValueError(f"{name}={value!r} must be left out: it is read off the network")
            if name not in parameters and not open_ended:
                known = ", ".join(n for n in parameters if n not in positional[:1]) or "none"
                raise ValueError(f"{name}={value!r} is no option of {self._name}; its options are: {known}")
        options = {name: value(place) if self.entry and callable(value) else value
                   for name, value in self._options.items()}
        try:
            made = self._made(make, given, options)
        except ValueError as error:
            lacking = {name for name in SIZES if name in parameters and name not in options
                       and (f"'{name}'" in str(error) or f"{name}=None" in str(error))}
            if not lacking:
                raise
            if place.shape is None:
                raise ValueError(f"{error}; it can be read off example=, an input of the network") from None
            made = self._made(make, given, options | self._sizes(place.shape, parameters, options))
        if not isinstance(made, nn.Module):
            raise ValueError(f"{self._name} must make a torch.nn.Module, not a {type(made).__name__}")
        return made

    def _made(self, make: Callable[..., nn.Module], given: Any, options: dict[str, Any]) -> Any:
        try:
            inspect.signature(make).bind(given, **options)
        except TypeError as error:
            raise ValueError(f"{self._name}: {error}") from None
        try:
            return make(given, **options)
        except TypeError as error:  # a function may hand its options on to one that does not know them
            if not any(f"argument '{name}'" in str(error) for name in options):
                raise
            raise ValueError(f"{self._name}: {error}") from error

    def _sizes(self, shape: tuple[int, ...], parameters: Mapping[str, inspect.Parameter], options: dict[str, Any]
               ) -> dict[str, int]:
        """The sizes that a place has, for the options that take them and are not given."""
        axes = self.axes or ("B", "C", "H", "W")
        sizes = dict(zip(axes, shape, strict=True)) if len(axes) == len(shape) else {}
        return {name: sizes[axis] for name, axis in SIZES.items()
                if axis in sizes and name in parameters and name not in options}


def settle(child: nn.Module, site: nn.Module, output: Tensor | None, model: nn.Module) -> None:
    """Give a new module the device, type, memory format and mode of its site.

    The type is that of what flows there, where the network has weights of it (under autocast it has none). Without an
    example it is the type of the site's weights, or of most of the network's after a norm, which is often kept in
    float32 within a network in half precision.
    """
    own = device_and_dtype(site) or device_and_dtype(model)
    if own:
        device, dtype = own
        if output is None and isinstance(site, NORMS):
            dtype = usual_dtype(model) or dtype
        elif output is not None and any(t.dtype == output.dtype for t in state(model)):
            dtype = output.dtype
        child.to(device, dtype)
    if output is not None:
        child.to(memory_format=memory_format(output))  # type: ignore[call-overload]  # torch's types lack it
    child.train(site.training)
