"""Limits of the attention over positions."""

import torch
import torch.nn.functional as F

from tests.unit.draw import randn
from tests.unit.modules.limits.proof import drawn, every_limit_is_proven, limit, softmax_attention, tokens


@limit("ccnet", "identity")
def test_criss_cross_attention_with_gamma_0_is_the_identity():
    cca, x = drawn("ccnet", channels=8), randn(2, 8, 5, 7)
    cca.gamma.fill_(0.0)
    assert torch.equal(cca(x), x)


@limit("ccnet", "self-attention")
def test_criss_cross_attention_of_one_row_is_self_attention():
    cca, x = drawn("ccnet", channels=8, recurrence=1), randn(2, 8, 1, 9)
    q, k, v = (tokens(conv(x)) for conv in (cca.Wq, cca.Wk, cca.Wv))
    expected = x + cca.gamma * softmax_attention(q, k, v, scale=1.0).transpose(1, 2).reshape_as(x)
    torch.testing.assert_close(cca(x), expected)


@limit("genet", "se")
def test_gather_excite_with_a_global_mean_and_an_mlp_is_squeeze_and_excitation():
    ge, se = drawn("genet", channels=6, excite="mlp", reduction=2), drawn("se", channels=6, reduction=2)
    x = randn(2, 6, 5, 7)
    for ours, theirs in ((ge.W1, se.W1), (ge.W2, se.W2)):
        ours.weight.copy_(theirs.weight[:, :, None, None])
        ours.bias.copy_(theirs.bias)
    torch.testing.assert_close(ge(x), se(x))


@limit("genet", "channel-wise gate")
def test_gather_excite_of_the_whole_map_is_a_gate_of_its_mean():
    ge, x = drawn("genet", channels=6), randn(2, 6, 5, 7)
    torch.testing.assert_close(ge(x), x * torch.sigmoid(x.mean((2, 3), keepdim=True)))


@limit("genet", "SiLU")
def test_gather_excite_of_single_pixels_is_the_silu():
    ge, x = drawn("genet", channels=6, extent=1), randn(2, 6, 5, 7)
    torch.testing.assert_close(ge(x), F.silu(x))


@limit("non_local", "identity")
def test_a_non_local_block_without_its_way_out_is_the_identity():
    block, x = drawn("non_local", channels=8), randn(2, 8, 5, 7)
    block.Wz.weight.fill_(0.0)
    assert torch.equal(block(x), x)


@limit("non_local", "self-attention")
def test_the_embedded_gaussian_with_the_usual_scale_is_one_head_of_self_attention():
    block, x = drawn("non_local", channels=8, scale=None), randn(2, 8, 5, 7)
    q, k, v = (tokens(conv(x)) for conv in (block.Wtheta, block.Wphi, block.Wg))
    y = softmax_attention(q, k, v, scale=4**-0.5) @ block.Wz.weight[:, :, 0, 0].T
    torch.testing.assert_close(tokens(block(x)), y + tokens(x))


@limit("non_local", "mean")
def test_a_non_local_block_that_asks_nothing_adds_the_mean_of_the_image():
    block, x = drawn("non_local", channels=8), randn(2, 8, 5, 7)
    block.Wtheta.weight.fill_(0.0)
    torch.testing.assert_close(block(x), x + block.Wz(block.Wg(x).mean((2, 3), keepdim=True)))


@limit("psanet", "mean")
def test_point_wise_attention_with_empty_maps_gives_every_pixel_the_mean():
    psa, x = drawn("psanet", channels=6, height=5, width=7), randn(2, 6, 5, 7)
    psa.attention[3].weight.fill_(0.0)
    psa.attention_p[3].weight.fill_(0.0)
    z = torch.cat([psa.reduce(x), psa.reduce_p(x)], 1).mean((2, 3), keepdim=True).expand(2, 2, 5, 7)
    torch.testing.assert_close(psa(x), torch.cat([x, psa.proj(z)], 1))


@limit("psanet", "convolution")
def test_point_wise_attention_with_one_map_for_all_pixels_is_a_convolution_of_the_whole_image():
    psa = drawn("psanet", channels=6, height=5, width=7, softmax=False)
    x, kernel = randn(2, 6, 5, 7), randn(1, 1, 9, 13)                     # offsets −4 … 4 and −6 … 6
    for attention in (psa.attention, psa.attention_p):
        attention[1].weight.fill_(0.0)
        attention[1].bias.fill_(1.0)
        attention[3].weight.copy_(kernel.view(-1, 1, 1, 1))
    collected = F.conv2d(psa.reduce(x), kernel, padding=(4, 6)) / 35
    distributed = F.conv2d(psa.reduce_p(x), kernel.flip(2, 3), padding=(4, 6)) / 35
    torch.testing.assert_close(psa(x), torch.cat([x, psa.proj(torch.cat([collected, distributed], 1))], 1))


@limit("ram", "identity")
def test_a_glimpse_as_large_as_the_image_is_the_image():
    sensor, x = drawn("ram", channels=3, size=(5, 7), scales=1), randn(2, 3, 5, 7)
    assert torch.equal(sensor(x, torch.zeros(2, 2, dtype=x.dtype))[:, 0], x)


@limit("ram", "mean")
def test_a_glimpse_of_one_pixel_as_wide_as_the_image_is_its_mean():
    sensor, x = drawn("ram", channels=3, size=1, scales=2, factor=6.0), randn(2, 3, 6, 6)
    torch.testing.assert_close(sensor(x, torch.zeros(2, 2, dtype=x.dtype))[:, 1, :, 0, 0], x.mean((2, 3)))


@limit("spnet", "identity")
def test_strip_pooling_with_a_large_bias_of_its_gate_is_the_identity():
    spm, x = drawn("spnet", channels=6), randn(2, 6, 5, 7)
    spm.conv3.bias.fill_(1000.0)
    assert torch.equal(spm(x), x)


@limit("spnet", "row gate")
def test_strip_pooling_without_its_strip_along_the_columns_is_a_gate_for_every_row():
    spm, x = drawn("spnet", channels=6), randn(2, 6, 5, 7)
    spm.bn2.weight.fill_(0.0)
    y = (spm.bn1(spm.conv1(x.mean(3, keepdim=True))) + spm.bn2.bias[:, None, None]).relu()
    torch.testing.assert_close(spm(x), x * torch.sigmoid(spm.conv3(y)))


@limit("spnet", "se")
def test_strip_pooling_of_a_single_pixel_is_squeeze_and_excitation():
    spm, se, x = drawn("spnet", channels=6), drawn("se", channels=6, reduction=1), randn(2, 6, 1, 1)
    a, b = ((bn.weight / (bn.running_var + bn.eps).sqrt()) for bn in (spm.bn1, spm.bn2))
    se.W1.weight.copy_(a[:, None] * spm.conv1.weight[:, :, 1, 0] + b[:, None] * spm.conv2.weight[:, :, 0, 1])
    se.W1.bias.copy_(spm.bn1.bias - a * spm.bn1.running_mean + spm.bn2.bias - b * spm.bn2.running_mean)
    se.W2.weight.copy_(spm.conv3.weight[:, :, 0, 0])
    se.W2.bias.copy_(spm.conv3.bias)
    torch.testing.assert_close(spm(x), se(x))


@limit("stn", "identity")
def test_a_spatial_transformer_that_reads_every_pixel_where_it_is_is_the_identity():
    stn, x = drawn("stn", channels=3), randn(2, 3, 5, 7)
    stn.Wtheta.weight.fill_(0.0)
    stn.Wtheta.bias.copy_(torch.eye(2, 3).flatten())
    assert torch.equal(stn(x), x)


test_every_limit_is_proven = every_limit_is_proven("spatial")
