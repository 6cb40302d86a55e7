"""The contextual transformer against its equations, its limits, its memory, and the version that is copied most."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import CoTAttention
from tests.unit.draw import D, randn, randomised

OPTIONS = [
    dict(),
    dict(kernel_size=5, groups=2, share=4, min_dim=8),
    dict(groups=8, share=4, cardinality=2),
    dict(share=16, reduction=2, min_dim=1, kernel_size=1),
]


def make(channels=16, seed=0, **options) -> CoTAttention:
    return randomised(CoTAttention(channels, **options), scale=0.5, seed=seed).requires_grad_(False)


def run(m, x):
    with attn_lib.trace() as t:
        y = m(x)
    return y, t


# ---- equation --------------------------------------------------------------------------------------------------------


def normalised(x: Tensor, norm: nn.Module) -> Tensor:
    """Batch normalisation of (C, …) by its running statistics."""
    shape = (-1,) + (1,) * (x.ndim - 1)
    mean, var, gamma, beta = (t.view(shape) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / (var + 1e-5).sqrt() * gamma + beta


def grouped(weight: Tensor, x: Tensor, groups: int) -> Tensor:
    """A 1×1 convolution in groups, of (C, H, W)."""
    rows, columns = len(weight) // groups, len(x) // groups
    return torch.cat([torch.einsum("oc,chw->ohw", weight[g * rows:(g + 1) * rows, :, 0, 0],
                                   x[g * columns:(g + 1) * columns]) for g in range(groups)])


def from_the_paper(x: Tensor, m: CoTAttention) -> dict[str, Tensor]:
    """One image (C, H, W), with loops over pixels, neighbours and channels."""
    (C, H, W), k, M = x.shape, m.kernel_size, m.cardinality
    G, reach, per_group = C // m.share, k // 2, C // m.groups

    def at(t, c, i, j):
        return t[c, i, j].item() if 0 <= i < H and 0 <= j < W else 0.0

    K1 = torch.zeros(C, H, W, dtype=D)
    for c in range(C):
        first = c // per_group * per_group
        for i in range(H):
            for j in range(W):
                K1[c, i, j] = sum(m.Wk.weight[c, n, di, dj].item() * at(x, first + n, i + di - reach, j + dj - reach)
                                  for n in range(per_group) for di in range(k) for dj in range(k))
    K1 = normalised(K1, m.norm_k).clamp(min=0)
    both = [x, K1] if M == 1 else [t[c:c + 1] for c in range(C) for t in (x, K1)]
    hidden = normalised(grouped(m.Wtheta.weight, torch.cat(both), M), m.norm_theta).clamp(min=0)
    A = grouped(m.Wdelta.weight, hidden, M) + m.Wdelta.bias[:, None, None]
    for g in range(G):  # the K weights of a group, at all pixels, have mean 0 and variance 1
        rows = slice(g * k * k, (g + 1) * k * k)
        A[rows] = (A[rows] - A[rows].mean()) / (A[rows].var(unbiased=False) + 1e-5).sqrt()
        A[rows] = A[rows] * m.norm_a.weight[rows, None, None] + m.norm_a.bias[rows, None, None]
    V = normalised(grouped(m.Wv.weight, x, M), m.norm_v)
    K2 = torch.zeros(C, H, W, dtype=D)
    for c in range(C):
        part, own = divmod(c, C // M)
        group = part * G // M + own % (G // M)
        for i in range(H):
            for j in range(W):
                K2[c, i, j] = sum(A[group * k * k + di * k + dj, i, j].item() * at(V, c, i + di - reach, j + dj - reach)
                                  for di in range(k) for dj in range(k))
    K2 = normalised(K2, m.norm_d)
    K2 = K2 * K2.sigmoid()
    z = normalised(m.Wz.weight @ (K1 + K2).mean((1, 2)) + m.Wz.bias, m.norm_z).clamp(min=0)
    logits = m.Wa.weight @ z + m.Wa.bias
    y = torch.zeros(C, H, W, dtype=D)
    for c in range(C):
        dynamic, static = math.exp(logits[2 * c]), math.exp(logits[2 * c + 1])
        y[c] = (static * K1[c] + dynamic * K2[c]) / (static + dynamic)
    return dict(K1=K1, A=A, V=V, K2=K2, y=y)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(3, 4), (1, 2)], ids=str)
def test_equals_the_paper(size, options):
    m, x = make(**options), randn(1, 16, *size)
    y, t = run(m, x)
    for name, expected in from_the_paper(x[0], m).items():
        torch.testing.assert_close(t[name][0].reshape(expected.shape), expected, rtol=0, atol=1e-11,
                                   msg=lambda text, name=name: f"{name}: {text}")
    assert t.names() == ["K1", "A", "V", "K2", "a", "y"] and torch.equal(y, t["y"])


class Wrong(CoTAttention):
    """The mistakes that circulate, one at a time; the first are those of the most copied version."""

    mistake = None

    def forward(self, x):
        is_ = self.mistake.__eq__ if self.mistake else lambda _: False
        C, K = self.channels, self.kernel_size**2
        K1 = F.relu(self.norm_k(self.Wk(x)))
        A = self.Wdelta(F.relu(self.norm_theta(self.Wtheta(torch.cat((K1, x) if is_("keys first") else (x, K1), 1)))))
        A = A if is_("no group norm") else self.norm_a(A)
        A = A.unflatten(1, (-1, K))
        A = A.softmax(2) if is_("softmax over the neighbours") else A
        V = self.Wv(x) if is_("values not normalised") else self.norm_v(self.Wv(x))
        reach = self.kernel_size // 2
        wide = F.pad(V, (reach,) * 4, mode="reflect" if is_("padding mirrored") else "constant")
        near = F.unfold(wide, self.kernel_size).view(*V.shape[:2], K, *V.shape[2:])
        channels = torch.arange(C)
        own = channels // self.share if is_("neighbouring channels share") else channels % (C // self.share)
        if is_("weights averaged, softmax over the pixels"):
            mean = A.mean(2)[:, own]
            K2 = mean.flatten(2).softmax(2).view_as(mean) * V
        else:
            K2 = (A[:, own] * near).sum(2)
            K2 = self.norm_d(K2)
            K2 = F.relu(K2) if is_("ReLU for SiLU") else F.silu(K2)
        if is_("contexts added"):
            return K1 + K2
        z = F.relu(self.norm_z(self.Wz(K1.mean((2, 3)) if is_("fused by the static one") else (K1 + K2).mean((2, 3)))))
        logits = self.Wa(z)
        logits = logits.view(-1, 2, C).mT if is_("contexts before channels") else logits.view(-1, C, 2)
        a = logits.sigmoid() if is_("sigmoid") else logits.softmax(2)
        a = a.flip(2) if is_("static context first") else a
        a = a[..., None, None]
        return a[:, :, 1] * K1 + a[:, :, 0] * K2


MISTAKES = [
    "weights averaged, softmax over the pixels", "contexts added", "keys first", "no group norm",
    "softmax over the neighbours", "values not normalised", "padding mirrored", "neighbouring channels share",
    "ReLU for SiLU", "fused by the static one", "contexts before channels", "sigmoid", "static context first",
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = make(share=4), randn(1, 16, 3, 4)
    expected = from_the_paper(x[0], m)["y"]
    wrong = Wrong(16, share=4).to(D).eval().requires_grad_(False)
    wrong.load_state_dict(m.state_dict())
    torch.testing.assert_close(wrong(x)[0], expected, rtol=0, atol=1e-11)  # as yet there is no mistake
    wrong.mistake = mistake
    assert (wrong(x)[0] - expected).abs().max() > 1e-2


def test_defaults_are_those_of_the_release():
    m = CoTAttention(128)
    assert m.Wk.kernel_size == (3, 3) and m.Wk.groups == 4 and m.Wk.bias is None
    assert m.Wtheta.weight.shape == (64, 256, 1, 1) and m.Wdelta.weight.shape == (144, 64, 1, 1)
    assert m.norm_a.num_groups == 16 and m.Wdelta.bias is not None and m.Wtheta.bias is None and m.Wv.bias is None
    assert m.Wz.weight.shape == (64, 128) and CoTAttention(32).Wz.weight.shape == (32, 32)
    m = CoTAttention(128, groups=8, cardinality=2)  # CoTNeXt
    assert m.Wtheta.weight.shape == (64, 128, 1, 1) and m.Wdelta.weight.shape == (144, 32, 1, 1)


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(9))
def test_weights_that_are_one_hot_shift_the_values(place):
    """γ of the group norm 0, β one at one place: what remains is the value of that neighbour."""
    m, x = make(), randn(2, 16, 4, 5)
    m.norm_a.weight.fill_(0.0)
    m.norm_a.bias.copy_(torch.arange(18) % 9 == place)
    _, t = run(m, x)
    di, dj = place // 3, place % 3
    shifted = F.pad(t["V"], (1, 1, 1, 1))[..., di:di + 4, dj:dj + 5]
    torch.testing.assert_close(t["K2"], F.silu(m.norm_d(shifted)))


def test_the_weights_of_a_pixel_are_dynamic():
    """They depend on the neighbourhood as a whole: another neighbour changes the weights of all."""
    m, x = make(), randn(1, 16, 5, 5)
    other = x.clone()
    other[..., 1, 1] += 1.0
    assert ((run(m, other)[1]["A"] - run(m, x)[1]["A"])[0, :, :, 2, 2].abs() > 1e-3).all()


def test_weights_are_normalised_over_places_and_pixels_and_are_no_softmax():
    m, x = make(), randn(2, 16, 4, 5)
    m.norm_a.weight.fill_(1.0)
    m.norm_a.bias.fill_(0.0)
    A = run(m, x)[1]["A"]
    torch.testing.assert_close(A.mean((2, 3, 4)), torch.zeros(2, 2, dtype=D), rtol=0, atol=1e-12)
    torch.testing.assert_close(A.square().mean((2, 3, 4)), torch.ones(2, 2, dtype=D), rtol=1e-3, atol=0)
    assert A.min() < -0.1 and A.sum(2).std() > 0.1


# ---- traps -----------------------------------------------------------------------------------------------------------


def test_trap_the_most_copied_version_reads_no_neighbour():
    """Its dynamic context is the value of the pixel itself times a number."""
    m, x = make(), randn(1, 16, 4, 5)
    wrong = Wrong(16).to(D).eval().requires_grad_(False)
    wrong.load_state_dict(m.state_dict())
    wrong.mistake = "weights averaged, softmax over the pixels"
    V = randn(1, 16, 4, 5, seed=5)
    A = run(m, x)[1]["A"]

    def reached(aggregate):
        return torch.autograd.functional.jacobian(lambda V: aggregate(V)[0, :, 2, 2].sum(), V)[0].abs().sum(0) > 1e-9

    def copied(V):
        return A.mean(2)[:, torch.arange(16) % 2].flatten(2).softmax(2).view_as(V) * V

    assert reached(copied).sum() == 1 and reached(lambda V: m.aggregate(V, A)).sum() == 9
    assert (wrong(x) - m(x)).abs().max() > 0.1


def test_trap_channels_that_share_weights_are_dealt_out():
    m = make(channels=16, share=8)  # two groups: even and odd channels
    V = randn(1, 1, 4, 5).expand(1, 16, 4, 5)
    y = m.aggregate(V, randn(1, 2, 9, 4, 5, seed=3))
    torch.testing.assert_close(y[:, 0::2], y[:, :1].expand(1, 8, 4, 5))
    torch.testing.assert_close(y[:, 1::2], y[:, 1:2].expand(1, 8, 4, 5))
    assert (y[:, 0] - y[:, 1]).abs().max() > 0.1


def test_trap_a_batch_of_one_in_training():
    m, x = CoTAttention(16), torch.randn(1, 16, 5, 7)
    m.eval()(x)
    with pytest.raises(ValueError, match="x is a batch of 1; in training it must hold 2 images or more"):
        m.train()(x)
    m.norm_z.eval()
    m(x)


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_memory_grows_with_the_pixels_and_the_kernel():
    kept = {n: measure.saved_bytes(CoTAttention(16), torch.randn(2, 16, n, 16)) for n in (16, 64)}
    assert measure.fit_exponent(list(kept), list(kept.values())) == pytest.approx(1, abs=0.03), kept
    x = torch.randn(2, 16, 24, 24)
    kept = [measure.saved_bytes(CoTAttention(16, kernel_size=k), x) for k in (3, 5, 7)]
    assert (kept[2] - kept[1]) / (kept[1] - kept[0]) == pytest.approx((49 - 25) / (25 - 9), rel=0.02)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    (dict(channels=20), r"channels=20 must be divisible by share \* cardinality=8; 16 and 24 are"),
    (dict(channels=18), "channels=18 must be divisible by groups=4; 16 and 20 are"),
    (dict(channels=3, groups=1, share=1), r"channels=3 must be divisible by 2 \* cardinality=2; 2 and 4 are"),
    (dict(channels=16, kernel_size=2), "kernel_size=2 must be odd"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        CoTAttention(**options)
