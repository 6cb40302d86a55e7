"""The page *In other people's networks*: `{networks}` becomes the tables of what was run, and why what fails does.

They are made from the record that `make test-networks` writes; see `book.tools.networks`.
"""

import html
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from atlas import marked
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import attn_lib
from book.tools.networks import FILE, NO, NONE, USES, explanation, parted
from book.tools.record import load

PACKAGES = ("torch", "timm", "torchvision", "onnx", "onnxruntime", "ultralytics")
ALONE = "nothing"  # head of the row of a network alone


@dataclass
class Notes:
    """Reasons by number: those of one explanation share it."""

    numbers: dict[str, int] = field(default_factory=dict)
    sentences: dict[str, list[str]] = field(default_factory=dict)

    def number(self, why: str) -> int:
        words = explanation(why) or why
        seen = self.sentences.setdefault(words, [])
        if why not in seen:
            seen.append(why)
        return self.numbers.setdefault(words, len(self.numbers) + 1)


def tables(data: dict[str, Any]) -> str:
    """All of the page that the record holds: a table a network, the reasons, and what was run with what."""
    notes, parts = Notes(), []
    for network in dict.fromkeys(row["network"] for row in data["rows"]):
        rows = [row for row in data["rows"] if row["network"] == network]
        heads = "".join(f"<th scope=col>{head}</th>" for head, _ in USES.values())
        body = "".join(_row(row, notes) for row in rows)
        parts.append(f'<h2 id="{_anchor(network)}">{html.escape(network)}</h2><div class="atlas-scroll">'
                     f'<table class="networks-table"><thead><tr><th scope=col>With</th>{heads}</tr></thead>'
                     f"<tbody>{body}</tbody></table></div>")
    reasons = "".join(_reason(number, words, notes.sentences[words]) for words, number in notes.numbers.items())
    if reasons:
        parts.append(f'<h2 id="reasons">Why not</h2><ol class="networks-reasons">{reasons}</ol>')
    return f'<div class="attn-networks">{"".join(parts)}<p class="atlas-note">{_runs(data)}</p></div>'


def _row(row: dict[str, Any], notes: Notes) -> str:
    head = html.escape(attn_lib.entry(row["module"]).name) if row["module"] else ALONE
    if "refused" in row:
        cells = f'<td colspan="{len(USES)}" data-v="no">cannot be put there {_reference(row["refused"], notes)}</td>'
    else:
        cells = "".join(_cell(row["cells"].get(use), notes) for use in USES)
    return f"<tr><th scope=row>{head}</th>{cells}</tr>"


def _cell(cell: str | None, notes: Notes) -> str:
    if cell is None:
        return '<td data-v="none">not run</td>'
    verdict, why = parted(cell)
    text = "–" if verdict == NONE else verdict
    reference = f" {_reference(why, notes)}" if verdict in (NO, NONE) else ""
    return f'<td data-v="{verdict}">{text}{reference}</td>'


def _reference(why: str, notes: Notes) -> str:
    number = notes.number(why)
    return f'<a href="#reason-{number}" aria-label="reason {number}"><sup>{number}</sup></a>'


def _reason(number: int, words: str, sentences: list[str]) -> str:
    said = "".join(f"<br><code>{html.escape(s)}</code>" for s in sentences if s != words)
    return f'<li id="reason-{number}" value="{number}">{marked(words)}{said}</li>'


def _runs(data: dict[str, Any]) -> str:
    """What was run, when, with which versions, at which state of the library."""
    lines = []
    for k, run in enumerate(data["runs"]):
        rows = sum(row["run"] == k for row in data["rows"])
        packages = ", ".join(f"{name} {run[name]}" for name in PACKAGES if run.get(name))
        commit = f", commit {run['commit'][:10]}" if run.get("commit") else ""
        day = datetime.fromisoformat(run["date"]).date().isoformat()
        lines.append(f"{rows} rows on {day} with Python {run['python']}, {html.escape(packages)}{commit}.")
    return " ".join(lines) or "Nothing is recorded yet."


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-").replace("_", "-")


def uses() -> str:
    """The columns, and what each holds a network to."""
    return ('<dl class="networks-uses">'
            + "".join(f"<dt>{head}</dt><dd>{marked(text)}</dd>" for head, text in USES.values()) + "</dl>")


class Networks(SphinxDirective):
    """The tables, or with `uses` the list of columns."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(FILE))
        made = uses() if self.arguments == ["uses"] else tables(load(FILE))
        return [nodes.raw("", made, format="html")]


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("networks", Networks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
