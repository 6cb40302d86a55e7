"""Packaged pictures, small real data sets and a short training loop. Nothing here uses the network."""

from .data import digits, split
from .detection import detection_set, read_detection_set, share_found
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
    "read_detection_set",
    "seeded",
    "share_found",
    "split",
]
