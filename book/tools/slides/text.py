"""A chapter's Markdown as HTML on a slide or in its notes: roles, links, citations, formulas, sentences."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbformat import NotebookNode

from .. import notebooks, plain_markdown
from ..anatomy.chapter import CITATION, LINK
from ..anatomy.prose import EQUATION, ROLE

FENCED = re.compile(r"^(```|:::+).*?^\1[ \t]*$\n?", re.MULTILINE | re.DOTALL)
MATH = re.compile(r"\$\$.+?\$\$(?:[ \t]*\([\w-]+\))?|(?<![\\$])\$[^$]+\$", re.DOTALL)
ABBREVIATED = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|al|Fig|Eqs?|eqs?|Sec|No|pp?)|\b[A-Z])\.$")
END = re.compile(r"(?<=[.?!])(?:\*\*|\*|\)|”|\")?\s+(?=[A-Z0-9“\"*(`$\[])")


def reference(key: str) -> str:
    """Authors, title and year of a paper, as HTML."""
    title = re.sub(r"[{}]", "", plain_markdown.bibliography().entries[key].fields["title"])
    who, year = plain_markdown.authors_and_year(key)
    return f"{html.escape(who)}, <i>{html.escape(title)}</i>, {year}"


class Text:
    """What turns a chapter's Markdown into HTML; equations have the numbers of the chapter's page.

    Args:
        path: of the chapter.
        notebook: its cells.
        set_formulas: whether MathJax is to set them. The speaker's view has none, and shows them as they are written.
    """

    def __init__(self, path: Path, notebook: NotebookNode, *, set_formulas: bool = True) -> None:
        self.path, self.set_formulas = path, set_formulas
        self.numbers = plain_markdown.equation_numbers(notebook)
        self._markdown = MarkdownIt("commonmark", {"typographer": True, "html": False}).enable(
            ["table", "smartquotes", "replacements"]).use(dollarmath_plugin, renderer=self._math, allow_digits=False)

    def html(self, markdown: str) -> str:
        """Paragraphs, lists, tables, formulas."""
        return self._markdown.render(self.plain(markdown))

    def inline(self, markdown: str) -> str:
        """A sentence."""
        return self._markdown.renderInline(self.plain(markdown))

    def plain(self, markdown: str) -> str:
        """The same without what only the site understands."""
        markdown = FENCED.sub("", markdown)
        markdown = CITATION.sub(self._cited, markdown)
        markdown = ROLE.sub(self._role, markdown)
        markdown = re.sub(r"\{\w+\}`(?:([^`<]*?)\s*<[^`>]*>|([^`]*))`", lambda m: m[1] or m[2], markdown)
        return LINK.sub(self._published, markdown)

    def _math(self, source: str, options: dict[str, bool]) -> str:
        if not self.set_formulas:
            return html.escape(" ".join(source.split()))
        return html.escape(f"\\[{source}\\]" if options["display_mode"] else f"\\({source}\\)")

    def _cited(self, found: re.Match[str]) -> str:
        return plain_markdown.parenthetical([key.strip() for key in found[1].split(",")], self.numbers)

    def _role(self, found: re.Match[str]) -> str:
        if found["role"] == "eq":
            return f"({self.numbers.get(found['target'].strip(), '?')})"
        if found["role"].startswith("py:"):
            return f"`{found['target'].rpartition('.')[2]}`"
        said = re.match(r"[^`]*`([^`<]*?)\s*<", found[0])
        return said[1] if said and said[1] else found["target"].rpartition("/")[2]

    def _published(self, link: re.Match[str]) -> str:
        """Pages of the book lie on its site, seen from a lecture."""
        target, _, anchor = link["target"].partition("#")
        file = (self.path.parent / target).resolve()
        if "://" in link["target"] or not target or not file.is_relative_to(notebooks.ROOT):
            return link[0] if "://" in link["target"] else link["text"]
        return f"[{link['text']}]({plain_markdown.published(file)}{'#' * bool(anchor)}{anchor})"


def headings(markdown: str) -> list[str]:
    """The text of its headings."""
    return [found.strip() for found in re.findall(r"^#{1,4} (.+)$", markdown, re.MULTILINE)]


def paragraphs(markdown: str) -> list[str]:
    """Its paragraphs of prose, each in one line: no headings, lists, tables, fences or displayed equations."""
    markdown = EQUATION.sub("\n\n", FENCED.sub("\n\n", markdown))
    blocks = re.split(r"\n[ \t]*\n", markdown)
    other = re.compile(r"\s*(#|[-*] |\d+\. |\||>)")
    return [" ".join(block.split()) for block in blocks if block.strip() and not other.match(block)]


def sentences(paragraph: str) -> list[str]:
    """Its sentences; a formula is never cut."""
    formulas: list[str] = []

    def keep(found: re.Match[str]) -> str:
        formulas.append(found[0])
        return f"\x00{len(formulas) - 1}\x01"

    held = MATH.sub(keep, paragraph)
    parts: list[str] = []
    start = 0
    for end in END.finditer(held):
        if not ABBREVIATED.search(held[start:end.start()]):
            parts.append(held[start:end.end()].strip())
            start = end.end()
    parts.append(held[start:].strip())
    return [re.sub(r"\x00(\d+)\x01", lambda m: formulas[int(m[1])], part) for part in parts if part]


def words(text: str) -> int:
    """How many words a reader sees; a formula counts as one."""
    return len(re.sub(r"\{\w+(?::\w+)?\}`[^`]*`", "", MATH.sub("x", text)).split())


def shortened(paragraph: str, most: int) -> str:
    """Its first sentences, as long as they have no more than `most` words; nothing if the first has more."""
    said: list[str] = []
    for sentence in sentences(paragraph):
        if words(" ".join([*said, sentence])) > most:
            break
        said.append(sentence)
    joined = " ".join(said)
    return joined if joined.count("**") % 2 == 0 else joined.replace("**", "")


def begun(sentence: str) -> str:
    """The sentence with a capital at its start."""
    return sentence[:1].upper() + sentence[1:]


def before(told: list[str], most: int) -> str:
    """The last sentences of a text, as many as have no more than `most` words: they lead to what follows."""
    said: list[str] = []
    for sentence in reversed(sentences(told[-1]) if told else []):
        if words(" ".join([sentence, *said])) > most:
            break
        said.insert(0, sentence)
        if sentence.startswith("**"):  # here begins what it is about
            break
    joined = begun(" ".join(said))
    joined = joined if joined.count("**") % 2 == 0 else joined.replace("**", "")
    return f"{joined[:-1]}." if joined.endswith(":") else joined


def bold_heads(markdown: str) -> Iterator[str]:
    """What a paragraph begins with, in bold: the name of what it is about."""
    for paragraph in paragraphs(markdown):
        if found := re.match(r"\*\*(.+?)\*\*", paragraph):
            yield found[1].rstrip(".:")
