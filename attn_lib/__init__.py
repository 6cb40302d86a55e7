"""Visual attention and the plug-in modules around it, each proven against its paper.

>>> import attn_lib
>>> attn_lib.list_modules("fusion")
['gated']
>>> se = attn_lib.create("se", channels=64)

Importing the package needs torch and einops only: `measure`, `plug`, `tasks`, `toys`, `viz`, `card` load on first use.
"""

from importlib import import_module

from .catalog import Paper, create, entry, example, list_modules, register
from .tap import trace

__version__ = "0.1.0"

__all__ = [
    "Paper",
    "card",
    "create",
    "entry",
    "example",
    "list_modules",
    "measure",
    "plug",
    "register",
    "tasks",
    "toys",
    "trace",
    "viz",
]


def __getattr__(name: str):
    # Lazy, so that a practitioner who only wants a module never needs matplotlib.
    if name not in ("card", "measure", "plug", "tasks", "toys", "viz"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module(".viz.card", __name__).card if name == "card" else import_module(f".{name}", __name__)
    except ImportError as error:
        if (error.name or __name__).startswith(__name__):
            raise  # a fault of the library itself
        # Not an ImportError: `hasattr`, `help`, `inspect` and tab completion ask every name of `__dir__`.
        needs = f"attn_lib.{name} cannot be imported ({error}); what it needs comes with the extra 'chapters'"
        raise AttributeError(f"{needs}: pip install 'attn_lib[chapters]'") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
