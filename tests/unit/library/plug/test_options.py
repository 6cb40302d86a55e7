"""Options: what a module does not know is named, however the module was given."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import attn_lib
from attn_lib import plug
from attn_lib.channel import SEAttention
from tests.unit.library.plug.networks import assert_same_state, snapshot


def handed_on(channels, **options):
    return SEAttention(channels, **options)


def narrow(conv, width=3):
    return nn.Conv2d(conv.in_channels, conv.out_channels, width, padding=width // 2)


def broken(channels, **options):
    return len(channels)


@pytest.mark.parametrize("module", ["se", SEAttention, handed_on, lambda c: SEAttention(c), nn.BatchNorm2d],
                         ids=["id", "class", "function that hands its options on", "function", "somebody's class"])
@pytest.mark.parametrize("edit", [plug.insert, plug.replace])
def test_an_option_that_the_module_does_not_know_is_named(resnet, x, module, edit):
    before = snapshot(resnet)
    with pytest.raises(ValueError, match="no_such"):
        edit(resnet, "layer1.*.bn3", module, example=x, no_such=1)
    assert_same_state(resnet, before)


@pytest.mark.parametrize(("module", "name"), [("se", "channels"), (SEAttention, "channels"), ("deform", "channels"),
                                              (handed_on, "channels"), (nn.BatchNorm2d, "num_features")])
@pytest.mark.parametrize("edit", [plug.insert, plug.replace])
def test_what_the_network_says_is_no_option(resnet, x, module, name, edit):
    with pytest.raises(ValueError, match=name):
        edit(resnet, "layer1.0.conv2", module, example=x, **{name: 8})


def test_the_first_argument_needs_no_name_that_we_know(resnet, x):
    with pytest.raises(ValueError, match="dim=8 must be left out: it is read off the network"):
        plug.insert(resnet, "layer1.0.bn3", lambda dim: nn.BatchNorm2d(dim), example=x, dim=8)
    plug.insert(resnet, "layer1.0.bn3", lambda dim: nn.BatchNorm2d(dim), example=x)


def test_the_options_there_are_are_listed(resnet, x):
    with pytest.raises(ValueError, match=r"ratio=4 is no option of se; its options are: .*reduction"):
        plug.insert(resnet, "layer1.0.bn3", "se", example=x, ratio=4)
    with pytest.raises(ValueError, match="kernel=4 is no option of narrow; its options are: width"):
        plug.replace(resnet, "layer2.0.conv2", narrow, example=x, kernel=4)


@pytest.mark.parametrize("name", ["no_such", "kernel_size"])  # unknown, and taken from the convolution
def test_options_of_a_convolution_taken_over(resnet, x, name):
    with pytest.raises(ValueError, match=rf"site 'layer2.0.conv2'.*'{name}'"):
        plug.replace(resnet, "layer2.0.conv2", "deform", example=x, **{name: 1})


def test_a_missing_option_is_named(resnet):
    with pytest.raises(ValueError, match="'height'; it can be read off example="):
        plug.insert(resnet, "layer1.0.bn3", "vip", segments=2)


def test_sizes_are_read_off_the_example(resnet, x):
    report = plug.insert(resnet, "layer[12].1.bn3", "vip", example=x, segments=2)
    assert [(row.module.height, row.module.width) for row in plug.inserted(resnet)] == [(12, 10), (6, 5)]
    report.undo()
    plug.replace(resnet, "layer1.1.conv2", "vip", example=x, segments=2)
    assert (resnet.layer1[1].conv2.height, resnet.layer1[1].conv2.width) == (12, 10)
    with pytest.raises(ValueError, match="axis H must be 7, not 12"):
        plug.insert(resnet, "layer1.1.bn3", "vip", example=x, segments=2, height=7, width=10)
    plug.insert(resnet, "layer1.1.bn3", "mhsa", example=x)  # whose default, None, will not do with positions
    assert (resnet.layer1[1].bn3.mhsa.height, resnet.layer1[1].bn3.mhsa.width) == (12, 10)
    with pytest.raises(ValueError, match="segments=3"):
        plug.insert(resnet, "layer1.1.bn3", "vip", example=x, segments=3)


@pytest.mark.parametrize(("options", "sizes"), [({}, (None, None)), ({"form": "spatial"}, (12, 10))])
def test_sizes_are_filled_in_only_where_they_are_needed(resnet, x, options, sizes):
    plug.insert(resnet, "layer1.1.bn3", "nam", example=x, **options)
    assert (resnet.layer1[1].bn3.nam.height, resnet.layer1[1].bn3.nam.width) == sizes


def test_a_length_is_read_off_the_example():
    encoder = nn.Sequential(nn.Linear(6, 8))
    plug.insert(encoder, "0", "aft", example=torch.randn(2, 7, 6), rank=None)
    assert encoder[0].aft.length == 7


def test_frames_are_read_off_the_example():
    video = nn.Sequential(nn.Conv3d(3, 8, 1))
    plug.insert(video, "0", "tam", example=torch.randn(1, 3, 6, 5, 4))
    assert video[0].tam.frames == 6


def test_an_option_may_be_a_function_of_the_site(resnet, x):
    seen = []

    def reduction(site):
        seen.append(site)
        return 4 if site.channels == 32 else 8

    plug.insert(resnet, "layer[12].0.bn3", "se", example=x, reduction=reduction)
    assert [row.module.W1.out_features for row in plug.inserted(resnet)] == [8, 6]
    assert [(s.path, s.channels, s.shape) for s in seen] == [("layer1.0.bn3", 32, (2, 32, 12, 10)),
                                                             ("layer2.0.bn3", 48, (2, 48, 6, 5))]
    assert seen[0].module is resnet.layer1[0].bn3.site
    plug.replace(resnet, "layer2.1.conv2", "deform", example=x, modulation=lambda site: site.channels > 8)
    assert not resnet.layer2[1].conv2.modulation

    def normed(channels, norm):  # others' functions take functions as they are
        return norm(channels)

    plug.insert(resnet, "layer1.1.bn3", normed, example=x, norm=nn.BatchNorm2d)


def test_a_fault_of_the_modules_own_stays_one(resnet, x):
    with pytest.raises(TypeError, match="has no len"):
        plug.insert(resnet, "layer1.0.bn3", broken, example=x, reduction=4)


def test_an_option_reaches_the_module(resnet, x):
    for module in ("se", SEAttention, handed_on, partial(SEAttention, bias=False)):
        report = plug.insert(resnet, "layer1.0.bn3", module, example=x, reduction=4)
        (added,) = [m for m in resnet.modules() if isinstance(m, SEAttention)]
        assert added.W1.out_features == 8
        report.undo()


def test_a_module_of_several_layouts_is_put_where_its_option_says(monkeypatch):
    class Either(nn.Identity):
        def __init__(self, channels, *, layout="B C H W"):
            super().__init__()
            self.channels = channels

    entry = copy.copy(attn_lib.entry("se"))
    object.__setattr__(entry, "cls", Either)
    monkeypatch.setitem(attn_lib.catalog._ENTRIES, "se", entry)
    encoder, tokens = nn.Sequential(nn.Linear(6, 10)), torch.randn(2, 7, 6)
    plug.insert(encoder, "0", "se", example=tokens, layout="B N C")
    assert encoder[0].se.channels == 10
    with pytest.raises(ValueError, match=r"the module needs \(B, C, H, W\)"):
        plug.insert(nn.Sequential(nn.Linear(6, 10)), "0", "se", example=tokens)


@pytest.mark.parametrize("edit", [plug.insert, plug.replace])
def test_a_module_of_several_inputs_is_refused(resnet, x, edit):
    with pytest.raises(ValueError, match=r"takes several inputs, \(B, C, H, W\) and \(B, C, H, W\); it can"):
        edit(resnet, "layer1.0.bn3", "gated", example=x)


@pytest.mark.parametrize("edit", [plug.insert, plug.replace])
def test_what_is_made_must_be_a_module(resnet, x, edit):
    with pytest.raises(ValueError, match=r"must make a torch\.nn\.Module, not a str"):
        edit(resnet, "layer1.0.bn3", lambda _: "SE", example=x)


class ByName(nn.Module):
    """A network whose arguments are given by name."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, *, image, scale):
        return {"y": self.net(image) * scale}


@pytest.mark.parametrize("measure_time", [False, True])
def test_an_example_may_be_a_dictionary_of_arguments(resnet, x, measure_time):
    """The same as the network inside of it learns from a tuple; what is compared is the output that it has."""
    direct = plug.insert(copy.deepcopy(resnet), "layer1.0.bn3", "se", example=x, reduction=4)
    torch.manual_seed(0)
    report = plug.insert(ByName(resnet), "net.layer1.0.bn3", "se", reduction=4, measure_time=measure_time,
                         example={"image": x, "scale": 1.0})
    assert (report.flops, report.params) == (direct.flops, direct.params)
    assert report.sites[0].shape == direct.sites[0].shape and report.change > 0
    assert (report.time is not None) == measure_time
