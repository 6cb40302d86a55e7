"""Limits of the multi-layer perceptrons."""

import torch
import torch.nn.functional as F

from tests.unit.draw import randn
from tests.unit.modules.limits.proof import drawn, every_limit_is_proven, limit, tokens


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
