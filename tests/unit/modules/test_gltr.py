"""Global-local temporal representation against its release's equations, its limits, and the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.temporal import GLTR
from tests.unit.draw import D, permutation, randn, randomised

CASES = [  # options, T
    (dict(), 7),
    (dict(dilations=(1, 2, 4), with_input=False), 5),
    (dict(dilations=(3,), kernel_size=5, reduction=3), 6),
    (dict(dilations=()), 4),
    (dict(pool=False), 5),
    (dict(), 1),
    (dict(), 2),
]


def make(C=3, seed=0, **options):
    return randomised(GLTR(C, **options), scale=0.6, seed=seed)


# ---- equation --------------------------------------------------------------------------------------------------------


def affine(layer, v):
    return [b + sum(w * n for w, n in zip(row, v, strict=True))
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def from_the_release(x, m):
    """Pyramid, attention and residual in plain numbers, frame by frame."""
    B, T, C = x.shape
    pyramids, outs = [], []
    for series in x.tolist():
        f = []
        for t in range(T):
            v = list(series[t]) if m.with_input else []
            for conv, r in zip(m.pyramid, m.dilations, strict=True):
                half = m.kernel_size // 2
                for kernel in conv.weight.tolist():
                    v.append(sum(kernel[c][k + half] * series[t + r * k][c] for c in range(C)
                                 for k in range(-half, half + 1) if 0 <= t + r * k < T))
            f.append(v)
        theta, phi, g = ([affine(W, v) for v in f] for W in (m.Wtheta, m.Wphi, m.Wg))
        pyramids.append(f)
        for t in range(T):
            e = [math.exp(sum(a * b for a, b in zip(theta[t], phi[s], strict=True))) for s in range(T)]
            y = [sum(e[s] / sum(e) * g[s][n] for s in range(T)) for n in range(len(g[0]))]
            outs.append(affine(m.Wz, y))
    z = torch.tensor(pyramids, dtype=D)
    for n, values in enumerate(zip(*outs, strict=True)):
        mean, variance = m.norm.running_mean[n].item(), m.norm.running_var[n].item()
        if m.norm.training:
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / len(values)
        a, b = m.norm.weight[n].item() / math.sqrt(variance + m.norm.eps), m.norm.bias[n].item()
        z[:, :, n] += torch.tensor([a * (v - mean) + b for v in values], dtype=D).view(B, T)
    return torch.stack([z[:, t] for t in range(T)]).sum(0) / T if m.pool else z


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("options", "T"), CASES)
def test_equals_the_release(options, T, training):
    m, x = make(**options).train(training), randn(2, T, 3)
    torch.testing.assert_close(m(x), from_the_release(x, m), rtol=0, atol=1e-11)


class Wrong(GLTR):
    """The errors in circulation, one at a time."""

    mistake = None

    def forward(self, x):
        if self.mistake == "dilations 1, 2, 4":
            scales = [F.conv1d(x.mT, conv.weight, padding=r, dilation=r).mT
                      for conv, r in zip(self.pyramid, (1, 2, 4), strict=True)]
        elif self.mistake == "past alone":
            scales = [F.conv1d(F.pad(x.mT, (2 * r, 0)), conv.weight, dilation=r).mT
                      for conv, r in zip(self.pyramid, self.dilations, strict=True)]
        else:
            scales = [conv(x.mT).mT for conv in self.pyramid]
        if self.mistake == "ReLU behind each convolution":
            scales = [s.relu() for s in scales]
        first = torch.zeros_like(x) if self.mistake == "the frames left out" else x
        f = torch.cat([*scales, first] if self.mistake == "the frames last" else [first, *scales], 2)
        theta, phi, g = self.Wtheta(f), self.Wphi(f), self.Wg(f)
        if self.mistake == "ReLU before the products":
            theta, phi = theta.relu(), phi.relu()
        logits = theta @ phi.mT * (theta.shape[-1] ** -0.5 if self.mistake == "scaled" else 1.0)
        y = logits.softmax(1 if self.mistake == "softmax over the queries" else 2) @ g
        out = self.Wz(y)
        out = out if self.mistake == "no BN" else self.norm(out.mT).mT
        z = out if self.mistake == "no residual" else f + out
        return z.amax(1) if self.mistake == "maximum over time" else z.mean(1)


@pytest.mark.parametrize("mistake", [
    "dilations 1, 2, 4", "past alone", "ReLU behind each convolution", "the frames left out", "the frames last",
    "ReLU before the products", "scaled", "softmax over the queries", "no BN", "no residual", "maximum over time",
])
def test_the_comparison_with_the_release_notices(mistake):
    m, x = make(), randn(2, 7, 3)
    wrong = Wrong(3).to(D).eval()
    wrong.load_state_dict(m.state_dict())
    expected = from_the_release(x, m)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-11)  # nothing else differs
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


# ---- what follows ----------------------------------------------------------------------------------------------------


def test_a_fresh_module_is_the_mean_of_its_pyramid():
    m, x = GLTR(3), randn(2, 7, 3).float()
    with attn_lib.trace() as t:
        v = m.eval()(x)
    assert torch.equal(v, t["f"].mean(1)) and torch.equal(t["f"][..., :3], x)
    assert 0.0005 < torch.cat([conv.weight.flatten() for conv in m.pyramid]).std() < 0.002


def test_takes_any_number_of_frames():
    m = make()
    for T in (1, 2, 16, 33):
        assert m(randn(1, T, 3)).shape == (1, 12)


def test_one_frame_sees_the_taps_in_the_middle_and_a_linear_map():
    """It is no identity, but where it starts."""
    m, x = make(pool=False), randn(2, 1, 3)
    f = torch.cat([x, *(x @ conv.weight[:, :, 1].T for conv in m.pyramid)], 2)
    torch.testing.assert_close(m(x), f + m.norm(m.Wz(m.Wg(f)).mT).mT)


@pytest.mark.parametrize("r", [5, 8])
def test_a_dilation_beyond_the_series_sees_the_frame_alone(r):
    m, x = make(dilations=(r,)), randn(2, 5, 3)
    with attn_lib.trace() as t:
        m(x)
    torch.testing.assert_close(t["f"][..., 3:], x @ m.pyramid[0].weight[:, :, 1].T)


def test_attention_alone_does_not_know_the_order_of_frames():
    """And the pyramid does: a coincidence of frames that are 3 apart takes a dilation of 3."""
    x, order = randn(1, 9, 3), permutation(9)
    alone, both = make(dilations=()), make()
    torch.testing.assert_close(alone(x[:, order]), alone(x))
    assert (both(x[:, order]) - both(x)).abs().max() > 1e-2
    for r, reaches in ((1, False), (3, True)):
        m = make(dilations=(r,), pool=False)
        torch.nn.init.zeros_(m.norm.weight)
        other = x.clone()
        other[:, 7] += 1.0
        assert ((m(other) != m(x)).any(2)[0, 4]).item() == reaches


# ---- cost and errors -------------------------------------------------------------------------------------------------


def test_memory_grows_with_the_frames():
    """The T × T weights are never kept outside a trace."""
    m = GLTR(8)
    saved = {T: measure.saved_bytes(m, torch.randn(2, T, 8)) for T in (64, 128, 256, 512)}
    assert measure.fit_exponent(list(saved), list(saved.values())) == pytest.approx(1, abs=0.05), saved


@pytest.mark.parametrize(("options", "message"), [
    (dict(dilations=3), r"dilations=3 must hold one integer a convolution, such as \(1, 2, 3\)"),
    (dict(dilations=(), with_input=False), r"dilations=\(\) must hold one integer a convolution"),
    (dict(dilations=(1, 0)), "dilations=0 must be an integer of at least 1"),
    (dict(kernel_size=2), "kernel_size=2 must be odd"),
    (dict(reduction=13), "reduction=13 must be at most the pyramid's channels=12"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        GLTR(3, **options)


def test_a_single_frame_in_training_is_refused():
    with pytest.raises(ValueError, match="x is a batch of 1 with T=1; in training it must hold 2 frames or more"):
        make().train()(randn(1, 1, 3))
