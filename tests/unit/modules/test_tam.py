"""Temporal adaptive module against its paper, its limits and its memory, and against the errors in circulation."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.temporal import TemporalAdaptiveModule
from tests.unit.draw import D, randn, randomised

CASES = [  # options, (C, T, H, W)
    (dict(), (4, 5, 3, 2)),
    (dict(kernel_size=5, expansion=1, reduction=2), (4, 3, 1, 4)),
    (dict(kernel_size=1), (3, 4, 2, 2)),
    (dict(reduction=1), (2, 1, 1, 1)),
    (dict(kernel_size=7), (1, 2, 2, 3)),
]


def make(C=4, T=5, seed=0, **options):
    return randomised(TemporalAdaptiveModule(C, frames=T, **options), scale=0.8, seed=seed)


# ---- equation --------------------------------------------------------------------------------------------------------


def normalised(rows, bn):
    """Batch normalisation of a list of vectors."""
    columns = []
    for n, values in enumerate(zip(*rows, strict=True)):
        mean, variance = bn.running_mean[n].item(), bn.running_var[n].item()
        if bn.training:
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / len(values)
        a = bn.weight[n].item() / math.sqrt(variance + bn.eps)
        columns.append([a * (v - mean) + bn.bias[n].item() for v in values])
    return [list(row) for row in zip(*columns, strict=True)]


def rectified(rows):
    return [[max(0.0, v) for v in row] for row in rows]


def product_of(W, v):
    return [sum(w * n for w, n in zip(row, v, strict=True)) for row in W.tolist()]


def from_the_paper(x, tam):
    """Gates, kernels and the convolution in plain numbers."""
    B, C, T, H, W = x.shape
    K, half = tam.kernel_size, tam.kernel_size // 2
    z = [[[sum(map(sum, frame)) / (H * W) for frame in channel] for channel in clip] for clip in x.tolist()]
    V = torch.zeros(B, C, T, dtype=D)
    kernel = tam.L[0].weight.tolist()
    hidden = [[sum(kernel[r][c][k] * z[b][c][t + k - half] for c in range(C) for k in range(K)
                   if 0 <= t + k - half < T) for r in range(len(kernel))] for b in range(B) for t in range(T)]
    for (b, t), h in zip(product(range(B), range(T)), rectified(normalised(hidden, tam.L[1])), strict=True):
        V[b, :, t] = torch.tensor([1 / (1 + math.exp(-v)) for v in product_of(tam.L[3].weight[:, :, 0], h)], dtype=D)
    theta = torch.zeros(B, C, K, dtype=D)
    hidden = [product_of(tam.G[0].weight, z[b][c]) for b in range(B) for c in range(C)]
    for (b, c), h in zip(product(range(B), range(C)), rectified(normalised(hidden, tam.G[1])), strict=True):
        e = [math.exp(v) for v in product_of(tam.G[3].weight, h)]
        theta[b, c] = torch.tensor([v / sum(e) for v in e], dtype=D)
    y = torch.zeros_like(x)
    for b, c, t, k in product(range(B), range(C), range(T), range(K)):
        if 0 <= t + k - half < T:
            y[b, c, t] += theta[b, c, k] * V[b, c, t + k - half] * x[b, c, t + k - half]
    return dict(V=V, theta=theta, y=y)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("options", "size"), CASES)
def test_equals_the_paper(options, size, training):
    tam, x = make(*size[:2], **options).train(training), randn(2, *size)
    with torch.no_grad(), attn_lib.trace() as t:
        tam(x)
    for name, value in from_the_paper(x, tam).items():
        torch.testing.assert_close(t[name], value, rtol=0, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


class Wrong(TemporalAdaptiveModule):
    """The errors in circulation, one at a time."""

    mistake = None

    def forward(self, x):
        B, C, T = x.shape[:3]
        z = x.mean((3, 4)) if self.mistake != "maximum" else x.amax((3, 4))
        V = self.L(z)
        if self.mistake == "one gate for all channels":
            V = V.mean(1, keepdim=True).expand_as(V)
        gated = x * V[..., None, None]
        seen = gated.mean((3, 4)) if self.mistake == "kernel from the gated map" else z
        theta = seen.flatten(0, 1)
        for i, layer in enumerate(self.G):
            if i != {"no BN": 1, "no softmax": 4}.get(self.mistake):
                theta = layer(theta)
        theta = theta.view(B, C, -1)
        if self.mistake == "one kernel for all channels":
            theta = theta.mean(1, keepdim=True).expand_as(theta)
        if self.mistake == "kernel mirrored":
            theta = theta.flip(2)
        source = x if self.mistake in ("gate after the kernel", "no gate") else gated
        half = self.kernel_size // 2
        if self.mistake == "ends repeated":
            source = torch.cat([source[:, :, :1]] * half + [source] + [source[:, :, -1:]] * half, 2)
        else:
            source = F.pad(source, (0, 0, 0, 0, half, half))
        y = sum(theta[:, :, k, None, None, None] * source[:, :, k:k + T] for k in range(self.kernel_size))
        y = y * V[..., None, None] if self.mistake == "gate after the kernel" else y
        return x + y if self.mistake == "residual" else y


@pytest.mark.parametrize("mistake", [
    "maximum", "one gate for all channels", "kernel from the gated map", "no BN", "no softmax",
    "one kernel for all channels", "kernel mirrored", "gate after the kernel", "no gate", "ends repeated", "residual",
])
def test_the_comparison_with_the_paper_notices(mistake):
    tam, x = make(), randn(2, 4, 5, 3, 2)
    wrong = Wrong(4, frames=5).to(D).eval()
    wrong.load_state_dict(tam.state_dict())
    expected = from_the_paper(x, tam)["y"]
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-11)  # nothing else differs
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


# ---- where release and paper differ, and what follows from the equations ---------------------------------------------


@pytest.mark.parametrize("K", [1, 3, 5, 9])
def test_wide_kernels_keep_the_frames(K):
    """A padding of 1 keeps them for K = 3 alone: T + 2 − K + 1 are left."""
    tam, x = make(kernel_size=K), randn(1, 4, 5, 2, 2)
    assert tam(x).shape == x.shape
    assert (5 + 2 * 1 - K + 1 == 5) == (K == 3)


@pytest.mark.parametrize("C", [1, 2, 3, 4])
def test_takes_few_channels(C):
    tam, x = make(C), randn(2, C, 5, 3, 2)
    assert tam.L[0].out_channels == 1 and C // 4 == (C == 4)
    torch.testing.assert_close(tam(x), from_the_paper(x, tam)["y"], rtol=0, atol=1e-11)


def equal_weights(tam):
    """Gates 1, and every tap of the kernel 1/K."""
    with torch.no_grad():
        tam.G[3].weight.zero_()
        tam.L[1].weight.zero_()
        tam.L[1].bias.fill_(1.0)
        tam.L[3].weight.fill_(1000.0)
    return tam


def test_frames_at_the_ends_lose_weight():
    x = torch.ones(1, 4, 5, 2, 2, dtype=D)
    y = equal_weights(make())(x)[0, 0, :, 0, 0]
    torch.testing.assert_close(y, torch.tensor([2, 3, 3, 3, 2], dtype=D) / 3)


def test_a_kernel_is_a_mean_and_a_gate_lies_between_0_and_1():
    with torch.no_grad(), attn_lib.trace() as t:
        make()(10 * randn(2, 4, 5, 3, 2))
    torch.testing.assert_close(t["theta"].sum(-1), torch.ones(2, 4, dtype=D))
    assert (t["theta"] > 0).all() and (t["V"] > 0).all() and (t["V"] < 1).all()


def test_kernels_and_gates_are_the_clips_own():
    """Each depends on the clip; kernels see all frames of one channel, gates neighbouring frames of all."""
    tam, x = make(T=7), randn(1, 4, 7, 3, 2)
    other = x.clone()
    other[:, 1, 6] += 1.0
    with torch.no_grad(), attn_lib.trace() as t:
        tam(x)
        tam(other)
    assert (t["theta"] != t["theta:2"]).any(-1)[0].tolist() == [False, True, False, False]
    assert (t["V"] != t["V:2"]).any(1)[0].nonzero().flatten().tolist() == [5, 6]


def test_weights_of_the_release_load_by_name():
    """TAM(in_channels, n_segment) there: G of Linear, BN, ReLU, Linear, Softmax; L of Conv1d, BN, ReLU, Conv1d, σ."""
    shapes = {k: tuple(p.shape) for k, p in TemporalAdaptiveModule(8, frames=6).named_parameters()}
    assert shapes == {"G.0.weight": (12, 6), "G.1.weight": (12,), "G.1.bias": (12,), "G.3.weight": (3, 12),
                      "L.0.weight": (2, 8, 3), "L.1.weight": (2,), "L.1.bias": (2,), "L.3.weight": (8, 2, 1)}


# ---- cost and errors -------------------------------------------------------------------------------------------------


def test_memory_grows_with_the_frames_and_the_pixels():
    saved = {}
    for T, n in ((4, 16), (4, 32), (8, 32), (16, 32)):
        tam = TemporalAdaptiveModule(4, frames=T)
        saved[T * n * n] = measure.saved_bytes(lambda x, tam=tam: tam(x * 2), torch.randn(1, 4, T, n, n))
    assert measure.fit_exponent(list(saved), list(saved.values())) == pytest.approx(1, abs=0.05), saved


@pytest.mark.parametrize(("options", "message"), [
    (dict(kernel_size=4), "kernel_size=4 must be odd"),
    (dict(frames=0), "frames=0 must be an integer of at least 1"),
    (dict(expansion=0), "expansion=0 must be an integer of at least 1"),
    (dict(reduction=0), "reduction=0 must be an integer of at least 1"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        TemporalAdaptiveModule(4, **{"frames": 5, **options})


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="axis T must be 5, not 6"):
        make()(randn(1, 4, 6, 2, 2))
    with pytest.raises(ValueError, match="x is a batch of 1 with C=4 and T=1; in training it must hold 2 clips"):
        make(T=1).train()(randn(1, 4, 1, 2, 2))
