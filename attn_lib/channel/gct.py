"""Gated Channel Transformation: a gate for every channel, from how large it is beside the others."""

import torch
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_feature_map, check_int, check_positive
from ..tap import tap


@register(
    "gct",
    family="channel",
    name="Gated Channel Transformation",
    summary="It weighs each channel against all others with three numbers a channel and no matrix, and starts as the "
            "identity.",
    aliases=("GCT",),
    action="gate",
    papers=[Paper(
        key="yang2020gct", venue="CVPR", year=2020, arxiv="1909.11519",
        title="Gated Channel Transformation for Visual Recognition",
        code="https://github.com/z-x-yang/GCT",
    )],
    layout="B C H W",
    example=dict(channels=64),
    variants={"l1": dict(channels=12, mode="l1")},
    identity_at_init=True,
    commutes_with={"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"},
    builds_on=("se",),
    reduces_to={
        "identity": "γ = β = 0, where it starts",
        "channel scaling": "γ = 0: every channel times 1 + tanh β",
        "constant gate": "a single channel, ε → 0: ŝ is the sign of α",
    },
    errata=[
        Erratum("paper",
                "The normalisation is √C s / √(∑ s² + ε): beside the mean of the squares stands a C-th of ε.",
                "ε itself stands beside the mean, as in the release; they differ in the dark.",
                "test_the_papers_second_epsilon_is_a_cth_of_the_releases"),
        Erratum("release",
                "Squares are summed in the type of x: in float16 a sum above 65,504 is infinite, and the output NaN.",
                "Sums are taken in float32 at least.",
                "test_sums_beyond_the_range_of_float16"),
        Erratum("release",
                "An option of the l1 mode, `after_relu`, leaves the absolute value out.",
                "It is always taken, which is the same behind a ReLU.",
                "test_behind_a_relu_l1_is_the_mean_that_se_squeezes"),
        Erratum("release",
                "An unknown mode is noticed in the first call, which ends in a NameError.",
                "It is refused when the module is made, with the modes there are.",
                "test_arguments_out_of_range"),
        Erratum("copies",
                "α, γ and β are plain tensors, which no optimiser moves and no checkpoint holds.",
                "They are parameters.",
                "test_three_parameters_a_channel_that_start_at_the_papers_values"),
        Erratum("copies",
                "The Gaussian context transformer goes by the same three letters: its gate is a bell curve of the "
                "standardised means.",
                "This is the gated channel transformation, which looks at norms.",
                "test_the_gaussian_context_transformer_is_another_module"),
    ],
)
class GCTAttention(nn.Module):
    """Gated channel transformation: y = g · x with g = 1 + tanh(γ ŝ + β), ŝ = √C s / ‖s‖, s_c = α_c ‖x_c‖.

    ‖x_c‖² = ∑ x² + ε over H and W, a sum and no mean, and ‖s‖²/C = mean of s² + ε over the channels: with ε inside both
    roots, as in the authors' release. α, γ and β are three numbers for each channel. So ŝ has the mean square 1
    whatever the image, and hardly notices its brightness; the gates lie in (0, 2). Where α_c γ_c > 0 the gate of c
    falls as other channels grow, they compete; where α_c γ_c < 0 it rises, they cooperate.

    γ = β = 0 at the start: the module is the identity, exactly, and can be put before any convolution, also of a
    trained network. There α has no gradient at all, and moves only once γ has. The authors spare β weight decay.

    From the release: mode="l1", s_c = α_c ∑ |x| and ŝ = s / (mean of |s| + ε). Its parameters are 1 × C × 1 × 1:
    flatten them to load them.

    Args:
        channels: C, at least 1.
        epsilon: ε > 0; 1e-5 is the release's value.
        mode: "l2" or "l1".

    Shape:
        x (B, C, H, W) → y (B, C, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Yang, Zhu, Wu and Yang, Gated Channel Transformation for Visual Recognition, CVPR 2020, arXiv 1909.11519.
    """

    def __init__(self, channels: int, *, epsilon: float = 1e-5, mode: str = "l2"):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.epsilon = check_positive("epsilon", epsilon, "without it an empty map gives 0/0")
        check_choice("mode", mode, ("l2", "l1"))
        self.mode = mode
        self.alpha = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        s = tap("s", self.alpha * self._norm(x), "B C")                                # global context embedding
        s_hat = tap("s_hat", s / self._scale(s), "B C")                                # channel normalisation
        g = tap("g", 1 + torch.tanh(self.gamma * s_hat + self.beta), "B C")            # gating adaptation
        return tap("y", x * g.to(x.dtype)[:, :, None, None], "B C H W")

    def _norm(self, x: Tensor) -> Tensor:
        """Of every channel (B, C), in float32 at least: the map is neither copied nor kept in it."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        if self.mode == "l1":
            return x.abs().sum((2, 3), dtype=dtype)
        return (torch.linalg.vector_norm(x, dim=(2, 3), dtype=dtype).square() + self.epsilon).sqrt()

    def _scale(self, s: Tensor) -> Tensor:
        """What is usual among the channels of an image (B, 1)."""
        if self.mode == "l1":
            return s.abs().mean(1, keepdim=True) + self.epsilon
        return (s.square().mean(1, keepdim=True) + self.epsilon).sqrt()

    def extra_repr(self) -> str:
        return f"channels={self.channels}, epsilon={self.epsilon:g}, mode={self.mode!r}"
