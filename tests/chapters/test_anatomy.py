"""Every chapter has every part of a chapter, and the check of it notices what is missing."""

import copy

import pytest

from book.tools import anatomy, notebooks
from book.tools.anatomy import Chapter, axes, code, exercises, outputs, parts, prose
from book.tools.anatomy.chapter import ASSERTS


@pytest.mark.parametrize("check", anatomy.CHECKS, ids=lambda check: check.__name__)
def test_chapter_passes(chapter, check):
    """Each check on each chapter."""
    assert check(Chapter.load(chapter)) == []


def test_grade_ids_are_unique_in_the_book():
    """An instructor may put several chapters into one assignment."""
    ids = [
        cell.metadata["nbgrader"]["grade_id"]
        for path in notebooks.chapters()
        for cell in notebooks.read(path).cells
        if "nbgrader" in cell.metadata
    ]
    assert len(ids) == len(set(ids))


# Each of these spoils a good chapter in one way: the check that must notice, what it must say, and the damage.
BROKEN = []


def damage(check, says):
    """Enters a function that spoils a chapter into `BROKEN`."""

    def enter(function):
        BROKEN.append(pytest.param(check, says, function, id=function.__name__))
        return function

    return enter


def first(chapter, wanted):
    """The first cell for which `wanted` holds."""
    return next(cell for cell in chapter.cells if wanted(cell))


def grade(cell, role):
    """Whether a cell is an exercise's solution ("solution") or check ("grade")."""
    return cell.metadata.get("nbgrader", {}).get(role, False)


def has_picture(cell):
    """Whether a cell stores a PNG."""
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def picture(chapter):
    """The first stored output that holds a PNG."""
    cell = first(chapter, has_picture)
    return next(output for output in cell.outputs if "image/png" in output.get("data", {}))


@damage(parts.listed, "add '- file: chapters/channel/unheard_of'")
def left_out_of_the_table_of_contents(chapter):
    chapter.path = chapter.path.with_name("unheard_of.ipynb")


@damage(parts.opening, "H1")
def no_title(chapter):
    chapter.cells[0].source = "## Too small"


@damage(parts.opening, "letter by letter")
def own_setup_cell(chapter):
    chapter.cells[1].source += "\nimport numpy as np"


@damage(parts.opening, "attn_lib.card")
def no_card(chapter):
    del chapter.cells[2]


@damage(parts.promises, "After this chapter you can")
def no_objectives(chapter):
    for cell in chapter.cells[: chapter.starts["problem"]]:
        cell.source = cell.source.replace("fter this chapter you can", "nd then")


@damage(parts.promises, "reading time")
def no_minutes(chapter):
    for cell in chapter.cells[: chapter.starts["problem"]]:
        cell.source = cell.source.replace("minutes", "moments")


@damage(parts.parts_in_order, "part:cost")
def no_cost(chapter):
    cell = first(chapter, lambda cell: "part:cost" in notebooks.tags(cell))
    cell.metadata["tags"] = [tag for tag in cell.metadata["tags"] if tag != "part:cost"]


@damage(parts.parts_in_order, "order")
def parts_exchanged(chapter):
    for cell in chapter.cells:
        exchange = {"part:problem": "part:use", "part:use": "part:problem"}
        if notebooks.tags(cell):
            cell.metadata["tags"] = [exchange.get(tag, tag) for tag in cell.metadata["tags"]]


@damage(parts.substance, "viz.flow")
def no_flow(chapter):
    for cell in chapter.cells:
        cell.source = cell.source.replace("viz.flow(", "viz.images(")


@damage(parts.substance, "viz.drawing")
def no_drawing(chapter):
    for cell in chapter.cells:
        cell.source = cell.source.replace("viz.drawing(", "viz.images(")


@damage(parts.substance, '"opening"')
def two_openings(chapter):
    for cell in chapter.part("by-hand")[:2]:
        cell.metadata["tags"] = [*notebooks.tags(cell), "opening"]


@damage(parts.substance, "an open question")
def no_open_question(chapter):
    for cell in chapter.part("take-away"):
        cell.source = cell.source.replace("?", ".")


@damage(parts.substance, "explorer")
def no_explorer(chapter):
    for cell in chapter.cells:
        cell.source = cell.source.replace("viz.explore_", "viz.show_")


@damage(prose.references, "do not cite the paper")
def no_reference(chapter):
    for cell in chapter.part("references"):
        cell.source = cell.source.replace("{cite", "{cut")


@damage(prose.equations, "has no label")
def equation_without_label(chapter):
    cell = first(chapter, lambda cell: cell.cell_type == "markdown" and "(eq-" in cell.source)
    cell.source = cell.source.replace("(eq-", "[eq-")


@damage(prose.citations_and_links, "not in book/references.bib")
def unknown_citation(chapter):
    chapter.cells[0].source += "\n\n{cite}`nobody2099nothing`"


@damage(prose.no_line_is_lost, "begins with % and is not shown")
def percent_at_the_start_of_a_line(chapter):
    chapter.cells[0].source += "\n\nThe error is 22.28\n% of all."


@damage(prose.no_formula_becomes_a_list, "is broken before a sign of a list")
def minus_at_the_start_of_a_line(chapter):
    chapter.cells[0].source += "\n\nThe first unit holds $(7\n- 3) - 1 = 3$."


@damage(prose.citations_and_links, "leads nowhere")
def dead_link(chapter):
    chapter.cells[0].source += "\n\n[here](nothing.ipynb)"


@damage(prose.citations_and_links, "there is no file tests/unit/test_se.py")
def file_that_has_moved(chapter):
    chapter.cells[0].source += "\n\nSee `tests/unit/test_se.py`."


@damage(prose.citations_and_links, "which has a chapter of this book: chapters/channel_spatial/cbam.ipynb")
def link_to_a_paper_that_has_a_chapter(chapter):
    chapter.cells[0].source += "\n\n[CBAM](https://arxiv.org/abs/1807.06521v2)"


@damage(prose.citations_and_links, "there is no attn_lib.channel.se.Nothing")
def dead_class(chapter):
    chapter.cells[0].source += "\n\n{py:class}`attn_lib.channel.se.Nothing`"


@damage(code.code_is_short_and_plain, "belongs in the library")
def long_cell(chapter):
    first(
        chapter, lambda cell: cell.cell_type == "code" and "setup" not in notebooks.tags(cell)
    ).source += "\n1" * 20


@damage(code.code_is_short_and_plain, "a page shows 95")
def wide_line(chapter):
    chapter.cells[2].source += "  # " + "wide " * 20


@damage(code.code_is_short_and_plain, "imports matplotlib")
def plotting_code(chapter):
    chapter.cells[2].source = "import matplotlib.pyplot as plt"


@damage(code.code_is_short_and_plain, "the name μ is not ASCII")
def greek_in_code(chapter):
    first(chapter, has_picture).source += "\nμ = 1"


@damage(axes.axes_are_symbols, 'has b, c for B, C')
def small_letters_for_sizes(chapter):
    chapter.cells[0].source += '\n\nIn einops: `"b c -> c b"`.'


@damage(outputs.outputs_are_stored, "code has changed")
def edited_without_a_run(chapter):
    first(chapter, lambda cell: has_picture(cell)).source += "\n# edited"


@damage(outputs.outputs_are_stored, "no stored output")
def missing_output(chapter):
    first(chapter, has_picture).outputs.clear()


@damage(outputs.outputs_are_stored, "execution counts")
def never_ran(chapter):
    cell = first(chapter, has_picture)
    cell.outputs, cell.execution_count = [], None


@damage(outputs.outputs_are_stored, "prints a line of 96 characters")
def wide_print(chapter):
    cell = first(chapter, lambda cell: any(output.get("name") == "stdout" for output in cell.get("outputs", [])))
    next(output for output in cell.outputs if output.get("name") == "stdout").text = "x" * 96 + "\n"


@damage(outputs.outputs_are_stored, "not normalised")
def editors_noise(chapter):
    first(chapter, has_picture).metadata["collapsed"] = False


@damage(outputs.figures, "no alternative text")
def figure_without_text(chapter):
    picture(chapter).metadata.clear()


@damage(outputs.figures, "not a question")
def figure_without_question(chapter):
    picture(chapter).data["text/plain"] = "Figure: Feature maps"


@damage(outputs.figures, "nobody sees its figure")
def figure_before_an_assertion(chapter):
    first(chapter, lambda cell: "viz.bars(" in cell.source).source += "\nassert True"


@damage(outputs.ignored_outputs, "asserts nothing")
def convenient_tag(chapter):
    cell = first(chapter, lambda cell: cell.cell_type == "code" and not ASSERTS.search(cell.source))
    cell.metadata["tags"] = [*notebooks.tags(cell), "nbval-ignore-output"]


@damage(exercises.exercise_metadata, "nbgrader refuses")
def grade_without_id(chapter):
    first(chapter, lambda cell: grade(cell, "grade")).metadata["nbgrader"]["grade_id"] = ""


@damage(exercises.exercise_metadata, "### BEGIN SOLUTION")
def solution_without_markers(chapter):
    cell = first(chapter, lambda cell: grade(cell, "solution"))
    cell.source = cell.source.replace("### BEGIN SOLUTION", "")


@damage(exercises.exercises, "the checks give")
def other_points(chapter):
    first(chapter, lambda cell: grade(cell, "grade")).metadata["nbgrader"]["points"] += 1


@damage(exercises.exercises, 'kind "derive"')
def nothing_to_derive(chapter):
    for cell in chapter.cells:
        cell.source = cell.source.replace("(derive,", "(code,")


@damage(exercises.stubs, "signature")
def signature_in_the_solution(chapter):
    cell = first(chapter, lambda cell: grade(cell, "solution"))
    lines = [line for line in cell.source.splitlines() if "### BEGIN SOLUTION" not in line]
    cell.source = "\n".join(["### BEGIN SOLUTION", *lines])


@damage(exercises.stand_alone, "of another exercise")
def check_of_another_exercise(chapter):
    one, other, *_ = (cell for cell in chapter.cells if grade(cell, "solution"))
    other.source += f"\n{min(exercises.names(one.source)[0])}"


@damage(exercises.stand_alone, "of another exercise")
def cell_after_the_exercises(chapter):
    solution = first(chapter, lambda cell: grade(cell, "solution"))
    cell = copy.deepcopy(chapter.cells[2])
    cell.source = min(exercises.names(solution.source)[0])
    chapter.cells.append(cell)


@damage(code.timings_stop_nothing, "use measure.claim")
def asserted_timing(chapter):
    first(chapter, lambda cell: cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", [])).source += (
        "\nfor n in (1, 2):\n    took = measure.timing(torch.abs, torch.ones(n))\n    twice = 2 * took.median\n"
        "assert twice < 1")


@damage(exercises.stand_alone, "of the lesson")
def check_of_what_the_lesson_defined(chapter):
    lesson = first(chapter, lambda cell: cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", []))
    lesson.source += "\nlast_of_the_lesson = 1"
    first(chapter, lambda cell: grade(cell, "grade")).source += "\nlast_of_the_lesson"


@damage(outputs.size, "500 are allowed")
def heavy(chapter):
    picture(chapter).data["image/png"] = "A" * 500_000


@pytest.mark.parametrize(("check", "says", "spoil"), BROKEN)
def test_damage_is_noticed(check, says, spoil):
    """A spoilt copy of the first chapter is refused, by the check that is meant to, for the right reason."""
    good = Chapter.load(notebooks.find(["channel/se"])[0])
    spoilt = Chapter(copy.deepcopy(good.notebook), good.path)
    spoil(spoilt)
    assert check(good) == []
    assert any(says in problem for problem in check(Chapter(spoilt.notebook, spoilt.path)))


def test_a_chapter_without_a_module_has_this_one_problem():
    """Everything else would be said of a module that is not there."""
    good = Chapter.load(notebooks.find(["channel/se"])[0])
    (problem,) = anatomy.problems(Chapter(good.notebook, good.path.with_name("sse.ipynb")))
    assert problem.startswith("the catalog has no module 'sse'")


def test_a_foundation_has_parts_of_its_own_and_no_card():
    """The chapters that explain no module are held to their own list."""
    good = Chapter.load(notebooks.find(["channel/se"])[0])
    foundation = Chapter(copy.deepcopy(good.notebook), good.path.parents[1] / "foundations" / "se.ipynb")
    no_card(foundation)
    assert parts.opening(foundation) == []
    assert any("part:ideas" in problem for problem in parts.parts_in_order(foundation))
    assert any("part:cost" in problem for problem in parts.parts_in_order(foundation))
    no_reference(foundation)
    assert prose.references(foundation) == ["the references cite nothing"]


def test_every_check_is_seen_failing():
    """A check that no damage reaches might as well not be there."""
    assert set(anatomy.CHECKS) == {param.values[0] for param in BROKEN}
