"""GALA against its paper, its limits and the release, and against the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.channel_spatial import GALAAttention
from tests.unit.draw import D, randn, randomised

CASES = [(8, 4, 5, 7), (6, 5, 1, 4), (5, 1, 3, 1), (1, 1, 1, 1)]  # C, r, H, W
FORMS = [{}, dict(squash="sigmoid"), dict(rectify=True), dict(extra_kernel=3), dict(bias=False),
         dict(squash="sigmoid", extra_kernel=5, rectify=True)]


def make(C=8, r=2, *, seed=0, **options):
    return randomised(GALAAttention(C, reduction=r, **options), scale=0.7, seed=seed).requires_grad_(False)


def trace(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def relu(vector):
    return [max(0.0, v) for v in vector]


def affine(layer, vector):
    bias = [0.0] * len(layer.weight) if layer.bias is None else layer.bias.tolist()
    return [sum(w * v for w, v in zip(row, vector, strict=True)) + b
            for row, b in zip(layer.weight.flatten(1).tolist(), bias, strict=True)]


def looked_around(hidden, conv):
    """The release's further convolution, tap by tap; `hidden` is a vector for each position."""
    H, W, k = len(hidden), len(hidden[0]), conv.kernel_size[0]
    bias = [0.0] * conv.out_channels if conv.bias is None else conv.bias.tolist()
    return [[relu([b + sum(taps[c][p][q] * hidden[i + p - k // 2][j + q - k // 2][c]
                           for c in range(len(taps)) for p in range(k) for q in range(k)
                           if 0 <= i + p - k // 2 < H and 0 <= j + q - k // 2 < W)
                   for taps, b in zip(conv.weight.tolist(), bias, strict=True)]) for j in range(W)] for i in range(H)]


def from_the_paper(x, gala):
    squash = {"tanh": math.tanh, "sigmoid": lambda v: 1 / (1 + math.exp(-v))}[gala.squash]
    a, m = gala.a.tolist(), gala.m.tolist()
    out = []
    for image in x.tolist():
        C, H, W = len(image), len(image[0]), len(image[0][0])
        g = affine(gala.W2, relu(affine(gala.W1, [sum(map(sum, plane)) / (H * W) for plane in image])))
        g = relu(g) if gala.rectify else g
        hidden = [[relu(affine(gala.V1, [image[c][i][j] for c in range(C)])) for j in range(W)] for i in range(H)]
        hidden = hidden if gala.Vextra is None else looked_around(hidden, gala.Vextra)
        S = [[affine(gala.V2, hidden[i][j])[0] for j in range(W)] for i in range(H)]
        out.append([[[image[c][i][j] * squash(a[c] * (g[c] + S[i][j]) + m[c] * (g[c] * S[i][j])) for j in range(W)]
                     for i in range(H)] for c in range(C)])
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("C", "r", "H", "W"), CASES)
def test_equals_the_paper(C, r, H, W, form):
    gala, x = make(C, r, **form), randn(2, C, H, W)
    torch.testing.assert_close(gala(x), from_the_paper(x, gala), rtol=0, atol=1e-13)


class Wrong(GALAAttention):
    """The errors in circulation, one at a time."""

    mistake = None

    def forward(self, x):
        mistake, a, m = self.mistake, *(t[:, None, None] for t in (self.a, self.m))
        p = x.amax((2, 3)) if mistake == "maximum for mean" else x.mean((2, 3))
        hidden = self.W1(p)
        g = self.W2(hidden if mistake == "no ReLU in the global path" else hidden.relu())
        g = {"global path rectified": g.relu(), "global path squashed": g.sigmoid()}.get(mistake, g)
        g = g[:, :, None, None]
        hidden = self.V1(x)
        S = self.V2(hidden if mistake == "no ReLU in the local path" else hidden.relu())
        S = S.sigmoid() if mistake == "local path squashed" else S
        logits = {
            "a and m exchanged": m * (g + S) + a * (g * S),
            "added alone": a * (g + S),
            "multiplied alone": m * (g * S),
            "factors left out": g + S + g * S,
            "one factor for all channels": a[0] * (g + S) + m[0] * (g * S),
            "a of the global path alone": a * g + S + m * (g * S),
        }.get(mistake, a * (g + S) + m * (g * S))
        A = {"sigmoid": logits.sigmoid(), "not squashed": logits, "ReLU": logits.relu()}.get(mistake, logits.tanh())
        return {"residual added": x + A * x, "gate alone": A}.get(mistake, A * x)


@pytest.mark.parametrize("mistake", [
    "maximum for mean", "no ReLU in the global path", "global path rectified", "global path squashed",
    "no ReLU in the local path", "local path squashed", "a and m exchanged", "added alone", "multiplied alone",
    "factors left out", "one factor for all channels", "a of the global path alone", "sigmoid", "not squashed", "ReLU",
    "residual added", "gate alone",
])
def test_the_comparison_with_the_paper_notices(mistake):
    gala, x = make(), randn(2, 8, 5, 7)
    wrong = Wrong(8, reduction=2).to(D)
    wrong.load_state_dict(gala.state_dict())
    expected = from_the_paper(x, gala)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-13)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    gala, x = make(), randn(2, 8, 5, 7)
    t = trace(gala, x)
    assert t.names() == ["p", "g", "S", "A", "y"]
    a, m, g = gala.a[:, None, None], gala.m[:, None, None], t["g"][:, :, None, None]
    torch.testing.assert_close(t["A"], torch.tanh(a * (g + t["S"]) + m * (g * t["S"])))
    assert torch.equal(t["y"], t["A"] * x)


def test_defaults_are_the_papers():
    gala = GALAAttention(64)
    assert gala.W1.out_features == gala.V1.out_channels == 16 and gala.V2.out_channels == 1
    assert gala.Vextra is None and gala.squash == "tanh" and not gala.rectify
    C, r = 64, 4
    weights = sum(p.numel() for p in GALAAttention(C, bias=False).parameters())
    assert weights == 2 * C * C // r + (C * C // r + C // r) + 2 * C


# ---- the release -----------------------------------------------------------------------------------------------------


def test_the_tangent_turns_signs_around_and_the_sigmoid_does_not():
    x = randn(2, 8, 5, 7)
    turned, kept = (make(squash=squash)(x) / x for squash in ("tanh", "sigmoid"))
    assert turned.min() < -0.3 and turned.max() > 0.3 and turned.abs().max() < 1
    assert kept.min() > 0 and kept.max() < 1
    torch.testing.assert_close(kept, (1 + torch.tanh(trace(make(), x)["A"].atanh() / 2)) / 2)  # of the same logits


def test_the_release_rectifies_the_global_path():
    x = randn(4, 8, 5, 7)
    plain, rectified = trace(make(), x)["g"], trace(make(rectify=True), x)["g"]
    assert torch.equal(rectified, plain.relu()) and plain.min() < -0.1
    gala = make(squash="sigmoid", rectify=True, extra_kernel=5)
    g = gala.W2(gala.W1(x.flatten(2).mean(2)).relu()).relu()[:, :, None, None]
    S = gala.V2(F.conv2d(gala.V1(x).relu(), gala.Vextra.weight, gala.Vextra.bias, padding=2).relu())
    a, m = gala.a[:, None, None], gala.m[:, None, None]
    torch.testing.assert_close(gala(x), x * torch.sigmoid(a * (S + g) + m * (S * g)), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("kernel", "reach"), [(None, 0), (3, 1), (5, 2)])
def test_the_extra_convolution_lets_the_local_path_look_around(kernel, reach):
    gala, x = make(extra_kernel=kernel), randn(4, 8, 9, 9).requires_grad_()
    S = trace(gala, x)["S"][:, 0, 4, 4].sum()
    seen = torch.autograd.grad(S, x)[0].abs().sum((0, 1)).nonzero()
    assert seen.amin(0).tolist() == [4 - reach] * 2 and seen.amax(0).tolist() == [4 + reach] * 2


def test_factors_start_as_truncated_normal_numbers():
    torch.manual_seed(0)
    gala = GALAAttention(4096, reduction=512)
    for factor in (gala.a, gala.m):
        assert factor.shape == (4096,) and abs(factor.mean()) < 0.1 and 0.8 < factor.std() < 0.96
        assert 1.9 < factor.abs().max() <= 2
    assert not torch.equal(gala.a, gala.m)


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=3), "reduction=4 must be at most channels=3"),
    (dict(channels=8, squash="softmax"), "squash='softmax' must be one of 'tanh', 'sigmoid'"),
    (dict(channels=8, extra_kernel=4), "extra_kernel=4 must be odd"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        GALAAttention(**options)


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_without_m_the_logits_are_a_sum_and_without_a_a_product():
    """Rank: a sum of a number a channel and one a position is of rank 2, a product of rank 1."""
    x = randn(1, 8, 5, 7)
    for gone, rank in (("m", 2), ("a", 1)):
        gala = make()
        getattr(gala, gone).fill_(0.0)
        (gala.a if gone == "m" else gala.m).fill_(1.0)
        t = trace(gala, x)
        g, S = t["g"][0][:, None], t["S"][0].flatten(1)
        logits = t["A"][0].flatten(1).atanh()
        torch.testing.assert_close(logits, g + S if gone == "m" else g * S)
        assert torch.linalg.matrix_rank(logits, rtol=1e-6) == rank


def test_without_factors_nothing_passes_the_tangent():
    gala, x = make(), randn(2, 8, 5, 7)
    gala.a.fill_(0.0)
    gala.m.fill_(0.0)
    assert torch.equal(gala(x), torch.zeros_like(x))


def test_the_gate_can_be_trained_on_a_map():
    """A map loss: the gate of the trace carries its history, and descends towards where people look."""
    torch.manual_seed(0)
    gala, x = GALAAttention(8), torch.randn(2, 8, 5, 7)
    target = torch.zeros(2, 1, 5, 7)
    target[..., 2:4, 3:5] = 1.0
    x[:, 0] += 3 * target[:, 0]
    optimiser, losses = torch.optim.SGD(gala.parameters(), lr=0.1), []
    for _ in range(30):
        looked = trace(gala, x)["A"].mean(1, keepdim=True)
        losses.append((looked - target).square().mean())
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.7 * losses[0]


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_positions():
    C, r, sides = 32, 4, [(16, 16), (16, 32), (32, 32), (32, 64)]
    gala, N = GALAAttention(C, reduction=r), [h * w for h, w in sides]
    saved = [measure.saved_bytes(gala, torch.randn(2, C, *side)) / 4 / 2 for side in sides]
    growth = [(more - less) / (b - a) for less, more, a, b in zip(saved, saved[1:], N, N[1:], strict=False)]
    assert growth == [C + C // r + 1] * 3  # A, the hidden map and S, a position; the sum and the product are not kept
