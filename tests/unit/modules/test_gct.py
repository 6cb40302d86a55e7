"""Gated channel transformation against its paper, its limits, and the errors in circulation.

No package that is kept well holds it; the `l1` mode is transcribed from the authors' release.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.channel import GCTAttention
from tests.unit.draw import D, permutation, randn, randomised

CASES = [(12, 5, 7), (6, 1, 1), (1, 4, 3), (32, 1, 9), (3, 2, 1)]  # C, H, W
MODES = ["l2", "l1"]
DIM = 1 / 300  # so dark that ε counts: Σx² of 35 pixels is 4e-4


def make(C=12, *, scale=1.0, seed=0, **options):
    return randomised(GCTAttention(C, **options), scale=scale, seed=seed).requires_grad_(False)


def run(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def from_the_paper(x, gct):
    """Embedding, normalisation and gate in plain numbers, one channel and one pixel at a time; ε as in the release."""
    alpha, gamma, beta = gct.alpha.tolist(), gct.gamma.tolist(), gct.beta.tolist()
    C, epsilon = len(alpha), 1e-5
    out = []
    for image in x.tolist():
        s = [a * math.sqrt(sum(pixel * pixel for row in channel for pixel in row) + epsilon)
             for a, channel in zip(alpha, image, strict=True)]
        length = math.sqrt(sum(s_c * s_c for s_c in s) + C * epsilon)  # √C s_c / length, ε beside the mean of s²
        g = [1 + math.tanh(c * math.sqrt(C) * s_c / length + b) for s_c, c, b in zip(s, gamma, beta, strict=True)]
        out.append([[[g_c * pixel for pixel in row] for row in channel] for g_c, channel in zip(g, image, strict=True)])
    return torch.tensor(out, dtype=D)


def l1_of_the_release(x, gct):
    """The same with absolute values for squares; ε stands beside the mean alone, under no root."""
    out = []
    for image in x.tolist():
        s = [a * sum(abs(pixel) for row in channel for pixel in row)
             for a, channel in zip(gct.alpha.tolist(), image, strict=True)]
        typical = sum(map(abs, s)) / len(s) + 1e-5
        g = [1 + math.tanh(c * s_c / typical + b)
             for s_c, c, b in zip(s, gct.gamma.tolist(), gct.beta.tolist(), strict=True)]
        out.append([[[g_c * pixel for pixel in row] for row in channel] for g_c, channel in zip(g, image, strict=True)])
    return torch.tensor(out, dtype=D)


EXPECTED = {"l2": from_the_paper, "l1": l1_of_the_release}


@pytest.mark.parametrize("brightness", [1, DIM])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("C", "H", "W"), CASES)
def test_equals_the_paper(C, H, W, mode, brightness):
    gct, x = make(C, mode=mode), brightness * randn(3, C, H, W)
    torch.testing.assert_close(gct(x), EXPECTED[mode](x, gct), rtol=1e-12, atol=0)


class Wrong(GCTAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        alpha, gamma, beta, e = self.alpha, self.gamma, self.beta, self.epsilon
        squares = x.square().sum((2, 3))
        size = {
            "mean of the map": x.mean((2, 3)),
            "mean of the squares": (x.square().mean((2, 3)) + e).sqrt(),
            "ε outside the root": squares.sqrt() + e,
            "ε left out": squares.sqrt(),
            "squares": squares + e,
        }.get(self.mistake, (squares + e).sqrt())
        alphas = {"α without its sign": alpha.abs(), "α behind the normalisation": torch.ones_like(alpha)}
        s = alphas.get(self.mistake, alpha) * size
        mean = s.square().mean(0 if self.mistake == "normalised over the batch" else 1, keepdim=True)
        s_hat = {
            "no √C": s / (s.square().sum(1, keepdim=True) + e).sqrt(),
            "ε outside the root of the mean": s / (mean.sqrt() + e),
            "ε left out of the mean": s / mean.sqrt(),
            "centred": (s - s.mean(1, keepdim=True)) / (s.var(1, keepdim=True, unbiased=False) + e).sqrt(),
            "softmax": s.softmax(1),
        }.get(self.mistake, s / (mean + e).sqrt())
        s_hat = alpha * s_hat if self.mistake == "α behind the normalisation" else s_hat
        if self.mistake == "γ and β exchanged":
            gamma, beta = beta, gamma
        a = gamma * (s_hat + beta) if self.mistake == "γ times β" else gamma * s_hat + beta
        g = {"no 1": a.tanh(), "sigmoid": a.sigmoid(), "no tanh": 1 + a}.get(self.mistake, 1 + a.tanh())
        g = g[:, :, None, None]
        return {"residual added": x + g * x, "gate alone": g.expand_as(x)}.get(self.mistake, g * x)


NOT_IN_THE_LIGHT = ["mean of the squares", "ε outside the root", "ε left out", "ε outside the root of the mean",
                    "ε left out of the mean"]  # ε apart, the normalisation cancels them


@pytest.mark.parametrize("mistake", [
    *NOT_IN_THE_LIGHT, "mean of the map", "squares", "α without its sign", "α behind the normalisation",
    "normalised over the batch", "no √C", "centred", "softmax", "γ and β exchanged", "γ times β", "no 1", "sigmoid",
    "no tanh", "residual added", "gate alone",
])
def test_the_comparison_with_the_paper_notices(mistake):
    gct, bright = make(), randn(3, 12, 5, 7)
    wrong = Wrong(12).to(D)
    wrong.load_state_dict(gct.state_dict())
    for x in (bright, DIM * bright):
        wrong.mistake = None
        torch.testing.assert_close(wrong(x), from_the_paper(x, gct), rtol=1e-12, atol=0)  # as yet there is none
    wrong.mistake = mistake
    off = [((wrong(x) - from_the_paper(x, gct)).abs().max() / x.abs().max()).item() for x in (bright, DIM * bright)]
    assert off[1] > 1e-3
    assert (off[0] < 1e-4) == (mistake in NOT_IN_THE_LIGHT)


def test_taps_are_the_equations():
    gct, x = make(), randn(2, 12, 5, 7)
    t = run(gct, x)
    assert t.names() == ["s", "s_hat", "g", "y"]
    assert [t.dims(name) for name in t.names()] == ["B C", "B C", "B C", "B C H W"]
    torch.testing.assert_close(t["s"], gct.alpha * (x.square().sum((2, 3)) + 1e-5).sqrt())
    torch.testing.assert_close(t["s_hat"], F.rms_norm(t["s"], (12,), eps=1e-5))  # torch's own, over the channels
    assert torch.equal(t["g"], 1 + (gct.gamma * t["s_hat"] + gct.beta).tanh())
    assert torch.equal(t["y"], x * t["g"][:, :, None, None])


# ---- parameters and arguments ----------------------------------------------------------------------------------------


def test_three_parameters_a_channel_that_start_at_the_papers_values():
    """Copies hold them as plain tensors, which no optimiser sees."""
    gct = GCTAttention(64)
    start = {name: p.unique().tolist() for name, p in gct.named_parameters()}
    assert start == {"alpha": [1.0], "gamma": [0.0], "beta": [0.0]}
    assert all(p.shape == (64,) for p in gct.parameters()) and set(gct.state_dict()) == set(start)


def test_defaults_are_the_releases():
    assert GCTAttention(64).epsilon == 1e-5 and GCTAttention(64).mode == "l2"


def test_the_papers_second_epsilon_is_a_cth_of_the_releases():
    """√C s / √(∑ s² + ε): the same numbers in the light, others where s² is no larger than ε."""
    gct, x = make(), randn(2, 12, 5, 7)
    for brightness, least, most in [(1, 0, 1e-6), (DIM, 1e-3, 1)]:
        t = run(gct, brightness * x)
        s_hat = math.sqrt(12) * t["s"] / (t["s"].square().sum(1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(s_hat, F.rms_norm(t["s"], (12,), eps=1e-5 / 12))
        assert least < (t["s_hat"] - s_hat).abs().max() < most


@pytest.mark.parametrize("mode", MODES)
def test_alpha_waits_for_gamma(mode):
    gct, x = GCTAttention(12, mode=mode).to(D), randn(2, 12, 5, 7)
    gct(x).square().sum().backward()
    assert not gct.alpha.grad.any() and gct.gamma.grad.all() and gct.beta.grad.all()
    with torch.no_grad():
        gct.gamma.sub_(1e-3 * gct.gamma.grad)
    gct(x).square().sum().backward()
    assert gct.alpha.grad.all()


@pytest.mark.parametrize(("channels", "options", "message"), [
    (0, {}, "channels=0 must be an integer of at least 1"),
    (8, dict(epsilon=0), "epsilon=0 must be a positive number"),
    (8, dict(mode="l3"), "mode='l3' must be one of 'l2', 'l1'"),
])
def test_arguments_out_of_range(channels, options, message):
    with pytest.raises(ValueError, match=message):
        GCTAttention(channels, **options)


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_map_gives_no_nan(mode):
    gct, x = make(mode=mode).requires_grad_(True), torch.zeros(2, 12, 5, 7, dtype=D, requires_grad=True)
    gct(x).sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, *gct.parameters()))


def test_sums_beyond_the_range_of_float16():
    """The release squares and sums in the type of x; infinity times the zero that is 1 over it is NaN."""
    gct, x = make().half(), (16 * randn(1, 12, 64, 64)).half()
    norm = (x.square().sum((2, 3)) + 1e-5).sqrt()
    assert norm.isinf().all() and (norm * (1 / norm)).isnan().all()
    y = gct(x)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.to(D), from_the_paper(x.to(D), gct), rtol=5e-3, atol=1e-6)


def test_the_gaussian_context_transformer_is_another_module():
    """Its gate exp(−z²), z the means standardised over the channels, tells no two images without means apart."""
    def gaussian(x):
        z = x.mean((2, 3))
        return torch.exp(-(z - z.mean(1, keepdim=True)).square() / (z.var(1, unbiased=False, keepdim=True) + 1e-5))

    x = torch.cat([randn(1, 12, 5, 7), randn(1, 12, 5, 7, seed=2).exp()])
    centred = x - x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(gaussian(centred), torch.ones(2, 12, dtype=D), rtol=0, atol=1e-12)
    g = run(make(), centred)["g"]
    assert (gaussian(x)[0] - gaussian(x)[1]).abs().max() > 0.1 < (g[0] - g[1]).abs().max()


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_with_gamma_0_it_is_a_diagonal_of_the_next_layer(mode):
    gct, x = make(mode=mode), randn(3, 12, 9, 8)
    nn.init.zeros_(gct.gamma)
    conv = nn.Conv2d(12, 5, 3).to(D)
    expected = F.conv2d(x, conv.weight * (1 + gct.beta.tanh())[:, None, None], conv.bias)
    torch.testing.assert_close(conv(gct(x)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [50.0, -50.0])
def test_a_gate_can_be_fixed_at_double_or_nothing(beta):
    gct, x = make(), randn(2, 12, 5, 7)
    nn.init.constant_(gct.beta, beta)
    assert torch.equal(gct(x), (2 if beta > 0 else 0) * x)  # exactly: tanh rounds to ±1


@pytest.mark.parametrize("mode", MODES)
def test_brightness_passes_the_gate_by_for_small_epsilon(mode):
    x = randn(2, 12, 5, 7)
    exact, g = make(mode=mode, epsilon=1e-30), run(make(mode=mode), x)["g"]
    torch.testing.assert_close(run(exact, 1e-6 * x)["g"], run(exact, x)["g"], rtol=0, atol=1e-12)
    torch.testing.assert_close(run(make(mode=mode), 1000 * x)["g"], g, rtol=0, atol=1e-5)
    assert (run(make(mode=mode), 1e-7 * x)["g"] - g).abs().max() > 0.1  # in the dark ε is all there is


@pytest.mark.parametrize("mode", MODES)
def test_without_light_alpha_alone_decides(mode):
    """x = 0: l2 embeds ε, so ŝ = √ε α / √(ε mean α² + ε); l1 embeds nothing."""
    gct = make(mode=mode)
    expected = gct.alpha / (gct.alpha.square().mean() + 1).sqrt() if mode == "l2" else torch.zeros(12, dtype=D)
    torch.testing.assert_close(run(gct, torch.zeros(1, 12, 5, 7, dtype=D))["s_hat"][0], expected)


@pytest.mark.parametrize("mode", MODES)
def test_sum_or_mean_is_a_matter_of_epsilon(mode):
    """An image laid out twice has norms √2 times as large, or twice: the normalisation cancels it."""
    gct, x = make(mode=mode, epsilon=1e-30), randn(2, 12, 5, 7)
    torch.testing.assert_close(run(gct, torch.cat([x, x], 3))["g"], run(gct, x)["g"], rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", MODES)
def test_behind_instance_normalisation_the_l2_gate_sees_nothing(mode):
    """Every channel then has Σx² = HW: SE is told nothing by its means there, and GCT nothing by its norms."""
    x = torch.cat([randn(1, 12, 5, 7), randn(1, 12, 5, 7, seed=2).exp()])
    g = run(make(mode=mode), F.instance_norm(x, eps=0))["g"]
    difference = (g[0] - g[1]).abs().max()
    assert difference < 1e-12 if mode == "l2" else difference > 0.01


def test_behind_a_relu_l1_is_the_mean_that_se_squeezes():
    gct, x = make(mode="l1"), randn(2, 12, 5, 7).relu()
    torch.testing.assert_close(run(gct, x)["s"], 35 * gct.alpha * x.mean((2, 3)), rtol=1e-13, atol=0)


# ---- competition, and what the gate depends on -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_channels_compete_where_alpha_gamma_is_positive_and_cooperate_where_it_is_negative(mode):
    gct, x = make(mode=mode), randn(1, 12, 5, 7)
    sign = (gct.alpha * gct.gamma).sign()
    assert -1 in sign and 1 in sign
    louder = torch.ones(12, dtype=D)
    J = torch.autograd.functional.jacobian(lambda t: run(gct, x * t[:, None, None])["g"][0], louder)  # dg_c / dx_d
    assert torch.equal(J.sign(), sign[:, None] * (2 * torch.eye(12, dtype=D) - 1))


def test_s_hat_has_the_mean_square_1_whatever_the_image():
    gct = make(epsilon=1e-30)
    for x in (randn(2, 12, 5, 7), 100 * randn(2, 12, 1, 1).exp(), 1e-3 * randn(2, 12, 9, 2) + 1):
        s_hat = run(gct, x)["s_hat"]
        torch.testing.assert_close(s_hat.square().mean(1), torch.ones(2, dtype=D), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("mode", "largest"), [("l2", math.sqrt(12)), ("l1", 12)])
def test_a_channel_alone_among_silent_ones_has_the_largest_s_hat(mode, largest):
    gct, x = make(mode=mode, epsilon=1e-30), torch.zeros(1, 12, 5, 7, dtype=D)
    x[:, 3] = randn(5, 7)
    s_hat = run(gct, x)["s_hat"][0]
    assert s_hat[3].item() == pytest.approx(largest * gct.alpha[3].sign().item(), rel=1e-12)
    assert run(gct, randn(5, 12, 5, 7).exp())["s_hat"].abs().max() < largest


@pytest.mark.parametrize("mode", MODES)
def test_alpha_counts_up_to_a_factor_and_its_sign_up_to_gammas(mode):
    gct, other, x = make(mode=mode, epsilon=1e-30), make(mode=mode, epsilon=1e-30), randn(2, 12, 5, 7)
    other.alpha.mul_(7)
    torch.testing.assert_close(other(x), gct(x), rtol=0, atol=1e-13)
    other.alpha[::2] *= -1
    assert (other(x) - gct(x)).abs().max() > 0.1
    other.gamma[::2] *= -1
    torch.testing.assert_close(other(x), gct(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", MODES)
def test_gate_depends_on_the_sizes_of_the_channels_alone(mode):
    gct, x = make(mode=mode), randn(2, 12, 5, 7)
    order = torch.randint(2, (2, 12, 5, 7), generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = (x * order).flip(2).transpose(2, 3)  # other signs, another shape
    torch.testing.assert_close(run(gct, other)["g"], run(gct, x)["g"], rtol=0, atol=1e-13)
    assert (run(gct, x + 1)["g"] - run(gct, x)["g"]).abs().max() > 0.01


def test_channel_permutations_pass_through_only_with_the_parameters():
    gct, along, x, order = make(), make(), randn(2, 12, 5, 7), permutation(12)
    assert (gct(x[:, order]) - gct(x)[:, order]).abs().max() > 1e-2
    for p in along.parameters():
        p.copy_(p[order])
    torch.testing.assert_close(along(x[:, order]), gct(x)[:, order], rtol=0, atol=1e-13)


# ---- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "times"), [(64, 3), (256, 11), (2048, 85)])
def test_has_fewer_parameters_than_squeeze_and_excitation(C, times):
    se = attn_lib.create("se", channels=C, bias=False)
    gct, fcs = (sum(p.numel() for p in m.parameters()) for m in (GCTAttention(C), se))
    assert gct == 3 * C and round(fcs / gct) == times  # 2C²/r to 3C, r = 16


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saves_no_more_than_a_few_numbers_a_channel(mode, dtype):
    C, sides = 32, [(16, 16), (16, 32), (32, 32), (32, 64)]
    gct = GCTAttention(C, mode=mode).to(dtype)
    saved = [measure.saved_bytes(gct, torch.randn(2, C, *side, dtype=dtype)) for side in sides]
    assert max(saved) == min(saved) <= 4 * 2 * C * 10  # x is an input and not counted; the rest knows no resolution

    # Behind another layer x is saved once, in its own type: linear in N = H·W, and no copy of it in float32.
    saved = [measure.saved_bytes(lambda t: gct(t * 2), torch.randn(2, C, *side, dtype=dtype)) for side in sides]
    N = [h * w for h, w in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.05)
    assert all(dtype.itemsize * 2 * C * n <= bytes <= dtype.itemsize * 2 * C * (n + 24)
               for n, bytes in zip(N, saved, strict=True))
