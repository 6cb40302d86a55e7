"""The page *What each squeeze can see*: `{squeezes}` becomes the family's modules on the family's tasks.

The table is made from the record that `make squeezes` writes; see `book.tools.squeezes`. It is whole without a script;
`_static/squeezes.js` shows the curves behind a number.
"""

import html
import json
from datetime import datetime
from typing import Any

from docutils import nodes
from families import address
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import attn_lib
from attn_lib import tasks
from attn_lib.viz.style import FAMILY_COLOURS
from book.tools.record import load
from book.tools.squeezes import EXACT, FILE, NONE, READS, TASKS, TOLD, share

PAGE = "book/families/channel_tasks"
SOLVED, LOST = 0.8, 0.2  # shares of the way from chance to the best possible
Row = dict[str, Any]


def name(module: str) -> str:
    return {NONE: "none", TOLD: "told"}.get(module) or attn_lib.entry(module).aliases[0]


def words(task: str) -> str:
    """A task's name as it is said."""
    return task.replace("_", " ")


def mean(row: Row) -> float:
    return sum(row["scores"]) / len(row["scores"])


def verdict(row: Row, task: str, told: float | None) -> str:
    """"blind" by construction, or how much of the way to the best possible a module goes."""
    apart = row.get("tells")
    if apart is not None and apart <= EXACT:
        return "blind"
    part = share(row, task, told)
    return "solves" if part > SOLVED else "lost" if part < LOST else "partly"


def reading(row: Row, task: str, told: float | None) -> str:
    """What a number means, in a sentence or two."""
    module, steps = row["module"], tasks.task(task).training["steps"]
    if module == NONE:
        return "Nothing stands in the module's place."
    if module == TOLD:
        return "Nothing stands in the module's place, and what a module would have to find out was given away."
    reads = f"Its gate depends on {READS[module]}"
    kind = verdict(row, task, told)
    if kind == "blind":
        return f"{reads}. That is the same in both cases to the last digit, so no training helps."
    if kind == "solves":
        return f"{reads}, and that is enough."
    if kind == "partly":
        return f"{reads}. In {steps} steps it came a part of the way."
    apart = row.get("tells")
    differs = " But" if apart is None else (" With random weights the two cases change its output by up to "
                                            f"{100 * apart:.2g} %, but")
    return f"{reads}.{differs} in {steps} steps it did not learn to go by that."


class Squeezes(SphinxDirective):
    """The table, and the panel that a script fills."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(FILE))
        return [nodes.raw("", self.page(load(FILE)), format="html")]

    def page(self, data: dict[str, Any]) -> str:
        rows = {(row["task"], row["module"]): row for row in data["rows"]}
        columns = [NONE, *READS, TOLD]
        heads = "".join(f'<th scope="col">{self.head(module)}</th>' for module in columns)
        told = {task: mean(rows[task, TOLD]) for task in TASKS if (task, TOLD) in rows}
        body = "".join(self.row(task, columns, rows, told.get(task)) for task in TASKS)
        behind = {f"{task} {module}": self.behind(row, told.get(task))
                  for (task, module), row in rows.items() if "scores" in row}
        packed = json.dumps(behind, ensure_ascii=False).replace("<", "\\u003c")
        return (
            f'<div class="attn-squeezes" style="--f:{FAMILY_COLOURS["channel"]}">'
            f'<div class="atlas-scroll"><table class="squeezes-table"><thead><tr><th scope="col">Task</th>'
            f'<th scope="col">chance</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
            '<div class="squeezes-panel"><p>Every number is the mean of three seeds. Point at one, or move among them '
            "with the arrow keys, to see its curves.</p></div>"
            f'<p class="atlas-note">{_runs(data)}</p>'
            f'<script type="application/json">{packed}</script></div>'
        )

    def chapter(self, module: str) -> str:
        return address(self.env.app, self.env.docname, attn_lib.entry(module))

    def owner(self, task: str) -> str:
        """Whose chapter explains the task: of the family, if one of it does."""
        named = tasks.task(task).chapters
        return next((id for id in named if id in READS), named[0])

    def head(self, module: str) -> str:
        shown = html.escape(name(module))
        return shown if module in (NONE, TOLD) else f'<a href="{self.chapter(module)}">{shown}</a>'

    def row(self, task: str, columns: list[str], rows: dict[tuple[str, str], Row], told: float | None) -> str:
        chance = tasks.task(task).chance
        cells = "".join(self.cell(task, module, rows.get((task, module)), told) for module in columns)
        return (f'<tr><th scope="row"><a href="{self.chapter(self.owner(task))}">{html.escape(words(task))}</a>'
                f"<small>{html.escape(TASKS[task])}</small></th><td>{chance:.2f}</td>{cells}</tr>")

    def cell(self, task: str, module: str, row: Row | None, told: float | None) -> str:
        if row is None:
            return "<td>–</td>"
        if "refused" in row:
            return '<td data-kind="refused">does not fit</td>'
        kind = verdict(row, task, told) if module in READS else "bound"
        part = min(1.0, max(0.0, share(row, task, told)))
        note = "<small>blind</small>" if kind == "blind" else ""
        return (f'<td data-kind="{kind}" data-key="{task} {module}" style="--share:{part:.0%}">'
                f"<span>{mean(row):.2f}</span>{note}</td>")

    def behind(self, row: Row, told: float | None) -> dict[str, Any]:
        """What the panel shows of a number."""
        task, module = row["task"], row["module"]
        entry, seeds = tasks.task(task), ", ".join(f"{score:.3f}" for score in row["scores"])
        best = "" if told is None else f" At best {told:.2f}."
        made = {
            "title": f"{name(module)}, {words(task)}",
            "score": f"{entry.score_name} {mean(row):.3f} (seeds: {seeds}). By chance {entry.chance:.2f}.{best}",
            "reading": reading(row, task, told),
            "loss": row["loss"], "steps": entry.training["steps"],
            "links": [[f"The task, in the chapter of {name(self.owner(task))}", self.chapter(self.owner(task))]],
        }
        if module in READS and module != self.owner(task):
            made["links"].append([f"The module: {attn_lib.entry(module).name}", self.chapter(module)])
        return made


def _runs(data: dict[str, Any]) -> str:
    lines = []
    for k, run in enumerate(data["runs"]):
        rows = sum(row["run"] == k for row in data["rows"])
        day = datetime.fromisoformat(run["date"]).date().isoformat()
        commit = f", commit {run['commit'][:10]}" if run.get("commit") else ""
        lines.append(f"{rows} rows on {day}, {html.escape(run['device'])}, PyTorch {run['torch']}{commit}.")
    return " ".join(lines) or "Nothing is recorded yet."


def add_script(app: Sphinx, pagename: str, *_: object) -> None:
    if pagename == PAGE:
        app.add_js_file("squeezes.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("squeezes", Squeezes)
    app.connect("html-page-context", add_script)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
