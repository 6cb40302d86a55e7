"""Sites that return tokens: (B, N, C) as in a ViT, (B, H, W, C) as in Swin."""

import copy

import pytest
import torch
from torch import Tensor, nn

import attn_lib
from attn_lib import plug

H, W, C = 3, 4, 12


class ViT(nn.Module):
    """A class token, then H · W tokens."""

    def __init__(self, prefix: int = 1):
        super().__init__()
        self.patches, self.norm, self.mlp = nn.Conv2d(3, C, 2, 2), nn.LayerNorm(C), nn.Linear(C, C)
        self.tokens = nn.Parameter(torch.randn(1, prefix, C))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.tokens.expand(len(x), -1, -1), x), 1)
        return x + self.mlp(self.norm(x)).view(len(x), -1, C)  # a view: what comes must lie as the network's own does


class Swin(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.mlp = nn.Conv2d(3, C, 2, 2), nn.LayerNorm(C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        return x + self.mlp(self.norm(x)).view(x.shape)


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 2 * H, 2 * W)


def before_and_after(net: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """What the site `mlp` returns, and what the network goes on with."""
    seen = {}
    net.mlp.site.register_forward_hook(lambda m, a, y: seen.update(before=y.detach().clone()))
    net.mlp.register_forward_hook(lambda m, a, y: seen.update(after=y.detach().clone()))
    net(image)
    return seen["before"], seen["after"]


def test_a_map_module_sees_the_map_and_no_class_token(image):
    net = ViT()
    report = plug.insert(net, "mlp", "se", example=image, tokens=(H, W), prefix=1, reduction=4)
    assert (report.sites[0].shape, report.sites[0].channels) == ((2, 1 + H * W, C), C)
    x, y = before_and_after(net, image)
    for b in range(2):  # by hand, position by position
        feature_map = torch.empty(1, C, H, W)
        for i in range(H):
            for j in range(W):
                feature_map[0, :, i, j] = x[b, 1 + i * W + j]
        expected = net.mlp.se(feature_map)
        assert torch.equal(y[b, 0], x[b, 0])
        for i in range(H):
            for j in range(W):
                torch.testing.assert_close(y[b, 1 + i * W + j], expected[0, :, i, j])


def test_rows_and_columns_are_not_exchanged(image):
    """A module that is no friend of permutations: a convolution along rows."""
    def along_rows(channels):
        return nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))

    for net, prefix in ((ViT(2), 2), (Swin(), 0)):
        plug.insert(net, "mlp", along_rows, example=image, tokens=(H, W), prefix=prefix)
        x, y = before_and_after(net, image)
        maps = x[:, prefix:].reshape(2, H, W, C).permute(0, 3, 1, 2)
        expected = net.mlp.along_rows(maps).permute(0, 2, 3, 1).reshape(y[:, prefix:].shape)
        torch.testing.assert_close(y[:, prefix:], expected)


def test_a_token_module(image):
    """In a sequence without its prefix, in a grid row by row."""
    vit, swin = ViT(), Swin()
    plug.insert(vit, "mlp", "vit", example=image, prefix=1, heads=3)
    x, y = before_and_after(vit, image)
    torch.testing.assert_close(y, torch.cat((x[:, :1], vit.mlp.vit(x[:, 1:])), 1))
    plug.insert(swin, "mlp", "vit", example=image, tokens=True, heads=3)
    x, y = before_and_after(swin, image)
    torch.testing.assert_close(y, swin.mlp.vit(x.reshape(2, H * W, C)).reshape(x.shape))
    with_class_token = ViT()
    plug.insert(with_class_token, "mlp", "vit", example=image, heads=3)
    x, y = before_and_after(with_class_token, image)
    torch.testing.assert_close(y, with_class_token.mlp.vit(x))


@pytest.mark.parametrize("make", [ViT, Swin])
def test_an_identity_changes_no_bit(make, image):
    net = make()
    before, keys = net(image), list(net.state_dict())
    report = plug.insert(net, "mlp", "ccnet", example=image, tokens=(H, W), prefix=int(make is ViT), reduction=4)
    assert report.change == 0 and torch.equal(net(image), before)
    assert next(key for key in net.state_dict() if key not in keys) == "mlp.ccnet.gamma"
    assert torch.equal(copy.deepcopy(net)(image), before)
    net(image).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    report.undo()
    assert list(net.state_dict()) == keys


def test_in_the_place_of_a_site(image):
    """The class token goes past the new module, as what it was."""
    vit, swin = ViT(), Swin()
    report = plug.replace(vit, "mlp", "vip", example=image, tokens=(H, W), prefix=1, segments=2)
    vip = vit.mlp.module
    x = vit.norm(torch.cat((vit.tokens.expand(2, -1, -1), vit.patches(image).flatten(2).transpose(1, 2)), 1))
    expected = vip(x[:, 1:].transpose(1, 2).reshape(2, C, H, W)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(vit.mlp(x), torch.cat((x[:, :1], expected), 1))
    assert (vip.height, vip.width) == (H, W) and report.sites[0].shape == (2, 1 + H * W, C)
    report.check(example=image)
    assert torch.equal(vit.mlp(x, attn_mask=None, is_causal=False), vit.mlp(x))
    with pytest.raises(TypeError, match="attn_mask is given, but WeightedPermuteMLP takes tokens alone"):
        vit.mlp(x, attn_mask=torch.ones(1))
    report.undo()
    assert type(vit.mlp) is nn.Linear
    plug.replace(swin, "mlp", "vit", example=image, tokens=True, heads=3)
    x = torch.randn(2, H, W, C)
    torch.testing.assert_close(swin.mlp(x), swin.mlp.module(x.reshape(2, H * W, C)).reshape(x.shape))
    assert swin(image).shape == (2, H, W, C)


@pytest.mark.parametrize("make", [ViT, Swin])
def test_compiles_and_exports(make, image):
    net = make().eval()
    plug.insert(net, "mlp", "se", example=image, tokens=(H, W), prefix=int(make is ViT), reduction=4)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(image), net(image))
    torch.testing.assert_close(torch.export.export(net, (image,)).module()(image), net(image))


def test_sizes_are_those_of_the_tokens(image):
    net = ViT()
    plug.insert(net, "mlp", "vip", example=image, tokens=(H, W), prefix=1, segments=2)
    assert (net.mlp.vip.height, net.mlp.vip.width) == (H, W)
    seen = []
    swin = Swin()
    plug.insert(swin, "mlp", "se", example=image, tokens=True, reduction=lambda site: seen.append(site.shape) or 4)
    assert seen == [(2, C, H, W)]


def test_a_square_is_read_off_the_example():
    net, image = ViT(), torch.randn(1, 3, 8, 8)
    plug.insert(net, "mlp", "se", example=image, tokens=True, prefix=1, reduction=4)
    with attn_lib.trace(net) as t:
        net(image)
    assert t.shapes()["mlp.se.y"] == (1, C, 4, 4)


def test_a_grid_may_have_another_size_later(image):
    swin = Swin()
    plug.insert(swin, "mlp", "se", example=image, tokens=(H, W), reduction=4)
    assert swin(torch.randn(1, 3, 10, 14)).shape == (1, 5, 7, C)
    vit = ViT()
    plug.insert(vit, "mlp", "se", example=image, tokens=(H, W), prefix=1, reduction=4)
    with pytest.raises(ValueError, match=r"the sequence has 36 tokens; tokens=\(3, 4\) and prefix=1 make 13"):
        vit(torch.randn(1, 3, 10, 14))


def test_what_does_not_fit_is_named(image):
    def refused(net, match, module="se", example=image, site="mlp", **options):
        keys = list(net.state_dict())
        with pytest.raises(ValueError, match=match):
            plug.insert(net, site, module, example=example, **options)
        assert list(net.state_dict()) == keys

    refused(ViT(), r"returns shape \(2, 13, 12\); the module needs \(B, C, H, W\); for tokens pass tokens=\(H, W\)")
    refused(ViT(), r"returns 13 tokens; tokens=\(3, 4\) and prefix=0 make 12; prefix=1 would fit", tokens=(H, W))
    refused(ViT(), r"tokens=\(4, 4\) and prefix=1 make 17$", tokens=(4, 4), prefix=1)
    refused(ViT(), r"returns 13 tokens, 12 without the prefix of 1: no square", tokens=True, prefix=1)
    refused(ViT(), r"the module needs maps: pass tokens=\(H, W\)", prefix=1)
    refused(ViT(), r"prefix=13 leaves none", module="vit", prefix=13)
    refused(ViT(), "prefix=-1 must be an integer of at least 0", prefix=-1)
    refused(ViT(), r"tokens='all' must be \(H, W\), or True", tokens="all")
    refused(ViT(), r"tokens\[1\]=0 must be", tokens=(3, 0))
    refused(ViT(), "need example=", example=None, tokens=(H, W))
    refused(Swin(), r"for \(B, H, W, C\) pass tokens=\(H, W\)")
    refused(Swin(), r"tokens=\(4, 3\) must be \(3, 4\)", tokens=(W, H))
    refused(Swin(), r"prefix=1 needs tokens \(B, N, C\)", tokens=True, prefix=1)
    refused(ViT(), "has 12 channels but returns shape", tokens=True, site="patches")  # a map is taken for a grid
    refused(nn.Sequential(nn.Linear(6, 8)), r"tokens are \(B, N, C\) or \(B, H, W, C\)", example=torch.randn(2, 6),
            site="0", tokens=True)
