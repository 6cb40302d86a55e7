"""UFO attention against its paper, its limits, and the errors in circulation. No package that is kept well holds it."""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import UFOAttention
from tests.unit.draw import D, randn, randomised

TOKENS = "B N C"
CASES = [(8, 2, 7), (6, 1, 4), (3, 3, 5), (4, 2, 1), (1, 1, 6)]  # C, h, N


def make(C=8, h=2, **options):
    return randomised(UFOAttention(C, heads=h, **{"layout": TOKENS} | options)).requires_grad_(False)


def run(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def affine(layer, v):
    bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    return [b + sum(w * x for w, x in zip(row, v, strict=True))
            for row, b in zip(layer.weight.tolist(), bias, strict=True)]


def from_the_paper(x, ufo):
    """In plain numbers: the N × N products of queries and keys in the order of the formula (Q Kᵀ) V, head by head."""
    d, out = ufo.channels // ufo.heads, []
    for tokens in x.tolist():
        Q, K, V = ([affine(W, token) for token in tokens] for W in (ufo.Wq, ufo.Wk, ufo.Wv))
        N, y = len(tokens), [[0.0] * ufo.channels for _ in tokens]
        for head, gamma in enumerate(ufo.gamma.tolist()):
            first = head * d
            for e in range(first, first + d):
                column = [sum(K[n][c] * V[n][e] for n in range(N)) for c in range(first, first + d)]
                of_column = math.sqrt(sum(c * c for c in column))
                for i in range(N):
                    query = Q[i][first:first + d]
                    of_query = math.sqrt(sum(c * c for c in query))
                    pairs = sum(sum(a * b for a, b in zip(query, K[n][first:first + d], strict=True)) * V[n][e]
                                for n in range(N))
                    y[i][e] = (gamma / of_query) * (gamma / of_column) * pairs
        out.append([affine(ufo.Wo, token) for token in y])
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("C", "h", "N"), CASES)
def test_equals_the_paper(C, h, N, bias):
    ufo, x = make(C, h, bias=bias), randn(2, N, C)
    torch.testing.assert_close(ufo(x), from_the_paper(x, ufo), rtol=0, atol=1e-11)


def test_a_map_is_its_pixels_as_tokens():
    on_map, ufo, x = make(layout="B C H W"), make(), randn(2, 8, 3, 5)
    torch.testing.assert_close(on_map(x).flatten(2).mT, ufo(x.flatten(2).mT), rtol=0, atol=1e-13)


class Wrong(UFOAttention):
    """The mistakes that circulate in copies, one at a time, on tokens."""

    mistake = None

    def forward(self, x):
        e, gamma = self.mistake, self.gamma[:, None, None]
        q, k, v = (W(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for W in (self.Wq, self.Wk, self.Wv))
        if e == "softmax":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            if e == "keys normalised too":
                k = F.normalize(k, dim=-1)
            kv = k.mT @ v
            over = {"both along the last axis": -1, "one length for the matrix": (-2, -1)}.get(e, -2)
            if e != "matrix not normalised":
                kv = gamma * kv / kv.norm(dim=over, keepdim=True)
            if e != "queries not normalised":
                q = gamma * q / q.norm(dim=-2 if e == "queries over the tokens" else -1, keepdim=True)
            if e == "gamma once":
                q = q / gamma
            if e == "squared lengths":
                q = q / self.Wq(x).unflatten(2, (self.heads, -1)).transpose(1, 2).norm(dim=-1, keepdim=True)
            if e == "scaled by 1/sqrt(d)":
                q = q * q.shape[-1] ** -0.5
            y = q @ kv
        y = y.transpose(1, 2).flatten(2)
        return x + self.Wo(y) if e == "residual added" else y if e == "no way out" else self.Wo(y)


MISTAKES = ["both along the last axis", "one length for the matrix", "queries over the tokens", "softmax", "gamma once",
            "matrix not normalised", "queries not normalised", "keys normalised too", "squared lengths",
            "scaled by 1/sqrt(d)", "residual added", "no way out"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    ufo, x = make(), randn(2, 7, 8)
    wrong, expected = Wrong(8, heads=2, layout=TOKENS).to(D), from_the_paper(x, ufo)
    wrong.load_state_dict(ufo.state_dict())
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-11)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    ufo, x = make(), randn(2, 7, 8)
    t = run(ufo, x)
    assert [(n, t.dims(n)) for n in t.names()] == [("Q", "B h N d"), ("KV", "B h d d"), ("heads", "B h N d"),
                                                   ("y", "B N C")]
    torch.testing.assert_close(t["heads"], t["Q"] @ t["KV"])
    for name, axis in (("Q", 3), ("KV", 2)):
        lengths = t[name].norm(dim=axis)
        torch.testing.assert_close(lengths, ufo.gamma.abs()[:, None].expand_as(lengths))


def test_every_output_is_a_cosine():
    ufo, x = make(), randn(2, 7, 8)
    q, k, v = (W(x).unflatten(2, (2, 4)).transpose(1, 2) for W in (ufo.Wq, ufo.Wk, ufo.Wv))
    cosine = F.cosine_similarity(q[..., None], (k.mT @ v)[:, :, None], dim=3)  # B h N 1 d with B h 1 d d
    torch.testing.assert_close(run(ufo, x)["heads"], ufo.gamma.square()[:, None, None] * cosine)


def test_gamma_starts_at_one():
    assert torch.equal(UFOAttention(8).gamma, torch.ones(8))
    ufo, x = make(), randn(2, 7, 8)
    y = ufo(x)
    ufo.gamma.neg_()
    torch.testing.assert_close(ufo(x), y)  # its sign says nothing


def test_heads_divide_the_channels():
    assert sum(p.numel() for p in UFOAttention(32, heads=4).parameters()) == 4 * (32 * 32 + 32) + 4
    with pytest.raises(ValueError, match="channels=8 must be divisible by heads=3"):
        UFOAttention(8, heads=3)


# ---- limits (more of them in limits/) --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Wq", "Wk", "Wv"])
def test_queries_keys_and_values_may_each_be_multiplied_by_a_positive_number(name):
    ufo, x = make(), randn(2, 7, 8)
    y = ufo(x)
    for p in getattr(ufo, name).parameters():
        p.mul_(3.7)
    torch.testing.assert_close(ufo(x), y, rtol=0, atol=1e-13)


def test_saying_everything_twice_changes_nothing():
    ufo, x = make(), randn(2, 7, 8)
    torch.testing.assert_close(ufo(torch.cat([x, x], 1)), ufo(x).repeat(1, 2, 1), rtol=0, atol=1e-13)


def test_without_biases_the_brightness_of_the_image_changes_nothing():
    ufo, x = make(bias=False), randn(2, 7, 8)
    torch.testing.assert_close(ufo(3.7 * x), ufo(x), rtol=0, atol=1e-13)


def test_of_a_token_alone_the_signs_of_its_values_count():
    ufo, x = make(), randn(3, 1, 8)
    q, k, v = (W(x).unflatten(2, (2, 4)).transpose(1, 2) for W in (ufo.Wq, ufo.Wk, ufo.Wv))
    expected = ufo.gamma.square()[:, None, None] * F.cosine_similarity(q, k, dim=-1)[..., None] * v.sign()
    torch.testing.assert_close(run(ufo, x)["heads"], expected)


def test_heads_of_one_channel_know_signs_alone():
    ufo, x = make(6, 6), randn(2, 7, 6)
    assert torch.equal(run(ufo, x)["heads"].abs().round(decimals=12),
                       ufo.gamma.square()[:, None, None].expand(2, 6, 7, 1).round(decimals=12))


def test_zeros_give_zeros():
    ufo, x = make(bias=False), torch.zeros(2, 7, 8, dtype=D)
    assert (x / x.norm(dim=-1, keepdim=True)).isnan().all()  # the copies' quotient
    assert torch.equal(ufo(x), ufo.Wo.bias.expand_as(x))
    ufo.requires_grad_(True)(x.requires_grad_()).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("options", "message"), [
    (dict(heads=0), "heads=0 must be an integer of at least 1"),
    (dict(heads=2, epsilon=0), "epsilon=0 must be a positive number"),
    (dict(heads=2, layout="N C"), "layout='N C' must be one of"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        UFOAttention(8, **options)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_cost_is_linear_in_the_number_of_positions():
    ufo, N = UFOAttention(16, heads=2, layout=TOKENS), [256, 512, 1024]
    saved = [measure.saved_bytes(lambda x: ufo(x * 2), torch.randn(2, n, 16)) for n in N]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.03)
    assert saved[-1] < 4 * 2 * N[-1] * 16 * 12  # a few maps
    assert measure.fit_exponent(N, [measure.flops(ufo, torch.randn(2, n, 16)) for n in N]) == pytest.approx(1)


def test_work_is_four_linear_layers_and_two_products_with_the_small_matrix():
    N, C, h = 35, 16, 2
    assert measure.flops(UFOAttention(C, heads=h), torch.randn(1, C, 5, 7)) == 2 * N * (4 * C * C + 2 * C * (C // h))
