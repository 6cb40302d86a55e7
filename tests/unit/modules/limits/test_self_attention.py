"""Limits of the self-attention."""

import torch
import torch.nn.functional as F
from torch.nn.functional import hardsigmoid, relu6

import attn_lib
from tests.unit.draw import randn
from tests.unit.modules.limits.proof import drawn, every_limit_is_proven, limit, softmax_attention, tokens


def silence(block):
    """A pre-norm block both of whose halves end in zero."""
    for W in (block.attention.Wo, block.W2):
        W.weight.fill_(0.0)
        W.bias.fill_(0.0)


@limit("mhsa", "self-attention")
def test_mhsa_without_position_vectors_is_self_attention_on_tokens():
    mhsa, x = drawn("mhsa", channels=8, heads=2, height=5, width=7), randn(2, 8, 5, 7)
    mhsa.Rh.fill_(0.0)
    mhsa.Rw.fill_(0.0)
    torchs = torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True).double()
    torchs.in_proj_weight.data = torch.cat([W.weight[:, :, 0, 0] for W in (mhsa.Wq, mhsa.Wk, mhsa.Wv)])
    torchs.out_proj.weight.data = torch.eye(8, dtype=torch.float64)  # MHSA has no projection at its end
    torch.testing.assert_close(tokens(mhsa(x)), torchs(tokens(x), tokens(x), tokens(x))[0])


@limit("mhsa", "mean")
def test_mhsa_that_asks_nothing_returns_the_mean_value_everywhere():
    mhsa, x = drawn("mhsa", channels=8, heads=2, height=5, width=7), randn(2, 8, 5, 7)
    mhsa.Wq.weight.fill_(0.0)
    torch.testing.assert_close(mhsa(x), mhsa.Wv(x).mean((2, 3), keepdim=True).expand_as(x))


@limit("biformer", "mhsa")
def test_bi_level_routing_that_chooses_every_region_is_full_attention():
    bra, x = drawn("biformer", channels=8, heads=2, regions=3, topk=9), randn(2, 8, 5, 7)
    mhsa = drawn("mhsa", channels=8, heads=2, position=None)
    for name in ("Wq", "Wk", "Wv"):  # biases of BRA's q, k, v are none of MHSA's
        getattr(bra, name).bias.fill_(0.0)
        getattr(bra, name).weight.copy_(getattr(mhsa, name).weight)
    bra.LCE.weight.fill_(0.0)
    bra.LCE.bias.fill_(0.0)
    torch.testing.assert_close(bra(x), bra.Wo(mhsa(x)))


@limit("biformer", "window attention")
def test_bi_level_routing_in_which_regions_choose_themselves_is_window_attention():
    bra, x = drawn("biformer", channels=8, heads=1, regions=2, topk=1), randn(2, 8, 4, 6)
    bra.route = lambda q, k, real: torch.arange(4).view(1, 4, 1).expand(2, 4, 1)
    y = torch.empty_like(x)
    for rows in (slice(0, 2), slice(2, 4)):
        for columns in (slice(0, 3), slice(3, 6)):
            window = x[:, :, rows, columns]
            q, k, v = (tokens(W(window)) for W in (bra.Wq, bra.Wk, bra.Wv))
            attended = softmax_attention(q, k, v, scale=8**-0.5)
            y[:, :, rows, columns] = attended.mT.reshape(window.shape)
    torch.testing.assert_close(bra(x), bra.Wo(y + bra.LCE(bra.Wv(x))))


@limit("external", "constant")
def test_external_attention_with_one_slot_gives_every_position_the_same_vector():
    external, x = drawn("external", channels=8, slots=1), randn(2, 8, 5, 7)
    assert torch.equal(external(x), external.Mv[0, :, None, None].expand_as(x))


@limit("external", "self-attention")
def test_external_attention_with_orthonormal_tokens_in_its_memory_is_self_attention():
    external = drawn("external", channels=8, slots=8, layout="B N C")
    x, W = torch.linalg.qr(randn(8, 8))[0], randn(8, 8, seed=2)  # each token likes itself alone: all slots sum up alike
    external.Mk.copy_(x)
    external.Mv.copy_(x @ W)
    torch.testing.assert_close(external(x[None]), softmax_attention(x[None], x[None], (x @ W)[None], scale=1.0))


@limit("swiftformer", "linear layer")
def test_efficient_additive_attention_that_weighs_no_query_is_a_linear_layer_of_directions():
    additive, x = drawn("swiftformer", channels=8, layout="B N C"), randn(2, 7, 8)
    additive.wa.fill_(0.0)  # G = 0: the keys take no part
    q = additive.Wq(x)
    y = additive.Wo(additive.Wp.bias + q / q.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(additive(x), y)
@limit("axial", "identity")
def test_axial_blocks_whose_halves_end_in_zero_are_the_identity():
    axial, x = drawn("axial", channels=8, heads=2, depth=2), randn(2, 8, 5, 7)
    for block in axial.blocks:
        silence(block)
    assert torch.equal(axial(x), x)


@limit("axial", "self-attention")
def test_axial_attention_of_a_single_row_with_silent_columns_is_self_attention():
    axial, x = drawn("axial", channels=8, heads=1), randn(2, 8, 1, 7)
    row, column = axial.blocks
    silence(column)
    row.W2.weight.fill_(0.0)
    row.W2.bias.fill_(0.0)
    normal = row.norm1(tokens(x))
    q, k, v = (W(normal) for W in (row.attention.Wq, row.attention.Wk, row.attention.Wv))
    attended = row.attention.Wo(softmax_attention(q, k, v, scale=8**-0.5))
    torch.testing.assert_close(tokens(axial(x)), tokens(x) + attended)


@limit("cloformer", "mhsa")
def test_cloformer_attention_with_global_heads_alone_and_windows_of_one_pixel_is_full_attention():
    clo = drawn("cloformer", channels=8, heads=2, group_split=(2,), kernel_sizes=(), window_size=1)
    mhsa = drawn("mhsa", channels=8, heads=2, position=None)
    for name in ("Wq", "Wk", "Wv"):  # biases of CloFormer's q, k, v are none of MHSA's
        getattr(clo, name).bias.fill_(0.0)
        getattr(clo, name).weight.copy_(getattr(mhsa, name).weight)
    x = randn(2, 8, 5, 7)
    torch.testing.assert_close(clo(x), clo.Wo(mhsa(x)))


@limit("cloformer", "convolution")
def test_cloformer_attention_with_open_local_gates_is_three_convolutions():
    clo, x = drawn("cloformer", channels=8, heads=2, group_split=(2, 0), kernel_sizes=(3,)), randn(2, 8, 5, 7)
    local = clo.local[0]
    local.W2.bias.fill_(1e4)
    v = F.conv2d(x, local.Wqkv.weight[16:], local.Wqkv.bias[16:])
    v = F.conv2d(v, local.DWConv.weight[16:], local.DWConv.bias[16:], padding=1, groups=8)
    torch.testing.assert_close(clo(x), clo.Wo(v))


@limit("emsa", "mhsa")
def test_efficient_self_attention_that_saves_and_transforms_nothing_is_full_attention():
    emsa, mhsa = drawn("emsa", channels=8, heads=2, transform=False), drawn("mhsa", channels=8, heads=2, position=None)
    for name in ("Wq", "Wk", "Wv"):  # biases of EMSA's q, k, v are none of MHSA's
        getattr(emsa, name).bias.fill_(0.0)
        getattr(emsa, name).weight.copy_(getattr(mhsa, name).weight)
    x = randn(2, 8, 5, 7)
    torch.testing.assert_close(emsa(x), emsa.Wo(mhsa(x)))


@limit("halo", "mhsa")
def test_halo_attention_in_a_block_that_holds_the_map_is_attention_of_all_pixels():
    halo = drawn("halo", channels=8, heads=2, block_size=8, halo_size=1)
    mhsa = drawn("mhsa", channels=8, heads=2, height=5, width=7)
    for name in ("Wq", "Wk", "Wv"):
        getattr(mhsa, name).weight.copy_(getattr(halo, name).weight)
    mhsa.Rh.copy_(halo.Rh[8 - 4:8 + 5])  # distance 0 stands in row 8
    mhsa.Rw.copy_(halo.Rw[8 - 6:8 + 7])
    x = randn(2, 8, 5, 7)
    torch.testing.assert_close(halo(x), mhsa(x))


@limit("halo", "window attention")
def test_halo_attention_without_halo_and_positions_is_window_attention():
    halo, x = drawn("halo", channels=8, heads=1, block_size=3, halo_size=0), randn(2, 8, 6, 9)
    halo.Rh.fill_(0.0)
    halo.Rw.fill_(0.0)
    y = torch.empty_like(x)
    for i in range(0, 6, 3):
        for j in range(0, 9, 3):
            window = x[:, :, i:i + 3, j:j + 3]
            q, k, v = (tokens(W(window)) for W in (halo.Wq, halo.Wk, halo.Wv))
            y[:, :, i:i + 3, j:j + 3] = softmax_attention(q, k, v, scale=8**-0.5).mT.reshape(window.shape)
    torch.testing.assert_close(halo(x), y)


@limit("mobilevit", "self-attention")
def test_mobilevit_with_patches_of_one_pixel_lets_all_pixels_attend():
    m, x = drawn("mobilevit", channels=3, dim=8, heads=1, depth=1, patch_size=1), randn(2, 3, 4, 5)
    block, z = m.blocks[0], tokens(m.Wl(m.local(x)))
    normal = block.norm1(z)
    q, k, v = (W(normal) for W in (block.attention.Wq, block.attention.Wk, block.attention.Wv))
    z = z + block.attention.Wo(softmax_attention(q, k, v, scale=8**-0.5))
    z = z + block.W2(F.silu(block.W1(block.norm2(z))))
    features = m.project(m.norm(z).mT.reshape(2, 8, 4, 5))
    torch.testing.assert_close(m(x), m.fuse(torch.cat([x, features], 1)))


@limit("mobilevit", "linear layer")
def test_mobilevit_with_one_patch_for_the_map_attends_by_a_matrix():
    m, x = drawn("mobilevit", channels=3, dim=8, heads=2, depth=1, patch_size=4), randn(2, 3, 4, 4)
    block, z = m.blocks[0], tokens(m.Wl(m.local(x)))
    z = z + block.attention.Wo(block.attention.Wv(block.norm1(z)))  # whatever W_q and W_k are
    z = z + block.W2(F.silu(block.W1(block.norm2(z))))
    features = m.project(m.norm(z).mT.reshape(2, 8, 4, 4))
    torch.testing.assert_close(m(x), m.fuse(torch.cat([x, features], 1)))


@limit("osra", "mhsa")
def test_overlapping_reduction_by_1_without_refinement_is_full_attention():
    osra, mhsa = drawn("osra", channels=8, heads=2), drawn("mhsa", channels=8, heads=2, position=None)
    osra.LR.weight.fill_(0.0)
    osra.LR.bias.fill_(0.0)
    for name in ("Wq", "Wk", "Wv"):  # biases of OSRA's Q, K, V are none of MHSA's
        getattr(osra, name).bias.fill_(0.0)
        getattr(osra, name).weight.copy_(getattr(mhsa, name).weight)
    x = randn(2, 8, 5, 7)
    torch.testing.assert_close(osra(x), mhsa(x))


@limit("vit", "identity")
def test_an_encoder_block_whose_two_halves_end_in_zero_is_the_identity():
    block, z = drawn("vit", channels=8, heads=2), randn(2, 7, 8)
    for W in (block.MSA.Wo, block.W2):
        W.weight.fill_(0.0)
        W.bias.fill_(0.0)
    assert torch.equal(block(z), z)


@limit("vit", "self-attention")
def test_an_encoder_block_without_its_mlp_adds_self_attention_of_the_normalised_tokens():
    block, z = drawn("vit", channels=8, heads=1), randn(2, 7, 8)
    block.W2.weight.fill_(0.0)
    block.W2.bias.fill_(0.0)
    normal = block.norm1(z)
    q, k, v = (W(normal) for W in (block.MSA.Wq, block.MSA.Wk, block.MSA.Wv))
    torch.testing.assert_close(block(z), z + block.MSA.Wo(softmax_attention(q, k, v, scale=8**-0.5)))
@limit("acmix", "convolution")
def test_acmix_without_attention_is_one_convolution():
    acmix, x = drawn("acmix", channels=8, heads=2, conv_order="release"), randn(2, 8, 5, 7)
    acmix.alpha.fill_(0.0)
    for W in (acmix.Wq, acmix.Wk, acmix.Wv):
        W.bias.fill_(0.0)
    rows = torch.cat([W.weight[:, :, 0, 0].unflatten(0, (2, 4)) for W in (acmix.Wq, acmix.Wk, acmix.Wv)])  # 3h d C
    maps = torch.einsum("mt,tdC->dmC", acmix.Wf.weight[:, :, 0, 0], rows)
    kernel = torch.einsum("dnmij,dmC->dnCij", acmix.Ws.weight.unflatten(0, (4, 2)), maps).flatten(0, 1)
    torch.testing.assert_close(acmix(x), acmix.beta * torch.conv2d(x, kernel, padding=1))


@limit("acmix", "mhsa")
def test_acmix_that_looks_everywhere_and_does_not_convolve_is_full_attention():
    acmix, x = drawn("acmix", channels=8, heads=2, kernel_size=13), randn(2, 8, 5, 7)
    mhsa = drawn("mhsa", channels=8, heads=2, position=None)
    acmix.alpha.fill_(1.0)
    acmix.beta.fill_(0.0)
    acmix.Wp.weight.fill_(0.0)
    for name in ("Wq", "Wk", "Wv"):
        getattr(acmix, name).bias.fill_(0.0)
        getattr(mhsa, name).weight.copy_(getattr(acmix, name).weight)
    torch.testing.assert_close(acmix(x), mhsa(x))


@limit("cot", "convolution")
def test_a_contextual_transformer_that_takes_the_static_context_alone_is_a_convolution():
    cot, x = drawn("cot", channels=8, min_dim=4), randn(2, 8, 5, 7)
    cot.Wa.bias[1::2] = 1e4
    assert torch.equal(cot(x), cot.norm_k(cot.Wk(x)).relu())


@limit("cot", "mean")
def test_a_contextual_transformer_that_cannot_choose_takes_the_mean_of_its_contexts():
    cot, x = drawn("cot", channels=8, min_dim=4), randn(2, 8, 5, 7)
    cot.Wa.weight.fill_(0.0)
    cot.Wa.bias.fill_(0.0)
    with attn_lib.trace() as t:
        y = cot(x)
    torch.testing.assert_close(y, (t["K1"] + t["K2"]) / 2)


def _without_positions(lsda):
    lsda.DPB.W4.weight.fill_(0.0)
    lsda.DPB.W4.bias.fill_(0.0)
    return lsda


@limit("crossformer", "window attention")
def test_short_distance_attention_without_positions_is_window_attention():
    lsda, x = _without_positions(drawn("crossformer", channels=8, heads=1, group=3)), randn(2, 8, 6, 9)
    y = torch.empty_like(x)
    for top in (0, 3):
        for left in (0, 3, 6):
            window = x[..., top:top + 3, left:left + 3]
            q, k, v = lsda.Wqkv(tokens(window)).chunk(3, -1)
            attended = lsda.Wo(softmax_attention(q, k, v, scale=8**-0.5))
            y[..., top:top + 3, left:left + 3] = attended.mT.reshape(window.shape)
    torch.testing.assert_close(lsda(x), y)


@limit("crossformer", "mhsa")
def test_a_group_that_covers_the_map_is_full_attention():
    lsda = _without_positions(drawn("crossformer", channels=8, heads=2, group=9, qkv_bias=False))
    mhsa, x = drawn("mhsa", channels=8, heads=2, position=None), randn(2, 8, 5, 7)
    for W, weight in zip((mhsa.Wq, mhsa.Wk, mhsa.Wv), lsda.Wqkv.weight.chunk(3), strict=True):
        W.weight.copy_(weight[:, :, None, None])
    torch.testing.assert_close(tokens(lsda(x)), lsda.Wo(tokens(mhsa(x))))


@limit("dilateformer", "linear layer")
def test_dilated_attention_that_reaches_past_the_map_leaves_every_pixel_to_itself():
    m = drawn("dilateformer", channels=6, heads=2, dilations=(7, 9), padding="masked", qkv_bias=True)
    x = randn(2, 6, 5, 7)
    v = m.Wqkv(x).chunk(3, 1)[2]
    torch.testing.assert_close(m(x), m.Wo(v))


@limit("dilateformer", "mhsa")
def test_dilated_attention_with_a_kernel_that_covers_the_map_is_full_attention():
    m = drawn("dilateformer", channels=8, heads=2, dilations=(1,), kernel_size=13, padding="masked")
    mhsa, x = drawn("mhsa", channels=8, heads=2, position=None), randn(2, 8, 5, 7)
    for W, weight in zip((mhsa.Wq, mhsa.Wk, mhsa.Wv), m.Wqkv.weight.chunk(3), strict=True):
        W.weight.copy_(weight)
    torch.testing.assert_close(m(x), m.Wo(mhsa(x)))


@limit("a2", "mean")
def test_double_attention_that_gathers_everywhere_alike_hands_out_the_mean():
    a2, x = drawn("a2", channels=8, m=4, n=3), randn(2, 8, 5, 7)
    a2.Wtheta.weight.fill_(0.0)
    torch.testing.assert_close(a2(x), x + a2.Wz(a2.Wphi(x).mean((2, 3), keepdim=True)))


@limit("a2", "identity")
def test_double_attention_without_its_way_out_is_the_identity():
    a2, x = drawn("a2", channels=8, m=4, n=3), randn(2, 8, 5, 7)
    a2.Wz.weight.fill_(0.0)
    a2.Wz.bias.fill_(0.0)
    assert torch.equal(a2(x), x)


@limit("ufo", "linear layer")
def test_ufo_attention_of_orthonormal_channels_is_a_linear_layer_of_directions():
    ufo, x = drawn("ufo", channels=8, heads=1, layout="B N C", bias=False), torch.linalg.qr(randn(20, 8))[0][None]
    for W in (ufo.Wk, ufo.Wv):
        W.weight.copy_(torch.eye(8))  # KᵀV = xᵀx = 1: what it knows of an image is how its channels go together
    q = ufo.Wq(x)
    torch.testing.assert_close(ufo(x), ufo.Wo(ufo.gamma**2 * q / q.norm(dim=-1, keepdim=True)))


@limit("ufo", "constant")
def test_ufo_attention_without_gamma_gives_every_position_its_bias():
    ufo, x = drawn("ufo", channels=8, heads=2), randn(2, 8, 5, 7)
    ufo.gamma.fill_(0.0)
    assert torch.equal(ufo(x), ufo.Wo.bias[:, None, None].expand_as(x))
@limit("emo", "identity")
def test_a_mobile_block_without_its_way_out_is_the_identity():
    emo, x = drawn("emo", channels=8, heads=2, window=3), randn(2, 8, 5, 7)
    emo.Wo.weight.fill_(0.0)
    assert torch.equal(emo(x), x)


@limit("emo", "self-attention")
def test_a_mobile_block_with_one_window_and_no_convolution_is_self_attention():
    emo, x = drawn("emo", channels=8, heads=1, window=9, expansion=2.0), randn(2, 8, 5, 7)
    emo.norm_d.weight.fill_(0.0)
    emo.norm_d.bias.fill_(0.0)  # SiLU(0) = 0: the inner skip alone remains
    x_hat = torch.nn.functional.layer_norm(tokens(x), (8,), emo.norm.weight, emo.norm.bias, eps=1e-6)
    q, k = (x_hat @ emo.Wqk.weight[:, :, 0, 0].T + emo.Wqk.bias).chunk(2, -1)
    V = torch.nn.functional.gelu(x_hat @ emo.Wv.weight[:, :, 0, 0].T + emo.Wv.bias)
    attended = softmax_attention(q, k, V, scale=8**-0.5)
    torch.testing.assert_close(tokens(emo(x)), tokens(x) + attended @ emo.Wo.weight[:, :, 0, 0].T)


def _sea(**options):
    """A module without positions, and what its output is for given results of the attention of rows and columns."""
    sea = drawn("seaformer", channels=6, key_dim=4, heads=1, attn_ratio=1.0, **options)
    for r in (sea.rq_row, sea.rk_row, sea.rq_col, sea.rk_col):
        r.fill_(0.0)

    def output(x, rows, cols):
        q, k, v = sea.norm_q(sea.Wq(x)), sea.norm_k(sea.Wk(x)), sea.norm_v(sea.Wv(x))
        mixed = v + sea.norm_row(sea.Wrow(relu6(rows))) + sea.norm_col(sea.Wcol(relu6(cols)))
        detail = relu6(sea.norm_dw(sea.DW(torch.cat((q, k, v), 1))))
        return hardsigmoid(sea.norm_o(sea.Wo(relu6(mixed)))) * sea.norm_d(sea.Wd(detail))

    return sea, output


@limit("seaformer", "self-attention")
def test_squeezed_columns_of_a_map_of_one_row_are_pixels_that_attend_to_each_other():
    (sea, output), x = _sea(), randn(2, 6, 1, 7)
    q, k, v = (tokens(norm(W(x))) for W, norm in ((sea.Wq, sea.norm_q), (sea.Wk, sea.norm_k), (sea.Wv, sea.norm_v)))
    attended = softmax_attention(q, k, v, scale=4**-0.5).mT[:, :, None]
    torch.testing.assert_close(sea(x), output(x, rows=v.mean(1)[:, :, None, None], cols=attended))


@limit("seaformer", "mean")
def test_squeezed_axial_attention_that_asks_nothing_knows_the_mean_alone():
    (sea, output), x = _sea(), randn(2, 6, 5, 7)
    sea.norm_q.weight.fill_(0.0)
    sea.norm_q.bias.fill_(0.0)
    mean = sea.norm_v(sea.Wv(x)).mean((2, 3), keepdim=True)
    torch.testing.assert_close(sea(x), output(x, rows=mean, cols=mean))


@limit("stvit", "mhsa")
def test_super_tokens_of_one_pixel_are_full_attention():
    sta = drawn("stvit", channels=8, heads=2, token_size=(1, 1))
    mhsa, x = drawn("mhsa", channels=8, heads=2, position=None), randn(2, 8, 5, 7)
    qkv = sta.Wqkv.weight.unflatten(0, (2, 3, 4))  # heads, then q, k and v
    for n, W in enumerate((mhsa.Wq, mhsa.Wk, mhsa.Wv)):
        W.weight.copy_(qkv[:, n].flatten(0, 1))
    torch.testing.assert_close(sta(x), sta.Wo(mhsa(x)))


@limit("stvit", "mean")
def test_one_super_token_is_the_mean():
    sta, x = drawn("stvit", channels=8, heads=1, token_size=(8, 9)), randn(2, 8, 5, 7)
    v = sta.Wqkv(x.mean((2, 3), keepdim=True)).chunk(3, 1)[2]
    torch.testing.assert_close(sta(x), sta.Wo(v).expand_as(x))


@limit("aft", "token mixing")
def test_attention_free_transformer_without_keys_and_an_open_gate_is_token_mixing():
    aft, x = drawn("aft", channels=8, length=9, rank=3), randn(2, 7, 8)
    aft.Wk.weight.fill_(0.0)
    aft.Wq.bias.fill_(1000.0)
    w = (aft.u @ aft.v.T)[:7, :7].softmax(1)  # one matrix for all channels and all inputs
    torch.testing.assert_close(aft(x), torch.einsum("ij,BjC->BiC", w, aft.Wv(x)))


@limit("aft", "mean")
def test_attention_free_transformer_without_keys_and_positions_is_the_mean_of_the_values():
    x = randn(2, 7, 8)
    for options in (dict(length=9, rank=3), dict(form="local", length=9, window=2), dict(form="simple"),
                    dict(form="conv", heads=2, kernel_size=3)):
        aft = drawn("aft", channels=8, **options)
        aft.Wk.weight.fill_(0.0)
        aft.Wq.bias.fill_(1000.0)
        for name in ("u", "w", "gamma", "beta"):
            if getattr(aft, name, None) is not None:
                getattr(aft, name).fill_(0.0)
        torch.testing.assert_close(aft(x), aft.Wv(x).mean(1, keepdim=True).expand_as(x))


test_every_limit_is_proven = every_limit_is_proven("self_attention")
