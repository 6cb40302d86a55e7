"""The page *Teach*: its tables and its graph are read from the notebooks at every build; see `book.tools.teaching`.

- `{teaching-chapters}` becomes a table of all chapters, the objectives of each folded under its row;
- `{teaching-order}` becomes the graph of what asks for what;
- `{teaching-course} six` becomes the weeks of a course, `{teaching-sum} six` its minutes and points in a sentence;
- `{teaching-citation}` becomes how the book is cited.
"""

import html
import os

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from families import rounded
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import attn_lib
from attn_lib.catalog import FAMILIES
from attn_lib.viz.style import FAMILY_COLOURS
from book.tools import notebooks, release, teaching
from book.tools.anatomy.chapter import LINK
from book.tools.teaching import Facts, Week, span

PAGE = "book/teach"
FOUNDATIONS = "foundations"
GREY = "#5f6b76"  # of the foundations, which belong to no family


def short(chapter: Facts) -> str:
    """What a chapter is called where there is little room."""
    if chapter.family == FOUNDATIONS:
        return {"yolo": "YOLO"}.get(chapter.id, chapter.id.capitalize())
    alias = attn_lib.entry(chapter.id).aliases[0]
    return alias[:1].upper() + alias[1:]


def colour(chapter: Facts) -> str:
    return FAMILY_COLOURS.get(chapter.family, GREY)


class Teaching(SphinxDirective):
    """What the page's directives share."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        for path in (*notebooks.chapters(), teaching.COURSES, teaching.__file__):
            self.env.note_dependency(str(path))
        self.chapters = teaching.book()
        return self.made()

    def made(self) -> list[nodes.Node]:
        raise NotImplementedError

    def link(self, chapter: Facts, text: str = "") -> str:
        way = self.env.app.builder.get_relative_uri(self.env.docname, chapter.page)
        return f'<a href="{way}">{html.escape(text or chapter.title)}</a>'

    def parsed(self, markdown: str) -> list[nodes.Node]:
        """Markdown as the page's own text."""
        node = nodes.Element()
        self.state.nested_parse(StringList(markdown.splitlines(), source=self.env.docname), self.content_offset, node)
        return node.children


def raw(markup: str) -> nodes.raw:
    return nodes.raw("", markup, format="html")


class Chapters(Teaching):
    """Every chapter in a row; what it promises is folded under it."""

    HEADS = ("Chapter", "Asks for", "Reading", "Exercises", "Points", "Tasks", "Hardware", "KB")

    def made(self) -> list[nodes.Node]:
        heads = "".join(f'<th scope="col">{head}</th>' for head in self.HEADS)
        made: list[nodes.Node] = [raw('<div class="atlas-scroll"><table class="teach-chapters"><thead><tr>'
                                      f"{heads}</tr></thead>")]
        for chapter in self.chapters.values():
            made += [raw(self.row(chapter)), *self.objectives(chapter), raw("</details></td></tr></tbody>")]
        every = self.chapters.values()
        made.append(raw(
            f'<tfoot><tr><th scope="row">All {len(every)}</th><td></td>'
            f'<td data-h="reading">{sum(c.reading for c in every)}</td>'
            f'<td data-h="exercises">{sum(c.practice for c in every)}</td>'
            f'<td data-h="points">{sum(c.points for c in every)}</td><td></td><td></td>'
            f'<td data-h="KB">{sum(c.size for c in every) / 1000:,.0f}</td></tr></tfoot></table></div>'))
        return made

    def row(self, chapter: Facts) -> str:
        needs = ", ".join(self.link(self.chapters[id], short(self.chapters[id])) for id in chapter.needs)
        helps = ", ".join(self.link(self.chapters[id], short(self.chapters[id])) for id in chapter.helps)
        needs += f'{"; " if needs and helps else ""}{helps} <small>helps</small>' if helps else ""
        parts = " + ".join(str(exercise.minutes) for exercise in chapter.exercises)
        tasks = self.env.app.builder.get_relative_uri(self.env.docname, "book/api/tasks")
        trains = ", ".join(f'<a href="{tasks}#{nodes.make_id(f"task-{id}")}">{id.replace("_", " ")}</a>'
                           for id in chapter.tasks)
        machine = "CPU, GPU timed" if chapter.times else "CPU"
        machine += "".join(f"; {html.escape(name)}" for name in chapter.packages)
        family = FAMILIES.get(chapter.family, "foundations")
        return (
            f'<tbody id="teach-{chapter.id}"><tr><th scope="row"><span class="atlas-dot" style="--f:{colour(chapter)}" '
            f'title="{html.escape(family)}"></span>{self.link(chapter)}</th>'
            f'<td data-h="asks for">{needs or "–"}</td><td data-h="reading" data-u=" min">{chapter.reading}</td>'
            f'<td data-h="exercises" data-u=" min">{chapter.practice} <small>= {parts}</small></td>'
            f'<td data-h="points">{chapter.points}</td><td data-h="tasks">{trains or "–"}</td>'
            f'<td data-h="on">{machine}</td><td data-h="KB">{chapter.size / 1000:.0f}</td></tr>'
            f'<tr><td colspan="{len(self.HEADS)}"><details class="fold"><summary>After it students can<span '
            f'class="teach-of"> ({html.escape(short(chapter))})</span> …</summary>'
        )

    def objectives(self, chapter: Facts) -> list[nodes.Node]:
        here = (notebooks.ROOT / PAGE).parent

        def way(link) -> str:
            """A link of the chapter, seen from this page."""
            target = link["target"]
            if "://" in target or target.startswith("#"):
                return link[0]
            return f"[{link['text']}]({os.path.relpath(chapter.path.parent / target, here)})"

        return self.parsed("\n".join(f"- {LINK.sub(way, one)}" for one in chapter.objectives))


# --- the graph --------------------------------------------------------------------------------------------------------

# In units of a hundredth, as the maps of the families: drawn for the width of a phone.
_WIDTH, _LANE, _COLUMNS, _BOX, _GAP, _HEAD, _PAD = 3.8, 0.11, 4, 0.3, 0.13, 0.26, 0.09


class Order(Teaching):
    """Chapters that ask for the same others stand in one frame; a line leads there from each that is asked for."""

    def made(self) -> list[nodes.Node]:
        groups = teaching.groups(self.chapters)
        sources = list(dict.fromkeys(other for group in groups for other in (*group.needs, *group.helps)))
        first = {id: k for k, group in enumerate(groups) for id in group.members}
        last = {id: max(k for k, group in enumerate(groups) if id in (*group.needs, *group.helps)) for id in sources}
        lanes: list[list[str]] = []  # a lane holds lines that never run side by side
        for id in sorted(sources, key=lambda id: -(last[id] - first[id])):
            free = next((lane for lane in lanes
                         if all(last[id] <= first[other] or last[other] <= first[id] for other in lane)), None)
            if free is None:
                lanes.append(free := [])
            free.append(id)
        lane_of = {id: k for k, lane in enumerate(lanes) for id in lane}
        left = _LANE * len(lanes) + 0.1
        column = (_WIDTH - left - 2 * _PAD) / _COLUMNS
        top, boxes, frames = 0.05, {}, []
        for group in groups:
            rows, head = -(-len(group.members) // _COLUMNS), _PAD if len(group.members) == 1 else _HEAD
            height = head + rows * (_BOX + _GAP) - _GAP + _PAD
            frames.append((top, height))
            for k, id in enumerate(group.members):
                boxes[id] = (left + _PAD + k % _COLUMNS * column, top + head + k // _COLUMNS * (_BOX + _GAP),
                             column - 0.07, _BOX)
            top += height + 0.14
        drawn, marks = [], []
        for (y, height), group in zip(frames, groups, strict=True):
            drawn.append(f'<rect class="frame" x="{100 * left:.0f}" y="{100 * y:.1f}" '
                         f'width="{100 * (_WIDTH - left):.0f}" height="{100 * height:.1f}" rx="6"/>'
                         + self.said(group, left + _PAD + (column if len(group.members) == 1 else 0),
                                     y + (_PAD + _BOX / 2 + 0.04 if len(group.members) == 1 else 0.17)))
        for id in sources:
            x, y, w, h = boxes[id]
            lane = 0.05 + _LANE * (len(lanes) - 1 - lane_of[id])
            shift = 0.02 * (lane_of[id] % 3 - 1)
            out = [(x + w / 2, y + h), (x + w / 2, y + h + _GAP / 2 + shift), (lane, y + h + _GAP / 2 + shift)]
            for (at, _), group in zip(frames, groups, strict=True):
                if id not in (*group.needs, *group.helps):
                    continue
                asked = [*group.needs, *group.helps]
                level = at + 0.09 + 0.09 * asked.index(id)
                kind = "arrow" if id in group.needs else "arrow helps"
                marks.append(f'<path class="{kind}" style="--f:{colour(self.chapters[id])}" '
                             f'marker-end="url(#teach-arrow)" d="{rounded([*out, (lane, level), (left, level)])}"/>')
        chips = "".join(self.chip(self.chapters[id], boxes[id]) for group in groups for id in group.members)
        return [raw(
            '<figure class="family-map teach-order">'
            f'<svg viewBox="0 0 {100 * _WIDTH:.0f} {100 * top:.0f}" role="group" '
            'aria-label="Which chapter asks for which">'
            '<defs><marker id="teach-arrow" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" markerHeight="6" '
            'orient="auto"><path d="M0 0L6 3L0 6z"/></marker></defs>'
            f"{''.join(drawn)}{''.join(marks)}{chips}</svg>"
            "<figcaption>A frame holds chapters that ask for the same ones; the lines lead there from them, dashed "
            "where they help and are not asked for. What a prerequisite asks for itself is not repeated.</figcaption>"
            "</figure>"
        )]

    def said(self, group: teaching.Group, x: float, y: float) -> str:
        """What the chapters of a group ask for: above them, or beside a single one."""
        needs = " and ".join(short(self.chapters[id]) for id in group.needs)
        helps = " and ".join(short(self.chapters[id]) for id in group.helps)
        said = f"after {needs}" if needs else "asks for no other chapter"
        if len(group.members) > 1 and not needs:
            said = "ask for no other chapter"
        said = f"{said}; {helps} helps" if helps else said
        return f'<text class="year" x="{100 * x:.0f}" y="{100 * y:.1f}">{html.escape(said)}</text>'

    def chip(self, chapter: Facts, box: tuple[float, float, float, float]) -> str:
        x, y, w, h = (100 * side for side in box)
        name = short(chapter)
        size = min(12.0, (w - 6) / (0.62 * len(name)))
        way = self.env.app.builder.get_relative_uri(self.env.docname, chapter.page)
        said = f"{chapter.title}, {chapter.reading} minutes and {chapter.practice} of exercises"
        return (
            f'<a href="{way}" class="chip read" style="--f:{colour(chapter)}"><title>{html.escape(said)}</title>'
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="5"/>'
            f'<text x="{x + w / 2:.1f}" y="{y + h / 2 + 0.36 * size:.1f}" font-size="{size:.1f}">'
            f"{html.escape(name)}</text></a>"
        )


# --- courses ----------------------------------------------------------------------------------------------------------


class Course(Teaching):
    """The weeks of a course."""

    def made(self) -> list[nodes.Node]:
        weeks = teaching.courses(self.chapters)[self.arguments[0]]
        made: list[nodes.Node] = [raw('<ol class="teach-weeks">')]
        for week in weeks:
            sums = f"<b>{span(week.minutes)}</b> minutes, <b>{span(week.points)}</b> points"
            made += [raw(f'<li><h3>{html.escape(week.title)}</h3><p class="teach-sum">{sums}</p>'
                         f"<dl><dt>Before</dt><dd><p>{self.before(week)}</p>"),
                     *(self.parsed(f"And {week.extra} minutes for {week.extra_for}.") if week.extra else []),
                     raw("</dd><dt>In class</dt><dd>"), *self.parsed(week.meeting),
                     raw(f"<p>{self.exercises(week, True)}</p></dd><dt>At home</dt><dd><p>"
                         f"{self.exercises(week, False)}</p></dd></dl>"),
                     *(self.parsed(week.why) if week.why else []), raw("</li>")]
        return [*made, raw("</ol>")]

    def before(self, week: Week) -> str:
        def listed(chapters: tuple[Facts, ...]) -> list[str]:
            return [f"{self.link(chapter)} ({chapter.reading} min)" for chapter in chapters]

        parts = [" and ".join(listed(week.read))] if week.read else []
        if week.one_of:
            *others, final = listed(week.one_of)
            parts.append(f"one of {', '.join(others)} and {final}")
        return "; ".join(parts)

    def exercises(self, week: Week, together: bool) -> str:
        """Those that are done in class, or those that are not."""
        chosen = [[e for e in chapter.exercises if (e.kind in week.together) == together] for chapter in week.chapters]
        numbers = {tuple(e.number for e in some) for some in chosen}
        totals = [sum(e.minutes for e in some) for some in chosen]
        if len(numbers) > 1 or (week.one_of and week.read):  # no two chapters alike: one by one
            return " ".join(f"Exercise {e.number} of {html.escape(short(chapter))}, {e.minutes} minutes."
                            for chapter, some in zip(week.chapters, chosen, strict=True) for e in some)
        *others, last = numbers.pop()
        which = f"Exercises {', '.join(map(str, others))} and {last}" if others else f"Exercise {last}"
        if week.one_of:
            return f"{which} of the chapter, {span((min(totals), max(totals)))} minutes."
        return f"{which} of each chapter, {sum(totals)} minutes."


class Sum(Teaching):
    """A course's minutes and points in a sentence."""

    def made(self) -> list[nodes.Node]:
        weeks = teaching.courses(self.chapters)[self.arguments[0]]
        read = {chapter.id for week in weeks for chapter in week.chapters}
        minutes, points = ([sum(pair) for pair in zip(*(getattr(week, of) for week in weeks), strict=True)]
                           for of in ("minutes", "points"))
        return [nodes.paragraph(text=f"{len(weeks)} weeks, {len(read)} of the {len(self.chapters)} chapters, "
                                     f"{span(minutes)} minutes of reading and exercises, {span(points)} points.")]


class Citation(Teaching):
    """How the book is cited, from CITATION.cff."""

    def made(self) -> list[nodes.Node]:
        file = notebooks.ROOT / "CITATION.cff"
        self.env.note_dependency(str(file))
        cff = yaml.safe_load(file.read_text(encoding="utf-8"))
        (author,) = (one["name"] for one in cff["authors"])
        year, version = self.env.config.copyright, release.version()
        said = f"{author[:1].upper()}{author[1:]} ({year}). *{cff['title']}*, version {version}. <{cff['url']}>"
        fields = {"title": f"{{{cff['title']}}}", "author": f"{{{author}}}", "year": year, "version": version,
                  "url": cff["url"], "license": f"{cff['license']} (code), CC-BY-4.0 (text)"}
        lines = "".join(f"  {key} = {{{value}}},\n" for key, value in fields.items())
        entry = f"@software{{attention_book,\n{lines}}}"
        return self.parsed(f"{said}\n\n```bibtex\n{entry}\n```")


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("teaching-chapters", Chapters)
    app.add_directive("teaching-order", Order)
    app.add_directive("teaching-course", Course)
    app.add_directive("teaching-sum", Sum)
    app.add_directive("teaching-citation", Citation)
    app.connect("html-page-context", add_style)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def add_style(app: Sphinx, pagename: str, *_: object) -> None:
    if pagename == PAGE:
        app.add_css_file("families.css")
        app.add_css_file("teach.css")
