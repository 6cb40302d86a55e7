"""Finds what each student handed in for an assignment, under whatever name, and the answers in it.

A notebook is told by what is in it: the grade ids of its cells. So it may be called `Copy of se (1).ipynb` and lie
where it likes below `submitted/<student>/`, or come out of a learning platform's download in `downloaded/se/`, zipped
or not. What students hand in is read as data: nothing of it runs here.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from .. import assignment
from . import release as releases
from . import roster
from .release import Exercise, Release
from .roster import Student

MOST_BYTES = 50_000_000  # of a notebook; one with answers has some hundred kilobytes
MOST_FILES = 10_000  # in a download
BUILTINS = frozenset(dir(builtins))


class Unreadable(Exception):
    """A notebook that cannot be read; the message says why."""


@dataclass(frozen=True)
class Answer:
    """What a student wrote into one exercise.

    Args:
        source: the cell's text.
        before: the student's own cells that it needs, with names for tracebacks.
    """

    source: str
    before: tuple[tuple[str, str], ...] = ()


@dataclass
class Handed:
    """One notebook that a student handed in.

    Args:
        file: where it was found, for people.
        when: when it was last changed.
        answers: what is in it, by the exercises' ids; stubs are left out.
        texts: written answers, which people grade, by grade ids.
        older: whether it was made from another version of the assignment.
        remarks: what else a teacher should know.
        problem: why it could not be read.
    """

    file: str
    when: float = 0.0
    answers: dict[str, Answer] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    older: bool = False
    remarks: list[str] = field(default_factory=list)
    problem: str = ""


@dataclass
class Work:
    """All that one student handed in for an assignment, the notebook that counts first."""

    student: Student
    handed: list[Handed] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def collect(course: Path, release: Release, students: dict[str, Student]) -> dict[str, Work]:
    """What was handed in, by the students' ids; students of the roster without anything are there as well."""
    found = {id: Work(student) for id, student in students.items()}
    for student, label, when, content, remark in _files(course, release.name, students):
        if not _belongs(content, label, release):
            continue
        work = found.setdefault(student.id, Work(student))
        if remark and remark not in work.remarks:
            work.remarks.append(remark)
        handed = Handed(label, when)
        try:
            read(content, release, handed)
        except Unreadable as problem:
            handed.problem = str(problem)
        except Exception as error:  # a file made to be stumbled over stops nobody else
            handed.answers.clear()
            handed.problem = f"it cannot be read: {type(error).__name__}: {error}"[:200]
        work.handed.append(handed)
    for work in found.values():
        work.handed.sort(key=lambda one: (not one.problem, len(one.answers), one.when), reverse=True)
    return found


def _files(course: Path, name: str, students: dict[str, Student]) -> Iterator[tuple[Student, str, float, bytes, str]]:
    """Every notebook of the course, with its student, a label, its time, its bytes and a remark."""
    for folder in sorted((course / "submitted").glob("*")):
        if folder.is_dir() and not folder.name.startswith("."):
            id = roster.normal(folder.name)
            student = students.get(id) or Student(id, listed=False)
            for path in _notebooks(folder):
                yield student, path.relative_to(course).as_posix(), path.stat().st_mtime, _bytes(path), ""
    downloads = course / "downloaded" / name
    for path in _notebooks(downloads):
        student, remark = _sender(path.relative_to(downloads).as_posix(), students)
        yield student, path.relative_to(course).as_posix(), path.stat().st_mtime, _bytes(path), remark
    for path in sorted(downloads.rglob("*.zip")):
        label = path.relative_to(course).as_posix()
        for member, when, content in _unzipped(path):
            student, remark = _sender(member, students)
            yield student, f"{label}/{member}", when, content, remark


def _notebooks(folder: Path) -> Iterator[Path]:
    """The notebooks below a folder; what editors and systems put beside them is passed over, links are not followed."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith((".", "__MACOSX")))
        for file in sorted(files):
            path = Path(parent, file)
            if file.lower().endswith(".ipynb") and not file.startswith(".") and not path.is_symlink():
                yield path


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


def _unzipped(path: Path) -> Iterator[tuple[str, float, bytes]]:
    """The notebooks in a zip file, read from it without unpacking it anywhere."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist()[:MOST_FILES]:
                parts = PurePosixPath(member.filename).parts
                if not member.filename.lower().endswith(".ipynb") or any(
                    part.startswith((".", "__MACOSX")) for part in parts
                ):
                    continue
                with archive.open(member) as file:
                    when = datetime(*member.date_time, tzinfo=timezone.utc).timestamp() if member.date_time[0] else 0.0
                    yield member.filename, when, file.read(MOST_BYTES + 1)
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, NotImplementedError) as error:
        yield f"{path.stem}.ipynb", path.stat().st_mtime, f"not a zip file: {error}".encode()


def _sender(label: str, students: dict[str, Student]) -> tuple[Student, str]:
    """Whose a file in a download is, by its name or by its folder's."""
    label = roster.normal(label)
    if match := assignment.LMS_FILE.match(f"/{label}"):
        return roster.identify(match["student_id"], match["number"], students)
    parts = [part for part in label.split("/") if part not in ("archive", "extracted")]
    named = parts[0] if len(parts) > 1 else re.split(r"[_.]", parts[0])[0]
    return roster.identify(named, "", students)


def _belongs(content: bytes, label: str, release: Release) -> bool:
    """Whether a file is for this assignment: it lies where only that should, has its grade ids or functions, or, if it
    says nothing of any assignment, is called like it.
    """
    parts = label.split("/")
    if parts[0] == "downloaded" or parts[2] == release.name:
        return True
    if any(f'"{id}"'.encode() in content for id in release.metadata) or f'"{release.name}-'.encode() in content:
        return True
    if b'"grade_id"' in content:
        return False
    written = [f"def {name}(".encode() for exercise in release.exercises for name in exercise.defines]
    return any(text in content for text in written) or release.name in re.split(r"[^\w-]+|_(?=copy|\d)", label.lower())


def read(content: bytes, release: Release, handed: Handed) -> None:
    """Reads a notebook's answers into `handed`.

    Raises:
        Unreadable: if there is no notebook in `content`.
    """
    cells = _cells(content)
    ids = {id for id in release.metadata if not release.metadata[id].get("locked")}
    wanted = {exercise.id: exercise for exercise in release.exercises}
    by_id: dict[str, list[int]] = {}
    by_name: dict[str, list[int]] = {}
    for index, (kind, source, meta, hint) in enumerate(cells):
        id = meta.get("grade_id") or hint
        if id in ids and (kind == "code") == (id in wanted):
            by_id.setdefault(id, []).append(index)
        elif kind == "code" and not meta:
            for exercise in release.exercises:
                if exercise.defines and exercise.defines <= releases.definitions(releases.plain(source)):
                    by_name.setdefault(exercise.id, []).append(index)
    if not by_id and not by_name and not any(meta.get("grade_id") in release.metadata for _, _, meta, _ in cells):
        raise Unreadable("nothing of this assignment is in it")
    for id, exercise in wanted.items():
        _choose(id, exercise, cells, by_id.get(id, []), by_name.get(id, []), release, handed)
    for id in ids - wanted.keys():
        if id in by_id:
            handed.texts[id] = cells[by_id[id][-1]][1]
    _versions(cells, release, handed)


def _choose(
    id: str, exercise: Exercise, cells: list[tuple[str, str, dict[str, Any], str]], own: list[int], named: list[int],
    release: Release, handed: Handed,
) -> None:
    """Puts the answer that counts into `handed`: the last that is more than the stub, in a cell of its own first."""
    filled = [index for index in own if not is_stub(cells[index][1], exercise)]
    elsewhere = [index for index in named if not is_stub(cells[index][1], exercise)]
    if len(filled) > 1:
        handed.remarks.append(f"{id}: {len(filled)} answers, the last one counts")
    if not filled and elsewhere:
        handed.remarks.append(f"{id}: found by the name of its function")
        filled = elsewhere
    if filled:
        index = filled[-1]
        before = _needed(index, cells, release)
        if before:
            handed.remarks.append(f"{id}: uses {len(before)} other cell{'s' * (len(before) > 1)} of the notebook")
        handed.answers[id] = Answer(cells[index][1], before)


def _needed(
    index: int, cells: list[tuple[str, str, dict[str, Any], str]], release: Release
) -> tuple[tuple[str, str], ...]:
    """The cells above a student's answer that define what it uses, as it would find them in the notebook."""
    answer = releases.plain(cells[index][1])
    defined, used = releases.names(answer)
    needed = used - defined - release.given - BUILTINS
    kept: list[tuple[str, str]] = []
    for above in range(index - 1, -1, -1):
        kind, source, meta, _ = cells[above]
        if not needed:
            break
        if kind != "code":
            continue
        code = releases.plain(source)
        if meta.get("grade"):  # of a check, what it imports is there for all cells below
            code = _imports(code)
        gives, takes = releases.names(code)
        if gives & needed:
            kept.insert(0, (f"answer, cell {above + 1}", code))
            needed = (needed - gives) | (takes - release.given - BUILTINS)
    return tuple(kept)


def _imports(code: str) -> str:
    """The import statements of a cell."""
    parsed = releases.tree(code)
    lines = parsed.body if parsed else []
    return "\n".join(ast.unparse(line) for line in lines if isinstance(line, ast.Import | ast.ImportFrom))


def _versions(cells: list[tuple[str, str, dict[str, Any], str]], release: Release, handed: Handed) -> None:
    """Notes whether the notebook was made from another version, and whether its checks were edited."""
    gone, edited = set(), set()
    for _, source, meta, _ in cells:
        id, checksum = meta.get("grade_id"), meta.get("checksum")
        if not isinstance(id, str):
            continue
        if id not in release.metadata:
            gone.add(id)
        elif checksum and checksum != release.checksums[id]:
            handed.older = True
        elif release.metadata[id].get("locked") and source.strip() != release.sources[id].strip():
            edited.add(id)
    if gone:
        handed.older = True
        handed.remarks.append(f"not in this version: {', '.join(sorted(map(str, gone)))[:200]}")
    if edited and not handed.older:
        handed.remarks.append(f"checks were edited and are not used: {', '.join(sorted(edited))}")


def is_stub(source: str, exercise: Exercise) -> bool:
    """Whether nothing was filled in: the stub of this version or of another one, reformatted or not."""
    parsed, stub = releases.tree(releases.plain(source)), releases.tree(exercise.stub)
    if parsed is None:
        return source.split() == exercise.stub.split()
    try:
        if not parsed.body or (stub is not None and ast.dump(parsed) == ast.dump(stub)):
            return True
        return all(_says_nothing(node) for node in parsed.body)
    except RecursionError:
        return False


def _says_nothing(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return all(_says_nothing(one) for one in node.body)
    if isinstance(node, ast.Raise):
        return "NotImplementedError" in ast.unparse(node)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Pass) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def _cells(content: bytes) -> list[tuple[str, str, dict[str, Any], str]]:
    """Kind, text, nbgrader's metadata and a hint at the grade id of every cell.

    Editors move nbgrader's metadata about or lose them. Where they are lost, the cell's own id helps: in the book's
    notebooks it is the grade id, and Colab keeps it, in notebooks of an older format among the metadata.
    """
    if len(content) > MOST_BYTES:
        raise Unreadable(f"larger than {MOST_BYTES // 1_000_000} MB")
    if not content.strip():
        raise Unreadable("the file is empty")
    try:
        notebook = json.loads(content.decode("utf-8-sig"))
        sheets = notebook["worksheets"] if "worksheets" in notebook else [notebook]
        cells = [cell for sheet in sheets for cell in sheet["cells"]]
        return [_cell(cell) for cell in cells]
    except UnicodeDecodeError:
        raise Unreadable("the file is not text in UTF-8") from None
    except ValueError as error:
        raise Unreadable(f"the file is no complete JSON ({error})"[:200]) from None
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise Unreadable("the file is JSON, but no notebook") from None


def _cell(cell: dict[str, Any]) -> tuple[str, str, dict[str, Any], str]:
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    metadata = cell.get("metadata") if isinstance(cell.get("metadata"), dict) else {}
    hint = next((id for id in (cell.get("id"), metadata.get("id")) if isinstance(id, str)), "")
    source = str(source).encode("utf-8", "replace").decode()  # half characters, which no file can hold
    return str(cell.get("cell_type", "")), source, _nbgrader(metadata), hint


def _nbgrader(metadata: dict[str, Any], depth: int = 3) -> dict[str, Any]:
    """nbgrader's entry, wherever in the metadata an editor put it."""
    own = metadata.get("nbgrader")
    if isinstance(own, dict) and isinstance(own.get("grade_id"), str):
        return own
    for value in metadata.values():
        if isinstance(value, dict) and isinstance(value.get("grade_id"), str):
            return value
        if isinstance(value, dict) and depth and (found := _nbgrader(value, depth - 1)):
            return found
    return {}
