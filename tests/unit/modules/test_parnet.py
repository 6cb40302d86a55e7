"""ParNet's blocks against their paper, their release, their limits, and the errors in circulation.

No package that is kept well holds them.
"""

import copy
import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.channel_spatial import ParNetBlock, ParNetDownsampling, ParNetFusion
from tests.unit.draw import D, randn, randomised

CASES = [(4, 4, 5), (3, 1, 1), (2, 3, 1), (1, 2, 6)]  # C, H, W
DOWN = [(4, 6, 2, 1, 4, 6), (4, 4, 2, 2, 5, 7), (6, 4, 1, 2, 3, 4), (2, 3, 2, 1, 1, 1), (3, 2, 1, 1, 2, 5)]


def make(C=4, *, seed=0):
    return randomised(ParNetBlock(C), scale=0.7, seed=seed).requires_grad_(False)


def make_down(C, O, stride=2, groups=1, *, seed=0):  # noqa: E741
    net = ParNetDownsampling(C, O, stride=stride, groups=groups)
    return randomised(net, scale=0.7, seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def normalise(x, bn):
    """Batch normalisation of maps (B, C, H, W), channel by channel; over the batch itself in training."""
    out = torch.empty_like(x)
    for c in range(x.shape[1]):
        values = x[:, c].flatten().tolist()
        mean, variance = bn.running_mean[c].item(), bn.running_var[c].item()
        if bn.training:
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / len(values)
        scale = bn.weight[c].item() / math.sqrt(variance + bn.eps)
        out[:, c] = scale * (x[:, c] - mean) + bn.bias[c].item()
    return out


def convolved(x, conv):
    """Number by number, with zeros around the map."""
    B, C, H, W = x.shape
    O, share, k, _ = conv.weight.shape  # noqa: E741
    t, pad, weight = conv.stride[0], conv.padding[0], conv.weight.tolist()
    y = torch.zeros(B, O, (H + 2 * pad - k) // t + 1, (W + 2 * pad - k) // t + 1, dtype=D)
    for b, o, i, j in product(range(B), range(O), *map(range, y.shape[2:])):
        first = o // (O // (C // share)) * share
        for c, p, q in product(range(share), range(k), range(k)):
            h, w = i * t + p - pad, j * t + q - pad
            if 0 <= h < H and 0 <= w < W:
                y[b, o, i, j] += weight[o][c][p][q] * x[b, first + c, h, w].item()
    return y


def gates(x, Ws):
    """σ(W_s z), z the means of x: (B, O)."""
    z = torch.tensor([[sum(c.flatten().tolist()) / c.numel() for c in image] for image in x], dtype=D)
    return torch.tensor([[sigmoid(v) for v in row] for row in convolved(z[..., None, None], Ws)[..., 0, 0].tolist()],
                        dtype=D)


def silu(y):
    return torch.tensor([v * sigmoid(v) for v in y.flatten().tolist()], dtype=D).view(y.shape)


def from_the_paper(x, block):
    x_hat = normalise(x, block.norm)
    y = normalise(convolved(x, block.W3.conv), block.W3.bn) + normalise(convolved(x, block.W1.conv), block.W1.bn)
    return silu(y + gates(x_hat, block.Ws)[..., None, None] * x_hat)


def downsampled(x, net):
    """The release's block without a skip; pixels beyond the map count as zeros in the means."""
    B, C, H, W = x.shape
    means = x
    if net.stride == 2:
        means = torch.zeros(B, C, (H + 1) // 2, (W + 1) // 2, dtype=D)
        for i, j in product(range(H), range(W)):
            means[:, :, i // 2, j // 2] += x[:, :, i, j] / 4
    y = normalise(convolved(x, net.W3.conv), net.W3.bn) + normalise(convolved(means, net.W1.conv), net.W1.bn)
    y = silu(2 * gates(x, net.Ws)[..., None, None] * y)
    O, G = net.out_channels, net.groups  # noqa: E741
    return y[:, [(o % G) * (O // G) + o // G for o in range(O)]]  # place o takes from group o mod G


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("C", "H", "W"), CASES)
def test_equals_the_paper(C, H, W, training):
    block, x = make(C).train(training), randn(2, C, H, W)
    expected = from_the_paper(x, block)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-11)


class Wrong(ParNetBlock):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        e = self.mistake
        a, b = (m.conv(x) if e == "convolutions without a norm" else m(x) for m in (self.W3, self.W1))
        x_hat = x if e in ("gate of x, on x", "skip without a norm") else self.norm(x)
        seen = x if e in ("gate of x, on x", "gate of x, on x̂") else x_hat
        z = seen.amax((2, 3), keepdim=True) if e == "maximum for mean" else seen.mean((2, 3), keepdim=True)
        g = self.Ws(z)
        s = {"hidden ReLU": lambda g: self.Ws(F.relu(g)).sigmoid(), "ReLU gate": F.relu, "twice the sigmoid":
             lambda g: 2 * g.sigmoid(), "no gate": lambda g: g * 0 + 1}.get(e, torch.sigmoid)(g)
        if e == "gate on the sum":
            return F.silu(s * (a + b + x_hat))
        y = a + (0 if e == "no 1 × 1" else b) + (0 if e == "no skip" else s * x_hat)
        f = {"ReLU": F.relu, "sigmoid for SiLU": torch.sigmoid, "no activation": lambda y: y}.get(e, F.silu)
        return f(y)


MISTAKES = ["gate of x, on x", "gate of x, on x̂", "skip without a norm", "convolutions without a norm",
            "maximum for mean", "hidden ReLU", "ReLU gate", "twice the sigmoid", "no gate", "gate on the sum",
            "no 1 × 1", "no skip", "ReLU", "sigmoid for SiLU", "no activation"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    block, x = make(), randn(2, 4, 4, 5)
    wrong = Wrong(4).to(D).eval()
    wrong.load_state_dict(block.state_dict())
    expected = from_the_paper(x, block)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equation():
    block, x = make(), randn(2, 4, 4, 5)
    with attn_lib.trace() as t:
        y = block(x)
    assert t.names() == ["x_hat", "z", "s", "y"]
    inner = block.W3(x) + block.W1(x) + t["s"][..., None, None] * t["x_hat"]
    torch.testing.assert_close(y, F.silu(inner), rtol=0, atol=1e-14)


def test_nothing_but_the_norms_has_a_bias():
    for net in (ParNetBlock(4), ParNetDownsampling(4, 6), ParNetFusion(4, 6)):
        assert all(m.bias is None for m in net.modules() if isinstance(m, nn.Conv2d))
    assert sum(p.numel() for p in ParNetBlock(4).parameters()) == 11 * 4 * 4 + 3 * 2 * 4


# ---- the further blocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("C", "O", "stride", "groups", "H", "W"), DOWN)
def test_the_downsampling_block_is_the_releases(C, O, stride, groups, H, W, training):  # noqa: E741
    net, x = make_down(C, O, stride, groups).train(training), randn(2, C, H, W)
    torch.testing.assert_close(net(x), downsampled(x, net), rtol=0, atol=1e-11)


class WrongDown(ParNetDownsampling):
    """Readings of the downsampling block that differ from the release."""

    mistake = None

    def forward(self, x):
        e = self.mistake
        a, b = self.W3(x), self.W1(x[:, :, ::2, ::2] if e == "every other pixel" else self._means(x))
        s = self.Ws((a if e == "gate of the sum" else x).mean((2, 3), keepdim=True)).sigmoid()
        y = {"one sigmoid": s * (a + b), "gate on one branch": 2 * s * a + b}.get(e, 2 * s * (a + b))
        y = F.silu(y)
        return y if e == "no shuffle" else y.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


@pytest.mark.parametrize("mistake", ["every other pixel", "gate of the sum", "one sigmoid", "gate on one branch",
                                     "no shuffle"])
def test_the_comparison_with_the_release_notices(mistake):
    net, x = make_down(4, 4, 2, 2), randn(2, 4, 4, 6)
    wrong = WrongDown(4, 4, groups=2).to(D).eval()
    wrong.load_state_dict(net.state_dict())
    torch.testing.assert_close(wrong(x), downsampled(x, net), rtol=0, atol=1e-12)
    wrong.mistake = mistake
    assert (wrong(x) - downsampled(x, net)).abs().max() > 1e-2


def test_downsampling_takes_odd_sizes():
    net = make_down(4, 6)
    for H, W in ((5, 7), (1, 1), (1, 4), (3, 2)):
        x = randn(2, 4, H, W)
        assert net(x).shape == (2, 6, -(-H // 2), -(-W // 2))
        torch.testing.assert_close(net(x), downsampled(x, net), rtol=0, atol=1e-11)
    with pytest.raises(RuntimeError, match="must match the size"):  # the release: a mean that drops the last row
        x = randn(2, 4, 5, 7)
        net.W3(x) + net.W1(F.avg_pool2d(x, 2))


@pytest.mark.parametrize(("stride", "size"), [(2, (4, 6)), (2, (5, 3)), (1, (3, 4))])
def test_the_fusion_block_is_the_releases(stride, size):
    net = randomised(ParNetFusion(3, 4, stride=stride), scale=0.7).requires_grad_(False)
    one, two = randn(2, 3, *size), randn(2, 3, *size, seed=2)
    a, b = normalise(one, net.norm1), normalise(two, net.norm2)
    joined = torch.stack([a[:, 0], b[:, 0], a[:, 1], b[:, 1], a[:, 2], b[:, 2]], 1)
    torch.testing.assert_close(net(one, two), downsampled(joined, net.down), rtol=0, atol=1e-11)
    assert (net(two, one) - net(one, two)).abs().max() > 1e-2


@pytest.mark.parametrize(("make_one", "inputs"), [
    (lambda: ParNetDownsampling(4, 6), 1), (lambda: ParNetDownsampling(4, 6, stride=1, groups=2), 1),
    (lambda: ParNetFusion(4, 6), 2),
], ids=["downsampling", "stride 1", "fusion"])
def test_the_further_blocks_keep_the_contract(make_one, inputs):
    torch.manual_seed(0)
    net = make_one()
    xs = [torch.randn(4, 4, 5, 7, requires_grad=True) for _ in range(inputs)]
    net(*xs).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters()) and all(x.grad is not None for x in xs)
    net.eval()
    with attn_lib.trace() as t:
        y = net(*xs)
    assert t.names() == ["z", "s", "y"] and t.sizes()["O"] == 6 and torch.equal(t["y"], y)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(*xs), y)
    torch.testing.assert_close(torch.export.export(net, tuple(xs)).module()(*xs), y)
    for dtype in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(net).to(dtype)(*(x.to(dtype) for x in xs))
        assert half.dtype == dtype and (half.float() - y).abs().max() < 0.05 * y.abs().max()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: ParNetDownsampling(5, 6, groups=2), "channels=5 must be divisible by groups=2; 4 and 6 are"),
    (lambda: ParNetDownsampling(4, 6, stride=3), "stride=3 must be 1 or 2"),
    (lambda: ParNetFusion(4, 5), "out_channels=5 must be divisible by groups=2; 4 and 6 are"),
    (lambda: ParNetFusion(2, 4)(randn(1, 2, 4, 4), randn(1, 2, 4, 5)), r"x1 \(1, 2, 4, 4\) and x2 .* the same shape"),
    (lambda: ParNetFusion(2, 4)(randn(1, 2, 4, 4), randn(1, 3, 4, 4)), "x2 has shape .* axis C must be 2, not 3"),
    (lambda: ParNetBlock(4).fuse(), "training=True must be False to fuse"),
])
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- one convolution for two -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("name", ["block", "downsampling", "stride 1", "fusion"])
def test_a_fused_block_is_the_same_function(name, size):
    make_one = {"block": lambda: ParNetBlock(4), "downsampling": lambda: ParNetDownsampling(4, 6),
                "stride 1": lambda: ParNetDownsampling(4, 6, stride=1, groups=2), "fusion": lambda: ParNetFusion(4, 6)}
    net = randomised(make_one[name](), scale=0.7)
    xs = [randn(2, 4, *size, seed=seed) for seed in range(2 if name == "fusion" else 1)]
    before, kernels = net(*xs), sum(isinstance(m, nn.Conv2d) for m in net.modules())
    assert net.fuse() is net
    torch.testing.assert_close(net(*xs), before, rtol=0, atol=1e-12)
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == kernels - 1
    net.fuse()  # once more changes nothing
    torch.testing.assert_close(copy.deepcopy(net)(*xs), net(*xs), rtol=0, atol=0)


def test_a_fused_block_keeps_its_gated_skip_and_its_state():
    block, x = make(), randn(2, 4, 5, 7)
    expected = block(x)
    block.fuse()
    assert sorted(block.state_dict()) == ["W3.bias", "W3.weight", "Ws.weight", "norm.bias", "norm.num_batches_tracked",
                                          "norm.running_mean", "norm.running_var", "norm.weight"]
    fresh = ParNetBlock(4).to(D).eval().fuse()
    fresh.load_state_dict(block.state_dict())
    torch.testing.assert_close(fresh(x), expected, rtol=0, atol=1e-12)
    with attn_lib.trace() as t:
        fresh(x)
    torch.testing.assert_close(torch.compile(fresh, fullgraph=True, backend="aot_eager")(x), expected)
    assert "s" in t, "the skip is gated by the whole map, and so no convolution"


def test_without_skip_it_is_a_block_of_repvgg():
    """SSE off: 3 × 3 and 1 × 1, each normalised, and their sum is one convolution."""
    block, x = make(), randn(2, 4, 5, 7)
    block.norm.weight.fill_(0.0)
    block.norm.bias.fill_(0.0)
    expected = F.silu(block.W3(x) + block.W1(x))
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-13)
    block.fuse()
    torch.testing.assert_close(F.silu(F.conv2d(x, block.W3.weight, block.W3.bias, padding=1)), expected)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_positions_and_less_when_fused():
    sides = [(12, 16), (24, 16), (24, 32)]
    N = [h * w for h, w in sides]
    block, fused = ParNetBlock(8), ParNetBlock(8).eval().fuse()
    saved = {net: [measure.saved_bytes(net, torch.randn(2, 8, *side)) for side in sides] for net in (block, fused)}
    for net in saved:
        assert measure.fit_exponent(N, saved[net]) == pytest.approx(1, abs=0.02)
    map_bytes = 4 * 2 * 8 * N[-1]
    assert saved[block][-1] == pytest.approx(4 * map_bytes, rel=0.02)  # x̂, two convolutions, the sum
    assert saved[fused][-1] == pytest.approx(2 * map_bytes, rel=0.02)  # x̂ and the sum
    flops = [measure.flops(net.eval(), torch.randn(2, 8, 12, 16)) for net in (block, fused)]
    assert flops[0] - flops[1] == 2 * 2 * 8 * 8 * 12 * 16  # the 1 × 1
