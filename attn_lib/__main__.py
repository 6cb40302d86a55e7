"""What there is: `python -m attn_lib`."""

import textwrap

import torch

from . import __all__, __version__, catalog
from .console import printable


def overview() -> str:
    """The version, the modules of each family, what the package holds, and how to go on."""
    def row(head: str, names: list[str]) -> str:
        return textwrap.fill(", ".join(names), 100, initial_indent=f"  {head:<20} ", subsequent_indent=" " * 23)

    return "\n".join([
        f"attn_lib {__version__}, {len(catalog.list_modules())} modules, torch {torch.__version__}",
        "",
        *(row(name, catalog.list_modules(family)) for family, name in catalog.FAMILIES.items()),
        "",
        row("attn_lib holds", __all__),
        "",
        '  attn_lib.create("se", 64)       makes a module',
        '  help(attn_lib.entry("se").cls)  explains it: formula, arguments, shapes, paper',
        "  python -m attn_lib.measure      times every module on this machine and records it",
    ])


if __name__ == "__main__":
    print(printable(overview()))
