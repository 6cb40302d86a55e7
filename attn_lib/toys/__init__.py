"""Packaged pictures, small real data sets, small tasks and a short training loop. Nothing here uses the network.

Each task lives in a file of its own, named for what the task is: `from attn_lib.toys import lamplit_digits`.
"""

from .data import digits, split
from .images import image, image_names
from .train import Comparison, History, accuracy, compare, fit, seeded

__all__ = [
    "Comparison",
    "History",
    "accuracy",
    "compare",
    "digits",
    "fit",
    "image",
    "image_names",
    "seeded",
    "split",
]
