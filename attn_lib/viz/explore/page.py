"""What an explorer gives a notebook: self-contained HTML, a picture, and widgets where a kernel is running."""

from __future__ import annotations

import base64
import functools
import html
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ...console import printable
from ..figures import MimeBundle, uri, write_file
from .live import kernel_with_widgets

BUDGET = 250_000  # bytes of one explorer in a notebook, all formats together; a whole notebook stays under 500 kB


@dataclass(frozen=True)
class Explorer:
    """An interactive figure. As the last expression of a cell it shows itself.

    Attributes:
        html: self-contained HTML, the same bytes on every run; several explorers may stand on one page.
        png: the picture for viewers without HTML.
        title: the question it answers.
        alt: the text for readers who do not see it.
        widget: builds the ipywidgets version; called when a kernel shows the explorer.
    """

    html: str = field(repr=False)
    png: bytes = field(repr=False)
    title: str
    alt: str
    widget: Callable[[], Any] = field(repr=False)

    def __post_init__(self) -> None:
        if self.size > BUDGET:
            raise ValueError(
                f"the explorer {self.title!r} takes {self.size // 1000} kB; the budget is {BUDGET // 1000} kB: "
                "use a coarser grid, fewer panels or frames, or smaller pictures"
            )

    @property
    def size(self) -> int:
        """Bytes the explorer takes in a stored notebook."""
        return len(self.html) + len(base64.b64encode(self.png))

    def __repr__(self) -> str:
        return printable(f"Explorer: {self.title}")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> MimeBundle:
        data: dict[str, Any] = {
            "text/html": self.html,
            "image/png": base64.b64encode(self.png).decode("ascii"),
            "text/plain": repr(self),
        }
        if kernel_with_widgets():  # Jupyter prefers this one; `make execute` does not store it
            view = {"version_major": 2, "version_minor": 0, "model_id": self.widget().model_id}
            data["application/vnd.jupyter.widget-view+json"] = view
        return data, {"image/png": {"alt": self.alt}}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a page that holds this explorer alone to `path`, whole or not at all."""
        head = (
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(self.title)}</title>\n"
        )
        write_file(path, (head + self.html).encode("utf-8"))


def markup(kind: str, title: str, image: str, text: str, data: Mapping[str, Any]) -> str:
    """The HTML of an explorer.

    Args:
        kind: "attention", "pixels", "points" or "frames".
        title: the question, shown as the caption.
        image: the `<img>` shown until explorer.js takes over, and for good where it cannot.
        text: the line below it.
        data: what explorer.js reads; its numbers and strings are escaped here.
    """
    packed = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # so that no "</script>" ends it early
    text = (
        f"{style_tag()}"
        f'<figure class="attn-explorer" data-kind="{kind}" data-state="stored" aria-label="{html.escape(title)}" '
        f'data-lm-suppress-shortcuts="true">\n'  # JupyterLab then leaves the arrow keys to the explorer
        f"<figcaption>{html.escape(title)}</figcaption>\n"
        f'<div class="ax-stage">{image}</div>\n'
        f'<output aria-live="polite">{html.escape(text)}</output>\n'
        f'<script type="application/json">{packed}</script>\n'
        f"</figure>\n{script_tag()}"
    )
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")  # reads the same whatever the page's encoding


def img(picture: bytes, alt: str, width: int) -> str:
    """An `<img>` that carries its picture, `width` CSS pixels wide where there is room."""
    return f'<img src="{uri(picture)}" alt="{html.escape(alt)}" width="{width}" style="max-width: 100%">'


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """A photograph, encoded."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def png(picture: Image.Image, colours: int | None = None) -> bytes:
    """The picture without loss, or with a palette of `colours`."""
    if colours is not None:
        picture = picture.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def style_tag() -> str:
    """What every explorer of a notebook carries; the book's pages load it once instead."""
    return f"<style>\n{asset('explorer.css')}</style>\n"


def script_tag() -> str:
    """What every explorer of a notebook carries; the book's pages load it once instead."""
    return f"<script>\n{asset('explorer.js')}</script>\n"


@functools.cache
def asset(name: str) -> str:
    """`explorer.css` or `explorer.js` without indentation and comments, as it stands in every explorer."""
    text = Path(__file__).with_name(name).read_text(encoding="ascii")
    text = re.sub(r"\s*/\*.*?\*/|(?m:(^|  )// .*$)", "", text, flags=re.DOTALL if name.endswith("css") else 0)
    return "".join(f"{line.strip()}\n" for line in text.splitlines() if line.strip())
