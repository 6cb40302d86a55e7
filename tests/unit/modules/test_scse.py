"""scSE and its two halves against their papers, their limits and the release, and against the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.channel_spatial import CSEAttention, SCSEAttention, SSEAttention
from tests.unit.draw import D, randn, randomised

CASES = [(8, 2, 5, 7), (6, 4, 1, 4), (5, 5, 3, 1), (1, 1, 1, 1)]  # C, r, H, W
FUSIONS = ["add", "max", "multiply", "concatenate"]


def make(C=8, r=2, *, seed=0, **options):
    return randomised(SCSEAttention(C, reduction=r, **options), scale=1.2, seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def affine(layer, vector):
    bias = [0.0] * len(layer.weight) if layer.bias is None else layer.bias.tolist()
    return [sum(w * v for w, v in zip(row, vector, strict=True)) + b
            for row, b in zip(layer.weight.flatten(1).tolist(), bias, strict=True)]


def halves_of_the_paper(image, scse):
    """x_c and x_s of one image in plain numbers, one channel and one pixel at a time."""
    C, H, W = len(image), len(image[0]), len(image[0][0])
    z = [sum(map(sum, plane)) / (H * W) for plane in image]
    s_c = [sigmoid(v) for v in affine(scse.cse.W2, [max(0.0, v) for v in affine(scse.cse.W1, z)])]
    s_s = [[sigmoid(affine(scse.sse.Wq, [image[c][i][j] for c in range(C)])[0]) for j in range(W)] for i in range(H)]
    x_c = [[[s_c[c] * image[c][i][j] for j in range(W)] for i in range(H)] for c in range(C)]
    x_s = [[[s_s[i][j] * image[c][i][j] for j in range(W)] for i in range(H)] for c in range(C)]
    return x_c, x_s


def from_the_paper(x, scse):
    join = {"add": lambda a, b: a + b, "max": max, "multiply": lambda a, b: a * b}
    out = []
    for image in x.tolist():
        x_c, x_s = halves_of_the_paper(image, scse)
        if scse.fusion == "concatenate":
            out.append(x_c + x_s)
        else:
            out.append([[[join[scse.fusion](a, b) for a, b in zip(*rows, strict=True)]
                         for rows in zip(*planes, strict=True)] for planes in zip(x_c, x_s, strict=True)])
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("C", "r", "H", "W"), CASES)
def test_equals_the_paper(C, r, H, W, fusion, bias):
    scse, x = make(C, r, fusion=fusion, bias=bias), randn(2, C, H, W)
    torch.testing.assert_close(scse(x), from_the_paper(x, scse), rtol=0, atol=1e-13)
    x_c, x_s = (torch.tensor(half, dtype=D) for half in halves_of_the_paper(x[0].tolist(), scse))
    torch.testing.assert_close(scse.cse(x)[0], x_c, rtol=0, atol=1e-13)
    torch.testing.assert_close(scse.sse(x)[0], x_s, rtol=0, atol=1e-13)


class Wrong(SCSEAttention):
    """The errors in circulation, one at a time."""

    mistake = None

    def forward(self, x):
        W1, W2, Wq = self.cse.W1, self.cse.W2, self.sse.Wq
        z = x.amax((2, 3)) if self.mistake == "maximum for mean" else x.mean((2, 3))
        hidden = W1(z) if self.mistake == "no ReLU" else F.relu(W1(z))
        s_c = W2(hidden).sigmoid()[:, :, None, None]
        q = Wq(x.mean((2, 3), keepdim=True)) if self.mistake == "one number a map" else Wq(x)
        s_s = {"softmax over the positions": q.flatten(2).softmax(-1).view_as(q), "tanh": q.tanh(),
               "ReLU": q.relu()}.get(self.mistake, q.sigmoid())
        if self.mistake == "one after the other":
            s_s = Wq(s_c * x).sigmoid()
        if self.mistake == "gates joined before the sigmoid":
            return x * (W2(hidden)[:, :, None, None] + q).sigmoid()
        if self.mistake == "maximum of the gates":
            return x * torch.maximum(s_c, s_s)
        x_c, x_s = s_c * x, s_s * x
        fused = {"add": x_c + x_s, "max": torch.maximum(x_c, x_s), "multiply": x_c * x_s,
                 "concatenate": torch.cat([x_c, x_s], 1)}
        if self.mistake == "sSE first":
            return torch.cat([x_s, x_c], 1)
        if self.mistake == "gates multiplied, the input once":
            return x * s_c * s_s
        if self.mistake == "mean of both":
            return (x_c + x_s) / 2
        return fused[self.fusion] + x if self.mistake == "residual added" else fused[self.fusion]


@pytest.mark.parametrize(("fusion", "mistake"), [
    *(("add", m) for m in ("maximum for mean", "no ReLU", "one number a map", "softmax over the positions", "tanh",
                           "ReLU", "one after the other", "gates joined before the sigmoid", "mean of both",
                           "residual added")),
    ("max", "maximum of the gates"), ("multiply", "gates multiplied, the input once"), ("concatenate", "sSE first"),
])
def test_the_comparison_with_the_paper_notices(fusion, mistake):
    scse, x = make(fusion=fusion), randn(2, 8, 5, 7)
    wrong = Wrong(8, fusion=fusion).to(D)
    wrong.load_state_dict(scse.state_dict())
    expected = from_the_paper(x, scse)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-13)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    scse, x = make(), randn(2, 8, 5, 7)
    with attn_lib.trace() as t:
        y = scse(x)
    assert t.names() == ["z", "s_c", "x_c", "q", "s_s", "x_s", "y"]
    assert torch.equal(t["x_c"], t["s_c"][:, :, None, None] * x) and torch.equal(t["x_s"], t["s_s"] * x)
    assert torch.equal(y, t["x_c"] + t["x_s"])


def test_defaults_are_the_papers():
    scse = SCSEAttention(64)
    assert scse.fusion == "add" and scse.cse.W1.out_features == 32 and scse.sse.Wq.out_channels == 1
    assert SCSEAttention(64, reduction=16).cse.W1.out_features == 4  # segmentation-models-pytorch
    C = 64  # C² + 1.5 C of biases for the channels, C + 1 for the positions: the paper's C² + C weights
    assert sum(p.numel() for p in SCSEAttention(C, bias=False).parameters()) == C * C + C


# ---- the release, and the fusions ------------------------------------------------------------------------------------


def test_the_release_is_the_maximum_of_two_maps():
    scse, x = make(fusion="max"), randn(2, 8, 5, 7)
    s_c = torch.sigmoid(scse.cse.W2(scse.cse.W1(x.flatten(2).mean(2)).relu()))
    s_s = torch.sigmoid(torch.einsum("C,BCHW->BHW", scse.sse.Wq.weight.flatten(), x) + scse.sse.Wq.bias)
    torch.testing.assert_close(scse(x), torch.max(x * s_c[..., None, None], x * s_s[:, None]), rtol=0, atol=1e-13)
    assert (scse(x) - make()(x)).abs().max() > 0.1


def test_where_x_is_negative_the_maximum_takes_the_smaller_gate():
    scse, x = make(fusion="max"), randn(2, 8, 5, 7)
    with attn_lib.trace() as t:
        y = scse(x)
    s_c, s_s = (s.expand_as(x) for s in (t["s_c"][:, :, None, None], t["s_s"]))
    expected = torch.where(x > 0, torch.maximum(s_c, s_s), torch.minimum(s_c, s_s))
    torch.testing.assert_close(y / x, expected)
    assert (x * torch.maximum(s_c, s_s) - y)[x < 0].abs().max() > 0.1  # the maximum of the gates is another module


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_a_shut_spatial_gate_leaves_of_each_fusion(fusion):
    scse, x = make(fusion=fusion), randn(2, 8, 5, 7)
    scse.sse.Wq.bias.fill_(-1e4)
    se = scse.cse(x)
    left = {"add": se, "max": se.relu(), "multiply": torch.zeros_like(x),
            "concatenate": torch.cat([se, torch.zeros_like(x)], 1)}
    assert torch.equal(scse(x), left[fusion])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_a_shut_channel_gate_leaves_of_each_fusion(fusion):
    scse, x = make(fusion=fusion), randn(2, 8, 5, 7)
    scse.cse.W2.bias.fill_(-1e4)
    sse = scse.sse(x)
    left = {"add": sse, "max": sse.relu(), "multiply": torch.zeros_like(x),
            "concatenate": torch.cat([torch.zeros_like(x), sse], 1)}
    assert torch.equal(scse(x), left[fusion])


def test_the_product_forgets_the_sign_and_grows_with_the_square():
    """s_c · s_s · x²; with gates that do not depend on x, twice the input is four times the output."""
    scse, x = make(fusion="multiply"), randn(2, 8, 5, 7)
    assert (scse(x) >= 0).all()
    for p in (scse.cse.W1.weight, scse.sse.Wq.weight):
        p.zero_()
    torch.testing.assert_close(scse(-2 * x), 4 * scse(x))


def test_a_value_that_both_gates_let_through_is_doubled_by_the_sum_alone():
    x = randn(2, 8, 5, 7)
    for fusion, factor in (("add", 2), ("max", 1)):
        scse = make(fusion=fusion)
        scse.cse.W2.bias.fill_(1e4)
        scse.sse.Wq.bias.fill_(1e4)
        assert torch.equal(scse(x), factor * x)


def test_the_spatial_gate_sees_its_own_position_and_the_channel_gate_all():
    scse, x = make(), randn(1, 8, 5, 7)
    other = x.clone()
    other[..., 0, 0] += 3
    with attn_lib.trace() as t, torch.no_grad():
        scse(x)
        scse(other)
    assert torch.equal(t["s_s"][..., 1:, 1:], t["s_s:2"][..., 1:, 1:])
    assert t["s_s"][..., 0, 0] != t["s_s:2"][..., 0, 0] and (t["s_c"] != t["s_c:2"]).any()


# ---- the form that is no variant, and the halves: what the contract tests of the entry -------------------------------

PARTS = {"multiply": lambda: SCSEAttention(8, fusion="multiply"), "cSE": lambda: CSEAttention(8),
         "sSE": lambda: SSEAttention(8)}


@pytest.mark.parametrize("part", PARTS)
def test_parts_hold_the_contract(part):
    torch.manual_seed(0)
    module, x = PARTS[part](), torch.randn(2, 8, 5, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("W1.bias"):
                p.fill_(1.0)  # the ReLUs are open
    y = module(x)
    assert y.shape == x.shape and module(x[:1, :, :1, :1]).shape == (1, 8, 1, 1)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), y)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), y)
    for dtype in (torch.bfloat16, torch.float16):
        half = PARTS[part]().to(dtype)
        half.load_state_dict(module.state_dict())
        assert half(x.to(dtype)).dtype == dtype
        assert (half(x.to(dtype)).float() - y).abs().max() < 0.05 * y.abs().max()
    assert torch.autograd.gradcheck(module.double(), x.double().requires_grad_(), fast_mode=True)
    module(x.double()).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    with pytest.raises(ValueError, match="axis C must be 8, not 7"):
        module(x[:, :7].double())


@pytest.mark.parametrize(("call", "message"), [
    (lambda: SCSEAttention(8, fusion="sum"), "fusion='sum' must be one of 'add', 'max', 'multiply', 'concatenate'"),
    (lambda: SCSEAttention(8, reduction=9), "reduction=9 must be at most channels=8"),
    (lambda: CSEAttention(0), "channels=0 must be an integer of at least 1"),
    (lambda: SSEAttention(2.0), "channels=2.0 must be an integer of at least 1"),
])
def test_arguments_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fusion", "maps"), [("add", 0), ("max", 2), ("multiply", 2), ("concatenate", 0)])
def test_memory_is_linear_in_the_positions(fusion, maps):
    """Besides x, one number a position; the maximum and the product keep both gated maps as well."""
    C, sides = 32, [(16, 16), (16, 32), (32, 32), (32, 64)]
    scse, N = SCSEAttention(C, fusion=fusion), [h * w for h, w in sides]
    saved = [measure.saved_bytes(scse, torch.randn(2, C, *side)) / 4 / 2 for side in sides]
    growth = [(more - less) / (b - a) for less, more, a, b in zip(saved, saved[1:], N, N[1:], strict=False)]
    assert growth == [C * maps + 1] * 3 and saved[0] - growth[0] * N[0] <= 6 * C
