"""The wrapper of an insertion passes for the site: its attributes, its checkpoints, its names."""

import copy

import pytest
import torch
from torch import nn

import attn_lib
from attn_lib import plug
from attn_lib.plug.followed import Followed
from attn_lib.plug.sites import find
from tests.unit.library.plug.networks import ResNet, assert_same_state, evaluate, gate, snapshot


@pytest.fixture
def wrapper(resnet, x) -> Followed:
    plug.insert(resnet, "layer1.0.bn3", "se", example=x)
    return resnet.layer1[0].bn3


def test_reads_and_writes_the_sites_attributes(resnet, x, wrapper):
    site = wrapper.site
    assert wrapper.weight is site.weight and wrapper.num_features == 32 and wrapper.eps == site.eps
    wrapper.eps = 0.5
    wrapper.index = 7  # as detectors number their layers
    assert site.eps == 0.5 and site.index == 7 == wrapper.index
    wrapper.reset_running_stats()
    assert not site.running_mean.any()
    with pytest.raises(AttributeError, match="'BatchNorm2d' object has no attribute 'no_such'"):
        wrapper.no_such  # noqa: B018
    plug.remove(resnet)
    assert resnet.layer1[0].bn3.index == 7


def test_a_block_keeps_its_children_within_reach(resnet, x):
    conv1, block = resnet.layer1[0].conv1, resnet.layer1[0]
    plug.insert(resnet, "layer1.0", gate, example=x)
    assert resnet.layer1[0].conv1 is conv1 is resnet.get_submodule("layer1.0.conv1")
    resnet.layer1[0].conv1 = other = copy.deepcopy(conv1)
    assert block.conv1 is other and "conv1" not in resnet.layer1[0]._modules
    resnet.eval()
    assert torch.equal(resnet(x), evaluate(resnet, x))


def test_indexing():
    class Stage(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + x

    model = nn.Sequential(Stage(nn.Conv2d(3, 3, 1), nn.ReLU()))
    first = model[0][0]
    plug.insert(model, "0", gate, example=torch.randn(1, 3, 4, 4))
    assert model[0][0] is first and [type(m) for m in model[0]] == [nn.Conv2d, nn.ReLU]
    plug.insert(model, "0.0", "se", reduction=1)
    with pytest.raises(TypeError, match="not subscriptable"):
        model[0][0][0]


def test_a_method_of_the_sites_own_becomes_the_sites_forward(x):
    class Block(nn.Conv2d):
        def doubled(self, x):
            return 2 * self._conv_forward(x, self.weight, self.bias)

    model = nn.Sequential(Block(3, 8, 1))
    plug.insert(model, "0", gate, example=x)
    inner = model[0].gate
    model[0].forward = model[0].doubled
    assert torch.equal(model(x), inner(2 * model[0].site._conv_forward(x, model[0].weight, model[0].bias)))


def test_what_would_fold_the_site_is_refused(wrapper, x):
    for name in ("running_mean", "running_var"):
        assert not hasattr(wrapper, name)
        with pytest.raises(AttributeError, match=rf"{name} is not to be read: folding this norm .* the SEAttention "
                                                 r"inserted after it.*the BatchNorm2d itself is `.site`"):
            getattr(wrapper, name)
    with pytest.raises(AttributeError, match="weight is not to be set"):
        wrapper.weight = nn.Parameter(torch.ones(32))
    with torch.no_grad():
        wrapper.weight *= 2  # in place: the same parameter, which stays where it is
    assert wrapper.weight is wrapper.site.weight
    model = nn.Sequential(nn.Conv2d(3, 8, 1))
    plug.insert(model, "0", gate, example=x)
    assert model[0].kernel_size == (1, 1) and model[0].out_channels == 8
    with pytest.raises(AttributeError, match="groups is not to be read"):
        model[0].groups  # noqa: B018


def test_a_site_with_a_copying_of_its_own():
    class Odd(nn.Conv2d):
        def __deepcopy__(self, memo):
            return Odd(3, 8, 1)

    model = nn.Sequential(Odd(3, 8, 1))
    plug.insert(model, "0", "se", reduction=2)
    assert len(plug.inserted(copy.deepcopy(model))) == 1


# Checkpoints

def nested(model, x):
    plug.insert(model, "layer1.0.bn3", "se", example=x)
    plug.insert(model, "layer1.0.bn3", "ccnet", example=x)
    plug.insert(model, "layer1.0", gate, example=x)
    return model


def test_keys_keep_their_names_and_their_order(resnet, x):
    """The site's keys first, and below them the child's: as if it were the site's last sub-module."""
    before = list(resnet.state_dict())
    nested(resnet, x)
    after = list(resnet.state_dict())
    assert [key for key in after if not {"se", "ccnet", "gate"} & set(key.split("."))] == before
    block = [key for key in after if key.startswith("layer1.0.bn3.") or ".gate." in key]
    assert block == [f"layer1.0.bn3.{name}" for name in (
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
        "se.W1.weight", "se.W1.bias", "se.W2.weight", "se.W2.bias",
        "ccnet.gamma", "ccnet.Wq.weight", "ccnet.Wq.bias", "ccnet.Wk.weight", "ccnet.Wk.bias",
        "ccnet.Wv.weight", "ccnet.Wv.bias")] + ["layer1.0.gate.0.weight", "layer1.0.gate.0.bias"]
    assert resnet.state_dict()._metadata["layer1.0.bn3"] == {"version": nn.BatchNorm2d._version}
    assert next(iter(resnet.layer1[0].bn3.state_dict())) == "weight"


@pytest.mark.parametrize("assign", [False, True])
def test_checkpoints_both_ways(resnet, x, assign):
    plain = snapshot(resnet)
    nested(resnet, x)
    other = nested(ResNet(), x)
    assert other.load_state_dict(resnet.state_dict(), assign=assign) == ([], [])
    assert torch.equal(evaluate(other, x), evaluate(resnet, x))

    new = [key for key in other.state_dict() if key not in plain]
    result = other.load_state_dict(plain, strict=False, assign=assign)  # written before anything was inserted
    assert result.missing_keys == new and result.unexpected_keys == []
    assert all(torch.equal(other.state_dict()[key], value) for key, value in plain.items())

    result = ResNet().load_state_dict(resnet.state_dict(), strict=False)  # read where nothing is inserted
    assert result.missing_keys == [] and sorted(result.unexpected_keys) == sorted(new)


def test_faults_of_a_checkpoint_are_named_as_it_names_them(resnet, x):
    nested(resnet, x)
    state = resnet.state_dict()
    del state["layer1.0.bn3.weight"], state["layer1.0.bn3.num_batches_tracked"]
    state["layer1.0.bn3.no_such"] = state["layer1.0.no_such"] = torch.ones(1)
    result = resnet.load_state_dict(state, strict=False)
    assert result.missing_keys == ["layer1.0.bn3.weight", "layer1.0.bn3.num_batches_tracked"]
    assert sorted(result.unexpected_keys) == ["layer1.0.bn3.no_such", "layer1.0.no_such"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "layer1.0.bn3.weight"'):
        resnet.load_state_dict(state)


def test_names_of_parameters_load_too(resnet, x):
    """As averages of weights are often kept: by `named_parameters`, not by `state_dict`."""
    nested(resnet, x)
    state = {name: p.detach() + 1 for name, p in resnet.named_parameters()}
    assert "layer1.0.site.bn3.site.site.weight" in state
    assert resnet.load_state_dict(state, strict=False).unexpected_keys == []
    assert all(torch.equal(p, state[name]) for name, p in resnet.named_parameters())


def test_a_wrapper_is_loaded_by_itself(wrapper):
    state = snapshot(wrapper)
    assert list(state)[:2] == ["weight", "bias"] and "se.W1.weight" in state
    state["weight"] += 1
    assert wrapper.load_state_dict(state) == ([], [])
    assert torch.equal(wrapper.site.weight, state["weight"])


def test_a_site_with_a_child_called_site(x):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.site = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return self.site(x)

    model = nn.Sequential(Odd())
    before = snapshot(model)
    plug.insert(model, "0", "se", example=x, reduction=2)
    state = snapshot(model)
    assert list(state)[:2] == list(before) == ["0.site.weight", "0.site.bias"]
    state["0.site.weight"] += 1
    assert model.load_state_dict(state) == ([], [])
    assert torch.equal(model[0].site.site.weight, state["0.site.weight"])


# Names

def test_patterns_take_no_notice(resnet, x):
    names = list(find(resnet, "**"))
    nested(resnet, x)
    after = find(resnet, "**")
    assert [name for name in after if not {"se", "ccnet", "gate"} & set(name.split("."))] == names
    assert list(find(resnet, "**.se")) == ["layer1.0.bn3.se"]
    report = plug.insert(resnet, "layer1.0.bn?", nn.Identity, example=x)
    assert [site.name for site in report.sites] == [f"layer1.0.bn{i}.Identity" for i in (1, 2, 3)]


def test_traces_take_no_notice(resnet, x):
    plug.insert(resnet, "layer1.0.bn3", "se", example=x)
    with attn_lib.trace(resnet) as before:
        resnet(x)
    plug.insert(resnet, "layer1.0.bn3", nn.Identity, example=x)
    plug.insert(resnet, "layer1.0", nn.Identity, example=x)
    plug.insert(resnet, "layer1.0", "ccnet", example=x)
    with attn_lib.trace(resnet) as after:
        resnet(x)
    assert before.names() == [f"layer1.0.bn3.se.{name}" for name in "zsy"]
    assert after.names()[:3] == before.names() and {n[:15] for n in after.names()[3:]} == {"layer1.0.ccnet."}


def test_later_insertions_act_later(resnet, x):
    class Add(nn.Module):
        def __init__(self, channels):
            super().__init__()

        def forward(self, x):
            return x + 1

    class Double(Add):
        def forward(self, x):
            return x * 2

    model = nn.Sequential(nn.Identity())
    reports = [plug.insert(model, "0", module, example=x) for module in (Add, Double)]
    assert torch.equal(model(x), (x + 1) * 2)
    reports[0].undo()
    assert torch.equal(model(x), x * 2)
    reports[1].undo()
    assert type(model[0]) is nn.Identity


def test_undo_in_any_order_leaves_nothing(resnet, x):
    before, output = snapshot(resnet), evaluate(resnet, x)
    patterns = ("layer1.0.bn3", "layer1.0", "layer1.*.bn1")
    reports = [plug.insert(resnet, pattern, gate, example=x) for pattern in patterns]
    for i in (1, 0, 2):
        reports[i].undo()
    assert_same_state(resnet, before)
    assert torch.equal(evaluate(resnet, x), output) and not any(isinstance(m, Followed) for m in resnet.modules())
