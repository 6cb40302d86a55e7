"""How long a call takes, measured so that the number means something.

On a CPU, `torch.utils.benchmark` times blocks of calls after a warm-up. On a GPU, events on the device's own
clock surround each call. Before each, a buffer larger than the last-level cache is overwritten: the inputs
come from memory, as in a large network, and while the device is busy with that the host issues the call, so
that the number is the device's time and not Python's. Python's share is reported beside it.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import Timer

from ..console import printable
from .call import (
    Arguments,
    Inputs,
    as_inputs,
    device_of,
    has_numbers,
    map_tensors,
    one_step,
    state,
    tensors,
    unchanged,
)

FEWEST = 7  # samples behind every median


@dataclass(frozen=True)
class Timing:
    """Time of one call.

    Attributes:
        median: in seconds.
        iqr: distance between the quartiles, in seconds: half of all samples lie within.
        repeats: number of samples behind the median.
        device: what it ran on ("CPU, 2 threads", or the GPU's name).
        host: on a GPU, seconds that Python needs to issue the call. Where this exceeds the median, the device
            waits for Python when the call runs alone; `torch.compile` or a CUDA graph shortens the wait.
            None on a CPU.
    """

    median: float
    iqr: float
    repeats: int
    device: str
    host: float | None = None

    def __str__(self) -> str:
        factor, unit = _unit(self.median)
        middle, spread = self.median * factor, self.iqr / 2 * factor
        digits = 2 if middle < 9.995 else 1 if middle < 99.95 else 0  # three figures
        return printable(f"{middle:.{digits}f} {unit} ± {spread:.{digits}f} ({self.device})")


@dataclass(frozen=True)
class Ratio:
    """How many times longer one call takes than another: median and distance of the quartiles."""

    median: float
    iqr: float

    def __str__(self) -> str:
        return printable(f"× {self.median:.2f} ± {self.iqr / 2:.2f}")


@dataclass(frozen=True)
class Comparison:
    """Calls timed in turns in one run.

    Attributes:
        baseline: label of the first call, to which the others are compared.
        timings: label -> `Timing`.
        ratios: label -> `Ratio` to the baseline, formed within each round.
    """

    baseline: str
    timings: Mapping[str, Timing]
    ratios: Mapping[str, Ratio]

    def __getitem__(self, label: str) -> Ratio:
        return self.ratios[label]

    def __str__(self) -> str:
        width = max(map(len, self.timings))
        rows = [f"{label:<{width}}  {self.ratios[label]}  {timing}" for label, timing in self.timings.items()]
        return printable("\n".join(rows))


def best_device() -> torch.device:
    """A GPU where torch has one, else the CPU: where a reader wants to know how long something takes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def timing(fn: Callable[..., Any], inputs: Inputs = (), *, backward: bool = False, seconds: float = 0.3,
           device: torch.device | None = None) -> Timing:
    """Median and spread of the time of `fn(*inputs)`.

    Args:
        fn: a module, in the mode (train or eval) it is in, or any function of tensors. Buffers, gradients and
            the random state are put back afterwards.
        inputs: the arguments; a lone tensor counts as one argument, a dictionary holds them by name.
        backward: time a forward and a backward pass (to inputs and parameters) rather than a forward pass
            without gradients.
        seconds: how long to measure, warm-up not counted; a few samples are taken however long they last.
        device: where to; copies of module and inputs are made there. By default, where they lie.

    Raises:
        ValueError: if inputs and parameters are not real tensors on a CPU or a CUDA device, or nothing has a gradient.
    """
    fn, inputs = _placed(fn, as_inputs(inputs), device)
    taken, host = samples(fn, inputs, backward=backward, seconds=seconds)
    return _summary(taken, device_of(fn, inputs), host)


def samples(fn: Callable[..., Any], inputs: Arguments, *, backward: bool = False,
            seconds: float = 0.3) -> tuple[list[float], float | None]:
    """The samples behind a `Timing`, and its `host`; arguments as for `timing`."""
    if not seconds > 0:
        raise ValueError(f"seconds={seconds!r} must be a positive number")
    device = _timed_device(fn, inputs)
    with unchanged(fn), torch.set_grad_enabled(backward):
        step = one_step(fn, inputs, backward)
        if device.type == "cpu":
            return _cpu_samples(step, seconds), None
        watch = _stopwatch(step, device)
        watch()
        taken: list[float] = []
        start = time.perf_counter()
        while len(taken) < FEWEST or time.perf_counter() - start < seconds:
            taken.append(watch())
        return taken, watch.host


def compare_timings(calls: Mapping[str, tuple[Callable[..., Any], Any]], *, backward: bool = False, rounds: int = 15,
                    device: torch.device | None = None) -> Comparison:
    """Time several calls in turns, so that whatever slows the machine down slows all of them.

    Args:
        calls: label -> (function or module, its inputs). The first is the baseline.
        backward: as for `timing`.
        rounds: how often each call has its turn; every other round goes through them backwards.
        device: as for `timing`.

    Returns:
        Timings, and ratios to the baseline formed round by round.

    Raises:
        ValueError: if there is nothing to compare, `rounds` is below 3, or a device is not supported.
    """
    if not calls:
        raise ValueError("calls={} must hold at least one call")
    if rounds < 3:
        raise ValueError(f"rounds={rounds} must be at least 3")
    placed = {label: _placed(fn, as_inputs(inputs), device) for label, (fn, inputs) in calls.items()}
    with ExitStack() as stack:
        # One entry per module: the state to return to is the one before anything ran.
        stack.enter_context(unchanged(*dict.fromkeys(fn for fn, _ in placed.values())))
        stack.enter_context(torch.set_grad_enabled(backward))
        devices, watches = {}, {}
        for label, (fn, inputs) in placed.items():
            devices[label] = _timed_device(fn, inputs)
            watches[label] = _stopwatch(one_step(fn, inputs, backward), devices[label])
        rows: dict[str, list[float]] = {label: [] for label in calls}
        for turn in range(rounds):
            for label in list(calls)[:: -1 if turn % 2 else 1]:
                rows[label].append(watches[label]())
    baseline = next(iter(calls))
    timings, ratios = {}, {}
    for label, taken in rows.items():
        timings[label] = _summary(taken, devices[label], watches[label].host)
        ratios[label] = Ratio(*_median_iqr([a / b for a, b in zip(taken, rows[baseline], strict=True)]))
    return Comparison(baseline, timings, ratios)


UNLIKE = "Not on this machine, or not while it is as busy as now: "


def claim(holds: bool, what: str) -> None:
    """Hold a sentence on timings against the numbers that were just measured, and go on whatever comes of it.

    An assertion would stop a notebook on a machine where the sentence does not hold, or that is busy. Here the reader
    is told, and the cell's own output shows by how much. A claim that holds says nothing.

    Args:
        holds: whether it does, such as `race["CBAM"].median > 2`.
        what: the sentence, such as "CBAM takes more than twice SE's time".
    """
    if not holds:
        print(printable(f"{UNLIKE}{what}."))


def _placed(fn: Callable[..., Any], inputs: Arguments, device: torch.device | None
            ) -> tuple[Callable[..., Any], Arguments]:
    """The call on a device: itself where it lies there, else copies of its module and inputs."""
    if device is None:
        return fn, inputs
    if isinstance(fn, nn.Module) and any(t.device.type != device.type for t in state(fn)):
        fn = copy.deepcopy(fn).to(device)
    return fn, map_tensors(lambda t: t.detach().to(device).requires_grad_(t.requires_grad), inputs)


def device_name(device: torch.device) -> str:
    """What a reader calls the device: "CPU, 2 threads", or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def _cpu_timer(step: Callable[[], Any]) -> Timer:
    """By the plain clock: torch's own would wait for a GPU that has no part in this, and start it up."""
    return Timer("step()", timer=time.perf_counter, globals={"step": step}, num_threads=torch.get_num_threads())


def _cpu_samples(step: Callable[[], Any], seconds: float) -> list[float]:
    timer = _cpu_timer(step)
    step()  # the first call allocates and picks algorithms
    while True:
        blocks = timer.blocked_autorange(min_run_time=seconds)
        if len(blocks.raw_times) >= FEWEST:
            return [t / blocks.number_per_run for t in blocks.raw_times]
        seconds = max(2 * seconds, FEWEST * statistics.median(blocks.raw_times))  # a call that lasts long


def _timed_device(fn: Callable[..., Any], inputs: Arguments) -> torch.device:
    device, all_tensors = device_of(fn, inputs), [*tensors(inputs), *state(fn)]
    for other in [device, *(t.device for t in all_tensors)]:
        if other.type not in ("cpu", "cuda"):
            raise ValueError(f"device={other} must be a CPU or a CUDA device to be timed")
    if not all(map(has_numbers, all_tensors)):
        raise ValueError("inputs and parameters must be real tensors to be timed: with fake ones nothing is computed")
    return device


def _stopwatch(step: Callable[[], Any], device: torch.device) -> "_CPUStopwatch | _CUDAStopwatch":
    return _CUDAStopwatch(step, device) if device.type == "cuda" else _CPUStopwatch(step)


class _CPUStopwatch:
    """One sample at a time: the mean over a block of calls long enough for the clock."""

    host = None
    block_seconds = 5e-3

    def __init__(self, step: Callable[[], Any]):
        self.timer = _cpu_timer(step)
        once = self.timer.timeit(1).mean
        self.block = max(1, math.ceil(self.block_seconds / once))

    def __call__(self) -> float:
        return self.timer.timeit(self.block).mean


class _CUDAStopwatch:
    """One sample at a time: device time of one call whose inputs are not in the cache."""

    def __init__(self, step: Callable[[], Any], device: torch.device):
        self.step, self.device = step, device
        self.stream = torch.cuda.current_stream(device)
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        self.scratch = torch.empty(max(4 * cache, 256 << 20), dtype=torch.int8, device=device)
        for _ in range(3):  # libraries load, algorithms are picked, clocks rise
            step()
        self.host = statistics.median(self._issue() for _ in range(5))
        # Enough overwriting to keep the device busy until the host has issued the whole call.
        self.flushes = 1
        once = min(self._span(self.scratch.zero_) for _ in range(5))
        self.flushes = min(200, 1 + math.ceil(2 * self.host / once))

    def __call__(self) -> float:
        return self._span(self.step)

    def _issue(self) -> float:
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start

    def _span(self, call: Callable[[], Any]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(self.flushes):
            self.scratch.zero_()
        begin.record(self.stream)
        call()
        end.record(self.stream)
        end.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds * 1e-3


def _summary(taken: list[float], device: torch.device, host: float | None) -> Timing:
    median, iqr = _median_iqr(taken)
    return Timing(median, iqr, len(taken), device_name(device), host)


def _median_iqr(taken: list[float]) -> tuple[float, float]:
    low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
    return middle, high - low


def _unit(seconds: float) -> tuple[float, str]:
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1:
            return factor, unit
    return 1e9, "ns"
