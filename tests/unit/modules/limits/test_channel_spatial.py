"""Limits of the gates of channels and positions."""

import torch
import torch.nn.functional as F

from tests.unit.draw import randn
from tests.unit.modules.limits.proof import drawn, every_limit_is_proven, limit, softmax_attention, tokens


@limit("bam", "identity")
def test_bam_with_both_branches_shut_is_the_identity():
    bam, x = drawn("bam", channels=6, reduction=2), randn(2, 6, 5, 7)
    bam.channel.norm.bias.fill_(-1e4)
    bam.spatial.norm.bias.fill_(-1e4)
    assert torch.equal(bam(x), x)


@limit("bam", "constant gate")
def test_bam_of_the_release_with_both_branches_shut_doubles():
    bam, x = drawn("bam", channels=6, reduction=2, combine="product", norm="inside"), randn(2, 6, 5, 7)
    bam.channel.W1.bias.fill_(-1e4)  # minus times minus
    bam.spatial.f3.bias.fill_(-1e4)
    assert torch.equal(bam(x), 2 * x)


@limit("cbam", "se")
def test_cbam_without_the_maximum_and_the_spatial_gate_is_squeeze_and_excitation():
    cbam = drawn("cbam", channels=6, reduction=2, max_branch=False, spatial=False)
    se, x = drawn("se", channels=6, reduction=2), randn(2, 6, 5, 7)
    cbam.channel.W0, cbam.channel.W1 = se.W1, se.W2
    assert torch.equal(cbam(x), se(x))


@limit("cbam", "identity")
def test_cbam_with_large_biases_of_both_gates_is_the_identity():
    cbam, x = drawn("cbam", channels=6, reduction=2), randn(2, 6, 5, 7)
    cbam.channel.W1.bias.fill_(1000.0)
    cbam.spatial.f.bias.fill_(1000.0)
    assert torch.equal(cbam(x), x)


@limit("coord", "row gate")
def test_coordinate_attention_with_open_columns_is_a_gate_for_every_row():
    coord, x = drawn("coord", channels=6), randn(2, 6, 5, 7)
    coord.Fw.bias.fill_(1000.0)
    s = torch.sigmoid(coord.Fh(F.hardswish(coord.norm(coord.F1(x.mean(3))))))  # B C H
    torch.testing.assert_close(coord(x), x * s[..., None])


@limit("coord", "identity")
def test_coordinate_attention_with_open_rows_and_columns_is_the_identity():
    coord, x = drawn("coord", channels=6), randn(2, 6, 5, 7)
    coord.Fh.bias.fill_(1000.0)
    coord.Fw.bias.fill_(1000.0)
    assert torch.equal(coord(x), x)


@limit("coord", "se")
def test_coordinate_attention_of_one_row_is_squeeze_and_excitation():
    coord, se = drawn("coord", channels=6, reduction=2, min_hidden=1), drawn("se", channels=6, reduction=2)
    x, k = randn(2, 6, 1, 9), 1e9  # the mean of the only row is the mean of the map
    coord.Fw.bias.fill_(torch.inf)
    coord.F1.weight.copy_(se.W1.weight[..., None])
    norm = coord.norm                                     # in evaluation mode: a factor and a shift
    norm.weight.copy_(k * (norm.running_var + norm.eps).sqrt())
    norm.bias.copy_(k * (se.W1.bias + norm.running_mean))  # f = h-swish(k v) is k ReLU(v), but for |v| < 3 / k
    coord.Fh.weight.copy_(se.W2.weight[..., None] / k)
    coord.Fh.bias.copy_(se.W2.bias)
    torch.testing.assert_close(coord(x), se(x))


@limit("danet", "constant gate")
def test_dual_attention_starts_as_twice_the_input():
    danet, x = drawn("danet", channels=8), randn(2, 8, 5, 7)
    danet.position.alpha.fill_(0.0)
    danet.channel.beta.fill_(0.0)
    assert torch.equal(danet(x), 2 * x)


@limit("danet", "self-attention")
def test_dual_attention_without_channels_is_self_attention_beside_the_input():
    danet, x = drawn("danet", channels=8, reduction=2), randn(2, 8, 5, 7)
    pam = danet.position
    danet.channel.beta.fill_(0.0)
    pam.alpha.fill_(1.0)
    pam.Wv.weight.copy_(torch.eye(8)[..., None, None])
    pam.Wv.bias.fill_(0.0)
    q, k, v = (tokens(t) for t in (pam.Wq(x), pam.Wk(x), x))
    torch.testing.assert_close(tokens(danet(x)), softmax_attention(q, k, v, scale=1.0) + 2 * v)


@limit("danet", "mean")
def test_dual_attention_that_asks_nothing_adds_the_mean_of_the_image():
    danet, x = drawn("danet", channels=8), randn(2, 8, 5, 7)
    pam = danet.position
    danet.channel.beta.fill_(0.0)
    pam.Wq.weight.fill_(0.0)
    pam.Wq.bias.fill_(0.0)
    torch.testing.assert_close(danet(x), pam.alpha * pam.Wv(x).mean((2, 3), keepdim=True) + 2 * x)


@limit("gala", "se")
def test_global_and_local_attention_that_sees_no_place_is_squeeze_and_excitation():
    gala, se, x = drawn("gala", channels=8, squash="sigmoid"), drawn("se", channels=8, reduction=4), randn(2, 8, 5, 7)
    gala.W1, gala.W2 = se.W1, se.W2
    gala.V2.weight.fill_(0.0)
    gala.V2.bias.fill_(0.0)
    gala.a.fill_(1.0)
    torch.testing.assert_close(gala(x), se(x))


@limit("gala", "identity")
def test_global_and_local_attention_that_finds_every_place_salient_is_the_identity():
    gala, x = drawn("gala", channels=8), randn(2, 8, 5, 7)
    gala.a.fill_(1.0)
    gala.m.fill_(0.0)
    gala.V2.bias.fill_(1e4)
    assert torch.equal(gala(x), x)


@limit("gam", "channel scaling")
def test_gam_that_looks_at_nothing_scales_every_channel():
    gam, x = drawn("gam", channels=8), randn(2, 8, 5, 7)
    gam.W2.weight.fill_(0.0)
    gam.f2.weight.fill_(0.0)
    gam.norm2.running_mean.fill_(0.0)  # so that BN₂ at 0 is its bias
    s = torch.sigmoid(gam.W2.bias) * torch.sigmoid(gam.norm2.bias)
    torch.testing.assert_close(gam(x), s[:, None, None] * x)


@limit("gam", "identity")
def test_gam_with_large_biases_of_both_gates_is_the_identity():
    gam, x = drawn("gam", channels=8), randn(2, 8, 5, 7)
    gam.W2.bias.fill_(1e4)
    gam.norm2.bias.fill_(1e4)
    assert torch.equal(gam(x), x)


def _residual_attention_with_logits(value):
    """Units of the trunk that do nothing, and a mask whose logits are all a value."""
    module = drawn("residual_attention", channels=4, levels=2)
    for unit in (*module.pre, *module.trunk, *module.post):
        unit.W3.weight.zero_()
    module.norm2.weight.zero_()
    module.norm2.bias.fill_(1.0)
    module.W2.weight.fill_(value)
    return module


@limit("residual_attention", "identity")
def test_residual_attention_without_a_mask_is_its_trunk():
    module, x = _residual_attention_with_logits(-1e4), randn(2, 4, 5, 7)
    assert torch.equal(module(x), x)


@limit("residual_attention", "constant gate")
def test_residual_attention_that_knows_nothing_adds_one_half():
    module, x = _residual_attention_with_logits(0.0), randn(2, 4, 5, 7)
    assert torch.equal(module(x), 1.5 * x)


@limit("scnet", "convolution")
def test_a_self_calibrated_convolution_with_an_open_gate_is_plain_convolutions():
    conv, x = drawn("scnet", channels=6, norm=True), randn(2, 6, 8, 8)
    conv.norm2.bias.fill_(1e4)

    def then(t, K, bn):
        t = F.conv2d(t, K.weight, padding=1)
        return F.batch_norm(t, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    Y1 = then(then(x[:, :3], conv.K3, conv.norm3), conv.K4, conv.norm4)
    Y2 = then(x[:, 3:], conv.K1, conv.norm1)
    torch.testing.assert_close(conv(x), torch.cat([Y1, Y2], 1).relu())


@limit("scnet", "SiLU")
def test_a_self_calibrated_convolution_that_looks_nowhere_is_silu_of_its_first_half():
    conv, x = drawn("scnet", channels=6), randn(2, 6, 5, 7)
    for K in (conv.K1, conv.K2, conv.K3, conv.K4):
        K.weight.zero_()
        K.weight[:, :, 1, 1] = 0 if K is conv.K2 else torch.eye(3)
    torch.testing.assert_close(conv(x), torch.cat([F.silu(x[:, :3]), x[:, 3:]], 1))


@limit("scse", "se")
def test_concurrent_squeeze_and_excitation_without_positions_is_squeeze_and_excitation():
    scse, se, x = drawn("scse", channels=6), drawn("se", channels=6, reduction=2), randn(2, 6, 5, 7)
    scse.sse.Wq.bias.fill_(-1e4)
    scse.cse.W1, scse.cse.W2 = se.W1, se.W2
    assert torch.equal(scse(x), se(x))


@limit("scse", "identity")
def test_concurrent_squeeze_and_excitation_that_knows_nothing_is_the_identity():
    scse, x = drawn("scse", channels=6), randn(2, 6, 5, 7)
    for p in scse.parameters():
        p.zero_()
    assert torch.equal(scse(x), x)  # one half of x, twice
@limit("ema", "SiLU")
def test_ema_of_single_channels_that_see_themselves_is_silu():
    ema, x = drawn("ema", channels=6, groups=6), randn(2, 6, 5, 7)
    for p in (*ema.gn.parameters(), *ema.conv3x3.parameters()):
        p.fill_(0.0)
    ema.conv3x3.weight[0, 0, 1, 1] = 1.0
    torch.testing.assert_close(ema(x), F.silu(x))


@limit("ema", "constant gate")
def test_ema_of_biases_alone_gates_everything_alike():
    ema, x = drawn("ema", channels=6, groups=2), randn(2, 6, 5, 7)
    ema.gn.weight.fill_(0.0)
    ema.conv3x3.weight.fill_(0.0)
    far, near = ema.gn.bias, ema.conv3x3.bias
    torch.testing.assert_close(ema(x), x * torch.sigmoid(far.softmax(0) @ near + near.softmax(0) @ far))


@limit("parnet", "convolution")
def test_a_parnet_block_that_gates_nothing_is_one_convolution():
    block, x = drawn("parnet", channels=6), randn(2, 6, 5, 7)
    block.Ws.weight.fill_(0.0)  # s = 1/2
    kernel, bias = torch.zeros(6, 6, 3, 3, dtype=x.dtype), torch.zeros(6, dtype=x.dtype)
    for W, bn in ((block.W3.conv.weight, block.W3.bn), (F.pad(block.W1.conv.weight, (1, 1, 1, 1)), block.W1.bn),
                  (F.pad(torch.eye(6, dtype=x.dtype)[..., None, None], (1, 1, 1, 1)), block.norm)):
        share = 0.5 if bn is block.norm else 1.0
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        kernel += share * scale[:, None, None, None] * W
        bias += share * (bn.bias - scale * bn.running_mean)
    torch.testing.assert_close(block(x), F.silu(F.conv2d(x, kernel, bias, padding=1)))


@limit("shuffle", "constant gate")
def test_shuffle_attention_without_weights_is_a_constant_gate_and_a_permutation():
    shuffle, x = drawn("shuffle", channels=8, groups=2), randn(2, 8, 5, 7)
    for name, value in (("w1", 0.0), ("w2", 0.0), ("b1", 0.7), ("b2", 0.7)):
        getattr(shuffle, name).fill_(value)
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    torch.testing.assert_close(shuffle(x), torch.sigmoid(torch.tensor(0.7, dtype=x.dtype)) * x[:, order])


@limit("simam", "constant gate")
def test_simam_with_a_large_lambda_gates_everything_alike():
    simam, x = drawn("simam", channels=6, lam=1e30), randn(2, 6, 5, 7)
    assert torch.equal(simam(x), x * torch.sigmoid(torch.tensor(0.5, dtype=x.dtype)))


@limit("simam", "activation function")
def test_simam_of_standardised_channels_is_an_activation_function():
    x = randn(2, 6, 5, 7)
    x = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)
    simam = drawn("simam", channels=6, lam=1e-15)
    torch.testing.assert_close(simam(x), x * torch.sigmoid(x**2 / 4 + 0.5))


@limit("triplet", "cbam")
def test_triplet_attention_without_its_rotated_branches_is_a_third_of_cbams_spatial_part():
    triplet, x = drawn("triplet", channels=6), randn(2, 6, 5, 7)
    cbam = drawn("cbam", channels=6, reduction=2, norm=True)
    for branch in (triplet.cw, triplet.hc):
        branch.norm.bias.fill_(-1e4)
    cbam.channel.W1.bias.fill_(1e4)  # the channel gate is open
    cbam.spatial.norm = triplet.hw.norm
    cbam.spatial.f.weight.copy_(triplet.hw.f.weight.flip(1))  # there the mean comes first
    torch.testing.assert_close(triplet(x), cbam(x) / 3)


@limit("triplet", "constant gate")
def test_triplet_attention_without_scales_is_a_constant():
    triplet, x = drawn("triplet", channels=6), randn(2, 6, 5, 7)
    branches = (triplet.cw, triplet.hc, triplet.hw)
    for branch in branches:
        branch.norm.weight.fill_(0.0)
    torch.testing.assert_close(triplet(x), x * sum(torch.sigmoid(b.norm.bias) for b in branches) / 3)


@limit("triplet", "identity")
def test_triplet_attention_with_open_gates_is_the_identity():
    triplet, x = drawn("triplet", channels=6), randn(2, 6, 5, 7)
    for branch in (triplet.cw, triplet.hc, triplet.hw):
        branch.norm.bias.fill_(1e4)
    torch.testing.assert_close(triplet(x), x)


test_every_limit_is_proven = every_limit_is_proven("channel_spatial")
