"""Bi-level routing attention against its equations, its limits, its memory, and known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import BiLevelRoutingAttention
from attn_lib.self_attention.biformer import _gather
from tests.unit.draw import randn, randomised

# H, W, S: S divides both, one, none; regions of one pixel; whole regions of padding
SIZES = [(4, 6, 2), (6, 6, 3), (4, 5, 2), (5, 7, 3), (3, 3, 3), (2, 5, 3), (1, 4, 2), (1, 1, 2)]


def bra(channels=4, heads=2, S=2, k=2, seed=0, **options) -> BiLevelRoutingAttention:
    m = BiLevelRoutingAttention(channels, heads=heads, regions=S, topk=k, lepe_kernel=3, **options)
    return randomised(m, scale=0.5, seed=seed).requires_grad_(False)


def regions_of(H, W, S) -> list[list[tuple[int, int]]]:
    """The real pixels of each of the S² regions, row by row; some may hold none."""
    h, w = math.ceil(H / S), math.ceil(W / S)
    return [[(i, j) for i in range(r * h, min(H, (r + 1) * h)) for j in range(c * w, min(W, (c + 1) * w))]
            for r in range(S) for c in range(S)]


def equations(m: BiLevelRoutingAttention, x: Tensor) -> Tensor:
    """One image (C, H, W), with loops over regions, pixels and heads; a region is a list of pixels."""
    C, H, W = x.shape
    d = C // m.heads

    def project(conv, pixel):
        return conv.weight[:, :, 0, 0] @ x[:, pixel[0], pixel[1]] + conv.bias

    pixels = [(i, j) for i in range(H) for j in range(W)]
    q, k, v = ({p: project(conv, p) for p in pixels} for conv in (m.Wq, m.Wk, m.Wv))
    regions = regions_of(H, W, m.regions)
    mean = [{r: sum(t[p] for p in region) / len(region) for r, region in enumerate(regions) if region} for t in (q, k)]
    v_map = torch.stack([v[p] for p in pixels], 1).view(1, C, H, W)
    y = F.conv2d(v_map, m.LCE.weight, m.LCE.bias, padding=m.LCE.padding, groups=C)[0]
    for r, region in enumerate(regions):
        if not region:
            continue
        order = sorted(mean[1], key=lambda s: -(mean[0][r] @ mean[1][s]).item())
        seen = [p for s in order[:m.topk] for p in regions[s]]
        for i in region:
            for head in range(m.heads):
                rows = slice(head * d, (head + 1) * d)
                scale = 1 / math.sqrt(d)
                weights = [math.exp((q[i][rows] @ k[p][rows]).item() * scale) for p in seen]
                y[rows, i[0], i[1]] += sum(a / sum(weights) * v[p][rows] for a, p in zip(weights, seen, strict=True))
    return torch.einsum("OC,CHW->OHW", m.Wo.weight[:, :, 0, 0], y) + m.Wo.bias[:, None, None]


# ---- equation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(("H", "W", "S"), SIZES)
def test_equals_the_equations(H, W, S, k):
    m, x = bra(S=S, k=k), randn(2, 4, H, W)
    torch.testing.assert_close(m(x), torch.stack([equations(m, image) for image in x]))


def test_traced_equals_untraced_and_names_every_quantity():
    m, x = bra(S=3, k=2), randn(2, 4, 5, 7)
    with attn_lib.trace() as t:
        y = m(x)
    torch.testing.assert_close(y, m(x))
    assert t.names() == ["q", "k", "v", "q_r", "k_r", "A_r", "I_r", "K_g", "V_g", "A", "LCE", "y"]
    assert t["I_r"].shape == (2, 9, 2) and t["A"].shape == (18, 2, 6, 12)


def test_every_region_gets_its_best_regions_whatever_their_order():
    m, x = bra(S=3, k=4), randn(2, 4, 6, 9)
    with attn_lib.trace() as t:
        m(x)
    for b in range(2):
        for r in range(9):
            chosen = t["A_r"][b, r][t["I_r"][b, r]]
            assert chosen.min() >= torch.sort(t["A_r"][b, r], descending=True).values[3]


# ---- limits and symmetry (the catalog's limits stand in limits/) ---------------------------------------------------


def test_exchanging_regions_exchanges_the_output_but_for_the_local_term():
    """The choice compares contents alone: regions have no positions. LCE, a convolution, does see its neighbours."""
    m, x = bra(S=2, k=2), randn(2, 4, 4, 6)
    m.LCE.weight.fill_(0.0)

    def exchanged(t):
        top, bottom = t.chunk(2, 2)
        return torch.cat([bottom, top], 2)

    torch.testing.assert_close(m(exchanged(x)), exchanged(m(x)))
    assert not torch.allclose(m(x.roll(1, 2)), m(x).roll(1, 2)), "moved by half a region, the cuts fall elsewhere"


def test_the_choice_has_no_gradient_and_the_attention_has():
    m = bra(S=3, k=2).requires_grad_(True)
    x = randn(1, 4, 6, 6).requires_grad_()
    with attn_lib.trace() as t:
        m(x).square().sum().backward()
    assert not t["A_r"].requires_grad
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (m.Wq.weight, m.Wk.weight, m.Wv.weight, x))


def test_only_the_chosen_regions_reach_a_pixel():
    m, x = bra(S=3, k=2), randn(1, 4, 6, 6)
    m.LCE.weight.fill_(0.0)
    with attn_lib.trace() as t:
        m(x)
    jacobian = torch.autograd.functional.jacobian(lambda x: m(x)[0, :, 0, 0].sum(), x)[0].abs().sum(0)
    reached = F.avg_pool2d(jacobian[None], 2)[0] > 1e-12
    expected = {0, *t["I_r"][0, 0].tolist()}  # its own query, and the regions that region 0 chose
    assert set(reached.flatten().nonzero()[:, 0].tolist()) <= expected
    assert set(t["I_r"][0, 0].tolist()) <= set(reached.flatten().nonzero()[:, 0].tolist())


# ---- half precision (forbidden in the contract: a choice is not continuous) ------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_where_nothing_is_chosen(dtype):
    m, x = bra(S=3, k=9).float(), randn(2, 4, 5, 7).float()
    exact = m(x)
    half = m.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    assert (half.float() - exact).abs().max() < 0.05 * exact.abs().max()
    few = bra(S=3, k=2).to(dtype)(x.to(dtype))
    assert few.dtype == dtype and torch.isfinite(few).all()
    with torch.autocast("cpu", dtype):
        assert torch.isfinite(bra(S=3, k=2).float()(x)).all()


# ---- traps -----------------------------------------------------------------------------------------------------------


def test_trap_padding_that_takes_part():
    """A map that S does not divide: with the padding masked, a pixel's output is that of the pixels there are."""
    m, x = bra(S=2, k=4), randn(1, 4, 3, 5)
    padded = F.pad(x, (0, 1, 0, 1))
    assert not torch.allclose(m(padded)[..., :3, :5], m(x)), "zeros are keys like any other"
    torch.testing.assert_close(m(x), equations(m, x[0])[None])


def test_trap_a_region_of_padding_is_never_preferred():
    """Every real affinity below 0: a padded region's 0 would win."""
    m, x = bra(S=3, k=1), randn(1, 4, 2, 5).abs()
    for conv, sign in ((m.Wq, 1), (m.Wk, -1)):
        conv.weight.abs_().mul_(sign)
        conv.bias.fill_(0.0)
    with attn_lib.trace() as t:
        y = m(x)
    empty = [r for r, region in enumerate(regions_of(2, 5, 3)) if not region]
    assert empty and t["A_r"][..., [r for r in range(9) if r not in empty]].amax() <= 0
    assert not torch.isin(t["I_r"], torch.tensor(empty)).any() and torch.isfinite(y).all()


def test_trap_the_release_scales_by_the_whole_width():
    x = randn(2, 4, 4, 6)
    ours, release = bra(heads=2), bra(heads=2, scale="dim")
    assert not torch.allclose(ours(x), release(x))
    release.Wq.weight.mul_(2**0.5)  # √(C/d)
    release.Wq.bias.mul_(2**0.5)
    torch.testing.assert_close(release(x), ours(x))


def test_trap_regions_of_the_first_image_for_all():
    m, x = bra(S=3, k=2), randn(3, 4, 6, 6)
    torch.testing.assert_close(m(x), torch.cat([m(image[None]) for image in x]))


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_memory_grows_with_the_pixels_for_a_fixed_region_size():
    """Gathered keys, k·N·C, not a masked N × N matrix: S follows the map, the regions stay 4 × 4."""
    kept = {}
    for S in (4, 8, 16):
        m = BiLevelRoutingAttention(8, heads=2, regions=S, topk=4)
        kept[(4 * S) ** 2] = measure.saved_bytes(m, torch.randn(1, 8, 4 * S, 4 * S))
    assert measure.fit_exponent(list(kept), list(kept.values())) == pytest.approx(1, abs=0.03), kept


def test_memory_grows_with_topk_and_not_with_the_regions_it_is_chosen_from():
    x = torch.randn(1, 8, 48, 48)
    kept = {k: measure.saved_bytes(BiLevelRoutingAttention(8, heads=2, regions=8, topk=k), x) for k in (1, 2, 4, 8)}
    steps = [kept[2] - kept[1], (kept[4] - kept[2]) / 2, (kept[8] - kept[4]) / 4]
    assert steps == [pytest.approx(2 * 4 * x.numel(), rel=0.1)] * 3, "one more region costs its keys and values"


class Largest(TorchDispatchMode):
    """The most bytes that any tensor holds which comes into being."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return out


def by_torch_gather(t, I_r):
    """As the release gathers: an expanded tensor, all R regions before each, which its gradient makes a real one."""
    R, index = t.shape[1], I_r[..., None, None].expand(-1, -1, -1, *t.shape[2:])
    return torch.gather(t[:, None].expand(-1, R, -1, -1, -1), 2, index)


def test_gathering_makes_nothing_larger_than_what_was_gathered():
    R, K, keys = 25, 3, randn(2, 25, 4, 8).requires_grad_()
    I_r = torch.rand(2, R, R, generator=torch.Generator().manual_seed(0)).topk(K).indices
    times, gradients = [], []
    for gather in (_gather, by_torch_gather):
        with Largest() as largest:
            gathered = gather(keys, I_r)
            (gradient,) = torch.autograd.grad(gathered.square().sum(), keys)
        times.append(largest.bytes / (8 * keys.numel()))
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)
    assert times == [K, R]


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=6, heads=4), "channels=6 must be divisible by heads=4"),
    (dict(channels=8, regions=2, topk=5), r"topk=5 must be at most regions\*\*2=4"),
    (dict(channels=8, lepe_kernel=4), "lepe_kernel=4 must be odd"),
    (dict(channels=8, scale="none"), "scale='none' must be one of 'head', 'dim'"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        BiLevelRoutingAttention(**options)
