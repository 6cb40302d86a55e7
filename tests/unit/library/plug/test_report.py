"""What a report counts, compares and says; networks return more than tensors."""

import pytest
import torch
from torch import nn

import attn_lib
from attn_lib import plug
from tests.unit.library.plug.networks import Head, Named, Pair


def test_counts(resnet, x):
    params = sum(p.numel() for p in resnet.parameters())
    flops = attn_lib.measure.flops(resnet.eval(), x)
    report = plug.insert(resnet, "layer1.*.bn3", "se", example=x, reduction=4)
    each = 2 * 32 * 8 + 32 + 8
    assert [s.params for s in report.sites] == [each, each]
    assert report.params == (params, params + 2 * each)
    # Two images, two sites, two products of 32 × 8, two operations a multiply-add.
    assert report.flops == (flops, flops + 2 * 2 * 2 * 32 * 8 * 2)


def test_reads_well_and_does_not_vary(resnet, x):
    report = plug.insert(resnet, "layer1.*.bn3", "ccnet", example=x)
    params, flops = report.params, report.flops
    more = flops[1] - flops[0]
    assert str(report) == "\n".join([
        "ccnet: inserted after 2 places",
        "",
        "  site          channels  shape            calls  parameters",
        "  layer1.0.bn3        32  (2, 32, 12, 10)      1       1,321",
        "  layer1.1.bn3        32  (2, 32, 12, 10)      1       1,321",
        "",
        f"parameters  {params[0]:,} → {params[1]:,} (+2,642, {2642 / params[0]:+.1%})",
        f"FLOPs       {flops[0]:,} → {flops[1]:,} ({more:+,}, {more / flops[0]:+.1%})",
        "output      unchanged, bit for bit",
    ])


def test_time_is_apart_and_on_request(resnet, x):
    report = plug.insert(resnet, "layer1.0.bn3", "se", example=x, measure_time=True)
    assert report.time["after"].median > 0
    assert str(report).startswith(report.summary()) and "\ntime" in str(report) and "\ntime" not in report.summary()
    with pytest.raises(ValueError, match="measure_time=True needs example="):
        plug.insert(resnet, "layer1.1.bn3", "ccnet", measure_time=True)


def test_a_named_tuple(x):
    report = plug.insert(Head(Pair), "a", "se", example=x)
    assert report.change > 0
    with pytest.raises(ValueError, match="site 'form' returns a Pair"):
        plug.insert(Head(Named()), "form", "se", example=x)


def test_no_tensor(x):
    report = plug.insert(Head(lambda y: y.sum().item()), "a", "se", example=x)
    assert report.change is None and report.flops is not None
    assert report.output == "not compared: the network returned no tensor"


def test_as_many_entries_as_the_values_ask_for(x):
    """As a detector returns boxes."""
    report = plug.insert(Head(lambda y: y[y > 0.5]), "a", "se", example=x)
    assert report.output == "changed: it has other shapes than before, or infinite entries"
    report.undo()


def test_infinite_entries(x):
    report = plug.insert(Head(lambda y: torch.where(y > 0.5, torch.inf, 0.0)), "a", "se", example=x)
    assert report.output in ("changed: it has other shapes than before, or infinite entries",
                             "not a number somewhere, before or after")


@pytest.mark.parametrize("order", [1, -1])
def test_not_a_number(x, order):
    report = plug.insert(Head(lambda y: (y, y * float("nan"))[::order]), "a", "se", example=x)
    assert report.output == "not a number somewhere, before or after"


class Shift(nn.Module):
    """Adds a little."""

    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x + 1e-3


@pytest.mark.parametrize("order", [1, -1])
def test_each_tensor_has_a_tolerance_of_its_own(x, order):
    """Boxes up to 640 must not hide that scores up to 1 have changed by 1e-3."""
    def detections(y):
        scores = torch.cat((y[:, :1].detach() * 0 + 1, y[:, 1:]), 1)
        return (scores * 0 + 640, scores)[::order]

    model = Head(detections)
    nn.init.zeros_(model.b.weight)
    nn.init.zeros_(model.b.bias)
    report = plug.insert(model, "b", Shift, example=x)
    assert report.change == pytest.approx(1e-3) and report.scale == 1 and report.change > report.rounding
    assert report.tensor == (1 if order == 1 else 0)
    assert report.output.startswith(f"changed (largest change 1.0e-03 in tensor {report.tensor} of the output, largest")


def test_several_tensors_unchanged(x):
    report = plug.insert(Head(lambda y: (y, 640 + y)), "a", nn.Identity, example=x)
    assert report.change == 0 and report.output.startswith("unchanged")
    report = plug.insert(Head(lambda y: y), "a", nn.Identity, example=x)
    assert report.tensor is None


def test_a_layer_at_the_end_of_two_sequentials(x):
    last = nn.Conv2d(3, 16, 1)
    model = nn.ModuleDict({"p": nn.Sequential(nn.ReLU(), last), "q": nn.Sequential(nn.Identity(), last)})
    model.forward = lambda x: model["p"](x) + model["q"](x)
    with pytest.warns(UserWarning, match="called 2 times"):
        report = plug.insert(model, "?", "se", example=x)
    assert [site.path for site in report.sites] == ["p.1"]
