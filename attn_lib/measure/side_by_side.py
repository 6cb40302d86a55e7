"""Compile side by side, time one after the other.

To compile a module takes seconds of one processor; to time it, a fraction of a second of the whole device. So several
processes compile at once, each keeping what it has compiled; when all are done, each in its turn times its own while
the others wait, and nothing disturbs what is measured.
"""

import contextlib
import itertools
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import torch

from .case import Case, prepare, tidy, timed
from .progress import progress
from .records import Row
from .roofline import Ceilings

ONE_COMPILER_EACH = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}


def measure_compiled(planned: Sequence[Case], device: torch.device, limits: Ceilings, *, jobs: int,
                     seconds: float = 0.3, end: float = math.inf) -> Iterator[list[Row]]:
    """The rows of compiled cases, in lists by module, as the turns of the processes have it.

    A process that dies loses its modules and no others; the error stream says so.

    Args:
        planned: cases, all of one size a module.
        device, limits, seconds: as for `case.measure`.
        jobs: processes, each with a context of its own on the device.
        end: of `time.monotonic()`; after it no further module is compiled.
    """
    by_id = itertools.groupby(sorted(planned, key=lambda case: case.id), key=lambda case: case.id)
    shares = [list(own) for _, own in by_id]
    left = itertools.takewhile(lambda _: time.monotonic() < end, progress(shares, "compiling"))
    with _workers(min(jobs, len(shares)), device, limits, seconds) as pipes:
        asking = list(pipes)
        ready: list[Connection] = []
        while asking:
            for pipe in cast("list[Connection]", wait(asking)):
                share = next(left, None) if (alive := _received(pipe)) else None
                if alive:
                    pipe.send(share)
                if share is None:
                    asking.remove(pipe)
                    ready += [pipe] if alive else []
        for pipe in ready:
            with contextlib.suppress(OSError):
                pipe.send("your turn")
            while rows := _received(pipe):
                yield rows
        if len(ready) < len(pipes):
            print(f"{len(pipes) - len(ready)} of {len(pipes)} processes died while they compiled", file=sys.stderr)


@contextlib.contextmanager
def _workers(count: int, *arguments: Any) -> Iterator[list[Connection]]:
    """Pipes to so many processes that run `_work(pipe, *arguments)`; afterwards there are none."""
    context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
    before = {name: os.environ.get(name) for name in ONE_COMPILER_EACH}
    os.environ.update(ONE_COMPILER_EACH)
    workers = []
    pipes: list[Connection] = []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(theirs, *arguments), daemon=True)
            worker.start()
            theirs.close()  # or a worker's death would not end the pipe
            workers.append(worker)
            pipes.append(ours)
        yield pipes
        for worker in workers:
            worker.join(10)  # one that has had its turn ends by itself
    finally:
        for worker in workers:
            worker.terminate()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _received(pipe: Connection) -> Any:
    """What the other side sends; None where it is no more."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _work(pipe: Connection, device: torch.device, limits: Ceilings, seconds: float) -> None:
    """What one process does: compile until there is nothing left, and time it when it is told."""
    held = []
    pipe.send("what is there to compile?")
    while share := _received(pipe):
        passes = itertools.product(share, (False, True))
        held.append([(case, backward, prepare(case, device, backward)) for case, backward in passes])
        tidy(device)
        pipe.send("and now?")
    if not _received(pipe):
        return
    for prepared_share in held:
        rows = []
        for case, backward, prepared in prepared_share:
            if prepared.call is None:  # perhaps for want of memory beside the others
                prepared = prepare(case, device, backward)
            rows.append(timed(prepared, limits, seconds))
        pipe.send(rows)
        tidy(device)
    pipe.send([])
