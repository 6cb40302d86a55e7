"""The vision transformer's block and network against the paper's equations, their limits, timm, and known mistakes."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import EncoderBlock, VisionTransformer, resize_positions
from tests.unit.draw import D, permutation, randn, randomised
from tests.unit.reference import reference

CASES = [(8, 2, 5), (6, 3, 1), (4, 1, 3), (5, 5, 2)]  # C, h, N
DIM = 1e-3  # so dark that ε counts: the variance of a token is 1e-6


def block_of(C=8, heads=2, seed=0, **options) -> EncoderBlock:
    return randomised(EncoderBlock(C, heads=heads, **options), scale=0.5, seed=seed).requires_grad_(False)


def network(seed=0, **options) -> VisionTransformer:
    plain = dict(height=4, width=6, in_channels=3, patch_size=2, depth=2, heads=2, classes=5)
    return randomised(VisionTransformer(8, **plain | options), scale=0.5, seed=seed).requires_grad_(False)


def traced(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def gelu(x):
    """x Φ(x), a number at a time."""
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def gelu_of_the_release(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(z, norm):
    """One token, a list of C numbers."""
    mean = sum(z) / len(z)
    std = math.sqrt(sum((value - mean) ** 2 for value in z) / len(z) + 1e-6)
    return [(value - mean) / std * w + b
            for value, w, b in zip(z, norm.weight.tolist(), norm.bias.tolist(), strict=True)]


def linear(z, layer):
    return [b + sum(w * value for w, value in zip(row, z, strict=True))
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def equations(block, tokens, activation=gelu):
    """Equations 2 and 3 for the tokens of one image, in plain numbers."""
    h = block.heads
    d = len(tokens[0]) // h
    normal = [layer_norm(z, block.norm1) for z in tokens]
    q, k, v = ([linear(z, W) for z in normal] for W in (block.MSA.Wq, block.MSA.Wk, block.MSA.Wv))
    out = []
    for i, z in enumerate(tokens):
        joined = []
        for head in range(h):
            part = slice(head * d, (head + 1) * d)
            e = [math.exp(sum(a * b for a, b in zip(q[i][part], k_j[part], strict=True)) / math.sqrt(d)) for k_j in k]
            joined += [sum(e_j / sum(e) * v_j[part][c] for e_j, v_j in zip(e, v, strict=True)) for c in range(d)]
        z1 = [a + b for a, b in zip(linear(joined, block.MSA.Wo), z, strict=True)]
        hidden = [activation(value) for value in linear(layer_norm(z1, block.norm2), block.W1)]
        out.append([a + b for a, b in zip(linear(hidden, block.W2), z1, strict=True)])
    return out


def from_the_paper(block, z, activation=gelu):
    return torch.tensor([equations(block, tokens, activation) for tokens in z.tolist()], dtype=D)


@pytest.mark.parametrize("brightness", [1, DIM])
@pytest.mark.parametrize(("C", "heads", "N"), CASES)
def test_equals_the_paper(C, heads, N, brightness):
    block, z = block_of(C, heads), brightness * randn(2, N, C)
    assert_close(block(z), from_the_paper(block, z), rtol=0, atol=1e-12)


def test_release_gelu_is_an_approximation():
    exact, release, z = block_of(), block_of(approximate="tanh"), randn(2, 5, 8)
    assert_close(release(z), from_the_paper(release, z, gelu_of_the_release), rtol=0, atol=1e-12)
    assert 1e-5 < (exact(z) - release(z)).abs().max() < 1e-2


class Wrong(EncoderBlock):
    """The mistakes that circulate in copies, one at a time."""

    mistake = None

    def forward(self, z):
        if self.mistake == "ε of torch":
            self.norm1.eps = self.norm2.eps = 1e-5
        h, C = self.heads, self.channels
        x = z if self.mistake == "post-norm" else self.norm1(z)
        q, k, v = (W(x).unflatten(2, (h, C // h)).transpose(1, 2) for W in (self.MSA.Wq, self.MSA.Wk, self.MSA.Wv))
        if self.mistake == "heads interleaved":
            q, k, v = (W(x).unflatten(2, (C // h, h)).movedim(3, 1) for W in (self.MSA.Wq, self.MSA.Wk, self.MSA.Wv))
        scale = {"scaled by the whole width": C**-0.5, "not scaled": 1.0}.get(self.mistake, (C // h) ** -0.5)
        A = (scale * q @ k.mT).softmax(2 if self.mistake == "softmax over the queries" else 3)
        y = A @ v
        y = self.MSA.Wo((y if self.mistake == "heads not put back" else y.transpose(1, 2)).reshape(z.shape))
        if self.mistake == "residual from the normalised tokens":
            z = x
        z1 = self.norm1(z + y) if self.mistake == "post-norm" else z + y
        hidden = self.W1(z1 if self.mistake == "post-norm" else self.norm2(z1))
        hidden = F.relu(hidden) if self.mistake == "ReLU" else F.gelu(hidden)
        out = self.W2(hidden)
        if self.mistake == "parallel halves":
            return z + y + self.W2(F.gelu(self.W1(self.norm2(z))))
        return {"no residual": out, "post-norm": self.norm2(z1 + out)}.get(self.mistake, z1 + out)


@pytest.mark.parametrize("mistake", [
    "ε of torch", "post-norm", "heads interleaved", "scaled by the whole width", "not scaled",
    "softmax over the queries", "heads not put back", "residual from the normalised tokens", "ReLU", "parallel halves",
    "no residual",
])
def test_the_comparison_with_the_paper_notices(mistake):
    block, z = block_of(), (DIM if mistake == "ε of torch" else 1) * randn(2, 5, 8)
    wrong = Wrong(8, heads=2).to(D)
    wrong.load_state_dict(block.state_dict())
    assert_close(wrong(z), from_the_paper(block, z), rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(z) - from_the_paper(block, z)).abs().max() > 1e-2


def test_taps_are_the_equations():
    block, z = block_of(), randn(2, 5, 8)
    t = traced(block, z)
    assert t.names() == ["q", "k", "v", "A", "z'", "z''"]
    assert_close(t["A"].sum(-1), torch.ones(2, 2, 5, dtype=D))
    assert_close(t["z'"] - z, block.MSA(block.norm1(z)))


# ---- the whole network -----------------------------------------------------------------------------------------------


def network_equations(vit, image):
    """Equations 1 to 4 for one image: patches row by row, each flattened channel by channel, and a class token."""
    P, (_, H, W) = vit.patch_size, image.shape
    E = vit.E.weight.flatten(1)
    tokens = [E @ image[:, i:i + P, j:j + P].reshape(-1) + vit.E.bias for i in range(0, H, P) for j in range(0, W, P)]
    if vit.x_class is not None:
        tokens = [vit.x_class, *tokens]
    if vit.Epos is not None:
        tokens = [z + vit.Epos[n] for n, z in enumerate(tokens)]
    tokens = [z.tolist() for z in tokens]
    for block in vit.blocks:
        tokens = equations(block, tokens)
    tokens = [layer_norm(z, vit.norm) for z in tokens]
    y = tokens[0] if vit.x_class is not None else [sum(column) / len(tokens) for column in zip(*tokens, strict=True)]
    if vit.Wrep is not None:
        y = [math.tanh(value) for value in linear(y, vit.Wrep)]
    return y if vit.Whead is None else linear(y, vit.Whead)


NETWORKS = [
    {}, dict(depth=0), dict(pool="mean"), dict(classes=None), dict(patch_size=1, height=2, width=3),
    dict(height=None, width=None, positions=False), dict(in_channels=1, height=2, width=2),
    dict(representation_size=3), dict(representation_size=3, classes=None),
]


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_the_network_equals_the_paper(options):
    vit = network(**options)
    x = randn(2, vit.in_channels, options.get("height") or 4, options.get("width") or 6)
    expected = torch.tensor([network_equations(vit, image) for image in x], dtype=D)
    assert_close(vit(x), expected, rtol=0, atol=1e-11)


class WrongNetwork(VisionTransformer):
    mistake = None

    def forward(self, x):
        z = self.E(x).flatten(2)
        z = z.reshape(len(x), -1, self.channels) if self.mistake == "reshaped, not transposed" else z.mT
        if self.mistake == "patches column by column":
            z = self.E(x).mT.flatten(2).mT
        cls = self.x_class.expand(len(z), 1, -1)
        if self.mistake == "positions for the patches alone":
            z = torch.cat([cls, z + self.Epos[1:]], 1)
        elif self.mistake == "class token last":
            z = torch.cat([z, cls], 1) + self.Epos
        else:
            z = torch.cat([cls, z], 1) + self.Epos
        z = self.blocks(z)
        z = z if self.mistake == "no last normalisation" else self.norm(z)
        y = {"mean of all tokens": z.mean(1), "last token": z[:, -1]}.get(self.mistake, z[:, 0])
        return self.Whead(y)


@pytest.mark.parametrize("mistake", [
    "reshaped, not transposed", "patches column by column", "positions for the patches alone", "class token last",
    "no last normalisation", "mean of all tokens", "last token",
])
def test_the_comparison_of_the_network_notices(mistake):
    vit, x = network(), randn(2, 3, 4, 6)
    wrong = WrongNetwork(8, height=4, width=6, patch_size=2, depth=2, heads=2, classes=5).to(D)
    wrong.load_state_dict(vit.state_dict())
    expected = torch.tensor([network_equations(vit, image) for image in x], dtype=D)
    assert_close(wrong(x), expected, rtol=0, atol=1e-11)
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_a_remainder_is_refused_and_not_dropped():
    vit, x = network(height=None, width=None, positions=False), randn(1, 3, 5, 6)
    dropped = vit.E(x)  # a convolution without padding does not say that it leaves the last row out
    assert_close(dropped, vit.E(x[:, :, :4]))
    with pytest.raises(ValueError, match="H=5 must be divisible by patch_size=2; 4 and 6 are"):
        vit(x)


def test_without_positions_the_answer_does_not_notice_the_order_of_the_patches():
    order = permutation(6)
    x = randn(2, 3, 4, 6)
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(2, 3)[:, :, order]  # B C N P P
    shuffled = patches.unflatten(2, (2, 3)).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
    blind, sees = network(height=None, width=None, positions=False), network()
    assert_close(blind(shuffled), blind(x), rtol=0, atol=1e-12)
    assert (sees(shuffled) - sees(x)).abs().max() > 1e-2


@pytest.mark.parametrize("token", [0, 1])
@pytest.mark.parametrize(("old", "new"), [((3, 3), (5, 5)), ((2, 3), (3, 2)), ((4, 4), (2, 2)), ((3, 4), (3, 4))])
def test_positions_are_resized_with_corners_on_corners(old, new, token):
    Epos = randn(old[0] * old[1] + token, 4)
    expected = [Epos[n] for n in range(token)]
    for i in range(new[0]):
        for j in range(new[1]):
            y, x = i * (old[0] - 1) / (new[0] - 1), j * (old[1] - 1) / (new[1] - 1)
            expected.append(sum(max(0.0, 1 - abs(y - a)) * max(0.0, 1 - abs(x - b)) * Epos[token + a * old[1] + b]
                                for a in range(old[0]) for b in range(old[1])))
    assert_close(resize_positions(Epos, old, new), torch.stack(expected), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"it must have 4 or 5 rows for the grid old=\(2, 2\)"):
        resize_positions(randn(7, 4), (2, 2), new)


def test_a_network_for_a_larger_image_takes_resized_positions():
    small, large = network(), network(height=6, width=8)
    state = small.state_dict()
    large.load_state_dict({**state, "Epos": resize_positions(state["Epos"], (2, 3), (3, 4))})
    assert large(randn(1, 3, 6, 8)).shape == (1, 5)
    for n, corner in ((1, 1), (4, 3), (9, 4), (12, 6)):  # corners keep their vectors
        assert_close(large.Epos[n], small.Epos[corner])


def test_depth_0_with_a_class_token_has_not_seen_the_image():
    vit = network(depth=0)
    y = vit.norm(vit.x_class + vit.Epos[0])
    assert_close(vit(randn(2, 3, 4, 6)), vit.Whead(y).expand(2, 5))


def test_a_patch_of_one_pixel_is_a_transformer_on_pixels():
    vit = network(patch_size=1, height=None, width=None, positions=False, pool="mean")
    x = randn(2, 3, 2, 3)
    z = x.flatten(2).mT @ vit.E.weight[:, :, 0, 0].T + vit.E.bias
    for block in vit.blocks:
        z = block(z)
    assert_close(vit(x), vit.Whead(vit.norm(z).mean(1)))


def test_a_fresh_network_starts_as_the_release_does():
    vit = VisionTransformer(32, height=32, width=32, patch_size=4, depth=1, heads=4, classes=7)
    assert not vit(torch.randn(2, 3, 32, 32)).any(), "the head starts at zero"
    assert not vit.x_class.any() and vit.Epos.std().item() == pytest.approx(0.02, rel=0.1)
    block = vit.blocks[0]
    bound = math.sqrt(6 / (32 + 128))
    assert 0.9 * bound < block.W1.weight.abs().max() <= bound and not block.MSA.Wq.bias.any()
    assert 0 < block.W1.bias.abs().max() < 1e-5 and block.norm1.eps == 1e-6


def test_parameters_of_vit_b_16():
    """86 million, table 1 of the paper."""
    with torch.device("meta"):
        vit = VisionTransformer(height=224, width=224)
    assert sum(p.numel() for p in vit.parameters()) == 86_567_656


def test_the_network_compiles_exports_and_learns():
    vit = network(height=6, width=4).float().requires_grad_(True)
    x = torch.randn(2, 3, 6, 4)
    expected = vit(x)
    torch.compiler.reset()
    assert_close(torch.compile(vit, fullgraph=True, backend="aot_eager")(x), expected)
    assert_close(torch.export.export(vit, (x,)).module()(x), expected)
    expected.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in vit.parameters())
    for dtype in (torch.bfloat16, torch.float16):
        half = network(height=6, width=4).to(dtype)(x.to(dtype))
        assert half.dtype == dtype and (half.float() - expected).abs().max() < 0.05 * expected.abs().max()
    t = traced(vit, x)
    assert t.sizes()["N"] == 7 and t.names()[-2:] == ["y", "logits"]


# ---- what matters and what does not ----------------------------------------------------------------------------------


def test_the_bias_of_the_keys_changes_nothing():
    block, z = block_of(), randn(2, 5, 8)
    before = block(z)
    block.MSA.Wk.bias.add_(3.0)
    assert_close(block(z), before, rtol=0, atol=1e-12)
    block.MSA.Wq.bias.add_(3.0)
    assert (block(z) - before).abs().max() > 1e-2


def test_dropout_acts_in_training_alone_and_at_three_places():
    block, z = block_of(dropout=0.5), randn(2, 5, 8)
    assert_close(block(z), block_of()(z))
    calls = []
    block.dropout.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    assert (block.train()(z) - block_of()(z)).abs().max() > 1e-2 and len(calls) == 3


@pytest.mark.parametrize(("make", "message"), [
    (lambda: EncoderBlock(10), "channels=10 must be divisible by heads=12; 12 is"),
    (lambda: EncoderBlock(8, heads=2, mlp_ratio=0.0), "mlp_ratio=0.0 must be a positive number"),
    (lambda: EncoderBlock(8, heads=2, mlp_ratio=0.1), r"channels \* mlp_ratio=0 must be an integer of at least 1"),
    (lambda: EncoderBlock(8, heads=2, approximate="sigmoid"), "approximate='sigmoid' must be one of 'none', 'tanh'"),
    (lambda: EncoderBlock(8, heads=2, dropout=1.0), "dropout=1.0 must be a number from 0 to below 1"),
    (lambda: EncoderBlock(8, heads=2, epsilon=0), "epsilon=0 must be a positive number"),
    (lambda: network(height=5), "height=5 must be divisible by patch_size=2; 4 and 6 are"),
    (lambda: network(height=None), "height=None must be an integer"),
    (lambda: network(positions=False), "height=4 must be left out with positions=False"),
    (lambda: network(depth=-1), "depth=-1 must be an integer of at least 0"),
    (lambda: network(pool="max"), "pool='max' must be one of 'token', 'mean'"),
    (lambda: network()(randn(1, 3, 6, 4)), "axis H must be 4, not 6"),
])
def test_bad_option_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_tokens_though_time_is_not():
    """No N × N matrix is kept; the FLOPs of the two products with it grow as N²."""
    block, N = EncoderBlock(16, heads=2), [256, 512, 1024]
    xs = [torch.randn(1, n, 16) for n in N]
    assert measure.fit_exponent(N, [measure.saved_bytes(block, x) for x in xs]) == pytest.approx(1, abs=0.03)
    matrices = 2 * 16 * 16 * (4 + 2 * 4)  # FLOPs a token
    assert [measure.flops(block, x) - matrices * n for x, n in zip(xs, N, strict=True)] == [4 * n * n * 16 for n in N]


# ---- reference packages ----------------------------------------------------------------------------------------------


def copy_block(ours, theirs):
    theirs.load_state_dict({
        "attn.qkv.weight": torch.cat([W.weight for W in (ours.MSA.Wq, ours.MSA.Wk, ours.MSA.Wv)]),
        "attn.qkv.bias": torch.cat([W.bias for W in (ours.MSA.Wq, ours.MSA.Wk, ours.MSA.Wv)]),
        **{f"{name}.{kind}": getattr(module, kind) for kind in ("weight", "bias") for name, module in {
            "norm1": ours.norm1, "norm2": ours.norm2, "attn.proj": ours.MSA.Wo, "mlp.fc1": ours.W1, "mlp.fc2": ours.W2,
        }.items()}})


@pytest.mark.parametrize(("C", "heads", "N"), [(8, 2, 5), (12, 3, 7)])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_equals_timm(C, heads, N, approximate):
    timm = reference("timm.models.vision_transformer")
    theirs = timm.Block(C, heads, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6),
                        act_layer=partial(nn.GELU, approximate=approximate)).to(D).eval()
    ours, z = block_of(C, heads, approximate=approximate), randn(2, N, C)
    copy_block(ours, theirs)
    assert_close(ours(z), theirs(z), rtol=0, atol=1e-12)


def test_the_network_equals_timm():
    timm = reference("timm.models.vision_transformer")
    theirs = timm.VisionTransformer((4, 6), 2, 3, 5, embed_dim=8, depth=2, num_heads=2).to(D).eval()
    ours, x = network(), randn(2, 3, 4, 6)
    for mine, other in zip(ours.blocks, theirs.blocks, strict=True):
        copy_block(mine, other)
    for mine, other in ((ours.E, theirs.patch_embed.proj), (ours.norm, theirs.norm), (ours.Whead, theirs.head)):
        other.load_state_dict(mine.state_dict())
    theirs.pos_embed.data, theirs.cls_token.data = ours.Epos[None], ours.x_class[None, None]
    assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
