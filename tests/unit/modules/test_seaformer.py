"""Squeeze-enhanced axial attention against its equations, its limits, its cost, and known mistakes."""

import ast
import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import SeaAttention, seaformer
from tests.unit.draw import D, randn, randomised

SIZES = [(4, 5), (3, 20), (1, 6), (1, 1)]
OPTIONS = [dict(), dict(attn_ratio=1.5, heads=3, key_dim=2, positions=4), dict(attn_ratio=1.0, heads=1, positions=1)]


def make(channels=6, seed=0, **options) -> SeaAttention:
    options = dict(key_dim=4, heads=2, positions=7) | options
    return randomised(SeaAttention(channels, **options), seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def interpolated(r: list[float], n: int, i: int) -> float:
    """What lies at the centre of the i-th of n equal parts, where the numbers r lie at the centres of theirs."""
    place = min(max((i + 0.5) * len(r) / n - 0.5, 0.0), len(r) - 1)
    below = min(int(place), len(r) - 2) if len(r) > 1 else 0
    above = min(below + 1, len(r) - 1)
    return (1 - (place - below)) * r[below] + (place - below) * r[above]


def from_the_paper(x: Tensor, m: SeaAttention) -> dict[str, Tensor]:
    """One image (C, H, W), with loops over heads, rows and columns."""
    _, H, W = x.shape

    def conv_bn(t, conv, norm):  # of a vector of channels
        std = (norm.running_var + 1e-5).sqrt()
        return (conv.weight[:, :, 0, 0] @ t - norm.running_mean) / std * norm.weight + norm.bias

    pixels = {(i, j): {name: conv_bn(x[:, i, j], conv, norm) for name, conv, norm in (
        ("q", m.Wq, m.norm_q), ("k", m.Wk, m.norm_k), ("v", m.Wv, m.norm_v))} for i in range(H) for j in range(W)}

    def axial(lines, r_q, r_k, conv, norm):
        """Attention of lines, each a list of the pixels that it holds."""
        n = len(lines)
        mean = [{name: sum(pixels[p][name] for p in line) / len(line) for name in "qkv"} for line in lines]
        for i in range(n):
            mean[i]["q"] = mean[i]["q"] + torch.tensor([interpolated(r, n, i) for r in r_q.tolist()], dtype=D)
            mean[i]["k"] = mean[i]["k"] + torch.tensor([interpolated(r, n, i) for r in r_k.tolist()], dtype=D)
        d, dv = m.key_dim, len(mean[0]["v"]) // m.heads
        out = []
        for i in range(n):
            parts = []
            for h in range(m.heads):
                qk, own = slice(h * d, (h + 1) * d), slice(h * dv, (h + 1) * dv)
                weights = [math.exp((mean[i]["q"][qk] @ mean[j]["k"][qk]).item() / math.sqrt(d)) for j in range(n)]
                parts.append(sum(w / sum(weights) * mean[j]["v"][own] for j, w in enumerate(weights)))
            out.append(conv_bn(torch.cat(parts).clamp(0, 6), conv, norm))
        return out

    y_row = axial([[(i, j) for j in range(W)] for i in range(H)], m.rq_row, m.rk_row, m.Wrow, m.norm_row)
    y_col = axial([[(i, j) for i in range(H)] for j in range(W)], m.rq_col, m.rk_col, m.Wcol, m.norm_col)
    gate, detail = torch.zeros_like(x), torch.zeros_like(x)
    std = (m.norm_dw.running_var + 1e-5).sqrt()
    for i, j in pixels:
        mixed = (pixels[i, j]["v"] + y_row[i] + y_col[j]).clamp(0, 6)
        gate[:, i, j] = (conv_bn(mixed, m.Wo, m.norm_o) + 3).clamp(0, 6) / 6
        near = torch.zeros(len(std), dtype=D)
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                if (i + di, j + dj) in pixels:
                    qkv = torch.cat([pixels[i + di, j + dj][name] for name in "qkv"])
                    near += m.DW.weight[:, 0, di + 1, dj + 1] * qkv
        near = (near - m.norm_dw.running_mean) / std * m.norm_dw.weight + m.norm_dw.bias
        detail[:, i, j] = conv_bn(near.clamp(0, 6), m.Wd, m.norm_d)
    return dict(y_row=torch.stack(y_row, 1)[..., None], y_col=torch.stack(y_col, 1)[:, None], g=gate, detail=detail,
                y=gate * detail)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_paper(size, options):
    m, x = make(**options), randn(1, 6, *size)
    with attn_lib.trace() as t:
        y = m(x)
    for name, expected in from_the_paper(x[0], m).items():
        torch.testing.assert_close(t[name][0], expected, rtol=0, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}")
    torch.testing.assert_close(y, m(x), rtol=0, atol=1e-12)
    assert t.names() == ["q_row", "k_row", "A_row", "q_col", "k_col", "A_col", "y_row", "y_col", "v", "g", "detail",
                         "y"]


class Wrong(SeaAttention):
    """The mistakes that circulate, one at a time."""

    mistake = None

    def forward(self, x):
        is_ = self.mistake.__eq__ if self.mistake else lambda _: False
        q, k, v = self.norm_q(self.Wq(x)), self.norm_k(self.Wk(x)), self.norm_v(self.Wv(x))
        act = F.relu if is_("ReLU for ReLU6") else F.relu6

        def placed(t, r):
            n = t.shape[2]
            if is_("no positions"):
                return t
            if is_("positions cut off"):
                return t + r[:, :n]
            mode = dict(mode="nearest") if is_("nearest positions") else dict(
                mode="linear", align_corners=is_("positions from end to end"))
            return t + F.interpolate(r[None], n, **mode)

        def axial(dim, r_q, r_k, conv, norm):
            q_, k_, v_ = (t.sum(dim) if is_("sums for means") else t.amax(dim) if is_("maxima for means")
                          else t.mean(dim) for t in (q, k, v))
            q_, k_ = placed(q_, r_q), placed(k_, r_k)
            q_, k_, v_ = (t.unflatten(1, (self.heads, -1)) for t in (q_, k_, v_))
            width = v_.shape[2] if is_("scaled by the width of v") else self.key_dim
            A = (q_.mT @ k_ / width**0.5).softmax(2 if is_("softmax over the queries") else 3)
            y = (v_ @ A.mT).flatten(1, 2).unsqueeze(dim)
            return norm(conv(y if is_("no activation before the projection") else act(y)))

        y_row = axial(3, self.rq_row, self.rk_row, self.Wrow, self.norm_row)
        y_col = axial(2, self.rq_col, self.rk_col, self.Wcol, self.norm_col)
        mixed = y_row * y_col if is_("rows times columns") else y_row + y_col
        mixed = mixed if is_("v not added") else v + mixed
        gate = self.norm_o(self.Wo(act(mixed)))
        gate = gate.sigmoid() if is_("sigmoid") else (gate + 3).clamp(0, 6) / 6
        detail = torch.cat((k, q, v) if is_("keys before queries") else (q, k, v), 1)
        detail = self.norm_d(self.Wd(act(self.norm_dw(self.DW(detail)))))
        return gate + detail if is_("added") else gate * detail


MISTAKES = [
    "sums for means", "maxima for means", "no positions", "positions cut off", "nearest positions",
    "positions from end to end", "scaled by the width of v", "softmax over the queries", "rows times columns",
    "v not added", "sigmoid", "ReLU for ReLU6", "no activation before the projection", "keys before queries", "added",
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = make(), 3 * randn(1, 6, 4, 5)
    expected = from_the_paper(x[0], m)["y"]
    wrong = Wrong(6, key_dim=4, heads=2, positions=7).to(D).eval().requires_grad_(False)
    wrong.load_state_dict(m.state_dict())
    torch.testing.assert_close(wrong(x)[0], expected, rtol=0, atol=1e-10)  # as yet there is no mistake
    wrong.mistake = mistake
    assert (wrong(x)[0] - expected).abs().max() > 1e-2


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_a_single_pixel_is_its_own_row_and_column():
    """Both attentions return v̄ = v: nothing is left of q, k and the positions but in the detail branch."""
    m, x = make(), randn(2, 6, 1, 1)
    v = m.norm_v(m.Wv(x))
    with attn_lib.trace() as t:
        m(x)
    torch.testing.assert_close(t["y_row"], m.norm_row(m.Wrow(F.relu6(v))))
    torch.testing.assert_close(t["y_col"], m.norm_col(m.Wcol(F.relu6(v))))


def test_what_the_attention_adds_is_a_row_and_a_column():
    """It does not know where in its row a pixel lies: rearranging the pixels of a row changes no other row's y_row."""
    m, x = make(), randn(1, 6, 4, 5)
    other = x.clone()
    other[:, :, 2] = x[:, :, 2].flip(2)
    with attn_lib.trace() as t:
        m(x)
    with attn_lib.trace() as u:
        m(other)
    torch.testing.assert_close(t["y_row"], u["y_row"])
    assert (t["y_col"] - u["y_col"]).abs().max() > 1e-3


# ---- traps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_trap_at_the_start_the_gate_is_a_half_and_attention_does_not_learn(training):
    m, x = SeaAttention(8, key_dim=4, heads=2).train(training), torch.randn(2, 8, 4, 5)
    with attn_lib.trace() as t:
        y = m(x)
    assert torch.equal(y, t["detail"] / 2) and (t["g"] == 0.5).all()
    y.square().sum().backward()
    still = {name for name, p in m.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    assert {"rq_row", "rk_col", "Wrow.weight", "Wcol.weight", "norm_row.weight", "Wo.weight"} <= still
    assert not still & {"norm_o.weight", "norm_o.bias", "Wd.weight", "DW.weight"}
    started = SeaAttention(8, key_dim=4, heads=2, zero_init=False)
    started(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in started.parameters())


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0, 4.0])
def test_trap_a_detail_branch_that_fits_one_ratio(ratio):
    m, x = make(attn_ratio=ratio), randn(1, 6, 4, 5)
    Cv = m.Wv.out_channels
    qkv = torch.cat([conv(x) for conv in (m.Wq, m.Wk, m.Wv)], 1)
    wrong = nn.Conv2d(2 * Cv, 2 * Cv, 3, padding=1, groups=2 * Cv).to(D)
    if ratio == 2:
        assert wrong(qkv).shape == m.DW(qkv).shape
    else:
        with pytest.raises(RuntimeError):
            wrong(qkv)
    assert m.DW.in_channels == 2 * 8 + Cv and m(x).shape == x.shape


def test_trap_positions_fit_every_size():
    """A straight line of positions stays one at any size; positions of a fixed number fit that number alone."""
    m = make(positions=16)
    m.rq_row.copy_(torch.arange(16.0).expand(8, 16))
    for n in (16, 32, 7):
        line = seaformer._placed(torch.zeros(1, 8, n, dtype=D), m.rq_row)[0, 0]
        assert line.tolist() == pytest.approx([interpolated(list(range(16)), n, i) for i in range(n)])
        if n != 16:
            with pytest.raises(RuntimeError):
                torch.zeros(1, 8, n) + m.rq_row
    assert m(randn(1, 6, 40, 3)).isfinite().all()


def test_trap_nothing_but_torch_is_needed():
    nodes = ast.walk(ast.parse(inspect.getsource(seaformer)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in names} == {"torch"}
    calls = {type(layer) for layer in make().modules()} - {SeaAttention}
    assert calls == {nn.Conv2d, nn.BatchNorm2d}


def test_a_single_line_in_training_is_refused():
    m = SeaAttention(8, key_dim=4, heads=2)
    m.eval()(torch.randn(1, 8, 1, 5))
    for size in ((1, 5), (5, 1), (1, 1)):
        with pytest.raises(ValueError, match=r"in training it must hold 2 images or more, or 2 rows and columns"):
            m.train()(torch.randn(1, 8, *size))
    m(torch.randn(2, 8, 1, 1)), m(torch.randn(1, 8, 2, 2))


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_grows_with_the_pixels_and_attention_with_the_sides():
    """H² + W² pairs, a vanishing share beside the maps; N² would be 64 times more for a map twice as high and wide."""
    m = SeaAttention(8, key_dim=4, heads=2)
    kept = {n * n: measure.saved_bytes(m, torch.randn(1, 8, n, n)) for n in (16, 32, 64)}
    assert measure.fit_exponent(list(kept), list(kept.values())) == pytest.approx(1, abs=0.05), kept
    with attn_lib.trace() as t:
        m(torch.randn(1, 8, 24, 40))
    assert t["A_row"].shape == (1, 2, 24, 24) and t["A_col"].shape == (1, 2, 40, 40)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=8, attn_ratio=0.01), r"int\(attn_ratio \* key_dim\)=0 must be an integer of at least 1"),
    (dict(channels=8, attn_ratio=-1.0), "attn_ratio=-1.0 must be a positive number"),
    (dict(channels=8, positions=0), "positions=0 must be an integer of at least 1"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        SeaAttention(**options)
