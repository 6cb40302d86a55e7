"""What each squeeze can see: every module of the channel family on the family's tasks, trained and recorded.

    python -m book.tools.squeezes        (make squeezes)

Writes book/squeezes.json, from which the page is made, row by row: a run that is interrupted goes on where it ended,
as long as the library has not changed. A record as `book.tools.record` keeps it, with rows such as

    {"task": "calm_digits", "module": "srm", "tells": 0.31, "scores": [0.96, …], "loss": [[2.3, …], …], "run": 0}

`module` is "none" for the network with nothing in the module's place, and "told" for the same network where the answer
to what the module is asked was given away: the best that a module can help to. `scores` and `loss` have one entry a
seed; of the loss, means over equal parts of the training are kept. `tells` is how far the module's output is apart, as
a share of its size, for two maps that differ in the cue alone: the largest over maps and random weights; null for
tasks that have no such pairs. `refused` is why a module does not fit, and such a row has no scores.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attn_lib import tasks, toys
from attn_lib.measure.progress import progress
from attn_lib.measure.records import stamp
from attn_lib.toys.train import answers
from book.tools.record import Key, load, replace, up_to_date, write

FILE = Path(__file__).parents[1] / "squeezes.json"
KEY = ("task", "module")
NONE, TOLD = "none", "told"
SEEDS = (0, 1, 2)
POINTS = 24  # of a curve
EXACT = 1e-5  # what is told apart by less is rounding

# The family's tasks, and what alone tells their two cases apart. The order is that of the page.
TASKS = {
    "lamplit_digits": "colour, on average",
    "brighter_digits": "which channels are brighter, at exposures never seen",
    "calm_digits": "contrast of each channel",
    "sidelit_digits": "where it is bright, above or below",
    "twin_digits": "likeness of two channels",
    "speck_digits": "a few pixels' pattern over the channels",
    "spectral_lines": "which neighbours are strong",
    "noise_channels": "nothing: which channels are worth keeping never changes",
    "scaled_digits": "size of what is shown",
}

# What the gate of a channel depends on.
READS = {
    "se": "the means of all channels",
    "eca": "the means of this channel and its neighbours in number",
    "fca": "one frequency of each channel, the mean among them",
    "gsop": "how each channel varies with each other one",
    "srm": "mean and standard deviation of this channel",
    "gct": "the norm of this channel beside those of the others",
    "encnet": "how pixels lie about learned codewords, wherever they are",
    "soca": "the root of how channels vary with each other, averaged over a row",
    "nam": "the pixel itself, against the mean of its channel in training",
    "epsa": "the means of what kernels of several sizes make of the channels",
}


def plan() -> list[Key]:
    """All rows, in the order of the page."""
    return [(task, module) for task in TASKS for module in (NONE, *READS, TOLD)
            if module != TOLD or tasks.task(task).told]


def run(task: str, module: str) -> dict[str, Any]:
    """One row: trained with three seeds, and looked at before."""
    row: dict[str, Any] = {"task": task, "module": module}
    entry, made = tasks.task(task), None if module in (NONE, TOLD) else module
    try:
        if made:
            row["tells"] = told_apart(task, made)
        data = entry.told() if module == TOLD else None
        found = tasks.compare(entry, {module: made}, seeds=SEEDS, data=data)
    except ValueError as error:
        return {"task": task, "module": module, "refused": str(error)}
    return {**row, "scores": [round(score, 4) for score in found.scores[module]],
            "loss": [shortened(loss) for loss in found.loss[module]]}


def told_apart(task: str, module: str) -> float | None:
    """How far the module's outputs on the display are apart for maps that differ in the cue alone, in [0, 2].

    With random weights, also where a module starts as the identity; the largest of several weights and maps, because
    what is blind is so with any.
    """
    pairs = getattr(import_module(f"attn_lib.tasks.{task}"), "pairs", None)
    if pairs is None:
        return None
    maps, *_ = pairs(16)
    return max(_apart(task, module, maps, seed) for seed in range(4))


@torch.no_grad()
def _apart(task: str, module: str, maps: Tensor, seed: int) -> float:
    with toys.seeded(seed):
        net = tasks.task(task).network(module)
        for parameter in net[0].parameters():
            nn.init.normal_(parameter)
    a, b = (answers(net[:2], maps[:, case]).double() for case in (0, 1))
    apart = (a - b).flatten(1).norm(dim=1) / (a.flatten(1).norm(dim=1) + b.flatten(1).norm(dim=1)) * 2
    return round(apart.max().item(), 6)


def shortened(loss: Sequence[float]) -> list[float]:
    """Means over `POINTS` equal parts."""
    edges = [round(k * len(loss) / POINTS) for k in range(POINTS + 1)]
    return [round(sum(loss[a:b]) / (b - a), 3) for a, b in pairwise(edges) if b > a]


def share(row: dict[str, Any], task: str, told: float | None) -> float:
    """How much of the way from chance to the best possible a row's mean score goes; not cut to [0, 1]."""
    entry = tasks.task(task)
    mean, best = sum(row["scores"]) / len(row["scores"]), 1.0 if told is None else told
    return (mean - entry.chance) / (best - entry.chance)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m book.tools.squeezes", description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS], metavar="ID")
    every = [NONE, *READS, TOLD]
    parser.add_argument("--modules", nargs="+", choices=every, default=every, metavar="ID")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    options = parser.parse_args(arguments)
    order, data = plan(), load(options.out)
    now = {key: value for key, value in stamp(torch.device("cpu")).items() if key != "kind"}
    done = up_to_date(data, now, KEY)
    left = [key for key in order if key not in done and key[0] in options.tasks and key[1] in options.modules]
    try:
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn"), _one_thread) as pool:
            for row in _completed(pool, left):
                data = replace(data, row, now, order, KEY)
                write(data, options.out)
    except KeyboardInterrupt:
        print(f"\ninterrupted: what was finished is in {options.out}; the same command goes on", file=sys.stderr)
        return 130
    return 0


def _one_thread() -> None:
    torch.set_num_threads(1)


def _completed(pool: ProcessPoolExecutor, keys: list[Key]) -> Iterator[dict[str, Any]]:
    futures = [pool.submit(run, *key) for key in keys]
    try:
        for _, future in zip(progress(keys, "rows"), as_completed(futures), strict=True):
            yield future.result()
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


if __name__ == "__main__":
    sys.exit(main())
