"""Deformable convolution v3 (InternImage): taps that move, in groups that each divide one unit of attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_divisible, check_feature_map, check_int, check_odd, check_pair, check_positive
from ..ops import Geometry, bilinear_sample, in_float32, output_size, same_padding, tap_positions
from ..tap import tap

Pair = int | tuple[int, int]  # (rows, columns); an integer stands for both

FORMS = ("paper", "release")


@register(
    "dcnv3",
    family="conv",
    name="Deformable convolution v3",
    summary="Groups of channels choose where to look, and share one unit of attention among those places, as heads do.",
    aliases=("DCNv3", "InternImage"),
    action="move",
    papers=[Paper(
        key="wang2023internimage", venue="CVPR", year=2023, arxiv="2211.05778",
        title="InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions",
        code="https://github.com/OpenGVLab/InternImage",
    )],
    layout="B C H W",
    output="B C Ho Wo",
    example=dict(channels=64),
    variants={
        "release": dict(channels=12, groups=3, form="release"),
        "uneven": dict(channels=6, groups=2, kernel_size=(3, 1), dw_kernel_size=5, stride=2, dilation=(2, 1),
                       padding=(1, 2), offset_scale=2.0, form="release", center_feature_scale=True),
    },
    commutes_with={"translation"},
    refuses={
        "any size": "with a stride torch.export may bind the graph to heights of one parity; torch.jit.trace does not",
    },
    builds_on=("deform", "depthwise_separable"),
    reduces_to={
        "mean": "Δp = 0 and W_m = 0: of the K places, zeros around x among them, and W_o",
        "depthwise_separable": "Δp = 0 and m the same everywhere: a kernel that a group's channels share",
        "linear layer": "Δp = 0 and m one at the centre, zero elsewhere",
    },
    errata=[
        Erratum("release", "x is projected before it is sampled, and offsets come through a layer norm and a GELU.",
                "Neither is in the paper's equation; form=\"release\" has both.",
                "test_equals_the_release_with_its_weights_in_our_order"),
        Erratum("release", "Its taps run column by column, and an offset is stored as (right, down).",
                "Row by row and (down, right), as in `deform`: its rows of offsets and masks have to be put in order.",
                "test_equals_the_release_with_its_weights_in_our_order"),
        Erratum("release", "offset_scale multiplies the grid pₖ as well as Δpₖ, so that 2 doubles the dilation.",
                "So it does here; the paper has no such scale, and 1 is none.",
                "test_offset_scale_multiplies_the_grid_as_well"),
        Erratum("release", "Its PyTorch path pads rows by the columns' padding and columns by the rows'.",
                "Padding is (rows, columns).",
                "test_padding_is_of_rows_and_of_columns"),
        Erratum("release", "Its PyTorch path fails at any stride but 1, as the offsets have the size of x.",
                "Offsets are made where the outputs are, at any stride, padding and dilation.",
                "test_offsets_are_made_around_the_centre_of_each_window"),
        Erratum("release", "Positions are computed in float32, whatever x is.",
                "In float64 where x is, so that the equation holds to rounding.",
                "test_equals_the_paper"),
        Erratum("copies", "Text about v3 stands above code of v2, with a sigmoid and a matrix for each tap.",
                "Weights are a softmax over the taps of a group, and one matrix serves all of them.",
                "test_the_comparison_with_the_paper_notices"),
    ],
)
class DCNv3(nn.Module):
    """Deformable convolution v3: y(p₀) = Σ_g W_g Σ_k m_gk · x_g(p₀ + p_k + Δp_gk), with m = softmax over the K taps.

    x_g are the C/G channels of group g, W_g the columns of one matrix W_o that belong to them: taps have no matrices of
    their own, as in a depthwise separable convolution, but weights m_gk that depend on x. Offsets and weights come from
    h, a depthwise convolution of x, by two linear layers: Δp = W_dp h and m = softmax(W_m h). Both start at zero, so
    that a fresh layer is the mean of a window, and a matrix. x between pixels is bilinear, and zero outside the image.

    form="release" is the authors' module: v = W_v x is sampled for x, h = GELU(LN(depthwise convolution)) with
    ε = 1e-6, and W_v and W_o have biases. `center_feature_scale`, of either form, blends in the pixel itself:
    (1 − s) u + s v(p₀) for the sum u above, and s = σ(W_c h) a number for each group. The release's weights and ours:

        dw_conv.0        depthwise      offset        Wdp, in another order     input_proj    Wv
        dw_conv.1.1      norm           mask          Wm, in another order      output_proj   Wo
        center_feature_scale_proj_weight and _bias    Wc.weight and Wc.bias

    Args:
        channels: C, at least 1.
        kernel_size: (kH, kW), or one integer for both; odd. K = kH·kW.
        dw_kernel_size: side of the depthwise kernel, odd; the larger of kH and kW when None.
        stride, dilation: at least 1; an integer, or (rows, columns).
        padding: zeros around x; None keeps the size at stride 1.
        groups: G, divides C; 4 in the release's class.
        offset_scale: above 0; multiplies p_k + Δp_gk.
        form: "paper" or "release".
        center_feature_scale: whether the pixel itself is blended in.

    Shape:
        x (B, C, H, W) → y (B, C, Ho, Wo), with Ho and Wo as from `torch.nn.Conv2d`.

    Raises:
        ValueError: for an argument out of range, an input that is not a feature map of C channels, or one
            that is smaller than the kernel.

    Paper:
        Wang, Dai, Chen, Huang, Li, Zhu, Hu, Lu, Lu, Li, Wang and Qiao, InternImage: Exploring Large-Scale Vision
        Foundation Models with Deformable Convolutions, CVPR 2023, arXiv 2211.05778.
    """

    def __init__(
        self, channels: int, *, kernel_size: Pair = 3, dw_kernel_size: int | None = None, stride: Pair = 1,
        padding: Pair | None = None, dilation: Pair = 1, groups: int = 4, offset_scale: float = 1.0,
        form: str = "paper", center_feature_scale: bool = False,
    ):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.kernel_size = check_pair("kernel_size", kernel_size)
        dw = check_odd("dw_kernel_size", max(self.kernel_size) if dw_kernel_size is None else dw_kernel_size)
        for k in self.kernel_size:
            check_odd("kernel_size", k)
        self.stride, self.dilation = check_pair("stride", stride), check_pair("dilation", dilation)
        self.centre = same_padding(self.kernel_size, self.dilation)
        self.padding = self.centre if padding is None else check_pair("padding", padding, at_least=0)
        self.groups = check_int("groups", groups)
        check_divisible("channels", channels, "groups", groups)
        self.offset_scale = check_positive("offset_scale", offset_scale)
        check_choice("form", form, FORMS)
        self.form, release = form, form == "release"

        self.geometry = Geometry(stride=self.stride, padding=self.padding, dilation=self.dilation)
        self.taps = groups * self.kernel_size[0] * self.kernel_size[1]
        # The windows of both convolutions have the same centres: p₀ runs from −beyond to the last pixel + beyond.
        self.beyond = (self.padding[0] - self.centre[0], self.padding[1] - self.centre[1])
        down, right = (n + dw // 2 for n in self.beyond)
        self.depthwise = nn.Conv2d(channels, channels, dw, stride=self.stride, groups=channels,
                                   padding=(max(0, down), max(0, right)))
        self.cut = (min(0, down), min(0, right))
        self.norm = nn.LayerNorm(channels, eps=1e-6) if release else nn.Identity()
        self.act = nn.GELU() if release else nn.Identity()
        self.Wdp = nn.Linear(channels, 2 * self.taps)
        self.Wm = nn.Linear(channels, self.taps)
        self.Wv = nn.Linear(channels, channels) if release else nn.Identity()
        self.Wo = nn.Linear(channels, channels, bias=release)
        self.Wc = nn.Linear(channels, groups) if center_feature_scale else None
        for layer in filter(None, (self.Wdp, self.Wm, self.Wc)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for W in (self.Wv, self.Wo):
            if isinstance(W, nn.Linear):
                nn.init.xavier_uniform_(W.weight)
                if W.bias is not None:
                    nn.init.zeros_(W.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        (B, C, H, W), G = x.shape, self.groups
        Ho, Wo = output_size((H, W), self.kernel_size, **self.geometry)
        h = self.depthwise(_padded(x, self.cut) if any(self.cut) else x)
        h = tap("h", self.act(self.norm(h.permute(0, 2, 3, 1))), "B Ho Wo C")
        dp = tap("dp", _linear(h, self.Wdp).permute(0, 3, 1, 2).unflatten(1, (G, -1, 2)), "B G K 2 Ho Wo")
        m = tap("m", _linear(h, self.Wm).permute(0, 3, 1, 2).unflatten(1, (G, -1)).softmax(2), "B G K Ho Wo")
        v = tap("v", self.Wv(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), "B C H W")

        p = tap("p", self._grid(Ho, Wo, like=dp) + self.offset_scale * dp, "B G K 2 Ho Wo")  # p₀ + p_k + Δp_gk
        v_p = bilinear_sample(v.reshape(B * G, C // G, H, W), *p.flatten(0, 1).unbind(2))
        v_p = tap("v_p", v_p.unflatten(0, (B, G)), "B G S K Ho Wo")
        u = (m.to(v_p.dtype)[:, :, None] * v_p).sum(3)                                       # over the K taps
        if self.Wc is not None:
            s = tap("s", torch.sigmoid(self.Wc(h)).permute(0, 3, 1, 2).to(u.dtype), "B G Ho Wo")[:, :, None]
            u = (1 - s) * u + s * self._at_centres(v).unflatten(1, (G, -1))
        u = tap("u", u.flatten(1, 2), "B C Ho Wo")
        return tap("y", self.Wo(u.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), "B C Ho Wo")

    def _grid(self, Ho: int, Wo: int, like: Tensor) -> Tensor:
        """p₀ + p_k, the latter scaled: (K, 2, Ho, Wo)."""
        axes = zip((Ho, Wo), self.kernel_size, self.stride, self.beyond, self.centre, self.dilation, strict=True)
        rows, cols = (tap_positions(n, 1, s, e, 1, like) + self.offset_scale * tap_positions(1, k, 1, c, d, like)
                      for n, k, s, e, c, d in axes)  # n k
        shape = (*self.kernel_size, Ho, Wo)
        grid = torch.stack([rows.T[:, None, :, None].expand(shape), cols.T[None, :, None, :].expand(shape)], 2)
        return grid.flatten(0, 1)

    def _at_centres(self, v: Tensor) -> Tensor:
        """v at every p₀, (B, C, Ho, Wo); zero where that lies outside the image."""
        v = _padded(v, self.beyond) if any(self.beyond) else v
        return v[:, :, ::self.stride[0], ::self.stride[1]]

    def extra_repr(self) -> str:
        names = ("channels", "kernel_size", "stride", "padding", "dilation", "groups", "offset_scale", "form")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _linear(h: Tensor, layer: nn.Linear) -> Tensor:
    """layer(h) in float32 at least: positions and logits of hundreds, of which half precision keeps no fraction."""
    return in_float32(F.linear, h, layer.weight, layer.bias)


def _padded(x: Tensor, by: tuple[int, int]) -> Tensor:
    """x with so many rows and columns of zeros on every side; cut, where the number is negative."""
    return F.pad(x, (by[1], by[1], by[0], by[0]))
