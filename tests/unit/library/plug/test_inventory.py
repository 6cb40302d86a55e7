"""What stands in a network: listed, checked, taken out."""

import copy

import pytest
import torch
from torch import nn

from attn_lib import plug
from tests.unit.library.plug.networks import ResNet, assert_same_state, copied, evaluate, gate, pickled, snapshot


def rows(model, example=None):
    return [(r.kind, r.site, r.path, r.calls, r.site_calls) for r in plug.inserted(model, example)]


def test_lists_what_is_there(resnet, x):
    assert plug.inserted(resnet) == [] == plug.inserted(resnet, x)
    plug.insert(resnet, "layer1.1.bn3", "se", example=x)
    plug.insert(resnet, "layer1.1.bn3", "ccnet", example=x)  # at the same place
    plug.insert(resnet, "layer1.1", gate, example=x)  # around it
    plug.replace(resnet, "layer2.1.conv2", "deform", example=x)
    assert rows(resnet) == [("insert", "layer1.1", "layer1.1.gate", None, None),
                            ("insert", "layer1.1.bn3", "layer1.1.bn3.se", None, None),
                            ("insert", "layer1.1.bn3", "layer1.1.bn3.ccnet", None, None),
                            ("replace", "layer2.1.conv2", "layer2.1.conv2", None, None)]
    assert [row[3:] for row in rows(resnet, x)] == [(1, 1), (1, 1), (1, 1), (1, None)]
    assert all(resnet.get_submodule(row.path) is row.module for row in plug.inserted(resnet))


def loaded(model):
    other = ResNet()
    plug.insert(other, "layer1.*.bn3", "se")
    plug.replace(other, "layer2.1.conv2", "deform")
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("make", [copied, pickled, loaded])
def test_what_is_made_of_a_network_shows_it_too(resnet, x, make):
    report = plug.insert(resnet, "layer1.*.bn3", "se", example=x)
    other_report = plug.replace(resnet, "layer2.1.conv2", "deform", example=x)
    expected, listed = evaluate(resnet, x), rows(resnet, x)
    other = make(resnet)
    report.undo()
    assert rows(other, x) == listed and torch.equal(evaluate(other, x), expected)
    report.check(other, example=x)
    other_report.check(other, example=x)
    with pytest.raises(ValueError, match=r"site 'layer1.0.bn3': the module 'layer1.0.bn3.se' .* is gone"):
        report.check()


def test_names_the_site_where_one_is_missing(resnet, x):
    report = plug.insert(resnet, "layer1.*.bn3", "se", example=x)
    report.check(example=x)
    resnet.layer1[1].bn3 = nn.BatchNorm2d(32)
    with pytest.raises(ValueError, match=r"site 'layer1.1.bn3': the module 'layer1.1.bn3.se' .* is gone"):
        report.check()
    with pytest.raises(ValueError, match=r"site 'layer1.1.bn3' was changed since"):
        report.undo()


def test_names_the_site_whose_module_does_not_run(resnet, x):
    report = plug.insert(resnet, "layer1.*.bn3", "se", example=x)
    wrapper = resnet.layer1[1].bn3
    site = wrapper.site
    wrapper.forward = lambda x: site(x)
    report.check()
    with pytest.raises(ValueError, match=r"site 'layer1.1.bn3': .* does not run in a forward pass"):
        report.check(example=x)
    wrapper.forward = lambda x: wrapper.se(wrapper.se(site(x)))
    with pytest.raises(ValueError, match=r"site 'layer1.1.bn3' runs 1 times in a forward pass, .* 2 times"):
        report.check(example=x)


def test_calls_are_counted_where_a_module_is_called_twice(x):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(self.conv(x))

    model = Twice()
    with pytest.warns(UserWarning, match="called 2 times"):
        report = plug.insert(model, "conv", gate, example=x)
    assert rows(model, x) == [("insert", "conv", "conv.gate", 2, 2)]
    report.check(example=x)


def test_remove_takes_every_insertion_out(resnet, x):
    before, output = snapshot(resnet), evaluate(resnet, x)
    names = [name for name, _ in resnet.named_modules()]
    report = plug.insert(resnet, "layer1.*.bn3", "se", example=x)
    plug.insert(resnet, "layer1.1.bn3", "ccnet", example=x)
    plug.insert(resnet, "layer1.*", gate, example=x)
    other = copy.deepcopy(resnet)
    for model in (resnet, other):
        assert plug.remove(model) == ["layer1.0.gate", "layer1.0.bn3.se", "layer1.1.gate", "layer1.1.bn3.se",
                                      "layer1.1.bn3.ccnet"]
        assert plug.remove(model) == [] == plug.inserted(model)
        assert [name for name, _ in model.named_modules()] == names
        assert_same_state(model, before)
        assert torch.equal(evaluate(model, x), output)
    with pytest.raises(ValueError, match="or its module taken out"):
        report.undo()
