"""Shuffle attention against its paper, its limits, and the errors in circulation.

No package that is kept well holds it.
"""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.channel_spatial import ShuffleAttention
from tests.unit.draw import D, permutation, randn, randomised

CASES = [(8, 2, 4, 5), (4, 2, 3, 2), (6, 1, 1, 6), (12, 3, 5, 1), (4, 1, 1, 1)]  # C, G, H, W


def make(C=8, G=2, *, seed=0):
    return randomised(ShuffleAttention(C, groups=G), seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def from_the_paper(x, net):
    """Channel by channel in plain numbers; where a channel goes is counted, not reshaped."""
    B, C, H, W = x.shape
    S = C // (2 * net.groups)
    w1, b1, w2, b2 = (p.tolist() for p in (net.w1, net.b1, net.w2, net.b2))
    gamma, beta = net.gn.weight.tolist(), net.gn.bias.tolist()
    out = torch.empty_like(x)
    for b, c in product(range(B), range(C)):
        within = c % (2 * S)  # its place in the group
        s, values = within % S, x[b, c].flatten().tolist()
        mean = sum(values) / len(values)
        if within < S:
            gates = [sigmoid(w1[s] * mean + b1[s])] * len(values)
        else:
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + net.gn.eps)
            gates = [sigmoid(w2[s] * (gamma[s] * (v - mean) / deviation + beta[s]) + b2[s]) for v in values]
        goes_to = 2 * c if c < C // 2 else 2 * (c - C // 2) + 1
        out[b, goes_to] = torch.tensor([g * v for g, v in zip(gates, values, strict=True)], dtype=D).view(H, W)
    return out


@pytest.mark.parametrize(("C", "G", "H", "W"), CASES)
def test_equals_the_paper(C, G, H, W):
    net, x = make(C, G), randn(2, C, H, W)
    torch.testing.assert_close(net(x), from_the_paper(x, net), rtol=0, atol=1e-13)


class Wrong(ShuffleAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        e, (B, C, H, W), G = self.mistake, x.shape, self.groups
        column = [p[:, None, None] for p in (self.w1, self.b1, self.w2, self.b2)]
        w1, b1, w2, b2 = column if e != "one pair for both halves" else column[:2] * 2
        if e == "halves of all channels":
            one, two = (t.reshape(B * G, -1, H, W) for t in x.chunk(2, 1))
        else:
            one, two = x.reshape(B * G, -1, H, W).chunk(2, 1)
        if e == "halves exchanged":
            one, two = two, one
        s = one.amax((2, 3), keepdim=True) if e == "maximum for mean" else one.mean((2, 3), keepdim=True)
        z = {"no norm": lambda t: t,
             "one group in the norm": lambda t: F.group_norm(t, 1, self.gn.weight, self.gn.bias),
             "norm without its weight": lambda t: F.group_norm(t, t.shape[1])}.get(e, self.gn)(two)
        if e == "spatial gate of the mean":
            z = two.mean((2, 3), keepdim=True)
        f = torch.tanh if e == "tanh gate" else torch.sigmoid
        a, c = f(w1 * s + b1) * one, f(w2 * z + b2) * (z if e == "gate of the normalised" else two)
        if e == "gates added":
            a, c = a + one, c + two
        y = torch.cat([a, c], 1).reshape(B, C, H, W)
        if e == "no shuffle":
            return y
        groups = {"shuffle of the groups": G * 2, "shuffle undone": C // 2}.get(e, 2)
        return y.reshape(B, groups, -1, H, W).transpose(1, 2).reshape(B, C, H, W)


MISTAKES = ["one pair for both halves", "halves of all channels", "halves exchanged", "maximum for mean", "no norm",
            "one group in the norm", "norm without its weight", "spatial gate of the mean", "tanh gate",
            "gate of the normalised", "gates added", "no shuffle", "shuffle of the groups", "shuffle undone"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    net, x = make(12, 2), randn(2, 12, 4, 5)
    wrong = Wrong(12, groups=2).to(D)
    wrong.load_state_dict(net.state_dict())
    expected = from_the_paper(x, net)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-13)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    net, x = make(), randn(2, 8, 4, 5)
    with attn_lib.trace() as t:
        y = net(x)
    assert t.names() == ["x_k", "s", "a_1", "a_2", "y"] and t["a_2"].shape == (2, 2, 2, 4, 5)
    gate = torch.stack([t["a_1"][..., None, None].expand_as(t["a_2"]), t["a_2"]], 2)
    gated = (gate * t["x_k"]).reshape(2, 8, 4, 5)
    torch.testing.assert_close(y[:, 0::2], gated[:, :4], rtol=0, atol=1e-14)
    torch.testing.assert_close(y[:, 1::2], gated[:, 4:], rtol=0, atol=1e-14)


# ---- limits and traps ------------------------------------------------------------------------------------------------


def test_it_starts_as_a_constant_gate_and_a_permutation():
    net, x = ShuffleAttention(8, groups=2).to(D), randn(2, 8, 5, 7)
    torch.testing.assert_close(net(x), x[:, [0, 4, 1, 5, 2, 6, 3, 7]] * sigmoid(1.0), rtol=0, atol=1e-14)


def test_channels_that_do_not_divide():
    for C, G, near in ((30, 8, "16 and 32 are"), (24, 8, "16 and 32 are"), (100, 64, "128 is")):
        with pytest.raises(ValueError, match=f"channels={C} must be divisible by 2·groups={2 * G}; .*{near}"):
            ShuffleAttention(C, groups=G)
    with pytest.raises(ZeroDivisionError):  # the release, with C < 2G
        torch.nn.GroupNorm(100 // 128, 100 // 128)
    with pytest.raises(RuntimeError, match="must match the size"):  # with C/G = 5: two gates for a half of three
        torch.randn(1, 5, 4, 4).chunk(2, 1)[0] * torch.ones(10 // 4, 1, 1)
    shared = torch.randn(1, 3, 4, 4).chunk(2, 1)[0] * torch.ones(6 // 4, 1, 1)  # with 3: two channels share a gate
    assert shared.shape == (1, 2, 4, 4)


def test_a_shuffle_without_self_is_a_trap():
    class Copy:
        def channel_shuffle(x, groups):
            return x

        def forward(self, x):
            return self.channel_shuffle(x, 2)

    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        Copy().forward(randn(1, 8, 2, 2))
    net, x = make(), randn(2, 8, 4, 5)
    torch.testing.assert_close(net(x), from_the_paper(x, net), rtol=0, atol=1e-13)


def test_no_channel_sees_another():
    """Each output channel depends on one input channel alone: the shuffle moves, it does not mix."""
    net, x = make(12, 2), randn(1, 12, 3, 4)
    jacobian = torch.autograd.functional.jacobian(net, x)[0, :, :, :, 0]  # C H W, C H W
    seen = jacobian.abs().sum((1, 2, 4, 5)) > 0
    assert torch.equal(seen.nonzero()[:, 1], torch.tensor([0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]))


def test_groups_share_their_numbers():
    net, x, order = make(12, 3), randn(2, 12, 4, 5), permutation(3)

    def unshuffled(y):
        return torch.cat([y[:, 0::2], y[:, 1::2]], 1).view(2, 3, 4, 4, 5)

    groups = x.view(2, 3, 4, 4, 5)
    torch.testing.assert_close(unshuffled(net(groups[:, order].reshape_as(x))), unshuffled(net(x))[:, order])
    assert sum(p.numel() for p in ShuffleAttention(24, groups=4).parameters()) == 3 * 24 // 4 == 18
    assert sum(p.numel() for p in ShuffleAttention(512).parameters()) == 24  # G = 64, the paper's default


def test_a_single_pixel_of_a_single_image_is_taken():
    """One number a channel: `nn.GroupNorm` refuses it, in evaluation too."""
    net, x = make(2, 1), randn(1, 2, 1, 1)
    torch.testing.assert_close(net(x), from_the_paper(x, net), rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net.gn(x[:, :1])


def test_on_one_pixel_the_norm_is_its_bias():
    net, x = make(), randn(2, 8, 1, 1)
    with attn_lib.trace() as t:
        net(x)
    expected = torch.sigmoid(net.w2 * net.gn.bias + net.b2).expand(2, 2, 2)
    torch.testing.assert_close(t["a_2"][..., 0, 0], expected, rtol=0, atol=1e-12)


def test_brightness_leaves_the_positions_gate_alone_and_moves_the_channels_gate():
    net, x = make(), randn(2, 8, 4, 5)
    with attn_lib.trace() as t:
        net(x)
        net(10 * x + 3)
    assert (t["a_2:2"] - t["a_2"]).abs().max() < 1e-4 < 0.1 < (t["a_1:2"] - t["a_1"]).abs().max()  # but for ε


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_positions():
    net, sides = ShuffleAttention(16, groups=2), [(12, 16), (24, 16), (24, 32)]
    N = [h * w for h, w in sides]
    saved = [measure.saved_bytes(net, torch.randn(2, 16, *side)) for side in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.03)
    assert saved[-1] == pytest.approx(2 * 4 * 2 * 8 * N[-1], rel=0.02)  # two maps of the second half: x₂ and its gate
