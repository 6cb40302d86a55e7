"""Explorers on the site: a page loads their script and style once, from a file that all pages share.

In a notebook every explorer carries both, so that it works alone. Copies that are those of `attn_lib` are taken off the
page; one that an older `attn_lib` stored keeps its own until its chapter is executed again.
"""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

from attn_lib.viz.explore.page import asset, script_tag, style_tag

FILES = ("explorer.css", "explorer.js")


def share_code(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Take the copies of script and style off a page's explorers."""
    for explorer in doctree.findall(lambda node: isinstance(node, nodes.raw) and "attn-explorer" in node.astext()):
        alone = explorer.astext().replace(style_tag(), "").replace(script_tag(), "")
        explorer.children = [nodes.Text(alone)]


def load_code(app: Sphinx, pagename: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """Let a page with explorers load the shared files."""
    raws = doctree.findall(nodes.raw) if doctree else ()
    if any("attn-explorer" in raw.astext() for raw in raws):
        app.add_css_file(FILES[0])
        app.add_js_file(FILES[1], loading_method="defer")


def write_code(app: Sphinx) -> None:
    """The shared files, letter by letter what the explorers of a notebook carry."""
    folder = Path(app.doctreedir) / "explorers"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).write_text(asset(name), encoding="ascii")
    app.config.html_static_path.append(str(folder))


def setup(app: Sphinx) -> dict[str, object]:
    app.connect("builder-inited", write_code)
    app.connect("doctree-resolved", share_code)
    app.connect("html-page-context", load_code)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
