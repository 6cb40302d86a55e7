"""What a chapter's notebook is: where it lies, how it starts, how it is stored.

All that reads or writes chapters shares this file: `execute` (runs them), `anatomy` (checks them), `assignment` (makes
student copies) and `nbval_chapters` (compares stored outputs).
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]

SECONDS = 15  # a chapter's running time, the start of its kernel included
MOST_SECONDS = 25  # what it may not exceed
BYTES = 500_000  # a chapter's size in git, outputs included
LINES = 20  # a code cell's length; what is longer belongs in the library
WIDTH = 95  # of a line of code: what a page shows without scrolling
THREADS = 1  # see kernel_environment

SETUP_CELL = """\
try:
    import attn_lib
except ModuleNotFoundError:  # on Colab or any machine without the library
    try:
        %pip install --quiet "attn_lib[chapters] @ git+{source}"
        import attn_lib
    except Exception as error:
        raise ModuleNotFoundError(
            "attn_lib could not be installed. It needs the internet (on Kaggle: Settings, "
            "Internet on) and PyTorch, which a notebook inside a browser does not have."
        ) from error
if attn_lib.__version__ != "{version}":
    print(f"This chapter was written with another attn_lib than {{attn_lib.__version__}}. If a cell "
          "fails, run the line of this cell that begins with %pip, and restart the kernel.")
import torch
from attn_lib import measure, plug, tasks, toys, viz"""

IGNORED = "nbval-ignore-output"  # tag of a cell whose outputs differ between machines or from run to run
KEPT_METADATA = frozenset({"tags", "nbgrader", "mystnb", "slideshow"})  # of a cell; the rest is one editor's noise
FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form"}  # a cell that Jupyter, and Colab, show folded
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python", "pygments_lexer": "ipython3"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"  # names a model of a kernel that is gone


def setup_cell(source: str, version: str) -> str:
    """The set-up cell that every chapter starts with.

    Args:
        source: where pip gets the library that the chapter was written with, an https URL with @ and a branch, tag or
            commit at its end.
        version: the version that the library says it is.
    """
    return SETUP_CELL.format(source=source, version=version)


def chapters(root: Path = ROOT) -> list[Path]:
    """The paths of all chapters below `root`, sorted."""
    found = (root / "chapters").rglob("*.ipynb")
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def specimens(root: Path = ROOT) -> list[Path]:
    """One chapter of each kind: a foundation, and a module's chapter."""
    found: dict[bool, Path] = {}
    for path in chapters(root):
        found.setdefault(path.parent.name == "foundations", path)
    return list(found.values())


def find(names: Iterable[str], root: Path = ROOT) -> list[Path]:
    """The chapters that `names` mean: a path, `channel/se` or `se`; all of them if there are no names."""
    everything = chapters(root)
    names = list(names)
    return [_find_one(name, everything, root) for name in names] if names else everything


def _find_one(name: str, everything: list[Path], root: Path) -> Path:
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    wanted = name.removeprefix("chapters/").removesuffix(".ipynb")
    for path in everything:
        chapter = path.relative_to(root / "chapters").with_suffix("").as_posix()
        if wanted in (chapter, path.stem):
            return path
    known = ", ".join(path.relative_to(root / "chapters").with_suffix("").as_posix() for path in everything)
    raise SystemExit(f"no chapter is called {name!r}; there are: {known or 'none'}")


def read(path: Path) -> NotebookNode:
    """The notebook at `path`, in the current format."""
    return nbformat.read(path, as_version=4)


def dumps(notebook: NotebookNode) -> str:
    """The notebook's text: sorted keys, one space of indent, a newline at its end."""
    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def write(notebook: NotebookNode, path: Path) -> bool:
    """Writes a notebook in one step, so that an interruption leaves the old file; returns whether it changed."""
    return write_text(dumps(notebook), path)


def write_text(text: str, path: Path) -> bool:
    """Writes a file in one step, so that an interruption leaves the old one; returns whether it changed."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return True


def tags(cell: NotebookNode) -> list[str]:
    """The cell's tags."""
    return list(cell.metadata.get("tags", []))


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The notebook's code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook: NotebookNode) -> str:
    """A short hash of the code that produces the notebook's outputs.

    The set-up cell is left out: it is the same in every chapter and holds the public address and the version, which
    change no output.
    """
    sources = [cell.source for cell in code_cells(notebook) if "setup" not in tags(cell)]
    return hashlib.sha256("\x00".join(sources).encode()).hexdigest()[:16]


def is_stale(notebook: NotebookNode) -> bool:
    """Whether the notebook's code has changed since its outputs were stored."""
    return notebook.metadata.get("executed") != digest(notebook)


def stored_badly(notebook: NotebookNode) -> list[str]:
    """What `make execute` would change in a stored notebook: stale outputs, or an editor's noise."""
    if is_stale(notebook):
        return ["the code has changed since the outputs were stored; run `make execute`"]
    if dumps(normalise(notebook)) != dumps(notebook):
        return ["cell ids or metadata are not normalised; run `make execute`"]
    return []


def normalise(notebook: NotebookNode) -> NotebookNode:
    """The notebook as it is stored: nothing in it that depends on when, where or in which editor it ran.

    Cell ids come from the cell's content, so that an inserted cell changes no other cell's id. Execution counts run
    from 1. Kernel, language and cell metadata are reduced to what the book uses; solutions are folded; widgets' views
    and states, for which a page asks two CDNs, are dropped; neighbouring pieces of the same stream are joined.
    """
    notebook = nbformat.from_dict(notebook)
    executed = {"executed": notebook.metadata["executed"]} if "executed" in notebook.metadata else {}
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": LANGUAGE, **executed})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    taken: dict[str, int] = {}
    count = 0
    for cell in notebook.cells:
        cell.id = _cell_id(cell, taken)
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in KEPT_METADATA & cell.metadata.keys()})
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.metadata.update(nbformat.from_dict(FOLDED))
        if cell.cell_type == "code":
            count += 1
            cell.outputs = _normalise_outputs(cell.outputs, count)
            cell.execution_count = None if cell.execution_count is None else count
    return notebook


def _cell_id(cell: NotebookNode, taken: dict[str, int]) -> str:
    """A name where the cell has one (an exercise, the set-up), else a hash of its source; repetitions are numbered."""
    if "setup" in tags(cell):
        name = "setup"
    else:
        content = f"{cell.cell_type}\x00{cell.source.strip()}".encode()
        name = cell.metadata.get("nbgrader", {}).get("grade_id") or hashlib.sha256(content).hexdigest()[:8]
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}-{taken[name]}"


def _normalise_outputs(outputs: list[NotebookNode], count: int) -> list[NotebookNode]:
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
            continue
        if "data" in output:
            output.data.pop(WIDGET_VIEW, None)
            if not output.data:
                continue
        if output.output_type == "execute_result":
            output.execution_count = count
        output.pop("transient", None)
        kept.append(output)
    return kept


def kernel_environment(library: Path = ROOT) -> dict[str, str]:
    """The environment variables with which chapters run, here and under nbval.

    The `attn_lib` in the folder `library` comes first on the path. One thread: sums are then added in the same
    order on every machine and in every run, and chapters can run side by side without waiting for each other.
    glibc keeps freed memory, as in `python -m attn_lib.measure`: timings then do not depend on what ran before.
    Progress bars are silent.
    """
    threads = str(THREADS)
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(library), os.environ.get("PYTHONPATH")])),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
        "TQDM_DISABLE": "1",
    }


def seconds_of_kernels() -> float:
    """The processor time of all kernels that this process has started and seen end.

    This and not the clock is held against a chapter's budget, so that a busy machine fails no chapter. On an idle one
    the two agree, because chapters run on one thread.

    Raises:
        OSError: on Windows, which does not count it.
    """
    if os.name == "nt":
        raise OSError("Windows does not tell what processes that have ended took, which a chapter's budget is held "
                      "against: run this in the Windows Subsystem for Linux (WSL)")
    times = os.times()
    return times.children_user + times.children_system


def complain(problems: Iterable[str]) -> int:
    """Prints `problems` to stderr; returns the exit status, 1 if there were any."""
    problems = list(problems)
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))
