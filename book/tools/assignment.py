"""Make student copies of chapters, without their solutions, in an nbgrader course.

    python book/tools/assignment.py channel/se …          into the course folder ./course
    python book/tools/assignment.py --course ~/cv-24 se    into another one
    python book/tools/assignment.py                        all chapters

Each chapter becomes an assignment of its own name. The student copy lies in `release/se/se.ipynb` and can be handed
out as it is; or go on with nbgrader's own commands in the course folder: `nbgrader release_assignment se`, `collect`,
`autograde`, `generate_feedback`. Run again after the book has changed: students and grades are kept.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import address
import notebooks
from nbformat import NotebookNode

LINK = re.compile(r"\]\((?P<file>[^)#\s:]+\.(?:ipynb|md))(?P<anchor>#[^)\s]*)?\)")
CONFIG = """\
c = get_config()  # noqa: F821

c.CourseDirectory.course_id = {name!r}
c.Execute.timeout = 120  # seconds a cell may take: chapters train small models
c.Execute.interrupt_on_timeout = True  # an endless loop costs its own points only
"""


def source_version(path: Path) -> NotebookNode:
    """Return the instructor's version of the chapter at `path`.

    It has no outputs, which would give answers away, and its links to other pages of the book lead to the published
    site, because those pages do not lie beside a student's copy.
    """
    notebook = notebooks.read(path)
    notebook.metadata.pop("executed", None)
    for cell in notebook.cells:
        cell.metadata.pop("tags", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        elif cell.cell_type == "markdown":
            cell.source = LINK.sub(lambda match: _published(match, path), cell.source)
    return notebook


def _published(link: re.Match[str], path: Path) -> str:
    target = (path.parent / link["file"]).resolve()
    if not target.is_file() or not target.is_relative_to(notebooks.ROOT):
        return link[0]
    page = target.relative_to(notebooks.ROOT).with_suffix(".html").as_posix()
    return f"]({address.read_address().site}/{page}{link['anchor'] or ''})"


def points(notebook: NotebookNode) -> int:
    """Return how many points the notebook's checks give."""
    return sum(cell.metadata.get("nbgrader", {}).get("points", 0) for cell in notebook.cells)


def make(path: Path, course: Path) -> Path:
    """Make the assignment of the chapter at `path` in the folder `course`; return the student copy's path.

    Raises:
        subprocess.CalledProcessError: if nbgrader refuses; its output says why.
    """
    name = path.stem
    source = course / "source" / name / path.name
    source.parent.mkdir(parents=True, exist_ok=True)
    config = course / "nbgrader_config.py"
    if not config.exists():
        config.write_text(CONFIG.format(name=course.resolve().name), encoding="utf-8")
    notebooks.write(source_version(path), source)
    nbgrader("generate_assignment", name, "--force", course=course)
    return course / "release" / name / path.name


def nbgrader(*arguments: str, course: Path) -> subprocess.CompletedProcess[str]:
    """Run one of nbgrader's commands in a course folder."""
    command = [sys.executable, "-m", "nbgrader", *arguments]
    return subprocess.run(
        command, cwd=course, env=environment(), check=True, capture_output=True, text=True
    )


def environment() -> dict[str, str]:
    """Return the environment of nbgrader's commands: this clone's library, and this Python's programs.

    nbgrader looks for `alembic` on the PATH, where it is not if the virtual environment is used without activation.
    """
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, **notebooks.kernel_environment(), "PATH": programs}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chapters", nargs="*", help="channel/se, se or a path; none: all")
    parser.add_argument(
        "--course", type=Path, default=Path("course"), help="nbgrader course folder (default: course)"
    )
    options = parser.parse_args()
    options.course.mkdir(parents=True, exist_ok=True)
    for path in notebooks.find(options.chapters):
        try:
            copy = make(path, options.course)
        except subprocess.CalledProcessError as error:
            return notebooks.complain([f"{path.stem}: nbgrader refused\n{error.stderr}"])
        print(f"{copy}: {points(notebooks.read(copy))} points")
    return 0


if __name__ == "__main__":
    sys.exit(main())
