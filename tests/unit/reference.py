"""Packages that hold the same operators by other hands. They are compared with, never used by the library."""

import math
from types import ModuleType

import torch
from torch import Tensor

from attn_lib.measure.counterparts import import_package


def reference(name: str) -> ModuleType:
    """Import a reference package, such as "timm.layers".

    They are part of the test environment (the extra "test"): where one is missing the test fails, and says so.
    """
    return import_package(name)


def wave(*shape: int, f: float) -> Tensor:
    """Numbers by a formula, for a case whose answers were computed elsewhere and are recorded in the test."""
    return torch.sin(f * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)).reshape(shape)
