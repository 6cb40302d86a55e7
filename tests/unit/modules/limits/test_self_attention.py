"""Limits of the self-attention."""

import torch

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
