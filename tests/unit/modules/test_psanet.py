"""Point-wise spatial attention against its paper, its limits and its memory, and against the errors in circulation."""

import math

import pytest
import torch
import torch.nn.functional as F

import attn_lib
from attn_lib import measure
from attn_lib.spatial import PointwiseSpatialAttention
from tests.unit.draw import D, randn, randomised

CASES = [  # options, size of the module, size of the map
    (dict(), (3, 4), (3, 4)),
    (dict(softmax=False), (4, 3), (4, 3)),
    (dict(branches="collect"), (2, 5), (2, 5)),
    (dict(branches="distribute"), (3, 3), (3, 3)),
    (dict(), (4, 5), (3, 2)),
    (dict(compact=True), (3, 4), (3, 4)),
    (dict(shrink=2), (5, 3), (5, 3)),
    (dict(shrink=2), (4, 6), (4, 6)),
    (dict(), (1, 1), (1, 1)),
]


def make(size=(3, 4), seed=0, channels=6, **options):
    m = PointwiseSpatialAttention(channels, height=size[0], width=size[1], reduction=2, **options)
    return randomised(m, scale=0.8, seed=seed).requires_grad_(False)


# ---- equation --------------------------------------------------------------------------------------------------------


def normalised(x, bn):
    return (x - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias


def embedded(v, layers):
    """1×1 convolution, BN, ReLU of one pixel's vector."""
    return normalised(layers[0].weight[:, :, 0, 0] @ v, layers[1]).clamp(min=0)


def resized(maps, H, W):
    """Bilinear, corners on corners: a dictionary of vectors by pixel to another of H × W."""
    h, w = max(maps)[0] + 1, max(maps)[1] + 1
    out = {}
    for i in range(H):
        for j in range(W):
            y, x = (i * (h - 1) / (H - 1) if H > 1 else 0), (j * (w - 1) / (W - 1) if W > 1 else 0)
            out[i, j] = sum(max(0, 1 - abs(y - p)) * max(0, 1 - abs(x - q)) * v for (p, q), v in maps.items())
    return out


def from_the_paper(x, m):
    """One image (C, H, W): both sums, source by source and target by target."""
    C, H, W = x.shape
    tall, wide = ((n - 1) // m.shrink + 1 for n in (m.height, m.width))
    h, w = ((n - 1) // m.shrink + 1 for n in (H, W))
    pixels = {(i, j): x[:, i, j] for i in range(H) for j in range(W)}
    branches = {"both": [("c", m.reduce, m.attention), ("d", getattr(m, "reduce_p", None),
                                                         getattr(m, "attention_p", None))],
                "collect": [("c", m.reduce, m.attention)], "distribute": [("d", m.reduce, m.attention)]}[m.branches]
    z = {}
    for name, reduce, attention in branches:
        small = resized({p: embedded(v, reduce) for p, v in pixels.items()}, h, w)
        maps = {p: attention[3].weight[:, :, 0, 0] @ embedded(v, attention) for p, v in small.items()}
        for target in small:
            weights = {}
            for source in small:
                at, other = (target, source) if name == "c" else (source, target)  # who draws the map, and of whom
                if m.compact:
                    entry = other[0] * w + other[1]
                else:  # the middle of the map belongs to the pixel itself
                    entry = (other[0] - at[0] + tall - 1) * (2 * wide - 1) + other[1] - at[1] + wide - 1
                weights[source] = maps[at][entry].item()
            if m.softmax:
                total = sum(math.exp(v) for v in weights.values())
                weights = {source: math.exp(v) / total for source, v in weights.items()}
            else:
                weights = {source: v / len(small) for source, v in weights.items()}
            z.setdefault(target, []).append(sum(a * small[source] for source, a in weights.items()))
    projected = resized({p: embedded(torch.cat(v), m.proj) for p, v in z.items()}, H, W)
    y = torch.stack([torch.cat([pixels[p], projected[p]]) for p in pixels], 1)
    return y.view(2 * C, H, W)


@pytest.mark.parametrize(("options", "size", "of_x"), CASES)
def test_equals_the_paper(options, size, of_x):
    m, x = make(size, **options), randn(2, 6, *of_x)
    expected = torch.stack([from_the_paper(image, m) for image in x])
    assert expected[:, 6:].abs().max() > 0
    torch.testing.assert_close(m(x), expected, rtol=0, atol=1e-12)


class Wrong(PointwiseSpatialAttention):
    """The errors in circulation, one at a time."""

    mistake = None

    def branch(self, name, x, reduce, attention):
        x = reduce(x)
        B, C, H, W = x.shape
        N = H * W
        m = attention(x)
        if self.mistake == "map mirrored":
            m = m.flip(1)
        if self.mistake == "columns before rows":
            m = m.unflatten(1, (2 * H - 1, 2 * W - 1)).transpose(1, 2).flatten(1, 2)
        A = self.on_the_map(m)
        if self.mistake == "collects twice":
            name = "c"
        if self.mistake == "normalised over all offsets":
            A = A.exp() / m.flatten(2).mT.exp().sum(-1, keepdim=True)
        elif self.mistake == "normalised over the targets":
            A = A.softmax(-1 if name == "d" else -2)
        A = A.mT if name == "d" else A
        if self.mistake is None or "normalised" not in self.mistake:
            A = A.softmax(-1)
        if self.mistake == "divided by N as well":
            A = A / N
        return (A @ x.flatten(2).mT).mT.reshape(B, C, H, W)

    def forward(self, x):
        y = super().forward(x)
        if self.mistake == "added to x":
            return torch.cat([x, x + y[:, 6:]], 1)
        return y.roll(6, 1) if self.mistake == "x last" else y


@pytest.mark.parametrize("mistake", [
    "map mirrored", "columns before rows", "collects twice", "normalised over all offsets",
    "normalised over the targets", "divided by N as well", "added to x", "x last",
])
def test_the_comparison_with_the_paper_notices(mistake):
    m, x = make(), randn(1, 6, 3, 4)
    wrong = Wrong(6, height=3, width=4, reduction=2).to(D).eval()
    wrong.load_state_dict(m.state_dict())
    expected = from_the_paper(x[0], m)[None]
    torch.testing.assert_close(wrong(x), expected, rtol=0, atol=1e-12)  # nothing else differs
    wrong.mistake = mistake
    assert (wrong(x) - expected).abs().max() > 1e-2


# ---- where paper, release and copies differ --------------------------------------------------------------------------


def traced(m, x):
    with attn_lib.trace() as t:
        m(x)
    return t


def test_weights_of_a_target_sum_to_one():
    t = traced(make(), randn(2, 6, 3, 4))
    for name in ("A_c", "A_d"):
        torch.testing.assert_close(t[name].sum(-1), torch.ones(2, 12, dtype=D))
        assert (t[name].sum(-2) - 1).abs().max() > 0.1, "what a source gives away is no distribution"


def test_without_softmax_sums_are_divided_by_the_positions():
    m, x = make(softmax=False), randn(2, 6, 3, 4)
    t = traced(m, x)
    torch.testing.assert_close(t["A_c"], m.on_the_map(t["m_c"]) / 12)
    assert t["A_c"].min() < 0 and (t["A_c"].sum(-1) - 1).abs().max() > 0.1, "no distribution"


@pytest.mark.parametrize("size", [(5, 7), (4, 7), (6, 8)])
def test_shrinking_takes_even_sizes(size):
    """(H − 1) // 2 · 2 + 1 is what the release comes back to: H, where H is odd."""
    m, x = make(size, shrink=2), randn(2, 6, *size)
    back = tuple((n - 1) // 2 * 2 + 1 for n in size)
    assert (back == size) == all(n % 2 for n in size)
    t = traced(m, x)
    assert t["y"].shape[2:] == size and t["z_c"].shape[2:] == ((size[0] + 1) // 2, (size[1] + 1) // 2)
    z = m.proj(torch.cat([t["z_c"], t["z_d"]], 1))
    release = F.interpolate(z, back, mode="bilinear", align_corners=True)
    assert release.shape == t["y"][:, 6:].shape if back == size else release.shape != t["y"][:, 6:].shape
    if back == size:
        torch.testing.assert_close(t["y"][:, 6:], release)


def test_a_mask_that_is_too_small_leaks():
    """Offsets that a 3 × 3 mask lacks on a map of 4 × 4 have the logit 0 in the release; here they are refused."""
    m = make((2, 2))
    with pytest.raises(ValueError, match="x has H=4; it must be at most height=2"):
        m(randn(1, 6, 4, 4))
    logits = torch.zeros(16)
    logits[[0, 1, 4, 5]] = -2.0  # what a corner pixel's own mask reaches
    assert logits.softmax(0)[[0, 1, 4, 5]].sum() < 0.05


def test_a_smaller_map_uses_the_offsets_that_it_has():
    m, x = make((5, 6)), randn(1, 6, 3, 4)
    small = make((3, 4))
    small.load_state_dict({k: v for k, v in m.state_dict().items() if not k.endswith("3.weight")}, strict=False)
    for name in ("attention", "attention_p"):
        maps = getattr(m, name)[3].weight.unflatten(0, (9, 11))[2:7, 2:9].flatten(0, 1)
        getattr(small, name)[3].weight.copy_(maps)
    torch.testing.assert_close(m(x), small(x))


# ---- limits ----------------------------------------------------------------------------------------------------------


def constant_maps(m, maps):
    """Every pixel of every image draws the same map: BN without a slope passes on its bias."""
    for attention in (m.attention, m.attention_p):
        attention[1].weight.zero_()
        attention[1].bias.zero_()
        attention[1].bias[0] = 1.0
        attention[3].weight.zero_()
        attention[3].weight[:, 0, 0, 0] = maps.flatten()


def test_maps_that_point_at_their_own_pixel_change_nothing():
    """Before the projection: both branches return the reduced features."""
    m, x = make(), randn(2, 6, 3, 4)
    one_hot = torch.zeros(5, 7, dtype=D)
    one_hot[2, 3] = 1e4
    constant_maps(m, one_hot)
    t = traced(m, x)
    torch.testing.assert_close(t["z_c"], m.reduce(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(t["z_d"], m.reduce_p(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("name", "moves"), [("c", (1, 2)), ("d", (-1, -2))])
def test_collect_and_distribute_look_in_opposite_directions(name, moves):
    """All maps point one down and two to the right: collect reads there, distribute writes there."""
    m, x = make((5, 7), softmax=False), randn(1, 6, 5, 7)
    one_hot = torch.zeros(9, 13, dtype=D)
    one_hot[4 + 1, 6 + 2] = 35.0
    constant_maps(m, one_hot)
    z = traced(m, x)[f"z_{name}"]
    source = (m.reduce if name == "c" else m.reduce_p)(x)
    inner = z[..., 1:-1, 2:-2]
    torch.testing.assert_close(inner, source.roll((-moves[0], -moves[1]), (2, 3))[..., 1:-1, 2:-2])


def test_a_pixel_can_say_where_to_look_without_looking_there():
    """What stands at the source changes what is collected, but not how much of it."""
    m, x = make(), randn(1, 6, 3, 4)
    other = x.clone()
    other[..., 2, 3] += 1.0
    a, b = traced(m, x), traced(m, other)
    changed = (a["A_c"] != b["A_c"]).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [11] and (a["z_c"] != b["z_c"]).all(1).sum() > 1
    changed = (a["A_d"] != b["A_d"]).any(1)[0]
    assert changed.sum() == 12, "a source that speaks up takes weight from all the others"


def test_weights_of_the_release_load_by_name():
    names = {k for k in make().state_dict() if k.endswith("weight")}
    assert names == {f"{part}.{i}.weight" for part, layers in
                     {"reduce": (0, 1), "attention": (0, 1, 3), "reduce_p": (0, 1), "attention_p": (0, 1, 3),
                      "proj": (0, 1)}.items() for i in layers}


# ---- cost and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, dict(compact=True), dict(shrink=2)], ids=str)
def test_memory_grows_with_the_square_of_the_pixels(options):
    """The paper's maps are (HW)²; nothing here is more."""
    saved, shrink = {}, options.get("shrink", 1)
    for n in (8 * shrink, 16 * shrink, 32 * shrink):
        m = PointwiseSpatialAttention(4, height=n, width=n, reduction=1, branches="collect", **options)
        saved[n * n] = measure.saved_bytes(m, torch.randn(1, 4, n, n))
    assert measure.fit_exponent(list(saved), list(saved.values())) == pytest.approx(2, abs=0.3), saved
    N = 32 * 32
    assert saved[n * n] < 1.5 * N * N * 4, "the weights alone: of the over-complete maps nothing, and no index"


@pytest.mark.parametrize(("options", "message"), [
    (dict(height=0), "height=0 must be an integer of at least 1"),
    (dict(branches="bi"), "branches='bi' must be one of 'both', 'collect', 'distribute'"),
    (dict(reduction=9), "reduction=9 must be at most channels=8"),
    (dict(shrink=0), "shrink=0"),
])
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        PointwiseSpatialAttention(8, **{"height": 4, "width": 4, **options})


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="x has W=3; it must equal width=4"):
        make(compact=True)(randn(1, 6, 3, 3))
    with pytest.raises(ValueError, match="x is a batch of 1 whose map has one pixel"):
        make((3, 3), shrink=3).train()(randn(1, 6, 3, 3))
