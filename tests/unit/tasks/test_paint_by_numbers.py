"""The task of the BiFormer chapter: what is on a sheet, what its features know, and that routing solves it."""

import pytest
import torch
from einops import rearrange
from torch import nn

import attn_lib
from attn_lib import toys
from attn_lib.tasks import paint_by_numbers as task
from tests.unit.tasks.answer import always

# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
ignorant = always(2, 4)


def fields(images):
    """Sheets as fields: n 8 8 3 12 12."""
    return rearrange(images, "B C (H y) (W x) -> B H W C y x", y=task.SIDE, x=task.SIDE)


def plates(images):
    return fields(images)[..., 2:-2, 2:-2]


def pieces(t):
    """Something of every field, n 8 8, by pieces: n 16 4."""
    return rearrange(t, "B (P i) (Q j) -> B (P Q) (i j)", i=task.FIELDS, j=task.FIELDS)


def numbers(images):
    """Which number each field shows, looked up among all digits of the data set."""
    ink, labels = toys.digits()
    known = {i.numpy().tobytes(): label.item() for i, label in zip(ink, labels, strict=True)}
    shown = plates(images).amax(3).flatten(0, 2)
    return torch.tensor([known[i.numpy().tobytes()] for i in shown]).view(-1, 8, 8)


def inks(images):
    """The colour of each field's number, 0 to 3; −1 for white."""
    light = plates(images).sum((4, 5))
    light = light / light.amax(-1, keepdim=True)
    gap, kind = torch.cdist(light, task.INK).min(-1)
    return torch.where(gap < 1e-3, kind, -1)


@pytest.mark.parametrize("part", ["train", "test"])
def test_every_field_has_the_colour_that_its_legend_gives_its_number(part):
    drawn = task.sheets(20, part)
    assert drawn.images.shape == (20, 3, 96, 96) and 0 <= drawn.images.min() and drawn.images.max() <= 1
    number, ink, truth = (pieces(t) for t in (numbers(drawn.images), inks(drawn.images), drawn.colour))
    picture = task.is_picture(drawn.colour)
    assert (picture.sum(1) == 8).all() and (number.sort(-1).values == torch.arange(1, 5)).all()
    assert (ink[picture] == -1).all() and (ink[~picture] >= 0).all() and (truth[~picture] == task.SILENT).all()
    for sheet in range(20):
        for piece in picture[sheet].nonzero()[:, 0]:
            legend = drawn.legend[sheet, piece]
            assert drawn.legend[sheet, legend] == piece and not picture[sheet, legend]
            says = dict(zip(number[sheet, legend].tolist(), ink[sheet, legend].tolist(), strict=True))
            assert truth[sheet, piece].tolist() == [says[n] for n in number[sheet, piece].tolist()]


def test_picture_and_legend_are_on_the_same_paper():
    """Up to four pixels: what one shows from its fifth row and column on, the other shows at its beginning."""
    drawn = task.sheets(10, "test")
    blocks = rearrange(drawn.images, "B C (P y) (Q x) -> B (P Q) C y x", P=task.PIECES, Q=task.PIECES)
    picture, sheet = task.is_picture(drawn.colour), torch.arange(10)[:, None]
    first, second = (blocks[sheet, drawn.legend][picture], blocks[picture])
    gap = (first[..., 4:, 4:] - second[..., :-4, :-4]).abs().amax(1)
    assert (gap[:, 10:14, 6:10] == 0).all()  # paper on both; elsewhere one of the two has a digit there


def test_colours_are_guessed_in_a_quarter_of_the_cases_and_pieces_lie_anywhere():
    drawn = task.sheets(500)
    asked = drawn.colour[drawn.colour != task.SILENT]
    assert (asked.bincount(minlength=4) / len(asked) - 0.25).abs().max() < 0.03
    assert (task.is_picture(drawn.colour).float().mean(0) - 0.5).abs().max() < 0.1


def test_sheets_follow_the_seed_and_parts_share_no_handwriting():
    state = torch.random.get_rng_state()
    a, b, c = task.sheets(3), task.sheets(3), task.sheets(3, seed=1)
    assert torch.equal(a.images, b.images) and not torch.equal(a.images, c.images)
    assert torch.equal(torch.random.get_rng_state(), state)
    train, test = ({i.numpy().tobytes() for i in plates(task.sheets(40, part).images).amax(3).flatten(0, 2)}
                   for part in ("train", "test"))
    assert len(train) > 300 and len(test) > 100 and not train & test
    assert not set(task.PHOTOGRAPHS["train"]) & set(task.PHOTOGRAPHS["test"])


def test_features_of_a_field_know_that_field_alone():
    images = task.sheets(4, "test").images
    x = task.features(images)
    assert x.shape == (4, task.CHANNELS, 8, 8)
    torch.testing.assert_close(task.features(images[:, :, 24:36, 48:60])[:, :, 0, 0], x[:, :, 2, 4])


def test_a_piece_is_better_known_by_all_of_its_paper_than_by_that_of_a_field():
    """The mean of a region's histograms finds the other piece more often than a single field's does."""
    drawn = task.sheets(100, "test")
    paper = rearrange(task.features(drawn.images)[:, : task.PAPER], "B C (P i) (Q j) -> B (P Q) (i j) C", i=2, j=2)

    def found(query, key):  # n 16 c
        alike = torch.nn.functional.normalize(query, dim=-1) @ torch.nn.functional.normalize(key, dim=-1).mT
        alike.diagonal(dim1=1, dim2=2).fill_(-1)
        return (alike.argmax(-1) == drawn.legend).float().mean()

    assert found(paper.mean(2), paper.mean(2)) > 0.93
    assert found(paper[:, :, 0], paper[:, :, 0]) < 0.89


def test_score_counts_pictures_alone():
    _, colour = task.examples(8)
    right = torch.nn.functional.one_hot(colour.clamp(min=0), task.COLOURS).movedim(-1, 1).float()

    class Answer(nn.Module):
        def forward(self, x):
            assert not self.training
            return x

    model = Answer().train()
    assert task.score(model, (right, colour)) == 1 and task.score(model, (-right, colour)) == 0 and model.training


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(n=0), "n=0 must be at least 1"), (dict(n=1, part="both"), "part='both' must be one of 'train', 'test'"),
])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        task.sheets(**arguments)


def test_half_fields_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 12, 20\)"):
        task.features(torch.zeros(1, 3, 12, 20))


def test_routing_finds_the_colours_and_windows_do_not():
    def network(topk, route=None):
        look = attn_lib.create("biformer", channels=task.CHANNELS, heads=1, regions=4, topk=topk, lepe_kernel=3)
        look.route = route or look.route
        return nn.Sequential(look, nn.Conv2d(task.CHANNELS, task.COLOURS, 1))

    def own(q, k, real):
        return torch.arange(16).view(1, 16, 1).expand(len(q), 16, 1)

    builders = {"windows": lambda: network(1, own), "k = 4": lambda: network(4)}
    result = toys.compare(builders, task.examples(1024), task.examples(128, "test"), metric=task.score, seeds=(0,),
                          steps=150, batch=16, lr=2e-2)
    assert result.mean("windows") < 0.3 and result.mean("k = 4") > 0.48
