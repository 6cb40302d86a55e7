"""Finding the places in a network by name."""

import re
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from .. import catalog
from .followed import named_modules
from .merged import beneath


def find(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """The sub-modules whose dotted name matches, in the network's order; a module of two names counts once.

    Patterns are the shell's, one part at a time: `*` and `?` stand for characters within a part, `[1-4]` for one
    of them, and `**` for any number of whole parts. "layer1.*" is the blocks of layer1, "layer1.**" all
    that layer1 holds, "**.bn3" every bn3. Wrappers of insertions have no name: patterns go on to match.

    Raises:
        ValueError: if nothing matches; names what is near.
    """
    names = {name: beneath(module) for name, module in named_modules(model) if name}
    found = {name: module for name, module in names.items() if _matches(name.split("."), pattern.split("."))}
    if not found:
        near = get_close_matches(pattern, names, n=4, cutoff=0.3) or list(names)[:4]
        raise ValueError(f"pattern={pattern!r} matches no sub-module; there are {', '.join(near) or 'none'} …")
    return found


def find_ends(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """As `find`, with a plain `nn.Sequential` standing for its last layer; a layer at the end of two counts once."""
    ends: dict[str, nn.Module] = {}
    for path, site in find(model, pattern).items():
        path, site = end_of(path, site)
        if all(site is not other for other in ends.values()):
            ends[path] = site
    return ends


def end_of(path: str, site: nn.Module) -> tuple[str, nn.Module]:
    """The last layer of a plain `nn.Sequential`, and its name; any other sub-module is its own end."""
    while isinstance(site, nn.Sequential) and type(site).forward is nn.Sequential.forward and len(site):
        name, site = list(site._modules.items())[-1]
        path, site = f"{path}.{name}", beneath(site)
    return path, site


def similar(model: nn.Module, entry: catalog.Entry) -> list[str]:
    """Names of modules of the entry's kind in the network: of this library's class, or by another's name for it."""
    words = re.sub(r"[^a-z]", "", entry.name.lower().replace(" and ", " ").replace("-and-", "-"))
    names = {entry.id.replace("_", "") + ending for ending in ("", "module", "block", "layer", "attn", "attention")}

    def same(name: str) -> bool:  # "squeezeexcite" is the beginning of "squeezeexcitation", up to its last letter
        return name in names | {words} or (len(name) > 8 and words.startswith(name[:-1]))

    return [path for path, m in named_modules(model)
            if isinstance(m, entry.cls) or same(type(m).__name__.lower().replace("_", ""))]


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
