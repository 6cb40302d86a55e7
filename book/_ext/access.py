"""Pages for the keyboard and the screen reader: names and roles that the theme and its extensions leave out.

A finished page is text, and each fault is one spot of it, so each is mended by one replacement (`MENDED`). What only
shows in an open page, `_static/access.js` does; `tests/site/test_accessibility.py` says whether it was enough.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

MENDED = [(re.compile(pattern), replacement) for pattern, replacement in (
    # A fold is called by what it holds, which stands in it.
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),
    # The arrow that unfolds a part of the list of pages is called by that part.
    (r'(<a class="[^"]*" href="[^"]*">([^<]+)</a><details[^>]*>)<summary>(?=<span class="toctree-toggle")',
     r'\1<summary aria-label="Pages of \2">'),
    # The same for the button that opens the search: its words are its name.
    (r'(<button class="[^"]*\bsearch-button-field\b[^"]*") title="Search" aria-label="Search"', r"\1"),
    # A list holds items. (ARIA has given up the role of a bibliography's entry.)
    (r'role="doc-biblioentry"', 'role="listitem"'),
    # Landmarks: two lists of links are told apart, and the name of the book stands in one as well.
    (r'<nav class="bd-toc-nav page-toc">', '<nav class="bd-toc-nav page-toc" aria-label="On this page">'),
    (r'<div class="bd-sidebar-primary bd-sidebar([^"]*)">',
     r'<div class="bd-sidebar-primary bd-sidebar\1" role="complementary" aria-label="The book">'),
    # Whoever listens is told where code ends and what it printed begins.
    (r'<div class="cell_input docutils container">',
     '<div class="cell_input docutils container" role="group" aria-label="Code">'),
    (r'<div class="cell_output docutils container">',
     '<div class="cell_output docutils container" role="group" aria-label="Output">'),
    # The mark of Colab or Binder on a button stands beside its name.
    (r'<img alt="[^"]* logo" (?=src="[^"]*/logo_)', '<img alt="" '),
    # A heading is its words; links to places on the page stand in "On this page".
    (r'<a class="headerlink"(?! tabindex)', '<a class="headerlink" tabindex="-1" aria-hidden="true"'),
)]
SEARCH_FIELD = 'id="search-input"'


def mend(page: str) -> str:
    """A finished page, with what it lacks; mending it again changes nothing."""
    for pattern, replacement in MENDED:
        page = pattern.sub(replacement, page)
    # The page of results has the search field of every page, hidden, and its own, which the theme gives the same id.
    first, *others = page.split(SEARCH_FIELD)
    return SEARCH_FIELD.join([first, *others[:1]]) + "".join(f'id="search-input-{k}"{rest}'
                                                             for k, rest in enumerate(others[1:], 2))


def mend_pages(app: Sphinx, exception: Exception | None) -> None:
    """Mend every page of the finished site."""
    for path in Path(app.outdir).rglob("*.html") if exception is None else ():
        page = path.read_text(encoding="utf-8")
        mended = mend(page)
        if mended != page:
            path.write_text(mended, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, object]:
    app.add_css_file("access.css")
    app.add_js_file("access.js", loading_method="defer")
    app.connect("build-finished", mend_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
