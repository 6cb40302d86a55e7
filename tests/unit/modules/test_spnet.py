"""Strip pooling and mixed pooling against their paper, their limits and timm, and against the errors in circulation."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.spatial import MixedPooling, StripPooling
from tests.unit.draw import D, randn, randomised
from tests.unit.reference import reference

SIZES = [(5, 7), (4, 3), (2, 6), (1, 5), (1, 1)]


def spm(channels=3, norm=True, seed=0):
    return randomised(StripPooling(channels, norm=norm), scale=0.7, seed=seed)


def mpm(channels=8, pools=(4, 3), seed=7):
    """With a seed at which no ReLU is closed everywhere."""
    return randomised(MixedPooling(channels, pools=pools), scale=0.7, seed=seed)


# ---- equation --------------------------------------------------------------------------------------------------------


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def convolution(x, weight):
    """Lists [channel][row][column] of one image, zeros outside, no bias."""
    H, W = len(x[0]), len(x[0][0])
    up, left = len(weight[0][0]) // 2, len(weight[0][0][0]) // 2
    return [[[sum(kernel[c][p][q] * x[c][i + p - up][j + q - left]
                  for c, p, q in product(range(len(x)), range(2 * up + 1), range(2 * left + 1))
                  if 0 <= i + p - up < H and 0 <= j + q - left < W)
              for j in range(W)] for i in range(H)] for kernel in weight]


def normalised(images, bn):
    """Batch normalisation of lists [image][channel][row][column]."""
    out = [[None] * bn.num_features for _ in images]
    for c in range(bn.num_features):
        mean, variance = bn.running_mean[c].item(), bn.running_var[c].item()
        if bn.training:
            values = [v for x in images for row in x[c] for v in row]
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / len(values)
        a = bn.weight[c].item() / math.sqrt(variance + bn.eps)
        for b, x in enumerate(images):
            out[b][c] = [[a * (v - mean) + bn.bias[c].item() for v in row] for row in x[c]]
    return out


def rectified(images):
    return [[[[max(0.0, v) for v in row] for row in channel] for channel in x] for x in images]


def strips(images):
    """Means along the rows, H × 1, and along the columns, 1 × W."""
    rows = [[[[sum(row) / len(row)] for row in channel] for channel in x] for x in images]
    columns = [[[[sum(c) / len(c) for c in zip(*channel, strict=True)]] for channel in x] for x in images]
    return rows, columns


def summed(*maps):
    """Maps of sizes that are broadcast, added."""
    H, W = max(len(m[0][0]) for m in maps), max(len(m[0][0][0]) for m in maps)
    return [[[[sum(m[b][c][i % len(m[b][c])][j % len(m[b][c][0])] for m in maps) for j in range(W)] for i in range(H)]
             for c in range(len(maps[0][0]))] for b in range(len(maps[0]))]


def spm_from_the_paper(x, m):
    """Eqs. 1 to 4 in plain numbers, with the release's BN and ReLU where `norm` asks for them."""
    rows, columns = strips(x.tolist())
    yh = [convolution(image, m.conv1.weight.tolist()) for image in rows]
    yv = [convolution(image, m.conv2.weight.tolist()) for image in columns]
    if m.norm:
        y = rectified(summed(normalised(yh, m.bn1), normalised(yv, m.bn2)))
    else:
        y = summed(yh, yv)
    z = torch.zeros_like(x)
    f, bias = m.conv3.weight[:, :, 0, 0].tolist(), m.conv3.bias.tolist()
    for b, c, i, j in product(*map(range, x.shape)):
        logit = bias[c] + sum(f[c][k] * y[b][k][i][j] for k in range(len(y[b])))
        z[b, c, i, j] = x[b, c, i, j] * sigmoid(logit)
    return z


def pooled(channel, side):
    """Adaptive means: row p of `side` rows is that of rows ⌊pH/side⌋ to ⌈(p+1)H/side⌉."""
    H, W = len(channel), len(channel[0])
    out = []
    for p in range(side):
        out.append([])
        for q in range(side):
            values = [channel[i][j] for i in range(p * H // side, -(-(p + 1) * H // side))
                      for j in range(q * W // side, -(-(q + 1) * W // side))]
            out[-1].append(sum(values) / len(values))
    return out


def enlarged(channel, H, W):
    """Bilinear, the corners of both grids on each other."""
    def at(i, n, size):
        return i * (n - 1) / (size - 1) if size > 1 else 0.0

    n, m = len(channel), len(channel[0])
    return [[sum(channel[p][q] * max(0.0, 1 - abs(at(i, n, H) - p)) * max(0.0, 1 - abs(at(j, m, W) - q))
                 for p in range(n) for q in range(m)) for j in range(W)] for i in range(H)]


def mpm_from_the_paper(x, m):
    """The mixed pooling module in plain numbers."""
    H, W = x.shape[2:]

    def layer(name, images):
        conv, bn, *relu = getattr(m, name)
        images = normalised([convolution(image, conv.weight.tolist()) for image in images], bn)
        return rectified(images) if relu else images

    x1, x2 = layer("conv1_1", x.tolist()), layer("conv1_2", x.tolist())
    near = [layer("conv2_0", x1)]
    for name, side in (("conv2_1", m.pools[0]), ("conv2_2", m.pools[1])):
        small = layer(name, [[pooled(channel, side) for channel in image] for image in x1])
        near.append([[enlarged(channel, H, W) for channel in image] for image in small])
    u = layer("conv2_5", rectified(summed(*near)))
    rows, columns = strips(x2)
    v = layer("conv2_6", rectified(summed(layer("conv2_3", columns), layer("conv2_4", rows))))
    both = layer("conv3", [a + b for a, b in zip(u, v, strict=True)])
    return torch.tensor(rectified(summed(x.tolist(), both)), dtype=D)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_strip_pooling_equals_the_paper(size, norm):
    m, x = spm(norm=norm), randn(2, 3, *size)
    torch.testing.assert_close(m(x), spm_from_the_paper(x, m), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "pools"), [((5, 7), (4, 3)), ((4, 6), (2, 1)), ((3, 2), (5, 4)), ((1, 1), (2, 3))])
def test_mixed_pooling_equals_the_paper(size, pools):
    m, x = mpm(8, pools), randn(2, 8, *size)
    torch.testing.assert_close(m(x), mpm_from_the_paper(x, m), rtol=0, atol=1e-12)


def test_both_equal_the_paper_in_training():
    m, x = spm().train(), randn(2, 3, 4, 5)
    torch.testing.assert_close(m(x), spm_from_the_paper(x, m), rtol=0, atol=1e-12)
    m, x = mpm().train(), randn(2, 8, 4, 5)
    torch.testing.assert_close(m(x), mpm_from_the_paper(x, m), rtol=0, atol=1e-12)


class Wrong(StripPooling):
    """The errors in circulation, one at a time."""

    mistake = None

    def forward(self, x):
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True)
        if self.mistake == "maximum":
            rows, columns = x.amax(3, keepdim=True), x.amax(2, keepdim=True)
        if self.mistake == "1 × 1 kernels":
            yh, yv = F.conv2d(rows, self.conv1.weight[:, :, 1:2]), F.conv2d(columns, self.conv2.weight[..., 1:2])
        elif self.mistake == "across the strip":
            yh = F.conv2d(rows, self.conv2.weight, padding=(0, 1))
            yv = F.conv2d(columns, self.conv1.weight, padding=(1, 0))
        else:
            yh, yv = self.conv1(rows), self.conv2(columns)
        if self.mistake != "no BN":
            yh, yv = self.bn1(yh), self.bn2(yv)
        y = yh * yv if self.mistake == "product" else yh + yv
        y = y if self.mistake == "no ReLU" else y.relu()
        y = F.conv2d(y, self.conv3.weight, None if self.mistake == "bias dropped" else self.conv3.bias)
        s = y.softmax(1) if self.mistake == "softmax" else y.sigmoid()
        return {"the gate alone": s.expand_as(x), "residual": x + x * s, "no sigmoid": x * y}.get(self.mistake, x * s)


@pytest.mark.parametrize("mistake", ["maximum", "1 × 1 kernels", "across the strip", "no BN", "product", "no ReLU",
                                     "bias dropped", "softmax", "the gate alone", "residual", "no sigmoid"])
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = spm(), randn(2, 3, 5, 7)
    wrong = Wrong(3).to(D).eval()
    wrong.load_state_dict(m.state_dict())
    expected = spm_from_the_paper(x, m)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # nothing else differs
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


class WrongMixed(MixedPooling):
    """Mistakes in the other module."""

    mistake = None

    def forward(self, x):
        x1, x2 = self.conv1_1(x), self.conv1_2(x)
        if self.mistake == "one reduction":
            x2 = x1
        near = self.conv2_0(x1)
        corners = dict(align_corners=self.mistake != "borders on each other", mode="bilinear")
        for conv, side in zip((self.conv2_1, self.conv2_2), self.pools, strict=True):
            near = near + F.interpolate(conv(F.adaptive_avg_pool2d(x1, side)), x.shape[2:], **corners)
        far = self.conv2_3(x2.mean(2, keepdim=True)) + self.conv2_4(x2.mean(3, keepdim=True))
        u, v = self.conv2_5(near.relu()), self.conv2_6(far.relu())
        out = self.conv3(torch.cat([v, u] if self.mistake == "strips first" else [u, v], 1))
        return {"a gate": x * out.sigmoid(), "no last ReLU": x + out, "no residual": out.relu()}.get(
            self.mistake, (x + out).relu())


@pytest.mark.parametrize("mistake", ["one reduction", "borders on each other", "strips first", "a gate",
                                     "no last ReLU", "no residual"])
def test_the_comparison_notices_in_mixed_pooling(mistake):
    m, x = mpm(8), randn(2, 8, 6, 7)
    wrong = WrongMixed(8, pools=(4, 3)).to(D).eval()
    wrong.load_state_dict(m.state_dict())
    expected = mpm_from_the_paper(x, m)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


# ---- where paper, release and packages differ ------------------------------------------------------------------------


def test_the_equations_alone_have_no_norm():
    with_norm, without, x = StripPooling(3), StripPooling(3, norm=False), randn(2, 3, 5, 7)
    assert sorted(without.state_dict()) == ["conv1.weight", "conv2.weight", "conv3.bias", "conv3.weight"]
    without.load_state_dict({k: v for k, v in with_norm.state_dict().items() if k.startswith("conv")})
    with_norm, without = with_norm.to(D).eval(), without.to(D)
    with attn_lib.trace() as t:
        with_norm(x), without(x)
    assert t["y"].min() == 0 and t["y:2"].min() < 0
    torch.testing.assert_close(t["y"], t["y:2"].relu(), rtol=1e-4, atol=0)  # fresh statistics divide by √(1 + ε)


def test_mixed_pooling_is_no_gate():
    """With its last normalisation at zero it is δ(x); a gate would halve x, or shut it."""
    m, x = mpm(), randn(2, 8, 5, 7)
    torch.nn.init.zeros_(m.conv3[1].weight)
    torch.nn.init.zeros_(m.conv3[1].bias)
    assert torch.equal(m(x), x.relu())
    assert (m(torch.zeros_like(x)) == 0).all() and mpm()(torch.zeros_like(x)).abs().max() > 0
    assert (spm()(torch.zeros(1, 3, 5, 7, dtype=D)) == 0).all(), "a gate leaves zeros alone"


def test_pools_wider_than_the_map_repeat_pixels():
    small = randn(1, 8, 3, 5)
    twenty = F.adaptive_avg_pool2d(small, 20)
    assert twenty.shape[2:] == (20, 20) and len(twenty[0, 0].unique()) <= 5 * 9, "pixels, and means of neighbours"
    m = mpm(8, (20, 12))
    torch.testing.assert_close(m(small), mpm_from_the_paper(small, m), rtol=0, atol=1e-12)


def test_timms_strip_attention_is_another_operator():
    """Ours with diagonal kernels, no norm and f = 1 is timm's; with kernels that mix channels it is not."""
    timm = reference("timm.layers.coord_attn")
    m, theirs, x = spm(norm=False), timm.StripAttn(3).to(D), randn(2, 3, 5, 7)
    with torch.no_grad():
        for ours, conv in ((m.conv1, theirs.conv_h), (m.conv2, theirs.conv_w)):
            conv.weight.copy_(ours.weight[range(3), range(3)][:, None])
        m.conv3.weight.copy_(torch.eye(3)[:, :, None, None])
        m.conv3.bias.zero_()
        assert (m(x) - theirs(x)).abs().max() > 1e-2
        for ours in (m.conv1, m.conv2):
            ours.weight.mul_(torch.eye(3, dtype=D)[:, :, None, None])
        torch.testing.assert_close(m(x), theirs(x))


def test_a_pixel_sees_its_row_and_column_and_their_neighbours():
    m, x = spm(), randn(1, 3, 7, 8).requires_grad_()
    with attn_lib.trace() as t:
        m(x)
    t["s"][0, :, 3, 5].sum().backward()
    seen = x.grad[0].abs().sum(0) > 0
    rows, columns = torch.zeros(7, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    rows[2:5] = columns[4:7] = True
    assert torch.equal(seen, rows[:, None] | columns)


# ---- what the contract shows of a registered class, here of the other ------------------------------------------------


def test_mixed_pooling_in_half_precision_compiled_and_at_its_defaults():
    m = MixedPooling(16)
    assert m.pools == (20, 12) and m.conv1_1[0].out_channels == 4
    x = torch.randn(2, 16, 13, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    m(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (*m.parameters(), x))
    m.eval()
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(m, fullgraph=True, backend="aot_eager")(x), m(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert (m(x).float() - m(x.detach()).float()).abs().max() == 0
    for dtype in (torch.bfloat16, torch.float16):
        half = MixedPooling(16).eval().to(dtype)
        exact = MixedPooling(16).eval()
        exact.load_state_dict(half.state_dict())
        y = half((300 * x).to(dtype))
        assert y.dtype == dtype
        assert (y.float() - exact((300 * x).to(dtype).float())).abs().max() < 0.03 * y.abs().max()


# ---- cost and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [StripPooling(8), MixedPooling(8, pools=(4, 3))], ids=["strip", "mixed"])
def test_memory_grows_with_the_pixels(m):
    saved = {2 * n * n: measure.saved_bytes(m, torch.randn(2, 8, n, 2 * n)) for n in (32, 64, 128)}
    assert measure.fit_exponent(list(saved), list(saved.values())) == pytest.approx(1, abs=0.05), saved


def test_bad_arguments_and_inputs_are_named():
    for call, message in [
        (lambda: MixedPooling(3), "channels=3 must be an integer of at least 4"),
        (lambda: MixedPooling(8, pools=20), r"pools=20 must be two sides, such as \(20, 12\)"),
        (lambda: MixedPooling(8, pools=(20, 0)), "pools=0 must be an integer of at least 1"),
        (lambda: MixedPooling(8)(randn(2, 4, 5, 7)), "axis C must be 8"),
        (lambda: StripPooling(3)(randn(1, 3, 1, 7)), "x is a batch of 1 of size"),
        (lambda: MixedPooling(4)(randn(1, 4, 5, 1)), "in training it must be 2 × 2 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    StripPooling(3, norm=False).to(D)(randn(1, 3, 1, 1))
