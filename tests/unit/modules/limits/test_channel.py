"""Limits of the gates of channels."""

import torch
import torch.nn.functional as F

from tests.unit.draw import randn
from tests.unit.modules.limits.proof import drawn, every_limit_is_proven, limit


@limit("eca", "channel-wise gate")
def test_eca_without_neighbours_is_a_channel_wise_gate():
    eca, x = drawn("eca", channels=6, kernel_size=1), randn(2, 6, 5, 7)
    w = eca.conv.weight.item()
    torch.testing.assert_close(eca(x), x * torch.sigmoid(w * x.mean((2, 3), keepdim=True)))


@limit("eca", "linear layer")
def test_eca_with_a_kernel_of_2c_minus_1_is_a_linear_layer_with_a_toeplitz_matrix():
    eca, x = drawn("eca", channels=6, kernel_size=11), randn(2, 6, 5, 7)
    c = torch.arange(6)
    T = eca.conv.weight[0, 0, c - c[:, None] + 5]  # T[c, d] = w_{d − c}: every entry is a weight, none is cut off
    s = torch.sigmoid(F.linear(x.mean((2, 3)), T))
    torch.testing.assert_close(eca(x), x * s[:, :, None, None])


@limit("eca", "SiLU")
def test_eca_on_one_pixel_with_the_kernel_1_is_silu():
    eca, x = drawn("eca", channels=6, kernel_size=1), randn(2, 6, 1, 1)
    eca.conv.weight.fill_(1.0)
    torch.testing.assert_close(eca(x), F.silu(x))


@limit("encnet", "se")
def test_encnet_with_one_codeword_at_zero_is_se_without_a_reduction():
    encnet, se, x = drawn("encnet", channels=6, codewords=1), drawn("se", channels=6, reduction=1), randn(2, 6, 5, 7)
    x = x.abs()  # as behind a ReLU, so that the one before the encoding changes nothing
    encnet.c.fill_(0.0)
    encnet.Wx.weight.copy_(torch.eye(6)[:, :, None, None])
    for norm in (encnet.norm_x, encnet.norm_e):
        norm.weight.fill_(1.0)
        norm.bias.fill_(0.0)
        norm.running_mean.fill_(0.0)
        norm.running_var.fill_(1.0 - norm.eps)
    se.W1.weight.copy_(35 * torch.eye(6))  # a sum over the pixels, where SE has the mean
    se.W1.bias.fill_(0.0)
    se.W2.load_state_dict(encnet.Wgamma.state_dict())
    torch.testing.assert_close(encnet(x), se(x))


@limit("encnet", "channel scaling")
def test_encnet_whose_gate_reads_nothing_multiplies_every_channel_by_a_constant():
    encnet, x = drawn("encnet", channels=6, codewords=4), randn(2, 6, 5, 7)
    encnet.Wgamma.weight.fill_(0.0)
    torch.testing.assert_close(encnet(x), x * encnet.Wgamma.bias.sigmoid()[:, None, None])


@limit("epsa", "convolution")
def test_pyramid_squeeze_attention_of_one_branch_is_its_convolution():
    psa, x = drawn("epsa", channels=6, kernel_sizes=(5,), groups=(2,), reduction=2), randn(2, 6, 5, 7)
    torch.testing.assert_close(psa(x), F.conv2d(x, psa.convs[0].weight, padding=2, groups=2))


@limit("fca", "se")
def test_fca_with_the_lowest_frequency_alone_is_se_without_biases():
    fca, x = drawn("fca", channels=6, reduction=2, frequencies="top1", dct_h=7, dct_w=9), randn(2, 6, 7, 9)
    se = drawn("se", channels=6, reduction=2, bias=False)
    se.W1.weight.copy_(fca.W1.weight * 63**0.5)  # the lowest coefficient is √(PQ) times the mean
    se.W2.weight.copy_(fca.W2.weight)
    torch.testing.assert_close(fca(x), se(x))


@limit("gct", "identity")
def test_gct_with_gamma_and_beta_0_is_the_identity():
    gct, x = drawn("gct", channels=6), randn(2, 6, 5, 7)
    gct.gamma.fill_(0.0)
    gct.beta.fill_(0.0)
    assert torch.equal(gct(x), x)


@limit("gct", "channel scaling")
def test_gct_with_gamma_0_multiplies_every_channel_by_a_constant():
    gct, x = drawn("gct", channels=6), randn(2, 6, 5, 7)
    gct.gamma.fill_(0.0)
    torch.testing.assert_close(gct(x), x * (1 + torch.tanh(gct.beta))[:, None, None])


@limit("gct", "constant gate")
def test_gct_of_a_single_channel_has_the_same_gate_for_every_image():
    gct, x = drawn("gct", channels=1, epsilon=1e-30), randn(2, 1, 5, 7)
    torch.testing.assert_close(gct(x), x * (1 + torch.tanh(gct.gamma * gct.alpha.sign() + gct.beta)))


@limit("gsop", "variance gate")
def test_gsop_whose_rows_read_their_own_entry_is_a_gate_from_variances():
    gsop, x = drawn("gsop", channels=6, reduced=4), randn(2, 6, 5, 7)
    gsop.excite.Wr.weight *= torch.eye(4)[:, None, None, :].expand(4, 4, 1, 4).reshape(16, 1, 4)
    z = F.relu(gsop.norm(gsop.W1(x)))
    rows = gsop.excite.norm
    v = (z.var((2, 3), correction=0) - rows.running_mean) / (rows.running_var + rows.eps).sqrt()
    v = v * rows.weight + rows.bias
    kernels = gsop.excite.Wr.weight.sum((1, 2)).view(4, 4)  # four numbers a row, at its own variance
    q = (v[:, :, None] * kernels).flatten(1) + gsop.excite.Wr.bias
    s = torch.sigmoid(gsop.excite.W2(F.leaky_relu(q, 0.1)))
    torch.testing.assert_close(gsop(x), x * s[:, :, None, None])


@limit("gsop", "channel scaling")
def test_gsop_whose_rows_read_nothing_multiplies_every_channel_by_a_constant():
    gsop, x = drawn("gsop", channels=6, reduced=4), randn(2, 6, 5, 7)
    gsop.excite.Wr.weight.fill_(0.0)
    s = torch.sigmoid(gsop.excite.W2(F.leaky_relu(gsop.excite.Wr.bias, 0.1)))
    torch.testing.assert_close(gsop(x), x * s[:, None, None])


@limit("nam", "SiLU")
def test_nam_of_one_standardised_channel_is_silu():
    nam, x = drawn("nam", channels=1), randn(2, 1, 5, 7)
    nam.norm_c.running_mean.fill_(0.0)
    nam.norm_c.running_var.fill_(1.0 - nam.norm_c.eps)
    nam.norm_c.weight.fill_(1.0)
    nam.norm_c.bias.fill_(0.0)
    torch.testing.assert_close(nam(x), F.silu(x))


@limit("nam", "constant gate")
def test_nam_without_scales_halves():
    nam, x = drawn("nam", channels=6), randn(2, 6, 5, 7)
    nam.norm_c.weight.fill_(0.0)
    assert torch.equal(nam(x), x / 2)


@limit("se", "identity")
def test_se_with_a_large_gate_bias_is_the_identity():
    se, x = drawn("se", channels=6, reduction=2), randn(2, 6, 5, 7)
    se.W2.bias.fill_(1000.0)
    assert torch.equal(se(x), x)


@limit("soca", "variance gate")
def test_soca_of_uncorrelated_channels_is_se_on_their_deviations():
    soca, se = drawn("soca", channels=6, reduction=2, iterations=40), drawn("se", channels=6, reduction=2)
    ones = torch.ones(2, 35, 1, dtype=torch.float64)
    q = torch.linalg.qr(torch.cat([ones, randn(2, 35, 6)], 2))[0][:, :, 1:]  # orthonormal, each with the mean 0
    deviation = torch.tensor([3.0, 1.0, 0.5, 2.0, 0.25, 4.0], dtype=torch.float64)
    x = (q.mT * deviation[:, None] * 35**0.5).reshape(2, 6, 5, 7)
    for a, b in zip(se.parameters(), soca.parameters(), strict=True):
        a.copy_(b)
    s = torch.sigmoid(se.W2(F.relu(se.W1(deviation / 6))))
    torch.testing.assert_close(soca(x), x * s[:, None, None])


@limit("srm", "channel-wise gate")
def test_srm_without_a_weight_for_the_deviation_is_a_channel_wise_gate():
    srm, x = drawn("srm", channels=6), randn(2, 6, 5, 7)
    srm.Wz[:, 1] = 0.0
    scale = srm.norm.weight / (srm.norm.running_var + srm.norm.eps).sqrt()
    z = srm.Wz[:, 0] * x.mean((2, 3))
    g = torch.sigmoid(scale * (z - srm.norm.running_mean) + srm.norm.bias)
    torch.testing.assert_close(srm(x), x * g[:, :, None, None])


@limit("srm", "channel scaling")
def test_srm_without_weights_multiplies_every_channel_by_a_constant():
    srm, x = drawn("srm", channels=6).train(), randn(2, 6, 5, 7)
    srm.Wz.fill_(0.0)
    torch.testing.assert_close(srm(x), x * srm.norm.bias.sigmoid()[:, None, None])


test_every_limit_is_proven = every_limit_is_proven("channel")
