"""Running rows of the matrix, and keeping what came out."""

import logging
import re
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import torch

from attn_lib.measure.records import stamp as stamp_of_measurements
from book.tools.networks import NO, NONE, YES, parted
from tests.networks.networks import NETWORKS
from tests.networks.uses import USES, Case, NothingToDo, NotInstalled

Row = dict[str, Any]
PACKAGES = ("timm", "torchvision", "onnx", "onnxscript", "onnxruntime", "ultralytics")
ALONE = "the network alone does not either: "


def run(network: str, module: str | None, alone: Mapping[str, str] | None = None) -> Row:
    """One row: a network with a module in it, put to every use; what fails is noted.

    Args:
        network: name of the network.
        module: id of the module; None for the network alone.
        alone: cells of the network alone; what it cannot do is not tried with a module.
    """
    row: Row = {"network": network, "module": module, "cells": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            case = Case(NETWORKS[network], module)
        except Exception as error:
            return {**row, "refused": sentence(error)}
        for name, use in USES.items():
            verdict, why = parted((alone or {}).get(name, YES))
            cell = f"{verdict}: {why if why.startswith(ALONE) else ALONE + why}" if verdict == NO else None
            cell = cell or verdict_of(use, case)
            if cell:
                row["cells"][name] = cell
    return row


def verdict_of(use: Callable[[Case], None], case: Case) -> str | None:
    """A cell; None where a package is missing."""
    torch.manual_seed(0)
    try:
        use(case)
    except NotInstalled:
        return None
    except NothingToDo as reason:
        return f"{NONE}: {reason}"
    except Exception as error:
        return f"{NO}: {sentence(error)}"
    return YES


def sentence(error: BaseException) -> str:
    """What went wrong, in a line that is the same on every machine: no colours, addresses, folders or line numbers."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()
    text = next((line.strip() for line in text.splitlines() if line.strip()), "")
    text = re.sub(r"0x[0-9a-f]+", "…", text)
    text = re.sub(r"(?:/[\w.+-]+){2,}/", "…/", text)
    return f"{type(error).__name__}: {text if len(text) <= 240 else text[:239] + '…'}".removesuffix(": ")


def quietly() -> None:
    """In every worker: one thread, and no talk of torch and onnxruntime about what it finds on its way."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)


def stamp() -> dict[str, Any]:
    """What the rows of a run depend on besides the network and the module."""
    found = stamp_of_measurements(torch.device("cpu"))
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {key: found[key] for key in ("torch", "python", "date", "commit", "dirty")} | versions


def changes(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What became worse and what became better, a sentence each."""

    def cells(data: dict[str, Any]) -> dict[tuple[str, str, str], str]:
        found = {}
        for row in data["rows"]:
            there = f"{NO}: {row['refused']}" if "refused" in row else YES
            for use, cell in [*row["cells"].items(), ("being there", there)]:
                found[row["network"], row["module"] or "nothing", use] = cell
        return found

    then, now = cells(before), cells(after)
    worse, better = [], []
    for key in [key for key in now if key in then]:
        failed, fails = (parted(cell)[0] == NO for cell in (then[key], now[key]))
        if failed != fails:
            (worse if fails else better).append(f"{', '.join(key)}: {now[key]}")
    return worse, better
