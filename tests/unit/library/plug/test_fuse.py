"""Two places of a network become one: module(site(x), skip)."""

import copy
import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn_lib import plug
from attn_lib.plug.fused import Fused, Handover, Offered
from tests.unit.library.plug.networks import (
    FPN,
    UNet,
    assert_same_state,
    at_once,
    copied,
    evaluate,
    pickled,
    snapshot,
)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 8, 12)


def by_hand(unet: UNet, x: Tensor) -> Tensor:
    """The U-Net with gated fusion after up1, without any wrapper in use."""
    up1 = unet.up1
    d1 = x
    for layer in unet.down1:
        d1 = layer.site(d1) if isinstance(layer, Offered) else layer(d1)
    u1 = up1._inserted(up1.site(unet.down2(F.max_pool2d(d1, 2))), d1)
    return unet.head(unet.merge1(torch.cat((u1, d1), 1)))


def test_a_u_net(unet, x):
    before, keys = unet(x), snapshot(unet)
    report = plug.fuse(unet, "up1", "gated", skip="down1", example=x)
    torch.testing.assert_close(unet(x), by_hand(unet, x))
    assert report.kind == "fuse" and report.skips == ("down1.2",) and report.change > 0
    assert [(s.path, s.channels, s.shape, s.calls, s.name) for s in report.sites] == [
        ("up1", 8, (2, 8, 8, 12), 1, "up1.gated")]
    assert str(report).startswith("gated: fuses 1 place with down1.2\n")
    assert [key for key in unet.state_dict() if key not in keys] == [
        "up1.gated.Wz1.weight", "up1.gated.Wz2.weight", "up1.gated.Wz2.bias"]
    assert [(r.kind, r.path, r.calls, r.site_calls) for r in plug.inserted(unet, x)] == [("fuse", "up1.gated", 1, 1)]
    report.check(example=x)
    report.undo()
    report.undo()
    assert torch.equal(unet(x), before)
    assert_same_state(unet, keys)
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._forward_hooks_always_called for m in unet.modules())
    assert not any(isinstance(m, (Fused, Offered)) for m in unet.modules())


def test_a_gate_that_lets_the_site_through_changes_nothing(unet, x):
    """At b_z → ∞ gated fusion is its first input, which has to be the site's."""
    before = unet(x)
    plug.fuse(unet, "up1", "gated", skip="down1", example=x)
    with torch.no_grad():
        for p in unet.up1.gated.parameters():
            p.zero_()
        unet.up1.gated.Wz2.bias.fill_(torch.inf)
    assert torch.equal(unet(x), before)
    with torch.no_grad():
        unet.up1.gated.Wz2.bias.fill_(-torch.inf)  # and at −∞ its second
    d1 = unet.down1(x)
    torch.testing.assert_close(unet(x), unet.head(unet.merge1(torch.cat((d1, d1), 1))))


def test_an_fpn_of_several_inputs():
    fpn, x = FPN().eval(), torch.randn(2, 3, 16, 24)
    before = fpn(x)
    report = plug.fuse(fpn, "laterals.0", "msf", skip="ups.0", example=x, scales=2)
    up = F.interpolate(before[1], scale_factor=2)
    lateral = fpn.laterals[0].msf(fpn.laterals[0].site(fpn.stages[0](x)), up)
    torch.testing.assert_close(fpn(x)[2], up + lateral)
    assert [torch.equal(a, b) for a, b in zip(fpn(x), before, strict=True)] == [True, True, False]
    assert report.tensor == 2
    report.undo()
    assert all(torch.equal(a, b) for a, b in zip(fpn(x), before, strict=True))

    def merge(channels):  # somebody's module of three inputs; the last at half the size
        class Merge(nn.Module):
            def __init__(self):
                super().__init__()
                self.project = nn.Conv2d(3 * channels, channels, 1)

            def forward(self, a, b, c):
                return self.project(torch.cat((a, b, F.interpolate(c, scale_factor=2)), 1))

        return Merge()

    plug.fuse(fpn, "laterals.0", merge, skip=("ups.0", "laterals.1"), example=x)
    project = fpn.laterals[0].merge.project
    top, middle, bottom = fpn(x)
    maps = [fpn.stages[0](x)]
    maps.append(fpn.stages[1](maps[0]))
    lateral = project(torch.cat((fpn.laterals[0].site(maps[0]), F.interpolate(middle, scale_factor=2),
                                 F.interpolate(fpn.laterals[1].site(maps[1]), scale_factor=2)), 1))
    torch.testing.assert_close(bottom, F.interpolate(middle, scale_factor=2) + lateral)
    assert torch.equal(top, before[0]) and torch.equal(middle, before[1])


def test_both_places_learn(unet, x):
    plug.fuse(unet, "up1", "gated", skip="down1", example=x)
    unet.train()
    unet(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())


@pytest.mark.parametrize("skip", ["down1.1", "down1.0"])
def test_what_the_network_writes_over_is_handed_over_as_it_was(unet, x, skip):
    """The ReLU behind the norm works in place: what it leaves is not the norm's output."""
    seen = {}
    plug.fuse(unet, "up1", "gated", skip=skip, example=x)
    unet.get_submodule(skip).site.register_forward_hook(lambda m, a, y: seen.update(offered=y.clone()))
    unet.up1.gated.register_forward_hook(lambda m, a, y: seen.update(taken=a[1].clone()))
    unet(x)
    assert torch.equal(seen["taken"], seen["offered"])
    unet.train()(x).square().sum().backward()
    wrapper = unet.get_submodule(skip)
    assert wrapper._copies == (skip == "down1.1"), "copies where it must, and only there"


# Nothing is kept, nothing is mixed up.

def handover(model: nn.Module) -> Handover:
    return next(m._handover for m in model.modules() if isinstance(m, Fused))


def test_nothing_is_kept_after_a_pass(unet, x):
    plug.fuse(unet, "up1", "gated", skip="down1", example=x)
    held = []
    unet.down1.register_forward_hook(lambda m, a, y: held.append(weakref.ref(y)))
    with torch.no_grad():
        unet(x)
    gc.collect()
    assert held[-1]() is None and handover(unet)._passes == {}
    unet.merge1.register_forward_pre_hook(lambda m, a: 1 / 0)
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        unet(x)
    gc.collect()
    assert held[-1]() is None and handover(unet)._passes == {}


def test_a_pass_within_a_pass(x):
    class Pyramid(UNet):
        """Calls itself, at half the size, between its skip and its site."""

        def forward(self, x):
            d1 = self.down1(x)
            if x.shape[-1] > 6:
                d1 = d1 + F.interpolate(self(F.avg_pool2d(x, 2)), scale_factor=2).mean(1, keepdim=True)
            u1 = self.up1(self.down2(F.max_pool2d(d1, 2)))
            return self.head(self.merge1(torch.cat((u1, d1), 1)))

    small = x[:, :, :4, :6]
    model = Pyramid().eval()
    plug.fuse(model, "up1", "gated", skip="down1", example=small)
    taken = []
    model.up1.gated.register_forward_hook(lambda m, a, y: taken.append((a[0].shape, a[1].shape)))
    model(x)
    assert [a == b for a, b in taken] == [True, True] and len(set(taken)) == 2


def test_threads_do_not_see_each_other(unet):
    inputs = [torch.randn(1, 3, 8, 12) for _ in range(4)]
    plug.fuse(unet, "up1", "gated", skip="down1", example=inputs[0])
    with torch.no_grad():
        expected = [unet(x) for x in inputs]
    together = threading.Barrier(4)

    def wait(module, args):  # until all have offered, and none has taken
        together.wait(60)

    unet.down2.register_forward_pre_hook(wait)
    for y, e in zip(at_once(unet, inputs), expected, strict=True):
        torch.testing.assert_close(y, e)


class Twice(nn.Module):
    """The same layers for two images, in one of several orders."""

    def __init__(self, order: str):
        super().__init__()
        self.a, self.b, self.order = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), order

    def forward(self, x: Tensor) -> Tensor:
        calls = {"a": self.a, "b": self.b}
        return torch.stack([calls[name](x * (i + 1)) for i, name in enumerate(self.order)])


@pytest.mark.parametrize("order", ["ab", "abab", "abb"])
def test_several_calls(x, order):
    model = Twice(order)
    plug.fuse(model, "b", "gated", skip="a", example=x)
    y = model(x)
    last = None
    for i, name in enumerate(order):
        z = x * (i + 1)
        last = model.a.site(z) if name == "a" else last
        torch.testing.assert_close(y[i], last if name == "a" else model.b.gated(model.b.site(z), last))


@pytest.mark.parametrize(("order", "match"), [
    ("ba", r"skip='a' is called after site='b' .* exchange"),
    ("aabb", r"skip='a' is called 2 times .* site='b' 2 times, in the order skip, skip, site, site"),
    ("aab", "skip='a' is called 2 times"),
    ("abba", "skip='a' is called 2 times"),
])
def test_an_order_that_cannot_be_is_refused(x, order, match):
    model = Twice(order)
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=match):
        plug.fuse(model, "b", "gated", skip="a", example=x)
    assert list(model.state_dict()) == keys and not model._forward_hooks


def test_what_does_not_fit_is_named(unet, x):
    def refused(match, site="up1", module="gated", skip="down1", example=x, **options):
        before = [name for name, _ in unet.named_modules()]
        with pytest.raises(ValueError, match=match):
            plug.fuse(unet, site, module, skip=skip, example=example, **options)
        assert [name for name, _ in unet.named_modules()] == before
        assert not unet._forward_hooks and not unet._forward_pre_hooks

    refused(r"site 'up1': H_S \(2, 8, 8, 12\) and H_T \(2, 16, 4, 6\) must have the same shape|site 'up1': H_T",
            skip="down2")
    refused(r"skip='down\?' must name one sub-module; it matches down1.2, down2.2", skip="down?")
    refused(r"pattern='down9' matches no sub-module", skip="down9")
    refused("takes one input, .*plug.insert puts it after", module="se")
    refused("other than site='up1'", skip="up1")
    refused("at least one sub-module", skip=())
    refused("example= must be an input of the network", example=None)
    refused("there must be scales=4", module="msf")
    refused("no_such=1 is no option of gated", no_such=1)
    with pytest.raises(ValueError, match=r"takes several inputs, .*plug.fuse gives it"):
        plug.insert(unet, "up1", "gated", example=x)


def test_parts_alone_meet_an_error_not_an_old_tensor(unet, x):
    plug.fuse(unet, "up1", "gated", skip="down1", example=x)
    unet(x)
    d1 = unet.down1(x)
    with pytest.raises(RuntimeError, match=r"'down1\.2' is handed over within a forward pass of the whole network"):
        unet.up1(unet.down2(F.max_pool2d(d1, 2)))
    unet.down1[2] = nn.ReLU()
    with pytest.raises(RuntimeError, match=r"'down1\.2' was not called in this forward pass, or something has put"):
        unet(x)


def test_what_a_backward_pass_computes_again_meets_an_error(x):
    class Saving(UNet):
        def forward(self, x):
            d1 = self.down1(x)
            u1 = checkpoint(self.up1, self.down2(F.max_pool2d(d1, 2)), use_reentrant=False)
            return self.head(self.merge1(torch.cat((u1, d1), 1)))

    model = Saving()
    plug.fuse(model, "up1", "gated", skip="down1", example=x)
    y = model(x)
    with pytest.raises(RuntimeError, match="checkpointed activations cannot be computed again"):
        y.sum().backward()


def test_an_offered_layer_is_neither_folded_nor_replaced(unet, x):
    plug.fuse(unet, "up1", "gated", skip="down1.1", example=x)
    with pytest.raises(AttributeError, match="would lose or misplace the offer of its output to a fusion"):
        unet.down1[1].running_mean  # noqa: B018
    with pytest.raises(ValueError, match=r"site 'down1.1' .* would lose the offer of its output to a fusion; undo"):
        plug.replace(unet, "down1.1", lambda bn: nn.Identity(), example=x)


# A network like any other

def test_a_copy_made_within_a_pass_holds_nothing(unet, x):
    plug.fuse(unet, "up1", "gated", skip="down1", example=x)
    copies = []
    handle = unet.down2.register_forward_pre_hook(lambda m, a: copies.append(copy.deepcopy(handover(unet))))
    unet(x)
    handle.remove()
    assert copies[0]._passes == {}


@pytest.mark.parametrize("make", [copied, pickled])
def test_a_copy_has_a_handover_of_its_own(unet, x, make):
    before = unet(x)
    report = plug.fuse(unet, "up1", "gated", skip="down1", example=x)
    expected = unet(x)
    other = make(unet)
    offered = next(m for m in other.modules() if isinstance(m, Offered))
    assert handover(other) is offered._handover is not handover(unet)
    assert torch.equal(other(x), expected)
    report.undo()
    assert torch.equal(other(x), expected) and torch.equal(unet(x), before)
    assert plug.remove(other) == ["up1.gated"]
    assert torch.equal(other(x), before) and not other._forward_hooks and not other._forward_pre_hooks


def test_checkpoints_both_ways(unet, x):
    plain = snapshot(unet)
    plug.fuse(unet, "up1", "gated", skip="down1.1", example=x)
    other = UNet()
    plug.fuse(other, "up1", "gated", skip="down1.1", example=x)
    assert other.load_state_dict(unet.state_dict()) == ([], [])
    assert torch.equal(evaluate(other, x), evaluate(unet, x))
    assert other.load_state_dict(plain, strict=False).unexpected_keys == []


def test_with_insertions_at_the_same_places(unet, x):
    before = unet(x)
    reports = [plug.insert(unet, "down1.1", "se", example=x, reduction=2),
               plug.fuse(unet, "up1", "gated", skip="down1.1", example=x),
               plug.insert(unet, "down1.1", "ccnet", example=x, reduction=2),
               plug.insert(unet, "up1", "eca", example=x)]
    assert sorted(row.path for row in plug.inserted(unet)) == [
        "down1.1.ccnet", "down1.1.se", "up1.eca", "up1.gated"]
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(unet))
    assert [row.calls for row in plug.inserted(converted, x)] == [1] * 4
    torch.testing.assert_close(converted(x), unet(x))
    for i in (1, 3, 0, 2):
        reports[i].undo()
    assert torch.equal(unet(x), before)


def test_compiles_and_exports(unet, x):
    plug.fuse(unet, "up1", "gated", skip="down1", example=x)
    expected = unet(x)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(unet, fullgraph=True, backend="eager")(x), expected)
    assert handover(unet)._passes == {}
    torch.testing.assert_close(torch.export.export(unet, (x,)).module()(x), expected)
    torch.testing.assert_close(torch.jit.trace(unet, (x,))(x), expected)
    assert handover(unet)._passes == {}


def test_recorded_by_torch_fx(unet, x):
    def merge(channels):
        return nn.Bilinear(12, 12, 12)  # a module of two inputs that the tracer takes as it is

    plug.fuse(unet, "up1", merge, skip="down1", example=x)
    torch.testing.assert_close(torch.fx.symbolic_trace(unet)(x), unet(x))
    assert handover(unet)._passes == {}
