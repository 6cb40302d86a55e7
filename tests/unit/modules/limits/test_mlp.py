"""Limits of the multi-layer perceptrons."""

import torch
import torch.nn.functional as F

from tests.unit.draw import randn
from tests.unit.modules.limits.proof import drawn, every_limit_is_proven, limit, tokens


@limit("s2mlpv2", "linear channel MLP")
def test_spatial_shift_of_the_part_that_is_not_shifted_is_a_linear_channel_mlp():
    s2, x = drawn("s2mlpv2", channels=8), randn(2, 8, 5, 7)
    s2.W1.weight[:16] = 0.0  # X_1 = X_2 = 0
    s2.W1.bias[:16] = 0.0
    s2.attention.W2.weight.fill_(0.0)  # α = 1/3
    torch.testing.assert_close(s2(x), s2.W2(F.conv2d(x, s2.W1.weight[16:], s2.W1.bias[16:]) / 3))


@limit("s2mlpv2", "convolution")
def test_spatial_shift_with_equal_weights_is_a_convolution_with_a_cross():
    s2, x = drawn("s2mlpv2", channels=8), randn(2, 8, 5, 7)
    s2.attention.W2.weight.fill_(0.0)  # α = 1/3
    W_1, W_2, W_3 = s2.W1.weight[:, :, 0, 0].chunk(3)
    kernel = torch.zeros(8, 8, 3, 3, dtype=x.dtype)
    above, below, left, right = (0, 1), (2, 1), (1, 0), (1, 2)  # where a position reads that is moved down, up, …
    for W, reads in ((W_1, (above, below, left, right)), (W_2, (left, right, above, below))):
        for n, (i, j) in enumerate(reads):
            quarter = slice(2 * n, 2 * n + 2)
            kernel[quarter, :, i, j] += W[quarter] / 3
    kernel[:, :, 1, 1] += W_3 / 3
    crossed = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, s2.W1.bias.view(3, 8).mean(0))
    torch.testing.assert_close(s2(x), s2.W2(crossed))


@limit("vip", "linear channel MLP")
def test_permute_mlp_without_its_spatial_branches_is_a_linear_channel_mlp():
    vip, x = drawn("vip", channels=6, height=5, width=7, segments=2, weighted=False), randn(2, 6, 5, 7)
    vip.Wh.weight.fill_(0.0)
    vip.Ww.weight.fill_(0.0)
    torch.testing.assert_close(vip(x), F.conv2d(F.conv2d(x, vip.Wc.weight), vip.Wp.weight, vip.Wp.bias))


@limit("vip", "convolution")
def test_permute_mlp_with_equal_weights_at_equal_distance_is_convolution_along_the_columns():
    vip, x = drawn("vip", channels=6, height=5, width=7, segments=2, weighted=False), randn(2, 6, 5, 7)
    kernel = randn(2, 2, 9)  # s, s′, distance −4 … 4
    distance = torch.arange(5) - torch.arange(5)[:, None]  # h′ − h
    vip.Wh.weight.copy_(kernel[:, :, distance + 4].permute(2, 0, 3, 1).reshape(10, 10))
    vip.Ww.weight.fill_(0.0)
    vip.Wc.weight.fill_(0.0)
    groups = F.conv2d(x.reshape(2 * 3, 2, 5, 7), kernel[..., None], padding=(4, 0))  # each group of S = 2 channels
    torch.testing.assert_close(vip(x), F.conv2d(groups.reshape_as(x), vip.Wp.weight, vip.Wp.bias))


@limit("vip", "token mixing")
def test_permute_mlp_of_one_column_and_one_segment_is_a_layer_of_token_mixing():
    vip, x = drawn("vip", channels=6, height=5, width=1, segments=1, weighted=False), randn(2, 6, 5, 1)
    vip.Ww.weight.fill_(0.0)
    vip.Wc.weight.fill_(0.0)
    mixed = torch.einsum("iN,BNC->BiC", vip.Wh.weight, tokens(x))  # as in MLP-Mixer: one matrix for all channels
    torch.testing.assert_close(tokens(vip(x)), mixed @ vip.Wp.weight[:, :, 0, 0].T + vip.Wp.bias)


test_every_limit_is_proven = every_limit_is_proven("mlp")
