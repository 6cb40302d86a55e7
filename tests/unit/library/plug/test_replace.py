"""In the place of a site."""

import pytest
import torch
from torch import nn

from attn_lib import plug
from tests.unit.library.plug.networks import assert_same_state, evaluate, snapshot


@pytest.mark.parametrize("options", [{}, {"modulation": False}])
def test_a_convolution_by_its_deformable_form(resnet, x, options):
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


def test_a_factory_is_given_the_old_module(resnet, x):
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


def test_a_module_of_the_catalog_that_keeps_the_shape(resnet, x):
    plug.replace(resnet, "layer1.*.conv2", "ccnet", example=x)
    assert resnet.layer1[0].conv2.channels == 8
    with pytest.raises(ValueError, match="can only replace what keeps the shape"):
        plug.replace(resnet, "layer2.0.conv2", "ccnet", example=x)


def test_a_module_of_two_names_is_replaced_under_both():
    model = nn.Module()
    model.a = nn.Conv2d(4, 4, 3, padding=1)
    model.b = model.a
    model.forward = lambda x: model.a(model.b(x))
    report = plug.replace(model, "a", "deform")
    assert model.a is model.b and type(model.a).__name__ == "DeformConv2d"
    report.undo()
    assert model.a is model.b and type(model.a) is nn.Conv2d


def test_refusals(resnet, x):
    with pytest.raises(ValueError, match=r"site 'layer1.0.conv2': padding_mode='circular'"):
        resnet.layer1[0].conv2.padding_mode = "circular"
        plug.replace(resnet, "layer1.0.conv2", "deform", example=x)
    with pytest.raises(ValueError, match="and a module that holds it"):
        plug.replace(resnet, "layer2.**", "ccnet", example=x)
    plug.insert(resnet, "layer2.1.conv2", "se", example=x, reduction=2)
    with pytest.raises(ValueError, match="that would lose the SEAttention inserted after it"):
        plug.replace(resnet, "layer2.1.conv2", "deform", example=x)
    resnet.layer2[0].conv2.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="carries hooks"):
        plug.replace(resnet, "layer2.0.conv2", "deform", example=x)
    with pytest.raises(ValueError, match="needs example="):
        plug.replace(resnet, "layer1.1.conv2", "ccnet")
