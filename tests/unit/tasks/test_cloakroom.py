"""Cards in pairs: a spot of a photograph twice, a number once."""

import pytest
import torch
from einops import rearrange

from attn_lib.tasks import cloakroom
from tests.unit.tasks.answer import always

# What whoever cannot solve the task can answer; it scores at the chance level (see test_tasks.py).
ignorant = always(3, 10)


def cards(images):
    """(n, H·W, 3, 16, 8): photograph above, digit below, margins cut off."""
    return rearrange(images, "B C (H y) (W x) -> B (H W) C y x", y=18, x=10)[..., 1:-1, 1:-1]


@pytest.mark.parametrize("grid", [(4, 6), (1, 2), (3, 2)])
@pytest.mark.parametrize("part", ["train", "test"])
def test_every_card_has_one_partner_with_the_same_number(grid, part):
    H, W = grid
    s = cloakroom.sheets(20, part, grid=grid)
    assert s.images.shape == (20, 3, 18 * H, 10 * W) and s.images.dtype == torch.float32
    assert 0 <= s.images.min() and s.images.max() <= 1
    number, asks, partner = (t.flatten(1) for t in (s.number, s.asks, s.partner))
    places = torch.arange(H * W).expand(20, -1)
    assert torch.equal(partner.gather(1, partner), places) and (partner != places).all()
    assert torch.equal(number.gather(1, partner), number)
    assert torch.equal(asks.gather(1, partner), ~asks)


def test_the_digit_is_on_one_card_of_a_pair_only():
    s = cloakroom.sheets(20)
    ink = cards(s.images)[:, :, :, 8:].amax((2, 3, 4))
    assert torch.equal(ink > 0, ~s.asks.flatten(1))
    assert s.number[~s.asks].bincount(minlength=10).min() > 0


def test_partners_show_the_same_spot_and_others_do_not():
    s = cloakroom.sheets(60, "test")
    look = cloakroom._pattern(cards(s.images)[:, :, :, :8])
    likeness = look @ look.mT - 2 * torch.eye(24)
    right = likeness.argmax(2) == s.partner.flatten(1)
    assert right.float().mean() > 0.8  # seldom the same pixels, yet nearly always the likest of 23
    exact = (likeness.gather(2, s.partner.flatten(1)[..., None]) > 0.999).float().mean()
    assert exact < 0.5
    pair = cards(s.images)[0, [0, s.partner[0, 0, 0]], :, :8].mean((1, 2, 3))
    assert (pair[0] / pair[1]).log().abs() > 0.01  # other light


def test_photographs_and_handwriting_are_disjoint():
    train, test = cloakroom._material("train"), cloakroom._material("test")
    assert not set(cloakroom.PHOTOGRAPHS["train"]) & set(cloakroom.PHOTOGRAPHS["test"])
    assert len(train[1]) + len(test[1]) == 1797
    assert (train[0].std((-2, -1)).mean(2) > cloakroom.CONTRAST).all() and len(test[0]) > 300


def test_features_of_a_card_say_nothing_about_the_others():
    s = cloakroom.sheets(2, "test")
    x = cloakroom.features(s.images)
    assert x.shape == (2, 48, 4, 6) and x.is_contiguous()
    changed = s.images.clone()
    changed[:, :, 18:36, 20:30] = 0.5
    moved = (cloakroom.features(changed) != x).any(1)
    assert moved[:, 1, 2].all() and moved.sum() == 2
    torch.testing.assert_close(x[:, :32].square().mean(1), torch.ones(2, 4, 6))


def test_features_of_the_photograph_ignore_light():
    s = cloakroom.sheets(4, "test")
    a, b = (cloakroom.features(images)[:, :32] for images in (s.images, s.images * 0.7))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_sheets():
    a, b, c = (cloakroom.sheets(3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.images, b.images) and torch.equal(a.partner, b.partner)
    assert not torch.equal(a.images, c.images)


def test_score_counts_the_chosen_cards_alone():
    s = cloakroom.sheets(5)
    answers = torch.nn.functional.one_hot(s.number, 10).permute(0, 3, 1, 2).float()
    assert cloakroom.score(answers, s.number, s.asks) == 1
    wrong = torch.where(s.asks[:, None], -answers, answers)
    assert cloakroom.score(wrong, s.number, s.asks) == 0 and cloakroom.score(wrong, s.number, ~s.asks) == 1


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(n=0), "n=0"), (dict(n=1, grid=(3, 3)), r"grid=\(3, 3\)"), (dict(n=1, grid=(0, 4)), r"grid=\(0, 4\)"),
    (dict(n=1, grid=(100, 100)), "at most"), (dict(n=1, part="both"), "part='both'"),
])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        cloakroom.sheets(**arguments)


def test_half_cards_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 20, 20\)"):
        cloakroom.features(torch.zeros(1, 3, 20, 20))


def test_a_guess_of_the_commonest_number_is_poor():
    """What somebody gets who sees all numbers and no photograph: the bound of an average over the sheet."""
    s = cloakroom.sheets(300, "test")
    tickets = torch.zeros(300, 10).scatter_add_(1, s.number.flatten(1), (~s.asks).flatten(1).float())
    commonest = tickets.argmax(1)[:, None, None].expand(-1, 4, 6)
    assert (commonest == s.number)[s.asks].float().mean() < 0.3
