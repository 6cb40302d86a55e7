"""Double attention against its paper, its limits, and the errors in circulation. No package that is kept well holds it.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import DoubleAttention
from tests.unit.draw import D, randn, randomised

CASES = [(8, 3, 4, 3, 5), (4, 6, 1, 2, 3), (1, 1, 5, 4, 1), (3, 2, 2, 1, 1)]  # C, m, n, H, W


def make(C=8, m=3, n=4, **options):
    return randomised(DoubleAttention(C, m=m, n=n, **options)).requires_grad_(False)


def run(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def features(conv, pixel):
    bias = [0.0] * conv.out_channels if conv.bias is None else conv.bias.tolist()
    return [b + sum(w * x for w, x in zip(row, pixel, strict=True))
            for row, b in zip(conv.weight.flatten(1).tolist(), bias, strict=True)]


def softmax(values):
    e = [math.exp(v) for v in values]
    return [v / sum(e) for v in e]


def from_the_paper(x, a2):
    """Gathering and distribution in plain numbers, one position and one descriptor at a time."""
    out = []
    for image in x:
        pixels = image.flatten(1).T.tolist()
        A, B, V = ([features(conv, p) for p in pixels] for conv in (a2.Wphi, a2.Wtheta, a2.Wrho))
        gathered = []
        for k in range(a2.n):
            weights = softmax([b[k] for b in B])
            gathered.append([sum(w * a[c] for w, a in zip(weights, A, strict=True)) for c in range(a2.m)])
        y = []
        for v, pixel in zip(V, pixels, strict=True):
            weights = softmax(v)
            z = [sum(w * g[c] for w, g in zip(weights, gathered, strict=True)) for c in range(a2.m)]
            y.append([p + f for p, f in zip(pixel, features(a2.Wz, z), strict=True)])
        out.append(torch.tensor(y, dtype=D).T.reshape(image.shape))
    return torch.stack(out)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("C", "m", "n", "H", "W"), CASES)
def test_equals_the_paper(C, m, n, H, W, bias):
    a2, x = make(C, m, n, bias=bias), randn(2, C, H, W)
    torch.testing.assert_close(a2(x), from_the_paper(x, a2), rtol=0, atol=1e-12)


class Wrong(DoubleAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        e = self.mistake
        A, B, V = (conv(x).flatten(2) for conv in (self.Wphi, self.Wtheta, self.Wrho))
        if e == "theta and rho exchanged":
            B, V = V, B
        over = {"softmax over the batch": (0, 0), "both over the positions": (2, 2),
                "both over the descriptors": (1, 1), "axes exchanged": (1, 2)}.get(e, (2, 1))
        B = B if e == "no first softmax" else B.softmax(over[0])
        V = V if e == "no second softmax" else V.softmax(over[1])
        if e == "features softmaxed too":
            A = A.softmax(2)
        if e == "scaled by 1/sqrt(m)":
            B = (self.Wtheta(x).flatten(2) * self.m**-0.5).softmax(2)
        Z = (A @ B.mT) @ V
        if e == "mean over the positions":
            Z = Z / Z.shape[2]
        y = self.Wz(Z.mT.reshape(-1, self.m, *x.shape[2:]) if e == "positions and channels mixed up"
                    else Z.unflatten(2, x.shape[2:]))
        return y if e == "no residual" else x * y if e == "a gate" else x + y


MISTAKES = ["theta and rho exchanged", "softmax over the batch", "both over the positions", "both over the descriptors",
            "axes exchanged", "no first softmax", "no second softmax", "features softmaxed too", "scaled by 1/sqrt(m)",
            "mean over the positions", "positions and channels mixed up", "no residual", "a gate"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    a2, x = make(), randn(2, 8, 3, 5)
    wrong, expected = Wrong(8, m=3, n=4).to(D), from_the_paper(x, a2)
    wrong.load_state_dict(a2.state_dict())
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    a2, x = make(), randn(2, 8, 3, 5)
    t = run(a2, x)
    assert [(n, t.dims(n)) for n in t.names()] == [
        ("phi", "B Cr N"), ("theta", "B Nk N"), ("rho", "B Nk N"), ("G", "B Cr Nk"), ("Z", "B Cr H W"),
        ("y", "B C H W")]
    torch.testing.assert_close(t["G"], torch.einsum("BiN,BjN->Bij", t["phi"], t["theta"]))
    torch.testing.assert_close(t["Z"].flatten(2), torch.einsum("Bij,BjN->BiN", t["G"], t["rho"]))
    torch.testing.assert_close(t["theta"].sum(2), torch.ones(2, 4, dtype=D))


def test_a_softmax_without_an_axis():
    """What torch does to the three axes (B, n, N) of the copies."""
    t = randn(2, 4, 15)
    with pytest.warns(UserWarning, match="Implicit dimension choice for softmax"):
        assert torch.equal(F.softmax(t), t.softmax(0))
    a2, x = make(), randn(2, 8, 3, 5)
    torch.testing.assert_close(a2(x)[:1], a2(x[:1]))  # ours: an image does not see the others


def test_what_a_position_takes_sums_to_one():
    rho = run(make(), randn(2, 8, 3, 5))["rho"]
    torch.testing.assert_close(rho.sum(1), torch.ones(2, 15, dtype=D))
    assert (rho.sum(2) - 1).abs().min() > 0.1  # and over the positions it does not


def test_the_input_is_added():
    a2, x = make(), randn(2, 8, 3, 5)
    torch.testing.assert_close(a2(x) - a2.Wz(run(a2, x)["Z"]), x)


def test_a_bias_of_theta_changes_nothing():
    a2, x = make(), randn(2, 8, 3, 5)
    y = a2(x)
    a2.Wtheta.bias = torch.nn.Parameter(randn(4))
    torch.testing.assert_close(a2(x), y, rtol=0, atol=1e-13)
    a2.Wtheta.bias, a2.Wrho.bias = None, torch.nn.Parameter(a2.Wrho.bias + randn(4))
    assert (a2(x) - y).abs().max() > 1e-2  # where one descriptor is gained another is lost


# ---- limits (more of them in limits/) --------------------------------------------------------------------------------


def test_one_descriptor_is_the_same_for_every_position():
    a2, x = make(n=1), randn(2, 8, 3, 5)
    t = run(a2, x)
    assert torch.equal(t["rho"], torch.ones(2, 1, 15, dtype=D))
    torch.testing.assert_close(t["Z"], t["G"][..., None].expand(2, 3, 3, 5))


def test_the_other_order_is_attention_with_a_matrix_of_low_rank():
    a2, x = make(8, 3, 4), randn(2, 8, 3, 5)
    t = run(a2, x)
    A = t["rho"].mT @ t["theta"]  # N × N: what a position takes of every other
    torch.testing.assert_close(A.sum(2), torch.ones(2, 15, dtype=D))
    assert (torch.linalg.matrix_rank(A) == 4).all()
    torch.testing.assert_close(t["Z"].flatten(2), t["phi"] @ A.mT)


def test_large_maps_and_large_features_do_not_overflow():
    a2, x = make().float(), 1e4 * randn(1, 8, 3, 5).float()
    assert torch.exp(a2.Wtheta(x)).isinf().any()  # without the largest taken off
    assert a2(x).isfinite().all()


def test_frames_of_a_video_may_be_stacked():
    """Nothing knows where a position is: the paper's block over space-time is this one over frames below each other."""
    a2, video = make(), randn(1, 8, 2, 3, 5)
    below, woven = a2(video.flatten(2, 3)), a2(video.transpose(2, 3).flatten(2, 3))
    torch.testing.assert_close(woven.unflatten(2, (3, 2)).transpose(2, 3).flatten(2, 3), below)


@pytest.mark.parametrize(("options", "message"), [
    (dict(m=0), "m=0 must be an integer of at least 1"),
    (dict(n=0), "n=0 must be an integer of at least 1"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        DoubleAttention(8, **options)


def test_widths_that_are_not_given_follow_the_channels():
    assert (DoubleAttention(64).m, DoubleAttention(64).n) == (16, 16)
    assert (DoubleAttention(64, m=20).n, DoubleAttention(2).m) == (20, 1)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_cost_is_linear_in_the_number_of_positions():
    a2, sides = DoubleAttention(16), [(16, 16), (16, 32), (32, 32)]
    N = [h * w for h, w in sides]
    saved = [measure.saved_bytes(lambda x: a2(x * 2), torch.randn(2, 16, *side)) for side in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.03)
    assert saved[-1] < 4 * 2 * N[-1] * 16 * 4  # a few maps
    assert measure.fit_exponent(N, [measure.flops(a2, torch.randn(2, 16, *s)) for s in sides]) == pytest.approx(1)


def test_work_is_two_products_with_the_descriptors():
    a2, N, (C, m, n) = DoubleAttention(16, m=8, n=5), 35, (16, 8, 5)
    layers = C * m + 2 * C * n + m * C
    assert measure.flops(a2, torch.randn(1, C, 5, 7)) == 2 * N * (layers + 2 * m * n)
