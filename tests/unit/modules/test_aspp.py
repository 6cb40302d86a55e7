"""Atrous spatial pyramid pooling against its paper, its limits and torchvision, and against known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.conv import ASPP, valid_weights
from tests.unit.draw import D, randn, randomised
from tests.unit.reference import reference


def make(C=3, out=2, rates=(1, 2, 6), **options):
    return randomised(ASPP(C, out, rates=rates, **options)).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def layer(values, conv, norm):
    """A 1 × 1 convolution of numbers, BN and ReLU."""
    out = []
    for o, weights in enumerate(conv.weight.flatten(1).tolist()):
        a = sum(w * v for w, v in zip(weights, values, strict=True))
        a = (a - norm.running_mean[o].item()) / math.sqrt(norm.running_var[o].item() + 1e-5)
        out.append(max(0.0, norm.weight[o].item() * a + norm.bias[o].item()))
    return out


def from_the_paper(x, aspp, rates):
    """Position by position: 1 × 1, y[i] = Σ x[i + r·k] w[k] for every rate, the mean, all joined and projected."""
    B, C, H, W = x.shape
    y = torch.zeros(B, aspp.out_channels, H, W, dtype=D)
    for b, row, col in ((b, r, c) for b in range(B) for r in range(H) for c in range(W)):
        conv, norm, _ = aspp.convs[0]
        joined = layer(x[b, :, row, col].tolist(), conv, norm)
        for m, r in enumerate(rates, 1):
            values = []
            for c in range(C):
                for i in (-r, 0, r):
                    for j in (-r, 0, r):
                        on_map = 0 <= row + i < H and 0 <= col + j < W
                        values.append(x[b, c, row + i, col + j].item() if on_map else 0.0)
            conv, norm, _ = aspp.convs[m]
            joined += layer(values, conv, norm)
        if aspp.image_pooling:
            _, conv, norm, _ = aspp.convs[len(rates) + 1]
            joined += layer([sum(x[b, c].flatten().tolist()) / (H * W) for c in range(C)], conv, norm)
        conv, norm, _, _ = aspp.project
        y[b, :, row, col] = torch.tensor(layer(joined, conv, norm), dtype=D)
    return y


@pytest.mark.parametrize("options", [dict(), dict(image_pooling=False), dict(rates=(3,))], ids=str)
@pytest.mark.parametrize(("H", "W"), [(4, 5), (1, 1), (7, 2)])
def test_equals_the_paper(H, W, options):
    aspp, x = make(**options), randn(2, 3, H, W)
    torch.testing.assert_close(aspp(x), from_the_paper(x, aspp, aspp.rates), rtol=0, atol=1e-11)


class Wrong(ASPP):
    """The mistakes that circulate, one at a time."""

    mistake = None

    def forward(self, x):
        size = x.shape[2:]
        f = [branch(x) for branch in self.convs[:-1]]
        if self.mistake == "padding without dilation":
            f[2] = F.relu(self.convs[2][1](F.conv2d(x, self.convs[2][0].weight, padding=1)))
        _, conv, norm, _ = self.convs[-1]
        pooled = x.mean((2, 3), keepdim=True)
        if self.mistake == "a window of fixed size":
            pooled = x[:, :, :3, :3].mean((2, 3), keepdim=True)
        if self.mistake == "maximum for mean":
            pooled = x.amax((2, 3), keepdim=True)
        g = conv(pooled) if self.mistake == "no BN of the pooled vector" else norm(conv(pooled))
        f.append(F.interpolate(F.relu(g), size))
        if self.mistake == "pooling first":
            f = [f[-1], *f[:-1]]
        if self.mistake == "no ReLU before the projection":
            f[0] = self.convs[0][1](self.convs[0][0](x))
        conv, norm, *_ = self.project
        if self.mistake == "branches added":
            return F.relu(norm(F.conv2d(sum(f), conv.weight[:, :2])))
        y = norm(conv(torch.cat(f, 1)))
        return y if self.mistake == "no ReLU at the end" else y.relu()


@pytest.mark.parametrize("mistake", [
    "padding without dilation", "a window of fixed size", "maximum for mean", "no BN of the pooled vector",
    "pooling first", "no ReLU before the projection", "branches added", "no ReLU at the end",
])
def test_the_comparison_with_the_paper_notices(mistake):
    aspp, x = make(), randn(2, 3, 4, 5)
    expected = from_the_paper(x, aspp, (1, 2, 6))
    wrong = Wrong(3, 2, rates=(1, 2, 6)).to(D).eval()
    wrong.load_state_dict(aspp.state_dict())
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-11)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_branches():
    aspp, x = make(), randn(2, 3, 4, 5)
    with attn_lib.trace() as t:
        y = aspp(x)
    assert t.names() == ["f", "f:2", "f:3", "f:4", "g", "y"] and t["g"].shape == (2, 2, 1, 1)
    assert torch.equal(t["y"], y) and torch.equal(t["f:3"], aspp.convs[2](x))


# ---- how many weights count ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 2, 4, 6, 9])
@pytest.mark.parametrize(("H", "W"), [(5, 8), (1, 1), (1, 4)])
def test_valid_weights_are_those_that_read_the_map(H, W, rate):
    expected = F.conv2d(torch.ones(1, 1, H, W), torch.ones(1, 1, 3, 3), padding=rate, dilation=rate)[0, 0]
    assert torch.equal(valid_weights(H, W, rate).float(), expected)


def test_valid_weights_fall_to_the_centre():
    shares = [valid_weights(65, 65, rate).float().mean().item() / 9 for rate in (1, 18, 36, 64, 65)]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.97 and shares[-1] == pytest.approx(1 / 9)
    assert (valid_weights(65, 65, 64) == 1).float().mean() > 0.9  # figure 4
    with pytest.raises(ValueError, match="rate=0 must be an integer of at least 1"):
        valid_weights(5, 5, 0)


# ---- the errata ------------------------------------------------------------------------------------------------------


def test_the_order_of_the_branches_is_that_of_the_projections_columns():
    """The release's columns put in our order: its first O, of the pooled vector, are our last."""
    aspp, x = make(), randn(2, 3, 4, 5)
    with attn_lib.trace() as t:
        y = aspp(x)
    theirs = torch.cat([t["g"].expand_as(t["f"]), t["f"], t["f:2"], t["f:3"], t["f:4"]], 1)
    columns = aspp.project[0].weight.roll(2, 1)  # as the release has them
    torch.testing.assert_close(aspp.project[1:](F.conv2d(theirs, columns)), y, rtol=0, atol=1e-12)
    assert (aspp.project[1:](F.conv2d(theirs, aspp.project[0].weight)) - y).abs().max() > 1e-2


def test_image_pooling_averages_the_whole_map():
    """So it is the same for an image laid out twice."""
    aspp, x = make(), randn(1, 3, 4, 5)
    aspp.convs[-1][2].bias.fill_(5.0)  # no ReLU is closed
    with attn_lib.trace() as t:
        aspp(x)
    with attn_lib.trace() as u:
        aspp(torch.cat([x, x], 3))
    torch.testing.assert_close(u["g"], t["g"], rtol=0, atol=1e-13)
    window = aspp.convs[-1](F.avg_pool2d(x, 4))  # of a training crop of 4
    assert (window - t["g"]).abs().max() > 1e-2


def test_dropout_is_an_option():
    x = torch.randn(4, 3, 6, 7)
    plain, half = ASPP(3, 32), ASPP(3, 32, dropout=0.5)
    half.load_state_dict(plain.state_dict())
    y, dropped = plain(x), half(x)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * y[kept])
    assert (dropped == 0).float().mean() - (y == 0).float().mean() == pytest.approx(0.25, abs=0.05)
    torch.testing.assert_close(half.eval()(x), plain.eval()(x), atol=1e-2, rtol=1e-2)


def test_running_statistics_decay_as_the_paper_says():
    aspp, x = ASPP(3, 4), torch.randn(4, 3, 6, 7)
    aspp(x)
    norms = [m for m in aspp.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 6 and {(m.momentum, m.eps) for m in norms} == {(3e-4, 1e-5)}
    means = aspp.convs[0][0](x).mean((0, 2, 3))
    torch.testing.assert_close(aspp.convs[0][1].running_mean, 3e-4 * means, rtol=1e-3, atol=1e-6)
    assert ASPP(3, 4, momentum=0.1).project[1].momentum == 0.1


def test_one_image_in_training_is_refused_with_a_sentence():
    aspp, x = ASPP(3, 4), torch.randn(1, 3, 6, 7)
    with pytest.raises(ValueError, match="x is a batch of 1; in training it must hold 2 images or more"):
        aspp(x)
    aspp.convs[-1][2].eval()
    assert aspp(x).isfinite().all() and aspp.eval()(x).isfinite().all()
    assert ASPP(3, 4, image_pooling=False)(x).isfinite().all()


@pytest.mark.parametrize(("options", "message"), [
    (dict(rates=()), r"rates=\(\) must hold one integer a branch"),
    (dict(rates=6), "rates=6 must hold"),
    (dict(rates=(6, 0)), "rates=0 must be an integer of at least 1"),
    (dict(momentum=1.5), "momentum=1.5 must be at most 1"),
    (dict(momentum=0), "momentum=0 must be a positive number"),
    (dict(dropout=1.0), "dropout=1.0 must be a number from 0 to below 1"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ASPP(4, **options)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_and_flops_do_not_know_the_rates():
    kept = []
    for rates in ((1, 2, 3), (6, 12, 18)):
        aspp = ASPP(8, 8, rates=rates)
        sizes = [measure.saved_bytes(aspp, torch.randn(2, 8, n, n)) for n in (16, 32, 64)]
        assert measure.fit_exponent([16**2, 32**2, 64**2], sizes) == pytest.approx(1, abs=0.02)
        kept.append((sizes, measure.flops(aspp, torch.randn(2, 8, 16, 16))))
    assert kept[0] == kept[1]
    N = 2 * 16 * 16
    assert kept[0][1] == 2 * 8 * 8 * (N * (1 + 3 * 9 + 5) + 2)  # 1 × 1, rates, projection, and the pooled vectors


# ---- reference package -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(13, 9), (1, 1), (20, 20)], ids=str)
def test_equals_torchvision_under_the_same_names(size):
    theirs = reference("torchvision.models.segmentation.deeplabv3").ASPP(6, [2, 6, 12], 4)
    ours = make(6, 4, rates=(2, 6, 12))
    theirs.to(D).eval().load_state_dict(ours.state_dict())
    x = randn(2, 6, *size)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-11)
