"""Who is in the class: `roster.csv` in the course's folder, in the form that `nbgrader db student import` takes.

    id,first_name,last_name,email
    ada,Ada,Lovelace,ada@example.org

A further column `lms_user_id` holds the number under which Canvas knows a student; it finds their file in a download,
and Canvas their row.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Student:
    """A member of the class."""

    id: str
    first_name: str = ""
    last_name: str = ""
    email: str = ""
    lms_user_id: str = ""
    listed: bool = True

    @property
    def name(self) -> str:
        """First and last name, as far as they are known."""
        return f"{self.first_name} {self.last_name}".strip()


class RosterError(Exception):
    """The roster cannot be read; the message says why."""


def read(path: Path) -> dict[str, Student]:
    """The students of the roster at `path`, by their ids; none if there is no such file.

    Raises:
        RosterError: if it has no column `id`, or one id twice.
    """
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RosterError(f"{path} is not in UTF-8; save it as \"CSV UTF-8\"") from None
    first = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text), delimiter=";" if first.count(";") > first.count(",") else ",")
    if "id" not in [(name or "").strip() for name in rows.fieldnames or []]:
        raise RosterError(f"{path} needs the columns id, first_name, last_name, email; it has: {first or 'nothing'}")
    found: dict[str, Student] = {}
    for row in rows:
        cells = {(key or "").strip(): normal(value) for key, value in row.items() if isinstance(value, str)}
        if not (id := cells.get("id", "")):
            continue
        if id in found:
            raise RosterError(f"{path} lists the id {id!r} twice")
        fields = ("first_name", "last_name", "email", "lms_user_id")
        found[id] = Student(id, *(cells.get(field, "") for field in fields))
    return found


def normal(text: str) -> str:
    """Text in the one form in which equal names are equal: macOS writes file names with accents apart."""
    return unicodedata.normalize("NFC", text).strip()


def folded(name: str) -> str:
    """A name reduced to its letters and digits, as learning platforms reduce it for file names."""
    apart = unicodedata.normalize("NFKD", name.casefold())
    return "".join(sign for sign in apart if sign.isalnum())


def identify(name: str, number: str, students: dict[str, Student]) -> tuple[Student, str]:
    """The student whom a learning platform's file name means, and a remark if that is not certain.

    Args:
        name: the name in the file's name: an id, an address, "Ada Lovelace", or Canvas' "lovelaceada".
        number: the platform's number of the student, if it has one.
        students: the roster.
    """
    for student in students.values():
        if number and student.lms_user_id == number:
            return student, ""
    wanted = folded(name)
    fits = [
        student for student in students.values()
        if name in (student.id, student.email)
        or (wanted and wanted in {
            folded(student.id), folded(student.first_name + student.last_name),
            folded(student.last_name + student.first_name),
        })
    ]
    if len(fits) == 1:
        return fits[0], ""
    id = normal(name).replace("/", "-").replace("\\", "-").lstrip(".") or "unnamed"
    if fits:
        id = f"{id} {number}".strip()
        return Student(id, listed=False), f"the roster has several students called {name}"
    return Student(id, listed=False), ""
