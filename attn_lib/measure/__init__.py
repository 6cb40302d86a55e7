"""What a module costs, how long it takes, what it commutes with, and what was recorded about it.

    cost             parameters, FLOPs, bytes kept for backward, peak memory, least bytes moved
    flops            multiply-adds of a call times two
    saved_bytes      bytes that autograd keeps for the backward pass
    timing           median and spread of one call's time
    compare_timings  several calls timed in turns, as ratios from one run
    best_device      a GPU where there is one, else the CPU
    claim            a sentence on timings, held against what was measured without stopping anything
    fit_exponent     the power with which a cost grows
    symmetries       how far a module is from commuting with each of `catalog.SYMMETRIES`
    ceilings         what the device can do at most: copy bandwidth and matmul rate
    records          recorded measurements of the catalog

`python -m attn_lib.measure` records the whole catalog on this machine.
"""

from .cost import Cost, cost, fit_exponent, flops, saved_bytes
from .records import records
from .roofline import Ceilings, ceilings
from .symmetry import symmetries
from .timing import Comparison, Ratio, Timing, best_device, claim, compare_timings, timing

__all__ = [
    "Ceilings",
    "Comparison",
    "Cost",
    "Ratio",
    "Timing",
    "best_device",
    "ceilings",
    "claim",
    "compare_timings",
    "cost",
    "fit_exponent",
    "flops",
    "records",
    "saved_bytes",
    "symmetries",
    "timing",
]
