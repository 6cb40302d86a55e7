"""Random tensors and modules, drawn in one way for every test: in float64, from a seed, far from any special value."""

from typing import TypeVar

import torch
from torch import Tensor, nn

D = torch.float64
Module = TypeVar("Module", bound=nn.Module)


def randn(*shape: int, seed: int = 1) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def randomised(module: Module, *, scale: float = 1.0, seed: int = 0) -> Module:
    """The module in float64 and evaluation mode, every parameter and running statistic drawn anew.

    Nothing is left at zero or one, so that nothing can hide behind an initialisation.

    Args:
        module: changed in place.
        scale: standard deviation of parameters and running means.
        seed: of what is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in module.to(D).eval().state_dict().items():
            if t.is_floating_point():
                drawn = torch.randn(t.shape, generator=generator, dtype=D)
                t.copy_(0.5 + drawn.abs() if name.endswith("running_var") else scale * drawn)
    return module


def permutation(n: int, seed: int = 0) -> Tensor:
    """The numbers from 0 to n − 1 in another order."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order if (order != torch.arange(n)).any() else order.roll(1)
