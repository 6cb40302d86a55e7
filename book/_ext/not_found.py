"""The page for an address that leads nowhere.

GitHub Pages shows it at the address that was asked for, however deep: it names everything by its public address, and
fetches nothing.
"""

from html import escape
from pathlib import Path

from sphinx.application import Sphinx

from attn_lib.catalog import FAMILIES
from attn_lib.viz.style import FAMILY_COLOURS
from book._ext import families

TEMPLATE = """\
<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<meta name="description" content="There is no page at this address.">
<title>Nothing here – {book}</title>
<link rel="icon" href="data:,">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1.05rem/1.6 system-ui, sans-serif; max-width: 44rem; margin: 12vh auto 4rem; padding: 0 1.25rem;
  background: light-dark(#fff, #14181e); color: light-dark(#222832, #ced6dd); }}
a {{ color: light-dark(#176de8, #7fb1ff); }}
h1 {{ line-height: 1.2; margin: .3rem 0 1rem; }}
form {{ display: flex; gap: .5rem; margin: 1.5rem 0 2.5rem; }}
input, button {{ font: inherit; color: inherit; padding: .45rem .8rem; border: 1px solid #8a94a3; border-radius: .4rem;
  background: transparent; }}
input {{ flex: 1; min-width: 0; }}
ul {{ list-style: none; padding: 0; columns: 2 14rem; }}
li {{ break-inside: avoid; margin-bottom: .35rem; }}
li span {{ display: inline-block; width: .75em; height: .75em; margin-right: .5em; border-radius: 2px; }}
</style>
</head>
<body>
<main>
<p><a href="{site}{home}">{book}</a></p>
<h1>There is no page at this address</h1>
<p>It may have been moved or renamed. Ask for it by name:</p>
<form action="{site}search.html" role="search">
<input type="search" name="q" aria-label="Search the book" placeholder="SE, criss-cross, time series …" autofocus>
<button>Search</button>
</form>
<p>Or begin with a family of modules:</p>
<ul>
{families}
</ul>
</main>
<script>
// What was asked for is the first guess.
const last = location.pathname.split("/").filter(Boolean).pop() || "";
const guess = decodeURIComponent(last).replace(/\\.html$/, "");
if (!/^(404|index)/.test(last)) document.querySelector("input").value = guess;
</script>
</body>
</html>
"""


def write(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    site, uri = escape(app.config.html_baseurl), app.builder.get_target_uri
    pages = {family: families.PAGE.format(family) for family in FAMILIES}
    rows = "\n".join(
        f'<li><span style="background: {FAMILY_COLOURS[family]}"></span>'
        f'<a href="{site}{uri(page)}">{escape(families.words(family).title)}</a></li>'
        for family, page in pages.items() if page in app.env.found_docs)
    text = TEMPLATE.format(book=escape(app.config.html_title), site=site, home=uri(app.config.root_doc), families=rows)
    (Path(app.outdir) / "404.html").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, object]:
    app.connect("build-finished", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
