"""Whether version, changelog and tag agree, and what a release's notes are.

    python -m book.tools.release --check            the version in attn_lib and CHANGELOG.md
    python -m book.tools.release --check v0.1.0     and a tag; exit status 1 if they disagree
    python -m book.tools.release --notes v0.1.0     prints the changelog's section for a tag

To release: take `.dev0` off the version in `attn_lib/__init__.py`, turn `[Unreleased]` in CHANGELOG.md into the version
and the day, run `make address`, after which chapters install the tag, commit, and push the tag. Afterwards raise the
version to the next one's `.dev0`, put an empty `[Unreleased]` on top, and run `make address` again. The workflow
`release.yml` does the rest.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
UNRELEASED = "Unreleased"
HEADING = re.compile(r"^## \[(?P<name>[^\]]+)\](?: - (?P<date>\d{4}-\d{2}-\d{2}))?$", re.MULTILINE)
NUMBER = r"(?:0|[1-9]\d*)"
VERSION = re.compile(rf"{NUMBER}\.{NUMBER}\.{NUMBER}(?P<dev>\.dev0)?")


class Section(NamedTuple):
    """A version's part of the changelog."""

    name: str
    date: str | None
    text: str


def version(root: Path = ROOT) -> str:
    """The version in `attn_lib/__init__.py`, read without importing it."""
    return re.search(r'^__version__ = "([^"]+)"', (root / "attn_lib/__init__.py").read_text("utf-8"), re.MULTILINE)[1]


def sections(root: Path = ROOT) -> list[Section]:
    """The changelog's sections, the newest first, without the links at its end."""
    text = re.sub(r"^\[[^\]]+\]: \S+\n?", "", (root / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
    found = list(HEADING.finditer(text))
    ends = [*(match.start() for match in found[1:]), len(text)]
    return [Section(m["name"], m["date"], text[m.end():end].strip()) for m, end in zip(found, ends, strict=True)]


def disagreements(tag: str | None = None, root: Path = ROOT) -> list[str]:
    """What is wrong, a sentence each; nothing if all agree."""
    number = version(root)
    known = VERSION.fullmatch(number)
    if not known:
        return [f"__version__={number!r} must be three numbers, such as '0.2.0', or '0.2.0.dev0' between releases"]
    listed = sections(root)
    open_text = "".join(s.text for s in listed if s.name == UNRELEASED)
    released = [s for s in listed if s.name != UNRELEASED]
    found = [f"CHANGELOG.md: [{s.name}] must have its day, ' - YYYY-MM-DD'" for s in released if s.date is None]
    found += [f"CHANGELOG.md: [{s.name}] must be a released version" for s in released
              if not VERSION.fullmatch(s.name) or s.name.endswith(".dev0")]
    order = [_key(s.name) for s in released if VERSION.fullmatch(s.name)]
    if order != sorted(set(order), reverse=True):
        found.append("CHANGELOG.md: the newest version must come first, each once")
    if known["dev"]:
        if [s.name for s in listed[:1]] != [UNRELEASED]:
            found.append(f"CHANGELOG.md must begin with [{UNRELEASED}], since version {number} is not released")
        if order and _key(number) <= max(order):
            found.append(f"__version__={number!r} must be above the newest release in CHANGELOG.md")
    else:
        if not released or released[0].name != number:
            found.append(f"CHANGELOG.md: the newest version must be [{number}], as in attn_lib/__init__.py")
        elif not released[0].text:
            found.append(f"CHANGELOG.md: [{number}] must say what changed")
        if open_text:
            found.append(f"CHANGELOG.md: what is under [{UNRELEASED}] belongs under [{number}], or waits for the next")
    if tag is not None and (known["dev"] or tag != f"v{number}"):
        found.append(f"tag {tag!r} must be 'v' and the version, which is {number} and without .dev0 in a release")
    return found


def _key(number: str) -> tuple[int, ...]:
    return tuple(map(int, number.removesuffix(".dev0").split(".")))


def notes(tag: str, root: Path = ROOT) -> str:
    """The changelog's section for a tag.

    Raises:
        ValueError: if there is none.
    """
    for section in sections(root):
        if tag == f"v{section.name}":
            return section.text
    raise ValueError(f"tag={tag!r} has no section in CHANGELOG.md")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", nargs="?", const="", metavar="TAG")
    action.add_argument("--notes", metavar="TAG")
    options = parser.parse_args(argv)
    if options.notes is not None:
        print(notes(options.notes))
        return 0
    found = disagreements(options.check or None)
    print("\n".join(found) or f"Version {version()}, CHANGELOG.md {'and the tag ' if options.check else ''}agree")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
