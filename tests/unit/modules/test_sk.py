"""Selective kernel attention against its paper, its limits and timm, and against the errors in circulation."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.branch import SKAttention
from tests.unit.draw import D, permutation, randn, randomised
from tests.unit.reference import reference

# options of the module, and H, W
CASES = [
    (dict(channels=4, groups=2, min_dim=3), (5, 7)),
    (dict(channels=6, out_channels=9, groups=3, stride=2, min_dim=4), (6, 5)),
    (dict(channels=4, groups=1, dilations=(1, 2, 3), min_dim=2), (3, 4)),
    (dict(channels=2, groups=2, dilations=(3, 1), min_dim=1), (1, 6)),
    (dict(channels=8, groups=8, reduction=2, min_dim=1), (4, 4)),
]


def make(channels=6, *, groups=3, min_dim=4, seed=0, **options):
    return randomised(SKAttention(channels, groups=groups, min_dim=min_dim, **options), scale=0.7, seed=seed)


def run(sk, x):
    with torch.no_grad(), attn_lib.trace() as t:
        V = sk(x)
    return V, t


# ---- equation --------------------------------------------------------------------------------------------------------


def normalise(values, bn, channel):
    """Batch normalisation of one channel's list of numbers; over the list itself in training."""
    mean, variance = bn.running_mean[channel].item(), bn.running_var[channel].item()
    if bn.training:
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
    scale = bn.weight[channel].item() / math.sqrt(variance + bn.eps)
    return [scale * (v - mean) + bn.bias[channel].item() for v in values]


def from_the_paper(x, sk):
    """Equations 1, 2, 3, 5 and 6 in plain numbers; the dictionary of all that they name."""
    B, C, H, W = x.shape
    O, G, M, t = sk.out_channels, sk.groups, len(sk.dilations), sk.stride  # noqa: E741
    Ho, Wo = (H - 1) // t + 1, (W - 1) // t + 1
    places = list(product(range(B), range(Ho), range(Wo)))
    U_m = torch.zeros(B, M, O, Ho, Wo, dtype=D)
    for (m, dilation), o in product(enumerate(sk.dilations), range(O)):
        kernel, first = sk.branches[m][0].weight[o].tolist(), o // (O // G) * (C // G)
        values = []
        for b, i, j in places:
            total = 0.0
            for c, p, q in product(range(C // G), range(3), range(3)):
                h, w = i * t + (p - 1) * dilation, j * t + (q - 1) * dilation
                if 0 <= h < H and 0 <= w < W:
                    total += kernel[c][p][q] * x[b, first + c, h, w].item()
            values.append(total)
        for (b, i, j), v in zip(places, normalise(values, sk.branches[m][1], o), strict=True):
            U_m[b, m, o, i, j] = max(0.0, v)
    U, s = torch.zeros(B, O, Ho, Wo, dtype=D), torch.zeros(B, O, dtype=D)
    for b, o in product(range(B), range(O)):
        for i, j in product(range(Ho), range(Wo)):
            U[b, o, i, j] = sum(U_m[b, m, o, i, j].item() for m in range(M))                   # eq. 1
        s[b, o] = sum(U[b, o].flatten().tolist()) / (Ho * Wo)                                 # eq. 2
    Cr = max(math.floor(O / sk.reduction), sk.min_dim)                                         # eq. 4
    z = torch.zeros(B, Cr, dtype=D)
    for k in range(Cr):
        products = [sum(w * v for w, v in zip(sk.Wz.weight[k].tolist(), row, strict=True)) for row in s.tolist()]
        z[:, k] = torch.tensor([max(0.0, v) for v in normalise(products, sk.norm, k)], dtype=D)  # eq. 3
    a, V = torch.zeros(B, M, O, dtype=D), torch.zeros(B, O, Ho, Wo, dtype=D)
    for b, o in product(range(B), range(O)):
        e = [math.exp(sum(w * v for w, v in zip(sk.Wa.weight[m * O + o].tolist(), z[b].tolist(), strict=True)))
             for m in range(M)]
        for m in range(M):
            a[b, m, o] = e[m] / sum(e)                                                         # eq. 5
            V[b, o] += a[b, m, o] * U_m[b, m, o]                                               # eq. 6
    return dict(U_m=U_m, U=U, s=s, z=z, a=a, V=V)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("options", "size"), CASES)
def test_equals_the_paper(options, size, training):
    sk = make(**options).train(training)
    x = randn(3, sk.channels, *size)
    V, t = run(sk, x)
    expected = from_the_paper(x, sk)
    assert t.names() == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(t[name], value, rtol=0, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(V, t["V"])


class Wrong(SKAttention):
    """The errors in circulation, one at a time."""

    def __init__(self, mistake, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mistake = mistake

    def forward(self, x):
        mistake, M = self.mistake, len(self.dilations)
        drop = {"no BN in the branches": (1,), "no ReLU in the branches": (2,)}.get(mistake, ())
        maps = []
        for branch in self.branches:
            y = x
            for i, layer in enumerate(branch):
                if i == 0 and mistake == "dilation ignored":
                    y = F.conv2d(y, layer.weight, None, self.stride, 1, 1, self.groups)
                elif i not in drop:
                    y = layer(y)
            maps.append(y)
        U_m = torch.stack(maps, 1)
        U = {"mean for sum": U_m.mean(1), "first branch alone": U_m[:, 0]}.get(mistake, U_m.sum(1))
        s = U.amax((2, 3)) if mistake == "maximum for mean" else U.mean((2, 3))
        z = self.Wz(s) if mistake == "no BN of s" else self.norm(self.Wz(s))
        logits = self.Wa(z if mistake == "no ReLU after BN" else F.relu(z))
        if mistake == "branches and channels swapped":
            logits = logits.unflatten(1, (-1, M)).transpose(1, 2)
        else:
            logits = logits.unflatten(1, (M, -1))
        axis = 2 if mistake == "softmax over channels" else 0 if mistake == "softmax over the batch" else 1
        a = logits.sigmoid() if mistake == "sigmoid" else logits.softmax(axis)
        a = a.mean(2, keepdim=True).expand_as(a) if mistake == "one weight a branch" else a
        return torch.einsum("BMO,BMOHW->BOHW", a, U_m) + (U if mistake == "U added" else 0)


MISTAKES = [
    "no BN in the branches", "no ReLU in the branches", "dilation ignored", "mean for sum", "first branch alone",
    "maximum for mean", "no BN of s", "no ReLU after BN", "branches and channels swapped", "softmax over channels",
    "softmax over the batch", "sigmoid", "one weight a branch", "U added",
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    sk, x = make(), randn(2, 6, 4, 5)
    expected = from_the_paper(x, sk)["V"]
    wrong = Wrong(mistake, 6, groups=3, min_dim=4).to(D).eval()
    wrong.load_state_dict(sk.state_dict())
    assert (wrong(x) - expected).abs().max() > 1e-2
    wrong.mistake = None
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # and nothing else differs


def test_a_shape_test_does_not_see_the_wrong_axis():
    """A softmax over the channels has the same shape as one over the branches; only the sums tell them apart."""
    sk, x = make(), randn(2, 6, 4, 5)
    _, t = run(sk, x)
    torch.testing.assert_close(t["a"].sum(1), torch.ones(2, 6, dtype=D))
    assert (t["a"].sum(2) - 1).abs().min() > 0.1
    assert t.dims("a") == "B M O" and t.dims("U_m") == "B M O Ho Wo" and t.dims("V") == "B O Ho Wo"


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_one_branch_is_its_convolution(dilation, training):
    sk, x = make(dilations=(dilation,), stride=2).train(training), randn(3, 6, 8, 5)
    conv, bn, _ = sk.branches[0]
    y = F.conv2d(x, conv.weight, stride=2, padding=dilation, dilation=dilation, groups=3)
    stats = (None, None) if training else (bn.running_mean, bn.running_var)
    y = F.batch_norm(y, *stats, bn.weight, bn.bias, training=training)
    torch.testing.assert_close(sk(x), F.relu(y), rtol=0, atol=1e-12)


def test_equal_logits_are_the_mean_and_other_logits_are_not():
    sk, x = make(), randn(2, 6, 5, 7)
    branches = torch.stack([branch(x) for branch in sk.branches])
    assert (sk(x) - branches.mean(0)).abs().max() > 0.1
    with torch.no_grad():
        sk.Wa.weight.copy_(sk.Wa.weight[:6].repeat(2, 1))  # the same logits for both branches, not zero
    torch.testing.assert_close(sk(x), branches.mean(0), rtol=0, atol=1e-13)


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_a_huge_logit_picks_one_branch(chosen):
    sk, x = make(dilations=(1, 2, 3)), randn(2, 6, 5, 7)
    with torch.no_grad():
        sk.norm.bias.fill_(1000.0)  # so that z is positive, and far from zero
        sk.Wa.weight.zero_()
        sk.Wa.weight[6 * chosen : 6 * (chosen + 1)] = 1000.0
    assert torch.equal(sk(x), sk.branches[chosen](x))  # exactly: the softmax rounds to 1 and 0


def test_each_channel_chooses_for_itself():
    sk, x = make(), randn(2, 6, 5, 7)
    narrow = torch.tensor([True, False, True, True, False, False])
    with torch.no_grad():
        sk.norm.bias.fill_(1000.0)
        sk.Wa.weight.zero_()
        sk.Wa.weight[:6][narrow] = 1000.0
        sk.Wa.weight[6:][~narrow] = 1000.0
    one, two = (branch(x) for branch in sk.branches)
    assert torch.equal(sk(x), torch.where(narrow[:, None, None], one, two))


def test_two_branches_are_one_sigmoid():
    """The paper: with two branches the matrix B is redundant, since the two weights sum to one."""
    sk, x = make(), randn(2, 6, 5, 7)
    _, t = run(sk, x)
    A, B = sk.Wa.weight.split(6)
    torch.testing.assert_close(t["a"][:, 0], torch.sigmoid(t["z"] @ (A - B).T), rtol=0, atol=1e-13)


def test_equal_branches_leave_nothing_to_select():
    sk, x = make(dilations=(2, 2)), randn(2, 6, 5, 7)
    sk.branches[1].load_state_dict(sk.branches[0].state_dict())
    torch.testing.assert_close(sk(x), sk.branches[0](x), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("channels", "options", "Cr"), [
    (64, {}, 32),                       # C/16 = 4: the lower limit L holds
    (512, {}, 32), (1024, {}, 64),      # the authors' release has 32 units up to C = 512 and 64 at 1024
    (768, {}, 48), (96, dict(reduction=2), 48), (96, dict(min_dim=5), 6), (96, dict(min_dim=7), 7),
    (64, dict(out_channels=1024), 64),  # Cr follows the outputs
])
def test_width_of_z(channels, options, Cr):
    sk = SKAttention(channels, **options)
    assert sk.Wz.weight.shape == (Cr, sk.out_channels) and sk.norm.num_features == Cr
    assert sk.Wa.weight.shape == (2 * sk.out_channels, Cr)


def test_defaults_are_the_papers():
    sk = SKAttention(128)
    convolutions = [branch[0] for branch in sk.branches]
    assert [c.kernel_size for c in convolutions] == [(3, 3)] * 2
    assert [c.dilation for c in convolutions] == [(1, 1), (2, 2)] and [c.groups for c in convolutions] == [32, 32]
    assert [type(layer) for layer in sk.branches[0]] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert not any(layer.bias is not None for layer in (*convolutions, sk.Wz, sk.Wa))


@pytest.mark.parametrize(("channels", "options", "message"), [
    (30, {}, "channels=30 must be divisible by groups=32"),
    (64, dict(out_channels=80), "out_channels=80 must be divisible by groups=32"),
    (64, dict(dilations=()), r"dilations=\(\) must hold one integer a branch"),
    (64, dict(dilations=2), "dilations=2 must hold one integer a branch"),
    (64, dict(dilations=(1, 0)), "dilations=0 must be an integer of at least 1"),
    (64, dict(dilations=(1, 1.5)), "dilations=1.5 must be an integer"),
    (64, dict(stride=0), "stride=0 must be an integer of at least 1"),
    (64, dict(reduction=0), "reduction=0 must be an integer of at least 1"),
    (64, dict(min_dim=0), "min_dim=0 must be an integer of at least 1"),
    (64, dict(groups=0), "groups=0 must be an integer of at least 1"),
])
def test_arguments_out_of_range(channels, options, message):
    with pytest.raises(ValueError, match=message):
        SKAttention(channels, **options)


def test_a_batch_of_one_is_refused_in_training_alone():
    sk = make()
    x = randn(1, 6, 5, 7)
    sk.eval()(x)
    with pytest.raises(ValueError, match="x is a batch of 1; in training it must hold 2 images or more"):
        sk.train()(x)
    sk.norm.eval()  # a frozen BN of s, as in fine-tuning with small batches
    sk(x)


# ---- symmetry --------------------------------------------------------------------------------------------------------


def test_selection_depends_on_channel_means_alone():
    """Moving an object on an empty canvas changes no weight; enlarging it does."""
    sk = make()
    object_ = randn(1, 6, 6, 6)

    def place(t, top, left):
        return F.pad(t, (left, 30 - t.shape[3] - left, top, 30 - t.shape[2] - top))

    weights = [run(sk, place(object_, *corner))[1]["a"] for corner in ((6, 6), (10, 17))]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-13)
    enlarged = object_.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (run(sk, place(enlarged, 6, 6))[1]["a"] - weights[0]).abs().max() > 0.02


def test_selection_is_the_same_at_every_position():
    sk, x = make(), randn(2, 6, 9, 8)
    V, t = run(sk, x)
    one, two = t["U_m"].unbind(1)
    share = (V - two) / (one - two)  # a of the first branch, wherever the two maps differ
    told = (one - two).abs() > 0.3
    expected = t["a"][:, 0, :, None, None].expand_as(share)
    torch.testing.assert_close(share[told], expected[told], rtol=0, atol=1e-12)


def test_images_of_a_batch_see_each_other_in_training_alone():
    sk, x = make(), randn(4, 6, 5, 7)
    torch.testing.assert_close(sk(x)[1:3], sk(x[1:3]), rtol=0, atol=1e-13)
    sk.train()
    assert (sk(x)[1:3] - sk(x[1:3])).abs().max() > 1e-2


def test_channel_permutation_passes_through_with_the_weights():
    sk, x = make(groups=1), randn(2, 6, 5, 7)
    along = make(groups=1)
    order = permutation(6)
    assert (sk(x[:, order]) - sk(x)[:, order]).abs().max() > 1e-2
    with torch.no_grad():
        for mine, theirs in zip(along.branches, sk.branches, strict=True):
            mine[0].weight.copy_(theirs[0].weight[order][:, order])
            for name, t in theirs[1].state_dict().items():
                mine[1].state_dict()[name].copy_(t[order] if t.ndim else t)
        along.Wz.weight.copy_(sk.Wz.weight[:, order])
        along.Wa.weight.copy_(sk.Wa.weight.view(2, 6, -1)[:, order].flatten(0, 1))
    torch.testing.assert_close(along(x[:, order]), sk(x)[:, order], rtol=0, atol=1e-12)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_parameters_and_flops_are_two_convolutions_and_a_small_gate():
    C, G, d, H, W = 128, 32, 32, 14, 12
    sk, x = SKAttention(C), torch.randn(2, C, H, W)
    cost = measure.cost(sk.eval(), x)
    assert cost.params == 2 * (9 * C * C // G + 2 * C) + C * d + 2 * d + 2 * C * d
    convolutions, gate, selection = 2 * 2 * 9 * C * C // G * H * W, 2 * C * d + 2 * 2 * C * d, 2 * 2 * C * H * W
    assert cost.flops == 2 * (convolutions + gate + selection)


def test_memory_is_linear_in_the_positions_and_in_the_branches():
    sides = [(12, 16), (24, 16), (24, 32), (48, 32)]
    N = [h * w for h, w in sides]
    saved = {}
    for M in (1, 2, 3):
        sk = SKAttention(64, dilations=tuple(range(1, M + 1)))
        saved[M] = [measure.saved_bytes(sk, torch.randn(2, 64, *side)) for side in sides]
        assert measure.fit_exponent(N, saved[M]) == pytest.approx(1, abs=0.03)
    third = [a - b for a, b in zip(saved[3], saved[2], strict=True)]
    second = [a - b for a, b in zip(saved[2], saved[1], strict=True)]
    assert third[-1] == pytest.approx(second[-1], rel=0.01)
    # a branch keeps its convolution's result, its own result and the stacked copy, in float32
    assert second[-1] == pytest.approx(3 * 4 * 2 * 64 * N[-1], rel=0.05)


# ---- reference package -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("C", "options", "theirs"), [
    (64, {}, {}),
    (64, dict(stride=2), dict(stride=2)),
    (64, dict(out_channels=96), dict(out_channels=96)),
    (32, dict(dilations=(1, 2, 3)), dict(kernel_size=[3, 5, 7])),
    (128, {}, {}), (256, {}, {}), (512, {}, {}), (1024, {}, {}),  # the widths of SKNet-50
])
def test_equals_timm(C, options, theirs, training):
    timm = reference("timm.layers")
    sk = SKAttention(C, **options)
    theirs = timm.SelectiveKernel(C, groups=32, split_input=False, rd_divisor=32, **theirs)
    sk.to(D).train(training), theirs.to(D).train(training)
    with torch.no_grad():
        for p in sk.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=D) * 0.3)
    _copy(sk, theirs)
    x = randn(3, C, 5, 4)
    torch.testing.assert_close(sk(x), theirs(x), rtol=0, atol=1e-11)
    for mine, other in zip(_norms(sk), _norms(theirs), strict=True):
        torch.testing.assert_close(mine.running_mean, other.running_mean)
        torch.testing.assert_close(mine.running_var, other.running_var)


def test_timm_differs_in_its_defaults():
    timm = reference("timm.layers")
    theirs = timm.SelectiveKernel(64)
    assert theirs.split_input and theirs.paths[0].conv.in_channels == 32 and theirs.paths[0].conv.groups == 1
    assert theirs.attn.fc_reduce.out_channels == 8 and SKAttention(64).Wz.out_features == 32
    # With rd_divisor=32 it rounds to multiples of 32, where the paper has a maximum.
    theirs = timm.SelectiveKernel(768, groups=32, split_input=False, rd_divisor=32)
    assert theirs.attn.fc_reduce.out_channels == 64 and SKAttention(768).Wz.out_features == 48


def _norms(module):
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


def _copy(ours, theirs):
    """Our layers into theirs, which are 1 × 1 convolutions where ours are linear."""
    for branch, path in zip(ours.branches, theirs.paths, strict=True):
        path.conv.load_state_dict(branch[0].state_dict())
        path.bn.load_state_dict(branch[1].state_dict())
    theirs.attn.bn.load_state_dict(ours.norm.state_dict())
    with torch.no_grad():
        theirs.attn.fc_reduce.weight.copy_(ours.Wz.weight[:, :, None, None])
        theirs.attn.fc_select.weight.copy_(ours.Wa.weight[:, :, None, None])
