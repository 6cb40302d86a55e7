"""The atlas and the errata: pages that are made from the catalogue and the recorded measurements.

- `{atlas}` becomes the table of all modules. It is whole without a script; `_static/atlas.js` makes it searchable.
- `{errata}` becomes every place where paper, release, packages and code in circulation differ from the library.
"""

import html
import inspect
import math
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import attn_lib
from attn_lib.catalog import FAMILIES, MEASURED, SYMMETRIES, Entry
from attn_lib.measure import records
from attn_lib.measure.records import Row
from attn_lib.measure.suite import SIDES, sizes
from attn_lib.viz import style
from attn_lib.viz.timing import latest, why_not
from attn_lib.viz.words import SYMMETRIES_SAID, at_limits

SIDE = 56  # of the map that numbers are given for
PAGE = "book/atlas"

INPUTS = {"map": "feature map", "tokens": "tokens", "series": "series", "video": "video", "several": "several inputs"}
GROWTHS = {"none": "not at all", "linear": "linearly", "between": "in between", "quadratic": "quadratically"}
ACTIONS = {"gate": "gates", "mix": "mixes", "move": "moves"}
SHORT = {"compile": "compiles", "export": "exports", "half": "runs in half precision", "odd_sizes": "takes odd sizes",
         "batch_one": "trains on a batch of one"}
SEEN = {"channel_permutation": "which channel is which", "spatial_permutation": "where things stand",
        "scaling": "how bright the image is"}  # what a module that breaks the symmetry notices

# The questions that a reader comes with, as states of the filters.
PRESETS = {
    "A channel gate for almost nothing?": "family=channel&action=gate&sort=time",
    "Do positions matter? Something cheap that knows them": "notices=spatial_permutation&input=map&sort=time",
    "Must everything see everything? Attention below quadratic cost":
        "family=spatial,temporal,self_attention,mlp&action=mix&growth=linear,between&sort=time",
    "A series of time steps?": "input=series&sort=time",
    "Into trained weights without changing them?": "fresh=identity&sort=time",
    "Two inputs or more?": "input=several",
    "Any size of image?": "size=any&input=map&sort=time",
}


@dataclass(frozen=True)
class Counted:
    """What was counted of a module in float32, per item of the batch.

    Attributes:
        flops, bytes: at `SIDE`: of the forward pass, and kept for the backward pass.
        flops_exponent, bytes_exponent: in the number of positions, between half of `SIDE` and `SIDE`; None where there
            are none at all.
        growth: one of `GROWTHS`: that of FLOPs or of bytes kept, whichever grows faster.
    """

    flops: int
    bytes: int
    flops_exponent: float | None
    bytes_exponent: float | None
    growth: str


@dataclass(frozen=True)
class Footing:
    """Where and how times were recorded; a reader of the atlas chooses one."""

    kind: str
    dtype: str
    mode: str
    device: str
    torch: str
    batch: int

    @property
    def key(self) -> str:
        """In the page's address."""
        return f"{self.kind}-{self.dtype}-{self.mode}"

    @property
    def name(self) -> str:
        return f"{'GPU' if self.kind == 'cuda' else 'CPU'}, {self.dtype}" + ", compiled" * (self.mode == "compiled")

    @property
    def where(self) -> str:
        """For the note under the charts."""
        exact = " without TF32" if (self.kind, self.dtype) == ("cuda", "float32") else ""
        own = "; the GPU's own time, without Python's, which for small maps may be longer" * (self.kind == "cuda")
        return (f"{self.device}, torch {self.torch.partition('+')[0]}, {self.dtype}{exact}, {self.mode}, "
                f"{self.batch} at once and the time divided by {self.batch}{own}")

    def rows(self, rows: list[Row]) -> list[Row]:
        """Those of this footing."""
        return [r for r in rows if (r["kind"], r["dtype"], r["mode"]) == (self.kind, self.dtype, self.mode)]


def footings(rows: list[Row]) -> list[Footing]:
    """Those that rows were recorded on, a GPU's first if it came to every module, else a CPU's."""
    ids = set(attn_lib.list_modules())
    whole = {row["id"] for row in rows if row["kind"] == "cuda"} == ids
    found = {}
    for row in rows:
        if row["shapes"]:
            footing = Footing(*(row[key] for key in ("kind", "dtype", "mode", "device", "torch")), row["shapes"][0][0])
            found.setdefault(footing.key, footing)
    return sorted(found.values(), key=lambda f: ((f.kind == "cuda") != whole, f.mode != "eager", f.dtype != "float32"))


def times(id: str, footing: Footing, rows: list[Row], *, backward: bool = False) -> dict[int, float | str]:
    """Side of the map -> seconds for an item of the batch, or why there is no time."""
    layout = attn_lib.entry(id).layout
    side_of = {sizes(layout, [side])[0]: side for side in SIDES[footing.kind]}
    found = {side_of[tuple(r["size"])]: r for r in footing.rows(rows)
             if r["backward"] == backward and tuple(r["size"]) in side_of}
    return {side: why_not(r) if r["error"] else r["median"] / r["shapes"][0][0] for side, r in sorted(found.items())}


def counted(id: str, rows: list[Row]) -> Counted | None:
    """Counted on any device, a CPU if there is one: what does not fit into a GPU has counts all the same."""
    layout = attn_lib.entry(id).layout
    for kind in ("cpu", "cuda"):
        by_size = {tuple(r["size"]): r for r in rows if not r["error"] and not r["backward"]
                   and (r["kind"], r["dtype"], r["mode"]) == (kind, "float32", "eager")}
        found = [by_size.get(size) for size in sizes(layout, (SIDE // 4, SIDE // 2, SIDE))]
        if all(found):
            least, small, large = found
            return Counted(
                flops=large["flops"] // large["shapes"][0][0], bytes=large["saved_bytes"] // large["shapes"][0][0],
                flops_exponent=_exponent(small, large, "flops"), bytes_exponent=_exponent(small, large, "saved_bytes"),
                growth=max((_growth(least, small, large, what) for what in ("flops", "saved_bytes")),
                           key=[*GROWTHS].index),
            )
    return None


def _growth(least: Row, small: Row, large: Row, what: str) -> str:
    """One of `GROWTHS`, of FLOPs or bytes over three sizes.

    A sum of a linear and a steeper part has an exponent just above 1 that rises with the size; a linear one whose
    borders count less and less has one that falls.
    """
    before, exponent = _exponent(least, small, what) or 0.0, _exponent(small, large, what) or 0.0
    if exponent < 1.02 or exponent <= before:
        return "none" if exponent < 0.1 else "linear"
    return "between" if exponent < 1.75 else "quadratic"


def _exponent(small: Row, large: Row, what: str) -> float | None:
    """Of growth in the number of positions."""
    if not small[what] or not large[what]:
        return None
    positions = math.prod(large["size"]) / math.prod(small["size"])
    return max(0.0, math.log(large[what] / small[what]) / math.log(positions))


def input_of(entry: Entry) -> str:
    """One of `INPUTS`."""
    if len(entry.layout.tensors) > 1:
        return "several"
    axes = set(entry.layout.free)
    return "video" if {"T", "H"} <= axes else "map" if "H" in axes else "series" if axes & {"T", "L"} else "tokens"


# --- the table --------------------------------------------------------------------------------------------------------


def atlas(has_chapter: set[str]) -> str:
    """The page's table with its controls; `has_chapter` holds the ids whose chapter is on the site."""
    recorded = latest(records())
    on = footings(recorded)
    own = {id: [row for row in recorded if row["id"] == id] for id in attn_lib.list_modules()}
    rows = "".join(_row(attn_lib.entry(id), mine, on, id in has_chapter) for id, mine in own.items())
    heads = (("name", "Module"), ("year", "Year"), ("action", "It"), ("input", "Input"), ("params", "Parameters"),
             ("flops", "FLOPs"), ("bytes", "Kept for backward"), ("time", "Time"), ("fresh", "Fresh"),
             ("chapter", "Read"), ("training", "Time to train"), ("same", "Commutes with"), ("limits", "At its limits"),
             ("paper", "Paper"))
    header = "".join(f'<th scope="col" data-k="{key}"><button type="button">{title}</button></th>'
                     for key, title in heads)
    where = html.escape(on[0].where) if on else "not recorded yet"
    return (
        f'<div class="attn-atlas">{_controls(on)}<div class="atlas-side" hidden></div>'
        f'<p class="atlas-note">One item of {SIDE} × {SIDE} positions, 64 channels or the nearest number that fits, '
        f'otherwise the paper\'s defaults. Times: <span class="atlas-where">{where}</span>. FLOPs and bytes are '
        "counted in float32, FLOPs of matrix products and convolutions only, so that a module without any has 0: sort "
        "by time. Small numbers are exponents in the number of positions.</p>"
        f'<div class="atlas-scroll"><table class="atlas-table"><thead><tr>{header}</tr></thead><tbody>{rows}</tbody>'
        f'</table></div></div>'
    )


def _row(entry: Entry, rows: list[Row], on: list[Footing], chapter: bool) -> str:
    """A module's row, with the times of the first footing; those of all stand in its `data-t`, for the script."""
    m = counted(entry.id, rows)
    forward = [times(entry.id, footing, rows) for footing in on]
    training = [times(entry.id, footing, rows, backward=True) for footing in on]
    alias = entry.aliases[0]
    also = [name for name in entry.aliases[1:] if name.lower() not in (entry.name.lower(), entry.id)]
    reference = f"api/{entry.family}.html#{entry.cls.__module__}.{entry.cls.__qualname__}"
    way = f"../{entry.chapter}.html" if chapter else reference
    module, _ = attn_lib.example(entry.id, MEASURED, batch=1, size=sizes(entry.layout, [SIDE])[0])
    params = sum(p.numel() for p in module.parameters())
    broken = [name for name in SYMMETRIES if name not in entry.commutes_with]
    search = " ".join([entry.id, *entry.aliases, entry.paper.title, entry.paper.arxiv or ""])
    data = {
        "id": entry.id, "family": entry.family, "action": entry.action, "input": input_of(entry),
        "growth": m.growth if m else "", "fresh": "identity" if entry.identity_at_init else "changed",
        "size": "fixed" if {"height", "width", "length"} & set(entry.example) else "any",
        "same": " ".join(name for name in SYMMETRIES if name in entry.commutes_with), "notices": " ".join(broken),
        "runs": " ".join(rule for rule in SHORT if rule not in entry.forbids),
        "chapter": "yes" if chapter else "no", "q": search,
        "t": "|".join(";".join(f"{side}:{_figures(t)}" for side, t in [*f.items(), *([("train", b[SIDE])] if SIDE in b
                      else [])]) for f, b in zip(forward, training, strict=True)),
    }
    attributes = "".join(f' data-{name}="{html.escape(str(value))}"' for name, value in data.items() if value)
    read = (f'<a href="{way}">chapter</a>' if chapter else f'<a href="{reference}">reference</a>')
    same = ", ".join(SYMMETRIES_SAID[name] for name in SYMMETRIES if name in entry.commutes_with) or "none tested"
    paper = f"{html.escape(entry.paper.title)}, {html.escape(entry.paper.venue)}"
    if entry.paper.arxiv:
        number = html.escape(entry.paper.arxiv)
        paper += f', <a href="https://arxiv.org/abs/{number}">{number}</a>'
    limits = html.escape(at_limits(entry))
    cells = [
        ("year", entry.paper.year, str(entry.paper.year)), ("action", "", ACTIONS[entry.action]),
        ("input", "", INPUTS[input_of(entry)]), ("params", params, f"{params:,}"),
        ("flops", m.flops if m else "", _grown(style.si(m.flops) if m.flops else "0", m.flops_exponent) if m else "–"),
        ("bytes", m.bytes if m else "", _grown(style.si(m.bytes, "B") if m.bytes else "0", m.bytes_exponent)
         if m else "–"),
        ("time", *_time(forward)),
        ("fresh", "", "identity" if entry.identity_at_init else "changes x"), ("chapter", "", read),
        ("training", *_time(training)),
        ("same", len(entry.commutes_with), same), ("limits", "", limits), ("paper", "", paper),
    ]
    body = "\n".join(f'<td data-k="{key}"' + (f' data-v="{value}"' if value != "" else "") + f">{text}</td>"
                   for key, value, text in cells)
    others = f" ({html.escape(', '.join(also))})" if also else ""
    return (
        f'<tr id="m-{entry.id}"{attributes}><th scope="row" data-k="name" data-v="{html.escape(entry.name)}">'
        f'<span class="atlas-dot" style="--f:{style.FAMILY_COLOURS[entry.family]}" title="{FAMILIES[entry.family]}">'
        "</span>"
        f'<a href="{way}">{html.escape(entry.name)}</a> <b>{html.escape(alias)}</b>{others}'
        f"<small>{html.escape(entry.summary)}</small></th>\n{body}</tr>"
    )


def _grown(text: str, exponent: float | None) -> str:
    return text if exponent is None else f"{text} <sup>{exponent:.1f}</sup>".replace(" <sup>0.0</sup>", " <sup>0</sup>")


def _time(found: list[dict[int, float | str]]) -> tuple[str, str]:
    """A cell's value and text, on the first footing."""
    time = found[0].get(SIDE, "–") if found else "–"
    return ("", time) if isinstance(time, str) else (_figures(time), style.si(time, "s"))


def _figures(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


# --- the controls -----------------------------------------------------------------------------------------------------


def _controls(on: list[Footing]) -> str:
    """Hidden until the script is there: without it they would do nothing."""
    choices = "".join(f'<option value="{f.key}" data-where="{html.escape(f.where)}">{f.name}</option>' for f in on)
    presets = "".join(f'<button type="button" data-state="{html.escape(state)}">{question}</button>'
                      for question, state in PRESETS.items())
    entries = [attn_lib.entry(id) for id in attn_lib.list_modules()]
    years = [entry.paper.year for entry in entries]
    families = {family: title for family, title in FAMILIES.items() if any(e.family == family for e in entries)}
    inputs = {name: text for name, text in INPUTS.items() if any(input_of(e) == name for e in entries)}
    fields = "".join([
        _field("family", "Family", families, dots=True),
        _field("action", "What it does", ACTIONS),
        _field("input", "Input", inputs),
        _field("growth", "Cost grows with the positions", GROWTHS),
        _field("fresh", "A fresh module", {"identity": "is the identity"}),
        _field("size", "Size of the image", {"any": "any"}),
        _field("chapter", "Chapter", {"yes": "written"}),
    ])
    more = "".join([
        _field("notices", "It notices", SEEN),
        _field("same", "It commutes with", SYMMETRIES_SAID),
        _field("runs", "It", SHORT),
    ])
    shown = "".join(f'<label><input type="checkbox" name="column" value="{key}">{title}</label>' for key, title in (
        ("training", "time to train"), ("same", "symmetries"), ("limits", "limits"), ("paper", "paper")))
    return (
        '<div class="atlas-controls" hidden>'
        f'<div class="atlas-presets" role="group" aria-label="Questions">{presets}</div>'
        '<input type="search" name="q" placeholder="SE, criss-cross, parameter-free, strip …" '
        'aria-label="Search by name, alias, sentence or title">'
        f'<details><summary>Filters</summary><div class="atlas-fields">{fields}</div></details>'
        f'<details><summary>More filters and columns</summary><div class="atlas-fields">{more}'
        f'<fieldset><legend>Year</legend><label>from <input type="number" name="from" min="{min(years)}" '
        f'max="{max(years)}" placeholder="{min(years)}"></label><label>to <input type="number" name="to" '
        f'min="{min(years)}" max="{max(years)}" placeholder="{max(years)}"></label></fieldset>'
        f"<fieldset><legend>Further columns</legend>{shown}</fieldset></div></details>"
        '<p class="atlas-count" aria-live="polite"><output></output> '
        '<label class="atlas-sort">sorted by <select name="sort" aria-label="Sort by"></select></label> '
        f'<label class="atlas-sort">times on <select name="on" aria-label="Times on">{choices}</select></label> '
        '<button type="button" name="all">Show all</button> '
        '<button type="button" name="csv">Download as CSV</button></p>'
        '<div class="atlas-charts"><figure><div class="atlas-chart" data-chart="cost"></div>'
        "<figcaption>Time over bytes kept for the backward pass, of what the table shows.</figcaption></figure>"
        '<figure><div class="atlas-chart" data-chart="scaling"></div>'
        "<figcaption>Time over the size of the map, of the rows that are ticked.</figcaption></figure></div></div>"
    )


def _field(name: str, legend: str, choices: dict[str, str], dots: bool = False) -> str:
    boxes = []
    for value, text in choices.items():
        dot = (f'<span class="atlas-dot" style="--f:{style.FAMILY_COLOURS[value]}"></span>' if dots else "")
        boxes.append(f'<label><input type="checkbox" name="{name}" value="{value}">{dot}{text}</label>')
    return f"<fieldset><legend>{legend}</legend>{''.join(boxes)}</fieldset>"


# --- errata -----------------------------------------------------------------------------------------------------------


def errata(repository: str, branch: str) -> str:
    """Every erratum of the catalogue, by family and module, each with the test that shows it."""
    root = Path(attn_lib.__file__).parents[1]
    parts = []
    for family, title in FAMILIES.items():
        members = [e for e in map(attn_lib.entry, attn_lib.list_modules(family)) if e.errata]
        if members:
            rows = "".join(_errata_rows(entry, root, f"{repository}/blob/{branch}") for entry in members)
            parts.append(
                f'<h2 id="{family}">{title}</h2><div class="atlas-scroll"><table class="errata-table"><thead><tr>'
                f"<th scope=col>Module</th><th scope=col>Who</th><th scope=col>There</th><th scope=col>Here</th>"
                f"<th scope=col>Shown by</th></tr></thead><tbody>{rows}</tbody></table></div>")
    return f'<div class="attn-errata">{"".join(parts)}</div>'


def _errata_rows(entry: Entry, root: Path, blob: str) -> str:
    own, limits = f"tests/unit/modules/test_{entry.id}.py", f"tests/unit/modules/limits/test_{entry.family}.py"
    text = (root / own).read_text(encoding="utf-8")
    rows = []
    for k, e in enumerate(entry.errata):
        file = own if f"def {e.test}(" in text else limits
        first = (f'<th scope="rowgroup" rowspan="{len(entry.errata)}" id="errata-{entry.id}">'
                 f"{html.escape(entry.name)}</th>" if k == 0 else "")
        words = html.escape(e.test.removeprefix("test_").replace("_", " "))
        rows.append(f"<tr>{first} <td>{e.source}</td> <td>{marked(e.there)}</td> <td>{marked(e.here)}</td> "
                    f'<td><a href="{blob}/{file}">{words}</a></td></tr>')
    return "".join(rows)


def marked(text: str) -> str:
    """Escaped, with `code` as code."""
    parts = html.escape(text, quote=False).split("`")
    return "".join(part if k % 2 == 0 else f"<code>{part}</code>" for k, part in enumerate(parts))


# --- Sphinx -----------------------------------------------------------------------------------------------------------


class Atlas(SphinxDirective):
    """The table of all modules."""

    def run(self) -> list[nodes.Node]:
        note_modules(self.env)
        chapters = {id for id in attn_lib.list_modules() if attn_lib.entry(id).chapter in self.env.found_docs}
        return [nodes.raw("", atlas(chapters), format="html")]


class Errata(SphinxDirective):
    """The table of errata."""

    def run(self) -> list[nodes.Node]:
        note_modules(self.env)
        options = self.env.config.html_theme_options
        return [nodes.raw("", errata(options["repository_url"], options["repository_branch"]), format="html")]


def note_modules(env: object) -> None:
    """The page is made anew when a module changes, or a family has one more."""
    for family in FAMILIES:
        env.note_dependency(inspect.getfile(import_module(f"attn_lib.{family}")))
    for id in attn_lib.list_modules():
        env.note_dependency(inspect.getfile(attn_lib.entry(id).cls))


def add_script(app: Sphinx, pagename: str, *_: object) -> None:
    """The atlas's script goes to the atlas alone."""
    if pagename == PAGE:
        app.add_js_file("atlas.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("atlas", Atlas)
    app.add_directive("errata", Errata)
    app.connect("html-page-context", add_script)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
