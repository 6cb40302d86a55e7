"""Super token attention: pixels gather in super tokens, which attend to each other and hand the result back (STViT)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_divisible, check_feature_map, check_int, check_positive
from ..ops import attend, cropped, in_float32, neighbourhoods, open_size, pad_to_multiple, unwindows, windows
from ..tap import tap

PADDING = ("masked", "zeros")


@register(
    "stvit",
    family="self_attention",
    name="Super token attention",
    summary="It lets regions that follow the content attend to each other, and each pixel take part in nine of them.",
    aliases=("STA", "STViT", "SViT", "super token attention", "super token sampling"),
    action="mix",
    papers=[Paper(
        key="huang2023vision", venue="CVPR", year=2023, arxiv="2211.11167",
        title="Vision Transformer with Super Token Sampling",
        code="https://github.com/hhb072/STViT",
    )],
    layout="B C H W",
    example=dict(channels=16, heads=2, token_size=(4, 4)),
    measured=dict(channels=64),
    variants={
        "zeros": dict(channels=8, heads=2, token_size=(2, 4), iterations=2, padding="zeros", qkv_bias=True),
        "1 × 1": dict(channels=6, heads=3, token_size=(1, 1)),
    },
    commutes_with={"flip_h", "flip_w", "transpose"},
    refuses={
        "onnx by trace": "the older exporter does not see the size of the map to which windows add up (`F.fold`)",
    },
    builds_on=("mhsa",),
    reduces_to={
        "mhsa": "super tokens of 1 × 1 pixels: without positions, and W_o at the end",
        "mean": "one super token, masked: every pixel gets W_o W_v of the mean",
    },
    errata=[
        Erratum(
            "release",
            "Super tokens outside the grid are zeros with the logit 0, and take their share of a pixel: a lone super "
            "token gets eˢ / (eˢ + 8) of it, and a constant leaves smaller at the border.",
            "They are masked; `padding=\"zeros\"` is the release's.",
            "test_trap_super_tokens_that_do_not_exist"),
        Erratum(
            "release",
            "Where a super token's size does not divide the map, zeros are added below and to the right, and enter the "
            "means as pixels.",
            "Only pixels of the map count; `padding=\"zeros\"` is the release's.",
            "test_trap_padded_pixels_in_the_means"),
        Erratum(
            "release",
            "The association is computed without gradients, so that the module's gradient is not that of what it "
            "computes.",
            "The gradient goes through it; `association_gradient=False` is the release's.",
            "test_trap_the_association_without_a_gradient"),
        Erratum(
            "copies",
            "One super token for the whole map is said to be self-attention.",
            "It is a mean; super tokens of 1 × 1 pixels are self-attention, since they need no association.",
            "test_a_single_super_token_gives_every_pixel_the_mean"),
    ],
)
class SuperTokenAttention(nn.Module):
    """Super token attention: y = a · MHSA(S), with super tokens S = âᵀ X and the association a of pixels with them.

    The map is cut into P × Q cells of h × w pixels, and S starts as their means. Each of v iterations computes

        a = softmax(X Sᵀ / √C),   S_j = Σ_i a_ij X_i / Σ_i a_ij,

    where pixel i knows only the super token of its own cell and the eight around it. There are no projections: X and S
    are compared as they are. MHSA is multi-head self-attention of the super tokens with a W_o at its end, and a pixel
    gets the mixture of their results that its association says. The paper writes Q for a, with Q̂ for its columns
    divided by their sums. With cells of 1 × 1 pixels, as in the last stage of the paper, y = MHSA(X).

    The last cells are smaller where h does not divide H, or w does not divide W; only where they do is the mirrored
    map cut alike, and the output mirrored.

    To load the release's weights: `stoken_refine.qkv` is Wqkv and `.proj` is Wo. The rows of W_qkv are those of q, k
    and v of the first head, then of the second.

    Args:
        channels: C, divisible by `heads`.
        heads: of the self-attention; the release has C/32.
        token_size: (h, w), rows and columns of a cell; 8, 4, 2 and 1 a side in the paper.
        iterations: v; 1 in the paper.
        padding: "masked", super tokens outside the grid and pixels outside the map do not exist; "zeros", they are
            zeros.
        association_gradient: whether a has a gradient.
        qkv_bias: whether W_qkv has a bias; W_o has one.
        epsilon: added to Σ_i a_ij, for a super token that no pixel belongs to; 1e-12 in the release.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Huang, Zhou, Cao, He and Tan, Vision Transformer with Super Token Sampling, CVPR 2023, arXiv 2211.11167.
    """

    def __init__(self, channels: int, *, heads: int = 8, token_size: tuple[int, int] = (8, 8), iterations: int = 1,
                 padding: str = "masked", association_gradient: bool = True, qkv_bias: bool = False,
                 epsilon: float = 1e-12):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.heads = check_int("heads", heads)
        check_divisible("channels", channels, "heads", heads)
        if not isinstance(token_size, tuple | list) or len(token_size) != 2:
            raise ValueError(f"token_size={token_size!r} must hold rows and columns, such as (8, 8)")
        self.token_size = tuple(check_int("token_size", side) for side in token_size)
        self.iterations = check_int("iterations", iterations)
        check_choice("padding", padding, PADDING)
        self.padding, self.association_gradient = padding, association_gradient
        self.epsilon = check_positive("epsilon", epsilon, "without it a super token without pixels is 0/0")
        self.Wqkv = nn.Conv2d(channels, 3 * channels, 1, bias=qkv_bias)
        self.Wo = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        if self.token_size == (1, 1):
            return tap("y", self.attention(x), "B C H W")
        H, W = x.shape[2:]
        padded, real = pad_to_multiple(x, *self.token_size)
        X = tap("X", windows(padded, *self.token_size), "B R n C")
        if self.padding == "zeros" or (not open_size(H, W) and padded.shape == x.shape):
            inside = None  # all are
        else:
            inside = windows(real[None, None].to(x), *self.token_size).transpose(-2, -1)  # 1 R 1 n, of ones and zeros
        S, a = self.sample(X, inside, padded.shape[2] // self.token_size[0])
        S = tap("S", S.to(x.dtype), "B C P Q")
        near = _around(tap("S'", self.attention(S), "B C P Q"))[0]
        y = unwindows(a.to(near.dtype) @ near, *self.token_size, *padded.shape[2:])
        return tap("y", cropped(y, H, W), "B C H W")

    def sample(self, X: Tensor, real: Tensor | None, P: int) -> tuple[Tensor, Tensor]:
        """S (B, C, P, Q) and a (B, R, n, K) for X (B, R, n, C), in float32 at least."""
        dtype = torch.promote_types(X.dtype, torch.float32)
        if real is None:
            means = X.mean(2, keepdim=True, dtype=dtype)  # B R 1 C
        else:
            real = real.to(dtype)
            means = in_float32(torch.matmul, real / real.sum(3, keepdim=True), X)
        S = rearrange(means, "B (P Q) 1 C -> B C P Q", P=P)
        for _ in range(self.iterations):
            a_T = self.associate(X, S)  # B R K n: the few rows first, which is faster
            S = in_float32(self.gather, a_T if real is None else a_T * real, X, S)
        return S, tap("a", a_T.transpose(-2, -1), "B R n K")

    def associate(self, X: Tensor, S: Tensor) -> Tensor:
        """aᵀ with a = softmax(X Sᵀ / √C) over the K = 9 super tokens around every cell."""
        if not self.association_gradient:
            X, S = X.detach(), S.detach()
        near, on_grid = _around(S)
        logits = in_float32(torch.matmul, near * self.channels**-0.5, X.transpose(-2, -1))
        if self.padding == "masked":
            logits = logits.masked_fill(~on_grid[..., None], -torch.inf)
        return logits.softmax(2)

    def gather(self, a_T: Tensor, X: Tensor, S: Tensor) -> Tensor:
        """S_j = Σ_i a_ij X_i / Σ_i a_ij; what would belong to a super token outside the grid is lost."""
        def fold(t: Tensor) -> Tensor:  # B R K C: the sums over the cells around every super token
            sums = F.fold(rearrange(t, "B R K C -> B (C K) R"), S.shape[2:], 3, padding=1)
            return sums.clone()  # on a CPU torch leaves it in a storage as large as t
        return fold(a_T @ X) / (fold(a_T.sum(3, keepdim=True)) + self.epsilon)

    def attention(self, S: Tensor) -> Tensor:
        """MHSA(S)"""
        q, k, v = rearrange(self.Wqkv(S), "B (h j d) P Q -> j B h (P Q) d", h=self.heads, j=3)
        y = attend(q, k, v, name="A", dims="B h N N")  # N super tokens
        return self.Wo(rearrange(y, "B h (P Q) d -> B (h d) P Q", P=S.shape[2]))

    def extra_repr(self) -> str:
        names = ("channels", "heads", "token_size", "iterations", "padding", "association_gradient")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _around(S: Tensor) -> tuple[Tensor, Tensor]:
    """The 3 × 3 super tokens around every cell (B, R, K, C), and which of them are on the grid (R, K)."""
    near, on_grid = neighbourhoods(S, (3, 3))
    return rearrange(near, "B C K P Q -> B (P Q) K C"), rearrange(on_grid, "K P Q -> (P Q) K")
