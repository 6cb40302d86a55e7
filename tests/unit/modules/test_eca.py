"""Efficient channel attention against its paper, its limits, another package, and the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.channel import ECAAttention
from attn_lib.channel.eca import adaptive_kernel_size
from tests.unit.draw import D, permutation, randn, randomised
from tests.unit.reference import reference

CASES = [(16, 3, 5, 7), (12, 5, 1, 1), (6, 11, 4, 3), (1, 1, 3, 2), (33, 7, 1, 9), (8, 1, 2, 3)]  # C, k, H, W


def make(C=12, k=5, *, scale=1.5, seed=0):
    return randomised(ECAAttention(C, kernel_size=k), scale=scale, seed=seed).requires_grad_(False)


def gate(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t["s"]


# ---- equation --------------------------------------------------------------------------------------------------------


def from_the_paper(x, eca):
    """Equation 8, one channel and one neighbour at a time; a neighbour that does not exist counts as zero."""
    w = eca.conv.weight.flatten().tolist()
    reach = (len(w) - 1) // 2
    out = []
    for image in x.tolist():
        z = [sum(map(sum, channel)) / (len(channel) * len(channel[0])) for channel in image]
        scaled = []
        for c, channel in enumerate(image):
            a = sum(w_j * z[c + j] for j, w_j in zip(range(-reach, reach + 1), w, strict=True) if 0 <= c + j < len(z))
            scaled.append([[pixel / (1 + math.exp(-a)) for pixel in row] for row in channel])
        out.append(scaled)
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize(("C", "k", "H", "W"), CASES)
def test_equals_the_paper(C, k, H, W):
    eca, x = make(C, k), randn(3, C, H, W)
    torch.testing.assert_close(eca(x), from_the_paper(x, eca), rtol=0, atol=1e-13)


class Wrong(ECAAttention):
    """The errors in circulation, one at a time."""

    mistake: str | None = None

    def forward(self, x):
        w, reach = self.conv.weight, self.kernel_size // 2
        z = x.amax((2, 3)) if self.mistake == "maximum for mean" else x.mean((2, 3))
        pad = {"circular padding": "circular", "edge channels repeated": "replicate"}.get(self.mistake, "constant")
        a = F.conv1d(F.pad(z[:, None], (reach, reach), mode=pad), w)[:, 0]
        if self.mistake == "convolved along the wrong axis":  # (B, C, 1): only the middle weight ever meets a number
            a = F.conv1d(z[:, :, None], w.expand(self.channels, 1, -1), padding=reach, groups=self.channels)[:, :, 0]
        if self.mistake == "convolved over the batch":
            a = F.conv1d(z.T[:, None], w, padding=reach)[:, 0].T
        a = F.conv1d(z[:, None], w.flip(2), padding=reach)[:, 0] if self.mistake == "kernel reversed" else a
        a = a + 0.5 if self.mistake == "bias" else a
        gate = {"no sigmoid": lambda a: a, "softmax gate": lambda a: a.softmax(1), "tanh gate": torch.tanh}
        s = gate.get(self.mistake, torch.sigmoid)(a)[:, :, None, None]
        return x + s * x if self.mistake == "residual added" else x + s if self.mistake == "added" else x * s


MISTAKES = ["maximum for mean", "circular padding", "edge channels repeated", "convolved along the wrong axis",
          "convolved over the batch", "kernel reversed", "bias", "no sigmoid", "softmax gate", "tanh gate",
          "residual added", "added"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    eca, x = make(), randn(3, 12, 5, 7)
    wrong = Wrong(12, kernel_size=5).to(D)
    wrong.load_state_dict(eca.state_dict())
    wrong.mistake = mistake
    assert (wrong(x) - from_the_paper(x, eca)).abs().max() > 1e-2
    wrong.mistake = None
    torch.testing.assert_close(wrong(x), from_the_paper(x, eca), rtol=0, atol=1e-13)  # and nothing else differs


def test_taps_are_the_equations():
    eca, x = make(), randn(2, 12, 5, 7)
    with attn_lib.trace() as t:
        y = eca(x)
    assert t.names() == ["z", "s", "y"] and [t.dims(n) for n in t.names()] == ["B C", "B C", "B C H W"]
    assert torch.equal(t["z"], x.mean((2, 3))) and torch.equal(t["y"], y)
    assert torch.equal(y, x * t["s"][:, :, None, None])


# ---- kernel size -----------------------------------------------------------------------------------------------------


def nearest_odd(t):
    """The nearest odd number by looking at all of them; of two equally near ones the larger."""
    return min(range(1, 99, 2), key=lambda k: (abs(k - t), -k))


@pytest.mark.parametrize(("gamma", "b"), [(2, 1), (1, 0), (3, 1), (2, -4), (0.5, 2.5)])
def test_kernel_size_is_the_nearest_odd_number(gamma, b):
    for C in [*range(1, 300), 512, 1000, 1024, 2047, 2048, 2049, 32768]:
        t = (math.log2(C) + b) / gamma
        assert adaptive_kernel_size(C, gamma, b) == nearest_odd(t), C


def test_kernel_size_of_the_usual_widths():
    sizes = {C: adaptive_kernel_size(C) for C in (1, 7, 8, 16, 64, 127, 128, 256, 512, 1024, 2047, 2048)}
    assert list(sizes.values()) == [1, 1, 3, 3, 3, 3, 5, 5, 5, 5, 5, 7]
    assert {C: ECAAttention(C).kernel_size for C in sizes} == sizes
    assert ECAAttention(64, gamma=1).kernel_size == 7 and ECAAttention(64, b=5).kernel_size == 5


def test_listing_in_the_paper_rounds_to_the_nearest_odd_number_too():
    """Figure 3 cuts to an integer and adds 1 to an even one: the same k for every C, ties upwards included."""
    for C in range(1, 40_000):
        t = int(abs((math.log(C, 2) + 1) / 2))
        assert adaptive_kernel_size(C) == (t if t % 2 else t + 1), C


def test_parameters_in_resnet_50_are_those_of_the_paper():
    """80 (abstract), with the kernels of the released model; equation 12 as listed would give 86."""
    stages = [(3, 256, 3), (4, 512, 5), (6, 1024, 5), (3, 2048, 7)]

    def count(m):
        return sum(p.numel() for p in m.parameters())

    assert sum(n * count(ECAAttention(C, kernel_size=k)) for n, C, k in stages) == 80
    assert sum(n * count(ECAAttention(C)) for n, C, _ in stages) == 86


@pytest.mark.parametrize(("channels", "options", "message"), [
    (0, {}, "channels=0 must be an integer of at least 1"),
    (8.0, {}, "channels=8.0 must be an integer"),
    (8, dict(kernel_size=4), "kernel_size=4 must be odd"),
    (8, dict(kernel_size=0), "kernel_size=0 must be an integer of at least 1"),
    (8, dict(kernel_size=3.0), "kernel_size=3.0 must be an integer"),
    (8, dict(kernel_size=17), "kernel_size=17 must be at most 2·channels - 1=15"),
    (2, dict(gamma=0.25), "kernel_size=9 must be at most 2·channels - 1=3"),
    (8, dict(gamma=0), "gamma=0 must be a positive number"),
    (8, dict(gamma=-2), "gamma=-2 must be a positive number"),
    (8, dict(gamma=float("nan")), "gamma=nan must be a positive number"),
])
def test_arguments_out_of_range(channels, options, message):
    with pytest.raises(ValueError, match=message):
        ECAAttention(channels, **options)


# ---- limits ----------------------------------------------------------------------------------------------------------


def toeplitz(w, C):
    """The C × C matrix of a kernel: T[c, d] = w_{d − c}, zero where the kernel does not reach."""
    reach = (len(w) - 1) // 2

    def entry(c, d):
        return w[d - c + reach] if abs(d - c) <= reach else torch.zeros((), dtype=D)

    return torch.stack([torch.stack([entry(c, d) for d in range(C)]) for c in range(C)])


@pytest.mark.parametrize(("C", "k"), [(12, 1), (12, 5), (12, 23), (1, 1)])
def test_gate_is_a_banded_toeplitz_matrix(C, k):
    eca, x = make(C, k), randn(4, C, 3, 5)
    T = toeplitz(eca.conv.weight.flatten(), C)
    torch.testing.assert_close(gate(eca, x), torch.sigmoid(x.mean((2, 3)) @ T.T), rtol=0, atol=1e-13)
    assert (T != 0).sum() == sum(min(C, c + k // 2 + 1) - max(0, c - k // 2) for c in range(C))


def test_se_of_full_width_contains_it_where_means_are_not_negative():
    """Without biases, W1 = 1 and W2 = T: on maps behind a ReLU, ECA is an SE with C² − k fewer degrees of freedom."""
    eca, x = make(12, 5), randn(3, 12, 4, 5).relu()
    se = attn_lib.create("se", channels=12, reduction=1, bias=False).to(D).requires_grad_(False)
    se.W1.weight.copy_(torch.eye(12))
    se.W2.weight.copy_(toeplitz(eca.conv.weight.flatten(), 12))
    torch.testing.assert_close(se(x), eca(x), rtol=0, atol=1e-13)
    assert (se(x - 1) - eca(x - 1)).abs().max() > 1e-2


def test_zero_kernel_halves():
    eca, x = make(scale=0), randn(2, 12, 5, 7)
    assert torch.equal(eca(x), x / 2)


def test_a_centred_map_is_halved_whatever_the_kernel():
    """No bias: where every channel's mean is zero the gate has nothing to say."""
    eca, x = make(), randn(2, 12, 5, 7)
    centred = x - x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(eca(centred), centred / 2, rtol=0, atol=1e-14)


# ---- reach and symmetry ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 7])
def test_gate_depends_on_the_k_nearest_channels_only(k):
    eca, z = make(12, k), randn(12).requires_grad_()
    J = torch.autograd.functional.jacobian(lambda z: gate(eca, z[None, :, None, None])[0], z)
    distance = (torch.arange(12)[:, None] - torch.arange(12)).abs()
    assert torch.equal(J != 0, distance <= k // 2)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_reach_of_stacked_blocks_grows_by_a_neighbourhood_each(blocks):
    stack = nn.Sequential(*[make(20, 3, seed=i) for i in range(blocks)])
    J = torch.autograd.functional.jacobian(lambda z: stack(z[None, :, None, None])[0, :, 0, 0], randn(20))
    distance = (torch.arange(20)[:, None] - torch.arange(20)).abs()
    assert torch.equal(J != 0, distance <= blocks)


def test_gate_depends_on_channel_means_alone():
    eca, x = make(), randn(2, 12, 5, 7)
    other = randn(2, 12, 3, 4, seed=5)
    other = other - other.mean((2, 3), keepdim=True) + x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(gate(eca, x), gate(eca, other), rtol=0, atol=1e-12)


def test_channel_permutations_do_not_pass_through_and_no_kernel_repairs_it():
    eca, x = make(12, 3), randn(2, 12, 5, 7)
    order = permutation(12)
    assert (eca(x[:, order]) - eca(x)[:, order]).abs().max() > 1e-2
    T = toeplitz(eca.conv.weight.flatten(), 12)[order][:, order]  # what the gate would have to be
    assert any(torch.diagonal(T, d).std() > 0.1 for d in range(-5, 6))  # no diagonal constant: no convolution


def test_without_neighbours_channel_permutations_pass_through():
    eca, x = make(12, 1), randn(2, 12, 5, 7)
    order = permutation(12)
    torch.testing.assert_close(eca(x[:, order]), eca(x)[:, order], rtol=0, atol=1e-14)


def test_reversing_the_channels_reverses_the_kernel():
    eca, x = make(12, 5), randn(2, 12, 5, 7)
    back = make(12, 5)
    back.conv.weight.copy_(eca.conv.weight.flip(2))
    torch.testing.assert_close(back(x.flip(1)), eca(x).flip(1), rtol=0, atol=1e-14)
    assert (eca(x.flip(1)) - eca(x).flip(1)).abs().max() > 1e-2


def test_shifting_the_channels_shifts_the_gate_away_from_the_ends():
    """One kernel for all: channel 7 is treated as channel 4 would be with the same neighbours. SE has no such thing."""
    eca, z = make(16, 3), torch.zeros(1, 16, dtype=D)
    z[:, 4:8] = randn(4)
    s, moved = (gate(eca, v[..., None, None]) for v in (z, z.roll(3, 1)))
    torch.testing.assert_close(moved, s.roll(3, 1), rtol=0, atol=1e-14)


def test_the_first_and_last_channels_see_zeros_beyond_the_end():
    eca, x = make(12, 5), randn(2, 12, 5, 7)
    wide = make(16, 5)
    padded = F.pad(x, (0, 0, 0, 0, 2, 2))  # two silent channels on either side
    torch.testing.assert_close(wide(padded)[:, 2:14], eca(x), rtol=0, atol=1e-14)


def test_scaling_does_not_pass_through():
    eca, x = make(), randn(2, 12, 5, 7)
    assert (eca(2 * x) - 2 * eca(x)).abs().max() > 1e-2


# ---- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("C", [64, 256])
def test_cost_is_k_weights_and_2_k_c_flops(C):
    eca = ECAAttention(C)
    cost = measure.cost(eca, torch.randn(2, C, 9, 7))
    assert cost.params == eca.kernel_size and cost.flops == 2 * 2 * eca.kernel_size * C


def test_saves_no_more_than_a_few_numbers_a_channel():
    C, sides = 32, [(16, 16), (16, 32), (32, 32), (32, 64)]
    eca = ECAAttention(C)
    saved = [measure.saved_bytes(eca, torch.randn(2, C, *side)) for side in sides]
    assert max(saved) == min(saved) <= 4 * 2 * C * 4  # x is an input and not counted; the rest knows no resolution

    def block(t):  # behind another layer the product keeps x: linear in N = H·W
        return eca(t * 2)

    saved = [measure.saved_bytes(block, torch.randn(2, C, *side)) for side in sides]
    assert measure.fit_exponent([h * w for h, w in sides], saved) == pytest.approx(1, abs=0.02)


# ---- reference packages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("C", [8, 64, 128, 256, 2048])
def test_equals_timm_and_takes_its_weights(C):
    theirs = reference("timm.layers").EcaModule(C).to(D)
    ours = ECAAttention(C).to(D)
    ours.load_state_dict(theirs.state_dict())  # same k, same name: weights go in as they are
    x = randn(2, C, 6, 5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-14)


def test_timm_goes_no_lower_than_three():
    EcaModule = reference("timm.layers").EcaModule
    sizes = {C: EcaModule(C).conv.kernel_size[0] for C in range(1, 300)}
    assert [C for C, k in sizes.items() if k != adaptive_kernel_size(C)] == list(range(1, 8))
    x = randn(2, 5, 6, 5)
    theirs = EcaModule(5).to(D)
    ours = ECAAttention(5, kernel_size=3).to(D)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-14)


def test_timms_circular_variant_differs_at_the_ends_alone():
    theirs = randomised(reference("timm.layers").CecaModule(12))
    ours = ECAAttention(12).to(D)
    ours.load_state_dict(theirs.state_dict())
    x = randn(2, 12, 6, 5)
    difference = (ours(x) - theirs(x)).detach().abs().amax((0, 2, 3))
    assert (difference[[0, -1]] > 1e-3).all() and (difference[1:-1] < 1e-14).all()
