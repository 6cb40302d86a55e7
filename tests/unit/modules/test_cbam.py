"""CBAM against its paper, its limits, timm and the release, and against the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.channel_spatial import CBAM, ChannelAttention, JointCBAM, LogitCBAM, SpatialAttention
from tests.unit.draw import D, permutation, randn, randomised
from tests.unit.reference import reference

CASES = [(12, 4, 7, 5, 9), (6, 5, 3, 1, 4), (4, 1, 1, 3, 2), (8, 8, 5, 1, 1), (1, 1, 7, 2, 3)]  # C, r, k, H, W


def make(C=12, r=4, k=7, *, seed=0, **options):
    return randomised(CBAM(C, reduction=r, kernel_size=k, **options), scale=0.8, seed=seed)


# ---- equation --------------------------------------------------------------------------------------------------------


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def from_the_paper(x, cbam):
    """Equations 1 to 3 in plain numbers, one channel and one pixel at a time."""
    C, H, W = x.shape[1:]
    W0, W1 = cbam.channel.W0.weight.tolist(), cbam.channel.W1.weight.tolist()
    b0 = [0.0] * len(W0) if cbam.channel.W0.bias is None else cbam.channel.W0.bias.tolist()
    b1 = [0.0] * len(W1) if cbam.channel.W1.bias is None else cbam.channel.W1.bias.tolist()
    kernel = cbam.spatial.f.weight[0].tolist()
    b = 0.0 if cbam.spatial.f.bias is None else cbam.spatial.f.bias.item()
    reach = len(kernel[0]) // 2

    def mlp(z):
        hidden = [max(0.0, b + sum(w * v for w, v in zip(row, z, strict=True))) for row, b in zip(W0, b0, strict=True)]
        return [b + sum(w * h for w, h in zip(row, hidden, strict=True)) for row, b in zip(W1, b1, strict=True)]

    out = []
    for image in x.tolist():
        pixels = [[v for row in channel for v in row] for channel in image]
        average, maximum = mlp([sum(p) / len(p) for p in pixels]), mlp([max(p) for p in pixels])
        M_c = [sigmoid(a + m) for a, m in zip(average, maximum, strict=True)]
        refined = [[[g * v for v in row] for row in channel] for g, channel in zip(M_c, image, strict=True)]
        stack = [[[sum(c[i][j] for c in refined) / C for j in range(W)] for i in range(H)],
                 [[max(c[i][j] for c in refined) for j in range(W)] for i in range(H)]]  # [average; maximum]
        M_s = [[b] * W for _ in range(H)]
        for i in range(H):
            for j in range(W):
                for plane, weights in zip(stack, kernel, strict=True):
                    for di in range(-reach, reach + 1):
                        for dj in range(-reach, reach + 1):
                            if 0 <= i + di < H and 0 <= j + dj < W:
                                M_s[i][j] += weights[di + reach][dj + reach] * plane[i + di][j + dj]
        out.append([[[sigmoid(M_s[i][j]) * c[i][j] for j in range(W)] for i in range(H)] for c in refined])
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("C", "r", "k", "H", "W"), CASES)
def test_equals_the_paper(C, r, k, H, W, bias):
    cbam, x = make(C, r, k, bias=bias), randn(2, C, H, W)
    torch.testing.assert_close(cbam(x), from_the_paper(x, cbam), rtol=0, atol=1e-12)


class Wrong(CBAM):
    """The errors in circulation, one at a time."""

    mistake = ""

    def forward(self, x):
        mistake, mlp = self.mistake, self.channel.mlp
        c_avg, c_max = x.mean((2, 3)), x.amax((2, 3))
        M_c = {
            "mean twice": lambda: torch.sigmoid(mlp(c_avg) + mlp(c_avg)),
            "mlp of the sum": lambda: torch.sigmoid(mlp(c_avg + c_max)),
            "mlp of half the sum": lambda: torch.sigmoid(mlp((c_avg + c_max) / 2)),
            "a sigmoid for each": lambda: torch.sigmoid(mlp(c_avg)) + torch.sigmoid(mlp(c_max)),
            "weights not shared": lambda: torch.sigmoid(mlp(c_avg) + F.relu(c_max @ self.W0.T) @ self.W1.T),
            "no hidden layer": lambda: torch.sigmoid(c_avg @ (self.channel.W1.weight @ self.channel.W0.weight).T),
            "no maximum": lambda: torch.sigmoid(mlp(c_avg)),
        }.get(mistake, lambda: torch.sigmoid(mlp(c_avg) + mlp(c_max)))()[:, :, None, None]
        x1 = M_c * x
        seen = x if mistake == "spatial gate sees x" else x1
        s = [seen.mean(1, keepdim=True), seen.amax(1, keepdim=True)]
        if mistake == "descriptors exchanged":
            s.reverse()
        f = self.spatial.f
        M_s = F.conv2d(torch.cat(s, 1), f.weight, None if mistake == "conv bias dropped" else f.bias, padding="same")
        if mistake == "two rows added":
            M_s = F.conv2d(s[0] + s[1], f.weight.mean(1, keepdim=True), f.bias, padding="same")
        M_s = M_s if mistake == "no sigmoid over space" else torch.sigmoid(M_s)
        return {
            "residual added": lambda: x + M_s * x1,
            "in parallel": lambda: M_c * x + M_s * x,
            "spatial gate alone": lambda: M_s * x,
        }.get(mistake, lambda: M_s * x1)()


MISTAKES = ["mean twice", "mlp of the sum", "mlp of half the sum", "a sigmoid for each", "weights not shared",
            "no hidden layer", "no maximum", "spatial gate sees x", "descriptors exchanged", "conv bias dropped",
            "two rows added", "no sigmoid over space", "residual added", "in parallel", "spatial gate alone"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    cbam, x = make(), randn(2, 12, 5, 9)
    wrong = Wrong(12, reduction=4).to(D)
    wrong.load_state_dict(cbam.state_dict())
    wrong.W0, wrong.W1 = randn(3, 12, seed=7), randn(12, 3, seed=8)  # of an MLP for the maximum alone
    assert wrong.mistake == ""
    torch.testing.assert_close(wrong(x), from_the_paper(x, cbam), rtol=0, atol=1e-12)
    wrong.mistake = mistake
    assert (wrong(x) - from_the_paper(x, cbam)).abs().max() > 1e-2


def test_taps_are_the_equations():
    cbam, x = make(), randn(2, 12, 5, 9)
    with attn_lib.trace() as t:
        y = cbam(x)
    assert t.names() == ["c_avg", "c_max", "M_c", "x1", "s_avg", "s_max", "M_s", "y"]
    assert torch.equal(t["c_avg"], x.mean((2, 3))) and torch.equal(t["c_max"], x.amax((2, 3)))
    assert torch.equal(t["x1"], t["M_c"][:, :, None, None] * x)
    assert torch.equal(t["s_avg"][:, 0], t["x1"].mean(1)) and torch.equal(t["s_max"][:, 0], t["x1"].amax(1))
    assert torch.equal(t["y"], y) and torch.equal(y, t["M_s"] * t["x1"])


def test_cbam_is_its_two_parts():
    cbam, x = make(), randn(2, 12, 5, 9)
    assert torch.equal(cbam(x), cbam.spatial(cbam.channel(x)))


def test_defaults_are_the_papers():
    cbam = CBAM(64)
    assert cbam.channel.W0.weight.shape == (4, 64) and cbam.channel.W1.weight.shape == (64, 4)
    assert cbam.spatial.f.weight.shape == (1, 2, 7, 7) and isinstance(cbam.spatial.norm, nn.Identity)
    assert all(layer.bias is not None for layer in (cbam.channel.W0, cbam.channel.W1, cbam.spatial.f))
    assert not any(name.endswith("bias") for name, _ in CBAM(64, bias=False).named_parameters())


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_spatial_gate_may_be_left_out():
    cbam, x = make(spatial=False), randn(2, 12, 5, 9)
    assert torch.equal(cbam(x), cbam.channel(x)) and not any(n.startswith("spatial") for n in cbam.state_dict())


def test_where_all_pixels_are_equal_the_maximum_is_the_mean_and_doubles_the_logits():
    cbam, x = make(), randn(2, 12, 1, 1).expand(2, 12, 5, 9)
    with attn_lib.trace() as t:
        cbam(x)
    torch.testing.assert_close(t["M_c"], torch.sigmoid(2 * cbam.channel.mlp(x[:, :, 0, 0])), rtol=0, atol=1e-13)


def test_outer_bias_counts_twice():
    cbam, x = make(), randn(2, 12, 5, 9)
    nn.init.zeros_(cbam.channel.W1.weight)
    with attn_lib.trace() as t:
        cbam(x)
    torch.testing.assert_close(t["M_c"], torch.sigmoid(2 * cbam.channel.W1.bias).expand(2, -1))


def test_zero_weights_quarter():
    cbam, x = make(), randn(2, 12, 5, 9)
    for p in cbam.parameters():
        nn.init.zeros_(p)
    assert torch.equal(cbam(x), x / 4)  # two gates at ½


def test_zero_kernel_leaves_the_channel_gate():
    cbam, x = make(), randn(2, 12, 5, 9)
    nn.init.zeros_(cbam.spatial.f.weight)
    torch.testing.assert_close(cbam(x), cbam.channel(x) * torch.sigmoid(cbam.spatial.f.bias))


# ---- symmetry --------------------------------------------------------------------------------------------------------


def test_channel_gate_does_not_ask_where_and_spatial_gate_does():
    cbam, x = make(), randn(2, 12, 5, 9)
    order = permutation(45)

    def shuffle(t):
        return t.flatten(2)[:, :, order].view_as(t)

    torch.testing.assert_close(cbam.channel(shuffle(x)), shuffle(cbam.channel(x)), rtol=0, atol=1e-13)
    assert (cbam.spatial(shuffle(x)) - shuffle(cbam.spatial(x))).abs().max() > 1e-2


def test_spatial_gate_does_not_ask_which_channel_and_channel_gate_does():
    cbam, x = make(), randn(2, 12, 5, 9)
    order = permutation(12)
    torch.testing.assert_close(cbam.spatial(x[:, order]), cbam.spatial(x)[:, order], rtol=0, atol=1e-13)
    assert (cbam.channel(x[:, order]) - cbam.channel(x)[:, order]).abs().max() > 1e-2


@pytest.mark.parametrize(("axes", "name"), [((3,), "mirrored"), ((2,), "upside down")])
def test_flips_pass_through_a_symmetric_kernel_only(axes, name):
    cbam, x = make(), randn(2, 12, 5, 9)
    assert (cbam(x.flip(axes)) - cbam(x).flip(axes)).abs().max() > 1e-2, name
    with torch.no_grad():
        f = cbam.spatial.f.weight
        f.copy_(f + f.flip(axes))
    torch.testing.assert_close(cbam(x.flip(axes)), cbam(x).flip(axes), rtol=0, atol=1e-13)


def test_spatial_gate_reaches_three_pixels():
    spatial, x = randomised(SpatialAttention()), randn(1, 4, 15, 15)
    moved = x.clone()
    moved[:, :, 7, 7] += 1.0
    with attn_lib.trace() as t:
        spatial(x)
    with attn_lib.trace() as u:
        spatial(moved)
    changed = (t["M_s"] != u["M_s"])[0, 0].nonzero()
    assert changed.min() == 4 and changed.max() == 10 and len(changed) == 49


# ---- the maximum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 16, 32])
def test_a_bright_pixel_moves_the_maximum_whole_and_the_mean_by_its_share(side):
    x = torch.zeros(1, 1, side, side, dtype=D)
    x[0, 0, 1, 2] = 1.0
    with attn_lib.trace() as t:
        randomised(CBAM(1, reduction=1))(x)
    assert t["c_max"].item() == 1.0 and t["c_avg"].item() == 1 / side**2


def test_ties_share_the_gradient():
    x = torch.ones(1, 2, 2, 2, dtype=D, requires_grad=True)
    with attn_lib.trace() as t:
        randomised(CBAM(2, reduction=1))(x)
    (g,) = torch.autograd.grad(t["c_max"].sum(), x)
    assert torch.equal(g, torch.full_like(g, 0.25))


# ---- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "r", "k"), [(64, 16, 7), (30, 7, 3), (256, 8, 5)])
def test_parameters_and_flops(C, r, k):
    cost = measure.cost(CBAM(C, reduction=r, kernel_size=k), torch.randn(2, C, 10, 12))
    hidden = C // r
    assert cost.params == 2 * C * hidden + hidden + C + 2 * k * k + 1
    assert cost.flops == 2 * (2 * 4 * C * hidden + 4 * k * k * 120)  # B · (the MLP twice, f once)


def test_keeps_two_maps_and_a_few_planes():
    C, cbam = 64, CBAM(64)
    sides = [(16, 16), (16, 32), (32, 32), (32, 64)]
    saved = [measure.saved_bytes(lambda t: cbam(2 * t), torch.randn(2, C, *side)) for side in sides]
    N = [h * w for h, w in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.02)
    assert all(4 * 2 * 2 * C * n <= bytes <= 4 * 2 * (2 * C + 6) * n + 4 * 2 * 8 * C
               for n, bytes in zip(N, saved, strict=True))  # x and x₁; s_avg and s_max, stacked and alone; M_s


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "options", "message"), [
    (8, {}, "reduction=16 must be at most channels=8"),  # no hidden unit would be left: most copies go on with none
    (0, {}, "channels=0 must be an integer of at least 1"),
    (8, dict(reduction=0), "reduction=0 must be an integer of at least 1"),
    (16, dict(kernel_size=6), "kernel_size=6 must be odd"),  # padding 3 would make the map one larger each way
    (16, dict(kernel_size=0), "kernel_size=0 must be an integer of at least 1"),
])
def test_arguments_out_of_range(channels, options, message):
    with pytest.raises(ValueError, match=message):
        CBAM(channels, **options)


@pytest.mark.parametrize("k", [1, 3, 5, 9, 49])
def test_any_odd_kernel_on_any_map(k):  # some copies allow 3 and 7 only
    x = randn(1, 12, 3, 5)
    assert make(12, 4, k)(x).shape == x.shape


# ---- the parts and the joint module ----------------------------------------------------------------------------------


class Pair(nn.Module):
    """JointCBAM on one map: the first half of its channels and the second, cut to another size."""

    def __init__(self, **options):
        super().__init__()
        self.joint = JointCBAM(6, reduction=3, kernel_size=5, **options)

    def forward(self, x):
        a, b = self.joint(x[:, :6], x[:, 6:, 1:])
        return torch.cat([a.flatten(1), b.flatten(1)], 1)


PARTS = {
    "channel": lambda: ChannelAttention(12, reduction=4),
    "spatial": SpatialAttention,
    "spatial, norm": lambda: SpatialAttention(norm=True),
    "joint": Pair,
    "joint, no bias": lambda: Pair(bias=False),
}
each_part = pytest.mark.parametrize("part", PARTS)


@each_part
@pytest.mark.parametrize("size", [(5, 9), (13, 2), (7, 7)], ids=str)
def test_part_takes_any_size_and_leaves_its_input_alone(part, size):
    module, x = randomised(PARTS[part]()), randn(1, 12, *size)
    before = x.clone()
    y = module(x)
    assert y.isfinite().all() and torch.equal(x, before) and x._version == 0
    assert part.startswith("joint") or y.shape == x.shape


@each_part
def test_part_gives_every_parameter_a_gradient(part):
    module, x = randomised(PARTS[part]()), randn(1, 12, 5, 9).requires_grad_()
    module(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters()) and x.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(module.eval(), randn(1, 12, 3, 4, seed=3).requires_grad_(), fast_mode=True)


@each_part
def test_part_in_half_precision_and_compiled(part):
    module, x = randomised(PARTS[part]()).float().eval(), randn(2, 12, 5, 9).float()
    expected = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert (module(x) - expected).abs().max() < 0.05 * expected.abs().max()
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), expected)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: ChannelAttention(4), "reduction=16 must be at most channels=4"),
    (lambda: ChannelAttention(16)(randn(2, 8, 3, 3)), "axis C must be 16, not 8"),
    (lambda: SpatialAttention(kernel_size=4), "kernel_size=4 must be odd"),
    (lambda: SpatialAttention()(randn(8, 3, 3)), "x1 has shape .* must have 4 axes"),
    (lambda: LogitCBAM(8, height=0, width=3), "height=0 must be an integer of at least 1"),
    (lambda: LogitCBAM(8, height=4, width=3, reduction=9), "reduction=9 must be at most channels=8"),
    (lambda: LogitCBAM(8, height=4, width=3, reduction=2)(randn(2, 8, 3, 4)), "axis H must be 4, not 3"),
    (lambda: JointCBAM(4), "reduction=16 must be at most channels=8"),
    (lambda: JointCBAM(0), "channels=0 must be an integer of at least 1"),
    (lambda: JointCBAM(8)(randn(2, 8, 3, 3), randn(2, 7, 3, 3)), "b has shape .* axis C must be 8, not 7"),
    (lambda: JointCBAM(8)(randn(2, 8, 3, 3), randn(1, 8, 3, 3)), "b has shape .* axis B must be 2, not 1"),
])
def test_parts_name_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def blocks(joint, first, second):
    """Weights with which the two maps do not see each other."""
    with torch.no_grad():
        for name in ("W0", "W1"):
            mine, theirs = getattr(joint.channel, name), [getattr(m.channel, name) for m in (first, second)]
            mine.weight.copy_(torch.block_diag(*(t.weight for t in theirs)))
            mine.bias.copy_(torch.cat([t.bias for t in theirs]))
    joint.spatial_a.load_state_dict(first.spatial.state_dict())
    joint.spatial_b.load_state_dict(second.spatial.state_dict())


def test_joint_cbam_without_weights_between_the_maps_is_two_cbams():
    joint, first, second = randomised(JointCBAM(12, reduction=4)), make(seed=2), make(seed=3)
    a, b = randn(2, 12, 5, 9), randn(2, 12, 4, 3, seed=2)
    blocks(joint, first, second)
    for mine, theirs in zip(joint(a, b), (first(a), second(b)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)


def test_joint_cbam_lets_one_map_gate_the_other():
    joint, a, b = randomised(JointCBAM(12, reduction=4)), randn(2, 12, 5, 9), randn(2, 12, 5, 9, seed=2)
    assert (joint(a, b)[0] - joint(a, 2 * b)[0]).abs().max() > 1e-2
    assert (joint(a, b)[1] - joint(2 * a, b)[1]).abs().max() > 1e-2


def test_joint_cbam_by_its_formula():
    joint, a, b = randomised(JointCBAM(12, reduction=4)), randn(2, 12, 5, 9), randn(2, 12, 4, 3, seed=2)
    W0, b0, W1, b1 = joint.channel.parameters()
    c_avg, c_max = (torch.stack([torch.cat([f(p), f(q)]) for p, q in zip(a.flatten(2), b.flatten(2), strict=True)])
                    for f in (lambda m: m.mean(1), lambda m: m.amax(1)))
    M_c = torch.sigmoid((c_avg @ W0.T + b0).relu() @ W1.T + (c_max @ W0.T + b0).relu() @ W1.T + 2 * b1)
    for mine, map, gate, spatial in zip(joint(a, b), (a, b), (M_c[:, :12], M_c[:, 12:]),
                                        (joint.spatial_a, joint.spatial_b), strict=True):
        torch.testing.assert_close(mine, spatial(map * gate[..., None, None]), rtol=0, atol=1e-13)


# ---- the release and other packages ----------------------------------------------------------------------------------


def with_logits():
    return randomised(LogitCBAM(6, height=4, width=5, reduction=2, kernel_size=3)).requires_grad_(False)


def logits_by_hand(x, cbam):
    """y_c and y_s of LogitCBAM, one image and one logit at a time."""
    C, H, W = x.shape[1:]
    f, channel = cbam.spatial.f, cbam.channel
    out = []
    for image in x:
        pooled = [image.flatten(1).mean(1), image.flatten(1).max(1).values]
        a = sum(channel.W1.weight @ (channel.W0.weight @ z + channel.W0.bias).clamp(min=0) + channel.W1.bias
                for z in pooled)
        planes = F.pad(torch.stack([image.mean(0), image.max(0).values]), (1, 1, 1, 1))
        s = [(f.weight[0] * planes[:, i:i + 3, j:j + 3]).sum() + f.bias[0] for i in range(H) for j in range(W)]
        logits = cbam.W3.weight @ (cbam.W2.weight @ torch.cat([a, torch.stack(s)])).clamp(min=0)
        gates = [sigmoid(logit) for logit in logits.tolist()]
        out.append((torch.stack([g * plane for g, plane in zip(gates[:C], image, strict=True)]),
                    image * torch.tensor(gates[C:], dtype=D).view(H, W)))
    return [torch.stack(maps) for maps in zip(*out, strict=True)]


def test_logit_cbam_by_its_formula():
    cbam, x = with_logits(), randn(2, 6, 4, 5)
    for y, expected in zip(cbam(x), logits_by_hand(x, cbam), strict=True):
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


def test_logit_cbam_lets_place_gate_channels_and_channels_place():
    cbam, x = with_logits(), randn(1, 6, 4, 5)
    moved = x.roll(1, 3)  # the same pixels elsewhere: CBAM's channel gate would not notice
    assert (cbam(moved)[0] - cbam(x)[0].roll(1, 3)).abs().max() > 1e-2
    nn.init.zeros_(cbam.W2.weight[:, 6:])
    torch.testing.assert_close(cbam(moved)[0], cbam(x)[0].roll(1, 3), rtol=0, atol=1e-12)


def test_logit_cbam_halves_where_its_mlp_is_zero():
    cbam, x = with_logits(), randn(2, 6, 4, 5)
    nn.init.zeros_(cbam.W3.weight)
    assert all(torch.equal(y, x / 2) for y in cbam(x))


def test_logit_cbam_learns_compiles_and_runs_in_half_precision():
    cbam, x = with_logits().requires_grad_(True), randn(2, 6, 4, 5).requires_grad_()
    sum(y.square().sum() for y in cbam(x)).backward()
    assert all(p.grad.abs().sum() > 0 for p in (*cbam.parameters(), x))
    cbam, x = cbam.float(), x.detach().float()
    expected = cbam(x)
    torch.compiler.reset()
    for y, e in zip(torch.compile(cbam, fullgraph=True, backend="aot_eager")(x), expected, strict=True):
        torch.testing.assert_close(y, e, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert all((y - e).abs().max() < 0.05 * e.abs().max() for y, e in zip(cbam(x), expected, strict=True))


def test_the_release_is_norm_and_a_flipped_kernel():
    """Its spatial gate: BN(conv([max; mean])), the convolution without a bias."""
    cbam, x = make(norm=True), randn(2, 12, 5, 9)
    assert cbam.spatial.f.bias is None and cbam.spatial.norm.momentum == 0.01 and cbam.spatial.norm.eps == 1e-5
    for training in (True, False):
        cbam.train(training)
        with attn_lib.trace() as t:
            cbam(x)
        x1, f, bn = t["x1"], cbam.spatial.f.weight, cbam.spatial.norm
        theirs = F.conv2d(torch.stack([x1.max(1).values, x1.mean(1)], 1), f.flip(1), padding=3)
        mean, var = (theirs.mean(), theirs.var(correction=0)) if training else (bn.running_mean, bn.running_var)
        theirs = (theirs - mean) / (var + bn.eps).sqrt() * bn.weight + bn.bias
        torch.testing.assert_close(t["M_s"], torch.sigmoid(theirs), rtol=0, atol=1e-12)


def test_a_norm_that_starts_at_zero_keeps_the_kernel_from_learning():
    """So the release's ResNets start; a fresh module here has the scale 1, and its kernel learns at once."""
    x = randn(2, 12, 5, 9).float()
    for scale in (None, 0.0):
        fresh = CBAM(12, reduction=4, norm=True)
        if scale is not None:
            nn.init.constant_(fresh.spatial.norm.weight, scale)
        with attn_lib.trace() as t:
            fresh(x).square().sum().backward()
        learns = fresh.spatial.f.weight.grad.abs().max() > 0
        assert learns == (scale is None) and (t["M_s"] == 0.5).all() == (scale is not None)


@pytest.mark.parametrize(("C", "rd", "k"), [(64, 4, 7), (32, 8, 3), (24, 6, 5)])
def test_equals_timm(C, rd, k):
    timm = reference("timm.layers.cbam")
    theirs = timm.CbamModule(C, rd_channels=rd, spatial_kernel_size=k, mlp_bias=True).to(D).eval()
    ours = make(C, C // rd, k, norm=True).eval()
    with torch.no_grad():
        for a, b in ((ours.channel.W0, theirs.channel.fc1), (ours.channel.W1, theirs.channel.fc2)):
            b.weight.copy_(a.weight[:, :, None, None])
            b.bias.copy_(a.bias)
    theirs.spatial.conv.conv.load_state_dict(ours.spatial.f.state_dict())
    theirs.spatial.conv.bn.load_state_dict(ours.spatial.norm.state_dict(), strict=False)
    x = randn(2, C, 6, 5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)  # the same order of descriptors: nothing to flip


def test_timm_leaves_the_biases_of_the_mlp_out():
    timm = reference("timm.layers.cbam")
    assert timm.CbamModule(64).channel.fc1.bias is None and CBAM(64).channel.W0.bias is not None
    assert timm.CbamModule(64).channel.fc1.out_channels == CBAM(64).channel.W0.out_features == 4
