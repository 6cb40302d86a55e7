"""Make student copies of chapters, without their solutions, in an nbgrader course.

    python -m book.tools.assignment channel/se …          into the course folder ./course
    python -m book.tools.assignment --course ~/cv-24 se    into another one
    python -m book.tools.assignment                        all chapters

Each chapter becomes an assignment of its own name. The student copy lies in `release/se/se.ipynb` and can be handed
out as it is; `python -m book.tools.grading se` grades what comes back. nbgrader's own commands work in the course
folder, too: `nbgrader release_assignment se`, `collect`, `autograde`, `generate_feedback`. Run again after the book has
changed: students and grades are kept.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from unittest import mock

from nbformat import NotebookNode
from nbgrader.apps import NbGraderAPI
from nbgrader.preprocessors import (
    CheckCellMetadata,
    ClearHiddenTests,
    ClearMarkScheme,
    ClearOutput,
    ClearSolutions,
    ComputeChecksums,
    LockCells,
)
from traitlets.config import PyFileConfigLoader

from . import address, notebooks, plain_markdown

CONFIG = """\
import os

c = get_config()  # noqa: F821

c.CourseDirectory.course_id = {name!r}
c.Execute.timeout = 120  # seconds a cell may take: chapters train small models
c.Execute.iopub_timeout = 30  # seconds to wait for a cell's output once it has ended
c.Execute.interrupt_on_timeout = True
os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads make small models slower, and a class much slower

# `nbgrader zip_collect`: files as Canvas names them, lovelaceada_LATE_123_456_se.ipynb, and Moodle's folders,
# "Ada Lovelace_123_assignsubmission_file_/se.ipynb".
c.FileNameCollectorPlugin.named_regexp = r"{files}"
"""
# What a learning platform calls the file or the folder of a student in a download.
LMS_FILE = re.compile(
    r".*[\\/](?P<student_id>[^\\/]+?)_(?:LATE_)?(?P<number>\d+)_(?:\d+|assignsubmission_file)_?[\\/]?"
    r"(?P<file_id>[^\\/]+)\.ipynb$"
)


class AssignmentError(Exception):
    """nbgrader refused a chapter; the message says why."""


def source_version(path: Path) -> NotebookNode:
    """The instructor's version of the chapter at `path`.

    It has no outputs, which would give answers away; its answers lie open, since they are what a student writes in; and
    its text needs neither the site nor the book's folders.
    """
    notebook, here, source = notebooks.read(path), address.read_address(), source_of_copies()
    notebook.metadata.pop("executed", None)
    for cell in notebook.cells:
        for key in ("tags", *notebooks.FOLDED):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if cell.id == "setup":
            cell.source = notebooks.setup_cell(source, here.version)
    plain_markdown.make_plain(notebook, path)
    return notebook


@cache
def source_of_copies() -> str:
    """Where students' copies install the library from: a release's tag, else the commit that they are made of.

    A commit that is on no server cannot be installed by anybody else: then it is the branch.
    """
    here = address.read_address()
    if not here.version.endswith(".dev0"):
        return here.source
    commit = git("rev-parse", "HEAD")
    return f"{here.repository}@{commit}" if git("branch", "--remotes", "--contains", "HEAD") else here.source


def git(*arguments: str) -> str:
    """What git says of the book's folder; nothing where that is no repository, or where there is no git."""
    try:
        return subprocess.run(["git", *arguments], cwd=notebooks.ROOT, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def students_version(path: Path) -> NotebookNode:
    """What students get of the chapter at `path`, made by nbgrader's own steps but without a course's database."""
    notebook = source_version(path)
    for step in (LockCells, ClearSolutions, ClearOutput, CheckCellMetadata, ComputeChecksums, ClearHiddenTests,
                 ClearMarkScheme, ComputeChecksums, CheckCellMetadata):
        notebook, _ = step().preprocess(notebook, {})
    return notebook


def points(notebook: NotebookNode) -> int:
    """How many points the notebook's checks give."""
    return sum(cell.metadata.get("nbgrader", {}).get("points", 0) for cell in notebook.cells)


def make(path: Path, course: Path) -> Path:
    """Makes the assignment of the chapter at `path` in the folder `course`.

    nbgrader works in this process: its command takes seconds to start, once for every chapter.

    Returns:
        The path of the student copy.

    Raises:
        AssignmentError: if nbgrader refuses the chapter.
    """
    name, course = path.stem, course.resolve()
    source = course / "source" / name / path.name
    source.parent.mkdir(parents=True, exist_ok=True)
    settings = course / "nbgrader_config.py"
    if not settings.exists():
        settings.write_text(CONFIG.format(name=course.name, files=LMS_FILE.pattern), encoding="utf-8")
    notebooks.write(source_version(path), source)
    with mock.patch.dict(os.environ, environment()):
        done = nbgrader(course).generate_assignment(name)
    if not done["success"]:
        raise AssignmentError(f"{name}: nbgrader refused\n{done.get('log', '')}{done.get('error', '')}")
    return course / "release" / name / path.name


def nbgrader(course: Path) -> NbGraderAPI:
    """nbgrader, working in the folder `course` with its settings."""
    config = PyFileConfigLoader("nbgrader_config.py", path=str(course)).load_config()
    config.CourseDirectory.root = str(course.resolve())
    return NbGraderAPI(config=config)


def environment() -> dict[str, str]:
    """The environment in which nbgrader works: this clone's library, and this Python's programs.

    nbgrader looks for `alembic` on the PATH, where it is not if the virtual environment is used without activation.
    """
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, **notebooks.kernel_environment(), "PATH": programs}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m book.tools.assignment", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("chapters", nargs="*", help="channel/se, se or a path; none: all")
    parser.add_argument("--course", type=Path, default=Path("course"), help="nbgrader course folder (default: course)")
    options = parser.parse_args()
    options.course.mkdir(parents=True, exist_ok=True)
    for path in notebooks.find(options.chapters):
        try:
            copy = make(path, options.course)
        except AssignmentError as error:
            return notebooks.complain([str(error)])
        print(f"{copy}: {points(notebooks.read(copy))} points")
    print(f"Their first cell installs attn_lib from {source_of_copies()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
