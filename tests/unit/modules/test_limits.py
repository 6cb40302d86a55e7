"""What every module becomes when a knob is turned to its end. Each identity is exact.

The catalog states these limits (`Entry.reduces_to`), and the family map of the book draws them. Here each is proven;
the last test holds the two lists together. A module is drawn with random weights in float64, one knob is turned, and
the known operation stands beside it, written in the plainest way.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attn_lib

PROVEN: set[tuple[str, str]] = set()


def limit(id: str, becomes: str):
    """Marks a test as the proof of `attn_lib.entry(id).reduces_to[becomes]`."""

    def enter(test):
        assert (id, becomes) not in PROVEN, f"{id} → {becomes} is proven twice"
        PROVEN.add((id, becomes))
        return pytest.mark.module(id)(test)

    return enter


def module(id: str, **options):
    """A module whose parameters are all random, in float64 and evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        m = attn_lib.create(id, **options).double().eval()
        for p in m.parameters():
            p.data = torch.randn_like(p) * 0.5
    return m.requires_grad_(False)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Self-attention of tokens (B, N, D), every pair computed."""
    return torch.einsum("bnm,bme->bne", (scale * torch.einsum("bnd,bmd->bnm", q, k)).softmax(-1), v)


def tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, HW, C)"""
    return x.flatten(2).transpose(1, 2)


# ---- channel ---------------------------------------------------------------------------------------------------------


@limit("eca", "channel-wise gate")
def test_eca_without_neighbours_is_a_channel_wise_gate():
    eca, x = module("eca", channels=6, kernel_size=1), normal(2, 6, 5, 7)
    w = eca.conv.weight.item()
    torch.testing.assert_close(eca(x), x * torch.sigmoid(w * x.mean((2, 3), keepdim=True)))


@limit("eca", "linear layer")
def test_eca_with_a_kernel_of_2c_minus_1_is_a_linear_layer_with_a_toeplitz_matrix():
    eca, x = module("eca", channels=6, kernel_size=11), normal(2, 6, 5, 7)
    c = torch.arange(6)
    T = eca.conv.weight[0, 0, c - c[:, None] + 5]  # T[c, d] = w_{d − c}: every entry is a weight, none is cut off
    s = torch.sigmoid(F.linear(x.mean((2, 3)), T))
    torch.testing.assert_close(eca(x), x * s[:, :, None, None])


@limit("eca", "SiLU")
def test_eca_on_one_pixel_with_the_kernel_1_is_silu():
    eca, x = module("eca", channels=6, kernel_size=1), normal(2, 6, 1, 1)
    eca.conv.weight.fill_(1.0)
    torch.testing.assert_close(eca(x), F.silu(x))


@limit("se", "identity")
def test_se_with_a_large_gate_bias_is_the_identity():
    se, x = module("se", channels=6, reduction=2), normal(2, 6, 5, 7)
    se.W2.bias.fill_(1000.0)
    assert torch.equal(se(x), x)


# ---- spatial ---------------------------------------------------------------------------------------------------------


@limit("ccnet", "identity")
def test_criss_cross_attention_with_gamma_0_is_the_identity():
    cca, x = module("ccnet", channels=8), normal(2, 8, 5, 7)
    cca.gamma.fill_(0.0)
    assert torch.equal(cca(x), x)


@limit("ccnet", "self-attention")
def test_criss_cross_attention_of_one_row_is_self_attention():
    cca, x = module("ccnet", channels=8, recurrence=1), normal(2, 8, 1, 9)
    q, k, v = (tokens(conv(x)) for conv in (cca.WQ, cca.WK, cca.WV))
    expected = x + cca.gamma * softmax_attention(q, k, v, scale=1.0).transpose(1, 2).reshape_as(x)
    torch.testing.assert_close(cca(x), expected)


@limit("non_local", "identity")
def test_a_non_local_block_without_its_way_out_is_the_identity():
    block, x = module("non_local", channels=8), normal(2, 8, 5, 7)
    block.W_z.weight.fill_(0.0)
    assert torch.equal(block(x), x)


@limit("non_local", "self-attention")
def test_the_embedded_gaussian_with_the_usual_scale_is_one_head_of_self_attention():
    block, x = module("non_local", channels=8, scale=None), normal(2, 8, 5, 7)
    q, k, v = (tokens(conv(x)) for conv in (block.W_theta, block.W_phi, block.W_g))
    y = softmax_attention(q, k, v, scale=4**-0.5) @ block.W_z.weight[:, :, 0, 0].T
    torch.testing.assert_close(tokens(block(x)), y + tokens(x))


@limit("non_local", "mean")
def test_a_non_local_block_that_asks_nothing_adds_the_mean_of_the_image():
    block, x = module("non_local", channels=8), normal(2, 8, 5, 7)
    block.W_theta.weight.fill_(0.0)
    torch.testing.assert_close(block(x), x + block.W_z(block.W_g(x).mean((2, 3), keepdim=True)))


# ---- channel and spatial ---------------------------------------------------------------------------------------------


@limit("cbam", "se")
def test_cbam_without_the_maximum_and_the_spatial_gate_is_squeeze_and_excitation():
    cbam = module("cbam", channels=6, reduction=2, max_branch=False, spatial=False)
    se, x = module("se", channels=6, reduction=2), normal(2, 6, 5, 7)
    cbam.channel.W0, cbam.channel.W1 = se.W1, se.W2
    assert torch.equal(cbam(x), se(x))


@limit("cbam", "identity")
def test_cbam_with_large_biases_of_both_gates_is_the_identity():
    cbam, x = module("cbam", channels=6, reduction=2), normal(2, 6, 5, 7)
    cbam.channel.W1.bias.fill_(1000.0)
    cbam.spatial.f.bias.fill_(1000.0)
    assert torch.equal(cbam(x), x)


@limit("coord", "row gate")
def test_coordinate_attention_with_open_columns_is_a_gate_for_every_row():
    coord, x = module("coord", channels=6), normal(2, 6, 5, 7)
    coord.Fw.bias.fill_(1000.0)
    s = torch.sigmoid(coord.Fh(F.hardswish(coord.BN(coord.F1(x.mean(3))))))  # B C H
    torch.testing.assert_close(coord(x), x * s[..., None])


@limit("coord", "identity")
def test_coordinate_attention_with_open_rows_and_columns_is_the_identity():
    coord, x = module("coord", channels=6), normal(2, 6, 5, 7)
    coord.Fh.bias.fill_(1000.0)
    coord.Fw.bias.fill_(1000.0)
    assert torch.equal(coord(x), x)


@limit("coord", "se")
def test_coordinate_attention_of_one_row_is_squeeze_and_excitation():
    coord, se = module("coord", channels=6, reduction=2, min_hidden=1), module("se", channels=6, reduction=2)
    x, k = normal(2, 6, 1, 9), 1e9  # the mean of the only row is the mean of the map
    coord.Fw.bias.fill_(torch.inf)
    coord.F1.weight.copy_(se.W1.weight[..., None])
    coord.BN.weight.fill_(k * (1 + coord.BN.eps) ** 0.5)
    coord.BN.bias.copy_(k * se.W1.bias)                   # f = h-swish(k v) is k ReLU(v), but for |v| < 3 / k
    coord.Fh.weight.copy_(se.W2.weight[..., None] / k)
    coord.Fh.bias.copy_(se.W2.bias)
    torch.testing.assert_close(coord(x), se(x))


@limit("simam", "constant gate")
def test_simam_with_a_large_lambda_gates_everything_alike():
    simam, x = module("simam", channels=6, lam=1e30), normal(2, 6, 5, 7)
    assert torch.equal(simam(x), x * torch.sigmoid(torch.tensor(0.5, dtype=x.dtype)))


@limit("simam", "activation function")
def test_simam_of_standardised_channels_is_an_activation_function():
    x = normal(2, 6, 5, 7)
    x = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)
    simam = module("simam", channels=6, lam=1e-15)
    torch.testing.assert_close(simam(x), x * torch.sigmoid(x**2 / 4 + 0.5))


# ---- branch ----------------------------------------------------------------------------------------------------------


@limit("sk", "convolution")
def test_selective_kernel_with_one_branch_is_convolution_batch_norm_relu():
    sk, x = module("sk", channels=6, groups=3, dilations=(2,)), normal(2, 6, 5, 7)
    conv, bn, _ = sk.branches[0]
    U = F.conv2d(x, conv.weight, padding=2, dilation=2, groups=3)
    torch.testing.assert_close(sk(x), F.relu(F.batch_norm(U, bn.running_mean, bn.running_var, bn.weight, bn.bias)))


@limit("sk", "mean")
def test_selective_kernel_without_logits_is_the_mean_of_its_branches():
    sk, x = module("sk", channels=6, groups=3, dilations=(1, 2, 3)), normal(2, 6, 5, 7)
    sk.A.weight.fill_(0.0)
    torch.testing.assert_close(sk(x), sum(branch(x) for branch in sk.branches) / 3)


# ---- temporal --------------------------------------------------------------------------------------------------------


@limit("pyraformer", "self-attention")
def test_pyramidal_attention_of_one_scale_with_enough_neighbours_is_self_attention():
    pam, x = module("pyraformer", dim=8, heads=1, scales=1, neighbours=13), normal(2, 7, 8)
    nodes = F.layer_norm(x, (8,), pam.construct.norm.weight, pam.construct.norm.bias)
    y = softmax_attention(pam.Wq(nodes), pam.Wk(nodes), pam.Wv(nodes), scale=8**-0.5)
    torch.testing.assert_close(pam(x), pam.Wo(y))


@limit("pyraformer", "banded attention")
def test_pyramidal_attention_of_one_scale_is_banded_attention():
    pam, x = module("pyraformer", dim=8, heads=1, scales=1, neighbours=3), normal(2, 7, 8)
    q, k, v = (W(pam.construct(x)) for W in (pam.Wq, pam.Wk, pam.Wv))
    y = torch.cat([softmax_attention(q[:, i:i + 1], k[:, max(0, i - 1):i + 2], v[:, max(0, i - 1):i + 2], scale=8**-0.5)
                   for i in range(7)], 1)
    torch.testing.assert_close(pam(x), pam.Wo(y))


# ---- self-attention --------------------------------------------------------------------------------------------------


@limit("mhsa", "self-attention")
def test_mhsa_without_position_vectors_is_self_attention_on_tokens():
    mhsa, x = module("mhsa", channels=8, heads=2, height=5, width=7), normal(2, 8, 5, 7)
    mhsa.Rh.fill_(0.0)
    mhsa.Rw.fill_(0.0)
    torchs = torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True).double()
    torchs.in_proj_weight.data = torch.cat([W.weight[:, :, 0, 0] for W in (mhsa.Wq, mhsa.Wk, mhsa.Wv)])
    torchs.out_proj.weight.data = torch.eye(8, dtype=torch.float64)  # MHSA has no projection at its end
    torch.testing.assert_close(tokens(mhsa(x)), torchs(tokens(x), tokens(x), tokens(x))[0])


@limit("mhsa", "mean")
def test_mhsa_that_asks_nothing_returns_the_mean_value_everywhere():
    mhsa, x = module("mhsa", channels=8, heads=2, height=5, width=7), normal(2, 8, 5, 7)
    mhsa.Wq.weight.fill_(0.0)
    torch.testing.assert_close(mhsa(x), mhsa.Wv(x).mean((2, 3), keepdim=True).expand_as(x))


@limit("biformer", "mhsa")
def test_bi_level_routing_that_chooses_every_region_is_full_attention():
    bra, x = module("biformer", channels=8, heads=2, regions=3, topk=9), normal(2, 8, 5, 7)
    mhsa = module("mhsa", channels=8, heads=2, position=None)
    for name in ("Wq", "Wk", "Wv"):  # biases of BRA's q, k, v are none of MHSA's
        getattr(bra, name).bias.fill_(0.0)
        getattr(bra, name).weight.copy_(getattr(mhsa, name).weight)
    bra.LCE.weight.fill_(0.0)
    bra.LCE.bias.fill_(0.0)
    torch.testing.assert_close(bra(x), bra.Wo(mhsa(x)))


@limit("biformer", "window attention")
def test_bi_level_routing_in_which_regions_choose_themselves_is_window_attention():
    bra, x = module("biformer", channels=8, heads=1, regions=2, topk=1), normal(2, 8, 4, 6)
    bra.route = lambda q, k, real: torch.arange(4).view(1, 4, 1).expand(2, 4, 1)
    y = torch.empty_like(x)
    for rows in (slice(0, 2), slice(2, 4)):
        for columns in (slice(0, 3), slice(3, 6)):
            window = x[:, :, rows, columns]
            q, k, v = (tokens(W(window)) for W in (bra.Wq, bra.Wk, bra.Wv))
            attended = softmax_attention(q, k, v, scale=8**-0.5)
            y[:, :, rows, columns] = attended.mT.reshape(window.shape)
    torch.testing.assert_close(bra(x), bra.Wo(y + bra.LCE(bra.Wv(x))))


# ---- mlp -------------------------------------------------------------------------------------------------------------


@limit("vip", "linear channel MLP")
def test_permute_mlp_without_its_spatial_branches_is_a_linear_channel_mlp():
    vip, x = module("vip", channels=6, height=5, width=7, segments=2, weighted=False), normal(2, 6, 5, 7)
    vip.WH.weight.fill_(0.0)
    vip.WW.weight.fill_(0.0)
    torch.testing.assert_close(vip(x), F.conv2d(F.conv2d(x, vip.WC.weight), vip.WP.weight, vip.WP.bias))


@limit("vip", "convolution")
def test_permute_mlp_with_equal_weights_at_equal_distance_is_convolution_along_the_columns():
    vip, x = module("vip", channels=6, height=5, width=7, segments=2, weighted=False), normal(2, 6, 5, 7)
    kernel = normal(2, 2, 9)  # s, s′, distance −4 … 4
    distance = torch.arange(5) - torch.arange(5)[:, None]  # h′ − h
    vip.WH.weight.copy_(kernel[:, :, distance + 4].permute(2, 0, 3, 1).reshape(10, 10))
    vip.WW.weight.fill_(0.0)
    vip.WC.weight.fill_(0.0)
    groups = F.conv2d(x.reshape(2 * 3, 2, 5, 7), kernel[..., None], padding=(4, 0))  # each group of S = 2 channels
    torch.testing.assert_close(vip(x), F.conv2d(groups.reshape_as(x), vip.WP.weight, vip.WP.bias))


@limit("vip", "one layer of token mixing")
def test_permute_mlp_of_one_column_and_one_segment_is_a_layer_of_token_mixing():
    vip, x = module("vip", channels=6, height=5, width=1, segments=1, weighted=False), normal(2, 6, 5, 1)
    vip.WW.weight.fill_(0.0)
    vip.WC.weight.fill_(0.0)
    mixed = torch.einsum("mn,bnc->bmc", vip.WH.weight, tokens(x))  # as in MLP-Mixer: one matrix for all channels
    torch.testing.assert_close(tokens(vip(x)), mixed @ vip.WP.weight[:, :, 0, 0].T + vip.WP.bias)


# ---- convolution -----------------------------------------------------------------------------------------------------


@limit("deform", "convolution")
def test_deformable_convolution_without_offsets_is_convolution():
    deform, x = module("deform", channels=4), normal(2, 4, 6, 7)
    deform.offset_conv.weight.fill_(0.0)
    deform.offset_conv.bias[: 2 * 9] = 0.0     # Δp
    deform.offset_conv.bias[2 * 9 :] = 1000.0  # Δm = σ(1000) = 1
    torch.testing.assert_close(deform(x), F.conv2d(x, deform.weight, deform.bias, padding=1))


# ---- fusion ----------------------------------------------------------------------------------------------------------


@limit("gated", "mean")
def test_gated_fusion_without_weights_is_the_mean():
    fuse, x, y = module("gated", channels=6), normal(2, 6, 5, 7), normal(2, 6, 5, 7, seed=2)
    for p in fuse.parameters():
        p.fill_(0.0)
    torch.testing.assert_close(fuse(x, y), (x + y) / 2)


@limit("gated", "identity")
def test_gated_fusion_with_a_large_bias_is_the_identity_on_one_input():
    fuse, x, y = module("gated", channels=6), normal(2, 6, 5, 7), normal(2, 6, 5, 7, seed=2)
    fuse.Wz2.bias.fill_(1000.0)
    assert torch.equal(fuse(x, y), x)
    fuse.Wz2.bias.fill_(-1000.0)
    assert torch.equal(fuse(x, y), y)


@limit("gated", "highway layer")
def test_gated_fusion_of_a_layer_and_its_input_is_a_highway_layer():
    fuse, x = module("gated", channels=6, layout="B T N C"), normal(2, 5, 7, 6)
    fuse.Wz1.weight.fill_(0.0)
    layer = torch.tanh(x @ normal(6, 6, seed=2))
    T = torch.sigmoid(x @ fuse.Wz2.weight.T + fuse.Wz2.bias)  # the transform gate sees the input alone
    torch.testing.assert_close(fuse(layer, x), layer * T + x * (1 - T))


# ---- the list --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", attn_lib.list_modules())
def test_every_limit_that_the_catalog_states_is_proven_here(id):
    stated = set(attn_lib.entry(id).reduces_to)
    assert stated, f"{id} states no limit; every module has at least one"
    proven = {becomes for module, becomes in PROVEN if module == id}
    assert not stated - proven, f'reduces_to states {sorted(stated - proven)}: prove it here, under @limit("{id}", …)'
    assert not proven - stated, f"proven here, and not stated in reduces_to: {sorted(proven - stated)}"
