"""Pyramid squeeze attention against its paper, its release, its limits, and the errors in circulation.

No package that is kept well holds it.
"""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.channel import PSAAttention
from tests.unit.draw import D, randn, randomised

SMALL = dict(kernel_sizes=(3, 5, 1), groups=(1, 2, 4), reduction=2)
CASES = [  # options, H, W
    (dict(channels=4, out_channels=12, **SMALL), 4, 5),
    (dict(channels=8, out_channels=12, **SMALL, stride=2), 5, 4),
    (dict(channels=4, kernel_sizes=(3, 5), groups=(2, 1), reduction=1), 1, 6),
    (dict(channels=3, out_channels=2, kernel_sizes=(7,), groups=(1,), reduction=2), 2, 3),
    (dict(channels=2, kernel_sizes=(3, 9), groups=(1, 1), reduction=1), 1, 1),
]


def make(channels=4, out_channels=12, *, seed=0, **options):
    options = {**SMALL, **options}
    return randomised(PSAAttention(channels, out_channels, **options), scale=0.8, seed=seed).requires_grad_(False)


def run(psa, x):
    with attn_lib.trace() as t:
        psa(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def from_the_paper(x, psa):
    """In plain numbers, one output pixel at a time; the branches side by side, the first one first."""
    B, C, H, W = x.shape
    M, t, S = len(psa.kernel_sizes), psa.stride, psa.out_channels // len(psa.kernel_sizes)
    Ho, Wo = (H - 1) // t + 1, (W - 1) // t + 1
    W1, b1, W2, b2 = (p.tolist() for p in (psa.W1.weight, psa.W1.bias, psa.W2.weight, psa.W2.bias))
    y = torch.zeros(B, M * S, Ho, Wo, dtype=D)
    for b in range(B):
        image, maps, Z = x[b].tolist(), [], []
        for m, (k, g) in enumerate(zip(psa.kernel_sizes, psa.groups, strict=True)):
            kernel, per = psa.convs[m].weight.tolist(), C // g
            top, first = k // 2, [s // (S // g) * per for s in range(S)]  # of the channels that an output reads
            maps.append([[[sum(kernel[s][c][u][v] * image[first[s] + c][i * t + u - top][j * t + v - top]
                               for c, u, v in product(range(per), range(k), range(k))
                               if 0 <= i * t + u - top < H and 0 <= j * t + v - top < W)
                           for j in range(Wo)] for i in range(Ho)] for s in range(S)])
            z = [sum(map(sum, channel)) / (Ho * Wo) for channel in maps[m]]
            hidden = [max(0.0, bias + sum(w * v for w, v in zip(row, z, strict=True)))
                      for row, bias in zip(W1, b1, strict=True)]
            Z.append([1 / (1 + math.exp(-bias - sum(w * h for w, h in zip(row, hidden, strict=True))))
                      for row, bias in zip(W2, b2, strict=True)])
        for m, s in product(range(M), range(S)):
            a = math.exp(Z[m][s]) / sum(math.exp(Z[n][s]) for n in range(M))
            y[b, m * S + s] = a * torch.tensor(maps[m][s], dtype=D)
    return y


@pytest.mark.parametrize(("options", "H", "W"), CASES)
def test_equals_the_paper(options, H, W):
    psa = randomised(PSAAttention(**options), scale=0.8).requires_grad_(False)
    x = randn(2, psa.channels, H, W)
    torch.testing.assert_close(psa(x), from_the_paper(x, psa), rtol=0, atol=1e-12)


class Wrong(PSAAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        M, S = len(self.convs), self.out_channels // len(self.convs)
        maps = []
        for m, (conv, k) in enumerate(zip(self.convs, self.kernel_sizes, strict=True)):
            part = x
            if self.mistake == "its part of the channels":
                keep = torch.arange(self.channels) % M == m
                part = x * keep[:, None, None]
            padding = 1 if self.mistake == "padding of 3 × 3" else k // 2
            maps.append(F.conv2d(part, conv.weight, None, self.stride, padding, 1, self.groups[m])[
                ..., :x.shape[2], :x.shape[3]])
            if self.mistake == "padding of 3 × 3":
                maps[m] = F.pad(maps[m], (0, x.shape[3] - maps[m].shape[3], 0, x.shape[2] - maps[m].shape[2]))
        F_m = torch.stack(maps, 1)
        z = F_m.amax((3, 4)) if self.mistake == "maximum for mean" else F_m.mean((3, 4))
        b1, b2 = (None, None) if self.mistake == "biases dropped" else (self.W1.bias, self.W2.bias)
        hidden = F.linear(z, self.W1.weight, b1)
        logits = F.linear(hidden if self.mistake == "no ReLU" else hidden.relu(), self.W2.weight, b2)
        if self.mistake == "an SE for each branch":
            logits = logits * torch.linspace(0.5, 2, M, dtype=x.dtype)[:, None]
        Z = logits if self.mistake == "softmax of raw scores" else logits.sigmoid()
        if self.mistake == "whole SE":
            Z = Z.mean(2, keepdim=True).expand_as(Z)
        a = {"gates alone": Z, "softmax over the channels": Z.softmax(2), "softmax over all":
             Z.flatten(1).softmax(1).view_as(Z)}.get(self.mistake, Z.softmax(1))
        y = F_m * a[..., None, None]
        if self.mistake == "summed":
            return y.sum(1, keepdim=True).expand_as(y).flatten(1, 2)
        if self.mistake == "dealt out":
            return y.transpose(1, 2).flatten(1, 2)
        y = y.flip(1) if self.mistake == "in reverse" else y
        return y.reshape(len(x), M * S, *y.shape[3:])


@pytest.mark.parametrize("mistake", [
    "its part of the channels", "padding of 3 × 3", "maximum for mean", "biases dropped", "no ReLU",
    "an SE for each branch", "softmax of raw scores", "whole SE", "gates alone", "softmax over the channels",
    "softmax over all", "summed", "dealt out", "in reverse",
])
def test_the_comparison_with_the_paper_notices(mistake):
    psa, x = make(), randn(2, 4, 4, 5)
    wrong = Wrong(4, 12, **SMALL).to(D)
    wrong.load_state_dict(psa.state_dict())
    expected = from_the_paper(x, psa)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    psa, x = make(), randn(2, 4, 5, 7)
    t = run(psa, x)
    assert t.names() == ["F_m", "z", "Z", "a", "y"]
    assert [t.dims(n) for n in t.names()] == ["B M S Ho Wo", "B M S", "B M S", "B M S", "B O Ho Wo"]
    torch.testing.assert_close(t["a"].sum(1), torch.ones(2, 4, dtype=D))
    for m, conv in enumerate(psa.convs):
        assert torch.equal(t["F_m"][:, m], conv(x))
        torch.testing.assert_close(t["y"].chunk(3, 1)[m], conv(x) * t["a"][:, m, :, None, None])


# ---- weights of the branches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("M", [2, 3, 4])
def test_the_gates_bound_the_weights(M):
    """Scores without end, and yet every branch keeps its share; a softmax of the scores themselves would choose."""
    psa = make(4, 4 * M, kernel_sizes=(1,) * M, groups=(1,) * M, reduction=1)
    least, most = 1 / (1 + (M - 1) * math.e), math.e / (math.e + M - 1)
    if M == 4:
        assert (round(least, 3), round(most, 3)) == (0.109, 0.475)
    psa.W2.weight.mul_(1e3)
    t = run(psa, 10 * randn(64, 4, 1, 1))
    a, scores = t["a"], psa.W2(F.relu(psa.W1(t["z"])))
    assert least - 1e-12 <= a.min() < least + 1e-3 and most - 1e-3 < a.max() <= most + 1e-12
    assert scores.softmax(1).max() > 0.999 and scores.softmax(1).min() < 1e-3


def test_an_se_without_weights_gives_each_branch_its_share():
    psa, x = make(), randn(2, 4, 5, 7)
    psa.W2.weight.zero_()
    torch.testing.assert_close(psa(x), torch.cat([conv(x) for conv in psa.convs], 1) / 3)


def test_branches_that_are_equal_share_equally():
    psa, x = make(kernel_sizes=(3, 3, 3), groups=(2, 2, 2)), randn(2, 4, 5, 7)
    for conv in psa.convs:
        conv.weight.copy_(psa.convs[0].weight)
    torch.testing.assert_close(run(psa, x)["a"], torch.full((2, 3, 4), 1 / 3, dtype=D))


def test_weights_depend_on_the_means_of_the_branches_alone():
    psa, object_ = make(), randn(1, 4, 6, 6)
    a = [run(psa, F.pad(object_, (left, 14 - left, top, 14 - top)))["a"] for top, left in ((5, 4), (9, 7))]
    torch.testing.assert_close(*a, rtol=0, atol=1e-13)


# ---- the release -----------------------------------------------------------------------------------------------------


def test_defaults_are_the_releases():
    psa = PSAAttention(64)
    assert [conv.weight.shape for conv in psa.convs] == [(16, 64, 3, 3), (16, 16, 5, 5), (16, 8, 7, 7), (16, 4, 9, 9)]
    assert psa.W1.weight.shape == (1, 16) and psa.W1.bias is not None and psa.W2.bias is not None
    assert all(conv.bias is None for conv in psa.convs)
    assert all(g == (1 if k == 3 else 2 ** ((k - 1) // 2)) for k, g in zip(psa.kernel_sizes, psa.groups, strict=True))


def test_the_release_puts_the_branches_together_in_reverse():
    """Each branch goes before what is there; weights of a layer behind it belong to that order."""
    psa, x = make(), randn(2, 4, 5, 7)
    t, out = run(psa, x), None
    for m in range(3):
        weighed = t["F_m"][:, m] * t["a"][:, m, :, None, None]
        out = weighed if out is None else torch.cat((weighed, out), 1)
    torch.testing.assert_close(out, psa(x).unflatten(1, (3, 4)).flip(1).flatten(1, 2))
    assert (out - psa(x)).abs().max() > 0.1
    behind = randn(5, 12, 1, 1, seed=3)
    turned = behind.unflatten(1, (3, 4)).flip(1).flatten(1, 2)
    torch.testing.assert_close(F.conv2d(psa(x), turned), F.conv2d(out, behind))


def test_a_checkpoint_of_the_release_loads_by_names():
    source, psa = make(), make(seed=3)
    theirs = {f"conv_{m + 1}.weight": conv.weight for m, conv in enumerate(source.convs)}
    for ours, name in (("W1", "se.fc1"), ("W2", "se.fc2")):
        layer = getattr(source, ours)
        theirs |= {f"{name}.weight": layer.weight[..., None, None], f"{name}.bias": layer.bias}
    names = {**{f"conv_{m + 1}": f"convs.{m}" for m in range(3)}, "se.fc1": "W1", "se.fc2": "W2"}
    state = {}
    for name, t in theirs.items():
        layer, _, rest = name.rpartition(".")
        state[f"{names[layer]}.{rest}"] = t.flatten(1) if layer.startswith("se") and t.ndim > 1 else t
    psa.load_state_dict(state)
    x = randn(2, 4, 5, 7)
    assert torch.equal(psa(x), source(x))


def test_the_input_stays_and_all_layers_are_parameters():
    psa, x = make(12, 12), randn(2, 12, 5, 7)
    before = x.clone()
    psa(x)
    assert torch.equal(x, before)
    assert {name.split(".")[0] for name, _ in psa.named_parameters()} == {"convs", "W1", "W2"}
    assert sum(p.numel() for p in psa.parameters()) == 4 * (12 * 9 + 6 * 25 + 3) + 2 * 4 * 2 + 2 + 4
    parts = x.view(2, 3, 4, 5, 7)  # as in the copy: a view of x, so that x changes with it
    parts[:, 0] = 0
    assert not torch.equal(x, before)


def test_one_number_of_groups_is_that_of_every_branch():
    assert PSAAttention(32, groups=2, reduction=4).groups == (2, 2, 2, 2)


@pytest.mark.parametrize(("channels", "options", "message"), [
    (32, {}, "out_channels=32 must be divisible by 4·lcm(1, 4, 8, 16)=64; 64 is"),
    (100, dict(out_channels=64), "channels=100 must be divisible by lcm(1, 4, 8, 16)=16; 96 and 112 are"),
    (64, dict(out_channels=96), "out_channels=96 must be divisible by 4·lcm(1, 4, 8, 16)=64; 64 and 128 are"),
    (64, dict(reduction=17), "reduction=17 must be at most out_channels/4=16"),
    (64, dict(kernel_sizes=(3, 4, 5, 7)), "kernel_sizes=4 must be odd"),
    (64, dict(kernel_sizes=3), "kernel_sizes=3 must hold one integer a branch"),
    (64, dict(groups=()), "groups=() must hold one integer a branch"),
    (64, dict(groups=0), "groups=0 must be an integer of at least 1"),
    (64, dict(groups=(1, 4)), "kernel_sizes=(3, 5, 7, 9) and groups=(1, 4) must hold one number a branch each"),
])
def test_arguments_out_of_range(channels, options, message):
    with pytest.raises(ValueError) as error:
        PSAAttention(channels, **options)
    assert message in str(error.value)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_flops_are_four_grouped_convolutions_and_a_small_gate():
    psa, x = PSAAttention(64), torch.randn(2, 64, 14, 12)
    convolutions = sum(2 * 16 * 64 // g * k * k * 14 * 12 for k, g in zip(psa.kernel_sizes, psa.groups, strict=True))
    assert measure.cost(psa, x).flops == 2 * (convolutions + 4 * 2 * 2 * 16 * 1)


def test_memory_is_linear_in_the_positions():
    """What the branches saw, once: O numbers a pixel, however many they are."""
    sides = [(8, 8), (8, 16), (16, 16), (16, 32)]
    N = [h * w for h, w in sides]
    for M in (2, 4):
        psa = PSAAttention(8, 16, kernel_sizes=(1, 3, 5, 7)[:M], groups=(1,) * M, reduction=2)
        saved = [measure.saved_bytes(psa, torch.randn(2, 8, *side)) for side in sides]
        assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.05)
        assert [a - saved[0] for a in saved] == [4 * 2 * 16 * (n - N[0]) for n in N]
