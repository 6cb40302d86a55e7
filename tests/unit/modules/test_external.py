"""External attention against its paper and the authors' release, and against the errors in circulation."""

import math

import pytest
import torch
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import ExternalAttention, ExternalAttentionBlock
from tests.unit.draw import D, randn, randomised

TOKENS = "B N C"
CASES = [(8, 5, 7), (3, 1, 4), (1, 6, 1), (4, 3, 12)]  # C, S, N


def make(C=8, *, seed=0, scale=1.0, **options):
    options = {"slots": 5, "layout": TOKENS} | options
    return randomised(ExternalAttention(C, **options), seed=seed, scale=scale).requires_grad_(False)


def make_block(C=8, **options):
    return randomised(ExternalAttentionBlock(C, **{"slots": 5} | options)).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def double_norm(tokens, Mk, Mv, epsilon=0.0):
    """Equations 5 to 9 for the tokens of one image, in plain numbers."""
    N, S = len(tokens), len(Mk)
    logits = [[sum(f * m for f, m in zip(token, slot, strict=True)) for slot in Mk] for token in tokens]
    over_tokens = [sum(math.exp(logits[n][s]) for n in range(N)) for s in range(S)]
    y = []
    for n in range(N):
        e = [math.exp(logits[n][s]) / over_tokens[s] for s in range(S)]
        A = [value / (epsilon + sum(e)) for value in e]
        y.append([sum(A[s] * Mv[s][c] for s in range(S)) for c in range(len(Mv[0]))])
    return y


def from_the_paper(x, external):
    """Of tokens (B, N, C); with heads, each in turn."""
    Mk, Mv, out = external.Mk.tolist(), external.Mv.tolist(), []
    for tokens in x:
        if external.heads is None:
            out.append(double_norm(tokens.tolist(), Mk, Mv, external.epsilon))
            continue
        wide, d = (tokens @ external.Wq.weight.T).tolist(), len(Mk[0])
        joined = [[] for _ in wide]
        for first in range(0, len(wide[0]), d):  # a head
            y = double_norm([token[first:first + d] for token in wide], Mk, Mv, external.epsilon)
            joined = [row + part for row, part in zip(joined, y, strict=True)]
        out.append((torch.tensor(joined, dtype=D) @ external.Wo.weight.T + external.Wo.bias).tolist())
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize("epsilon", [0.0, 1e-9, 0.5])
@pytest.mark.parametrize(("C", "S", "N"), CASES)
def test_equals_the_paper(C, S, N, epsilon):
    external, x = make(C, slots=S, epsilon=epsilon), randn(2, N, C)
    torch.testing.assert_close(external(x), from_the_paper(x, external), rtol=0, atol=1e-13)


@pytest.mark.parametrize("options", [dict(heads=2), dict(heads=8), dict(heads=1), dict(heads=4, expansion=3)], ids=str)
def test_equals_the_paper_with_heads(options):
    external, x = make(8, scale=0.5, **options), randn(2, 7, 8)
    torch.testing.assert_close(external(x), from_the_paper(x, external), rtol=0, atol=1e-13)


@pytest.mark.parametrize("options", [dict(), dict(heads=2)], ids=str)
def test_a_map_is_its_pixels_as_tokens(options):
    on_map, external, x = make(layout="B C H W", **options), make(**options), randn(2, 8, 3, 5)
    torch.testing.assert_close(on_map(x).flatten(2).mT, external(x.flatten(2).mT), rtol=0, atol=1e-13)


class Wrong(ExternalAttention):
    """The mistakes that circulate in copies, one at a time, on tokens."""

    mistake = None

    def forward(self, x):
        e, q = self.mistake, x if self.heads is None else self.Wq(x)
        h = 1 if self.heads is None or e == "one head for all" else self.heads
        if e == "one head for all":  # of the full width: the memory has to be repeated
            Mk, Mv = (M.repeat(1, self.heads) for M in (self.Mk, self.Mv))
        else:
            Mk, Mv = self.Mk, self.Mk if e == "one memory" else self.Mv
        q = q.unflatten(2, (-1, h) if e == "heads interleaved" else (h, -1))
        q = q.permute(0, 3, 1, 2) if e == "heads interleaved" else q.transpose(1, 2)
        logits = q @ Mk.T / (q.shape[-1] ** 0.5 if e == "scaled by 1/sqrt(d)" else 1)
        A = logits.softmax(-2)
        if e == "softmax over the slots":
            A = logits.softmax(-1)
        elif e == "the two norms exchanged":
            A = logits.softmax(-1)
            A = A / A.sum(-2, keepdim=True)
        elif e == "sum over the heads and the slots":
            A = A / A.sum((1, 3), keepdim=True)
        elif e == "softmax over the batch":
            A = logits.softmax(0)
            A = A / A.sum(-1, keepdim=True)
        elif e != "no second norm":
            A = A / A.sum(-1, keepdim=True)
        y = (A @ Mv).transpose(1, 2).flatten(2)
        y = y if self.heads is None else self.Wo(y)
        return x + y if e == "residual added" else y


ALWAYS = ["softmax over the slots", "the two norms exchanged", "no second norm", "softmax over the batch",
          "scaled by 1/sqrt(d)", "one memory", "residual added"]
WITH_HEADS = ["one head for all", "heads interleaved", "sum over the heads and the slots"]


@pytest.mark.parametrize(("heads", "mistake"), [(None, e) for e in ALWAYS] + [(2, e) for e in ALWAYS + WITH_HEADS])
def test_the_comparison_with_the_paper_notices(heads, mistake):
    external, x = make(heads=heads), randn(2, 7, 8)
    wrong, expected = Wrong(8, slots=5, heads=heads, layout=TOKENS).to(D), from_the_paper(x, external)
    wrong.load_state_dict(external.state_dict())
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-13)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    for options, tokens, weights in ((dict(), "B N C", "B N Nk"), (dict(heads=2), "B h N d", "B h N Nk")):
        external, x = make(**options), randn(2, 7, 8)
        with attn_lib.trace() as t:
            y = external(x)
        assert t.names() == ["F", "A", "y"] and [t.dims(n) for n in t.names()] == [tokens, weights, "B N C"]
        assert torch.equal(t["y"], y)
        torch.testing.assert_close(t["A"].sum(-1), torch.ones_like(t["A"][..., 0]))  # of a position, over the slots
    plain, t = make(), attn_lib.trace()
    with t:
        plain(x)
    torch.testing.assert_close(t["y"], t["A"] @ plain.Mv)


# ---- release ---------------------------------------------------------------------------------------------------------


def release_with_heads(x, external, biases):
    """The authors' multi_head_attention_torch.py on one image at a time, biases and all."""
    b0, b1, b2 = biases
    d, out = external.Mk.shape[1], []
    for tokens in x:
        wide = tokens @ external.Wq.weight.T + b0
        heads = []
        for q in wide.split(d, 1):
            e = torch.softmax(q @ external.Mk.T + b1, 0)
            heads.append((e / (1e-9 + e.sum(1, keepdim=True))) @ external.Mv + b2)
        out.append(torch.cat(heads, 1) @ external.Wo.weight.T + external.Wo.bias)
    return torch.stack(out)


def test_equals_the_release_with_heads():
    external, x = make(heads=2, expansion=4, epsilon=1e-9, scale=0.5), randn(2, 7, 8)
    zeros = [torch.zeros(n, dtype=D) for n in (32, 5, 4)]
    assert external.Wq.weight.shape == (32, 8) and external.Mk.shape == (5, 4)  # 4 times as wide: 8 heads of width 4
    torch.testing.assert_close(external(x), release_with_heads(x, external, zeros), rtol=0, atol=1e-12)


def test_biases_of_the_release_change_nothing():
    external, x = make(heads=2, expansion=4, scale=0.5), randn(2, 7, 8)
    b0, b1, b2 = randn(32), randn(5, seed=2), randn(4, seed=3)
    theirs = release_with_heads(x, external, (b0, b1, b2))
    external.Mv += b2  # every row of A sums to 1
    torch.testing.assert_close(external(x), theirs, rtol=0, atol=1e-7)  # but for their ε


def release_block(x, block, bias):
    """The authors' External_attention on one image at a time, by matrices, in evaluation mode."""
    norm, out = block.norm, []
    for image in x:
        logits = block.Mk @ (block.W1.weight[:, :, 0, 0] @ image.flatten(1) + bias[:, None])  # slots × pixels
        e = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
        A = e / (1e-9 + e.sum(0, keepdim=True))
        y = block.W2.weight[:, :, 0, 0] @ (block.Mv.T @ A)
        y = (y - norm.running_mean[:, None]) / (norm.running_var[:, None] + norm.eps).sqrt()
        y = y * norm.weight[:, None] + norm.bias[:, None]
        out.append((image + y.view_as(image)).clamp(min=0))
    return torch.stack(out)


@pytest.mark.parametrize("tied", [False, True])
def test_block_equals_the_release(tied):
    block, x = make_block(tied=tied, epsilon=1e-9), randn(2, 8, 4, 3)
    torch.testing.assert_close(block(x), release_block(x, block, randn(8)), rtol=0, atol=1e-12)  # whatever the bias
    assert (block(x) >= 0).all()


def test_tied_memories_are_one_parameter():
    """In the release a view of the other's storage, two parameters: an optimiser moves both, and a copy parts them."""
    tied = ExternalAttentionBlock(8, slots=5, tied=True)
    assert tied.Mv is tied.Mk and tied.double().Mv is tied.Mk
    assert len(list(tied.parameters())) + 1 == len(list(ExternalAttentionBlock(8, slots=5).parameters()))
    linear_0, linear_1 = nn.Conv1d(8, 5, 1, bias=False), nn.Conv1d(5, 8, 1, bias=False)
    linear_1.weight.data = linear_0.weight.data.permute(1, 0, 2)
    assert linear_0.weight.data_ptr() == linear_1.weight.data_ptr() and linear_0.weight is not linear_1.weight
    both = nn.ModuleList([linear_0, linear_1]).double()
    assert both[0].weight.data_ptr() != both[1].weight.data_ptr()


def test_block_works_at_any_size_in_half_precision_compiled_and_backward():
    block = ExternalAttentionBlock(6, slots=4)
    for shape in ((1, 6, 1, 5), (2, 6, 7, 3)):
        x = torch.randn(shape, requires_grad=True)
        block.train()(x).sum().backward()
        assert x.grad.isfinite().all() and all(p.grad is not None for p in block.parameters())
    half, y = block.eval().half(), block.half()(300 * x.detach().half())
    assert y.dtype == torch.float16 and y.isfinite().all()
    compiled = torch.compile(half.float(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), half(x))
    with pytest.raises(ValueError, match="axis C must be 6, not 5"):
        block(torch.randn(1, 5, 4, 4))


# ---- limits (more of them in limits/) --------------------------------------------------------------------------------


def test_saying_everything_twice_changes_nothing():
    external, x = make(), randn(2, 7, 8)
    torch.testing.assert_close(external(torch.cat([x, x], 1)), external(x).repeat(1, 2, 1), rtol=0, atol=1e-13)


def test_positions_meet_only_in_the_sum_over_positions():
    """Of another position a token sees one number for each slot, and never what it holds: no value comes from it."""
    external, x = make(), randn(1, 7, 8)
    y = external(x)
    torch.testing.assert_close(torch.linalg.lstsq(external.Mv.T, y[0].T).solution.sum(0), torch.ones(7, dtype=D))
    changed = x.clone()
    changed[:, 3] = 0
    assert (external(changed) - y)[:, :3].abs().max() > 1e-3


def test_a_token_alone_gets_the_mean_of_the_memory():
    external, x = make(), randn(2, 1, 8)  # the softmax over one token is 1 in every slot
    torch.testing.assert_close(external(x)[:, 0], external.Mv.mean(0).expand(2, 8), rtol=0, atol=1e-13)


def test_epsilon_counts_only_for_a_position_that_no_slot_looks_at():
    x = randn(1, 7, 8)
    exact, close, coarse = (make(epsilon=e) for e in (0.0, 1e-9, 0.1))
    torch.testing.assert_close(close(x), exact(x), rtol=0, atol=1e-6)
    assert (coarse(x) - exact(x)).abs().max() > 1e-2
    x[0, 0], exact.Mk[:], close.Mk[:] = -30.0, 1.0, 1.0 + 1e-3 * randn(5, 8)  # exp(−240 …) in every slot
    torch.testing.assert_close(exact(x)[0, 0], exact.Mv.mean(0))
    assert close(x)[0, 0].abs().max() < 1e-9
    assert torch.tensor(1e-9).half() == 0


def test_a_position_that_loses_in_every_slot_is_no_nan():
    external, x = make().float(), randn(1, 7, 8).float()
    external.Mk.fill_(1.0)
    x[0, 0] = -30.0
    e = (x @ external.Mk.T).softmax(1)
    assert (e / e.sum(2, keepdim=True))[0, 0].isnan().all()  # the copies' quotient, in float32
    assert external(x).isfinite().all()


@pytest.mark.parametrize(("options", "message"), [
    (dict(heads=3), "channels=8 must be divisible by heads=3"),
    (dict(heads=0), "heads=0 must be an integer of at least 1"),
    (dict(expansion=2), "expansion=2 must be 1 with heads=None"),
    (dict(epsilon=-1e-9), "epsilon=-1e-09 must be a positive number"),
    (dict(layout="B C N"), "layout='B C N' must be one of"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ExternalAttention(8, **options)


def test_defaults_are_the_papers():
    assert ExternalAttention(32).Mk.shape == ExternalAttention(32).Mv.shape == (64, 32)
    assert sum(p.numel() for p in ExternalAttention(32).parameters()) == 2 * 64 * 32


# ---- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(), dict(heads=2), dict(heads=2, expansion=4)], ids=str)
def test_cost_is_linear_in_the_number_of_positions(options):
    external, N = ExternalAttention(16, slots=8, layout=TOKENS, **options), [512, 1024, 2048]
    saved = [measure.saved_bytes(lambda x: external(x * 2), torch.randn(2, n, 16)) for n in N]
    assert measure.fit_exponent(N, saved) == pytest.approx(1, abs=0.03)
    assert measure.fit_exponent(N, [measure.flops(external, torch.randn(2, n, 16)) for n in N]) == pytest.approx(1)


def test_work_of_the_bare_equation_is_two_products_with_the_memories():
    assert measure.flops(ExternalAttention(16, slots=8), torch.randn(1, 16, 5, 7)) == 2 * 2 * 35 * 8 * 16
