"""Multi-feature extraction against its paper and the release, and against the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.fusion import MultiFeatureExtraction
from tests.unit.draw import D, randn, randomised

CASES = [(3, (2, 4, 8), 4, 5), (2, (2,), 1, 3), (1, (), 2, 2), (4, (1, 3), 1, 1)]  # C, rates, H, W


def make(C=4, rates=(2, 4, 8), *, scale=0.5, **options):
    return randomised(MultiFeatureExtraction(C, atrous_rates=rates, **options), scale=scale).requires_grad_(False)


def run(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def bn_relu(v, bn, c):
    v = (v - bn.running_mean[c].item()) / math.sqrt(bn.running_var[c].item() + bn.eps)
    return max(0.0, v * bn.weight[c].item() + bn.bias[c].item())


def dilated(x, conv, bn, rate):
    """3 × 3 convolution, batch norm and ReLU of lists C × H × W, one tap at a time; zeros outside."""
    C, H, W, kernel = len(x), len(x[0]), len(x[0][0]), conv.weight.tolist()

    def at(c, i, j):
        return x[c][i][j] if 0 <= i < H and 0 <= j < W else 0.0

    return [[[bn_relu(sum(kernel[o][c][p][q] * at(c, i + rate * (p - 1), j + rate * (q - 1))
                          for c in range(C) for p in range(3) for q in range(3)), bn, o)
              for j in range(W)] for i in range(H)] for o in range(C)]


def add(a, b):
    return (torch.tensor(a, dtype=D) + torch.tensor(b, dtype=D)).tolist()


def from_the_paper(x, mfe):
    rates, C, H, W = (1, *mfe.atrous_rates), *x.shape[1:]
    Wm, Wp, out = mfe.Wm.tolist(), mfe.Wp.weight.flatten(1).tolist(), torch.empty_like(x)
    for b, image in enumerate(x.tolist()):
        maps, before = [], [[[0.0] * W for _ in range(H)] for _ in range(C)]
        for rate, (conv, bn, _) in zip(rates, mfe.branches, strict=True):
            before = dilated(add(before, image), conv, bn, rate)
            maps.append(before)
        z = [[sum(map(sum, channel)) / (H * W) for channel in y] for y in maps]
        s = [[1 / (1 + math.exp(-sum(w * v for w, v in zip(row, z_m, strict=True)))) for row in W_m]
             for W_m, z_m in zip(Wm, z, strict=True)]
        for i in range(H):
            for j in range(W):
                mixed = []
                for c in range(C):
                    e = [math.exp(s_m[c]) for s_m in s]
                    chosen = sum(e_m / sum(e) * y[c][i][j] for e_m, y in zip(e, maps, strict=True))
                    mixed.append(chosen + image[c][i][j])
                for o in range(C):
                    out[b, o, i, j] = bn_relu(sum(w * v for w, v in zip(Wp[o], mixed, strict=True)), mfe.norm, o)
    return out


@pytest.mark.parametrize(("C", "rates", "H", "W"), CASES)
def test_equals_the_paper(C, rates, H, W):
    mfe, x = make(C, rates), randn(2, C, H, W)
    torch.testing.assert_close(mfe(x), from_the_paper(x, mfe), rtol=0, atol=1e-12)


class Wrong(MultiFeatureExtraction):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        e, maps = self.mistake, []
        for branch in self.branches:
            before = {"side by side": [], "input not added again": maps}.get(e, maps)
            into = before[-1] if before and e == "input not added again" else before[-1] + x if before else x
            if e == "first rate is 2" and not maps:
                y = branch[2](branch[1](F.conv2d(into, branch[0].weight, padding=2, dilation=2)))
            else:
                y = branch(into)
            maps.append(y)
        if e == "first branch left out of the sum":
            maps = [torch.zeros_like(x), *maps[1:]]
        y = torch.stack(maps, 1)
        s = torch.einsum("BMi,MCi->BMC", y.mean((3, 4)), self.Wm)
        weights = {"softmax over the channels": s.sigmoid().softmax(2), "no sigmoid": s.softmax(1),
                   "equal weights": torch.full_like(s, 1 / len(maps)), "no softmax": s.sigmoid()}
        w = weights.get(e, s.sigmoid().softmax(1))
        mixed = (w[..., None, None] * y).sum(1)
        if e == "added behind the projection":
            return x + self.norm(self.Wp(mixed)).relu()
        mixed = mixed if e == "no input" else mixed + x
        return self.norm(self.Wp(mixed)) if e == "no ReLU" else self.norm(self.Wp(mixed)).relu()


MISTAKES = ["side by side", "input not added again", "first rate is 2", "first branch left out of the sum",
            "softmax over the channels", "no sigmoid", "equal weights", "no softmax", "added behind the projection",
            "no input", "no ReLU"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    mfe, x = make(4, (2, 3)), randn(2, 4, 5, 6)
    wrong, expected = Wrong(4, atrous_rates=(2, 3)).to(D).eval(), from_the_paper(x, mfe)
    wrong.load_state_dict(mfe.state_dict())
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-3


def test_every_branch_sees_the_input_again():
    mfe, x = make(), randn(2, 4, 9, 9)
    t = run(mfe, x)
    before = torch.zeros_like(x)
    for branch, name in zip(mfe.branches, ("y_m", "y_m:2", "y_m:3", "y_m:4"), strict=True):
        assert torch.equal(t[name], branch(before + x))
        before = t[name]


def test_branches_reach_3_7_15_and_31_pixels():
    mfe, x = make(2, scale=1.0), randn(1, 2, 33, 33).requires_grad_()
    assert [branch[0].dilation for branch in mfe.branches] == [(1, 1), (2, 2), (4, 4), (8, 8)]
    for layer in mfe.modules():  # no ReLU may stand in the way
        if isinstance(layer, nn.Conv2d):
            layer.weight.abs_()
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.abs_()
            layer.bias.fill_(100.0)
    t = run(mfe, x)
    for name, reach in (("y_m", 3), ("y_m:2", 7), ("y_m:3", 15), ("y_m:4", 31)):
        seen = torch.autograd.grad(t[name][0, :, 16, 16].sum(), x, retain_graph=True)[0].abs().sum((0, 1)) > 0
        rows = seen.any(1).nonzero().flatten()
        assert rows[-1] - rows[0] + 1 == reach


def test_no_output_is_negative():
    mfe, x = make(), randn(2, 4, 5, 7)
    assert (mfe(x) >= 0).all() and (mfe(x) == 0).any()  # what is negative in x cannot pass by


def release(x, mfe, biases):
    """The scores as they run: with a bias, batch norm and ReLU for each branch, in evaluation mode; then as above."""
    C, maps, before, s = mfe.channels, [], torch.zeros_like(x), []
    for rate, (conv, bn, _) in zip((1, *mfe.atrous_rates), mfe.branches, strict=True):
        before = F.relu(bn(F.conv2d(before + x, conv.weight, padding=rate, dilation=rate)))
        maps.append(before)
    for m, y in enumerate(maps):
        part, norm = slice(m * C, (m + 1) * C), mfe.score_norm
        score = F.conv2d(F.adaptive_avg_pool2d(y, 1), mfe.Wm[m][:, :, None, None], biases[m])
        seen = norm.running_mean[part] + biases[m]  # what it has seen holds the bias
        s.append(F.relu(F.batch_norm(score, seen, norm.running_var[part], norm.weight[part], norm.bias[part])))
    w = torch.softmax(torch.sigmoid(torch.cat(s, 2)), 2)
    return F.relu(mfe.norm(mfe.Wp(sum(w[:, :, m, None] * y for m, y in enumerate(maps)) + x)))


def test_score_norm_is_the_release_as_it_runs():
    mfe, x = make(score_norm=True), randn(2, 4, 5, 7)
    torch.testing.assert_close(mfe(x), release(x, mfe, randn(4, 4)), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="x is a batch of 1; in training"):
        MultiFeatureExtraction(4, score_norm=True)(torch.randn(1, 4, 5, 7))


def test_taps_are_the_equations():
    mfe, x = make(), randn(2, 4, 5, 7)
    t = run(mfe, x)
    assert t.names() == ["y_m", "y_m:2", "y_m:3", "y_m:4", "z", "s", "w", "mixed", "y"]
    maps = [t[name] for name in t.names()[:4]]
    torch.testing.assert_close(t["z"], torch.stack([y.mean((2, 3)) for y in maps], 1))
    torch.testing.assert_close(t["mixed"], x + sum(w[..., None, None] * y
                                                   for w, y in zip(t["w"].unbind(1), maps, strict=True)))


@pytest.mark.parametrize(("rates", "message"), [
    ((2, 0), "atrous_rates=0 must be an integer of at least 1"),
    (3, "atrous_rates=3 must hold one integer a branch"),
    ((2.0,), r"atrous_rates=2\.0 must be an integer"),
])
def test_arguments_out_of_range(rates, message):
    with pytest.raises(ValueError, match=message):
        MultiFeatureExtraction(4, atrous_rates=rates)


def test_memory_is_linear_in_the_number_of_positions():
    mfe, sides = MultiFeatureExtraction(16), [(16, 16), (16, 32), (32, 32)]
    N = [h * w for h, w in sides]
    saved = [measure.saved_bytes(mfe, torch.randn(2, 16, *side)) for side in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.05)
    assert measure.fit_exponent(N, [measure.flops(mfe, torch.randn(2, 16, *s)) for s in sides]) == pytest.approx(
        1, abs=0.01)
