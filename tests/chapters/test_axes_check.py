"""The check of axes' names sees a wrong pattern, and only that."""

import json
from pathlib import Path

import pytest

from book.tools import axes_check

CHAPTERS = sorted(Path(__file__).parents[2].glob("chapters/*/*.ipynb"))


@pytest.mark.parametrize(("pattern", "wrong"), [
    ("b c h w -> b c", "bcwh"),
    ("B C h w -> B C (h w)", "wh"),
    ("bc,BCHW->bHW", "bc"),
    ("b n c", "bcn"),
    ("B n C -> B C n", "n"),
    ("h W -> W h", "h"),
    ("B C H W -> B C", ""),
    ("BHWi,BCiW->BCHW", ""),
    ("B N (h d) -> B h N d", ""),        # heads
    ("h (H W) (i j) -> h H W i j", ""),
    ("B C (P i) (Q j) -> B (P Q) (i j) C", ""),
    ("BRnC,BRKmC->BRnKm", ""),           # positions of a region
    ("year month -> (month year)", ""),  # words are free
])
def test_small_letters_that_stand_for_sizes_are_seen(pattern, wrong):
    assert sorted(axes_check.misnamed(pattern)) == sorted(wrong)


def test_a_notebook_is_read_code_and_prose():
    cells = [
        {"cell_type": "markdown", "source": ["einops writes `rearrange(x, \"b c -> c b\")`;\n", "it's not -> this.\n"]},
        {"cell_type": "code", "source": 'z = reduce(x, "B C H W -> B C", "mean")\nprint("from b -> to c!")\n'},
        {"cell_type": "code", "source": "s = torch.einsum('hw,W->h', x, y)"},
    ]
    assert axes_check.problems(cells) == [
        'cell 0: "b c -> c b" has b, c for B, C',
        'cell 2: "hw,W->h" has w, h for W, H',
    ]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapters_write_axes_as_the_notation_does(path):
    found = axes_check.problems(json.loads(path.read_text(encoding="utf-8"))["cells"])
    assert not found, "\n".join(found)
