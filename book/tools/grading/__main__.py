"""Grade a chapter that students handed in.

    python -m book.tools.grading se                    what lies in ./course
    python -m book.tools.grading se --course ~/cv-24   in another course
    python -m book.tools.grading se --again            everybody, not only who is new or changed

Looks for notebooks below `submitted/<student>/` and `downloaded/se/`, under any name. Runs each student's answers in a
sandbox, several students at once, and writes nbgrader's gradebook, `autograded/`, `feedback/` and `grades/se.csv`. What
was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import notebooks
from . import release as releases
from . import roster, sandbox, submissions, tables
from .gradebook import Book
from .release import Exercise, Release
from .sandbox import Limits, Outcome, Verdict
from .submissions import Handed, Work
from .tables import Row

# Errors of an exercise that a teacher should hear of; that a check failed is what points are for.
TELLING = {
    "Timeout", "TooMuchOutput", "Ended", "MemoryError", "NotAllowed", "PermissionError", "SyntaxError",
    "IndentationError", "TabError",
}
OPEN = """\
Without it a submission could read the solutions, other students' work and your files, write into the gradebook, and use
the network; only the limits on time, memory and output would hold, and the kernel's filter against new processes."""


class GradingError(Exception):
    """Nothing can be graded; the message says what to do."""


class Grading:
    """One run over a class.

    Args:
        course: the course's folder.
        name: the assignment's.
        limits: what a student's process may take.
        jobs: how many run at once.
        protected: whether they run in the sandbox.
        again: whether to run again what has been run.
    """

    def __init__(
        self, course: Path, name: str, *, limits: Limits, jobs: int, protected: bool, again: bool = False
    ) -> None:
        self.course, self.limits, self.jobs, self.protected, self.again = course, limits, jobs, protected, again
        self.release = releases.load(course, _named(course, name))
        self.store = course / ".grading" / self.release.name
        self.stop = threading.Event()
        self.imports: list[str] = []
        self.world = [*sandbox.fingerprint(), repr(limits), str(protected)]

    def run(self) -> list[Row]:
        """Grades everybody; returns a row for each student.

        Raises:
            GradingError: if there is nothing to grade, or the assignment itself does not work here.
        """
        book = Book(self.course, self.release)
        if not book.knows_assignment():
            raise GradingError(f"The gradebook does not know {self.release.name}: make assignment "
                               f"CHAPTER={self.release.name}")
        students = roster.read(self.course / "roster.csv")
        class_ = submissions.collect(self.course, self.release, students)
        if not any(work.handed for work in class_.values()):
            raise GradingError(f"Nothing was handed in for {self.release.name}. Put notebooks below "
                               f"{self.course / 'submitted'}/<student>/ or a download of your learning platform below "
                               f"{self.course / 'downloaded' / self.release.name}/")
        self.prove()
        outcomes: dict[str, Outcome] = {}
        with contextlib.closing(self.judge([work for work in class_.values() if work.handed])) as judged:
            for work, outcome, new in judged:
                outcomes[work.student.id] = outcome
                if new and _complete(work.handed[0], outcome, self.release):
                    self.enter(book, work, outcome)
                elif not new:
                    self.renew(book, work)
        rows = []
        scores = book.scores()
        for id, work in sorted(class_.items()):
            row = self.row(work, outcomes.get(id, Outcome()), scores.get(id, {}))
            if row.status in (tables.UNREADABLE, tables.UNFINISHED):
                book.forget(work.student)
            rows.append(row)
        return rows

    def enter(self, book: Book, work: Work, outcome: Outcome) -> None:
        """Enters a student's result into the gradebook. What nbgrader cannot take of one student stops nobody else."""
        try:
            book.save(work.student, work.handed[0], outcome.verdicts)
        except Exception as error:
            outcome.verdicts.clear()
            outcome.fatal = f"the gradebook refused it: {type(error).__name__}: {error}"[:200]
            return
        if not book.feedback(work.student):
            work.remarks.append("nbgrader could not write the feedback")
        self.keep(work, outcome, book.given(work.student))

    def renew(self, book: Book, work: Work) -> None:
        """Writes the feedback again where somebody has since given points or a comment in formgrader."""
        path = self.path(work)
        kept, given = json.loads(path.read_text(encoding="utf-8")), book.given(work.student)
        if kept.get("given") != given and book.feedback(work.student):
            _keep(path, {**kept, "given": given})

    def prove(self) -> None:
        """Grades the book's own solutions first: if they do not get full marks here, nobody's grade means anything.

        The same run learns what the checks import, which every student's process then does once.
        """
        parts = [releases.part(exercise, exercise.solution) for exercise in self.release.exercises]
        path = self.store / "solutions.json"
        digest = self.digest(parts)
        if not self.again and (kept := _kept(path, digest)) is not None:
            self.imports = kept["imports"]
            return
        learning = releases.job(self.release.setup, parts, []) | {"learning": True}
        self.imports = sorted({*sandbox.run(learning, self.limits, protected=self.protected).imported})
        proving = releases.job(self.release.setup, parts, self.imports)
        outcome = sandbox.run(proving, self.limits, protected=self.protected)
        for exercise in self.release.exercises:
            for check in exercise.checks:
                verdict = outcome.verdicts.get(check.id, Verdict(False, error="no verdict"))
                if not verdict.passed:
                    raise GradingError(
                        f"{check.id}: the solution in {self.course / 'source'} does not pass its own check here, so "
                        f"nobody was graded.\n{verdict.traceback or f'{verdict.error}: {verdict.message}'}"
                    )
        _keep(path, {"digest": digest, "imports": self.imports})

    def judge(self, class_: list[Work]) -> Generator[tuple[Work, Outcome, bool], None, None]:
        """Runs the answers of everybody whose result is not stored, several at once.

        Yields:
            a student, what came of the checks, and whether that is new; as soon as it is known.
        """
        waiting = []
        for work in class_:
            if work.handed[0].problem:
                continue
            kept = None if self.again else _kept(self.path(work), self.digest(self.all(work)))
            if kept is None:
                waiting.append(work)
            else:
                yield work, Outcome({id: Verdict(**verdict) for id, verdict in kept["verdicts"].items()}), False
        pool = ThreadPoolExecutor(self.jobs)
        futures: dict[Future[Outcome], Work] = {pool.submit(self.one, work): work for work in waiting}
        try:
            for future in tqdm(as_completed(futures), "students", len(futures), disable=None, leave=False):
                yield futures[future], future.result(), True
        finally:  # after Ctrl-C, or a sandbox that does not work: nobody else is started, who runs is ended
            self.stop.set()
            pool.shutdown(cancel_futures=True)

    def one(self, work: Work) -> Outcome:
        """Runs one student's answers."""
        parts = self.parts(work.handed[0])
        if not parts:
            return Outcome()

        def run(imports: Iterable[str]) -> Outcome:
            job = releases.job(self.release.setup, parts, imports)
            return sandbox.run(job, self.limits, protected=self.protected, stop=self.stop)

        try:
            outcome = run(self.imports)
        except sandbox.SandboxError as error:  # the solutions ran, so it is no fault of the set-up
            return Outcome(fatal=str(error))
        # Some packages exchange functions of others while they are imported. Where an answer imported one that the
        # solutions do not need, it is imported before the answer runs, and then a change is the answer's.
        more = {name for name in outcome.imported if name.replace(".", "").isidentifier()}
        if more and any(verdict.error == "NotAllowed" for verdict in outcome.verdicts.values()):
            with contextlib.suppress(sandbox.SandboxError):
                outcome = run({*self.imports, *more})
        return outcome

    def parts(self, handed: Handed) -> list[dict[str, object]]:
        """A student's part of a job: what was filled in."""
        return [
            releases.part(exercise, handed.answers[exercise.id].source, handed.answers[exercise.id].before)
            for exercise in self.release.exercises if exercise.id in handed.answers
        ]

    def all(self, work: Work) -> object:
        """All that a student's entry in the gradebook depends on."""
        return [self.parts(work.handed[0]), sorted(work.handed[0].texts.items()), dataclasses.astuple(work.student)]

    def row(self, work: Work, outcome: Outcome, scores: dict[str, float | None]) -> Row:
        """A student's line in the table."""
        if not work.handed:
            return Row(work.student, tables.MISSING, remarks=list(work.remarks))
        handed = work.handed[0]
        remarks = [*work.remarks, *handed.remarks]
        if not work.student.listed and (self.course / "roster.csv").exists():
            remarks.insert(0, "not in the roster")
        if len(work.handed) > 1:
            remarks.append(f"{len(work.handed) - 1} other file(s): {', '.join(one.file for one in work.handed[1:])}")
        if handed.problem:
            return Row(work.student, tables.UNREADABLE, file=handed.file, remarks=[handed.problem, *remarks])
        if not self.protected:
            remarks.append("ran without a sandbox")
        if outcome.fatal or not _complete(handed, outcome, self.release):
            return Row(work.student, tables.UNFINISHED, file=handed.file,
                       remarks=[outcome.fatal or "the process ended before all answers were judged", *remarks])
        told = [f"{exercise.id}: {said}" for exercise in self.release.exercises
                if (said := _told(exercise, handed, outcome))] if handed.answers else ["nothing was filled in"]
        remarks = [*told, *remarks]
        by_hand = [id for id, score in scores.items() if score is None]
        if by_hand:
            remarks = [f"see {', '.join(by_hand)}", *remarks]
            return Row(work.student, tables.BY_HAND, scores, handed.file, remarks, told)
        return Row(work.student, tables.OLDER if handed.older else tables.GRADED, scores, handed.file, remarks, told)

    def digest(self, parts: object) -> str:
        """A hash of all that a result depends on."""
        text = json.dumps([self.world, self.release.setup, parts, sorted(self.release.checksums.items())])
        return hashlib.sha256(text.encode()).hexdigest()

    def path(self, work: Work) -> Path:
        """Where a student's result is stored."""
        return self.store / f"{hashlib.sha256(work.student.id.encode()).hexdigest()[:24]}.json"

    def keep(self, work: Work, outcome: Outcome, given: list[list[str]]) -> None:
        """Stores a student's result once it stands in the gradebook."""
        verdicts = {id: verdict.as_dict() for id, verdict in outcome.verdicts.items()}
        _keep(self.path(work), {"digest": self.digest(self.all(work)), "verdicts": verdicts, "given": given})


def _told(exercise: Exercise, handed: Handed, outcome: Outcome) -> str:
    """Why an exercise did not get all its points, in a few words; nothing where it did."""
    if exercise.id not in handed.answers:
        return "not answered"
    failed = [verdict for check in exercise.checks
              if (verdict := outcome.verdicts.get(check.id)) is not None and not verdict.passed]
    telling = [verdict.message or verdict.error for verdict in failed if verdict.error in TELLING]
    return telling[0] if telling else "wrong" if failed else ""


def _complete(handed: Handed, outcome: Outcome, release: Release) -> bool:
    """Whether there is a verdict for every check of what was filled in."""
    wanted = {check.id for one in release.exercises if one.id in handed.answers for check in one.checks}
    return wanted <= outcome.verdicts.keys()


def _named(course: Path, name: str) -> str:
    """The assignment of the course that `name` means."""
    made = sorted(path.parent.name for path in course.glob("release/*/*.ipynb"))
    if not course.is_dir():
        raise GradingError(f"There is no course in {course}: make assignment CHAPTER={name or 'se'} makes one.")
    if not name:
        raise GradingError(f"Name a chapter, such as: make grade CHAPTER={made[0] if made else 'se'}")
    name = name.removesuffix(".ipynb").rpartition("/")[2]
    if name not in made:
        raise GradingError(f"The course in {course} has no assignment {name}; it has: {', '.join(made) or 'none'}. "
                           f"make assignment CHAPTER={name} makes it.")
    return name


def _kept(path: Path, digest: str) -> dict[str, Any] | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and kept.get("digest") == digest else None


def _keep(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    notebooks.write_text(json.dumps(content), path)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    if os.name == "nt":
        return notebooks.complain(["Windows has neither the sandbox that answers are run in nor what limits them: run "
                                   "this in the Windows Subsystem for Linux (WSL)"])
    parser = argparse.ArgumentParser(
        prog="python -m book.tools.grading", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    limits = Limits()
    parser.add_argument("chapter", nargs="?", default="", help="the assignment, such as se")
    parser.add_argument("--course", type=Path, default=Path("course"), help="nbgrader course folder (default: course)")
    parser.add_argument("--jobs", type=int, default=0, help="students at once (default: the processor's cores)")
    parser.add_argument("--again", action="store_true", help="grade everybody again")
    parser.add_argument("--unprotected", action="store_true", help="go on where there is no sandbox")
    parser.add_argument("--seconds", type=float, default=limits.seconds, help="for one exercise (default: %(default)g)")
    parser.add_argument("--megabytes", type=int, default=limits.megabytes,
                        help="of memory for one exercise (default: %(default)d)")
    options = parser.parse_args(arguments)
    protected = True
    try:
        _named(options.course, options.chapter)
        if (reason := sandbox.unavailable()) is not None:
            if not options.unprotected:
                raise GradingError(f"Answers are run in a sandbox, and {reason}.\n{OPEN}\n"
                                   f"To grade all the same: make grade CHAPTER={options.chapter or 'se'} UNPROTECTED=1")
            protected = False
        grading = Grading(
            options.course, options.chapter, jobs=options.jobs or os.cpu_count() or 1, protected=protected,
            again=options.again, limits=Limits(options.seconds, options.megabytes, limits.kilobytes, limits.start),
        )
        rows = grading.run()
    except (GradingError, sandbox.SandboxError, roster.RosterError) as error:
        return notebooks.complain([str(error)])
    files = tables.write(rows, grading.release, options.course / "grades")
    _tell(rows, files)
    return 0


def _tell(rows: list[Row], files: list[Path]) -> None:
    """How many there are of each status, whom to look at, and where the grades are."""
    for status in dict.fromkeys(row.status for row in rows):
        print(f"{sum(row.status == status for row in rows):4} {status}")
    for row in rows:
        if row.remarks:
            print(f"{row.student.id}: {'; '.join(row.remarks)}")
    print("\n".join(map(str, files)))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; who was graded is stored, and the next run goes on from there")
