"""Limits of the choices between branches."""

import torch
import torch.nn.functional as F

from tests.unit.draw import randn
from tests.unit.modules.limits.proof import drawn, every_limit_is_proven, limit


@limit("condconv", "convolution")
def test_condconv_with_one_expert_that_counts_fully_is_convolution():
    layer, x = drawn("condconv", channels=6, experts=1, bias=True, routing_bias=True), randn(2, 6, 5, 7)
    layer.Walpha.bias.fill_(1000.0)  # α = σ(1000) = 1
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.kernels[0], layer.bias[0], padding=1))


@limit("dynamic_conv", "convolution")
def test_dynamic_convolution_with_one_kernel_is_convolution():
    layer, x = drawn("dynamic_conv", channels=6, kernels=1), randn(2, 6, 5, 7)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.kernels[0], layer.bias[0], padding=1))


@limit("dynamic_conv", "mean")
def test_dynamic_convolution_at_a_great_temperature_is_the_mean_of_its_convolutions():
    layer, x = drawn("dynamic_conv", channels=6, kernels=3), randn(2, 6, 5, 7)
    layer.temperature = 1e300
    each = [F.conv2d(x, W, b, padding=1) for W, b in zip(layer.kernels, layer.bias, strict=True)]
    torch.testing.assert_close(layer(x), sum(each) / 3)


@limit("highway", "identity")
def test_a_highway_layer_with_its_gate_shut_is_the_identity():
    layer, x = drawn("highway", channels=6), randn(2, 6, 5, 7)
    layer.Wt.bias.fill_(-1000.0)
    assert torch.equal(layer(x), x)


@limit("highway", "convolution")
def test_a_highway_layer_with_its_gate_open_is_a_convolution_and_its_activation():
    layer, x = drawn("highway", channels=6), randn(2, 6, 5, 7)
    layer.Wt.bias.fill_(1000.0)
    assert torch.equal(layer(x), F.relu(F.conv2d(x, layer.Wh.weight, layer.Wh.bias, padding=1)))


@limit("resnest", "se")
def test_split_attention_with_one_split_is_squeeze_and_excitation_behind_a_convolution():
    split = drawn("resnest", channels=6, radix=1, reduction=2, min_dim=1)
    se, x = drawn("se", channels=6, reduction=2), randn(2, 6, 5, 7)
    split.bn1.weight.copy_((split.bn1.running_var + split.bn1.eps).sqrt())  # in evaluation mode: nothing is normalised
    split.bn1.bias.copy_(split.bn1.running_mean)
    for fc, W in ((split.fc1, se.W1), (split.fc2, se.W2)):
        fc.weight.copy_(W.weight[:, :, None, None])
        fc.bias.copy_(W.bias)
    torch.testing.assert_close(split(x), se(F.relu(split.bn0(split.conv(x)))))


@limit("resnest", "mean")
def test_split_attention_without_logits_is_the_mean_of_its_splits():
    split, x = drawn("resnest", channels=6, radix=3), randn(2, 6, 5, 7)
    split.fc2.weight.fill_(0.0)
    split.fc2.bias.fill_(0.0)
    torch.testing.assert_close(split(x), sum(F.relu(split.bn0(split.conv(x))).chunk(3, 1)) / 3)


@limit("sk", "convolution")
def test_selective_kernel_with_one_branch_is_convolution_batch_norm_relu():
    sk, x = drawn("sk", channels=6, groups=3, dilations=(2,)), randn(2, 6, 5, 7)
    conv, bn, _ = sk.branches[0]
    U = F.conv2d(x, conv.weight, padding=2, dilation=2, groups=3)
    torch.testing.assert_close(sk(x), F.relu(F.batch_norm(U, bn.running_mean, bn.running_var, bn.weight, bn.bias)))


@limit("sk", "mean")
def test_selective_kernel_without_logits_is_the_mean_of_its_branches():
    sk, x = drawn("sk", channels=6, groups=3, dilations=(1, 2, 3)), randn(2, 6, 5, 7)
    sk.Wa.weight.fill_(0.0)
    torch.testing.assert_close(sk(x), sum(branch(x) for branch in sk.branches) / 3)


test_every_limit_is_proven = every_limit_is_proven("branch")
