"""Small real data sets that come inside scikit-learn's wheel, and a seeded split."""

from functools import lru_cache
from typing import overload

import torch
from torch import Tensor

from .packaged import packaged

_Pair = tuple[Tensor, Tensor]


def digits(part: str | None = None) -> tuple[Tensor, Tensor]:
    """Handwritten digits (UCI, the set packaged with scikit-learn).

    Args:
        part: None for all 1797; "train" or "test" for three quarters of them or the rest, always the same.

    Returns:
        Images `(n, 1, 8, 8)`, float32 in [0, 1], and labels `(n,)`, int64 in 0 … 9; fresh tensors at every call.

    Raises:
        ValueError: if there is no such part.
    """
    if part not in (None, "train", "test"):
        raise ValueError(f"part={part!r} must be 'train' or 'test'")
    images, labels = _digits() if part is None else split(*_digits())[part == "test"]
    return images.clone(), labels.clone()


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, Tensor]:
    import numpy as np

    file = packaged("sklearn", "datasets/data/digits.csv.gz", "scikit-learn", known="1.7")
    rows = torch.from_numpy(np.loadtxt(file, delimiter=","))  # 64 pixels and the label
    images = rows[:, :-1].float().view(-1, 1, 8, 8) / 16  # the set counts ink from 0 to 16
    return images, rows[:, -1].long()


@overload
def split(images: Tensor, labels: Tensor, /, *, test: float = ..., seed: int = ...) -> tuple[_Pair, _Pair]: ...
@overload
def split(*tensors: Tensor, test: float = ..., seed: int = ...) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]: ...
def split(
    *tensors: Tensor, test: float = 0.25, seed: int = 0
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Shuffle rows and cut them into a training and a test part.

    Args:
        *tensors: any number of tensors with the same first dimension, for example images and labels.
        test: fraction of rows in the test part, in (0, 1).
        seed: of the shuffle; the same seed gives the same split.

    Returns:
        `(train, test)`: two tuples with one tensor for each given one.

    Raises:
        ValueError: if the tensors differ in length or `test` is outside (0, 1).
    """
    if not tensors:
        raise ValueError("split needs at least one tensor")
    lengths = sorted({len(t) for t in tensors})
    if len(lengths) > 1:
        raise ValueError(f"tensors must share their first dimension, got lengths {lengths}")
    if not 0 < test < 1:
        raise ValueError(f"test={test} must lie strictly between 0 and 1")
    order = torch.randperm(lengths[0], generator=torch.Generator().manual_seed(seed), device="cpu")
    held_out = round(lengths[0] * test)
    return tuple(t[order[held_out:]] for t in tensors), tuple(t[order[:held_out]] for t in tensors)
