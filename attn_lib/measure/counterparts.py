"""The same operators in well-kept packages, to be timed against in one run. Nothing else of the library uses them."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from .. import catalog
from .call import map_tensors
from .timing import Comparison, compare_timings


@dataclass(frozen=True)
class Counterpart:
    """A module of another package that does what ours does.

    Attributes:
        label: the package's name for it, "timm SEModule".
        package: what must be installed.
        make: called with the imported package, C and the side of a square input; returns the module.
        options: of ours, where its plain form would not be the same operator.
    """

    label: str
    package: str
    make: Callable[[ModuleType, int, int], nn.Module]
    options: dict[str, object]


def _timm(file: str, name: str, make: Callable[[ModuleType, int, int], nn.Module], **options: object) -> Counterpart:
    return Counterpart(f"timm {name}", f"timm.layers.{file}", make, options)


COUNTERPARTS = {
    "cbam": _timm("cbam", "CbamModule", lambda timm, C, side: timm.CbamModule(C, rd_channels=C // 16, mlp_bias=True),
                  norm=True),
    "coord": _timm("coord_attn", "CoordAttn", lambda timm, C, side: timm.CoordAttn(C, rd_channels=8, bias=True)),
    "eca": _timm("eca", "EcaModule", lambda timm, C, side: timm.EcaModule(C)),
    "mhsa": _timm("bottleneck_attn", "BottleneckAttn", lambda timm, C, side: timm.BottleneckAttn(
        C, feat_size=(side, side), num_heads=4, dim_head=C // 4, scale_pos_embed=True)),
    "non_local": _timm("non_local_attn", "NonLocalAttn", lambda timm, C, side: timm.NonLocalAttn(C, rd_channels=C // 2),
                       scale=64**-0.5, bias=True, norm=True),
    "se": _timm("squeeze_excite", "SEModule", lambda timm, C, side: timm.SEModule(C, rd_channels=C // 16, bias=True)),
    "sk": _timm("selective_kernel", "SelectiveKernel",
                lambda timm, C, side: timm.SelectiveKernel(C, groups=32, rd_divisor=32, split_input=False)),
}


def against(id: str, device: torch.device, *, side: int, batch: int = 2, backward: bool = True) -> Comparison:
    """Our module and its counterpart, timed in turns on the same input; "ratio" is ours over theirs.

    Args:
        id: a key of `COUNTERPARTS`.
        device: where.
        side: height and width of the input.
        batch: items in it.
        backward: whether to time the backward pass as well.

    Raises:
        ImportError: if the package is not installed or cannot be imported.
    """
    other = COUNTERPARTS[id]
    package = import_package(other.package)
    entry = catalog.entry(id)
    options = entry.options(size=(side, side))
    C = options["channels"]
    ours, theirs = entry.cls(**options, **other.options), other.make(package, C, side)
    inputs = map_tensors(lambda t: t.to(device), entry.make_inputs(batch, (side, side)))
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
