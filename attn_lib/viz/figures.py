"""A finished figure (a PNG with its alternative text) and the sheet it is drawn on.

Nothing here touches pyplot: a figure belongs to the cell that shows it, is rendered once, and leaves no state.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MatplotlibFigure
from numpy.typing import NDArray
from PIL import Image

from ..console import printable
from . import style

SCALE = 1.5  # device pixels for each CSS pixel: sharp on most screens, half the bytes of 2
DPI = style.CSS_PER_INCH * SCALE

MimeBundle = tuple[dict[str, Any], dict[str, Any]]  # what a notebook shows, and how, by MIME type


@dataclass(frozen=True)
class Figure:
    """A rendered figure. As the last expression of a cell it shows itself.

    Attributes:
        png: the encoded picture, the same bytes on every run.
        title: the question it answers, drawn in the picture.
        alt: the text for readers who do not see it.
        width: width on the page in CSS pixels; the picture itself holds more, for sharp screens.
        height: height on the page in CSS pixels.
    """

    png: bytes = field(repr=False)
    title: str
    alt: str
    width: int
    height: int

    def __post_init__(self) -> None:
        check_texts(self.title, self.alt)

    def __repr__(self) -> str:
        return printable(f"Figure: {self.title}")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> MimeBundle:
        data = {"image/png": base64.b64encode(self.png).decode("ascii"), "text/plain": repr(self)}
        return data, {"image/png": {"alt": self.alt, "width": self.width, "height": self.height}}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the PNG to `path`, whole or not at all."""
        write_file(path, self.png)


class Sheet:
    """What a figure is drawn on: `with sheet as fig:` draws, then `sheet.figure` is the `Figure`.

    Inside the block `fig` is a matplotlib figure in the house style. The title stands at the top left, broken
    into lines where needed; `top` says, in inches, how much height it takes from `height`.

    Args:
        title: the question the figure answers.
        alt: alternative text.
        width: inches.
        height: inches below the title.
        layout: `"constrained"`, or `None` for axes placed by hand.
    """

    def __init__(self, title: str, alt: str, *, height: float, width: float = style.WIDTH,
                 layout: Literal["constrained", "compressed"] | None = "constrained"):
        check_texts(title, alt)
        self.title, self.alt, self.width = title, alt, width
        self._lines = style.wrap(title, width - 0.2, style.TITLE_SIZE, "bold")
        self.top = round((0.16 + 0.21 * len(self._lines)) * DPI) / DPI  # whole pixels keep pictures crisp
        self.height = height + self.top
        self._layout = layout
        self._figure: Figure | None = None

    def __enter__(self) -> MatplotlibFigure:
        self._style = style.house_style()
        self._style.__enter__()
        self._fig = MatplotlibFigure(figsize=(self.width, self.height), dpi=DPI)
        FigureCanvasAgg(self._fig)
        if self._layout:
            bottom = (self.height - self.top) / self.height
            self._fig.set_layout_engine(self._layout, rect=(0, 0, 1, bottom), w_pad=0.06, h_pad=0.06)
        return self._fig

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._fig.text(
                    0.08 / self.width, 1 - 0.1 / self.height, "\n".join(self._lines), size=style.TITLE_SIZE,
                    weight="bold", ha="left", va="top", linespacing=1.25, color=style.INK,
                )
                self._figure = _render(self._fig, self.title, self.alt)
        finally:
            self._style.__exit__(kind, value, traceback)
            del self._fig

    @property
    def figure(self) -> Figure:
        """The finished figure, once the `with` block has ended."""
        if self._figure is None:
            raise RuntimeError("the sheet is still being drawn: read .figure after the with block")
        return self._figure


def check_texts(title: str, alt: str) -> None:
    """Every figure has a title and alternative text.

    Raises:
        ValueError: one of them is not a string or is blank.
    """
    for name, text in (("title", title), ("alt", alt)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name}={text!r} must be a non-empty string")


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write all of it or nothing; others may read it."""
    path = Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=path.suffix, delete=False) as file:
        try:
            file.write(content)
            file.close()
            os.chmod(file.name, 0o644)  # a temporary file is its owner's alone
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def uri(picture: bytes) -> str:
    """A PNG or JPEG file as a data address."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _render(fig: MatplotlibFigure, title: str, alt: str) -> Figure:
    canvas = fig.canvas
    assert isinstance(canvas, FigureCanvasAgg)  # as `Sheet` made it
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    height, width = pixels.shape[:2]
    return Figure(encode_png(pixels), title, alt, round(width / SCALE), round(height / SCALE))


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG of an `(H, W, 3)` uint8 picture with a palette: a third of the bytes, hardly a difference to the eye.

    64 colours for a chart, nearly all of which is paper, ink and a few lines, and 256 for a photograph. A quarter are
    the commonest, which stay exact. Each further one is, at first, the colour that lies farthest from all before it, so
    that no line and no end of a colour bar is left without; then the mean of those it stands for. Common colours count
    more, by the cube root of their number, lest a large photograph take all.
    """
    packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    values, index, counts = np.unique(packed, return_inverse=True, return_counts=True)
    palette = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=-1).astype(np.uint8)
    is_chart = np.sort(counts)[-24:].sum() > 0.9 * counts.sum()
    size = 64 if is_chart else 256
    if len(palette) > size:
        rgb, weight = torch.from_numpy(palette).float(), torch.from_numpy(counts).float() ** (1 / 3)
        exact = size // 4
        chosen = rgb.new_empty(size, 3)
        chosen[:exact] = rgb[np.argsort(-counts, kind="stable")[:exact].copy()]
        away = torch.cdist(rgb, chosen[:exact]).amin(1)  # from the nearest that is chosen
        for k in range(exact, size):
            chosen[k] = rgb[(away * weight).argmax()]
            away = torch.minimum(away, (rgb - chosen[k]).norm(dim=1))
        for _ in range(3):
            nearest = torch.cdist(rgb, chosen).argmin(1)
            total = rgb.new_zeros(size).index_add_(0, nearest, weight)
            mean = rgb.new_zeros(size, 3).index_add_(0, nearest, rgb * weight[:, None]) / total[:, None]
            chosen[exact:] = torch.where(total[:, None] > 0, mean, chosen)[exact:]
        chosen = chosen.round()
        index = torch.cdist(rgb, chosen).argmin(1).numpy()[index]
        palette = chosen.byte().numpy()
    picture = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8))
    picture.putpalette(palette.tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
