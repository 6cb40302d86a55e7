"""After a site: into somebody else's network, nothing broken on the way."""

import copy
import warnings

import pytest
import torch
from torch import nn

import attn_lib
from attn_lib import plug
from attn_lib.channel import SEAttention
from tests.unit.library.plug.networks import ResNet, assert_same_state, evaluate, snapshot


def test_keeps_every_key_weight_and_reference(resnet, x):
    before, bn3, weight = snapshot(resnet), resnet.layer1[0].bn3, resnet.layer1[0].conv1.weight
    report = plug.insert(resnet, "layer[12].*.bn3", "se", example=x, reduction=4)
    after = resnet.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert resnet.layer1[0].bn3.site is bn3 and resnet.layer1[0].conv1.weight is weight
    assert resnet.layer1[0].bn3.weight is bn3.weight
    assert set(after) - set(before) == {f"layer{i}.{j}.bn3.se.{w}.{p}" for i in (1, 2) for j in (0, 1)
                                        for w in ("W1", "W2") for p in ("weight", "bias")}
    assert [(s.path, s.channels, s.shape, s.calls) for s in report.sites] == [
        ("layer1.0.bn3", 32, (2, 32, 12, 10), 1), ("layer1.1.bn3", 32, (2, 32, 12, 10), 1),
        ("layer2.0.bn3", 48, (2, 48, 6, 5), 1), ("layer2.1.bn3", 48, (2, 48, 6, 5), 1)]
    assert resnet.load_state_dict(before, strict=False).unexpected_keys == []


def test_computes_the_module_of_the_sites_output(resnet, x):
    """Against a block written out by hand."""
    plug.insert(resnet, "layer1.0.bn3", "se", example=x, reduction=4)
    block = copy.deepcopy(resnet.layer1[0]).eval()
    se = block.bn3.se
    z = torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(2))
    got = block(z)
    main = block.bn3.site(block.conv3(block.relu(block.bn2(block.conv2(block.relu(block.bn1(block.conv1(z))))))))
    assert torch.equal(got, torch.relu(se(main) + block.downsample(z)))


def test_an_identity_changes_no_bit(resnet, x):
    before = evaluate(resnet, x)
    report = plug.insert(resnet, "layer[12].*.bn3", "ccnet", example=x)
    assert torch.equal(evaluate(resnet, x), before)
    assert report.identity and report.change == 0
    assert report.output == "unchanged, bit for bit"


def test_a_gate_says_that_it_changes_the_output(resnet, x):
    before = evaluate(resnet, x)
    report = plug.insert(resnet, "layer1.1.bn3", "se", example=x)
    assert report.change == pytest.approx((evaluate(resnet, x) - before).abs().max().item())
    assert report.change > 0 and report.identity is False
    assert "se does not start as the identity" in report.output


def test_a_gate_on_a_branch_that_starts_at_zero(resnet, x):
    """As in networks whose last batch norm of a block starts at zero: equal, but not because of the module."""
    nn.init.zeros_(resnet.layer1[1].bn3.weight)
    nn.init.zeros_(resnet.layer1[1].bn3.bias)
    report = plug.insert(resnet, "layer1.1.bn3", "se", example=x)
    assert report.change == 0 and "though se does not start as the identity" in report.output


def test_a_broken_promise_of_identity_is_reported(resnet, x, monkeypatch):
    monkeypatch.setattr(nn.init, "zeros_", nn.init.ones_)
    entry = attn_lib.entry("se")
    broken = copy.copy(entry)
    object.__setattr__(broken, "identity_at_init", True)
    monkeypatch.setitem(attn_lib.catalog._ENTRIES, "se", broken)
    with pytest.warns(UserWarning, match="should start as the identity, but"):
        plug.insert(resnet, "layer1.1.bn3", "se", example=x)


def test_probing_leaves_statistics_modes_and_random_state_alone(resnet, x):
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


def test_takes_over_device_type_and_mode(resnet):
    resnet.double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plug.insert(resnet, "layer1.0.bn3", "se", example=x)
    with pytest.warns(UserWarning, match="already"):
        plug.insert(resnet, "layer1.1.bn3", "se")
    for i in (0, 1):
        se = resnet.layer1[i].bn3.se
        assert {p.dtype for p in se.parameters()} == {torch.float64} and not se.training
    assert evaluate(resnet, x).dtype == torch.float64


class Half(ResNet):
    """In bfloat16, but for its norms."""

    def __init__(self):
        super().__init__()
        self.bfloat16()
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.float()


@pytest.mark.parametrize("module", ["se", "ccnet"])
@pytest.mark.parametrize("with_example", [True, False])
def test_a_network_in_half_precision_whose_norms_are_not(x, module, with_example):
    model, x = Half(), x.bfloat16()
    assert evaluate(model, x).dtype == torch.bfloat16
    plug.insert(model, "layer1.*.bn3", module, example=x if with_example else None)
    assert {p.dtype for row in plug.inserted(model) for p in row.module.parameters()} == {torch.bfloat16}
    y = model.train()(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and all(p.grad is not None for p in model.parameters())


def test_autocast_does_not_decide_the_type_of_weights(resnet, x):
    with torch.autocast("cpu", torch.bfloat16):
        plug.insert(resnet, "layer1.0.conv1", "se", example=x, reduction=2)
    assert {p.dtype for p in resnet.parameters()} == {torch.float32}


def test_takes_over_the_memory_format(resnet, x):
    resnet.to(memory_format=torch.channels_last)
    plug.insert(resnet, "layer1.0.bn3", "ccnet", example=x.to(memory_format=torch.channels_last))
    weight = resnet.layer1[0].bn3.ccnet.Wv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_after_a_sequential_means_after_its_last_layer(resnet, x):
    length = len(resnet.layer1), len(resnet.stem)
    report = plug.insert(resnet, "layer1", "ccnet", example=x)
    assert report.sites[0].path == "layer1.1"
    assert (len(resnet.layer1), len(resnet.stem)) == length
    assert report.change == 0


def test_accepts_a_class_and_a_function(resnet, x):
    plug.insert(resnet, "layer1.0.bn3", SEAttention, example=x, reduction=2)
    assert resnet.layer1[0].bn3.se.W1.out_features == 16

    def gate(channels):
        return nn.Conv2d(channels, channels, 1, groups=channels)

    report = plug.insert(resnet, "layer2.*.bn2", gate, example=x)
    assert [s.channels for s in report.sites] == [8, 8] and report.identity is None
    assert resnet.layer2[0].bn2.gate.in_channels == 8


def test_without_an_example_reads_the_sites_attributes(resnet, x):
    report = plug.insert(resnet, "layer[12].*.bn3", "ccnet")
    assert [s.channels for s in report.sites] == [32, 32, 48, 48]
    assert report.flops is None and report.output == "not compared: there was no example"
    assert evaluate(resnet, x).shape == (2, 5)
    with pytest.raises(ValueError, match=r"site 'layer1.0' \(Bottleneck\) does not say how many channels"):
        plug.insert(resnet, "layer1.0", "se")


def test_tokens():
    encoder = nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.Linear(10, 4))
    tokens = torch.randn(2, 7, 6)
    report = plug.insert(encoder, "1", lambda dim: nn.Linear(dim, dim), example=tokens)
    assert report.sites[0].channels == 10
    with pytest.raises(ValueError, match=r"site '0' returns shape \(2, 7, 10\); the module needs \(B, C, H, W\)"):
        plug.insert(encoder, "0", "se", example=tokens)


def test_channels_last_networks_are_refused_not_misread():
    class Block(nn.Module):  # (B, H, W, C), as in Swin
        def __init__(self):
            super().__init__()
            self.norm, self.mlp = nn.LayerNorm(12), nn.Linear(12, 12)

        def forward(self, x):
            return x + self.mlp(self.norm(x))

    model = nn.Sequential(Block(), Block())
    with pytest.raises(ValueError, match=r"has 12 channels but returns shape \(2, 8, 8, 12\)"):
        plug.insert(model, "0", "se", example=torch.randn(2, 8, 8, 12))


def test_gradients_reach_host_and_module_through_in_place_operations(resnet, x):
    def sigmoid(channels):  # autograd keeps its output, which the block then overwrites
        return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Sigmoid())

    plug.insert(resnet, "layer1.*.bn3", "se", example=x)
    plug.insert(resnet, "layer2.*.bn3", sigmoid, example=x)
    plug.insert(resnet, "layer2.0.bn1", nn.Identity, example=x)
    resnet.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in resnet.parameters())


def test_a_trace_shows_what_the_module_gave_not_what_was_written_over_it(resnet, x):
    plug.insert(resnet, "layer1.1.bn3", "se", example=x)
    resnet.eval()
    with attn_lib.trace(resnet) as t:
        resnet(x)
    assert t.names() == [f"layer1.1.bn3.se.{name}" for name in "zsy"]
    bn3 = {}
    resnet.layer1[1].bn3.site.register_forward_hook(lambda m, a, y: bn3.update(y=y.clone()))
    resnet(x)
    y = bn3["y"] * t["layer1.1.bn3.se.s"][:, :, None, None]
    assert torch.equal(t["layer1.1.bn3.se.y"], y)


def test_a_module_shared_by_several_places(resnet, x):
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


def test_sites_that_cannot_take_a_module(resnet, x):
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
            self.a = nn.Conv2d(3, 4, 1)
            self.layers = [self.a]  # the network goes past its own sub-module

        def forward(self, x):
            return self.layers[0](x)

    model = nn.Sequential(Loop(), nn.ReLU())
    conv = model[0].a
    with pytest.raises(ValueError, match=r"site '0.a' is called 1 times in a forward pass, but 0 times where"):
        plug.insert(model, "0.a", "ccnet", example=x, reduction=2)
    assert model[0].a is conv
    assert_same_state(resnet, before)


def test_a_site_that_calls_all_its_children(x):
    """The new module is no child of the site's own."""
    class Loop(nn.Sequential):
        def forward(self, x):
            for child in self.children():
                x = child(x)
            return x

    model = nn.Sequential(Loop(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), nn.ReLU())
    report = plug.insert(model, "0", "ccnet", example=x, reduction=2)
    assert report.change == 0 and [m.calls for m in plug.inserted(model, x)] == [1]


def test_a_failure_at_one_site_changes_none(resnet, x):
    before, output = snapshot(resnet), evaluate(resnet, x)
    for options in (dict(reduction=40), dict(no_such=1), dict(channels=3)):
        with pytest.raises(ValueError, match=f"{next(iter(options))}"):
            plug.insert(resnet, "layer[12].*.bn3", "se", example=x, **options)
    with pytest.raises(ValueError, match=r"'head' returns shape \(2, 5\); the new module's shape \(2, 3\)"):
        plug.insert(resnet, "head", lambda c: nn.Linear(c, 3), example=x)
    assert_same_state(resnet, before)
    assert torch.equal(evaluate(resnet, x), output)


def test_twice_at_the_same_site(resnet, x):
    report = plug.insert(resnet, "layer1.0.bn3", "se", example=x)
    with pytest.raises(ValueError, match=r"site 'layer1.0.bn3' has a SEAttention inserted already"), \
            warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plug.insert(resnet, "layer1.0.bn3", "se", example=x)
    plug.insert(resnet, "layer1.0.bn3", "ccnet", example=x)  # another one may follow
    report.undo()
    assert [key for key in resnet.state_dict() if ".se." in key] == []
    assert any(".ccnet." in key for key in resnet.state_dict())


def test_warns_of_modules_that_are_there(resnet, x):
    plug.insert(resnet, "layer1.0.bn3", "se", example=x)
    with pytest.warns(UserWarning, match="holds 1 of se already, such as 'layer1.0.bn3.se'"):
        plug.insert(resnet, "layer2.0.bn3", "se", example=x)

    class SqueezeExcitation(nn.Identity):
        pass

    model = nn.Sequential(nn.Conv2d(3, 8, 1), SqueezeExcitation())
    with pytest.warns(UserWarning, match="such as '1'"):
        plug.insert(model, "0", "se", reduction=2)


def test_a_taken_name_is_left_alone(x):
    class Site(nn.Conv2d):
        se = "taken"

    model = nn.Sequential(Site(3, 8, 1))
    plug.insert(model, "0", "se", reduction=2)
    assert model[0].se == "taken" and isinstance(model[0].se_, SEAttention)


def test_an_instance_is_refused(resnet):
    with pytest.raises(ValueError, match="every site needs one of its own"):
        plug.insert(resnet, "layer1.0.bn3", nn.ReLU())


def test_the_new_weights_differ_from_site_to_site(resnet, x):
    plug.insert(resnet, "layer1.*.bn3", "se", example=x)
    assert not torch.equal(resnet.layer1[0].bn3.se.W1.weight, resnet.layer1[1].bn3.se.W1.weight)
