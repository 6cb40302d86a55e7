"""Visual attention and the plug-in modules around it, each proven against its paper.

>>> import attn_lib
>>> attn_lib.list_modules("fusion")
['gated']
>>> se = attn_lib.create("se", channels=64)

Importing the package needs torch and einops only: `measure`, `plug`, `tasks`, `toys`, `viz`, `card` load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .catalog import Paper, entry, example, list_modules, register
from .tap import trace

if TYPE_CHECKING:  # what an editor knows: the class and the options of each id, and what else loads on first use
    from . import measure, plug, tasks, toys, viz
    from ._create import create
    from .viz.card import card
else:
    from .catalog import create

__version__ = "0.1.0.dev0"  # here alone; what it means, and how it is raised: CHANGELOG.md

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


def _load(name: str) -> Any:
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


if not TYPE_CHECKING:  # to a type checker, every name would exist
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
