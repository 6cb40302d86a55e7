"""Criss-cross attention against its equations, its limits, its symmetries, its memory, and known mistakes."""

import math

import pytest
import torch
from torch.testing import assert_close

import attn_lib
from attn_lib import measure
from attn_lib.ops import attend
from attn_lib.spatial import CrissCrossAttention
from tests.unit.draw import randn, randomised

SIZES = [(3, 4), (4, 3), (5, 5), (1, 6), (6, 1), (1, 1)]


def criss_cross(channels=4, *, reduction=2, recurrence=2, gamma=1.0, seed=0):
    module = randomised(CrissCrossAttention(channels, reduction=reduction, recurrence=recurrence), scale=0.5, seed=seed)
    module.gamma.data.fill_(gamma)
    return module


def cross(u, H, W):
    """The H+W−1 positions of the row and the column of u, each once: the index set of Ω_u and Φ_u."""
    y, x = u
    return [(i, x) for i in range(H) if i != y] + [(y, j) for j in range(W)]


def equations(module, features):
    """Eqs. 1 and 2 with loops over everything, R times, for one image (C, H, W). Also the last loop's A."""

    def convolve(weight, bias, vector):
        return [sum(w * v for w, v in zip(row, vector, strict=True)) + b
                for row, b in zip(weight[:, :, 0, 0].tolist(), bias.tolist(), strict=True)]

    C, H, W = features.shape
    feature = {(y, x): features[:, y, x].tolist() for y in range(H) for x in range(W)}
    for _ in range(module.recurrence):
        Q, K, V = ({u: convolve(conv.weight, conv.bias, h) for u, h in feature.items()}
                   for conv in (module.Wq, module.Wk, module.Wv))
        A, after = {}, {}
        for u, h in feature.items():
            d = {i: sum(q * k for q, k in zip(Q[u], K[i], strict=True)) for i in cross(u, H, W)}
            total = sum(math.exp(value) for value in d.values())
            A[u] = {i: math.exp(value) / total for i, value in d.items()}
            context = [sum(A[u][i] * V[i][c] for i in A[u]) for c in range(C)]
            after[u] = [module.gamma.item() * context[c] + h[c] for c in range(C)]
        feature = after
    flat = [[feature[y, x][c] for x in range(W)] for c in range(C) for y in range(H)]
    return torch.tensor(flat, dtype=torch.float64).reshape(C, H, W), A


# Proof 1: the equations


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("recurrence", [1, 2, 3])
def test_equations(size, recurrence):
    module, x = criss_cross(recurrence=recurrence, gamma=0.7), randn(2, 4, *size)
    expected = torch.stack([equations(module, image)[0] for image in x])
    assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_attention_map_lies_where_the_docstring_says(size):
    H, W = size
    module, x = criss_cross(recurrence=1), randn(1, 4, H, W)
    with attn_lib.trace() as t:
        module(x)
    _, A = equations(module, x[0])
    for (y, c), weights in A.items():
        expected = torch.zeros(H + W, dtype=torch.float64)
        for (i, j), a in weights.items():
            expected[H + j if i == y else i] = a
        assert_close(t["A"][0, y, c], expected, rtol=1e-12, atol=1e-12)


# Proof 2: limit cases


def test_a_fresh_module_is_the_identity_bit_for_bit():
    module, x = CrissCrossAttention(16), randn(2, 16, 5, 7).float()
    assert torch.equal(module(x), x)


def test_at_the_start_only_gamma_learns():
    module, x = CrissCrossAttention(16), randn(2, 16, 5, 7).float()
    module(x).square().sum().backward()
    moved = {name for name, p in module.named_parameters() if p.grad.abs().sum() > 0}
    assert moved == {"gamma"}


@pytest.mark.parametrize("recurrence", [1, 2])
@pytest.mark.parametrize("axis", [2, 3], ids=["one column", "one row"])
def test_a_single_row_or_column_is_full_self_attention(axis, recurrence):
    module = criss_cross(recurrence=recurrence)
    x = randn(2, 4, 1, 9).transpose(3, axis)
    expected = x
    for _ in range(recurrence):
        q, k, v = (conv(expected).flatten(2).transpose(1, 2) for conv in (module.Wq, module.Wk, module.Wv))
        expected = expected + attend(q, k, v, scale=1.0).transpose(1, 2).reshape(x.shape)
    assert_close(module(x), expected)


def test_one_position_attends_to_itself():
    module, x = criss_cross(recurrence=1, gamma=0.3), randn(2, 4, 1, 1)
    assert_close(module(x), 0.3 * module.Wv(x) + x)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_constant_image_gets_uniform_attention_and_stays_constant(size):
    H, W = size
    module = criss_cross(recurrence=1)
    x = randn(2, 4, 1, 1).expand(2, 4, H, W)
    with attn_lib.trace() as t:
        y = module(x)
    weights = t["A"][t["A"] > 0]
    assert_close(weights, torch.full_like(weights, 1 / (H + W - 1)))
    assert weights.numel() == 2 * H * W * (H + W - 1)
    assert_close(y, x + module.Wv(x))


def test_keys_of_zero_average_the_cross():
    module, x = criss_cross(recurrence=1), randn(2, 4, 5, 6)
    torch.nn.init.zeros_(module.Wk.weight)
    torch.nn.init.zeros_(module.Wk.bias)
    V = module.Wv(x)
    mean = (V.sum(2, keepdim=True) + V.sum(3, keepdim=True) - V) / (5 + 6 - 1)
    assert_close(module(x), x + mean)


# Proof 3: reach and symmetry


def reach(module, H, W):
    """(HW, HW) booleans: whether output position u depends on input position v."""
    x = randn(1, module.channels, H, W)
    jacobian = torch.autograd.functional.jacobian(lambda x: module(x)[0].flatten(1), x)
    return (jacobian.flatten(3).abs().amax((0, 2)).reshape(H * W, module.channels, H * W).amax(1)) > 0


@pytest.mark.parametrize("size", [(4, 5), (1, 5), (5, 1), (2, 2)], ids=str)
def test_one_loop_reaches_the_cross_and_two_reach_everything(size):
    H, W = size
    y, x = torch.arange(H * W) // W, torch.arange(H * W) % W
    on_the_cross = (y[:, None] == y) | (x[:, None] == x)
    assert torch.equal(reach(criss_cross(recurrence=1), H, W), on_the_cross)
    assert reach(criss_cross(recurrence=2), H, W).all()


def test_off_the_cross_information_takes_exactly_the_two_corners():
    # u and v share neither row nor column: v reaches u over (u's row, v's column) and (v's row, u's column).
    module = criss_cross(recurrence=2)
    u, v = (0, 1), (3, 2)
    x = randn(1, 4, 4, 5).requires_grad_()
    between = module.loop(x)
    between.retain_grad()
    module.loop(between)[0, :, u[0], u[1]].square().sum().backward()
    through = {tuple(p) for p in (between.grad[0].abs().amax(0) > 0).nonzero().tolist()}
    assert through & set(cross(v, 4, 5)) == {(u[0], v[1]), (v[0], u[1])}


TRANSFORMS = {
    "rows permuted": lambda x: x[:, :, [2, 0, 3, 1]],
    "columns permuted": lambda x: x[..., [4, 2, 0, 1, 3]],
    "rows flipped": lambda x: x.flip(2),
    "columns flipped": lambda x: x.flip(3),
    "transposed": lambda x: x.transpose(2, 3),
    "rolled": lambda x: x.roll((1, 2), (2, 3)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_commutes(name):
    module, x, transform = criss_cross(), randn(2, 4, 4, 5), TRANSFORMS[name]
    assert_close(module(transform(x)), transform(module(x)))


def test_does_not_commute_with_exchanging_two_pixels():
    module, x = criss_cross(), randn(2, 4, 4, 5)
    order = torch.arange(20)
    order[[3, 16]] = order[[16, 3]]

    def exchange(x):
        return x.flatten(2)[..., order].reshape(x.shape)

    assert (module(exchange(x)) - exchange(module(x))).abs().max() > 1e-3


def test_recurrence_shares_its_weights():
    once, thrice = criss_cross(recurrence=1), criss_cross(recurrence=3)
    thrice.load_state_dict(once.state_dict())
    x = randn(2, 4, 4, 5)
    assert_close(thrice(x), once(once(once(x))))
    assert measure.cost(thrice, x).params == measure.cost(once, x).params


def test_gradients():
    module, x = criss_cross(), randn(1, 4, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(module, x)


# Memory: HW·(H+W) where full attention keeps (HW)²


def full_attention(module, x):
    """The same weights, every position to every position, with the matrix in memory."""
    q, k, v = (conv(x).flatten(2) for conv in (module.Wq, module.Wk, module.Wv))
    return x + (v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)).reshape(x.shape)


def kept_a_pixel(fn, sizes=(16, 32, 64)):
    return [measure.saved_bytes(fn, randn(1, 8, n, n).float()) / n**2 for n in sizes]


def test_saved_bytes_a_pixel_grow_with_the_side_of_the_image():
    small, middle, large = kept_a_pixel(CrissCrossAttention(8, recurrence=1))
    assert large - middle == pytest.approx(2 * (middle - small), rel=1e-3)  # linear in H+W
    small, middle, large = kept_a_pixel(lambda x: full_attention(CrissCrossAttention(8), x))
    assert large - middle == pytest.approx(4 * (middle - small), rel=1e-3)  # linear in HW


def test_saved_bytes_are_a_few_numbers_a_pair():
    H, W = 32, 64
    module, x = CrissCrossAttention(8, recurrence=1), randn(1, 8, H, W).float()
    numbers = measure.saved_bytes(module, x) / 4
    assert numbers < 2.5 * H * W * (H + W) + 8 * H * W * 8


# Mistakes of circulating code


def test_the_own_position_counts_once():
    H, W = 4, 6
    with attn_lib.trace() as t:
        criss_cross(recurrence=1)(randn(2, 4, H, W))
    A = t["A"]
    assert_close(A.sum(-1), torch.ones(2, H, W, dtype=torch.float64))
    assert ((A > 0).sum(-1) == H + W - 1).all()
    own_in_column = A[..., :H].diagonal(dim1=1, dim2=3)
    own_in_row = A[..., H:].diagonal(dim1=2, dim2=3)
    assert (own_in_column == 0).all() and (own_in_row > 0).all()


def test_one_softmax_over_both_axes():
    H, W = 4, 6
    with attn_lib.trace() as t:
        criss_cross(recurrence=1)(randn(2, 4, H, W))
    mass_of_column = t["A"][..., :H].sum(-1)
    assert mass_of_column.min() > 0 and mass_of_column.max() < 1 and mass_of_column.std() > 0.01


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
def test_the_mask_is_made_where_the_input_is(device):
    module, x = CrissCrossAttention(8).to(device), torch.randn(1, 8, 3, 4, device=device)
    with torch.device("meta"):  # whatever names no device lands on "meta" and cannot be mixed with x
        y = module(x)
    assert y.device == x.device and torch.isfinite(y).all()


def test_logits_are_not_scaled():
    module, x = criss_cross(channels=8, reduction=2, recurrence=1), randn(1, 8, 3, 4)
    with attn_lib.trace() as t:
        module(x)
    assert_close(t["D"][0, 1, 2, 3 + 0], t["Q"][0, :, 1, 2] @ t["K"][0, :, 1, 0])


def test_gamma_of_the_release_can_be_loaded():
    module = CrissCrossAttention(8)
    state = module.state_dict() | {"gamma": torch.tensor([0.25])}
    module.load_state_dict(state)
    assert module.gamma.item() == 0.25


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=0), "channels=0"),
    (dict(channels=8.0), "channels=8.0"),
    (dict(channels=8, reduction=0), "reduction=0"),
    (dict(channels=4), "reduction=8 must be at most channels=4"),
    (dict(channels=8, recurrence=0), "recurrence=0"),
    (dict(channels=8, recurrence=True), "recurrence=True"),
])
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        CrissCrossAttention(**options)
