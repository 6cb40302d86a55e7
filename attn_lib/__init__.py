"""Visual attention and the plug-in modules around it, each proven against its paper.

>>> import attn_lib
>>> attn_lib.list_modules("channel")
['eca', 'se']
>>> se = attn_lib.create("se", channels=64)

Importing the package needs torch and einops only: `measure`, `plug`, `tasks`, `toys`, `viz`, `card` load on first use.
"""

from importlib import import_module

from .catalog import create, entry, example, list_modules
from .tap import trace

__version__ = "0.1.0"

__all__ = ["card", "create", "entry", "example", "list_modules", "measure", "plug", "tasks", "toys", "trace", "viz"]


def __getattr__(name: str):
    # Lazy, so that a practitioner who only wants a module never needs matplotlib.
    if name in ("measure", "plug", "tasks", "toys", "viz"):
        return import_module(f".{name}", __name__)
    if name == "card":
        return import_module(".viz.card", __name__).card
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
