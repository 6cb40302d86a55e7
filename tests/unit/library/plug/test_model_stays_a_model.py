"""A network with inserted modules is copied, saved, exported and compiled like any other."""

import copy
import io

import torch
from torch import nn

from attn_lib import plug
from tests.unit.library.plug.networks import ResNet, evaluate


def test_deepcopy_has_modules_of_its_own(resnet, x):
    report = plug.insert(resnet, "layer1.*.bn3", "se", example=x)
    twin = copy.deepcopy(resnet)
    with torch.no_grad():
        for p in twin.layer1[0].bn3.se.parameters():
            p.add_(1)
    assert not torch.equal(evaluate(twin, x), evaluate(resnet, x))
    expected = evaluate(twin, x)
    report.undo()
    assert torch.equal(evaluate(twin, x), expected)


def test_state_dict_and_pickle_round_trip(resnet, x):
    plug.insert(resnet, "layer1.*.bn3", "se", example=x)
    other = ResNet()
    plug.insert(other, "layer1.*.bn3", "se")
    other.load_state_dict(resnet.state_dict())
    assert torch.equal(evaluate(other, x), evaluate(resnet, x))
    file = io.BytesIO()
    torch.save(resnet, file)
    file.seek(0)
    assert torch.equal(evaluate(torch.load(file, weights_only=False), x), evaluate(resnet, x))


def test_export(resnet, x):
    plug.insert(resnet, "layer1.*.bn3", "se", example=x)
    plug.replace(resnet, "layer2.1.conv2", "deform", example=x)
    exported = torch.export.export(resnet.eval(), (x,))
    torch.testing.assert_close(exported.module()(x), resnet(x))
    assert "layer1.0.bn3.se.W1.weight" in exported.state_dict


def test_compile(resnet, x):
    plug.insert(resnet, "layer1.*.bn3", "se", example=x)
    plug.insert(resnet, "layer2.1.bn3", nn.Identity, example=x)
    resnet.eval()
    torch.compiler.reset()
    compiled = torch.compile(resnet, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), resnet(x))
