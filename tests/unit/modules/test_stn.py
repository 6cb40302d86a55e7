"""Spatial transformer against its paper, its limits, torch's own grid and scipy's spline, and known mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.ops import bilinear_sample
from attn_lib.spatial import SpatialTransformer
from tests.unit.draw import D, randn, randomised
from tests.unit.reference import reference

CASES = [("affine", {}, (5, 7)), ("affine", dict(size=(3, 4)), (6, 5)), ("attention", {}, (4, 6)),
         ("thin_plate", dict(points=3), (4, 5)), ("thin_plate", dict(points=2, size=(5, 3)), (3, 4)),
         ("projective", {}, (5, 4)), ("affine", {}, (1, 1)), ("attention", {}, (1, 6))]


def make(transform="affine", channels=2, seed=0, **options):
    m = SpatialTransformer(channels, transform=transform, hidden=3, cells=2, units=4, **options)
    return randomised(m, scale=0.3, seed=seed).requires_grad_(False)


def fixed(theta, transform="affine", channels=2, dtype=D, **options):
    """A transformer that always finds the same θ."""
    stn = make(transform, channels, **options).to(dtype)
    stn.Wtheta.weight.zero_()
    stn.Wtheta.bias.copy_(torch.as_tensor(theta, dtype=dtype).flatten())
    return stn


# ---- equation --------------------------------------------------------------------------------------------------------


def spline_through(points, values):
    """Coefficients of the thin plate spline with those values at those points, from the system that defines them."""
    def U(a, b):
        r = math.dist(a, b)
        return r * r * math.log(r) if r else 0.0

    n = len(points)
    L = torch.zeros(n + 3, n + 3, dtype=D)
    for k, a in enumerate(points):
        for j, b in enumerate(points):
            L[k, j] = U(a, b)
        for j, value in enumerate((1.0, *a)):
            L[k, n + j] = L[n + j, k] = value
    w = torch.linalg.solve(L, torch.tensor([*values, 0.0, 0.0, 0.0], dtype=D)).tolist()
    return lambda p: sum(w_k * U(p, c) for w_k, c in zip(w, points, strict=False)) + w[n] + w[-2] * p[0] + w[-1] * p[1]


def map_of(stn, theta):
    """T_θ: from a place of the output to a place of the input, (x, y) both."""
    theta = theta.tolist()
    if stn.transform == "affine":
        return lambda x, y: tuple(a * x + b * y + t for a, b, t in theta)                    # eq. 1
    if stn.transform == "attention":
        return lambda x, y: (theta[0] * x + theta[1], theta[0] * y + theta[2])               # eq. 2
    if stn.transform == "projective":
        a, b, c, d, e, f, g, h = theta
        return lambda x, y: ((a * x + b * y + c) / (g * x + h * y + 1), (d * x + e * y + f) / (g * x + h * y + 1))
    side = [-1 + 2 * k / (stn.points - 1) for k in range(stn.points)]
    controls = [(x, y) for y in side for x in side]
    splines = [spline_through(controls, [c[axis] + d[axis] for c, d in zip(controls, theta, strict=True)])
               for axis in (0, 1)]
    return lambda x, y: tuple(s((x, y)) for s in splines)


def from_the_paper(x, stn):
    """θ of the localisation network and eq. 5, one image at a time, every pixel of the input in the double sum."""
    B, C, H, W = x.shape
    Ho, Wo = stn.size or (H, W)
    V = torch.zeros(B, C, Ho, Wo, dtype=D)
    for b in range(B):
        z = x[b:b + 1]
        for conv in (stn.conv1, stn.conv2):
            z = F.conv2d(z, conv.weight, conv.bias, padding=1).clamp(min=0)
        means = []
        for channel in z[0]:
            for p in range(stn.cells):
                for q in range(stn.cells):
                    rows = range(p * H // stn.cells, -(-(p + 1) * H // stn.cells))
                    cols = range(q * W // stn.cells, -(-(q + 1) * W // stn.cells))
                    means.append(sum(channel[i, j].item() for i in rows for j in cols) / (len(rows) * len(cols)))
        mean = sum(means) / len(means)
        variance = sum((v - mean) ** 2 for v in means) / len(means)
        z = torch.tensor([(v - mean) / math.sqrt(variance + 1e-5) for v in means], dtype=D)
        theta = stn.Wtheta.weight @ (stn.W1.weight @ z + stn.W1.bias).clamp(min=0) + stn.Wtheta.bias
        T = map_of(stn, theta.view(stn.shape))
        for i in range(Ho):
            for j in range(Wo):
                x_s, y_s = T(-1 + (2 * j + 1) / Wo, -1 + (2 * i + 1) / Ho)
                col, row = (x_s + 1) * W / 2 - 0.5, (y_s + 1) * H / 2 - 0.5
                for n in range(H):
                    for m in range(W):
                        V[b, :, i, j] += x[b, :, n, m] * max(0, 1 - abs(col - m)) * max(0, 1 - abs(row - n))
    return V


@pytest.mark.parametrize(("transform", "options", "size"), CASES)
def test_equals_the_paper(transform, options, size):
    stn, x = make(transform, **options), randn(2, 2, *size)
    V = stn(x)
    assert V.abs().sum() > 0
    torch.testing.assert_close(V, from_the_paper(x, stn), rtol=0, atol=1e-11)


class Wrong(SpatialTransformer):
    """The mistakes that circulate, one at a time."""

    mistake = None

    def forward(self, x):
        H, W = x.shape[2:]
        theta = self.localise(x)
        if self.mistake == "source to target":
            last = theta.new_tensor([0.0, 0.0, 1.0]).expand(len(x), 1, 3)
            theta = torch.linalg.inv(torch.cat([theta, last], 1))[:, :2]
        if self.mistake == "y before x":
            theta = theta.flip(1)[:, :, [1, 0, 2]]
        if self.mistake in ("corners on centres", "two conventions", "zeros outside forgotten", "nearest"):
            grid = F.affine_grid(theta, x.shape, align_corners=self.mistake == "corners on centres")
            mode = "nearest" if self.mistake == "nearest" else "bilinear"
            padding = "border" if self.mistake == "zeros outside forgotten" else "zeros"
            corners = self.mistake in ("corners on centres", "two conventions")
            return F.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=corners)
        rows, cols = self.positions(theta, H, W)
        if self.mistake == "H for both":
            cols = (cols + 0.5) / W * H - 0.5
        return bilinear_sample(x, rows, cols)


@pytest.mark.parametrize("mistake", ["source to target", "y before x", "corners on centres", "two conventions",
                                     "zeros outside forgotten", "nearest", "H for both"])
def test_the_comparison_with_the_paper_notices(mistake):
    stn, x = make(), randn(2, 2, 5, 7)
    wrong = Wrong(2, hidden=3, cells=2, units=4).to(D)
    wrong.load_state_dict(stn.state_dict())
    expected = from_the_paper(x, stn)
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-11)  # nothing else differs
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


# ---- what the paper leaves open, and what copies get wrong -----------------------------------------------------------


def test_a_shift_by_k_columns_is_2k_over_W():
    """With the border at 1. With the last centre there it would be 2k/(W − 1), which is off here."""
    x = randn(1, 2, 5, 8)
    for k in (-3, 1, 2):
        y = fixed([[1, 0, 2 * k / 8], [0, 1, 0]])(x)
        expected = F.pad(x, (0, k))[..., k:] if k > 0 else F.pad(x, (-k, 0))[..., :8]
        assert torch.equal(y, expected)  # exactly, and nothing comes in again on the other side
        assert (fixed([[1, 0, 2 * k / 7], [0, 1, 0]])(x) - expected).abs().max() > 0.1
    torch.testing.assert_close(fixed([[1, 0, 0], [0, 1, -2 / 5]])(x), F.pad(x, (0, 0, 1, 0))[:, :, :5])


def test_positive_t_x_moves_the_picture_left():
    x = torch.zeros(1, 2, 4, 8, dtype=D)
    x[..., 2, 5] = 1.0
    y = fixed([[1, 0, 0.5], [0, 1, 0]])(x)
    assert y[0, 0].nonzero().tolist() == [[2, 3]], "x + t_x is where the output reads"


def test_two_conventions_do_not_make_an_identity():
    x = randn(1, 2, 5, 7)
    grid = F.affine_grid(torch.eye(2, 3, dtype=D)[None], x.shape, align_corners=False)
    assert (F.grid_sample(x, grid, align_corners=True) - x).abs().max() > 0.1
    for transform, theta in (("affine", torch.eye(2, 3)), ("attention", [1, 0, 0]), ("thin_plate", torch.zeros(16, 2)),
                             ("projective", [1, 0, 0, 0, 1, 0, 0, 0])):
        assert torch.equal(fixed(theta, transform)(x), x)


@pytest.mark.parametrize("transform", ["affine", "attention", "projective", "thin_plate"])
def test_takes_any_size(transform):
    stn = SpatialTransformer(3, transform=transform)  # a fresh one, with the paper's 4 × 4 control points
    for size in ((28, 28), (1, 1), (1, 9), (33, 20)):
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        assert torch.equal(stn(x), x), "zero weights and the identity as bias: bit for bit"


def test_the_spline_is_finite_on_its_control_points():
    stn, theta = make("thin_plate", points=3), randn(1, 9, 2)
    side = torch.tensor([-1.0, 0.0, 1.0], dtype=D)
    controls = torch.stack(torch.meshgrid(side, side, indexing="ij")[::-1], -1).view(9, 2)
    r = torch.cdist(controls, controls)
    assert (r.square() * r.log()).isnan().any(), "as it stands"
    torch.testing.assert_close(stn.thin_plate(theta, controls), theta)  # it passes through them


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_a_quarter_turn_is_torchs():
    x = randn(2, 2, 6, 6)
    torch.testing.assert_close(fixed([[0, 1, 0], [-1, 0, 0]])(x), x.rot90(-1, (2, 3)))
    torch.testing.assert_close(fixed([[-1, 0, 0], [0, 1, 0]])(x), x.flip(3))


def test_attention_is_the_affine_form_with_one_scale():
    x = randn(2, 2, 5, 7)
    torch.testing.assert_close(fixed([0.6, 0.2, -0.3], "attention")(x), fixed([[0.6, 0, 0.2], [0, 0.6, -0.3]])(x))


def test_a_projective_map_with_a_denominator_of_one_is_affine():
    x, theta = randn(2, 2, 5, 7), [0.7, 0.2, 0.1, -0.3, 0.8, -0.1]
    torch.testing.assert_close(fixed([*theta, 0.0, 0.0], "projective")(x), fixed(theta)(x))


def test_a_projective_map_keeps_lines_and_shortens_what_is_far():
    """Rows stay rows, and further down more of them are read at once."""
    stn = fixed([1, 0, 0, 0, 1, 0, 0, -0.5], "projective")
    rows, _ = stn.positions(stn.Wtheta.bias[None], 8, 9)
    torch.testing.assert_close(rows, rows[..., :1].expand_as(rows))
    steps = rows[0, :, 0].diff()
    assert (steps.diff() > 0).all()


def test_a_spline_through_an_affine_map_is_that_map():
    x, theta = randn(2, 2, 5, 7), torch.tensor([[0.7, 0.2, 0.1], [-0.3, 0.8, -0.1]], dtype=D)
    side = torch.linspace(-1, 1, 4, dtype=D)
    y, x_t = torch.meshgrid(side, side, indexing="ij")
    controls = torch.stack([x_t, y], -1).view(16, 2)
    moved = controls @ theta[:, :2].T + theta[:, 2] - controls
    torch.testing.assert_close(fixed(moved, "thin_plate")(x), fixed(theta)(x))


def test_half_the_size_is_the_mean_of_four_pixels():
    """And zooming out further skips pixels: four are read at any scale."""
    x = randn(1, 2, 8, 12)
    identity = torch.eye(2, 3)
    torch.testing.assert_close(fixed(identity, size=(4, 6))(x), F.avg_pool2d(x, 2))
    x[..., 3:5, 5:7] += 100.0
    tiny = fixed(identity, size=(1, 1))(x)
    torch.testing.assert_close(tiny[..., 0, 0], x[..., 3:5, 5:7].mean((2, 3)))


def test_gradient_of_theta_is_local_and_ends_outside_the_image():
    x = torch.zeros(1, 2, 4, 8, dtype=D)
    x[..., 6] = 1.0
    far, near, gone = ([[1, 0, t], [0, 1, 0]] for t in (0.0, 0.3, 3.0))
    for theta, moves in ((near, True), (gone, False)):
        stn = fixed(theta)
        stn.Wtheta.bias.requires_grad_()
        stn(x)[..., 4].sum().backward()
        assert (stn.Wtheta.bias.grad.abs().sum() > 0) == moves
    stn = fixed(far)  # column 1 would have to move by five to see column 6
    stn.Wtheta.bias.requires_grad_()
    stn(x)[..., 1].sum().backward()
    assert stn.Wtheta.bias.grad.abs().sum() == 0


def test_theta_does_not_see_the_exposure():
    stn, x = make(), randn(1, 2, 6, 7)
    for conv in (stn.conv1, stn.conv2):
        conv.bias.zero_()
    with attn_lib.trace() as t:
        stn(100 * x)
        stn(1000 * x)
    torch.testing.assert_close(t["theta"], t["theta:2"], rtol=0, atol=1e-6)  # up to the ε of the variance


# ---- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, (4, 9)])
def test_equals_torchs_grid_and_sampler(size):
    stn, x = make(size=size), randn(2, 2, 6, 5)
    with attn_lib.trace() as t:
        y = stn(x)
    grid = F.affine_grid(t["theta"], (2, 2, *(size or (6, 5))), align_corners=False)
    torch.testing.assert_close(y, F.grid_sample(x, grid, align_corners=False))


@pytest.mark.parametrize("points", [2, 3, 5])
def test_spline_equals_scipys(points):
    side = torch.linspace(-1, 1, points, dtype=D)
    controls = torch.cartesian_prod(side, side).flip(1)
    theta, p = randn(points**2, 2), randn(30, 2, seed=3)
    spline = reference("scipy.interpolate").RBFInterpolator(
        controls.numpy(), theta.numpy(), kernel="thin_plate_spline", degree=1)
    ours = make("thin_plate", points=points).thin_plate(theta[None], p)[0]
    torch.testing.assert_close(ours, torch.from_numpy(spline(p.numpy())), rtol=0, atol=1e-9)


# ---- cost and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", ["affine", "thin_plate"])
def test_memory_grows_with_the_pixels(transform):
    stn = SpatialTransformer(4, transform=transform)
    saved = {4 * n * n: measure.saved_bytes(stn, torch.randn(1, 4, n, 4 * n)) for n in (16, 32, 64)}
    assert measure.fit_exponent(list(saved), list(saved.values())) == pytest.approx(1, abs=0.03), saved


@pytest.mark.parametrize(("options", "message"), [
    (dict(transform="rigid"), "transform='rigid' must be one of 'affine'"),
    (dict(points=1), "points=1 must be an integer of at least 2"),
    (dict(size=7), r"size=7 must be None or the output's \(height, width\), such as \(28, 28\)"),
    (dict(size=(0, 3)), "size=0 must be an integer of at least 1"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        SpatialTransformer(4, **options)
