"""An exercise on the page: the stub to be filled in stands open, as students get it, and the solution is folded."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

from book.tools.anatomy.exercises import student_copy

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


class StubBeforeSolution(SphinxPostTransform):
    """Runs before MyST-NB folds the solution (199)."""

    default_priority = 185
    formats = ("html",)

    def run(self, **kwargs) -> None:
        solutions = [cell for cell in self.document.findall(nodes.container) if "tag_solution" in cell["classes"]]
        for cell in solutions:
            code = next(cell.findall(nodes.literal_block))
            shown = code.deepcopy()
            _say(shown, student_copy(code.astext()))
            _say(code, without_marks(code.astext()))
            place = cell.parent.index(cell)
            cell.parent.insert(place, nodes.container("", shown, classes=["cell", "stub"]))


def _say(block: nodes.literal_block, text: str) -> None:
    block.rawsource = text
    block.children = [nodes.Text(text)]


def without_marks(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if line.strip() not in (BEGIN, END))


def setup(app: Sphinx) -> dict[str, object]:
    app.add_post_transform(StubBeforeSolution)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
