"""External attention: every position looks into a small memory that is learned, the same for all images."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_divisible, check_feature_map, check_int, check_positive, check_tensor
from ..ops import from_tokens, in_float32, to_tokens
from ..tap import tap

LAYOUTS = ("B C H W", "B N C")


@register(
    "external",
    family="self_attention",
    name="External attention",
    summary="It asks a small learned memory, not the other positions, and costs as much per position in any image.",
    aliases=("EA", "EANet", "external attention", "EAMLP"),
    action="mix",
    papers=[Paper(
        key="guo2023external", venue="TPAMI", year=2023, arxiv="2105.02358",
        title="Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks",
        code="https://github.com/MenghaoGuo/EANet",
    )],
    layout="B C H W",
    example=dict(channels=16, slots=8),
    measured=dict(channels=64),
    variants={
        "tokens": dict(channels=8, slots=5, layout="B N C"),
        "heads": dict(channels=8, slots=5, heads=2),
        "release": dict(channels=8, slots=5, heads=2, expansion=4, layout="B N C", epsilon=1e-9),
    },
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    refuses={
        "onnx by trace at any size": "the older exporter writes the recorded sizes into a reshape",
    },
    builds_on=("non_local",),
    reduces_to={
        "constant": "S = 1: every position gets the only row of M_v",
        "self-attention": "orthonormal tokens, whose keys and values are the memories",
    },
    errata=[
        Erratum("release", "It adds 1e-9 to the sum over the slots, which float16 rounds to 0.",
                "The paper's equation by default, in which nothing is divided by 0; epsilon=1e-9 is the release's.",
                "test_epsilon_counts_only_for_a_position_that_no_slot_looks_at"),
        Erratum("release", "The layer before the memories and the memories themselves have biases.",
                "They have none: the softmax over positions cancels what stands before it, and as each row of A sums "
                "to 1, a bias of M_v is the same number added to all its rows.",
                "test_biases_of_the_release_change_nothing"),
        Erratum("release", "Its two memories start as one storage, and whether they remain one depends on how the "
                "model was moved or loaded.", "Two memories; tied=True of the block makes one of them for good.",
                "test_tied_memories_are_one_parameter"),
        Erratum("copies", "They divide by the sum over the slots as it is, 0/0 where a position loses in every slot.",
                "Both normalisations are one softmax of logarithms, which has no quotient.",
                "test_a_position_that_loses_in_every_slot_is_no_nan"),
        Erratum("copies", "They keep the bare equation for single heads alone, under the name of the whole module.",
                "heads=h is the paper's multi-head form, and ExternalAttentionBlock the block that EANet is made of.",
                "test_equals_the_release_with_heads"),
    ],
)
class ExternalAttention(nn.Module):
    """External attention: y = A M_v with A = norm(F M_kᵀ), where M_k and M_v are S × C memories that are learned.

    F holds the N tokens of x, and the norm is a double one: a softmax over the tokens, then a division by the sum
    over the slots,

        e_ns = exp(l_ns) / Σ_m exp(l_ms),   A_ns = e_ns / Σ_t e_nt,   l = F M_kᵀ.

    The S slots are the keys (Nk = S in the trace). A value never comes from a token, always from the memory: tokens
    meet only in the sum over m. Both steps together are a softmax over the slots of l_ns − log Σ_m exp(l_ms).

    With heads, F = W_q x is split into h heads of d = C/h channels that share the two memories, now S × d, and
    y = W_o [y_1; …; y_h] + b_o. The release widens first: W_q makes expansion · C channels and expansion · h heads.
    Its weights: trans_dims → W_q, linear_0 → M_k, linear_1 transposed, its bias added to every row → M_v, proj → W_o.

    Args:
        channels: C, at least 1.
        slots: S, at least 1; 64 in the paper.
        heads: h, divides C; None for the bare equation, which has no other weights than the memories.
        expansion: how much wider F is than x, at least 1; only with heads. 4 in the release.
        layout: "B C H W" or "B N C".
        epsilon: added to the sum over the slots, at least 0; 1e-9 in the release.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), or both (B, N, C); any sizes.

    Raises:
        ValueError: for an argument out of range, or an input of another layout or number of channels.

    Paper:
        Guo, Liu, Mu and Hu, Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks,
        TPAMI 2023, arXiv 2105.02358.
    """

    def __init__(self, channels: int, *, slots: int = 64, heads: int | None = None, expansion: int = 1,
                 layout: str = "B C H W", epsilon: float = 0.0):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.slots = check_int("slots", slots)
        check_choice("layout", layout, LAYOUTS)
        self.layout = layout
        self.epsilon = _epsilon(epsilon)
        self.heads, self.expansion = heads, check_int("expansion", expansion)
        d = channels
        if heads is not None:
            d = check_divisible("channels", channels, "heads", check_int("heads", heads))
            self.Wq = nn.Linear(channels, expansion * channels, bias=False)
            self.Wo = nn.Linear(expansion * channels, channels)
        elif expansion != 1:
            raise ValueError(f"expansion={expansion} must be 1 with heads=None: the bare equation widens nothing")
        self.Mk, self.Mv = _memory(slots, d), _memory(slots, d)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(x, self.layout, {"C": self.channels})
        if self.heads is None and self.layout == "B C H W":
            x_F = from_tokens(tap("F", to_tokens(x), "B N C"), x)
            return tap("y", look_up_map(x_F, self.Mk, self.Mv.T, self.epsilon), self.layout)
        tokens = to_tokens(x)
        if self.heads is None:
            y = look_up(tap("F", tokens, "B N C"), self.Mk, self.Mv, self.epsilon)
        else:
            tokens = rearrange(self.Wq(tokens), "B N (h d) -> B h N d", h=self.expansion * self.heads)
            y = look_up(tap("F", tokens, "B h N d"), self.Mk, self.Mv, self.epsilon)
            y = self.Wo(rearrange(y, "B h N d -> B N (h d)"))
        return tap("y", from_tokens(y, x), self.layout)

    def extra_repr(self) -> str:
        heads = "" if self.heads is None else f", heads={self.heads}, expansion={self.expansion}"
        return f"channels={self.channels}, slots={self.slots}{heads}, layout={self.layout!r}"


class ExternalAttentionBlock(nn.Module):
    """EANet's block: y = δ(x + BN(W_2 A M_v)), A = norm(F M_kᵀ) of F = W_1 x, δ = ReLU.

    A is that of `ExternalAttention`, for single heads. Weights of the release: conv1 → W_1, linear_0 → M_k, linear_1
    transposed → M_v, conv2 → W_2 and the norm. A bias of W_1, which the release has, would change nothing.

    Args:
        channels: C, at least 1.
        slots: S, at least 1; 64 in the paper.
        tied: whether M_v is M_k.
        epsilon: as in `ExternalAttention`.

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        As `ExternalAttention`.
    """

    def __init__(self, channels: int, *, slots: int = 64, tied: bool = False, epsilon: float = 0.0):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.epsilon = _epsilon(epsilon)
        self.W1, self.W2 = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(channels)
        self.Mk = _memory(check_int("slots", slots), channels)
        self.Mv = self.Mk if tied else _memory(slots, channels)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        x_F = from_tokens(tap("F", to_tokens(self.W1(x)), "B N C"), x)
        W2_Mv = self.W2.weight.flatten(1) @ self.Mv.T  # S × C numbers, for one product of the map less
        return tap("y", F.relu(x + self.norm(look_up_map(x_F, self.Mk, W2_Mv, self.epsilon))), "B C H W")


def look_up(tokens: Tensor, Mk: Tensor, Mv: Tensor, epsilon: float) -> Tensor:
    """A M_v (…, N, d) of tokens (…, N, d) and memories (S, d); A is made in float32 at least."""
    A = _normalised(in_float32(lambda t, M: t @ M.T, tokens, Mk), -2, -1, epsilon)
    return tap("A", A, "B N Nk" if A.ndim == 3 else "B h N Nk").to(Mv.dtype) @ Mv


def look_up_map(x: Tensor, Mk: Tensor, W: Tensor, epsilon: float) -> Tensor:
    """W Aᵀ (B, O, H, W) of a map x (B, C, H, W), a memory (S, C) and W (O, S): nothing is turned into tokens."""
    logits = in_float32(lambda t, M: M.expand(len(t), -1, -1).bmm(t), x.flatten(2), Mk)  # B S N
    A = tap("A", _normalised(logits, -1, -2, epsilon).transpose(-2, -1), "B N Nk")
    return W.expand(len(x), -1, -1).bmm(A.transpose(-2, -1).to(W.dtype)).unflatten(2, x.shape[2:])


def _normalised(logits: Tensor, tokens: int, slots: int, epsilon: float) -> Tensor:
    """A of logits with the tokens and the slots on the axes of these numbers."""
    log_e = logits.log_softmax(tokens)
    if not epsilon:
        return log_e.softmax(slots)
    total = log_e.logsumexp(slots, keepdim=True)
    return (log_e - total.logaddexp(torch.full_like(total, math.log(epsilon)))).exp()


def _memory(slots: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(slots, width) * width**-0.5)


def _epsilon(value: float) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else check_positive("epsilon", value)
