"""Explorers to look into, and what is looked with."""

import base64
import functools
import io
import json
import zlib
from html.parser import HTMLParser

import numpy as np
import torch
from PIL import Image

from attn_lib import toys, viz

TEXTS = {"title": "Where does a query look?", "alt": "A photograph under a heat map."}


class Page(HTMLParser):
    """Tags with their attributes, text, and the explorer's data."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.data = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, text):
        if self.lasttag == "script" and self.data is None and self.tags[-1] == ("script", {"type": "application/json"}):
            self.data = json.loads(text)
        elif self.tags[-1][0] not in ("script", "style"):
            self.text.append(text)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def unpack(text: str, dtype) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def texts_of(page: Page) -> list[str]:
    return json.loads(unpack(page.data["texts"], np.uint8).tobytes())


def scale_of(page: Page, panel: int = 0) -> list[tuple[str, ...]]:
    """What stands at the ends of a panel's colours, for each query, or once where it stays."""
    return list(zip(*json.loads(unpack(page.data["panels"][panel]["ends"], np.uint8).tobytes()), strict=True))


def picture_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


@functools.cache
def photo(size: int = 64) -> torch.Tensor:
    return toys.image("astronaut", size=size)


def softmax_rows(*grid: int, seed: int = 0, sharpness: float = 3.0) -> torch.Tensor:
    logits = torch.randn(*grid[:2], grid[2] * grid[3], generator=torch.Generator().manual_seed(seed))
    return (sharpness * logits).softmax(-1).reshape(grid)


def bars(height: float) -> viz.Figure:
    return viz.bars([height, 1.0], title="How tall?", alt=f"Two bars, the first {height} tall.")


def compared(height: float) -> tuple[viz.Figure, str]:
    return bars(height), f"The first bar is {height:g} times as tall as the second."


KINDS = ["attention", "pixels", "points", "frames"]


def all_kinds() -> dict[str, viz.Explorer]:
    ticks = torch.arange(4) * 16.0
    points = torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), -1)[:, :, None]
    return {
        "attention": viz.explore_attention(photo(), softmax_rows(4, 4, 4, 4), **TEXTS),
        "pixels": viz.explore_pixels(photo(), {"x": ticks[:, None] + ticks, "gate": ticks.repeat(4, 1)}, **TEXTS),
        "points": viz.explore_points(photo(), points, **TEXTS),
        "frames": viz.explore_frames(compared, height=[0.5, 2.0], **TEXTS),
    }
