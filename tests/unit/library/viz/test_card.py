"""The card of a module."""

from importlib import import_module

import pytest

import attn_lib
from attn_lib import viz
from attn_lib.catalog import MEASURED
from attn_lib.measure.suite import sizes
from attn_lib.viz.card import PARTS, TIME
from tests.unit.library.viz.drawn import recorded


@pytest.mark.parametrize("id", attn_lib.list_modules())
def test_a_card_says_what_the_catalog_and_the_module_say(id):
    entry, card = attn_lib.entry(id), attn_lib.card(id, "whole")
    said = {row.label: row.text for row in card.rows}
    module, _ = attn_lib.example(id, MEASURED, size=sizes(entry.layout, [56])[0])
    assert said["Parameters"].startswith(f"{sum(p.numel() for p in module.parameters()):,} (")
    papers = said["Paper" if len(entry.papers) == 1 else "Papers"]
    for paper in entry.papers:
        assert paper.title in papers and f"{paper.venue} {paper.year}" in papers
    assert said["Fresh module"] == ("returns its input unchanged" if entry.identity_at_init else "changes its input")
    assert len(said["Commutes with"].split(", ")) == max(1, len(entry.commutes_with))
    assert said["Class"].endswith("." + entry.cls.__name__)
    assert card.colour == viz.FAMILY_COLOURS[entry.family]
    bundle = card._repr_mimebundle_()
    assert bundle == attn_lib.card(id, "whole")._repr_mimebundle_(), "the same on every call"
    for row in card.rows:
        assert f"{row.label}  " in bundle["text/plain"] and row.label in bundle["text/html"]


def test_the_numbers_on_the_card_of_se_are_those_of_an_independent_count():
    said = {row.label: row.text for row in attn_lib.card("se", part="cost").rows}
    C, hidden = 64, 4
    assert said["Parameters"] == f"{2 * C * hidden + C + hidden:,} (channels=64)"
    assert said["FLOPs"].startswith(f"{2 * 2 * C * hidden:,} for one input of 64×56×56")
    # Kept: z (C), the hidden layer after ReLU, s (C), each in four bytes; the input exists anyway.
    assert said["Kept for backward"] == f"{4 * (C + hidden + C)} B for one input of 64×56×56; × 1.0 for 28×28 → 56×56"


def test_a_chapter_opens_with_the_facts_and_has_the_rest_where_it_is_explained():
    labels = {part: [row.label for row in attn_lib.card("se", part).rows] for part in ("facts", "cost", "limits")}
    assert labels["facts"] == ["Paper", "Input → output", "Parameters", "FLOPs", "Class"]
    assert labels["cost"] == ["Parameters", "FLOPs", "Kept for backward"]
    assert labels["limits"] == ["Commutes with", "Fresh module", "At its limits"], "it builds on nothing"
    assert attn_lib.card("se") == attn_lib.card("se", "facts")
    with pytest.raises(ValueError, match="part='top' must be one of 'facts', 'cost', 'limits', 'whole'"):
        attn_lib.card("se", "top")


@pytest.mark.parametrize("id", attn_lib.list_modules())
def test_the_parts_hold_the_whole(id):
    parts = {row for part in PARTS for row in attn_lib.card(id, part).rows}
    assert parts == {row for row in attn_lib.card(id, "whole").rows if row.label != "Family"}


def test_the_time_has_a_place_in_a_card_that_counts():
    for part, places in (("facts", 1), ("cost", 1), ("limits", 0), ("whole", 1)):
        assert attn_lib.card("se", part)._repr_html_().count(TIME) == places


def test_the_recorded_time_prefers_the_gpu_and_admits_that_there_is_none(monkeypatch):
    module = import_module("attn_lib.viz.card")
    said = {}
    for kinds in (("cuda", "cpu"), ("cpu",), ()):
        monkeypatch.setattr(module, "records", lambda id, kinds=kinds: [r for k in kinds for r in recorded(k)])
        said[kinds] = module.recorded_time("se").text
    assert said["cuda", "cpu"] == "56 µs forward on 8×64×56×56, float32 (Some GPU), 25% of what the device could do"
    assert said["cpu",] == "56 µs forward on 8×64×56×56, float32 (no GPU recorded; Some CPU, 2 threads)"
    assert said[()] == "none yet"


def test_a_card_does_not_change_with_what_is_recorded(monkeypatch):
    """Else every stored card would be out of date when a device is added or a module measured again."""
    before = attn_lib.card("se")._repr_mimebundle_()
    monkeypatch.setattr(import_module("attn_lib.viz.card"), "records", lambda id: recorded("cuda"))
    assert attn_lib.card("se")._repr_mimebundle_() == before


def test_a_card_sets_no_text_colour_and_escapes():
    markup = attn_lib.card("se", "whole")._repr_html_()
    assert "color:#" not in markup.replace("solid #", "")
    assert 'href="https://arxiv.org/abs/1709.01507"' in markup
    assert "<script" not in markup and "src=" not in markup
