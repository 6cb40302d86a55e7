"""Drawn mechanisms on the site: the SVG stands in the page itself, so that it follows the theme's light and fonts.

In a notebook it is an image, which every viewer shows.
"""

import base64
import re

from docutils import nodes
from sphinx.application import Sphinx

IMAGE = re.compile(r"data:image/svg\+xml;base64,([\w+/=]+)")
PICTURE = re.compile(r"<picture>.*?</picture>", re.DOTALL)


def inline(markup: str) -> str:
    """The markup of a drawing with its SVG in place of images."""

    def elements(picture: re.Match[str]) -> str:
        found = [base64.b64decode(data).decode("utf-8") for data in IMAGE.findall(picture[0])]
        kinds = ("for-phone", "for-page") if len(found) == 2 else ("for-all",)
        return "".join(f'<div class="{kind}">{svg}</div>\n' for kind, svg in zip(kinds, found, strict=True))

    return PICTURE.sub(elements, markup)


def stand_in_the_page(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for drawing in doctree.findall(lambda node: isinstance(node, nodes.raw) and "attn-drawing" in node.astext()):
        drawing.children = [nodes.Text(inline(drawing.astext()))]


def setup(app: Sphinx) -> dict[str, object]:
    app.connect("doctree-resolved", stand_in_the_page)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
