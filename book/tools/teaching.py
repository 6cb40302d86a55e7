"""What an instructor asks about a chapter, read from its notebook: nothing of it is written down a second time.

`facts` reads a chapter: objectives, prerequisites, minutes, points, exercises, tasks, what machine it wants. `courses`
reads `book/courses.yml`, which says only what is read when and what is done in class; points and minutes are sums over
the chapters. The page *Teach* is made of both (`book/_ext/teaching.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from attn_lib import tasks

from . import notebooks
from .anatomy.chapter import LINK, Chapter
from .anatomy.exercises import EXERCISE, READING

COURSES = notebooks.ROOT / "book" / "courses.yml"
MINUTES = range(100, 151)  # of work that a week asks for

OBJECTIVES = re.compile(r"After this chapter you can\s*\n\s*\n(?P<list>(?:[-*] .*\n(?:[ \t]+\S.*\n?)*|\s*\n)+)")
PREREQUISITES = re.compile(r"Prerequisites?:(?P<text>.*?)(?=Reading\s+takes|\Z)", re.DOTALL)
OPTIONAL = re.compile(r"\bif\b|\bhelps\b|\brelative\b")  # a clause that asks for nothing


@dataclass(frozen=True)
class Exercise:
    """An exercise as its heading announces it."""

    number: int
    kind: str  # "derive", "predict" or "code"
    points: int
    minutes: int
    title: str


@dataclass(frozen=True)
class Facts:
    """A chapter as an instructor sees it.

    Attributes:
        path: of the notebook.
        title: its first heading.
        objectives: what stands under "After this chapter you can", each in Markdown.
        needs: ids of the chapters that its prerequisites link.
        helps: of those that they only recommend: in a clause with "if", or as a relative.
        reading: minutes, as its head says.
        exercises: in their order.
        tasks: ids of the tasks that it trains on or shows.
        times: whether it measures times.
        packages: what some of its cells need that `attn_lib[chapters]` does not bring.
        size: of the notebook in bytes, outputs included.
    """

    path: Path
    title: str
    objectives: tuple[str, ...]
    needs: tuple[str, ...]
    helps: tuple[str, ...]
    reading: int
    exercises: tuple[Exercise, ...]
    tasks: tuple[str, ...]
    times: bool
    packages: tuple[str, ...]
    size: int

    @property
    def id(self) -> str:
        """The file's name."""
        return self.path.stem

    @property
    def family(self) -> str:
        """The folder's name."""
        return self.path.parent.name

    @property
    def page(self) -> str:
        """The chapter's page on the site, without a suffix."""
        return f"chapters/{self.family}/{self.id}"

    @property
    def practice(self) -> int:
        """Minutes of all exercises."""
        return sum(exercise.minutes for exercise in self.exercises)

    @property
    def minutes(self) -> int:
        """Minutes of reading and of all exercises."""
        return self.reading + self.practice

    @property
    def points(self) -> int:
        """Points of all exercises."""
        return sum(exercise.points for exercise in self.exercises)


def facts(path: Path) -> Facts:
    """What the notebook at `path` says of itself."""
    return _facts(path, path.stat().st_mtime_ns)


@cache
def _facts(path: Path, changed: int) -> Facts:
    """Read once, and again when the file changes."""
    chapter = Chapter.load(path)
    head = chapter.text("title", "markdown")
    objectives, reading = OBJECTIVES.search(head + "\n"), READING.search(head)
    needs, helps = _prerequisites(head, path)
    code = "\n".join(cell.source for _, cell in chapter.code if "setup" not in notebooks.tags(cell))
    return Facts(
        path=path, title=head.partition("\n")[0].removeprefix("# ").strip(),
        objectives=tuple(" ".join(item.split()) for item in
                         re.split(r"^[-*] ", objectives["list"], flags=re.MULTILINE)[1:]) if objectives else (),
        needs=needs, helps=helps, reading=int(reading["reading"]) if reading else 0,
        exercises=tuple(
            Exercise(int(found["number"]), found["kind"], int(found["points"]), int(found["minutes"]),
                     found["title"].strip())
            for _, cell in chapter.prose for found in EXERCISE.finditer(cell.source)),
        tasks=tuple(id for id in tasks.list_tasks() if path.stem in tasks.task(id).chapters),
        times=bool(re.search(r"\btiming\(|compare_timings\(|measure_time=True", code)),
        packages=tuple(re.findall(r"%pip install (?:--quiet )?(\w+)", code)),
        size=path.stat().st_size,
    )


def _prerequisites(head: str, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids of the chapters that the prerequisites ask for, and of those that they recommend."""
    found = PREREQUISITES.search(head)
    needs: list[str] = []
    helps: list[str] = []
    for clause in re.split(r";|(?<!e\.g)\.\s", found["text"]) if found else ():
        for link in LINK.finditer(clause):
            other = (path.parent / link["target"].partition("#")[0]).resolve()
            if other.suffix == ".ipynb" and other != path.resolve():
                (helps if OPTIONAL.search(LINK.sub("", clause)) else needs).append(other.stem)
    return tuple(dict.fromkeys(needs)), tuple(id for id in dict.fromkeys(helps) if id not in needs)


def book(root: Path = notebooks.ROOT) -> dict[str, Facts]:
    """Every chapter that `_toc.yml` lists, by its id and in that order."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return {Path(file).stem: facts(root / f"{file}.ipynb") for file in files if file.startswith("chapters/")}


# --- what builds on what ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Chapters that ask for the same others.

    Attributes:
        needs, helps: ids, without those that another of them asks for already.
        members: ids, in the order of the book.
    """

    needs: tuple[str, ...]
    helps: tuple[str, ...]
    members: tuple[str, ...]


def groups(chapters: Mapping[str, Facts]) -> list[Group]:
    """All chapters in groups, each behind those that it asks for.

    Raises:
        ValueError: chapters ask for each other in a circle, or for one that is not there.
    """
    before: dict[str, set[str]] = {}

    def behind(id: str, trail: tuple[str, ...] = ()) -> set[str]:
        """All that has to be read before a chapter."""
        if id in trail:
            raise ValueError(f"these chapters ask for each other: {' → '.join([*trail, id])}")
        if id not in chapters:
            raise ValueError(f"{trail[-1]} asks for {id}, which is not in _toc.yml")
        if id not in before:
            needs = chapters[id].needs
            before[id] = set(needs).union(*(behind(other, (*trail, id)) for other in needs))
        return before[id]

    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for id, chapter in chapters.items():
        known = behind(id)
        needs = tuple(other for other in chapter.needs
                      if not any(other in behind(more) for more in chapter.needs if more != other))
        helps = tuple(other for other in chapter.helps if other in chapters and other not in known)
        alike.setdefault((needs, helps), []).append(id)
    waiting = [Group(*key, tuple(members)) for key, members in alike.items()]
    done: set[str] = set()
    ordered: list[Group] = []
    while waiting:
        ready = next((one for one in waiting if done.issuperset([*one.needs, *one.helps])), None)
        ready = ready or next(one for one in waiting if done.issuperset(one.needs))
        waiting.remove(ready)
        ordered.append(ready)
        done.update(ready.members)
    return ordered


# --- courses ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Week:
    """A week of a course.

    Attributes:
        title: what it is about.
        read: chapters that everybody reads before the meeting.
        one_of: chapters of which each student reads one.
        meeting: what is done in class, in Markdown.
        together: kinds of exercises that are done there; the others are home work.
        extra: further minutes of work.
        extra_for: what they are for.
        why: why it takes more or fewer minutes than others, if it does.
    """

    title: str
    read: tuple[Facts, ...]
    one_of: tuple[Facts, ...] = ()
    meeting: str = ""
    together: tuple[str, ...] = ("predict",)
    extra: int = 0
    extra_for: str = ""
    why: str = ""

    def _sums(self, of: str) -> tuple[int, int]:
        least = most = sum(getattr(chapter, of) for chapter in self.read)
        if self.one_of:
            least += min(getattr(chapter, of) for chapter in self.one_of)
            most += max(getattr(chapter, of) for chapter in self.one_of)
        return least, most

    @property
    def minutes(self) -> tuple[int, int]:
        """Of reading, exercises and what comes on top: the least and the most that a student's choice makes of it."""
        least, most = self._sums("minutes")
        return least + self.extra, most + self.extra

    @property
    def points(self) -> tuple[int, int]:
        """The least and the most."""
        return self._sums("points")

    @property
    def chapters(self) -> tuple[Facts, ...]:
        """All that the week names."""
        return (*self.read, *self.one_of)

    def problems(self) -> list[str]:
        """What is wrong with the week."""
        least, most = self.minutes
        fits, said = least in MINUTES and most in MINUTES, f"{self.title!r} takes {span(self.minutes)} minutes"
        if fits and self.why:
            return [f"{said}, which needs no reason"]
        if not fits and not self.why:
            return [f"{said}, not {MINUTES.start} to {MINUTES.stop - 1}: move something, or say why"]
        return []


def courses(chapters: Mapping[str, Facts] | None = None) -> dict[str, list[Week]]:
    """The courses of `book/courses.yml`, by name.

    Raises:
        ValueError: a week names a chapter that is not there, or has a key that no week has.
    """
    chapters = book() if chapters is None else chapters
    return {name: [_week(entry, chapters) for entry in weeks]
            for name, weeks in yaml.safe_load(COURSES.read_text(encoding="utf-8")).items()}


def _week(entry: Mapping[str, Any], chapters: Mapping[str, Facts]) -> Week:
    given = dict(entry)
    try:
        for key in ("read", "one_of"):
            given[key] = tuple(chapters[id] for id in given.get(key, ()))
        if "together" in given:
            given["together"] = tuple(given["together"])
        return Week(**given)
    except KeyError as error:
        raise ValueError(f"{COURSES.name}: {entry.get('title')!r} names {error}, which is no chapter") from error
    except TypeError as error:
        raise ValueError(f"{COURSES.name}: {entry.get('title')!r}: {error}") from error


def span(pair: Iterable[int]) -> str:
    """"115", or "100 to 120"."""
    least, most = pair
    return f"{least}" if least == most else f"{least} to {most}"
