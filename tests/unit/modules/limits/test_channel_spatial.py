"""Limits of the gates of channels and positions."""

import torch
import torch.nn.functional as F

from tests.unit.draw import randn
from tests.unit.modules.limits.proof import drawn, every_limit_is_proven, limit


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


test_every_limit_is_proven = every_limit_is_proven("channel_spatial")
