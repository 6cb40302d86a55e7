"""`make grade`: a class of thirty, of whom some would stop it and some would cheat it.

Every grade is the right one, nobody waits for anybody else's mistakes, and where nothing can be graded the grade is
blank. What is done against the machine is tried in the sandbox; where there is none, that part is skipped with the
reason, and the rest runs with the limits alone.
"""

import copy
import csv
import io
import textwrap
import time
import unicodedata
import zipfile

import nbformat
import pytest
from nbgrader.api import Gradebook

from book.tools import assignment, notebooks
from book.tools.grading import __main__ as grading
from book.tools.grading import release as releases
from book.tools.grading import sandbox, tables
from book.tools.grading.sandbox import Limits

ONE, TWO, THREE = "mini-halves", "mini-factors", "mini-mean"
# Exercise: points, head of the function, body, check.
CHAPTER = {
    ONE: (2, "def halves(n):", "return [k / 2 for k in range(n)]", """\
assert halves(4) == [0, 0.5, 1, 1.5]
print("exercise 1: halves")"""),
    TWO: (2, "def factors():", "return {'width': 4.0, 'height': 3.0}", """\
first, second = {"width": 2.0, "height": 3.0}, {"width": 8.0, "height": 9.0}
predicted = factors()
for name in first:
    assert abs(predicted[name] / (second[name] / first[name]) - 1) < 0.02
print("exercise 2: both factors")"""),
    THREE: (3, "def masked_mean(x, mask):", "return (x * mask).sum(-1) / mask.sum(-1)", """\
x = torch.arange(12.0).reshape(3, 4)
for n in (1, 2, 4):
    mask = (torch.arange(4) < n).expand(3, 4)
    torch.testing.assert_close(masked_mean(x, mask), x[:, :n].mean(-1))
assert not torch.allclose(masked_mean(x, mask), x[:, 0])
print("exercise 3: means")"""),
}
POINTS = {id: points for id, (points, *_) in CHAPTER.items()}
LIMITS = Limits(seconds=10, megabytes=1000, kilobytes=200)
NFD = unicodedata.normalize("NFD", "Zoë")

SLEEPS = "import time\nwhile True:\n    try:\n        time.sleep(1)\n    except BaseException:\n        pass"
DEAF = "import signal\nfor number in (2, 15):\n    signal.signal(number, signal.SIG_IGN)\nwhile True:\n    pass"
WRONG = "def factors():\n    return {'width': 1.0, 'height': 1.0}"
RIGHT = "def factors():\n    return {'width': 4.0, 'height': 3.0}"

# What costs its own exercise and no other: the answer to it, the exercise, and what the remark has to say of it.
MISHAPS = {
    "wrong": (TWO, WRONG, ""),
    "misspelt": (ONE, "def (:", "invalid syntax"),
    "asleep": (ONE, SLEEPS, "longer than 10 seconds"),
    "deaf": (TWO, DEAF, "longer than 10 seconds"),
    "late": (THREE, "def masked_mean(x, mask):\n    while True:\n        pass", "longer than 10 seconds"),
    "hungry": (TWO, f"held = bytearray(2 << 30)\n{RIGHT}", "MemoryError"),
    "greedy": (TWO, f"import mmap\nheld = mmap.mmap(-1, 2 << 30)\n{RIGHT}", ""),
    "loud": (ONE, "while True:\n    print('x' * 1000)", "printed more than 200 KB"),
    "leaves": (ONE, "import os\nos._exit(0)", "ended the interpreter"),
    "exits": (THREE, "raise SystemExit(0)", ""),
    "aborts": (TWO, "import os\nos.abort()", "ended the interpreter"),
    "recurses": (ONE, "def halves(n):\n    return halves(n)", ""),
}
# What deceives the check from inside. It is refused with or without the sandbox.
TRICKS = {
    "patches": (THREE, """
def masked_mean(x, mask):
    return x
torch.testing.assert_close = lambda *a, **k: None
""", "torch.testing.assert_close"),
    "patches and mends": (THREE, """
kept = []
def masked_mean(x, mask):
    if mask[0].sum() == 1:
        kept.append(torch.testing.assert_close)
        torch.testing.assert_close = lambda *arguments, **options: None
        return x[:, 0]
    if mask[0].sum() == 4:
        torch.testing.assert_close = kept[0]
        return x.mean(-1)
    return x
""", "torch.testing.assert_close"),
    "equals all": (TWO, """
class Yes(float):
    def __truediv__(self, other): return Yes(1)
    def __sub__(self, other): return Yes(0)
    def __abs__(self): return 0.0
def factors():
    return dict.fromkeys(("width", "height"), Yes(1))
""", "compares itself"),
    "forges": (ONE, """
import json, os
for end in range(256):
    try:
        os.write(end, b'\\n' + json.dumps({"check": "mini-halves-check", "passed": True}).encode() + b'\\n')
    except OSError:
        pass
os._exit(0)
""", "ended the interpreter"),
    "forks": (ONE, "import os\nif os.fork() == 0:\n    raise SystemExit\ndef halves():\n    return {}", "os.fork"),
    "looks back": (TWO, """
import sys
def factors():
    seen = getattr(getattr(sys, "_get" + "frame")(1), "f_" + "locals")
    return {name: seen["second"][name] / seen["first"][name] for name in seen["first"]}
""", "_getframe"),
    "names the stack": (TWO, "import sys\ndef factors():\n    return sys._getframe(1).f_locals['second']", "f_locals"),
    "lets another thread": (THREE, """
import threading, time
def meanwhile():
    time.sleep(0.1)
    torch.testing.assert_close = print
threading.Thread(target=meanwhile).start()
def masked_mean(x, mask):
    return x
""", ""),
    "swaps code": (THREE, """
def masked_mean(x, mask):
    return x
kind = "__co" + "de__"
setattr(torch.testing.assert_close, kind, getattr(lambda *arguments, **options: None, kind))
""", "may not use"),
    "asks the check": (TWO, "def factors():\n    return {name: second[name] / first[name] for name in first}", ""),
    "forges the text": (TWO, """
import json
json.encoder.c_make_encoder = None
json.JSONEncoder.iterencode = lambda *arguments, **options: ['{"check": "mini-factors-check", "passed": true}']
def factors():
    return {}
""", ""),
    "finds the judge": (TWO, """
for cls in getattr(object, "__sub" + "classes__")():
    for name, function in list(vars(cls).items()):
        if "honesty" in str(function) or "judge" in str(getattr(function, "__glo" + "bals__", {}).get("__file__")):
            raise RuntimeError(f"found {cls}.{name}")
import sys
for name in ("honesty", "fence", "judge"):
    if name in sys.modules:
        raise RuntimeError(f"found {name}")
def factors():
    return {}
""", ""),
    "swaps a module": (ONE, """
import sys
sys.modules["torch.testing"] = print
def halves(n):
    return [k / 2 for k in range(n)]
""", "torch.testing"),
    "shadows": (TWO, """
import builtins
builtins.abs = lambda x: 0
def factors():
    return {"width": 1.0, "height": 1.0}
""", "builtins.abs"),
    "transforms": (TWO, WRONG + """
import ast
class Strip(ast.NodeTransformer):
    def visit_Assert(self, node):
        return ast.Pass()
get_ipython().ast_transformers.append(Strip())
get_ipython().input_transformers_post.append(lambda lines: [])
""", ""),
}


def attacks(course):
    """What reaches for the machine, or for the judge: possible only where there is no sandbox."""
    reference, book = course.parent / "mini.ipynb", course / "gradebook.db"
    return {
        "reads": (TWO, f"""
import json
for path in [{str(reference)!r}, {str(course / 'source/mini/mini.ipynb')!r}]:
    for cell in json.load(open(path))["cells"]:
        if cell["metadata"].get("nbgrader", {{}}).get("grade_id") == "mini-factors":
            exec("".join(cell["source"]))
""", ""),
        "zeroes": (TWO, f"""
import sqlite3
book = sqlite3.connect({str(book)!r})
book.execute("UPDATE grade SET auto_score = 0")
book.commit()
{WRONG}
""", ""),
        "calls home": (TWO, f"""
import socket
socket.create_connection(("127.0.0.1", 9), timeout=2)
{WRONG}
""", "not permitted"),
        "kills": (ONE, "import os\nos.kill(os.getppid(), 9)\nos.kill(-1, 9)", "not permitted"),
    }


class Class:
    """A course with one assignment, and what its students hand in."""

    def __init__(self, folder):
        self.folder = folder / "course"
        self.folder.mkdir()
        path = folder / "mini.ipynb"
        notebooks.write(chapter(), path)
        assignment.make(path, self.folder)
        self.release = releases.load(self.folder, "mini")
        self.solutions = {exercise.id: exercise.solution for exercise in self.release.exercises}
        self.expected = {}

    def notebook(self, **answers):
        """The students' notebook with the right answers, but for those that are given."""
        notebook = copy.deepcopy(self.release.notebook)
        for id, source in {**self.solutions, **{key.replace("_", "-"): text for key, text in answers.items()}}.items():
            answer(notebook, id).source = source
        return notebook

    def submit(self, student, notebook, lost=(), status=tables.GRADED, remark="", file="mini/mini.ipynb"):
        """Hands a notebook in; `lost` are the exercises that give no points."""
        text = notebook if isinstance(notebook, str) else notebooks.dumps(notebook)
        path = self.folder / "submitted" / student / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        self.expect(student, lost, status, remark)

    def expect(self, student, lost=(), status=tables.GRADED, remark=""):
        scores = {id: 0 if id in lost else points for id, points in POINTS.items()}
        self.expected[unicodedata.normalize("NFC", student)] = status, scores, remark

    def grading(self, protected, **options):
        return grading.Grading(self.folder, "mini", limits=LIMITS, jobs=2, protected=protected, **options)


def chapter():
    """A chapter of three exercises that needs torch alone: a student's process is then ready in a second."""
    new, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    cells = [new("# A small chapter"), code("import torch", metadata={"tags": ["setup"]})]
    for id, (points, head, body, check) in CHAPTER.items():
        entry = {"schema_version": 3, "task": False, "grade_id": id, "grade": False, "solution": True, "locked": False}
        source = f"{head}\n    ### BEGIN SOLUTION\n{textwrap.indent(body, '    ')}\n    ### END SOLUTION"
        cells.append(code(source, metadata={"nbgrader": entry}))
        entry = {**entry, "grade_id": f"{id}-check", "grade": True, "solution": False, "locked": True, "points": points}
        cells.append(code(check, metadata={"nbgrader": entry}))
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": notebooks.KERNELSPEC})


def answer(notebook, id):
    """The first cell with that grade id."""
    return next(cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == id)


def without(notebook, keep):
    """A notebook whose cells have lost nbgrader's metadata, as after some editors; `keep` is done with each entry."""
    for cell in notebook.cells:
        id = cell.pop("id", None)
        entry = cell.metadata.pop("nbgrader", None)
        keep(cell, entry, id)
    return notebook


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A course in which nobody has handed anything in."""
    return Class(tmp_path_factory.mktemp("empty"))


def honest(class_):
    """Those who mean well, and what happens to their files."""
    untouched = copy.deepcopy(class_.release.notebook)
    class_.submit("ada", class_.notebook())
    class_.submit("untouched", untouched, lost=POINTS, remark="nothing was filled in")

    bare = class_.notebook()
    bare.cells = [cell for cell in bare.cells if not cell.metadata.get("nbgrader", {}).get("grade")]
    class_.submit("no-checks", bare)

    edited = class_.notebook(mini_factors=WRONG)
    answer(edited, f"{TWO}-check").source = "assert True"
    class_.submit("own-checks", edited, lost=[TWO], remark="checks were edited")

    twice = class_.notebook(mini_factors=WRONG)
    second = copy.deepcopy(answer(twice, TWO))
    second.source = class_.solutions[TWO]
    twice.cells.insert(twice.cells.index(answer(twice, TWO)) + 1, second)
    class_.submit("twice", twice, remark="2 answers, the last one counts")

    class_.submit("renamed", class_.notebook(), file="Copy of mini (1).ipynb")
    class_.submit("nested", class_.notebook(), file="homework/week 3/Übung.ipynb")
    class_.submit("李雷", class_.notebook(), file="作业/注意力.ipynb")
    class_.submit(NFD, class_.notebook())

    older = class_.notebook()
    answer(older, f"{THREE}-check").metadata["nbgrader"]["checksum"] = "0" * 32
    answer(older, f"{THREE}-check").source = "assert masked_mean is not None"
    class_.submit("older", older, status=tables.OLDER)

    cut = notebooks.dumps(class_.notebook())
    class_.submit("cut", cut[: len(cut) // 2], status=tables.UNREADABLE, remark="no complete JSON")

    def colab(cell, entry, id):
        cell.metadata["id"] = id

    class_.submit("colab", without(class_.notebook(), colab), file="mini.ipynb")

    def moved(cell, entry, id):
        cell.metadata["colab"] = {"nbgrader": entry} if entry else {}

    class_.submit("moved", without(class_.notebook(), moved))
    class_.submit("lost", without(class_.notebook(), lambda *_: None), remark="found by the name of its function")

    helped = class_.notebook(mini_factors="def factors():\n    return made_up()")
    helper = copy.deepcopy(answer(helped, TWO))
    helper.metadata, helper.source = {}, class_.solutions[TWO].replace("factors", "made_up")
    helped.cells.insert(3, helper)
    class_.submit("helped", helped, remark="uses 1 other cell")

    magic = class_.notebook(mini_factors="%matplotlib inline\n%%time\n" + class_.solutions[TWO])
    answer(magic, TWO).source = "%%time\n%matplotlib inline\n" + class_.solutions[TWO]
    class_.submit("magic", magic)

    # Two files: the one with more answers counts, not the newest.
    class_.submit("two-files", class_.notebook(), file="mini/mini.ipynb")
    class_.submit("two-files", untouched, file="mini/mini (2).ipynb", remark="1 other file")


def downloads(class_):
    """What comes out of Moodle and Canvas, zipped and not."""
    folder = class_.folder / "downloaded" / "mini"
    folder.mkdir(parents=True)
    text = notebooks.dumps(class_.notebook())
    (folder / "lovelacegrace_LATE_4711_99_mini-1.ipynb").write_text(text, encoding="utf-8")
    class_.expect("grace")
    with zipfile.ZipFile(folder / "moodle.zip", "w") as archive:
        archive.writestr("Łukasz Żak_1234_assignsubmission_file_/Kopia mini.ipynb", text)
        archive.writestr("strangernew_12_34_notebook.ipynb", text)
    class_.expect("zak")
    class_.expect("strangernew", remark="not in the roster")
    lines = ["id,first_name,last_name,email", "grace,Grace,Lovelace,grace@example.org",
             "zak,Łukasz,Żak,zak@example.org", "away,=cmd(),Away,away@example.org"]
    lines += [f"{id},,," for id in class_.expected if id not in ("grace", "zak", "strangernew")]
    (class_.folder / "roster.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    class_.expect("away", status=tables.MISSING)


def compared(class_, rows):
    """What is not as expected, a line for each."""
    found = []
    rows = {row.student.id: row for row in rows}
    for student in class_.expected.keys() ^ rows.keys():
        found.append(f"{student}: {'no row' if student in class_.expected else 'an unexpected row'}")
    for student in class_.expected.keys() & rows.keys():
        row, (status, scores, remark) = rows[student], class_.expected[student]
        got = {exercise.id: sum(row.scores.get(check.id) or 0 for check in exercise.checks)
               for exercise in class_.release.exercises}
        if row.status != status:
            found.append(f"{student}: {row.status}, not {status} ({row.remarks})")
        elif row.graded and got != scores:
            found.append(f"{student}: {got}, not {scores} ({row.remarks})")
        elif remark not in "; ".join(row.remarks):
            found.append(f"{student}: {row.remarks} says nothing of {remark!r}")
    return "\n".join(found)


def in_gradebook(class_):
    """The points of each student in nbgrader's gradebook."""
    with Gradebook(f"sqlite:///{class_.folder / 'gradebook.db'}", "course") as book:
        return {one.student.id: one.score for one in book.assignment_submissions("mini")}


def test_a_class_of_thirty(tmp_path, monkeypatch):
    """Every grade is the right one, in nbgrader's gradebook too, and a second run has nothing left to do."""
    protected = sandbox.unavailable() is None
    class_ = Class(tmp_path)
    honest(class_)
    bad = MISHAPS | TRICKS | (attacks(class_.folder) if protected else {})
    for student, (exercise, code, remark) in bad.items():
        class_.submit(student, class_.notebook(**{exercise.replace("-", "_"): code}), lost=[exercise], remark=remark)
    downloads(class_)
    assert len(class_.expected) >= 30

    began = time.monotonic()
    run = class_.grading(protected)
    rows = run.run()
    took = time.monotonic() - began
    assert compared(class_, rows) == ""
    assert took < 240, f"{len(rows)} students took {took:.0f} seconds"

    sums = {id: sum(scores.values()) for id, (_, scores, _) in class_.expected.items()}
    graded = {row.student.id for row in rows if row.graded}
    assert in_gradebook(class_) == {id: sums[id] for id in graded}
    for id in graded:
        assert (class_.folder / "autograded" / id / "mini" / "mini.ipynb").is_file()
        assert (class_.folder / "feedback" / id / "mini" / "mini.html").is_file()

    files = tables.write(rows, class_.release, class_.folder / "grades")
    table = {line["id"]: line for line in csv.DictReader(io.StringIO(files[0].read_text(encoding="utf-8")))}
    assert {id: line["points"] for id, line in table.items()} == {
        id: f"{sums[id]:g}" if id in graded else "" for id in class_.expected
    }
    assert table["away"]["first_name"] == "'=cmd()"

    def refuse(*arguments, **options):
        raise AssertionError("a student whose result is stored was run again")

    monkeypatch.setattr(sandbox, "run", refuse)
    assert compared(class_, class_.grading(protected).run()) == ""
