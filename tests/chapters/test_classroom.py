"""A chapter as an assignment, by nbgrader's own commands: made, released, fetched, submitted, collected, graded.

Full marks for the reference solution, none for the untouched student copy, and submissions that crash in every way
we could think of harm nobody else's.
"""

import ast
import subprocess
import symtable
import sys
from pathlib import Path

import anatomy
import assignment
import notebooks
from nbgrader.api import Gradebook

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
        """Run one of nbgrader's commands; return what it said."""
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
        """Put an edited student copy where `nbgrader collect` would have put it: the short way, for many students."""
        copy = f"{self.name}/{self.name}.ipynb"
        notebook = notebooks.read(self.folder / "release" / copy)
        edit(notebook)
        path = self.folder / "submitted" / student / copy
        path.parent.mkdir(parents=True)
        notebooks.write(notebook, path)

    def solve(self, notebook):
        """Fill in the reference solutions."""
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


def only_exercises(notebook):
    """Keep the exercises and the cells that define the names they use, as a student may: it runs in seconds."""
    kept, needed = [], set()
    for cell in reversed(notebooks.code_cells(notebook)):
        defined, used = names(cell.source)
        if "nbgrader" in cell.metadata or defined & needed:
            kept.insert(0, cell)
            needed = (needed - defined) | used
    notebook.cells = kept


def names(source):
    """The names that a cell gives to the cells after it, and those that it takes from the cells before it."""
    defined, used = set(), set()
    for statement in anatomy.python(source).body:
        table = symtable.symtable(ast.unparse(statement), "cell", "exec")
        binds = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
        reads, tables = set(), [table]
        for scope in tables:
            tables += scope.get_children()
            for symbol in scope.get_symbols():
                if symbol.is_referenced() and (scope is table or symbol.is_global()):
                    reads.add(symbol.get_name())
        if not isinstance(statement, ast.Assign | ast.AugAssign):
            reads -= binds  # a loop's variable, a function that calls itself
        used |= reads - defined
        defined |= binds
    return defined, used


def points(course):
    """What each check of the reference is worth."""
    cells = [cell.metadata.get("nbgrader", {}) for cell in course.reference.cells]
    return {meta["grade_id"]: meta["points"] for meta in cells if meta.get("grade")}


def test_reference_gets_full_marks_and_the_stub_none(chapter, tmp_path):
    """Every chapter; of it the exercises and what they need, as `make test-notebooks` runs the whole."""
    course = Course(tmp_path, chapter)
    released = notebooks.read(course.folder / "release" / course.name / chapter.name)
    assert [cell.source for cell in solutions(released)] == [
        anatomy.student_copy(cell.source) for cell in solutions(course.reference)
    ]
    assert "SOLUTION" not in "".join(cell.source for cell in released.cells)
    assert not any(cell.get("outputs") for cell in released.cells), "outputs give answers away"
    assert "](../" not in "".join(cell.source for cell in released.cells), "a link that needs the book's folders"

    def solved(notebook):
        course.solve(notebook)
        only_exercises(notebook)

    course.hand_in("ada", solved)
    course.hand_in("untouched", only_exercises)
    course.nbgrader("autograde", course.name, f"--Execute.timeout={PATIENCE}")
    assert course.scores() == {"ada": points(course), "untouched": dict.fromkeys(points(course), 0)}


def test_the_whole_way(tmp_path):
    """One chapter through nbgrader's exchange, from release to grading, run from its first cell to its last."""
    course = Course(tmp_path, notebooks.find(["channel/se"])[0])
    course.nbgrader("release_assignment", course.name)
    course.submit("ada", course.solve)
    course.submit("untouched", lambda notebook: None)
    course.nbgrader("collect", course.name)
    course.nbgrader("autograde", course.name, f"--Execute.timeout={PATIENCE}")
    assert course.scores() == {"ada": points(course), "untouched": dict.fromkeys(points(course), 0)}


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
    first = next(cell for cell in course.reference.cells if cell.metadata.get("nbgrader", {}).get("grade"))
    first = first.metadata["nbgrader"]["grade_id"]
    assert scores["aaron"] == scores["zoe"]
    assert scores["aaron"][first] > 0
    for student in CRASHES:
        assert scores[student][first] == 0
        if student != "kills":  # nbgrader names the student whose kernel died, and grades nothing of theirs
            rest = {check: points for check, points in scores["aaron"].items() if check != first}
            assert {check: scores[student][check] for check in rest} == rest
    assert "for student 'kills'" in said
