"""The MobileViT block against its equations, its limits, timm, its cost, and known mistakes."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.testing import assert_close

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import MobileViTBlock
from tests.unit.draw import D, randn, randomised
from tests.unit.reference import reference

SIZES = [(4, 6, 2), (5, 3, 2), (4, 4, 3), (1, 1, 2), (3, 4, 1), (2, 3, 4)]  # H, W, p


def mobilevit(p=2, C=3, dim=4, heads=2, depth=1, seed=0, **options) -> MobileViTBlock:
    m = MobileViTBlock(C, dim=dim, heads=heads, depth=depth, patch_size=p, **options)
    return randomised(m, scale=0.5, seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def linear(z, layer):
    return [b + sum(w * value for w, value in zip(row, z, strict=True))
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def layer_norm(z, norm):
    mean = sum(z) / len(z)
    std = math.sqrt(sum((value - mean) ** 2 for value in z) / len(z) + 1e-5)
    return [(value - mean) / std * w + b
            for value, w, b in zip(z, norm.weight.tolist(), norm.bias.tolist(), strict=True)]


def encoder(block, tokens):
    """One sequence, a list of tokens, in plain numbers."""
    h = block.attention.heads
    d = len(tokens[0]) // h
    q, k, v = ([linear(layer_norm(z, block.norm1), W) for z in tokens]
               for W in (block.attention.Wq, block.attention.Wk, block.attention.Wv))
    out = []
    for i, z in enumerate(tokens):
        joined = []
        for head in range(h):
            part = range(head * d, (head + 1) * d)
            e = [math.exp(sum(q[i][c] * k_j[c] for c in part) / math.sqrt(d)) for k_j in k]
            joined += [sum(e_j * v_j[c] for e_j, v_j in zip(e, v, strict=True)) / sum(e) for c in part]
        z = [a + b for a, b in zip(z, linear(joined, block.attention.Wo), strict=True)]
        hidden = [value / (1 + math.exp(-value)) for value in linear(layer_norm(z, block.norm2), block.W1)]
        out.append([a + b for a, b in zip(z, linear(hidden, block.W2), strict=True)])
    return out


def stretched(image, height, width):
    """Bilinear, pixels as squares: entry i lies at (i + 1/2) · H / height − 1/2, held within the map."""
    C, H, W = image.shape
    out = torch.empty(C, height, width, dtype=D)
    for i in range(height):
        for j in range(width):
            y, x = (max(0.0, (n + 0.5) * size / new - 0.5) for n, size, new in ((i, H, height), (j, W, width)))
            top, left = int(y), int(x)
            below, right = min(top + 1, H - 1), min(left + 1, W - 1)
            y, x = y - top, x - left
            out[:, i, j] = ((1 - y) * ((1 - x) * image[:, top, left] + x * image[:, top, right])
                            + y * ((1 - x) * image[:, below, left] + x * image[:, below, right]))
    return out


def conv_bn_silu(layers, image):
    conv, bn, _ = layers
    C, (k, (_, H, W)) = conv.out_channels, (conv.kernel_size[0], image.shape)
    padded = torch.zeros(image.shape[0], H + k - 1, W + k - 1, dtype=D)
    padded[:, k // 2:k // 2 + H, k // 2:k // 2 + W] = image
    out = torch.empty(C, H, W, dtype=D)
    for i in range(H):
        for j in range(W):
            a = (conv.weight * padded[:, i:i + k, j:j + k]).sum((1, 2, 3))
            a = (a - bn.running_mean) / torch.sqrt(bn.running_var + 1e-5) * bn.weight + bn.bias
            out[:, i, j] = a / (1 + torch.exp(-a))
    return out


def equations(m, image):
    """One image: convolutions, then a loop over the places in a patch, each a sequence over the patches."""
    p, (_, H, W) = m.patch_size, image.shape
    features = torch.einsum("OC,CHW->OHW", m.Wl.weight[:, :, 0, 0], conv_bn_silu(m.local, image))
    if H % p or W % p:
        features = stretched(features, math.ceil(H / p) * p, math.ceil(W / p) * p)
    folded = torch.empty_like(features)
    for a in range(p):
        for b in range(p):
            places = [(i, j) for i in range(a, features.shape[1], p) for j in range(b, features.shape[2], p)]
            tokens = [features[:, i, j].tolist() for i, j in places]
            for block in m.blocks:
                tokens = encoder(block, tokens)
            for (i, j), z in zip(places, tokens, strict=True):
                folded[:, i, j] = torch.tensor(layer_norm(z, m.norm), dtype=D)
    if H % p or W % p:
        folded = stretched(folded, H, W)
    return conv_bn_silu(m.fuse, torch.cat([image, conv_bn_silu(m.project, folded)]))


@pytest.mark.parametrize("options", [{}, dict(depth=2, kernel_size=1), dict(heads=1, mlp_ratio=1.0)], ids=str)
@pytest.mark.parametrize(("H", "W", "p"), SIZES)
def test_equals_the_paper(H, W, p, options):
    m, x = mobilevit(p, **options), randn(2, 3, H, W)
    assert_close(m(x), torch.stack([equations(m, image) for image in x]), rtol=0, atol=1e-11)


class Wrong(MobileViTBlock):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        p = self.patch_size
        local = self.local[0](x) if self.mistake == "bare convolution" else self.local(x)
        z = self.Wl(local)
        if self.mistake == "SiLU before the encoders":
            z = F.silu(z)
        H = z.shape[2]
        if self.mistake == "attention within a patch":
            z = rearrange(z, "B C (P i) (Q j) -> B (P Q) (i j) C", i=p, j=p)
        elif self.mistake == "one sequence of all pixels":
            z = rearrange(z, "B C H W -> B 1 (H W) C")
        elif self.mistake == "patches for places":  # the map read as if its patches lay interleaved
            z = rearrange(z, "B C (i P) (j Q) -> B (i j) (P Q) C", i=p, j=p)
        else:
            z = rearrange(z, "B C (P i) (Q j) -> B (i j) (P Q) C", i=p, j=p)
        z = self.blocks(z + randn(*z.shape[2:]) if self.mistake == "positions" else z)
        z = z if self.mistake == "no last normalisation" else self.norm(z)
        if self.mistake == "attention within a patch":
            z = rearrange(z, "B (P Q) (i j) C -> B C (P i) (Q j)", i=p, P=H // p)
        elif self.mistake == "one sequence of all pixels":
            z = rearrange(z, "B 1 (H W) C -> B C H W", H=H)
        elif self.mistake == "patches for places":
            z = rearrange(z, "B (i j) (P Q) C -> B C (i P) (j Q)", i=p, P=H // p)
        else:
            z = rearrange(z, "B (i j) (P Q) C -> B C (P i) (Q j)", i=p, P=H // p)
        z = self.project[0](z) if self.mistake == "bare projection" else self.project(z)
        z = z + x if self.mistake == "residual" else z
        return self.fuse(torch.cat([z, x] if self.mistake == "input last" else [x, z], 1))


@pytest.mark.parametrize("mistake", [
    "bare convolution", "SiLU before the encoders", "attention within a patch", "one sequence of all pixels",
    "patches for places", "positions", "no last normalisation", "bare projection", "residual", "input last",
])
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = mobilevit(depth=2), randn(2, 3, 4, 6)
    wrong = Wrong(3, dim=4, heads=2, depth=2).to(D).eval()
    wrong.load_state_dict(m.state_dict())
    expected = torch.stack([equations(m, image) for image in x])
    assert_close(wrong(x), expected, rtol=0, atol=1e-11)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("mistake", ["padded with zeros", "nearest", "corners aligned", "left enlarged and cropped"])
def test_a_map_that_does_not_divide_is_resized_in_one_way_only(mistake):
    m, x = mobilevit(), randn(1, 3, 5, 3)
    z = m.Wl(m.local(x))
    z = {"padded with zeros": lambda: F.pad(z, (0, 1, 0, 1)), "nearest": lambda: F.interpolate(z, (6, 4)),
         }.get(mistake, lambda: F.interpolate(z, (6, 4), mode="bilinear", align_corners=mistake == "corners aligned"))()
    z = rearrange(z, "B C (P i) (Q j) -> B (i j) (P Q) C", i=2, j=2)
    z = rearrange(m.norm(m.blocks(z)), "B (i j) (P Q) C -> B C (P i) (Q j)", i=2, P=3)
    if mistake in ("padded with zeros", "left enlarged and cropped"):
        z = z[..., :5, :3]
    else:
        options = {} if mistake == "nearest" else dict(mode="bilinear", align_corners=True)
        z = F.interpolate(z, (5, 3), **options)
    y = m.fuse(torch.cat([x, m.project(z)], 1))
    assert (y - equations(m, x[0])[None]).abs().max() > 1e-4


def test_taps_are_the_equations():
    m, x = mobilevit(), randn(2, 3, 5, 6)
    with attn_lib.trace() as t:
        y = m(x)
    assert t.names() == ["x_L", "x_U", "q", "k", "v", "A", "x_G", "x_F", "y"]
    assert t["A"].shape == (2, 4, 2, 9, 9) and t.dims("A") == "B n h R R"
    assert_close(t["A"].sum(-1), torch.ones(2, 4, 2, 9, dtype=D))
    assert_close(y, m(x))


# ---- limits (the two of the catalog stand in limits/) ----------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2, 3])
def test_a_pixel_sees_its_own_place_in_every_patch(p):
    m, x = mobilevit(p, kernel_size=1), randn(1, 3, 6, 6)
    gradient = torch.autograd.functional.jacobian(lambda x: m(x)[0, :, 1, 2].sum(), x)[0].abs().sum(0)
    i, j = torch.arange(6)[:, None], torch.arange(6)
    assert torch.equal(gradient > 1e-12, (i % p == 1 % p) & (j % p == 2 % p))


def test_with_its_convolutions_a_pixel_hears_of_the_whole_map():
    m, x = mobilevit(2), randn(1, 3, 6, 8)
    gradient = torch.autograd.functional.jacobian(lambda x: m(x)[0, :, 1, 2].sum(), x)[0].abs().sum(0)
    assert (gradient > 1e-12).all()


def test_the_order_of_the_patches_is_not_known():
    """Without its k × k convolutions, exchanging patches exchanges the output."""
    m, x = mobilevit(2, kernel_size=1), randn(2, 3, 4, 6)
    rolled = m(x.roll((2, 4), (2, 3)))
    assert_close(rolled, m(x).roll((2, 4), (2, 3)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("options", "message"), [
    (dict(dim=6, heads=4), "channels=6 must be divisible by heads=4; 4 and 8 are"),
    (dict(kernel_size=2), "kernel_size=2 must be odd"),
    (dict(p=0), "patch_size=0 must be an integer of at least 1"),
    (dict(depth=0), "depth=0 must be an integer of at least 1"),
    (dict(mlp_ratio=0.1), r"dim \* mlp_ratio=0 must be"),
    (dict(mlp_ratio=-1.0), "mlp_ratio=-1.0 must be a positive number"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        mobilevit(**options)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_and_comparisons_are_n_times_fewer():
    sides, n = [16, 32, 64], 4
    m, pixels = (MobileViTBlock(4, dim=8, heads=2, depth=1, patch_size=p).eval() for p in (2, 1))
    N, xs = [s * s for s in sides], [torch.randn(1, 4, s, s) for s in sides]
    assert measure.fit_exponent(N, [measure.saved_bytes(m, x) for x in xs]) == pytest.approx(1, abs=0.03)
    convolutions = 2 * (9 * 4 * 4 + 4 * 8 + 8 * 4 + 9 * 8 * 4)
    matrices = 2 * (4 * 8 * 8 + 2 * 8 * 16)
    for size, x in zip(N, xs, strict=True):
        assert measure.flops(m, x) == size * (convolutions + matrices + 4 * 8 * size // n)
        assert measure.flops(pixels, x) == size * (convolutions + matrices + 4 * 8 * size)


# ---- reference packages ----------------------------------------------------------------------------------------------


def in_timm(timm, C, dim, heads, depth, p, act=nn.SiLU):
    layers = timm.LayerFn(partial(timm.LayerFn.conv_norm_act, act_layer=act), act=act)
    return timm.MobileVitBlock(C, transformer_dim=dim, transformer_depth=depth, num_heads=heads, patch_size=p,
                               layers=layers).to(D).eval()


def copy_into(theirs, ours):
    convolutions = ((ours.local, theirs.conv_kxk), (ours.project, theirs.conv_proj), (ours.fuse, theirs.conv_fusion))
    for mine, other in convolutions:
        other.conv.load_state_dict(mine[0].state_dict())
        other.bn.load_state_dict(mine[1].state_dict())
    theirs.conv_1x1.load_state_dict(ours.Wl.state_dict())
    theirs.norm.load_state_dict(ours.norm.state_dict())
    for mine, other in zip(ours.blocks, theirs.transformer, strict=True):
        matrices = (mine.attention.Wq, mine.attention.Wk, mine.attention.Wv)
        other.attn.qkv.weight.data = torch.cat([W.weight for W in matrices])
        other.attn.qkv.bias.data = torch.cat([W.bias for W in matrices])
        for a, b in ((mine.attention.Wo, other.attn.proj), (mine.norm1, other.norm1), (mine.norm2, other.norm2),
                     (mine.W1, other.mlp.fc1), (mine.W2, other.mlp.fc2)):
            b.load_state_dict(a.state_dict())


@pytest.mark.parametrize(("C", "dim", "heads", "depth", "p", "H", "W"), [
    (3, 8, 2, 2, 2, 6, 4), (4, 12, 4, 1, 3, 7, 5), (6, 8, 1, 2, 4, 9, 9),
])
def test_equals_timm(C, dim, heads, depth, p, H, W):
    timm = reference("timm.models.mobilevit")
    ours, x = mobilevit(p, C, dim, heads, depth), randn(2, C, H, W)
    theirs, rectified = in_timm(timm, C, dim, heads, depth, p), in_timm(timm, C, dim, heads, depth, p, nn.ReLU)
    for other in (theirs, rectified):
        copy_into(other, ours)
    assert_close(ours(x), theirs(x), rtol=0, atol=1e-11)
    assert (ours(x) - rectified(x)).abs().max() > 1e-2
