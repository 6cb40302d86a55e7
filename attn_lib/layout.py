"""The little language that names the axes of tensors: "B C H W", or "B T N C, B 2" for two tensors.

An axis is written as the symbol of its size: B is the batch and C the channels; the others (H, W, T, N, L …) are free,
and whoever makes an input chooses their sizes. `Ho` is the axis H of an output, whose size may differ from the
input's. A number stands for an axis of that size.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property

Axes = tuple[str, ...]

_AXIS = re.compile(r"[A-Z][a-z]*|[1-9][0-9]*")


class Layout(str):
    """Axes of one tensor or several; a string that can be asked about them.

    >>> layout = Layout("B T N C, B 2")
    >>> layout.tensors
    (('B', 'T', 'N', 'C'), ('B', '2'))
    >>> layout.free
    ('T', 'N')
    >>> layout.shapes({"B": 8, "C": 16, "T": 5, "N": 7})
    [(8, 5, 7, 16), (8, 2)]

    Raises:
        ValueError: for anything but capital letters, each perhaps with small ones behind it, and numbers.
    """

    def __new__(cls, text: str) -> "Layout":
        tensors = [part.split() for part in text.split(",")]
        wrong = [axis for axes in tensors for axis in axes if not _AXIS.fullmatch(axis)]
        if wrong or not all(tensors):
            raise ValueError(f"layout={text!r} must name the axes of each tensor, such as 'B C H W' or 'B T N C, B 2'"
                             + (f"; {wrong[0]!r} is no axis" if wrong else ""))
        return super().__new__(cls, ", ".join(map(" ".join, tensors)))

    @cached_property
    def tensors(self) -> tuple[Axes, ...]:
        """The axes of each tensor."""
        return tuple(tuple(part.split()) for part in self.split(","))

    @cached_property
    def free(self) -> Axes:
        """The axes whose size the caller chooses, each once; B, C and numbers are not among them."""
        axes = dict.fromkeys(axis for axes in self.tensors for axis in axes)
        return tuple(axis for axis in axes if axis not in ("B", "C") and not axis.isdigit())

    @property
    def first(self) -> "Layout":
        """The layout of the first tensor."""
        return Layout(" ".join(self.tensors[0]))

    def each(self, axes: str) -> "Layout":
        """As many tensors as here, all with the axes `axes`."""
        return Layout(", ".join([axes] * len(self.tensors)))

    def dim(self, axis: str, tensor: int = 0) -> int:
        """Where an axis of a tensor stands, counted from 0.

        Raises:
            ValueError: if the tensor has no such axis.
        """
        axes = self.tensors[tensor]
        if axis not in axes:
            raise ValueError(f"axis={axis!r} must be one of {', '.join(axes)}")
        return axes.index(axis)

    def shapes(self, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The shape of each tensor, from the size of each axis.

        Raises:
            ValueError: if the size of an axis is missing.
        """
        missing = [axis for axes in self.tensors for axis in axes if not axis.isdigit() and axis not in sizes]
        if missing:
            raise ValueError(f"sizes must name axis {missing[0]} of layout {self!r}; "
                             f"they name {', '.join(sizes) or 'none'}")
        return [tuple(int(axis) if axis.isdigit() else sizes[axis] for axis in axes) for axes in self.tensors]

    def sizes(self, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """The size of each axis, from the shape of each tensor.

        Raises:
            ValueError: if the shapes have other axes, or one axis has two sizes.
        """
        listed = [tuple(shape) for shape in shapes]
        if [len(shape) for shape in listed] != [len(axes) for axes in self.tensors]:
            raise ValueError(f"shapes {listed} must have the axes of layout {self!r}")
        sizes: dict[str, int] = {}
        for axes, shape in zip(self.tensors, listed, strict=True):
            for axis, size in zip(axes, shape, strict=True):
                if sizes.setdefault(axis, int(axis) if axis.isdigit() else size) != size:
                    raise ValueError(f"shapes {listed} give axis {axis} of layout {self!r} two sizes, "
                                     f"{sizes[axis]} and {size}")
        return {axis: size for axis, size in sizes.items() if not axis.isdigit()}


def role(axis: str) -> str:
    """The axis of the input that an axis of the output belongs to: "H" of "Ho"; an axis without "o" is its own."""
    return axis.removesuffix("o")
