"""Context encoding against its paper, its release, its limits, and the errors in circulation.

No package that is kept well holds it.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.channel import EncodingAttention
from tests.unit.draw import D, permutation, randn, randomised

RELEASE = dict(residual=True, aggregate="mean")
CASES = [({}, 6, 4, 3, 5), ({}, 3, 1, 4, 2), (dict(classes=4), 4, 3, 1, 6), (RELEASE, 5, 3, 3, 3), ({}, 2, 5, 1, 1)]


def make(C=6, K=4, *, seed=0, **options):
    """With smoothing factors that are positive, as the paper has them; the codewords lie among the pixels."""
    encnet = randomised(EncodingAttention(C, codewords=K, **options), scale=0.6, seed=seed).requires_grad_(False)
    encnet.s.abs_()
    return encnet


def run(encnet, x):
    with attn_lib.trace() as t:
        encnet(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def normalised(values, norm, n):
    """BN of all values of one channel or codeword: lists of numbers; over them in training."""
    mean, variance = norm.running_mean[n].item(), norm.running_var[n].item()
    if norm.training:
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
    scale = norm.weight[n].item() / math.sqrt(variance + 1e-5)
    return [scale * (v - mean) + norm.bias[n].item() for v in values]


def linear(layer, values):
    return [b + sum(w * v for w, v in zip(row, values, strict=True))
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def from_the_paper(x, encnet):
    """In plain numbers, one pixel and one codeword at a time: y and the logits (or None)."""
    B, C, H, W = x.shape
    N, K, codewords, s = H * W, encnet.codewords, encnet.c.tolist(), encnet.s.tolist()
    flat = x.flatten(2).transpose(1, 2).tolist()
    reduced = [[sum(w * v for w, v in zip(row, pixel, strict=True)) for row in encnet.Wx.weight[:, :, 0, 0].tolist()]
               for image in flat for pixel in image]
    columns = [normalised([pixel[n] for pixel in reduced], encnet.norm_x, n) for n in range(C)]
    x_hat = [[max(0.0, column[p]) for column in columns] for p in range(B * N)]
    E = []
    for b in range(B):
        E.append([[0.0] * C for _ in range(K)])
        for pixel in x_hat[b * N:(b + 1) * N]:
            weights = [math.exp(-s[k] * sum((p - c) ** 2 for p, c in zip(pixel, codewords[k], strict=True)))
                       for k in range(K)]
            for k in range(K):
                for n in range(C):
                    E[b][k][n] += weights[k] / sum(weights) * (pixel[n] - codewords[k][n])
    rows = [normalised([E[b][k][n] for b in range(B) for n in range(C)], encnet.norm_e, k) for k in range(K)]
    y, logits = torch.empty_like(x), []
    for b in range(B):
        e = [sum(max(0.0, row[b * C + n]) for row in rows) / (K if encnet.aggregate == "mean" else 1) for n in range(C)]
        logits.append(linear(encnet.Wlogits, e) if encnet.Wlogits is not None else [])
        for n, logit in enumerate(linear(encnet.Wgamma, e)):
            gamma = 1 / (1 + math.exp(-logit))
            y[b, n] = (x[b, n] + gamma * x[b, n]).clamp(min=0) if encnet.residual else gamma * x[b, n]
    return y, torch.tensor(logits, dtype=D) if encnet.Wlogits is not None else None


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("options", "C", "K", "H", "W"), CASES)
def test_equals_the_paper(options, C, K, H, W, training):
    encnet, x = make(C, K, **options).train(training), randn(3, C, H, W)
    result, (y, logits) = encnet(x), from_the_paper(x, encnet)
    torch.testing.assert_close(result[0] if logits is not None else result, y, rtol=0, atol=1e-11)
    if logits is not None:
        torch.testing.assert_close(result[1], logits, rtol=0, atol=1e-11)


class Wrong(EncodingAttention):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, x):
        x_hat = x if self.mistake == "nothing before" else self.norm_x(self.Wx(x))
        x_hat = x_hat if self.mistake == "no ReLU before" else x_hat.relu()
        r = x_hat.flatten(2).transpose(1, 2)[:, :, None] - self.c  # B N K C
        squares = r.square().sum(3)
        logits = -self.s * {"distance": squares.sqrt(), "mean square": squares / 6}.get(self.mistake, squares)
        if self.mistake == "the release's sign":
            logits = -logits
        if self.mistake == "no smoothing factors":
            logits = -squares
        a = logits.softmax(1 if self.mistake == "softmax over the pixels" else 2)
        if self.mistake == "hard assignment":
            a = F.one_hot(logits.argmax(2), self.codewords).to(x.dtype)
        if self.mistake == "pixels for residuals":
            r = r + self.c
        E = (a[..., None] * r).mean(1) if self.mistake == "mean over the pixels" else (a[..., None] * r).sum(1)
        if self.mistake == "BN over the channels":
            phi = ((E - E.mean((0, 1))) / E.std((0, 1))).relu()
        else:
            phi = E if self.mistake == "no BN" else self.norm_e(E)
            phi = phi if self.mistake == "no ReLU" else phi.relu()
        e = {"mean over the codewords": phi.mean(1), "maximum over the codewords": phi.amax(1)}.get(
            self.mistake, phi.sum(1))
        gamma = self.Wgamma(e).sigmoid()[:, :, None, None]
        return {"residual": x + gamma * x, "the release's output": (x + gamma * x).relu()}.get(self.mistake, gamma * x)


@pytest.mark.parametrize("mistake", [
    "nothing before", "no ReLU before", "distance", "mean square", "the release's sign", "no smoothing factors",
    "softmax over the pixels", "hard assignment", "pixels for residuals", "mean over the pixels",
    "BN over the channels", "no BN", "no ReLU", "mean over the codewords", "maximum over the codewords", "residual",
    "the release's output",
])
def test_the_comparison_with_the_paper_notices(mistake):
    encnet, x = make(), randn(3, 6, 2, 3)
    wrong = Wrong(6, codewords=4).to(D).eval()
    wrong.load_state_dict(encnet.state_dict())
    expected, _ = from_the_paper(x, encnet)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-11)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    encnet, x = make(classes=5), randn(2, 6, 5, 7)
    t = run(encnet, x)
    assert t.names() == ["x_hat", "a", "E", "e", "gamma", "logits", "y"]
    assert [t.dims(n) for n in t.names()] == ["B C H W", "B N K", "B K C", "B C", "B C", "B O", "B C H W"]
    torch.testing.assert_close(t["a"].sum(2), torch.ones(2, 35, dtype=D))
    assert torch.equal(t["y"], x * t["gamma"][:, :, None, None])


def test_the_logits_do_not_touch_the_output():
    plain, both, x = make(), make(classes=5), randn(2, 6, 5, 7)
    both.load_state_dict(plain.state_dict(), strict=False)
    y, logits = both(x)
    assert torch.equal(y, plain(x)) and logits.shape == (2, 5)
    assert torch.equal(logits, both.Wlogits(run(both, x)["e"]))


# ---- codewords -------------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers():
    encnet = EncodingAttention(64)
    assert encnet.c.shape == (32, 64) and encnet.s.shape == (32,) and encnet.Wx.bias is None
    assert (encnet.s >= 0).all() and encnet.s.max() <= 1 and encnet.c.abs().max() <= (32 * 64) ** -0.5
    assert encnet.Wgamma.bias is not None and encnet.Wlogits is None
    with pytest.raises(ValueError, match="aggregate='max' must be one of 'sum', 'mean'"):
        EncodingAttention(8, aggregate="max")
    with pytest.raises(ValueError, match="classes=0 must be an integer of at least 1"):
        EncodingAttention(8, classes=0)


def test_a_large_smoothing_factor_gives_each_pixel_to_the_nearest_codeword():
    encnet, x = make(), randn(2, 6, 5, 7)
    encnet.s.fill_(1e6)
    t = run(encnet, x)
    nearest = torch.cdist(t["x_hat"].flatten(2).transpose(1, 2), encnet.c).argmin(2)
    torch.testing.assert_close(t["a"], F.one_hot(nearest, 4).to(D))


def test_a_smoothing_factor_of_zero_has_a_gradient():
    """All shares are 1/K there; the release divides what it has multiplied by the factor by it again."""
    encnet, x = make().requires_grad_(True), randn(2, 6, 5, 7).requires_grad_(True)
    with torch.no_grad():
        encnet.s.zero_()
    torch.testing.assert_close(run(encnet, x)["a"], torch.full((2, 35, 4), 0.25, dtype=D))
    encnet(x).square().sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, *encnet.parameters())) and encnet.s.grad.any()
    distance = torch.rand(2, 35, 4, dtype=D)
    assert (encnet.s * distance / encnet.s).isnan().all()


def test_the_codewords_have_the_gradient_of_the_formula():
    """Through the distances and through the residuals. The release's operator for the CPU turns the first's sign."""
    encnet, heap = make(C=3, K=4), randn(2, 7, 3)
    s, weights = encnet.s, randn(2, 4, 3)

    def gradient(encoders, sign=1.0):
        c = encnet.c.detach().clone().requires_grad_(True)
        (encoders(heap, c, sign) * weights).sum().backward()
        return c.grad

    def written_out(heap, c, sign):
        turned = sign * c + (1 - sign) * c.detach()  # of the same value; its gradient has the sign
        a = (-s * (heap[:, :, None] - turned).square().sum(3)).softmax(2)
        return (a[..., None] * (heap[:, :, None] - c)).sum(1)

    ours = gradient(lambda heap, c, _: encnet.encode(heap, c, s))
    torch.testing.assert_close(ours, gradient(written_out))
    assert (ours - gradient(written_out, -1.0)).abs().max() > 0.01


def test_one_codeword_collects_the_sum_of_the_differences():
    encnet, x = make(6, 1), randn(2, 6, 5, 7)
    t = run(encnet, x)
    torch.testing.assert_close(t["E"][:, 0], t["x_hat"].sum((2, 3)) - 35 * encnet.c[0])


def test_encoders_grow_with_the_map():
    """The same texture on four times the area: four times the sum, which a running mean does not know."""
    encnet, x = make(), randn(2, 6, 5, 7)
    small, large = run(encnet, x), run(encnet, x.repeat(1, 1, 2, 2))
    torch.testing.assert_close(large["E"], 4 * small["E"])
    assert (large["gamma"] - small["gamma"]).abs().max() > 0.05
    encnet.norm_e.train()  # with statistics of its own the size is divided out
    torch.testing.assert_close(run(encnet, x.repeat(1, 1, 2, 2))["gamma"], run(encnet, x)["gamma"], atol=1e-4, rtol=0)


def test_a_small_patch_still_counts():
    """Pixels of equal sum, once alike and once with a rare outlier; the means, all that SE sees, are the same."""
    encnet = make()
    encnet.s.fill_(3.0)
    x = torch.full((1, 6, 4, 4), 0.5, dtype=D)
    patch = x.clone()
    patch[..., 0, 0], patch[..., 1:, :] = 2.0, 0.375
    patch[..., 0, 1:] = 0.5
    torch.testing.assert_close(patch.mean((2, 3)), x.mean((2, 3)))
    assert (run(encnet, patch)["gamma"] - run(encnet, x)["gamma"]).abs().max() > 1e-3


def test_the_order_of_the_codewords_does_not_matter():
    encnet, other, x, order = make(), make(), randn(2, 6, 5, 7), permutation(4)
    for name in ("c", "s", "norm_e.weight", "norm_e.bias", "norm_e.running_mean", "norm_e.running_var"):
        other.state_dict()[name].copy_(encnet.state_dict()[name][order])
    torch.testing.assert_close(other(x), encnet(x), rtol=0, atol=1e-12)


def test_a_checkpoint_of_the_release_loads_by_names_and_one_sign():
    source, encnet = make(classes=3, **RELEASE), make(classes=3, seed=4, **RELEASE)
    names = {"encoding.0": "Wx", "encoding.1": "norm_x", "encoding.4": "norm_e", "fc.0": "Wgamma", "selayer": "Wlogits"}
    theirs = {f"{a}.{n.removeprefix(b + '.')}": t for a, b in names.items()
              for n, t in source.state_dict().items() if n.startswith(b + ".")}
    theirs |= {"encoding.3.codewords": source.c, "encoding.3.scale": -source.s}
    ours = {"c": theirs.pop("encoding.3.codewords"), "s": -theirs.pop("encoding.3.scale")}
    for name, t in theirs.items():
        layer, _, rest = name.rpartition(".")
        ours[f"{names[layer]}.{rest}"] = t
    encnet.load_state_dict(ours)
    x = randn(2, 6, 5, 7)
    for a, b in zip(encnet(x), source(x), strict=True):
        assert torch.equal(a, b)


def test_distances_far_from_zero_lose_nothing_that_matters():
    """‖x̂‖² − 2 x̂·c + ‖c‖² cancels where x̂ and c are large and near each other; float32 keeps enough of it."""
    encnet, far = make(), 30 + randn(2, 35, 6)
    encnet.c.add_(30)
    exact = encnet.encode(far, encnet.c, encnet.s)
    rounded = encnet.float().encode(far.float(), encnet.c, encnet.s)
    assert (rounded - exact).abs().max() < 1e-2 * exact.abs().max()


@pytest.mark.parametrize("classes", [None, 3])
def test_a_large_map_in_float16(classes):
    """Encoders beyond 65,504, as they are where BN has not learned the size: the gates are 0 and 1, and no NaN."""
    encnet, x = make(4, 2, classes=classes).float(), (300 * randn(1, 4, 224, 224)).half()
    encnet.norm_e.weight.abs_()
    expected = run(copy.deepcopy(encnet).half().double(), x.double())
    assert expected["E"].abs().max() > 65504 and expected["e"].abs().max() > 65504
    half = run(copy.deepcopy(encnet).half(), x)
    with torch.autocast("cpu", torch.float16):
        cast = run(encnet, x)
    for t in (half, cast):
        assert t["y"].dtype == torch.float16
        torch.testing.assert_close(t["gamma"].double(), expected["gamma"], rtol=0, atol=0.01)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_positions_and_in_channels_plus_codewords():
    """Maps of C channels and shares of K codewords; differences of all pixels from all codewords would be K·C."""
    C, sides = 16, [(16, 16), (16, 32), (32, 32), (32, 64)]
    N, grown = [h * w for h, w in sides], {}
    for K in (8, 16, 32):
        encnet = EncodingAttention(C, codewords=K)
        saved = [measure.saved_bytes(encnet, torch.randn(2, C, *side)) for side in sides]
        assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.05)
        grown[K] = saved[-1]
    maps, shares = 4 * 2 * C * N[-1], 4 * 2 * N[-1]
    assert grown[32] - grown[16] == pytest.approx(2 * (grown[16] - grown[8]), rel=0.02)
    assert (grown[32] - grown[16]) / (16 * shares) < 4  # three or so numbers a pixel and codeword
    assert grown[32] < 5 * maps + 4 * 32 * shares < 4 * 2 * N[-1] * 32 * C / 2
