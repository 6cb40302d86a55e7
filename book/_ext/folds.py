"""Folded content: one quiet line that says what is inside.

- the set-up cell, a solution and whatever else is tagged `hide-input` are called by what they hold;
- a cell that only draws shows its picture first and its code, folded, under it;
- an admonition of class `dropdown` is folded by the browser itself, with no script and no nameless button.
"""

from html import escape

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.writers.html5 import HTML5Translator

PROMPTS = {"solution": ("Show the solution", "Hide the solution"), "setup": ("Set-up", "Set-up")}
# What a cell shows, by a word in its output, the most telling first.
SHOWN = {"attn-explorer": "explorer", "attn-drawing": "drawing", "attn-map": "map", "attn-card": "card",
         "<table": "table"}


class fold(nodes.General, nodes.Element):
    """Folded content with its name in `name`."""


class NameFolds(SphinxPostTransform):
    """Say on the summary what a fold holds; runs before MyST-NB makes the summaries of cells (199)."""

    default_priority = 190
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for cell in self.document.findall(nodes.container):
            if cell.get("nb_element") == "cell_code" and cell.get("hide_mode"):
                own = [prompts for tag, prompts in PROMPTS.items() if f"tag_{tag}" in cell["classes"]]
                said = f"Code of this {shown(cell)}" if len(cell.children) > 1 else "Code for what follows"
                cell["prompt_show"], cell["prompt_hide"] = own[0] if own else (said, said)
        for admonition in list(self.document.findall(nodes.Admonition)):
            if "dropdown" in admonition["classes"]:
                admonition.parent.replace(admonition, folded(admonition))


class PictureBeforeCode(SphinxPostTransform):
    """Move the folded code of a cell that draws behind its output; runs after MyST-NB has folded it."""

    default_priority = 200
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for source in list(self.document.findall(HideCodeCellNode)):
            cell = source.parent
            others = {"tag_solution", "tag_setup"}.intersection(cell["classes"])
            if "above-input" in source["classes"] and not others and len(cell.children) > 1:
                cell.remove(source)
                cell.append(source)
                cell["classes"].append("shown-first")


def shown(cell: nodes.Element) -> str:
    """What the output of a cell is, in a word."""
    markup = "".join(node.astext() for node in cell.findall(nodes.raw))
    for mark, word in SHOWN.items():
        if mark in markup:
            return word
    return "figure" if next(cell.findall(nodes.image), None) is not None else "output"


def folded(admonition: nodes.Element) -> fold:
    """An admonition as a fold, under its own title."""
    title = next(iter(admonition.children), None)
    name = title.astext() if isinstance(title, nodes.title) else admonition.tagname.capitalize()
    content = admonition.children[1:] if isinstance(title, nodes.title) else admonition.children
    classes = [one for one in admonition["classes"] if one != "dropdown"]
    return fold("", *content, name=name, classes=["fold-admonition", *classes], ids=admonition["ids"])


def visit_cell(self: HTML5Translator, node: HideCodeCellNode) -> None:
    _open(self, ["hide", *node["classes"]], node["prompt_show"], node["prompt_hide"])


def visit_fold(self: HTML5Translator, node: fold) -> None:
    _open(self, node["classes"], node["name"], node["name"], node["ids"])


def _open(self: HTML5Translator, classes: list[str], show: str, hide: str, ids: list[str] = ()) -> None:
    said = escape(show)
    if hide != show:
        said = f'<span class="collapsed">{said}</span><span class="expanded">{escape(hide)}</span>'
    id_ = f' id="{ids[0]}"' if ids else ""
    self.body.append(f'<details class="fold {" ".join(classes)}"{id_}>\n<summary>{said}</summary>\n')


def depart(self: HTML5Translator, node: nodes.Element) -> None:
    self.body.append("</details>\n")


def setup(app: Sphinx) -> dict[str, object]:
    app.add_node(HideCodeCellNode, override=True, html=(visit_cell, depart))
    app.add_node(fold, html=(visit_fold, depart))
    app.add_post_transform(NameFolds)
    app.add_post_transform(PictureBeforeCode)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
