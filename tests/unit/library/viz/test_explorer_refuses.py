"""What explorers do not take."""

import pytest
import torch

from attn_lib import viz
from attn_lib.viz.explore.api import MAX_FRAMES
from tests.unit.library.viz.explored import TEXTS, bars, compared, photo, softmax_rows

A = softmax_rows(2, 2, 2, 2)
P = torch.zeros(2, 2, 3, 2)


def with_value(value: float) -> torch.Tensor:
    a = A.clone()
    a[0, 1, 1, 0] = value
    return a


def attention(a, image=None, **more):
    return viz.explore_attention(photo() if image is None else image, a, **(TEXTS | more))


def points(p, **more):
    return viz.explore_points(photo(), p, **(TEXTS | more))


def frames(draw=compared, **settings):
    return viz.explore_frames(draw, **TEXTS, **settings)


def says(*sentences, alts=("One.", "Two.", "Three.")):
    """A `draw` that says one sentence after another."""
    texts = zip(sentences, alts, strict=False)

    def draw(**setting):
        sentence, alt = next(texts)
        return viz.bars([1.0, 2.0], title="How tall?", alt=alt), sentence

    return draw


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention(A[0]), r"A has shape \(2, 2, 2\): it must be \(Hq, Wq, Hk, Wk\)"),
        (lambda: attention([A, A]), r"A has shape \(2, 2, 2, 2, 2\)"),
        (lambda: attention("A"), "A must be a tensor"),
        (lambda: attention({}), "empty"),
        (lambda: attention({"x": with_value(float("nan"))}), r"A\['x'\] has 1 values that are NaN"),
        (lambda: attention(with_value(float("inf"))), "NaN or infinite"),
        (lambda: viz.explore_pixels(photo(), A, **TEXTS), r"maps has shape \(2, 2, 2, 2\): it must be \(H, W\)"),
        (lambda: viz.explore_pixels(photo(), {"a": A[0, 0], "b": A[0, 0, :1]}, **TEXTS), "share one query grid"),
        (lambda: viz.explore_pixels(photo(), A[0, 0] / 0, **TEXTS), "maps has 4 values that are NaN or infinite"),
        (lambda: attention({"a": A, "b": softmax_rows(2, 3, 2, 2)}), "share one query grid"),
        (lambda: attention(A, start=1), "start=1 must be a "),
        (lambda: attention(A, start=(2, 0)), r"start=\(2, 0\) must be .* 2×2 query grid"),
        (lambda: attention(A, mark="star"), "mark='star' must be 'query' or None"),
        (lambda: attention(A, title=""), "title='' must be a non-empty string"),
        (lambda: attention(A, alt=" "), "alt=' ' must be a non-empty string"),
        (lambda: attention(lambda r, c: A[r, c]), r"grid=None must be \(Hq, Wq\)"),
        (lambda: attention(lambda r, c: A[0, 0, : r + 1], grid=(2, 2)), "different shapes"),
        (lambda: attention(A, photo()[None]), r"image has shape \(1, 3, 64, 64\)"),
        (lambda: attention(A, photo() * 255), r"colours must lie in \[0, 1\]"),
        (lambda: attention(A, torch.full((4, 4), float("nan"))), "image has 16 values that are NaN"),
        (lambda: attention(A, reference=photo()[:2]), "reference has shape"),
        (lambda: attention(softmax_rows(28, 28, 28, 28, sharpness=1.0)), r"takes \d+ kB; the budget is 250 kB"),
        (lambda: points(P[0]), r"points has shape \(2, 3, 2\): it must be \(Hq, Wq, K, 2\)"),
        (lambda: points(P[..., :1]), "last dimension must be 2"),
        (lambda: points(P, weights=P[:1, ..., 0]), r"weights has shape \(1, 2, 3\): it must be \(2, 2, 3\)"),
        (lambda: points(P, weights=P[..., 0] - 1), "weights has the negative value -1"),
        (lambda: points(P, reference=P[:, :, :1]), "reference has shape"),
        (lambda: points({"a": P, "b": P}, weights={"a": P[..., 0]}), "one is needed for the panel 'b'"),
        (lambda: frames(), "one or two settings"),
        (lambda: frames(a=[1, 2], b=[1, 2], c=[1, 2]), "not 3"),
        (lambda: frames(height=[1]), r"height=\[1\] must be a list of at least two values"),
        (lambda: frames(height="ab"), "height='ab' must be a list"),
        (lambda: frames(height=range(1, MAX_FRAMES + 2)), f"{MAX_FRAMES + 1} frames: .* at most {MAX_FRAMES}"),
        (
            lambda: frames(lambda height: None, height=[1, 2]),
            r"draw\(height=1\) must return a viz.Figure and a sentence, not NoneType",
        ),
        (lambda: frames(bars, height=[1, 2]), r"draw\(height=1\) must return \(figure, sentence\): what does"),
        (lambda: frames(lambda height: ("so", bars(1)), height=[1, 2]), "must return a viz.Figure and a sentence"),
        (lambda: frames(says(None), height=[1, 2]), r"draw\(height=1\) says None: it must say in a sentence"),
        (lambda: frames(says("height = 1"), height=[1, 2]), "it must say in a sentence what the reader sees"),
        (lambda: frames(says("It is as tall.", "It is as tall."), height=[1, 2]),
         r"draw\(height=1\) and draw\(height=2\) have the same sentence, 'It is as tall.': what differs"),
        (lambda: frames(says("It is as tall.", "It is now taller.", alts=["Two bars."] * 2), height=[1, 2]),
         "have the same alt, 'Two bars.'"),
        (lambda: frames(says("It is 0.30000000000000004 tall."), height=[1, 2]), "round its numbers"),
        (lambda: frames(says("It is 1e-08 tall."), height=[1, 2]), r"round its numbers \('1e-08'\)"),
        (lambda: frames(says("It is as tall.", alts=["A bar of 0.30000000000000004."]), height=[1, 2]), "has the alt"),
        (lambda: frames(k=[1, 2]), r"the slider 'k' needs a name .*: k=\(\"width of the kernel k\", \[...\]\)"),
        (lambda: frames(beta=[1, 2]), "the slider 'beta' needs a name that a reader knows"),
        (lambda: frames(k=("k", [1, 2])), "needs a name that a reader knows, not 'k'"),
        (lambda: frames(height=("height", [1])), r"height=\('height', \[1\]\) must be a list of at least two values"),
        (lambda: frames(None, height=[1, 2]), "draw=None must be a function"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
