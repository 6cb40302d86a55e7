"""What the tests of figures look with: pixels, colours, and records as a device would have left them."""

import io
import itertools

import numpy as np
import torch
from PIL import Image

from attn_lib import viz

SAY = dict(title="What is drawn?", alt="A picture for the test.")
PHOTO = torch.linspace(0, 1, 3 * 20 * 30).reshape(3, 20, 30)


def pixels(figure: viz.Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(figure.png)).convert("RGB")).astype(int)


def near(picture: np.ndarray, colour: str, tolerance: int = 12) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(picture - rgb) <= tolerance).all(-1)


def crop(picture: np.ndarray) -> np.ndarray:
    """The smallest rectangle that holds everything black: a black photograph."""
    rows, cols = np.nonzero(near(picture, "#000002", 8))
    return picture[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]


def recorded(kind: str, flops: int = 10**6, id: str = "se") -> list[dict]:
    device = {"cuda": "Some GPU", "cpu": "Some CPU, 2 threads"}[kind]
    rows = []
    cases = itertools.product((14, 56), ("float32", "bfloat16"), ("eager", "compiled"), (False, True))
    for side, dtype, mode, backward in cases:
        rows.append({
            "id": id, "shapes": [[8, 64, side, side]], "size": [side, side], "dtype": dtype, "mode": mode,
            "backward": backward, "median": side * 1e-6, "iqr": 1e-7, "flops": flops, "min_bytes": side**2 * 4096,
            "roofline": 0.25, "error": None, "kind": kind, "device": device, "torch": "2.13.0", "date": "2026-01-02",
            "bandwidth": 1e12, "flop_rate": {"float32": 1e13, "bfloat16": 1e14},
        })
    return rows
