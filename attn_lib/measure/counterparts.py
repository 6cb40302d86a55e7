"""The same operators in well-kept packages (`Entry.counterpart`), timed against ours in one run.

Nothing else of the library uses those packages.
"""

import importlib
from importlib import util
from pathlib import Path
from types import ModuleType

import torch

from .. import catalog
from .call import map_tensors
from .timing import Comparison, compare_timings


def against(id: str, device: torch.device, *, side: int, batch: int = 2, backward: bool = True) -> Comparison:
    """Our module and its counterpart, timed in turns on the same input; "ratio" is ours over theirs.

    Args:
        id: a module whose entry has a `counterpart`.
        device: where.
        side: height and width of the input.
        batch: items in it.
        backward: whether to time the backward pass as well.

    Raises:
        ValueError: if no package is known to have the module.
        ImportError: if the package is not installed or cannot be imported.
    """
    entry, size = catalog.entry(id), (side, side)
    other = entry.counterpart
    if other is None:
        raise ValueError(f"id={id!r} has no counterpart in another package")
    options = entry.options(size=size)
    theirs, ours = other.make(import_package(other.package), **options), entry.cls(**options | dict(other.options))
    inputs = map_tensors(lambda t: t.to(device), entry.make_inputs(batch, size))
    calls = {other.label: (theirs.to(device).train(backward), inputs), id: (ours.to(device).train(backward), inputs)}
    return compare_timings(calls, backward=backward)


def import_package(name: str) -> ModuleType:
    """Import a package that may need torchvision, beside a torch for which torchvision's operators were not built.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    if util.find_spec(name.partition(".")[0]) is None:
        raise ModuleNotFoundError(f"{name} is not installed: it comes with the extra 'test' (pip install '.[test]')")
    _declare_torchvision_operators()
    return importlib.import_module(name)


_DECLARED: list[torch.library.Library] = []  # a library that nobody holds takes its operators with it


def _declare_torchvision_operators() -> None:
    """Let torchvision be imported where its compiled operators are missing.

    It registers shape rules for `nms` and `qnms` while it is imported, which fails where those do not exist.
    Declaring the two is enough; they are never called here.
    """
    found = util.find_spec("torchvision")
    if _DECLARED or found is None or found.origin is None:
        return
    folder = Path(found.origin).parent
    try:
        for file in folder.glob("_C*"):
            torch.ops.load_library(file)
        torch.ops.torchvision.nms  # noqa: B018  an operator that is missing raises
    except (OSError, AttributeError, RuntimeError):
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
