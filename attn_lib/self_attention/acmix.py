"""ACmix: attention to a neighbourhood and a convolution of it, made of the same three projections."""

import torch
from einops import rearrange
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_divisible, check_feature_map, check_int, check_odd
from ..ops import neighbour_logits, neighbour_sum, neighbours_on_map
from ..tap import tap

PADDING = ("masked", "reflect")
ORDERS = ("heads", "release")


@register(
    "acmix",
    family="self_attention",
    name="ACmix",
    summary="It computes queries, keys and values once, and makes both attention and a convolution of them.",
    aliases=("ACmix", "AC mix", "self-attention and convolution mixed"),
    action="mix",
    papers=[Paper(
        key="pan2022integration", venue="CVPR", year=2022, arxiv="2111.14556",
        title="On the Integration of Self-Attention and Convolution",
        code="https://github.com/LeapLabTHU/ACmix",
    )],
    layout="B C H W",
    output="B O Ho Wo",
    example=dict(channels=8, heads=2, kernel_size=5),
    measured=dict(channels=64),
    variants={
        "release": dict(channels=6, out_channels=8, heads=2, stride=2, padding="reflect", conv_order="release"),
    },
    commutes_with={"translation"},
    refuses={
        "onnx by trace at any size": "the older exporter writes the recorded sizes into a reshape",
    },
    builds_on=("mhsa",),
    reduces_to={
        "convolution": "α = 0, no biases: one k_c × k_c convolution, times β",
        "mhsa": "α = 1, β = 0, W_p = 0, k ≥ 2H − 1 and 2W − 1: all pixels, without positions",
    },
    errata=[
        Erratum(
            "release",
            "A dilation other than 1 raises an error: the padding grows with it and the neighbourhoods do not.",
            "Keys lie `dilation` pixels apart.",
            "test_trap_a_dilation_that_only_pads"),
        Erratum(
            "release",
            "Keys, values and positions are mirrored at the border, so that keys are counted twice under positions "
            "that are not theirs, and a map with a side of at most k/2 pixels raises an error.",
            "Keys outside the map are masked; `padding=\"reflect\"` is the release's, and mirrors again where a side "
            "is too short for it.",
            "test_trap_mirrored_keys_and_positions"),
        Erratum(
            "release",
            "The channels of its convolution are ordered by their number within a head, those of its attention by "
            "head, and the two are added.",
            "Both by head; `conv_order=\"release\"` is theirs.",
            "test_trap_two_orders_of_channels"),
        Erratum(
            "release",
            "A helper that returns nothing takes the bias of the shift convolution away.",
            "There is none from the start.",
            "test_trap_a_bias_that_is_lost"),
        Erratum(
            "release",
            "The projection of positions has a bias, which cancels in p_q − p_k.",
            "There is none.",
            "test_trap_a_bias_of_positions_cancels"),
        Erratum(
            "release",
            "A stride of 2 needs even sizes.",
            "Any size: Ho = ⌈H/stride⌉.",
            "test_equals_the_paper"),
        Erratum(
            "release",
            "Positions are made in float32, and an input of another type raises an error.",
            "They have the type and the device of the input.",
            "test_trap_positions_are_made_as_the_input_is"),
    ],
)
class ACmix(nn.Module):
    """ACmix: y = α · attention(q, k, v) + β · convolution(q, k, v), of the same q = W_q x, k = W_k x, v = W_v x.

    Attention, for each of h heads of d = O/h channels, to the k × k keys j around a pixel i:

        Σ_j softmax_j(q_i · (k_j + p_i − p_j) / √d) v_j,   p = W_p [column; row], both from −1 to 1.

    Convolution: the 3h numbers that q, k and v hold of a channel of the heads become k_c² by W_f, the same matrix for
    all d channels. Map number m of them is moved as tap m of a k_c × k_c kernel would read it, and all are added. The
    moves are one grouped convolution W_s, d groups of k_c² maps each, which starts as exactly that and then learns:
    its output is h channels for each group.

    α and β start at ½.

    To load the release's weights: `conv1`, `conv2`, `conv3` are Wq, Wk, Wv; `conv_p` is Wp, without the bias, which has
    no effect; `fc` is Wf, `dep_conv` is Ws; `rate1` is alpha and `rate2` is beta. With conv_order="heads" the rows of
    W_s keep the release's order, by groups, and the output is re-ordered.

    Args:
        channels: C, at least 1.
        out_channels: O, divisible by `heads`; C when None.
        heads: h.
        kernel_size: k of the attention, odd; 7 in the paper.
        kernel_conv: k_c of the convolution, odd; 3 in the paper.
        stride: distance of the pixels that are kept, at least 1.
        dilation: distance of the keys.
        padding: "masked", keys outside the map do not exist; "reflect", the map is mirrored.
        conv_order: "heads" or "release", in which order the convolution's channels meet those of the attention.

    Shape:
        x (B, C, H, W) → y (B, O, Ho, Wo), Ho = ⌈H/stride⌉, Wo = ⌈W/stride⌉, any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Pan, Ge, Lu, Song, Chen, Huang and Huang, On the Integration of Self-Attention and Convolution, CVPR 2022,
        arXiv 2111.14556.
    """

    def __init__(self, channels: int, out_channels: int | None = None, *, heads: int = 4, kernel_size: int = 7,
                 kernel_conv: int = 3, stride: int = 1, dilation: int = 1, padding: str = "masked",
                 conv_order: str = "heads"):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.out_channels = check_int("out_channels", channels if out_channels is None else out_channels)
        self.heads = check_int("heads", heads)
        d = check_divisible("out_channels", self.out_channels, "heads", heads)
        self.kernel_size = check_odd("kernel_size", kernel_size)
        self.kernel_conv = check_odd("kernel_conv", kernel_conv)
        self.stride = check_int("stride", stride)
        self.dilation = check_int("dilation", dilation)
        check_choice("padding", padding, PADDING)
        check_choice("conv_order", conv_order, ORDERS)
        self.padding, self.conv_order = padding, conv_order
        self.Wq, self.Wk, self.Wv = (nn.Conv2d(channels, self.out_channels, 1) for _ in range(3))
        self.Wp = nn.Conv2d(2, d, 1, bias=False)
        self.Wf = nn.Conv2d(3 * heads, kernel_conv**2, 1, bias=False)
        self.Ws = nn.Conv2d(kernel_conv**2 * d, self.out_channels, kernel_conv, stride, kernel_conv // 2, groups=d,
                            bias=False)
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.beta = nn.Parameter(torch.full((1,), 0.5))
        with torch.no_grad():  # map m is read at tap m
            self.Ws.weight.copy_(torch.eye(kernel_conv**2).unflatten(1, (kernel_conv, kernel_conv)))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        q, k, v = (tap(name, W(x), "B O H W") for name, W in (("q", self.Wq), ("k", self.Wk), ("v", self.Wv)))
        F_att = tap("F_att", self.attention(q, k, v), "B O Ho Wo")
        F_conv = tap("F_conv", self.convolution(q, k, v), "B O Ho Wo")
        alpha, beta = (rate.to(F_att.dtype) for rate in (self.alpha, self.beta))  # half under autocast
        return tap("y", alpha * F_att + beta * F_conv, "B O Ho Wo")

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p = tap("p", self.Wp(_coordinates(q)), "1 d H W")
        q, k, v = (t.unflatten(1, (self.heads, -1)) for t in (q[..., ::self.stride, ::self.stride], k, v))
        around = (self.kernel_size, self.kernel_size), self.dilation, self.stride
        k = k - p[:, None]  # without p_i: q_i · p_i is the same for all j, which a softmax does not notice
        padding: tuple[int, int] | None = None
        bias: Tensor | int = 0
        if self.padding == "masked":
            H, W = k.shape[3:]
            off = ~neighbours_on_map(H, W, *around, device=k.device)
            bias = q.new_zeros(off.shape).masked_fill(off, -torch.inf)
        else:
            reach = self.dilation * (self.kernel_size // 2)
            k, v = (_mirrored(_mirrored(t, reach, 3), reach, 4) for t in (k, v))
            padding = (0, 0)
        A = (neighbour_logits(q * q.shape[2] ** -0.5, k, *around, padding=padding) + bias).softmax(2)
        A = tap("A", rearrange(A, "B h K H W -> B h (H W) 1 K"), "B h N 1 K")  # N = Ho·Wo
        A = rearrange(A, "B h (H W) 1 K -> B h K H W", H=q.shape[3])
        return neighbour_sum(A, v, *around, padding=padding).flatten(1, 2)

    def convolution(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        H, W = q.shape[2:]
        shared = torch.cat([rearrange(t, "B (h d) H W -> B h d (H W)", h=self.heads) for t in (q, k, v)], 1)
        maps = rearrange(self.Wf(shared), "B K d (H W) -> B (d K) H W", H=H, W=W)
        y = self.Ws(maps)
        return rearrange(y, "B (d h) H W -> B (h d) H W", h=self.heads) if self.conv_order == "heads" else y

    def extra_repr(self) -> str:
        names = ("channels", "out_channels", "heads", "kernel_size", "kernel_conv", "stride", "dilation", "padding")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _coordinates(like: Tensor) -> Tensor:
    """Column and row of every pixel, from −1 to 1 (1, 2, H, W); of a single one, −1."""
    dtype = torch.promote_types(like.dtype, torch.float32)  # half precision cannot tell the pixels of a wide map apart
    places = (torch.arange(n, dtype=dtype, device=like.device) for n in like.shape[2:])  # linspace binds a graph to n
    rows, cols = (2 * place / place[-1:].clamp(min=1) - 1 for place in places)
    return torch.stack(torch.meshgrid(rows, cols, indexing="ij")[::-1])[None].to(like.dtype)


def _mirrored(t: Tensor, reach: int, dim: int) -> Tensor:
    """t with `reach` more entries at both ends of an axis, mirrored as often as it takes; the end is not repeated."""
    n = t.shape[dim]
    place = torch.arange(-reach, n + reach, device=t.device).abs() % max(2 * n - 2, 1)
    return t.index_select(dim, place.minimum(2 * n - 2 - place))
