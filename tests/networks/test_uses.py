"""The uses tell a network that keeps its modules from one that loses them."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental import optimization

import attn_lib
from attn_lib import plug
from book.tools import networks as explained
from book.tools.record import load
from tests.networks import matrix, uses
from tests.networks.networks import NETWORKS, Network, Row, block, options_for, plan
from tests.unit.library.plug.networks import gate


class Small(nn.Module):
    """A network in which every use works in a moment."""

    def __init__(self):
        super().__init__()
        self.body, self.head = block(3, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Gated(Network):
    """Takes a gate that every converter knows, whatever the module is called."""

    def put(self, model: nn.Module, id: str, x: Tensor) -> plug.Report:
        return plug.insert(model, self.sites, gate, example=x)


def place(make) -> Network:
    return Gated(make, (3, 8, 8), "body", 8, (8, 8))


SMALL = place(Small)


def test_the_table_of_the_page_has_a_column_for_every_use():
    assert list(explained.USES) == list(uses.USES)


@pytest.mark.parametrize("use", uses.USES)
def test_every_use_works_for_a_network_alone(use):
    cell = matrix.verdict_of(uses.USES[use], uses.Case(SMALL, None))
    assert cell in (explained.YES, None), cell


def losing(convert):
    """What a converter does that rebuilds a network without its insertions."""

    def lose(model, *args, **kwargs):
        model = copy.deepcopy(model)
        plug.remove(model)
        return convert(model, *args, **kwargs)

    return lose


LOSSES = {  # use -> where the function stands that it calls, and its name
    "ema": (uses.swa_utils, "AveragedModel"),
    "ddp": (nn.parallel, "DistributedDataParallel"),
    "sync": (nn.SyncBatchNorm, "convert_sync_batchnorm"),
    "fuse": (optimization, "fuse"),
    "quantise": (uses.quantize_fx, "prepare_fx"),
    "compile": (torch, "compile"),
    "export": (torch.export, "export"),
    "trace": (torch.jit, "trace"),
}


@pytest.mark.parametrize("use", LOSSES)
def test_a_use_that_loses_the_modules_does_not_pass(use, monkeypatch):
    where, name = LOSSES[use]
    monkeypatch.setattr(where, name, losing(getattr(where, name)))
    cell = matrix.verdict_of(uses.USES[use], uses.Case(SMALL, "gate"))
    assert re.match(r"no: .*(is gone|the output is off by|must match the size)", cell), cell


def test_training_does_not_pass_without_a_gradient(monkeypatch):
    case = uses.Case(SMALL, "gate")
    uses.train(case)
    for p in case.new_parameters(case._model).values():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match=r"^body\.2\.gate\.0\.weight has no gradient"):
        uses.train(case)


def test_training_does_not_pass_where_nothing_is_learned(monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    with pytest.raises(ValueError, match="the loss does not fall"):
        uses.train(uses.Case(SMALL, "gate"))


def test_a_module_that_nothing_depends_on_is_not_said_to_have_run():
    case = uses.Case(SMALL, "gate")
    case.effect = [0.0]
    with pytest.raises(ValueError, match="too little to tell"):
        case.check_output(case.expected)


def test_a_trace_that_freezes_what_depends_on_the_input_does_not_pass():
    class Frozen(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + float(x.mean())

    case = uses.Case(place(Frozen), None)
    with pytest.raises(ValueError, match="the output is off by"):
        uses.traced(case)


def test_nothing_to_do_is_neither_yes_nor_no():
    class Bare(Small):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 8, 1)

    case = uses.Case(place(Bare), "gate")
    assert matrix.verdict_of(uses.sync_batch_norm, case) == "none: the network holds no batch norm"


def test_what_cannot_be_put_there_is_refused_with_the_sentence():
    row = matrix.run("video network", "se")
    assert row["cells"] == {} and row["refused"].startswith("ValueError: site 'bn1' returns shape (2, 16, 6, 12, 12)")


def test_what_the_network_alone_cannot_is_not_tried(monkeypatch):
    monkeypatch.setitem(NETWORKS, "small", SMALL)
    monkeypatch.setattr(matrix, "USES", {"trace": lambda case: pytest.fail("tried")})
    row = matrix.run("small", "gate", {"trace": "no: KeyError: 'x'"})
    assert row["cells"] == {"trace": "no: the network alone does not either: KeyError: 'x'"}
    assert explained.parted(row["cells"]["trace"]) == ("no", f"{matrix.ALONE}KeyError: 'x'")


def test_a_sentence_is_the_same_on_every_machine():
    error = RuntimeError("\x1b[31m\nIn /home/me/lib/torch/x.py: object at 0x7f00ab is\x1b[0m\nsecond line")
    assert matrix.sentence(error) == "RuntimeError: In …/x.py: object at … is"
    assert matrix.sentence(KeyError()) == "KeyError"


def test_the_plan_holds_every_module_and_every_family_and_network():
    rows = plan()
    assert {id for _, id in rows} == {None, *attn_lib.list_modules()}
    assert {network for network, _ in rows} == set(NETWORKS) and len(set(rows)) == len(rows)
    for network in NETWORKS:
        ids = [id for name, id in rows if name == network]
        assert ids[0] is None and {attn_lib.entry(id).family for id in ids[1:]} == set(attn_lib.catalog.FAMILIES)


def test_options_are_those_that_the_place_asks_for():
    assert options_for(attn_lib.entry("mhsa"), 64, (8, 6)) == {"height": 8, "width": 6}
    assert options_for(attn_lib.entry("tam"), 16, (5, 8, 6)) == {"frames": 5}
    assert options_for(attn_lib.entry("aspp"), 24, (8, 6)) == {"out_channels": 24}
    assert options_for(attn_lib.entry("se"), 24, (8, 6)) == {}


def test_a_row_of_yaml_stands_between_a_layer_and_whoever_read_it():
    config = {"backbone": [[-1, 1, "Conv", [8]], [-1, 1, "Conv", [8]], [-1, 1, "Conv", [8]]],
              "head": [[[-1, 1], 1, "Concat", [1]], [[0, 3], 1, "Detect", []]]}
    one, two = copy.deepcopy(config), copy.deepcopy(config)
    Row(2).write(one, "CBAM", {"reduction": 8}, two=False)
    assert one["backbone"] == [[-1, 1, "Conv", [8]], [-1, 1, "Conv", [8]], [-1, 1, "CBAM", [{"reduction": 8}]],
                               [-1, 1, "Conv", [8]]]
    assert one["head"] == [[[-1, 2], 1, "Concat", [1]], [[0, 4], 1, "Detect", []]]
    Row(2).write(two, "GatedFusion", {}, two=True)
    assert two["backbone"][2] == [[-1, 0], 1, "GatedFusion", []]


def test_an_output_of_any_form_is_a_list_of_tensors():
    a, b, c = torch.rand(3)
    assert uses.flatten({"y": (a, [b]), "z": c}) == [a, b, c]


# --- the record -------------------------------------------------------------------------------------------------------

def row(module, **cells):
    return {"network": "n", "module": module, "cells": cells}


def test_what_became_worse_is_told_from_what_became_better():
    before = {"rows": [row("se", trace="yes", onnx="no: x", ema="yes"), {**row("eca"), "refused": "y"}]}
    after = {"rows": [row("se", trace="no: z", onnx="yes", ema="yes", ddp="no: new"), row("eca", trace="yes")]}
    worse, better = matrix.changes(before, after)
    assert worse == ["n, se, trace: no: z"] and better == ["n, se, onnx: yes", "n, eca, being there: yes"]


def test_what_is_refused_wants_a_reason_as_well():
    rows = [{**row("se", trace="no: KeyError: 'a'", ddp="none: b"), "refused": "c"}, row("eca", trace="no: not Proxy")]
    assert explained.unexplained({"rows": rows}) == ["KeyError: 'a'", "c"]
    assert "stand-in without a shape" in explained.explanation("ValueError: x must be a tensor …, not Proxy")


def test_every_no_of_the_record_is_explained():
    assert explained.unexplained(load(explained.FILE)) == []
