"""Style-based recalibration against its paper, its release, its limits, and the errors in circulation.

No package that is kept well holds it; `unbiased=True` is transcribed from the authors' release.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.channel import SRMAttention
from tests.unit.draw import D, permutation, randn, randomised

CASES = [(6, 5, 7), (1, 4, 3), (12, 1, 9), (3, 2, 1)]  # C, H, W
DIM = 1 / 300  # so dark that the release's 1e-5 counts
FORMS = pytest.mark.parametrize("unbiased", [False, True], ids=["paper", "release"])


def make(C=6, *, seed=0, **options):
    return randomised(SRMAttention(C, **options), seed=seed).requires_grad_(False)


def run(srm, x):
    with attn_lib.trace() as t:
        srm(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def from_the_paper(x, srm):
    """Equations 1 to 4 in plain numbers; the variance of the release where `unbiased` says so."""
    images, z = x.tolist(), []
    for image in images:
        row = []
        for (w_mean, w_deviation), channel in zip(srm.Wz.tolist(), image, strict=True):
            pixels = [pixel for line in channel for pixel in line]
            mean = sum(pixels) / len(pixels)
            squares = sum((pixel - mean) ** 2 for pixel in pixels)
            variance = squares / (len(pixels) - 1) + 1e-5 if srm.unbiased else squares / len(pixels)
            row.append(w_mean * mean + w_deviation * math.sqrt(variance))
        z.append(row)
    out = [[None] * srm.channels for _ in images]
    for c in range(srm.channels):
        mean, variance = srm.norm.running_mean[c].item(), srm.norm.running_var[c].item()
        if srm.norm.training:
            mean = sum(row[c] for row in z) / len(z)
            variance = sum((row[c] - mean) ** 2 for row in z) / len(z)
        for b, row in enumerate(z):
            z_hat = srm.norm.weight[c].item() * (row[c] - mean) / math.sqrt(variance + 1e-5) + srm.norm.bias[c].item()
            g = 1 / (1 + math.exp(-z_hat))
            out[b][c] = [[g * pixel for pixel in line] for line in images[b][c]]
    return torch.tensor(out, dtype=D)


@FORMS
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("C", "H", "W"), CASES)
def test_equals_the_paper(C, H, W, training, unbiased):
    for brightness in (1, DIM):
        srm, x = make(C, unbiased=unbiased).train(training), brightness * randn(3, C, H, W)
        torch.testing.assert_close(srm(x), from_the_paper(x, srm), rtol=1e-12, atol=1e-14)


class Wrong(SRMAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        mean, variance = x.mean((2, 3)), x.var((2, 3), correction=0)
        if self.mistake in ("HW − 1", "the release's"):
            variance = x.var((2, 3))
        if self.mistake in ("ε added", "the release's"):
            variance = variance + 1e-5
        style = {"variance for deviation": variance, "mean alone": 0 * mean, "maximum": x.amax((2, 3)),
                 "deviation over the batch": x.transpose(0, 1).flatten(1).std(1, correction=0).expand_as(mean),
                 "root mean square": x.square().mean((2, 3)).sqrt()}.get(self.mistake, variance.sqrt())
        t = torch.stack([style, mean] if self.mistake == "exchanged" else [mean, style], 2)
        if self.mistake == "full layer":
            z = t.flatten(1) @ self.Wz.flatten()[:, None].expand(-1, self.channels)
        elif self.mistake == "neighbours":
            z = (self.Wz * (t + t.roll(1, 1))).sum(2)
        else:
            z = (self.Wz * t).sum(2)
        z = z if self.mistake == "no BN" else self.norm(z)
        g = {"softmax": z.softmax(1), "ReLU": z.relu(), "two gates": F.relu(z).sigmoid()}.get(self.mistake, z.sigmoid())
        g = g[:, :, None, None]
        return {"residual added": x + g * x, "gate alone": g.expand_as(x)}.get(self.mistake, g * x)


@pytest.mark.parametrize("mistake", [
    "HW − 1", "ε added", "the release's", "variance for deviation", "mean alone", "maximum", "deviation over the batch",
    "root mean square", "exchanged", "full layer", "neighbours", "no BN", "softmax", "ReLU", "two gates",
    "residual added", "gate alone",
])
def test_the_comparison_with_the_paper_notices(mistake):
    srm, bright = make().train(), randn(3, 6, 3, 4) + torch.linspace(-1, 1, 6, dtype=D)[:, None, None]
    wrong = Wrong(6).to(D)
    wrong.load_state_dict(srm.state_dict())
    off = []
    for x in (bright, DIM * bright):
        wrong.mistake = None
        torch.testing.assert_close(wrong(x), from_the_paper(x, srm), rtol=1e-12, atol=0)  # as yet there is none
        wrong.mistake = mistake
        off.append(((wrong(x) - from_the_paper(x, srm)).abs().max() / x.abs().max()).item())
    assert max(off) > 1e-3
    assert (off[0] < 1e-4) == (mistake == "ε added")  # in the light it is nothing


def test_taps_are_the_equations():
    srm, x = make(), randn(2, 6, 5, 7)
    t = run(srm, x)
    assert t.names() == ["t", "z", "g", "y"]
    assert [t.dims(n) for n in t.names()] == ["B C 2", "B C", "B C", "B C H W"]
    assert torch.equal(t["t"][..., 0], x.mean((2, 3)))
    torch.testing.assert_close(t["t"][..., 1], x.std((2, 3), correction=0))
    assert torch.equal(t["y"], x * t["g"][:, :, None, None])


# ---- what it starts as, and its gradient -----------------------------------------------------------------------------


def test_two_weights_a_channel_start_at_zero_and_all_gates_at_a_half():
    srm, x = SRMAttention(64), randn(2, 64, 5, 7).float()
    assert srm.Wz.shape == (64, 2) and not srm.Wz.any() and SRMAttention(64, zero_init=False).Wz.all()
    assert torch.equal(srm(x), x / 2)
    assert sum(p.numel() for p in srm.parameters()) == 4 * 64  # W_z, and the normalisation's two


def test_the_first_gradient_is_316_times_too_large():
    """z is 0 for every image, so BN divides by √ε; drawn weights have a variance to divide by."""
    x = randn(8, 6, 5, 7)

    def gradient(training, **options):
        srm = SRMAttention(6, **options).to(D).train(training)
        (srm(x) * randn(8, 6, 5, 7, seed=2)).sum().backward()
        return srm.Wz.grad

    first, later = gradient(True), gradient(False)
    assert first.norm() / later.norm() > 30
    dL_dz = (x * randn(8, 6, 5, 7, seed=2)).sum((2, 3)) / 4  # σ′(0) = ¼
    style = torch.stack([x.mean((2, 3)), x.std((2, 3), correction=0)], 2)
    expected = ((dL_dz - dL_dz.mean(0))[:, :, None] * style).sum(0) / math.sqrt(1e-5)
    torch.testing.assert_close(first, expected)
    assert first.norm() / gradient(True, zero_init=False).norm() > 10


@FORMS
def test_a_constant_channel_has_a_gradient(unbiased):
    """As behind a ReLU that is closed everywhere: a root of the variance would give 0/0."""
    srm, x = make(unbiased=unbiased).requires_grad_(True), randn(2, 6, 5, 7)
    x[:, 2] = 0
    x.requires_grad_(True)
    srm(x).square().sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, *srm.parameters()))
    assert not x.grad[:, 2].any()


def test_one_pixel():
    x = randn(3, 6, 1, 1)
    srm = make()
    assert not run(srm, x)["t"][..., 1].any()
    torch.testing.assert_close(srm(x), from_the_paper(x, srm), rtol=0, atol=1e-14)
    with pytest.warns(UserWarning, match="degrees of freedom"):
        assert x.flatten(2).std(2).isnan().all()  # what the release computes
    with pytest.raises(ValueError, match="x is a map of 1 × 1; with unbiased=True it must hold at least 2 positions"):
        make(unbiased=True)(x)


def test_a_batch_of_one_is_refused_in_training_alone():
    srm, x = make(), randn(1, 6, 5, 7)
    srm.eval()(x)
    with pytest.raises(ValueError, match="x is a batch of 1; in training it must hold 2 images or more"):
        srm.train()(x)
    srm.norm.eval()  # a frozen BN, as in fine-tuning with small batches
    srm(x)


def test_a_checkpoint_of_the_release_loads_by_names():
    release = {"cfc": randn(6, 2), **{f"bn.{n}": t for n, t in make().norm.state_dict().items()}}
    srm = make(seed=5)
    srm.load_state_dict({n.replace("cfc", "Wz").replace("bn.", "norm."): t for n, t in release.items()})
    assert torch.equal(srm.Wz, release["cfc"]) and torch.equal(srm.norm.running_var, release["bn.running_var"])


# ---- what a gate depends on ------------------------------------------------------------------------------------------


def test_a_gate_depends_on_its_own_channel_alone():
    srm, x = make(), randn(1, 6, 5, 7)
    jacobian = torch.autograd.functional.jacobian(lambda b: run(srm, x * b[:, None, None])["g"][0], torch.ones(6).to(D))
    assert (jacobian.diagonal().abs() > 1e-4).all() and torch.equal(jacobian, torch.diag(jacobian.diagonal()))


@FORMS
def test_the_order_of_the_channels_passes_through_with_their_numbers(unbiased):
    srm, along, x, order = make(unbiased=unbiased), make(unbiased=unbiased), randn(2, 6, 5, 7), permutation(6)
    assert (srm(x[:, order]) - srm(x)[:, order]).abs().max() > 1e-2
    for name, t in along.state_dict().items():
        if t.ndim:
            t.copy_(srm.state_dict()[name][order])
    assert torch.equal(along(x[:, order]), srm(x)[:, order])


def test_it_sees_contrast_where_the_mean_sees_nothing():
    """The same photo, once in fog: equal means, another deviation."""
    srm, x = make(), randn(1, 6, 5, 7)
    mean = x.mean((2, 3), keepdim=True)
    foggy = mean + (x - mean) / 4
    clear, fog = run(srm, x), run(srm, foggy)
    torch.testing.assert_close(fog["t"] / clear["t"], torch.tensor([1, 0.25], dtype=D).expand(1, 6, 2))
    assert (fog["g"] - clear["g"]).abs().max() > 0.05


@FORMS
def test_behind_instance_normalisation_all_images_have_the_same_gates(unbiased):
    srm = make(unbiased=unbiased)
    g = run(srm, F.instance_norm(randn(4, 6, 5, 7).exp(), eps=1e-12))["g"]
    torch.testing.assert_close(g[1:], g[:1].expand(3, 6), rtol=0, atol=1e-10)


# ---- cost ------------------------------------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saves_no_more_than_a_few_numbers_a_channel(dtype, unbiased):
    C, sides = 32, [(16, 16), (16, 32), (32, 32), (32, 64)]
    srm = SRMAttention(C, unbiased=unbiased).to(dtype)
    saved = [measure.saved_bytes(srm, torch.randn(2, C, *side, dtype=dtype)) for side in sides]
    assert max(saved) == min(saved) <= 4 * 2 * C * 16  # x is an input and not counted; the rest knows no resolution
    saved = [measure.saved_bytes(lambda t: srm(t * 2), torch.randn(2, C, *side, dtype=dtype)) for side in sides]
    N = [h * w for h, w in sides]  # behind another layer x once, in its own type
    assert [bytes - saved[0] for bytes in saved] == [dtype.itemsize * 2 * C * (n - N[0]) for n in N]
