"""Real photographs that come inside scikit-image's wheel: no download, no cache, no network.

`skimage.data` also lists pictures that it fetches from the internet on first use. They are left out on purpose, and
the files are read from the package's folder rather than through `skimage.data`, whose loaders may try the network.
"""

from collections.abc import Iterable
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .packaged import packaged

# name -> file in skimage/data. Grey pictures are returned with three equal channels.
PHOTOGRAPHS = {
    "astronaut": "astronaut.png",  # 512 x 512, colour
    "brick": "brick.png",  # 512 x 512, grey
    "camera": "camera.png",  # 512 x 512, grey
    "cat": "chelsea.png",  # 300 x 451, colour
    "cells": "ihc.png",  # 512 x 512, colour: stained tissue under a microscope
    "clock": "clock_motion.png",  # 300 x 400, grey, blurred by motion
    "coffee": "coffee.png",  # 400 x 600, colour
    "coins": "coins.png",  # 303 x 384, grey
    "grass": "grass.png",  # 512 x 512, grey
    "gravel": "gravel.png",  # 512 x 512, grey
    "hubble": "hubble_deep_field.jpg",  # 872 x 1000, colour
    "moon": "moon.png",  # 512 x 512, grey
    "motorcycle": "motorcycle_left.png",  # 500 x 741, colour
    "page": "page.png",  # 191 x 384, grey: a scanned page
    "retina": "retina.jpg",  # 1411 x 1411, colour: the back of an eye
    "rocket": "rocket.jpg",  # 427 x 640, colour
    "text": "text.png",  # 172 x 448, grey: printed words
}
COLOUR = ("astronaut", "cat", "cells", "coffee", "hubble", "motorcycle", "retina", "rocket")


def image(name: str, size: int | tuple[int, int] | None = None) -> Tensor:
    """A packaged photograph as a tensor.

    Args:
        name: one of `image_names()`.
        size: `None` keeps the photograph as it is; an integer gives a square; `(H, W)` gives that size. The largest
            centred window of the wanted aspect ratio is cut out and resized with antialiasing, so nothing is
            stretched.

    Returns:
        `(3, H, W)`, float32 in [0, 1]; a fresh tensor at every call. Grey photographs have three equal channels.

    Raises:
        ValueError: for an unknown name (the message lists the names) or a size that is not made of positive integers.
    """
    if name not in PHOTOGRAPHS:
        raise ValueError(f"name={name!r} is not a packaged photograph: choose one of {', '.join(PHOTOGRAPHS)}")
    if size is None:
        return _read(name).clone()
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Iterable) else ()
    if len(pair) != 2 or not all(isinstance(n, int) and n >= 1 for n in pair):
        raise ValueError(f"size={size} must be a positive integer or a pair (H, W) of them")
    return _resized(name, *pair).clone()


def image_names(colour: bool | None = None) -> list[str]:
    """Names that `image` knows: all, only the colour photographs (`True`) or only the grey ones (`False`)."""
    return [name for name in PHOTOGRAPHS if colour is None or (name in COLOUR) is colour]


def cut(photographs: Iterable[Tensor], size: tuple[int, int], step: int) -> Tensor:
    """All windows of photographs that lie whole numbers of steps apart, photograph by photograph, row by row.

    Args:
        photographs: `(3, H, W)` each, of any sizes.
        size: height and width of a window.
        step: pixels from one window to the next, in both directions.

    Returns:
        `(n, 3, *size)`
    """
    h, w = size
    return torch.cat([rearrange(photograph.unfold(1, h, step).unfold(2, w, step), "C i j y x -> (i j) C y x")
                      for photograph in photographs])


@cache
def _read(name: str) -> Tensor:
    import numpy as np
    from PIL import Image

    with Image.open(packaged("skimage", f"data/{PHOTOGRAPHS[name]}", "scikit-image", known="0.25")) as photograph:
        pixels = torch.from_numpy(np.array(photograph)).float() / 255
    if pixels.dim() == 2:
        pixels = pixels[:, :, None].expand(-1, -1, 3)
    return pixels[:, :, :3].permute(2, 0, 1).contiguous()


@lru_cache(maxsize=64)
def _resized(name: str, height: int, width: int) -> Tensor:
    full = _read(name)
    H, W = full.shape[1:]
    scale = min(H / height, W / width)  # the largest window with the wanted aspect ratio
    h, w = round(height * scale), round(width * scale)
    top, left = (H - h) // 2, (W - w) // 2
    window = full[None, :, top : top + h, left : left + w]
    small = F.interpolate(window, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return small[0].clamp(0, 1)
