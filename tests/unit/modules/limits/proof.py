"""What every module becomes when a knob is turned to its end. Each identity is exact.

The catalog states these limits (`Entry.reduces_to`), and the family map of the book draws them. Here each is proven,
a file for each family, in a few lines that read like a page of the book: a module is drawn with random weights in
float64, one knob is turned, and the known operation stands beside it, written in the plainest way.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import attn_lib
from tests.unit.draw import randomised

PROVEN: set[tuple[str, str]] = set()


def limit(id: str, becomes: str) -> Callable:
    """Marks a test as the proof of `attn_lib.entry(id).reduces_to[becomes]`."""

    def enter(test: Callable) -> Callable:
        assert (id, becomes) not in PROVEN, f"{id} → {becomes} is proven twice"
        PROVEN.add((id, becomes))
        return pytest.mark.module(id)(test)

    return enter


def every_limit_is_proven(family: str) -> Callable:
    """The test that what a family's entries state and what its file proves are the same."""

    @pytest.mark.parametrize("id", attn_lib.list_modules(family))
    def test(id: str) -> None:
        stated = set(attn_lib.entry(id).reduces_to)
        assert stated, f"{id} states no limit; every module has at least one"
        proven = {becomes for module, becomes in PROVEN if module == id}
        missing = sorted(stated - proven)
        assert not missing, f'reduces_to states {missing}: prove it in test_{family}.py, under @limit("{id}", …)'
        assert proven <= stated, f"proven here, and not stated in reduces_to: {sorted(proven - stated)}"

    return test


def drawn(id: str, **options) -> nn.Module:
    """A module whose parameters and statistics are all random, in float64 and evaluation mode, without gradients."""
    return randomised(attn_lib.create(id, **options), scale=0.5).requires_grad_(False)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Self-attention of tokens (B, N, d), every pair computed."""
    A = (scale * torch.einsum("Bid,Bjd->Bij", q, k)).softmax(-1)
    return torch.einsum("Bij,Bjd->Bid", A, v)


def tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, HW, C)"""
    return x.flatten(2).transpose(1, 2)
