"""What this book adds to Sphinx: everything that ties a chapter, its class and its stored outputs together.

- an image output gets the alternative text that `attn_lib.viz` stored with it;
- collapsed cells say what is inside ("Show the solution");
- a registered class says in which chapter it is explained; a card links to the class and says what time is recorded;
- `% module-reference <family>` becomes the reference of a family's classes, `% task-reference` that of every task;
- `{bibliography}` in a chapter lists the papers cited there;
- `{chapter-list}` lists the chapters, family by family, from the catalog;
- `{chapter-output}` shows an explorer of a chapter on another page.
"""

import html
import inspect
import json
import os
import re
from importlib import import_module
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from myst_nb.core.render import NbElementRenderer
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinxcontrib.bibtex.directives import BibliographyDirective

import attn_lib
from attn_lib.catalog import FAMILIES, Entry
from attn_lib.viz.card import TIME, recorded_time
from attn_lib.viz.style import FAMILY_COLOURS

logger = logging.getLogger(__name__)

PROMPTS = {"solution": ("Show the solution", "Hide the solution"), "setup": ("Set-up", "Set-up")}


def entries(env: BuildEnvironment) -> list[Entry]:
    """The catalog's entries that have a chapter in this build."""
    found = [attn_lib.entry(id) for id in attn_lib.list_modules()]
    return [entry for entry in found if entry.chapter in env.found_docs]


# --- images -----------------------------------------------------------------------------------------------------------


def carry_alternative_text() -> None:
    """Let MyST-NB take an image's `alt` from the output's metadata, as it already takes width and height."""
    render_image = NbElementRenderer.render_image

    def render_image_with_alt(self, data):
        rendered = render_image(self, data)
        alt = data.output_metadata.get(data.mime_type, {}).get("alt")
        for node in rendered:
            if alt and not node.get("alt"):
                node["alt"] = alt
        return rendered

    NbElementRenderer.render_image = render_image_with_alt


# --- collapsed cells --------------------------------------------------------------------------------------------------


class NameCollapsedCells(SphinxPostTransform):
    """Say on the summary what a collapsed cell holds; runs before MyST-NB makes the summary (199)."""

    default_priority = 190
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for cell in self.document.findall(nodes.container):
            for tag, (show, hide) in PROMPTS.items():
                if f"tag_{tag}" in cell["classes"]:
                    cell["prompt_show"], cell["prompt_hide"] = show, hide


# --- docstrings -------------------------------------------------------------------------------------------------------


def keep_blocks(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Let a docstring be read as it was written.

    ``` fences, and indented blocks after a paragraph, are shown as they stand: reStructuredText would run the lines of
    a formula, table or example together. |a − b| is no substitution, and the star of (B, *S) no emphasis.
    """
    result: list[str] = []
    fenced, last = False, ""
    for line in lines:
        if names := re.match(r":(ivar|param) ([\w, ]+):", line):  # "a, b: …" is one item, not a type and a name
            line = f":{names[1]} {names[2].replace(', ', ',')}:{line[names.end():]}"
        if line.lstrip().startswith("```"):
            indent = line[: len(line) - len(line.lstrip())]
            language = line.strip().strip("`") or "text"
            result += ["", "" if fenced else f"{indent}.. code-block:: {language}", ""]
            fenced, last = not fenced, ".."
            continue
        after_gap = bool(result) and not result[-1].strip()
        plain = bool(last) and not last[0].isspace() and not re.match(r"[:*-]|\.\.|\d+\.|>>>", last)
        if not fenced and after_gap and plain and line.startswith(" ") and not last.endswith("::"):
            result += ["::", ""]
            last = ".."
        literal = fenced or (last == ".." and line.startswith(" "))
        result.append(f"    {line}" if fenced else line if literal else plain_signs(line))
        if line.strip() and not (line.startswith(" ") and last == ".."):
            last = line
    lines[:] = [*result, ""]


def plain_signs(line: str) -> str:
    """Escape, outside `code`, the signs that mathematics and reStructuredText both use; a plural may follow `code`."""
    parts = re.split(r"(`+[^`]*`+)", line)
    parts[2::2] = ["\\ " + part if part[:1].isalnum() else part for part in parts[2::2]]
    parts[::2] = [re.sub(r"\||(?<=[\s(,])\*(?=\w+[\s),\]])", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


# --- links between chapter and class ----------------------------------------------------------------------------------


def link_class_to_chapter(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Append "Explained in" to the documentation of a registered class."""
    if what != "class":
        return
    for entry in entries(app.env):
        if entry.cls is obj:
            lines += ["", f":Explained in: :doc:`{entry.name} </{entry.chapter}>`", ""]


def complete_card(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Give a card its line on the recorded time, and let the class it names be a link to its reference.

    The time is not stored in the chapter: it changes whenever a module is measured again, and the chapter does not.
    """
    classes = app.env.get_domain("py").objects
    for card in doctree.findall(lambda node: isinstance(node, nodes.raw) and "attn-card" in node.astext()):
        def link(match: re.Match[str]) -> str:
            if match[1] not in classes:
                return match[0]
            page = app.builder.get_relative_uri(docname, classes[match[1]].docname)
            return f'<a href="{page}#{classes[match[1]].node_id}">{match[0]}</a>'

        markup = re.sub(r"<code>(attn_lib\.[\w.]+)</code>", link, card.astext())
        if TIME in markup:
            id = re.search(r'<div class="attn-card" data-module="(\w+)"', markup)[1]
            markup = markup.replace(TIME, recorded_time(id).html())
        card.children = [nodes.Text(markup)]


def link_map_to_pages(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """The family map links to notebooks, as Jupyter wants it; on the site those are pages, and a module without a
    chapter has its reference."""
    reference = {f"{html.escape(e.name)}, {e.paper.year}": f"book/api/{e.family}#module-{e.id.replace('_', '-')}"
                 for e in map(attn_lib.entry, attn_lib.list_modules())}

    def way(match: re.Match[str]) -> str:
        page, _, anchor = reference[match[1]].partition("#")
        return f'<a href="{app.builder.get_relative_uri(docname, page)}#{anchor}" aria-label="{match[1]}"'

    for map_ in doctree.findall(lambda node: isinstance(node, nodes.raw) and 'class="attn-map"' in node.astext()):
        links = re.sub(r'(<a href="[\w./-]+)\.ipynb"', rf'\1{app.builder.out_suffix}"', map_.astext())
        links = re.sub(r'<a tabindex="0"[^>]*? aria-label="([^"]*)"', way, links)
        map_.children = [nodes.Text(links)]


def write_reference(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put generated reference where a page says `% module-reference <family>`, `% task-table` or `% task-reference`."""
    if family := re.search(r"^% module-reference (\w+)$", source[0], re.MULTILINE):
        source[0] = source[0].replace(family[0], module_reference(app, docname, family[1]))
    if "% task-table" in source[0]:
        source[0] = source[0].replace("% task-table", task_table(app))
    if "% task-reference" in source[0]:
        source[0] = source[0].replace("% task-reference", task_reference(app, docname))


def module_reference(app: Sphinx, docname: str, family: str) -> str:
    """Every module of a family: its whole card, its class, what else its file offers; without a chapter, its flow."""
    lines: list[str] = []
    app.env.note_dependency(inspect.getfile(import_module(f"attn_lib.{family}")))  # it names every module
    for entry in map(attn_lib.entry, attn_lib.list_modules(family)):
        app.env.note_dependency(inspect.getfile(entry.cls))
        lines += [f"(module-{entry.id})=", f"## {entry.name}", ""]
        lines += ["```{raw} html", attn_lib.card(entry.id, part="whole")._repr_html_(), "```", ""]
        if entry.chapter not in app.env.found_docs:
            lines += [*flow(app, docname, entry), ""]
        lines += ["```{eval-rst}", f".. autoclass:: {entry.cls.__module__}.{entry.cls.__qualname__}", ""]
        for name, thing in vars(inspect.getmodule(entry.cls)).items():
            own = getattr(thing, "__module__", None) == entry.cls.__module__ and not name.startswith("_")
            if own and thing is not entry.cls and (inspect.isfunction(thing) or inspect.isclass(thing)):
                kind = "autoclass" if inspect.isclass(thing) else "autofunction"
                lines += [f".. {kind}:: {entry.cls.__module__}.{name}", ""]
        lines += ["```", ""]
    return "\n".join(lines)


def flow(app: Sphinx, docname: str, entry: Entry) -> list[str]:
    """The diagram of a module's named steps, as Markdown."""
    module, inputs = attn_lib.example(entry.id)
    with attn_lib.trace() as t:
        module.eval()(*inputs)
    steps = ", ".join(f"{name} ({t.dims(name)})" for name in t.names())
    alt = f"Diagram of the named steps of a call: {steps}."
    picture = attn_lib.viz.flow(module, *inputs, title="What happens inside?", alt=alt)
    return image(app, docname, f"{entry.id}-flow", picture)


def image(app: Sphinx, docname: str, name: str, picture: object) -> list[str]:
    """A figure of `attn_lib.viz` as Markdown; its file lies with the build."""
    file = Path(app.doctreedir) / "pictures" / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)
    path = Path(os.path.relpath(file, (Path(app.srcdir) / docname).parent))
    return [f"```{{image}} {path.as_posix()}", f":alt: {picture.alt}", f":width: {picture.width}px", "```"]


def task_table(app: Sphinx) -> str:
    """Every task in a line, with links to the chapters that train on it."""
    pages = {Path(page).name: page for page in app.env.found_docs if page.startswith("chapters/")}
    lines = ["| Task | What is asked | Chance | Place for a module | Chapters |", "| --- | --- | --- | --- | --- |"]
    for task in all_tasks(app):
        chapters = ", ".join(f"{{doc}}`{name} </{pages[name]}>`" for name in task.chapters if name in pages)
        chance = f"{task.chance:.3g} ({task.score_name})" if task.build else "only shown"
        place = task.place.replace(" × ", "\u00a0×\u00a0")
        lines.append(f"| [{task.id}](#task-{task.id}) | {task.question} | {chance} | {place} | {chapters} |")
    return "\n".join(lines)


def task_reference(app: Sphinx, docname: str) -> str:
    """Every task with its picture, its facts and what its file offers."""
    lines: list[str] = []
    for task in all_tasks(app):
        lines += [f"(task-{task.id})=", f"## {task.id}", "", *image(app, docname, task.id, task.picture()), ""]
        if task.build:
            steps = ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in task.training.items())
            lines += [f"Score: {task.score_name}, {'higher' if task.higher_is_better else 'lower'} is better; chance "
                      f"{task.chance:.3g}. Place: {task.place}. Training: {steps}.", ""]
        lines += ["```{eval-rst}", f".. automodule:: attn_lib.tasks.{task.id}", "   :members:", "```", ""]
    return "\n".join(lines)


def all_tasks(app: Sphinx) -> list:
    found = [attn_lib.tasks.task(id) for id in attn_lib.tasks.list_tasks()]
    for file in Path(inspect.getfile(attn_lib.tasks)).parent.glob("*.py"):
        app.env.note_dependency(str(file))
    return found


# --- directives -------------------------------------------------------------------------------------------------------


class ChapterList(SphinxDirective):
    """The chapters of the book: the foundations in their order, then by family name, what the mechanism does, paper."""

    def run(self) -> list[nodes.Node]:
        found = entries(self.env)
        result: list[nodes.Node] = []
        order = (Path(self.env.srcdir) / "_toc.yml").read_text(encoding="utf-8")
        foundations = re.findall(r"chapters/foundations/\w+", order)
        if foundations:
            result.append(nodes.rubric("", "Foundations"))
            result.append(nodes.bullet_list("", *map(self.foundation, foundations), classes=["attn-chapters"]))
        for family, caption in FAMILIES.items():
            members = [entry for entry in found if entry.family == family]
            if members:
                colour = f'<span class="attn-family" style="background: {FAMILY_COLOURS[family]}"></span>'
                result.append(nodes.rubric("", "", nodes.raw("", colour, format="html"), nodes.Text(caption)))
                result.append(nodes.bullet_list("", *map(self.item, members), classes=["attn-chapters"]))
        return result

    def foundation(self, chapter: str) -> nodes.list_item:
        """Title and answer as the chapter itself has them: the first two paragraphs of its first cell."""
        path = Path(self.env.srcdir) / f"{chapter}.ipynb"
        self.env.note_dependency(str(path))
        opening = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        title, answer = [part.strip() for part in opening.split("\n\n")][:2]
        link = self.link(title.removeprefix("# "), chapter)
        plain = answer.replace("$", "")  # y = f(g(x), x) can be read as it stands
        return nodes.list_item("", nodes.paragraph("", "", link), nodes.paragraph(text=plain))

    def item(self, entry: Entry) -> nodes.list_item:
        self.env.note_dependency(inspect.getfile(entry.cls))
        paper = nodes.inline(text=f"{entry.paper.venue} {entry.paper.year}", classes=["attn-paper"])
        head = nodes.paragraph("", "", self.link(entry.name, entry.chapter), nodes.Text(" "), paper)
        return nodes.list_item("", head, nodes.paragraph(text=entry.summary))

    def link(self, name: str, chapter: str) -> nodes.Node:
        return addnodes.pending_xref("", nodes.strong(text=name), refdomain="std", reftype="doc",
                                     reftarget=f"/{chapter}", refexplicit=True, refwarn=True)


class Bibliography(BibliographyDirective):
    """In a chapter, `{bibliography}` lists the papers cited there; the page of all papers is where citations lead."""

    def run(self) -> list[nodes.Node]:
        if self.env.docname.startswith("chapters/"):
            self.options.setdefault("filter", "docname in docnames")
            self.options["list"] = "bullet"  # a second list of labels would collide with the first
        return super().run()


class ChapterOutput(SphinxDirective):
    """An interactive output of a chapter, shown on another page: the first explorer of the given kind.

    ```{chapter-output} chapters/spatial/ccnet
    :kind: attention
    ```
    """

    required_arguments = 1
    option_spec = {"kind": directives.unchanged_required}  # noqa: RUF012  (docutils' own protocol)

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.srcdir) / f"{self.arguments[0]}.ipynb"
        if not path.exists():
            raise self.error(f"{path} is not there")
        self.env.note_dependency(str(path))
        wanted = f'data-kind="{self.options["kind"]}"' if "kind" in self.options else "attn-explorer"
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                markup = "".join(output.get("data", {}).get("text/html", ""))
                if "attn-explorer" in markup and wanted in markup:
                    return [nodes.raw("", markup, format="html")]
        raise self.error(f"{path} stores no explorer with {wanted}")


# --- no other host ----------------------------------------------------------------------------------------------------


def without_thebe(app: Sphinx, config: object) -> None:
    """Jupyter Book always loads sphinx-thebe, which writes a CDN's address into every page; take its hands off."""
    for listeners in app.events.listeners.values():
        listeners[:] = [item for item in listeners if not item.handler.__module__.startswith("sphinx_thebe")]
    app.registry.css_files[:] = [file for file in app.registry.css_files if file[0] != "sphinx-thebe.css"]


def without_font_preload(app: Sphinx, exception: Exception | None) -> None:
    """The theme preloads its icon fonts in a mode that a browser refuses for pages opened from a folder."""
    for page in Path(app.outdir).rglob("*.html") if exception is None else ():
        text = page.read_text(encoding="utf-8")
        lighter = re.sub(r'<link rel="preload" as="font"[^>]*>\n?', "", text)
        if lighter != text:
            page.write_text(lighter, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, object]:
    carry_alternative_text()
    app.add_post_transform(NameCollapsedCells)
    app.setup_extension("sphinxcontrib.bibtex")
    app.add_directive("bibliography", Bibliography, override=True)
    app.add_directive("chapter-list", ChapterList)
    app.add_directive("chapter-output", ChapterOutput)
    app.connect("source-read", write_reference)
    app.connect("config-inited", without_thebe)
    app.connect("build-finished", without_font_preload)
    app.connect("autodoc-process-docstring", keep_blocks, priority=600)  # after napoleon
    app.connect("autodoc-process-docstring", link_class_to_chapter, priority=700)
    app.connect("doctree-resolved", complete_card)
    app.connect("doctree-resolved", link_map_to_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
