"""Out again: what undo() leaves, and what it refuses."""

import pytest
import torch
from torch import nn

from attn_lib import plug
from tests.unit.library.plug.networks import assert_same_state, evaluate, snapshot


def test_leaves_nothing(resnet, x):
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


def test_the_later_change_comes_first(resnet, x):
    first = plug.replace(resnet, "layer1.[01].conv2", "deform", example=x)
    second = plug.insert(resnet, "layer1.1.conv2", "se", example=x, reduction=2)
    before = list(resnet.state_dict())
    with pytest.raises(ValueError, match=r"site 'layer1.1.conv2' was changed since"):
        first.undo()
    assert list(resnet.state_dict()) == before, "a refused undo must change nothing"
    second.undo()
    first.undo()
    assert type(resnet.layer1[0].conv2) is nn.Conv2d


def test_a_replaced_module_follows_the_network_to_its_type(resnet, x):
    report = plug.replace(resnet, "layer1.0.conv2", "deform", example=x)
    resnet.double()
    report.undo()
    assert evaluate(resnet, x.double()).dtype == torch.float64
