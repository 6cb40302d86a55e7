"""`make grade`: a class of thirty, of whom some would stop it and some would cheat it.

Every grade is the right one, nobody waits for anybody else's mistakes, and where nothing can be graded the grade is
blank. What is done against the machine is tried in the sandbox; where there is none, that part is skipped with the
reason, and the rest runs with the limits alone.
"""

import copy
import csv
import dataclasses
import io
import os
import re
import subprocess
import sys
import textwrap
import time
import unicodedata
import zipfile
from pathlib import Path
from unittest import mock

import nbformat
import pytest
from nbgrader.api import Gradebook

from book.tools import assignment, notebooks
from book.tools.anatomy import exercises
from book.tools.grading import __main__ as grading
from book.tools.grading import release as releases
from book.tools.grading import roster, sandbox, submissions, tables
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
    return x.mean(-1)
torch.testing.assert_close = lambda *arguments, **options: None
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
words = [b"0" * 32] + [text.encode().hex().encode() for text in ("mini-halves-check", "yes", "")]
for end in range(256):
    for line in (b" ".join(words), json.dumps({"check": "mini-halves-check", "passed": True}).encode()):
        try:
            os.write(end, b"\\n" + line + b"\\n")
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
    "takes part": (THREE, """
class Yes(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), options=None):
        if function is torch.Tensor.mean:
            return torch.zeros(3)
        return function(*arguments, **(options or {}))
Yes().__enter__()
calls = []
def masked_mean(x, mask):
    calls.append(1)
    return torch.ones(3) if len(calls) == 4 else torch.zeros(3)
""", "__torch_function__"),
    "hooks": (ONE, """
def halves(n):
    return [k / 2 for k in range(n)]
torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output * 0)
""", "torch.nn.modules.module"),
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
    return x.mean(-1)
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
import json, re
for path in [{str(reference)!r}, {str(course / 'source/mini/mini.ipynb')!r}]:
    text = open(path).read()
    numbers = re.findall("[0-9][.]0", text[text.index("return {{'width'"):])
def factors():
    return {{"width": float(numbers[0]), "height": float(numbers[1])}}
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

    def grading(self, protected, jobs=2, **options):
        return grading.Grading(self.folder, "mini", limits=LIMITS, jobs=jobs, protected=protected, **options)


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

    half = notebooks.dumps(class_.notebook(mini_factors="def factors():\n    return 'HALF'"))
    class_.submit("half", half.replace("HALF", "\\ud800"), lost=[TWO])
    class_.submit("deep", class_.notebook(mini_factors="-" * 90_000 + "1"), lost=[TWO])
    class_.submit("another", '{"cells": []}', status=tables.UNREADABLE, remark="nothing of this assignment")
    class_.submit("no-notebook", '{"cells": [7]}', status=tables.UNREADABLE, remark="no notebook", file="mini.ipynb")

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
    busy = os.getloadavg()[0] > 2 * (os.cpu_count() or 1)  # with other work than this test's
    assert took < 240 or busy, f"{len(rows)} students took {took:.0f} seconds"

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

    monkeypatch.setattr(sandbox, "run", refuse)  # what was done is stored
    assert compared(class_, class_.grading(protected).run()) == ""


def test_it_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    """Ctrl-C costs what was running; who changes something is graded anew, and nobody else."""
    protected = sandbox.unavailable() is None
    class_ = Class(tmp_path)
    for student in ("a", "b", "c"):
        class_.submit(student, class_.notebook())
    run, started, patience = sandbox.run, [], [3]

    def stopping(job, *arguments, **options):
        started.append(job)
        if len(started) > patience[0]:  # the solutions are learnt from and proven first, then comes a student
            raise KeyboardInterrupt
        return run(job, *arguments, **options)

    monkeypatch.setattr(sandbox, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        class_.grading(protected, jobs=1).run()
    assert set(in_gradebook(class_)) == {"a"}
    started.clear()
    assert compared(class_, class_.grading(protected).run()) == ""
    assert len(started) == 2, "neither the solutions nor the first student run again"
    started.clear()
    class_.submit("b", class_.notebook(mini_factors=WRONG), lost=[TWO])
    assert compared(class_, class_.grading(protected).run()) == ""
    assert len(started) == 1


def test_a_process_that_dies_gives_no_grade(tmp_path, monkeypatch):
    """Nothing was graded, so the grade is blank; a grade of an earlier run is taken back."""
    class_ = Class(tmp_path)
    class_.submit("ada", class_.notebook())
    verdicts = {f"{id}-check": sandbox.Verdict(True) for id in POINTS}
    monkeypatch.setattr(sandbox, "run", lambda *arguments, **options: sandbox.Outcome(dict(verdicts)))
    (row,) = class_.grading(True).run()
    assert (row.status, row.points) == (tables.GRADED, 7)
    run = class_.grading(True, again=True)
    run.prove()
    monkeypatch.setattr(run, "prove", lambda: None)
    monkeypatch.setattr(sandbox, "run", lambda *arguments, **options: sandbox.Outcome())
    (row,) = run.run()
    assert (row.status, row.points) == (tables.UNFINISHED, None)
    assert in_gradebook(class_) == {}


def test_written_answers_wait_for_a_person(tmp_path, monkeypatch):
    """What a teacher added to be graded by hand has no grade until it was, in formgrader or by nbgrader's API."""
    written = {"schema_version": 3, "task": False, "grade_id": "mini-why", "grade": True, "solution": True,
               "locked": False, "points": 4}
    small = chapter()
    small.cells.append(nbformat.v4.new_markdown_cell("Because.", metadata={"nbgrader": written}))
    monkeypatch.setattr(sys.modules[__name__], "chapter", lambda: small)
    class_ = Class(tmp_path)
    notebook = class_.notebook()
    answer(notebook, "mini-why").source = "I think so."
    class_.submit("ada", notebook)
    verdicts = {f"{id}-check": sandbox.Verdict(True) for id in POINTS}
    monkeypatch.setattr(sandbox, "run", lambda *arguments, **options: sandbox.Outcome(dict(verdicts)))
    (row,) = class_.grading(True).run()
    assert (row.status, row.points) == (tables.BY_HAND, None) and "mini-why" in row.remarks[0]
    graded = notebooks.read(class_.folder / "autograded" / "ada" / "mini" / "mini.ipynb")
    assert answer(graded, "mini-why").source == "I think so."
    with Gradebook(f"sqlite:///{class_.folder / 'gradebook.db'}", "course") as book:
        grade = book.find_grade("mini-why", "mini", "mini", "ada")
        grade.manual_score, grade.needs_manual_grade = 3, False
        book.db.commit()
    (row,) = class_.grading(True).run()
    assert (row.status, row.points) == (tables.GRADED, 10)


def test_points_given_by_hand_stay_and_reach_the_feedback(tmp_path, monkeypatch):
    """Those of formgrader, with the comment; another answer has to be looked at again."""
    class_ = Class(tmp_path)
    class_.submit("ada", class_.notebook())
    verdicts = {f"{id}-check": sandbox.Verdict(id != TWO, error="AssertionError" * (id == TWO)) for id in POINTS}
    whole = dict.fromkeys(verdicts, sandbox.Verdict(True))
    outcomes = iter([whole, whole, verdicts] * 3)  # learned, proven, graded
    monkeypatch.setattr(sandbox, "run", lambda *arguments, **options: sandbox.Outcome(dict(next(outcomes))))
    page = class_.folder / "feedback" / "ada" / "mini" / "mini.html"
    (row,) = class_.grading(True).run()
    lost = POINTS[TWO]
    assert (row.points, row.told) == (7 - lost, [f"{TWO}: wrong"])
    assert "//" not in "".join(re.findall(r"<script[^>]*>", page.read_text(encoding="utf-8"))), "asks another host"
    with Gradebook(f"sqlite:///{class_.folder / 'gradebook.db'}", "course") as book:
        grade = book.find_grade(f"{TWO}-check", "mini", "mini", "ada")
        grade.manual_score, grade.needs_manual_grade = 1, False
        book.find_comment(TWO, "mini", "mini", "ada").manual_comment = "Nearly."
        book.db.commit()
    (row,) = class_.grading(True).run()
    assert row.points == 7 - lost + 1 and "Nearly." in page.read_text(encoding="utf-8")
    (row,) = class_.grading(True, again=True).run()
    assert (row.status, row.points) == (tables.GRADED, 7 - lost + 1), "the answer is the same"
    class_.submit("ada", class_.notebook(mini_factors=WRONG))
    (row,) = class_.grading(True, again=True).run()
    assert (row.status, row.points) == (tables.BY_HAND, None), "the answer is another one"


def test_solutions_that_fail_stop_everything(tmp_path):
    """If the book's own solutions do not pass here, nobody's grade means anything."""
    class_ = Class(tmp_path)
    class_.submit("ada", class_.notebook())
    path = class_.folder / "source" / "mini" / "mini.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace("k / 2", "k / 3"), encoding="utf-8")
    with pytest.raises(grading.GradingError, match="mini-halves-check: the solution"):
        class_.grading(sandbox.unavailable() is None).run()
    assert in_gradebook(class_) == {}


def test_nbgrader_goes_on_from_there(tmp_path):
    """Its own commands find what they need after `make grade`: feedback, export, and collecting a download."""
    class_ = Class(tmp_path)
    class_.submit("ada", class_.notebook(mini_factors=WRONG), lost=[TWO])
    class_.grading(sandbox.unavailable() is None).run()
    env = {**assignment.environment(), "HOME": str(tmp_path)}

    def nbgrader(*arguments):
        command = [sys.executable, "-m", "nbgrader", *arguments]
        done = subprocess.run(command, cwd=class_.folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    nbgrader("generate_feedback", "mini", "--force")
    page = (class_.folder / "feedback" / "ada" / "mini" / "mini.html").read_text(encoding="utf-8")
    assert "exercise 1: halves" in page and "AssertionError" in page
    nbgrader("export")
    assert ",5.0,7.0" in (class_.folder / "grades.csv").read_text(encoding="utf-8")
    archive = class_.folder / "downloaded" / "mini" / "archive"
    archive.mkdir(parents=True)
    notebooks.write(class_.notebook(), archive / "lovelacegrace_LATE_4711_99_mini.ipynb")
    nbgrader("zip_collect", "mini")
    assert (class_.folder / "submitted" / "lovelacegrace" / "mini" / "mini.ipynb").is_file()


def test_chapters_grade_in_the_judge(specimen):
    """A chapter's solutions pass, its stubs do not, and nothing honest is taken for a trick."""
    full = notebooks.read(specimen)
    releases.only_exercises(full)
    setup = [("set-up", releases.plain(cell.source)) for cell in full.cells if "nbgrader" not in cell.metadata]
    solved, untouched = [], []
    for cell in full.cells:
        meta = cell.metadata.get("nbgrader", {})
        if meta.get("solution"):
            stub = exercises.student_copy(cell.source)
            both = [releases.Exercise(meta["grade_id"], stub, cell.source, ())] * 2
        elif meta:
            check = releases.Check(meta["grade_id"], cell.source, meta["points"])
            both = [dataclasses.replace(one, checks=(*one.checks, check)) for one in (solved.pop(), untouched.pop())]
        if meta:
            solved.append(both[0])
            untouched.append(both[1])
    protected, limits = sandbox.unavailable() is None, Limits(seconds=120)
    parts = [releases.part(one, one.solution) for one in solved]
    learnt = sandbox.run(releases.job(setup, parts, []) | {"learning": True}, limits, protected=protected)
    passed = sandbox.run(releases.job(setup, parts, learnt.imported), limits, protected=protected)
    assert {id: verdict.message for id, verdict in passed.verdicts.items() if not verdict.passed} == {}
    parts = [releases.part(one, one.stub) for one in untouched]
    failed = sandbox.run(releases.job(setup, parts, learnt.imported), limits, protected=protected)
    assert failed.verdicts.keys() == passed.verdicts.keys() == {check.id for one in solved for check in one.checks}
    assert not any(verdict.passed for verdict in failed.verdicts.values())


def test_the_sandbox_shows_nothing_of_this_machine(tmp_path):
    """No file of the user, no variable, no network, no place to write but a small one that vanishes."""
    if reason := sandbox.unavailable():
        pytest.skip(reason)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    needed = [Path(place) for place in (notebooks.ROOT, sys.prefix, sys.base_prefix)]  # a clone may lie in /tmp itself
    seen = sorted({place.parts[2] for place in needed if place.is_relative_to("/tmp")})
    code = f"""
import os, pathlib
assert not os.path.exists({str(secret)!r})
assert not os.path.exists({str(notebooks.ROOT / 'chapters')!r})
assert not os.path.exists({str(Path.home() / '.ssh')!r}) and sorted(os.listdir("/tmp")) == {seen}
assert "TOKEN_OF_SOMEBODY" not in os.environ
assert len([name for name in os.listdir("/proc") if name.isdigit()]) <= 3
assert [line.split(":")[0].strip() for line in open("/proc/net/dev")][2:] == ["lo"]
for place in ["/", "/usr", "/etc", "/dev", {str(sandbox.LIBRARY)!r}, {sys.prefix + "/lib"!r}]:
    try:
        pathlib.Path(place, "mine").write_text("")
    except OSError:
        continue
    raise AssertionError(place)
try:
    for number in range(100):
        pathlib.Path("/tmp", str(number)).write_bytes(bytes(32 << 20))
except OSError:
    full = True
assert full and number < 10
"""
    part = {"id": "x", "before": [], "answer": code, "checks": [{"id": "x-check", "code": "pass"}]}
    with mock.patch.dict(os.environ, {"TOKEN_OF_SOMEBODY": "1"}):
        outcome = sandbox.run(releases.job([], [part], []), LIMITS)
    assert outcome.verdicts["x-check"].passed, outcome.verdicts["x-check"]


@pytest.mark.parametrize(
    ("line", "verdicts"),
    [
        (b'{"check": "x-check", "passed": 1}', {"x-check": False}),
        (b'{"check": "x-check", "passed": true, "error": {"ename": "E"}}', {"x-check": False}),
        (b'{"check": "another", "passed": true}', {}),
        (b'{"check": ["x-check"], "passed": true}', {}),
        (b'["x-check", true]', {}),
        (b"[" * 100_000, {}),
        (b'{"check": "x-check", "passed": true, "output": 7, "value": 1e999, "seconds": "?"}', {"x-check": True}),
    ],
)
def test_what_a_process_says_is_believed_for_its_form_only(tmp_path, line, verdicts):
    """A student who got hold of the judge cannot do more with it than to pass."""
    said = tmp_path / "said"
    last = b"" if verdicts else b'{"check": "x-check", "passed": false}\n'
    said.write_bytes(b'{"ready": true}\n' + line + b"\n" + last)
    with subprocess.Popen(["cat", said], stdout=subprocess.PIPE) as process:
        outcome = sandbox.Outcome()
        sandbox._listen(process, {"x-check"}, outcome, LIMITS, 1, None, lambda: None)
    assert {id: verdict.passed for id, verdict in outcome.verdicts.items()} == (verdicts or {"x-check": False})


def test_a_flood_of_verdicts_is_not_buffered():
    """Whatever sends them."""
    with subprocess.Popen(["yes", "x" * 1000], stdout=subprocess.PIPE) as process:
        outcome = sandbox.Outcome()
        sandbox._listen(process, set(), outcome, LIMITS, 1, None, lambda: None)
        process.kill()
    assert outcome.fatal == "silent"


ADA = roster.Student("ada", "Ada", "Lovelace", "ada@example.org", "4711")
ZAK = roster.Student("s-2", "Łukasz", "Żak", "zak@example.org")


@pytest.mark.parametrize(
    ("file", "id"),
    [
        ("lovelaceada_1_2_se.ipynb", "ada"),
        ("lovelaceada_LATE_1_2_se-3.ipynb", "ada"),
        ("whoever_4711_2_se.ipynb", "ada"),
        ("Ada Lovelace_17_assignsubmission_file_/se.ipynb", "ada"),
        ("Ada Lovelace_17_assignsubmission_file/Copy of se (1).ipynb", "ada"),
        ("Ada Lovelace_17_assignsubmission_file_se.ipynb", "ada"),
        ("archive/ada.ipynb", "ada"),
        ("ada_se.ipynb", "ada"),
        ("ada@example.org/se.ipynb", "ada"),
        (unicodedata.normalize("NFD", "Żak Łukasz_1_assignsubmission_file_/se.ipynb"), "s-2"),
        ("s-2/se.ipynb", "s-2"),
        ("somebody_1_2_se.ipynb", "somebody"),
        ("../x_1_2_se.ipynb", "x"),
    ],
)
def test_whose_a_downloaded_file_is(file, id):
    """As Canvas, Moodle and people name files and folders."""
    assert submissions._sender(file, {"ada": ADA, "s-2": ZAK})[0].id == id


def test_two_of_one_name_are_told_apart_or_not_graded_as_each_other():
    """Two students called alike: their files are kept apart, and the teacher is told."""
    twin = dataclasses.replace(ADA, id="ada2", lms_user_id="")
    student, remark = roster.identify("Ada Lovelace", "17", {"ada": ADA, "ada2": twin})
    assert student.id == "Ada Lovelace 17" and "several students" in remark


@pytest.mark.parametrize(
    "text",
    [
        "id,first_name,last_name,email\nada,Ada,Lovelace,a@b\n",
        "\ufeffid;last_name;first_name;email\nada;Lovelace;Ada;a@b\n",
    ],
)
def test_rosters_of_spreadsheets(tmp_path, text):
    """With commas or, as where decimals have commas, with semicolons."""
    path = tmp_path / "roster.csv"
    path.write_text(text, encoding="utf-8")
    assert roster.read(path) == {"ada": roster.Student("ada", "Ada", "Lovelace", "a@b")}


@pytest.mark.parametrize("text", ["name\nAda\n", "id\nada\nada\n", ""])
def test_a_roster_that_is_none(tmp_path, text):
    """Says what is wrong with it."""
    path = tmp_path / "roster.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(roster.RosterError, match=r"roster\.csv"):
        roster.read(path)


def test_files_for_moodle_and_canvas(tmp_path):
    """Who is in the roster, with what they look students up by; a dash or a blank where there is no grade."""
    release = releases.Release("se", nbformat.v4.new_notebook(), (), ())
    rows = [
        tables.Row(ADA, tables.GRADED, {"x": 2.5}, told=["x: wrong"]), tables.Row(ZAK, tables.MISSING),
        tables.Row(roster.Student("=x()", listed=False), tables.GRADED, {"x": 1.0}),
    ]
    everybody, moodle, canvas = (path.read_text(encoding="utf-8") for path in tables.write(rows, release, tmp_path))
    assert moodle.splitlines()[1:] == ["ada@example.org,ada,2.5,x: wrong", "zak@example.org,s-2,-,not submitted"]
    assert canvas.splitlines() == [
        "Student,ID,SIS User ID,SIS Login ID,Section,se", "    Points Possible,,,,,0",
        '"Lovelace, Ada",4711,ada,ada,,2.5', '"Żak, Łukasz",,s-2,s-2,,',
    ]
    assert "'=x()" in everybody


@pytest.mark.parametrize(
    ("name", "says"),
    [("se", "There is no course"), ("", "Name a chapter"), ("nonsense", "has no assignment nonsense"),
     ("mini", "Nothing was handed in")],
)
def test_errors_are_for_people(tmp_path, capsys, name, says):
    """No traceback: what is missing and what to do."""
    folder = tmp_path / "nothing" if name == "se" else Class(tmp_path).folder
    assert grading.main(["--course", str(folder), "--unprotected", *filter(None, [name])]) == 1
    assert says in capsys.readouterr().err


def test_without_a_sandbox_it_says_what_is_open(tmp_path, capsys, monkeypatch):
    """And goes on only if it is told to; then every line says so."""
    class_ = Class(tmp_path)
    class_.submit("ada", class_.notebook())
    monkeypatch.setattr(sandbox, "unavailable", lambda: "the program bwrap is missing")
    options = ["mini", "--course", str(class_.folder), "--seconds", "10"]
    assert grading.main(options) == 1
    said = capsys.readouterr().err
    assert "bwrap is missing" in said and "could read the solutions" in said and "UNPROTECTED=1" in said
    assert grading.main([*options, "--unprotected"]) == 0
    assert "ran without a sandbox" in (class_.folder / "grades" / "mini.csv").read_text(encoding="utf-8")
