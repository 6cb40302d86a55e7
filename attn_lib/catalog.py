"""The one table of modules: everything that tests, measurements and pages know about a module.

A module enters the table by decorating its class with `register`; nothing else keeps a list.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module, util
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

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

CONTRACT = {
    "odd_sizes": "odd and non-square sizes",
    "batch_one": "a batch of one, in training mode",
    "half": "bfloat16 and float16",
    "compile": "torch.compile(fullgraph=True)",
    "export": "torch.export",
}

DEFAULT_SIZE = {"H": 12, "W": 16, "N": 20, "L": 40, "T": 10}

_ENTRIES: dict[str, "Entry"] = {}
_discovered = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the table.

    Attributes:
        id: short name, also the file's and the chapter's ("se").
        cls: the class.
        family: one of `FAMILIES`.
        name: the mechanism's name in running text ("Squeeze-and-Excitation").
        summary: one sentence: what it does that the previous idea could not.
        paper: key of the paper in `book/references.bib`.
        title, venue, year, arxiv: the paper; `arxiv` is its number or None.
        code: address of the authors' released code, or None.
        layout: axes of the inputs, separated by commas for several inputs ("B C H W"). A set of options that
            holds `layout`, of a module that takes several, has its own; see `layout_of`.
        output: axes of the output; primed letters where a size may differ from the input's.
        example: options of a small runnable instance. `height` and `width`, where a module has them, are those of
            its inputs: they follow the size that is asked for.
        variants: further named sets of options, tested like the example.
        inputs: makes the inputs where random normal tensors of `layout` would not do;
            called as `inputs(shapes, generator)` with one shape tuple an input.
        identity_at_init: whether a fresh module returns its (first) input exactly.
        commutes_with: names from `SYMMETRIES` that hold for any weights; those not named are broken.
        forbids: property of `CONTRACT` that the paper itself rules out -> the reason.
        builds_on: ids of the modules it grew out of.
        reduces_to: what it becomes at a limit (the id of a module, or the name of a known operation such as
            "convolution") -> the limit. Each is proven in `tests/unit/modules/test_limits.py`.
    """

    id: str
    cls: type[nn.Module]
    family: str
    name: str
    summary: str
    paper: str
    title: str
    venue: str
    year: int
    layout: str
    example: Mapping[str, Any]
    output: str = ""
    arxiv: str | None = None
    code: str | None = None
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    inputs: Callable[[list[tuple[int, ...]], torch.Generator], tuple[Tensor, ...]] | None = None
    identity_at_init: bool = False
    commutes_with: frozenset[str] = frozenset()
    forbids: Mapping[str, str] = field(default_factory=dict)
    builds_on: tuple[str, ...] = ()
    reduces_to: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _member("family", self.family, FAMILIES)
        for symmetry in self.commutes_with:
            _member("commutes_with", symmetry, SYMMETRIES)
        for rule in self.forbids:
            _member("forbids", rule, CONTRACT)
        frozen = {name: MappingProxyType(dict(options)) for name, options in self.variants.items()}
        object.__setattr__(self, "variants", MappingProxyType(frozen))
        object.__setattr__(self, "example", MappingProxyType(dict(self.example)))
        object.__setattr__(self, "forbids", MappingProxyType(dict(self.forbids)))
        object.__setattr__(self, "reduces_to", MappingProxyType(dict(self.reduces_to)))
        object.__setattr__(self, "commutes_with", frozenset(self.commutes_with))
        object.__setattr__(self, "output", self.output or self.layout.split(",")[0].strip())

    @property
    def chapter(self) -> str:
        """Path of the chapter from the book's root, without its ending."""
        return f"chapters/{self.family}/{self.id}"

    def options(self, variant: str | None = None, size: tuple[int, ...] | None = None) -> dict[str, Any]:
        """The example's options, or those of a variant, for inputs of a size as in `sizes`."""
        if variant is not None:
            _member("variant", variant, self.variants)
        options = dict(self.example if variant is None else self.variants[variant])
        sizes = self.sizes(size, variant)
        return options | {name: sizes[axis] for name, axis in (("height", "H"), ("width", "W")) if name in options}

    def layout_of(self, variant: str | None = None) -> str:
        """Axes of the inputs of the example, or of a variant that takes another layout."""
        own = (self.example if variant is None else self.variants[variant]).get("layout")
        return self.layout if own is None else ", ".join([own] * len(self.layout.split(",")))

    def sizes(self, size: tuple[int, ...] | None = None, variant: str | None = None) -> dict[str, int]:
        """Sizes of the axes other than B and C, by name; small and non-square when `size` is None.

        Args:
            size: in the order in which the layout names the axes: (H, W), (N,), (T, N), (T, H, W).

        Raises:
            ValueError: if there are more or fewer.
        """
        free = list(dict.fromkeys(a for a in self.layout_of(variant).replace(",", " ").split()
                                  if a not in "BC" and not a.isdigit()))
        if size is None:
            size = tuple(DEFAULT_SIZE[a] for a in free)
        if len(size) != len(free):
            raise ValueError(f"size={size} must hold {len(free)} numbers ({', '.join(free)}) for module {self.id!r}")
        return dict(zip(free, size, strict=True))

    def shapes(self, batch: int = 2, size: tuple[int, ...] | None = None,
               variant: str | None = None) -> list[tuple[int, ...]]:
        """Shapes of the inputs, one an input; `size` as in `sizes`."""
        options = self.options(variant, size)
        known = {"B": batch, "C": options.get("channels", options.get("dim")), **self.sizes(size, variant)}
        return [tuple(int(a) if a.isdigit() else known[a] for a in part.split())
                for part in self.layout_of(variant).split(",")]

    def make_inputs(self, batch: int = 2, size: tuple[int, ...] | None = None, *, variant: str | None = None,
                    seed: int = 0) -> tuple[Tensor, ...]:
        """Seeded float32 inputs on the CPU; arguments as in `sizes`."""
        generator = torch.Generator().manual_seed(seed)
        shapes = self.shapes(batch, size, variant)
        if self.inputs is not None:
            return self.inputs(shapes, generator)
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def register(id: str, **fields: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator that enters a module into the table; `fields` are those of `Entry`."""

    def enter(cls: type[nn.Module]) -> type[nn.Module]:
        if id in _ENTRIES:
            raise ValueError(f"id={id!r} is taken by {_ENTRIES[id].cls.__name__}; ids must be unique")
        _ENTRIES[id] = Entry(id=id, cls=cls, **fields)
        return cls

    return enter


def list_modules(family: str | None = None) -> list[str]:
    """Ids of all modules, sorted; of one family if named.

    Raises:
        ValueError: if there is no such family.
    """
    _discover()
    if family is not None:
        _member("family", family, FAMILIES)
    return sorted(id for id, e in _ENTRIES.items() if family in (None, e.family))


def entry(id: str) -> Entry:
    """The row of the table for one module.

    Raises:
        ValueError: if there is no module of that id; names the nearest.
    """
    _discover()
    _member("id", id, _ENTRIES)
    return _ENTRIES[id]


def entry_of(cls: type) -> Entry | None:
    """The row of the table for a class, or None for a class that is not in it."""
    _discover()
    return next((e for e in _ENTRIES.values() if e.cls is cls), None)


def create(id: str, **options: Any) -> nn.Module:
    """A new module: `create("se", channels=64)` is `SEAttention(64)`.

    Raises:
        ValueError: if there is no module of that id, or an option is unknown or missing.
    """
    cls = entry(id).cls
    try:
        return cls(**options)
    except TypeError as error:
        # Python's own sentence names the argument; a TypeError from deeper down is a bug and stays one.
        if "__init__()" in str(error):
            raise ValueError(f"create({id!r}): {str(error).replace('.__init__()', '')}") from None
        raise


def example(id: str, variant: str | None = None, *, batch: int = 2, size: tuple[int, ...] | None = None,
            seed: int = 0, generic: bool = False) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A small runnable instance and its inputs; the global random state is left as it was.

    Args:
        id: the module.
        variant: one of `entry(id).variants`, or None for the plain example.
        batch, size: see `Entry.shapes`.
        seed: of the weights and the inputs.
        generic: draw every parameter anew at random, so that no zero initialisation hides anything.
    """
    e = entry(id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = e.cls(**e.options(variant, size))
        if generic:
            with torch.no_grad():
                for p in module.parameters():
                    p.copy_(torch.randn_like(p) * (0.5 if p.ndim < 2 else p[0].numel() ** -0.5))
    return module, e.make_inputs(batch, size, variant=variant, seed=seed)


def _discover() -> None:
    """Import every module file of every family once; importing a file registers its class."""
    global _discovered
    if _discovered:
        return
    _discovered = True  # first: a family's file may ask the catalog while it is being imported
    package = __name__.rpartition(".")[0]
    for family in FAMILIES:
        if util.find_spec(f"{package}.{family}") is None:
            continue
        folder = import_module(f"{package}.{family}")
        for file in iter_modules(folder.__path__):
            import_module(f"{package}.{family}.{file.name}")


def _member(what: str, value: str, choices) -> None:
    if value not in choices:
        near = get_close_matches(str(value), list(choices), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what}={value!r} must be one of {', '.join(choices) or '(none)'}{hint}")
