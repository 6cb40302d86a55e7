"""Dual attention, its two modules and its head against the paper, the limits and the release, and known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.channel_spatial import ChannelSelfAttention, DANetAttention, DANetHead, PositionAttention
from tests.unit.draw import D, permutation, randn, randomised

CASES = [(8, 4, 3, 4), (6, 1, 1, 5), (5, 5, 4, 1), (1, 1, 1, 1)]  # C, r, H, W


def make(C=8, r=4, *, seed=0, **options):
    danet = DANetAttention(C, reduction=r, **options)
    return randomised(danet, scale=0.5, seed=seed).requires_grad_(False)


def trace(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def dot(u, v):
    return sum(a * b for a, b in zip(u, v, strict=True))


def softmax(logits):
    largest = max(logits)
    weights = [math.exp(v - largest) for v in logits]
    return [w / sum(weights) for w in weights]


def project(conv, vector):
    bias = [0.0] * conv.out_channels if conv.bias is None else conv.bias.tolist()
    return [dot(row, vector) + b for row, b in zip(conv.weight[:, :, 0, 0].tolist(), bias, strict=True)]


def position_of_the_paper(x, pam):
    """Equations 1 and 2 of one image (C, H, W): S and E, a list of positions."""
    pixels = x.flatten(1).T.tolist()
    B, C, V = ([project(conv, pixel) for pixel in pixels] for conv in (pam.Wk, pam.Wq, pam.Wv))  # the paper's B, C, D
    S, E = [], []
    for C_j, A_j in zip(C, pixels, strict=True):
        S.append(softmax([dot(B_i, C_j) for B_i in B]))
        E.append([pam.alpha.item() * sum(s * V_i[c] for s, V_i in zip(S[-1], V, strict=True)) + A_j[c]
                  for c in range(len(A_j))])
    return torch.tensor(S, dtype=D), torch.tensor(E, dtype=D).T.reshape(x.shape)


def channel_of_the_paper(x, cam):
    """Equations 3 and 4 of one image: X and E; `reverse` as the release writes it, with the maximum."""
    A = x.flatten(1).tolist()
    X, E = [], []
    for A_j in A:
        energy = [dot(A_i, A_j) for A_i in A]
        X.append(softmax([max(energy) - e for e in energy] if cam.reverse else energy))
        E.append([cam.beta.item() * sum(w * A_i[n] for w, A_i in zip(X[-1], A, strict=True)) + A_j[n]
                  for n in range(len(A_j))])
    return torch.tensor(X, dtype=D), torch.tensor(E, dtype=D).reshape(x.shape)


def from_the_paper(x, danet):
    return torch.stack([position_of_the_paper(image, danet.position)[1] + channel_of_the_paper(image, danet.channel)[1]
                        for image in x])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("C", "r", "H", "W"), CASES)
def test_equals_the_paper(C, r, H, W, reverse):
    danet, x = make(C, r, reverse=reverse), randn(2, C, H, W)
    torch.testing.assert_close(danet(x), from_the_paper(x, danet), rtol=0, atol=1e-12)
    t = trace(danet, x)
    for tap, e, of_the_paper, part in (("S", "e_p", position_of_the_paper, danet.position),
                                       ("X", "e_c", channel_of_the_paper, danet.channel)):
        weights, expected = of_the_paper(x[0], part)
        torch.testing.assert_close(t[tap][0], weights, rtol=0, atol=1e-12)
        torch.testing.assert_close(part(x)[0], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(t[e][0], expected, rtol=0, atol=1e-12)


class Wrong(DANetAttention):
    """The errors in circulation, one at a time."""

    mistake = None

    def forward(self, x):
        pam, cam, mistake = self.position, self.channel, self.mistake
        q, k, v = (conv(x).flatten(2).mT for conv in (pam.Wq, pam.Wk, pam.Wv))  # B N d
        q, k = (k, q) if mistake == "queries and keys exchanged" else (q, k)
        energy = q @ k.mT
        energy = energy * q.shape[-1] ** -0.5 if mistake == "positions scaled" else energy
        S = energy.softmax(1 if mistake == "softmax over the queries" else -1)
        Sv = (S @ v).mT
        Sv = (S @ v) if mistake == "positions and channels mixed up" else Sv
        e_p = pam.alpha * Sv.reshape(x.shape) + x
        a = x.flatten(2)
        E = a @ a.mT
        E = {"channels scaled": E * a.shape[-1] ** -0.5, "mean for sum": E / a.shape[-1],
             "reversed": E.amax(-1, keepdim=True) - E}.get(mistake, E)
        e_c = cam.beta * (E.softmax(-1) @ a).reshape(x.shape) + x
        if mistake == "no factors":
            return Sv.reshape(x.shape) + x + (E.softmax(-1) @ a).reshape(x.shape) + x
        if mistake == "one after the other":
            return cam(e_p)
        return {"one input": e_p + e_c - x, "no inputs": e_p + e_c - 2 * x, "mean": (e_p + e_c) / 2}.get(
            mistake, e_p + e_c)


@pytest.mark.parametrize("mistake", [
    "queries and keys exchanged", "positions scaled", "softmax over the queries", "positions and channels mixed up",
    "channels scaled", "mean for sum", "reversed", "no factors", "one after the other", "one input", "no inputs",
    "mean",
])
def test_the_comparison_with_the_paper_notices(mistake):
    danet, x = make(), 0.7 * randn(2, 8, 4, 4)
    wrong = Wrong(8, reduction=4).to(D)
    wrong.load_state_dict(danet.state_dict())
    expected = from_the_paper(x, danet)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


# ---- the release -----------------------------------------------------------------------------------------------------


def test_the_release_attends_to_the_least_similar_channels():
    x = randn(1, 8, 16, 16)
    similar, released = (trace(make(reverse=reverse), x)["X"][0] for reverse in (False, True))
    energy = x[0].flatten(1) @ x[0].flatten(1).T
    torch.testing.assert_close(released, (energy.amax(-1, keepdim=True) - energy).softmax(-1))
    assert released.diagonal().max() < 1e-80 and similar.diagonal().min() > 1 - 1e-9
    assert torch.equal(released.argmax(-1), energy.argmin(-1)) and torch.equal(similar.argmax(-1), energy.argmax(-1))


def test_a_bias_of_the_keys_is_dead():
    """The release has one: its gradient is 0, and whatever it is, it changes nothing."""
    pam, x = make().position, randn(2, 8, 3, 4)
    assert pam.Wk.bias is None and pam.Wq.bias is not None and pam.Wv.bias is not None

    def released(key_bias, query_bias):
        q = F.conv2d(x, pam.Wq.weight, query_bias).flatten(2).mT
        k = F.conv2d(x, pam.Wk.weight, key_bias).flatten(2)
        S = (q @ k).softmax(-1)
        return pam.alpha * (S @ pam.Wv(x).flatten(2).mT).mT.reshape(x.shape) + x

    key_bias, query_bias = randn(2, seed=4).requires_grad_(), pam.Wq.bias.clone().requires_grad_()
    y = released(key_bias, query_bias)
    torch.testing.assert_close(y, pam(x), rtol=0, atol=1e-12)
    dead, alive = torch.autograd.grad(y.square().sum(), (key_bias, query_bias))
    assert dead.abs().max() < 1e-12 and alive.abs().max() > 1e-3


def test_channels_are_compared_without_projections():
    C, r = 64, 8
    pam, cam = PositionAttention(C), ChannelSelfAttention(C)
    assert [name for name, _ in cam.named_parameters()] == ["beta"]
    assert sum(p.numel() for p in pam.parameters()) == (C * C // r + C // r) + C * C // r + (C * C + C) + 1
    assert pam.alpha.item() == cam.beta.item() == 0 and pam.alpha.shape == cam.beta.shape == (1,)
    for size in ((7, 7), (9, 4), (1, 1)):
        assert DANetAttention(16)(torch.randn(1, 16, *size)).shape == (1, 16, *size)


def test_the_head_adds_the_second_convolutions_and_gives_three_logits():
    head, x = randomised(DANetHead(16, 5, hidden=8, reverse=True), scale=0.3).requires_grad_(False), randn(2, 16, 5, 7)

    def block(layers, t):
        conv, bn, _ = layers
        v = F.conv2d(t, conv.weight, padding=1)
        scale = (bn.weight / (bn.running_var + bn.eps).sqrt())[:, None, None]
        return ((v - bn.running_mean[:, None, None]) * scale + bn.bias[:, None, None]).clamp(min=0)

    def branch(parts, of_the_paper):
        inner = block(parts["before"], x)
        return block(parts["behind"], torch.stack([of_the_paper(image, parts["attention"])[1] for image in inner]))

    f_p, f_c = branch(head.position, position_of_the_paper), branch(head.channel, channel_of_the_paper)
    expected = [F.conv2d(t, conv.weight, conv.bias) for t, (_, conv) in (
        (f_p + f_c, head.logits), (f_p, head.position["logits"]), (f_c, head.channel["logits"]))]
    for mine, theirs in zip(head(x), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)
    assert DANetHead(64, 3).position["attention"].channels == 16 and DANetHead(64, 3).logits[0].p == 0.1
    assert DANetHead(64, 3).position["attention"].Wq.out_channels == 2


# ---- what the two attentions do --------------------------------------------------------------------------------------


def test_energies_grow_with_the_map_until_one_channel_takes_all():
    """A map laid out four times has four times the energies; of a mean over positions nothing would change."""
    cam, x = make().channel, 0.2 * randn(1, 8, 4, 4)
    X, tiled = trace(cam, x)["X"], trace(cam, x.tile(1, 1, 2, 2))["X"]
    torch.testing.assert_close(tiled, (4 * X.log()).softmax(-1))
    assert X.amax(-1).mean() < 0.4 < tiled.amax(-1).mean()
    assert trace(cam, x.tile(1, 1, 16, 16))["X"].amax(-1).min() > 0.999


@pytest.mark.parametrize("reverse", [False, True])
def test_channels_may_change_places_in_the_channel_attention_alone(reverse):
    danet, x, order = make(reverse=reverse), randn(2, 8, 4, 5), permutation(8)
    cam, pam = danet.channel, danet.position
    torch.testing.assert_close(cam(x[:, order]), cam(x)[:, order], rtol=0, atol=1e-12)
    assert (pam(x[:, order]) - pam(x)[:, order]).abs().max() > 1e-2


def test_at_the_start_alpha_and_beta_alone_learn():
    danet, x = DANetAttention(16), randn(2, 16, 3, 4).float()
    assert torch.equal(danet(x), 2 * x)
    danet(x).square().sum().backward()
    moved = {name for name, p in danet.named_parameters() if p.grad.abs().sum() > 0}
    assert moved == {"position.alpha", "channel.beta"}


# ---- parts: what the contract tests of the entry ---------------------------------------------------------------------

PARTS = {
    "position": lambda: PositionAttention(8),
    "channel": lambda: ChannelSelfAttention(8),
    "reversed channel": lambda: ChannelSelfAttention(8, reverse=True),
    "head": lambda: DANetHead(8, 3, hidden=8).eval(),
}


@pytest.mark.parametrize("part", PARTS)
def test_parts_hold_the_contract(part):
    def first(y):
        return y[0] if isinstance(y, tuple) else y

    torch.manual_seed(0)
    module, x = PARTS[part](), 0.3 * torch.randn(2, 8, 5, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith(("alpha", "beta")):
                p.fill_(0.7)
    y = first(module(x))
    assert first(module(x[:1, :, :1, :1])).shape == (1, y.shape[1], 1, 1)
    torch.testing.assert_close(first(torch.compile(module, fullgraph=True, backend="aot_eager")(x)), y)
    for dtype in (torch.bfloat16, torch.float16):
        half = PARTS[part]().to(dtype)
        half.load_state_dict(module.state_dict())
        assert (first(half(x.to(dtype))).float() - y).abs().max() < 0.05 * y.abs().max()
    module.double()
    assert torch.autograd.gradcheck(lambda t: first(module(t)), x.double().requires_grad_(), fast_mode=True)
    result = module(x.double())
    sum(t.square().sum() for t in (result if isinstance(result, tuple) else (result,))).backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    with pytest.raises(ValueError, match="axis C must be 8, not 7"):
        module(x[:, :7].double())


@pytest.mark.parametrize(("call", "message"), [
    (lambda: DANetAttention(6), "reduction=8 must be at most channels=6"),
    (lambda: ChannelSelfAttention(0), "channels=0 must be an integer of at least 1"),
    (lambda: DANetHead(16, 0), "out_channels=0 must be an integer of at least 1"),
    (lambda: DANetHead(3, 2), "hidden=0 must be an integer of at least 1"),
])
def test_arguments_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- memory ----------------------------------------------------------------------------------------------------------


def kept(module, sides, traced=False, channels=16):
    def run(x):
        if not traced:
            return module(x)
        with attn_lib.trace():
            return module(x)

    return [measure.saved_bytes(run, torch.randn(1, channels, n, n)) for n in sides]


@pytest.mark.parametrize("reverse", [False, True])
def test_memory_is_linear_in_the_positions_and_holds_no_matrix_of_them(reverse):
    danet, sides = DANetAttention(16, reverse=reverse), (16, 32, 64)
    N = [n * n for n in sides]
    assert measure.fit_exponent(N, kept(danet, sides)) == pytest.approx(1, abs=0.03)
    assert kept(danet, sides)[-1] < 4 * 16 * 10 * N[-1]  # a few maps; the matrix would be 4 · N² = 64 MB
    assert measure.fit_exponent(N, kept(danet, sides, traced=True)) > 1.7  # the trace makes it


def test_the_channel_attention_is_square_in_the_channels_at_most():
    cam = ChannelSelfAttention(64)
    for side in (4, 8):
        assert kept(cam, [side], channels=64)[0] <= 4 * (2 * 64 * 64 + 3 * 64 * side**2)


def test_all_layers_of_the_head_are_the_releases():
    head = DANetHead(32, 4)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in head.modules()) == 4
    convs = [m for m in head.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convs) == 4 and all(m.bias is None for m in convs)
