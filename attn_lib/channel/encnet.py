"""Context encoding: a gate for every channel, from what the pixels leave over beside learned codewords (EncNet)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_feature_map, check_int
from ..ops import in_float32, widened
from ..tap import tap

AGGREGATES = ("sum", "mean")


@register(
    "encnet",
    family="channel",
    name="Context encoding",
    summary="It sorts the pixels by a learned dictionary before it pools them, so that a small patch still counts.",
    aliases=("EncNet", "Context Encoding", "Encoding module"),
    action="gate",
    papers=[Paper(
        key="zhang2018context", venue="CVPR", year=2018, arxiv="1803.08904",
        title="Context Encoding for Semantic Segmentation",
        code="https://github.com/zhanghang1989/PyTorch-Encoding",
    )],
    layout="B C H W",
    example=dict(channels=16, codewords=6),
    measured=dict(channels=64),
    variants={
        "release": dict(channels=12, codewords=4, residual=True, aggregate="mean"),
        "with logits": dict(channels=12, codewords=4, classes=5),
    },
    variant_outputs={"with logits": "B C H W, B O"},
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    builds_on=("se",),
    reduces_to={
        "se": "one codeword at 0 and nothing before it: SE without a reduction, W₁ = HW · I",
        "channel scaling": "W_γ = 0: the gates are constants",
    },
    errata=[
        Erratum("release",
                "The output is δ(x + γ · x).",
                "It is γ · x as in the paper; `residual=True` is the release.",
                "test_equals_the_paper"),
        Erratum("release",
                "The encoders are averaged over the codewords.",
                "They are summed as in the paper; `aggregate=\"mean\"` is the release.",
                "test_equals_the_paper"),
        Erratum("release",
                "What it learns and calls scale is minus the smoothing factor, drawn from −1 to 0.",
                "s is the paper's, drawn from 0 to 1: the sign turns when weights are loaded.",
                "test_a_checkpoint_of_the_release_loads_by_names_and_one_sign"),
        Erratum("release",
                "The distances are a compiled operator of its own, whose backward pass divides by the scale: NaN at 0.",
                "Products of matrices, and the gradient at 0 is what it should be.",
                "test_a_smoothing_factor_of_zero_has_a_gradient"),
        Erratum("release",
                "On the CPU the gradient that the distances have for the codewords lacks its minus.",
                "It is the formula's, as on the release's GPU.",
                "test_the_codewords_have_the_gradient_of_the_formula"),
        Erratum("paper",
                "The encoders are sums over the pixels, so what BN has learned at one size is wrong at another.",
                "So they are here: evaluate at the size of the training, or take the statistics anew.",
                "test_encoders_grow_with_the_map"),
    ],
)
class EncodingAttention(nn.Module):
    """Context encoding: y = γ · x with γ = σ(W_γ e), e = ∑ₖ δ(BN(E))ₖ, Eₖ = ∑ᵢ aᵢₖ (x̂ᵢ − cₖ), δ = ReLU.

    x̂ = δ(BN(W_x x)) by a 1×1 convolution without a bias. Each pixel i shares itself among K codewords cₖ of C numbers
    each, the more the nearer they are,

        aᵢₖ = softmaxₖ(−sₖ ‖x̂ᵢ − cₖ‖²),

    with a learned smoothing factor sₖ, and leaves to each its difference from it. BN has a scale and a shift for each
    codeword, with statistics over the batch and the channels. Eₖ is a sum over all pixels, no mean: on four times the
    area it is four times as large. W_γ is C × C with a bias.

    With `classes` the module also returns W_l e + b, one logit a class for the semantic encoding loss: whether
    the class occurs anywhere in the image. The authors weigh its binary cross-entropy by 0.2.

    ‖x̂ − c‖² is computed as ‖x̂‖² − 2 x̂·c + ‖c‖² and E as aᵀx̂ − (∑a) c, in float32 at least: nothing of size HW·K·C
    exists.

    From the release load encoding.0 into Wx, encoding.1 into norm_x, encoding.3.codewords into c, minus
    encoding.3.scale into s, encoding.4 into norm_e, fc.0 into Wgamma, and selayer into Wlogits.

    Args:
        channels: C, at least 1.
        codewords: K, at least 1; 32 in the paper.
        classes: number of the logits, at least 1; None for none.
        aggregate: "sum" or "mean" over the codewords; the release has the mean.
        residual: y = δ(x + γ · x), as in the release.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1; with `classes` also the logits (B, classes).

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or a single pixel
            in training, where BN has nothing to take a variance of.

    Paper:
        Zhang, Dana, Shi, Zhang, Wang, Tyagi and Agrawal, Context Encoding for Semantic Segmentation, CVPR 2018,
        arXiv 1803.08904.
    """

    def __init__(self, channels: int, *, codewords: int = 32, classes: int | None = None, aggregate: str = "sum",
                 residual: bool = False):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.codewords = check_int("codewords", codewords)
        self.classes = None if classes is None else check_int("classes", classes)
        check_choice("aggregate", aggregate, AGGREGATES)
        self.aggregate, self.residual = aggregate, residual
        self.Wx = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm_x = nn.BatchNorm2d(channels)
        bound = (codewords * channels) ** -0.5
        self.c = nn.Parameter(torch.empty(codewords, channels).uniform_(-bound, bound))
        self.s = nn.Parameter(torch.rand(codewords))
        self.norm_e = nn.BatchNorm1d(codewords)
        self.Wgamma = nn.Linear(channels, channels)
        self.Wlogits = None if classes is None else nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        check_feature_map(x, self.channels)
        x_hat = tap("x_hat", F.relu(self.norm_x(self.Wx(x))), "B C H W")
        E = tap("E", in_float32(self.encode, x_hat.flatten(2).transpose(-2, -1), self.c, self.s), "B K C")
        phi = F.relu(widened(self.norm_e, E))
        e = tap("e", phi.sum(1) if self.aggregate == "sum" else phi.mean(1), "B C")
        gamma = tap("gamma", torch.sigmoid(widened(self.Wgamma, e)), "B C")
        logits = None if self.Wlogits is None else tap("logits", widened(self.Wlogits, e).to(x.dtype), "B O")
        y = x * gamma.to(x.dtype)[:, :, None, None]
        y = tap("y", F.relu(x + y) if self.residual else y, "B C H W")
        return y if logits is None else (y, logits)

    def encode(self, x_hat: Tensor, c: Tensor, s: Tensor) -> Tensor:
        """What the pixels (B, N, C) leave over beside each codeword, (B, K, C)."""
        x = x_hat.transpose(-2, -1)  # B C N: the softmax runs over K where K is not the last axis, which is faster
        distance = x.square().sum(1, keepdim=True) - 2 * c @ x + c.square().sum(1)[:, None]  # B K N
        a = (-s[:, None] * distance).softmax(1)
        a = tap("a", a.transpose(-2, -1), "B N K").transpose(-2, -1)
        return a @ x_hat - a.sum(2, keepdim=True) * c

    def extra_repr(self) -> str:
        return f"channels={self.channels}, codewords={self.codewords}, classes={self.classes}"
