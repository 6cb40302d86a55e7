"""A chapter opens with its drawing.

What the one code cell tagged `opening` shows stands once more under the chapter's first paragraph, as a figure whose
caption leads to the place where it is explained.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

logger = logging.getLogger(__name__)


class OpenWithDrawing(SphinxPostTransform):
    """Runs after MyST-NB has chosen between the forms of an output (4), and before it folds cells (199)."""

    default_priority = 150
    formats = ("html",)

    def run(self, **kwargs) -> None:
        cells = [cell for cell in self.document.findall(nodes.container) if "tag_opening" in cell["classes"]]
        if not cells:
            return
        if len(cells) > 1:
            logger.warning("%d cells are tagged `opening`; a chapter opens with one", len(cells), location=cells[1])
        pictures = shown(cells[0])
        start = next(self.document.findall(nodes.section))
        first = next((child for child in start.children if isinstance(child, nodes.paragraph)), None)
        if not pictures or first is None:
            logger.warning("the cell tagged `opening` shows no picture, or no paragraph comes first",
                           location=cells[0])
            return
        place = cells[0].parent
        while not isinstance(place, nodes.section):
            place = place.parent
        title = next(place.findall(nodes.title)).astext()
        link = nodes.reference("", title, internal=True, refid=place["ids"][0])
        caption = nodes.caption("", "", nodes.Text("Explained in "), link)
        figure = nodes.figure("", *pictures, caption, classes=["opening"], ids=["opening"])
        start.insert(start.index(first) + 1, figure)


def shown(cell: nodes.Element) -> list[nodes.Element]:
    """Copies of the pictures in the output of a cell."""
    for output in cell.findall(nodes.container):
        if output.get("nb_element") != "cell_code_output":
            continue
        drawn = [raw for raw in output.findall(nodes.raw) if re.search("<(img|svg|picture)", raw.astext())]
        if drawn:
            return [nodes.raw("", _own_ids(raw.astext()), format="html") for raw in drawn]
        images = [image.deepcopy() for image in output.findall(nodes.image)]
        for image in images:
            image["classes"] = [*image["classes"], "opening-picture"]
        return images
    return []


def _own_ids(markup: str) -> str:
    """The markup again, with ids that are not those of the original, and what refers to them."""
    for id_ in set(re.findall(r'\bid="([^"]+)"', markup)):
        markup = re.sub(rf'(\bid="|#|\b(?:for|aria-\w+)="){re.escape(id_)}(?=["\')\s])', rf"\1opening-{id_}", markup)
    return markup


def setup(app: Sphinx) -> dict[str, object]:
    app.add_post_transform(OpenWithDrawing)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
