"""Multi-scale selective fusion against its paper and the release, and against the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.fusion import MultiScaleSelectiveFusion
from tests.unit.draw import D, permutation, randn, randomised

CASES = [(6, 4, 3, 5), (3, 4, 2, 2), (1, 2, 1, 4), (4, 1, 2, 3), (2, 5, 1, 1)]  # C, M, H, W


def make(C=6, M=4, *, scale=1.0, **options):
    return randomised(MultiScaleSelectiveFusion(C, scales=M, **options), scale=scale).requires_grad_(False)


def run(module, maps):
    with attn_lib.trace() as t:
        module(*maps)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def from_the_paper(maps, msf):
    """In plain numbers, one image, channel and position at a time. Takes (M, B, C, H, W)."""
    Wm, Wp, norm = msf.Wm.tolist(), msf.Wp.weight.flatten(1).tolist(), msf.norm
    M, B, C, H, W = maps.shape
    y = torch.empty(B, C, H, W, dtype=D)
    for b in range(B):
        image = maps[:, b].tolist()
        z = [[sum(map(sum, channel)) / (H * W) for channel in part] for part in image]
        s = [[1 / (1 + math.exp(-sum(w * v for w, v in zip(row, z[m], strict=True)))) for row in Wm[m]]
             for m in range(M)]
        for i in range(H):
            for j in range(W):
                mixed = []
                for c in range(C):
                    e = [math.exp(s[m][c]) for m in range(M)]
                    mixed.append(sum(e[m] / sum(e) * image[m][c][i][j] for m in range(M)))
                for c in range(C):
                    v = sum(w * x for w, x in zip(Wp[c], mixed, strict=True)) - norm.running_mean[c].item()
                    v *= norm.weight[c].item() / math.sqrt(norm.running_var[c].item() + norm.eps)
                    y[b, c, i, j] = max(0.0, v + norm.bias[c].item())
    return y


@pytest.mark.parametrize(("C", "M", "H", "W"), CASES)
def test_equals_the_paper(C, M, H, W):
    msf, maps = make(C, M), randn(M, 2, C, H, W)
    torch.testing.assert_close(msf(*maps), from_the_paper(maps, msf), rtol=0, atol=1e-12)


class Wrong(MultiScaleSelectiveFusion):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, *maps):
        e, y = self.mistake, torch.stack(maps, 1)
        z = {"maximum for mean": y.amax((3, 4)), "mean of all scales": y.mean((1, 3, 4)).unsqueeze(1).expand(
            -1, len(maps), -1)}.get(e, y.mean((3, 4)))
        W = self.Wm[:1].expand_as(self.Wm) if e == "one matrix for all scales" else self.Wm
        s = torch.einsum("BMi,MCi->BMC", z, W)
        s = {"no sigmoid": s, "ReLU for sigmoid": s.relu(), "score a scale": s.mean(2, keepdim=True).expand_as(s)
             }.get(e, s.sigmoid())
        w = {"no softmax": s, "softmax over the channels": s.softmax(2), "divided by their sum": s / s.sum(1, True)
             }.get(e, s.softmax(1))
        mixed = (w[..., None, None] * y).sum(1)
        if e == "first input added":
            mixed = mixed + maps[0]
        projected = self.norm(self.Wp(mixed))
        return {"no ReLU": projected, "no projection": mixed, "no norm": self.Wp(mixed).relu()}.get(e, projected.relu())


MISTAKES = ["maximum for mean", "mean of all scales", "one matrix for all scales", "no sigmoid", "ReLU for sigmoid",
            "score a scale", "no softmax", "softmax over the channels", "divided by their sum", "first input added",
            "no ReLU", "no projection", "no norm"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    msf, maps = make(), randn(4, 2, 6, 3, 5)
    wrong, expected = Wrong(6).to(D).eval(), from_the_paper(maps, msf)
    wrong.load_state_dict(msf.state_dict())
    torch.testing.assert_close(wrong(*maps), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(*maps) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    msf, maps = make(), randn(4, 2, 6, 3, 5)
    t = run(msf, maps)
    assert [(n, t.dims(n)) for n in t.names()] == [("z", "B M C"), ("s", "B M C"), ("w", "B M C"), ("mixed", "B C H W"),
                                                   ("y", "B C H W")]
    torch.testing.assert_close(t["w"].sum(1), torch.ones(2, 6, dtype=D))
    torch.testing.assert_close(t["mixed"], torch.einsum("BMC,MBCHW->BCHW", t["w"], maps))


# ---- release ---------------------------------------------------------------------------------------------------------


def release(maps, msf, biases, training):
    """The scores as they run: a 1 × 1 convolution with a bias, batch norm and ReLU for each scale; then as above."""
    C, s = msf.channels, []
    for m, y in enumerate(maps):
        part = slice(m * C, (m + 1) * C)
        norm = nn.BatchNorm2d(C).to(D).train(training)
        norm.weight.data, norm.bias.data = msf.score_norm.weight[part], msf.score_norm.bias[part]
        norm.running_mean.copy_(msf.score_norm.running_mean[part] + biases[m])  # what it has seen holds the bias
        norm.running_var.copy_(msf.score_norm.running_var[part])
        s.append(F.relu(norm(F.conv2d(F.adaptive_avg_pool2d(y, 1), msf.Wm[m][:, :, None, None], biases[m]))))
    w = torch.softmax(torch.sigmoid(torch.cat(s, 2)), 2)
    mixed = sum(w[:, :, m, None] * y for m, y in enumerate(maps))
    return F.relu(msf.norm(F.conv2d(mixed, msf.Wp.weight)))


@pytest.mark.parametrize("training", [False, True])
def test_score_norm_is_the_release_as_it_runs(training):
    msf, maps = make(score_norm=True), randn(4, 3, 6, 3, 5)
    msf.score_norm.train(training)
    torch.testing.assert_close(msf(*maps), release(maps, msf, randn(4, 6), training), rtol=0, atol=1e-12)


def test_scores_of_the_release_leave_less_to_choose():
    maps = 100 * randn(4, 50, 6, 3, 5)
    for options, least, most in ((dict(), 0.109, 0.476), (dict(score_norm=True), 0.168, 0.355)):
        w = run(make(scale=3.0, **options), maps)["w"]
        assert least < w.min() < least + 0.01 and most - 0.01 < w.max() < most


def test_a_batch_of_one_has_no_normalised_scores():
    maps = randn(4, 1, 6, 3, 5).float()
    with pytest.raises(ValueError, match="x is a batch of 1; in training it must hold 2 images or more"):
        MultiScaleSelectiveFusion(6, score_norm=True)(*maps)
    assert MultiScaleSelectiveFusion(6, score_norm=True).eval()(*maps).shape == maps[0].shape
    assert MultiScaleSelectiveFusion(6)(*maps).shape == maps[0].shape


def test_score_norm_works_in_half_precision_compiled_and_backward():
    msf, maps = MultiScaleSelectiveFusion(6, score_norm=True), torch.randn(4, 3, 6, 7, 5)
    msf(*maps).sum().backward()
    assert all(p.grad is not None for p in msf.parameters())
    half = MultiScaleSelectiveFusion(6, score_norm=True).half()
    assert half(*(300 * maps).half()).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert msf(*maps).isfinite().all()
    compiled = torch.compile(msf.eval(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*maps), msf(*maps))


# ---- limits (more of them in limits/) --------------------------------------------------------------------------------


@pytest.mark.parametrize("M", [2, 3, 4, 8])
def test_no_input_is_ever_chosen_alone(M):
    e = math.e
    w = run(make(6, M, scale=3.0), 100 * randn(M, 50, 6, 2, 2))["w"]
    assert 1 / (1 + (M - 1) * e) <= w.min() + 1e-9 and w.max() <= e / (e + M - 1) + 1e-9
    assert w.max() > e / (e + M - 1) - 0.01  # and the cap is reached
    if M == 4:
        assert round(e / (e + 3), 3) == 0.475 and round(1 / (1 + 3 * e), 3) == 0.109


def test_equal_inputs_come_through_whatever_the_weights_say():
    msf, x = make(), randn(2, 6, 3, 5)
    torch.testing.assert_close(run(msf, [x] * 4)["mixed"], x)


def test_exchanging_inputs_and_their_matrices_changes_nothing():
    msf, maps, order = make(), randn(4, 2, 6, 3, 5), permutation(4)
    y = msf(*maps)
    assert (msf(*maps[order]) - y).abs().max() > 1e-2
    msf.Wm.copy_(msf.Wm[order])
    torch.testing.assert_close(msf(*maps[order]), y)


@pytest.mark.parametrize(("shapes", "message"), [
    ([(2, 6, 3, 5)] * 3, "3 inputs were given; there must be scales=4"),
    ([(2, 6, 3, 5)] * 3 + [(2, 6, 5, 3)], r"y_1 \(2, 6, 3, 5\) and y_4 \(2, 6, 5, 3\) must have the same shape"),
    ([(2, 6, 3, 5)] * 2 + [(2, 5, 3, 5)] * 2, "y_3 has shape .* axis C must be 6, not 5"),
    ([(2, 6, 3, 5)] + [(1, 6, 3, 5)] * 3, "must have the same shape"),
])
def test_inputs_that_do_not_fit(shapes, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleSelectiveFusion(6)(*(torch.randn(shape) for shape in shapes))


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_keeps_three_maps_whatever_the_number_of_inputs():
    sides = [(16, 16), (16, 32), (32, 32)]
    for M in (2, 4):
        msf = MultiScaleSelectiveFusion(16, scales=M)
        saved = [measure.saved_bytes(msf, [torch.randn(2, 16, *side) for _ in range(M)]) for side in sides]
        assert measure.fit_exponent([h * w for h, w in sides], saved) == pytest.approx(1, abs=0.05)
        assert saved[-1] < 4 * 2 * 16 * 32 * 32 * 3.2  # the mixture, its projection, the output; the inputs are there
