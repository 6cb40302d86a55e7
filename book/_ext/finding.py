"""Finding: names in the search and in the index of terms.

Sphinx's own search counts words, so that a chapter's short name drowns in the pages that use it. `names.js`, written
beside its index, holds what has a name: pages, modules with all their aliases, tasks, functions and classes;
`_static/search.js` looks there first. The same aliases stand in the index of terms.
"""

import inspect
import json
import re
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.search import SearchEnglish
from sphinx.transforms import SphinxTransform

import attn_lib
from attn_lib.catalog import Entry
from book._ext import families

# What readers call a page, or a function, that bears another name.
WORDS = {
    "book/families/channel": ("channel gate", "channel weighting", "recalibration"),
    "book/families/spatial": ("position attention", "where to look"),
    "book/families/channel_spatial": ("mixed attention",),
    "book/families/branch": ("dynamic kernels", "mixture of kernels"),
    "book/families/temporal": ("time series", "forecasting", "video"),
    "book/families/self_attention": ("transformer", "tokens", "queries keys values"),
    "book/families/mlp": ("token mixing", "mixer", "multilayer perceptron"),
    "book/families/conv": ("convolution kernels", "taps"),
    "book/families/fusion": ("multi-scale fusion", "feature fusion"),
    "chapters/foundations/gating": ("gate", "attention", "map of all chapters"),
    "chapters/foundations/shapes": ("einops", "layouts", "reshape"),
    "chapters/foundations/measuring": ("FLOPs", "roofline", "memory", "timing", "benchmark", "latency"),
    "chapters/foundations/plugging": ("insert a module", "ResNet", "fine-tuning", "pretrained network"),
    "chapters/foundations/yolo": ("YOLO", "ultralytics", "YAML", "detection"),
    "book/using": ("Colab", "install", "nbgrader", "assign", "exercises", "make lab"),
    "book/notation": ("symbols", "axes", "FLOP"),
    "book/networks": ("compatibility", "quantisation", "ONNX", "TorchScript", "DDP", "EMA", "SyncBatchNorm"),
    "book/errata": ("differences", "mistakes"),
    "book/bibliography": ("papers", "references", "citations"),
    "book/atlas": ("compare", "choose a module"),
    "attn_lib.ops.attend": ("softmax attention", "scaled dot-product attention"),
    "attn_lib.ops.bilinear_sample": ("sampling", "interpolation", "grid sample"),
    "attn_lib.ops.neighbourhoods": ("unfold", "local windows"),
    "attn_lib.ops.relative_logits": ("relative positions",),
}


class Name(NamedTuple):
    """A row of `names.js`."""

    title: str
    address: str  # from the site's root
    kind: str  # "chapter", "page", "module", "task" or "code": the order among equals
    place: str  # said below the title
    names: list[str]  # those that are asked for first
    words: str  # that it can be found by, too
    summary: str


class WordsOnly(SearchEnglish):
    """Numbers are half of the words of an executed book, and nobody searches for them; Sphinx's script drops them."""

    def word_filter(self, word: str) -> bool:
        return super().word_filter(word) and not word[:1].isdigit()


def all_names(app: Sphinx) -> list[Name]:
    """Everything on the site that has a name."""
    env, uri = app.env, app.builder.get_target_uri
    explained = {attn_lib.entry(id).chapter for id in attn_lib.list_modules()}
    found = [page_name(env, docname, uri(docname)) for docname in sorted(env.found_docs - explained)]
    found += [module_name(app, attn_lib.entry(id)) for id in attn_lib.list_modules()]
    if "book/api/tasks" in env.found_docs:
        for id in attn_lib.tasks.list_tasks():
            anchor = nodes.make_id(f"task-{id}")
            found.append(Name(id, f"{uri('book/api/tasks')}#{anchor}", "task", "Task", [id], "task data set",
                              plain(attn_lib.tasks.task(id).question)))
    return [*found, *code_names(app)]


def page_name(env: BuildEnvironment, docname: str, address: str) -> Name:
    title = env.titles[docname].astext()
    names = [title, *re.split(r": ", title)[1:], *WORDS.get(docname, ())]
    folder = docname.rsplit("/", 1)[0]
    place = {"book/families": "Family", "book/api": "Reference", "chapters/foundations": "Foundations"}
    return Name(title, address, "page", place.get(folder, "Page"), names, "", env.metadata[docname]["description"])


def module_name(app: Sphinx, entry: Entry) -> Name:
    """A module: its chapter, or as long as it has none, its section in the reference."""
    read = entry.chapter in app.env.found_docs
    title = app.env.titles[entry.chapter].astext() if read else entry.name
    names = [*entry.aliases, title, entry.name, entry.id, *([] if read else [entry.cls.__name__])]
    papers = [f"{paper.title} {surnames(app, paper.key)} {paper.year} {paper.arxiv or ''}" for paper in entry.papers]
    family = families.words(entry.family).title
    return Name(title, families.address(app, "", entry), "chapter" if read else "module",
                f"{'Chapter' if read else 'Reference'} · {family}", list(dict.fromkeys(names)),
                " ".join([family, *papers]), entry.summary)


def surnames(app: Sphinx, key: str) -> str:
    """Of a paper's authors."""
    persons = app.env.get_domain("cite").bibdata.data.entries[key].persons.get("author", ())
    return " ".join(" ".join(person.last_names) for person in persons)


def code_names(app: Sphinx) -> list[Name]:
    """Functions and classes; a module that has no chapter is its class already."""
    own = {f"{e.cls.__module__}.{e.cls.__qualname__}" for e in map(attn_lib.entry, attn_lib.list_modules())
           if e.chapter not in app.env.found_docs}
    found = []
    for name, thing in sorted(app.env.get_domain("py").objects.items()):
        if thing.objtype not in ("function", "class") or thing.aliased or name in own:
            continue
        module, _, last = name.rpartition(".")
        said = (inspect.getdoc(getattr(import_module(module), last)) or "").split("\n\n")[0].replace("\n", " ")
        found.append(Name(last, f"{app.builder.get_target_uri(thing.docname)}#{thing.node_id}", "code",
                          f"{thing.objtype.capitalize()} · {module}", [last, name, *WORDS.get(name, ())], "",
                          plain(said.split(". ")[0])))
    return found


def plain(text: str) -> str:
    return text.replace("`", "")


def write_names(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        rows = json.dumps(all_names(app), ensure_ascii=False, separators=(",", ":"))
        (Path(app.outdir) / "names.js").write_text(f"globalThis.BOOK_NAMES={rows};\n", encoding="utf-8")


class AliasesInTheIndex(SphinxTransform):
    """A module's other names lead, in the index of terms, to its chapter, or to its section in the reference."""

    default_priority = 800  # before the index of the page is collected

    def apply(self, **kwargs) -> None:
        for id in attn_lib.list_modules():
            entry = attn_lib.entry(id)
            if self.env.docname == entry.chapter:
                section = next(self.document.findall(nodes.section))
                self.enter(section, entry, section["ids"][0])
            elif self.env.docname == families.REFERENCE.format(entry.family) \
                    and entry.chapter not in self.env.found_docs:
                for section in self.document.findall(nodes.section):
                    if families.anchor(entry) in section["ids"]:
                        self.enter(section, entry, families.anchor(entry))

    def enter(self, section: nodes.section, entry: Entry, target: str) -> None:
        names = dict.fromkeys([entry.name, *(f"{alias} ({entry.name})" for alias in entry.aliases
                                             if alias.lower() != entry.name.lower())])
        self.env.note_dependency(inspect.getfile(entry.cls))
        section.insert(1, addnodes.index(entries=[("single", name, target, "", None) for name in names]))


def setup(app: Sphinx) -> dict[str, object]:
    app.add_search_language(WordsOnly)
    app.add_transform(AliasesInTheIndex)
    app.add_js_file("search.js", loading_method="defer")
    app.add_css_file("search.css")
    app.connect("build-finished", write_names)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
