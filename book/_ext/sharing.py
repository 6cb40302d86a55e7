"""What other sites and search engines see of a page: its address, a description and a preview.

A page's description is how its text begins. The public address stands in `_config.yml` alone.
"""

import re
from html import escape
from pathlib import Path
from urllib.parse import quote

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from book.tools.address import read_address

PREVIEW = "_static/preview.png"  # of a page without a picture of its own
LONGEST = 200  # characters of a description that are shown anywhere


def set_address(app: Sphinx, config: object) -> None:
    """Sphinx links each page to its public address."""
    config.html_baseurl = f"{read_address(Path(app.srcdir)).site}/"


def describe(app: Sphinx, doctree: nodes.document) -> None:
    """Keep the first sentence of a page, or more where they are short."""
    app.env.metadata[app.env.docname]["description"] = description(doctree)


def description(doctree: nodes.document) -> str:
    for paragraph in doctree.findall(nodes.paragraph):
        spoken = paragraph.deepcopy()
        for reference in [*spoken.findall(addnodes.pending_xref)]:
            if reference["refdomain"] == "cite":
                reference.parent.remove(reference)
        text = re.sub(r"\s+([.,;:])", r"\1", " ".join(spoken.astext().split()))
        if len(text) > 20:
            return beginning(text)
    return ""


def beginning(text: str) -> str:
    """Whole sentences as far as they fit; of a long first one, as much as fits."""
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z\"“])", text)
    result = sentences[0]
    for sentence in sentences[1:]:
        if len(result) + 1 + len(sentence) > LONGEST:
            break
        result = f"{result} {sentence}"
    return result if len(result) <= LONGEST else result[:LONGEST].rsplit(" ", 1)[0].rstrip(",;:") + " …"


def add_tags(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
    """Description and preview of a page, as `<meta>`."""
    said = app.env.metadata.get(pagename, {}).get("description", "") if pagename in app.env.found_docs else ""
    root = app.env.metadata[app.config.root_doc]["description"]
    title = re.sub(r"<[^>]+>", "", context.get("title") or context["docstitle"] or "")  # escaped already
    home = pagename == app.config.root_doc
    image, alt = preview(app, doctree)
    tags = {
        ("name", "description"): escape(said or root),
        ("property", "og:title"): title,
        ("property", "og:description"): escape(said or root),
        ("property", "og:type"): "website" if home or not said else "article",
        ("property", "og:site_name"): escape(app.config.html_title),
        ("property", "og:url"): f"{app.config.html_baseurl}{app.builder.get_target_uri(pagename)}",
        ("property", "og:image"): f"{app.config.html_baseurl}{quote(image)}",
        ("property", "og:image:alt"): escape(alt),
        ("name", "twitter:card"): "summary_large_image",
    }
    lines = "\n".join(f'<meta {kind}="{name}" content="{value}"/>' for (kind, name), value in tags.items() if value)
    context["metatags"] = f"{context.get('metatags') or ''}\n{lines}\n"


def preview(app: Sphinx, doctree: nodes.document | None) -> tuple[str, str]:
    """A page's first picture and what it shows; the book's where it has none."""
    for image in doctree.findall(nodes.image) if doctree is not None else ():
        if image["uri"] in app.builder.images:
            return f"{app.builder.imagedir}/{app.builder.images[image['uri']]}", image.get("alt", "")
    return PREVIEW, "Visual attention: nine families of modules"


def setup(app: Sphinx) -> dict[str, object]:
    app.connect("config-inited", set_address)
    app.connect("doctree-read", describe)
    app.connect("html-page-context", add_tags)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
