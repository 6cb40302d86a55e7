"""Normalization-based attention against its paper, its release, its limits, and the errors in circulation.

No package that is kept well holds it.
"""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.channel import NAMAttention
from tests.unit.draw import D, permutation, randn, randomised

CASES = [("channel", 6, 5, 7), ("channel", 1, 4, 3), ("spatial", 4, 3, 5), ("spatial", 2, 1, 1), ("both", 3, 4, 2)]
FORMS = ["channel", "spatial", "both"]


def make(form="channel", C=6, H=3, W=4, *, seed=0, **options):
    size = {} if form == "channel" else dict(height=H, width=W)
    return randomised(NAMAttention(C, form=form, **size, **options), seed=seed).requires_grad_(False)


def run(nam, x):
    with attn_lib.trace() as t:
        nam(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def gated(x, norm, units):
    """σ(w · BN(x)) · x in plain numbers; `units` lists the positions (b, c, i, j) that share each scale."""
    total = sum(abs(gamma) for gamma in norm.weight.tolist())
    y = torch.zeros_like(x)
    for n, unit in enumerate(units):
        gamma, beta = norm.weight[n].item(), norm.bias[n].item()
        mean, variance = norm.running_mean[n].item(), norm.running_var[n].item()
        if norm.training:
            mean = sum(x[p].item() for p in unit) / len(unit)
            variance = sum((x[p].item() - mean) ** 2 for p in unit) / len(unit)
        for p in unit:
            normalised = gamma * (x[p].item() - mean) / math.sqrt(variance + 1e-5) + beta
            y[p] = x[p].item() / (1 + math.exp(-abs(gamma) / total * normalised))
    return y


def from_the_paper(x, nam):
    """Equations 2 and 3, each followed by the product with x that the release has."""
    B, C, H, W = map(range, x.shape)
    if nam.form != "spatial":
        x = gated(x, nam.norm_c, [[(b, c, i, j) for b, i, j in product(B, H, W)] for c in C])
    if nam.form != "channel":
        x = gated(x, nam.norm_s, [[(b, c, i, j) for b, c in product(B, C)] for i, j in product(H, W)])
    return x


@pytest.mark.parametrize("detach", [False, True], ids=["paper", "release"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("form", "C", "H", "W"), CASES)
def test_equals_the_paper(form, C, H, W, training, detach):
    nam, x = make(form, C, H, W, detach=detach).train(training), randn(3, C, H, W)
    torch.testing.assert_close(nam(x), from_the_paper(x, nam), rtol=0, atol=1e-13)


class Wrong(NAMAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        norm = self.norm_c if self.form == "channel" else self.norm_s
        gamma = norm.weight if self.mistake == "no absolute values" else norm.weight.abs()
        w = {"softmax": gamma.softmax(0), "largest is 1": gamma / gamma.max(), "no shares": torch.ones_like(gamma),
             "mean is 1": len(gamma) * gamma / gamma.sum()}.get(self.mistake, gamma / gamma.sum())
        w = w if self.form == "channel" else w.view(self.height, self.width)
        if self.form == "channel":
            hat = x.mean((2, 3), keepdim=True).expand_as(x) if self.mistake == "pooled" else x
            hat = F.instance_norm(x, weight=norm.weight, bias=norm.bias) if self.mistake == "instances" else norm(hat)
            w = w[:, None, None]
        else:
            hat = norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(x)
            if self.mistake == "pixels of the batch alone":  # a scale for every pixel, statistics for every number
                mean, variance = x.mean(0), x.var(0, correction=0)
                hat = (x - mean) / (variance + norm.eps).sqrt()
                hat = hat * norm.weight.view(w.shape) + norm.bias.view(w.shape)
            if self.mistake == "rows and columns exchanged":
                w = w.flatten().view(self.width, self.height).T
        logits = w * hat
        logits = logits.relu() if self.mistake == "ReLU before σ" else logits
        M = {"tanh": logits.tanh()}.get(self.mistake, logits.sigmoid())
        return {"gate alone": M, "residual added": x + M * x, "BN(x) is gated": M * hat}.get(self.mistake, M * x)


MISTAKES = ["no absolute values", "softmax", "largest is 1", "no shares", "mean is 1", "ReLU before σ", "tanh",
            "gate alone", "residual added", "BN(x) is gated"]


@pytest.mark.parametrize(("form", "mistake"), [
    *((form, mistake) for form in ("channel", "spatial") for mistake in MISTAKES), ("channel", "pooled"),
    ("channel", "instances"), ("spatial", "pixels of the batch alone"), ("spatial", "rows and columns exchanged"),
])
def test_the_comparison_with_the_paper_notices(form, mistake):
    nam, x = make(form).train(), randn(3, 6, 3, 4) + torch.linspace(-2, 2, 6, dtype=D)[:, None, None]
    size = {} if form == "channel" else dict(height=3, width=4)
    wrong = Wrong(6, form=form, **size).to(D)
    wrong.load_state_dict(nam.state_dict())
    expected = from_the_paper(x, nam)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-13)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    nam, x = make("both"), randn(2, 6, 3, 4)
    t = run(nam, x)
    assert t.names() == ["w_c", "M_c", "x_c", "w_s", "M_s", "y"]
    assert [t.dims(n) for n in t.names()] == ["C", "B C H W", "B C H W", "H*W", "B C H W", "B C H W"]
    for name in ("w_c", "w_s"):
        assert (t[name] > 0).all() and t[name].sum().item() == pytest.approx(1)
    assert torch.equal(t["x_c"], x * t["M_c"]) and torch.equal(t["y"], t["x_c"] * t["M_s"])


def test_both_is_the_spatial_form_behind_the_channel_form():
    both, x = make("both"), randn(2, 6, 3, 4)
    channel, spatial = make("channel", seed=1), make("spatial", seed=2)
    channel.norm_c.load_state_dict(both.norm_c.state_dict())
    spatial.norm_s.load_state_dict(both.norm_s.state_dict())
    assert torch.equal(both(x), spatial(channel(x)))
    assert (both(x) - channel(spatial(x))).abs().max() > 1e-3


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_spatial_form_is_the_channel_form_of_the_transposed_map(training):
    """Pixels for channels and channels for pixels; so the statistics of a pixel are over batch and channels."""
    spatial, channel, x = make("spatial", 6, 3, 4), make("channel", 12, seed=3), randn(2, 6, 3, 4)
    channel.norm_c.load_state_dict(spatial.norm_s.state_dict())
    transposed = x.flatten(2).transpose(1, 2)[:, :, :, None]  # B HW C 1
    expected = channel.train(training)(transposed)[..., 0].transpose(1, 2).view_as(x)
    torch.testing.assert_close(spatial.train(training)(x), expected, rtol=0, atol=1e-14)


# ---- scales ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["channel", "spatial"])
def test_gamma_learns_with_and_without_the_shares(form):
    """The release detaches the shares, but not the normalisation that they multiply.

    So its gradient is not that of its output, which is why it is no variant in the catalogue.
    """
    x, size = randn(2, 6, 3, 4), {} if form == "channel" else dict(height=3, width=4)
    gradients = {}
    for detach in (False, True):
        nam = randomised(NAMAttention(6, form=form, detach=detach, **size))
        nam(x).square().sum().backward()
        norm = nam.norm_c if form == "channel" else nam.norm_s
        gradients[detach] = norm.weight.grad.clone()
    assert all(g.all() for g in gradients.values())
    assert (gradients[True] - gradients[False]).abs().max() > 1e-3
    axes = "BCHW,C->BCHW" if form == "channel" else "BCHW,HW->BCHW"
    w, scale = norm.weight.detach().abs(), norm.weight.detach().clone().requires_grad_(True)  # by hand, ratio fixed
    mean, sd = norm.running_mean, (norm.running_var + norm.eps).sqrt()
    w, gamma, beta, mean, sd = (t if form == "channel" else t.view(3, 4) for t in (w / w.sum(), scale, norm.bias, mean,
                                                                                   sd))
    ones = torch.ones_like(x)
    hat = torch.einsum(axes, x - torch.einsum(axes, ones, mean), gamma / sd) + torch.einsum(axes, ones, beta)
    (torch.einsum(axes, hat, w).sigmoid() * x).square().sum().backward()
    torch.testing.assert_close(gradients[True], scale.grad)


@pytest.mark.parametrize("form", FORMS)
def test_scales_of_zero_give_no_nan(form):
    nam, x = make(form).requires_grad_(True), randn(2, 6, 3, 4).requires_grad_(True)
    with torch.no_grad():
        for name, p in nam.named_parameters():
            if name.endswith("weight"):
                assert (torch.zeros_like(p).abs() / torch.zeros_like(p).abs().sum()).isnan().all()  # the release
                p.zero_()
    y = nam(x)
    assert torch.equal(y, x / (4 if form == "both" else 2))
    y.sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, *nam.parameters()))


def test_the_release_finds_no_scale_to_penalise():
    """It asks the children of the model for the names of the stages, and DataParallel has one child: the model."""
    model = torch.nn.Sequential()
    for name in ("layer1", "layer2", "layer3", "layer4"):
        model.add_module(name, torch.nn.Sequential(NAMAttention(6), NAMAttention(6)))

    def found(model):
        return [nam.norm_c.weight for name, stage in model._modules.items() if name.startswith("layer")
                for nam in stage]

    wrapped = torch.nn.DataParallel(model)
    assert len(found(model)) == 8 and not found(wrapped)
    assert sum(isinstance(module, NAMAttention) for module in wrapped.modules()) == 8


def test_in_evaluation_mode_it_is_an_activation_function():
    nam, x = make(), randn(2, 6, 3, 4)
    norm, w = nam.norm_c, run(nam, x)["w_c"]
    a = w * norm.weight / (norm.running_var + norm.eps).sqrt()
    b = w * norm.bias - a * norm.running_mean
    torch.testing.assert_close(nam(x), x * (a[:, None, None] * x + b[:, None, None]).sigmoid(), rtol=0, atol=1e-14)


def test_a_pruned_module_needs_smaller_scales_and_shifts():
    """The shares of those that stay grow; scales and shifts make up for it."""
    nam, x, kept = make(), randn(2, 6, 3, 4), [4, 0, 3]
    small = make(C=3)
    small.norm_c.load_state_dict({k: v if v.dim() == 0 else v[kept] for k, v in nam.norm_c.state_dict().items()})
    assert (small(x[:, kept]) - nam(x)[:, kept]).abs().max() > 1e-3
    part = small.norm_c.weight.abs().sum() / nam.norm_c.weight.abs().sum()
    small.norm_c.weight.mul_(part)
    small.norm_c.bias.mul_(part)
    torch.testing.assert_close(small(x[:, kept]), nam(x)[:, kept], rtol=0, atol=1e-14)


def test_a_channel_without_scale_has_the_gate_one_half():
    """What the penalty empties is a number that can be multiplied into the next layer."""
    nam, x = make(), randn(2, 6, 3, 4)
    nam.norm_c.weight[2] = 0.0
    torch.testing.assert_close(nam(x)[:, 2], x[:, 2] / 2, rtol=0, atol=0)
    assert (nam(x)[:, 3] - x[:, 3] / 2).abs().max() > 1e-3


def test_all_scales_times_a_number_leave_the_shares():
    nam, x = make(), randn(2, 6, 3, 4)
    w = run(nam, x)["w_c"].clone()
    nam.norm_c.weight.mul_(-7)
    torch.testing.assert_close(run(nam, x)["w_c"], w, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("C", "near"), [(64, 0.03), (512, 0.003)])
def test_fresh_gates_hardly_leave_one_half(C, near):
    """Shares of 1/C: what BN makes of x is divided by the number of channels."""
    nam, x = NAMAttention(C).to(D), randn(4, C, 8, 8)
    t = run(nam, x)
    assert torch.equal(t["w_c"], torch.full((C,), 1 / C, dtype=D))
    hat = F.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(t["y"], x * (hat / C).sigmoid(), rtol=0, atol=1e-13)
    assert (t["M_c"] - 0.5).abs().max() < near


def test_every_pixel_has_a_gate_of_its_own():
    nam, x = make(), randn(2, 6, 5, 7)
    gate = nam(x) / x
    assert gate.flatten(2).std(2).min() > 1e-3
    mixed = x.flatten(2)[:, :, permutation(35)].view_as(x)  # and it does not ask where the pixel lies
    torch.testing.assert_close(nam(mixed), nam(x).flatten(2)[:, :, permutation(35)].view_as(x), rtol=0, atol=1e-14)


def test_the_spatial_form_does_not_ask_which_channel():
    nam, x, order = make("spatial"), randn(2, 6, 3, 4), permutation(6)
    torch.testing.assert_close(nam(x[:, order]), nam(x)[:, order], rtol=0, atol=1e-14)
    assert (nam(x.flip(3)) - nam(x).flip(3)).abs().max() > 1e-3


# ---- arguments, release ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    (dict(form="pixel"), "form='pixel' must be one of 'channel', 'spatial', 'both'"),
    (dict(form="spatial"), "height=None must be an integer of at least 1"),
    (dict(form="both", height=4, width=0), "width=0 must be an integer of at least 1"),
    (dict(height=4, width=4), "height=4 and width=4 must be None with form='channel'"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        NAMAttention(6, **options)


@pytest.mark.parametrize("form", ["spatial", "both"])
def test_the_spatial_form_refuses_other_sizes(form):
    with pytest.raises(ValueError, match="axis W must be 4, not 5"):
        make(form)(randn(2, 6, 3, 5))


@pytest.mark.parametrize(("form", "C", "shape"), [("channel", 6, (1, 6, 1, 1)), ("spatial", 1, (1, 1, 3, 4))])
def test_one_number_has_no_variance(form, C, shape):
    nam = make(form, C)
    nam(randn(*shape))
    with pytest.raises(ValueError, match=r"in training it must hold 2 .* in all"):
        nam.train()(randn(*shape))


def test_a_checkpoint_of_the_release_loads_by_names():
    theirs = {f"Channel_Att.bn2.{name}": t for name, t in make().norm_c.state_dict().items()}
    nam = make(seed=5)
    nam.load_state_dict({name.replace("Channel_Att.bn2", "norm_c"): t for name, t in theirs.items()})
    assert torch.equal(nam.norm_c.weight, theirs["Channel_Att.bn2.weight"])


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_the_normalisation():
    assert sum(p.numel() for p in NAMAttention(64).parameters()) == 2 * 64
    assert sum(p.numel() for p in NAMAttention(64, form="spatial", height=7, width=9).parameters()) == 2 * 63


@pytest.mark.parametrize(("form", "maps"), [("channel", 2), ("spatial", 3), ("both", 5)])
def test_memory_is_linear_in_the_positions(form, maps):
    """A normalised map and a map of gates, and for the spatial form x with the channels last."""
    C, sides = 8, [(8, 8), (8, 16), (16, 16), (16, 32)]
    N, saved = [h * w for h, w in sides], []
    for H, W in sides:
        size = {} if form == "channel" else dict(height=H, width=W)
        saved.append(measure.saved_bytes(NAMAttention(C, form=form, **size), torch.randn(2, C, H, W)))
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.05)
    assert saved[-1] <= 4 * 2 * C * N[-1] * (maps + 1)
