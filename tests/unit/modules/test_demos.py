"""The calls that readers bring from the lists in circulation, each on the input that its list shows it on.

A list's call is in the comment where its names differ. Inputs are re-arranged to this library's layouts.
"""

import pytest
import torch

import attn_lib
from attn_lib.channel_spatial import LogitCBAM

SAME = None  # the output has the shape of the (first) input

DEMOS = [
    ("se", dict(channels=512, reduction=8), [(50, 512, 7, 7)], SAME),
    ("cbam", dict(channels=64), [(1, 64, 64, 64)], SAME),
    ("eca", dict(channels=64, kernel_size=3), [(1, 64, 64, 64)], SAME),
    ("coord", dict(channels=64), [(1, 64, 64, 64)], SAME),  # CoordAtt(64, 64)
    ("simam", dict(channels=3), [(1, 3, 64, 64)], SAME),  # Simam_module()
    ("acmix", dict(channels=64), [(1, 64, 64, 64)], SAME),  # in_planes, out_planes
    ("axial", dict(channels=64, depth=12), [(1, 64, 64, 64)], SAME),  # AxialImageTransformer(dim=64)
    ("cot", dict(channels=64), [(1, 64, 64, 64)], SAME),
    ("triplet", dict(channels=512), [(50, 512, 7, 7)], SAME),
    ("s2mlpv2", dict(channels=512), [(50, 512, 7, 7)], SAME),
    # MultiDilateLocalAttention(dim=512): its default of 8 heads for 3 dilations is refused there as well
    ("dilateformer", dict(channels=512, heads=8, dilations=(1, 2, 3, 4)), [(1, 512, 16, 16)], SAME),
    ("danet", dict(channels=512), [(1, 512, 7, 7)], SAME),  # DAModule(d_model=512, H=7, W=7)
    ("ema", dict(channels=64), [(1, 64, 64, 64)], SAME),
    ("emsa", dict(channels=512, heads=8, ratio=2, transform=True), [(64, 512, 8, 8)], SAME),
    ("external", dict(channels=64, slots=8, layout="B N C"), [(64, 64, 64)], SAME),  # d_model=64, S=8
    ("pyraformer", dict(channels=64, heads=8, scales=4, children=2, neighbours=3), [(1, 8, 64)], (1, 15, 64)),
    ("safm", dict(channels=36), [(1, 36, 224, 224)], SAME),
    ("swiftformer", dict(channels=512, layout="B N C"), [(1, 50, 512)], SAME),  # in_dims, token_dim
    ("gam", dict(channels=64), [(1, 64, 20, 20)], SAME),
    ("epsa", dict(channels=512), [(3, 512, 64, 64)], SAME),  # PSA(channel=512, S=4)
    ("halo", dict(channels=512, block_size=2, halo_size=1), [(1, 512, 64, 64)], SAME),
    ("vip", dict(channels=512, height=8, width=8, segments=8), [(64, 512, 8, 8)], SAME),  # seg_dim=8
    ("sk", dict(channels=512, reduction=8), [(50, 512, 7, 7)], SAME),
    ("ufo", dict(channels=512, heads=8, layout="B N C"), [(64, 64, 512)], SAME),
    ("aspp", dict(channels=256, rates=(6, 12, 18)), [(2, 256, 13, 13)], SAME),
    ("shuffle", dict(channels=512, groups=8), [(50, 512, 7, 7)], SAME),  # G=8
    ("resnest", dict(channels=64), [(1, 64, 64, 64)], SAME),
    ("parnet", dict(channels=512), [(3, 512, 7, 7)], SAME),
    ("cloformer", dict(channels=64), [(1, 64, 64, 64)], SAME),
    ("biformer", dict(channels=64), [(1, 64, 64, 64)], SAME),
    ("stvit", dict(channels=64, token_size=(8, 8)), [(3, 64, 64, 64)], SAME),
    ("emo", dict(channels=64), [(3, 64, 64, 64)], SAME),  # iRMB(64, 64)
    ("ccnet", dict(channels=64), [(1, 64, 64, 64)], SAME),
    ("crossformer", dict(channels=64), [(1, 64, 64, 64)], SAME),  # a list prints its text over CCNet's code
    ("a2", dict(channels=64, m=128, n=128), [(1, 64, 64, 64)], SAME),
    ("fca", dict(channels=64, dct_h=16, dct_w=16), [(1, 64, 64, 64)], SAME),
    ("mtgnn", dict(channels=32), [(1, 24, 1, 32)], (1, 18, 1, 32)),  # B C N T there, and one more layer
    ("scconv", dict(channels=32), [(1, 32, 16, 16)], SAME),
    ("pconv", dict(channels=64, n_div=2), [(1, 64, 64, 64)], SAME),  # Partial_conv3(64, 2, "split_cat")
    *[("dilated", dict(channels=256, dilation=rate), [(2, 256, 13, 13)], SAME) for rate in (6, 12, 18)],
    *[("deform", dict(channels=64, modulation=v2), [(1, 64, 64, 64)], SAME) for v2 in (False, True)],
    ("depthwise_separable", dict(channels=64, out_channels=128), [(1, 64, 64, 64)], (1, 128, 64, 64)),
    ("mobilevit", dict(channels=3, dim=512, kernel_size=3, patch_size=7), [(1, 3, 49, 49)], SAME),
    ("mhsa", dict(channels=512, height=14, width=14, heads=4), [(1, 512, 14, 14)], SAME),
    ("mhsa", dict(channels=512, heads=4, position=None), [(1, 512, 14, 14)], SAME),
    ("soca", dict(channels=512), [(2, 512, 40, 56)], SAME),
    ("nam", dict(channels=64), [(1, 64, 20, 20)], SAME),
    ("gated", dict(channels=64), [(1, 64, 224, 224)] * 2, SAME),
    ("gated", dict(channels=64, layout="B T N C"), [(1, 10, 24, 64)] * 2, SAME),
    ("msf", dict(channels=64), [(1, 64, 192, 192)] * 4, SAME),
    ("msf", dict(channels=3), [(4, 3, 2, 2)] * 4, SAME),
    ("mfe", dict(channels=64, atrous_rates=(2, 4, 8)), [(1, 64, 192, 192)], SAME),
    # AFT_FULL(d_model=512, n=64)
    ("aft", dict(channels=512, length=64, rank=None), [(64, 64, 512)], SAME),
    ("seaformer", dict(channels=512, key_dim=64, heads=8), [(1, 512, 7, 7)], SAME),
    # DSConv(in_ch=5, out_ch=10, extend_scope=1, morph=0 and 1)
    *[("snake", dict(channels=5, out_channels=10, kernel_size=15, axis=axis), [(2, 5, 28, 20)], (2, 10, 28, 20))
      for axis in ("x", "y")],
    ("osra", dict(channels=64), [(1, 64, 7, 7)], SAME),
]


@pytest.mark.module("cbam")
def test_the_cbam_of_the_lists_returns_both_maps():
    """CBAMBlock(channel=64, reduction=8, kernel_size=7, HW=49): a class of the same file, not of the paper."""
    x = torch.randn(1, 64, 7, 7)
    maps = LogitCBAM(64, height=7, width=7, reduction=8)(x)
    assert [y.shape for y in maps] == [x.shape] * 2


@pytest.mark.parametrize(("id", "options", "inputs", "output"), [
    pytest.param(*demo, marks=pytest.mark.module(demo[0]), id=f"{demo[0]}-{k}") for k, demo in enumerate(DEMOS)])
@torch.no_grad()
def test_a_call_that_readers_bring(id, options, inputs, output):
    torch.manual_seed(0)
    y = attn_lib.create(id, **options).eval()(*(torch.randn(shape) for shape in inputs))
    assert tuple(y.shape) == (inputs[0] if output is SAME else output) and torch.isfinite(y).all()
