"""Efficient multi-scale attention against its paper, its limits, and the errors in circulation.

No package that is kept well holds it.
"""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.channel_spatial import EMAAttention
from tests.unit.draw import D, permutation, randn, randomised

CASES = [(6, 2, 4, 5), (4, 4, 3, 2), (3, 1, 1, 6), (4, 2, 5, 1), (6, 3, 1, 1)]  # C, G, H, W


def make(C=6, G=2, *, seed=0):
    return randomised(EMAAttention(C, groups=G), seed=seed).requires_grad_(False)


def run(ema, x):
    with torch.no_grad(), attn_lib.trace() as t:
        y = ema(x)
    return y, t


# ---- equation --------------------------------------------------------------------------------------------------------


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def gate_of(u, ema):
    """The gate of one group: u is a list of S maps, and so are x1 and x2."""
    S, H, W = len(u), len(u[0]), len(u[0][0])
    places = list(product(range(H), range(W)))
    W1, b1 = ema.conv1x1.weight.flatten(1).tolist(), ema.conv1x1.bias.tolist()
    rows = [[sum(u[s][i]) / W for i in range(H)] for s in range(S)]
    columns = [[sum(u[s][i][j] for i in range(H)) / H for j in range(W)] for s in range(S)]
    f_h = [[b1[s] + sum(W1[s][c] * rows[c][i] for c in range(S)) for i in range(H)] for s in range(S)]
    f_w = [[b1[s] + sum(W1[s][c] * columns[c][j] for c in range(S)) for j in range(W)] for s in range(S)]
    x1, x2, W3 = [], [], ema.conv3x3.weight.tolist()
    for s in range(S):
        far = {(i, j): u[s][i][j] * sigmoid(f_h[s][i]) * sigmoid(f_w[s][j]) for i, j in places}
        mean = sum(far.values()) / len(far)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in far.values()) / len(far) + ema.gn.eps)
        weight, bias = ema.gn.weight[s].item(), ema.gn.bias[s].item()
        x1.append({p: weight * (v - mean) / deviation + bias for p, v in far.items()})
        near = {}
        for i, j in places:
            near[i, j] = ema.conv3x3.bias[s].item()
            for c, p, q in product(range(S), range(3), range(3)):
                if 0 <= i + p - 1 < H and 0 <= j + q - 1 < W:
                    near[i, j] += W3[s][c][p][q] * u[c][i + p - 1][j + q - 1]
        x2.append(near)
    p1, p2 = ([math.exp(sum(t.values()) / len(t)) for t in x] for x in (x1, x2))
    return {p: sigmoid(sum(p1[s] / sum(p1) * x2[s][p] + p2[s] / sum(p2) * x1[s][p] for s in range(S))) for p in places}


def from_the_paper(x, ema):
    S, out = x.shape[1] // ema.groups, torch.empty_like(x)
    for b, g in product(range(len(x)), range(ema.groups)):
        part = slice(g * S, (g + 1) * S)
        for (i, j), a in gate_of(x[b, part].tolist(), ema).items():
            out[b, part, i, j] = x[b, part, i, j] * a
    return out


@pytest.mark.parametrize(("C", "G", "H", "W"), CASES)
def test_equals_the_paper(C, G, H, W):
    ema, x = make(C, G), randn(2, C, H, W)
    torch.testing.assert_close(ema(x), from_the_paper(x, ema), rtol=0, atol=1e-12)


class Wrong(EMAAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        e, (B, _, H, W), G = self.mistake, x.shape, self.groups
        if e == "groups interleaved":
            u = x.reshape(B, -1, G, H, W).transpose(1, 2).reshape(B * G, -1, H, W)
        else:
            u = x.reshape(B * G, -1, H, W)
        h, w = u.mean(3, keepdim=True), u.mean(2, keepdim=True).mT
        if e == "maxima for means":
            h, w = u.amax(3, keepdim=True), u.amax(2, keepdim=True).mT
        h, w = self.conv1x1(h), self.conv1x1(w).mT
        if e != "strips without a sigmoid":
            h, w = h.sigmoid(), w.sigmoid()
        far = u * h * w
        if e == "norm over the group":
            far = F.group_norm(far, 1, self.gn.weight, self.gn.bias)
        elif e != "no norm":
            far = self.gn(far)
        near = self.conv3x3(far if e == "branches in a row" else u)
        if e == "activation behind the 3 × 3":
            near = F.relu(near)
        pooled = [t.amax((2, 3)) if e == "maximum of the maps" else t.mean((2, 3)) for t in (far, near)]
        if e == "softmax over positions":
            p = [t.flatten(2).softmax(2).mean(2) for t in (far, near)]
        else:
            p = [t.sigmoid() if e == "sigmoid for softmax" else t.softmax(1) for t in pooled]
        far, near = (near, far) if e == "each weighs itself" else (far, near)
        a, b = (p[0][..., None, None] * near).sum(1, True), (p[1][..., None, None] * far).sum(1, True)
        A = {"one direction alone": a, "mean of both": (a + b) / 2}.get(e, a + b)
        return (u * A.sigmoid()).reshape(x.shape)


MISTAKES = ["groups interleaved", "maxima for means", "strips without a sigmoid", "norm over the group", "no norm",
            "branches in a row", "activation behind the 3 × 3", "maximum of the maps", "softmax over positions",
            "sigmoid for softmax", "each weighs itself", "one direction alone", "mean of both"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    ema, x = make(), randn(2, 6, 4, 5)
    wrong = Wrong(6, groups=2).to(D)
    wrong.load_state_dict(ema.state_dict())
    expected = from_the_paper(x, ema)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    ema, x = make(), randn(2, 6, 4, 5)
    y, t = run(ema, x)
    assert t.names() == ["x_g", "f_h", "f_w", "x_1", "x_2", "p_1", "p_2", "A", "y"]
    A = torch.einsum("gs,gshw->ghw", t["p_1"], t["x_2"]) + torch.einsum("gs,gshw->ghw", t["p_2"], t["x_1"])
    torch.testing.assert_close(t["A"][:, 0], A, rtol=0, atol=1e-13)
    gate = t["A"].sigmoid().view(2, 2, 1, 4, 5).expand(2, 2, 3, 4, 5).reshape_as(x)
    torch.testing.assert_close(y, gate * x, rtol=0, atol=1e-13)


# ---- traps -----------------------------------------------------------------------------------------------------------


def test_channels_that_do_not_divide():
    with pytest.raises(ValueError, match="channels=40 must be divisible by groups=32; 32 and 64 are"):
        EMAAttention(40)
    assert 40 // 32 > 0  # the release's check
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        torch.randn(2, 40, 4, 5).reshape(2 * 32, -1, 4, 5)
    assert EMAAttention(64).groups == 32


@pytest.mark.parametrize("G", [1, 2, 6])
def test_a_constant_map_has_no_constant_gate(G):
    """The zeros around the map are seen: only away from the border every position is like the others."""
    ema, x = make(6, G), torch.ones(1, 6, 6, 7, dtype=D) * randn(1, 6, 1, 1)
    gate = ema(x) / x
    inside = gate[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside, inside[:, :, :1, :1].expand_as(inside), rtol=0, atol=1e-12)
    assert (gate - inside[:, :, :1, :1]).abs().max() > 1e-2
    # with the border repeated in place of zeros it would be one number
    x_2 = F.conv2d(F.pad(x.view(G, -1, 6, 7), (1, 1, 1, 1), "replicate"), ema.conv3x3.weight, ema.conv3x3.bias)
    torch.testing.assert_close(x_2, x_2[:, :, :1, :1].expand_as(x_2), rtol=0, atol=1e-12)


def test_the_softmax_runs_over_the_channels_of_a_group():
    ema, x = make(), randn(2, 6, 4, 5)
    _, t = run(ema, x)
    for name in ("p_1", "p_2"):
        assert t[name].shape == (4, 3) and t.dims(name) == "B*G S"
        torch.testing.assert_close(t[name].sum(1), torch.ones(4, dtype=D))
    _, single = run(make(6, 6), x)
    assert (single["p_1"] == 1).all() and (single["p_2"] == 1).all()


def test_groups_of_one_channel_are_gated_by_the_sum_of_both_branches():
    ema, x = make(6, 6), randn(2, 6, 4, 5)
    y, t = run(ema, x)
    branches = (t["x_1"] + t["x_2"]).view_as(x)
    torch.testing.assert_close(y, x * torch.sigmoid(branches), rtol=0, atol=1e-14)


def test_a_single_pixel_of_a_single_image_is_taken():
    """One number a channel: `nn.GroupNorm` refuses it, in evaluation too."""
    ema, x = make(3, 1), randn(1, 3, 1, 1)
    torch.testing.assert_close(ema(x), from_the_paper(x, ema), rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ema.gn(x[:, :3])


def test_on_one_pixel_the_norm_is_its_bias():
    ema, x = make(), randn(2, 6, 1, 1)
    _, t = run(ema, x)
    torch.testing.assert_close(t["x_1"], ema.gn.bias[:, None, None].expand_as(t["x_1"]), rtol=0, atol=1e-12)


def test_groups_share_their_weights_and_see_nothing_of_each_other():
    ema, x, order = make(6, 3), randn(2, 6, 4, 5), permutation(3)
    groups = x.view(2, 3, 2, 4, 5)
    torch.testing.assert_close(ema(groups[:, order].reshape_as(x)).view_as(groups), ema(x).view_as(groups)[:, order])
    other = x.clone()
    other[:, :2] += 1.0
    assert torch.equal(ema(other)[:, 2:], ema(x)[:, 2:])
    assert sum(p.numel() for p in ema.parameters()) == 10 * 2 * 2 + 4 * 2


def test_a_state_of_the_release_loads():
    """Names and shapes of its `EMA(64)`."""
    shapes = {"gn.weight": (2,), "gn.bias": (2,), "conv1x1.weight": (2, 2, 1, 1), "conv1x1.bias": (2,),
              "conv3x3.weight": (2, 2, 3, 3), "conv3x3.bias": (2,)}
    assert {name: tuple(p.shape) for name, p in EMAAttention(64).state_dict().items()} == shapes


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_positions():
    """No map of positions against positions: the two products are of a vector and a map."""
    ema, sides = EMAAttention(16, groups=4), [(12, 16), (24, 16), (24, 32), (48, 32)]
    N = [h * w for h, w in sides]
    saved = [measure.saved_bytes(ema, torch.randn(2, 16, *side)) for side in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.03)
    assert saved[-1] < 6 * 4 * 2 * 16 * N[-1]
