"""Limits of the self-attention."""

import torch
from torch.nn.functional import hardsigmoid, relu6

import attn_lib
from tests.unit.draw import randn
from tests.unit.modules.limits.proof import drawn, every_limit_is_proven, limit, softmax_attention, tokens


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


test_every_limit_is_proven = every_limit_is_proven("self_attention")
