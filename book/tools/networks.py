"""The record of what became of modules in other people's networks: read by the page, written by `tests.networks`.

A record as `book.tools.record` keeps it, with rows such as

    {"network": …, "module": …, "run": 0, "cells": {"train": "yes", "fuse": "no: …", "sync": "none: …"}}

`module` is null for the network alone. A cell is "yes"; "no: " and the error's sentence; or "none: " and why there is
nothing to do. A row whose module could not be put into the network holds "refused", the sentence, and no cells. A use
that is missing was not run: its package was not installed.
"""

import re
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "networks.json"
KEY = ("network", "module")
YES, NO, NONE = "yes", "no", "none"

# Uses: the head of the column, and what passes.
USES = {
    "train": ("trains in bf16", "five steps under autocast in bfloat16: the loss falls, and every new parameter has a "
                                "finite gradient"),
    "ema": ("EMA", "`AveragedModel` holds the modules and averages their weights"),
    "ddp": ("DDP", "`DistributedDataParallel`, one process, two passes: output and gradients are those without it"),
    "sync": ("SyncBN", "`convert_sync_batchnorm`, timm's for its own norms, converts every batch norm, and the modules "
                       "stay"),
    "fuse": ("fused", "`torch.fx.experimental.optimization.fuse` folds norms into convolutions; a YOLO does so by its "
                      "own `fuse`"),
    "quantise": ("8 bits", "quantisation by `torch.fx` after training: prepared, the output is the same; converted, "
                           "rounding changes it by less than the modules do"),
    "compile": ("compile", "`torch.compile(fullgraph=True)`, captured, decomposed and run by the eager kernels"),
    "export": ("export", "`torch.export`, and the program run"),
    "onnx": ("ONNX", "the exporter of `dynamo=True`, run by onnxruntime"),
    "onnx_old": ("ONNX, old", "the exporter of `dynamo=False`, run by onnxruntime"),
    "trace": ("TorchScript", "`torch.jit.trace`, saved, loaded and run on another input"),
}

# What an error's sentence means for whoever reads the page: the first pattern that is found in it.
EXPLANATIONS = {
    r"not Proxy": "The module checks the shape of its input. `torch.fx` passes a stand-in without a shape while it "
                  "records the network, which the check refuses; so neither fusing nor quantising by `torch.fx` goes "
                  "through the module. Fuse the network before the module is inserted, or quantise by "
                  "`torch.export`.",
    r"Could not export Python function call": "The module computes a gradient of its own in Python. A trace can be run "
                                              "where it was made, but not saved; `torch.export` and ONNX leave the "
                                              "gradient out.",
    r"the module needs \(|is not its channels|takes no feature map":
        "The places chosen in this network return other axes than the module takes: maps (B, C, H, W), tokens "
        "(B, N, C) and frames (B, C, T, H, W) are told apart.",
    r"takes several inputs": "The module joins several inputs. It has a place where a network holds two tensors of one "
                             "shape to be fused, as the U-Net and the FPN do.",
    r"does not fit there": "The module returns another shape than it is given, which what follows in the network does "
                           "not take.",
    r"Proxy object cannot be|symbolically traced variables": "The network chooses in Python by what flows through it, "
                                                             "or loops over it. `torch.fx` cannot record that, with "
                                                             "or without a module.",
    r"8 bits change the output": "Whether a module survives is seen by its effect on the output, and here the rounding "
                                 "to 8 bits, of random weights, is larger. The module is in the graph; what it does "
                                 "cannot be told from the rounding.",
    r"no norm was folded": "The only batch norms are the new module's own, and its graph keeps it whole: they are not "
                           "folded, and the network has none to fold.",
    r"never has a gradient other than zero": "All hidden units of this gate were shut for the random images of the "
                                             "five steps, and ReLU passes no gradient on.",
    r"operator Unfold, input size|'NoneType' object is not subscriptable": "The old exporter cannot write `unfold` of "
                                                                           "a size that it does not know. The new one "
                                                                           "(`dynamo=True`) can.",
    r"EyeLike": "The old exporter writes an operator that onnxruntime lacks for this type. The new one "
                "(`dynamo=True`) does not.",
}


def parted(cell: str) -> tuple[str, str]:
    """Verdict and reason of a cell."""
    verdict, _, why = cell.partition(": ")
    return verdict, why


def explanation(why: str) -> str | None:
    """In words, what an error's sentence means; None where nobody has written it yet."""
    return next((words for pattern, words in EXPLANATIONS.items() if re.search(pattern, why)), None)


def unexplained(data: dict[str, Any]) -> list[str]:
    """Sentences of cells "no" and of refusals that `EXPLANATIONS` does not know, once each."""
    cells = [parted(cell) for row in data["rows"] for cell in row["cells"].values()]
    whys = {why for verdict, why in cells if verdict == NO}
    whys |= {row["refused"] for row in data["rows"] if "refused" in row}
    return sorted(why for why in whys if explanation(why) is None)
