"""The atlas and the errata in a browser, used as a practitioner would."""

import csv
import gzip
import io
import re

import pytest
from playwright.sync_api import expect

import attn_lib
from attn_lib import measure
from attn_lib.viz import style
from book._ext import atlas as pages
from book.tools import notebooks
from tests.site import browser as browsers

ALL = len(attn_lib.list_modules())
KILOBYTES = 60  # of the table with all that it holds, compressed as a server sends it


@pytest.fixture
def atlas(browser, site):
    problems = []
    with browsers.opened(browser, (site / "book" / "atlas.html").as_uri(), problems) as page:
        expect(page.locator(".atlas-controls")).to_be_visible()
        yield page
    assert problems == []


def shown(page) -> list[str]:
    return page.locator(".atlas-table tbody tr:visible").evaluate_all("rows => rows.map(row => row.dataset.id)")


def test_something_cheap_that_knows_positions(atlas):
    """A click on the question, the cheapest first; what is chosen stands in the address and comes back with it."""
    assert sorted(shown(atlas)) == attn_lib.list_modules()
    atlas.get_by_role("button", name="Something cheap that knows").click()
    found = shown(atlas)
    assert "coord" in found and 0 < len(found) < ALL
    for id in found:
        entry = attn_lib.entry(id)
        assert "spatial_permutation" not in entry.commutes_with and "H" in entry.layout.free
    times = atlas.locator(".atlas-table tbody tr:visible td[data-k=time]").evaluate_all(
        "cells => cells.map(cell => parseFloat(cell.dataset.v)).filter(time => !isNaN(time))")
    assert times == sorted(times) and times
    atlas.get_by_label("gates", exact=True).check()
    gates = shown(atlas)
    assert gates == [id for id in found if attn_lib.entry(id).action == "gate"] and gates
    url = atlas.url
    assert "action=gate" in url and "notices=spatial_permutation" in url
    atlas.goto("about:blank")
    atlas.goto(url)
    assert shown(atlas) == gates and atlas.get_by_label("gates", exact=True).is_checked()
    atlas.get_by_role("button", name="Show all").click()
    assert len(shown(atlas)) == ALL


@pytest.mark.parametrize("question", ["A channel gate", "Must everything see", "A series", "Into trained", "Two inputs",
                                      "Any size"])
def test_every_question_has_an_answer(atlas, question):
    button = atlas.get_by_role("button", name=question)
    button.click()
    assert 0 < len(shown(atlas)) < ALL
    expect(button).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize(("words", "id"), [
    ("SENet", "se"), ("bottleneck transformer", "mhsa"), ("1811.11721", "ccnet"), ("parameter-free", "simam"),
    ("Deformable Convolutional Networks", "deform"),
])
def test_search_knows_alias_name_sentence_title_and_number(atlas, words, id):
    atlas.get_by_label("Search by name").fill(words)
    assert id in shown(atlas)
    atlas.get_by_label("Search by name").fill("nothing is called so")
    assert shown(atlas) == []


def test_columns_sort_and_say_so(atlas):
    head = atlas.locator(".atlas-table thead th[data-k=params]")
    for order, reverse in (("ascending", False), ("descending", True)):
        head.get_by_role("button").click()
        expect(head).to_have_attribute("aria-sort", order)
        values = atlas.locator(".atlas-table tbody tr:visible td[data-k=params]").evaluate_all(
            "cells => cells.map(cell => parseFloat(cell.dataset.v))")
        assert values == sorted(values, reverse=reverse)


def test_ticked_rows_stand_side_by_side_and_grow_in_the_chart(atlas):
    for name in ("SE", "CCA"):
        atlas.get_by_label(f"Compare {name}", exact=True).check()
    side = atlas.locator(".atlas-side")
    expect(side.locator("tr.differs th", has_text="Parameters")).to_be_visible()
    assert side.locator("tr:not(.differs) th", has_text="Input").count() == 1, "both take a feature map"
    assert atlas.locator("[data-chart=scaling] polyline").count() == 2
    side.get_by_role("button", name="Untick all").click()
    expect(side).to_be_hidden()


GPU = {"kind": "cuda", "device": "Some GPU", "torch": "2.11.0+cu130"}


def with_a_gpu(without=()):
    """The recorded rows of CPUs, and a GPU's made of them, ten times as fast, of which some modules are missing.

    In float32 at 56 × 56 ccnet does not fit, coord was not reached, and nothing fits at 112 × 112 but se.
    """
    cpu = [row for row in measure.records() if row["kind"] == "cpu"]
    rows = [{**row, **GPU, "dtype": dtype, "median": row["median"] / {"float32": 10, "bfloat16": 20}[dtype]}
            for row in cpu for dtype in ("float32", "bfloat16") if row["id"] not in without]
    failed = {"median": None, "error": "OutOfMemoryError: CUDA out of memory."}
    rows = [row | failed if (row["id"], row["dtype"], row["size"]) == ("ccnet", "float32", [56, 56]) else row
            for row in rows if (row["id"], row["dtype"], row["size"]) != ("coord", "float32", [56, 56])]
    rows += [row | {"size": [112, 112]} | (failed if row["id"] != "se" else {}) for row in rows
             if row["size"] == [56, 56] and row["dtype"] == "float32"]
    return [*rows, *cpu]


@pytest.fixture
def with_gpu(browser, tmp_path, monkeypatch):
    """The atlas as it is once a GPU is recorded."""
    monkeypatch.setattr(pages, "records", with_a_gpu)
    script = (notebooks.ROOT / "book" / "_static" / "atlas.js").as_uri()
    page = tmp_path / "atlas.html"
    page.write_text('<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">'
                    f'{pages.atlas(set())}<script src="{script}"></script>', encoding="utf-8")
    problems = []
    with browsers.opened(browser, page.as_uri(), problems) as opened:
        yield opened
    assert problems == []


def test_times_are_those_of_the_chosen_footing(with_gpu):
    """A GPU's at first; what was chosen stands in the address and survives a question."""
    cell = with_gpu.locator("#m-se td[data-k=time]")
    (row,) = (r for r in measure.records("se") if (r["kind"], r["size"], r["backward"]) == ("cpu", [56, 56], False))
    choice = with_gpu.get_by_label("Times on")
    assert choice.locator("option").all_inner_texts() == ["GPU, float32", "GPU, bfloat16", "CPU, float32"]
    for name, factor, where in (("GPU, bfloat16", 20, "Some GPU, torch 2.11.0, bfloat16, eager, 2 at once"),
                                ("CPU, float32", 1, row["device"]), ("GPU, float32", 10, "float32 without TF32")):
        choice.select_option(name)
        assert float(cell.get_attribute("data-v")) == pytest.approx(row["median"] / 2 / factor, rel=1e-2)
        assert cell.inner_text() == style.si(float(cell.get_attribute("data-v")), "s"), "as Python writes it"
        assert where in with_gpu.locator(".atlas-note").inner_text()
    choice.select_option("CPU, float32")
    with_gpu.get_by_role("button", name="A channel gate").click()
    assert "on=cpu-float32-eager" in with_gpu.url and choice.input_value() == "cpu-float32-eager"
    expect(with_gpu.get_by_role("button", name="A channel gate")).to_have_attribute("aria-pressed", "true")
    with_gpu.reload()
    assert choice.input_value() == "cpu-float32-eager" and float(cell.get_attribute("data-v")) > 0


def test_what_failed_and_what_is_missing(with_gpu):
    """Both come last in the order, whichever way; what was counted is there all the same."""
    row = with_gpu.locator("#m-ccnet")
    assert row.locator("td[data-k=time]").inner_text() == "out of memory"
    assert with_gpu.locator("#m-coord td[data-k=time]").inner_text() == "–"
    assert row.get_attribute("data-growth") == "between" and row.locator("td[data-k=flops]").inner_text()
    for _ in range(2):
        with_gpu.locator("th[data-k=time] button").click()
        assert {*shown(with_gpu)[-2:]} == {"ccnet", "coord"}
    for name in ("SE", "CCA", "CA"):
        with_gpu.get_by_label(f"Compare {name}", exact=True).check()
    chart = with_gpu.locator("[data-chart=scaling]")
    assert chart.locator("text", has_text="out of memory at 56²").count() == 1
    assert chart.locator("circle").count() == 4 + 2 + 2


def test_a_gpu_that_did_not_come_to_every_module_stands_behind_the_cpu(monkeypatch):
    names = {kind: [f.name for f in pages.footings(with_a_gpu(without))]
             for kind, without in (("whole", ()), ("part", ("se",)))}
    assert names["whole"] == ["GPU, float32", "GPU, bfloat16", "CPU, float32"]
    assert names["part"] == ["CPU, float32", "GPU, float32", "GPU, bfloat16"]


def test_growth_is_that_of_the_mechanism(atlas):
    """Counted, over three sizes; a projection that costs more at these sizes hides no attention behind it."""
    rows = atlas.locator(".atlas-table tbody tr")
    grows = dict(rows.evaluate_all("rows => rows.map(row => [row.dataset.id, row.dataset.growth])"))
    assert {grows[id] for id in ("se", "eca", "gct")} == {"none"}
    linear = ("external", "ufo", "swiftformer", "a2", "simam", "pyraformer", "seaformer")
    assert {grows[id] for id in linear} == {"linear"}
    assert {grows[id] for id in ("ccnet", "axial", "vip")} == {"between"}
    assert {grows[id] for id in ("mhsa", "non_local", "danet", "psanet", "vit", "aft")} == {"quadratic"}


def test_the_chart_shows_what_the_table_shows(atlas):
    atlas.get_by_label("Convolution", exact=True).check()
    ids = atlas.locator("[data-chart=cost] a").evaluate_all("points => points.map(point => point.dataset.id)")
    assert set(ids) <= set(shown(atlas)) and "deform" in ids
    atlas.locator("[data-chart=cost] a[data-id=deform]").click()
    expect(atlas.locator("#m-deform th a").first).to_be_focused()


def test_a_table_to_download(atlas):
    atlas.get_by_label("Channel", exact=True).check()
    with atlas.expect_download() as download:
        atlas.get_by_role("button", name="Download as CSV").click()
    with open(download.value.path(), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(io.StringIO(file.read())))
    assert sorted(row["id"] for row in rows) == attn_lib.list_modules("channel")
    se = next(row for row in rows if row["id"] == "se")
    assert se["parameters"] == "580" and se["module"] == "Squeeze-and-Excitation" and 0 < float(se["seconds"]) < 1


def test_without_a_script_it_is_a_table(browser, site):
    problems = []
    with browsers.opened(browser, (site / "book" / "atlas.html").as_uri(), problems, java_script_enabled=False) as page:
        assert page.locator(".atlas-table tbody tr:visible").count() == ALL
        assert page.locator(".atlas-controls").is_hidden()
    assert problems == []


def test_on_a_phone_it_is_cards(atlas):
    atlas.set_viewport_size(browsers.PHONE)
    expect(atlas.locator(".atlas-table thead")).to_be_hidden()
    wide = atlas.locator(".atlas-table tbody tr:visible").first.bounding_box()["width"]
    assert wide <= browsers.PHONE["width"] and browsers.overflow(atlas) == []


def test_it_is_small_and_its_links_lead_somewhere(site):
    page = (site / "book" / "atlas.html").read_text(encoding="utf-8")
    table = page[page.index('<div class="attn-atlas">'):page.index("</table></div></div>")]
    script = (site / "_static" / "atlas.js").read_bytes()
    assert len(gzip.compress(table.encode() + script, 6)) < 1000 * KILOBYTES
    for link in set(re.findall(r'href="([^"#]+\.html)', table)):
        assert (site / "book" / link).exists(), link
    for link in set(re.findall(r'href="(api/\w+)\.html#([\w.]+)"', table)):
        assert f'id="{link[1]}"' in (site / "book" / f"{link[0]}.html").read_text(encoding="utf-8"), link


def test_every_erratum_is_on_its_page(site):
    page = (site / "book" / "errata.html").read_text(encoding="utf-8")
    for id in attn_lib.list_modules():
        entry = attn_lib.entry(id)
        assert (f'id="errata-{id}"' in page) == bool(entry.errata)
    files = set(re.findall(r"/blob/\w+/(tests/[\w/.]+)", page))
    assert files and all((notebooks.ROOT / file).exists() for file in files)


def test_the_reference_shows_every_module_whole(site):
    for id in attn_lib.list_modules():
        entry = attn_lib.entry(id)
        page = (site / "book" / "api" / f"{entry.family}.html").read_text(encoding="utf-8")
        assert f'id="{entry.cls.__module__}.{entry.cls.__qualname__}"' in page
        card = page[page.index(f'data-module="{id}"'):].split("</dl>")[0]
        for label in ("Recorded time", "Kept for backward", "Commutes with", "Fresh module"):
            assert f">{label}</dt>" in card, f"{id}: {label}"
