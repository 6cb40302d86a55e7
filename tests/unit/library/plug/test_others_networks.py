"""Other people's networks, timm's and torchvision's."""

import warnings

import pytest
import torch
from torch import nn

from attn_lib import plug
from tests.unit.library.plug.networks import snapshot
from tests.unit.reference import reference


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
    with pytest.raises(ValueError, match=r"is not its channels.*pass tokens="):
        plug.insert(swin, "layers.0.blocks.*", "se", example=torch.randn(1, 3, 224, 224))
    before = vit(IMAGES)
    report = plug.insert(vit, "blocks.*.mlp", nn.LayerNorm, example=IMAGES)  # any module that takes tokens will do
    assert len(report.sites) == 12 and not torch.equal(vit(IMAGES), before)
    report.undo()
    assert torch.equal(vit(IMAGES), before)


def test_maps_and_tokens_in_anybodys_transformer():
    vit = timm("vit_tiny_patch16_224", img_size=(64, 96), depth=3).eval()
    swin = timm("swin_tiny_patch4_window7_224", img_size=56, depths=(2, 2), num_heads=(3, 6)).eval()
    images, square = torch.randn(2, 3, 64, 96), torch.randn(1, 3, 56, 56)
    for net, example, pattern, options, sites in (
        (vit, images, "blocks.*.mlp", dict(tokens=(4, 6), prefix=1), 3),
        (vit, images, "blocks.*.attn", dict(prefix=1), 3),
        (swin, square, "layers.*.blocks.1", dict(tokens=True), 2),
    ):
        before = net(example)
        module = "vit" if "tokens" not in options else "ccnet"
        report = plug.insert(net, pattern, module, example=example, **options)
        assert len(report.sites) == sites and (module == "vit" or torch.equal(net(example), before))
        report.check(example=example)
        net(example).square().sum().backward()
        assert all(p.grad is not None for row in plug.inserted(net) for p in row.module.parameters())
        report.undo()
        assert torch.equal(net(example), before)
    report = plug.replace(vit, "blocks.*.attn", "mhsa", example=images, tokens=(4, 6), prefix=1)
    assert len(report.sites) == 3 and vit(images).shape == (2, 10)
    vit(images).square().sum().backward()
    assert all(p.grad is not None for row in plug.inserted(vit) for p in row.module.parameters())
