"""What can be said of a built page without a browser.

Each check returns a list of problems, an empty one if all is well.
"""

from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

PAGE_BYTES = 1_500_000  # of a page with its pictures; what all pages share is fetched once and not counted

# Elements by which a page fetches something, as opposed to links that a reader may follow.
FETCHING = dict.fromkeys(("script", "img", "iframe", "source", "video", "audio", "embed"), "src") \
    | {"object": "data", "link": "href"}
NOT_FETCHED = {"canonical", "next", "prev", "index", "search", "author", "license", "copyright"}  # rel of <link>


@dataclass
class Page(HTMLParser):
    """What matters of a page: ids, links, what it fetches, and its pictures' alternative texts."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    pictures: list[tuple[str, str | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.update(filter(None, (given.get("id"), given.get("name") if tag == "a" else None)))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "img":
            self.pictures.append((given.get("src") or "", given.get("alt")))
        address = given.get(FETCHING.get(tag, ""))
        if address and not (tag == "link" and NOT_FETCHED.intersection((given.get("rel") or "").split())):
            self.fetched.append(address)


@cache
def read(path: Path) -> Page:
    """The page at `path`, parsed once."""
    return Page(path)


def pages(site: Path) -> list[Path]:
    """Every page of the site, sorted."""
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.relative_to(site).parts)


def is_chapter(page: Path) -> bool:
    """Whether a page is a chapter of the book."""
    return page.parent.parent.name == "chapters"


def target(page: Path, address: str) -> tuple[Path, str]:
    """The file and the anchor that a relative address means on a page."""
    parts = urlsplit(address)
    path = page if not parts.path else page.parent / unquote(parts.path)
    return path, unquote(parts.fragment)


def links(page: Path) -> list[str]:
    """Links within the site lead to a file that is there, and to an anchor in it."""
    found = []
    for address in read(page).links:
        if urlsplit(address).scheme or address.startswith("//") or address == "#":
            continue
        path, anchor = target(page, address)
        if not path.is_file():
            found.append(f"the link {address} leads to no file")
        elif anchor and path.suffix == ".html" and anchor not in read(path.resolve()).ids:
            found.append(f"the link {address} leads to no anchor")
    return found


def hosts(page: Path) -> list[str]:
    """The page fetches nothing from another host, and everything that it fetches is there."""
    found = []
    for address in read(page).fetched:
        scheme = urlsplit(address).scheme
        if scheme in ("http", "https") or address.startswith("//"):
            found.append(f"the page fetches {address}")
        elif scheme not in ("data", "blob") and not target(page, address)[0].is_file():
            found.append(f"the page fetches {address}, which is not there")
    return found


def alternative_texts(page: Path) -> list[str]:
    """Every picture says what it shows; the mark on a button stands beside the button's name and says nothing."""
    return [f"the picture {address[:60]} has no alternative text" for address, alt in read(page).pictures
            if not (alt or "").strip() and not (alt == "" and "/_static/images/logo_" in address)]


def size(page: Path) -> list[str]:
    """The page and its own pictures stay below the budget."""
    pictures = {target(page, address)[0] for address, _ in read(page).pictures if not urlsplit(address).scheme}
    own = [page, *(path for path in pictures if path.is_file() and "_static" not in path.parts)]
    total = sum(path.stat().st_size for path in own)
    return [f"the page weighs {total} bytes, more than {PAGE_BYTES}"] if total > PAGE_BYTES else []


CHECKS = (links, hosts, alternative_texts, size)
