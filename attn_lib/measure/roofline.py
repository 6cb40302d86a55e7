"""What a device can do at most, measured, and how near a call comes to it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch

from ..console import printable
from .timing import device_name, samples

# FLOP per second. A processor without a dtype computes it one number at a time, at every size: no need for a large one.
SLOW = 1e10


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of a device.

    Attributes:
        device: its name.
        bandwidth: bytes per second of a large copy, read and written bytes both counted.
        flop_rate: dtype name ("float32") -> FLOP per second of a large square matrix product, or on a CPU of a 3×3
            convolution where that is faster.
    """

    device: str
    bandwidth: float
    flop_rate: Mapping[str, float]

    def least_seconds(self, flops: int, bytes: int, dtype: str = "float32") -> float:
        """The roofline: no call of so many FLOPs and bytes takes less."""
        return max(flops / self.flop_rate[dtype], bytes / self.bandwidth)

    def __str__(self) -> str:
        rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {dtype}" for dtype, rate in self.flop_rate.items())
        return printable(f"{self.device}: {self.bandwidth / 1e9:.3g} GB/s, {rates}")


@cache
def ceilings(device: str = "cpu") -> Ceilings:
    """Measure the ceilings of a device: once in a process, a few seconds.

    float32 products are true float32 (no TF32), whatever torch's global settings say; so are those of
    `python -m attn_lib.measure`.

    Args:
        device: "cpu", "cuda" or "cuda:1".

    Raises:
        ValueError: if it is another kind of device.
    """
    where = torch.device(device)
    if where.type not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r} must be a CPU or a CUDA device")
    gpu = where.type == "cuda"
    count = 1 << 28 if gpu else 1 << 26  # entries of the copy: far more than a cache holds
    generator = torch.Generator(where).manual_seed(0)
    source = torch.empty(count, device=where).normal_(generator=generator)
    target = torch.empty_like(source)
    # The best sample, not the median: this is about what can be reached.
    bandwidth = 2 * source.numel() * source.element_size() / min(samples(target.copy_, (source,))[0])
    del source, target

    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        for side in (8192,) if gpu else (256, 1024):  # the last is enough for the full rate
            rate = _flop_rate(side, dtype, generator)
            if rate < SLOW:
                break
        rates[str(dtype).removeprefix("torch.")] = rate
    return Ceilings(device_name(where), bandwidth, rates)


def _flop_rate(side: int, dtype: torch.dtype, generator: torch.Generator) -> float:
    where = generator.device
    # Random values: a product of zeros draws less power and runs faster than any real one.
    a, b = torch.empty(2, side, side, device=where).normal_(generator=generator).to(dtype)
    with true_float32():
        rate = 2 * side**3 / min(samples(torch.mm, (a, b))[0])
        if where.type == "cpu":  # products and convolutions come from two libraries; one may be twice as fast
            C, H = side // 4, side // 32
            x, w = a.flatten()[: 4 * C * H * H].view(4, C, H, H), b.flatten()[: 9 * C * C].view(C, C, 3, 3)
            took = min(samples(lambda x, w: torch.conv2d(x, w, padding=1), (x, w))[0])
            rate = max(rate, 2 * w.numel() * 4 * H * H / took)
    return rate


@contextmanager
def true_float32() -> Iterator[None]:
    """Within it, float32 products and convolutions on a GPU are not rounded to TF32.

    By default torch rounds convolutions but not matrix products, so that no single ceiling would be theirs.
    """
    # Not cuda.matmul.allow_tf32: put back to what it was, it can leave torch's settings contradicting each other.
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
