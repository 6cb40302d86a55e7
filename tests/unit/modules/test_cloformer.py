"""CloFormer's attention and its local branch against the equations, their limits, their cost, and known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import AttnConv, CloAttention
from tests.unit.draw import D, randn, randomised

SIZES = [(4, 6, 2), (5, 3, 2), (7, 5, 3), (1, 1, 2), (3, 4, 1), (2, 3, 7)]  # H, W, w
SPLITS = [dict(group_split=(2, 1), kernel_sizes=(3,)), dict(group_split=(1, 1, 1), kernel_sizes=(5, 3)),
          dict(group_split=(3,), kernel_sizes=()), dict(group_split=(3, 0), kernel_sizes=(1,), qkv_bias=False)]


def clo(w=2, C=6, heads=3, seed=0, **options) -> CloAttention:
    options = SPLITS[0] | options
    m = CloAttention(C, heads=heads, window_size=w, **options)
    return randomised(m, scale=0.6, seed=seed).requires_grad_(False)


def run(m, x):
    with attn_lib.trace() as t:
        m(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def project(z, conv):
    bias = [0.0] * conv.out_channels if conv.bias is None else conv.bias.tolist()
    return [b + sum(w * value for w, value in zip(row, z, strict=True))
            for row, b in zip(conv.weight.flatten(1).tolist(), bias, strict=True)]


def local(branch, image, d):
    """AttnConv of one image, a pixel at a time: {pixel: numbers}."""
    _, H, W = image.shape
    pixels = {(i, j): project(image[:, i, j].tolist(), branch.Wqkv) for i in range(H) for j in range(W)}
    weight, bias = branch.DWConv.weight.tolist(), branch.DWConv.bias.tolist()
    size = len(weight[0][0])
    out = {}
    for i, j in pixels:
        mixed = [b + sum(weight[c][0][a][e] * pixels[i + a - size // 2, j + e - size // 2][c]
                         for a in range(size) for e in range(size)
                         if (i + a - size // 2, j + e - size // 2) in pixels) for c, b in enumerate(bias)]
        width = len(mixed) // 3
        q, k, v = mixed[:width], mixed[width:2 * width], mixed[2 * width:]
        hidden = project([a * b for a, b in zip(q, k, strict=True)], branch.W1)
        hidden = [value / (1 + math.exp(-value)) for value in hidden]
        gate = [math.tanh(value / math.sqrt(d)) for value in project(hidden, branch.W2)]
        out[i, j] = [g * value for g, value in zip(gate, v, strict=True)]
    return out


def pooled_attention(m, image, d):
    """The global branch of one image: {pixel: numbers}."""
    C, H, W = image.shape
    w = m.window_size
    means = [image[:, i:i + w, j:j + w].reshape(C, -1).mean(1).tolist() for i in range(0, H, w) for j in range(0, W, w)]
    k, v = [project(z, m.Wk) for z in means], [project(z, m.Wv) for z in means]
    out = {}
    for i in range(H):
        for j in range(W):
            q, joined = project(image[:, i, j].tolist(), m.Wq), []
            for head in range(m.global_heads):
                part = range(head * d, (head + 1) * d)
                e = [math.exp(sum(q[c] * k_n[c] for c in part) / math.sqrt(d)) for k_n in k]
                joined += [sum(a * v_n[c] for a, v_n in zip(e, v, strict=True)) / sum(e) for c in part]
            out[i, j] = joined
    return out


def equations(m, image, d=2):
    H, W = image.shape[1:]
    branches = [local(branch, image, d) for branch in m.local]
    if m.global_heads:
        branches.append(pooled_attention(m, image, d))
    y = [[project([z for branch in branches for z in branch[i, j]], m.Wo) for j in range(W)] for i in range(H)]
    return torch.tensor(y, dtype=D).movedim(2, 0)


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize(("H", "W", "w"), SIZES)
def test_equals_the_paper(H, W, w, split):
    m, x = clo(w, **split), randn(2, 6, H, W)
    assert_close(m(x), torch.stack([equations(m, image) for image in x]), rtol=0, atol=1e-12)


class Wrong(CloAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        B, C, H, W = x.shape
        local, d = self.local[0], C // 3
        qkv = local.Wqkv(x)
        bias = None if self.mistake == "depthwise convolution without bias" else local.DWConv.bias
        mixed = F.conv2d(qkv, local.DWConv.weight, bias, padding=local.DWConv.padding, groups=len(local.DWConv.weight))
        q, k, v = mixed.chunk(3, 1)
        if self.mistake == "values not mixed":
            v = qkv.chunk(3, 1)[2]
        if self.mistake == "q, k and v interleaved":
            q, k, v = mixed.unflatten(1, (-1, 3)).unbind(2)
        z = local.W1(q + k if self.mistake == "q and k added" else q * k)
        z = {"ReLU": F.relu, "no activation": lambda t: t}.get(self.mistake, F.silu)(z)
        z = local.W2(z) * {"not scaled": 1.0, "scaled by the whole width": C**-0.5}.get(self.mistake, d**-0.5)
        gate = {"sigmoid gate": z.sigmoid(), "softmax gate": z.softmax(1), "no tanh": z}.get(self.mistake, z.tanh())
        high = gate + v if self.mistake == "gate added" else gate * v
        pool = F.max_pool2d if self.mistake == "largest of a window" else F.avg_pool2d
        kv = pool(x, self.window_size)
        q, k, v = (t.flatten(2).mT for t in (self.Wq(x), self.Wk(kv), self.Wv(kv)))
        if self.mistake == "queries pooled":
            q = F.interpolate(F.avg_pool2d(q.mT.unflatten(2, (H, W)), 2), (H, W)).flatten(2).mT
        low = (d**-0.5 * q @ k.mT).softmax(-1) @ v
        low = low.mT.reshape(B, -1, H, W)
        return self.Wo(torch.cat([low, high] if self.mistake == "global first" else [high, low], 1))


@pytest.mark.parametrize("mistake", [
    "depthwise convolution without bias", "values not mixed", "q, k and v interleaved", "q and k added", "ReLU",
    "no activation", "not scaled", "scaled by the whole width", "sigmoid gate", "softmax gate", "no tanh", "gate added",
    "largest of a window", "queries pooled", "global first",
])
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = clo(), randn(2, 6, 4, 6)
    wrong = Wrong(6, heads=3, window_size=2, **SPLITS[0]).to(D)
    wrong.load_state_dict(m.state_dict())
    expected = torch.stack([equations(m, image) for image in x])
    assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    m, x = clo(**SPLITS[1]), randn(2, 6, 5, 6)
    t = run(m, x)
    one = ["q", "k", "v", "gate"]
    assert t.names() == [*one, *(f"{name}:2" for name in one), "x_w", "q_g", "k_g", "v_g", "A", "y"]
    assert t["A"].shape == (2, 1, 30, 9) and t["gate"].shape == (2, 1, 2, 5, 6)
    assert_close(t["A"].sum(-1), torch.ones(2, 1, 30, dtype=D))
    assert_close(t["y"], m(x))


# ---- limits (the two of the catalog stand in limits/) ----------------------------------------------------------------


def test_a_local_branch_whose_context_is_zero_is_zero():
    m, x = clo(group_split=(3, 0)), randn(2, 6, 4, 6)
    for p in m.local[0].W2.parameters():
        p.fill_(0.0)
    assert torch.equal(m(x), m.Wo.bias[:, None, None].expand_as(x))


def test_gates_are_signed():
    gate = run(clo(), randn(2, 6, 4, 6))["gate"]
    assert -1 <= gate.min() < -0.5 and 0.5 < gate.max() <= 1


def test_pooling_before_and_behind_the_keys_are_equal():
    m, x = clo(3), randn(2, 6, 6, 9)
    t = run(m, x)
    for name, W in (("k_g", m.Wk), ("v_g", m.Wv)):
        behind = F.avg_pool2d(W(x), 3).flatten(2).mT[:, None]
        assert_close(behind, t[name], rtol=0, atol=1e-12)


def test_what_each_branch_reaches():
    x = randn(1, 6, 6, 7)

    def reach(m):
        return torch.autograd.functional.jacobian(lambda x: m(x)[0, :, 2, 3].sum(), x)[0].abs().sum(0) > 1e-12

    i, j = torch.arange(6)[:, None], torch.arange(7)
    assert torch.equal(reach(clo(group_split=(3, 0), kernel_sizes=(3,))), ((i - 2).abs() <= 1) & ((j - 3).abs() <= 1))
    assert reach(clo(group_split=(3,), kernel_sizes=())).all() and reach(clo()).all()


def test_the_local_branch_moves_with_the_image():
    m, x = clo(group_split=(3, 0), kernel_sizes=(3,)), randn(1, 6, 6, 7)
    assert_close(m(x.roll((1, 2), (2, 3)))[..., 2:5, 3:6], m(x)[..., 1:4, 1:4], rtol=0, atol=1e-12)


def test_defaults_are_the_third_stage_of_cloformer_xxs():
    m = CloAttention(128)
    assert m.global_heads == 4 and m.window_size == 2 and len(m.local) == 1
    assert m.local[0].DWConv.kernel_size == (7, 7) and m.local[0].DWConv.in_channels == 3 * 64
    assert sum(p.numel() for p in m.local[0].W1.parameters()) == 64 * 65


@pytest.mark.parametrize(("options", "message"), [
    (dict(C=6, heads=4), "channels=6 must be divisible by heads=4; 4 and 8 are"),
    (dict(group_split=(1, 1)), r"group_split=\(1, 1\) must add up to heads=3, not 2"),
    (dict(group_split=()), r"group_split=\(\) must hold the heads of each local branch"),
    (dict(group_split=(4, -1)), "group_split=-1 must be an integer of at least 0"),
    (dict(kernel_sizes=(3, 5)), r"kernel_sizes=\(3, 5\) must hold 1 odd integers, one fewer than group_split=\(2, 1\)"),
    (dict(kernel_sizes=(4,)), "kernel_sizes=4 must be odd"),
    (dict(w=0), "window_size=0 must be an integer of at least 1"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        clo(**options)


# ---- the local branch alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("H", "W"), [(3, 5), (1, 1)])
def test_the_local_branch_equals_the_paper(H, W):
    m = randomised(AttnConv(5, heads=2, head_dim=3, kernel_size=3), scale=0.6).requires_grad_(False)
    x = randn(2, 5, H, W)
    expected = [local(m, image, 3) for image in x]
    expected = torch.tensor([[[y[i, j] for j in range(W)] for i in range(H)] for y in expected], dtype=D).movedim(3, 1)
    assert_close(m(x), expected, rtol=0, atol=1e-12)


def test_the_local_branch_takes_half_precision():
    torch.manual_seed(0)
    m, x = AttnConv(6, heads=2, head_dim=2, kernel_size=3), torch.randn(2, 6, 5, 3)
    expected = m(x)
    for dtype in (torch.bfloat16, torch.float16):
        half = AttnConv(6, heads=2, head_dim=2, kernel_size=3).to(dtype)
        half.load_state_dict(m.state_dict())
        y = half(x.to(dtype))
        assert y.dtype == dtype and (y.float() - expected).abs().max() < 0.05 * expected.abs().max()
        assert torch.isfinite(half(1000 * x.to(dtype))).all(), "q ⊙ k exceeds float16"
    with pytest.raises(ValueError, match="head_dim=0 must be"):
        AttnConv(6, heads=2, head_dim=0, kernel_size=3)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_pixels():
    m = CloAttention(8, heads=4, group_split=(2, 2), kernel_sizes=(5,))
    N, bytes = zip(*((side**2, measure.saved_bytes(m, torch.randn(1, 8, side, side))) for side in (16, 32, 64)),
                   strict=True)
    assert measure.fit_exponent(N, bytes) == pytest.approx(1, abs=0.03)


def test_operations_of_the_global_branch_fall_with_the_window_and_the_local_ones_are_linear():
    C, N = 8, 16**2
    for w in (1, 2, 4):
        Nk = N // w**2
        m = CloAttention(C, heads=2, group_split=(2,), kernel_sizes=(), window_size=w)
        assert measure.flops(m, torch.randn(1, C, 16, 16)) == 2 * C * C * (2 * N + 2 * Nk) + 4 * N * Nk * C
    m = CloAttention(C, heads=2, group_split=(2, 0), kernel_sizes=(5,))
    assert measure.flops(m, torch.randn(1, C, 16, 16)) == 2 * N * (C * 3 * C + 25 * 3 * C + 2 * C * C + C * C)
