"""Weighted Permute-MLP against its paper, its limits and einops, and against the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import EinMix
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.mlp import WeightedPermuteMLP
from tests.unit.draw import D, permutation, randn, randomised

CASES = [(6, 4, 5, 2), (6, 5, 2, 3), (4, 1, 1, 2), (8, 3, 1, 1), (5, 1, 6, 5), (9, 3, 3, None)]  # C, H, W, S


def make(C=6, H=4, W=5, S=2, *, reduction=2, seed=0, **options):
    vip = WeightedPermuteMLP(C, height=H, width=W, segments=S, reduction=reduction, **options)
    return randomised(vip, seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def affine(weights, biases, v):
    return [b + sum(w * x for w, x in zip(row, v, strict=True)) for row, b in zip(weights, biases, strict=True)]


def numbers(layer):
    """Rows and biases of a linear layer or a 1 × 1 convolution, as lists."""
    weights = layer.weight.flatten(1).tolist()
    return weights, [0.0] * len(weights) if layer.bias is None else layer.bias.tolist()


def from_the_paper(x, vip):
    """The three branches, their weights and the projection in plain numbers, one group, row and column at a time."""
    C, H, W, S = vip.channels, vip.height, vip.width, vip.segments
    maps = []
    for image in x.tolist():
        X_H, X_W, X_C, mixed, y = ([[[0.0] * W for _ in range(H)] for _ in range(C)] for _ in range(5))
        for n in range(C // S):
            for w in range(W):
                out = affine(*numbers(vip.Wh), [image[n * S + s][h][w] for h in range(H) for s in range(S)])
                for h in range(H):
                    for s in range(S):
                        X_H[n * S + s][h][w] = out[h * S + s]
            for h in range(H):
                out = affine(*numbers(vip.Ww), [image[n * S + s][h][w] for w in range(W) for s in range(S)])
                for w in range(W):
                    for s in range(S):
                        X_W[n * S + s][h][w] = out[w * S + s]
        for h in range(H):
            for w in range(W):
                for c, value in enumerate(affine(*numbers(vip.Wc), [image[c][h][w] for c in range(C)])):
                    X_C[c][h][w] = value
        branches = (X_H, X_W, X_C)
        a = [[1.0] * 3 for _ in range(C)]
        if vip.weighted:
            z = [sum(X[c][h][w] for X in branches for h in range(H) for w in range(W)) / (H * W) for c in range(C)]
            hidden = [v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in affine(*numbers(vip.W1), z)]
            logits = affine(*numbers(vip.W2), hidden)
            for c in range(C):
                e = [math.exp(logits[3 * c + k]) for k in range(3)]
                a[c] = [v / sum(e) for v in e]
        for h in range(H):
            for w in range(W):
                for c in range(C):
                    mixed[c][h][w] = sum(a[c][k] * X[c][h][w] for k, X in enumerate(branches))
                for c, value in enumerate(affine(*numbers(vip.Wp), [mixed[c][h][w] for c in range(C)])):
                    y[c][h][w] = value
        maps.append(y)
    return torch.tensor(maps, dtype=D)


@pytest.mark.parametrize("options", [dict(), dict(bias=True), dict(weighted=False)], ids=str)
@pytest.mark.parametrize(("C", "H", "W", "S"), CASES)
def test_equals_the_paper(C, H, W, S, options):
    vip, x = make(C, H, W, S, **options), randn(2, C, H, W)
    torch.testing.assert_close(vip(x), from_the_paper(x, vip), rtol=1e-12, atol=1e-12)


class Wrong(WeightedPermuteMLP):
    """The errors in circulation, one at a time. On a square map each returns the right shape."""

    mistake: str | None = None

    def forward(self, x):
        S, mistake = self.segments, self.mistake
        group = "(S N)" if mistake == "segments the other way round" else "(N S)"
        columns, rows = f"B {group} H W -> B N W (H S)", f"B {group} H W -> B N H (W S)"
        back_h, back_w = f"B N W (H S) -> B {group} H W", f"B N H (W S) -> B {group} H W"
        if mistake == "W branch mixes the height":
            rows, back_w = columns, back_h
        if mistake == "H branch mixes the width":
            columns, back_h = rows, back_w
        if mistake == "H and W not put back":
            back_h = back_h.replace("H W", "W H")
        if mistake == "columns as (S H)":
            columns, back_h = columns.replace("(H S)", "(S H)"), back_h.replace("(H S)", "(S H)")
        X_H = rearrange(self.Wh(rearrange(x, columns, S=S)), back_h, S=S)
        X_W = rearrange(self.Ww(rearrange(x, rows, S=S)), back_w, S=S)
        X_C = self.Wc(x)
        X = X_H + X_W + X_C
        z = {"weights from x": x, "weights from X_C alone": X_C}.get(mistake, X).mean((2, 3))
        if mistake == "mean over W and C":
            z = X.permute(0, 2, 3, 1).flatten(2).mean(2)  # (B, H, W, C): right for (B, C, H, W)
        if mistake == "mean over the batch":
            z = z.mean(0).expand_as(z)
        act = F.relu if mistake == "ReLU for GELU" else F.gelu
        logits = self.W2(act(self.W1(z)))
        if mistake == "dropout of the logits":
            logits = F.dropout(logits, 0.1)
        a = logits.unflatten(1, (3, -1)).mT if mistake == "3 × C for C × 3" else logits.unflatten(1, (-1, 3))
        gates = {"softmax over channels": a.softmax(1), "sigmoid": a.sigmoid()}
        a = gates.get(mistake, a.softmax(2))
        a_H, a_W, a_C = a[..., None, None].unbind(2)
        X_C = X_H if mistake == "H branch twice" else X_C
        y = X if mistake == "not weighted" else a_H * X_H + a_W * X_W + a_C * X_C
        if mistake == "weights in the order C, W, H":
            y = a_C * X_H + a_W * X_W + a_H * X_C
        return y if mistake == "no projection" else self.Wp(y)


MISTAKES = ["H branch twice", "W branch mixes the height", "H branch mixes the width", "H and W not put back",
            "segments the other way round", "columns as (S H)", "weights from x", "weights from X_C alone",
            "mean over W and C", "mean over the batch", "ReLU for GELU", "3 × C for C × 3", "softmax over channels",
            "sigmoid", "weights in the order C, W, H", "not weighted", "no projection", "dropout of the logits"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    vip, x = make(6, 6, 6, 2), randn(3, 6, 6, 6)
    wrong = Wrong(6, height=6, width=6, segments=2, reduction=2).to(D)
    wrong.load_state_dict(vip.state_dict())
    wrong.mistake, expected = mistake, from_the_paper(x, vip)
    assert wrong(x).shape == expected.shape and (wrong(x) - expected).abs().max() > 1e-2
    wrong.mistake = None
    torch.testing.assert_close(wrong(x), expected, rtol=1e-12, atol=1e-12)  # and nothing else differs


@pytest.mark.parametrize("mistake", ["W branch mixes the height", "H branch mixes the width", "H and W not put back"])
def test_a_map_that_is_not_square_notices_without_a_reference(mistake):
    wrong = Wrong(6, height=4, width=5, segments=2)
    wrong.mistake = mistake
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|must match"):
        wrong(torch.randn(1, 6, 4, 5))


def test_taps_are_the_equations():
    vip, x = make(), randn(2, 6, 4, 5)
    with attn_lib.trace() as t:
        y = vip(x)
    assert t.names() == ["X_H", "X_W", "X_C", "z", "a", "m", "y"]
    assert [t.dims(n) for n in t.names()] == ["B C H W"] * 3 + ["B C", "B C 3"] + ["B C H W"] * 2
    X_H, X_W, X_C, a = (t[name] for name in ("X_H", "X_W", "X_C", "a"))
    torch.testing.assert_close(t["z"], (X_H + X_W + X_C).mean((2, 3)))
    torch.testing.assert_close(a.sum(2), torch.ones(2, 6, dtype=D))
    mixed = sum(a[:, :, k, None, None] * X for k, X in enumerate((X_H, X_W, X_C)))
    torch.testing.assert_close(t["m"], mixed)
    torch.testing.assert_close(y, vip.Wp(mixed))
    with attn_lib.trace() as t:
        make(weighted=False)(x)
    assert t.names() == ["X_H", "X_W", "X_C", "m", "y"]


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_zero_logits_weigh_the_branches_alike():
    vip, plain, x = make(), make(weighted=False), randn(2, 6, 4, 5)
    plain.load_state_dict(vip.state_dict(), strict=False)
    vip.W2.weight.fill_(0.0)
    vip.W2.bias.fill_(0.0)
    plain.Wp.weight /= 3
    torch.testing.assert_close(vip(x), plain(x))


@pytest.mark.parametrize("k", [0, 1, 2])
def test_a_large_bias_selects_one_branch(k):
    vip, x = make(), randn(2, 6, 4, 5)
    vip.W2.bias[k::3] += 1e4
    with attn_lib.trace() as t:
        y = vip(x)
    assert torch.equal(y, vip.Wp(t[("X_H", "X_W", "X_C")[k]]))


def test_without_spatial_branches_the_split_attention_is_a_gate_on_the_channel_mlp():
    """The larger of the two zero branches can be shut; the softmax over the rest is a sigmoid, as in SE."""
    vip, x = make(), randn(2, 6, 4, 5)
    for layer in (vip.Wh, vip.Ww):
        layer.weight.fill_(0.0)
    vip.W2.bias[1::3] -= 1e4
    u = vip.Wc(x)
    logits = vip.W2(F.gelu(vip.W1(u.mean((2, 3)))))
    s = (logits[:, 2::3] - logits[:, 0::3]).sigmoid()
    torch.testing.assert_close(vip(x), vip.Wp(s[:, :, None, None] * u))


def test_one_segment_shares_the_matrix_of_a_column_among_all_channels():
    vip, x = make(S=1), randn(2, 6, 4, 5)
    with attn_lib.trace() as t:
        vip(x)
    torch.testing.assert_close(t["X_H"], torch.einsum("iH,BCHW->BCiW", vip.Wh.weight, x))
    torch.testing.assert_close(t["X_W"], torch.einsum("jW,BCHW->BCHj", vip.Ww.weight, x))


def test_as_many_segments_as_channels_make_a_column_one_dense_layer():
    vip, x = make(S=6), randn(2, 6, 4, 5)
    with attn_lib.trace() as t:
        vip(x)
    weight = vip.Wh.weight.view(4, 6, 4, 6)  # h s h' s'
    torch.testing.assert_close(t["X_H"], torch.einsum("idHC,BCHW->BdiW", weight, x))


def test_one_position_is_three_channel_layers():
    vip, x = make(6, 1, 1, 6), randn(3, 6, 1, 1)
    v = x[:, :, 0, 0]
    X = torch.stack([v @ vip.Wh.weight.T, v @ vip.Ww.weight.T, v @ vip.Wc.weight[:, :, 0, 0].T], 2)
    a = vip.W2(F.gelu(vip.W1(X.sum(2)))).view(3, 6, 3).softmax(2)
    torch.testing.assert_close(vip(x)[:, :, 0, 0], (a * X).sum(2) @ vip.Wp.weight[:, :, 0, 0].T + vip.Wp.bias)


def test_plain_is_affine():
    vip, x, u = make(weighted=False, bias=True), randn(2, 6, 4, 5), randn(2, 6, 4, 5, seed=2)
    zero = vip(0 * x)
    torch.testing.assert_close(vip(2 * x - 3 * u) - zero, 2 * (vip(x) - zero) - 3 * (vip(u) - zero))


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_default_segments_make_every_layer_square_in_the_channels():
    """ViP-Small/14 of the release: 16 × 16 positions, 384 channels, `segment_dim` 16, all layers 384 × 384."""
    vip = WeightedPermuteMLP(384, height=16, width=16)
    assert vip.segments == 24 and 384 // vip.segments == 16
    assert vip.Wh.weight.shape == vip.Ww.weight.shape == vip.Wc.weight.shape[:2] == (384, 384)
    assert vip.Wh.bias is None and vip.Wc.bias is None and vip.Wp.bias is not None and vip.W1.out_features == 96


@pytest.mark.parametrize(("blocks", "dims", "millions"), [
    ((4, 3, 8, 3), (192, 384, 384, 384), 25),   # ViP-Small/7
    ((4, 3, 14, 3), (256, 256, 512, 512), 55),  # ViP-Medium/7
    ((8, 8, 16, 4), (256, 512, 512, 512), 88),  # ViP-Large/7
])
def test_parameters_of_the_networks_are_those_of_the_release(blocks, dims, millions):
    """7 × 7 patches make 32 × 32 positions, halved to 16 × 16 where the width doubles; README of the release."""

    def count(*layers):
        return sum(p.numel() for layer in layers for p in layer.parameters())

    total = count(nn.Conv2d(3, dims[0], 7), nn.Conv2d(dims[0], 2 * dims[0], 2), nn.LayerNorm(dims[-1]),
                  nn.Linear(dims[-1], 1000))
    for n, C in zip(blocks, dims, strict=True):
        side = 32 if C == dims[0] else 16
        layers = [WeightedPermuteMLP(C, height=side, width=side), nn.Linear(C, 3 * C), nn.Linear(3 * C, C)]
        total += n * count(*layers, nn.LayerNorm(C), nn.LayerNorm(C))
    assert round(total / 1e6) == millions


@pytest.mark.parametrize(("C", "H", "W", "S", "r"), [(12, 4, 5, 3, 4), (6, 1, 1, 6, 6), (8, 3, 2, 1, 3)])
def test_number_of_parameters(C, H, W, S, r):
    hidden = C // r

    def count(m):
        return sum(p.numel() for p in m.parameters())

    plain = make(C, H, W, S, weighted=False)
    assert count(plain) == (H * S) ** 2 + (W * S) ** 2 + 2 * C * C + C
    assert count(make(C, H, W, S, reduction=r)) == count(plain) + 4 * C * hidden + hidden + 3 * C
    assert count(make(C, H, W, S, weighted=False, bias=True)) == count(plain) + H * S + W * S + C


@pytest.mark.parametrize(("channels", "options", "message"), [
    (8, dict(height=4, width=4, segments=3), "channels=8 must be divisible by segments=3"),
    (8, dict(height=4, width=5), "segments=None must be a number where height=4 and width=5 differ"),
    (9, dict(height=4, width=4), "channels=9 must be divisible by height=4"),
    (8, dict(height=4, width=4, segments=16), "channels=8 must be divisible by segments=16"),
    (2, dict(height=2, width=2), "reduction=4 must be at most channels=2"),
    (8, dict(height=0, width=4, segments=1), "height=0 must be an integer of at least 1"),
    (8, dict(height=4, width=4.0, segments=1), "width=4.0 must be an integer"),
])
def test_arguments_out_of_range(channels, options, message):
    with pytest.raises(ValueError, match=message):
        WeightedPermuteMLP(channels, **options)


@pytest.mark.parametrize(("shape", "message"), [
    ((1, 6, 5, 5), "axis H must be 4, not 5"),
    ((1, 6, 4, 4), "axis W must be 5, not 4"),
    ((1, 6, 5, 4), "axis H must be 4, not 5"),
    ((1, 4, 5, 6), "axis C must be 6, not 4"),  # (B, H, W, C), as the release takes it
])
def test_any_other_size_is_refused_by_name(shape, message):
    with pytest.raises(ValueError, match=message):
        make()(randn(*shape))


# ---- symmetry --------------------------------------------------------------------------------------------------------


def test_an_output_depends_on_its_row_and_column_and_through_the_weights_on_everything():
    def reach(vip):
        return torch.autograd.functional.jacobian(vip, randn(1, 6, 4, 5))[0, :, 2, 1, 0].abs().sum((0, 1)) > 0

    cross = torch.zeros(4, 5, dtype=torch.bool)
    cross[2], cross[:, 1] = True, True
    assert torch.equal(reach(make(weighted=False)), cross)
    assert reach(make()).all()


def test_rows_and_columns_change_places_with_their_matrices():
    vip, x = make(), randn(2, 6, 4, 5)
    turned = make(6, 5, 4, 2)
    state = vip.state_dict()
    state["Wh.weight"], state["Ww.weight"] = state["Ww.weight"], state["Wh.weight"]
    for name in ("W2.weight", "W2.bias"):
        state[name] = rearrange(state[name], "(C M) ... -> C M ...", M=3)[:, [1, 0, 2]].flatten(0, 1)
    turned.load_state_dict(state)
    torch.testing.assert_close(turned(x.mT), vip(x).mT)


def test_permuting_rows_and_columns_along_with_the_weights_changes_nothing():
    """Why shuffled images are as good as any other: each shuffle only renames weights."""
    vip, x = make(), randn(2, 6, 4, 5)
    rows, cols = (permutation(n, seed=3) for n in (4, 5))
    renamed = make()
    renamed.load_state_dict(vip.state_dict())
    for layer, order in ((renamed.Wh, rows), (renamed.Ww, cols)):
        weight = layer.weight.view(len(order), 2, len(order), 2)
        layer.weight.copy_(weight[order][:, :, order].reshape(layer.weight.shape))

    def shuffle(t):
        return t[:, :, rows][..., cols]

    torch.testing.assert_close(renamed(shuffle(x)), shuffle(vip(x)))
    assert (vip(shuffle(x)) - shuffle(vip(x))).abs().max() > 1e-2  # the weights left as they were


def test_shifts_do_not_pass_through():
    vip, x = make(6, 6, 6, 1), torch.zeros(1, 6, 6, 6, dtype=D)
    x[:, :, 2, 2] = 1.0
    assert (vip(x.roll(1, 3)) - vip(x).roll(1, 3))[..., 1:-1, 1:-1].abs().max() > 1e-2


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_grows_with_the_positions_not_with_their_pairs():
    sides = [(8, 8), (8, 16), (16, 16), (16, 32), (32, 32)]
    saved = []
    for H, W in sides:
        vip = WeightedPermuteMLP(16, height=H, width=W, segments=1)
        saved.append(measure.saved_bytes(vip, torch.randn(2, 16, H, W)))
    N = [H * W for H, W in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.02)
    assert all(bytes <= 4 * 2 * 16 * (6 * n + 16) for n, bytes in zip(N, saved, strict=True))  # six maps


@pytest.mark.parametrize(("C", "H", "W", "S"), [(16, 4, 6, 4), (12, 5, 3, 1)])
def test_flops(C, H, W, S):
    vip, N = WeightedPermuteMLP(C, height=H, width=W, segments=S), H * W
    layers = 2 * C * N * (H * S + W * S + 2 * C) + 2 * 4 * C * (C // 4)
    assert measure.cost(vip, torch.randn(1, C, H, W)).flops == layers


# ---- reference package -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "H", "W", "S"), [(6, 4, 5, 2), (6, 3, 3, 6), (8, 2, 7, 1)])
def test_branches_equal_the_mixing_layers_of_einops(C, H, W, S):
    """einops' own documentation writes this layer with `EinMix`, without the weighting."""
    plain, x = make(C, H, W, S, weighted=False), randn(2, C, H, W)
    rows = EinMix("B (G S) H W -> B (G s) H j", weight_shape="j s W S", W=W, j=W, S=S, s=S).to(D)
    columns = EinMix("B (G S) H W -> B (G s) i W", weight_shape="i s H S", H=H, i=H, S=S, s=S).to(D)
    channels = EinMix("B C H W -> B O H W", weight_shape="O C", C=C, O=C).to(D)
    with torch.no_grad():
        columns.weight.copy_(plain.Wh.weight.reshape(columns.weight.shape))
        rows.weight.copy_(plain.Ww.weight.reshape(rows.weight.shape))
        channels.weight.copy_(plain.Wc.weight.reshape(channels.weight.shape))
        torch.testing.assert_close(plain(x), plain.Wp(columns(x) + rows(x) + channels(x)))
