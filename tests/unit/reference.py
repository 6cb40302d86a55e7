"""Packages that hold the same operators by other hands. They are compared with, never used by the library."""

import importlib
from importlib import util
from pathlib import Path
from types import ModuleType

import torch

_DECLARED: list[torch.library.Library] = []  # a library that nobody holds takes its operators with it


def reference(name: str) -> ModuleType:
    """Import a reference package, such as "timm.layers".

    They are part of the test environment (the extra "test"): where one is missing the test fails, and says so.
    """
    if util.find_spec(name.partition(".")[0]) is None:
        raise ModuleNotFoundError(f"{name} is not installed: the tests need the extra 'test' (pip install '.[test]')")
    _declare_torchvision_operators()
    return importlib.import_module(name)


def _declare_torchvision_operators() -> None:
    """Let torchvision be imported beside a torch for which its compiled operators were not built.

    It registers shape rules for `nms` and `qnms` while it is imported, which fails where those do not exist.
    Declaring the two is enough; they are never called here.
    """
    if _DECLARED or util.find_spec("torchvision") is None:
        return
    folder = Path(util.find_spec("torchvision").origin).parent
    try:
        for file in folder.glob("_C*"):
            torch.ops.load_library(file)
        torch.ops.torchvision.nms  # noqa: B018  an operator that is missing raises
    except (OSError, AttributeError, RuntimeError):
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
