"""The page *Teach*: what it says is what the notebooks say, its weeks fit, and its example of an examination works."""

import re
import subprocess
import sys

import nbformat
import pytest
import yaml
from nbgrader.utils import determine_grade

from book.tools import assignment, examination, execute, notebooks, teaching
from book.tools.anatomy import exercises
from book.tools.teaching import Exercise, Facts, Week

PAGE = (notebooks.ROOT / "book" / "teach.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def book():
    return teaching.book()


def made(id, needs=(), helps=(), reading=30, minutes=(10, 10, 15)):
    """A chapter that is nowhere written."""
    kinds = ("derive", "predict", "code")
    return Facts(notebooks.ROOT / f"chapters/channel/{id}.ipynb", id, (), tuple(needs), tuple(helps), reading,
                 tuple(Exercise(k + 1, kinds[k], 2, m, "") for k, m in enumerate(minutes)), (), False, (), 0)


# --- chapters ---------------------------------------------------------------------------------------------------------


def test_every_chapter_says_what_an_instructor_asks(chapter, book):
    facts = book[chapter.stem]
    assert facts.title and 3 <= len(facts.objectives) <= 5 and 20 <= facts.reading <= 40
    assert [exercise.kind for exercise in facts.exercises] == ["derive", "predict", "code"]
    assert all(exercise.title and exercise.minutes and exercise.points for exercise in facts.exercises)
    assert {*facts.needs, *facts.helps} <= set(book) - {facts.id}


def test_what_is_read_of_a_chapter(book):
    """One that is known by heart."""
    se, epsa = book["se"], book["epsa"]
    assert (se.title, se.needs, se.helps, se.tasks) == ("Squeeze-and-Excitation", ("gating",), (), ("lamplit_digits",))
    assert se.objectives[1] == "say what its gate can depend on and what it cannot see, and show both;"
    assert epsa.needs == ("se",) and epsa.helps == ("sk",)  # "is an older relative"
    assert book["ccnet"].needs == () and book["ccnet"].helps == ("se",)  # "if a gate and a trace are new to you"
    assert book["yolo"].packages == ("ultralytics",) and se.packages == ()


# --- what comes before what -------------------------------------------------------------------------------------------


def test_groups_stand_behind_what_they_ask_for(book):
    done = set()
    for group in teaching.groups(book):
        assert done.issuperset(group.needs)
        done.update(group.members)
    assert done == set(book)


def test_what_a_prerequisite_asks_for_is_not_repeated():
    chapters = {c.id: c for c in (made("a"), made("b", "a"), made("c", "ab", "d"), made("d"), made("e", "b", "a"))}
    assert {(group.needs, group.helps): group.members for group in teaching.groups(chapters)} == {
        ((), ()): ("a", "d"), (("a",), ()): ("b",), (("b",), ("d",)): ("c",), (("b",), ()): ("e",)}


def test_a_circle_and_a_chapter_that_is_missing_are_named():
    with pytest.raises(ValueError, match="ask for each other: a → b → a"):
        teaching.groups({"a": made("a", "b"), "b": made("b", "a")})
    with pytest.raises(ValueError, match="a asks for z"):
        teaching.groups({"a": made("a", "z")})


# --- courses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "weeks"), [("six", 6), ("twelve", 12)])
def test_every_week_fits(book, name, weeks):
    """100 to 150 minutes, or it says why; nothing is read twice, nor before what it asks for."""
    course = teaching.courses(book)[name]
    assert len(course) == weeks
    assert [problem for week in course for problem in week.problems()] == []
    read = set()
    for week in course:
        assert week.meeting and not read & {chapter.id for chapter in week.chapters}
        read |= {chapter.id for chapter in week.read}
        for chapter in week.chapters:
            assert read.issuperset(chapter.needs), f"{name}: {chapter.id} comes too early"
        read |= {chapter.id for chapter in week.one_of}


def test_no_sum_is_written_down():
    """A title, chapters and words: minutes, points and numbers of exercises come from the notebooks."""
    for weeks in yaml.safe_load(teaching.COURSES.read_text(encoding="utf-8")).values():
        for week in weeks:
            assert set(week) <= {"title", "read", "one_of", "meeting", "together", "extra", "extra_for", "why"}
            assert not re.search(r"\d+ (minutes|points)", week["meeting"])


def test_a_week_adds_up():
    week = Week("w", (made("a", reading=40),), (made("b", minutes=(1, 2, 3)), made("c")), extra=5)
    assert week.minutes == (75 + 36 + 5, 75 + 65 + 5) and week.points == (12, 12) and week.problems() == []
    assert teaching.span(week.minutes) == "116 to 145" and teaching.span(week.points) == "12"


def test_a_week_that_does_not_fit_is_noticed():
    short, long = Week("w", (made("a"),)), Week("w", tuple(made(id) for id in "abc"))
    assert "takes 65 minutes" in short.problems()[0] and "takes 195 minutes" in long.problems()[0]
    assert Week("w", (made("a"),), why="A holiday.").problems() == []
    assert "needs no reason" in Week("w", (made("a"), made("b")), why="A holiday.").problems()[0]


def test_a_course_of_chapters_that_are_not_there(book, monkeypatch, tmp_path):
    monkeypatch.setattr(teaching, "COURSES", tmp_path / "courses.yml")
    teaching.COURSES.write_text("one:\n  - {title: A, read: [zz]}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="'zz', which is no chapter"):
        teaching.courses(book)
    teaching.COURSES.write_text("one:\n  - {title: A, read: [se], minutes: 5}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="'minutes'"):
        teaching.courses(book)


# --- an examination of one's own --------------------------------------------------------------------------------------


def of_the_page(name):
    """A block of code of the page."""
    return re.search(rf"```{{code-block}} python\n:name: {name}\n\n(.*?)```", PAGE, re.DOTALL)[1].rstrip()


def test_the_example_of_an_examination(tmp_path):
    """Its solution gets full marks; the stub gets none, and neither does the solution that the book publishes."""
    path = notebooks.find(["se"])[0]
    notebook = examination.make("midterm", [(path, 1)])
    published, answer, check = notebook.cells[3].source, of_the_page("examination-solution"), notebook.cells[4]
    check.source = of_the_page("examination-check")
    assert "`agree()`" in PAGE and exercises.signatures(answer) == {"agree": ""}
    answers = [answer, exercises.student_copy(answer), f"{published}\n\nagree = exactly_one"]
    notebook.cells = notebook.cells[:2]
    for number, one in enumerate(answers):
        notebook.cells += [nbformat.v4.new_code_cell(one), nbformat.from_dict({**check, "id": f"check-{number}"})]
    ran, _ = execute.run(notebook, tmp_path, allow_errors=True)
    assert [determine_grade(cell)[0] for cell in ran.cells[3::2]] == [2, 0, 0]
    assert not any(output.output_type == "error" for cell in ran.cells[2::2] for output in cell.get("outputs", []))


def test_exercises_in_a_notebook_of_ones_own(tmp_path):
    """From several chapters, numbered anew; nbgrader makes the students' version."""
    file = tmp_path / "course" / "midterm.ipynb"
    command = [sys.executable, "-m", "book.tools.examination", str(file), "se/1", "ccnet/3"]
    subprocess.run(command, cwd=notebooks.ROOT, check=True, capture_output=True)
    notebook = notebooks.read(file)
    assert notebooks.is_stale(notebook) and not any(cell.get("outputs") for cell in notebook.cells)
    ids = [cell.metadata["nbgrader"]["grade_id"] for cell in notebook.cells if "nbgrader" in cell.metadata]
    assert [id[:10] for id in ids] == ["midterm-1-"] * 2 + ["midterm-2-"] * 2 and len(set(ids)) == 4
    headings = [found for cell in notebook.cells for found in exercises.EXERCISE.finditer(cell.source)]
    assert [found["number"] for found in headings] == ["1", "2"]
    copy = notebooks.read(assignment.make(file, tmp_path / "course"))
    assert assignment.points(copy) == 6 and "SOLUTION" not in nbformat.writes(copy)
    again = subprocess.run(command, cwd=notebooks.ROOT, capture_output=True, text=True)
    assert again.returncode == 1 and "is there already" in again.stderr


def test_an_exercise_that_is_not_there():
    with pytest.raises(ValueError, match="se has the exercises 1, 2, 3, no 4"):
        examination.exercise(notebooks.find(["se"])[0], 4)


# --- citing -----------------------------------------------------------------------------------------------------------


def test_the_citation_has_what_an_archive_needs():
    """The fields of the Citation File Format 1.2.0 that it requires, and those of a record with a DOI."""
    cff = yaml.safe_load((notebooks.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cff["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "abstract", "license", "url", "repository-code", "keywords"} <= set(cff)
    assert all(set(author) == {"name"} for author in cff["authors"]) and cff["type"] == "software"
