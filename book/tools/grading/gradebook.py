"""nbgrader's gradebook, autograded notebooks and feedback, written by nbgrader itself.

Formgrader, `nbgrader generate_feedback` and `nbgrader export` find what `nbgrader autograde` would have left: in
`autograded/` a notebook for each student, the release with the student's answers and what the checks said; in the
gradebook the points. Points that a person gave in formgrader stay.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import nbformat
from nbformat import NotebookNode
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.preprocessors import SaveAutoGrades
from nbgrader.utils import parse_utc
from sqlalchemy.exc import SAWarning

from .. import assignment, notebooks
from .release import Release
from .roster import Student
from .sandbox import Verdict
from .submissions import Handed

FOREIGN = re.compile(r"""<script[^>]*\bsrc=["']https?://[^>]*>\s*</script>""")
NOT_ANSWERED = Verdict(passed=False, error="NotAnswered", message="the answer was not filled in")


class Book:
    """The gradebook of a course.

    Args:
        course: the course's folder.
        release: the assignment.
    """

    def __init__(self, course: Path, release: Release) -> None:
        self.course = course.resolve()
        self.release = release
        with mock.patch.dict(os.environ, assignment.environment()):
            self.api = assignment.nbgrader(self.course)
        self.api.log.setLevel(logging.CRITICAL)
        self.url = self.api.coursedir.db_url

    def open(self) -> Gradebook:
        """nbgrader's own object, for a `with`."""
        return Gradebook(self.url, self.api.coursedir.course_id)

    def knows_assignment(self) -> bool:
        """Whether `make assignment` has entered this release."""
        with self.open() as book:
            try:
                cells = {cell.name for cell in book.find_notebook(self.release.name, self.release.name).source_cells}
            except MissingEntry:
                return False
        return self.release.metadata.keys() <= cells

    def save(self, student: Student, handed: Handed, verdicts: Mapping[str, Verdict]) -> None:
        """Enters what came of a student's checks, and writes the autograded notebook."""
        name = self.release.name
        with self.open() as book:
            known = {"first_name": student.first_name, "last_name": student.last_name, "email": student.email}
            book.update_or_create_student(student.id, **{key: value for key, value in known.items() if value})
            when = self.course / Path(handed.file).parent / "timestamp.txt"
            stamp = {"timestamp": parse_utc(when.read_text(encoding="utf-8").strip())} if when.is_file() else {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SAWarning)  # nbgrader's own way of making a submission
                book.update_or_create_submission(name, student.id, **stamp)
        notebook = autograded(self.release, handed, verdicts)
        path = self.course / "autograded" / student.id / name / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        unchanged = path.exists() and _sources(notebooks.read(path)) == _sources(notebook)
        notebooks.write(notebook, path)
        resources = {
            "nbgrader": {"notebook": name, "assignment": name, "student": student.id, "db_url": self.url},
        }
        by_hand = {} if not unchanged else self._by_hand(student)
        SaveAutoGrades().preprocess(copy.deepcopy(notebook), resources)
        if by_hand:  # nbgrader wants them looked at again, but what they were given for is the same
            with self.open() as book:
                for grade in book.find_submission_notebook(name, name, student.id).grades:
                    if grade.needs_manual_grade and by_hand.get(grade.name) == grade.auto_score:
                        grade.needs_manual_grade = False
                book.db.commit()

    def _by_hand(self, student: Student) -> dict[str, float | None]:
        """The automatic points of checks to which a person has given others, and has looked at them since."""
        with self.open() as book:
            try:
                part = book.find_submission_notebook(self.release.name, self.release.name, student.id)
            except MissingEntry:
                return {}
            return {grade.name: grade.auto_score for grade in part.grades
                    if grade.manual_score is not None and not grade.needs_manual_grade}

    def given(self, student: Student) -> list[list[str]]:
        """What a student's feedback says beyond the checks: every check's points and every comment, as text."""
        with self.open() as book:
            try:
                part = book.find_submission_notebook(self.release.name, self.release.name, student.id)
            except MissingEntry:
                return []
            return sorted([[grade.name, str(grade.score), str(grade.extra_credit)] for grade in part.grades]
                          + [[comment.name, str(comment.comment), ""] for comment in part.comments])

    def forget(self, student: Student) -> None:
        """Takes back what was entered for a student of whom nothing can be graded now."""
        with self.open() as book:
            try:
                book.remove_submission(self.release.name, student.id)
            except MissingEntry:
                return

    def feedback(self, student: Student) -> bool:
        """Writes the student's page below `feedback/`; returns whether nbgrader could.

        It asks no other host for anything: without MathJax formulas stay as they are written.
        """
        done = self.api.generate_feedback(self.release.name, student.id, force=True)
        for page in (self.course / "feedback" / student.id / self.release.name).glob("*.html"):
            notebooks.write_text(FOREIGN.sub("", page.read_text(encoding="utf-8")), page)
        return bool(done["success"])

    def scores(self) -> dict[str, dict[str, float | None]]:
        """The points of every student's checks, as the gradebook has them; None where a person has to look first."""
        with self.open() as book:
            return {
                submission.student.id: {
                    grade.name: None if grade.needs_manual_grade else float(grade.score)
                    for part in submission.notebooks for grade in part.grades
                }
                for submission in book.assignment_submissions(self.release.name)
            }


def _sources(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells]


def autograded(release: Release, handed: Handed, verdicts: Mapping[str, Verdict]) -> NotebookNode:
    """The release with a student's answers, and under each check what came of it."""
    notebook: NotebookNode = copy.deepcopy(release.notebook)
    for cell in notebook.cells:
        id = cell.metadata.get("nbgrader", {}).get("grade_id")
        if id in handed.answers:
            cell.source = handed.answers[id].source
        elif id in handed.texts:
            cell.source = handed.texts[id]
        elif id in {check.id for exercise in release.exercises for check in exercise.checks}:
            cell.outputs = _outputs(verdicts.get(id, NOT_ANSWERED))
            cell.execution_count = 1
    return notebook


def _outputs(verdict: Verdict) -> list[NotebookNode]:
    """A verdict in the form from which nbgrader takes points: an error, a number, or neither. Text, never HTML."""
    found = []
    if verdict.output:
        found.append(nbformat.v4.new_output("stream", name="stdout", text=verdict.output))
    if not verdict.passed:
        lines = (verdict.traceback or f"{verdict.error}: {verdict.message}").splitlines()
        found.append(nbformat.v4.new_output(
            "error", ename=verdict.error or "Failed", evalue=verdict.message, traceback=lines
        ))
    elif verdict.value is not None:
        found.append(nbformat.v4.new_output(
            "execute_result", data={"text/plain": repr(verdict.value)}, execution_count=1
        ))
    return found
