"""Gather-Excite, its four forms, against its paper, its limits and timm, and against the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.spatial import GatherExcite
from tests.unit.draw import D, randn, randomised
from tests.unit.reference import reference

FORMS = [("mean", "sigmoid"), ("mean", "mlp"), ("conv", "sigmoid"), ("conv", "mlp")]
CASES = [(2, (5, 7)), (4, (6, 9)), (8, (9, 4)), (2, (1, 1)), (4, (1, 6)), (None, (4, 5))]


def make(gather="mean", excite="sigmoid", extent=2, size=(5, 7), channels=4, seed=0, **options):
    if gather == "conv" and extent is None:
        options |= dict(height=size[0], width=size[1])
    ge = GatherExcite(channels, extent=extent, gather=gather, excite=excite, reduction=2, **options)
    return randomised(ge, scale=0.7, seed=seed)


# ---- equation --------------------------------------------------------------------------------------------------------


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def window_sum(channel, weight, top, left):
    """Σ of weight times pixel over a window whose first pixel is (top, left), and how many of its pixels there are."""
    H, W = len(channel), len(channel[0])
    there = [(i, j) for i in range(len(weight)) for j in range(len(weight[0]))
             if 0 <= top + i < H and 0 <= left + j < W]
    return sum(weight[i][j] * channel[top + i][left + j] for i, j in there), len(there)


def normalised(maps, bn, c):
    """Batch normalisation of channel c over a list of maps, one an image."""
    mean, variance = bn.running_mean[c].item(), bn.running_var[c].item()
    if bn.training:
        values = [v for m in maps for row in m for v in row]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
    a = bn.weight[c].item() / math.sqrt(variance + bn.eps)
    return [[[a * (v - mean) + bn.bias[c].item() for v in row] for row in m] for m in maps]


def from_the_paper(x, ge):
    """x̂, the excitation and y in plain numbers."""
    B, C, H, W = x.shape
    e = ge.extent
    gathered = []  # channel, image, row, column
    for c in range(C):
        maps = x[:, c].tolist()
        if ge.gather is None and e is None:
            maps = [[[sum(map(sum, m)) / (H * W)]] for m in maps]
        elif ge.gather is None:
            ones, new = [[1.0] * (2 * e - 1)] * (2 * e - 1), []
            for m in maps:
                sums = [[window_sum(m, ones, p * e - e + 1, q * e - e + 1) for q in range(-(-W // e))]
                        for p in range(-(-H // e))]
                new.append([[s / ((2 * e - 1) ** 2 if ge.count_padding else n) for s, n in row] for row in sums])
            maps = new
        else:
            layers = list(ge.gather)
            while layers:
                conv, bn = layers.pop(0), layers.pop(0)
                w = conv.weight[c, 0].tolist()
                if e is None:
                    maps = [[[window_sum(m, w, 0, 0)[0]]] for m in maps]
                else:
                    maps = [[[window_sum(m, w, 2 * p - 1, 2 * q - 1)[0] for q in range((len(m[0]) + 1) // 2)]
                             for p in range((len(m) + 1) // 2)] for m in maps]
                maps = normalised(maps, bn, c)
                if layers:
                    layers.pop(0)
                    maps = [[[max(0.0, v) for v in row] for row in m] for m in maps]
        gathered.append(maps)
    P, Q = len(gathered[0][0]), len(gathered[0][0][0])
    y = torch.zeros_like(x)
    for b in range(B):
        for i in range(H):
            for j in range(W):
                v = [gathered[c][b][i * P // H][j * Q // W] for c in range(C)]
                if ge.excite == "mlp":
                    if ge.gather is not None:
                        v = [max(0.0, n) for n in v]
                    for layer, last in ((ge.W1, False), (ge.W2, True)):
                        v = [sum(w * n for w, n in zip(row, v, strict=True)) + bias for row, bias in
                             zip(layer.weight[:, :, 0, 0].tolist(), layer.bias.tolist(), strict=True)]
                        v = v if last else [max(0.0, n) for n in v]
                for c in range(C):
                    y[b, c, i, j] = x[b, c, i, j] * sigmoid(v[c])
    return y


@pytest.mark.parametrize(("gather", "excite"), FORMS)
@pytest.mark.parametrize(("extent", "size"), CASES)
def test_equals_the_paper(extent, size, gather, excite):
    ge, x = make(gather, excite, extent, size), randn(2, 4, *size)
    torch.testing.assert_close(ge(x), from_the_paper(x, ge), rtol=0, atol=1e-12)


@pytest.mark.parametrize("extent", [4, None])
def test_equals_the_paper_in_training(extent):
    ge, x = make("conv", "mlp", extent).train(), randn(2, 4, 5, 7)
    torch.testing.assert_close(ge(x), from_the_paper(x, ge), rtol=0, atol=1e-12)


class Wrong(GatherExcite):
    """The errors in circulation, one at a time."""

    mistake = None

    def forward(self, x):
        e, layers = self.extent, list(self.gather or [])
        if layers:
            if self.mistake == "no ReLU between":
                layers = [layer for layer in layers if not isinstance(layer, torch.nn.ReLU)]
            if self.mistake == "no BN":
                layers = [layer for layer in layers if not isinstance(layer, torch.nn.BatchNorm2d)]
            if self.mistake == "ReLU before the sigmoid":
                layers.append(torch.nn.ReLU())
            x_hat = torch.nn.Sequential(*layers)(x)
        elif self.mistake == "window e":
            x_hat = F.avg_pool2d(x, e, e, ceil_mode=True, count_include_pad=False)
        else:
            x_hat = F.avg_pool2d(x, 2 * e - 1, e, e - 1, count_include_pad=self.mistake == "padding counts")
        if self.excite == "mlp":
            x_hat = x_hat if self.mistake == "no ReLU before the MLP" or not layers else x_hat.relu()
            bias = (None, None) if self.mistake == "biases dropped" else (self.W1.bias, self.W2.bias)
            x_hat = F.conv2d(F.conv2d(x_hat, self.W1.weight, bias[0]).relu(), self.W2.weight, bias[1])
        mode = dict(mode="bilinear") if self.mistake == "bilinear" else dict(mode="nearest")
        s = F.interpolate(x_hat, x.shape[2:], **mode)
        s = s.softmax(1) if self.mistake == "softmax" else s.sigmoid()
        return x * s + (x if self.mistake == "residual" else 0)


@pytest.mark.parametrize(("form", "mistake"), [
    *((("mean", "sigmoid"), m) for m in ("window e", "padding counts", "bilinear", "softmax", "residual")),
    *((("mean", "mlp"), m) for m in ("biases dropped", "bilinear")),
    *((("conv", "sigmoid"), m) for m in ("no ReLU between", "no BN", "ReLU before the sigmoid")),
    *((("conv", "mlp"), m) for m in ("no ReLU before the MLP", "biases dropped")),
])
def test_the_comparison_with_the_paper_notices(form, mistake):
    ge, x = make(*form, extent=4), randn(2, 4, 9, 7)
    wrong = Wrong(4, extent=4, gather=form[0], excite=form[1], reduction=2).to(D).eval()
    wrong.load_state_dict(ge.state_dict())
    expected = from_the_paper(x, ge)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # nothing else differs
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


# ---- what is read differently ----------------------------------------------------------------------------------------


def gathered(ge, x):
    with torch.no_grad(), attn_lib.trace() as t:
        ge(x)
    return t["x_hat"]


@pytest.mark.parametrize("gather", ["mean", "conv"])
@pytest.mark.parametrize("e", [2, 4, 8])
def test_extent_of_the_gather_is_2e_minus_1(e, gather):
    """As in the authors' figures: 15 × 15 at stride 8, sizes rounded up. Counted by which pixels one entry sees."""
    ge = make(gather, extent=e, channels=1)
    for layer in ge.gather or []:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.constant_(layer.weight, 0.1)
        elif isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(layer.bias, 10.0)  # no ReLU is closed
    x = randn(1, 1, 5 * e + 1, 4 * e).requires_grad_()
    with attn_lib.trace() as t:
        ge(x)
    assert t["x_hat"].shape[2:] == (6, 4)
    t["x_hat"][0, 0, 2, 1].backward()
    rows, cols = x.grad[0, 0].nonzero().unbind(1)
    assert (rows.min(), rows.max()) == (2 * e - (e - 1), 2 * e + (e - 1)), "centred at row 2e"
    assert (cols.min(), cols.max()) == (1, 2 * e - 1) and len(rows) == (2 * e - 1) ** 2


def test_padding_counts_only_on_request():
    x = torch.ones(1, 4, 9, 7, dtype=D)
    torch.testing.assert_close(gathered(make(extent=4), x), torch.ones(1, 4, 3, 2, dtype=D))
    counted = gathered(make(extent=4, count_padding=True), x)
    torch.testing.assert_close(counted[0, 0, 0, 0].item(), 16 / 49)
    torch.testing.assert_close(counted[0, 0, 1, 1].item(), 1 - 7 / 49)  # one column is beyond the border
    other = make(extent=4, count_padding=True)
    torch.testing.assert_close(other(x), from_the_paper(x, other))


def test_the_gate_is_constant_on_cells():
    ge, x = make(extent=4), randn(1, 4, 8, 12)
    gate = ge(x) / x
    cells = F.interpolate(gate[..., ::4, ::4], scale_factor=4, mode="nearest")
    torch.testing.assert_close(gate, cells, rtol=1e-9, atol=0)
    bilinear = gathered(ge, x).sigmoid()
    assert (F.interpolate(bilinear, (8, 12), mode="bilinear") - gate).abs().max() > 1e-2


def test_two_lights_on_one_scene():
    """The global gather sees one exposure; a near one sees both."""
    x = torch.ones(1, 4, 16, 32, dtype=D)
    x[..., :16] = 3.0
    x[..., 16:] = -3.0
    wide, near = make(extent=None)(x) / x, make(extent=4)(x) / x
    assert wide.std() < 1e-12 and near[..., 0].mean() > 0.9 and near[..., -1].mean() < 0.1


# ---- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("e", [2, 4, 8, None])
def test_without_weights_equals_timm(e):
    timm = reference("timm.layers.gather_excite")
    x = randn(2, 4, 9, 14)
    theirs = timm.GatherExcite(4, extent=e or 0, use_mlp=False)
    torch.testing.assert_close(make(extent=e)(x), theirs(x), rtol=0, atol=1e-13)


def test_timm_cannot_make_the_forms_with_weights():
    timm = reference("timm.layers.gather_excite")
    for options in (dict(), dict(use_mlp=False, extra_params=True, extent=4)):
        with pytest.raises(Exception):  # noqa: B017  (what it raises depends on its version)
            timm.GatherExcite(16, **options)


def test_weights_are_those_of_the_release_by_name():
    """gather, gather/bn, excite/1x1_down and excite/1x1_up of the global forms."""
    names = set(make("conv", "mlp", None, (14, 14)).state_dict())
    assert {n for n in names if "running" not in n and "batches" not in n} == {
        "gather.0.weight", "gather.1.weight", "gather.1.bias", "W1.weight", "W1.bias", "W2.weight", "W2.bias"}
    assert make("conv", "mlp", None, (14, 14)).gather[0].weight.shape == (4, 1, 14, 14)


# ---- cost and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gather", "excite"), FORMS)
def test_memory_grows_with_the_pixels(gather, excite):
    ge = GatherExcite(8, extent=8, gather=gather, excite=excite, reduction=2)
    saved = {2 * n * n: measure.saved_bytes(lambda x: ge(x * 2), torch.randn(2, 8, n, 2 * n)) for n in (16, 32, 64)}
    assert measure.fit_exponent(list(saved), list(saved.values())) == pytest.approx(1, abs=0.05), saved


def test_parameters_are_counted():
    def count(**options):
        return sum(p.numel() for p in GatherExcite(32, **options).parameters())

    assert count() == count(extent=8) == 0
    assert count(extent=8, gather="conv") == 3 * 32 * (9 + 2)
    assert count(gather="conv", height=7, width=6) == 32 * (42 + 2)
    assert count(excite="mlp") == 2 * 32 * 2 + 2 + 32


@pytest.mark.parametrize(("options", "message"), [
    (dict(extent=6, gather="conv"), "extent=6 must be a power of two with gather='conv'; 4 and 8 are"),
    (dict(extent=1, gather="conv"), "extent=1 must be a power of two with gather='conv'; 2 and 4 are"),
    (dict(gather="conv"), "height=None and width=None must be the size of the map, such as 14 and 14"),
    (dict(height=5, width=5), "height=5 and width=5 must be None"),
    (dict(gather="max"), "gather='max' must be one of 'mean', 'conv'"),
    (dict(excite="mlp", reduction=9), "reduction=9 must be at most channels=8"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        GatherExcite(8, **options)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="axis H must be 5, not 6"):
        make("conv", extent=None)(randn(1, 4, 6, 7))
    with pytest.raises(ValueError, match="x is a batch of 1 whose gathered map has one number a channel"):
        make("conv", extent=8).train()(randn(1, 4, 8, 7))
    make("conv", extent=8).train()(randn(1, 4, 9, 7))
