"""Limits of the fusions."""

import torch
import torch.nn.functional as F

from tests.unit.draw import randn
from tests.unit.modules.limits.proof import drawn, every_limit_is_proven, limit


@limit("gated", "mean")
def test_gated_fusion_without_weights_is_the_mean():
    fuse, x, y = drawn("gated", channels=6), randn(2, 6, 5, 7), randn(2, 6, 5, 7, seed=2)
    for p in fuse.parameters():
        p.fill_(0.0)
    torch.testing.assert_close(fuse(x, y), (x + y) / 2)


@limit("gated", "identity")
def test_gated_fusion_with_a_large_bias_is_the_identity_on_one_input():
    fuse, x, y = drawn("gated", channels=6), randn(2, 6, 5, 7), randn(2, 6, 5, 7, seed=2)
    fuse.Wz2.bias.fill_(1000.0)
    assert torch.equal(fuse(x, y), x)
    fuse.Wz2.bias.fill_(-1000.0)
    assert torch.equal(fuse(x, y), y)


@limit("gated", "highway")
def test_gated_fusion_of_a_layer_and_its_input_is_a_highway_layer():
    fuse, highway, x = drawn("gated", channels=6), drawn("highway", channels=6, kernel_size=1), randn(2, 6, 5, 7)
    fuse.Wz1.weight.fill_(0.0)  # its transform gate sees the input alone
    fuse.Wz2.load_state_dict(highway.Wt.state_dict())
    torch.testing.assert_close(fuse(F.relu(highway.Wh(x)), x), highway(x))


@limit("mfe", "convolution")
def test_multi_feature_extraction_whose_branches_are_silent_is_convolution_batch_norm_relu():
    mfe, x = drawn("mfe", channels=6), randn(2, 6, 5, 7)
    for _, bn, _ in mfe.branches:
        bn.weight.fill_(0.0)
        bn.bias.fill_(0.0)
    bn = mfe.norm
    y = F.batch_norm(F.conv2d(x, mfe.Wp.weight), bn.running_mean, bn.running_var, bn.weight, bn.bias)
    torch.testing.assert_close(mfe(x), F.relu(y))


@limit("msf", "mean")
def test_multi_scale_fusion_without_scores_projects_the_mean():
    msf, maps = drawn("msf", channels=6), randn(4, 2, 6, 5, 7)
    msf.Wm.fill_(0.0)
    torch.testing.assert_close(msf(*maps), F.relu(msf.norm(F.conv2d(maps.mean(0), msf.Wp.weight))))


@limit("safm", "channel scaling")
def test_feature_modulation_that_sees_nothing_multiplies_every_channel_by_a_constant():
    safm, x = drawn("safm", channels=6, levels=3), randn(2, 6, 5, 7)
    safm.Wa.weight.fill_(0.0)
    torch.testing.assert_close(safm(x), x * F.gelu(safm.Wa.bias)[:, None, None])


@limit("safm", "activation function")
def test_feature_modulation_of_a_pixel_by_itself_is_an_activation_function():
    safm, x = drawn("safm", channels=6, levels=1), randn(2, 6, 5, 7)
    safm.dw[0].weight.copy_(F.pad(torch.ones(6, 1, 1, 1), (1, 1, 1, 1)))
    safm.Wa.weight.copy_(torch.eye(6)[:, :, None, None])
    safm.dw[0].bias.fill_(0.0)
    safm.Wa.bias.fill_(0.0)
    torch.testing.assert_close(safm(x), x * F.gelu(x))


test_every_limit_is_proven = every_limit_is_proven("fusion")
