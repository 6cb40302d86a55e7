"""The check of axes' names sees a wrong pattern, and only that."""

import pytest

from book.tools.anatomy import axes


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
    assert sorted(axes.misnamed(pattern)) == sorted(wrong)


def test_a_notebook_is_read_code_and_prose():
    cells = [
        {"cell_type": "markdown", "source": ["einops writes `rearrange(x, \"b c -> c b\")`;\n", "it's not -> this.\n"]},
        {"cell_type": "code", "source": 'z = reduce(x, "B C H W -> B C", "mean")\nprint("from b -> to c!")\n'},
        {"cell_type": "code", "source": "s = torch.einsum('hw,W->h', x, y)"},
    ]
    assert axes.problems(cells) == [
        'cell 1: "b c -> c b" has b, c for B, C',
        'cell 3: "hw,W->h" has w, h for W, H',
    ]
