"""The map of all modules."""

import html
from pathlib import Path

import pytest
from matplotlib.axes import Axes

import attn_lib
from attn_lib import viz
from attn_lib.viz import style
from tests.unit.library.viz.drawn import SAY, near, pixels

ROOT = Path(attn_lib.__file__).parents[1]


def test_family_map_links_every_chapter_where_it_is_drawn(monkeypatch):
    monkeypatch.chdir(ROOT / "chapters" / "foundations")
    family_map = viz.family_map(**SAY, root="..")
    assert set(family_map.places) == set(attn_lib.list_modules())
    picture = pixels(family_map.figure)
    markup = family_map._repr_html_()
    for id, (left, top, width, height) in family_map.places.items():
        entry = attn_lib.entry(id)
        chapter = Path("..", entry.family, f"{id}.ipynb")
        way = f'href="{chapter}"' if chapter.exists() else 'tabindex="0" role="link" aria-disabled="true"'
        assert f'<a {way} aria-label="{html.escape(entry.name)}, {entry.paper.year}"' in markup
        rows, cols = (slice(round(n * at), round(n * (at + size)))
                      for n, at, size in zip(picture.shape, (top, left), (height, width), strict=False))
        assert near(picture[rows, cols], style.FAMILY_COLOURS[entry.family]).sum() > 50, f"{id} has its box elsewhere"
    tops = {id: place[1] for id, place in family_map.places.items()}
    assert tops["deform"] < tops["se"] < tops["ccnet"], "years run downwards"
    monkeypatch.chdir(ROOT)
    assert 'href="' not in family_map._repr_html_(), "no chapters beside the page: no dead links"
    data, metadata = family_map._repr_mimebundle_()
    assert {"text/html", "image/png", "text/plain"} == set(data) and metadata["image/png"]["alt"] == SAY["alt"]


def test_family_map_of_some_modules_joins_only_those():
    some = viz.family_map(["se", "eca", "cbam"], **SAY)
    assert set(some.places) == {"se", "eca", "cbam"}
    assert some.figure.height < viz.family_map(**SAY).figure.height
    with pytest.raises(ValueError, match="did you mean 'se'"):
        viz.family_map(["see"], **SAY)
    with pytest.raises(ValueError, match="must hold at least one module"):
        viz.family_map([], **SAY)


@pytest.mark.parametrize("ids, kinds", [(["se", "eca"], {"arrow"}), (["se", "eca", "cbam"], {"arrow", "thick arrow"}),
                                        (["simam", "vip"], set())])
def test_family_map_explains_only_the_lines_that_it_has(monkeypatch, ids, kinds):
    written, write = [], Axes.text

    def text(axes, x, y, words, **how):
        written.extend(words.split("    "))
        return write(axes, x, y, words, **how)

    monkeypatch.setattr(Axes, "text", text)
    viz.family_map(ids, **SAY)
    assert {words.partition(":")[0] for words in written if ":" in words} == kinds
