"""Multi-spectral channel attention against its paper, its release, its limits, and the errors in circulation.

No package that is kept well holds it.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.channel import FcaAttention
from attn_lib.channel.fca import METHODS
from tests.unit.draw import D, randn, randomised

FOUR = ((0, 0), (0, 1), (6, 0), (2, 5))
CASES = [  # P, Q, frequencies, C, H, W
    (7, 7, FOUR, 8, 7, 7), (14, 7, FOUR, 4, 14, 7), (7, 9, FOUR, 4, 5, 20), (8, 15, ((1, 2), (3, 4)), 6, 1, 1),
    (7, 7, "top2", 6, 16, 3), (14, 14, "low1", 3, 14, 14),
]


def make(C=8, r=2, *, frequencies=FOUR, seed=0, **options):
    fca = randomised(FcaAttention(C, reduction=r, frequencies=frequencies, **options), scale=0.7, seed=seed)
    return fca.requires_grad_(False)


def run(fca, x):
    with attn_lib.trace() as t:
        fca(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def region(n, size, regions):
    """Rows (or columns) that region n of an adaptive mean takes."""
    return range(n * size // regions, -(-(n + 1) * size // regions))


def cosine(f, place, size):
    factor = 1 / math.sqrt(size) if f == 0 else math.sqrt(2 / size)
    return factor * math.cos(math.pi * f * (place + 0.5) / size)


def from_the_paper(x, fca, frequencies):
    """The DCT coefficient of each channel's block and the two layers of SE, in plain numbers."""
    P, Q, S = fca.dct_h, fca.dct_w, fca.channels // len(frequencies)
    W1, W2 = fca.W1.weight.tolist(), fca.W2.weight.tolist()
    out = []
    for image in x.tolist():
        z = []
        for c, channel in enumerate(image):
            u, v = frequencies[c // S]
            u, v, z_c = u * (P // 7), v * (Q // 7), 0.0
            for i in range(P):
                for j in range(Q):
                    pixels = [channel[a][b] for a in region(i, len(channel), P) for b in region(j, len(channel[0]), Q)]
                    z_c += cosine(u, i, P) * cosine(v, j, Q) * sum(pixels) / len(pixels)
            z.append(z_c)
        hidden = [max(0.0, sum(w * z_c for w, z_c in zip(row, z, strict=True))) for row in W1]
        s = [1 / (1 + math.exp(-sum(w * h for w, h in zip(row, hidden, strict=True)))) for row in W2]
        out.append([[[s_c * pixel for pixel in row] for row in channel] for s_c, channel in zip(s, image, strict=True)])
    return torch.tensor(out, dtype=D)


NAMED = {"top2": ((0, 0), (0, 1)), "low1": ((0, 0),)}


@pytest.mark.parametrize(("P", "Q", "frequencies", "C", "H", "W"), CASES)
def test_equals_the_paper(P, Q, frequencies, C, H, W):
    fca, x = make(C, dct_h=P, dct_w=Q, frequencies=frequencies), randn(2, C, H, W)
    expected = from_the_paper(x, fca, NAMED.get(frequencies, frequencies))
    torch.testing.assert_close(fca(x), expected, rtol=0, atol=1e-12)


class Wrong(FcaAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        P, Q, G = self.dct_h, self.dct_w, len(self.frequencies)
        p = F.adaptive_max_pool2d(x, (P, Q)) if self.mistake == "maximum of a region" else \
            F.adaptive_avg_pool2d(x, (P, Q))
        if self.mistake == "resized instead":
            p = F.interpolate(x, (P, Q), mode="bilinear")
        scale = (1, 1) if self.mistake == "frequencies not rescaled" else (P // 7, Q // 7)
        i, j = torch.arange(P, dtype=D) + 0.5, torch.arange(Q, dtype=D) + 0.5
        patterns = []
        for u, v in self.frequencies:
            u, v = (v, u) if self.mistake == "axes exchanged" else (u, v)
            rows = torch.cos(math.pi * u * scale[0] * i / P) * math.sqrt((1 if u == 0 else 2) / P)
            cols = torch.cos(math.pi * v * scale[1] * j / Q) * math.sqrt((1 if v == 0 else 2) / Q)
            if self.mistake == "constant factors left out":
                rows, cols = rows / rows.abs().max(), cols / cols.abs().max()
            if self.mistake == "corners for centres":
                rows, cols = (t.roll(1) for t in (rows, cols))
            patterns.append(rows[:, None] * cols)
        patterns = torch.stack(patterns)
        S = self.channels // G
        each = patterns.repeat(S, 1, 1) if self.mistake == "frequencies dealt out" else patterns.repeat_interleave(S, 0)
        z = (p * each).mean((2, 3)) if self.mistake == "mean for sum" else (p * each).sum((2, 3))
        if self.mistake == "Fourier transform":
            spectrum = torch.fft.fft2(p, norm="ortho").abs()
            z = torch.stack([spectrum[:, c, u, v] for c, (u, v) in
                             enumerate(f for f in self.frequencies for _ in range(S))], 1)
        if self.mistake == "means alone":
            z = p.mean((2, 3)) * math.sqrt(P * Q)
        hidden = self.W1(z) if self.mistake == "no ReLU" else F.relu(self.W1(z))
        s = self.W2(hidden).sigmoid()[:, :, None, None]
        return x + x * s if self.mistake == "residual added" else x * s


@pytest.mark.parametrize("mistake", [
    "maximum of a region", "resized instead", "frequencies not rescaled", "axes exchanged", "constant factors left out",
    "corners for centres", "frequencies dealt out", "mean for sum", "Fourier transform", "means alone", "no ReLU",
    "residual added",
])
def test_the_comparison_with_the_paper_notices(mistake):
    fca, x = make(dct_h=14, dct_w=7), randn(2, 8, 28, 21)
    wrong = Wrong(8, reduction=2, frequencies=FOUR, dct_h=14, dct_w=7).to(D)
    wrong.load_state_dict(fca.state_dict())
    expected = from_the_paper(x, fca, FOUR)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    fca, x = make(), randn(2, 8, 14, 21)
    t = run(fca, x)
    assert t.names() == ["p", "z", "s", "y"]
    assert [t.dims(n) for n in t.names()] == ["B C P Q", "B C", "B C", "B C H W"]
    torch.testing.assert_close(t["p"], F.avg_pool2d(x, (2, 3)), rtol=0, atol=1e-14)
    torch.testing.assert_close(t["z"][:, :2], 7 * x.mean((2, 3))[:, :2], rtol=0, atol=1e-13)  # frequency (0, 0)
    assert torch.equal(t["y"], x * t["s"][:, :, None, None])


# ---- frequencies -----------------------------------------------------------------------------------------------------

# Read in the authors' release: rows and columns of their sixteen best.
TOP16 = list(zip([0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2], [0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2],
                 strict=True))


def test_names_are_those_of_the_release():
    assert list(METHODS["top16"]) == TOP16 and FcaAttention(64).frequencies == METHODS["top16"]
    assert METHODS["low8"] == ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (2, 1), (1, 2))
    assert METHODS["bot4"] == ((6, 6), (1, 4), (3, 4), (3, 6))
    assert all(len(set(pairs)) == len(pairs) == int(name[3:]) for name, pairs in METHODS.items())


@pytest.mark.parametrize("size", [7, 8, 13, 14, 20, 56])
def test_the_basis_is_orthonormal(size):
    """On every grid that is taken the frequencies stay as many as there are: their rank is 32."""
    basis = make(32, frequencies="top32", dct_h=size, dct_w=size).basis.flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(32, dtype=D), rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [5, 6, 1])
@pytest.mark.parametrize("axis", ["dct_h", "dct_w"])
def test_a_grid_below_7_keeps_what_fits_and_refuses_the_rest(size, axis):
    patterns = [[cosine(u * (size // 7), i, size) * cosine(v * (size // 7), j, size)
                 for i in range(size) for j in range(size)] for u, v in TOP16]
    assert torch.linalg.matrix_rank(torch.tensor(patterns, dtype=D)) == 1  # as the release would have it
    with pytest.raises(ValueError, match=rf"{axis}={size} must be larger than the highest frequency=6.*; 7 would do"):
        FcaAttention(32, **{axis: size})
    fits = tuple((u, v) for u in range(size) for v in range(size))
    basis = make(len(fits), 1, frequencies=fits, dct_h=size, dct_w=size).basis.flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(fits), dtype=D), rtol=0, atol=1e-13)


def test_the_four_patterns_of_2_by_2():
    basis = make(4, frequencies="low4", dct_h=2, dct_w=2).basis
    signs = [[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]
    torch.testing.assert_close(basis, torch.tensor(signs, dtype=D) / 2, rtol=0, atol=1e-15)


@pytest.mark.parametrize("size, blind", [(7, False), (13, False), (14, True), (21, False), (28, True), (56, True)])
def test_a_grid_of_14_28_or_56_cannot_tell_up_from_down(size, blind):
    """As in all stages of the authors' ResNets but the last: multiplied by 2, 4 or 8, every cosine is even."""
    for axis, grid in ((2, "dct_h"), (3, "dct_w")):
        fca, x = make(16, frequencies="top16", **{grid: size}), randn(2, 16, 56, 56)
        changed = (run(fca, x.flip(axis))["z"] - run(fca, x)["z"]).abs().max()
        assert changed < 1e-12 if blind else changed > 0.1


def test_a_frequency_keeps_its_wavelength_in_pixels_on_a_finer_grid():
    """A quarter of the finer pattern is the coarse one; what is the same across the image is the unscaled one."""
    coarse, fine = (make(4, dct_h=size, dct_w=size).basis for size in (7, 14))
    torch.testing.assert_close(2 * fine[:, :7, :7], coarse, rtol=0, atol=1e-14)
    for pattern, (u, v) in zip(coarse, FOUR, strict=True):
        unscaled = torch.tensor([[cosine(u, i, 14) * cosine(v, j, 14) for j in range(14)] for i in range(14)], dtype=D)
        averaged = F.avg_pool2d(unscaled[None, None], 2).flatten()
        assert F.cosine_similarity(averaged, pattern.flatten(), dim=0).item() == pytest.approx(1, abs=1e-14)
    averaged = F.avg_pool2d(fine[1:, None], 2).flatten(1)
    assert (F.cosine_similarity(averaged, coarse[1:].flatten(1)).abs() < 1e-12).all()


def test_between_8_and_13_frequencies_stay_what_they_are():
    basis = make(4, dct_h=13, dct_w=8).basis
    expected = torch.tensor([[[cosine(u, i, 13) * cosine(v, j, 8) for j in range(8)] for i in range(13)]
                             for u, v in FOUR], dtype=D)
    torch.testing.assert_close(basis, expected, rtol=0, atol=1e-14)


def test_a_pattern_is_seen_by_its_own_frequency_alone():
    fca = make(4, frequencies=((0, 0), (3, 0), (0, 3), (3, 3)))
    for g in range(4):
        z = run(fca, 5 * fca.basis[g].expand(1, 4, 7, 7))["z"][0]
        torch.testing.assert_close(z, 5 * torch.eye(4, dtype=D)[g], rtol=0, atol=1e-13)


def test_mirrored_light_turns_the_sign_of_an_odd_frequency():
    """Of the mean nothing is left to see: light from above and from below are alike to SE."""
    fca, x = make(4, frequencies=((1, 0), (2, 0), (0, 1), (0, 2))), randn(1, 4, 7, 7)
    torch.testing.assert_close(run(fca, x.flip(2))["z"], run(fca, x)["z"] * torch.tensor([-1, 1, 1, 1]))
    torch.testing.assert_close(run(fca, x.flip(3))["z"], run(fca, x)["z"] * torch.tensor([1, 1, -1, 1]))


# ---- size of the map, precision, release -----------------------------------------------------------------------------


def test_maps_of_other_sizes_are_averaged_up_as_well_as_down():
    fca, x = make(), randn(2, 8, 7, 7)
    z = run(fca, x)["z"]
    for up in (2, 3):
        larger = x.repeat_interleave(up, 2).repeat_interleave(up, 3)
        torch.testing.assert_close(run(fca, larger)["z"], z, rtol=0, atol=1e-13)
    torch.testing.assert_close(run(fca, x[:, :, :1, :1])["z"][:, :2], 7 * x[:, :2, 0, 0], rtol=0, atol=1e-13)


def test_a_map_of_the_size_of_the_grid_is_taken_as_it_is():
    fca, x = make(dct_h=7, dct_w=9), randn(2, 8, 7, 9)
    p = run(fca, x)["p"]
    assert p is x and torch.equal(p, F.adaptive_avg_pool2d(x, (7, 9)))
    for other in (randn(2, 8, 7, 10), randn(2, 8, 9, 7)):
        torch.testing.assert_close(run(fca, other)["p"], F.adaptive_avg_pool2d(other, (7, 9)), rtol=0, atol=0)


def test_regions_that_overlap_do_not_give_the_mean():
    fca, x = make(3, 1, frequencies="top1"), randn(2, 3, 10, 7)
    assert (run(fca, x)["z"] / 7 - x.mean((2, 3))).abs().max() > 0.01
    torch.testing.assert_close(run(fca, x[:, :, :7])["z"] / 7, x[:, :, :7].mean((2, 3)), rtol=0, atol=1e-14)


def test_the_basis_follows_the_type_without_being_rounded():
    fca = FcaAttention(32)
    exact = FcaAttention(32).double().basis
    assert fca.basis.dtype == fca.half().basis.dtype == torch.float32
    assert torch.equal(fca.double().basis, exact) and torch.equal(exact.float(), fca.float().basis)
    assert fca.to("meta").basis.is_meta and torch.equal(fca.to_empty(device="cpu").basis, exact.float())


def test_a_checkpoint_of_the_release_loads_by_two_names():
    """Its third entry, the patterns of all channels, is what the basis says once a block."""
    fca = FcaAttention(32)
    release = {"dct_layer.weight": torch.zeros(32, 7, 7), "fc.0.weight": randn(2, 32).float(),
               "fc.2.weight": randn(32, 2).float()}
    names = {"fc.0.weight": "W1.weight", "fc.2.weight": "W2.weight"}
    fca.load_state_dict({ours: release[theirs] for theirs, ours in names.items()})
    assert set(fca.state_dict()) == set(names.values()) and fca.basis.shape == (16, 7, 7)
    assert torch.equal(fca.W1.weight, release["fc.0.weight"])


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=30), "channels=30 must be divisible by number of frequencies=16; 16 and 32 are"),
    (dict(channels=5), "channels=5 must be divisible by number of frequencies=16; 16 is"),
    (dict(frequencies="top3"), "frequencies='top3' must be one of"),
    (dict(frequencies=()), r"frequencies=\(\) must be a name such as 'top16', or pairs"),
    (dict(frequencies=(1, 2)), r"frequencies=\(1, 2\) must be a name"),
    (dict(frequencies=((0, 7),)), "frequencies=7 must be at most the highest=6"),
    (dict(frequencies=((0, -1),)), "frequencies=-1 must be an integer of at least 0"),
    (dict(reduction=64), "reduction=64 must be at most channels=32"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        FcaAttention(**{"channels": 32, **options})


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_costs_what_se_does():
    fca, se = FcaAttention(64), attn_lib.create("se", channels=64, bias=False)
    assert sum(p.numel() for p in fca.parameters()) == sum(p.numel() for p in se.parameters()) == 2 * 64 * 4
    C, sides = 32, [(16, 16), (16, 32), (32, 32), (32, 64)]
    fca = FcaAttention(C)
    saved = [measure.saved_bytes(fca, torch.randn(2, C, *side)) for side in sides]
    assert max(saved) == min(saved) <= 4 * 2 * C * 10  # x is an input and not counted; the pooled map is not kept
    saved = [measure.saved_bytes(lambda t: fca(t * 2), torch.randn(2, C, *side)) for side in sides]
    N = [h * w for h, w in sides]  # and behind another layer x once, for the product with the gate
    assert [bytes - saved[0] for bytes in saved] == [4 * 2 * C * (n - N[0]) for n in N]
