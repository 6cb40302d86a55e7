"""SimAM against its paper: the energy minimised by another route, its limits, and the errors in circulation."""

import math

import pytest
import torch
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.channel_spatial import SimAM
from tests.unit.draw import D, permutation, randn

CASES = [(3, 5, 7), (1, 1, 2), (2, 1, 9), (2, 6, 1), (4, 4, 4)]  # C, H, W


def run(x, **options):
    with attn_lib.trace() as t:
        SimAM(x.shape[1], **options)(x)
    return t


# ---- the energy: its minimum found by least squares, not by the paper's algebra --------------------------------------


def least_energy(neuron, others, lam):
    """min over w, b of (1 − (w t + b))² + mean of (−1 − (w xᵢ + b))² + λ w², eq. 2: a least-squares problem.

    Each square is a row of A · (w, b) = a.
    """
    n = len(others)
    rows = [([neuron, 1.0], 1.0), ([math.sqrt(lam), 0.0], 0.0)]
    rows += [([x / math.sqrt(n), 1 / math.sqrt(n)], -1 / math.sqrt(n)) for x in others]
    A, a = (torch.tensor(side, dtype=D) for side in zip(*rows, strict=True))
    w_b = torch.linalg.lstsq(A, a, driver="gelsd").solution
    return (A @ w_b - a).square().sum().item(), *w_b.tolist()


def closed_form(neuron, others, lam):
    """Equations 5, 3 and 4 with the statistics of the given others. Equation 3 is printed with a minus sign."""
    mean = sum(others) / len(others)
    variance = sum((x - mean) ** 2 for x in others) / len(others)
    bottom = (neuron - mean) ** 2 + 2 * variance + 2 * lam
    w = 2 * (neuron - mean) / bottom
    return 4 * (variance + lam) / bottom, w, -(neuron + mean) * w / 2


@pytest.mark.parametrize("lam", [1e-4, 0.1, 3.0])
def test_the_closed_form_minimises_the_energy(lam):
    x = randn(12).tolist()
    for i, neuron in enumerate(x):
        others = x[:i] + x[i + 1 :]
        assert closed_form(neuron, others, lam) == pytest.approx(least_energy(neuron, others, lam), rel=1e-9)


def test_with_the_printed_sign_of_equation_3_the_energy_is_not_minimal():
    neuron, others, lam = 2.0, [0.0, 1.0, -1.0, 0.5], 0.1
    e, w, _ = closed_form(neuron, others, lam)

    def energy(w):
        b = -(neuron + sum(others) / 4) * w / 2  # eq. 4
        apart = (1 - (w * neuron + b)) ** 2 + sum((-1 - (w * x + b)) ** 2 for x in others) / 4
        return apart + lam * w * w

    assert energy(w) == pytest.approx(e) and energy(w) < min(energy(0.99 * w), energy(1.01 * w))
    assert energy(-w) > energy(0) == 2 > energy(w)  # worse than not separating at all


@pytest.mark.parametrize("lam", [1e-4, 0.1])
@pytest.mark.parametrize(("C", "H", "W"), CASES)
def test_biased_is_the_least_energy_with_the_neuron_among_the_others(C, H, W, lam):
    """What the paper's approximation does: all M neurons, t too, are asked to be −1."""
    x = randn(2, C, H, W)
    channels = x.flatten(2).flatten(0, 1).tolist()
    E = torch.tensor([[least_energy(t, channel, lam)[0] for t in channel] for channel in channels], dtype=D)
    torch.testing.assert_close(run(x, lam=lam, unbiased=False)["E_inv"], 1 / E.view_as(x), rtol=1e-8, atol=0)


# ---- equation --------------------------------------------------------------------------------------------------------


def from_the_paper(x, lam=1e-4, unbiased=True):
    """Equations 5 and 6 in plain numbers, one channel and one neuron at a time."""
    out = []
    for image in x.tolist():
        out.append([])
        for channel in image:
            neurons = [t for row in channel for t in row]
            M = len(neurons)
            mean = sum(neurons) / M
            variance = sum((t - mean) ** 2 for t in neurons) / (M - 1 if unbiased else M)
            e = [[4 * (variance + lam) / ((t - mean) ** 2 + 2 * variance + 2 * lam) for t in row] for row in channel]
            out[-1].append([[t / (1 + math.exp(-1 / e_t)) for t, e_t in zip(row, e_row, strict=True)]
                            for row, e_row in zip(channel, e, strict=True)])
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("lam", [1e-4, 0.1])
@pytest.mark.parametrize(("C", "H", "W"), CASES)
def test_equals_the_paper(C, H, W, lam, unbiased):
    x = 3 * randn(2, C, H, W) + 1
    y = SimAM(C, lam=lam, unbiased=unbiased)(x)
    torch.testing.assert_close(y, from_the_paper(x, lam, unbiased), rtol=0, atol=1e-13)


class Wrong(nn.Module):
    """The errors in circulation, one at a time."""

    def __init__(self, mistake):
        super().__init__()
        self.mistake = mistake

    def forward(self, x, lam=1e-4):
        axes = {"mean over channels": (1,), "mean over the batch": (0, 2, 3), "mean over rows": (3,)}
        axes = axes.get(self.mistake, (2, 3))
        d = (x - x.mean(axes, keepdim=True)).square()
        total = d.sum(axes, keepdim=True)
        n = math.prod(x.shape[a] for a in axes) - (self.mistake != "biased")
        v = total / n
        top = {"not squared": d.sqrt(), "sum in the numerator": total.expand_as(d)}.get(self.mistake, d)
        E_inv = top / ((1 if self.mistake == "no 4" else 4) * (v + (0.1 if self.mistake == "λ of ImageNet" else lam)))
        E_inv = E_inv + (0 if self.mistake == "no ½" else 0.5)
        s = 1 / E_inv if self.mistake == "energy not inverted" else E_inv
        g = {"softmax": s.flatten(2).softmax(2).view_as(s), "no sigmoid": s}.get(self.mistake, s.sigmoid())
        return x + x * g if self.mistake == "residual added" else g if self.mistake == "gate alone" else x * g


MISTAKES = ["mean over channels", "mean over the batch", "mean over rows", "biased", "not squared",
            "sum in the numerator", "no 4", "λ of ImageNet", "no ½", "energy not inverted", "softmax", "no sigmoid",
            "residual added", "gate alone"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    x = randn(2, 3, 5, 7)
    assert (Wrong(mistake)(x) - from_the_paper(x)).abs().max() > 1e-3
    torch.testing.assert_close(Wrong(None)(x), from_the_paper(x), rtol=0, atol=1e-13)  # and nothing else differs


def test_the_printed_listing_mixes_channels_and_columns():
    """Without `keepdim` the means (B, C) are lined up with (H, W): they fit where one image is as wide as C."""
    def printed(x, lam=1e-4):
        d = (x - x.mean(dim=[2, 3])).pow(2)
        v = d.sum(dim=[2, 3]) / (x.shape[2] * x.shape[3] - 1)
        return x * torch.sigmoid(d / (4 * (v + lam)) + 0.5)

    with pytest.raises(RuntimeError, match="must match the size"):
        printed(randn(2, 3, 5, 7))
    x = randn(1, 3, 5, 3)
    x[:, 0] += 3
    assert (printed(x) - from_the_paper(x)).abs().max() > 0.1
    torch.testing.assert_close(SimAM(3)(x), from_the_paper(x), rtol=0, atol=1e-13)


def test_taps_are_the_equations():
    x = randn(2, 3, 5, 7)
    t = run(x, lam=0.1)
    assert t.names() == ["mu", "d", "v", "E_inv", "g", "y"]
    assert torch.equal(t["d"], (x - t["mu"]) ** 2)
    torch.testing.assert_close(t["v"], x.var((2, 3), keepdim=True))
    torch.testing.assert_close(t["E_inv"], t["d"] / (4 * (t["v"] + 0.1)) + 0.5)
    assert torch.equal(t["y"], x * t["E_inv"].sigmoid())


def test_it_has_nothing_to_learn():
    module = SimAM(64)
    assert not list(module.parameters()) and not list(module.buffers()) and module.state_dict() == {}
    assert SimAM(64).lam == 1e-4 and SimAM(64).unbiased is True


# ---- limits ----------------------------------------------------------------------------------------------------------


HALF = torch.sigmoid(torch.tensor(0.5, dtype=D))  # 0.62…: the lowest gate there is


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 0.1])
def test_a_constant_channel_has_the_lowest_gate(value, dtype):
    x = torch.full((1, 2, 8, 8), value, dtype=dtype)
    t = run(x)
    torch.testing.assert_close(t["g"], HALF.to(dtype).expand_as(x), rtol=0, atol=1e-7)


def test_two_neurons_are_equally_distinct():
    """d = (a/2)² for both, v = a²/2, so 1/e* = 1/8 + 1/2, whatever they are."""
    E_inv = run(randn(3, 4, 1, 2), lam=1e-12)["E_inv"]
    torch.testing.assert_close(E_inv, torch.full_like(E_inv, 5 / 8), rtol=0, atol=1e-6)


@pytest.mark.parametrize("M", [2, 9, 64, 1000])
def test_a_lone_peak_has_the_highest_gate(M):
    """(x − μ)² ≤ v (M − 1)² / M in any set of M numbers (Samuelson's inequality), with equality for a lone peak."""
    highest = 0.5 + (M - 1) ** 2 / (4 * M)
    peak = torch.zeros(1, 1, 1, M, dtype=D)
    peak[..., M // 2] = 5.0
    E_inv = run(peak, lam=1e-12)["E_inv"].flatten()
    assert E_inv[M // 2].item() == pytest.approx(highest, rel=1e-6)
    for seed in range(5):
        assert run(randn(1, 3, 1, M, seed=seed).exp(), lam=1e-12)["E_inv"].max() <= highest


def test_every_channel_has_the_same_mean_distinctness():
    """The mean of 1/e* over a channel is ½ + (M − 1) / 4M: no channel can be weighed against another."""
    x = torch.cat([randn(1, 2, 6, 8), randn(1, 2, 6, 8).exp() * 20, torch.rand(1, 2, 6, 8, dtype=D) ** 9], 1)
    mean = run(x, lam=1e-12)["E_inv"].mean((2, 3))
    torch.testing.assert_close(mean, torch.full_like(mean, 0.5 + 47 / 192), rtol=0, atol=1e-6)


@pytest.mark.parametrize("C", [1, 5])
def test_instance_normalisation_before_it_leaves_an_activation_function(C):
    norm, x = nn.InstanceNorm2d(C, eps=0).to(D), 7 * randn(2, C, 6, 8) + 3
    y = SimAM(C, lam=1e-12, unbiased=False)(norm(x))
    z = norm(x)
    torch.testing.assert_close(y, z * torch.sigmoid(z**2 / 4 + 0.5), rtol=0, atol=1e-9)


# ---- exact statistics: what "all neurons" instead of "all others" changes --------------------------------------------


def exact(x, lam):
    """1/e* with the mean and variance of all others, one neuron at a time."""
    return torch.tensor([1 / closed_form(t, x[:i] + x[i + 1 :], lam)[0] for i, t in enumerate(x)], dtype=D)


@pytest.mark.parametrize(("H", "W", "largest"), [(7, 7, 0.2), (14, 14, 0.06), (28, 28, 0.02)])
def test_the_approximation_costs_little_on_large_maps(H, W, largest):
    x = randn(1, 1, H, W)
    approximate = run(x)["E_inv"].flatten()
    difference = exact(x.flatten().tolist(), 1e-4).sigmoid() - approximate.sigmoid()
    assert difference.min() > 0 and difference.max() < largest  # the neuron itself blurs what it is compared with


def test_the_approximation_keeps_the_order_but_not_the_size_of_an_outlier():
    x = randn(1, 1, 7, 7)
    x[0, 0, 3, 3] = 12.0
    approximate, true = run(x)["E_inv"].flatten(), exact(x.flatten().tolist(), 1e-4)
    assert torch.equal(approximate.argsort(), true.argsort())
    assert approximate.max() < 0.5 + 48**2 / (4 * 49) < 13 < 30 < true.max()


def test_hw_minus_1_only_scales():
    """Dividing by M − 1 multiplies v by M/(M − 1): for λ → 0 all of d/4v shrinks by that factor, and nothing else."""
    x = randn(2, 3, 4, 5)
    ours, biased = (run(x, lam=1e-15, unbiased=u)["E_inv"] - 0.5 for u in (True, False))
    torch.testing.assert_close(ours, biased * 19 / 20, rtol=1e-9, atol=1e-14)


# ---- symmetry --------------------------------------------------------------------------------------------------------


def test_gate_does_not_see_where():
    x, order = randn(2, 3, 5, 7), permutation(35)

    def shuffle(t):
        return t.flatten(2)[:, :, order].view_as(t)

    torch.testing.assert_close(SimAM(3)(shuffle(x)), shuffle(SimAM(3)(x)), rtol=0, atol=1e-13)


def test_gate_ignores_offset_and_sign_and_for_small_lambda_the_scale():
    x = randn(2, 3, 5, 7)
    g = run(x)["g"]
    torch.testing.assert_close(run(x + 5)["g"], g, rtol=0, atol=1e-12)
    torch.testing.assert_close(run(-x)["g"], g, rtol=0, atol=1e-15)
    assert (run(x / 100)["g"] - g).abs().max() > 0.05  # there λ is as large as the variance
    torch.testing.assert_close(run(x / 100, lam=1e-15)["g"], run(x, lam=1e-15)["g"], rtol=0, atol=1e-9)


def test_channels_and_images_do_not_see_each_other():
    x = randn(3, 4, 5, 7)
    together = SimAM(4)(x)
    for b in range(3):
        for c in range(4):
            assert torch.equal(SimAM(1)(x[b : b + 1, c : c + 1]), together[b : b + 1, c : c + 1])


# ---- arguments, range, memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "options", "message"), [
    (0, {}, "channels=0 must be an integer of at least 1"),
    (8.0, {}, "channels=8.0 must be an integer"),
    (8, dict(lam=0), "lam=0 must be a positive number"),
    (8, dict(lam=-1e-4), "lam=-0.0001 must be a positive number"),
    (8, dict(lam=math.inf), "lam=inf must be a positive number"),
    (8, dict(lam=math.nan), "lam=nan must be a positive number"),
    (8, dict(lam="0.1"), "lam='0.1' must be a positive number"),
    (8, dict(lam=True), "lam=True must be a positive number"),
])
def test_arguments_out_of_range(channels, options, message):
    with pytest.raises(ValueError, match=message):
        SimAM(channels, **options)


@pytest.mark.parametrize("unbiased", [True, False])
def test_one_pixel_is_refused(unbiased):
    with pytest.raises(ValueError, match="1 × 1; it must hold at least 2 positions"):
        SimAM(3, unbiased=unbiased)(randn(2, 3, 1, 1))
    assert SimAM(3)(randn(2, 3, 1, 2)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 1000.0])
def test_half_precision_over_its_whole_range(dtype, scale):
    """In float16 (x − μ)² is infinite from 256 on, and its sum over the map far earlier; in float32 neither."""
    x = (scale * randn(2, 3, 9, 20)).to(dtype)
    y = SimAM(3)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.to(D), from_the_paper(x.to(D)), rtol=2 * torch.finfo(dtype).eps, atol=6e-8)


def test_saves_a_handful_of_maps():
    """Linear in N = HW: three numbers an element and one a channel; x comes on top where it is no input."""
    C, sides = 8, [(8, 16), (16, 16), (16, 32), (32, 32)]
    N = [h * w for h, w in sides]
    saved = [measure.saved_bytes(SimAM(C), torch.randn(2, C, *side)) for side in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.02)
    assert all(4 * 2 * C * 2 * n <= bytes <= 4 * 2 * C * (3 * n + 8) for n, bytes in zip(N, saved, strict=True))
