"""Dynamic snake convolution against its paper and both releases, its limits, and the errors in them; and the loss.

The loss was never released. What it counts, components and holes, is counted here by filling areas by hand.
"""

import math
import sys

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.conv import DynamicSnakeConv, MultiViewFusion, TCLoss, hausdorff, persistence_diagrams
from tests.unit.draw import D, randn, randomised
from tests.unit.reference import reference


def make(C=2, out=4, K=5, **options):
    return randomised(DynamicSnakeConv(C, out, kernel_size=K, **options)).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def between_pixels(image, row, col, border):
    """Eqs. 5 and 6: bilinear; outside the map the border, or zero."""
    H, W = image.shape
    if border == "replicate":
        row, col = min(max(row, 0.0), H - 1.0), min(max(col, 0.0), W - 1.0)
    total = 0.0
    for i in range(H):
        for j in range(W):
            total += max(0.0, 1 - abs(row - i)) * max(0.0, 1 - abs(col - j)) * image[i, j].item()
    return total


def group_norm(t, norm):
    """Of one image, a group of channels at a time."""
    per = len(t) // norm.num_groups
    out = torch.empty_like(t)
    for first in range(0, len(t), per):
        group = t[first:first + per]
        mean = group.sum() / group.numel()
        var = ((group - mean) ** 2).sum() / group.numel()
        out[first:first + per] = (group - mean) / (var + norm.eps).sqrt()
    return out * norm.weight[:, None, None] + norm.bias[:, None, None]


def from_the_paper(x, m, *, axis="x", border="replicate", extent=1.0, swing=torch.tanh):
    """Eqs. 3 to 6, a tap at a time: the line grows from its centre in both directions."""
    B, C, H, W = x.shape
    K = m.kernel_size
    y = torch.zeros(B, m.out_channels, H, W, dtype=D)
    for b in range(B):
        offsets = F.conv2d(x[b:b + 1], m.offset_conv.weight, m.offset_conv.bias, padding=1)[0]
        offsets = group_norm(offsets, m.offset_norm)
        delta = swing(offsets[:K] if axis == "x" else offsets[1:])
        for i in range(H):
            for j in range(W):
                u = m.bias.clone()
                for direction in (0, 1, -1):
                    aside = 0.0
                    for step in range(1 if direction == 0 else K // 2):
                        c = direction * (step + 1)
                        aside += delta[K // 2 + c, i, j].item() if direction else 0.0
                        row, col = (i + extent * aside, j + c) if axis == "x" else (i + c, j + extent * aside)
                        for channel in range(C):
                            u += m.weight[:, channel, K // 2 + c] * between_pixels(x[b, channel], row, col, border)
                y[b, :, i, j] = u
        y[b] = group_norm(y[b], m.norm)
    return torch.where(y > 0, y, 0.0)


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("options", [dict(), dict(border="zeros"), dict(extent=2.5)], ids=str)
@pytest.mark.parametrize("K", [3, 5])
def test_equals_the_paper(K, options, axis):
    m, x = make(K=K, axis=axis, **options), randn(2, 2, 4, 5)
    torch.testing.assert_close(m(x), from_the_paper(x, m, axis=axis, **options), rtol=0, atol=1e-11)


class Wrong(DynamicSnakeConv):
    """The mistakes of the first release and of copies, one at a time."""

    mistake = None

    def forward(self, x):
        (B, _, H, W), K, mistake = x.shape, self.kernel_size, self.mistake
        c = K // 2
        offsets = self.offset_norm(self.offset_conv(x))[:, :K]
        delta = offsets if mistake == "no tanh" else offsets.tanh()
        s = [torch.zeros_like(delta[:, 0])] * K
        for n in range(1, c + 1):
            for side in (n, -n):
                last = s[c + side - (1 if side > 0 else -1)]
                s[c + side] = delta[:, c + side] if mistake == "not summed" or (
                    mistake == "ends left out" and n == c) else last + delta[:, c + side]
        if mistake == "summed from one end":
            s = list(delta.cumsum(1).unbind(1))
        if mistake == "summed from the centre's own":
            s = [t + delta[:, c] for t in s]
        y = self.bias[:, None, None].expand(B, -1, H, W)
        for k in range(K):
            rows = torch.arange(H)[:, None] + s[k]
            cols = (torch.arange(W) + k - c).expand_as(rows) + 0.0
            if mistake == "along the other axis":
                rows, cols = (torch.arange(H)[:, None] + k - c).expand_as(rows) + 0.0, torch.arange(W) + s[k]
            if mistake != "zero border":
                rows, cols = rows.clamp(0, H - 1), cols.clamp(0, W - 1)
            if mistake == "positions rounded":
                rows = rows.round()
            grid = torch.stack([2 * cols / (W - 1) - 1, 2 * rows / (H - 1) - 1], -1)
            image = x[:1].expand_as(x) if mistake == "image 0 for all" else x
            y = y + torch.einsum("OC,BCHW->BOHW", self.weight[:, :, k], F.grid_sample(image, grid, align_corners=True))
        y = y if mistake == "no normalisation" else self.norm(y)
        return y if mistake == "no ReLU" else y.relu()


@pytest.mark.parametrize("mistake", [
    "image 0 for all", "ends left out", "not summed", "summed from one end", "summed from the centre's own", "no tanh",
    "along the other axis", "zero border", "positions rounded", "no normalisation", "no ReLU",
])
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = make(), randn(2, 2, 4, 5)
    expected = from_the_paper(x, m)
    wrong = Wrong(2, 4, kernel_size=5).to(D)
    wrong.load_state_dict(m.state_dict())
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-11)  # as yet there is none
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


def test_taps_are_the_equations():
    m, x = make(), randn(2, 2, 4, 5)
    with attn_lib.trace() as t:
        y = m(x)
    assert t.names() == ["delta", "s", "rows", "cols", "x_p", "u", "y"] and torch.equal(t["y"], y)
    assert t["delta"].shape == (2, 4, 4, 5) and t["delta"].abs().max() < 1
    s = t["s"]
    assert not s[:, 2].any()
    torch.testing.assert_close(s[:, [3, 4]].diff(dim=1, prepend=0 * s[:, :1]), t["delta"][:, 2:])
    torch.testing.assert_close(s[:, [1, 0]].diff(dim=1, prepend=0 * s[:, :1]), t["delta"][:, [1, 0]])


# ---- the releases ----------------------------------------------------------------------------------------------------


def second_release(x, theirs, K, axis):
    """Written out: 2K offsets in K groups, down first, summed by steps; clamped; a convolution of stride K."""
    H, W = x.shape[2:]
    offsets = F.conv2d(x, theirs["offset_conv.weight"], theirs["offset_conv.bias"], padding=1)
    offsets = F.group_norm(offsets, K, theirs["gn_offset.weight"], theirs["gn_offset.bias"]).tanh()
    delta = offsets[:, :K] if axis == "x" else offsets[:, K:]
    i, j = torch.meshgrid(torch.arange(H, dtype=D), torch.arange(W, dtype=D), indexing="ij")
    taps = []
    for k in range(K):
        steps = range(K // 2 + 1, k + 1) if k > K // 2 else range(k, K // 2)
        aside = sum((delta[:, n] for n in steps), torch.zeros_like(delta[:, 0]))
        rows, cols = (i + aside, (j + k - K // 2).expand_as(aside)) if axis == "x" else (
            (i + k - K // 2).expand_as(aside), j + aside)
        grid = torch.stack([2 * cols.clamp(0, W - 1) / (W - 1) - 1, 2 * rows.clamp(0, H - 1) / (H - 1) - 1], -1)
        taps.append(F.grid_sample(x, grid, align_corners=True))
    weight, bias = theirs[f"dsc_conv_{axis}.weight"], theirs[f"dsc_conv_{axis}.bias"]
    laid_out = torch.stack(taps, 3).flatten(2, 3) if axis == "x" else torch.stack(taps, 4).flatten(3, 4)
    y = F.conv2d(laid_out, weight, bias, stride=weight.shape[2:])
    return F.group_norm(y, len(y[0]) // 4, theirs["gn.weight"], theirs["gn.bias"]).relu()


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("K", [3, 9])
def test_equals_the_second_release_with_its_rows(K, axis):
    C, out = 3, 8
    side = (K, 1) if axis == "x" else (1, K)
    shapes = {"offset_conv.weight": (2 * K, C, 3, 3), "offset_conv.bias": (2 * K,), "gn_offset.weight": (2 * K,),
              "gn_offset.bias": (2 * K,), f"dsc_conv_{axis}.weight": (out, C, *side), f"dsc_conv_{axis}.bias": (out,),
              "gn.weight": (out,), "gn.bias": (out,)}
    theirs = {name: randn(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}
    rows = slice(0, K + 1) if axis == "x" else slice(K - 1, 2 * K)
    ours = DynamicSnakeConv(C, out, kernel_size=K, axis=axis).to(D)
    names = {"offset_conv": "offset_conv", "gn_offset": "offset_norm", "gn": "norm"}
    ours.load_state_dict({
        "weight": theirs[f"dsc_conv_{axis}.weight"].view(out, C, K), "bias": theirs[f"dsc_conv_{axis}.bias"],
        **{f"{names[layer]}.{name}": theirs[f"{layer}.{name}"][rows if "offset" in layer else slice(None)]
           for layer in names for name in ("weight", "bias")}})
    x = randn(2, C, 6, 7)
    torch.testing.assert_close(ours(x), second_release(x, theirs, K, axis), rtol=0, atol=1e-11)


def test_batch_normalisation_takes_each_offset_by_itself():
    m, x = make(offset_norm="batch").train(), randn(3, 2, 4, 5)
    with attn_lib.trace() as t:
        m(x)
    offsets = m.offset_conv(x)
    expected = (offsets - offsets.mean((0, 2, 3), keepdim=True)) / (offsets.var((0, 2, 3), keepdim=True,
                                                                               unbiased=False) + 1e-5).sqrt()
    norm = m.offset_norm
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(t["delta"], expected.tanh(), rtol=0, atol=1e-12)
    assert offsets.shape[1] == 4  # no offset of the centre


def test_every_image_is_read_for_itself():
    m, x = make(), randn(3, 2, 4, 5)
    for b in range(3):
        torch.testing.assert_close(m(x)[b:b + 1], m(x[b:b + 1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tap", [0, 1, 3, 4])
def test_offsets_add_up_to_the_ends(tap):
    """One offset of a quarter moves its tap and all beyond it, and nothing towards the centre or across."""
    m, x = make(), randn(1, 2, 4, 5)
    m.offset_norm.weight.zero_()
    m.offset_norm.bias.zero_()
    m.offset_norm.bias[tap] = math.atanh(0.25)
    with attn_lib.trace() as t:
        m(x)
    moved = [k for k in range(5) if t["s"][0, k].abs().max() > 0]
    assert moved == {0: [0], 1: [0, 1], 3: [3, 4], 4: [4]}[tap]
    torch.testing.assert_close(t["s"][0, moved], torch.full((len(moved), 4, 5), 0.25, dtype=D))


@pytest.mark.parametrize(("border", "outside"), [("replicate", 1.0), ("zeros", 0.0)])
def test_two_borders(border, outside):
    m, x = make(border=border), torch.ones(1, 2, 4, 5, dtype=D)
    m.offset_norm.weight.zero_()
    m.offset_norm.bias.zero_()
    with attn_lib.trace() as t:
        m(x)
    left_end = t["x_p"][0, 0, 0]  # of the tap two columns to the left
    assert left_end.tolist() == [[outside, outside, 1.0, 1.0, 1.0]] * 4


def test_everything_learns():
    for axis in ("x", "y"):
        for norm in ("group", "batch"):
            m, x = make(axis=axis, offset_norm=norm).train().requires_grad_(True), randn(2, 2, 4, 5).requires_grad_()
            m(x).square().sum().backward()
            assert all(p.grad.abs().sum() > 0 for p in (*m.parameters(), x))
            rows = m.offset_conv.weight.grad.abs().sum((1, 2, 3)) > 1e-9
            assert rows.all()  # also the two of the group norm's pairs


@pytest.mark.parametrize(("H", "W"), [(1, 1), (1, 6), (7, 1)])
@pytest.mark.parametrize("out", [1, 3, 4, 11])
def test_small_maps_and_few_channels(H, W, out):
    for axis in ("x", "y"):
        m, x = make(out=out, K=3, axis=axis), randn(2, 2, H, W)
        torch.testing.assert_close(m(x), from_the_paper(x, m, axis=axis), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("out", "groups"), [(1, 1), (3, 1), (8, 2), (10, 2), (11, 1), (18, 3), (64, 16)])
def test_groups_at_the_end_are_a_quarter_where_that_divides(out, groups):
    assert DynamicSnakeConv(4, out).norm.num_groups == groups


def test_on_the_last_pixel_the_border_has_no_slope():
    """The gradient is the forward difference, and forward the border repeats itself."""
    m, x = make(), randn(1, 2, 4, 5)
    for rows, forward in (([0.0, 1.0, 2.0], True), ([3.0], False)):
        for row in rows:
            aside = torch.full((1, 5, 4, 5), 0.0, dtype=D, requires_grad=True)
            r, c = m._positions(aside)
            picked = attn_lib.ops.bilinear_sample(x, r, c)[0, :, 2, int(row)].sum()
            (grad,) = torch.autograd.grad(picked, aside)
            slope = (x[0, :, int(row) + 1] - x[0, :, int(row)]).sum(0) if forward else torch.zeros(5, dtype=D)
            torch.testing.assert_close(grad[0, 2, int(row)], slope)


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_a_transposed_image_is_read_by_the_other_axis():
    """But for the normalisation of the offsets, which knows the releases' order: it is left out here."""
    x_axis, y_axis, x = make(axis="x"), make(axis="y"), randn(2, 2, 4, 6)
    y_axis.weight.copy_(x_axis.weight)
    y_axis.bias.copy_(x_axis.bias)
    for m in (x_axis, y_axis):
        m.norm.load_state_dict(x_axis.norm.state_dict())
        m.offset_norm = torch.nn.Identity()
    y_axis.offset_conv.weight[1:] = x_axis.offset_conv.weight[:5].mT
    y_axis.offset_conv.bias[1:] = x_axis.offset_conv.bias[:5]
    torch.testing.assert_close(y_axis(x.mT), x_axis(x).mT, rtol=0, atol=1e-12)


def test_a_snake_follows_a_diagonal():
    """Offsets of one pixel a step lay the taps on the line i = j, as a convolution of the sheared image does."""
    m, x = make(C=1), torch.zeros(1, 1, 9, 9, dtype=D)
    x[0, 0] = torch.diag(torch.arange(1.0, 10.0, dtype=D))
    aside = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=D)[None, :, None, None].expand(1, 5, 9, 9)
    x_p = attn_lib.ops.bilinear_sample(x, *m._positions(aside))
    assert x_p[0, 0, :, 4, 4].tolist() == [3.0, 4.0, 5.0, 6.0, 7.0]


@pytest.mark.parametrize(("options", "message"), [
    (dict(kernel_size=4), "kernel_size=4 must be odd"),
    (dict(kernel_size=1), "kernel_size=1 must be an integer of at least 3"),
    (dict(axis="z"), "axis='z' must be one of 'x', 'y'"),
    (dict(border="reflect"), "border='reflect' must be one of 'replicate', 'zeros'"),
    (dict(offset_norm="layer"), "offset_norm='layer' must be one of 'group', 'batch'"),
    (dict(extent=0.0), "extent=0.0 must be a positive number"),
    (dict(norm_groups=3), "out_channels=4 must be divisible by norm_groups=3"),
])
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicSnakeConv(4, **options)


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_memory_is_linear_in_positions_and_taps():
    sizes = [16, 32, 64]
    kept = [measure.saved_bytes(DynamicSnakeConv(8), torch.randn(1, 8, n, n)) for n in sizes]
    assert measure.fit_exponent([n * n for n in sizes], kept) == pytest.approx(1, abs=0.02)
    kept = [measure.saved_bytes(DynamicSnakeConv(8, kernel_size=K), torch.randn(1, 8, 32, 32)) for K in (9, 17, 33)]
    assert (kept[2] - kept[1]) / (kept[1] - kept[0]) == pytest.approx(2, abs=0.01)  # not 3, as of K² taps


def test_parameters_are_a_lines():
    """K·C² for the taps, not K²; and the offsets of one axis."""
    K, C = 9, 16
    m = DynamicSnakeConv(C)
    assert m.weight.numel() == K * C * C and m.offset_conv.weight.numel() == (K + 1) * C * 9


# ---- three views -----------------------------------------------------------------------------------------------------


def test_three_views_are_joined_by_a_convolution():
    m, x = randomised(MultiViewFusion(3, 4, kernel_size=3), scale=0.5).requires_grad_(False), randn(2, 3, 5, 6)
    plain = F.conv2d(x, m.plain[0].weight, m.plain[0].bias, padding=1)
    views = [torch.stack([group_norm(image, m.plain[1]) for image in plain]).clamp(min=0),
             from_the_paper(x, m.snake_x), from_the_paper(x, m.snake_y, axis="y")]
    y = F.conv2d(torch.cat(views, 1), m.fuse[0].weight, m.fuse[0].bias, padding=1)
    expected = torch.stack([group_norm(image, m.fuse[1]) for image in y]).clamp(min=0)
    torch.testing.assert_close(m(x), expected, rtol=0, atol=1e-11)
    with attn_lib.trace() as t:
        m(x)
    assert t["f"].shape == (2, 3, 4, 5, 6) and t.names()[-1] == "y:3"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_three_views_in_half_precision(dtype):
    m, x = MultiViewFusion(4, 8, kernel_size=3), torch.randn(1, 4, 5, 7)
    exact, half = m(x), m.to(dtype)(x.to(dtype))
    assert half.dtype == dtype and (half.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_three_views_compile_learn_and_name_a_bad_input():
    m, x = MultiViewFusion(4, 8, kernel_size=3), torch.randn(1, 4, 5, 7, requires_grad=True)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(m, fullgraph=True, backend="aot_eager")(x), m(x))
    m(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (*m.parameters(), x))
    with pytest.raises(ValueError, match="axis C must be 4, not 3"):
        m(torch.randn(1, 3, 5, 7))


# ---- the loss: what persistence counts -------------------------------------------------------------------------------


def areas(on, neighbours):
    """Connected areas of True pixels, filled one by one."""
    H, W = len(on), len(on[0])
    left, found = {(i, j) for i in range(H) for j in range(W) if on[i][j]}, []
    while left:
        todo, area = [left.pop()], set()
        while todo:
            i, j = todo.pop()
            area.add((i, j))
            for a in (-1, 0, 1):
                for b in (-1, 0, 1):
                    if (a == 0 or b == 0 or neighbours == 8) and (i + a, j + b) in left:
                        left.remove((i + a, j + b))
                        todo.append((i + a, j + b))
        found.append(area)
    return found


def count(on, cells):
    """Components and holes of a picture: a hole is an area of the rest that does not reach the frame around it."""
    mine, others = (4, 8) if cells == "vertices" else (8, 4)
    W = len(on[0])
    framed = [[True] * (W + 2), *([True, *(not pixel for pixel in row), True] for row in on), [True] * (W + 2)]
    return len(areas(on, mine)), len(areas(framed, others)) - 1


@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
@pytest.mark.parametrize("cells", ["vertices", "squares"])
@pytest.mark.parametrize(("H", "W"), [(6, 7), (5, 5), (1, 6), (6, 1), (1, 1), (2, 9)])
def test_diagrams_count_components_and_holes_at_every_level(H, W, cells, filtration):
    image = torch.rand(H, W, dtype=D, generator=torch.Generator().manual_seed(H * W))
    if H > 4:
        image[2:4, 2:4] = 1 - image[2:4, 2:4]
    components, holes = persistence_diagrams(image, filtration=filtration, cells=cells, essential="cap")
    for level in sorted(image.flatten().tolist()):
        on = (image >= level if filtration == "superlevel" else image <= level).tolist()
        alive = [sum(1 for birth, death in diagram.tolist()
                     if (birth >= level > death if filtration == "superlevel" else birth <= level < death))
                 for diagram in (components, holes)]
        assert tuple(alive) == count(on, cells), level


def test_diagrams_of_pictures_that_can_be_counted():
    ring = torch.tensor([[.9, .9, .9, 0], [.9, .2, .7, 0], [.9, .9, .9, 0]], dtype=D)
    components, holes = persistence_diagrams(ring, essential="cap")
    assert components.tolist() == [[0.9, 0.0]]
    assert holes.tolist() == [[0.7, 0.2]]  # it closes with its weakest pixel, and fills up at 0.2
    two = torch.tensor([[.75, .25, .5]], dtype=D)
    assert persistence_diagrams(two, essential="cap")[0].tolist() == [[0.5, 0.25], [0.75, 0.0]]
    assert persistence_diagrams(two)[0].tolist() == [[0.5, 0.25]]  # the younger one dies where they meet
    dark = persistence_diagrams(1 - two, filtration="sublevel", essential="cap")[0]
    assert dark.tolist() == [[0.5, 0.75], [0.25, 1.0]]
    corner = torch.tensor([[.8, .1], [.1, .6]], dtype=D)
    assert len(persistence_diagrams(corner, cells="vertices")[0]) == 1
    assert len(persistence_diagrams(corner, cells="squares")[0]) == 0  # squares touch at a corner


def test_diagrams_equal_gudhis_intervals_and_carry_gradients_to_two_pixels():
    image = torch.rand(7, 8, dtype=D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    levels = reference("gudhi").CubicalComplex(vertices=-image.detach().numpy())
    levels.compute_persistence()
    for n, diagram in enumerate(persistence_diagrams(image)):
        theirs = sorted([-birth, -death] for birth, death in levels.persistence_intervals_in_dimension(n).tolist()
                        if math.isfinite(death))
        assert sorted(diagram.tolist()) == theirs
        for row in diagram:
            (grad,) = torch.autograd.grad(row[0] - 2 * row[1], image, retain_graph=True)
            assert sorted(grad[grad != 0].tolist()) == [-2.0, 1.0]
            assert image[grad == 1].item() == row[0].item() and image[grad == -2].item() == row[1].item()


@pytest.mark.parametrize("norm", ["euclidean", "maximum"])
@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("n", "m"), [(3, 5), (1, 1), (4, 0), (0, 2), (0, 0)])
def test_hausdorff_is_that_of_the_definition(n, m, diagonal, norm):
    a, b = randn(n, 2).abs(), randn(m, 2, seed=2).abs()

    def between(u, v):
        d = [abs(s - t) for s, t in zip(u, v, strict=True)]
        return max(d) if norm == "maximum" else math.hypot(*d)

    def furthest(points, others):
        found = []
        for u in points.tolist():
            near = [between(u, v) for v in others.tolist()]
            if diagonal or not near:
                near.append(between(u, [sum(u) / 2] * 2))  # the nearest point of the diagonal in either norm
            found.append(min(near))
        return max(found, default=0.0)

    expected = max(furthest(a, b), furthest(b, a))
    assert hausdorff(a, b, norm=norm, diagonal=diagonal).item() == pytest.approx(expected, abs=1e-12)


# ---- the loss itself -------------------------------------------------------------------------------------------------


def tube(gap=None):
    """A vessel of nine pixels that is sure of itself, σ(±4), but for a gap of one pixel."""
    target = torch.zeros(1, 1, 5, 9, dtype=D)
    target[:, :, 2] = 1
    logits = 8 * target - 4
    if gap is not None:
        logits[0, 0, 2, gap] = -2
    return logits, target


def test_loss_is_cross_entropy_and_the_distance_of_the_diagrams():
    logits, target = randn(2, 1, 5, 6), (randn(2, 1, 5, 6, seed=3) > 0).to(D)
    p = 1 / (1 + torch.exp(-logits))
    entropy = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    distance = sum(hausdorff(P, G) for b in range(2) for P, G in zip(
        persistence_diagrams(p[b, 0]), persistence_diagrams(target[b, 0]), strict=True)) / 2
    for weight in (1.0, 0.3):
        torch.testing.assert_close(TCLoss(weight=weight)(logits, target), entropy + weight * distance)
    with attn_lib.trace() as t:
        TCLoss()(logits, target > 0)
    assert t["d"].shape == (2, 2)


def topological_part(logits, target, **options):
    return TCLoss(**options)(logits, target) - F.binary_cross_entropy_with_logits(logits, target)


def test_loss_sees_a_cut_that_cross_entropy_hardly_sees():
    (whole, target), (cut, _) = tube(), tube(4)
    entropy = [F.binary_cross_entropy_with_logits(logits, target) for logits in (whole, cut)]
    assert entropy[1] - entropy[0] < 0.05
    assert topological_part(whole, target).abs() < 1e-12
    born, dead = (1 / (1 + math.exp(-logit)) for logit in (4, -2))  # a second component, between these levels
    assert topological_part(cut, target).item() == pytest.approx((born - dead) / math.sqrt(2))
    cut.requires_grad_()
    (grad,) = torch.autograd.grad(topological_part(cut, target), cut)
    moved = grad.nonzero().tolist()
    assert len(moved) == 2 and [0, 0, 2, 4] in moved  # where it is born, and where it meets the first
    assert grad[0, 0, 2, 4] < 0, "a step against the gradient closes the gap"


def test_loss_is_a_distance_of_sets_that_does_not_count():
    """Two tubes for one are seen, three for two are not, nor two for one where the first component stays in."""
    target = torch.zeros(1, 1, 7, 9, dtype=D)
    target[:, :, 1], target[:, :, 5] = 1, 1
    cut = 200 * target - 100
    cut[..., 5, 4] = -100
    assert topological_part(cut, target).abs() < 1e-12
    one = target.clone()
    one[:, :, 5] = 0
    assert topological_part(200 * target - 100, one).item() == pytest.approx(1 / math.sqrt(2))
    assert topological_part(200 * target - 100, one, essential="cap").abs() < 1e-12


def test_loss_with_the_diagonal_is_no_larger():
    logits, target = randn(2, 1, 5, 6), (randn(2, 1, 5, 6, seed=3) > 0).to(D)
    for norm in ("euclidean", "maximum"):
        assert TCLoss(norm=norm, diagonal=True)(logits, target) <= TCLoss(norm=norm)(logits, target)


def test_loss_of_a_perfect_map_is_nothing_and_of_an_empty_one_is_finite():
    _, target = tube()
    assert TCLoss()(200 * target - 100, target).item() == pytest.approx(0, abs=1e-12)
    for essential in ("cap", "drop"):
        loss = TCLoss(essential=essential)
        logits = torch.zeros(1, 1, 5, 9, dtype=D, requires_grad=True)
        value = loss(logits, 0 * target)
        value.backward()
        assert value.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_in_half_precision(dtype):
    logits, target = randn(1, 1, 5, 6).to(dtype).requires_grad_(), randn(1, 1, 5, 6, seed=3) > 0
    loss = TCLoss()(logits, target)
    loss.backward()
    torch.testing.assert_close(loss.double(), TCLoss()(logits.detach().double(), target), rtol=1e-5, atol=1e-5)
    assert logits.grad.isfinite().all()


def test_loss_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gudhi", None)
    with pytest.raises(ModuleNotFoundError, match=r"TCLoss needs gudhi.*pip install 'attn_lib\[topology\]'"):
        TCLoss()


@pytest.mark.parametrize(("options", "message"), [
    (dict(weight=0.0), "weight=0.0 must be a positive number"),
    (dict(filtration="up"), "filtration='up' must be one of 'superlevel', 'sublevel'"),
    (dict(cells="pixels"), "cells='pixels' must be one of 'vertices', 'squares'"),
    (dict(essential="keep"), "essential='keep' must be one of 'drop', 'cap'"),
    (dict(norm="l1"), "norm='l1' must be one of 'euclidean', 'maximum'"),
])
def test_arguments_of_the_loss(options, message):
    with pytest.raises(ValueError, match=message):
        TCLoss(**options)


def test_loss_names_a_bad_input():
    with pytest.raises(ValueError, match="axis C must be 1, not 2"):
        TCLoss()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match=r"target must be a tensor of the shape \(1, 1, 4, 4\)"):
        TCLoss()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4))
