"""A network with inserted modules is copied, saved, exported and compiled like any other."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import state_dict as distributed
from torch.optim.swa_utils import AveragedModel

from attn_lib import plug
from tests.unit.library.plug.networks import ResNet, evaluate, gate
from tests.unit.reference import reference


@pytest.fixture
def process_group():
    """One process, talking to itself."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def plugged(resnet, x) -> ResNet:
    plug.insert(resnet, "layer1.*.bn3", gate, example=x)
    plug.insert(resnet, "layer1.1.bn3", "se", example=x)
    return resnet


def step(model: nn.Module, x: torch.Tensor) -> torch.optim.Optimizer:
    """One step of training; the optimiser is made for it."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()(x).square().sum().backward()
    optimiser.step()
    return optimiser


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


def test_a_norm_with_an_insertion_compiles(plugged, x):
    plugged.eval()
    torch.compiler.reset()
    compiled = torch.compile(plugged, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), plugged(x))


def test_functional_call(plugged, x):
    tensors = dict(plugged.eval().named_parameters()) | dict(plugged.named_buffers())
    doubled = {name: 2 * t if ".gate." in name else t for name, t in tensors.items()}
    called = torch.func.functional_call(plugged, doubled, (x,))
    with torch.no_grad():
        for name, p in plugged.named_parameters():
            if ".gate." in name:
                p.mul_(2)
    assert torch.equal(plugged(x), called)


def test_an_optimiser_trains_what_stood_there_when_it_was_made(resnet, x):
    early = torch.optim.SGD(resnet.parameters(), lr=0.1)
    plug.insert(resnet, "layer1.0.bn3", gate, example=x)
    before = {name: p.detach().clone() for name, p in resnet.named_parameters()}
    resnet.train()(x).square().sum().backward()
    early.step()
    # (The biases of convolutions before a batch norm stay in any case.)
    still = [name for name, p in resnet.named_parameters() if torch.equal(p, before[name]) and "weight" in name]
    assert still == ["layer1.0.bn3.gate.0.weight"], "as the docstring warns"
    late = step(resnet, x)
    assert not torch.equal(resnet.layer1[0].bn3.gate[0].weight, before[still[0]])
    held = [p for group in late.param_groups for p in group["params"]]
    assert all(p is q for p, q in zip(held, resnet.parameters(), strict=True)) and len(held) == len(before)


def test_an_average_of_weights(plugged, x):
    average = AveragedModel(plugged, avg_fn=lambda mean, new, _: (mean + new) / 2)
    before = {name: p.detach().clone() for name, p in plugged.named_parameters()}
    average.update_parameters(plugged)
    step(plugged, x)
    average.update_parameters(plugged)
    for name, p in plugged.named_parameters():
        torch.testing.assert_close(average.module.get_parameter(name), (before[name] + p) / 2)
    assert [row.calls for row in plug.inserted(average, x)] == [1, 1, 1]


def test_timms_average_of_weights(plugged, x):
    average = reference("timm.utils").ModelEmaV3(plugged, decay=0.5)
    before = plugged.layer1[0].bn3.gate[0].weight.detach().clone()
    step(plugged, x)
    average.update(plugged, step=2)  # in the first it copies
    mean = (before + plugged.layer1[0].bn3.gate[0].weight) / 2
    torch.testing.assert_close(average.module.layer1[0].bn3.gate[0].weight, mean)
    assert [row.calls for row in plug.inserted(average.module, x)] == [1, 1, 1]


def test_distributed_data_parallel(resnet, x, process_group):
    report = plug.insert(resnet, "layer1.*.bn3", gate, example=x)
    alone = copy.deepcopy(resnet)
    parallel = nn.parallel.DistributedDataParallel(resnet)
    step(alone, x)
    step(parallel, x)
    for (name, p), (_, q) in zip(alone.named_parameters(), resnet.named_parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name)
    report.check(parallel, example=x)
    assert [row.path for row in plug.inserted(parallel)] == [f"module.layer1.{i}.bn3.gate" for i in (0, 1)]


def test_sharded_parameters(plugged, x, process_group):
    expected, keys = evaluate(plugged, x), list(plugged.state_dict())
    fully_shard = pytest.importorskip("torch.distributed.fsdp").fully_shard
    for module in (*plugged.layer1, plugged):
        fully_shard(module, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    assert list(plugged.state_dict()) == keys
    with torch.no_grad():
        torch.testing.assert_close(plugged.eval()(x), expected)
    plugged.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in plugged.parameters())


def test_distributed_checkpoints(plugged, x):
    """They find every tensor by walking along the keys of `state_dict`."""
    optimiser = step(plugged, x)
    model, moments = distributed.get_state_dict(plugged, optimiser)
    assert list(model) == list(plugged.state_dict())
    other = ResNet()
    plug.insert(other, "layer1.*.bn3", gate)
    plug.insert(other, "layer1.1.bn3", "se")
    another = step(other, x)
    distributed.set_state_dict(other, another, model_state_dict=model, optim_state_dict=moments)
    assert torch.equal(evaluate(other, x), evaluate(plugged, x))
    for p, q in zip(plugged.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimiser.state[p]["momentum_buffer"], another.state[q]["momentum_buffer"])
