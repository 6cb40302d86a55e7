"""Spatial transformer: a network looks at the image, decides where to look, and reads it there anew."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import check_choice, check_feature_map, check_int
from ..ops import bilinear_sample, grid_means, in_float32
from ..tap import tap

TRANSFORMS = {  # θ of the identity, its shape, its axes
    "affine": ([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], (2, 3), "B 2 3"),
    "attention": ([1.0, 0.0, 0.0], (3,), "B 3"),
    "projective": ([1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], (8,), "B 8"),
    "thin_plate": ([0.0, 0.0], (-1, 2), "B K 2"),
}


@register(
    "stn",
    family="spatial",
    name="Spatial transformer",
    summary="It turns, shifts, zooms or bends the whole image before anything else reads it, by what it sees in it.",
    aliases=("STN", "spatial transformer network"),
    action="move",
    papers=[Paper(
        key="jaderberg2015spatial", venue="NIPS", year=2015, arxiv="1506.02025",
        title="Spatial Transformer Networks",
    )],
    layout="B C H W",
    example=dict(channels=8, hidden=6, units=6),
    measured=dict(channels=64),
    variants={
        "attention": dict(channels=4, transform="attention", hidden=4, units=4),
        "projective": dict(channels=4, transform="projective", hidden=4, units=4),
        "thin plate": dict(channels=4, transform="thin_plate", points=3, hidden=4, units=4),
        "zoom": dict(channels=4, size=(5, 6), hidden=3, units=4),
    },
    variant_outputs={"zoom": "B C Ho Wo"},
    identity_at_init=True,
    reduces_to={"identity": "θ = (1 0 0; 0 1 0), where it starts"},
    errata=[
        Erratum("paper", "Whether the coordinate 1 is the centre of the last pixel or its outer border is left open.",
                "It is the border, so that a shift by k columns is t_x = 2k/W.",
                "test_a_shift_by_k_columns_is_2k_over_W"),
        Erratum("copies", "θ is taken for the way of the picture, so that t_x > 0 ought to move it to the right.",
                "θ maps places of the output to places of the input, and t_x > 0 moves the picture to the left.",
                "test_positive_t_x_moves_the_picture_left"),
        Erratum("copies", "The grid is made with corners on pixel centres and sampled with corners on borders, or the "
                "other way round.", "Both follow one convention, and the identity is exact.",
                "test_two_conventions_do_not_make_an_identity"),
        Erratum("copies", "The localisation network ends in a layer that fits images of 28 × 28 only.",
                "It averages its features over a grid of cells first and takes any size.", "test_takes_any_size"),
        Erratum("copies", "U = r² log r is computed as it stands and is NaN on a control point.",
                "U(0) = 0, which is its limit.", "test_the_spline_is_finite_on_its_control_points"),
    ],
)
class SpatialTransformer(nn.Module):
    """Spatial transformer: V_i = Σ_n Σ_m U_nm max(0, 1 − |x_i − m|) max(0, 1 − |y_i − n|), (x_i, y_i) = T_θ(G_i).

    G is the regular grid of the output's pixels and θ = f_loc(U) comes from a localisation network. In coordinates that
    run from −1 at the left or upper border of the image to 1 at the right or lower one, x before y, T_θ is one of

        affine       (x, y) = θ (x_t, y_t, 1) with θ of 2 × 3
        attention    (x, y) = s (x_t, y_t) + (t_x, t_y), θ = (s, t_x, t_y)
        projective   (x, y) = (θ₁ x_t + θ₂ y_t + θ₃, θ₄ x_t + θ₅ y_t + θ₆) / (θ₇ x_t + θ₈ y_t + 1)
        thin_plate   (x, y) = (x_t, y_t) + the thin plate spline through the displacements θ of K control points, which
                     stand on a regular grid from border to border

    so θ says where an output pixel is read, not where an input pixel goes. Outside the image there are zeros. Towards
    places where its denominator is 0, a projective map reads further and further out.

    The paper leaves f_loc open. Here it is two 3 × 3 convolutions with ReLU, the means over a grid of cells, brought to
    mean 0 and variance 1 so that a brighter image is read at the same places, a hidden layer with ReLU, and a last one
    that starts with zero weights and the identity as its bias: a fresh module returns its input, exactly.

    The gradient of θ knows the four pixels around each position only, and where a position has left the image there is
    none. Zooming out skips pixels: four are read at any scale.

    Args:
        channels: C, at least 1.
        transform: one of the four above.
        points: control points along each side of a thin plate spline, at least 2: K = points². The paper has 4.
        size: (Ho, Wo) of the output; that of the input when None.
        hidden: channels of the convolutions in f_loc, at least 1.
        cells: of the grid in f_loc along each side, at least 1.
        units: width of the hidden layer in f_loc, at least 1.

    Shape:
        x (B, C, H, W) → V (B, C, Ho, Wo), any H, W ≥ 1; Ho = H and Wo = W without `size`. x is the paper's U.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Jaderberg, Simonyan, Zisserman and Kavukcuoglu, Spatial Transformer Networks, NIPS 2015, arXiv 1506.02025.
    """

    def __init__(self, channels: int, *, transform: str = "affine", points: int = 4,
                 size: tuple[int, int] | None = None, hidden: int = 16, cells: int = 4, units: int = 32):
        super().__init__()
        self.channels = check_int("channels", channels)
        check_choice("transform", transform, TRANSFORMS)
        self.transform = transform
        self.points = check_int("points", points, at_least=2)
        if size is not None and (not isinstance(size, tuple | list) or len(size) != 2):
            raise ValueError(f"size={size!r} must be None or the output's (height, width), such as (28, 28)")
        self.size = size and tuple(check_int("size", n) for n in size)
        self.cells = check_int("cells", cells)
        self.conv1 = nn.Conv2d(channels, check_int("hidden", hidden), 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.W1 = nn.Linear(hidden * cells**2, check_int("units", units))
        start, self.shape, self.dims = TRANSFORMS[transform]
        start = start * (points**2 if transform == "thin_plate" else 1)
        self.Wtheta = nn.Linear(units, len(start))
        nn.init.zeros_(self.Wtheta.weight)
        self.Wtheta.bias.data.copy_(torch.tensor(start))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        theta = in_float32(self.localise, x)
        rows, cols = in_float32(self.positions, theta, *x.shape[2:])
        return tap("V", bilinear_sample(x, rows, cols), "B C Ho Wo")                        # eq. 5

    def localise(self, x: Tensor) -> Tensor:
        """θ = f_loc(x), one an image; autocast leaves it alone, for θ has to tell pixels apart."""
        z = F.relu(self.conv2(F.relu(self.conv1(x.to(self.conv1.weight.dtype)))))
        z = grid_means(z, self.cells, self.cells).flatten(1)
        theta = self.Wtheta(F.relu(self.W1(F.layer_norm(z, z.shape[1:])))).unflatten(1, self.shape)
        return tap("theta", theta, self.dims)

    def positions(self, theta: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
        """Rows and columns (B, Ho, Wo) of a map of H × W at which the output is read, in pixels.

        As the output's own pixels, plus how far T_θ moves them: where it moves nothing, nothing is rounded.
        """
        Ho, Wo = self.size or (H, W)
        row, col = (torch.arange(n, device=theta.device, dtype=theta.dtype) + 0.5 for n in (Ho, Wo))
        y_t, x_t = torch.meshgrid(row * (2 / Ho) - 1, col * (2 / Wo) - 1, indexing="ij")
        dx, dy = getattr(self, self.transform)(theta, torch.stack([x_t, y_t], -1).flatten(0, 1)).unbind(-1)
        rows = (row * (H / Ho) - 0.5)[:, None] + dy.unflatten(1, (Ho, Wo)) * (H / 2)
        cols = (col * (W / Wo) - 0.5) + dx.unflatten(1, (Ho, Wo)) * (W / 2)
        return tap("rows", rows, "B Ho Wo"), tap("cols", cols, "B Ho Wo")

    def affine(self, theta: Tensor, p: Tensor) -> Tensor:
        """How far places p (N, 2) move (B, N, 2): θ (p, 1) − p, eq. 1."""
        A, t = (theta - torch.eye(2, 3, device=p.device, dtype=p.dtype)).split((2, 1), 2)
        return p @ A.transpose(-2, -1) + t.transpose(-2, -1)

    def attention(self, theta: Tensor, p: Tensor) -> Tensor:
        """The same with the θ of eq. 2: one scale, no rotation."""
        s, t = theta[:, None].split((1, 2), 2)
        return (s - 1) * p + t

    def projective(self, theta: Tensor, p: Tensor) -> Tensor:
        """The same with eight numbers: a 3 × 3 matrix whose last entry is 1, and a division by its third row."""
        a, b = theta[:, :6].unflatten(1, (2, 3)), theta[:, None, 6:]
        q = (p * b).sum(2, keepdim=True)                                                   # the denominator less 1
        return (self.affine(a, p) - p * q) / (1 + q)

    def thin_plate(self, theta: Tensor, p: Tensor) -> Tensor:
        """The same by a thin plate spline through the displacements θ (B, K, 2) of the control points."""
        side = torch.linspace(-1, 1, self.points, device=p.device, dtype=p.dtype)
        c = torch.cartesian_prod(side, side).flip(1)                                       # K 2, row by row, x first
        L = torch.cat([_basis(c, c), F.pad(_plane(c).transpose(0, 1), (0, 3))])           # K+3 K+3
        weights = torch.linalg.solve(L, _basis(p, c), left=False)[:, :len(c)]              # N K, of each θ for each p
        return weights @ theta

    def extra_repr(self) -> str:
        points = f", points={self.points}" if self.transform == "thin_plate" else ""
        return f"channels={self.channels}, transform={self.transform!r}{points}, size={self.size}"


def _plane(p: Tensor) -> Tensor:
    """(1, x, y) of places (N, 2)."""
    return F.pad(p, (1, 0), value=1.0)


def _basis(p: Tensor, c: Tensor) -> Tensor:
    """U(‖p − c‖) for each control point, then (1, x, y): (N, K+3). U = r² log r², twice the usual, makes the same."""
    r2 = (p[:, None] - c).square().sum(-1)
    return torch.cat([torch.xlogy(r2, r2), _plane(p)], 1)                                  # xlogy(0, 0) = 0
