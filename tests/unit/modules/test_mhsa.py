"""Self-attention with two-dimensional positions against its equations, its limits, timm, and known mistakes."""

import math

import pytest
import torch
from torch import Tensor, nn

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import MHSA2d
from tests.unit.draw import permutation, randn, randomised
from tests.unit.reference import reference

SIZES = [(3, 4), (4, 3), (3, 3), (1, 5), (5, 1), (1, 1)]


def mhsa(channels=6, heads=2, H=3, W=4, position="relative", seed=0) -> MHSA2d:
    size = {} if position is None else dict(height=H, width=W)
    m = MHSA2d(channels, heads=heads, position=position, **size)
    return randomised(m, scale=0.5, seed=seed).requires_grad_(False)


def equations(m: MHSA2d, x: Tensor, position: str | None) -> Tensor:
    """The paper's attention with a loop for every head, query and key, and positions looked up by coordinates."""
    B, C, H, W = x.shape
    d = C // m.heads
    y = torch.zeros_like(x)
    for b in range(B):
        for head in range(m.heads):
            rows = slice(head * d, (head + 1) * d)
            q, k, v = ({(i, j): conv.weight[rows, :, 0, 0] @ x[b, :, i, j] for i in range(H) for j in range(W)}
                       for conv in (m.Wq, m.Wk, m.Wv))
            for i in q:
                logits = {}
                for j in k:
                    if position == "relative":
                        r = m.Rh[j[0] - i[0] + m.height - 1] + m.Rw[j[1] - i[1] + m.width - 1]
                    elif position == "absolute":
                        r = m.Rh[j[0]] + m.Rw[j[1]]
                    else:
                        r = torch.zeros(d, dtype=x.dtype)
                    logits[j] = (q[i] @ k[j] + q[i] @ r).item() / math.sqrt(d)
                total = sum(math.exp(value) for value in logits.values())
                y[b, rows, i[0], i[1]] = sum(math.exp(logits[j]) / total * v[j] for j in v)
    return y


# ---- equation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["relative", "absolute", None])
@pytest.mark.parametrize(("H", "W"), SIZES)
def test_equals_the_equations(H, W, position):
    m, x = mhsa(H=H, W=W, position=position), randn(2, 6, H, W)
    torch.testing.assert_close(m(x), equations(m, x, position))


def test_traced_equals_untraced_and_names_every_quantity():
    m, x = mhsa(), randn(2, 6, 3, 4)
    with attn_lib.trace() as t:
        y = m(x)
    torch.testing.assert_close(y, m(x))
    assert t.names() == ["q", "k", "v", "qr", "A", "y"]
    assert t["A"].shape == (2, 2, 12, 12)
    torch.testing.assert_close(t["A"].sum(-1), torch.ones(2, 2, 12, dtype=torch.float64))


def test_fresh_positions_have_the_variance_that_keeps_their_logits_at_one():
    m = MHSA2d(256, heads=2, height=40, width=40)
    for table in (m.Rh, m.Rw):
        assert table.std().item() == pytest.approx(128**-0.5, rel=0.05)


def test_positions_are_relative_by_default():
    """A vector for each distance, 2H − 1 of them: an absolute table has a vector for each row, H."""
    m, x = randomised(MHSA2d(6, heads=2, height=3, width=4)).requires_grad_(False), randn(1, 6, 3, 4)
    assert m.Rh.shape == (2 * 3 - 1, 3) and m.Rw.shape == (2 * 4 - 1, 3)
    torch.testing.assert_close(m(x), equations(m, x, "relative"))


# ---- limits (the two of the catalog stand in limits/) --------------------------------------------------------------


@pytest.mark.parametrize("position", ["relative", "absolute"])
@pytest.mark.parametrize(("H", "W"), [(3, 4), (5, 2), (1, 6)])
def test_a_smaller_map_uses_the_distances_that_occur(position, H, W):
    """Distance 0 stays in the middle of the large tables; an absolute place is counted from the top left."""
    large, x = mhsa(H=5, W=6, position=position), randn(2, 6, H, W)
    torch.testing.assert_close(large(x), equations(large, x, position))


def test_relative_positions_alone_give_every_query_the_same_pattern_around_itself():
    """With equal content everywhere A depends on the distance of query and key, but for what the border cuts off."""
    m = mhsa(H=7, W=9)
    x = randn(1, 6, 1, 1).expand(1, 6, 7, 9)
    with attn_lib.trace() as t:
        m(x)
    qr = t["qr"].unflatten(2, (7, 9)).unflatten(4, (7, 9))
    assert torch.allclose(qr[:, :, 2, 3, 1:4, 2:6], qr[:, :, 4, 5, 3:6, 4:8])
    assert not torch.allclose(qr[:, :, 2, 3, 1:4, 2:6], qr[:, :, 2, 3, 3:6, 4:8])


# ---- symmetry --------------------------------------------------------------------------------------------------------


def test_without_positions_it_commutes_with_every_permutation_and_with_them_with_none():
    x = randn(2, 6, 4, 5)
    order = permutation(20)

    def shuffled(t):
        return t.flatten(2)[..., order].view_as(t)

    for position, commutes in ((None, True), ("relative", False), ("absolute", False)):
        m = mhsa(H=4, W=5, position=position)
        assert torch.allclose(m(shuffled(x)), shuffled(m(x))) == commutes, position


def test_a_mirror_image_wants_mirrored_distances():
    m, x = mhsa(H=4, W=5), randn(2, 6, 4, 5)
    mirrored = mhsa(H=4, W=5)
    mirrored.load_state_dict({**m.state_dict(), "Rw": m.Rw.flip(0)})
    torch.testing.assert_close(mirrored(x.flip(3)), m(x).flip(3))
    assert not torch.allclose(m(x.flip(3)), m(x).flip(3))


def test_transposing_exchanges_the_two_tables():
    m, x = mhsa(H=3, W=5), randn(2, 6, 3, 5)
    turned = mhsa(H=5, W=3)
    turned.load_state_dict({**m.state_dict(), "Rh": m.Rw, "Rw": m.Rh})
    torch.testing.assert_close(turned(x.mT), m(x).mT)


# ---- reference packages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "heads", "H", "W"), [(8, 2, 5, 5), (12, 4, 3, 6), (6, 1, 6, 2)])
def test_equals_timm(C, heads, H, W):
    timm = reference("timm.layers.bottleneck_attn")
    theirs = timm.BottleneckAttn(C, feat_size=(H, W), num_heads=heads, dim_head=C // heads, scale_pos_embed=True)
    theirs = theirs.double().eval()
    ours, x = mhsa(C, heads, H, W), randn(2, C, H, W)
    theirs.qkv.weight.data = torch.cat([ours.Wq.weight, ours.Wk.weight, ours.Wv.weight])
    theirs.pos_embed.height_rel.data, theirs.pos_embed.width_rel.data = ours.Rh, ours.Rw
    torch.testing.assert_close(ours(x), theirs(x))


def test_timm_leaves_the_position_logits_unscaled_by_default():
    timm = reference("timm.layers.bottleneck_attn")
    theirs = timm.BottleneckAttn(8, feat_size=(5, 5), num_heads=2).double().eval()
    ours, x = mhsa(8, 2, 5, 5), randn(2, 8, 5, 5)
    theirs.qkv.weight.data = torch.cat([ours.Wq.weight, ours.Wk.weight, ours.Wv.weight])
    theirs.pos_embed.height_rel.data, theirs.pos_embed.width_rel.data = ours.Rh / 2, ours.Rw / 2  # √d = 2
    torch.testing.assert_close(ours(x), theirs(x))


# ---- traps -----------------------------------------------------------------------------------------------------------


class Circulating(nn.Module):
    """What a much copied file makes of it: rows and columns change places, and the position term is transposed."""

    def __init__(self, m: MHSA2d, *, swapped: bool, transposed: bool, scaled: bool):
        super().__init__()
        self.m, self.swapped, self.transposed, self.scaled = m, swapped, transposed, scaled

    def forward(self, x):
        m, (B, C, H, W) = self.m, x.shape
        d = C // m.heads
        q, k, v = (conv(x).view(B, m.heads, d, H * W) for conv in (m.Wq, m.Wk, m.Wv))
        Rh, Rw = (m.Rw[:H], m.Rh[:W]) if self.swapped else (m.Rh, m.Rw)
        r = (Rh[:, None] + Rw).reshape(H * W, d).T  # d N
        content, place = q.mT @ k, q.mT @ r
        energy = content + (place.mT if self.transposed else place)
        A = (energy / (d**0.5 if self.scaled else 1)).softmax(-1)
        return (v @ A.mT).view(B, C, H, W)


@pytest.mark.parametrize("mistake", ["swapped", "transposed", "unscaled"])
def test_trap_of_copies_changes_the_output_even_on_square_maps(mistake):
    m, x = mhsa(H=4, W=4, position="absolute"), randn(2, 6, 4, 4)
    right = dict(swapped=False, transposed=False, scaled=True)
    torch.testing.assert_close(Circulating(m, **right)(x), m(x))
    wrong = {"swapped": dict(swapped=True), "transposed": dict(transposed=True), "unscaled": dict(scaled=False)}
    assert not torch.allclose(Circulating(m, **{**right, **wrong[mistake]})(x), m(x), atol=1e-3)


def test_trap_one_position_of_the_image_for_all_heads_or_batch_items():
    """Items of a batch do not share logits, heads share vectors but not logits."""
    m, x = mhsa(H=3, W=4), randn(2, 6, 3, 4)
    with attn_lib.trace() as t:
        m(x)
    assert not torch.allclose(t["qr"][0], t["qr"][1]) and not torch.allclose(t["qr"][:, 0], t["qr"][:, 1])


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_memory_grows_with_the_square_of_the_number_of_positions_only_for_the_positions():
    """Position logits are N × N for every head, as in the paper; without them no matrix is kept."""
    for position, least, most in (("relative", 1.9, 2.0), (None, 0.95, 1.05)):
        kept = {}
        for side in (24, 48):
            size = {} if position is None else dict(height=side, width=side)
            m = MHSA2d(8, heads=2, position=position, **size)
            kept[side**2] = measure.saved_bytes(m, torch.randn(1, 8, side, side))
        assert least < measure.fit_exponent(list(kept), list(kept.values())) <= most, (position, kept)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=6, heads=4, height=3, width=3), "channels=6 must be divisible by heads=4"),
    (dict(channels=8), "height=None must be an integer"),
    (dict(channels=8, height=3), "width=None must be an integer"),
    (dict(channels=8, height=3, width=3, position="learned"), "position='learned' must be one of"),
    (dict(channels=8, height=3, position=None), "height=3 must be left out with position=None"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        MHSA2d(**options)


def test_a_map_larger_than_the_tables_is_named():
    with pytest.raises(ValueError, match="x has W=5; it must be at most width=4"):
        mhsa(H=3, W=4)(randn(1, 6, 3, 5))
