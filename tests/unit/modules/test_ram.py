"""Glimpse sensor and recurrent attention model against their paper, their limits, and the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.ops import bilinear_sample
from attn_lib.spatial import GlimpseSensor, RecurrentAttention
from tests.unit.draw import D, randn, randomised

SENSORS = [  # options, (H, W)
    (dict(size=3), (7, 9)),
    (dict(size=(2, 4), scales=2), (5, 12)),
    (dict(size=2, scales=3, factor=1.5), (6, 5)),
    (dict(size=3, scales=2, factor=3.0), (1, 1)),
    (dict(size=1, scales=1), (4, 3)),
]


def locations(B=3, seed=4):
    """Some on the image, one outside of it."""
    loc = 0.6 * randn(B, 2, seed=seed)
    loc[-1] = torch.tensor([1.4, -2.0])
    return loc


def make(channels=2, seed=0, scale=0.5, **options):
    options = dict(classes=4, glimpses=4, size=2, scales=2, embed=5, hidden=6, std=0.3) | options
    return randomised(RecurrentAttention(channels, **options), scale=scale, seed=seed)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- equation --------------------------------------------------------------------------------------------------------


def glimpse_from_the_paper(x, loc, sensor):
    """One image (C, H, W) and one location: each cell the mean of places, each place a sum over all pixels."""
    C, H, W = x.shape
    l_x, l_y = (min(1.0, max(-1.0, v)) for v in loc.tolist())
    col, row = (l_x + 1) * W / 2 - 0.5, (l_y + 1) * H / 2 - 0.5
    out = torch.zeros(sensor.scales, C, *sensor.size, dtype=D)
    for m in range(sensor.scales):
        wide = sensor.factor**m
        n = math.ceil(wide)
        for i in range(sensor.size[0]):
            for j in range(sensor.size[1]):
                top, left = row + (i - sensor.size[0] / 2) * wide, col + (j - sensor.size[1] / 2) * wide
                for u in range(n):
                    for v in range(n):
                        y, z = top + (u + 0.5) * wide / n, left + (v + 0.5) * wide / n
                        for p in (p for p in range(H) if abs(y - p) < 1):  # the weights of all others are 0
                            for q in (q for q in range(W) if abs(z - q) < 1):
                                out[m, :, i, j] += (1 - abs(y - p)) * (1 - abs(z - q)) * x[:, p, q] / n**2
    return out


@pytest.mark.parametrize(("options", "size"), SENSORS)
def test_equals_the_paper(options, size):
    sensor, x, loc = GlimpseSensor(2, **options), randn(3, 2, *size), locations()
    expected = torch.stack([glimpse_from_the_paper(image, at, sensor) for image, at in zip(x, loc, strict=True)])
    torch.testing.assert_close(sensor(x, loc), expected, rtol=0, atol=1e-12)


def affine(layer, v):
    return [b + sum(w * n for w, n in zip(row, v, strict=True))
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def rectified(*terms):
    return [max(0.0, sum(values)) for values in zip(*terms, strict=True)]


def from_the_paper(x, m, noise):
    """One image: logits, locations, log-probabilities and baselines, in plain numbers; noise is T−1 pairs."""
    h, loc = [0.0] * m.hidden, [0.0, 0.0]
    locs, log_pi, b = [loc], [], []
    for t in range(m.glimpses):
        if t:
            mu = affine(m.Wl, h)
            loc = [v + m.std * e for v, e in zip(mu, noise[t - 1], strict=True)]
            log_pi.append(sum(math.log(math.exp(-((v - c) ** 2) / (2 * m.std**2)) / math.sqrt(2 * math.pi * m.std**2))
                              for v, c in zip(loc, mu, strict=True)))
            b += affine(m.Wb, h)
            locs.append(loc)
        rho = glimpse_from_the_paper(x, torch.tensor(loc, dtype=D), m.sensor).flatten().tolist()
        h_g, h_l = rectified(affine(m.Whg, rho)), rectified(affine(m.Whl, loc))
        g = rectified(affine(m.Wg1, h_g), affine(m.Wg2, h_l))
        h = rectified(affine(m.Wh1, h), affine(m.Wh2, g))
    return affine(m.Wa, h), locs, log_pi, b


@pytest.mark.parametrize("sampled", [False, True], ids=["means", "samples"])
def test_recurrent_attention_equals_the_paper(sampled):
    m, x = make(), randn(3, 2, 5, 7)
    noise = torch.stack([torch.randn(3, 2, generator=g, dtype=D) for g in [draws()] for _ in range(3)], 1)
    rollout = m.rollout(x, generator=draws() if sampled else None)
    for i, image in enumerate(x):
        expected = from_the_paper(image, m, (noise[i] if sampled else torch.zeros(3, 2)).tolist())
        for name, mine, theirs in zip(rollout._fields, rollout, expected, strict=True):
            torch.testing.assert_close(mine[i], torch.tensor(theirs, dtype=D), rtol=0, atol=1e-11,
                                       msg=lambda text, n=name: f"{n}: {text}")
    torch.testing.assert_close(m(x, generator=draws() if sampled else None), rollout.logits, rtol=0, atol=0)


class WrongSensor(GlimpseSensor):
    """The errors in circulation, one at a time."""

    mistake = None

    def forward(self, x, loc):
        H, W = x.shape[2:]
        loc = loc if self.mistake == "not clamped" else loc.clamp(-1, 1)
        l_x, l_y = (loc.flip(1) if self.mistake == "row first" else loc).unbind(1)
        if self.mistake == "H for both":
            W = H
        if self.mistake == "upside down":
            l_y = -l_y
        row, col = (l_y + 1) * H / 2 - 0.5, (l_x + 1) * W / 2 - 0.5
        if self.mistake == "1 is the last centre":
            row, col = (l_y + 1) * (H - 1) / 2, (l_x + 1) * (W - 1) / 2
        if self.mistake == "truncated":
            row, col = row.trunc(), col.trunc()
        patches = []
        for m in range(self.scales):
            n = int(self.factor**m)
            offsets = [torch.arange(n * g, dtype=D) + 0.5 - n * g / 2 for g in self.size]
            rows, cols = (at[:, None] + o for at, o in zip((row, col), offsets, strict=True))
            grid = torch.broadcast_tensors(rows[:, :, None], cols[:, None])
            patch = bilinear_sample(x, *(t.contiguous() for t in grid))
            if self.mistake == "largest for mean":
                patches.append(F.max_pool2d(patch, n))
            else:
                patches.append(patch[..., ::n, ::n] if self.mistake == "every n-th pixel" else F.avg_pool2d(patch, n))
        return torch.stack(patches[::-1] if self.mistake == "widest first" else patches, 1)


@pytest.mark.parametrize("mistake", ["not clamped", "row first", "H for both", "upside down", "1 is the last centre",
                                     "truncated", "largest for mean", "every n-th pixel", "widest first"])
def test_the_comparison_with_the_paper_notices(mistake):
    sensor, wrong = GlimpseSensor(2, size=2), WrongSensor(2, size=2)
    x, loc = randn(3, 2, 7, 9), locations()
    expected = torch.stack([glimpse_from_the_paper(image, at, sensor) for image, at in zip(x, loc, strict=True)])
    torch.testing.assert_close(wrong(x, loc), expected, rtol=0, atol=1e-12)  # nothing else differs
    wrong.mistake = mistake
    assert (wrong(x, loc) - expected).abs().max() > 1e-2


# ---- the sensor, where copies differ ---------------------------------------------------------------------------------


def test_l_counts_columns_first_and_by_the_width():
    """One bright pixel in an image that is wider than high."""
    x = torch.zeros(1, 2, 4, 16, dtype=D)
    x[..., 1, 13] = 1.0
    at = torch.tensor([[(13 + 0.5) * 2 / 16 - 1, (1 + 0.5) * 2 / 4 - 1]], dtype=D)
    assert torch.equal(GlimpseSensor(2, size=1, scales=1)(x, at), torch.ones(1, 1, 2, 1, 1, dtype=D))
    by_the_height = torch.tensor([[(13 + 0.5) * 2 / 4 - 1, at[0, 1]]], dtype=D)
    assert GlimpseSensor(2, size=1, scales=1)(x, by_the_height).sum() == 0


def test_a_patch_follows_l_by_parts_of_a_pixel():
    x, sensor = randn(1, 2, 8, 8), GlimpseSensor(2, size=3, scales=2)
    loc = torch.tensor([[0.1, -0.2]], dtype=D).requires_grad_()
    step = sensor(x, loc + 0.01) - sensor(x, loc)
    assert step.abs().max() > 1e-3
    sensor(x, loc).square().sum().backward()
    assert (loc.grad != 0).all()


def test_beyond_the_border_there_are_zeros_and_l_is_clamped_to_it():
    x, sensor = torch.ones(1, 2, 6, 6, dtype=D), GlimpseSensor(2, size=4, scales=1)
    corner = torch.tensor([[1.0, 1.0]], dtype=D)
    patch = sensor(x, corner)
    torch.testing.assert_close(patch[0, 0, 0], torch.tensor([1, 1, 0, 0], dtype=D)[:, None] *
                               torch.tensor([1, 1, 0, 0], dtype=D))
    assert torch.equal(sensor(x, 5 * corner), patch)


def test_patches_widen_about_one_middle():
    x, sensor = randn(1, 2, 16, 16), GlimpseSensor(2, size=4)
    rho = sensor(x, torch.zeros(1, 2, dtype=D))
    torch.testing.assert_close(rho[:, 0], x[..., 6:10, 6:10])
    torch.testing.assert_close(rho[:, 1], F.avg_pool2d(x[..., 4:12, 4:12], 2))
    torch.testing.assert_close(rho[:, 2], F.avg_pool2d(x, 4))


# ---- the policy, where copies differ ---------------------------------------------------------------------------------


def test_the_first_glimpse_is_in_the_middle():
    m, x = make(), randn(2, 2, 5, 7)
    assert torch.equal(m.rollout(x, generator=draws()).loc[:, 0], torch.zeros(2, 2, dtype=D))
    loc = randn(2, 2, seed=9)
    assert torch.equal(m.rollout(x, loc=loc).loc[:, 0], loc)
    assert (m(x, loc=loc) - m(x)).abs().max() > 1e-6


def test_the_location_is_linear_in_h():
    """And so may be anywhere: the sensor looks at the border then."""
    m, x = make(), randn(2, 2, 5, 7)
    with torch.no_grad():
        m.Wl.weight.mul_(100.0)
    with attn_lib.trace() as t:
        rollout = m.rollout(x)
    torch.testing.assert_close(rollout.loc[:, 1], m.Wl(t["h"]))
    assert rollout.loc.abs().max() > 1


def test_the_log_probability_is_of_the_sample():
    """A sample outside the image is looked at on the border, and its probability is that of where it fell."""
    m, x = make(std=2.0), randn(64, 2, 5, 7)
    rollout = m.rollout(x, generator=draws())
    with attn_lib.trace() as t:
        m.rollout(x, generator=draws())
    normal = torch.distributions.Normal(t["mu"], 2.0)
    torch.testing.assert_close(rollout.log_pi[:, 0], normal.log_prob(rollout.loc[:, 1]).sum(1))
    outside = rollout.loc[:, 1].abs().amax(1) > 1
    clamped = normal.log_prob(rollout.loc[:, 1].clamp(-1, 1)).sum(1)
    assert 0 < outside.sum() < 64 and torch.equal((clamped - rollout.log_pi[:, 0]).abs() > 1e-9, outside)


def test_gradient_of_the_policy_reaches_the_core():
    m, x = make(), randn(8, 2, 5, 7)
    m.rollout(x, generator=draws()).log_pi.sum().backward()
    reached = {name for name, p in m.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {f"{layer}.{what}" for layer in ("Whg", "Whl", "Wg1", "Wg2", "Wh1", "Wh2", "Wl")
                       for what in ("weight", "bias")}


def test_no_gradient_runs_through_a_glimpse():
    """What is seen depends on l, but the class teaches the location nothing: that is what REINFORCE is for."""
    m, x = make(), randn(8, 2, 5, 7)
    m(x, generator=draws()).square().sum().backward()
    assert m.Wl.weight.grad is None and m.Wb.weight.grad is None and m.Whg.weight.grad.abs().sum() > 0


# ---- the loss --------------------------------------------------------------------------------------------------------


def parts(rollout, target):
    """Cross-entropy, REINFORCE and baseline in plain numbers."""
    ce = policy = baseline = 0.0
    for logits, log_pi, b, y in zip(rollout.logits.tolist(), rollout.log_pi.tolist(), rollout.b.tolist(),
                                    target.tolist(), strict=True):
        R = float(max(range(len(logits)), key=logits.__getitem__) == y)
        ce -= logits[y] - math.log(sum(map(math.exp, logits)))
        policy -= sum(p * (R - v) for p, v in zip(log_pi, b, strict=True))
        baseline += sum((R - v) ** 2 for v in b)
    return [part / len(target) for part in (ce, policy, baseline)]


def test_the_loss_is_the_papers():
    m, x = make(), randn(16, 2, 5, 7)
    rollout = m.rollout(x, generator=draws())
    target = rollout.logits.argmax(1).roll(1)  # some right, some wrong
    assert 0 < (rollout.logits.argmax(1) == target).sum() < 16
    value = m.loss(rollout, target)
    assert value.item() == pytest.approx(sum(parts(rollout, target)), abs=1e-12)


def test_gradient_of_the_loss_is_reinforce():
    """With respect to the bias of the mean: −Σ (R − b)(l − μ)/σ², and the baseline learns from its own error alone."""
    m, x = make(), randn(16, 2, 5, 7)
    with attn_lib.trace() as t:
        rollout = m.rollout(x, generator=draws())
    target = rollout.logits.argmax(1).roll(1)
    m.loss(rollout, target).backward()
    R = (rollout.logits.argmax(1) == target).to(D)[:, None]
    mu = torch.stack([t[name] for name in ("mu", "mu:2", "mu:3")], 1)
    score = (rollout.loc[:, 1:] - mu) / m.std**2
    expected = -((R - rollout.b)[..., None] * score).sum(1).mean(0)
    torch.testing.assert_close(m.Wl.bias.grad, expected.detach())
    expected = (-2 * (R - rollout.b)).sum(1).mean(0, keepdim=True)
    torch.testing.assert_close(m.Wb.bias.grad, expected.detach())


def test_one_glimpse_has_no_policy_to_teach():
    m, x, target = make(glimpses=1), randn(4, 2, 5, 7), torch.tensor([0, 1, 2, 3])
    rollout = m.rollout(x, generator=draws())
    assert rollout.log_pi.shape == rollout.b.shape == (4, 0)
    torch.testing.assert_close(m.loss(rollout, target), F.cross_entropy(rollout.logits, target))


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_a_policy_that_does_not_move_is_a_recurrent_network_on_crops():
    """torch's, with ReLU: W h + W g, two biases."""
    m, x = make(), randn(3, 2, 5, 7)
    with torch.no_grad():
        m.Wl.weight.zero_()
        m.Wl.bias.copy_(torch.tensor([0.3, -0.4]))
        rnn = torch.nn.RNN(6, 6, nonlinearity="relu", batch_first=True).to(D)
        for ours, kind in ((m.Wh2, "ih"), (m.Wh1, "hh")):
            getattr(rnn, f"weight_{kind}_l0").copy_(ours.weight)
            getattr(rnn, f"bias_{kind}_l0").copy_(ours.bias)
        loc = m.Wl.bias.expand(3, 2)
        crop = m.sensor(x, loc).flatten(1)
        g = (m.Wg1(m.Whg(crop).relu()) + m.Wg2(m.Whl(loc).relu())).relu()
        torch.testing.assert_close(m(x, loc=loc), m.Wa(rnn(g[:, None].expand(3, 4, 6))[0][:, -1]))
        still = make(std=1e-12)
        still.load_state_dict(m.state_dict())
        torch.testing.assert_close(still(x, generator=draws(), loc=loc), m(x, loc=loc))


# ---- what the contract shows of a registered class, here of the other ------------------------------------------------


def test_recurrent_attention_is_the_same_for_the_same_input_and_generator():
    m, x = make().train(), randn(3, 2, 5, 7)
    assert torch.equal(m(x), m(x)) and torch.equal(m(x, generator=draws(1)), m(x, generator=draws(1)))
    assert not torch.equal(m(x, generator=draws(1)), m(x, generator=draws(2)))
    for b in range(3):
        torch.testing.assert_close(m(x[b:b + 1]), m(x)[b:b + 1])


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (32, 5)])
def test_recurrent_attention_takes_any_size(size):
    m, x = RecurrentAttention(3, embed=8, hidden=8), torch.randn(2, 3, *size, generator=draws())
    assert m(x).shape == (2, 10) and torch.isfinite(m(x)).all()
    assert m.glimpses == 6 and m.sensor.size == (8, 8) and m.sensor.scales == 3


def test_recurrent_attention_learns_compiles_and_runs_in_half_precision():
    m, x = make().float(), randn(8, 2, 5, 7).float()
    target = torch.arange(8) % 4
    m.loss(m.rollout(x, generator=draws()), target).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in m.parameters())
    torch.compiler.reset()
    short = make(glimpses=2, scales=1).float()
    torch.testing.assert_close(torch.compile(short, fullgraph=True, backend="aot_eager")(x), short(x))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            rollout = m.rollout(x, generator=draws())
            assert torch.isfinite(m.loss(rollout, target)) and rollout.log_pi.dtype == torch.float32
        half = make().to(dtype)
        assert half(x.to(dtype)).dtype == dtype
        assert (half(x.to(dtype)).float() - m(x)).abs().max() < 0.1 * m(x).abs().max()


# ---- cost and errors -------------------------------------------------------------------------------------------------


def test_a_glimpse_costs_the_same_in_any_image():
    """The paper's promise: what is computed does not depend on the size of the image, only on that of the patches."""
    sensor, loc = GlimpseSensor(3, size=4), torch.zeros(1, 2).requires_grad_()
    saved = {n: measure.saved_bytes(lambda x: sensor(x, loc), torch.randn(1, 3, n, 2 * n)) for n in (16, 64, 256)}
    assert len(set(saved.values())) == 1, saved
    patches = {g * g: measure.saved_bytes(lambda x, g=g: GlimpseSensor(3, size=g)(x, loc), torch.randn(1, 3, 64, 64))
               for g in (4, 8, 16)}
    assert measure.fit_exponent(list(patches), list(patches.values())) == pytest.approx(1, abs=0.1), patches


def test_memory_of_the_network_grows_with_the_glimpses():
    saved = {}
    for T in (4, 8, 16):
        m = RecurrentAttention(1, glimpses=T, size=4, embed=16, hidden=16)
        saved[T] = measure.saved_bytes(m, torch.randn(1, 1, 32, 48))
    assert measure.fit_exponent(list(saved), list(saved.values())) == pytest.approx(1, abs=0.15), saved


@pytest.mark.parametrize(("call", "message"), [
    (lambda: GlimpseSensor(2, size=(3,)), r"size=\(3,\) must be an integer or a \(rows, columns\) pair"),
    (lambda: GlimpseSensor(2, factor=0), "factor=0 must be a positive number"),
    (lambda: GlimpseSensor(2, scales=0), "scales=0 must be an integer of at least 1"),
    (lambda: GlimpseSensor(2)(randn(3, 2, 4, 4), randn(2, 2)), "loc has shape .*; axis B must be 3, not 2"),
    (lambda: GlimpseSensor(2)(randn(3, 2, 4, 4), randn(3, 3)), "axis 2 must be 2, not 3"),
    (lambda: RecurrentAttention(2, std=0), "std=0 must be a positive number: a policy without variance"),
    (lambda: RecurrentAttention(2, glimpses=0), "glimpses=0 must be an integer of at least 1"),
    (lambda: RecurrentAttention(2, classes=0), "classes=0 must be an integer of at least 1"),
    (lambda: RecurrentAttention(2, hidden=0), "hidden=0 must be an integer of at least 1"),
    (lambda: make()(randn(3, 3, 4, 4)), "axis C must be 2, not 3"),
])
def test_bad_arguments_and_inputs_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
