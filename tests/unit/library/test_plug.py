"""attn_lib.plug: into somebody else's network and out again, nothing broken on the way."""

import copy
import io
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import attn_lib
from attn_lib import plug
from attn_lib.channel import SEAttention
from attn_lib.plug.sites import find
from tests.unit.reference import reference


class Bottleneck(nn.Module):
    """As in a ResNet, with its traps: one in-place ReLU used three times, and an in-place addition."""

    def __init__(self, channels: int, width: int, out: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += identity
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(Bottleneck(16, 8, 32), Bottleneck(32, 8, 32))
        self.layer2 = nn.Sequential(Bottleneck(32, 8, 48, stride=2), Bottleneck(48, 8, 48))
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        return self.head(x.mean((2, 3)))


class Pair(NamedTuple):
    first: Tensor
    second: float = 0.0


class Named(nn.Module):
    def forward(self, x: Tensor) -> Pair:
        return Pair(x)


@pytest.fixture
def resnet() -> ResNet:
    """A network whose running statistics and batch-norm weights are those of training, not 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet()
        for p in model.parameters():
            if p.ndim == 1:
                nn.init.normal_(p, 1.0, 0.2)
        for _ in range(3):
            model(torch.randn(4, 3, 12, 10))
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(1))


def evaluate(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


class TestFind:
    @pytest.mark.parametrize(("pattern", "expected"), [
        ("layer1.*", ["layer1.0", "layer1.1"]),
        ("layer[12].*.bn3", ["layer1.0.bn3", "layer1.1.bn3", "layer2.0.bn3", "layer2.1.bn3"]),
        ("**.bn3", ["layer1.0.bn3", "layer1.1.bn3", "layer2.0.bn3", "layer2.1.bn3"]),
        ("*.bn3", None),
        ("layer?.0", ["layer1.0", "layer2.0"]),
        ("layer1.1.**.conv1", ["layer1.1.conv1"]),
        ("head", ["head"]),
        ("layer1.0.conv[!2]", ["layer1.0.conv1", "layer1.0.conv3"]),
    ])
    def test_a_star_stays_within_one_part(self, resnet, pattern, expected):
        if expected is None:
            with pytest.raises(ValueError, match="matches no sub-module"):
                find(resnet, pattern)
        else:
            assert list(find(resnet, pattern)) == expected

    def test_no_match_names_what_is_near(self, resnet):
        with pytest.raises(ValueError, match=r"pattern='layer1.0.bn4' matches no sub-module.*layer1\.0\.bn3"):
            find(resnet, "layer1.0.bn4")


class TestInsert:
    def test_keeps_every_key_weight_and_reference(self, resnet, x):
        before, bn3, weight = snapshot(resnet), resnet.layer1[0].bn3, resnet.layer1[0].conv1.weight
        report = plug.insert(resnet, "layer[12].*.bn3", "se", example=x, reduction=4)
        after = resnet.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())
        assert resnet.layer1[0].bn3 is bn3 and resnet.layer1[0].conv1.weight is weight
        assert set(after) - set(before) == {f"layer{i}.{j}.bn3.se.{w}.{p}" for i in (1, 2) for j in (0, 1)
                                            for w in ("W1", "W2") for p in ("weight", "bias")}
        assert [(s.path, s.channels, s.shape, s.calls) for s in report.sites] == [
            ("layer1.0.bn3", 32, (2, 32, 12, 10), 1), ("layer1.1.bn3", 32, (2, 32, 12, 10), 1),
            ("layer2.0.bn3", 48, (2, 48, 6, 5), 1), ("layer2.1.bn3", 48, (2, 48, 6, 5), 1)]
        assert resnet.load_state_dict(before, strict=False).unexpected_keys == []

    def test_computes_the_module_of_the_sites_output(self, resnet, x):
        """Against a block written out by hand."""
        plug.insert(resnet, "layer1.0.bn3", "se", example=x, reduction=4)
        block = copy.deepcopy(resnet.layer1[0]).eval()
        se = block.bn3.se
        z = torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(2))
        got = block(z)
        block.bn3._forward_hooks.clear()
        main = block.bn3(block.conv3(block.relu(block.bn2(block.conv2(block.relu(block.bn1(block.conv1(z))))))))
        assert torch.equal(got, torch.relu(se(main) + block.downsample(z)))

    def test_an_identity_changes_no_bit(self, resnet, x):
        before = evaluate(resnet, x)
        report = plug.insert(resnet, "layer[12].*.bn3", "ccnet", example=x)
        assert torch.equal(evaluate(resnet, x), before)
        assert report.identity and report.change == 0
        assert report.output == "unchanged, bit for bit"

    def test_a_gate_says_that_it_changes_the_output(self, resnet, x):
        before = evaluate(resnet, x)
        report = plug.insert(resnet, "layer1.1.bn3", "se", example=x)
        assert report.change == pytest.approx((evaluate(resnet, x) - before).abs().max().item())
        assert report.change > 0 and report.identity is False
        assert "se does not start as the identity" in report.output

    def test_a_gate_on_a_branch_that_starts_at_zero(self, resnet, x):
        """As in networks whose last batch norm of a block starts at zero: equal, but not because of the module."""
        nn.init.zeros_(resnet.layer1[1].bn3.weight)
        nn.init.zeros_(resnet.layer1[1].bn3.bias)
        report = plug.insert(resnet, "layer1.1.bn3", "se", example=x)
        assert report.change == 0 and "though se does not start as the identity" in report.output

    def test_a_broken_promise_of_identity_is_reported(self, resnet, x, monkeypatch):
        monkeypatch.setattr(nn.init, "zeros_", nn.init.ones_)
        entry = attn_lib.entry("se")
        broken = copy.copy(entry)
        object.__setattr__(broken, "identity_at_init", True)
        monkeypatch.setitem(attn_lib.catalog._ENTRIES, "se", broken)
        with pytest.warns(UserWarning, match="should start as the identity, but"):
            plug.insert(resnet, "layer1.1.bn3", "se", example=x)

    def test_probing_leaves_statistics_modes_and_random_state_alone(self, resnet, x):
        resnet.train()
        resnet.layer2.eval()
        resnet.add_module("drop", nn.Dropout())
        modes = {name: m.training for name, m in resnet.named_modules()}
        before, random = snapshot(resnet), torch.get_rng_state()
        plug.insert(resnet, "layer1.0.bn3", nn.BatchNorm2d, example=x)
        assert torch.equal(torch.get_rng_state(), random)
        report = plug.insert(resnet, "layer2.0.bn3", "se", example=x)
        assert {n: resnet.get_submodule(n).training for n in modes} == modes
        assert all(torch.equal(resnet.state_dict()[key], value) for key, value in before.items())
        assert report.sites and not resnet.layer2[0].bn3.se.training

    def test_takes_over_device_type_and_mode(self, resnet):
        resnet.double().eval()
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        plug.insert(resnet, "layer1.0.bn3", "se", example=x)
        with pytest.warns(UserWarning, match="already"):
            plug.insert(resnet, "layer1.1.bn3", "se")
        for i in (0, 1):
            se = resnet.layer1[i].bn3.se
            assert {p.dtype for p in se.parameters()} == {torch.float64} and not se.training
        assert evaluate(resnet, x).dtype == torch.float64

    def test_takes_over_the_memory_format(self, resnet, x):
        resnet.to(memory_format=torch.channels_last)
        plug.insert(resnet, "layer1.0.bn3", "ccnet", example=x.to(memory_format=torch.channels_last))
        weight = resnet.layer1[0].bn3.ccnet.WV.weight
        assert weight.is_contiguous(memory_format=torch.channels_last)

    def test_after_a_sequential_means_after_its_last_layer(self, resnet, x):
        length = len(resnet.layer1), len(resnet.stem)
        report = plug.insert(resnet, "layer1", "ccnet", example=x)
        assert report.sites[0].path == "layer1.1"
        assert (len(resnet.layer1), len(resnet.stem)) == length
        assert report.change == 0

    def test_accepts_a_class_and_a_function(self, resnet, x):
        plug.insert(resnet, "layer1.0.bn3", SEAttention, example=x, reduction=2)
        assert resnet.layer1[0].bn3.se.W1.out_features == 16

        def gate(channels):
            return nn.Conv2d(channels, channels, 1, groups=channels)

        report = plug.insert(resnet, "layer2.*.bn2", gate, example=x)
        assert [s.channels for s in report.sites] == [8, 8] and report.identity is None
        assert resnet.layer2[0].bn2.gate.in_channels == 8

    def test_without_an_example_reads_the_sites_attributes(self, resnet, x):
        report = plug.insert(resnet, "layer[12].*.bn3", "ccnet")
        assert [s.channels for s in report.sites] == [32, 32, 48, 48]
        assert report.flops is None and report.output == "not compared: there was no example"
        assert evaluate(resnet, x).shape == (2, 5)
        with pytest.raises(ValueError, match=r"site 'layer1.0' \(Bottleneck\) does not say how many channels"):
            plug.insert(resnet, "layer1.0", "se")

    def test_tokens(self):
        encoder = nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.Linear(10, 4))
        tokens = torch.randn(2, 7, 6)
        report = plug.insert(encoder, "1", lambda dim: nn.Linear(dim, dim), example=tokens)
        assert report.sites[0].channels == 10
        with pytest.raises(ValueError, match=r"site '0' returns shape \(2, 7, 10\); the module needs \(B, C, H, W\)"):
            plug.insert(encoder, "0", "se", example=tokens)

    def test_channels_last_networks_are_refused_not_misread(self):
        class Block(nn.Module):  # (B, H, W, C), as in Swin
            def __init__(self):
                super().__init__()
                self.norm, self.mlp = nn.LayerNorm(12), nn.Linear(12, 12)

            def forward(self, x):
                return x + self.mlp(self.norm(x))

        model = nn.Sequential(Block(), Block())
        with pytest.raises(ValueError, match=r"has 12 channels but returns shape \(2, 8, 8, 12\)"):
            plug.insert(model, "0", "se", example=torch.randn(2, 8, 8, 12))

    def test_gradients_reach_host_and_module_through_in_place_operations(self, resnet, x):
        def sigmoid(channels):  # autograd keeps its output, which the block then overwrites
            return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Sigmoid())

        plug.insert(resnet, "layer1.*.bn3", "se", example=x)
        plug.insert(resnet, "layer2.*.bn3", sigmoid, example=x)
        plug.insert(resnet, "layer2.0.bn1", nn.Identity, example=x)
        resnet.train()(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in resnet.parameters())

    def test_a_trace_shows_what_the_module_gave_not_what_was_written_over_it(self, resnet, x):
        plug.insert(resnet, "layer1.1.bn3", "se", example=x)
        resnet.eval()
        with attn_lib.trace(resnet) as t:
            resnet(x)
        assert t.names() == [f"layer1.1.bn3.se.{name}" for name in "zsy"]
        bn3 = {}
        resnet.layer1[1].bn3.register_forward_hook(lambda m, a, y: bn3.update(y=y.clone()), prepend=True)
        resnet(x)
        y = bn3["y"] * t["layer1.1.bn3.se.s"][:, :, None, None]
        assert torch.equal(t["layer1.1.bn3.se.y"], y)

    def test_a_module_shared_by_several_places(self, resnet, x):
        with pytest.raises(ValueError, match=r"is one module used 3 times, for shapes \(2, 8, 12, 10\), \(2, 32"):
            plug.insert(resnet, "layer1.0.relu", "se", example=x)

        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(4, 4, 1)

            def forward(self, x):
                return self.conv(self.conv(x))

        with pytest.warns(UserWarning, match="called 2 times"):
            report = plug.insert(Twice(), "conv", "ccnet", example=torch.randn(1, 4, 5, 5), reduction=2)
        assert report.sites[0].calls == 2

    def test_sites_that_cannot_take_a_module(self, resnet, x):
        before = snapshot(resnet)
        resnet.register_module("unused", nn.Conv2d(4, 4, 1))
        with pytest.raises(ValueError, match="site 'unused' is not called"):
            plug.insert(resnet, "unused", "se", example=x)
        del resnet.unused
        lstm = nn.Sequential(nn.LSTM(4, 4))
        with pytest.raises(ValueError, match="site '0' returns a tuple; it must return one tensor"):
            plug.insert(lstm, "0", "se", example=torch.randn(3, 2, 4))

        class Loop(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

            def forward(self, x):
                for child in self.children():
                    x = child(x)
                return x

        model = nn.Sequential(Loop(), nn.ReLU())
        with pytest.raises(ValueError, match="site '0' calls its own children"):
            plug.insert(model, "0", "ccnet", example=x, reduction=2)
        assert list(model[0]._modules) == ["a", "b"] and not model[0]._forward_hooks
        assert_same_state(resnet, before)

    def test_a_failure_at_one_site_changes_none(self, resnet, x):
        before, output = snapshot(resnet), evaluate(resnet, x)
        for options in (dict(reduction=40), dict(no_such=1), dict(channels=3)):
            with pytest.raises(ValueError, match=f"{next(iter(options))}"):
                plug.insert(resnet, "layer[12].*.bn3", "se", example=x, **options)
        with pytest.raises(ValueError, match=r"'head' returns shape \(2, 5\); the new module's shape \(2, 3\)"):
            plug.insert(resnet, "head", lambda c: nn.Linear(c, 3), example=x)
        assert_same_state(resnet, before)
        assert torch.equal(evaluate(resnet, x), output)

    def test_twice_at_the_same_site(self, resnet, x):
        report = plug.insert(resnet, "layer1.0.bn3", "se", example=x)
        with pytest.raises(ValueError, match=r"site 'layer1.0.bn3' has a SEAttention inserted already"), \
                warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plug.insert(resnet, "layer1.0.bn3", "se", example=x)
        plug.insert(resnet, "layer1.0.bn3", "ccnet", example=x)  # another one may follow
        report.undo()
        assert [key for key in resnet.state_dict() if ".se." in key] == []
        assert any(".ccnet." in key for key in resnet.state_dict())

    def test_warns_of_modules_that_are_there(self, resnet, x):
        plug.insert(resnet, "layer1.0.bn3", "se", example=x)
        with pytest.warns(UserWarning, match="holds 1 of se already, such as 'layer1.0.bn3.se'"):
            plug.insert(resnet, "layer2.0.bn3", "se", example=x)

        class SqueezeExcitation(nn.Identity):
            pass

        model = nn.Sequential(nn.Conv2d(3, 8, 1), SqueezeExcitation())
        with pytest.warns(UserWarning, match="such as '1'"):
            plug.insert(model, "0", "se", reduction=2)

    def test_a_taken_name_is_left_alone(self, x):
        class Site(nn.Conv2d):
            se = "taken"

        model = nn.Sequential(Site(3, 8, 1))
        plug.insert(model, "0", "se", reduction=2)
        assert model[0].se == "taken" and isinstance(model[0].se_, SEAttention)

    def test_an_instance_is_refused(self, resnet):
        with pytest.raises(ValueError, match="every site needs one of its own"):
            plug.insert(resnet, "layer1.0.bn3", nn.ReLU())

    def test_the_new_weights_differ_from_site_to_site(self, resnet, x):
        plug.insert(resnet, "layer1.*.bn3", "se", example=x)
        assert not torch.equal(resnet.layer1[0].bn3.se.W1.weight, resnet.layer1[1].bn3.se.W1.weight)


class Head(nn.Module):
    """A network of two convolutions whose output is whatever `form` makes of the last one's."""

    def __init__(self, form):
        super().__init__()
        self.a, self.b, self.form = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), form

    def forward(self, x: Tensor):
        return self.form(self.b(self.a(x)))


class TestOutputs:
    """Networks return more than tensors."""

    def test_a_named_tuple(self, x):
        report = plug.insert(Head(Pair), "a", "se", example=x)
        assert report.change > 0
        with pytest.raises(ValueError, match="site 'form' returns a Pair"):
            plug.insert(Head(Named()), "form", "se", example=x)

    def test_no_tensor(self, x):
        report = plug.insert(Head(lambda y: y.sum().item()), "a", "se", example=x)
        assert report.change is None and report.flops is not None
        assert report.output == "not compared: the network returned no tensor"

    def test_as_many_entries_as_the_values_ask_for(self, x):
        """As a detector returns boxes."""
        report = plug.insert(Head(lambda y: y[y > 0.5]), "a", "se", example=x)
        assert report.output == "changed: it has other shapes than before, or infinite entries"
        report.undo()

    def test_infinite_entries(self, x):
        report = plug.insert(Head(lambda y: torch.where(y > 0.5, torch.inf, 0.0)), "a", "se", example=x)
        assert report.output in ("changed: it has other shapes than before, or infinite entries",
                                 "not a number somewhere, before or after")

    @pytest.mark.parametrize("order", [1, -1])
    def test_not_a_number(self, x, order):
        report = plug.insert(Head(lambda y: (y, y * float("nan"))[::order]), "a", "se", example=x)
        assert report.output == "not a number somewhere, before or after"

    def test_a_layer_at_the_end_of_two_sequentials(self, x):
        last = nn.Conv2d(3, 16, 1)
        model = nn.ModuleDict({"p": nn.Sequential(nn.ReLU(), last), "q": nn.Sequential(nn.Identity(), last)})
        model.forward = lambda x: model["p"](x) + model["q"](x)
        with pytest.warns(UserWarning, match="called 2 times"):
            report = plug.insert(model, "?", "se", example=x)
        assert [site.path for site in report.sites] == ["p.1"]


class TestReplace:
    @pytest.mark.parametrize("options", [{}, {"modulation": False}])
    def test_a_convolution_by_its_deformable_form(self, resnet, x, options):
        before, output = snapshot(resnet), evaluate(resnet, x)
        old = resnet.layer2[0].conv2
        report = plug.replace(resnet, "layer2.*.conv2", "deform", example=x, **options)
        new = resnet.layer2[0].conv2
        assert (new.stride, new.padding, new.groups) == (old.stride, old.padding, old.groups)
        assert torch.equal(new.weight, old.weight)
        after = resnet.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())
        torch.testing.assert_close(evaluate(resnet, x), output)
        assert report.change <= report.rounding and "unchanged" in report.output
        report.undo()
        assert resnet.layer2[0].conv2 is old
        assert_same_state(resnet, before)
        assert torch.equal(evaluate(resnet, x), output)

    def test_a_factory_is_given_the_old_module(self, resnet, x):
        def wider(conv):
            return nn.Conv2d(conv.in_channels, conv.out_channels, 5, stride=conv.stride, padding=2)

        report = plug.replace(resnet, "layer2.0.conv2", wider, example=x)
        assert resnet.layer2[0].conv2.kernel_size == (5, 5)
        assert "does not start as what it replaces" in report.output
        shrink = nn.Conv2d(8, 8, 3, stride=2)
        before = snapshot(resnet)
        with pytest.raises(ValueError, match=r"'layer1.0.conv2' returns shape \(2, 8, 12, 10\); the new module's"):
            plug.replace(resnet, "layer1.[0].conv2", lambda _: shrink, example=x)
        with pytest.raises(ValueError, match=r"a tuple does not fit there"):
            plug.replace(resnet, "head", lambda _: nn.LSTM(48, 5), example=x)
        assert_same_state(resnet, before)

    def test_a_module_of_the_catalog_that_keeps_the_shape(self, resnet, x):
        plug.replace(resnet, "layer1.*.conv2", "ccnet", example=x)
        assert resnet.layer1[0].conv2.channels == 8
        with pytest.raises(ValueError, match="can only replace what keeps the shape"):
            plug.replace(resnet, "layer2.0.conv2", "ccnet", example=x)

    def test_a_module_of_two_names_is_replaced_under_both(self):
        model = nn.Module()
        model.a = nn.Conv2d(4, 4, 3, padding=1)
        model.b = model.a
        model.forward = lambda x: model.a(model.b(x))
        report = plug.replace(model, "a", "deform")
        assert model.a is model.b and type(model.a).__name__ == "DeformConv2d"
        report.undo()
        assert model.a is model.b and type(model.a) is nn.Conv2d

    def test_refusals(self, resnet, x):
        with pytest.raises(ValueError, match=r"site 'layer1.0.conv2': padding_mode='circular'"):
            resnet.layer1[0].conv2.padding_mode = "circular"
            plug.replace(resnet, "layer1.0.conv2", "deform", example=x)
        with pytest.raises(ValueError, match="and a module that holds it"):
            plug.replace(resnet, "layer2.**", "ccnet", example=x)
        plug.insert(resnet, "layer2.1.conv2", "se", example=x, reduction=2)
        with pytest.raises(ValueError, match="carries hooks"):
            plug.replace(resnet, "layer2.1.conv2", "deform", example=x)
        with pytest.raises(ValueError, match="needs example="):
            plug.replace(resnet, "layer2.0.conv2", "ccnet")


class TestUndo:
    def test_leaves_nothing(self, resnet, x):
        before, output = snapshot(resnet), evaluate(resnet, x)
        names = [name for name, _ in resnet.named_modules()]
        reports = [plug.insert(resnet, "layer[12].*.bn3", "se", example=x),
                   plug.insert(resnet, "layer1", "ccnet", example=x)]
        for report in reports:
            report.undo()
            report.undo()  # does nothing
        assert [name for name, _ in resnet.named_modules()] == names
        assert_same_state(resnet, before)
        assert not any(m._forward_hooks for m in resnet.modules())
        assert torch.equal(evaluate(resnet, x), output)

    def test_the_later_change_comes_first(self, resnet, x):
        first = plug.replace(resnet, "layer1.[01].conv2", "deform", example=x)
        second = plug.insert(resnet, "layer1.1.conv2", "se", example=x, reduction=2)
        before = list(resnet.state_dict())
        with pytest.raises(ValueError, match=r"site 'layer1.1.conv2' was changed since"):
            first.undo()
        assert list(resnet.state_dict()) == before, "a refused undo must change nothing"
        second.undo()
        first.undo()
        assert type(resnet.layer1[0].conv2) is nn.Conv2d

    def test_a_replaced_module_follows_the_network_to_its_type(self, resnet, x):
        report = plug.replace(resnet, "layer1.0.conv2", "deform", example=x)
        resnet.double()
        report.undo()
        assert evaluate(resnet, x.double()).dtype == torch.float64


class TestModelStaysAModel:
    def test_deepcopy_has_modules_of_its_own(self, resnet, x):
        report = plug.insert(resnet, "layer1.*.bn3", "se", example=x)
        twin = copy.deepcopy(resnet)
        with torch.no_grad():
            for p in twin.layer1[0].bn3.se.parameters():
                p.add_(1)
        assert not torch.equal(evaluate(twin, x), evaluate(resnet, x))
        expected = evaluate(twin, x)
        report.undo()
        assert torch.equal(evaluate(twin, x), expected)

    def test_state_dict_and_pickle_round_trip(self, resnet, x):
        plug.insert(resnet, "layer1.*.bn3", "se", example=x)
        other = ResNet()
        plug.insert(other, "layer1.*.bn3", "se")
        other.load_state_dict(resnet.state_dict())
        assert torch.equal(evaluate(other, x), evaluate(resnet, x))
        file = io.BytesIO()
        torch.save(resnet, file)
        file.seek(0)
        assert torch.equal(evaluate(torch.load(file, weights_only=False), x), evaluate(resnet, x))

    def test_export(self, resnet, x):
        plug.insert(resnet, "layer1.*.bn3", "se", example=x)
        plug.replace(resnet, "layer2.1.conv2", "deform", example=x)
        exported = torch.export.export(resnet.eval(), (x,))
        torch.testing.assert_close(exported.module()(x), resnet(x))
        assert "layer1.0.bn3.se.W1.weight" in exported.state_dict

    def test_compile(self, resnet, x):
        plug.insert(resnet, "layer1.*.bn3", "se", example=x)
        plug.insert(resnet, "layer2.1.bn3", nn.Identity, example=x)
        resnet.eval()
        torch.compiler.reset()
        compiled = torch.compile(resnet, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), resnet(x))


class TestReport:
    def test_counts(self, resnet, x):
        params = sum(p.numel() for p in resnet.parameters())
        flops = attn_lib.measure.flops(resnet.eval(), x)
        report = plug.insert(resnet, "layer1.*.bn3", "se", example=x, reduction=4)
        each = 2 * 32 * 8 + 32 + 8
        assert [s.params for s in report.sites] == [each, each]
        assert report.params == (params, params + 2 * each)
        # Two images, two sites, two products of 32 × 8, two operations a multiply-add.
        assert report.flops == (flops, flops + 2 * 2 * 2 * 32 * 8 * 2)

    def test_reads_well_and_does_not_vary(self, resnet, x):
        report = plug.insert(resnet, "layer1.*.bn3", "ccnet", example=x)
        params, flops = report.params, report.flops
        more = flops[1] - flops[0]
        assert str(report) == "\n".join([
            "ccnet: inserted after 2 places",
            "",
            "  site          channels  shape            calls  parameters",
            "  layer1.0.bn3        32  (2, 32, 12, 10)      1       1,321",
            "  layer1.1.bn3        32  (2, 32, 12, 10)      1       1,321",
            "",
            f"parameters  {params[0]:,} → {params[1]:,} (+2,642, {2642 / params[0]:+.1%})",
            f"FLOPs       {flops[0]:,} → {flops[1]:,} ({more:+,}, {more / flops[0]:+.1%})",
            "output      unchanged, bit for bit",
        ])

    def test_time_is_apart_and_on_request(self, resnet, x):
        report = plug.insert(resnet, "layer1.0.bn3", "se", example=x, measure_time=True)
        assert report.time["after"].median > 0
        assert str(report).startswith(report.summary()) and "\ntime" in str(report) and "\ntime" not in report.summary()
        with pytest.raises(ValueError, match="measure_time=True needs example="):
            plug.insert(resnet, "layer1.1.bn3", "ccnet", measure_time=True)


# ---- other people's networks -----------------------------------------------------------------------------------------


def timm(name: str, **options):
    return reference("timm").create_model(name, num_classes=10, **options)


def torchvision(name: str):
    return getattr(reference("torchvision.models"), name)(num_classes=10)


NETWORKS = {  # how to make it, where to insert, how many sites, whether it holds Squeeze-and-Excitation already
    "timm resnet18": (lambda: timm("resnet18", zero_init_last=False), "layer[1-4].*.bn2", 8, False),
    "timm mobilenetv2": (lambda: timm("mobilenetv2_100"), "blocks.[1-6].*.bn3", 16, False),
    "timm mobilenetv3": (lambda: timm("mobilenetv3_small_100"), "blocks.[1-4].*.bn3", 10, True),
    "torchvision resnet18": (lambda: torchvision("resnet18"), "layer[1-4].*.bn2", 8, False),
    "torchvision mobilenet_v2": (lambda: torchvision("mobilenet_v2"), "features.[2-9].conv.3", 8, False),
    "torchvision mobilenet_v3": (lambda: torchvision("mobilenet_v3_small"), "features.[4-9].block.3", 6, True),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    make, pattern, sites, holds_se = NETWORKS[request.param]
    torch.manual_seed(0)
    return make().eval(), pattern, sites, holds_se


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_an_identity_changes_no_bit_of_anybodys_network(network):
    net, pattern, sites, _ = network
    before, keys = net(IMAGES), list(net.state_dict())
    weights = snapshot(net)
    report = plug.insert(net, pattern, "ccnet", example=IMAGES)
    assert len(report.sites) == sites and torch.equal(net(IMAGES), before)
    assert net.load_state_dict(weights, strict=False).unexpected_keys == []
    report.undo()
    assert torch.equal(net(IMAGES), before) and list(net.state_dict()) == keys


def test_a_network_that_holds_the_module_already_is_warned_of(network):
    net, pattern, _, holds_se = network
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = plug.insert(net, pattern, "se", example=IMAGES)
    said = [str(warning.message) for warning in caught]
    assert bool(said) == holds_se and all("of se already, such as" in text for text in said), said
    assert report.change > 0
    report.undo()


def test_an_inserted_module_learns_in_anybodys_network(network):
    net, pattern, _, _ = network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = plug.insert(net.train(), pattern, "eca", example=IMAGES)
    net(IMAGES).square().sum().backward()
    for site in report.sites:
        gradient = net.get_submodule(site.path).eca.conv.weight.grad
        assert gradient is not None and gradient.abs().sum() > 0, site.path


def test_a_convolution_of_anybodys_network_becomes_deformable():
    for net, pattern in ((timm("resnet18"), "layer4.*.conv2"), (torchvision("mobilenet_v2"), "features.17.conv.1.0")):
        before = net.eval()(IMAGES)
        report = plug.replace(net, pattern, "deform", example=IMAGES)
        assert report.change <= report.rounding
        report.undo()
        assert torch.equal(net(IMAGES), before)


def test_tokens_and_maps_are_told_apart():
    """A ViT's blocks return (B, N, C), Swin's (B, H, W, C): neither is a feature map (B, C, H, W)."""
    vit, swin = timm("vit_tiny_patch16_224", img_size=64).eval(), timm("swin_tiny_patch4_window7_224").eval()
    with pytest.raises(ValueError, match=r"returns shape \(2, 17, 192\); the module needs \(B, C, H, W\)"):
        plug.insert(vit, "blocks.*.attn", "se", example=IMAGES)
    with pytest.raises(ValueError, match="is not its channels"):
        plug.insert(swin, "layers.0.blocks.*", "se", example=torch.randn(1, 3, 224, 224))
    before = vit(IMAGES)
    report = plug.insert(vit, "blocks.*.mlp", nn.LayerNorm, example=IMAGES)  # any module that takes tokens will do
    assert len(report.sites) == 12 and not torch.equal(vit(IMAGES), before)
    report.undo()
    assert torch.equal(vit(IMAGES), before)
