"""Temporal adaptive module: each clip makes its own temporal kernel, and says which of its frames matter."""

from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_int, check_odd, check_tensor
from ..ops import conv2d_per_image
from ..tap import tap


@register(
    "tam",
    family="temporal",
    name="Temporal adaptive module",
    summary="It convolves a clip in time with a kernel that the clip itself has made, after gating its frames.",
    aliases=("TAM", "TANet", "temporal adaptive"),
    action="mix",
    papers=[Paper(
        key="liu2021tam", venue="ICCV", year=2021, arxiv="2005.06803",
        title="TAM: Temporal Adaptive Module for Video Recognition",
        code="https://github.com/liu-zhy/temporal-adaptive-module",
    )],
    layout="B C T H W",
    example=dict(channels=8, frames=10),
    measured=dict(channels=64, frames=10),
    variants={"wide kernel": dict(channels=6, frames=10, kernel_size=5, reduction=3, expansion=1)},
    commutes_with={"spatial_permutation", "row_column_permutation", "flip_h", "flip_w", "transpose"},
    builds_on=("se",),
    reduces_to={
        "identity": "kernel one-hot in its middle, gates 1",
        "convolution": "the same kernel for all, gates 1",
    },
    errata=[
        Erratum("copies", "The kernel is made from the gated map.",
                "Gates and kernel both read the same map, before it is gated.",
                "test_the_comparison_with_the_paper_notices"),
        Erratum("release", "Its padding is 1 unless another is given, so that a wider kernel by itself fails.",
                "The padding is half the kernel, and T frames stay T.", "test_wide_kernels_keep_the_frames"),
        Erratum("release", "With fewer than four channels nothing is left of C/4, and it fails.",
                "C/4 is at least 1.", "test_takes_few_channels"),
        Erratum("paper", "Nothing is said of the frames before the first and after the last.",
                "They are zeros, as in the release, so that the first and the last frame lose weight.",
                "test_frames_at_the_ends_lose_weight"),
    ],
)
class TemporalAdaptiveModule(nn.Module):
    """Temporal adaptive module: y_ct = Σ_k θ_ck V_c,t+k x_c,t+k, gates V = L(z), kernels θ = G(z), z = mean of x.

    The mean runs over H and W, so z is C × T. The local branch L sees neighbouring frames of all channels, the global
    branch G all frames of one channel:

        V = σ(W (δ(BN(W * z))))                  C × T: a convolution of width K in time to C/β channels, then 1 × 1
        θ_c = softmax(W₂ δ(BN(W₁ z_c)))          K numbers for each channel: T → αT → K, the same W for all channels

    δ = ReLU, no layer has a bias, and beyond both ends of the clip there are zeros. As G has a weight for each frame,
    the module is made for one T. K = 3, α = 2 and β = 4 in the paper. A fresh module is not the identity.

    Layers have the release's names, G.0, G.1, G.3, L.0, L.1 and L.3, so that its weights load as they are.

    Args:
        channels: C, at least 1.
        frames: T, at least 1.
        kernel_size: K, odd.
        expansion: α, at least 1.
        reduction: β, at least 1; C/β is rounded down, and at least 1.

    Shape:
        x (B, C, T, H, W) → y (B, C, T, H, W), T = frames, any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, an input that is not a video of C channels and T frames, or, in
            training, one clip of a single frame or a single channel and clip, which BN cannot take.

    Paper:
        Liu, Wang, Wu, Qian and Lu, TAM: Temporal Adaptive Module for Video Recognition, ICCV 2021, arXiv 2005.06803.
    """

    def __init__(self, channels: int, *, frames: int, kernel_size: int = 3, expansion: int = 2, reduction: int = 4):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.frames = check_int("frames", frames)
        self.kernel_size = check_odd("kernel_size", kernel_size)
        wide = frames * check_int("expansion", expansion)
        Cr = max(1, channels // check_int("reduction", reduction))
        self.G = nn.Sequential(
            nn.Linear(frames, wide, bias=False), nn.BatchNorm1d(wide), nn.ReLU(),
            nn.Linear(wide, kernel_size, bias=False), nn.Softmax(-1))
        self.L = nn.Sequential(
            nn.Conv1d(channels, Cr, kernel_size, padding=kernel_size // 2, bias=False), nn.BatchNorm1d(Cr), nn.ReLU(),
            nn.Conv1d(Cr, channels, 1, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(x, "B C T H W", {"C": self.channels, "T": self.frames})
        if self.training and len(x) == 1 and 1 in (self.channels, self.frames):
            raise ValueError(f"x is a batch of 1 with C={self.channels} and T={self.frames}; in training it must hold "
                             "2 clips or more, for the BN")
        z = tap("z", x.mean((3, 4)), "B C T")
        V = tap("V", self.L(z), "B C T")
        theta = tap("theta", self.G(z.flatten(0, 1)).unflatten(0, z.shape[:2]), "B C K")
        kernels, padding = theta[:, :, None, :, None], (self.kernel_size // 2, 0)
        y = conv2d_per_image((x * V[..., None, None]).flatten(3), kernels, padding=padding, groups=self.channels)
        return tap("y", y.unflatten(3, x.shape[3:]), "B C T H W")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, frames={self.frames}, kernel_size={self.kernel_size}"
