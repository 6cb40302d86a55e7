"""ACmix against its equations, its limits, its memory, and known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attn_lib
from attn_lib import measure, ops
from attn_lib.self_attention import ACmix
from attn_lib.self_attention.acmix import _mirrored
from tests.unit.draw import D, randn, randomised

SIZES = [(4, 6), (5, 3), (1, 7), (1, 1)]
OPTIONS = [
    dict(),
    dict(padding="reflect", conv_order="release", kernel_size=7),
    dict(stride=2, dilation=2, out_channels=8),
    dict(stride=3, padding="reflect", heads=1, kernel_conv=5),
]


def make(channels=6, seed=0, **options) -> ACmix:
    options = dict(heads=2, kernel_size=3) | options
    return randomised(ACmix(channels, **options), scale=0.5, seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def mirror(n: int, i: int) -> int:
    """Where a walk that turns round at both ends of n places is, i steps from the first."""
    place, step = 0, 1
    for _ in range(abs(i)):
        if n > 1:
            step = 1 if place == 0 else -1 if place == n - 1 else step
            place += step
    return place


def from_the_paper(x: Tensor, m: ACmix) -> Tensor:
    """One image (C, H, W), with loops over pixels, keys, heads and channels."""
    (_, H, W), O, h, k, kc, s = x.shape, m.out_channels, m.heads, m.kernel_size, m.kernel_conv, m.stride  # noqa: E741
    d, Ho, Wo = O // h, math.ceil(H / s), math.ceil(W / s)

    def at(i, j):
        return {name: conv.weight[:, :, 0, 0] @ x[:, i, j] + conv.bias
                for name, conv in (("q", m.Wq), ("k", m.Wk), ("v", m.Wv))}

    pixels = {(i, j): at(i, j) for i in range(H) for j in range(W)}

    def position(i, j):
        x_y = [-1 + 2 * j / (W - 1) if W > 1 else -1.0, -1 + 2 * i / (H - 1) if H > 1 else -1.0]
        return m.Wp.weight[:, :, 0, 0] @ torch.tensor(x_y, dtype=D)

    # the convolution's maps: for each channel of the heads, k_c² numbers of the 3h that q, k and v hold of it
    maps = {}
    for p, t in pixels.items():
        for c in range(d):
            held = torch.stack([t[name][head * d + c] for name in "qkv" for head in range(h)])
            maps[p, c] = m.Wf.weight[:, :, 0, 0] @ held

    y = torch.zeros(O, Ho, Wo, dtype=D)
    for i in range(Ho):
        for j in range(Wo):
            here = (i * s, j * s)
            for head in range(h):
                own = slice(head * d, (head + 1) * d)
                logits, values = [], []
                for di in range(-(k // 2), k // 2 + 1):
                    for dj in range(-(k // 2), k // 2 + 1):
                        p = (here[0] + di * m.dilation, here[1] + dj * m.dilation)
                        if m.padding == "reflect":
                            p = (mirror(H, p[0]), mirror(W, p[1]))
                        if p in pixels:
                            key = pixels[p]["k"][own] + position(*here) - position(*p)
                            logits.append((pixels[here]["q"][own] @ key).item() / math.sqrt(d))
                            values.append(pixels[p]["v"][own])
                weights = [math.exp(a) for a in logits]
                y[own, i, j] += m.alpha * sum(w / sum(weights) * v for w, v in zip(weights, values, strict=True))
            for c in range(d):
                for n in range(h):
                    total = 0.0
                    for di in range(kc):
                        for dj in range(kc):
                            p = (here[0] + di - kc // 2, here[1] + dj - kc // 2)
                            if p in pixels:
                                total += (m.Ws.weight[c * h + n, :, di, dj] @ maps[p, c]).item()
                    y[n * d + c if m.conv_order == "heads" else c * h + n, i, j] += m.beta[0] * total
    return y


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_paper(size, options):
    m, x = make(**options), randn(1, 6, *size)
    torch.testing.assert_close(m(x)[0], from_the_paper(x[0], m), rtol=0, atol=1e-11)


class Wrong(ACmix):
    """The mistakes that circulate, one at a time."""

    mistake = None

    def forward(self, x):
        is_ = self.mistake.__eq__ if self.mistake else lambda _: False
        (B, _, H, W), h, d, k = x.shape, self.heads, self.out_channels // self.heads, self.kernel_size
        q, k_, v = self.Wq(x), self.Wk(x), self.Wv(x)
        cols, rows = (torch.linspace(-1, 1, n, dtype=D).expand(m, n) for n, m in ((W, H), (H, W)))
        rows = rows.mT
        p = self.Wp(torch.stack((rows, cols) if is_("rows before columns") else (cols, rows))[None])

        def unfold(t):
            if is_("mirrored"):
                return F.unfold(F.pad(t, (k // 2,) * 4, mode="reflect"), k).unflatten(1, (t.shape[1], -1))
            return F.unfold(t, k, padding=k // 2).unflatten(1, (t.shape[1], -1))  # B C K N

        on_map = torch.ones(1, 1, k * k, H * W).bool() if is_("mirrored") else unfold(torch.ones_like(x[:1, :1])) > 0
        near_p = unfold(p)
        here = p.flatten(2)[:, :, None]
        delta = {"key minus query": near_p - here, "no positions": 0 * near_p,
                 "position of the query left out": -near_p}.get(self.mistake, here - near_p)
        K = unfold(k_).unflatten(1, (h, d))
        q_heads, scale = q.flatten(2).unflatten(1, (h, d))[:, :, :, None], d**-0.5
        content, where = (q_heads * K).sum(2), (q_heads * delta).sum(2)
        logits = content * scale + where if is_("positions not scaled") else (content + where) * scale
        logits = logits if is_("zeros for keys") else logits.masked_fill(~on_map, -torch.inf)
        values = (unfold(v).unflatten(1, (h, d)) + delta) if is_("positions in the values") else unfold(v).unflatten(
            1, (h, d))
        att = (logits.softmax(2)[:, :, None] * values).sum(3).flatten(1, 2).view(B, -1, H, W)

        order = (1, 0) if is_("channels before heads") else (0, 1)
        shared = [t.flatten(2).unflatten(1, (h, d)[::1 if order == (0, 1) else -1]) for t in (q, k_, v)]
        shared = [t if order == (0, 1) else t.transpose(1, 2) for t in shared]
        maps = self.Wf(torch.cat([shared[0] * scale, *shared[1:]] if is_("scaled queries convolved") else shared, 1))
        conv = self.Ws(maps.transpose(1, 2).reshape(B, -1, H, W))
        conv = conv if is_("orders mixed up") else conv.unflatten(1, (d, h)).transpose(1, 2).flatten(1, 2)
        alpha, beta = (self.beta, self.alpha) if is_("rates exchanged") else (self.alpha, self.beta)
        return alpha * att + beta * conv


@pytest.mark.parametrize("mistake", [
    "rows before columns", "mirrored", "key minus query", "no positions", "positions not scaled", "zeros for keys",
    "positions in the values", "channels before heads",
    "scaled queries convolved", "orders mixed up", "rates exchanged",
])
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = make(), randn(1, 6, 4, 5)
    expected = from_the_paper(x[0], m)
    wrong = Wrong(6, heads=2, kernel_size=3).to(D).requires_grad_(False)
    wrong.load_state_dict(m.state_dict())
    torch.testing.assert_close(wrong(x)[0], expected, rtol=0, atol=1e-11)  # as yet there is no mistake
    wrong.mistake = mistake
    assert (wrong(x)[0] - expected).abs().max() > 1e-2


def test_the_position_of_the_query_makes_no_difference():
    """q_i · p_i is the same for all keys of a pixel, and a softmax does not notice."""
    m, x = make(), randn(1, 6, 4, 5)
    wrong = Wrong(6, heads=2, kernel_size=3).to(D).requires_grad_(False)
    wrong.load_state_dict(m.state_dict())
    wrong.mistake = "position of the query left out"
    torch.testing.assert_close(wrong(x), m(x))


def test_taps_are_the_equations():
    m, x = make(stride=2), randn(2, 6, 5, 7)
    with attn_lib.trace() as t:
        y = m(x)
    assert t.names() == ["q", "k", "v", "p", "A", "F_att", "F_conv", "y"]
    assert t["A"].shape == (2, 2, 12, 1, 9) and t["F_att"].shape == (2, 6, 3, 4)
    torch.testing.assert_close(y, m.alpha * t["F_att"] + m.beta * t["F_conv"])
    torch.testing.assert_close(y, m(x), rtol=0, atol=1e-12)


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_at_the_start_the_moves_are_those_of_a_kernel():
    """Fresh, W_s moves map m as tap m reads, and every channel of a group is the same sum."""
    m, x = ACmix(6, heads=2, conv_order="release").to(D), randn(1, 6, 4, 5)
    assert m.alpha.tolist() == m.beta.tolist() == [0.5]
    with attn_lib.trace() as t, torch.no_grad():
        m(x)
    shared = torch.cat([t[name].unflatten(1, (2, 3)) for name in "qkv"], 1)  # B 3h d H W
    maps = torch.einsum("mt,btdij->bmdij", m.Wf.weight[:, :, 0, 0], shared)
    padded = F.pad(maps, (1, 1, 1, 1))
    moved = sum(padded[:, n, :, n // 3:n // 3 + 4, n % 3:n % 3 + 5] for n in range(9))
    torch.testing.assert_close(t["F_conv"], moved.repeat_interleave(2, 1))


# ---- traps -----------------------------------------------------------------------------------------------------------


def test_trap_two_orders_of_channels():
    """A fresh module: runs of h channels of the release's convolution are alike, ours are one in each head."""
    x = randn(1, 12, 4, 5)
    ours, release = (make(12, heads=3, conv_order=order) for order in ("heads", "release"))
    for m in (ours, release):
        m.Ws.weight.copy_(torch.eye(9).view(9, 3, 3))
    with attn_lib.trace() as t:
        ours(x)
    with attn_lib.trace() as u:
        release(x)
    for c in range(4):  # of the channels of a head
        for head in range(1, 3):
            torch.testing.assert_close(t["F_conv"][:, 4 * head + c], t["F_conv"][:, c])
            torch.testing.assert_close(u["F_conv"][:, 3 * c + head], u["F_conv"][:, 3 * c])
    torch.testing.assert_close(t["F_att"], u["F_att"])
    assert (t["F_conv"] - u["F_conv"]).abs().max() > 0.1


def test_trap_a_dilation_that_only_pads():
    x, m = randn(1, 6, 5, 6), make(dilation=2)
    wide = F.unfold(F.pad(x, (2, 2, 2, 2), mode="reflect"), 3)  # padded for a dilation that unfold is not told of
    assert wide.shape[2] != 5 * 6
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        wide.view(1, 6, 9, 5, 6)
    m.beta.fill_(0.0)
    reached = torch.autograd.functional.jacobian(lambda x: m(x)[0, :, 2, 3].sum(), x)[0].abs().sum(0) > 1e-12
    assert {tuple(p) for p in reached.nonzero().tolist()} == {(i, j) for i in (0, 2, 4) for j in (1, 3, 5)}


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_trap_mirrored_keys_and_positions(n):
    x = randn(1, 6, n, 4)
    m = make(kernel_size=7, padding="reflect")
    assert m(x).shape == x.shape and m(x).isfinite().all()
    assert _mirrored(torch.arange(n), 3, 0).tolist() == [mirror(n, i) for i in range(-3, n + 3)]
    if n <= 3:
        with pytest.raises(RuntimeError):
            F.pad(x, (3, 3, 3, 3), mode="reflect")
    else:
        assert torch.equal(_mirrored(_mirrored(x, 3, 2), 3, 3), F.pad(x, (3, 3, 3, 3), mode="reflect"))
    masked = make(kernel_size=7)
    assert (masked(x) - m(x)).abs().max() > 1e-3 or n == 1


def test_trap_mirrored_positions_are_not_those_of_the_keys():
    """Masked, what a position adds depends on the offset alone; mirrored, one offset has two positions."""
    m = make(channels=6, kernel_size=3)
    p = m.Wp(torch.stack((torch.linspace(-1, 1, 5, dtype=D).expand(4, 5),
                          torch.linspace(-1, 1, 4, dtype=D).expand(5, 4).T))[None])
    near, on_map = ops.neighbourhoods(p, (3, 3))
    delta = (p[:, :, None] - near)[0]  # d K H W
    for k in range(9):
        there = delta[:, k, on_map[k]]
        torch.testing.assert_close(there, there[:, :1].expand_as(there))
    mirrored = F.unfold(_mirrored(_mirrored(p, 1, 2), 1, 3), 3).view_as(near)
    delta = (p[:, :, None] - mirrored)[0]
    torch.testing.assert_close(delta[:, 1, 0], delta[:, 7, 0])  # above the first row lies what is below it


def test_trap_a_bias_that_is_lost():
    conv = torch.nn.Conv2d(2, 2, 3)

    def zero(tensor):
        tensor.data.fill_(0.0)

    conv.bias = zero(conv.bias)
    assert conv.bias is None
    assert make().Ws.bias is None and "Ws.bias" not in make().state_dict()


def test_trap_a_bias_of_positions_cancels():
    m, x = make(), randn(1, 6, 4, 5)
    expected = m(x)
    m.Wp.register_forward_hook(lambda module, args, p: p + 7.0)
    torch.testing.assert_close(m(x), expected)
    assert m.Wp.bias is None


def test_trap_positions_are_made_as_the_input_is():
    m = ACmix(6, heads=2, kernel_size=3).to("meta", torch.float64)
    y = m(torch.randn(1, 6, 4, 5, device="meta", dtype=torch.float64))
    assert y.device.type == "meta" and y.dtype == torch.float64


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_memory_grows_with_the_pixels_and_the_kernel():
    m = ACmix(8, heads=2, kernel_size=3)
    kept = {16 * n: measure.saved_bytes(m, torch.randn(1, 8, n, 16)) for n in (16, 64)}
    assert measure.fit_exponent(list(kept), list(kept.values())) == pytest.approx(1, abs=0.03), kept
    x = torch.randn(1, 8, 24, 24)
    kept = [measure.saved_bytes(ACmix(8, heads=2, kernel_size=k), x) for k in (3, 5, 7)]
    assert (kept[2] - kept[1]) / (kept[1] - kept[0]) == pytest.approx((49 - 25) / (25 - 9), rel=0.02)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=6), "out_channels=6 must be divisible by heads=4; 4 and 8 are"),
    (dict(channels=8, kernel_size=4), "kernel_size=4 must be odd"),
    (dict(channels=8, kernel_conv=2), "kernel_conv=2 must be odd"),
    (dict(channels=8, padding="zeros"), "padding='zeros' must be one of 'masked', 'reflect'"),
    (dict(channels=8, conv_order="head"), "conv_order='head' must be one of 'heads', 'release'; did you mean 'heads'"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ACmix(**options)
