"""Limits of the convolutions."""

import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from tests.unit.draw import randn
from tests.unit.modules.limits.proof import drawn, every_limit_is_proven, limit, tokens


@limit("aspp", "dilated")
def test_the_pyramid_with_one_branch_alone_is_a_dilated_convolution():
    aspp, x = drawn("aspp", channels=4, out_channels=3, rates=(2, 3)), randn(2, 4, 6, 7)
    conv, norm, _ = aspp.convs[2]
    aspp.project[0].weight.copy_(torch.cat([torch.zeros(3, 6), torch.eye(3), torch.zeros(3, 3)], 1)[..., None, None])
    aspp.project[1] = nn.Identity()
    dilated = drawn("dilated", channels=4, out_channels=3, dilation=3, bias=False)
    dilated.weight.copy_(conv.weight)
    torch.testing.assert_close(aspp(x), F.relu(norm(dilated(x))))


@limit("aspp", "linear layer")
def test_a_branch_of_the_pyramid_that_reaches_beyond_the_map_is_a_linear_layer():
    aspp, x = drawn("aspp", channels=4, out_channels=3, rates=(7,)), randn(2, 4, 6, 7)
    conv, norm, _ = aspp.convs[1]
    centre = F.linear(x.movedim(1, -1), conv.weight[:, :, 1, 1]).movedim(-1, 1)
    with attn_lib.trace() as t:
        aspp(x)
    torch.testing.assert_close(t["f:2"], F.relu(norm(centre)))


def without_offsets(groups, bias):
    """A deformable convolution v3 whose taps stay in their places, each weighed alike at every position."""
    dcn = drawn("dcnv3", channels=8, groups=groups)
    for parameter in (dcn.Wdp.weight, dcn.Wdp.bias, dcn.Wm.weight):
        parameter.zero_()
    dcn.Wm.bias.copy_(bias)
    return dcn


@limit("dcnv3", "mean")
def test_deformable_convolution_v3_that_knows_nothing_is_the_mean_of_a_window():
    dcn, x = without_offsets(4, torch.zeros(36)), randn(2, 8, 6, 7)
    mean = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=True)
    torch.testing.assert_close(tokens(dcn(x)), F.linear(tokens(mean), dcn.Wo.weight))


@limit("dcnv3", "depthwise_separable")
def test_deformable_convolution_v3_with_fixed_taps_is_a_separable_convolution():
    logits, x = randn(4, 9), randn(2, 8, 6, 7)
    dcn, separable = without_offsets(4, logits.flatten()), drawn("depthwise_separable", channels=8, bias=False)
    kernels = logits.softmax(1).repeat_interleave(2, 0)  # two channels a group
    separable.depthwise.weight.copy_(kernels.view(8, 1, 3, 3))
    separable.pointwise.weight.copy_(dcn.Wo.weight[..., None, None])
    torch.testing.assert_close(dcn(x), separable(x))


@limit("dcnv3", "linear layer")
def test_deformable_convolution_v3_that_looks_at_its_centre_is_a_linear_layer():
    one_hot = torch.full((2, 9), -1000.0)
    one_hot[:, 4] = 0.0
    dcn, x = without_offsets(2, one_hot.flatten()), randn(2, 8, 6, 7)
    torch.testing.assert_close(tokens(dcn(x)), F.linear(tokens(x), dcn.Wo.weight))


@limit("deform", "convolution")
def test_deformable_convolution_without_offsets_is_convolution():
    deform, x = drawn("deform", channels=4), randn(2, 4, 6, 7)
    deform.offset_conv.weight.fill_(0.0)
    deform.offset_conv.bias[: 2 * 9] = 0.0     # Δp
    deform.offset_conv.bias[2 * 9 :] = 1000.0  # Δm = σ(1000) = 1
    torch.testing.assert_close(deform(x), F.conv2d(x, deform.weight, deform.bias, padding=1))


@limit("depthwise_separable", "convolution")
def test_a_depthwise_separable_convolution_is_a_convolution_of_rank_one():
    separable, x = drawn("depthwise_separable", channels=4, out_channels=5), randn(2, 4, 6, 7)
    W = torch.einsum("oc,cij->ocij", separable.pointwise.weight[:, :, 0, 0], separable.depthwise.weight[:, 0])
    torch.testing.assert_close(separable(x), F.conv2d(x, W, separable.pointwise.bias, padding=1))


@limit("depthwise_separable", "linear layer")
def test_a_depthwise_separable_convolution_of_one_pixel_is_a_linear_layer():
    separable, x = drawn("depthwise_separable", channels=4, out_channels=5, kernel_size=1), randn(2, 4, 6, 7)
    W = separable.pointwise.weight[:, :, 0, 0] * separable.depthwise.weight.flatten()
    torch.testing.assert_close(tokens(separable(x)), F.linear(tokens(x), W, separable.pointwise.bias))


@limit("dilated", "convolution")
def test_dilated_convolution_without_holes_is_convolution():
    dilated, x = drawn("dilated", channels=4, dilation=1), randn(2, 4, 6, 7)
    torch.testing.assert_close(dilated(x), F.conv2d(x, dilated.weight, dilated.bias, padding=1))


@limit("dilated", "linear layer")
def test_dilated_convolution_that_reaches_beyond_the_map_is_a_linear_layer():
    dilated, x = drawn("dilated", channels=4, dilation=7), randn(2, 4, 6, 7)
    centre = dilated.weight[:, :, 1, 1]
    torch.testing.assert_close(tokens(dilated(x)), F.linear(tokens(x), centre, dilated.bias))


@limit("pconv", "convolution")
def test_partial_convolution_of_all_channels_is_convolution():
    partial, x = drawn("pconv", channels=4, n_div=1), randn(2, 4, 6, 7)
    torch.testing.assert_close(partial(x), F.conv2d(x, partial.conv.weight, padding=1))


@limit("pconv", "identity")
def test_partial_convolution_with_a_kernel_of_one_pixel_is_the_identity():
    partial, x = drawn("pconv", channels=8, n_div=2), randn(2, 8, 6, 7)
    partial.conv.weight.zero_()
    partial.conv.weight[:, :, 1, 1] = torch.eye(4)
    torch.testing.assert_close(partial(x), x)


@limit("scconv", "identity")
def test_spatial_reconstruction_with_everything_above_the_threshold_is_the_identity():
    scconv, x = drawn("scconv", channels=32, threshold=0.0), randn(2, 32, 6, 7)
    torch.testing.assert_close(scconv.sru(x), x)
    torch.testing.assert_close(scconv(x), scconv.cru(x))


@limit("scconv", "channel-wise gate")
def test_channel_reconstruction_without_its_convolved_part_is_a_channel_wise_gate():
    scconv, x = drawn("scconv", channels=32, threshold=0.0), randn(2, 32, 6, 7)
    scconv.cru.GWC.weight.zero_()
    scconv.cru.PWC1.weight.zero_()
    squeezed = scconv.cru.squeeze_low(x[:, 16:])
    Y2 = torch.cat([scconv.cru.PWC2(squeezed), squeezed], 1)
    torch.testing.assert_close(scconv(x), Y2.mean((2, 3), keepdim=True).sigmoid() * Y2)


@limit("snake", "convolution")
def test_a_snake_that_lies_straight_is_a_convolution():
    for axis, side in (("x", (1, 5)), ("y", (5, 1))):
        snake, x = drawn("snake", channels=8, kernel_size=5, axis=axis), randn(2, 8, 6, 7)
        snake.offset_norm.weight.zero_()
        snake.offset_norm.bias.zero_()
        repeated = F.pad(x, (side[1] // 2,) * 2 + (side[0] // 2,) * 2, mode="replicate")
        straight = F.conv2d(repeated, snake.weight.view(8, 8, *side), snake.bias)
        torch.testing.assert_close(snake(x), F.relu(snake.norm(straight)))


test_every_limit_is_proven = every_limit_is_proven("conv")
