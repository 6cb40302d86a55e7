"""Second-order channel attention against its paper, its release, its limits, and the errors in circulation.

No package that is kept well holds it.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.channel import SOCAAttention
from tests.unit.draw import D, permutation, randn, randomised

CASES = [(6, 2, 5, 5, 7), (4, 3, 2, 1, 3), (3, 1, 1, 4, 2), (1, 1, 5, 3, 3), (5, 2, 7, 1, 1)]  # C, r, N, H, W


def make(C=6, r=2, N=5, *, seed=7):  # hidden units open as well as shut
    return randomised(SOCAAttention(C, reduction=r, iterations=N), seed=seed).requires_grad_(False)


def run(soca, x):
    with attn_lib.trace() as t:
        soca(x)
    return t


def covariances(C, N, *, n=4):
    return torch.stack([torch.cov(t, correction=0).view(C, C) for t in randn(n, C, N)])


def exact_root(cov):
    values, vectors = torch.linalg.eigh(cov)
    return vectors @ torch.diag_embed(values.clamp(min=0).sqrt()) @ vectors.mT


def off(a, b):
    return ((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max().item()


# ---- equation --------------------------------------------------------------------------------------------------------


def product(A, B):
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*B, strict=True)] for row in A]


def newton_schulz(Sigma, N):
    n, trace = len(Sigma), sum(row[i] for i, row in enumerate(Sigma))
    if trace == 0:
        return Sigma
    Y = [[entry / trace for entry in row] for row in Sigma]
    Z = [[float(i == j) for j in range(n)] for i in range(n)]
    for _ in range(N):
        ZY = product(Z, Y)
        step = [[(3 * (i == j) - ZY[i][j]) / 2 for j in range(n)] for i in range(n)]
        Y, Z = product(Y, step), product(step, Z)
    return [[math.sqrt(trace) * entry for entry in row] for row in Y]


def from_the_paper(x, soca):
    """Covariance, root, mean of the rows and the two layers, in plain numbers."""
    W1, b1, W2, b2 = (p.tolist() for p in (soca.W1.weight, soca.W1.bias, soca.W2.weight, soca.W2.bias))
    out = []
    for image in x.tolist():
        flat = [[p for line in channel for p in line] for channel in image]
        means = [sum(channel) / len(channel) for channel in flat]
        Sigma = [[sum((p - m) * (q - n) for p, q in zip(a, b, strict=True)) / len(a)
                  for b, n in zip(flat, means, strict=True)] for a, m in zip(flat, means, strict=True)]
        z = [sum(row) / len(row) for row in newton_schulz(Sigma, soca.iterations)]
        hidden = [max(0.0, b + sum(w * v for w, v in zip(row, z, strict=True))) for row, b in zip(W1, b1, strict=True)]
        s = [1 / (1 + math.exp(-b - sum(w * h for w, h in zip(row, hidden, strict=True))))
             for row, b in zip(W2, b2, strict=True)]
        out.append([[[g * p for p in line] for line in channel] for g, channel in zip(s, image, strict=True)])
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize(("C", "r", "N", "H", "W"), CASES)
def test_equals_the_paper(C, r, N, H, W):
    soca, x = make(C, r, N), randn(3, C, H, W)
    torch.testing.assert_close(soca(x), from_the_paper(x, soca), rtol=0, atol=1e-12)


class Wrong(SOCAAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        t = x.flatten(2)
        centred = t if self.mistake == "not centred" else t - t.mean(
            1 if self.mistake == "centred over the channels" else 2, keepdim=True)
        cov = centred @ centred.mT / (t.shape[2] - (self.mistake == "HW − 1"))
        trace = cov.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        norm = cov.flatten(1).norm(dim=1)[:, None, None] if self.mistake == "Frobenius norm" else trace
        eye = torch.eye(self.channels, dtype=x.dtype)
        Y, Z = cov / norm, eye.expand_as(cov)
        for _ in range(self.iterations + {"one step less": -1, "one step more": 1}.get(self.mistake, 0)):
            step = (3 * eye - Z @ Y) / 2
            Y = Y @ step
            Z = Z if self.mistake == "Z never moves" else step @ Z
        root = Y * {"not given back": torch.ones_like(norm), "given back whole": norm}.get(self.mistake, norm.sqrt())
        root = {"no root": cov, "exact root": exact_root(cov), "inverse root": Z / norm.sqrt(),
                "root of every entry": cov.abs().sqrt()}.get(self.mistake, root)
        z = {"sum of the rows": root.sum(2), "maximum of the rows": root.amax(2),
             "diagonal": root.diagonal(dim1=1, dim2=2)}.get(self.mistake, root.mean(2))
        b1, b2 = (None, None) if self.mistake == "biases dropped" else (self.W1.bias, self.W2.bias)
        hidden = F.linear(z, self.W1.weight, b1)
        s = F.linear(hidden if self.mistake == "no ReLU" else hidden.relu(), self.W2.weight, b2).sigmoid()
        s = s[:, :, None, None]
        return x + s * x if self.mistake == "residual added" else s * x


@pytest.mark.parametrize("mistake", [
    "not centred", "centred over the channels", "HW − 1", "Frobenius norm", "one step less", "one step more",
    "Z never moves", "not given back", "given back whole", "no root", "exact root", "inverse root",
    "root of every entry", "sum of the rows", "maximum of the rows", "diagonal", "biases dropped", "no ReLU",
    "residual added",
])
def test_the_comparison_with_the_paper_notices(mistake):
    soca, x = make(N=3), randn(3, 6, 3, 4) * torch.tensor([8, 1, 4, 2, 0.5, 1], dtype=D)[:, None, None] + 3
    wrong = Wrong(6, reduction=2, iterations=3).to(D)
    wrong.load_state_dict(soca.state_dict())
    expected = from_the_paper(x, soca)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-11)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    soca, x = make(), randn(2, 6, 5, 7)
    t = run(soca, x)
    assert t.names() == ["cov", "root", "z", "s", "y"]
    assert [t.dims(n) for n in t.names()] == ["B C C", "B C C", "B C", "B C", "B C H W"]
    torch.testing.assert_close(t["cov"][1], torch.cov(x[1].flatten(1), correction=0))
    torch.testing.assert_close(t["z"], t["root"].mean(1))  # rows or columns: the root is symmetric
    assert torch.equal(t["y"], x * t["s"][:, :, None, None])


# ---- the root --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "N"), [(1, 5), (4, 64), (16, 64), (24, 4096)])
def test_many_iterations_are_the_root_of_the_eigenvalues(C, N):
    cov = covariances(C, N)
    root = make(C, 1, 30).root(cov)
    torch.testing.assert_close(root, exact_root(cov), rtol=0, atol=1e-12)
    torch.testing.assert_close(root @ root, cov, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("C", "least", "most"), [(4, 1e-6, 1e-3), (16, 0.02, 0.1), (64, 0.15, 0.3)])
def test_five_iterations_are_not_the_root(C, least, most):
    cov = covariances(C, 64)
    deviation = off(make(C, 1, 5).root(cov), exact_root(cov))
    assert least < deviation < most
    assert off(make(C, 1, 10).root(cov), exact_root(cov)) < deviation / 10


def test_small_eigenvalues_converge_last():
    values = torch.tensor([0.5, 0.1, 1e-2, 1e-3, 1e-4], dtype=D)
    cov = torch.diag(values / values.sum())[None]
    error = {N: 1 - make(5, 1, N).root(cov)[0].diagonal() / (values / values.sum()).sqrt() for N in (2, 5, 10, 15)}
    for relative in error.values():
        assert (relative.diff() > -1e-12).all()  # the smaller the eigenvalue, the further off
    assert error[5][0] < 1e-4 and error[5][-1] > 0.9 and error[15][-1] < 0.1
    grown = make(5, 1, 5).root(cov)[0, 4, 4] / cov[0, 4, 4]  # a far one grows by 3/2 a step
    assert grown.item() == pytest.approx(1.5**5, rel=0.01)


def test_a_single_iteration():
    """The release leaves the factor A out there: ½ (3I − A) for A · ½ (3I − A)."""
    cov = covariances(4, 64)
    trace = cov.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    A = cov / trace
    step = (3 * torch.eye(4, dtype=D) - A) / 2
    torch.testing.assert_close(make(4, 1, 1).root(cov), trace.sqrt() * A @ step)
    assert off(trace.sqrt() * step, trace.sqrt() * A @ step) > 1
    assert torch.autograd.gradcheck(make(4, 1, 1).root, cov.requires_grad_(True), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_root_in_every_type(dtype):
    """In half precision computed in float32; the release keeps its steps in the default type, whatever x is."""
    assert torch.get_default_dtype() == torch.float32
    soca, x = make().to(dtype), 300 * randn(2, 6, 5, 7).to(dtype)
    t = run(soca, x)
    assert t["root"].dtype == t["cov"].dtype == torch.promote_types(dtype, torch.float32) and t["y"].dtype == dtype
    expected = make().root(torch.stack([torch.cov(image.double().flatten(1), correction=0) for image in x]))
    tolerance = {torch.float64: 1e-12}.get(dtype, 1e-5)
    assert off(t["root"].double(), expected) < tolerance
    with torch.autocast("cpu", torch.bfloat16):
        assert off(run(make().float(), x.float())["root"].double(), expected) < 1e-5


def test_a_constant_map_gives_no_nan():
    soca = make().requires_grad_(True)
    x = torch.full((2, 6, 4, 4), 2.0, dtype=D)
    x[1] = randn(6, 4, 4)  # and beside one that is not
    cov = torch.stack([torch.cov(image.flatten(1), correction=0) for image in x])
    assert (cov[0] / cov[0].trace()).isnan().all()  # what the release divides by
    x.requires_grad_(True)
    y = soca(x)
    torch.testing.assert_close(y[0], x[0] * torch.sigmoid(soca.W2(F.relu(soca.W1.bias)))[:, None, None])
    torch.testing.assert_close(y, from_the_paper(x.detach(), soca), rtol=0, atol=1e-12)
    y.sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, *soca.parameters()))
    assert soca.float()(torch.rand(1, 6, 1, 1).expand(1, 6, 9, 7)).isfinite().all()  # constant up to rounding


def test_a_root_of_a_singular_matrix_stays_finite():
    """As many positions as channels or fewer: the gates of maps that are small, or dead in some channels."""
    soca, x = make(N=20), randn(2, 6, 1, 3)
    x[:, 2] = 0
    t = run(soca, x)
    assert off(t["root"], exact_root(t["cov"])) < 1e-6 and t["y"].isfinite().all()


def test_too_many_iterations_lose_a_singular_root():
    """Z looks for an inverse that is not there, and what rounding leaves in that direction grows along."""
    half = covariances(4, 64)
    cov = torch.cat([torch.cat([half, half], 2)] * 2, 1)  # each channel twice
    assert off(make(8, 1, 20).root(cov), exact_root(cov)) < 1e-6
    assert not off(make(8, 1, 100).root(cov), exact_root(cov)) < 1


# ---- size of the map -------------------------------------------------------------------------------------------------


def test_every_position_counts():
    """The cut of the release, at a limit of 4 rather than 1000; where it is written, slices with a negative start."""

    def cut(h, w, limit):
        rows, columns = range(h), range(w)
        if h < limit and w < limit:
            return rows, columns
        top, left = (h - limit) // 2, (w - limit) // 2
        if h < limit and w > limit:
            return rows, columns[left:left + limit]
        if w < limit and h > limit:
            return rows[top:top + limit], columns
        return rows[top:top + limit], columns[left:left + limit]

    assert [len(r) for r in cut(600, 1000, 1000)] == [200, 1000] and [len(r) for r in cut(999, 1000, 1000)] == [1, 1000]
    assert [len(r) for r in cut(1400, 1200, 1000)] == [1000, 1000]
    soca = make()
    for h, w in [(6, 7), (3, 6), (3, 4), (2, 4)]:
        x = randn(1, 6, h, w)
        rows, columns = cut(h, w, 4)
        part = x[:, :, list(rows)][:, :, :, list(columns)]
        assert (run(soca, x)["s"] - run(soca, part)["s"]).abs().max() > 1e-3
        sensitivity = torch.autograd.functional.jacobian(lambda t: run(soca, t)["s"].sum(), x)
        assert sensitivity.abs().sum(1).min() > 1e-6


def test_a_checkpoint_of_the_release_loads_by_names():
    source, soca = make(), make(seed=3)
    theirs = {n.replace("W1", "conv_du.0").replace("W2", "conv_du.2"): t[..., None, None] if t.ndim == 2 else t
              for n, t in source.state_dict().items()}
    soca.load_state_dict({n.replace("conv_du.0", "W1").replace("conv_du.2", "W2"): t.flatten(1) if t.ndim > 1 else t
                          for n, t in theirs.items()})
    x = randn(2, 6, 5, 7)
    assert torch.equal(soca(x), source(x))


def test_defaults_are_those_of_the_releases_class():
    soca = SOCAAttention(64)
    assert soca.iterations == 5 and soca.W1.weight.shape == (8, 64) and soca.W1.bias is not None
    with pytest.raises(ValueError, match="reduction=8 must be at most channels=4"):
        SOCAAttention(4)


def test_it_tells_correlated_channels_from_independent_ones():
    """Equal means and variances; what SE and SRM see is the same."""
    photo = randn(1, 1, 8, 8)
    other = photo.flatten(2)[:, :, permutation(64)].view_as(photo)
    same, different = photo.repeat(1, 6, 1, 1), torch.cat([photo, other] * 3, 1)
    torch.testing.assert_close(same.std((2, 3)), different.std((2, 3)))
    assert (run(make(), same)["s"] - run(make(), different)["s"]).abs().max() > 0.01


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_positions():
    """The centred map, and a few matrices of C × C for each iteration that know no resolution."""
    C, sides = 8, [(16, 16), (16, 32), (32, 32), (32, 64)]
    N = [h * w for h, w in sides]
    for iterations in (5, 10):
        soca = SOCAAttention(C, iterations=iterations)
        saved = [measure.saved_bytes(soca, torch.randn(2, C, *side)) for side in sides]
        assert [a - saved[0] for a in saved] == [4 * 2 * C * (n - N[0]) for n in N]
        assert saved[0] - 4 * 2 * C * N[0] < 4 * 2 * C * C * (4 * iterations + 6)
    soca = SOCAAttention(32)
    small, large = (measure.saved_bytes(SOCAAttention(C), torch.randn(2, C, 2, 2)) for C in (32, 64))
    assert large / small == pytest.approx(4, rel=0.1)  # C²
