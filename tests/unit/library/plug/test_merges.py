"""What a network's code merges, `torch.cat([a, b], 1)` and `a + b`: listed, and given to a module."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attn_lib
from attn_lib import plug
from attn_lib.measure.call import tensors
from attn_lib.plug.merged import SCOPE, Merged
from tests.unit.library.plug.networks import (
    FPN,
    ResNet,
    UNet,
    assert_same_state,
    at_once,
    copied,
    evaluate,
    pickled,
    snapshot,
)
from tests.unit.reference import reference


def listed(model: nn.Module, x) -> list[tuple]:
    return [(m.index, m.name, m.inputs, m.module) for m in plug.merges(model, x)]


def as_it_was(model: nn.Module) -> bool:
    """Whether nothing of a fusion is left."""
    return not any(isinstance(m, Merged) or SCOPE in vars(m) or m._forward_hooks or m._forward_pre_hooks
                   for m in model.modules())


class Sum(nn.Module):
    """The addition itself, counting how often it runs."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels, self.calls = channels, 0

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.calls += 1
        return a + b


class Wide(nn.Module):
    """A module of somebody's that makes as many channels as a concatenation does."""

    def __init__(self, channels: int):
        super().__init__()
        self.project = nn.Conv2d(2 * channels, 2 * channels, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.project(torch.cat((b, a), 1))


class DecoderBlock(nn.Module):
    """As in segmentation_models_pytorch: it merges before it calls anything."""

    def __init__(self, channels: int, skip: int, out: int):
        super().__init__()
        self.conv = nn.Conv2d(channels + skip, out, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = torch.cat([F.interpolate(x, scale_factor=2), skip], dim=1)
        return self.conv(x)


class Decoded(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 2, 2)
        self.decoder = nn.ModuleList([DecoderBlock(4, 4, 6)])

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        return self.decoder[0](self.down(skip), skip)


class Shared(nn.Module):
    """Two merges after one and the same layer, which is called three times; and one merge more after each."""

    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2)
        self.mix1, self.mix2 = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv(x)
        b, c = F.avg_pool2d(a, 2), F.avg_pool2d(a, 4)
        y = self.up(F.avg_pool2d(c, 2))
        y = self.up(y + c)
        y = self.mix1(torch.cat((y + b, b), 1))
        y = self.up(y)
        return self.mix2(torch.concat((y + a, a), dim=-3))


class Held(nn.Module):
    """Writes a sum into a tensor that it holds by another name."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = z = self.a(x)
        w = self.b(x)
        y.add_(w)
        z += w
        return z


# ---- the list --------------------------------------------------------------------------------------------------------


def test_the_list_of_a_u_net_and_of_an_fpn(unet, x):
    (merge,) = plug.merges(unet, x)
    assert (merge.index, merge.name, merge.kind, merge.owner, merge.calls) == (0, ":cat0", "cat", "", 1)
    assert (merge.inputs, merge.shape, merge.module) == (("up1", "down1"), (2, 16, 12, 10), None)
    assert merge.shapes == ((2, 8, 12, 10),) * 2
    fpn, x = FPN().eval(), torch.randn(2, 3, 16, 24)
    assert str(plug.merges(fpn, {"x": x})) == (
        "index  merge  calls  shape          of\n"
        "    0  :add0      1  (2, 5, 4, 6)   ups.1 (5) + laterals.1 (5)\n"
        "    1  :add1      1  (2, 5, 8, 12)  ups.0 (5) + laterals.0 (5)")
    assert str(plug.merges(nn.Conv2d(3, 3, 1), x)) == "no merges of feature maps"
    with pytest.raises(ValueError, match="example= must be an input of the network: merges are found by running it"):
        plug.merges(unet, None)


def test_a_merge_belongs_to_the_module_that_writes_it(resnet, x):
    assert listed(resnet, x) == [
        (i, f"{block}:add0", (f"{block}.bn3", source), None) for i, (block, source) in enumerate([
            ("layer1.0", "layer1.0.downsample"), ("layer1.1", "layer1.0"),
            ("layer2.0", "layer2.0.downsample"), ("layer2.1", "layer2.0")])]
    assert listed(Decoded(), x) == [(0, "decoder.0:cat0", ("down", "stem"), None)]
    assert [m.name for m in plug.merges(Shared(), torch.randn(1, 3, 16, 16))] == [
        ":add0", ":add1", ":cat0", ":add2", ":cat1"]


def test_what_is_no_merge_of_maps_is_not_listed(x):
    class Others(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            y = self.conv(x)
            z = y.mean((2, 3))
            torch.cat((y, y), 0), torch.cat((y, y), 2), torch.cat((z, z), 1), torch.cat([y], 1)
            y + 1, 1 + y, y + y.mean((2, 3), keepdim=True), y.long() + y.long(), torch.add(y, y, alpha=2)
            return torch.add(y, other=y), y.shape[2] + y.shape[3], y * y

    assert listed(Others(), x) == [(0, ":add0", ("conv", "conv"), None)]


def test_the_list_leaves_the_network_and_modules_in_it_alone(resnet, x):
    plug.insert(resnet, "layer1.0.bn3", "cbam", example=x, reduction=8)  # adds within itself, of no concern
    before, modes = snapshot(resnet), [m.training for m in resnet.modules()]
    names = [m.name for m in plug.merges(resnet, x)]
    assert names == [f"layer{i}.{j}:add0" for i in (1, 2) for j in (0, 1)]
    assert_same_state(resnet, before)
    assert not any(m._forward_hooks for m in resnet.modules())
    assert [m.training for m in resnet.modules()] == modes


# ---- concatenations --------------------------------------------------------------------------------------------------


def ends(unet: UNet, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the U-Net merges, without any fusion."""
    d1 = unet.down1(x)
    return plug.sites.beneath(unet.up1)(unet.down2(F.max_pool2d(d1, 2))), d1


@pytest.mark.parametrize("site", [0, ":cat0"])
def test_a_u_net(unet, x, site):
    before, keys = unet(x), snapshot(unet)
    report = plug.fuse(unet, site, "gated", example=x)
    u1, d1 = ends(unet, x)
    torch.testing.assert_close(unet(x), unet.head(unet.merge1(torch.cat((unet.up1.gated(u1, d1), d1), 1))))
    assert report.kind == "fuse" and report.skips == ("down1",) and report.change > 0
    assert [(s.path, s.channels, s.shape, s.calls, s.name) for s in report.sites] == [
        (":cat0", 8, (2, 16, 12, 10), 1, "up1.gated")]
    assert str(report).startswith("gated: fuses 1 place with down1\n")
    assert [key for key in unet.state_dict() if key not in keys] == [
        "up1.gated.Wz1.weight", "up1.gated.Wz2.weight", "up1.gated.Wz2.bias"]
    assert [(r.kind, r.site, r.path, r.calls) for r in plug.inserted(unet, x)] == [("fuse", ":cat0", "up1.gated", 1)]
    assert listed(unet, x) == [(0, ":cat0", ("up1", "down1"), "up1.gated")]
    assert str(plug.merges(unet, x)).endswith("up1 (8) | down1 (8) → up1.gated")
    report.check(example=x)
    report.undo()
    report.undo()
    assert as_it_was(unet) and type(unet) is UNet
    assert torch.equal(unet(x), before)
    assert_same_state(unet, keys)


def test_a_gate_that_lets_the_first_map_through_changes_nothing(unet, x):
    """At b_z → ∞ gated fusion is its first input, which the concatenation then holds; at −∞ its second."""
    before = unet(x)
    plug.fuse(unet, 0, "gated", example=x)
    for p in unet.up1.gated.parameters():
        nn.init.zeros_(p)
    nn.init.constant_(unet.up1.gated.Wz2.bias, torch.inf)
    assert torch.equal(unet(x), before)
    nn.init.constant_(unet.up1.gated.Wz2.bias, -torch.inf)
    _, d1 = ends(unet, x)
    torch.testing.assert_close(unet(x), unet.head(unet.merge1(torch.cat((d1, d1), 1))))


def test_a_module_that_makes_all_channels_stands_for_the_whole(unet, x):
    before = unet(x)
    plug.fuse(unet, 0, Wide, example=x)
    u1, d1 = ends(unet, x)
    torch.testing.assert_close(unet(x), unet.head(unet.merge1(unet.up1.Wide.project(torch.cat((d1, u1), 1)))))
    assert plug.remove(unet) == ["up1.Wide"]
    assert as_it_was(unet) and torch.equal(unet(x), before)


def test_a_merge_before_anything_its_owner_calls(x):
    """The new module then belongs to the owner."""
    model = Decoded().eval()
    before, block = model(x), model.decoder[0]
    report = plug.fuse(model, "decoder.0:cat0", "gated", example=x)
    assert model.decoder[0] is not block and report.sites[0].name == "decoder.0.gated"
    skip = model.stem(x)
    up = F.interpolate(model.down(skip), scale_factor=2)
    torch.testing.assert_close(model(x), block.conv(torch.cat((model.decoder[0].gated(up, skip), skip), 1)))
    assert listed(model, x) == [(0, "decoder.0:cat0", ("down", "stem"), "decoder.0.gated")]
    torch.testing.assert_close(torch.fx.symbolic_trace(copied(model))(x), model(x))
    report.check(example=x)
    report.undo()
    assert as_it_was(model) and torch.equal(model(x), before)


def test_a_module_that_does_nothing_but_merge(x):
    """As ultralytics' Concat."""
    class Concat(nn.Module):
        def forward(self, maps):
            return torch.cat(maps, 1)

    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.concat, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), Concat(), nn.Conv2d(12, 2, 1)

        def forward(self, x):
            a = self.a(x)
            b = self.b(a)
            return self.c(self.concat([b, a, b]))

    model = Layers()
    plug.fuse(model, "concat:cat0", "msf", example=x, scales=3)
    model.eval()
    a = model.a(x)
    b = model.b(a)
    torch.testing.assert_close(model(x), model.c(torch.cat((model.concat.msf(b, a, b), a, b), 1)))


# ---- additions -------------------------------------------------------------------------------------------------------


class Detector(nn.Module):
    """Three scales into torchvision's FPN."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 6, 2, 2), nn.Conv2d(6, 8, 2, 2)])
        self.fpn = reference("torchvision.ops").FeaturePyramidNetwork([4, 6, 8], 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for i, stage in enumerate(self.stages):
            x = maps[str(i)] = stage(x)
        return self.fpn(maps)


def test_the_fpn_of_torchvision():
    model, x = Detector().eval(), torch.randn(2, 3, 16, 24)
    before = model(x)
    assert listed(model, x) == [(0, "fpn:add0", ("fpn.inner_blocks.1", "fpn.inner_blocks.2"), None),
                                (1, "fpn:add1", ("fpn.inner_blocks.0", "fpn:add0"), None)]
    reports = [plug.fuse(model, site, "gated", example=x) for site in ("fpn:add1", 0)]
    maps = [model.stages[0](x)]
    maps.append(model.stages[1](maps[0]))
    maps.append(model.stages[2](maps[1]))
    inner, layer = model.fpn.inner_blocks, model.fpn.layer_blocks
    top = inner[2](maps[2])
    middle = inner[1][0].gated(inner[1][0].site(maps[1]), F.interpolate(top, scale_factor=2))
    bottom = inner[0][0].gated(inner[0][0].site(maps[0]), F.interpolate(middle, scale_factor=2))
    for y, expected in zip(model(x).values(), (layer[0](bottom), layer[1](middle), layer[2](top)), strict=True):
        torch.testing.assert_close(y, expected)
    assert [row.site for row in plug.inserted(model)] == ["fpn:add1", "fpn:add0"]
    reports[0].undo()
    assert not torch.equal(model(x)["1"], before["1"]) and torch.equal(model(x)["2"], before["2"])
    reports[0].undo(), reports[1].undo()
    assert as_it_was(model) and all(torch.equal(y, before[key]) for key, y in model(x).items())


@pytest.mark.parametrize("make", [FPN, Detector])
def test_a_module_that_adds_changes_no_bit(make):
    model, x = make().eval(), torch.randn(2, 3, 16, 24)
    before = model(x)
    reports = [plug.fuse(model, i, Sum, example=x) for i in (0, 1)]
    assert all(report.change == 0 for report in reports)
    sums = [m for m in model.modules() if isinstance(m, Sum)]
    for m in sums:
        m.calls = 0
    assert all(map(torch.equal, tensors(model(x)), tensors(before))) and [m.calls for m in sums] == [1, 1]


def test_what_is_written_into_is_written_into(x):
    """`y.add_(w)` gives nothing back to be used: the module's output has to be where y was."""
    model = Held()
    before = model(x)
    assert [m.name for m in plug.merges(model, x)] == [":add0", ":add1"]
    for i in (0, 1):
        assert plug.fuse(model, i, Sum, example=x).change == 0
    assert torch.equal(model(x), before)
    plug.remove(model)
    plug.fuse(model, 0, lambda channels: nn.Bilinear(10, 10, 10), example=x)
    a, w = model.a(x), model.b.site(x)
    torch.testing.assert_close(model(x), model.b.module(a, w) + w)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_shortcuts_of_a_resnet(resnet, x):
    """Its sums are written into, and one ReLU, which works in place, comes before and after each."""
    resnet.eval()
    before = resnet(x)
    for i in range(4):
        assert plug.fuse(resnet, i, Sum, example=x).change == 0
    assert torch.equal(resnet(x), before)
    assert [row.site for row in plug.inserted(resnet, x)] == [f"layer{i}.{j}:add0" for i in (1, 2) for j in (0, 1)]
    resnet.train()(x).sum().backward()
    plug.remove(resnet)
    resnet.eval()
    expected = copied(resnet)
    plug.fuse(resnet, "layer2.1:add0", "gated", example=x)
    block = expected.layer2[1]
    block.gated = resnet.layer2[1].bn3.gated

    def forward(x):
        y = block.relu(block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x))))))
        return block.relu(block.gated(block.bn3(block.conv3(y)), x))

    block.forward = forward
    torch.testing.assert_close(resnet(x), expected(x))


# ---- which of several ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(5))
def test_each_of_several_merges_after_a_layer_that_is_called_often(index):
    model, x = Shared().eval(), torch.randn(2, 3, 16, 16)
    plug.fuse(model, index, "gated", example=x)
    (gated,) = [m for m in model.modules() if type(m) is attn_lib.entry("gated").cls]

    def add(i, a, b):
        return gated(a, b) if i == index else a + b

    def cat(i, a, b):
        return torch.cat((gated(a, b) if i == index else a, b), 1)

    a = model.conv(x)
    up = nn.Upsample(scale_factor=2)
    b, c = F.avg_pool2d(a, 2), F.avg_pool2d(a, 4)
    y = up(add(0, up(F.avg_pool2d(c, 2)), c))
    y = up(model.mix1(cat(2, add(1, y, b), b)))
    torch.testing.assert_close(model(x), model.mix2(cat(4, add(3, y, a), a)))


class Chain(nn.Module):
    """Three additions after one layer; what they make is written into."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        y = F.relu_(a + b)
        y = y + a.mean((2, 3), keepdim=True)  # no merge of maps, but counted on the way
        return F.relu_(torch.add(y + b, a))


@pytest.mark.parametrize("index", range(3))
def test_each_of_several_merges_of_a_kind_after_one_call(index, x):
    model = Chain()
    assert len(plug.merges(model, x)) == 3
    plug.fuse(model, index, "gated", example=x)
    gated = model.b.gated

    def add(i, a, b):
        return gated(a, b) if i == index else a + b

    a, b = model.a(x), model.b.site(x)
    y = F.relu(add(0, a, b)) + a.mean((2, 3), keepdim=True)
    torch.testing.assert_close(model(x), F.relu(add(2, add(1, y, b), a)))


def test_what_the_network_writes_into_is_a_copy_where_the_module_needs_it(x):
    class Product(nn.Module):
        def forward(self, a, b):
            return torch.sigmoid(a * b)  # whose backward pass reads what it returned

    model = Chain()
    plug.fuse(model, 0, lambda channels: Product(), example=x)
    model(x).sum().backward()
    assert model.b._spot.copies and all(p.grad.isfinite().all() for p in model.parameters())
    plug.remove(model)
    plug.fuse(model, 0, Sum, example=x)
    assert not model.b._spot.copies, "copies where it must, and only there"


def test_all_of_them_and_out_again_in_any_order():
    model, x = Shared().eval(), torch.randn(2, 3, 16, 16)
    before, keys = model(x), snapshot(model)
    reports = [plug.fuse(model, i, "gated", example=x) for i in (3, 0, 4, 1, 2)]
    assert [m.module for m in plug.merges(model, x)] == [r.sites[0].name for r in sorted(
        reports, key=lambda r: [":add0", ":add1", ":cat0", ":add2", ":cat1"].index(r.sites[0].path))]
    assert [row.calls for row in plug.inserted(model, x)] == [1] * 5
    for i in (1, 0, 4, 2, 3):
        reports[i].check(example=x)
        reports[i].undo()
    assert as_it_was(model) and torch.equal(model(x), before)
    assert_same_state(model, keys)


def test_a_block_that_is_called_twice(x):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), DecoderBlock(8, 8, 8), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            y = self.stem(x)
            y = self.a(F.avg_pool2d(y, 2), y)
            return self.a(F.avg_pool2d(y, 2), y)

    model = Twice()
    report = plug.fuse(model, "a:cat0", "gated", example=x)
    assert report.sites[0].calls == 2 and [row.calls for row in plug.inserted(model, x)] == [2]
    report.check(example=x)


def test_merges_within_merges(resnet, x):
    """A network that adds what its blocks, which add, return: each has a pass of its own."""
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner, self.last = resnet.stem, resnet.layer1, nn.Conv2d(32, 32, 1)

        def forward(self, x):
            y = self.inner(self.stem(x))
            return self.last(y) + y

    model = Outer().eval()
    before = model(x)
    assert [m.name for m in plug.merges(model, x)] == ["inner.0:add0", "inner.1:add0", ":add0"]
    reports = [plug.fuse(model, name, Sum, example=x) for name in (":add0", "inner.1:add0", "inner.0:add0")]
    sums = [model.get_submodule(report.sites[0].name) for report in reports]
    for m in sums:
        m.calls = 0
    assert torch.equal(model(x), before) and [m.calls for m in sums] == [1, 1, 1]
    reports[0].undo()
    assert torch.equal(model(x), before) and [m.calls for m in sums] == [1, 2, 2]


# ---- among other insertions ------------------------------------------------------------------------------------------


def test_what_is_inserted_later_at_the_same_place_comes_before_the_merge(unet, x):
    """CBAM and CCNet add and concatenate themselves; none of that is taken for the network's merge."""
    before = unet(x)
    reports = [plug.fuse(unet, 0, "gated", example=x)]
    expected = copied(unet)
    reports += [plug.insert(unet, "up1", "cbam", example=x, reduction=4),
                plug.insert(unet, "down1.1", "ccnet", example=x),
                plug.fuse(unet, "up1", "gated", skip="down1.1", example=x)]
    assert len({key for key in unet.state_dict() if "gated" in key}) == 6
    assert [row.path for row in plug.inserted(unet)] == ["down1.1.ccnet", "up1.cbam", "up1.gated_", "up1.gated"]
    u1, d1 = ends(expected, x)
    norm = expected.down1[1](expected.down1[0](x))
    cbam, inner, gated = unet.up1.cbam, unet.up1.gated_, unet.up1.gated
    u1 = inner(cbam(u1), norm)
    torch.testing.assert_close(unet(x), unet.head(unet.merge1(torch.cat((gated(u1, d1), d1), 1))))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copied(unet))
    torch.testing.assert_close(converted(x), unet(x))
    assert [row.calls for row in plug.inserted(converted, x)] == [1] * 4
    for i in (0, 2, 3, 1):
        reports[i].check(example=x)
        reports[i].undo()
    assert torch.equal(unet(x), before) and as_it_was(unet)


def test_the_place_before_a_merge_can_be_replaced(unet, x):
    plug.fuse(unet, 0, "gated", example=x)
    report = plug.replace(unet, "up1", lambda up: copy.deepcopy(up), example=x)
    assert [(row.kind, row.path, row.calls) for row in plug.inserted(unet, x)] == [
        ("fuse", "up1.gated", 1), ("replace", "up1", 1)]
    report.undo()


def test_an_owner_is_not_replaced(x):
    model = Decoded()
    plug.fuse(model, 0, "gated", example=x)
    for pattern in ("decoder.0", "decoder"):
        with pytest.raises(ValueError, match=f"site '{pattern}' cannot be replaced: that would lose what stands for a "
                                             r"merge in it; undo\(\) that first"):
            plug.replace(model, pattern, lambda m: copy.deepcopy(m), example=x)


# ---- a network like any other ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [copied, pickled])
def test_a_copy_has_a_scope_of_its_own(unet, x, make):
    before = unet(x)
    report = plug.fuse(unet, 0, "gated", example=x)
    expected = unet(x)
    other = make(unet)
    assert isinstance(other, UNet) and vars(other)[SCOPE] is other.up1._scope is not vars(unet)[SCOPE]
    assert torch.equal(other(x), expected)
    report.undo()
    assert torch.equal(other(x), expected) and torch.equal(unet(x), before)
    again = make(other)
    report.check(again, example=x)
    assert plug.remove(other) == ["up1.gated"]
    assert torch.equal(other(x), before) and as_it_was(other) and type(other) is UNet
    assert torch.equal(again(x), expected)


def test_within_another_network_names_have_its_name_before_them(unet, x):
    report = plug.fuse(unet, 0, "gated", example=x)
    model = nn.Sequential(unet)
    assert [(row.site, row.path) for row in plug.inserted(model)] == [("0:cat0", "0.up1.gated")]
    report.check(model, example=x)
    assert listed(model, x) == [(0, "0:cat0", ("0.up1", "0.down1"), "0.up1.gated")]


def test_checkpoints_both_ways(unet, x):
    plain = snapshot(unet)
    plug.fuse(unet, 0, "gated", example=x)
    other = UNet()
    plug.fuse(other, 0, "gated", example=x)
    assert other.load_state_dict(unet.state_dict()) == ([], [])
    assert torch.equal(evaluate(other, x), evaluate(unet, x))
    assert other.load_state_dict(plain, strict=False).unexpected_keys == []


@pytest.mark.parametrize("make", [UNet, FPN, Decoded, Held])
def test_compiles_and_exports(make):
    model, x = make().eval(), torch.randn(2, 3, 16, 24)
    for i in range(len(plug.merges(model, x))):
        plug.fuse(model, i, "gated", example=x)
    expected = model(x)
    torch.compiler.reset()
    recorded = [torch.compile(model, fullgraph=True, backend="eager"), torch.export.export(model, (x,)).module(),
                torch.export.export(model, (x,), strict=True).module(), torch.jit.trace(model, (x,), strict=False)]
    for record in recorded:
        torch.testing.assert_close(record(x), expected)
    assert vars(next(m for m in model.modules() if SCOPE in vars(m)))[SCOPE]._passes == {}


def test_torch_fx_records_concatenations_and_refuses_additions(unet, x):
    plug.fuse(unet, 0, "gated", example=x)
    recorded = torch.fx.symbolic_trace(unet)
    torch.testing.assert_close(recorded(x), unet(x))
    assert plug.inserted(recorded) == []
    with pytest.raises(ValueError, match=r"':cat0' is written by a UNet that was recorded"):
        plug.fuse(recorded, ":cat0", "gated", example=x)
    fpn = FPN()
    plug.fuse(fpn, 1, "gated", example=torch.randn(2, 3, 16, 24))
    with pytest.raises(RuntimeError, match=r"torch.fx cannot record 'add1', for which a GatedFusion stands"):
        torch.fx.symbolic_trace(fpn)


def test_everything_learns(unet, x):
    plug.fuse(unet, 0, "gated", example=x)
    unet.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())


def test_a_trace_records_the_new_module(unet, x):
    plug.fuse(unet, 0, "gated", example=x)
    with attn_lib.trace() as t:
        unet(x)
    u1, d1 = ends(unet, x)
    torch.testing.assert_close(t["H"], unet.up1.gated(u1, d1))


def test_threads_do_not_see_each_other(unet):
    inputs = [torch.randn(1, 3, 8, 12) for _ in range(4)]
    plug.fuse(unet, 0, "gated", example=inputs[0])
    with torch.no_grad():
        expected = [unet(x) for x in inputs]
    together = threading.Barrier(4)

    def wait(module, args, y):  # until all are before the merge
        together.wait(60)

    unet.up1.register_forward_hook(wait)
    for y, e in zip(at_once(unet, inputs), expected, strict=True):
        torch.testing.assert_close(y, e)


def test_a_pass_that_is_cut_off_leaves_nothing(unet, x):
    plug.fuse(unet, 0, "gated", example=x)
    expected = unet(x)

    def cut(module, args, y):
        raise KeyboardInterrupt

    handle = unet.up1.register_forward_hook(cut)  # between the announcement and the merge
    with pytest.raises(KeyboardInterrupt):
        unet(x)
    handle.remove()
    assert torch.overrides._get_current_function_mode_stack() == [] and vars(unet)[SCOPE]._passes == {}
    assert torch.equal(unet(x), expected)


# ---- what cannot be, or goes past ------------------------------------------------------------------------------------


def test_parts_alone_meet_an_error(unet, x):
    plug.fuse(unet, 0, "gated", example=x)
    with pytest.raises(RuntimeError, match=r"a GatedFusion stands for 'cat0' within a forward pass of the module that "
                                           "writes it, alone: call that module"):
        UNet.forward(unet, x)
    model = Decoded()
    plug.fuse(model, 0, "gated", example=x)
    block = model.decoder[0].site
    block.forward = lambda x, skip: DecoderBlock.forward(block, x, skip)
    with pytest.raises(RuntimeError, match="a GatedFusion stands for 'cat0' within a forward pass"):
        model(x)
    assert block.__dict__.pop("forward") and vars(block)[SCOPE]._expected == {}
    model(x)


class Saving(UNet):
    """Computes its merge again in the backward pass, or the whole decoder."""

    def __init__(self, reentrant: bool):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x):
        d1 = self.down1(x)
        u1 = self.up1(self.down2(F.max_pool2d(d1, 2)))
        merge = lambda u, d: self.head(self.merge1(torch.cat((u, d), 1)))  # noqa: E731
        return checkpoint(merge, u1, d1, use_reentrant=self.reentrant)


@pytest.mark.parametrize(("reentrant", "match"), [(True, "'cat0' is computed without gradients .* use_reentrant=True"),
                                                  (False, "A different number of tensors was saved|metadata")])
def test_a_merge_that_the_backward_pass_computes_again_meets_an_error(x, reentrant, match):
    model = Saving(reentrant)
    plug.fuse(model, 0, "gated", example=x)
    with pytest.raises(Exception, match=match):
        model(x).sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_an_owner_that_the_backward_pass_computes_again_is_the_same(x, reentrant):
    def gradients(model):
        model.zero_grad()
        model(x).sum().backward()
        return [p.grad for p in model.parameters()]

    model = Decoded()
    plug.fuse(model, 0, "gated", example=x)
    expected = gradients(model)
    decoder = model.decoder[0]
    model.decoder[0] = nn.Module()
    model.decoder[0].inner = decoder
    model.decoder[0].forward = lambda *maps: checkpoint(decoder, *maps, use_reentrant=reentrant)
    for a, b in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_another_way_in_training_meets_an_error(x):
    class Otherwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.way = "merge"

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return {"merge": lambda: a + b, "none": lambda: a, "wider": lambda: x + x + b[:, :3]}[self.way]()

    model = Otherwise()
    plug.fuse(model, 0, "gated", example=x)
    model.way = "none"
    with pytest.raises(RuntimeError, match=r"'add0' did not come where the example of plug.fuse had it, and so"):
        model(x)
    model.way = "wider"
    with pytest.raises(RuntimeError, match=r"'add0' merges .*, not maps of 4, 4 channels as in the example"):
        model(x)


def test_what_does_not_fit_is_named(unet, x):
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 3, 1)

        def forward(self, a, b):
            return self.conv(torch.cat((a, b), 1))

    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.a = DecoderBlock(4, 4, 4), nn.Conv2d(3, 4, 1)
            self.block.conv = nn.Identity()

        def forward(self, x):
            y = self.a(x)
            return self.block(F.avg_pool2d(y, 2), y), self.block(F.avg_pool2d(y, 2), x)

    def refused(match, site=0, module="gated", model=unet, example=x, **options):
        before, kinds = [name for name, _ in model.named_modules()], [type(m) for m in model.modules()]
        with pytest.raises(ValueError, match=match):
            plug.fuse(model, site, module, example=example, **options)
        assert [name for name, _ in model.named_modules()] == before
        assert [type(m) for m in model.modules()] == kinds and as_it_was(model)

    refused(r"site=1 is no merge of the network; there are 0 ':cat0'", site=1)
    refused(r"site=':add0' is no merge of the network; there are 0 ':cat0'", site=":add0")
    refused(r"site=True is no merge", site=True)
    refused(r"site=0 is no merge of the network; there are none", model=nn.Conv2d(3, 3, 1))
    refused("skip='down1' must be left out: the merge ':cat0' has its inputs", site=":cat0", skip="down1")
    refused(r"skip= must name what the output of site='up1' .* plug.merges\(model, example\) lists", site="up1")
    refused("example= must be an input of the network", example=None)
    refused("takes one input, .*plug.insert puts it after", module="se")
    refused(r"site ':cat0': 2 inputs were given; there must be scales=4", module="msf")
    refused(r"merge ':cat0' makes shape \(2, 16, 12, 10\); the new module's shape \(2, 5, 12, 10\) does not fit there: "
            r"it must be that, or that of its first input, \(2, 8, 12, 10\)",
            module=lambda channels: type("Five", (Sum,), {"forward": lambda self, a, b: a[:, :5]})(channels))
    refused(r"merge ':add0' makes shape .*; a tuple does not fit there: it must be that$", model=FPN(),
            example=torch.randn(1, 3, 16, 16), module=lambda channels: type(
                "Two", (Sum,), {"forward": lambda self, a, b: (a, b)})(channels))
    refused("merge ':cat0' comes before any sub-module of the network is called, and there is no place", model=First(),
            example=(x, x))
    refused("merge 'block:cat0' happens 2 times in a forward pass, each time otherwise", site="block:cat0",
            model=Changing(), example=x)
    held = nn.Conv2d(3, 3, 1)

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.conv = [held], held

        def forward(self, x):
            y = self.layers[0](x)
            return y + x

    refused("merge ':add0' happens 1 times .* runs 0 times: 'conv' is also held elsewhere", model=Hidden())
    plug.fuse(unet, 0, "gated", example=x)
    with pytest.raises(ValueError, match=r"merge ':cat0' is replaced by 'up1.gated' already; undo\(\) that first"):
        plug.fuse(unet, 0, "gated", example=x)


def test_an_owner_of_another_class_since_is_not_undone(unet, x):
    report = plug.fuse(unet, 0, "gated", example=x)
    cls = type(unet)
    unet.__class__ = type("Sharded", (cls,), {})  # as fully_shard does
    report.check(example=x)
    with pytest.raises(ValueError, match="':cat0' was changed since"):
        report.undo()
    with pytest.raises(ValueError, match="whose merge was replaced, is of another class since"):
        plug.remove(unet)


def test_a_network_of_another_forward_is_refused(resnet, x):
    block = resnet.layer1[0]
    block.forward = lambda x, forward=block.forward: forward(x)
    with pytest.raises(ValueError, match=r"'layer1.0:add0' is written by a Bottleneck that was recorded, or given an"):
        plug.fuse(resnet, 0, "gated", example=x)
    assert isinstance(resnet, ResNet) and not plug.inserted(resnet)
