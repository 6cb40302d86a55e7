"""Coordinate attention against its paper, its limits and timm, and against the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.channel_spatial import CoordinateAttention
from tests.unit.draw import D, randn, randomised
from tests.unit.reference import reference

CASES = [(12, 4, 5, 7), (6, 1, 1, 4), (7, 3, 6, 1), (4, 32, 1, 1), (16, 2, 8, 8)]  # C, r, H, W


def make(C=12, r=4, *, min_hidden=2, scale=1.0, seed=0):
    return randomised(CoordinateAttention(C, reduction=r, min_hidden=min_hidden), scale=scale, seed=seed)


# ---- equation --------------------------------------------------------------------------------------------------------


def from_the_paper(x, coord):
    """Equations 4 to 9, with the batch normalisation of Figure 2, in plain numbers: one row, one column at a time."""
    F1, Fh, Fw = (conv.weight[:, :, 0].tolist() for conv in (coord.F1, coord.Fh, coord.Fw))
    bh, bw = coord.Fh.bias.tolist(), coord.Fw.bias.tolist()
    norm = [t.tolist() for t in (coord.norm.running_mean, coord.norm.running_var, coord.norm.weight, coord.norm.bias)]

    def apply(matrix, vector):
        return [sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix]

    def delta(v):
        return v * min(max(v + 3, 0), 6) / 6

    def gate(strip, conv, bias):  # of one row or one column: its C means -> its C gates
        hidden = [delta((u - mean) / math.sqrt(var + coord.norm.eps) * gamma + beta)
                  for u, mean, var, gamma, beta in zip(apply(F1, strip), *norm, strict=True)]
        return [1 / (1 + math.exp(-a - b)) for a, b in zip(apply(conv, hidden), bias, strict=True)]

    out = []
    for image in x.tolist():
        H, W = len(image[0]), len(image[0][0])
        rows = [[sum(xc[i]) / W for xc in image] for i in range(H)]
        columns = [[sum(xc[i][j] for i in range(H)) / H for xc in image] for j in range(W)]
        gh, gw = [gate(z, Fh, bh) for z in rows], [gate(z, Fw, bw) for z in columns]
        out.append([[[xc[i][j] * gh[i][c] * gw[j][c] for j in range(W)] for i in range(H)]
                    for c, xc in enumerate(image)])
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize(("C", "r", "H", "W"), CASES)
def test_equals_the_paper(C, r, H, W):
    coord, x = make(C, r), randn(2, C, H, W)
    torch.testing.assert_close(coord(x), from_the_paper(x, coord), rtol=0, atol=1e-13)


class Wrong(CoordinateAttention):
    """The errors in circulation, one at a time. On a square map none of them stops."""

    def __init__(self, mistake, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mistake = mistake

    def forward(self, x):
        H, W = x.shape[2:]
        zh, zw = x.mean(3), x.mean(2)
        if self.mistake == "pools exchanged":
            zh, zw = zw, zh
        if self.mistake == "maximum for mean":
            zh, zw = x.amax(3), x.amax(2)
        u = self.F1(torch.cat([zh, zw], 2))
        u = u if self.mistake == "no normalisation" else self.norm(u)
        others = {"ReLU": F.relu, "ReLU6": F.relu6, "swish": F.silu, "h-sigmoid": F.hardsigmoid}
        delta = others.get(self.mistake, F.hardswish)
        fh, fw = delta(u).split([W, H] if self.mistake == "split exchanged" else [H, W], 2)
        if self.mistake == "one F for both":
            gh, gw = self.Fh(fh).sigmoid(), self.Fh(fw).sigmoid()
        elif self.mistake == "biases dropped":
            gh, gw = F.conv1d(fh, self.Fh.weight).sigmoid(), F.conv1d(fw, self.Fw.weight).sigmoid()
        else:
            gh, gw = self.Fh(fh).sigmoid(), self.Fw(fw).sigmoid()
        gh = gh[:, :, :, None]
        gw = gw[:, :, :, None] if self.mistake == "not turned back" else gw[:, :, None, :]
        return {"sum of gates": x * (gh + gw), "residual added": x + x * gh * gw}.get(self.mistake, x * gh * gw)


MISTAKES = ["pools exchanged", "maximum for mean", "no normalisation", "ReLU", "ReLU6", "swish", "h-sigmoid",
            "one F for both", "biases dropped", "not turned back", "sum of gates", "residual added"]


@pytest.mark.parametrize("mistake", [*MISTAKES, None])
def test_the_comparison_with_the_paper_notices(mistake):
    coord, x = make(), randn(3, 12, 6, 6)  # square: the size at which nothing else would notice
    wrong = Wrong(mistake, 12, reduction=4, min_hidden=2).to(D).eval()
    wrong.load_state_dict(coord.state_dict())
    off = (wrong(x) - from_the_paper(x, coord)).abs().max()
    assert off < 1e-13 if mistake is None else off > 1e-2


@pytest.mark.parametrize("mistake", ["split exchanged", "not turned back"])  # exchanged pools run even so
def test_a_map_that_is_not_square_exposes_exchanged_axes(mistake):
    wrong = Wrong(mistake, 12, reduction=4).eval()
    wrong(torch.randn(2, 12, 6, 6))
    with pytest.raises(RuntimeError, match="must match the size"):
        wrong(torch.randn(2, 12, 5, 7))


def test_taps_are_the_equations():
    coord, x = make(), randn(2, 12, 5, 7)
    with attn_lib.trace() as t:
        y = coord(x)
    assert t.names() == ["zh", "zw", "f", "gh", "gw", "y"]
    assert [t.dims(n) for n in t.names()] == ["B C H", "B C W", "B Cr H+W", "B C H", "B C W", "B C H W"]
    assert torch.equal(t["zh"], x.mean(3)) and torch.equal(t["zw"], x.mean(2)) and torch.equal(t["y"], y)
    assert torch.equal(y, x * t["gh"][..., None] * t["gw"][:, :, None])


@pytest.mark.parametrize(("C", "options", "hidden"), [
    (64, {}, 8), (256, {}, 8), (257, {}, 8), (288, {}, 9), (1024, {}, 32), (1024, dict(reduction=16), 64), (3, {}, 8),
    (64, dict(min_hidden=1), 2), (8, dict(min_hidden=1), 1), (70, dict(reduction=4, min_hidden=1), 17),
])
def test_width_of_the_hidden_layer(C, options, hidden):
    coord = CoordinateAttention(C, **options)
    assert coord.F1.weight.shape == (hidden, C, 1) and coord.F1.bias is None
    assert coord.Fh.weight.shape == coord.Fw.weight.shape == (C, hidden, 1)
    assert sum(p.numel() for p in coord.parameters()) == 3 * C * hidden + 2 * hidden + 2 * C


@pytest.mark.parametrize(("channels", "options", "message"), [
    (0, {}, "channels=0 must be an integer of at least 1"),
    (8.0, {}, "channels=8.0 must be an integer"),
    (8, dict(reduction=0), "reduction=0 must be an integer of at least 1"),
    (8, dict(min_hidden=0), "min_hidden=0 must be an integer of at least 1"),  # C/r = 0 would leave constant gates
])
def test_arguments_out_of_range(channels, options, message):
    with pytest.raises(ValueError, match=message):
        CoordinateAttention(channels, **options)


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_zero_weights_quarter():
    coord, x = make(), randn(2, 12, 5, 7)
    for p in coord.parameters():
        nn.init.zeros_(p)
    assert torch.equal(coord(x), x / 4)  # two gates at one half


def test_one_pixel_is_a_channel_gate_of_two_factors():
    coord, x = make(), randn(3, 12, 1, 1)
    f = F.hardswish(coord.norm(coord.F1(x[:, :, 0])))
    s = coord.Fh(f).sigmoid() * coord.Fw(f).sigmoid()
    torch.testing.assert_close(coord(x), x * s[..., None], rtol=0, atol=1e-14)


def test_gates_multiply_to_rank_one_in_every_channel():
    coord, x = make(), randn(2, 12, 6, 7)
    gate = coord(x) / x
    assert torch.equal(torch.linalg.matrix_rank(gate, rtol=1e-9), torch.ones(2, 12, dtype=torch.long))
    ghosts = gate[..., 1, 2] * gate[..., 4, 5] - gate[..., 1, 5] * gate[..., 4, 2]  # every 2 × 2 minor vanishes
    torch.testing.assert_close(ghosts, torch.zeros_like(ghosts), rtol=0, atol=1e-13)


# ---- symmetry --------------------------------------------------------------------------------------------------------


def test_row_gate_depends_on_the_mean_of_that_row_alone():
    coord, x = make(), randn(1, 12, 5, 7)
    other = randn(1, 12, 5, 7, seed=3)
    other = other - other.mean(3, keepdim=True) + x.mean(3, keepdim=True)  # another image, the same row means
    other[:, :, 4] += 1  # except in the last row
    with attn_lib.trace() as t:
        coord(x)
    with attn_lib.trace() as u:
        coord(other)
    torch.testing.assert_close(t["gh"][..., :4], u["gh"][..., :4], rtol=0, atol=1e-13)
    assert (t["gh"][..., 4] - u["gh"][..., 4]).abs().max() > 1e-2 < (t["gw"] - u["gw"]).abs().max()


def test_transposing_exchanges_the_two_convolutions():
    coord, x = make(), randn(2, 12, 5, 7)
    turned = make()
    turned.Fh, turned.Fw = turned.Fw, turned.Fh
    torch.testing.assert_close(turned(x.mT), coord(x).mT, rtol=0, atol=1e-13)
    assert (coord(x.mT) - coord(x).mT).abs().max() > 1e-2
    coord.Fw = coord.Fh  # one convolution for both: no longer able to tell a row from a column
    torch.testing.assert_close(coord(x.mT), coord(x).mT, rtol=0, atol=1e-13)


def test_gate_is_the_same_wherever_the_row_stands():
    """No position is encoded: what the paper calls positional is which row, never where the row is."""
    coord = make()
    x = randn(1, 12, 1, 7).expand(-1, -1, 5, -1)
    with attn_lib.trace() as t:
        coord(x)
    torch.testing.assert_close(t["gh"], t["gh"][..., :1].expand_as(t["gh"]), rtol=0, atol=1e-13)


# ---- batch normalisation ---------------------------------------------------------------------------------------------


def test_normalisation_is_over_batch_rows_and_columns_together():
    coord, x = make().train(), randn(3, 12, 5, 7)
    u = coord.F1(torch.cat([x.mean(3), x.mean(2)], 2))
    mean, var = u.mean((0, 2), keepdim=True), u.var((0, 2), unbiased=False, keepdim=True)
    gamma, beta = coord.norm.weight[:, None], coord.norm.bias[:, None]
    with attn_lib.trace() as t:
        coord(x)
    torch.testing.assert_close(t["f"], F.hardswish((u - mean) / (var + coord.norm.eps).sqrt() * gamma + beta))


def test_in_training_a_bias_of_f1_would_change_nothing():
    """The release has one. Its gradient is zero, and in evaluation it moves into BN's running mean."""
    coord, x = make().train(), randn(3, 12, 5, 7)
    expected = coord(x)
    bias = randn(len(coord.F1.weight), seed=4)
    coord.F1.bias = nn.Parameter(bias.clone())
    biased = coord(x)
    torch.testing.assert_close(biased, expected, rtol=0, atol=1e-13)
    biased.square().sum().backward()
    assert coord.F1.bias.grad.abs().max() < 1e-12 * coord.Fh.bias.grad.abs().max()
    after = coord.eval()(x)
    coord.F1.bias = None
    coord.norm.running_mean -= bias
    torch.testing.assert_close(coord(x), after, rtol=0, atol=1e-13)


def test_one_pixel_and_a_batch_of_one_can_train():
    """Two values a channel are left to normalise, z^h and z^w, and they are equal: f is delta(β)."""
    coord, x = make().train(), randn(1, 12, 1, 1)
    with attn_lib.trace() as t:
        coord(x)
    torch.testing.assert_close(t["f"], F.hardswish(coord.norm.bias)[None, :, None].expand(1, -1, 2), rtol=0, atol=1e-9)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_gates_cost_what_the_two_strips_hold():
    """FLOPs grow with H + W. So does what backward keeps, but for one map: x · gʰ, which the second product reads."""
    C, M = 32, 8
    coord = CoordinateAttention(C).eval()
    for H, W in [(16, 16), (16, 48), (64, 32), (33, 97)]:
        x = torch.randn(2, C, H, W)
        assert measure.cost(coord, x).flops == 2 * 4 * C * M * (H + W)
        kept = measure.saved_bytes(coord, x) / 4 / 2
        assert C * H * W < kept <= C * H * W + (3 * C + 4 * M) * (H + W)
    sizes = [(16, 16), (32, 32), (64, 64), (128, 128)]
    flops = [measure.cost(coord, torch.randn(1, C, *s)).flops for s in sizes]
    assert measure.fit_exponent([h * w for h, w in sizes], flops) == pytest.approx(0.5)


def test_parameters_in_mobilenet_v2_are_those_of_the_authors():
    """Their table: 3.5 million without, 3.95 million with. Eight hidden channels at least are needed to get there."""
    widths = [96] + 2 * [144] + 3 * [192] + 4 * [384] + 3 * [576] + 3 * [960]  # where the release puts it

    def added(**options):
        modules = [CoordinateAttention(C, **options) for C in widths]
        return sum(p.numel() for m in modules for p in m.parameters())

    plain = 3_504_872  # MobileNetV2, torchvision's count
    assert round((plain + added()) / 1e6, 2) == 3.95
    assert round((plain + added(min_hidden=1)) / 1e6, 2) == 3.94


# ---- reference package -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "r", "H", "W"), [(64, 8, 6, 5), (16, 2, 1, 9), (32, 1, 7, 7)])
def test_equals_timm(C, r, H, W):
    timm = reference("timm.layers.coord_attn")
    ours, x = make(C, r, scale=0.5), randn(2, C, H, W)
    theirs = timm.CoordAttn(C, rd_channels=C // r, bias=True).to(D).eval()
    with torch.no_grad():
        for a, b in ((ours.F1, theirs.conv1), (ours.Fh, theirs.conv_h), (ours.Fw, theirs.conv_w)):
            b.weight.copy_(a.weight[..., None])
            b.bias.copy_(torch.zeros(()) if a.bias is None else a.bias)
    theirs.bn1.load_state_dict(ours.norm.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(ours.train()(x), theirs.train()(x), rtol=0, atol=1e-12)


def test_timm_differs_by_default():
    timm = reference("timm.layers.coord_attn")
    theirs, ours = timm.CoordAttn(1024), CoordinateAttention(1024)
    assert theirs.conv1.out_channels == 40 and theirs.conv_h.bias is None  # C/16 · 2/3, rounded to a multiple of 8
    assert ours.F1.out_channels == 32 and ours.Fh.bias is not None
