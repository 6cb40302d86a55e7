"""What converts, fuses or quantises a network keeps what was inserted, or says that it cannot."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval

from attn_lib import plug
from tests.unit.library.plug.networks import ResNet, gate
from tests.unit.reference import reference

SITES = "layer[12].*.bn3"  # four of them


@pytest.fixture
def plugged(resnet: ResNet, x: Tensor):
    """A network with gates after four batch norms, its report, and its output."""
    report = plug.insert(resnet.eval(), SITES, gate, example=x)
    with torch.no_grad():
        return resnet, report, resnet(x)


def calls(model: nn.Module, x: Tensor) -> list[tuple[int, int]]:
    return [(row.calls, row.site_calls) for row in plug.inserted(model, x)]


CONVERTERS = {  # made by a function, so that timm is imported by the test alone
    "SyncBatchNorm": lambda: nn.SyncBatchNorm.convert_sync_batchnorm,
    "timm's SyncBatchNorm": lambda: reference("timm.layers").convert_sync_batchnorm,
    "timm's frozen norms": lambda: reference("timm.utils.model").freeze_batch_norm_2d,
}


@pytest.mark.parametrize("name", CONVERTERS)
def test_converted_norms(plugged, x, name):
    model, report, expected = plugged
    model = CONVERTERS[name]()(model)
    assert calls(model, x) == [(1, 1)] * 4
    torch.testing.assert_close(model(x), expected)
    report.check(example=x)
    converted = model.layer1[0].bn3.site
    assert type(converted).__name__ == ("FrozenBatchNorm2d" if "frozen" in name else "SyncBatchNorm")
    report.undo()
    assert model.layer1[0].bn3 is converted and not [key for key in model.state_dict() if "gate" in key]


def test_a_network_fused_by_torch_fx(plugged, x):
    model, _, expected = plugged
    fused = fuse(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules()), "nothing was fused"
    called = [node.target for node in fused.graph.nodes if node.op == "call_module"]
    assert sum(target.endswith("bn3.gate.0") for target in called) == 4
    torch.testing.assert_close(fused(x), expected)


def test_quantised_after_training(plugged, x):
    model, report, expected = plugged
    prepared = quantize_fx.prepare_fx(copy.deepcopy(model), quantization.get_default_qconfig_mapping(), (x,))
    torch.testing.assert_close(prepared(x), expected)  # still in floating point, norms fused
    quantised = quantize_fx.convert_fx(prepared)
    report.undo()
    error, effect = (quantised(x) - expected).abs().max(), (model(x) - expected).abs().max()
    assert error < 0.1 * effect, "the gates are gone"


def test_trained_to_be_quantised(plugged, x):
    model, _, expected = plugged
    how = quantization.get_default_qat_qconfig_mapping()
    prepared = quantize_fx.prepare_qat_fx(copy.deepcopy(model).train(), how, (x,))
    prepared(x).sum().backward()
    gates = {name: p for name, p in prepared.named_parameters() if ".gate." in name and name.endswith("weight")}
    assert len(gates) == 4 and all(p.grad.abs().sum() > 0 for p in gates.values())
    assert prepared.eval()(x).shape == expected.shape


def test_fusing_a_norm_by_name_is_refused(plugged):
    """torch's eager fusion goes by the types of the layers it is given."""
    model, *_ = plugged
    with pytest.raises((NotImplementedError, AssertionError), match="Followed"):
        quantization.fuse_modules(model, [["layer1.0.conv3", "layer1.0.bn3"]])
    with pytest.raises(AttributeError, match=r"running_mean is not to be read.*Sequential inserted after it"):
        fuse_conv_bn_eval(model.layer1[0].conv3, model.layer1[0].bn3)


# Detectors fold the norms of their blocks by loops of their own, of two kinds: a new convolution made from what
# the old one says of itself, or the old one given new weights.

class ConvNorm(nn.Module):
    def __init__(self, channels: int, out: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def forward_fused(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


def weights(conv: nn.Module, bn: nn.Module) -> tuple[Tensor, Tensor]:
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    return conv.weight * factor[:, None, None, None], bn.bias - bn.running_mean * factor


def made_anew(conv: nn.Module, bn: nn.Module) -> nn.Module:
    new = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding, groups=conv.groups)
    new.weight.data, new.bias.data = weights(conv, bn)
    return new


def given_weights(conv: nn.Module, bn: nn.Module) -> nn.Module:
    conv.weight, conv.bias = map(nn.Parameter, weights(conv, bn))
    return conv


def fold(model: nn.Module, how) -> None:
    for m in model.modules():
        if isinstance(m, ConvNorm) and hasattr(m, "bn"):
            m.conv = how(m.conv, m.bn)
            del m.bn
            m.forward = m.forward_fused


@pytest.fixture
def detector() -> nn.Module:
    model = nn.Sequential(ConvNorm(3, 8), ConvNorm(8, 8))
    for _ in range(3):
        model(torch.randn(4, 3, 9, 9))
    return model.eval()


@pytest.mark.parametrize("how", [made_anew, given_weights])
def test_a_block_that_folds_its_norm(detector, x, how):
    plug.insert(detector, "*", gate, example=x)
    expected = detector(x)
    fold(detector, how)
    assert calls(detector, x) == [(1, 1)] * 2 and not any(isinstance(m, nn.BatchNorm2d) for m in detector.modules())
    torch.testing.assert_close(detector(x), expected)


@pytest.mark.parametrize("how", [made_anew, given_weights])
@pytest.mark.parametrize("site", ["bn", "conv"])
def test_folding_past_an_insertion_is_refused(detector, x, how, site):
    plug.insert(detector, f"*.{site}", gate, example=x)
    expected = detector(x)
    with pytest.raises(AttributeError, match=r"would lose or misplace the Sequential inserted after it"):
        fold(detector, how)
    assert calls(detector, x) == [(1, 1)] * 2
    torch.testing.assert_close(detector(x), expected)
    plug.remove(detector)
    fold(detector, how)


def test_a_convolution_folded_by_torch_is_refused(detector, x):
    plug.insert(detector, "0.conv", gate, example=x)
    with pytest.raises(AttributeError, match="weight is not to be set"):
        fuse_conv_bn_eval(detector[0].conv, detector[0].bn)


def test_torchs_fused_transformer_layer_does_not_go_past():
    """In eval mode without gradients it reads weights instead of calling layers, unless there are hooks."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tokens = torch.randn(2, 5, 8)
    with torch.no_grad():
        before = layer(tokens)
    plug.insert(layer, "norm1", lambda dim: nn.Linear(dim, dim))  # no example: nothing watches
    with_gradients = layer(tokens)
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens), with_gradients)
    assert not torch.allclose(before, with_gradients)


def test_conversion_before_insertion(resnet, x):
    """The order that the documentation names."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(resnet).eval()
    before = model(x)
    report = plug.insert(model, SITES, "ccnet", example=x)
    assert report.change == 0 and torch.equal(model(x), before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.check(example=x)
