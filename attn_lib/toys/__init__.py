"""Packaged pictures, small real data sets and a short training loop. Nothing here uses the network."""

from .data import digits, split
from .detection import detection_set
from .images import image, image_names
from .train import History, Scores, accuracy, compare, fit, seeded

__all__ = [
    "History",
    "Scores",
    "accuracy",
    "compare",
    "detection_set",
    "digits",
    "fit",
    "image",
    "image_names",
    "seeded",
    "split",
]
