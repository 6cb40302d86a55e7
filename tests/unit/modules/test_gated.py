"""Gated fusion against its paper, its limits and torch's GRU, and against the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.fusion import GatedFusion
from tests.unit.draw import D, permutation, randn, randomised

SERIES = "B T N C"
CASES = [(6, 5, 7), (1, 3, 2), (4, 1, 9), (8, 1, 1)]  # C, H, W
BROKEN = {"channel_permutation", "scaling"}


def make(C=6, *, seed=0, scale=1.0, **options):
    return randomised(GatedFusion(C, **options), scale=scale, seed=seed)


def pair(*shape, seed=1):
    return randn(2, *shape, seed=seed).unbind()


def as_series(x):
    """(B, C, H, W) → (B, T=H, N=W, C)"""
    return x.movedim(1, -1)


# ---- equation --------------------------------------------------------------------------------------------------------


def from_the_paper(H_S, H_T, fuse):
    """Equations 12 and 11 in plain numbers: one step, one place and one channel at a time. Takes (B, T, N, C)."""
    C = fuse.channels
    W1, W2 = (W.weight.reshape(C, C).tolist() for W in (fuse.Wz1, fuse.Wz2))
    bias = fuse.Wz2.bias.tolist()
    H = torch.empty_like(H_S)
    for b, t, n in [(b, t, n) for b in range(H.shape[0]) for t in range(H.shape[1]) for n in range(H.shape[2])]:
        s, u = H_S[b, t, n].tolist(), H_T[b, t, n].tolist()
        for c in range(C):
            logit = bias[c]
            for k in range(C):
                logit += W1[c][k] * s[k] + W2[c][k] * u[k]
            z = 1 / (1 + math.exp(-logit))
            H[b, t, n, c] = z * s[c] + (1 - z) * u[c]
    return H


@pytest.mark.parametrize(("C", "T", "N"), CASES)
def test_equals_the_paper_on_a_series(C, T, N):
    fuse, (S, U) = make(C, layout=SERIES), pair(2, T, N, C)
    torch.testing.assert_close(fuse(S, U), from_the_paper(S, U, fuse), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("C", "H", "W"), CASES)
def test_equals_the_paper_on_an_image(C, H, W):
    fuse, (S, U) = make(C), pair(2, C, H, W)
    torch.testing.assert_close(as_series(fuse(S, U)), from_the_paper(as_series(S), as_series(U), fuse),
                               rtol=0, atol=1e-13)


def test_taps_are_the_equations():
    for layout in ("B C H W", SERIES):
        fuse, (S, U) = make(layout=layout), pair(2, 6, 6, 6)
        with attn_lib.trace() as t:
            y = fuse(S, U)
        assert t.names() == ["z", "H"] and {t.dims(n) for n in t.names()} == {layout}
        assert torch.equal(t["H"], y)
        torch.testing.assert_close(y, t["z"] * S + (1 - t["z"]) * U, rtol=0, atol=1e-14)


class Wrong(GatedFusion):
    """The errors in circulation, one at a time, on a series."""

    def __init__(self, mistake, C):
        super().__init__(C, layout=SERIES)
        self.mistake = mistake

    def forward(self, S, U):
        e, W1, W2, b = self.mistake, self.Wz1.weight, self.Wz2.weight, self.Wz2.bias
        W1, W2 = {"one matrix for both": (W1, W1), "matrices exchanged": (W2, W1), "transposed": (W1.T, W2.T)}.get(
            e, (W1, W2))
        a = S @ W1.T + U @ W2.T + (0 if e == "bias dropped" else b)
        if e == "one gate a position":
            a = a.mean(-1, keepdim=True)
        if e == "one gate a channel":
            a = a.mean((1, 2), keepdim=True)
        if e == "batch norm before the gate":
            a = F.batch_norm(a.movedim(-1, 1), None, None, training=True).movedim(1, -1)
        gates = {"softmax over the channels": lambda a: a.softmax(-1), "tanh gate": torch.tanh, "relu gate": F.relu}
        z = gates.get(e, torch.sigmoid)(a)
        if e == "z and 1 − z exchanged":
            z = 1 - z
        if e == "gates that do not sum to one":
            return z * S + torch.sigmoid(U @ W2.T) * U
        if e == "two gated sums":
            return S + z * U
        return z * S + (1 - z) * U + (U if e == "residual added" else 0)


MISTAKES = ["one matrix for both", "matrices exchanged", "transposed", "bias dropped", "one gate a position",
            "one gate a channel", "batch norm before the gate", "softmax over the channels", "tanh gate", "relu gate",
            "z and 1 − z exchanged", "gates that do not sum to one", "two gated sums", "residual added"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    right, (S, U) = make(layout=SERIES), pair(2, 4, 3, 6)
    wrong = Wrong(mistake, 6).to(D)
    wrong.load_state_dict(right.state_dict())
    assert (wrong(S, U) - from_the_paper(S, U, right)).abs().max() > 1e-2
    wrong.mistake = None
    torch.testing.assert_close(wrong(S, U), from_the_paper(S, U, right), rtol=0, atol=1e-13)  # nothing else differs


# ---- the two layouts, and the release --------------------------------------------------------------------------------


@pytest.mark.parametrize("output_mlp", [False, True])
def test_an_image_is_a_series_with_its_channels_in_front(output_mlp):
    image, series = make(output_mlp=output_mlp).eval(), make(layout=SERIES, output_mlp=output_mlp).eval()
    series.load_state_dict({name: p.flatten(1) if p.ndim == 4 else p for name, p in image.state_dict().items()})
    S, U = pair(2, 6, 5, 7)
    torch.testing.assert_close(as_series(image(S, U)), series(as_series(S), as_series(U)), rtol=0, atol=1e-13)


def test_concatenation_and_one_matrix_are_the_two_matrices():
    fuse, (S, U) = make(layout=SERIES), pair(2, 5, 7, 6)
    W = torch.cat([fuse.Wz1.weight, fuse.Wz2.weight], 1)  # C × 2C
    z = torch.sigmoid(torch.cat([S, U], -1) @ W.T + fuse.Wz2.bias)
    torch.testing.assert_close(fuse(S, U), z * S + (1 - z) * U, rtol=0, atol=1e-13)


def release(S, U, fuse, training):
    """gatedFusion of the authors' METR/model.py on (B, T, N, C): batch norm only where an activation follows."""
    z = torch.sigmoid(S @ fuse.Wz1.weight.T + U @ fuse.Wz2.weight.T + fuse.Wz2.bias)
    H = (z * S + (1 - z) * U) @ fuse.mlp.W1.weight.T
    norm = fuse.mlp.norm
    mean, var = (H.mean((0, 1, 2)), H.var((0, 1, 2), correction=0)) if training else (norm.running_mean,
                                                                                        norm.running_var)
    H = torch.relu((H - mean) / torch.sqrt(var + 1e-3) * norm.weight + norm.bias)
    return H @ fuse.mlp.W2.weight.T + fuse.mlp.W2.bias


@pytest.mark.parametrize("training", [True, False])
def test_output_mlp_is_the_release(training):
    fuse, (S, U) = make(layout=SERIES, output_mlp=True), pair(3, 5, 7, 6)
    fuse(*pair(3, 5, 7, 6, seed=9))  # running statistics that are not the fresh ones
    fuse.train(training)
    torch.testing.assert_close(fuse(S, U), release(S, U, fuse, training), rtol=0, atol=1e-12)


def test_in_training_a_bias_of_w1_would_change_nothing():
    """The release has one. Its gradient is zero, and in evaluation it moves into BN's running mean."""
    fuse, (S, U) = make(layout=SERIES, output_mlp=True).train(), pair(3, 5, 7, 6)
    fuse(S, U)
    expected, bias = fuse(S, U), randn(6, seed=4)
    fuse.mlp.W1.bias = nn.Parameter(bias.clone())
    biased = fuse(S, U)
    torch.testing.assert_close(biased, expected, rtol=0, atol=1e-12)
    biased.square().sum().backward()
    assert fuse.mlp.W1.bias.grad.abs().max() < 1e-10 * fuse.mlp.W2.bias.grad.abs().max()
    after = fuse.eval()(S, U)
    fuse.mlp.W1.bias = None
    fuse.mlp.norm.running_mean -= bias
    torch.testing.assert_close(fuse(S, U), after, rtol=0, atol=1e-12)


def test_only_the_output_mlp_sees_the_rest_of_the_batch():
    S, U = pair(4, 6, 5, 7)
    for output_mlp, alike in ((False, True), (True, False)):
        fuse = make(output_mlp=output_mlp).train()
        assert torch.allclose(fuse(S, U)[:1], fuse(S[:1], U[:1])) == alike


def test_parameters_are_those_of_equation_12():
    def count(**options):
        return sum(p.numel() for p in GatedFusion(64, **options).parameters())

    assert count() == count(layout=SERIES) == 2 * 64 * 64 + 64
    assert count() == sum(p.numel() for p in nn.Conv2d(2 * 64, 64, 1).parameters())  # a linear fusion has as many
    assert count(output_mlp=True) == count() + 2 * 64 * 64 + 64 + 2 * 64


# ---- limits (more of them in limits/) --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, D, torch.bfloat16])
def test_equal_inputs_come_through_whatever_the_gate_says(dtype):
    fuse, (S, _) = make().to(dtype), pair(2, 6, 5, 7)
    assert torch.equal(fuse(S.to(dtype), S.to(dtype)), S.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_output_lies_between_the_inputs(dtype):
    fuse, (S, U) = make(scale=0.3).to(dtype), (x.to(dtype) for x in pair(16, 6, 25, 27))
    H = fuse(S, U)
    assert (H >= S.minimum(U)).all() and (H <= S.maximum(U)).all()
    assert ((H - S).abs().min() < 1e-2 * (S - U).abs().max()) and not torch.equal(H, S)


def test_a_softmax_over_the_two_inputs_is_the_same_gate():
    fuse, (S, U) = make(layout=SERIES), pair(2, 5, 7, 6)
    a_S, a_U = S @ fuse.Wz1.weight.T, -(U @ fuse.Wz2.weight.T + fuse.Wz2.bias)
    weights = torch.stack([a_S, a_U]).softmax(0)
    torch.testing.assert_close(fuse(S, U), weights[0] * S + weights[1] * U, rtol=0, atol=1e-13)


def test_a_gate_that_is_its_bias_folds_into_the_next_layer():
    fuse, (S, U), conv = make(), pair(2, 6, 8, 9), nn.Conv2d(6, 5, 3).to(D)
    nn.init.zeros_(fuse.Wz1.weight)
    nn.init.zeros_(fuse.Wz2.weight)
    z = fuse.Wz2.bias.sigmoid()[:, None, None]
    expected = F.conv2d(S, conv.weight * z) + F.conv2d(U, conv.weight * (1 - z), conv.bias)
    torch.testing.assert_close(conv(fuse(S, U)), expected, rtol=0, atol=1e-13)


def test_gru_of_torch_ends_in_this_gate():
    """h′ = z ⊙ h + (1 − z) ⊙ n, with n = tanh(W x) made to see no state and z no input: r then plays no part."""
    C, (x, h) = 6, pair(9, 6)
    gru = nn.GRUCell(C, C).to(D)
    fuse = make(C, layout=SERIES)
    with torch.no_grad():
        r, z, n = (slice(k * C, (k + 1) * C) for k in range(3))
        gru.weight_ih[z], gru.weight_hh[z] = 0, fuse.Wz1.weight
        gru.bias_ih[z], gru.bias_hh[z] = fuse.Wz2.bias, 0
        gru.weight_hh[n], gru.bias_hh[n] = 0, 0
        fuse.Wz2.weight.zero_()
        candidate = torch.tanh(x @ gru.weight_ih[n].T + gru.bias_ih[n])
        expected = gru(x, h)
    assert gru.weight_hh[r].abs().min() > 0
    torch.testing.assert_close(fuse(h[None, None], candidate[None, None])[0, 0], expected, rtol=0, atol=1e-13)


# ---- symmetry --------------------------------------------------------------------------------------------------------


def test_exchanging_the_inputs_turns_the_gate_round():
    fuse, turned, (S, U) = make(), make(), pair(2, 6, 5, 7)
    assert (fuse(S, U) - fuse(U, S)).abs().max() > 0.1
    with torch.no_grad():
        turned.Wz1.weight.copy_(-fuse.Wz2.weight)
        turned.Wz2.weight.copy_(-fuse.Wz1.weight)
        turned.Wz2.bias.copy_(-fuse.Wz2.bias)
    torch.testing.assert_close(turned(U, S), fuse(S, U), rtol=0, atol=1e-13)


def test_series_commutes_with_permutations_of_steps_and_places():
    fuse, (S, U) = make(layout=SERIES), pair(2, 5, 7, 6)
    found = measure.symmetries(fuse, (S, U), layout=f"{SERIES}, {SERIES}")
    assert found["spatial_permutation"] < 1e-12 and found["translation"] < 1e-12
    assert all(found[name] > 1e-2 for name in BROKEN)
    steps = permutation(5)
    torch.testing.assert_close(fuse(S[:, steps], U[:, steps]), fuse(S, U)[:, steps], rtol=0, atol=1e-13)


def test_a_position_sees_itself_alone():
    fuse, (S, U) = make(), pair(1, 6, 4, 5)
    S.requires_grad_()
    fuse(S, U)[0, :, 1, 2].sum().backward()
    touched = S.grad.abs().sum((0, 1)) > 0
    assert touched.sum() == 1 and touched[1, 2]


# ---- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape_S", "shape_U", "message"), [
    ((2, 6, 5, 7), (2, 6, 5, 1), r"H_S \(2, 6, 5, 7\) and H_T \(2, 6, 5, 1\) must have the same shape"),
    ((1, 6, 5, 7), (2, 6, 5, 7), "must have the same shape"),
    ((2, 6, 1, 1), (2, 6, 5, 7), "must have the same shape"),
    ((2, 6, 5, 7), (2, 6, 7, 5), "must have the same shape"),
    ((2, 5, 5, 7), (2, 6, 5, 7), r"H_S has shape .* axis C must be 6, not 5"),
    ((2, 6, 5, 7), (2, 12, 5, 7), r"H_T has shape .* axis C must be 6, not 12"),
    ((2, 6, 5, 7), (2, 1, 5, 7), r"H_T has shape .* axis C must be 6, not 1"),
    ((2, 6, 5, 7), (6, 5, 7), r"H_T has shape .* must have 4 axes"),
    ((2, 6, 5, 7), (2, 6, 0, 7), "H_T .* axis H must not be empty"),
])
def test_inputs_that_do_not_fit(shape_S, shape_U, message):
    with pytest.raises(ValueError, match=message):
        GatedFusion(6)(torch.randn(shape_S), torch.randn(shape_U))


def test_a_map_in_the_other_layout_is_refused():
    x, y = torch.randn(2, 2, 5, 7, 6).unbind()
    GatedFusion(6, layout=SERIES)(x, y)
    with pytest.raises(ValueError, match="axis C must be 6, not 5"):
        GatedFusion(6)(x, y)
    with pytest.raises(ValueError, match="H_T must be a tensor"):
        GatedFusion(6, layout=SERIES)(x, y.tolist())


@pytest.mark.parametrize("layout", ["B N C", "BCHW", None, ""])
def test_unknown_layout(layout):
    with pytest.raises(ValueError, match=r"layout=.* must be one of 'B C H W', 'B T N C'"):
        GatedFusion(6, layout=layout)


def test_inputs_of_two_precisions():
    """Under autocast one branch may end in a normalisation (float32), the other in a convolution."""
    fuse, (S, U) = make().float(), (x.float() for x in pair(2, 6, 5, 7))
    with torch.autocast("cpu", torch.bfloat16):
        H = fuse(S, U.bfloat16())
    assert H.dtype == torch.float32
    torch.testing.assert_close(H, fuse(S, U), rtol=0, atol=0.1)


# ---- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["B C H W", SERIES])
def test_keeps_the_gate_and_nothing_else(layout):
    C, sides = 32, [(8, 8), (8, 16), (16, 16), (16, 32)]
    fuse = GatedFusion(C, layout=layout)

    def shape(side):
        return (2, C, *side) if layout == "B C H W" else (2, *side, C)

    saved = [measure.saved_bytes(fuse, (torch.randn(shape(s)), torch.randn(shape(s)))) for s in sides]
    assert saved == [4 * 2 * C * h * w for h, w in sides]  # one float a position and channel, as the gate has


def test_arithmetic_is_two_matrix_products_a_position():
    C, x = 16, torch.randn(2, 16, 5, 7)
    assert measure.cost(GatedFusion(C), (x, x)).flops == 2 * (2 * C * C) * 2 * 35
