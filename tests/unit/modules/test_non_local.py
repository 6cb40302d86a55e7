"""The non-local block against its paper, its limits, two packages and the errors in circulation."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.testing import assert_close

import attn_lib
from attn_lib import measure
from attn_lib.spatial import NonLocalAttention
from tests.unit.draw import D, permutation, randn, randomised
from tests.unit.reference import reference, wave

PAIRWISE = ["embedded_gaussian", "gaussian", "dot_product", "concatenation"]
SIZES = [(3, 4), (4, 3), (1, 5), (1, 1)]


def make(pairwise="embedded_gaussian", channels=6, *, seed=0, **options):
    block = NonLocalAttention(channels, pairwise=pairwise, **options)
    return randomised(block, scale=0.5, seed=seed).requires_grad_(False)


def trace(block, x):
    with attn_lib.trace() as t:
        block(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def dot(u, v):
    return sum(a * b for a, b in zip(u, v, strict=True))


def windows(vectors, H, W, s):
    """Largest entry, channel by channel, of each s × s window; vectors of a map in the order of its pixels."""
    return [[max(entries) for entries in zip(*(vectors[i * W + j] for i, j in product(rows, cols)), strict=True)]
            for rows, cols in product(([*range(H)][i:i + s] for i in range(0, H, s)),
                                      ([*range(W)][j:j + s] for j in range(0, W, s)))]


def from_the_paper(x, block):
    """Equations 1 to 6 in plain numbers, one pair of positions at a time, for one image (C, H, W): z and A."""
    (C, H, W), kind, s = x.shape, block.pairwise, block.subsample

    def embed(conv, vectors):
        if isinstance(conv, nn.Identity):
            return vectors
        bias = [0.0] * conv.out_channels if conv.bias is None else conv.bias.tolist()
        return [[dot(row, v) + b for row, b in zip(conv.weight[:, :, 0, 0].tolist(), bias, strict=True)]
                for v in vectors]

    X = [x[:, i, j].tolist() for i, j in product(range(H), range(W))]
    before = isinstance(block.pool_before, nn.MaxPool2d)
    X_hat = windows(X, H, W, s) if before else X
    after = 1 if before else s
    theta, phi, g = embed(block.Wtheta, X), embed(block.Wphi, X_hat), embed(block.Wg, X_hat)
    if not before:
        phi, g = windows(phi, H, W, after), windows(g, H, W, after)

    Z, A = [], []
    for x_i, theta_i in zip(X, theta, strict=True):
        if "gaussian" in kind:
            scale = len(theta_i) ** -0.5 if block.scale is None else block.scale
            f = [math.exp(scale * dot(theta_i, phi_j)) for phi_j in phi]
            normaliser = sum(f)
        elif kind == "dot_product":
            f, normaliser = [dot(theta_i, phi_j) for phi_j in phi], len(phi)
        else:
            f, normaliser = [max(0.0, dot(block.wf.tolist(), theta_i + phi_j)) for phi_j in phi], len(phi)
        A.append([f_ij / normaliser for f_ij in f])
        y_i = [dot(A[-1], [g_j[c] for g_j in g]) for c in range(len(g[0]))]
        Z.append([w + x_ic for w, x_ic in zip(embed(block.Wz, [y_i])[0], x_i, strict=True)])
    return torch.tensor(Z, dtype=D).T.view(C, H, W), torch.tensor(A, dtype=D)


OPTIONS = [{}, dict(subsample=2), dict(subsample=2, pool_first=True), dict(bias=True, reduction=4),
           dict(subsample=3, bias=True)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("pairwise", PAIRWISE)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_paper(pairwise, size, options):
    block, x = make(pairwise, **options), randn(2, 6, *size)
    z, A = zip(*(from_the_paper(image, block) for image in x), strict=True)
    assert_close(block(x), torch.stack(z), rtol=0, atol=1e-12)
    t = trace(block, x)
    assert_close(t["A"], torch.stack(A), rtol=0, atol=1e-12)
    assert_close(t["z"], torch.stack(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "gaussian"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_scale_multiplies_the_logits(pairwise, scale):
    block, x = make(pairwise, scale=scale), randn(1, 6, 3, 4)
    assert_close(block(x)[0], from_the_paper(x[0], block)[0], rtol=0, atol=1e-12)


class Wrong(NonLocalAttention):
    """The errors in circulation, one at a time, on a map whose keys may be sub-sampled."""

    mistake = None

    def forward(self, x):
        theta, phi, g = (self.Wtheta(x), self.pool_after(self.Wphi(x)), self.pool_after(self.Wg(x)))
        if self.mistake == "theta and phi exchanged":
            theta, phi = self.Wphi(x), self.pool_after(self.Wtheta(x))
        N, M, d = x[0, 0].numel(), g[0, 0].numel(), g.shape[1]
        theta, phi, g = (m.flatten(2).transpose(1, 2) for m in (theta, phi, g))
        if self.mistake == "keys reshaped, not transposed":
            phi = phi.transpose(1, 2).reshape(-1, M, d)
        if self.mistake == "values reshaped, not transposed":
            g = g.transpose(1, 2).reshape(-1, M, d)
        f = theta @ phi.transpose(1, 2)
        f = f * d**-0.5 if self.mistake == "scaled by 1/sqrt(d)" else f
        if self.pairwise == "dot_product":
            A = {"softmaxed": f.softmax(-1), "divided by sqrt(d)": f * d**-0.5, "not divided": f,
                 "divided by N, not by the number of keys": f / N, "absolute values": f.abs() / M,
                 "divided by its sum": f / f.sum(-1, keepdim=True)}.get(self.mistake, f / M)
        else:
            A = {"softmax over the queries": f.softmax(1), "softmax over all pairs": f.flatten(1).softmax(1).view_as(f),
                 "no softmax": f / M}.get(self.mistake, f.softmax(-1))
        y = (A @ g).transpose(1, 2)
        if self.mistake == "positions and channels mixed up":
            y = y.transpose(1, 2)
        y = self.Wz(y.reshape(-1, d, *x.shape[2:]))
        return y if self.mistake == "no residual" else y + x


SOFTMAX_MISTAKES = ["theta and phi exchanged", "keys reshaped, not transposed", "values reshaped, not transposed",
                  "scaled by 1/sqrt(d)", "softmax over the queries", "softmax over all pairs", "no softmax",
                  "positions and channels mixed up", "no residual"]
DOT_MISTAKES = ["softmaxed", "divided by sqrt(d)", "not divided", "divided by N, not by the number of keys",
              "absolute values", "divided by its sum", "theta and phi exchanged"]


@pytest.mark.parametrize(("pairwise", "mistake"), [("embedded_gaussian", e) for e in SOFTMAX_MISTAKES]
                         + [("dot_product", e) for e in DOT_MISTAKES])
def test_the_comparison_with_the_paper_notices(pairwise, mistake):
    block, x = make(pairwise, subsample=2), randn(1, 6, 4, 6)
    wrong = Wrong(6, pairwise=pairwise, subsample=2).to(D)
    wrong.load_state_dict(block.state_dict())
    expected = from_the_paper(x[0], block)[0]
    assert_close(wrong(x)[0], expected, rtol=0, atol=1e-12)  # nothing else differs
    wrong.mistake = mistake
    assert (wrong(x)[0] - expected).abs().max() > 1e-2


def test_pooling_before_and_after_are_two_operators():
    """A largest entry does not pass through a matrix. They agree where the matrix is the identity: the Gaussian."""
    x, options = randn(1, 6, 4, 6), dict(subsample=2)
    before, after = make(pool_first=True, **options), make(**options)
    assert (before(x) - after(x)).abs().max() > 1e-2
    t, u = (trace(make("gaussian", pool_first=first, **options), x) for first in (True, False))
    assert_close(t["A"], u["A"])
    assert (t["g"] - u["g"]).abs().max() > 1e-2


@pytest.mark.parametrize("pool_first", [False, True])
def test_pooling_keeps_the_last_row_and_column_of_an_odd_map(pool_first):
    """Windows that end at the last whole one, as in the release, are deaf to what lies behind it."""
    block, x = make(subsample=2, pool_first=pool_first), randn(1, 6, 5, 7)
    pool = block.pool_before if pool_first else block.pool_after
    for edge in ((..., -1, slice(None)), (..., -1)):
        changed = x.clone()
        changed[edge] += 1
        for ceil, keys in ((True, (3, 4)), (False, (2, 3))):
            pool.ceil_mode = ceil
            t, u = trace(block, x), trace(block, changed)
            assert t["phi"].shape[2:] == keys
            assert ((t["y"] - u["y"])[..., :4, :6].abs().max() > 1e-3) == ceil


def test_normalisation_of_the_paper_stands_behind_W_z():
    block, x = make(norm=True), randn(2, 6, 3, 4)
    t = trace(block, x)
    assert_close(t["z"], block.norm(block.Wz(t["y"])) + x)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in block.modules()) == 1


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_a_fresh_block_is_the_identity_bit_for_bit(pairwise, norm):
    block, x = NonLocalAttention(8, pairwise=pairwise, norm=norm, bias=True), randn(2, 8, 5, 7).float()
    for mode in (True, False):
        assert torch.equal(block.train(mode)(x), x)
    other = NonLocalAttention(8, pairwise=pairwise, norm=norm, zero_init=False)
    assert (other(x) - x).abs().max() > 1e-3


@pytest.mark.parametrize("norm", [False, True])
def test_at_the_start_only_the_way_out_learns(norm):
    block, x = NonLocalAttention(8, norm=norm), randn(2, 8, 5, 7).float()
    block(x).square().sum().backward()
    moved = {name for name, p in block.named_parameters() if p.grad.abs().sum() > 0}
    assert moved == ({"norm.weight", "norm.bias"} if norm else {"Wz.weight"})


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "gaussian"])
def test_one_position_is_two_linear_maps_and_a_residual(pairwise):
    block, x = make(pairwise), randn(2, 6, 1, 1)
    assert_close(block(x), x + block.Wz(block.Wg(x)))


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_one_window_over_the_whole_image_gives_every_position_the_same_key(pairwise):
    block, x = make(pairwise, subsample=5), randn(2, 6, 4, 5)
    t = trace(block, x)
    assert t["A"].shape == (2, 20, 1)
    assert_close(t["g"][..., 0, 0], block.Wg(x).amax((2, 3)))
    if "gaussian" in pairwise:
        assert_close(block(x) - x, block.Wz(t["g"]).expand_as(x))


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "gaussian"])
def test_weights_of_the_gaussian_forms_are_a_distribution(pairwise):
    A = trace(make(pairwise, subsample=2), randn(2, 6, 5, 4))["A"]
    assert A.shape == (2, 20, 6) and (A > 0).all()
    assert_close(A.sum(-1), torch.ones(2, 20, dtype=D))


def test_weights_of_the_dot_product_are_signed_and_of_low_rank():
    A = trace(make("dot_product", channels=8), randn(1, 8, 6, 5))["A"][0]
    assert A.min() < -0.01 and A.max() > 0.01 and A.sum(-1).std() > 0.01
    assert torch.linalg.matrix_rank(A) == 4  # d, whatever the size of the image


def test_weights_of_the_concatenation_are_one_number_of_each_position():
    """ReLU(a_i + b_j): a query is a threshold. It cannot say which key it wants, only how large a key must be."""
    block, x = make("concatenation"), randn(1, 6, 5, 4)
    A = trace(block, x)["A"][0]
    a = torch.einsum("d,dN->N", block.wf[:3], block.Wtheta(x)[0].flatten(1))
    b = torch.einsum("d,dN->N", block.wf[3:], block.Wphi(x)[0].flatten(1))
    assert_close(A, F.relu(a[:, None] + b) / 20)
    order = b.argsort()
    assert (A[:, order].diff(dim=-1) >= -1e-12).all()  # all queries rank the keys alike


@pytest.mark.parametrize("size", [(2, 2), (12, 12)], ids=["the matrix is cheaper", "the regrouping is cheaper"])
@pytest.mark.parametrize("subsample", [1, 2])
def test_dot_product_takes_the_cheaper_order(size, subsample):
    C, d = 16, 8
    block, x = make("dot_product", channels=C, subsample=subsample), randn(1, C, *size)
    N, M = size[0] * size[1], size[0] * size[1] // subsample**2
    convolutions = 2 * N * 4 * C * d
    assert measure.flops(block, x) - convolutions == min(2 * N * M * d * 2, 2 * (N + M) * d * d)
    assert_close(block(x), trace(block, x)["z"], rtol=0, atol=1e-12)


def test_dot_product_does_not_overflow_in_half_precision():
    block = NonLocalAttention(2, pairwise="dot_product", reduction=1, zero_init=False).half()
    for p in block.parameters():
        p.data.copy_(torch.eye(2)[:, :, None, None])
    z = block(torch.full((1, 2, 64, 64), 8.0).half())  # Σ φ g = 4096 · 64 is beyond float16, its mean is not
    assert_close(z, torch.full_like(z, 2 * 64 * 8 + 8.0))


def test_frames_of_a_video_may_be_stacked():
    """Nothing knows where a position is: the block over space-time is the block over the frames as one tall map."""
    block, video = make(), randn(2, 6, 3, 4, 5)
    q, k, v = (F.conv3d(video, conv.weight[..., None]).flatten(2) for conv in (block.Wtheta, block.Wphi, block.Wg))
    y = torch.einsum("Bij,Bdj->Bdi", torch.einsum("Bdi,Bdj->Bij", q, k).softmax(-1), v).view(2, 3, 3, 4, 5)
    expected = F.conv3d(y, block.Wz.weight[..., None]) + video
    assert_close(rearrange(block(rearrange(video, "B C T H W -> B C (T H) W")), "B C (T H) W -> B C T H W", T=3),
                 expected)


@pytest.mark.parametrize(("channels", "options", "message"), [
    (0, {}, "channels=0 must be an integer of at least 1"),
    (8.0, {}, "channels=8.0"),
    (8, dict(pairwise="softmax"), "pairwise='softmax' must be one of 'embedded_gaussian'"),
    (8, dict(reduction=0), "reduction=0"),
    (8, dict(reduction=9), "reduction=9 must be at most channels=8"),
    (8, dict(subsample=0), "subsample=0"),
    (8, dict(subsample=True), "subsample=True"),
    (8, dict(pairwise="dot_product", scale=None), "scale=None must stay 1.0 with pairwise='dot_product'"),
])
def test_arguments_out_of_range(channels, options, message):
    with pytest.raises(ValueError, match=message):
        NonLocalAttention(channels, **options)


# ---- symmetry --------------------------------------------------------------------------------------------------------


def shuffle(x, order):
    return x.flatten(2)[..., order].view_as(x)


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_positions_may_change_places(pairwise):
    block, x = make(pairwise), randn(2, 6, 5, 4)
    order = permutation(20)
    assert_close(block(shuffle(x, order)), shuffle(block(x), order), rtol=0, atol=1e-12)
    wider = rearrange(x, "B C H W -> B C W H").reshape(2, 6, 2, 10)  # another shape, in another order
    assert_close(block(wider), rearrange(block(x), "B C H W -> B C W H").reshape(2, 6, 2, 10), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_with_sub_sampling_only_whole_windows_may(pairwise):
    block, x = make(pairwise, subsample=2), randn(2, 6, 4, 6)
    order = permutation(24)
    assert (block(shuffle(x, order)) - shuffle(block(x), order)).abs().max() > 1e-3
    rolled = block(x.roll(2, 3))
    assert_close(rolled, block(x).roll(2, 3), rtol=0, atol=1e-12)
    assert (block(x.roll(1, 3)) - block(x).roll(1, 3)).abs().max() > 1e-3


def test_every_output_depends_on_every_input():
    block, x = make(), randn(1, 6, 3, 4)
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x)[0].flatten(1), x)  # 6 12 1 6 3 4
    assert (jacobian.flatten(4).abs().amax((0, 2, 3)) > 1e-8).all()


# ---- memory ----------------------------------------------------------------------------------------------------------


def kept(block, sides=(16, 32, 64), traced=False):
    def run(x):
        if not traced:
            return block(x)
        with attn_lib.trace():
            return block(x)

    return [measure.saved_bytes(run, torch.randn(1, 16, n, n)) for n in sides]


@pytest.mark.parametrize("subsample", [1, 2])
@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "gaussian", "dot_product"])
def test_memory_is_linear_in_the_number_of_positions(pairwise, subsample):
    block = NonLocalAttention(16, pairwise=pairwise, subsample=subsample, zero_init=False)
    N = [16**2, 32**2, 64**2]
    assert measure.fit_exponent(N, kept(block)) == pytest.approx(1, abs=0.03)
    assert kept(block)[-1] < 4 * 16 * 8 * N[-1]  # a few maps, no matrix: that would be 4 · N² = 64 MB
    assert measure.fit_exponent(N, kept(block, traced=True)) > 1.7  # the trace makes it


def test_memory_of_the_concatenation_is_quadratic():
    block = NonLocalAttention(16, pairwise="concatenation", zero_init=False)
    assert measure.fit_exponent([16**2, 32**2, 64**2], kept(block)) == pytest.approx(2, abs=0.05)


# ---- reference packages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "rd"), [(16, 2), (32, 4), (64, 32)])
def test_equals_timm(C, rd):
    """timm's block has biases and a batch norm, and divides the logits by √C, where the release divides by √d."""
    theirs = reference("timm.layers.non_local_attn").NonLocalAttn(C, rd_channels=rd).to(D).eval()
    ours = make(channels=C, reduction=C // rd, scale=C**-0.5, bias=True, norm=True)
    pairs = [(ours.Wtheta, theirs.t), (ours.Wphi, theirs.p), (ours.Wg, theirs.g), (ours.Wz, theirs.z),
             (ours.norm, theirs.norm)]
    for mine, other in pairs:
        other.load_state_dict(mine.state_dict())
    x = randn(2, C, 6, 5)
    assert_close(ours(x), theirs(x), rtol=0, atol=1e-11)
    ours.scale = None
    assert (ours(x) - theirs(x)).abs().max() > 1e-3


# NonLocal2d(4, reduction=2) of mmcv-lite 2.2.0, which cannot be imported without OpenCV: its outputs stand in for it.
MMCV = {
    "gaussian": [
        2.6813372712, 3.1677863597, 3.2111864882, 2.8211343061, 2.1160824354, 1.4925700622, -1.1791365296, -0.810833236,
        -0.3903316466, -0.4581801259, -1.2065643959, -1.9211376433, -1.7202754666, -2.5734472565, -2.9547933226,
        -2.266857274, -0.4752334298, 1.0387855724, 3.5373048002, 4.0603189628, 3.9706446805, 3.106655855, 1.630848785,
        0.5791371061,
    ],
    "embedded_gaussian": [
        3.0449542861, 3.3449756085, 3.2460422338, 2.7891176756, 2.1659718356, 1.6709170265, -2.5726988218,
        -1.8185181232, -0.9748309591, -0.3914874737, -0.2718506199, -0.6684069055, -0.2621062763, -1.4333029086,
        -2.2255405743, -2.3220270968, -1.747062224, -0.7772403029, 3.0246211137, 3.5775076902, 3.601801179,
        3.1120860083, 2.3587805653, 1.7004738257,
    ],
    "dot_product": [
        2.0234788865, 2.8282264491, 3.9770219002, 4.9295687887, 5.2378694289, 4.7569252125, -2.5146075341,
        -1.6875278821, -1.0028246181, -0.7825243859, -1.130237827, -1.8824298768, 0.683427124, -1.0877956201,
        -2.9199244873, -3.9512806435, -3.6968011731, -2.2761717473, 1.7304460751, 2.994840179, 4.5375540685,
        5.6330252956, 5.7660366252, 4.8740307505,
    ],
    "concatenation": [
        2.2374437064, 3.8245506194, 4.824093917, 4.695993143, 3.500496093, 1.7998637098, -2.09300643, -2.0959980807,
        -1.7088901558, -1.161801785, -0.7120371775, -0.5711276561, -0.0816914405, -1.5501319112, -2.8439660349,
        -3.2218804929, -2.5061362106, -1.0333589078, 2.3090747087, 4.0077167123, 5.1443200904, 5.0587671838,
        3.7912948612, 1.9380151608,
    ],
}


@pytest.mark.parametrize("pairwise", MMCV)
def test_equals_mmcvs_recorded_outputs(pairwise):
    scale = None if pairwise == "embedded_gaussian" else 1.0
    block = NonLocalAttention(4, pairwise=pairwise, scale=scale, bias=True).to(D).eval().requires_grad_(False)
    for k, conv in enumerate((block.Wtheta, block.Wphi, block.Wg, block.Wz)):
        for j, p in enumerate(conv.parameters()):
            p.copy_(wave(*p.shape, f=1.1 + 0.3 * k + 0.1 * j))
    if pairwise == "concatenation":
        block.wf.copy_(wave(4, f=2.3))
    z = block(wave(1, 4, 2, 3, f=0.7))
    assert_close(z.flatten(), torch.tensor(MMCV[pairwise], dtype=D), rtol=0, atol=1e-9)


def test_equals_torchs_attention_with_one_head():
    C, d = 6, 6
    block, x = make(reduction=1, scale=None, bias=True), randn(2, C, 4, 5)
    theirs = nn.MultiheadAttention(d, 1, batch_first=True, dtype=D)
    weights, biases = zip(*((c.weight[:, :, 0, 0], c.bias) for c in (block.Wtheta, block.Wphi, block.Wg)),
                          strict=True)
    theirs.load_state_dict({"in_proj_weight": torch.cat(weights), "in_proj_bias": torch.cat(biases),
                            "out_proj.weight": block.Wz.weight[:, :, 0, 0], "out_proj.bias": block.Wz.bias})
    tokens = rearrange(x, "B C H W -> B (H W) C")
    y, A = theirs(tokens, tokens, tokens)
    assert_close(block(x), x + rearrange(y, "B (H W) C -> B C H W", H=4), rtol=0, atol=1e-12)
    assert_close(trace(block, x)["A"], A, rtol=0, atol=1e-12)


def test_parameters_of_the_papers_block():
    """Figure 2: 1024 channels, bottleneck 512: four matrices of 1024 × 512."""
    assert sum(p.numel() for p in NonLocalAttention(1024).parameters()) == 4 * 1024 * 512
    assert sum(p.numel() for p in NonLocalAttention(1024, pairwise="gaussian").parameters()) == 2 * 1024 * 512


@pytest.mark.parametrize("pairwise", ["dot_product", "concatenation"])
def test_a_wide_product_is_still_a_call_of_the_way_out(pairwise):
    """In half precision, where y is computed in float32: what hangs on W_z, a hook or an insertion, runs."""
    block, calls = NonLocalAttention(6, pairwise=pairwise).half(), []
    block.Wz.register_forward_hook(lambda *_: calls.append(1))
    block(randn(2, 6, 3, 4).half())
    assert calls == [1]
