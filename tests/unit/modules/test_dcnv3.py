"""Deformable convolution v3 against its paper, its release, its limits, and the errors in circulation.

Its operator is compiled by its authors for CUDA alone, so no package holds it: the release is written out here.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.conv import DCNv3
from tests.unit.draw import D, randn, randomised


def make(C=4, G=2, *, scale=0.5, **options):
    return randomised(DCNv3(C, groups=G, **options), scale=scale).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def between_pixels(image, row, col):
    """x(p) of eq. 3 of the first deformable paper: bilinear, zero outside."""
    H, W = image.shape
    total = 0.0
    for i in range(H):
        for j in range(W):
            total += max(0.0, 1 - abs(row - i)) * max(0.0, 1 - abs(col - j)) * image[i, j].item()
    return total


def depthwise_at(x, layer, row, col):
    """A depthwise convolution whose window has its centre at one place; zeros outside the map."""
    H, W = x.shape[1:]
    k = layer.weight.shape[-1]
    out = []
    for c, kernel in enumerate(layer.weight[:, 0]):
        total = layer.bias[c].item()
        for i in range(k):
            for j in range(k):
                r, s = row + i - k // 2, col + j - k // 2
                if 0 <= r < H and 0 <= s < W:
                    total += kernel[i, j].item() * x[c, r, s].item()
        out.append(total)
    return torch.tensor(out, dtype=D)


def equations(x, m, *, release, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), scale=1.0):
    """Eq. 2 and section 3.1, one output at a time; the taps row by row, an offset (down, right)."""
    B, C, H, W = x.shape
    G, (kH, kW) = m.groups, kernel
    S = C // G
    R = [(i - kH // 2, j - kW // 2) for i in range(kH) for j in range(kW)]
    Ho, Wo = ((n + 2 * p - d * (k - 1) - 1) // s + 1
              for n, p, d, k, s in zip((H, W), padding, dilation, kernel, stride, strict=True))
    y = torch.zeros(B, C, Ho, Wo, dtype=D)
    for b, i, j in ((b, i, j) for b in range(B) for i in range(Ho) for j in range(Wo)):
        axes = zip((i, j), stride, padding, dilation, kernel, strict=True)
        p0 = tuple(n * s - p + d * (k // 2) for n, s, p, d, k in axes)
        h = depthwise_at(x[b], m.depthwise, *p0)
        v = x[b]
        if release:
            h = (h - h.mean()) / (h.var(unbiased=False) + 1e-6).sqrt() * m.norm.weight + m.norm.bias
            h = torch.tensor([a / 2 * (1 + math.erf(a / math.sqrt(2))) for a in h.tolist()], dtype=D)
            v = torch.einsum("OC,CHW->OHW", m.Wv.weight, x[b]) + m.Wv.bias[:, None, None]
        dp, logits = m.Wdp.weight @ h + m.Wdp.bias, m.Wm.weight @ h + m.Wm.bias
        u = torch.zeros(C, dtype=D)
        for g in range(G):
            e = [math.exp(logits[g * len(R) + k].item()) for k in range(len(R))]
            for k, pk in enumerate(R):
                first = 2 * (g * len(R) + k)
                p = [p0[a] + scale * (dilation[a] * pk[a] + dp[first + a].item()) for a in (0, 1)]
                for c in range(g * S, g * S + S):
                    u[c] += e[k] / sum(e) * between_pixels(v[c], *p)
            if m.Wc is not None:
                s = 1 / (1 + math.exp(-(m.Wc.weight[g] @ h + m.Wc.bias[g]).item()))
                for c in range(g * S, g * S + S):
                    centre = v[c, p0[0], p0[1]].item() if 0 <= p0[0] < H and 0 <= p0[1] < W else 0.0
                    u[c] = (1 - s) * u[c] + s * centre
        y[b, :, i, j] = m.Wo.weight @ u + (m.Wo.bias if release else 0)
    return y


GEOMETRIES = {
    "plain": dict(),
    "stride": dict(stride=(2, 1)),
    "dilation": dict(dilation=(2, 1), padding=(2, 1)),
    "no padding": dict(padding=(0, 0)),
    "wide padding": dict(padding=(2, 3), stride=(3, 2)),
    "flat kernel": dict(kernel=(1, 3), padding=(0, 1)),
    "one tap": dict(kernel=(1, 1), padding=(0, 0)),
    "scale": dict(scale=2.0),
}


def options_of(geometry, **others):
    names = {"kernel": "kernel_size", "scale": "offset_scale"}
    return {names.get(name, name): value for name, value in geometry.items()} | others


@pytest.mark.parametrize("form", ["paper", "release"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_equals_the_paper(name, form):
    geometry = GEOMETRIES[name]
    m, x = make(form=form, **options_of(geometry)), randn(1, 4, 5, 6)
    torch.testing.assert_close(m(x), equations(x, m, release=form == "release", **geometry), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["plain", "wide padding", "no padding"])
@pytest.mark.parametrize("form", ["paper", "release"])
def test_the_centre_is_blended_in(form, name):
    geometry = GEOMETRIES[name]
    m, x = make(form=form, center_feature_scale=True, **options_of(geometry)), randn(1, 4, 5, 4)
    torch.testing.assert_close(m(x), equations(x, m, release=form == "release", **geometry), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dw_kernel_size", [1, 5])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
def test_offsets_are_made_around_the_centre_of_each_window(padding, dw_kernel_size):
    """At any stride, and where the depthwise kernel is smaller or larger than the window."""
    geometry = dict(stride=(2, 3), dilation=(2, 1), padding=padding)
    m, x = make(dw_kernel_size=dw_kernel_size, **options_of(geometry)), randn(1, 4, 9, 8)
    torch.testing.assert_close(m(x), equations(x, m, release=False, **geometry), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("H", "W"), [(1, 1), (1, 5), (2, 1)])
def test_small_maps(H, W):
    m, x = make(), randn(2, 4, H, W)
    torch.testing.assert_close(m(x), equations(x, m, release=False), rtol=0, atol=1e-11)


class Wrong(DCNv3):
    """The mistakes that circulate, one at a time."""

    mistake = None

    def forward(self, x):
        (B, C, H, W), G, mistake = x.shape, self.groups, self.mistake
        h = F.conv2d(x, self.depthwise.weight, self.depthwise.bias, padding=1, groups=C).movedim(1, -1)
        dp, m = self.Wdp(h).unflatten(-1, (G, 9, 2)), self.Wm(h).unflatten(-1, (G, 9))
        m = {"sigmoid of v2": m.sigmoid(), "softmax over groups too": m.flatten(-2).softmax(-1).view_as(m),
             "softmax over groups": m.softmax(-2), "no softmax": m}.get(mistake, m.softmax(-1))
        if mistake == "offsets right, then down":
            dp = dp.flip(-1)
        if mistake == "taps column by column":
            dp, m = (t.unflatten(4, (3, 3)).transpose(4, 5).flatten(4, 5) for t in (dp, m))
        if mistake == "one set of offsets for all groups":
            dp = dp[..., :1, :, :].expand_as(dp)
        u = torch.zeros(B, H, W, C, dtype=x.dtype)
        for k in range(9):
            rows = torch.arange(H)[:, None, None] + k // 3 - 1 + dp[..., k, 0]
            cols = torch.arange(W)[None, :, None] + k % 3 - 1 + dp[..., k, 1]
            if mistake == "positions rounded":
                rows, cols = rows.round(), cols.round()
            if mistake == "repeated border":
                rows, cols = rows.clamp(0, H - 1), cols.clamp(0, W - 1)
            top, left = rows.floor(), cols.floor()
            for r, s in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                share = (1 - (r - rows).abs()) * (1 - (s - cols).abs()) * m[..., k]
                share = share * ((r >= 0) & (r < H) & (s >= 0) & (s < W))
                index = r.clamp(0, H - 1).long() * W + s.clamp(0, W - 1).long()                        # B H W G
                group = x.flatten(2).view(B, G, C // G, H * W).movedim(2, -1)                          # B G N S
                taken = group.gather(2, index.movedim(-1, 1).flatten(2)[..., None].expand(-1, -1, -1, C // G))
                u += (share[..., None] * taken.view(B, G, H, W, -1).movedim(1, 3)).flatten(3)
        return self.Wo(u).movedim(-1, 1)


@pytest.mark.parametrize("mistake", [
    "sigmoid of v2", "softmax over groups too", "softmax over groups", "no softmax", "offsets right, then down",
    "taps column by column", "one set of offsets for all groups", "positions rounded", "repeated border",
])
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = make(), randn(1, 4, 5, 6)
    expected = equations(x, m, release=False)
    wrong = Wrong(4, groups=2).to(D)
    wrong.load_state_dict(m.state_dict())
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-11)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    m, x = make(form="release", center_feature_scale=True, stride=2), randn(2, 4, 5, 6)
    with attn_lib.trace() as t:
        y = m(x)
    assert t.names() == ["h", "dp", "m", "v", "p", "v_p", "s", "u", "y"] and torch.equal(t["y"], y)
    torch.testing.assert_close(t["m"].sum(2), torch.ones(2, 2, 3, 3, dtype=D))


# ---- the release -----------------------------------------------------------------------------------------------------


def column_by_column(x, weights, G, k, scale):
    """The release's module written out: NHWC, the tap's column in the outer loop, an offset (right, down)."""
    x = x.permute(0, 2, 3, 1)
    B, H, W, C = x.shape
    w, b = weights["dw_conv.0.weight"], weights["dw_conv.0.bias"]
    h = F.conv2d(x.permute(0, 3, 1, 2), w, b, padding=k // 2, groups=C).permute(0, 2, 3, 1)
    h = F.gelu(F.layer_norm(h, (C,), weights["dw_conv.1.1.weight"], weights["dw_conv.1.1.bias"], 1e-6))
    v = F.linear(x, weights["input_proj.weight"], weights["input_proj.bias"])
    offset = F.linear(h, weights["offset.weight"], weights["offset.bias"]).view(B, H, W, G, k * k, 2)
    mask = F.linear(h, weights["mask.weight"], weights["mask.bias"]).view(B, H, W, G, k * k).softmax(-1)
    u = torch.zeros_like(v)
    for b, i, j, g in ((n, i, j, g) for n in range(B) for i in range(H) for j in range(W) for g in range(G)):
        tap = 0
        for column in range(-(k // 2), k // 2 + 1):
            for row in range(-(k // 2), k // 2 + 1):
                right, down = offset[b, i, j, g, tap].tolist()
                p = i + scale * (row + down), j + scale * (column + right)
                for c in range(g * C // G, (g + 1) * C // G):
                    u[b, i, j, c] += mask[b, i, j, g, tap] * between_pixels(v[b, :, :, c], *p)
                tap += 1
    y = F.linear(u, weights["output_proj.weight"], weights["output_proj.bias"])
    return y.permute(0, 3, 1, 2)


NAMES = {"dw_conv.0": "depthwise", "dw_conv.1.1": "norm", "offset": "Wdp", "mask": "Wm", "input_proj": "Wv",
         "output_proj": "Wo"}


def in_our_order(weights, G, k):
    """The release's weights under our names; the rows of offsets and masks row by row, down before right."""
    ours = {}
    for path, value in weights.items():
        layer, name = path.rsplit(".", 1)
        if layer in ("offset", "mask"):
            value = value.unflatten(0, (G, k, k, -1)).transpose(1, 2)  # G row column
            value = (value.flip(3) if layer == "offset" else value).flatten(0, 3)
        ours[f"{NAMES[layer]}.{name}"] = value
    return ours


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_equals_the_release_with_its_weights_in_our_order(scale):
    C, G, k = 4, 2, 3
    shapes = {"dw_conv.0": (C, 1, k, k), "dw_conv.1.1": (C,), "offset": (2 * G * k * k, C), "mask": (G * k * k, C),
              "input_proj": (C, C), "output_proj": (C, C)}
    theirs = {}
    for n, (layer, shape) in enumerate(shapes.items()):
        theirs[f"{layer}.weight"], theirs[f"{layer}.bias"] = randn(*shape, seed=n), randn(shape[0], seed=10 + n)
    ours = DCNv3(C, groups=G, form="release", offset_scale=scale).to(D)
    ours.load_state_dict(in_our_order(theirs, G, k))
    x = randn(1, C, 4, 5)
    expected = column_by_column(x, theirs, G, k, scale)
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-11)
    straight = {f"{NAMES[path.rsplit('.', 1)[0]]}.{path.rsplit('.', 1)[1]}": value for path, value in theirs.items()}
    ours.load_state_dict(straight)
    assert (ours(x) - expected).abs().max() > 1e-2


def test_a_fresh_layer_of_either_form_is_the_mean_of_a_window():
    for form in ("paper", "release"):
        m, x = DCNv3(8, form=form).to(D), randn(2, 8, 5, 6)
        v = m.Wv(x.movedim(1, -1)).movedim(-1, 1)
        mean = F.avg_pool2d(v, 3, 1, 1)  # zeros around it counted
        torch.testing.assert_close(m(x), m.Wo(mean.movedim(1, -1)).movedim(-1, 1), rtol=0, atol=1e-12)
    assert (m.Wo.bias is not None, DCNv3(8).Wo.bias) == (True, None)


def test_offset_scale_multiplies_the_grid_as_well():
    """Without offsets, a scale of 2 is a dilation of 2; with offsets, they count twice."""
    scaled, dilated, x = make(offset_scale=2.0), make(dilation=2), randn(2, 4, 7, 8)
    for m in (scaled, dilated):
        m.Wdp.weight.zero_()
        m.Wdp.bias.zero_()
    torch.testing.assert_close(scaled(x), dilated(x), rtol=0, atol=1e-12)
    scaled.Wdp.bias.fill_(0.25)
    dilated.Wdp.bias.fill_(0.5)
    torch.testing.assert_close(scaled(x), dilated(x), rtol=0, atol=1e-12)


def test_padding_is_of_rows_and_of_columns():
    m, x = make(padding=(2, 0)), randn(1, 4, 5, 6)
    assert m(x).shape == (1, 4, 7, 4)
    torch.testing.assert_close(m(x), equations(x, m, release=False, padding=(2, 0)), rtol=0, atol=1e-11)


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "options", "message"), [
    (6, dict(), "channels=6 must be divisible by groups=4"),
    (8, dict(kernel_size=(3, 2)), "kernel_size=2 must be odd"),
    (8, dict(dw_kernel_size=4), "dw_kernel_size=4 must be odd"),
    (8, dict(offset_scale=0), "offset_scale=0 must be a positive number"),
    (8, dict(form="v3"), "form='v3' must be one of 'paper', 'release'"),
    (8, dict(stride=(1, 2, 3)), "stride=.* must be an integer or a"),
])
def test_arguments_out_of_range(channels, options, message):
    with pytest.raises(ValueError, match=message):
        DCNv3(channels, **options)


def test_a_map_smaller_than_the_kernel_is_refused():
    with pytest.raises(ValueError, match="x has H=2; it must be at least 3 for the kernel to fit"):
        DCNv3(4, padding=0)(torch.ones(1, 4, 2, 9))


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_number_of_positions():
    """K samples of every channel, and three numbers a tap and group."""
    m = DCNv3(16)
    kept = [measure.saved_bytes(m, torch.randn(2, 16, n, n)) for n in (16, 32, 64)]
    assert measure.fit_exponent([16**2, 32**2, 64**2], kept) == pytest.approx(1, abs=0.02)
    assert kept[-1] < 4 * 2 * 64**2 * (9 * 16 * 2 + 9 * 4 * 8 + 16 * 8)


def test_parameters_do_not_grow_with_the_kernel_as_a_convolutions():
    """v2's matrices are K · C²; here W_o is C², and offsets and masks 3·G·K·C."""
    for k in (3, 5, 7):
        m = DCNv3(32, kernel_size=k, dw_kernel_size=3)
        assert sum(p.numel() for p in m.parameters()) == 32 * 32 + 3 * 4 * k * k * 33 + 32 * 10
