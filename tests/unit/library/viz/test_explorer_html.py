"""Explorers without a browser: what they store. tests/site drives them."""

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from attn_lib import viz
from attn_lib.viz.explore import page
from tests.unit.library.viz.explored import KINDS, TEXTS, Page, all_kinds, photo, picture_of, softmax_rows


@pytest.mark.parametrize("kind", KINDS)
def test_bundle_holds_html_picture_and_text(kind):
    data, metadata = all_kinds()[kind]._repr_mimebundle_()
    assert set(data) == {"text/html", "image/png", "text/plain"}
    assert data["text/plain"] == "Explorer: Where does a query look?"
    assert metadata == {"image/png": {"alt": TEXTS["alt"]}}
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).format == "PNG"

    shown = Page(data["text/html"])
    (figure,), (image,), (output,) = shown.all("figure"), shown.all("img"), shown.all("output")
    assert figure["class"] == "attn-explorer" and figure["data-kind"] == kind and figure["aria-label"] == TEXTS["title"]
    assert figure["data-state"] == "stored", "an older script on the same page leaves it alone"
    assert image["alt"] == (TEXTS["alt"] if kind != "frames" else "Two bars, the first 0.5 tall.")
    assert picture_of(image["src"]).width > 32
    assert output == {"aria-live": "polite"}


@pytest.mark.parametrize("kind", KINDS)
def test_html_is_self_contained_and_the_same_on_every_run(kind):
    one, two = all_kinds()[kind], all_kinds()[kind]
    assert (one.html, one.png) == (two.html, two.png)
    assert one.html.isascii()
    shown = Page(one.html)
    addresses = [a[key] for _, a in shown.tags for key in ("src", "href", "srcset", "data", "action") if key in a]
    assert addresses and all(a.startswith("data:image/") for a in addresses)
    assert not re.search(
        r"https?:|//\w+\.\w|\bimport\b|fetch\(|XMLHttpRequest|eval\(", one.html.replace("data:image", "")
    )
    assert not [a for _, a in shown.tags if "id" in a or "name" in a], "several explorers must be able to share a page"


def test_script_and_style_stay_small():
    """In a notebook each explorer carries them; on the site a page loads them once."""
    assert len(page.style_tag()) + len(page.script_tag()) < 15_000


def test_script_and_style_are_carried_without_comments_and_indentation():
    folder = Path(page.__file__).parent
    for name, mark in (("explorer.js", "//"), ("explorer.css", "/*")):
        source, carried = (folder / name).read_text(encoding="ascii"), page.asset(name)
        assert mark in source and mark not in carried and not re.search(r"(?m)^\s", carried)
        bare = re.sub(r"(?m)(^|  )// .*$|/\*.*?\*/", "", source)
        assert re.sub(r"\s", "", bare) == re.sub(r"\s", "", carried), "nothing else is taken away"


def test_a_16_by_16_explorer_stays_small():
    a = softmax_rows(16, 16, 16, 16, sharpness=1.0)  # noise: hardly any redundancy to compress
    assert viz.explore_attention(photo(256), a, **TEXTS).size < 150_000


def test_texts_are_escaped():
    nasty = '</script><script>alert("1")</script><!-- & \' ∞'
    explorer = viz.explore_attention(
        photo(), {nasty: softmax_rows(2, 2, 2, 2), "b": softmax_rows(2, 2, 2, 2)}, title=nasty, alt=nasty
    )
    shown = Page(explorer.html)
    assert len(shown.all("script")) == 2  # data and code
    assert shown.all("figure")[0]["aria-label"] == shown.all("img")[0]["alt"] == nasty
    assert nasty in shown.text and shown.data["panels"][0]["label"] == nasty


def test_save_writes_a_page(tmp_path):
    path = tmp_path / "explorer.html"
    explorer = all_kinds()["attention"]
    explorer.save(path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>") and explorer.html in path.read_text(
        encoding="utf-8"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["explorer.html"]
