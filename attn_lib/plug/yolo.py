"""The modules of the catalogue in a YOLO's YAML, as ultralytics builds it.

>>> from attn_lib.plug import yolo
>>> yolo.register()
>>> model = YOLO("yolov10n-se.yaml")

After `register` a row of the YAML may name a class of the catalogue:

    - [-1, 1, SEAttention, []]             # its channels are those of the layer before, at every width
    - [-1, 1, CBAM, [{reduction: 8}]]      # options by name
    - [-1, 1, ASPP, [256]]                 # output channels, scaled by the width as those of Conv are
    - [[-1, 6], 1, GatedFusion, []]        # two inputs

Ultralytics is not a part of this library and not needed by it; whoever uses this has installed it, under its licence.

How it works. `parse_model` of ultralytics finds a class by its name among the globals of its file, gives a class that
it does not know the row's arguments and nothing else, and takes its output for as wide as its input. But an argument
that is the name of one of its own local variables it replaces by that variable. So a row of the catalogue is handed to
it with the arguments `ch` (the list of all widths so far), `f` (where the row reads), `width` and `max_channels`, and a
stand-in of the class reads the channels there. Rows are handed over one at a time, so that the width of an output can
be set right before the next row is read. What stands in the network are the catalogue's own classes: to be loaded, a
checkpoint needs attn_lib to be installed, and no `register`.
"""

import ast
import functools
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from .. import catalog

MAP = ("B", "C", "H", "W")
TRIED = "8.1 to 8.4"  # versions of ultralytics on which this was tried

Parser = Callable[..., tuple[nn.Sequential, list[int]]]


def register() -> dict[str, type[nn.Module]]:
    """Let the YAML of ultralytics' models name the feature-map modules of the catalogue.

    Call it once in every process that builds a model from YAML, before the model is built: training builds it anew,
    and so does every process of a training on several GPUs. Predicting, validating and exporting a checkpoint do not
    need it. Calling it again adds what has entered the catalogue since.

    A row's arguments are, in this order and each left out at will, the number of output channels, which the width
    scales as it does those of Conv, for a module that takes `out_channels`; and a mapping of options. An option
    `out_channels` is taken as it is, at every width. A module of several layouts takes maps. Numbers, tuples and None
    may be written as ultralytics lets them be.

    A module made for maps up to a size needs `height` and `width` of the largest that it will see: ultralytics builds
    a model on 256 × 256, whatever it is trained on, and adds a border in validation, so that images of 256 are 36 × 36
    at stride 8. A module for exactly one size (WeightedPermuteMLP) can therefore be built for images of 256 and predict
    on those, but neither take another `imgsz` nor be trained. At a size that it was not made for, an error names the
    layer.

    Ultralytics sets epsilon and momentum of every `BatchNorm2d` to its own, those of these modules included, and
    older versions (up to 8.3) let activations work in place.

    Returns:
        The classes by the names that the YAML can use. A name that ultralytics uses itself keeps its meaning there;
        the class is then known as "AttnLib" and its name.

    Raises:
        ImportError: if ultralytics is not installed, or cannot be imported.
        RuntimeError: if its `parse_model` does not work as this adapter expects.

    Warns:
        UserWarning: if a name was taken.
    """
    tasks = _ultralytics()
    layers: dict[str, type[_Layer]] | None = getattr(tasks.parse_model, "attn_lib", None)
    if layers is None:
        _check(tasks)
        layers = {}
        tasks.parse_model = _parser(tasks.parse_model, layers)
    for entry in filter(takes_maps, map(catalog.entry, catalog.list_modules())):
        if any(layer.entry is entry for layer in layers.values()):
            continue
        name = entry.cls.__name__
        if hasattr(tasks, name):
            name = f"AttnLib{name}"
            warnings.warn(f"ultralytics has a {entry.cls.__name__} of its own: in YAML, that of attn_lib is {name}",
                          UserWarning, stacklevel=2)
        layers[name] = _layer(entry)
        setattr(tasks, name, layers[name])
    return {name: layer.entry.cls for name, layer in layers.items()}


def takes_maps(entry: catalog.Entry) -> bool:
    """Whether a module, in one of its layouts, takes feature maps (B, C, H, W) and returns one."""
    return any(
        set(entry.layout_of(variant).tensors) == {MAP} and [len(y) for y in entry.output_of(variant).tensors] == [4]
        for variant in (None, *entry.variants)
    )


class Fusion(nn.Module):
    """A module of several inputs that is given them in one list, as ultralytics does.

    Args:
        module: what fuses.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, inputs: list[Tensor]) -> Tensor:
        return self.module(*inputs)


class _Layer(nn.Module):
    """Stand-in of a class of the catalogue, under its name: called by `parse_model`, it makes the module itself."""

    entry: catalog.Entry

    def __new__(cls, *arguments: Any) -> nn.Module:
        if not arguments or not isinstance(arguments[-1], _Row):
            raise RuntimeError(f"{cls.__name__} was built by a parse_model that was imported before "
                               "attn_lib.plug.yolo.register() was called: use ultralytics.nn.tasks.parse_model")
        *local, row = arguments
        return row.make(*local)


def _layer(entry: catalog.Entry) -> type[_Layer]:
    cls = entry.cls  # ultralytics prints what `str` of the stand-in says
    names = {"entry": entry, "__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (_Layer,), names)


class _From(list[int]):
    """The layers that a row reads. As an index it is the first: `parse_model` asks for the width of "the" input."""

    def __index__(self) -> int:
        return self[0]


class _Arguments(list[Any]):
    """A row's arguments as they are handed over; what is printed of them is what the YAML says."""

    def __str__(self) -> str:
        return str(self[-1])


class _Row:
    """A row of the YAML that names a class of the catalogue.

    Args:
        place: the row's number and name, for messages.
        entry: of the class.
        f: the layers it reads.
        args: its arguments.

    Attributes:
        out: channels of the output; 0 until the module is made.
    """

    def __init__(self, place: str, entry: catalog.Entry, f: Any, args: Any):
        self.place, self.entry = place, entry
        self.f = _From(f) if isinstance(f, (list, tuple)) else f
        self.written = list(args)
        self.arguments = _Arguments(["ch", "f", "width", "max_channels", self])
        self.ch: list[int] = []
        self.out = 0
        self._parameters = inspect.signature(entry.cls).parameters
        self._options, self._scaled = self._read()
        self._check_inputs()

    def __str__(self) -> str:
        return str(self.written)

    def make(self, ch: Any, f: Any, width: Any, max_channels: Any) -> nn.Module:
        """The module, from local variables of `parse_model`; called anew for each repetition of the row."""
        if not isinstance(ch, list) or not all(isinstance(x, (int, float)) for x in (width, max_channels)):
            raise _different("its arguments `ch`, `width` and `max_channels` are no local variables of it")
        widths = [ch[x] for x in f] if isinstance(f, _From) else [self.out or ch[f]]
        if len(set(widths)) > 1:
            raise ValueError(f"{self.place} reads layers {list(f)} of {', '.join(map(str, widths))} channels; it needs "
                             "inputs of as many channels each: put a Conv with kernel size 1 behind one of them")
        options = dict(self._options)
        if self._scaled is not None:
            options["out_channels"] = math.ceil(min(self._scaled, max_channels) * width / 8) * 8
        try:
            module = catalog.create(self.entry.id, channels=widths[0], **options)
        except ValueError as error:
            raise ValueError(f"{self.place} behind {widths[0]} channels: {error}") from None
        if isinstance(getattr(module, "height", None), int):
            module.register_forward_hook(functools.partial(_explain, self.place), always_call=True)
        self.ch, self.out = ch, getattr(module, "out_channels", widths[0])
        return Fusion(module) if isinstance(f, _From) else module

    def report(self) -> None:
        """Tell `parse_model`, which has taken note of the row, how wide the output is."""
        if not self.out:
            raise _different("it reads the rows before it builds the layers")
        self.ch[-1] = self.out

    def _read(self) -> tuple[dict[str, Any], int | None]:
        """The options by name, and the output channels that the width will scale."""
        rest = list(self.written)
        options = rest.pop() if rest and isinstance(rest[-1], dict) else {}
        scaled = rest.pop(0) if rest and "out_channels" in self._parameters else None
        if rest or not (scaled is None or (type(scaled) is int and scaled > 0)):
            first = "the number of output channels, then " if "out_channels" in self._parameters else ""
            raise ValueError(f"{self.place} has the arguments {self.written}; they must be {first}options by name, "
                             "such as [{reduction: 8}], or nothing: []. The number of input channels is that of the "
                             "layer before, and is left out")
        for name, given in (("channels", True), ("out_channels", scaled is not None)):
            if given and name in options:
                other = "it is that of the layer before" if name == "channels" else f"{scaled} stands before it"
                raise ValueError(f"{self.place}: {name}={options[name]!r} must be left out: {other}")
        options = {name: _value(value) for name, value in options.items()}
        if "layout" in self._parameters:
            options.setdefault("layout", " ".join(MAP))
        return options, scaled

    def _check_inputs(self) -> None:
        takes = len(self.entry.layout.tensors)
        forward = inspect.signature(self.entry.cls.forward).parameters.values()
        any_number = any(p.kind is p.VAR_POSITIONAL for p in forward)
        if isinstance(self.f, _From) and takes == 1:
            raise ValueError(f"{self.place} reads layers {list(self.f)}; it takes one input, such as -1. To put two "
                             "together, Concat them first")
        if not isinstance(self.f, _From) and takes > 1:
            raise ValueError(f"{self.place} reads layer {self.f}; it takes {takes} inputs, such as [-1, 6]")
        if isinstance(self.f, _From) and len(self.f) != takes and not any_number:
            raise ValueError(f"{self.place} reads layers {list(self.f)}; it takes {takes} inputs")


def _value(value: Any) -> Any:
    """An option as Python has it: YAML knows no tuples, and reads None and 1e-4 as text."""
    if isinstance(value, list):
        return tuple(map(_value, value))
    if isinstance(value, str):
        with suppress(ValueError, SyntaxError):
            return ast.literal_eval(value)
    return value


def _explain(place: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """A hook: where a module made for a size refuses its input, the error says which layer that is, and why."""
    error = sys.exc_info()[1] if output is None else None
    if isinstance(error, ValueError):
        error.args = (f"{place} was made for height={module.height} and width={module.width}: {error}. Ultralytics "
                      "builds every model on images of 256 × 256, trains at imgsz and adds a border in validation: "
                      "write the height and width of the largest map that comes here, and if they must be met exactly, "
                      "take a module for any size, such as S2Attention",)


class _Rows(list[Any]):
    """All rows of a model, which are drawn one at a time: the next one when the layer of the last has been built."""

    def __init__(self, rows: Iterator[Any]):
        super().__init__()
        self._drawn = rows

    def __add__(self, other: list[Any]) -> Iterator[Any]:  # type: ignore[override]
        return self._drawn


def _parser(parse_model: Parser, layers: dict[str, type[_Layer]]) -> Parser:
    """`parse_model` for models that may hold rows of the catalogue; others go through untouched."""

    @functools.wraps(parse_model)
    def parse(d: dict[str, Any], ch: int, *args: Any, **kwargs: Any) -> tuple[nn.Sequential, list[int]]:
        ours: dict[int, _Row] = {}
        for i, (f, n, name, arguments) in enumerate(d["backbone"] + d["head"]):
            if name in layers:
                row = ours[i] = _Row(f"layer {i}, {name},", layers[name].entry, f, arguments)
                if n > 1 and isinstance(row.f, _From):
                    raise ValueError(f"{row.place} is repeated {n} times; a module of several inputs cannot be: "
                                     "write 1")
        if not ours:
            return parse_model(d, ch, *args, **kwargs)

        def rows() -> Iterator[tuple[Any, int, str, list[Any]]]:
            for i, (f, n, name, arguments) in enumerate(d["backbone"] + d["head"]):
                row = ours.get(i)
                yield (f, n, name, arguments) if row is None else (row.f, n, name, row.arguments)
                if row is not None:
                    if i == 0 and row.out != ch:
                        raise ValueError(f"{row.place} turns {ch} channels into {row.out}; the first layer of a model "
                                         "must be one of ultralytics: put a Conv before it")
                    row.report()

        built, save = parse_model({**d, "backbone": _Rows(rows()), "head": []}, ch, *args, **kwargs)
        if len(built) != len(d["backbone"] + d["head"]):
            raise _different("it does not read the rows of backbone and head together")
        for i, row in ours.items():
            built[i].f = list(row.f) if isinstance(row.f, _From) else row.f
            if "batch_one" in row.entry.forbids:
                built[i].eval()  # older versions look for the strides with one image, in training mode; `train` follows
            built[i].np = sum(p.numel() for p in built[i].parameters())  # older versions leave it at the class
        return built, save

    parse.attn_lib = layers
    return parse


def _ultralytics() -> ModuleType:
    """The file of ultralytics that builds models."""
    try:
        import_module("ultralytics")
    except ModuleNotFoundError as error:
        if error.name != "ultralytics":
            raise
        raise ModuleNotFoundError("ultralytics is not installed; attn_lib.plug.yolo puts modules into its models: "
                                  "pip install ultralytics", name="ultralytics") from None
    return import_module("ultralytics.nn.tasks")


def _check(tasks: ModuleType) -> None:
    """Build a small model, and see that every layer is told the width of the one before it.

    Raises:
        RuntimeError: if that fails.
    """
    if not hasattr(tasks, "parse_model"):
        raise _different("ultralytics.nn.tasks has none")
    rows = [
        [-1, 1, "Conv", [16, 1]],
        [-1, 1, "AttnLibProbe", [24]],
        [-1, 2, "AttnLibProbe", []],
        [-1, 1, "Conv", [24, 1]],
        [[2, -1], 1, "AttnLibProbeOfTwo", []],
        [-1, 1, "Conv", [8, 1]],
    ]
    d = {"nc": 1, "depth_multiple": 1.0, "width_multiple": 2.0, "backbone": rows[:3], "head": rows[3:]}
    layers = {"AttnLibProbe": _layer(catalog.entry("depthwise_separable")),
              "AttnLibProbeOfTwo": _layer(catalog.entry("gated"))}
    for name, layer in layers.items():
        setattr(tasks, name, layer)
    try:
        built, save = _parser(tasks.parse_model, layers)(d, ch=3, verbose=False)
        widths = [next(m for m in layer.modules() if isinstance(m, nn.Conv2d)).in_channels for layer in built]
    except Exception as error:
        raise _different(str(error)) from error
    finally:
        for name in layers:
            delattr(tasks, name)
    if (widths, save) != ([3, 32, 48, 48, 48, 48], [2]):
        raise _different(f"layers of a model for a test read {widths} channels and keep {save}")


def _different(why: str) -> RuntimeError:
    version = getattr(import_module("ultralytics"), "__version__", "?")
    return RuntimeError(f"parse_model of ultralytics {version} does not work as attn_lib.plug.yolo expects ({why}). It "
                        f"was tried on ultralytics {TRIED}: install one of these (pip install 'ultralytics>=8.1,<8.5') "
                        "or tell the authors of attn_lib the version. plug.insert works on a model that is built, with "
                        "any version")
