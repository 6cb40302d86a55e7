"""The CSV files: one for people, one for Moodle, one for Canvas.

A grade is blank where nothing was graded, and 0 only where somebody handed something in that is worth nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import notebooks
from .release import Release
from .roster import Student

GRADED, OLDER = "graded", "graded, older version"
UNREADABLE, UNFINISHED, MISSING, BY_HAND = "unreadable", "timed out", "not submitted", "to be graded by hand"


@dataclass
class Row:
    """What is known of one student.

    Args:
        student: who.
        status: one of this file's constants.
        scores: the points of each check, by its id.
        file: the notebook that was graded.
        remarks: what a teacher should know.
        told: what came of the exercises that did not get all their points, which the student may know as well.
    """

    student: Student
    status: str
    scores: dict[str, float | None] = field(default_factory=dict)
    file: str = ""
    remarks: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    @property
    def graded(self) -> bool:
        """Whether there is a grade."""
        return self.status in (GRADED, OLDER)

    @property
    def points(self) -> float | None:
        """The sum, or None where nothing was graded."""
        return sum(score or 0 for score in self.scores.values()) if self.graded else None


def write(rows: Sequence[Row], release: Release, folder: Path) -> list[Path]:
    """Writes the three files; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    name = release.name
    files = {
        folder / f"{name}.csv": everything(rows, release),
        folder / f"{name}-moodle.csv": moodle(rows, release),
        folder / f"{name}-canvas.csv": canvas(rows, release),
    }
    for path, lines in files.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([harmless(cell) for cell in line] for line in lines)
        notebooks.write_text(text.getvalue(), path)
    return list(files)


def everything(rows: Iterable[Row], release: Release) -> list[list[str]]:
    """A line for every student, a column for every exercise."""
    ids = [exercise.id for exercise in release.exercises]
    lines = [["id", "first_name", "last_name", "email", *ids, "points", "of", "status", "remark", "file"]]
    for row in rows:
        student = row.student
        parts = []
        for exercise in release.exercises:
            scores = [row.scores.get(check.id) for check in exercise.checks]
            known = [score for score in scores if score is not None]
            parts.append(number(sum(known)) if row.graded and len(known) == len(scores) else "")
        lines.append([
            student.id, student.first_name, student.last_name, student.email, *parts, number(row.points),
            number(release.points), row.status, "; ".join(row.remarks), row.file,
        ])
    return lines


def moodle(rows: Iterable[Row], release: Release) -> list[list[str]]:
    """For *Grades › Import › CSV file*: the roster's students, `-` where there is no grade.

    Moodle gives up on a file that names somebody it does not know, takes a blank for a number in a new grade item, and
    takes feedback only beside a grade; hence these columns.
    """
    lines = [["email", "id", f"{release.name} (of {number(release.points)})", "feedback"]]
    for row in rows:
        if row.student.listed:
            feedback = "; ".join([row.status] * (row.status != GRADED) + row.told)
            lines.append([row.student.email, row.student.id, number(row.points) or "-", feedback])
    return lines


def canvas(rows: Iterable[Row], release: Release) -> list[list[str]]:
    """For *Gradebook › Import*: the columns that Canvas itself exports, and its line of possible points.

    Canvas looks a student up by its own number, else by the SIS id, else by the login, else by the name.
    """
    lines = [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", release.name],
        ["    Points Possible", "", "", "", "", number(release.points)],
    ]
    for row in rows:
        student = row.student
        if student.listed:
            name = ", ".join(filter(None, [student.last_name, student.first_name])) or student.id
            lines.append([name, student.lms_user_id, student.id, student.id, "", number(row.points)])
    return lines


def number(value: float | None) -> str:
    """A number without needless zeros; blank for None."""
    return "" if value is None else f"{value:.4g}"


def harmless(cell: str) -> str:
    """A cell that a spreadsheet takes for text: what starts like a formula gets an apostrophe."""
    return f"'{cell}" if cell[:1] in tuple("=+-@\t\r") and cell != "-" and cell else cell
