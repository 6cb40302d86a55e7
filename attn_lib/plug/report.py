"""What an insertion or a replacement did to a network, and how to take it back."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from ..console import printable
from ..measure import Comparison
from .edits import Edit, revert_all
from .inventory import check
from .probe import Example


@dataclass(frozen=True)
class Site:
    """One place in the network.

    Attributes:
        path: dotted name of the sub-module that the new module follows or replaces, or the name of the merge.
        channels: C there; None where a replacement did not need to know.
        shape: of the tensor there, for the example; None without one.
        calls: how often a forward pass comes by; None without an example.
        params: parameters of the new module.
        name: dotted name of the new module.
    """

    path: str
    channels: int | None
    shape: tuple[int, ...] | None
    calls: int | None
    params: int
    name: str


@dataclass
class Report:
    """What was done to a network.

    Attributes:
        kind: "insert", "replace" or "fuse".
        module: id or name of what was put in.
        sites: where, one row a place.
        params: parameters of the network before and after.
        flops: FLOPs of a forward pass of the example before and after; None without an example.
        change: largest change of an entry of the network's output in eval mode; infinite where the output has
            other shapes now (as that of a detector may) or infinite entries; None without an example, or without a
            tensor to compare.
        scale: largest entry of the output before; None like `change`.
        rounding: changes up to this are rounding: 100 units in the last place of the largest entry.
        tensor: where the output holds several tensors, the number of the one that `change`, `scale` and
            `rounding` are of: the one that changed most by the measure of its own rounding.
        identity: whether the catalog says that a fresh module is the identity; None for others' modules.
        skips: after a fusion, the sub-modules whose output the module takes besides the site's or the first.
        time: the forward pass of "before" and "after", timed in turns, if asked for.
    """

    kind: str
    module: str
    sites: tuple[Site, ...]
    params: tuple[int, int]
    flops: tuple[int, int] | None = None
    change: float | None = None
    scale: float | None = None
    rounding: float | None = None
    tensor: int | None = None
    skips: tuple[str, ...] = ()
    identity: bool | None = None
    time: Comparison | None = None
    _model: nn.Module | None = field(default=None, repr=False)
    _edits: list[Edit] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Take everything out again: modules and `state_dict` keys. A second call does nothing.

        After an insertion the network is as it was, weights trained in between included; a site that was converted
        since stays converted. After a replacement the replaced modules come back as they left.

        Raises:
            ValueError: if a site was changed again since, or what was put there taken out.
        """
        for edit in self._edits:
            if not edit.intact():
                raise ValueError(f"site {edit.path!r} was changed since, or its module taken out; undo what came later "
                                 "first")
        revert_all(self._edits)

    def check(self, model: nn.Module | None = None, *, example: Example = None) -> None:
        """Make sure that everything still stands where it was put, and runs.

        Args:
            model: the network, or what was made of it: a copy, one that was loaded, one within
                `DistributedDataParallel`. By default the network that the report is of.
            example: an input of the network, or a tuple of them; it is passed through in eval mode, and each new module
                must run once for each call of its site.

        Raises:
            ValueError: naming the site.
        """
        check(self._model if model is None else model, self.kind, [(s.path, s.name) for s in self.sites], example)

    @property
    def output(self) -> str:
        """One sentence on the network's output."""
        if self.change is None:
            why = "there was no example" if self.flops is None else "the network returned no tensor"
            return f"not compared: {why}"
        if self.change == 0 and self.identity is False:
            return (f"unchanged, bit for bit, though {self.module} does not start as the identity: what it acts on is "
                    "zero here, or does not reach the output")
        if self.change == 0:
            return "unchanged, bit for bit"
        where = "" if self.tensor is None else f" in tensor {self.tensor} of the output"
        size = f"{self.change:.1e}{where}, largest entry {self.scale:.2g}"
        if self.change <= self.rounding:
            return f"unchanged up to rounding (largest change {size})"
        if self.change != self.change:
            return "not a number somewhere, before or after"
        if self.change == math.inf:
            return "changed: it has other shapes than before, or infinite entries"
        return f"changed (largest change {size}): {self.module} does not start as {self._neutral}"

    @property
    def _neutral(self) -> str:
        return "what it replaces" if self.kind == "replace" else "the identity"

    def summary(self) -> str:
        """The report without times: the same on every machine."""
        places = f"{len(self.sites)} place" + "s" * (len(self.sites) != 1)
        done = {"insert": f"inserted after {places}", "replace": f"put in for {places}",
                "fuse": f"fuses {places}" + f" with {', '.join(self.skips)}" * bool(self.skips)}
        lines = [f"{self.module}: {done[self.kind]}", ""]
        lines += ["  " + line for line in table(
            [("site", "channels", "shape", "calls", "parameters")]
            + [(s.path, _or_dash(s.channels), _or_dash(s.shape), _or_dash(s.calls), f"{s.params:,}")
               for s in self.sites]
        )]
        lines += ["", f"parameters  {_growth(*self.params)}"]
        lines += [f"FLOPs       {_growth(*self.flops)}"] if self.flops else []
        lines.append(textwrap.fill(f"output      {self.output}", 90, subsequent_indent=" " * 12))
        return printable("\n".join(lines))

    def __str__(self) -> str:
        if self.time is None:
            return self.summary()
        before, after = self.time.timings["before"], self.time.timings["after"]
        return printable(f"{self.summary()}\ntime        {before} → {after}, {self.time['after']}")


def _growth(before: int, after: int) -> str:
    relative = f", {(after - before) / before:+.1%}" if before else ""
    return f"{before:,} → {after:,} ({after - before:+,}{relative})"


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)


def table(rows: list[tuple[str, ...]], left: Sequence[int] = (0, 2)) -> list[str]:
    """Names to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) if i in left else cell.rjust(w)
                      for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
