"""Weights of timm and torchvision in our modules: equal outputs, and an error that names what does not fit."""

from functools import partial

import pytest
import torch
from torch import nn

import attn_lib
from attn_lib import plug
from attn_lib.plug.weights import NAMES
from tests.unit.draw import D, randn, randomised
from tests.unit.reference import reference

TIMM, TIMM_SE = "timm.layers", "timm.layers.squeeze_excite"
LN = partial(nn.LayerNorm, eps=1e-6)

# id, options of ours, package, how theirs is made: what `Entry.counterpart` does not say already.
OTHERS = [
    ("se", dict(channels=64, reduction=8), "torchvision.ops.misc", lambda p: p.SqueezeExcitation(64, 8)),
    ("se", dict(channels=64, reduction=8, bias=False), TIMM, lambda p: p.SEModule(64, rd_channels=8, bias=False)),
    ("se", dict(channels=64, reduction=8), TIMM, lambda p: p.SEModule(64, rd_channels=8, bias=False)),
    ("se", dict(channels=24, reduction=4), "timm.models._efficientnet_blocks",
     lambda p: p.SqueezeExcite(24, rd_ratio=1 / 4)),
    ("se", dict(channels=8, reduction=4, bias=False), TIMM, lambda p: Copied(8, 4)),
    ("cbam", dict(channels=64, norm=True), "timm.layers.cbam", lambda p: p.CbamModule(64)),
    ("coord", dict(channels=64, reduction=8), "timm.layers.coord_attn", lambda p: p.CoordAttn(64, rd_channels=8)),
    ("sk", dict(channels=32, dilations=(1, 2, 3)), TIMM,
     lambda p: p.SelectiveKernel(32, groups=32, split_input=False, rd_divisor=32, kernel_size=[3, 5, 7])),
    ("resnest", dict(channels=48, radix=4, cardinality=2), "timm.layers.split_attn",
     lambda p: p.SplitAttn(48, radix=4, groups=2, norm_layer=nn.BatchNorm2d)),
    ("vit", dict(channels=12, heads=3), "timm.models.vision_transformer",
     lambda p: p.Block(12, 3, qkv_bias=True, norm_layer=LN)),
    ("vit", dict(channels=12, heads=3), "timm.models.vision_transformer", lambda p: p.Block(12, 3, norm_layer=LN)),
    ("vit", dict(channels=12, heads=3), "torchvision.models.vision_transformer",
     lambda p: p.EncoderBlock(3, 12, 48, 0.0, 0.0, LN)),
    ("halo", dict(channels=12, heads=3, block_size=4, halo_size=2, masked=False), "timm.layers.halo_attn",
     lambda p: p.HaloAttn(12, num_heads=3, dim_head=4, block_size=4, halo_size=2, scale_pos_embed=True)),
]
COUNTERPARTS = [id for id in attn_lib.list_modules() if attn_lib.entry(id).counterpart]


class Copied(nn.Module):
    """SE as it is pasted everywhere."""

    def __init__(self, channels, reduction):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, channels // reduction, bias=False), nn.ReLU(),
                                nn.Linear(channels // reduction, channels, bias=False), nn.Sigmoid())

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


def equal_outputs(id, options, theirs):
    """Ours with their weights, against them, with running statistics as after training."""
    theirs = randomised(theirs, scale=0.5).eval()
    for name, buffer in theirs.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(randn(*buffer.shape, seed=3))
        elif name.endswith("running_var"):
            buffer.copy_(randn(*buffer.shape, seed=4).square() + 0.5)
    ours = attn_lib.create(id, **options, dtype=D).eval()
    ours.load_state_dict(plug.convert(theirs.state_dict(), ours))
    e = attn_lib.entry(id)
    (shape,) = e.layout.shapes({"B": 2, "C": options["channels"], **e.sizes()})
    x = randn(*shape)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("id", COUNTERPARTS)
def test_the_counterparts_weights_go_in(id):
    e = attn_lib.entry(id)
    options = {**e.options(), **e.counterpart.options}
    equal_outputs(id, options, e.counterpart.make(reference(e.counterpart.package), **e.options()))


@pytest.mark.parametrize(("id", "options", "package", "make"), OTHERS)
def test_other_forms_go_in(id, options, package, make):
    equal_outputs(id, options, make(reference(package)))


def test_every_id_that_is_known_is_tested():
    assert set(NAMES) == {*COUNTERPARTS, *(id for id, *_ in OTHERS)}


def test_a_trained_network_keeps_its_output():
    """timm's SE in a ResNet, replaced by ours: the report says so, and a checkpoint goes in by its prefix."""
    timm = reference("timm")
    torch.manual_seed(0)
    net, x = timm.create_model("resnet18", num_classes=5, block_args=dict(attn_layer="se")).eval(), randn(2, 3, 32, 32)
    net, state = net.to(D), {key: value.clone() for key, value in net.to(D).state_dict().items()}

    def ours(theirs):
        se = attn_lib.create("se", theirs.fc1.in_channels, reduction=theirs.fc1.in_channels // theirs.fc1.out_channels)
        se.load_state_dict(plug.convert(theirs.state_dict(), se))
        return se

    report = plug.replace(net, "layer*.*.se", ours, example=x)
    assert len(report.sites) == 8 and report.change <= report.rounding and "unchanged" in report.output
    se = net.layer2[1].se
    again = plug.convert(state, se, prefix="layer2.1.se.")
    assert type(se) is attn_lib.entry("se").cls and all(torch.equal(again[k], v) for k, v in se.state_dict().items())


def test_nothing_is_changed():
    theirs, ours = reference(TIMM).SEModule(64, rd_channels=4), attn_lib.create("se", 64)
    before = {key: value.clone() for key, value in [*theirs.state_dict().items(), *ours.state_dict().items()]}
    plug.convert(theirs.state_dict(), ours)["W1.weight"].sum()
    after = dict([*theirs.state_dict().items(), *ours.state_dict().items()])
    assert all(torch.equal(after[key], value) for key, value in before.items())


def state_of(**change):
    state = {"fc1.weight": torch.ones(4, 64, 1, 1), "fc1.bias": torch.ones(4), "fc2.weight": torch.ones(64, 4, 1, 1),
             "fc2.bias": torch.ones(64)}
    return {key: value for key, value in (state | change).items() if value is not None}


@pytest.mark.parametrize(("state", "options", "said"), [
    (state_of(bn=torch.ones(4)), {}, r"does not fit SEAttention; left over: bn\. Was one of the two"),
    (state_of(**{"fc2.weight": None}), {}, r"missing: W2\.weight"),
    ({f"se.{k}": v for k, v in state_of().items()}, {},
     r"left over: se\.fc1\.weight, se\.fc1\.bias, .*missing: W1\.weight, .*does a prefix stand before the keys\?"),
    (state_of(), dict(bias=False), r"left over: fc1\.bias, fc2\.bias"),
    (state_of(), dict(reduction=8), r"'fc1\.weight' has shape \(4, 64, 1, 1\); 'W1\.weight' must have \(8, 64\)"),
    (state_of(**{"conv_reduce.weight": torch.ones(4, 64)}), {}, r"'conv_reduce\.weight' is 'W1\.weight', which"),
    (state_of(), dict(prefix="layer1."), r"prefix='layer1\.' begins no key of the state; its first is 'fc1\.weight'"),
])
def test_what_does_not_fit_is_named(state, options, said):
    prefix = options.pop("prefix", "")
    with pytest.raises(ValueError, match=said):
        plug.convert(state, attn_lib.create("se", 64, **options), prefix=prefix)


def test_rows_that_do_not_divide_are_named():
    ours = attn_lib.create("mhsa", 64, height=12, width=16)
    with pytest.raises(ValueError, match=r"'qkv\.weight' has shape \(100, 64, 1, 1\); it must have 192 rows"):
        plug.convert({"qkv.weight": torch.ones(100, 64, 1, 1)}, ours)


@pytest.mark.parametrize("module", [nn.Linear(2, 3), attn_lib.create("bam", 32)], ids=["Linear", "BAM"])
def test_a_module_without_names_is_refused(module):
    with pytest.raises(ValueError, match=rf"module={type(module).__name__} takes no weights that are known .* se,"):
        plug.convert({}, module)
