"""Re-run chapters and store their outputs so that diffs stay small.

    python -m book.tools.execute                    the chapters whose code changed since their outputs were stored
    python -m book.tools.execute channel/se         one chapter (also: se, chapters/channel/se.ipynb)
    python -m book.tools.execute --all              every chapter, for example after a change in attn_lib
    python -m book.tools.execute --refresh …        renew timings and training curves as well
    python -m book.tools.execute --check            run nothing: say which chapters are stale or not normalised

Each chapter runs in a fresh kernel of this Python, on one thread, in its own folder (`notebooks.kernel_environment`).
A run that fails, writes to stderr or is interrupted leaves the file as it was. A second run leaves no diff: what cells
tagged `nbval-ignore-output` show differs from run to run, so the stored outputs of those cells are kept as long as
nothing else in the chapter has changed.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import subprocess
import sys
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from . import address, notebooks

CELL_TIMEOUT = 120  # seconds; only a cell that hangs takes this long
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
ADDRESS_IN_MEMORY = re.compile(r" at 0x[0-9a-f]{6,}")


class ChapterError(Exception):
    """A chapter did not run as a chapter must; the message says which cell and why."""


class Kernels(KernelSpecManager):
    """The kernel of one Python, whatever kernels the user has installed under the same name."""

    def __init__(self, python: str) -> None:
        super().__init__()
        self.python = python

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        quiet = "--log-level=ERROR"  # else a kernel tells the terminal how it talks to us
        argv = [self.python, "-m", "ipykernel_launcher", "-f", "{connection_file}", quiet]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


def run(
    notebook: NotebookNode,
    folder: Path,
    *,
    name: str = "",
    python: str = sys.executable,
    env: dict[str, str] | None = None,
    allow_errors: bool = False,
) -> tuple[NotebookNode, float]:
    """Runs `notebook` in a fresh kernel.

    Args:
        notebook: what to run; it is not changed.
        folder: the kernel's working directory.
        name: what to call the notebook in messages.
        python: the interpreter of the kernel.
        env: the kernel's environment variables; by default the present ones and `notebooks.kernel_environment`.
        allow_errors: go on behind a cell that raises; its output says what it raised.

    Returns:
        A copy with its new outputs, and the seconds that the kernel computed.

    Raises:
        ChapterError: if a cell raises (see `allow_errors`), takes longer than `CELL_TIMEOUT` or kills the kernel.
    """
    notebook = copy.deepcopy(notebook)
    for cell in notebooks.code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    before = notebooks.seconds_of_kernels()
    quiet = not sys.stderr.isatty()
    bar = tqdm(total=len(notebook.cells), desc=name, unit="cell", disable=quiet, leave=False)
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=Kernels(python)),
        timeout=CELL_TIMEOUT,
        allow_errors=allow_errors,
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,
        record_timing=False,
        on_cell_complete=lambda cell_index, **_: bar.update(cell_index + 1 - bar.n),
    )
    env = {**os.environ, **notebooks.kernel_environment()} if env is None else env
    try:
        client.execute(env=env, cleanup_kc=True, stderr=subprocess.DEVNULL)
    except Exception as error:
        if hasattr(client, "_async_cleanup_kernel_future"):  # Ctrl-C: nbclient has stopped the kernel itself
            raise KeyboardInterrupt from None
        if isinstance(error, CellExecutionError | CellTimeoutError | DeadKernelError):
            raise ChapterError(f"{name}: {COLOUR.sub('', str(error))}") from error
        raise
    finally:
        bar.close()
    return notebook, notebooks.seconds_of_kernels() - before


def refuse_noise(notebook: NotebookNode, name: str) -> None:
    """Refuses outputs that no reader wants to see, or that no second run repeats.

    Raises:
        ChapterError: if a cell wrote to stderr, shows an object's address in memory, or found that a claim on timings
            (`measure.claim`) does not hold: then the machine was busy, or the text is wrong.
    """
    from attn_lib.measure.timing import UNLIKE  # with torch, which takes seconds

    for number, cell in enumerate(notebooks.code_cells(notebook), 1):
        for output in cell.outputs:
            text = output.get("text", "") or str(output.get("data", {}).get("text/plain", ""))
            if output.get("name") == "stderr":
                raise ChapterError(f"{name}: code cell {number} writes to stderr:\n{text}")
            if UNLIKE in text:
                raise ChapterError(f"{name}: code cell {number} says what the times do not show:\n{text}")
            if ADDRESS_IN_MEMORY.search(text) and notebooks.IGNORED not in notebooks.tags(cell):
                raise ChapterError(f"{name}: code cell {number} shows an address in memory:\n{text}")


def keep_what_only_varies(new: NotebookNode, old: NotebookNode) -> NotebookNode:
    """The notebook `new` with the old outputs of ignored cells, if nothing but them differs.

    That is: the code is the same, and so is every other output, pictures included. Then the library behaves as it
    did, and a new timing or training curve would only be noise in the history.
    """
    if notebooks.is_stale(old) or not _same(new, old):
        return new
    kept = copy.deepcopy(new)
    for fresh, stored in zip(notebooks.code_cells(kept), notebooks.code_cells(old), strict=True):
        if notebooks.IGNORED in notebooks.tags(fresh) and _kinds(fresh) == _kinds(stored):
            fresh.outputs = copy.deepcopy(stored.outputs)
    return kept


def _same(new: NotebookNode, old: NotebookNode) -> bool:
    pairs = zip(notebooks.code_cells(new), notebooks.code_cells(old), strict=True)
    return all(a.outputs == b.outputs for a, b in pairs if notebooks.IGNORED not in notebooks.tags(a))


def _kinds(cell: NotebookNode) -> list[tuple[str, ...]]:
    """What sorts of output the cell has; a cell that now prints something else is not merely noisy."""
    return [(output.output_type, *sorted(output.get("data", {}))) for output in cell.outputs]


def execute(path: Path, *, refresh: bool = False) -> str:
    """Runs the chapter at `path` and stores it if it changed; returns a line that says what happened."""
    old = notebooks.read(path)
    name = _name(path)
    here = address.read_address()
    for cell in notebooks.code_cells(old):
        if "setup" in notebooks.tags(cell):
            cell.source = notebooks.setup_cell(here.source, here.version)
    new, seconds = run(old, path.parent, name=name)
    refuse_noise(new, name)
    new.metadata["executed"] = notebooks.digest(new)
    new = notebooks.normalise(new)
    if not refresh:
        new = keep_what_only_varies(new, old)
    changed = notebooks.write(new, path)
    size = path.stat().st_size
    line = f"{name}: {seconds:.1f} s, {size / 1000:.0f} KB, {'stored' if changed else 'unchanged'}"
    if seconds > notebooks.SECONDS:
        line += f"\n  OVER BUDGET: {seconds:.1f} s, where a chapter may take {notebooks.SECONDS} s"
    if size > notebooks.BYTES:
        line += f"\n  OVER BUDGET: {size / 1000:.0f} KB, where a chapter may have {notebooks.BYTES / 1000:.0f} KB"
    return line


def tidy(path: Path) -> bool:
    """Normalises a chapter whose outputs are current, without running it; returns whether that changed the file."""
    return notebooks.write(notebooks.normalise(notebooks.read(path)), path)


def stored_badly(path: Path) -> list[str]:
    """What a run without arguments would change in the file at `path`."""
    notebook = notebooks.read(path)
    problems = notebooks.stored_badly(notebook)
    if not problems and notebooks.dumps(notebook) != path.read_text(encoding="utf-8"):
        problems = ["the file is not written as the book's tools write it; run `make execute`"]
    return [f"{_name(path)}: {problem}" for problem in problems]


def _name(path: Path) -> str:
    folder = notebooks.ROOT / "chapters"
    return path.relative_to(folder).with_suffix("").as_posix() if path.is_relative_to(folder) else path.name


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m book.tools.execute", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chapters", nargs="*", help="channel/se, se or a path; none: those whose code changed")
    parser.add_argument("--all", action="store_true", help="every chapter")
    parser.add_argument(
        "--refresh", action="store_true", help=f"renew the outputs of cells tagged {notebooks.IGNORED} as well"
    )
    parser.add_argument("--check", action="store_true", help="run nothing; fail if a chapter is stale or untidy")
    options = parser.parse_args()

    paths = notebooks.find(options.chapters)
    if options.check:
        return notebooks.complain(problem for path in paths for problem in stored_badly(path))
    if not options.chapters and not options.all:
        for path in [path for path in paths if not notebooks.is_stale(notebooks.read(path))]:
            paths.remove(path)
            if tidy(path):
                print(f"{_name(path)}: outputs are current; normalised")
        if not paths:
            print("No chapter's code has changed since its outputs were stored (--all runs them anyway).")
    failures = []
    for number, path in enumerate(paths, 1):
        print(f"[{number}/{len(paths)}] {_name(path)} …", flush=True)
        try:
            print(execute(path, refresh=options.refresh), flush=True)
        except ChapterError as error:
            failures.append(str(error))
    return notebooks.complain(failures)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; the chapter that was running is as it was")
