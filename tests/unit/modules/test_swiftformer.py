"""Efficient additive attention against its paper, the release and timm, and against the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import EfficientAdditiveAttention
from tests.unit.draw import D, randn, randomised
from tests.unit.reference import reference

TOKENS = "B N C"
CASES = [(8, None, 1, 7), (3, 5, 1, 4), (4, 2, 3, 1), (1, 1, 1, 6)]  # C, O (out), h, N


def make(C=8, out=None, *, seed=0, **options):
    additive = EfficientAdditiveAttention(C, out, **{"layout": TOKENS} | options)
    return randomised(additive, seed=seed).requires_grad_(False)


def run(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def affine(layer, v):
    return [b + sum(w * x for w, x in zip(row, v, strict=True))
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def unit(v):
    length = math.sqrt(sum(x * x for x in v))
    return [x / length for x in v]


def from_the_paper(x, m, normalise=True):
    """In plain numbers, one token and one channel at a time."""
    out = []
    for tokens in x.tolist():
        q, k = ([unit(affine(layer, token)) for token in tokens] for layer in (m.Wq, m.Wk))
        alpha = [sum(a * b for a, b in zip(token, m.wa.tolist(), strict=True)) / math.sqrt(m.out_channels)
                 for token in q]
        alpha = unit(alpha) if normalise else alpha
        G = [sum(a * token[c] for a, token in zip(alpha, q, strict=True)) for c in range(len(q[0]))]
        out.append([affine(m.Wo, [p + q_c for p, q_c in zip(affine(m.Wp, [g * c for g, c in zip(G, k_n, strict=True)]),
                                                          q_n, strict=True)])
                    for q_n, k_n in zip(q, k, strict=True)])
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("C", "out", "h", "N"), CASES)
def test_equals_the_paper(C, out, h, N, normalise):
    additive, x = make(C, out, heads=h, normalise=normalise), randn(2, N, C)
    torch.testing.assert_close(additive(x), from_the_paper(x, additive, normalise), rtol=0, atol=1e-12)


def test_a_map_is_its_pixels_as_tokens():
    on_map, additive, x = make(8, 3, layout="B C H W"), make(8, 3), randn(2, 8, 3, 5)
    torch.testing.assert_close(on_map(x).flatten(2).mT, additive(x.flatten(2).mT), rtol=0, atol=1e-13)


class Wrong(EfficientAdditiveAttention):
    """The mistakes that circulate in copies, one at a time, on tokens."""

    mistake = None

    def forward(self, x):
        e = self.mistake
        made, k = self.Wq(x), self.Wk(x)
        axis = 1 if e == "normalised over the tokens" else -1
        q = made if e == "queries not normalised" else F.normalize(made, dim=axis)
        k = k if e == "keys not normalised" else F.normalize(k, dim=axis)
        if e == "heads with an alpha each":
            a = (q * self.wa).unflatten(2, (self.heads, -1)).sum(3, keepdim=True)
            a = F.normalize(a, dim=1).expand(-1, -1, -1, self.out_channels).flatten(2)
        else:
            a = (q @ self.wa)[..., None]
            a = {"softmax": a.softmax(1), "softmax of the scaled": (a * self.out_channels**-0.5).softmax(1),
                 "divided by its sum": a / a.sum(1, keepdim=True), "divided by N": a / x.shape[1],
                 "not normalised": a * self.out_channels**-0.5}.get(e, F.normalize(a, dim=1))
        G = (a * (k if e == "keys summed" else q)).sum(1, keepdim=True)
        if e == "mean over the batch":
            G = G.mean(0, keepdim=True)
        y = self.Wp(G * (q if e == "queries twice" else k))
        if e != "no residual":
            y = y + {"residual as made": made, "residual of the input": x @ torch.eye(*self.Wq.weight.shape[::-1],
                                                                                     dtype=D)}.get(e, q)
        return self.Wo(y)


MISTAKES = ["softmax", "softmax of the scaled", "divided by its sum", "divided by N", "not normalised", "keys summed",
            "queries twice", "queries not normalised", "keys not normalised", "normalised over the tokens",
            "residual as made", "residual of the input", "no residual", "mean over the batch",
            "heads with an alpha each"]


def wrong_twin(additive, mistake):
    wrong = Wrong(8, 4, heads=2, layout=TOKENS).to(D)
    wrong.load_state_dict(additive.state_dict())
    wrong.mistake = mistake
    return wrong


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    additive, x = make(8, 4, heads=2), randn(2, 7, 8)
    expected = from_the_paper(x, additive)
    torch.testing.assert_close(wrong_twin(additive, None)(x), expected, rtol=0, atol=1e-12)
    assert (wrong_twin(additive, mistake)(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    additive, x = make(8, 4), randn(2, 7, 8)
    t = run(additive, x)
    assert [(n, t.dims(n)) for n in t.names()] == [("q", "B N d"), ("k", "B N d"), ("alpha", "B N"), ("G", "B d"),
                                                   ("y", "B N O")]
    torch.testing.assert_close(t["G"], torch.einsum("BN,BNd->Bd", t["alpha"], t["q"]))
    for name in ("q", "k"):
        torch.testing.assert_close(t[name].norm(dim=-1), torch.ones(2, 7, dtype=D))


def test_weights_have_signs_and_squares_that_sum_to_one():
    alpha = run(make(), randn(2, 50, 8))["alpha"]
    torch.testing.assert_close(alpha.square().sum(1), torch.ones(2, dtype=D))
    assert alpha.min() < -0.01 and alpha.max() > 0.01 and (alpha.sum(1) - 1).abs().min() > 0.1


def test_without_its_length_alpha_is_the_printed_equation():
    x = randn(2, 7, 8)
    printed, unit_length = run(make(normalise=False), x), run(make(), x)
    torch.testing.assert_close(printed["alpha"], printed["q"] @ make().wa / 8**0.5)
    torch.testing.assert_close(F.normalize(printed["alpha"], dim=1), unit_length["alpha"])
    assert (printed["alpha"].square().sum(1) - 1).abs().min() > 0.1


def test_the_scale_of_the_release_cancels():
    additive, x = make(), randn(2, 7, 8)
    y = additive(x)
    additive.wa.mul_(8**-0.5)
    torch.testing.assert_close(additive(x), y, rtol=0, atol=1e-14)


def test_heads_share_one_alpha():
    additive, x = make(8, 4, heads=2), randn(2, 7, 8)
    t = run(additive, x)
    assert t["q"].shape == (2, 7, 8) and t["alpha"].shape == (2, 7)  # twice as wide, and weighed once
    torch.testing.assert_close(t["q"].norm(dim=-1), torch.ones(2, 7, dtype=D))  # over the channels of all heads


def test_the_query_that_is_added_has_length_one():
    additive, x = make(), randn(2, 7, 8)
    t, y = run(additive, x), additive(x)
    added = torch.linalg.solve(additive.Wo.weight, (y - additive.Wo.bias).mT).mT - additive.Wp(t["G"][:, None] * t["k"])
    torch.testing.assert_close(added.norm(dim=-1), torch.ones(2, 7, dtype=D))


# ---- limits (more of them in limits/) --------------------------------------------------------------------------------


@pytest.mark.parametrize("N", [1, 4, 9, 100])
def test_equal_queries_are_added_up_to_the_root_of_their_number(N):
    additive, x = make(), randn(2, 1, 8).expand(2, N, 8)
    t = run(additive, x)
    torch.testing.assert_close(t["alpha"].abs(), torch.full((2, N), N**-0.5, dtype=D))
    torch.testing.assert_close(t["G"].norm(dim=-1), torch.full((2,), N**0.5, dtype=D))


def test_a_flat_map_has_another_output_at_another_size():
    additive, x = make(), randn(1, 1, 8)
    assert (additive(x.expand(1, 4, 8))[:, 0] - additive(x.expand(1, 9, 8))[:, 0]).abs().max() > 1e-2


def test_scaling_without_biases_changes_nothing():
    additive, x = make(), randn(2, 7, 8)
    additive.Wq.bias.fill_(0.0)
    additive.Wk.bias.fill_(0.0)
    torch.testing.assert_close(additive(3.7 * x), additive(x), rtol=0, atol=1e-13)


def test_a_query_of_zeros_is_no_nan():
    additive, x = make(), torch.zeros(2, 7, 8, dtype=D)
    additive.Wq.bias.fill_(0.0)
    assert additive(x).isfinite().all()


@pytest.mark.parametrize(("options", "message"), [
    (dict(heads=0), "heads=0 must be an integer of at least 1"),
    (dict(out_channels=0), "out_channels=0 must be an integer of at least 1"),
    (dict(epsilon=0), "epsilon=0 must be a positive number: without it a query of zeros"),
    (dict(layout="B T N C"), "layout='B T N C' must be one of"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        EfficientAdditiveAttention(8, **options)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_cost_is_linear_in_the_number_of_positions():
    additive, N = EfficientAdditiveAttention(16, layout=TOKENS), [256, 512, 1024]
    saved = [measure.saved_bytes(lambda x: additive(x * 2), torch.randn(2, n, 16)) for n in N]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.03)
    assert saved[-1] < 4 * 2 * N[-1] * 16 * 12  # a few maps
    assert measure.fit_exponent(N, [measure.flops(additive, torch.randn(2, n, 16)) for n in N]) == pytest.approx(1)


def test_work_is_four_linear_layers_and_two_sums_of_vectors():
    """Nothing is d × d but the layers: q · w_a and Σ α q are N · d multiply-adds each."""
    N, C = 35, 16
    assert measure.flops(EfficientAdditiveAttention(C), torch.randn(1, C, 5, 7)) == 2 * N * (4 * C * C + 2 * C)


# ---- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "out", "heads"), [(16, 16, 1), (8, 4, 3)])
def test_equals_timm(C, out, heads):
    theirs = reference("timm.models.swiftformer").EfficientAdditiveAttention(C, out, heads).to(D)
    ours, x = make(C, out, heads=heads, layout="B C H W"), randn(2, C, 6, 5)
    pairs = {"to_query": ours.Wq, "to_key": ours.Wk, "proj": ours.Wp, "final": ours.Wo}
    for name, layer in pairs.items():
        getattr(theirs, name).load_state_dict(layer.state_dict())
    theirs.w_g.data = ours.wa[:, None]
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
