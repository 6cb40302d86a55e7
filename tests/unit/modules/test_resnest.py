"""Split attention against its paper, its limits and timm, and against the errors in circulation."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.branch import SplitAttention
from tests.unit.draw import D, randn, randomised
from tests.unit.reference import reference

# options of the module, and H, W
CASES = [
    (dict(channels=4, min_dim=3), (4, 5)),
    (dict(channels=8, out_channels=4, cardinality=2, radix=2, stride=2, min_dim=2), (5, 4)),
    (dict(channels=3, radix=3, dilation=2, min_dim=2, reduction=1), (3, 6)),
    (dict(channels=4, radix=1, cardinality=2, min_dim=2, kernel_size=1), (2, 3)),
    (dict(channels=2, radix=1, min_dim=1), (1, 1)),
]


def make(channels=8, *, min_dim=4, seed=0, **options):
    return randomised(SplitAttention(channels, min_dim=min_dim, **options), scale=0.7, seed=seed).requires_grad_(False)


def run(module, x):
    with torch.no_grad(), attn_lib.trace() as t:
        V = module(x)
    return V, t


# ---- equation --------------------------------------------------------------------------------------------------------


def normalise(values, bn, channel):
    """Batch normalisation of one channel's list of numbers; over the list itself in training."""
    mean, variance = bn.running_mean[channel].item(), bn.running_var[channel].item()
    if bn.training:
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
    scale = bn.weight[channel].item() / math.sqrt(variance + bn.eps)
    return [scale * (v - mean) + bn.bias[channel].item() for v in values]


def from_the_paper(x, net):
    """Cardinal group by cardinal group, split by split, in plain numbers: g, m and o are the paper's k, i and c."""
    B, C, H, W = x.shape
    O, G, M, t = net.out_channels, net.cardinality, net.radix, net.conv.stride[0]  # noqa: E741
    k, dilation, pad = net.conv.kernel_size[0], net.conv.dilation[0], net.conv.padding[0]
    Ho, Wo = (H - 1) // t + 1, (W - 1) // t + 1
    share, width, Cr = C // (M * G), O // G, net.fc1.out_channels
    places = list(product(range(B), range(Ho), range(Wo)))
    U = torch.zeros(B, M, G, width, Ho, Wo, dtype=D)
    for m, g, o in product(range(M), range(G), range(width)):
        row, first = m * O + g * width + o, (m * G + g) * share  # radix-major: of the kernel, and of its input
        kernel, values = net.conv.weight[row].tolist(), []
        for b, i, j in places:
            total = 0.0
            for c, p, q in product(range(share), range(k), range(k)):
                h, w = i * t + p * dilation - pad, j * t + q * dilation - pad
                if 0 <= h < H and 0 <= w < W:
                    total += kernel[c][p][q] * x[b, first + c, h, w].item()
            values.append(total)
        for (b, i, j), v in zip(places, normalise(values, net.bn0, row), strict=True):
            U[b, m, g, o, i, j] = max(0.0, v)
    V = torch.zeros(B, G, width, Ho, Wo, dtype=D)
    for g in range(G):
        s = [[U[b, :, g, o].sum().item() / (Ho * Wo) for o in range(width)] for b in range(B)]       # eq. 1
        z = torch.zeros(B, Cr // G, dtype=D)
        for n in range(Cr // G):
            row = g * (Cr // G) + n
            weight, bias = net.fc1.weight[row].flatten().tolist(), net.fc1.bias[row].item()
            products = [bias + sum(w * v for w, v in zip(weight, s_b, strict=True)) for s_b in s]
            z[:, n] = torch.tensor([max(0.0, v) for v in normalise(products, net.bn1, row)], dtype=D)
        for b, o in product(range(B), range(width)):
            logits = []
            for m in range(M):
                row = g * M * width + m * width + o  # cardinality-major
                logits.append(net.fc2.bias[row].item() + sum(
                    w * v for w, v in zip(net.fc2.weight[row].flatten().tolist(), z[b].tolist(), strict=True)))
            e = [math.exp(v) for v in logits]
            a = [v / sum(e) for v in e] if M > 1 else [e[0] / (1 + e[0])]                            # eq. 3
            V[b, g, o] = sum(a[m] * U[b, m, g, o] for m in range(M))                                 # eq. 2
    return V.flatten(1, 2)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("options", "size"), CASES)
def test_equals_the_paper(options, size, training):
    net = make(**options).train(training)
    x = randn(3, net.channels, *size)
    torch.testing.assert_close(run(net, x)[0], from_the_paper(x, net), rtol=0, atol=1e-11)


class Wrong(SplitAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        e, M, O, G = self.mistake, self.radix, self.out_channels, self.cardinality  # noqa: E741
        y = self.conv(x)
        y = y if e == "no BN before the sum" else self.bn0(y)
        y = y if e == "no ReLU before the sum" else F.relu(y)
        U = y.unflatten(1, (O, M)).transpose(1, 2) if e == "splits interleaved" else y.unflatten(1, (M, O))
        if e == "cardinality-major convolution":
            U = y.unflatten(1, (G, M, O // G)).transpose(1, 2).flatten(2, 3)
        s = {"mean for sum": U.mean(1), "first split alone": U[:, 0]}.get(e, U.sum(1))
        s = s.amax((2, 3), keepdim=True) if e == "maximum for mean" else s.mean((2, 3), keepdim=True)
        z = self.fc1(s) - (self.fc1.bias[:, None, None] if e == "bias of fc1 dropped" else 0)
        z = z if e == "no BN of s" else self.bn1(z)
        logits = self.fc2(z if e == "no ReLU after BN" else F.relu(z))
        if e == "radix-major logits":
            logits = logits.view(-1, M, O)
        else:
            logits = logits.view(-1, G, M, O // G).transpose(1, 2).flatten(2)
        axis = {"softmax over channels": 2, "softmax over the batch": 0}.get(e, 1)
        a = logits.sigmoid() if e == "sigmoid" or (M == 1 and e != "softmax of one split") else logits.softmax(axis)
        return (U * a[..., None, None]).sum(1) + (U.sum(1) if e == "U added" else 0)


MISTAKES = [
    "no BN before the sum", "no ReLU before the sum", "splits interleaved", "cardinality-major convolution",
    "mean for sum", "first split alone", "maximum for mean", "bias of fc1 dropped", "no BN of s", "no ReLU after BN",
    "radix-major logits", "softmax over channels", "softmax over the batch", "sigmoid", "U added",
]


@pytest.mark.parametrize("mistake", [*MISTAKES, "softmax of one split"])
def test_the_comparison_with_the_paper_notices(mistake):
    options = dict(cardinality=2, radix=1 if mistake == "softmax of one split" else 2)
    net, x = make(**options), randn(2, 8, 3, 4)
    expected = from_the_paper(x, net)
    wrong = Wrong(8, min_dim=4, **options).to(D).eval()
    wrong.load_state_dict(net.state_dict())
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    net, x = make(cardinality=2), randn(2, 8, 4, 5)
    V, t = run(net, x)
    assert t.names() == ["U_m", "s", "z", "a", "V"] and t.dims("U_m") == "B M O Ho Wo" and t.dims("a") == "B M O"
    torch.testing.assert_close(t["a"].sum(1), torch.ones(2, 8, dtype=D))
    torch.testing.assert_close(V, (t["a"][..., None, None] * t["U_m"]).sum(1), rtol=0, atol=1e-13)


# ---- traps -----------------------------------------------------------------------------------------------------------


def test_each_split_sees_its_own_share_of_the_input():
    """With one cardinal group and two splits: each half of the channels reaches one split alone, unlike in SKNet."""
    net, x = make(), randn(2, 8, 5, 7)
    other = x.clone()
    other[:, :4] += 1.0
    one, two = (run(net, t)[1]["U_m"] for t in (x, other))
    assert torch.equal(one[:, 1], two[:, 1]) and (one[:, 0] - two[:, 0]).abs().max() > 0.1
    assert net.conv.weight.shape == (16, 4, 3, 3)


@pytest.mark.parametrize("mistake", ["radix-major logits", "cardinality-major convolution"])
def test_orders_of_the_splits_are_a_trap(mistake):
    """With one cardinal group, or one split, the orders are the same, and a test of those proves nothing."""
    x = randn(2, 8, 3, 4)
    for options, differs in ((dict(), False), (dict(cardinality=2, radix=1), False), (dict(cardinality=2), True)):
        net, wrong = make(**options), Wrong(8, min_dim=4, **options).to(D).eval()
        wrong.load_state_dict(net.state_dict())
        wrong.mistake = mistake
        assert ((wrong(x) - net(x)).abs().max() > 1e-2) == differs


def test_cardinal_groups_are_modules_of_their_own():
    """Two cardinal groups side by side see nothing of each other."""
    net, x = make(cardinality=2), randn(2, 8, 4, 5)
    other = x.clone()
    other[:, [2, 3, 6, 7]] += 1.0  # what both splits of the second group convolve
    assert torch.equal(net(x)[:, :4], net(other)[:, :4])
    assert (net(x)[:, 4:] - net(other)[:, 4:]).abs().max() > 0.1


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=9), "channels=9 must be divisible by radix·cardinality=2; 8 and 10 are"),
    (dict(channels=12, out_channels=10, cardinality=3), "out_channels=10 must be divisible by cardinality=3; 9 and 12"),
    (dict(channels=12, cardinality=3), r"min_dim\)=32 must be divisible by cardinality=3; 30 and 33 are"),
    (dict(channels=8, radix=0), "radix=0 must be an integer of at least 1"),
    (dict(channels=8, min_dim=0), "min_dim=0 must be an integer of at least 1"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SplitAttention(**options)


def test_a_batch_of_one_is_refused_in_training_alone():
    net, x = make(), randn(1, 8, 5, 7)
    net.eval()(x)
    with pytest.raises(ValueError, match="x is a batch of 1; in training it must hold 2 images or more"):
        net.train()(x)


@pytest.mark.parametrize(("channels", "options", "Cr"), [
    (64, {}, 32), (128, {}, 64), (256, {}, 128), (64, dict(radix=1), 32), (64, dict(radix=4), 64),
    (64, dict(out_channels=256), 32),  # the input's channels count
])
def test_width_of_z(channels, options, Cr):
    net = SplitAttention(channels, **options)
    assert net.fc1.out_channels == net.bn1.num_features == Cr
    assert net.conv.bias is None and net.fc1.bias is not None and net.fc2.bias is not None


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_positions_and_the_splits_share_one_convolution():
    sides = [(12, 16), (24, 16), (24, 32)]
    N = [h * w for h, w in sides]
    saved = {M: [measure.saved_bytes(SplitAttention(16, radix=M), torch.randn(2, 16, *side)) for side in sides]
             for M in (1, 2, 4)}
    for M in saved:
        assert measure.fit_exponent(N, saved[M]) == pytest.approx(1, abs=0.05)
    # a split keeps its convolution's result and its own
    assert saved[4][-1] - saved[2][-1] == pytest.approx(2 * 2 * 4 * 2 * 16 * N[-1], rel=0.02)
    # a grouped convolution: M times the maps, and no more multiply-adds than one of them
    assert SplitAttention(16, radix=4).conv.weight.numel() == SplitAttention(16, radix=1).conv.weight.numel()


# ---- reference package -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("C", "options", "theirs"), [
    (32, {}, {}), (32, dict(radix=1), dict(radix=1)), (48, dict(radix=4, cardinality=2), dict(radix=4, groups=2)),
    (32, dict(out_channels=64, stride=2), dict(out_channels=64, stride=2)), (24, dict(radix=3), dict(radix=3)),
])
def test_equals_timm(C, options, theirs, training):
    timm = reference("timm.layers.split_attn")
    ours = make(C, min_dim=32, **options).train(training)
    theirs = timm.SplitAttn(C, norm_layer=nn.BatchNorm2d, **theirs).to(D).train(training)
    theirs.load_state_dict(ours.state_dict())  # the same names, shapes and orders
    x = randn(3, C, 5, 4)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-10)


def test_timm_rounds_the_hidden_width():
    timm = reference("timm.layers.split_attn")
    assert timm.SplitAttn(72, norm_layer=nn.BatchNorm2d).fc1.out_channels == 40
    assert SplitAttention(72).fc1.out_channels == 36
