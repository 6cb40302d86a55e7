"""Limits of the attention along time."""

import torch
import torch.nn.functional as F

from tests.unit.draw import randn
from tests.unit.modules.limits.proof import drawn, every_limit_is_proven, limit, softmax_attention


@limit("mtgnn", "convolution")
def test_mtgnn_with_one_kernel_and_an_open_gate_is_a_dilated_causal_convolution():
    layer, x = drawn("mtgnn", channels=6, kernel_sizes=(3,), dilation=2), randn(2, 11, 4, 6)
    layer.gate.tconv[0].weight.fill_(0.0)
    layer.gate.tconv[0].bias.fill_(1000.0)
    conv = layer.filter.tconv[0]
    series = x.permute(0, 2, 3, 1).flatten(0, 1)  # every place by itself, steps last
    y = F.conv1d(series, conv.weight[:, :, 0], conv.bias, dilation=2)
    torch.testing.assert_close(layer(x), torch.tanh(y).view(2, 4, 6, 7).permute(0, 3, 1, 2))
@limit("gltr", "convolution")
def test_gltr_with_a_normalisation_of_zeros_is_its_dilated_convolutions():
    gltr, x = drawn("gltr", channels=4), randn(2, 7, 4)
    gltr.norm.weight.fill_(0.0)
    gltr.norm.bias.fill_(0.0)
    scales = [F.conv1d(x.mT, conv.weight, padding=r, dilation=r).mT for conv, r in zip(gltr.pyramid, (1, 2, 3),
                                                                                       strict=True)]
    torch.testing.assert_close(gltr(x), torch.cat([x, *scales], 2).mean(1))


@limit("gltr", "non_local")
def test_gltr_of_the_frames_alone_is_a_non_local_block_over_time():
    gltr, x = drawn("gltr", channels=4, dilations=(), pool=False), randn(2, 7, 4)
    block = drawn("non_local", channels=4, bias=True, norm=True)
    for name in ("Wtheta", "Wphi", "Wg", "Wz"):
        getattr(block, name).weight.copy_(getattr(gltr, name).weight[:, :, None, None])
        getattr(block, name).bias.copy_(getattr(gltr, name).bias)
    block.norm.load_state_dict(gltr.norm.state_dict())
    torch.testing.assert_close(gltr(x), block(x.mT[:, :, None])[:, :, 0].mT)


@limit("pyraformer", "self-attention")
def test_pyramidal_attention_of_one_scale_with_enough_neighbours_is_self_attention():
    pam, x = drawn("pyraformer", channels=8, heads=1, scales=1, neighbours=13), randn(2, 7, 8)
    nodes = F.layer_norm(x, (8,), pam.construct.norm.weight, pam.construct.norm.bias)
    y = softmax_attention(pam.Wq(nodes), pam.Wk(nodes), pam.Wv(nodes), scale=8**-0.5)
    torch.testing.assert_close(pam(x), pam.Wo(y))


@limit("pyraformer", "banded attention")
def test_pyramidal_attention_of_one_scale_is_banded_attention():
    pam, x = drawn("pyraformer", channels=8, heads=1, scales=1, neighbours=3), randn(2, 7, 8)
    q, k, v = (W(pam.construct(x)) for W in (pam.Wq, pam.Wk, pam.Wv))
    y = torch.cat([softmax_attention(q[:, i:i + 1], k[:, max(0, i - 1):i + 2], v[:, max(0, i - 1):i + 2], scale=8**-0.5)
                   for i in range(7)], 1)
    torch.testing.assert_close(pam(x), pam.Wo(y))


def ungated(tam, kernel):
    """Its gates are 1, and every channel has the kernel softmax(kernel): BN without a slope passes on its bias."""
    for branch in (tam.G, tam.L):
        branch[1].weight.fill_(0.0)
        branch[1].bias.fill_(1.0)
    tam.L[3].weight.fill_(1000.0)
    tam.G[3].weight.copy_(kernel[:, None].expand_as(tam.G[3].weight) / tam.G[3].in_features)


@limit("tam", "identity")
def test_temporal_adaptive_module_that_reads_each_frame_itself_is_the_identity():
    tam, x = drawn("tam", channels=6, frames=5), randn(2, 6, 5, 3, 4)
    ungated(tam, torch.tensor([0.0, 1000.0, 0.0]))
    assert torch.equal(tam(x), x)


@limit("tam", "convolution")
def test_temporal_adaptive_module_with_a_fixed_kernel_is_a_convolution_in_time():
    tam, x, kernel = drawn("tam", channels=6, frames=5), randn(2, 6, 5, 3, 4), randn(3)
    ungated(tam, kernel)
    weight = kernel.softmax(0).view(1, 1, 3, 1, 1).expand(6, 1, 3, 1, 1)
    torch.testing.assert_close(tam(x), F.conv3d(x, weight, padding=(1, 0, 0), groups=6))


test_every_limit_is_proven = every_limit_is_proven("temporal")
