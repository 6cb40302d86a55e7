"""What a first visit to a page fetches stays within the budget, and nothing is fetched that the page does not show."""

import gzip
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from fontTools.ttLib import TTFont

from tests.site import browser as browsers
from tests.site import static_checks

CHAPTER, LANDING = 900_000, 250_000  # bytes, compressed
PUBLISHED = 12_000_000  # of _static, MathJax and fonts included
PACKED = {".png", ".jpg", ".woff", ".woff2"}  # a server does not compress these again


@cache
def compressed(file: Path) -> int:
    return file.stat().st_size if file.suffix in PACKED else len(gzip.compress(file.read_bytes(), 6))


def fetched(browser, address: str, site: Path, name: str) -> dict[str, int]:
    """File → compressed bytes, of what a browser that was never here asks for."""
    files: dict[str, int] = {}
    problems: list[str] = []
    with browsers.opened(browser, f"{address}/{name}", problems) as page:
        page.wait_for_load_state("networkidle")
        # Of a file that was asked for twice the browser keeps one entry each: names make them one.
        for url in page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)"):
            if urlsplit(url).scheme == "http":
                path = unquote(urlsplit(url).path).lstrip("/")
                files[path] = compressed(site / path)
    assert problems == []
    return files | {name: compressed(site / name)}


def heaviest(files: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sorted(files.items(), key=lambda item: -item[1])[:8])


def test_a_chapter_stays_within_its_budget(browser, address, site, chapter):
    files = fetched(browser, address, site, chapter.relative_to(site).as_posix())
    assert sum(files.values()) < CHAPTER, heaviest(files)
    assert "_static/mathjax/startup.js" in files  # what is counted is whole


def test_the_landing_page_stays_within_its_budget(browser, address, site):
    files = fetched(browser, address, site, "book/index.html")
    assert sum(files.values()) < LANDING, heaviest(files)
    assert "_static/fonts/text.woff2" in files


def test_what_is_not_used_is_not_published(site):
    size = sum(path.stat().st_size for path in (site / "_static").rglob("*") if path.is_file())
    assert size < PUBLISHED
    assert not (site / "_static" / "vendor").exists()


def test_mathjax_comes_with_formulas_only(site):
    for path in static_checks.pages(site):
        text = path.read_text(encoding="utf-8")
        assert ("_static/mathjax/" in text) == ('class="math ' in text), path
        assert "fontawesome" not in text, path


def test_every_icon_of_a_page_is_drawn(site):
    """Each name has its character in the style sheet, and each character its shape in one of the two fonts."""
    sheet = (site / "_static" / "icons.css").read_text(encoding="utf-8")
    points = {name: int(point, 16) for name, point in re.findall(r'\.(fa-[\w-]+):before\{content:"\\(\w+)"', sheet)}
    drawn = set()
    for name in ("solid-900", "brands-400"):
        drawn |= set(TTFont(site / "_static" / f"icons-{name}.woff").getBestCmap())
    styles = {"fa-solid", "fa-brands", "fa-regular", "fa-lg"}
    used = set()
    for path in static_checks.pages(site):
        for names in re.findall(r'class="([^"]*\bfa-[^"]*)"', path.read_text(encoding="utf-8")):
            used |= {name for name in names.split() if name.startswith("fa-")} - styles
    assert len(used) > 5 and used <= set(points)
    assert set(points.values()) <= drawn


def test_a_picture_waits_and_keeps_its_room(site, path):
    """Nothing moves when it comes. One inside the page comes with it, and does not wait."""
    for tag in re.findall(r"<img\b[^>]*>", path.read_text(encoding="utf-8")):
        if 'src="data:' in tag:
            assert "loading=" not in tag, tag[:200]
        elif "logo" not in tag:
            assert 'loading="lazy"' in tag and 'decoding="async"' in tag, tag[:200]
            assert " width=" in tag and " height=" in tag, tag[:200]


@pytest.mark.parametrize("licence", ["text", "code", "signs"])
def test_a_font_comes_with_its_licence(site, licence):
    said = (site / "_static" / "fonts" / f"LICENSE-{licence}.txt").read_text(encoding="utf-8")
    assert "Open Font License" in said or "Font Software" in said
