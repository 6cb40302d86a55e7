"""The bibliography says where each paper is used: the chapters that cite it and the modules that come from it."""

from docutils import nodes
from sphinx.application import Sphinx

import attn_lib
from book._ext import families

PAGE = "book/bibliography"


def uses(app: Sphinx) -> dict[str, dict[str, str]]:
    """Key of a paper -> address, seen from the bibliography -> name of what uses it."""
    found: dict[str, dict[str, str]] = {}
    domain = app.env.get_domain("cite")
    for reference in sorted(domain.citation_refs, key=lambda ref: app.env.titles[ref.docname].astext()):
        if reference.docname != PAGE:
            for target in reference.targets:
                way = app.builder.get_relative_uri(PAGE, reference.docname)
                found.setdefault(target.key, {})[way] = app.env.titles[reference.docname].astext()
    for entry in map(attn_lib.entry, attn_lib.list_modules()):
        for paper in entry.papers:
            found.setdefault(paper.key, {}).setdefault(families.address(app, PAGE, entry), entry.name)
    return found


def say_where_cited(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    if docname != PAGE:
        return
    used = uses(app)
    keys = {citation.citation_id: citation.key for citation in app.env.get_domain("cite").citations
            if citation.bibliography_key.docname == PAGE}  # chapters' own lists count from one again
    for citation in doctree.findall(nodes.citation):
        key = next((keys[id] for id in citation["ids"] if id in keys), None)
        if links := used.get(key):
            line = nodes.inline(classes=["cited-in"])
            line += nodes.Text(" In: ")
            for k, (way, name) in enumerate(links.items()):
                line += [nodes.Text(", ")] * (k > 0)
                line += nodes.reference("", name, refuri=way, internal=True)
            citation.children[-1] += line


def always(app: Sphinx, env: object) -> list[str]:
    """The page is written anew whenever any other may cite differently."""
    return [PAGE] if PAGE in env.found_docs else []


def setup(app: Sphinx) -> dict[str, object]:
    app.connect("doctree-resolved", say_where_cited)
    app.connect("env-updated", always)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
