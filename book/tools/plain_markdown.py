"""A chapter's Markdown as any notebook shows it: without the site's roles, labels and relative links.

On the site a chapter cites by `{cite}`, numbers its equations by labels, and lies beside other pages. Jupyter and Colab
know neither, and a student's copy lies in a folder of its own: there a citation is its authors and year, an equation
has its number, and every link leads to the published site.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pybtex.database
from nbformat import NotebookNode
from pybtex.backends.markdown import Backend
from pybtex.style.formatting.plain import Style

from . import address, notebooks

ROLE = re.compile(r"\{(?P<role>[a-z]+(?::[a-z]+)?)\}`(?P<text>[^`]+)`")
EQUATION = re.compile(r"\$\$(?P<formula>(?:(?!\$\$).)+?)\s*\$\$[ \t]*\((?P<label>eq-[\w-]+)\)", re.DOTALL)
LINK = re.compile(r"\]\((?P<file>[^)#\s:]+\.(?:ipynb|md))(?P<anchor>#[^)\s]*)?\)")
LIST = re.compile(r"^```\{bibliography\}\n(?:.*\n)*?```$", re.MULTILINE)
BIBLIOGRAPHY = notebooks.ROOT / "book" / "references.bib"


def make_plain(notebook: NotebookNode, path: Path) -> None:
    """Replaces in every Markdown cell of the chapter at `path` what only the site understands.

    Raises:
        ValueError: if a cell has a role that is not known here, an equation's label that no equation has, or cites what
            is not in the bibliography.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    numbers = equation_numbers(notebook)
    cited: set[str] = set()

    def role(match: re.Match[str]) -> str:
        write = ROLES.get(match["role"])
        if write is None:
            raise ValueError(f"{path.name}: {match[0]} is a role that plain_markdown.py does not know")
        keys = [key.strip() for key in match["text"].split(",")]
        try:
            if write in (parenthetical, textual):
                cited.update(keys)
            return write(keys, numbers)
        except KeyError as error:
            raise ValueError(f"{path.name}: {match[0]} names {error}, which is nowhere") from None

    for cell in cells:
        text = EQUATION.sub(lambda match: f"$${match['formula']} \\tag{{{numbers[match['label']]}}}\n$$", cell.source)
        text = LINK.sub(lambda match: _link(match, path), ROLE.sub(role, text))
        cell.source = text
    for cell in cells:  # once all citations are known
        cell.source = LIST.sub(lambda _: references(cited), cell.source)


def equation_numbers(notebook: NotebookNode) -> dict[str, int]:
    """The number of each labelled equation on the chapter's page, by its label."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    labels = [match["label"] for cell in cells for match in EQUATION.finditer(cell.source)]
    return {label: number for number, label in enumerate(labels, 1)}


def parenthetical(keys: list[str], numbers: dict[str, int]) -> str:
    """(Hu et al., 2018; Wang et al., 2020)"""
    return "(" + "; ".join(", ".join(authors_and_year(key)) for key in keys) + ")"


def textual(keys: list[str], numbers: dict[str, int]) -> str:
    """Hu et al. (2018)"""
    return ", ".join("{} ({})".format(*authors_and_year(key)) for key in keys)


def equations(labels: list[str], numbers: dict[str, int]) -> str:
    """(3), (4)"""
    return ", ".join(f"({numbers[label]})" for label in labels)


def name_of_library(names: list[str], numbers: dict[str, int]) -> str:
    """The name of a class or function of the library, linked to its reference."""
    name, = names
    page = notebooks.ROOT / "book" / "api" / f"{name.split('.')[1]}.md"
    return f"[`{name}`]({published(page)}#{name})"


def module_of_library(names: list[str], numbers: dict[str, int]) -> str:
    """The name of a module of the library, linked to its reference."""
    name, = names
    return name_of_library(names, numbers).replace(f"#{name}", f"#module-{name}")


ROLES: dict[str, Callable[[list[str], dict[str, int]], str]] = {
    "cite": parenthetical, "cite:t": textual, "eq": equations,
    "py:class": name_of_library, "py:func": name_of_library, "py:mod": module_of_library,
}


@cache
def bibliography() -> pybtex.database.BibliographyData:
    """The book's bibliography."""
    return pybtex.database.parse_file(str(BIBLIOGRAPHY))


def authors_and_year(key: str) -> tuple[str, str]:
    """("Hu et al.", "2018"), as the site writes them.

    Raises:
        KeyError: if the bibliography has no such entry.
    """
    entry = bibliography().entries[key]
    names = [str(pybtex.richtext.Text.from_latex(" ".join([*person.prelast_names, *person.last_names])))
             for person in entry.persons["author"]]
    said = names[0] if len(names) == 1 else " and ".join(names) if len(names) == 2 else f"{names[0]} et al."
    return said, entry.fields["year"]


def references(keys: Iterable[str]) -> str:
    """The cited entries as a list, in the order of their authors."""
    entries = [bibliography().entries[key] for key in keys]
    formatted = Style(abbreviate_names=False).format_entries(entries)
    return "\n".join("- " + " ".join(entry.text.render(Backend()).split()) for entry in formatted)


def published(page: Path) -> str:
    """Where a page or chapter of the book lies on its site."""
    return f"{address.read_address().site}/{page.relative_to(notebooks.ROOT).with_suffix('.html').as_posix()}"


def _link(link: re.Match[str], path: Path) -> str:
    target = (path.parent / link["file"]).resolve()
    if not target.is_file() or not target.is_relative_to(notebooks.ROOT):
        return link[0]
    return f"]({published(target)}{link['anchor'] or ''})"
