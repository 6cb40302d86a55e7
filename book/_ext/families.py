"""The families: a page for each, and the tiles of the landing page, made from the catalogue.

What is said of a family stands in the docstring of its package: "Title: a sentence.", then what its members share and
where they differ.

- `% family-page <family>` becomes the family's page: those words, its map and a table of its modules.
- `{family-tiles}` becomes nine tiles, each with the family's mark, name, sentence and numbers.
"""

import html
import inspect
import re
from importlib import import_module
from typing import NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import attn_lib
from attn_lib.catalog import FAMILIES, Entry
from attn_lib.viz.family_map import Place, Point, route
from attn_lib.viz.style import FAMILY_COLOURS

PAGE = "book/families/{}"
REFERENCE = "book/api/{}"


class Words(NamedTuple):
    """What is said of a family."""

    title: str  # "Channel attention": of its page, and of its part in `_toc.yml`
    sentence: str
    text: str


def words(family: str) -> Words:
    """From the docstring of the family's package."""
    head, _, text = inspect.getdoc(import_module(f"attn_lib.{family}")).partition("\n\n")
    title, _, sentence = " ".join(head.split()).partition(": ")
    return Words(title, sentence[:1].upper() + sentence[1:], " ".join(text.split()))


def members(family: str) -> list[Entry]:
    """A family's modules by year, and within a year what others build on first."""
    found = {id: attn_lib.entry(id) for id in attn_lib.list_modules(family)}

    def depth(entry: Entry) -> int:
        return 1 + max((depth(found[id]) for id in entry.builds_on if id in found), default=0)

    return sorted(found.values(), key=lambda e: (e.paper.year, depth(e), e.name.lower()))


def anchor(entry: Entry) -> str:
    """Of a module's section in the reference: what docutils makes of `module-<id>`."""
    return nodes.make_id(f"module-{entry.id}")


def address(app: Sphinx, docname: str, entry: Entry) -> str:
    """Where a module is explained, seen from a page: its chapter, or as long as it has none its reference."""
    if entry.chapter in app.env.found_docs:
        return app.builder.get_relative_uri(docname, entry.chapter)
    return f"{app.builder.get_relative_uri(docname, REFERENCE.format(entry.family))}#{anchor(entry)}"


def note(app: Sphinx, family: str) -> None:
    """The page being read is made anew when a module of the family changes, or the family has one more."""
    app.env.note_dependency(inspect.getfile(import_module(f"attn_lib.{family}")))
    for id in attn_lib.list_modules(family):
        app.env.note_dependency(inspect.getfile(attn_lib.entry(id).cls))


# --- a family's page --------------------------------------------------------------------------------------------------


def write_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put a family's page where a file says `% family-page <family>`."""
    if found := re.search(r"^% family-page (\w+)$", source[0], re.MULTILINE):
        source[0] = source[0].replace(found[0], page(app, docname, found[1]))


def page(app: Sphinx, docname: str, family: str) -> str:
    note(app, family)
    about, modules = words(family), members(family)
    rows = "".join(table_row(app, docname, entry) for entry in modules)
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("Module", "Year", "What it does", "Builds on", "Read"))
    table = f'<table class="family-modules"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    return "\n".join([
        f"# {about.title}", "", about.sentence, "", about.text, "",
        "## How they are related", "", "```{raw} html", chart(app, docname, family, modules), "```", "",
        "## The modules", "", "```{raw} html", table, "```", "",
        f"[The atlas](../atlas.md) compares them with all others by cost, time and symmetries. "
        f"{{doc}}`/{REFERENCE.format(family)}` documents every class.", "",
    ])


def table_row(app: Sphinx, docname: str, entry: Entry) -> str:
    """A module in a line; without a screen's width it is a card."""
    way, chapter = address(app, docname, entry), entry.chapter in app.env.found_docs
    older = [attn_lib.entry(id) for id in entry.builds_on]
    before = ", ".join(f'<a href="{address(app, docname, e)}">{html.escape(e.aliases[0])}</a>' for e in older)
    return (
        f'<tr data-id="{entry.id}"><th scope="row"><a href="{way}">{html.escape(entry.name)}</a> '
        f"<b>{html.escape(entry.aliases[0])}</b></th> <td>{entry.paper.year}</td> "
        f"<td>{html.escape(entry.summary)}</td> "
        f"<td>{before}</td> <td>{'chapter' if chapter else 'reference'}</td></tr>"
    )


# --- the map of a family ----------------------------------------------------------------------------------------------

# In units of a hundredth: `route` was made for inches. A chart is drawn for the width of a phone and grows by half.
_WIDTH, _YEARS, _COLUMNS, _BOX, _GAP = 3.8, 0.38, 4, 0.3, 0.24


def chart(app: Sphinx, docname: str, family: str, modules: list[Entry]) -> str:
    """The family's modules by year, with what they build on in other families, and how they are related.

    An arrow leads from a module to one that builds on it, a dashed line to what it turns into at a limit. Every name is
    a link. The table below says the same in words.
    """
    outside = {id for entry in modules for id in entry.builds_on} - {entry.id for entry in modules}
    shown = sorted([*map(attn_lib.entry, sorted(outside)), *modules], key=lambda e: e.paper.year)  # stable
    boxes: dict[str, Place] = {}
    below: dict[str, float] = {}
    rules, top, column = [], 0.05, (_WIDTH - _YEARS) / _COLUMNS
    for year in sorted({entry.paper.year for entry in shown}):
        row = [entry for entry in shown if entry.paper.year == year]
        rules.append((year, top))
        for start in range(0, len(row), _COLUMNS):
            line = row[start:start + _COLUMNS]
            for k, entry in enumerate(line):
                boxes[entry.id] = (_YEARS + k * column + 0.04, top + 0.12, column - 0.08, _BOX)
            top += _BOX + _GAP
            below.update({entry.id: top for entry in line})
        top += 0.06
    lines = [join(boxes, below, older, entry.id, FAMILY_COLOURS[family], k)
             for k, (older, entry) in enumerate((older, e) for e in modules for older in e.builds_on)]
    limits = [(other, e) for e in modules for other in e.reduces_to if other in boxes and other not in e.builds_on]
    lines += [join(boxes, below, other, entry.id, "", k) for k, (other, entry) in enumerate(limits)]
    dashed = ", a dashed line to what it turns into at a limit" if limits else ""
    years = "".join(f'<path class="rule" d="M0 {100 * y:.0f}H{100 * _WIDTH:.0f}"/>'
                    f'<text class="year" x="0" y="{100 * y + 31:.0f}">{year}</text>' for year, y in rules)
    chips = "".join(chip(app, docname, entry, boxes[entry.id]) for entry in shown)
    return (
        f'<figure class="family-map" style="--f:{FAMILY_COLOURS[family]}">'
        f'<svg viewBox="0 0 {100 * _WIDTH:.0f} {100 * top:.0f}" role="group" aria-label="Map of the family, by year">'
        '<defs><marker id="family-arrow" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" markerHeight="6" '
        'orient="auto"><path d="M0 0L6 3L0 6z"/></marker></defs>'
        f"{years}{''.join(lines)}{chips}</svg>"
        f"<figcaption>An arrow leads to what builds on a module{dashed}. A filled box has a chapter; the others lead "
        "to the reference.</figcaption></figure>"
    )


def chip(app: Sphinx, docname: str, entry: Entry, box: Place) -> str:
    """A module on the chart."""
    x, y, w, h = (100 * side for side in box)
    name = entry.aliases[0]
    size = min(12.0, (w - 6) / (0.62 * len(name)))
    read = " read" if entry.chapter in app.env.found_docs else ""
    return (
        f'<a href="{address(app, docname, entry)}" class="chip{read}" style="--f:{FAMILY_COLOURS[entry.family]}">'
        f"<title>{html.escape(entry.name)}: {html.escape(entry.summary)}</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="5"/>'
        f'<text x="{x + w / 2:.1f}" y="{y + h / 2 + 0.36 * size:.1f}" font-size="{size:.1f}">{html.escape(name)}</text>'
        "</a>"
    )


def join(boxes: dict[str, Place], below: dict[str, float], older: str, newer: str, colour: str, number: int) -> str:
    """The line between two modules: an arrow in a colour, or a dashed line without one."""
    start, end = (older, newer) if boxes[older][1] <= boxes[newer][1] else (newer, older)
    way = route(boxes, start, end, below, 0.018 * (number % 5 - 2))
    way = way if start == older else way[::-1]
    kind = f'class="arrow" style="--f:{colour}" marker-end="url(#family-arrow)"' if colour else 'class="limit"'
    return f'<path {kind} d="{rounded(way)}"/>'


def rounded(corners: list[Point]) -> str:
    """An SVG path through the corners, each rounded off."""
    def toward(start: Point, end: Point) -> Point:
        distance = max(1e-9, abs(end[0] - start[0]) + abs(end[1] - start[1]))  # the parts are level or upright
        share = min(0.05 / distance, 0.5)
        return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])

    def at(point: Point) -> str:
        return f"{100 * point[0]:.1f} {100 * point[1]:.1f}"

    corners = [corner for k, corner in enumerate(corners) if k == 0 or corner != corners[k - 1]]
    parts = [f"M{at(corners[0])}"]
    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        parts.append(f"L{at(toward(corner, before))}Q{at(corner)} {at(toward(corner, after))}")
    return "".join([*parts, f"L{at(corners[-1])}"])


# --- tiles ------------------------------------------------------------------------------------------------------------

# A family's mark, five by five cells from 0 (empty) to 4 (full): what a module of it does to a map, at a glance.
MARKS = {
    "channel": "14023 14023 14023 14023 14023",  # whole channels, side by side
    "spatial": "00110 01221 12432 01221 00110",  # a place, and what lies around it
    "channel_spatial": "01021 13032 24043 13032 01021",  # both at once
    "branch": "11111 00000 44444 00000 22222",  # three paths
    "temporal": "00004 00034 00234 01234 11234",  # what comes later sees more
    "self_attention": "20010 00403 01000 30002 00104",  # one asks, some answer
    "mlp": "00300 00300 33433 00300 00300",  # a row and a column
    "conv": "40030 00000 04004 00000 30004",  # taps that move
    "fusion": "40002 34022 33422 33342 33334",  # two halves
}


def mark(family: str) -> str:
    """The family's mark as a picture that says nothing to a screen reader."""
    rows = MARKS[family].split()
    paths = []
    for level in "01234":
        cells = "".join(f"M{7 * j} {7 * i}h6v6h-6z" for i, row in enumerate(rows) for j, c in enumerate(row)
                        if c == level)
        paths += [f'<path opacity="{0.12 + 0.22 * int(level):.2f}" d="{cells}"/>'] if cells else []
    return f'<svg viewBox="0 0 34 34" aria-hidden="true">{"".join(paths)}</svg>'


def counted(number: int, noun: str) -> str:
    """"1 module", "no chapter yet"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s" if number else f"no {noun} yet"


class FamilyTiles(SphinxDirective):
    """A tile for each family, which is a link to its page."""

    def run(self) -> list[nodes.Node]:
        app, tiles, every, read = self.env.app, [], 0, 0
        for family in FAMILIES:
            note(app, family)
            about, modules = words(family), members(family)
            chapters = sum(entry.chapter in self.env.found_docs for entry in modules)
            every, read = every + len(modules), read + chapters
            numbers = f"{counted(len(modules), 'module')} · {counted(chapters, 'chapter')}"
            page_address = app.builder.get_relative_uri(self.env.docname, PAGE.format(family))
            tiles.append(
                f'<li style="--f:{FAMILY_COLOURS[family]}">{mark(family)}'
                f'<a href="{page_address}">{html.escape(about.title)}</a>'
                f"<p>{html.escape(about.sentence)}</p> <small>{numbers}</small></li>")
        told = f"{counted(every, 'module')}, of which {read} have a chapter so far; the reference explains the others."
        return [nodes.paragraph(text=told),
                nodes.raw("", f'<ul class="family-tiles">{"".join(tiles)}</ul>', format="html")]


def add_style(app: Sphinx, pagename: str, *_: object) -> None:
    if pagename == app.config.root_doc or pagename.startswith(PAGE.format("")):
        app.add_css_file("families.css")


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("family-tiles", FamilyTiles)
    app.connect("source-read", write_page)
    app.connect("html-page-context", add_style)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
