"""Global second-order pooling against its paper, its release, its limits, and the errors in circulation.

No package that is kept well holds it.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.channel import GSoPAttention, GSoPSpatialAttention
from tests.unit.draw import D, permutation, randn, randomised

RELEASE = dict(pre_relu=True, stride=2, negative_slope=1.0)
CASES = [({}, 6, 4, 5, 7), ({}, 3, 5, 1, 4), ({}, 4, 1, 3, 2), (RELEASE, 6, 3, 5, 4), (dict(stride=3), 2, 3, 7, 5)]
SPATIAL = [({}, 4, 3, 2, 5, 7), (dict(pre_relu=True, negative_slope=0.0, centring="positions"), 4, 5, 2, 4, 6),
           ({}, 3, 6, 3, 1, 2)]


def make(C=6, Cr=4, *, seed=0, **options):
    return randomised(GSoPAttention(C, reduced=Cr, **options), scale=0.7, seed=seed).requires_grad_(False)


def make_spatial(C=4, Cr=3, P=2, *, seed=0, **options):
    gsop = randomised(GSoPSpatialAttention(C, reduced=Cr, grid=P, **options), scale=0.7, seed=seed)
    return gsop.requires_grad_(False)


def run(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def normalised(value, norm, n):
    return norm.weight[n].item() * (value - norm.running_mean[n].item()) / math.sqrt(
        norm.running_var[n].item() + 1e-5) + norm.bias[n].item()


def reduced_pixels(image, module, rectify):
    """W₁ x of one image, normalised: a list of channels, each a list of rows."""
    W1, b1 = module.W1.weight[:, :, 0, 0].tolist(), module.W1.bias.tolist()
    stride, out = module.W1.stride[0], []
    for n, (row, bias) in enumerate(zip(W1, b1, strict=True)):
        pixels = [[normalised(bias + sum(w * max(0.0, channel[i][j]) if module.pre_relu else w * channel[i][j]
                                         for w, channel in zip(row, image, strict=True)), module.norm, n)
                   for j in range(0, len(image[0][0]), stride)] for i in range(0, len(image[0]), stride)]
        out.append([[max(0.0, p) if rectify else p for p in line] for line in pixels])
    return out


def excited(Sigma, excite):
    """Rows normalised, four kernels a row, the leaky ReLU and the last layer; the gates as a list."""
    kernels, biases, q = excite.Wr.weight[:, 0].tolist(), excite.Wr.bias.tolist(), []
    for i, row in enumerate(Sigma):
        row = [normalised(entry, excite.norm, i) for entry in row]
        for n in range(4 * i, 4 * i + 4):
            value = biases[n] + sum(k * entry for k, entry in zip(kernels[n], row, strict=True))
            q.append(value if value > 0 else excite.negative_slope * value)
    return [1 / (1 + math.exp(-b - sum(w * value for w, value in zip(row, q, strict=True))))
            for row, b in zip(excite.W2.weight.tolist(), excite.W2.bias.tolist(), strict=True)]


def from_the_paper(x, gsop):
    """In plain numbers, one pair of channels at a time."""
    out = []
    for image in x.tolist():
        z = [[p for line in channel for p in line] for channel in reduced_pixels(image, gsop, rectify=True)]
        means = [sum(channel) / len(channel) for channel in z]
        Sigma = [[sum((p - m) * (q - n) for p, q in zip(a, b, strict=True)) / len(a)
                  for b, n in zip(z, means, strict=True)] for a, m in zip(z, means, strict=True)]
        s = excited(Sigma, gsop.excite)
        out.append([[[g * p for p in line] for line in channel] for g, channel in zip(s, image, strict=True)])
    return torch.tensor(out, dtype=D)


def overlap(n, size, regions):
    return range(n * size // regions, -(-(n + 1) * size // regions))


def spatial_from_the_paper(x, gsop):
    """In plain numbers, one pair of regions at a time; with the release's count where `centring` says so."""
    (H, W), P, out = x.shape[2:], gsop.grid, []
    for image in x.tolist():
        z = []  # a vector of Cr numbers for each region
        maps = reduced_pixels(image, gsop, rectify=False)
        for i in range(P):
            for j in range(P):
                places = [(a, b) for a in overlap(i, H, P) for b in overlap(j, W, P)]
                z.append([sum(channel[a][b] for a, b in places) / len(places) for channel in maps])
        count = gsop.reduced if gsop.centring == "channels" else P * P
        Sigma = [[sum(p * q for p, q in zip(a, b, strict=True)) / count - sum(a) * sum(b) / count**2 for b in z]
                 for a in z]
        gates = excited(Sigma, gsop.excite)
        m = [[[gates[P * a + b] for a in overlap(i, P, H) for b in overlap(j, P, W)] for j in range(W)]
             for i in range(H)]
        out.append([[[p * sum(m[i][j]) / len(m[i][j]) for j, p in enumerate(line)] for i, line in enumerate(channel)]
                    for channel in image])
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize(("options", "C", "Cr", "H", "W"), CASES)
def test_equals_the_paper(options, C, Cr, H, W):
    gsop, x = make(C, Cr, **options), randn(2, C, H, W)
    torch.testing.assert_close(gsop(x), from_the_paper(x, gsop), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("options", "C", "Cr", "P", "H", "W"), SPATIAL)
def test_the_spatial_form_equals_the_paper(options, C, Cr, P, H, W):
    gsop, x = make_spatial(C, Cr, P, **options), randn(2, C, H, W)
    torch.testing.assert_close(gsop(x), spatial_from_the_paper(x, gsop), rtol=0, atol=1e-12)


class Wrong(GSoPAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        z = self.W1(F.relu(x) if self.mistake == "x rectified" else x)
        z = z if self.mistake == "no BN behind the reduction" else self.norm(z)
        z = z if self.mistake == "no ReLU behind the reduction" else F.relu(z)
        z = z.flatten(2)
        centred = z if self.mistake == "not centred" else z - z.mean(
            {"centred over the channels": 1}.get(self.mistake, 2), keepdim=True)
        Sigma = centred @ centred.mT
        Sigma = Sigma / {"sum for mean": 1, "HW − 1": z.shape[2] - 1}.get(self.mistake, z.shape[2])
        if self.mistake == "correlation":
            sd = Sigma.diagonal(dim1=1, dim2=2).sqrt()
            Sigma = Sigma / sd[:, :, None] / sd[:, None, :]
        R = Sigma if self.mistake == "rows not normalised" else self.excite.norm(Sigma)
        R = Sigma.softmax(2) if self.mistake == "softmax of the rows" else R
        n, kernels = self.reduced, self.excite.Wr.weight[:, 0].view(self.reduced, 4, self.reduced)
        if self.mistake == "one kernel for all rows":
            kernels = kernels[:1].expand_as(kernels)
        q = torch.einsum("BiN,ihN->Bih", R, kernels)
        q = q.transpose(1, 2) if self.mistake == "outputs before rows" else q
        q = q.reshape(len(x), 4 * n) + self.excite.Wr.bias
        q = {"no activation": q, "ReLU": q.relu()}.get(self.mistake, F.leaky_relu(q, 0.1))
        s = self.excite.W2(q).sigmoid()[:, :, None, None]
        return x + x * s if self.mistake == "residual added" else x * s


@pytest.mark.parametrize("mistake", [
    "x rectified", "no BN behind the reduction", "no ReLU behind the reduction", "not centred",
    "centred over the channels", "sum for mean", "HW − 1", "correlation", "rows not normalised", "softmax of the rows",
    "one kernel for all rows", "outputs before rows", "no activation", "ReLU", "residual added",
])
def test_the_comparison_with_the_paper_notices(mistake):
    gsop, x = make(), 2 * randn(2, 6, 3, 4)
    wrong = Wrong(6, reduced=4).to(D).eval()
    wrong.load_state_dict(gsop.state_dict())
    expected = from_the_paper(x, gsop)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    gsop, x = make(), randn(2, 6, 5, 7)
    t = run(gsop, x)
    assert t.names() == ["z", "cov", "R", "q", "s", "y"]
    assert [t.dims(n) for n in t.names()] == ["B Cr Ho Wo", "B Cr Cr", "B Cr Cr", "B 4*Cr", "B C", "B C H W"]
    torch.testing.assert_close(t["cov"][0], torch.cov(t["z"][0].flatten(1), correction=0))
    assert torch.equal(t["y"], x * t["s"][:, :, None, None])


# ---- the release -----------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers():
    gsop = GSoPAttention(256)
    assert gsop.W1.weight.shape == (128, 256, 1, 1) and gsop.W1.stride == (1, 1)
    assert gsop.excite.Wr.weight.shape == (512, 1, 128) and gsop.excite.W2.weight.shape == (256, 512)
    assert gsop.excite.negative_slope == 0.1
    assert all(layer.bias is not None for layer in (gsop.W1, gsop.excite.Wr, gsop.excite.W2))


def test_without_an_activation_the_two_convolutions_are_one():
    gsop, x = make(negative_slope=1.0), randn(2, 6, 5, 7)
    t, kernels = run(gsop, x), gsop.excite.Wr.weight[:, 0]
    rows = torch.zeros(16, 4, 4, dtype=D)
    rows[torch.arange(16), torch.arange(16) // 4] = kernels
    together = torch.einsum("CN,Nij->Cij", gsop.excite.W2.weight, rows)
    logits = torch.einsum("Cij,Bij->BC", together, t["R"]) + gsop.excite.W2(gsop.excite.Wr.bias)
    torch.testing.assert_close(t["s"].logit(), logits, rtol=0, atol=1e-12)
    s = run(make(), x)["s"]
    assert (s.logit() - logits).abs().max() > 0.1  # with the leaky ReLU they are not


def test_the_options_of_the_release():
    gsop, x = make(**RELEASE), randn(2, 6, 5, 7)
    plain = make(negative_slope=1.0)
    assert torch.equal(run(gsop, x)["s"], run(plain, x.relu()[:, :, ::2, ::2])["s"])
    assert (run(gsop, x)["s"] - run(plain, x)["s"]).abs().max() > 1e-3


def test_a_checkpoint_of_the_release_loads_by_names():
    source, gsop = make(), make(seed=3)
    names = {"conv_for_DR": "W1", "bn_for_DR": "norm", "row_bn": "excite.norm", "row_conv_group": "excite.Wr",
             "fc_adapt_channels": "excite.W2"}
    theirs = {f"{a}.{n.removeprefix(b + '.')}": t for a, b in names.items()
              for n, t in source.state_dict().items() if n.startswith(b + ".")}
    theirs["row_conv_group.weight"] = theirs["row_conv_group.weight"][..., None]
    theirs["fc_adapt_channels.weight"] = theirs["fc_adapt_channels.weight"][..., None, None]
    ours = {}
    for name, t in theirs.items():
        layer, _, rest = name.rpartition(".")
        t = t.flatten(3).squeeze(3) if layer == "row_conv_group" and t.ndim == 4 else t
        ours[f"{names[layer]}.{rest}"] = t.flatten(1) if layer == "fc_adapt_channels" and t.ndim == 4 else t
    gsop.load_state_dict(ours)
    x = randn(2, 6, 5, 7)
    assert torch.equal(gsop(x), source(x))


def test_row_kernels_are_those_of_a_grouped_convolution():
    """As the release has it: a column of kernels (Cr, 1) over a matrix whose rows are channels."""
    gsop, R = make(), randn(2, 4, 4)
    expected = F.conv2d(R[..., None], gsop.excite.Wr.weight[..., None], gsop.excite.Wr.bias, groups=4)
    torch.testing.assert_close(gsop.excite.Wr(R), expected[..., 0], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("Cr", "P"), [(128, 8), (4, 2), (5, 3)])
def test_the_count_of_the_release_leaves_the_mean_in(Cr, P):
    """S = d/n · (covariance + (1 − d/n) m mᵀ), with d channels, n positions and the means m over the channels."""
    n, z = P * P, randn(2, P * P, Cr) + 3
    mean = z.mean(2)
    outer = mean[:, :, None] * mean[:, None, :]
    cov = torch.stack([torch.cov(t, correction=0) for t in z])
    expected = Cr / n * (cov + (1 - Cr / n) * outer)
    release = make_spatial(4, Cr, P, centring="positions").release(z)
    torch.testing.assert_close(release, expected, rtol=0, atol=1e-11)
    if Cr == 128:
        assert 1 - Cr / n == -1
        torch.testing.assert_close(release, 2 * (cov - outer), rtol=0, atol=1e-11)
    assert ((release - cov).abs().max() < 1e-11) == (Cr == n)


# ---- what it sees ----------------------------------------------------------------------------------------------------


def test_it_tells_the_same_photo_twice_from_two_photos():
    """Equal means and variances: SE and SRM see no difference; the covariance does."""
    photo = randn(1, 1, 8, 8).abs()
    other = photo.flatten(2)[:, :, permutation(64)].view_as(photo)  # the same numbers elsewhere
    same, different = photo.repeat(1, 6, 1, 1), torch.cat([photo, other] * 3, 1)
    gsop = make()
    assert (run(gsop, same)["s"] - run(gsop, different)["s"]).abs().max() > 1e-3
    for blind in (attn_lib.create("se", channels=6, reduction=2), attn_lib.create("srm", channels=6, zero_init=False)):
        g = [run(blind.double().eval(), x)["y"] / x for x in (same, different)]
        torch.testing.assert_close(g[0][:, :, 0, 0], g[1][:, :, 0, 0], rtol=0, atol=1e-12)


def test_brightness_that_all_positions_share_is_not_seen_behind_the_reduction():
    gsop = make()
    gsop.norm.bias.fill_(50.0)  # so far from zero that the ReLU lets all pass
    x = randn(2, 6, 5, 7)
    torch.testing.assert_close(run(gsop, x + 1)["s"], run(gsop, x)["s"], rtol=0, atol=1e-11)
    assert (run(make(), x + 1)["s"] - run(make(), x)["s"]).abs().max() > 1e-3  # cut by the ReLU it is


def test_the_spatial_form_gates_positions():
    gsop, x = make_spatial(), randn(2, 4, 5, 7)
    m = run(gsop, x)["m"]
    torch.testing.assert_close(gsop(x) / x, m.expand_as(x), rtol=1e-9, atol=0)
    assert m.shape == (2, 1, 5, 7) and m.flatten(1).std(1).min() > 1e-3
    corner = m[:, 0, :2, :3]  # positions that lie within one region have its gate
    torch.testing.assert_close(corner, corner[:, :1, :1].expand_as(corner), rtol=0, atol=1e-15)


# ---- the spatial class keeps the contract ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, dict(pre_relu=True, negative_slope=0.0, centring="positions")],
                         ids=["paper", "release"])
def test_the_spatial_class_keeps_the_contract(options):
    gsop = make_spatial(8, 6, 3, **options).float()
    for size in [(7, 9), (1, 1), (2, 13)]:
        assert gsop(randn(2, 8, *size).float()).isfinite().all()
    x = randn(2, 8, 5, 7).float()
    expected = gsop(x)
    torch.testing.assert_close(torch.compile(gsop, fullgraph=True, backend="aot_eager")(x), expected)
    exported = torch.export.export(gsop, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    for dtype in (torch.float16, torch.bfloat16):
        half = copy.deepcopy(gsop).to(dtype)(300 * x.to(dtype))
        assert half.dtype == dtype and half.isfinite().all()
        with torch.autocast("cpu", dtype):
            assert gsop(x.to(dtype)).dtype == dtype
    trained, leaf = gsop.double().train().requires_grad_(True), randn(2, 8, 5, 7).requires_grad_(True)
    trained(leaf).square().sum().backward()
    assert all(t.grad.isfinite().all() and t.grad.any() for t in (leaf, *trained.parameters()))
    with pytest.raises(ValueError, match="axis C must be 8"):
        gsop(randn(2, 7, 5, 7))
    with pytest.raises(ValueError, match=r"centring='channel' must be one of .*did you mean 'channels'"):
        GSoPSpatialAttention(8, centring="channel")


@pytest.mark.parametrize("options", [{}, dict(pre_relu=True, negative_slope=0.0, centring="positions")],
                         ids=["paper", "release"])
def test_the_spatial_class_takes_large_features_in_float16(options):
    """Half of the images as behind a ReLU: the covariances of their regions exceed float16."""
    gsop, x = make_spatial(16, 8, 4, **options).float(), 300 * randn(4, 16, 8, 8)
    x[::2].abs_().mul_(1.65)
    expected = run(copy.deepcopy(gsop).half().double(), x.half().double())
    assert expected["cov"].abs().max() > 65504
    half = run(copy.deepcopy(gsop).half(), x.half())
    with torch.autocast("cpu", torch.float16):
        cast = run(gsop, x.half())
    for t in (half, cast):
        assert t["y"].dtype == torch.float16
        torch.testing.assert_close(t["m"].double(), expected["m"], rtol=0, atol=0.05)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_positions():
    """And one matrix of Cr × Cr for each image, which knows no resolution; nothing of HW × HW."""
    gsop, sides = GSoPAttention(16, reduced=8), [(16, 16), (16, 32), (32, 32), (32, 64)]
    N = [h * w for h, w in sides]
    saved = [measure.saved_bytes(gsop, torch.randn(2, 16, *side)) for side in sides]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.05)
    assert saved[-1] < 4 * 2 * 8 * N[-1] * 4 + 4 * 2 * 8 * 8 * 20  # four maps of Cr channels
    assert saved[-1] < 4 * N[-1] ** 2 / 10


def test_the_spatial_form_keeps_a_matrix_of_its_grid():
    saved = {P: measure.saved_bytes(GSoPSpatialAttention(4, reduced=4, grid=P), torch.randn(2, 4, 32, 32))
             for P in (4, 8, 16)}
    assert (saved[16] - saved[8]) / (saved[8] - saved[4]) == pytest.approx(16, rel=0.15)  # P⁴
