"""Models whose answers are known, to test how a task scores them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Answer(nn.Module):
    """Returns `scores` whatever it is given, and insists on being asked in eval mode."""

    def __init__(self, scores: Tensor):
        super().__init__()
        self.scores = scores

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return self.scores


class Says(nn.Module):
    """Answers by a rule, and insists on being asked in eval mode."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, *inputs: Tensor) -> Tensor:
        assert not self.training
        return self.rule(*inputs)


def scores_for(kinds: Tensor, classes: int) -> Tensor:
    """Scores that name these classes, along dimension 1."""
    return F.one_hot(kinds, classes).movedim(-1, 1).float()


def always(kind: int, classes: int, stride: int = 1) -> Callable[[Tensor], Tensor]:
    """The same class everywhere."""
    def rule(x):
        shape = (len(x), *x.shape[2:]) if stride == 1 else (len(x), *(side // stride for side in x.shape[2:]))
        return scores_for(torch.full(shape, kind), classes)

    return rule
