"""Write a deck: a folder with one page and everything that it needs."""

from __future__ import annotations

import html
import importlib.util
import os
import shutil
from pathlib import Path

from pygments.formatters import HtmlFormatter

from attn_lib.viz.explore.page import asset
from attn_lib.viz.style import FAMILY_COLOURS

from .. import address, notebooks
from .content import Deck, Slide

HERE = Path(__file__).parent
GREY = "#5f6b76"
# Of reveal.js: the deck, its style, the speaker's view. Of MathJax: what the site publishes, with its fonts.
REVEAL = ("dist/reveal.css", "dist/reveal.js", "plugin/notes/notes.js", "LICENSE")
MATHJAX = ("startup.js", "core.js", "input/tex.js", "input/tex/extensions/*", "output/chtml.js",
           "output/chtml/fonts/tex.js", "output/chtml/fonts/woff-v2/*", "a11y/assistive-mml.js")

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="reveal/dist/reveal.css">
<link rel="stylesheet" href="fonts.css">
<link rel="stylesheet" href="deck.css">
<style>:root {{ --f: {colour}; }}</style>
<script>
window.MathJax = {{
  loader: {{load: ["input/tex", "output/chtml", "a11y/assistive-mml"]}},
  tex: {{inlineMath: [["\\\\(", "\\\\)"]], displayMath: [["\\\\[", "\\\\]"]], processEscapes: false}},
  options: {{enableMenu: false, ignoreHtmlClass: "source|attn-explorer|notes"}},
}};
</script>
<script src="mathjax/startup.js"></script>
</head>
<body>
<div class="reveal"><div class="slides">
{slides}
</div></div>
<script src="reveal/dist/reveal.js"></script>
<script src="reveal/plugin/notes/notes.js"></script>
<script src="explorer.js"></script>
<script src="deck.js"></script>
</body>
</html>
"""


class SlidesError(Exception):
    """What the decks are made with is not installed; the message says what."""


def package(name: str, folder: str) -> Path:
    """A folder of an installed package, which is not imported.

    Raises:
        SlidesError: if it is not installed.
    """
    found = importlib.util.find_spec(name)
    where = Path(found.submodule_search_locations[0]) / folder if found else None
    if where is None or not where.is_dir():
        raise SlidesError(f"slides need the package {name.replace('_', '-')}; `make slides` installs what is pinned")
    return where


def section(slide: Slide, footer: str = "") -> str:
    """A slide's HTML."""
    notes = f'<aside class="notes">{slide.notes}</aside>' if slide.notes else ""
    title = f"<h2>{html.escape(slide.title)}</h2>" if "$" not in slide.title and "`" not in slide.title else \
        f"<h2>{slide.title}</h2>"
    return f'<section><div class="slide {slide.kind}">{title}{slide.body}{footer}</div>{notes}</section>'


def write(path: Path, output: Path) -> Path:
    """Write the deck of the chapter at `path` into a folder of its name in `output`; returns its page.

    The folder is made beside its place and then put there, so that an interruption leaves the old one.
    """
    deck = Deck(path)
    slides = deck.slides()
    for slide in slides:  # headings hold formulas and code
        slide.title = deck.text.inline(slide.title) if {"$", "`", "*"} & set(slide.title) else slide.title
    licence = f"<small>{html.escape(address.read_address().site)} · text and figures CC BY 4.0, code MIT</small>"
    body = "\n".join(section(slide, licence if slide.kind == "title" else "") for slide in slides)
    page = PAGE.format(title=html.escape(deck.facts.title), slides=body,
                       colour=FAMILY_COLOURS.get(path.parent.name, GREY))
    final = output / path.stem
    fresh, old = final.with_name(f"{path.stem}.new"), final.with_name(f"{path.stem}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    copy(package("sphinx_revealjs", "_static/revealjs"), REVEAL, fresh / "reveal")
    copy(package("sphinx-mathjax-offline", "static/mathjax"), MATHJAX, fresh / "mathjax")
    shutil.copytree(notebooks.ROOT / "book" / "_static" / "fonts", fresh / "fonts")
    shutil.copy(notebooks.ROOT / "book" / "_static" / "fonts.css", fresh)
    style = (HERE / "deck.css").read_text(encoding="utf-8") + asset("explorer.css")
    (fresh / "deck.css").write_text(style + HtmlFormatter(style="default").get_style_defs(".source"), encoding="utf-8")
    (fresh / "explorer.js").write_text(asset("explorer.js"), encoding="ascii")
    shutil.copy(HERE / "deck.js", fresh)
    (fresh / "index.html").write_text(page, encoding="utf-8")
    if final.exists():
        os.rename(final, old)
    os.rename(fresh, final)
    shutil.rmtree(old, ignore_errors=True)
    return final / "index.html"


def copy(source: Path, patterns: tuple[str, ...], target: Path) -> None:
    """Copy the files that the patterns name."""
    for pattern in patterns:
        for file in source.glob(pattern):
            if file.is_file():
                (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target / file.relative_to(source))
