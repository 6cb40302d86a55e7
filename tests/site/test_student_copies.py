"""What the rocket and the download arrow offer: first the chapter without its solutions, which lies with the site."""

import re

import pytest
from sphinx.util.inventory import InventoryFile

from book.tools import address, assignment, notebooks

HERE = address.read_address()
CHAPTERS = [path.relative_to(notebooks.ROOT / "chapters").with_suffix("").as_posix() for path in notebooks.chapters()]


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_is_offered_without_and_with_its_solutions(site, name):
    page = (site / "chapters" / f"{name}.html").read_text(encoding="utf-8")
    offered = re.findall(r'<li><a href="([^"]+\.ipynb)".*?__text-container">([^<]+)<', page, re.DOTALL)
    offered = [(link, title) for link, title in offered if title != "Suggest edit"]
    ours, theirs = f"{name}.ipynb", f"chapters/{name}.ipynb"
    binder = f"https://mybinder.org/v2/gh/{HERE.slug}"
    assert offered == [
        (f"{binder}/students?urlpath=lab/tree/{ours}", "Binder, without solutions"),
        (f"{binder}/{HERE.branch}?urlpath=lab/tree/{theirs}", "Binder, with solutions"),
        (f"{HERE.colab.removesuffix(HERE.branch)}students/{ours}", "Colab, without solutions"),
        (f"{HERE.colab}/{theirs}", "Colab, with solutions"),
        (f"../../students/{ours}", "ipynb, without solutions"),
        (f"../../_sources/{theirs}", "ipynb, with solutions"),
    ]
    for link, title in offered[4:]:
        notebook = ((site / "chapters" / name).parent / link).read_text(encoding="utf-8")
        assert ("BEGIN SOLUTION" in notebook) == (title == "ipynb, with solutions")


def test_the_folder_holds_the_copies_and_what_binder_needs(site):
    folder = site / "students"
    assert sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.ipynb")) == CHAPTERS
    assert (folder / "requirements.txt").read_text() == f"attn_lib[chapters] @ git+{assignment.source_of_copies()}\n"
    assert (folder / "runtime.txt").read_text() == (notebooks.ROOT / ".binder" / "runtime.txt").read_text()
    assert HERE.site in (folder / "README.md").read_text()


def test_links_of_copies_lead_to_places_of_the_site(site):
    """They are written without the site at hand, by rules: every one is followed here."""
    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, place: place)
    anchors = {place for kind in inventory.values() for _, _, place, _ in kind.values()}
    followed = 0
    for path in (site / "students").rglob("*.ipynb"):
        text = "".join(cell.source for cell in notebooks.read(path).cells if cell.cell_type == "markdown")
        for link in re.findall(rf"\]\({re.escape(HERE.site)}/([^)\s]+)\)", text):
            page, _, anchor = link.partition("#")
            html = (site / page).read_text(encoding="utf-8")
            assert not anchor or link in anchors or f'id="{anchor}"' in html, f"{path.name}: {link}"
            followed += 1
    assert followed > 100
