"""The attention free transformer against its paper, its limits, and the errors in circulation.

No package that is kept well holds it.
"""

import math

import pytest
import torch
from torch import nn

import attn_lib
from attn_lib import measure
from attn_lib.self_attention import AFTAttention
from tests.unit.draw import D, permutation, randn, randomised

FORMS = {
    "full": dict(length=9, rank=3),
    "full matrix": dict(length=9, rank=None),
    "local": dict(form="local", length=9, window=3),
    "wide local": dict(form="local", length=9, window=20),
    "simple": dict(form="simple"),
    "conv": dict(form="conv", heads=2, kernel_size=5),
}
each_form = pytest.mark.parametrize("form", FORMS)
each_way = pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])


def make(form="full", C=4, *, scale=1.0, **options):
    return randomised(AFTAttention(C, **FORMS[form] | options), scale=scale).requires_grad_(False)


def run(module, x):
    with attn_lib.trace() as t:
        module(x)
    return t


# ---- equation --------------------------------------------------------------------------------------------------------


def kernel(aft, head):
    """γ (w − mean) / √(variance + 1e-12) + β of a head, as a flat list."""
    taps = aft.w[head].flatten().tolist()
    mean = sum(taps) / len(taps)
    std = math.sqrt(sum((t - mean) ** 2 for t in taps) / len(taps) + 1e-12)
    return [aft.gamma[head].item() * (t - mean) / std + aft.beta[head].item() for t in taps]


def position_bias(aft, head, t, u):
    """w of two tokens, 0 where the form has none."""
    if aft.form == "full":
        return aft.w[t, u].item() if aft.u is None else sum((aft.u[t] * aft.v[u]).tolist())
    if aft.form == "local":
        return aft.w[t, u - t + aft.window - 1].item() if abs(u - t) < aft.window else 0.0
    if aft.form == "conv":
        k = aft.w.shape[1]
        return kernel(aft, head)[u - t + k // 2] if abs(u - t) <= k // 2 else 0.0
    return 0.0


def from_the_paper(x, aft):
    """Equation 2 in plain numbers: one token and one channel at a time, over all others or all before."""
    B, N, C = x.shape
    heads = aft.heads if aft.form == "conv" else 1
    y = torch.empty_like(x)
    for b in range(B):
        Q, K, V = (W(x[b]).tolist() for W in (aft.Wq, aft.Wk, aft.Wv))
        for c in range(C):
            head = c // (C // heads)
            key = head if aft.form == "conv" else c
            for t in range(N):
                others = range(t + 1) if aft.causal else range(N)
                logs = [K[u][key] + position_bias(aft, head, t, u) for u in others]
                most = max(logs)
                e = [math.exp(log - most) for log in logs]
                mean = sum(a * V[u][c] for a, u in zip(e, others, strict=True)) / sum(e)
                y[b, t, c] = mean / (1 + math.exp(-Q[t][c]))
    return y


@each_way
@pytest.mark.parametrize("N", [1, 6, 9])
@each_form
def test_equals_the_paper(form, N, causal):
    aft, x = make(form, causal=causal), randn(2, N, 4)
    torch.testing.assert_close(aft(x), from_the_paper(x, aft), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("H", "W", "k"), [(3, 4, 3), (1, 5, 5), (1, 1, 3), (4, 2, 1)])
def test_convolution_on_a_map_equals_the_paper(H, W, k):
    """The kernel of a head is k × k, of rows and columns."""
    aft, x = make("conv", kernel_size=k, layout="B C H W"), randn(2, 4, H, W)
    Q, K, V = (Wi(x.flatten(2).mT).tolist() for Wi in (aft.Wq, aft.Wk, aft.Wv))
    kernels = [kernel(aft, head) for head in range(2)]
    places = [(i, j) for i in range(H) for j in range(W)]
    expected = torch.empty(2, 4, H * W, dtype=D)
    for b in range(2):
        for c in range(4):
            for t, (i, j) in enumerate(places):
                num = den = 0.0
                for u, (p, q) in enumerate(places):
                    row, col = p - i + k // 2, q - j + k // 2
                    w = kernels[c // 2][row * k + col] if 0 <= row < k and 0 <= col < k else 0.0
                    num += math.exp(K[b][u][c // 2] + w) * V[b][u][c]
                    den += math.exp(K[b][u][c // 2] + w)
                expected[b, c, t] = num / den / (1 + math.exp(-Q[b][t][c]))
    torch.testing.assert_close(aft(x), expected.view_as(x), rtol=0, atol=1e-12)


class Wrong(AFTAttention):
    """The mistakes that circulate in copies, one at a time, in AFT-full."""

    mistake = None

    def forward(self, x):
        e, N = self.mistake, x.shape[1]
        Q, K, V = self.Wq(x), self.Wk(x), self.Wv(x)
        w = self.u[:N] @ self.v[:N].T
        w = {"w transposed": w.T, "no bias": 0 * w}.get(e, w)
        K = K.mean(2, keepdim=True).expand_as(K) if e == "one key for all channels" else K
        K = K * 4**-0.5 if e == "scaled by 1/sqrt(d)" else K
        logits = K[:, None] + w[:, :, None]  # B N N C, as no module may
        A = {"softmax over the queries": logits.softmax(1), "softmax over the channels": logits.softmax(3),
             "not divided": logits.exp(), "keys gated by the values": (K * V)[:, None].expand_as(logits).softmax(2)
             }.get(e, logits.softmax(2))
        y = (A * V[:, None]).sum(2)
        if e == "numerator and denominator apart":
            y = (w.softmax(1) @ (K.softmax(1) * V)) / (w.softmax(1) @ K.softmax(1)).sum(1, keepdim=True)
        gates = {"tanh gate": Q.tanh(), "softmax gate": Q.softmax(2), "no gate": torch.ones_like(Q)}
        y = gates.get(e, Q.sigmoid()) * y
        return {"residual added": x + y, "a linear layer behind": y @ self.Wv.weight}.get(e, y)


MISTAKES = ["w transposed", "no bias", "one key for all channels", "scaled by 1/sqrt(d)", "softmax over the queries",
            "softmax over the channels", "not divided", "keys gated by the values", "numerator and denominator apart",
            "tanh gate", "softmax gate", "no gate", "residual added", "a linear layer behind"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_with_the_paper_notices(mistake):
    aft, x = make(), randn(2, 6, 4)
    wrong, expected = Wrong(4, **FORMS["full"]).to(D), from_the_paper(x, aft)
    wrong.load_state_dict(aft.state_dict())
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equation():
    for form, key, bias in (("full", "B N C", "N N"), ("local", "B N C", "N K"), ("conv", "B N h", "h K"),
                            ("simple", "B N C", None)):
        aft, x = make(form), randn(2, 6, 4)
        t = run(aft, x)
        dims = {"Q": "B N C", "K": key, "V": "B N C", "w": bias, "mean": "B N C", "y": "B N C"}
        assert {n: t.dims(n) for n in t.names()} == {n: axes for n, axes in dims.items() if axes}
        torch.testing.assert_close(t["y"], torch.sigmoid(t["Q"]) * t["mean"])


# ---- the four forms --------------------------------------------------------------------------------------------------


@each_way
def test_without_a_bias_all_forms_are_one(causal):
    x, simple = randn(2, 6, 4), make("simple", causal=causal)
    for form in ("full", "full matrix", "local", "wide local", "conv"):
        aft = make(form, causal=causal, **dict(heads=4) if form == "conv" else {})
        aft.load_state_dict(simple.state_dict(), strict=False)  # heads of one channel: a key for each
        for name in ("u", "w", "gamma", "beta"):
            if getattr(aft, name, None) is not None and (name != "w" or form != "conv"):
                getattr(aft, name).fill_(0.0)
        torch.testing.assert_close(aft(x), simple(x), rtol=0, atol=1e-13)


def test_the_bias_is_a_product_of_two_thin_matrices():
    assert AFTAttention(4, length=50).u.shape == AFTAttention(4, length=50).v.shape == (50, 128)
    thin, full, x = make(), make("full matrix"), randn(2, 6, 4)
    full.load_state_dict(thin.state_dict() | {"w": thin.u @ thin.v.T}, strict=False)
    torch.testing.assert_close(full(x), thin(x))
    assert torch.linalg.matrix_rank(run(thin, randn(1, 9, 4))["w"]) == 3


def test_local_is_still_global():
    """A mask of −∞ outside the window would make it a neighbourhood."""
    aft, x = make("local", length=9, window=2), randn(1, 9, 4).requires_grad_()
    aft(x)[0, 0].sum().backward()
    assert (x.grad[0].abs().sum(1) > 1e-6).all()
    x = x.detach()
    masked = torch.full((9, 9), -torch.inf, dtype=D)
    for t in range(9):
        for u in range(max(0, t - 1), min(9, t + 2)):
            masked[t, u] = aft.w[t, u - t + 1]
    near = ((aft.Wk(x)[0] + masked[:, :, None]).softmax(1) * aft.Wv(x)[0]).sum(1) * aft.Wq(x)[0].sigmoid()
    assert (near - aft(x)[0]).abs().max() > 1e-2


def test_a_window_of_one_is_the_diagonal():
    aft = make("local", length=9, window=1)
    assert aft.w.shape == (9, 1) and make("local", window=2).w.shape == (9, 3)
    full, x = make("full matrix"), randn(2, 9, 4)
    full.load_state_dict(aft.state_dict() | {"w": torch.diag(aft.w[:, 0])})
    torch.testing.assert_close(full(x), aft(x))


def test_a_window_that_spans_the_series_is_full():
    local, full, x = make("local", window=9), make("full matrix"), randn(2, 9, 4)
    w = torch.stack([local.w[t, 8 - t:17 - t] for t in range(9)])
    full.load_state_dict(local.state_dict() | {"w": w})
    torch.testing.assert_close(full(x), local(x))


def test_a_kernel_of_one_row_on_a_map_is_that_of_a_series():
    series, on_map = make("conv", kernel_size=3), make("conv", kernel_size=3, layout="B C H W")
    x = randn(2, 4, 1, 7)
    on_map.load_state_dict(series.state_dict() | {"w": on_map.w})
    on_map.w[:, 1] = series.w
    mean, std = (on_map.w.flatten(1).mean(1) - series.w.mean(1)), on_map.w.flatten(1).std(1, correction=0)
    own = series.w.std(1, correction=0)  # another mean and deviation, from nine taps: undone by γ and β
    on_map.gamma.copy_(series.gamma * std / own)
    on_map.beta.copy_(series.beta + series.gamma * mean / own)
    torch.testing.assert_close(on_map(x)[:, :, 0].mT, series(x[:, :, 0].mT))


def test_a_fresh_convolution_is_simple():
    aft = AFTAttention(4, form="conv", heads=4, kernel_size=3).to(D)
    simple = AFTAttention(4, form="simple").to(D)
    simple.load_state_dict(aft.state_dict(), strict=False)
    x = randn(2, 6, 4)
    torch.testing.assert_close(aft(x), simple(x), rtol=0, atol=1e-14)
    assert aft.gamma.abs().max() == aft.beta.abs().max() == 0


def test_small_kernels_are_not_rounded_away():
    """exp(w) − 1 of w = 1e-9 is 0 in float32, where expm1 is 1e-9: the gradient of β counts on it."""
    w = torch.tensor(1e-9)
    assert w.exp() - 1 == 0 and w.expm1() > 0


def test_nothing_follows_the_gate():
    assert {name.split(".")[0] for name, _ in make("simple").named_parameters()} == {"Wq", "Wk", "Wv"}


@each_form
def test_a_bias_of_the_keys_changes_nothing(form):
    aft, x = make(form), randn(2, 6, 4)
    y = aft(x)
    aft.Wk.bias = nn.Parameter(5 * randn(aft.Wk.out_features))
    torch.testing.assert_close(aft(x), y, rtol=0, atol=1e-12)


def test_equal_values_come_through_the_gate():
    for form in FORMS:
        aft, x = make(form), randn(2, 6, 4)
        aft.Wv.weight.fill_(0.0)
        torch.testing.assert_close(aft(x), aft.Wq(x).sigmoid() * aft.Wv.bias)


# ---- large keys, and what comes before what --------------------------------------------------------------------------


def naive(K, V, w):
    """As the copies compute it, in the precision of their inputs."""
    return (w.exp() @ (K.exp() * V)) / (w.exp() @ K.exp())


@each_way
@pytest.mark.parametrize("size", [1e2, 1e3])
@each_form
def test_large_keys_do_not_overflow(form, size, causal):
    aft, x = make(form, causal=causal), randn(2, 9, 4)
    aft.Wk.weight.mul_(size)
    exact, single = from_the_paper(x, aft), make(form, causal=causal).float()
    single.load_state_dict(aft.state_dict())
    y = single(x.float())
    K, V = aft.Wk(x).float(), aft.Wv(x).float()
    if form != "conv":
        assert K.max() > 89 and not naive(K, V, torch.zeros(9, 9)).isfinite().all()
    rounding = 4 * torch.finfo(torch.float32).eps * (K.abs().max() * V.abs().max()).item()  # of K itself
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=rounding)
    single.requires_grad_(True)(x.float()).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in single.parameters())


@each_way
def test_a_large_bias_does_not_overflow(causal):
    aft, x = make("full matrix", causal=causal), randn(2, 9, 4)
    aft.w.mul_(1000)
    single = make("full matrix", causal=causal).float()
    single.load_state_dict(aft.state_dict())
    assert aft.w.float().exp().isinf().any()
    rounding = 4 * torch.finfo(torch.float32).eps * (aft.w.abs().max() * aft.Wv(x).abs().max()).item()  # of w itself
    torch.testing.assert_close(single(x.float()).double(), from_the_paper(x, aft), rtol=0, atol=rounding)


@pytest.mark.parametrize("form", ["full", "local", "simple", "conv"])
def test_a_key_that_comes_later_and_is_far_larger_takes_nothing_from_the_earlier(form):
    """One maximum for the series would leave nothing for the first steps: 0/0."""
    aft, x = make(form, causal=True).float(), randn(1, 9, 4).float()
    aft.Wk.weight.fill_(1.0)
    x[0, 8] = 250.0  # K = 1000
    y = aft(x)
    assert y.isfinite().all()
    torch.testing.assert_close(y[:, :8], aft(x[:, :8]), rtol=1e-4, atol=1e-5)


@each_form
def test_causal_means_that_nothing_comes_from_later(form):
    aft, x = make(form, causal=True), randn(1, 9, 4).requires_grad_()
    aft(x)[0, 4].sum().backward()
    assert (x.grad[0, :5].abs().sum(1) > 0).all() and (x.grad[0, 5:] == 0).all()
    with torch.no_grad():
        torch.testing.assert_close(aft(x)[:, :5], aft(x[:, :5]), rtol=0, atol=1e-12)


def test_values_of_exactly_zero_still_learn():
    """The causal form of simple takes values apart by their sign; at 0 both parts count half."""
    aft, x = make("simple", causal=True), randn(1, 5, 4)
    aft.Wv.weight.fill_(0.0)
    aft.Wv.bias.fill_(0.0)
    assert (aft(x) == 0).all()
    aft.requires_grad_(True)(x).sum().backward()
    torch.testing.assert_close(aft.Wv.bias.grad, aft.Wq(x).sigmoid().sum((0, 1)))  # as weights sum to 1


def test_only_simple_has_no_positions():
    x, order = randn(2, 6, 4), permutation(6)
    for form in FORMS:
        moved = (make(form)(x[:, order]) - make(form)(x)[:, order]).abs().max()
        assert moved < 1e-13 if form == "simple" else moved > 1e-3


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    (dict(form="fall", length=5), "form='fall' must be one of .*did you mean 'full'"),
    (dict(), "length=None must be an integer of at least 1"),
    (dict(form="simple", length=5), "length=5 must be left out with form='simple'"),
    (dict(form="conv", heads=3), "channels=4 must be divisible by heads=3"),
    (dict(form="conv", kernel_size=4), "kernel_size=4 must be odd"),
    (dict(length=5, rank=0), "rank=0 must be an integer of at least 1"),
    (dict(length=5, window=0), "window=0 must be an integer of at least 1"),
    (dict(length=5, layout="B C H W"), "layout='B C H W' must be 'B N C' with form='full'"),
    (dict(form="conv", causal=True, layout="B C H W"), "layout='B C H W' must be 'B N C' with causal=True"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        AFTAttention(4, **options)


@pytest.mark.parametrize("form", ["full", "local"])
def test_tokens_longer_than_the_positions_are_refused(form):
    with pytest.raises(ValueError, match="x has N=10; it must be at most length=9, beyond it are no positions"):
        make(form)(randn(1, 10, 4))


# ---- cost ------------------------------------------------------------------------------------------------------------

N = [128, 256, 512]


def kept(aft, batch=2):
    return [measure.saved_bytes(lambda x: aft(x * 2), torch.randn(batch, n, aft.channels)) for n in N]


@pytest.mark.parametrize("options", [
    dict(form="simple"), dict(form="local", length=512, window=4), dict(form="conv", heads=2, kernel_size=7),
    dict(form="simple", causal=True), dict(form="local", length=512, window=4, causal=True),
    dict(form="conv", heads=2, kernel_size=7, causal=True),
], ids=str)
def test_cost_of_simple_local_and_conv_is_linear_in_the_number_of_positions(options):
    aft = AFTAttention(16, **options)
    assert measure.fit_exponent(N, kept(aft)) == pytest.approx(1, abs=0.03)
    assert measure.fit_exponent(N, [measure.flops(aft, torch.randn(2, n, 16)) for n in N]) == pytest.approx(1)


def test_local_keeps_no_more_for_a_wider_window():
    narrow, wide = (kept(AFTAttention(16, form="local", length=512, window=s))[-1] for s in (2, 32))
    assert wide - narrow < 4 * 512 * 2 * 64  # the window's own numbers, not N · C for each of its places


@pytest.mark.parametrize("C", [8, 32])
def test_full_keeps_a_matrix_that_images_and_channels_share(C):
    aft = AFTAttention(C, length=512, rank=4)
    two, three = ([measure.saved_bytes(aft, torch.randn(batch, n, C)) for n in N] for batch in (2, 3))
    image = [b - a for a, b in zip(two, three, strict=True)]
    shared = [a - 2 * i for a, i in zip(two, image, strict=True)]
    assert measure.fit_exponent(N, image) == pytest.approx(1, abs=0.01)
    assert measure.fit_exponent(N, shared) == pytest.approx(2, abs=0.01)
    assert shared == pytest.approx([4 * 2 * n**2 for n in N], rel=0.05)  # w and exp(w), whatever C


def test_causal_full_keeps_little_more_for_an_image():
    modules = [AFTAttention(8, length=n, rank=4, causal=True) for n in N]
    two, three = ([measure.saved_bytes(aft, torch.randn(batch, aft.length, 8)) for aft in modules] for batch in (2, 3))
    image = [b - a for a, b in zip(two, three, strict=True)]
    assert 1 < measure.fit_exponent(N, image) < 1.2  # N · log N


def test_work_of_full_is_three_products_with_the_matrix():
    aft, n, C, rank = AFTAttention(16, length=512, rank=4), 256, 16, 4
    assert measure.flops(aft, torch.randn(1, n, C)) == 2 * n * (3 * C * C + n * rank + 2 * n * C)
