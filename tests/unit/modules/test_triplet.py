"""Triplet attention against its paper, its limits and the release, and against the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.channel_spatial import TripletAttention, TripletBranch
from tests.unit.draw import D, permutation, randn, randomised

CASES = [(8, 7, 5, 9), (3, 3, 1, 4), (1, 5, 6, 1), (9, 7, 1, 1)]  # C, k, H, W


def make(C=8, k=7, *, seed=0, **options):
    module = TripletAttention(C, kernel_size=k, **options)
    return randomised(module, scale=0.6, seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def gate_of_the_paper(branch, planes):
    """σ(BN(f([max; mean]))) of a list of equal pictures in plain numbers, tap by tap."""
    P, Q = len(planes[0]), len(planes[0][0])
    largest = [[max(p[i][j] for p in planes) for j in range(Q)] for i in range(P)]
    mean = [[sum(p[i][j] for p in planes) / len(planes) for j in range(Q)] for i in range(P)]
    kernel, bn = branch.f.weight[0].tolist(), branch.norm
    k, gate = len(kernel[0]), []
    for i in range(P):
        gate.append([])
        for j in range(Q):
            total = sum(taps[a][b] * plane[i + a - k // 2][j + b - k // 2]
                        for plane, taps in zip((largest, mean), kernel, strict=True) for a in range(k) for b in range(k)
                        if 0 <= i + a - k // 2 < P and 0 <= j + b - k // 2 < Q)
            total = (total - bn.running_mean.item()) / math.sqrt(bn.running_var.item() + bn.eps)
            gate[-1].append(1 / (1 + math.exp(-total * bn.weight.item() - bn.bias.item())))
    return gate


def from_the_paper(x, triplet):
    out = []
    for image in x.tolist():
        C, H, W = len(image), len(image[0]), len(image[0][0])
        cw = gate_of_the_paper(triplet.cw, [[[image[c][i][j] for j in range(W)] for c in range(C)] for i in range(H)])
        hc = gate_of_the_paper(triplet.hc, [[[image[c][i][j] for c in range(C)] for i in range(H)] for j in range(W)])
        gates = [lambda c, i, j, g=cw: g[c][j], lambda c, i, j, g=hc: g[i][c]]
        if triplet.hw is not None:
            hw = gate_of_the_paper(triplet.hw, image)
            gates.append(lambda c, i, j, g=hw: g[i][j])
        out.append([[[sum(gate(c, i, j) * image[c][i][j] for gate in gates) / len(gates) for j in range(W)]
                     for i in range(H)] for c in range(C)])
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize(("C", "k", "H", "W"), CASES)
def test_equals_the_paper(C, k, H, W, spatial):
    triplet, x = make(C, k, spatial=spatial), randn(2, C, H, W)
    torch.testing.assert_close(triplet(x), from_the_paper(x, triplet), rtol=0, atol=1e-13)


class Wrong(TripletAttention):
    """The errors in circulation, one at a time."""

    mistake = None

    def gate(self, branch, p):  # p: the axis that is pooled in the place of the channels
        s_max, s_avg = p.amax(1, keepdim=True), p.mean(1, keepdim=True)
        s = torch.cat([s_avg, s_max] if self.mistake == "mean first" else [s_max, s_avg], 1)
        if self.mistake == "maximum alone":
            s = torch.cat([s_max, s_max], 1)
        kernel = branch.f.weight.mT if self.mistake == "kernels transposed" else branch.f.weight
        v = F.conv2d(s, kernel, padding=3)
        v = v if self.mistake == "no normalisation" else branch.norm(v)
        v = v.relu() if self.mistake == "ReLU before the sigmoid" else v
        return v.sigmoid()

    def forward(self, x):
        cw, hc = (self.hc, self.cw) if self.mistake == "branches exchanged" else (self.cw, self.hc)
        first = self.gate(cw, x.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
        second = self.gate(hc, x.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
        if self.mistake == "turned by another permutation":
            second = self.gate(hc, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        third = self.gate(self.hw, x)
        return {
            "summed": x * (first + second + third),
            "multiplied": x * first * second * third,
            "one sigmoid": x * ((first.logit() + second.logit() + third.logit()) / 3).sigmoid(),
            "residual added": x + x * (first + second + third) / 3,
            "spatial branch left out": x * (first + second) / 2,
        }.get(self.mistake, x * (first + second + third) / 3)


@pytest.mark.parametrize("mistake", [
    "mean first", "maximum alone", "kernels transposed", "no normalisation", "ReLU before the sigmoid",
    "branches exchanged", "turned by another permutation", "summed", "multiplied", "one sigmoid", "residual added",
    "spatial branch left out",
])
def test_the_comparison_with_the_paper_notices(mistake):
    triplet, x = make(), randn(2, 8, 8, 8)  # a cube: nothing else would notice
    wrong = Wrong(8).to(D).eval()
    wrong.load_state_dict(triplet.state_dict())
    expected = from_the_paper(x, triplet)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-13)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_three_pictures():
    triplet, x = make(), randn(2, 8, 5, 7)
    with attn_lib.trace() as t:
        y = triplet(x)
    assert t.names() == ["s_cw", "g_cw", "s_hc", "g_hc", "s_hw", "g_hw", "y"]
    assert torch.equal(t["s_cw"], torch.stack([x.amax(2), x.mean(2)], 1))                  # B 2 C W
    assert torch.equal(t["s_hc"], torch.stack([x.amax(3).mT, x.mean(3).mT], 1))            # B 2 H C
    assert torch.equal(t["s_hw"], torch.stack([x.amax(1), x.mean(1)], 1))                  # B 2 H W
    g = t["g_cw"][:, 0, :, None, :] + t["g_hc"][:, 0].mT[..., None] + t["g_hw"]
    torch.testing.assert_close(y, x * g / 3)


# ---- parameters and the release --------------------------------------------------------------------------------------


def test_three_hundred_parameters_whatever_the_channels():
    for C in (8, 512):
        assert sum(p.numel() for p in TripletAttention(C).parameters()) == 3 * (2 * 49 + 2) == 300
    triplet = TripletAttention(8)
    assert all(b.f.bias is None and b.f.kernel_size == (7, 7) and b.norm.momentum == 0.01
               for b in (triplet.cw, triplet.hc, triplet.hw))


def test_the_release_by_its_names_in_training_too():
    """It permutes x, gates it, and permutes it back."""
    triplet, x = make(), randn(3, 8, 5, 7)
    for training in (False, True):
        triplet.train(training)
        branches = []
        for branch, order in ((triplet.cw, (0, 2, 1, 3)), (triplet.hc, (0, 3, 2, 1)), (triplet.hw, (0, 1, 2, 3))):
            turned = x.permute(order)
            pooled = torch.stack([turned.max(1).values, turned.mean(1)], 1)
            v, bn = F.conv2d(pooled, branch.f.weight, padding=3), branch.norm
            mean, var = (v.mean(), v.var(correction=0)) if training else (bn.running_mean, bn.running_var)
            gate = torch.sigmoid((v - mean) / (var + bn.eps).sqrt() * bn.weight + bn.bias)
            branches.append((turned * gate).permute(order))
        torch.testing.assert_close(triplet(x), sum(branches) / 3, rtol=0, atol=1e-12)


def test_a_relu_before_the_sigmoid_leaves_no_gate_below_one_half():
    triplet, x = make(), randn(2, 8, 5, 7)
    wrong = Wrong(8).to(D).eval()
    wrong.load_state_dict(triplet.state_dict())
    wrong.mistake = "ReLU before the sigmoid"
    assert (wrong(x) / x).min() >= 0.5 - 1e-12 and (triplet(x) / x).min() < 0.4
    for branch in (triplet.cw, triplet.hc, triplet.hw):
        branch.norm.bias.fill_(-1e4)
    assert torch.equal(triplet(x), torch.zeros_like(x))


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=8, kernel_size=4), "kernel_size=4 must be odd"),
    (dict(channels=0), "channels=0 must be an integer of at least 1"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TripletAttention(**options)


# ---- symmetry --------------------------------------------------------------------------------------------------------


def test_transposing_the_input_exchanges_two_branches_and_transposes_every_kernel():
    triplet, turned, x = make(), make(), randn(2, 8, 5, 7)
    turned.cw.load_state_dict(triplet.hc.state_dict())
    turned.hc.load_state_dict(triplet.cw.state_dict())
    assert (turned(x.mT) - triplet(x).mT).abs().max() > 1e-2, "exchanged alone"
    for branch in (turned.cw, turned.hc, turned.hw):
        branch.f.weight.copy_(branch.f.weight.mT.clone())
    torch.testing.assert_close(turned(x.mT), triplet(x).mT, rtol=0, atol=1e-13)


def test_the_order_of_the_channels_matters_to_the_rotated_branches_alone():
    triplet, x, order = make(), randn(2, 8, 5, 7), permutation(8)
    assert (triplet(x[:, order]) - triplet(x)[:, order]).abs().max() > 1e-2
    torch.testing.assert_close(triplet.hw(x[:, order]), triplet.hw(x), rtol=0, atol=1e-13)
    mirrored = make()  # reversed channels are only the kernels' rows or columns reversed
    mirrored.cw.f.weight.copy_(triplet.cw.f.weight.flip(2))
    mirrored.hc.f.weight.copy_(triplet.hc.f.weight.flip(3))
    torch.testing.assert_close(mirrored(x.flip(1)), triplet(x).flip(1), rtol=0, atol=1e-13)


def test_of_few_channels_a_kernel_of_7_sees_mostly_padding():
    """Of one channel only the middle row of f's kernel over channels and columns ever counts."""
    triplet, x = make(1), randn(2, 1, 5, 9)
    before = triplet.cw(x)
    for row in (0, 1, 2, 4, 5, 6):
        triplet.cw.f.weight[:, :, row].fill_(99.0)
    assert torch.equal(triplet.cw(x), before)


def test_a_rotated_branch_can_shut_one_channel_in_some_columns():
    """What a product of a channel gate and a spatial gate cannot: here channel 0 is shut left, channel 7 right."""
    branch = randomised(TripletBranch("H", kernel_size=1), scale=0.0)
    x = torch.full((1, 8, 4, 6), -1.0, dtype=D)
    x[0, 0, :, :3] = x[0, 7, :, 3:] = 1.0
    with torch.no_grad():
        branch.f.weight.fill_(-1.0)
        branch.norm.weight.fill_(10.0)
        g = branch(x)[0, :, 0]  # C W
    assert g[0, :3].max() < 1e-3 and g[7, 3:].max() < 1e-3 and g[0, 3:].min() > 0.999 and g[7, :3].min() > 0.999
    assert torch.linalg.matrix_rank(g[[0, 7]]) == 2


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_keeps_three_thin_pictures_besides_the_input():
    C, triplet = 32, TripletAttention(32)
    for H, W in [(16, 16), (16, 48), (64, 32)]:
        faces = H * W + C * W + H * C
        kept = measure.saved_bytes(triplet, torch.randn(2, C, H, W)) / 4 / 2
        assert 4 * faces <= kept <= 7 * faces  # the pooled pair, what goes into BN, the gate: and no map of C
    sides = [(32, 32), (64, 64), (128, 128)]
    saved = [measure.saved_bytes(lambda t: triplet(t * 2), torch.randn(1, C, *side)) for side in sides]
    assert measure.fit_exponent([h * w for h, w in sides], saved) == pytest.approx(1, abs=0.1)
