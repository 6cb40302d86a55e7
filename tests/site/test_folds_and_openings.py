"""A small book of one notebook: what is folded says what it holds, and the page opens with its drawing."""

import base64
import io
import re
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from book.tools import notebooks

TWO = ('<figure class="attn-drawing" id="one"><picture>'
       '<source media="(max-width: 600px)" srcset="data:image/png;base64,">'
       '<img src="data:image/png;base64," alt="A drawing"></picture></figure><svg aria-labelledby="one"></svg>')


def picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), "white").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def shows(html: str | None = None, png: bool = True) -> list:
    data = ({"image/png": picture()} if png else {}) | ({"text/html": html} if html else {}) | {"text/plain": "x"}
    return [new_output("display_data", data)]


def code(source: str, *tags: str, outputs: list = ()) -> nbformat.NotebookNode:
    return new_code_cell(source, metadata={"tags": list(tags)}, outputs=list(outputs))


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Returns a function that builds cells into a page: its HTML, and what was warned of."""
    monkeypatch.setattr(sys, "path", [str(notebooks.ROOT / "book" / "_ext"), *sys.path])

    def build(*cells) -> tuple[str, str]:
        first = new_markdown_cell("# A mechanism\n\nThe first sentence.\n\nThe second paragraph.")
        python = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
        nbformat.write(new_notebook(cells=[first, *cells], metadata=python), tmp_path / "index.ipynb")
        warned = io.StringIO()
        settings = {"extensions": ["myst_nb", "folds", "opening"], "nb_execution_mode": "off", "html_theme": "basic",
                    "myst_enable_extensions": ["colon_fence"]}
        with docutils_namespace():
            Sphinx(tmp_path, None, tmp_path / "out", tmp_path / "trees", "html", status=None, warning=warned,
                   freshenv=True, confoverrides=settings).build()
        return (tmp_path / "out" / "index.html").read_text(encoding="utf-8"), warned.getvalue()

    return build


BY_HAND = new_markdown_cell("## By hand\n\nSo it goes.")


@pytest.mark.parametrize("html", [None, TWO], ids=["a picture", "two pictures"])
def test_a_chapter_opens_with_its_drawing(page, html):
    text, warned = page(BY_HAND, code("draw()", "opening", "hide-input", outputs=shows(html)))
    opening = re.search(r'(?s)The first sentence\.</p>\s*<figure class="[^"]*\bopening\b.*?</figcaption>', text)
    assert opening and "<img" in opening[0] and warned == ""
    assert re.search(r'Explained in.*href="#by-hand">By hand</a>', opening[0])
    assert text.index("The second paragraph") > opening.end()
    assert text.count("<img") == 2  # it stays where it is explained
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    if html:
        assert "<source media" in opening[0] and 'aria-labelledby="opening-one"' in opening[0]


def test_an_opening_without_a_picture_is_reported(page):
    assert "shows no picture" in page(BY_HAND, code("draw()", "opening", outputs=shows(png=False)))[1]
    two = [code("draw()", "opening", outputs=shows()) for _ in range(2)]
    assert "opens with one" in page(BY_HAND, *two)[1]


def test_a_chapter_without_an_opening_is_as_it_was(page):
    text, warned = page(BY_HAND, code("draw()", outputs=shows()))
    assert "opening" not in text and warned == ""


@pytest.mark.parametrize(
    ("tags", "outputs", "said"),
    [(["setup"], [], "Set-up"), (["solution"], [], "Show the solution"), ([], shows(), "Code of this figure"),
     ([], shows('<div class="attn-explorer"></div>'), "Code of this explorer"),
     ([], shows("<p>said</p>", png=False), "Code of this output"), ([], [], "Code for what follows")],
    ids=["set-up", "solution", "figure", "explorer", "other", "preparation"],
)
def test_a_fold_says_what_it_holds(page, tags, outputs, said):
    text, _ = page(code("make()", *tags, "hide-input", outputs=outputs))
    summary = re.search(r"(?s)<summary>(.*?)</summary>", text)
    assert said in summary[1] and "aria-label" not in text[summary.start():summary.end()]
    if "figure" in said:
        assert text.index("<img") < summary.start()  # the picture first, its code under it


def test_an_admonition_is_folded_without_a_script(page):
    text, _ = page(new_markdown_cell(":::{admonition} Where the release differs\n:class: dropdown\nIn one place.\n:::"))
    assert re.search(r'(?s)<details class="fold fold-admonition[^"]*">\s*<summary>Where the release differs</summary>'
                     r".*In one place.*</details>", text)
    assert "dropdown" not in text
