"""Dynamic snake convolution: a line of taps that bends along thin, winding things; and the loss that counts them."""

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalog import Erratum, Paper, register
from ..checks import (
    check_choice,
    check_divisible,
    check_feature_map,
    check_int,
    check_odd,
    check_positive,
    check_tensor,
)
from ..ops import bilinear_sample
from ..tap import tap

AXES = ("x", "y")
BORDERS = ("replicate", "zeros")
OFFSET_NORMS = ("group", "batch")
FILTRATIONS = ("superlevel", "sublevel")
CELLS = ("vertices", "squares")
ESSENTIAL = ("drop", "cap")
NORMS = ("euclidean", "maximum")


@register(
    "snake",
    family="conv",
    name="Dynamic snake convolution",
    summary="Its taps hang together: each lies where the one before it does, give or take a pixel, so that they follow "
            "a vessel or a road and cannot wander off.",
    aliases=("DSConv", "DSCNet", "dynamic snake"),
    action="move",
    papers=[Paper(
        key="qi2023dynamic", venue="ICCV", year=2023, arxiv="2307.08388",
        title="Dynamic Snake Convolution Based on Topological Geometric Constraints for Tubular Structure Segmentation",
        code="https://github.com/YaoleiQi/DSCNet",
    )],
    layout="B C H W",
    output="B O H W",
    example=dict(channels=16),
    measured=dict(channels=64),
    variants={
        "y": dict(channels=6, out_channels=8, kernel_size=5, axis="y"),
        "first release": dict(channels=6, kernel_size=3, border="zeros", offset_norm="batch", extent=1.5),
    },
    commutes_with={"translation"},
    builds_on=("deform",),
    reduces_to={"convolution": "Δ = 0: K taps in a row, or in a column, over a repeated border; then GN, ReLU"},
    errata=[
        Erratum("release", "The first one reads image 0 for every image of a batch.",
                "Every image is read for itself, as in the second.",
                "test_every_image_is_read_for_itself"),
        Erratum("release", "The first one leaves out the ends: taps ±⌊K/2⌋ have an offset of their own alone.",
                "Offsets add up from the centre to both ends, as in the second and in the paper.",
                "test_offsets_add_up_to_the_ends"),
        Erratum("release", "The first one reads zero outside the map, the second repeats its border.",
                "The border is repeated; border=\"zeros\" fades to zero over a pixel, where the first one jumps.",
                "test_two_borders"),
        Erratum("release", "The second one normalises offsets in pairs, one of which holds an offset of either axis.",
                "So does offset_norm=\"group\", to equal it; \"batch\" normalises each by itself, as the first one.",
                "test_equals_the_second_release_with_its_rows"),
        Erratum("release", "Each layer has the offsets and the kernel of both axes, and half of them never learn.",
                "A layer has those of its axis alone.",
                "test_everything_learns"),
        Erratum("release", "Fewer than four output channels, or a map with a side of 1, end in a division by zero.",
                "Both work.",
                "test_small_maps_and_few_channels"),
        Erratum("release", "Positions are computed in float32, whatever x is.",
                "In float64 where x is, so that the equation holds to rounding.",
                "test_equals_the_paper"),
        Erratum("release", "The topological continuity loss was promised, and is in neither.",
                "`TCLoss`, after the paper; what that leaves open are its options.",
                "test_loss_is_cross_entropy_and_the_distance_of_the_diagrams"),
        Erratum("paper", "The Hausdorff distance of its loss is one of sets and does not count components.",
                "So it is here: one component is told from two, three are not told from two.",
                "test_loss_is_a_distance_of_sets_that_does_not_count"),
    ],
)
class DynamicSnakeConv(nn.Module):
    """Dynamic snake convolution: y(i, j) = Σ_c w_c · x(i + l·s_c, j + c), with s_c = Δ_1 + … + Δ_c from the centre out.

    c runs from −⌊K/2⌋ to ⌊K/2⌋, s_0 = 0, and towards the negative end s_c sums Δ_{−1} to Δ_c. Each Δ is a
    tanh(norm(convolution of x)), between −1 and 1: a tap is at most l pixels aside of its neighbour towards the centre.
    That is axis="x", taps along a row that move up and down; axis="y" is the same with rows and columns exchanged. x
    between pixels is bilinear. Behind it stand a group normalisation and ReLU, as in both releases.

    The paper leaves the normalisation of the offsets and the border open; the defaults are the second release's (its
    file ends with "pro"). Its rows of `offset_conv` and `gn_offset` from 0 to K are ours for "x", those from K − 1 to
    2K − 1 for "y", `dsc_conv_x` or `dsc_conv_y` without the axis of 1 is `weight`, and `gn` is `norm`. Of the K + 1
    offsets the centre's and the other axis' one are there for the normalisation alone. With offset_norm="batch", the
    first release's, there are K − 1, its rows without the centre's. "x" and "y" are the releases' morph 0 and 1.

    Args:
        channels: C, at least 1.
        out_channels: O; C when None.
        kernel_size: K, odd; 9 in the paper.
        axis: "x" or "y", along which the taps lie.
        extent: l > 0, the releases' extend_scope.
        border: "replicate", or "zeros" outside the map.
        offset_norm: "group" or "batch".
        norm_groups: groups of the normalisation at the end, divides O; when None the largest divisor of O up to O/4.

    Shape:
        x (B, C, H, W) → y (B, O, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Qi, He, Qi, Zhang and Yang, Dynamic Snake Convolution Based on Topological Geometric Constraints for Tubular
        Structure Segmentation, ICCV 2023, arXiv 2307.08388.
    """

    def __init__(
        self, channels: int, out_channels: int | None = None, *, kernel_size: int = 9, axis: str = "x",
        extent: float = 1.0, border: str = "replicate", offset_norm: str = "group", norm_groups: int | None = None,
    ):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.out_channels = O = check_int("out_channels", channels if out_channels is None else out_channels)  # noqa: E741
        self.kernel_size = K = check_odd("kernel_size", check_int("kernel_size", kernel_size, at_least=3))
        check_choice("axis", axis, AXES)
        self.axis, self.extent = axis, check_positive("extent", extent)
        check_choice("border", border, BORDERS)
        self.border = border
        check_choice("offset_norm", offset_norm, OFFSET_NORMS)
        if norm_groups is None:
            norm_groups = max(groups for groups in range(1, max(1, O // 4) + 1) if O % groups == 0)
        check_divisible("out_channels", O, "norm_groups", check_int("norm_groups", norm_groups))

        c = K // 2
        if offset_norm == "group":  # K + 1 offsets in pairs, of which the last, or the first, is another axis'
            first = 0 if axis == "x" else 1
            self.offset_conv = nn.Conv2d(channels, K + 1, 3, padding=1)
            self.offset_norm: nn.Module = nn.GroupNorm((K + 1) // 2, K + 1)
            self.used = [first + tap for tap in range(K) if tap != c]
        else:
            self.offset_conv = nn.Conv2d(channels, K - 1, 3, padding=1)
            self.offset_norm = nn.BatchNorm2d(K - 1)
            self.used = list(range(K - 1))
        conv = nn.Conv1d(channels, O, K)
        self.weight, self.bias = conv.weight, conv.bias
        self.norm = nn.GroupNorm(norm_groups, O)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        delta = torch.tanh(self.offset_norm(self.offset_conv(x)))[:, self.used]
        delta = tap("delta", delta, "B K-1 H W")                                 # of every tap but the centre
        s = tap("s", self._outward(delta), "B K H W")                            # eq. 3
        rows, cols = self._positions(self.extent * s)
        tap("rows", rows, "B K H W"), tap("cols", cols, "B K H W")
        x_p = tap("x_p", bilinear_sample(x, rows, cols), "B C K H W")            # eqs. 5 and 6
        u = F.conv2d(x_p.flatten(1, 2), self.weight.flatten(1)[..., None, None], self.bias)
        u = tap("u", u, "B O H W")                                               # over all taps of all channels
        return tap("y", F.relu(self.norm(u)).to(u.dtype), "B O H W")

    def _outward(self, delta: Tensor) -> Tensor:
        """Sums from the centre, which is 0, to either end: (B, K − 1, H, W) → (B, K, H, W).

        In float32 at least, as they become positions.
        """
        before, after = delta.to(torch.promote_types(delta.dtype, torch.float32)).chunk(2, 1)
        return torch.cat([before.flip(1).cumsum(1).flip(1), torch.zeros_like(after[:, :1]), after.cumsum(1)], 1)

    def _positions(self, aside: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of the taps, (B, K, H, W) each."""
        H, W = aside.shape[2:]
        i, j, k = (torch.arange(n, dtype=aside.dtype, device=aside.device) for n in (H, W, self.kernel_size))
        i, c = i[:, None], (k - self.kernel_size // 2)[:, None, None]
        rows, cols = (i + aside, j + c) if self.axis == "x" else (i + c, j + aside)
        if self.border == "replicate":
            rows, cols = _onto(rows, H), _onto(cols, W)
        return rows.expand_as(aside), cols.expand_as(aside)

    def extra_repr(self) -> str:
        names = ("channels", "out_channels", "kernel_size", "axis", "extent", "border")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _onto(position: Tensor, n: int) -> Tensor:
    """A position on an axis of n pixels, or the border that is nearest.

    No clamp at the far end: on the last pixel itself the gradient is the forward difference, so that of the border, 0.
    """
    return torch.where(position < n - 1, position.clamp(min=0), n - 1)


class MultiViewFusion(nn.Module):
    """Three views of one map, joined: y = δ(GN(W ∗ [f; f_x; f_y])).

    f = δ(GN(W_f ∗ x)) is a plain 3 × 3 convolution, for what is no tube, f_x and f_y are snakes along both axes, each
    with O channels, and W is 3 × 3 as well: a block of the releases' network. The paper's random dropping of such views
    was never released, and is not here.

    Args:
        channels: C, at least 1.
        out_channels: O; C when None.
        **options: of both `DynamicSnakeConv`, all but `axis`.

    Shape:
        x (B, C, H, W) → y (B, O, H, W), any H, W ≥ 1.

    Raises:
        ValueError: for an argument out of range, or an input that is not a feature map of C channels.

    Paper:
        Qi, He, Qi, Zhang and Yang, ICCV 2023, arXiv 2307.08388, as of `DynamicSnakeConv`.
    """

    def __init__(self, channels: int, out_channels: int | None = None, **options: Any):
        super().__init__()
        self.channels = check_int("channels", channels)
        self.snake_x, self.snake_y = (DynamicSnakeConv(channels, out_channels, axis=axis, **options) for axis in AXES)
        O, groups = self.snake_x.out_channels, self.snake_x.norm.num_groups  # noqa: E741

        def layer(width: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(width, O, 3, padding=1), nn.GroupNorm(groups, O), nn.ReLU())

        self.plain, self.fuse = layer(channels), layer(3 * O)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map(x, self.channels)
        views = tap("f", torch.stack([self.plain(x), self.snake_x(x), self.snake_y(x)], 1), "B M O H W")
        return tap("y", self.fuse(views.flatten(1, 2)), "B O H W")


class TCLoss(nn.Module):
    """Topological continuity loss: L = CE + λ · Σ_n d_H(D_n(p), D_n(g)), over components n = 0 and holes n = 1.

    p = σ(logits) and g is the target, 0 or 1; D_n are their diagrams, see `persistence_diagrams`, and d_H is the
    Hausdorff distance of two sets of points, see `hausdorff`, averaged over the batch. CE is the mean binary cross
    entropy. A tube that is cut in two has a component too many, however few pixels are wrong: that the loss sees, and
    cross entropy hardly. Its gradient reaches the pixels where a component or a hole begins or ends, two each.

    The distance is one of sets and does not count: of a target all components are born at 1 and die at 0, and whether
    three or four of the prediction's lie there is the same to it. With the first component left out, as by default, it
    tells one component from two; beyond that it drives all that lives to live fully.

    The authors promised the loss and never released it. The paper leaves open what the options choose.

    It is computed on the CPU, an image at a time, by the package gudhi, of the extra "topology"; it can be trained
    with, but neither compiled nor exported.

    Args:
        weight: λ, above 0; 1 in the paper.
        filtration, cells, essential: see `persistence_diagrams`.
        norm, diagonal: see `hausdorff`.

    Shape:
        logits (B, 1, H, W), target (B, 1, H, W) → a number.

    Raises:
        ValueError: for an argument out of range, or inputs that are not such maps of one shape.
        ModuleNotFoundError: where gudhi is not installed.

    Paper:
        Qi, He, Qi, Zhang and Yang, ICCV 2023, arXiv 2307.08388, as of `DynamicSnakeConv`.
    """

    def __init__(self, *, weight: float = 1.0, filtration: str = "superlevel", cells: str = "vertices",
                 essential: str = "drop", norm: str = "euclidean", diagonal: bool = False):
        super().__init__()
        self.weight = check_positive("weight", weight)
        check_choice("norm", norm, NORMS)
        self.diagram = dict(filtration=filtration, cells=cells, essential=essential)
        self.distance: dict[str, Any] = dict(norm=norm, diagonal=diagonal)
        persistence_diagrams(torch.zeros(1, 1), **self.diagram)  # so that what is wrong or missing is said at once

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        check_tensor(logits, "B C H W", {"C": 1}, "logits")
        if not isinstance(target, Tensor) or target.shape != logits.shape:
            raise ValueError(f"target must be a tensor of the shape {tuple(logits.shape)} of logits")
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        target = target.to(logits.dtype)
        distances = [hausdorff(P, G, **self.distance)
                     for p, g in zip(logits.sigmoid()[:, 0], target[:, 0], strict=True)
                     for P, G in zip(*(persistence_diagrams(image, **self.diagram) for image in (p, g)), strict=True)]
        topology = tap("d", torch.stack(distances).view(len(logits), 2), "B 2").sum(1).mean()
        return F.binary_cross_entropy_with_logits(logits, target) + self.weight * topology


def persistence_diagrams(image: Tensor, *, filtration: str = "superlevel", cells: str = "vertices",
                         essential: str = "drop") -> tuple[Tensor, Tensor]:
    """Where components and holes of a map's level sets are born and die, as two sets of points (n, 2): birth, death.

    Points carry gradients to the two pixels that decide about them. What lives for no time is left out.

    Args:
        image: (H, W), from 0 to 1.
        filtration: "superlevel", the pixels above a level that falls from 1 to 0, so that bright things are born first;
            or "sublevel", those below one that rises.
        cells: "vertices" takes pixels for points, joined to four neighbours; "squares" for squares, which touch
            eight.
        essential: what never dies, the first component: "drop" leaves it out, "cap" lets it die where the level ends,
            at 0 or 1.

    Raises:
        ValueError: for another choice, or an image that has not two axes.
        ModuleNotFoundError: where gudhi is not installed.
    """
    check_tensor(image, "H W", name="image")
    check_choice("filtration", filtration, FILTRATIONS)
    check_choice("cells", cells, CELLS)
    check_choice("essential", essential, ESSENTIAL)
    sign, end = (-1, 0.0) if filtration == "superlevel" else (1, 1.0)
    values = (sign * image.detach()).double().cpu().numpy().T  # gudhi counts its cells column by column
    if cells == "vertices":
        levels = _gudhi().CubicalComplex(vertices=values)
        levels.compute_persistence()
        mortal, immortal = levels.vertices_of_persistence_pairs()
    else:
        levels = _gudhi().CubicalComplex(top_dimensional_cells=values)
        levels.compute_persistence()
        mortal, immortal = levels.cofaces_of_persistence_pairs()

    def diagram(n: int) -> Tensor:
        pairs = torch.as_tensor(mortal[n] if n < len(mortal) else [], dtype=torch.long, device=image.device)
        points = image.flatten()[pairs.view(-1, 2)]
        if essential == "drop" or n >= len(immortal):
            return points
        births = image.flatten()[torch.as_tensor(immortal[n], dtype=torch.long, device=image.device)]
        return torch.cat([points, torch.stack([births, torch.full_like(births, end)], 1)])

    return diagram(0), diagram(1)


def hausdorff(a: Tensor, b: Tensor, *, norm: str = "euclidean", diagonal: bool = False) -> Tensor:
    """How far the point of either set that is furthest from the other set is from it: max(max_a min_b, max_b min_a).

    Args:
        a, b: points of two diagrams, (n, 2) and (m, 2).
        norm: "euclidean", or "maximum" of both coordinates.
        diagonal: whether points may also be near the diagonal, where birth is death; they are measured against it in
            any case where the other set is empty. Two empty sets have the distance 0.

    Raises:
        ValueError: for another norm.
    """
    check_choice("norm", norm, NORMS)
    if not len(a) + len(b):
        return a.sum()
    order = 2.0 if norm == "euclidean" else float("inf")
    between = torch.linalg.vector_norm(a[:, None] - b, order, dim=-1)
    furthest = []
    for points, distances in ((a, between), (b, between.transpose(-2, -1))):
        near = [distances.min(1).values] if distances.numel() else []
        if diagonal or not near:  # half the lifetime along both axes
            near.append((points[:, 0] - points[:, 1]).abs() * (0.5 * 2 ** (1 / order)))
        furthest.append(torch.stack(near).min(0).values)
    return torch.cat(furthest).max()


def _gudhi() -> ModuleType:
    try:
        import gudhi
    except ModuleNotFoundError as error:
        message = "TCLoss needs gudhi, which comes with the extra 'topology': pip install 'attn_lib[topology]'"
        raise ModuleNotFoundError(message) from error
    return gudhi
