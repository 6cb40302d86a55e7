"""Halo attention against its equation, its limits, timm, its memory, and known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import HaloAttention
from tests.unit.draw import D, randn, randomised
from tests.unit.reference import reference

# H, W, b, m: divides; does not; a block of one pixel; no halo; a halo wider than the block; a block that holds the map
SIZES = [(4, 6, 2, 1), (5, 3, 2, 1), (3, 4, 1, 1), (4, 5, 3, 0), (5, 4, 2, 3), (3, 2, 4, 1), (1, 1, 2, 1), (1, 5, 2, 2)]


def halo(b=2, m=1, C=6, heads=2, seed=0, **options) -> HaloAttention:
    module = HaloAttention(C, heads=heads, block_size=b, halo_size=m, **options)
    return randomised(module, scale=0.6, seed=seed).requires_grad_(False)


def run(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def equation(module, image, steps=1):
    """One image, a query at a time. `steps` is how many pixels an offset counts for a query's place in its block."""
    C, H, W = image.shape
    b, m, s, d = module.block_size, module.halo_size, module.stride, C // module.heads
    q, k, v = (torch.einsum("OC,CHW->HWO", conv.weight[:, :, 0, 0], image)
               for conv in (module.Wq, module.Wk, module.Wv))
    out = torch.zeros(C, math.ceil(H / s), math.ceil(W / s), dtype=D)
    for y in range(0, H, s):
        for x in range(0, W, s):
            top, left = y // b * b, x // b * b
            keys = [(i, j) for i in range(top - m, top + b + m) for j in range(left - m, left + b + m)]
            if module.masked:
                keys = [(i, j) for i, j in keys if 0 <= i < H and 0 <= j < W]
            for head in range(module.heads):
                part = slice(head * d, (head + 1) * d)
                logits, values = [], []
                for i, j in keys:
                    down, right = (i - top) - (y - top) // steps, (j - left) - (x - left) // steps
                    place = q[y, x, part] @ (module.Rh[b - s + m + down] + module.Rw[b - s + m + right])
                    on_map = 0 <= i < H and 0 <= j < W
                    content = q[y, x, part] @ k[i, j, part] if on_map else torch.zeros((), dtype=D)
                    place = place / math.sqrt(d) if module.scale_positions else place
                    logits.append((content / math.sqrt(d) + place).item())
                    values.append(v[i, j, part] if on_map else torch.zeros(d, dtype=D))
                e = [math.exp(value) for value in logits]
                out[part, y // s, x // s] = sum(a / sum(e) * value for a, value in zip(e, values, strict=True))
    return out


@pytest.mark.parametrize("options", [{}, dict(masked=False), dict(scale_positions=False)], ids=str)
@pytest.mark.parametrize(("H", "W", "b", "m"), SIZES)
def test_equals_the_paper(H, W, b, m, options):
    module, x = halo(b, m, **options), randn(2, 6, H, W)
    assert_close(module(x), torch.stack([equation(module, image) for image in x]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("H", "W", "b", "m", "s"), [
    (4, 8, 4, 1, 2), (5, 7, 4, 2, 2), (4, 4, 4, 1, 4), (3, 7, 3, 1, 3),
])
def test_a_stride_equals_the_paper(H, W, b, m, s, masked):
    module, x = halo(b, m, stride=s, masked=masked), randn(2, 6, H, W)
    expected = torch.stack([equation(module, image) for image in x])
    assert_close(module(x), expected, rtol=0, atol=1e-12)
    assert_close(module(x), halo_of_stride_1(module)(x)[..., ::s, ::s], rtol=0, atol=1e-12)


def halo_of_stride_1(module):
    dense = halo(module.block_size, module.halo_size, masked=module.masked)
    unused = {name: F.pad(getattr(module, name), (0, 0, module.stride - 1, 0)) for name in ("Rh", "Rw")}
    dense.load_state_dict({**module.state_dict(), **unused})
    return dense


class Wrong(HaloAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        B, C, H, W = x.shape
        b, m = self.block_size, self.halo_size
        win = b + 2 * m
        q = F.unfold(self.Wq(x), b, stride=b).view(B, self.heads, C // self.heads, b * b, -1)
        k, v = (F.unfold(conv(x), win, stride=b, padding=m).view(B, self.heads, C // self.heads, win * win, -1)
                for conv in (self.Wk, self.Wv))
        q, k, v = (t.movedim(4, 1).mT for t in (q, k, v))  # B R h n d
        i, j = torch.arange(b), torch.arange(win)
        offsets = j - i[:, None] + b - 1
        if self.mistake == "offsets negated":
            offsets = offsets.flip(0, 1)
        if self.mistake == "offsets without the halo":
            offsets = (offsets - m).clamp(min=0)
        Rh, Rw = (self.Rw, self.Rh) if self.mistake == "rows and columns exchanged" else (self.Rh, self.Rw)
        r = Rh[offsets][:, None, :, None] + Rw[offsets][None, :, None]
        if self.mistake == "rows alone":
            r = Rh[offsets][:, None, :, None].expand(b, b, win, win, -1)
        place = torch.einsum("BRhnd,nNd->BRhnN", q, r.reshape(b * b, win * win, -1))
        if self.mistake == "no positions":
            place = 0 * place
        scale = C**-0.5 if self.mistake == "scaled by the whole width" else (C // self.heads) ** -0.5
        E = scale * q @ k.mT + (place if self.mistake == "positions not scaled" else scale * place)
        on_map = F.unfold(torch.ones(1, 1, H, W, dtype=D), win, stride=b, padding=m)[0].T.bool()  # R Nk
        if self.mistake == "the map masked":
            on_map = ~on_map | ~(~on_map).any(1, keepdim=True)  # where nothing lies outside, all stay
        E = E if self.mistake == "not masked" else E.masked_fill(~on_map[:, None, None], -torch.inf)
        y = (E.softmax(-1) @ v).mT.flatten(2, 3).movedim(1, 3)  # B C n R
        return F.fold(y.flatten(1, 2), (H, W), b, stride=b)


@pytest.mark.parametrize("mistake", [
    "offsets negated", "offsets without the halo", "rows and columns exchanged", "rows alone", "no positions",
    "scaled by the whole width", "positions not scaled", "the map masked", "not masked",
])
def test_the_comparison_with_the_paper_notices(mistake):
    module, x = halo(), randn(2, 6, 4, 6)
    wrong = Wrong(6, heads=2, block_size=2, halo_size=1).to(D)
    wrong.load_state_dict(module.state_dict())
    expected = torch.stack([equation(module, image) for image in x])
    assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equation():
    module, x = halo(), randn(2, 6, 5, 7)
    t = run(module, x)
    assert t.names() == ["q", "k", "v", "qr", "A", "y"]
    assert t["A"].shape == (24, 2, 4, 16) and t["q"].shape == (2, 12, 4, 6)
    assert_close(t["A"].sum(-1), torch.ones(24, 2, 4, dtype=D))
    assert_close(t["y"], module(x))


# ---- limits (the two of the catalog stand in limits/) ----------------------------------------------------------------


def test_only_a_masked_border_leaves_a_constant_alone():
    module, loose, x = halo(), halo(masked=False), randn(2, 6, 1, 1).expand(2, 6, 6, 8)
    assert_close(module(x), module.Wv(x), rtol=0, atol=1e-12)
    off = (loose(x) - loose.Wv(x)).abs().amax((0, 1))
    assert off[1:-1, 1:-1].amin() < 1e-12 and off[0].min() > 1e-2, "the zeros outside take their share"


def test_a_block_that_holds_the_map_is_global_only_where_it_is_masked():
    x = randn(2, 6, 3, 4)
    small, large = (halo(b, 1) for b in (4, 6))
    tables = {name: F.pad(getattr(small, name), (0, 0, 2, 2)) for name in ("Rh", "Rw")}
    large.load_state_dict({**small.state_dict(), **tables})
    assert_close(large(x), small(x), rtol=0, atol=1e-12)
    small.masked = large.masked = False
    assert (large(x) - small(x)).abs().max() > 1e-2


def test_a_block_of_one_pixel_is_attention_to_the_pixels_around():
    module, x = halo(1, 2), randn(1, 6, 6, 7)
    gradient = torch.autograd.functional.jacobian(lambda x: module(x)[0, :, 2, 3].sum(), x)[0].abs().sum(0)
    i, j = torch.arange(6)[:, None], torch.arange(7)
    assert torch.equal(gradient > 1e-12, ((i - 2).abs() <= 2) & ((j - 3).abs() <= 2))
    inner = module(x.roll((1, 2), (2, 3)))[..., 3:4, 4:5]
    assert_close(inner, module(x)[..., 2:3, 2:3], rtol=0, atol=1e-12)  # every pixel alike


@pytest.mark.parametrize(("pixel", "rows", "columns"), [((2, 3), (1, 5), (1, 5)), ((0, 0), (0, 3), (0, 3))])
def test_a_query_sees_its_block_and_the_halo(pixel, rows, columns):
    module, x = halo(2, 1), randn(1, 6, 6, 7)
    gradient = torch.autograd.functional.jacobian(lambda x: module(x)[0, :, pixel[0], pixel[1]].sum(), x)
    seen = torch.zeros(6, 7, dtype=bool)
    seen[slice(*rows), slice(*columns)] = True
    assert torch.equal(gradient[0].abs().sum(0) > 1e-12, seen)


def test_shifting_by_whole_blocks_shifts_the_output_inside():
    module, x = halo(2, 1), randn(1, 6, 8, 10)
    moved = module(x.roll((2, 4), (2, 3)))
    assert_close(moved[..., 4:6, 6:8], module(x)[..., 2:4, 2:4], rtol=0, atol=1e-12)
    by_one = module(x.roll((1, 0), (2, 3)))
    assert (by_one[..., 3:5, 2:4] - module(x)[..., 2:4, 2:4]).abs().max() > 1e-2


@pytest.mark.parametrize(("options", "message"), [
    (dict(C=6, heads=4), "channels=6 must be divisible by heads=4; 4 and 8 are"),
    (dict(b=0), "block_size=0 must be an integer of at least 1"),
    (dict(m=-1), "halo_size=-1 must be an integer of at least 0"),
    (dict(b=3, stride=2), "block_size=3 must be divisible by stride=2; 2 and 4 are"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        halo(**options)


# ---- memory ----------------------------------------------------------------------------------------------------------


def kept(b, m, side):
    return measure.saved_bytes(HaloAttention(8, heads=2, block_size=b, halo_size=m), torch.randn(1, 8, side, side))


def test_memory_is_linear_in_the_pixels():
    N, bytes = zip(*((side**2, kept(4, 1, side)) for side in (16, 32, 64)), strict=True)
    assert measure.fit_exponent(N, bytes) == pytest.approx(1, abs=0.03)


def test_operations_are_those_of_a_neighbourhood_for_each_pixel():
    C, N = 8, 16**2
    for b, m in ((4, 1), (4, 3), (8, 3)):
        pairs, offsets = N * (b + 2 * m) ** 2, 2 * N * (2 * b + 2 * m - 1)
        flops = measure.flops(HaloAttention(C, heads=2, block_size=b, halo_size=m), torch.randn(1, C, 16, 16))
        assert flops == 2 * 3 * N * C * C + 2 * offsets * C + 4 * pairs * C


# ---- reference packages ----------------------------------------------------------------------------------------------


def in_timm(ours, C, **options):
    timm = reference("timm.layers.halo_attn")
    m = ours.halo_size
    theirs = timm.HaloAttn(C, num_heads=ours.heads, dim_head=C // ours.heads, block_size=ours.block_size, halo_size=m,
                           scale_pos_embed=ours.scale_positions, **options).to(D).eval()
    theirs.q.weight.data = ours.Wq.weight
    # keys and values of a head stand beside each other
    both = [W.weight.unflatten(0, (ours.heads, -1)) for W in (ours.Wk, ours.Wv)]
    theirs.kv.weight.data = torch.cat(both, 1).flatten(0, 1)
    for mine, other in ((ours.Rh, theirs.pos_embed.height_rel), (ours.Rw, theirs.pos_embed.width_rel)):
        other.data = torch.cat([randn(2 * m + ours.stride - 1, C // ours.heads, seed=9), mine])
    return theirs


@pytest.mark.parametrize("scale_positions", [True, False])
@pytest.mark.parametrize(("C", "heads", "b", "m", "H", "W"), [
    (8, 2, 2, 1, 4, 6), (6, 3, 4, 3, 8, 4), (8, 1, 3, 2, 6, 9),
])
def test_equals_timm(C, heads, b, m, H, W, scale_positions):
    ours, x = halo(b, m, C, heads, masked=False, scale_positions=scale_positions), randn(2, C, H, W)
    theirs = in_timm(ours, C)
    assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
    ours.masked = True
    assert (ours(x) - theirs(x)).abs().max() > 1e-2


def test_rows_of_the_packages_tables_are_dead():
    ours = halo(2, 3, 8, 2, masked=False)
    theirs = in_timm(ours, 8)
    theirs(randn(2, 8, 4, 6)).square().sum().backward()
    for table in (theirs.pos_embed.height_rel, theirs.pos_embed.width_rel):
        used = table.grad.abs().sum(1) > 0
        assert not used[:6].any() and used[6:].all() and len(used) == 15 and len(ours.Rh) == 9


def test_timm_misplaces_strided_queries():
    ours, x = halo(4, 1, 8, 2, stride=2, masked=False), randn(2, 8, 8, 4)
    theirs = in_timm(ours, 8, stride=2)
    misplaced = torch.stack([equation(ours, image, steps=2) for image in x])
    assert_close(theirs(x), misplaced, rtol=0, atol=1e-12)
    assert (ours(x) - theirs(x)).abs().max() > 1e-2
