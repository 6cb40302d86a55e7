"""A chapter as an assignment: made, released, fetched, submitted, collected, graded.

Full marks for the reference solution, none for the untouched student copy, and submissions that crash in every way
we could think of harm nobody else's. Of every chapter the exercises are run in one kernel and graded as nbgrader
grades; nbgrader's own commands, which take seconds to start, run for one chapter of each kind.
"""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbgrader.api import Gradebook
from nbgrader.utils import determine_grade

import attn_lib
from book.tools import address, assignment, execute, notebooks, plain_markdown
from book.tools.anatomy import exercises
from book.tools.grading.release import only_exercises

PATIENCE = 90  # seconds a cell may take here; the tests share the machine

# What a student may write into the first exercise's solution.
CRASHES = {
    "raises": "raise RuntimeError('no idea')",
    "recurses": "def endless():\n    return endless()\n\nendless()",
    "exits": "import sys\nsys.exit(1)",
    "kills": "import os\nos._exit(1)",
    "loops": "while True:\n    pass",
    "misspells": "def (:",
}


class Course:
    """An nbgrader course with its own exchange and students, in a temporary folder."""

    def __init__(self, folder: Path, chapter: Path):
        self.name = chapter.stem
        self.home = folder
        self.folder = folder / "course"
        self.folder.mkdir()
        self.reference = notebooks.read(chapter)
        self.env = {
            **assignment.environment(),
            "HOME": str(folder),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "IPYTHONDIR": str(folder / "ipython"),
        }
        assignment.make(chapter, self.folder)

    def nbgrader(self, *arguments, cwd=None, check=True):
        """Runs one of nbgrader's commands; returns what it said."""
        options = [
            f"--Exchange.root={self.home / 'exchange'}",
            "--CourseDirectory.course_id=course",
            "--ExchangeCollect.check_owner=False",  # all students are one user here
        ]
        command = [sys.executable, "-m", "nbgrader", *arguments, *options]
        done = subprocess.run(command, cwd=cwd or self.folder, env=self.env, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, student, edit):
        """A student fetches the assignment, edits the notebook and submits it."""
        desk = self.home / student
        desk.mkdir()
        self.nbgrader("fetch_assignment", self.name, cwd=desk)
        path = desk / self.name / f"{self.name}.ipynb"
        path.chmod(0o644)
        notebook = notebooks.read(path)
        edit(notebook)
        notebooks.write(notebook, path)
        self.nbgrader("submit", self.name, "--student", student, cwd=desk)

    def hand_in(self, student, edit):
        """Puts an edited student copy where `nbgrader collect` would have put it: the short way, for many students."""
        copy = f"{self.name}/{self.name}.ipynb"
        notebook = notebooks.read(self.folder / "release" / copy)
        edit(notebook)
        path = self.folder / "submitted" / student / copy
        path.parent.mkdir(parents=True)
        notebooks.write(notebook, path)

    def solve(self, notebook):
        """Fills in the reference solutions."""
        answers = {cell.metadata["nbgrader"]["grade_id"]: cell.source for cell in solutions(self.reference)}
        for cell in solutions(notebook):
            cell.source = answers[cell.metadata["nbgrader"]["grade_id"]]

    def scores(self):
        """What the gradebook says: student -> check -> points."""
        with Gradebook(f"sqlite:///{self.folder / 'gradebook.db'}", "course") as gradebook:
            return {
                submission.student.id: {
                    grade.name: grade.score for book in submission.notebooks for grade in book.grades
                }
                for submission in gradebook.assignment_submissions(self.name)
            }


def solutions(notebook):
    """The cells that a student fills in."""
    return [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("solution")]


def checks(cells):
    """Those of the cells that give points, by their names."""
    metas = [(cell.metadata.get("nbgrader", {}), cell) for cell in cells]
    return {meta["grade_id"]: cell for meta, cell in metas if meta.get("grade")}


def points(notebook):
    """What each check is worth."""
    return {name: cell.metadata["nbgrader"]["points"] for name, cell in checks(notebook.cells).items()}


def complaints(cells):
    """What cells raised or wrote to stderr: what a failing test has to show."""
    found = []
    for cell in cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                found.append(f"{cell.source[:60]!r} raised {output.ename}: {output.evalue}")
            elif output.get("name") == "stderr":
                found.append(f"{cell.source[:60]!r} wrote to stderr: {output.text}")
    return found


@pytest.fixture(scope="session")
def course(tmp_path_factory):
    """The folder of one course for all chapters: it has one gradebook, which takes a second to set up."""
    return tmp_path_factory.mktemp("course")


def test_student_copy_gives_nothing_away(chapter, course):
    """What nbgrader makes of the chapter: solutions are stubs, outputs are gone, links lead to the site."""
    released = notebooks.read(assignment.make(chapter, course))
    assert [cell.source for cell in solutions(released)] == [
        exercises.student_copy(cell.source) for cell in solutions(notebooks.read(chapter))
    ]
    assert not any(cell.get("outputs") for cell in released.cells), "outputs give answers away"
    assert not any({"jupyter", "cellView"} & cell.metadata.keys() for cell in released.cells), "a folded answer"
    text = "".join(cell.source for cell in released.cells)
    assert "SOLUTION" not in text
    assert "](../" not in text, "a link that needs the book's folders"
    assert not re.search(r"\{[a-z:]+\}`|^```\{|\$\$ *\(eq-", text, re.MULTILINE), "what only the site understands"
    offered = assignment.students_version(chapter)  # on the site, made without nbgrader's database
    assert [(cell.source, cell.metadata.get("nbgrader")) for cell in offered.cells] == [
        (cell.source, cell.metadata.get("nbgrader")) for cell in released.cells
    ]


def graded(reference, folder):
    """The points of the untouched student copy and of the reference, check by check, and what cells complained of.

    Both run in one kernel, after the cells that define what they need and without the rest of the chapter: first the
    stubs and their checks, then the solutions and theirs. `make test-notebooks` runs the whole.
    """
    only_exercises(reference)
    before = [cell for cell in reference.cells if "nbgrader" not in cell.metadata]
    solved = [cell for cell in reference.cells if "nbgrader" in cell.metadata]
    untouched = nbformat.from_dict(solved)
    for cell in untouched:
        cell.id += "-untouched"
        if cell.metadata["nbgrader"]["solution"]:
            cell.source = exercises.student_copy(cell.source)
    notebook = nbformat.v4.new_notebook(cells=[*before, *untouched, *solved])
    ran, _ = execute.run(notebook, folder, allow_errors=True)
    start, end = len(before), len(before) + len(untouched)
    stubs, answers = (
        {name: determine_grade(cell)[0] for name, cell in checks(cells).items()}
        for cells in (ran.cells[start:end], ran.cells[end:])
    )
    return stubs, answers, complaints(ran.cells[:start] + ran.cells[end:])


def test_solutions_get_full_marks_and_stubs_none(chapter, tmp_path):
    """Every chapter's exercises, graded by the rules of nbgrader."""
    reference = notebooks.read(chapter)
    full = points(reference)
    untouched, solved, complained = graded(reference, tmp_path)
    assert complained == []
    assert solved == full
    assert untouched == dict.fromkeys(full, 0)


@pytest.mark.parametrize(
    ("solution", "check", "fault"),
    [
        ("def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION", "print('one')", "untouched"),
        ("def f():\n    ### BEGIN SOLUTION\n    return 2\n    ### END SOLUTION", "assert f() == 1", "solved"),
        ("def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION", "assert f() == 1\n0.5", "solved"),
    ],
    ids=["a check that gives points to anybody", "a wrong solution", "a check that gives a part of its points"],
)
def test_a_bad_exercise_is_noticed(tmp_path, solution, check, fault):
    """The test of every chapter can fail."""
    meta = {"schema_version": 3, "task": False}
    cells = [
        nbformat.v4.new_code_cell(
            source, metadata={"nbgrader": {**meta, "grade_id": id, "grade": grade, "solution": not grade, "points": 2}}
        )
        for source, id, grade in ((solution, "one", False), (check, "one-check", True))
    ]
    untouched, solved, _ = graded(nbformat.v4.new_notebook(cells=cells), tmp_path)
    assert (untouched == {"one-check": 0}) == (fault != "untouched")
    assert (solved == {"one-check": 2}) == (fault != "solved")


def test_nbgrader_gives_the_same_points(specimen, tmp_path):
    """By its own command, from the folders of a course: of the chapter the exercises and what they need."""
    course = Course(tmp_path, specimen)

    def solved(notebook):
        course.solve(notebook)
        only_exercises(notebook)

    course.hand_in("ada", solved)
    course.hand_in("untouched", only_exercises)
    course.nbgrader("autograde", course.name, f"--Execute.timeout={PATIENCE}")
    full = points(course.reference)
    assert course.scores() == {"ada": full, "untouched": dict.fromkeys(full, 0)}


def test_the_whole_way(tmp_path):
    """One chapter through nbgrader's commands, from making to grading, run from its first cell to its last."""
    course = Course(tmp_path, notebooks.find(["channel/se"])[0])
    course.nbgrader("generate_assignment", course.name, "--force")  # `make assignment` does it without the command
    course.nbgrader("release_assignment", course.name)
    course.submit("ada", course.solve)
    course.submit("untouched", lambda notebook: None)
    course.nbgrader("collect", course.name)
    course.nbgrader("autograde", course.name, f"--Execute.timeout={PATIENCE}")
    full = points(course.reference)
    assert course.scores() == {"ada": full, "untouched": dict.fromkeys(full, 0)}


def test_a_crash_harms_nobody_else(tmp_path):
    """Six crashing submissions between two that are alike and sound."""
    course = Course(tmp_path, notebooks.find(["channel/se"])[0])

    def crash(code):
        def edit(notebook):
            course.solve(notebook)
            only_exercises(notebook)
            solutions(notebook)[0].source = code

        return edit

    def sound(notebook):
        course.solve(notebook)
        only_exercises(notebook)

    course.hand_in("aaron", sound)  # nbgrader takes students in the order of their names
    for student, code in CRASHES.items():
        course.hand_in(student, crash(code))
    course.hand_in("zoe", sound)
    said = course.nbgrader("autograde", course.name, "--Execute.timeout=30", check=False)

    scores = course.scores()
    first = next(iter(points(course.reference)))
    assert scores["aaron"] == scores["zoe"]
    assert scores["aaron"][first] > 0
    for student in CRASHES:
        assert scores[student][first] == 0
        if student != "kills":  # nbgrader names the student whose kernel died, and grades nothing of theirs
            rest = {check: points for check, points in scores["aaron"].items() if check != first}
            assert {check: scores[student][check] for check in rest} == rest
    assert "for student 'kills'" in said


def test_what_the_site_alone_understands_is_written_out(tmp_path):
    """Citations, equations' numbers, names of the library; what is not known is an error and not left as it stands."""
    path = tmp_path / "se.ipynb"
    written = {
        "See {cite}`hu2018squeeze,wang2020eca` and {cite:t}`hu2018squeeze`.":
            "See (Hu et al., 2018; Wang et al., 2020) and Hu et al. (2018).",
        "$$ a = b $$ (eq-x-one)\n\n$$\nc\n$$ (eq-x-two)\n\nBy {eq}`eq-x-two` and {eq}`eq-x-one`":
            "$$ a = b \\tag{1}\n$$\n\n$$\nc \\tag{2}\n$$\n\nBy (2) and (1)",
        "{py:mod}`attn_lib.tasks.cloakroom`": "[`attn_lib.tasks.cloakroom`]("
            f"{address.read_address().site}/book/api/tasks.html#module-attn_lib.tasks.cloakroom)",
    }
    for source, wanted in written.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source)])
        plain_markdown.make_plain(notebook, path)
        assert notebook.cells[0].source == wanted
    for source, told in (("{kbd}`Tab`", "is a role that"), ("{eq}`eq-x-one`", "eq-x-one"), ("{cite}`no`", "no")):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source)])
        with pytest.raises(ValueError, match=told):
            plain_markdown.make_plain(notebook, path)


def test_copies_install_the_commit_that_they_are_made_of(monkeypatch):
    """If a server has it; a release's copies install its tag."""
    here = address.read_address()
    for said, version, wanted in (
        ({"rev-parse": "abc1234", "branch": "origin/main"}, "0.3.0.dev0", "abc1234"),
        ({"rev-parse": "abc1234", "branch": ""}, "0.3.0.dev0", here.branch),
        ({"rev-parse": "", "branch": ""}, "0.3.0.dev0", here.branch),
        ({"rev-parse": "abc1234", "branch": "origin/main"}, "0.3.0", "v0.3.0"),
    ):
        monkeypatch.setattr(assignment, "git", lambda command, *rest, said=said: said[command])
        monkeypatch.setattr(address, "read_address", lambda version=version: here._replace(version=version))
        assert assignment.source_of_copies.__wrapped__() == f"{here.repository}@{wanted}"


def test_another_version_is_told(capsys):
    """The set-up cell says what to do where the library is not the one that the chapter was written with."""
    for version, told in ((attn_lib.__version__, ""), ("0.0.1", "another attn_lib than " + attn_lib.__version__)):
        cell = TransformerManager().transform_cell(notebooks.setup_cell("https://nowhere", version))
        exec(compile(cell, "set-up", "exec"), {})
        said = capsys.readouterr().out
        assert told in said and bool(said) == bool(told)
