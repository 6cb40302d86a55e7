"""Attention free transformer: each channel averages the values by its keys and learned positions; queries only gate."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_divisible, check_int, check_odd, check_tensor
from ..ops import from_tokens, in_float32, to_tokens, total
from ..tap import tap

FORMS = ("full", "local", "simple", "conv")
LAYOUTS = ("B N C", "B C H W")
EPSILON = 1e-12  # beside the variance of a kernel


@register(
    "aft",
    family="self_attention",
    name="Attention free transformer",
    summary="It asks no pairs at all: every channel averages the values by its keys and learned positions, and the "
            "query only gates.",
    aliases=("AFT", "AFT-full", "AFT-local", "AFT-simple", "AFT-conv"),
    action="mix",
    papers=[Paper(
        key="zhai2021attention", venue="arXiv", year=2021, arxiv="2105.14103",
        title="An Attention Free Transformer",
    )],
    layout="B N C",
    example=dict(channels=16, length=3136, rank=8),
    measured=dict(channels=64, length=3136),
    variants={
        "causal": dict(channels=6, length=20, rank=None, causal=True),
        "local": dict(channels=8, form="local", length=20, window=3),
        "simple": dict(channels=8, form="simple"),
        "simple, causal": dict(channels=6, form="simple", causal=True),
        "conv": dict(channels=8, form="conv", heads=2, kernel_size=5),
        "conv on a map": dict(channels=6, form="conv", heads=2, kernel_size=3, layout="B C H W"),
    },
    reduces_to={
        "token mixing": "full, W_k = 0, b_q → ∞: by the softmax of w",
        "mean": "W_k = 0, w = 0, b_q → ∞: of the values",
    },
    errata=[
        Erratum("copies", "They exponentiate K and w as they are, which float32 cannot beyond 88: NaN.",
                "The largest key and the largest w are taken off first; among the causal forms, the largest so far.",
                "test_large_keys_do_not_overflow"),
        Erratum("copies", "AFT-local looks at its window alone.",
                "Outside the window w is 0 and exp(0) is 1: every position still counts.",
                "test_local_is_still_global"),
        Erratum("copies", "Readers disagree whether a window of s = 1 is the diagonal of w or three diagonals.",
                "It is |t − t′| < s: the diagonal alone.", "test_a_window_of_one_is_the_diagonal"),
        Erratum("copies", "w is a full matrix.",
                "It is u vᵀ of rank 128 by default, as in the paper; rank=None is a full matrix.",
                "test_the_bias_is_a_product_of_two_thin_matrices"),
        Erratum("copies", "A linear layer follows.", "There is none in the paper's equation.",
                "test_nothing_follows_the_gate"),
        Erratum("copies", "W_k has a bias.", "It has none: the quotient cancels it.",
                "test_a_bias_of_the_keys_changes_nothing"),
    ],
)
class AFTAttention(nn.Module):
    """Attention free transformer: Y_t = σ(Q_t) ⊙ Σ_t′ exp(K_t′ + w_tt′) ⊙ V_t′ / Σ_t′ exp(K_t′ + w_tt′).

    Q, K and V are linear layers of the tokens and everything is element by element: each channel has its own weights.
    w is learned and sees no input. Its forms are

        full     w = u vᵀ, with u and v of N × d′
        local    w_tt′ learned where |t − t′| < s, and 0 elsewhere
        simple   w = 0
        conv     w_tt′ a kernel of t′ − t within its reach, and 0 elsewhere; h heads have a kernel and a key each

    where 0 is no mask: exp(0) = 1, and all positions count in all forms. So local and conv cost as much per token in
    any series: what they add to simple is a sum over the window of (exp(w) − 1) exp(K) ⊙ V. The kernel is
    w = γ (w − its mean) / √(its variance + 1e-12) + β, for each head; it starts as 0, with γ = β = 0.

    full keeps exp(w), N² numbers whatever the batch and the channels, beside N · C for an image. The causal form of
    full takes halves of halves of the series, each with its own largest key, N · C · log N; those of local and conv
    keep N · C for each position of the window. All sums are made in float32 at least. The largest key of a channel and
    the largest w of a row are taken off before the exponentials, so either may be as large as it likes; where keys and
    w both differ by more than 87, and disagree, full may be left with 0/0. The w of local and conv is exponentiated as
    it is, at most 88.

    Args:
        channels: C, at least 1.
        form: one of the four.
        length: N at most, for full and local, whose w knows every position by number; None for the others.
        rank: d′ of full, at least 1; None for a full matrix. 128 in the paper.
        window: s of local, at least 1.
        heads: h of conv, divides C there.
        kernel_size: of conv, odd; on a map in both directions.
        causal: whether t′ ≤ t only.
        bias: whether W_q and W_v have one.
        layout: "B N C", or "B C H W" for simple and conv.

    Shape:
        x (B, N, C) → y (B, N, C), any N ≥ 1, at most length; or both (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range or one that the form does not have, or an input of another layout or
            number of channels, or longer than length.

    Paper:
        Zhai, Talbott, Srivastava, Huang, Goh, Zhang and Susskind, An Attention Free Transformer, 2021,
        arXiv 2105.14103.
    """

    def __init__(self, channels: int, *, form: str = "full", length: int | None = None, rank: int | None = 128,
                 window: int = 32, heads: int = 1, kernel_size: int = 11, causal: bool = False, bias: bool = True,
                 layout: str = "B N C"):
        super().__init__()
        self.channels = check_int("channels", channels)
        check_choice("form", form, FORMS)
        check_choice("layout", layout, LAYOUTS)
        self.form, self.causal, self.layout = form, causal, layout
        self.length, self.window, self.heads = length, check_int("window", window), check_int("heads", heads)
        if rank is not None:
            check_int("rank", rank)
        check_odd("kernel_size", kernel_size)
        if form in ("full", "local"):
            most = check_int("length", length)
        elif length is not None:
            raise ValueError(f"length={length} must be left out with form={form!r}, which takes any number of tokens")
        if layout != "B N C" and (causal or form in ("full", "local")):
            what = "causal=True" if causal else f"form={form!r}"
            raise ValueError(f"layout={layout!r} must be 'B N C' with {what}: it has an order of tokens")

        self.Wq, self.Wv = (nn.Linear(channels, channels, bias=bias) for _ in range(2))
        self.Wk = nn.Linear(channels, heads if form == "conv" else channels, bias=False)
        self.w = self.u = self.v = None
        if form == "full" and rank is not None:
            self.u, self.v = (nn.Parameter(torch.randn(most, rank) * 0.1 * rank**-0.25) for _ in range(2))
        elif form == "full":
            self.w = nn.Parameter(torch.randn(most, most) * 0.01)
        elif form == "local":
            self.w = nn.Parameter(torch.randn(most, 2 * window - 1) * 0.01)
        elif form == "conv":
            check_divisible("channels", channels, "heads", heads)
            self.w = nn.Parameter(torch.randn(heads, *[kernel_size] * (1 if layout == "B N C" else 2)))
            self.gamma, self.beta = nn.Parameter(torch.zeros(heads)), nn.Parameter(torch.zeros(heads))

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(x, self.layout, {"C": self.channels})
        tokens = to_tokens(x)
        N = tokens.shape[1]
        if self.length is not None and N > self.length:
            raise ValueError(f"x has N={N}; it must be at most length={self.length}, beyond it are no positions")
        Q = tap("Q", self.Wq(tokens), "B N C")
        K = tap("K", self.Wk(tokens), "B N h" if self.form == "conv" else "B N C")
        V = tap("V", self.Wv(tokens), "B N C")
        if self.form == "conv":
            mean = in_float32(self._conv, K, V, self.w, self.gamma, self.beta, x.shape[2:] if x.ndim == 4 else (N,))
        elif self.u is not None and self.v is not None:
            mean = in_float32(lambda K, V, u, v: self._full(K, V, u @ v.T), K, V, self.u[:N], self.v[:N])
        elif self.form == "full" and self.w is not None:
            mean = in_float32(self._full, K, V, self.w[:N, :N])
        elif self.form == "local" and self.w is not None:
            mean = in_float32(self._local, K, V, self.w[:N])
        else:
            mean = in_float32(lambda K, V: self._all(K, V)[1], K, V)
        y = torch.sigmoid(Q) * tap("mean", mean.expand_as(V), "B N C").to(Q.dtype)
        return tap("y", from_tokens(y, x), self.layout)

    def _all(self, K: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        """log Σ exp(K), and Σ exp(K) V / Σ exp(K), over all positions (B 1 …) or all so far (B N …)."""
        if self.causal:
            return _so_far(K, V)
        return K.logsumexp(1, keepdim=True), (K.softmax(1) * V).sum(1, keepdim=True)

    def _full(self, K: Tensor, V: Tensor, w: Tensor) -> Tensor:
        tap("w", w, "N N")
        if self.causal:
            assert self.length is not None
            return _causal_full(K, V, w, 1 << (self.length - 1).bit_length())
        exp_w = (w - w.amax(1, keepdim=True).detach()).exp()
        exp_K = (K - K.amax(1, keepdim=True).detach()).exp()
        return (exp_w @ (exp_K * V)) / (exp_w @ exp_K)

    def _local(self, K: Tensor, V: Tensor, w: Tensor) -> Tensor:
        tap("w", w, "N K")
        log_sum, mean = self._all(K, V)
        s, exp_w_1 = self.window, w.expm1()
        if self.causal:  # per channel, as if each were a head
            num, den = _window_so_far(K, V[..., None], log_sum, [exp_w_1[:, s - 1 - back, None] for back in range(s)])
            return (mean + num[..., 0]) / (1 + den)
        exp_K = (K - log_sum).exp()
        near = torch.cat([exp_K * V, exp_K], 2)
        N, near = near.shape[1], F.pad(near, (0, 0, s - 1, s - 1))
        near = total([exp_w_1[:, tap_, None] * near[:, tap_:tap_ + N] for tap_ in range(2 * s - 1)])
        num, den = near.chunk(2, 2)
        return (mean + num) / (1 + den)

    def _conv(self, K: Tensor, V: Tensor, w: Tensor, gamma: Tensor, beta: Tensor, size: tuple[int, ...]) -> Tensor:
        flat = w.flatten(1)
        std = (flat.var(1, correction=0) + EPSILON).sqrt()
        kernel = gamma[:, None] * (flat - flat.mean(1, keepdim=True)) / std[:, None] + beta[:, None]
        exp_w_1 = tap("w", kernel.view_as(w), "h K" if w.ndim == 2 else "h i j").expm1()
        V = rearrange(V, "B N (h d) -> B N h d", h=self.heads)
        log_sum, mean = self._all(K[..., None], V)
        if self.causal:
            reach = w.shape[1] // 2 + 1
            num, den = _window_so_far(K, V, log_sum[..., 0], [exp_w_1[:, reach - 1 - back] for back in range(reach)])
            return ((mean + num) / (1 + den)[..., None]).flatten(2)
        exp_K = (K[..., None] - log_sum).exp()
        near = torch.cat([exp_K * V, exp_K], 3)  # numerator and denominator in one convolution
        near = rearrange(near, "B N h d -> (B d) h N").unflatten(2, size)
        convolve = F.conv1d if w.ndim == 2 else F.conv2d
        near = convolve(near, exp_w_1[:, None], padding=w.shape[1] // 2, groups=self.heads).flatten(2)
        near = rearrange(near, "(B d) h N -> B N h d", B=V.shape[0])
        return ((mean + near[..., :-1]) / (1 + near[..., -1:])).flatten(2)

    def extra_repr(self) -> str:
        own = {"full": f", length={self.length}", "local": f", length={self.length}, window={self.window}",
               "conv": f", heads={self.heads}"}.get(self.form, "")
        return f"channels={self.channels}, form={self.form!r}{own}, causal={self.causal}"


def _so_far(K: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ_{t′ ≤ t} exp(K_t′), and Σ_{t′ ≤ t} exp(K_t′) V_t′ over that sum, by logarithms alone.

    The values are taken apart into two that are positive. What is added to both, so that they have logarithms, is far
    below rounding.
    """
    log_sum = K.logcumsumexp(1)
    least = torch.finfo(V.dtype).tiny ** 0.5
    more, less = ((K + ((V.abs() + part) / 2 + least).log()).logcumsumexp(1) for part in (V, -V))
    return log_sum, (more - log_sum).exp() - (less - log_sum).exp()


def _window_so_far(K: Tensor, V: Tensor, log_sum: Tensor, exp_w_1: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Sums over the steps back of (exp(w) − 1) exp(K − log_sum), with V (B N h d) and without (B N h).

    Args:
        exp_w_1: exp(w) − 1 of no step back, of one, of two …
    """
    num: Tensor | int = 0
    den: Tensor | int = 0
    N = K.shape[1]
    for back, weight in enumerate(exp_w_1):
        K_back = F.pad(K, (0, 0, back, 0), value=-torch.inf)[:, :N]
        V_back = F.pad(V, (0, 0, 0, 0, back, 0))[:, :N]
        a = weight * (K_back - log_sum).exp()
        num, den = num + a[..., None] * V_back, den + a
    return num, den  # type: ignore[return-value]  # no longer 0: there is one weight or more


def _causal_full(K: Tensor, V: Tensor, w: Tensor, P: int) -> Tensor:
    """Σ_{t′ ≤ t} exp(K_t′ + w_tt′) V_t′ over the same without V, for w (N, N).

    A series of P ≥ N steps, a power of two, is halved again and again: all keys of a first half lie before all rows of
    its second half, so that the largest of them may be taken off for these rows, and each pair of steps meets once.
    """
    B, N = K.shape[:2]
    # Images beside channels: a product with images in front would copy w for each of them.
    K, V = (F.pad(rearrange(t, "B N C -> N (B C)"), (0, 0, 0, P - N)) for t in (K, V))
    w = F.pad(w, (0, P - N, 0, P - N))
    own = K + w.diagonal()[:, None]  # t′ = t
    top = own.detach()               # the largest logarithm so far
    den = (own - top).exp()
    num = den * V
    half = P // 2
    while half:
        keys, values = (t.unflatten(0, (-1, 2, half))[:, 0] for t in (K, V))  # pairs, half, B · C
        pairs = P // (2 * half)
        block = w.reshape(pairs, 2, half, pairs, 2, half)[:, 1, :, :, 0].diagonal(dim1=0, dim2=2).movedim(-1, 0)
        most_K, most_w = keys.amax(1, keepdim=True).detach(), block.amax(2, keepdim=True).detach()
        exp_K, exp_w = (keys - most_K).exp(), (block - most_w).exp()

        (first, row), (den_1, den_2), (num_1, num_2) = (t.unflatten(0, (-1, 2, half)).unbind(1)
                                                       for t in (top, den, num))
        new = most_K + most_w
        both = torch.maximum(row, new)
        den_2 = den_2 * (row - both).exp() + (exp_w @ exp_K) * (new - both).exp()
        num_2 = num_2 * (row - both).exp() + (exp_w @ (exp_K * values)) * (new - both).exp()
        top, den, num = (torch.stack(parts, 1).flatten(0, 2)
                         for parts in ((first, both), (den_1, den_2), (num_1, num_2)))
        half //= 2
    return rearrange((num / den)[:N], "N (B C) -> B N C", B=B)
