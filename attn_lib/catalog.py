"""The one table of modules: everything that tests, measurements and pages know about a module.

A module enters the table by decorating its class with `register`; nothing else keeps a list.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .checks import Device, check_choice, check_device, check_floating_type
from .guest import as_leaf, loads_scalars
from .layout import Layout

FAMILIES = {
    "channel": "Channel",
    "spatial": "Spatial",
    "channel_spatial": "Channel and spatial",
    "branch": "Branch",
    "temporal": "Temporal",
    "self_attention": "Self-attention",
    "mlp": "MLP",
    "conv": "Convolution",
    "fusion": "Fusion",
}

SYMMETRIES = {
    "channel_permutation": "permuting the channels of the input permutes those of the output",
    "spatial_permutation": "permuting the positions in any way permutes the output alike",
    "row_column_permutation": "permuting whole rows and whole columns permutes the output alike",
    "translation": "shifting an object on an empty canvas shifts the output, away from the border",
    "flip_h": "turning the image upside down does so to the output",
    "flip_w": "mirroring the image left to right mirrors the output",
    "transpose": "exchanging rows and columns does so in the output",
    "scaling": "multiplying the input by a > 0 multiplies the output by a",
}

ACTIONS = {
    "gate": "multiplies the input by numbers that depend on it: y = g(x) · x",
    "mix": "sums over positions, channels, branches or inputs with weights that depend on the input, or are learned",
    "move": "reads the input at other places",
}

SOURCES = {
    "paper": "the paper itself, where it is silent, inconsistent or mistaken",
    "release": "the authors' released code",
    "package": "a well-kept package",
    "copies": "code in circulation",
}

CONTRACT = {
    "odd_sizes": "odd and non-square sizes",
    "batch_one": "a batch of one, in training mode",
    "half": "bfloat16 and float16",
    "compile": "torch.compile(fullgraph=True)",
    "export": "torch.export",
}

GRAPHS = {
    "any size": "one graph, by torch.jit.trace or torch.export, for all sizes of H, W, N, L and T",
    "onnx": "ONNX by torch.export (dynamo=True)",
    "onnx at any size": "the same with dynamic axes",
    "onnx by trace": "ONNX by the older exporter (dynamo=False)",
    "onnx by trace at any size": "the same with dynamic axes",
}

OPERATIONS = {
    "identity": "y = x",
    "constant": "y = c, whatever x holds",
    "constant gate": "y = c · x, the same number c for everything",
    "channel-wise gate": "y = s · x, where s of a channel depends on that channel's mean alone",
    "channel scaling": "y = s · x with a constant s for every channel",
    "variance gate": "y = s · x, where s depends on the variances of the channels alone",
    "row gate": "y = s · x with an s for every row of every channel",
    "activation function": "a function of every number by itself",
    "SiLU": "y = x · σ(x)",
    "mean": "an average with equal weights: of positions, branches or inputs",
    "linear layer": "a matrix product over the channels",
    "linear channel MLP": "two matrix products over the channels, nothing between them",
    "token mixing": "one matrix product over the positions, the same for all channels",
    "convolution": "a sum over neighbours with weights that depend on the offset alone",
    "self-attention": "softmax attention of all positions to all",
    "window attention": "softmax attention within windows that do not overlap",
    "banded attention": "softmax attention of each step to those that lie near it",
}

DEFAULT_SIZE = {"H": 12, "W": 16, "N": 20, "L": 40, "T": 10}

MEASURED = "measured"  # as a variant: the options that a module is counted and timed with

# What `register` writes under `Args:`.
PLACEMENT = """\
    device: where it is made; by default where torch makes any layer.
    dtype: the floating-point type of its parameters and buffers; by default torch's."""

M = TypeVar("M", bound=nn.Module)

_PACKAGE = __name__.rpartition(".")[0]
_ENTRIES: dict[str, "Entry"] = {}
_complete = False
_here = threading.local()  # .importing: whether this thread is importing the families


@dataclass(frozen=True)
class Paper:
    """A paper that a module comes from.

    Attributes:
        key: of the paper in `book/references.bib`.
        title, venue, year: as published.
        arxiv: its number there, or None.
        code: address of the authors' released code, or None.
    """

    key: str
    title: str
    venue: str
    year: int
    arxiv: str | None = None
    code: str | None = None


@dataclass(frozen=True)
class Erratum:
    """One place where others differ from what stands here.

    Attributes:
        source: who differs, one of `SOURCES`.
        there: what it does or says there, a sentence.
        here: what this library does, a sentence; the name of an option, where it offers both.
        test: the test that shows it, a function in `tests/unit/modules/test_<id>.py` or in the module's limits.
    """

    source: str
    there: str
    here: str
    test: str

    def __post_init__(self) -> None:
        check_choice("source", self.source, SOURCES)


@dataclass(frozen=True)
class Counterpart:
    """The same operator in a well-kept package: tests compare it with ours, measurements time the two in turns.

    Attributes:
        label: the package's name for it, "timm SEModule".
        package: what is imported for it, "timm.layers.squeeze_excite".
        make: called with the imported package and the example's options by name; returns the module.
        options: of ours, where its plain form would not be the same operator.
    """

    label: str
    package: str
    make: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the table.

    Attributes:
        id: short name, also the file's and the chapter's ("se").
        cls: the class.
        family: one of `FAMILIES`.
        name: the mechanism's name in running text ("Squeeze-and-Excitation").
        summary: one sentence: what it does that the previous idea could not.
        aliases: other names under which a reader looks for it, the usual short one first ("SE", "SENet").
        action: what it does to its input above all, one of `ACTIONS`.
        papers: the papers it comes from, the one that names it first.
        layout: axes of the inputs, see `attn_lib.layout`. A set of options that holds `layout`, of a module that takes
            several, has its own; see `layout_of`.
        output: axes of the output, or of several; those of the first input where nothing else is said.
        example: options of a small runnable instance. `height`, `width` and `frames`, where a module has them, are
            those of its inputs: they follow the size that is asked for.
        measured: options that it is counted and timed with instead of the example's, which is small so that tests are
            fast: 64 channels, as near as its heads or groups allow, and the paper's own defaults. Cards, charts and the
            atlas compare modules by these; they are the variant `MEASURED`.
        variants: further named sets of options, tested like the example.
        variant_outputs: variant -> axes of its output, where it returns something else; see `output_of`.
        identity_at_init: whether a fresh module returns its (first) input exactly.
        commutes_with: names from `SYMMETRIES` that hold for any weights; those not named are broken.
        forbids: property of `CONTRACT` that the paper itself rules out -> the reason.
        refuses: property of `GRAPHS` that the example or a variant lacks -> which, and why. It then fails while it is
            recorded, or when it is run at another size, and is never wrong in silence.
        builds_on: ids of the modules it grew out of.
        reduces_to: what it becomes at a limit (the id of a module, or a name from `OPERATIONS`) -> the limit. Each is
            proven in `tests/unit/modules/limits/`.
        counterpart: the same operator in a well-kept package, if there is one.
        errata: where paper, release, packages and code in circulation differ from this library, one each. The
            docstring ends with them, and the book's page of errata is made of them.
    """

    id: str
    cls: type[nn.Module]
    family: str
    name: str
    summary: str
    aliases: tuple[str, ...]
    action: str
    papers: tuple[Paper, ...]
    layout: Layout
    example: Mapping[str, Any]
    output: Layout = ""  # type: ignore[assignment]  # until __post_init__
    measured: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    variant_outputs: Mapping[str, Layout] = field(default_factory=dict)
    identity_at_init: bool = False
    commutes_with: frozenset[str] = frozenset()
    forbids: Mapping[str, str] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    builds_on: tuple[str, ...] = ()
    reduces_to: Mapping[str, str] = field(default_factory=dict)
    counterpart: Counterpart | None = None
    errata: tuple[Erratum, ...] = ()

    def __post_init__(self) -> None:
        check_choice("family", self.family, FAMILIES)
        check_choice("action", self.action, ACTIONS)
        if isinstance(self.aliases, str) or not self.aliases:
            raise ValueError(f"aliases={self.aliases!r} must hold at least one name, the usual short one first")
        if not self.papers:
            raise ValueError(f"papers={self.papers!r} must hold at least one Paper")
        for symmetry in self.commutes_with:
            check_choice("commutes_with", symmetry, SYMMETRIES)
        for rule in self.forbids:
            check_choice("forbids", rule, CONTRACT)
        for graph in self.refuses:
            check_choice("refuses", graph, GRAPHS)
        if MEASURED in self.variants:
            raise ValueError(f"variants: {MEASURED!r} is the name of the options in `measured`")
        for variant in self.variant_outputs:
            check_choice("variant_outputs", variant, self.variants)
        layout = Layout(self.layout)
        for name, value in {
            "aliases": tuple(self.aliases),
            "papers": tuple(self.papers),
            "errata": tuple(self.errata),
            "layout": layout,
            "output": Layout(self.output) if self.output else layout.first,
            "example": MappingProxyType(dict(self.example)),
            "measured": MappingProxyType(dict(self.measured or self.example)),
            "variants": MappingProxyType({n: MappingProxyType(dict(v)) for n, v in self.variants.items()}),
            "variant_outputs": MappingProxyType({n: Layout(v) for n, v in self.variant_outputs.items()}),
            "commutes_with": frozenset(self.commutes_with),
            "forbids": MappingProxyType(dict(self.forbids)),
            "refuses": MappingProxyType(dict(self.refuses)),
            "reduces_to": MappingProxyType(dict(self.reduces_to)),
        }.items():
            object.__setattr__(self, name, value)

    @property
    def paper(self) -> Paper:
        """The paper that names the module."""
        return self.papers[0]

    @property
    def chapter(self) -> str:
        """Path of the chapter from the book's root, without its ending."""
        return f"chapters/{self.family}/{self.id}"

    def options(self, variant: str | None = None, size: tuple[int, ...] | None = None) -> dict[str, Any]:
        """The example's options, or those of a variant, for inputs of a size as in `sizes`."""
        options = self._own(variant)
        sizes = self.sizes(size, variant)
        made_for = (("height", "H"), ("width", "W"), ("frames", "T"))
        return {**options} | {name: sizes[axis] for name, axis in made_for if name in options}

    def layout_of(self, variant: str | None = None) -> Layout:
        """Axes of the inputs of the example, or of a variant that takes another layout."""
        own = self._own(variant).get("layout")
        return self.layout if own is None else self.layout.each(own)

    def output_of(self, variant: str | None = None) -> Layout:
        """Axes of the output of the example, or of a variant: a module that takes a layout returns it too."""
        if variant is not None and variant in self.variant_outputs:
            return self.variant_outputs[variant]
        own = self._own(variant).get("layout")
        return self.output if own is None else self.output.each(own)

    def _own(self, variant: str | None) -> Mapping[str, Any]:
        if variant in (None, MEASURED):
            return self.example if variant is None else self.measured
        check_choice("variant", variant, self.variants)
        return self.variants[variant]

    def sizes(self, size: tuple[int, ...] | None = None, variant: str | None = None) -> dict[str, int]:
        """Sizes of the axes other than B and C, by name; small and non-square when `size` is None.

        Args:
            size: in the order in which the layout names the axes: (H, W), (N,), (T, N), (T, H, W).

        Raises:
            ValueError: if there are more or fewer.
        """
        free = self.layout_of(variant).free
        if size is None:
            size = tuple(DEFAULT_SIZE[a] for a in free)
        if len(size) != len(free):
            raise ValueError(f"size={size} must hold {len(free)} numbers ({', '.join(free)}) for module {self.id!r}")
        return dict(zip(free, size, strict=True))

    def shapes(self, batch: int = 2, size: tuple[int, ...] | None = None,
               variant: str | None = None) -> list[tuple[int, ...]]:
        """Shapes of the inputs, one an input; `size` as in `sizes`."""
        channels = self.options(variant, size)["channels"]
        return self.layout_of(variant).shapes({"B": batch, "C": channels, **self.sizes(size, variant)})

    def make_inputs(self, batch: int = 2, size: tuple[int, ...] | None = None, *, variant: str | None = None,
                    seed: int = 0) -> tuple[Tensor, ...]:
        """Seeded float32 inputs on the CPU; arguments as in `sizes`."""
        generator = torch.Generator().manual_seed(seed)
        shapes = self.shapes(batch, size, variant)
        return tuple(torch.randn(shape, generator=generator, device="cpu") for shape in shapes)


def register(id: str, **fields: Any) -> Callable[[type[M]], type[M]]:
    """Class decorator that enters a module into the table; `fields` are those of `Entry`.

    It serves a reader's own module as it does the library's: `create`, `example`, `card`, `measure`, `plug`, and the
    tests of the contract, take what is in the table.

    >>> @attn_lib.register("mine", family="channel", name="My gate", summary="One gate for everything.",
    ...                    aliases=["mine"], action="gate", layout="B C H W", example=dict(channels=8),
    ...                    papers=[attn_lib.Paper(key="me2026", title="Notes", venue="unpublished", year=2026)])
    ... class MyGate(torch.nn.Module): ...

    The class takes `device` and `dtype` from then on, as torch's own layers do, unless it does so itself: it is made
    as ever, and then moved. So it can be handed to whatever makes its layers that way, such as timm's `attn_layer`.

    A class of the same name in the same file takes the place of the one before it: a file that is imported again after
    a failure, or a notebook's cell that is run twice.

    Args:
        id: under which `create` and the others know it; a name that no module has.
        **fields: of `Entry`, `cls` excepted.

    Raises:
        ValueError: if another class has the id, or a field is unknown, missing or not what `Entry` says.
    """

    def enter(cls: type[M]) -> type[M]:
        if not cls.__module__.startswith(f"{_PACKAGE}."):
            _discover()  # so that an id that the library has is refused here, and not when the library's file comes
        known = _ENTRIES.get(id)
        if known is not None and _origin(known.cls) != _origin(cls):
            raise ValueError(f"id={id!r} is taken by {'.'.join(_origin(known.cls))}; ids must be unique")
        try:
            inspect.signature(Entry).bind(id=id, cls=cls, **fields)
        except TypeError as error:
            raise ValueError(f"register({id!r}): {error}; see attn_lib.catalog.Entry") from None
        _ENTRIES[id] = Entry(id=id, cls=cls, **fields)
        placed = _take_device_and_dtype(cls)
        as_leaf(cls)
        loads_scalars(cls)
        if cls.__doc__:  # not under python -OO
            cls.__doc__ = _with_errata(_with_placement(cls.__doc__) if placed else cls.__doc__, _ENTRIES[id].errata)
        return cls

    return enter


def _take_device_and_dtype(cls: type[nn.Module]) -> bool:
    """Let a class be made with `device` and `dtype`; False for one that takes either of them already."""
    init = cls.__init__
    signature = inspect.signature(cls)
    parameters = list(signature.parameters.values())
    if {"device", "dtype"} & {p.name for p in parameters}:
        return False

    @functools.wraps(init)
    def make(self: nn.Module, *arguments: Any, device: Any = None, dtype: Any = None, **options: Any) -> None:
        where, kind = check_device(device), check_floating_type(dtype)
        init(self, *arguments, **options)
        if device is not None or dtype is not None:
            self.to(device=where, dtype=kind)

    at = len(parameters) - any(p.kind is p.VAR_KEYWORD for p in parameters)
    parameters[at:at] = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
                         for name, annotation in (("device", Device), ("dtype", torch.dtype | None))]
    cls.__init__ = make  # type: ignore[method-assign]
    cls.__signature__ = _Signature(make, signature.replace(parameters=parameters))  # type: ignore[attr-defined]
    return True


class _Signature:
    """`__signature__` of a class, and of those that inherit its `init`; one with an `__init__` of its own has another.

    It stands at the class and not at `init`, whose source, which tools read beside it, does not hold all of it.
    """

    def __init__(self, init: Callable[..., None], signature: inspect.Signature):
        self.init, self.signature = init, signature

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        if owner.__init__ is not self.init:  # type: ignore[misc]
            raise AttributeError(f"{owner.__name__} has a signature of its own")
        return self.signature


def _with_placement(doc: str) -> str:
    """A docstring whose `Args:` end with the two that `register` adds."""
    head, args, rest = inspect.cleandoc(doc).partition("\nArgs:\n")
    listed, end, rest = rest.partition("\n\n")
    return "".join([head, args, listed, f"\n{PLACEMENT}", end, rest]) if args else doc


def _with_errata(doc: str, errata: tuple[Erratum, ...]) -> str:
    """A docstring that ends with where others differ."""
    rows = [f"    - {SOURCES[e.source][0].upper()}{SOURCES[e.source][1:]}: {e.there} Here: {e.here}" for e in errata]
    return "\n".join([inspect.cleandoc(doc), *(["", "Differences:", *rows] if rows else [])])


def _origin(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def list_modules(family: str | None = None) -> list[str]:
    """Ids of all modules, sorted; of one family if named.

    Raises:
        ValueError: if there is no such family.
    """
    _discover()
    if family is not None:
        check_choice("family", family, FAMILIES)
    return sorted(id for id, e in _ENTRIES.copy().items() if family in (None, e.family))


def entry(id: str) -> Entry:
    """The row of the table for one module.

    Raises:
        ValueError: if there is no module of that id; names the nearest, by its id, its class or another of its names.
    """
    _discover()
    if id not in _ENTRIES:
        known = _ENTRIES.copy()
        check_choice("id", id, known, {name: e.id for e in known.values()
                                       for name in (e.cls.__name__, e.name, *e.aliases)})
    return _ENTRIES[id]


def entry_of(cls: type) -> Entry | None:
    """The row of the table for a class, or None for a class that is not in it."""
    _discover()
    return next((e for e in _ENTRIES.copy().values() if e.cls is cls), None)


def layouts_of(module: object) -> tuple[Layout, Layout] | None:
    """Axes of the inputs and of the output of a module of the table; None for another's.

    A module that takes several layouts says in its attribute `layout` which one it was made for.
    """
    e = entry_of(type(module))
    if e is None:
        return None
    own = getattr(module, "layout", None)
    return (e.layout.each(own), e.output.each(own)) if isinstance(own, str) else (e.layout, e.output)


def create(id: str, *arguments: Any, **options: Any) -> nn.Module:
    """A new module: `create("se", 64)` and `create("se", channels=64)` are `SEAttention(64)`.

    Args:
        id: of the module.
        *arguments: of its class, by position: `channels`, and `out_channels` where it has them.
        **options: of its class, by name; `device` and `dtype` are among them, see `register`.

    Raises:
        ValueError: if there is no module of that id, or an option is unknown or missing.
    """
    cls = entry(id).cls
    signature = inspect.signature(cls)
    try:
        signature.bind(*arguments, **options)  # only this: a TypeError from within the module is a fault of its own
    except TypeError as error:
        raise ValueError(f"create({id!r}): {error}; {cls.__name__} takes {signature}") from None
    return cls(*arguments, **options)


def example(id: str, variant: str | None = None, *, batch: int = 2, size: tuple[int, ...] | None = None,
            seed: int = 0, generic: bool = False) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A small runnable instance and its inputs, on the CPU; the global random state is left as it was.

    Args:
        id: the module.
        variant: one of `entry(id).variants`, `MEASURED`, or None for the plain example.
        batch, size: see `Entry.shapes`.
        seed: of the weights and the inputs.
        generic: draw every parameter anew at random, so that no zero initialisation hides anything.
    """
    e = entry(id)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # of the CPU alone: torch.manual_seed would seed every GPU as well
        module = e.cls(**e.options(variant, size))
        if generic:
            with torch.no_grad():
                for p in module.parameters():
                    p.copy_(torch.randn_like(p) * (0.5 if p.ndim < 2 else p[0].numel() ** -0.5))
    return module, e.make_inputs(batch, size, variant=variant, seed=seed)


def _discover() -> None:
    """Import every module file of every family once; importing a file registers its class.

    Done is only what has succeeded: after a failed or interrupted import the next call goes on with it. Threads that
    come at the same time each go through the list, where Python's own import locks let one of them import a file and
    the others wait for it.
    """
    global _complete
    if _complete or getattr(_here, "importing", False):  # a family's file may ask the catalog while it is imported
        return
    _here.importing = True
    try:
        for family in FAMILIES:
            folder = import_module(f"{_PACKAGE}.{family}")
            for file in iter_modules(folder.__path__):
                import_module(f"{_PACKAGE}.{family}.{file.name}")
    finally:
        _here.importing = False
    _complete = True
