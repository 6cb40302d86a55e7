"""What people do with a network that they have put modules into: one function each, which returns or raises.

A use passes where the inserted modules ran once for each call of their site, and the output is that of the network with
them, as exactly as float32 lets it be. A recorded graph has no modules to count; there it tells that without them the
output would differ by more than ten times what is let pass. For training, the loss must fall and every new parameter
learn.
"""

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module, util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx
from torch.optim import swa_utils

from tests.networks.networks import Network

TOLERANCE = 1e-4  # of the largest entry of an output tensor: a graph may sum in another order


class NothingToDo(Exception):
    """The use does not apply to this network; says why."""


class NotInstalled(Exception):
    """The use needs a package that is not there."""


class Case:
    """A network with a module in it, or without: what every use starts from.

    Args:
        network: where.
        id: of the module; None for the network alone.

    Raises:
        ValueError: if the module cannot be put there.
    """

    def __init__(self, network: Network, id: str | None):
        self.network = network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.x, self.other = (torch.randn(2, *network.shape) for _ in range(2))
            self._model, self.placed = network.build(id, torch.cat([self.x, self.other]))
            for p in self.new_parameters(self._model).values():  # nothing is the identity
                p.data += 0.2 * torch.randn_like(p)
        self.expected = outputs(self._model, self.x)
        exact = outputs(self.model().double(), self.x.double())
        # Some networks round more than that: sampling at a place that depends on the input is steep.
        self.limits = [max(TOLERANCE * largest(e), 10 * largest(e - d))
                       for e, d in zip(self.expected, exact, strict=True)]
        self.effect = [0.0] * len(self.expected)
        if id:
            bare = self.model()
            self.placed.remove(bare)
            self.effect = [largest(a - b) for a, b in zip(self.expected, outputs(bare, self.x), strict=True)]
            self.check_calls(self._model)

    def model(self) -> nn.Module:
        """A copy, in evaluation mode."""
        return copy.deepcopy(self._model)

    @property
    def inserted(self) -> bool:
        return self.placed is not None

    def new_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Those of the inserted modules, by name."""
        return self.placed.parameters(model) if self.placed else {}

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        return torch.export.export(self.model(), (self.x,))

    def check_calls(self, model: nn.Module) -> None:
        """Every inserted module is there, and runs once for each call of its site."""
        if self.placed is not None:
            self.placed.check(model, self.x)

    def check_output(self, got: Any, expected: list[Tensor] | None = None) -> None:
        """An output on `x` must be that of the network with the module, and not that without it."""
        got = [torch.as_tensor(t) for t in flatten(got)]
        expected = self.expected if expected is None else expected
        if [g.shape for g in got] != [e.shape for e in expected]:
            raise ValueError(f"the output has shapes {[tuple(g.shape) for g in got]} instead of "
                             f"{[tuple(e.shape) for e in expected]}")
        for g, e, limit in zip(got, expected, self.limits, strict=True):
            if not (error := largest(g - e)) <= limit:
                raise ValueError(f"the output is off by {error:.1e}, largest entry {largest(e):.1e}")
        noticed = any(change > 10 * limit for change, limit in zip(self.effect, self.limits, strict=True))
        if self.inserted and not noticed:
            raise ValueError("the module changes the output by too little to tell whether it ran")


def flatten(output: Any) -> list[Any]:
    """The tensors of an output, whatever holds them."""
    output = output.values() if isinstance(output, dict) else output
    return [output] if hasattr(output, "shape") else [t for part in output for t in flatten(part)]


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return flatten(model(x))


def largest(t: Tensor) -> float:
    return t.abs().max().item()


def package(name: str) -> ModuleType:
    if util.find_spec(name) is None:
        raise NotInstalled(name)
    return import_module(name)


def norms(model: nn.Module) -> list[nn.Module]:
    kinds = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d
    return [m for m in model.modules() if isinstance(m, kinds)]


# --- training ---------------------------------------------------------------------------------------------------------


def train(case: Case) -> None:
    """Four steps in bfloat16: the loss falls, and every new parameter has a gradient and moves."""
    model = case.model().train()
    x = torch.cat([case.x, case.other])
    targets = [torch.randn_like(y, memory_format=torch.contiguous_format) for y in outputs(model, x)]
    before = {name: p.clone() for name, p in case.new_parameters(model).items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)  # small enough for every network
    losses, moved = [], set()
    for _ in range(5):
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            ys = flatten(model(x))
        loss = sum((y.float() - t).square().mean() for y, t in zip(ys, targets, strict=True))
        loss.backward()
        losses.append(loss.item())
        for name, p in case.new_parameters(model).items():
            if p.grad is None or not p.grad.isfinite().all():
                raise ValueError(f"{name} has {'no' if p.grad is None else 'no finite'} gradient")
            moved |= {name} if p.grad.abs().sum() > 0 else set()
        optimiser.step()
    if not losses[-1] < losses[0]:
        raise ValueError(f"the loss does not fall: {losses[0]:.3g} before, {losses[-1]:.3g} after four steps")
    if still := [name for name in before if name not in moved]:
        raise ValueError(f"{still[0]} never has a gradient other than zero")
    case.check_calls(model)


def average(case: Case) -> None:
    """An exponential moving average of the weights holds the modules, averages their parameters, and runs."""
    model = case.model()
    ema = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.75))
    ema.update_parameters(model)  # the first is taken as it is
    with torch.no_grad():
        for p in model.parameters():
            p *= 1.1
    ema.update_parameters(model)
    for (name, p), q in zip(case.model().named_parameters(), ema.module.parameters(), strict=True):
        if largest(q - (0.75 + 0.25 * 1.1) * p) > 1e-5 * largest(p):
            raise ValueError(f"{name} is not the average of what it was")
    expected = case.model()
    expected.load_state_dict(ema.module.state_dict())
    case.check_calls(ema.module)
    case.check_output(outputs(ema.module, case.x), outputs(expected, case.x))


@contextmanager
def one_process() -> Iterator[None]:
    distributed = torch.distributed
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        yield
    finally:
        distributed.destroy_process_group()


def data_parallel(case: Case) -> None:
    """Two passes of `DistributedDataParallel` on one process: the gradients are those without it."""
    plain, model = case.model(), case.model()
    with one_process():
        ddp = nn.parallel.DistributedDataParallel(model)
        for m in (plain, ddp, ddp):  # the second pass raises, where a parameter was left out of the first
            m.zero_grad()
            ys = flatten(m(case.x))
            sum(y.square().mean() for y in ys).backward()
        case.check_output([y.detach() for y in ys])
        case.check_calls(ddp)
    for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
        if p.grad is not None and largest(q.grad - p.grad) > TOLERANCE * largest(p.grad):
            raise ValueError(f"{name} has another gradient than without DistributedDataParallel")


def sync_batch_norm(case: Case) -> None:
    """All batch norms become synchronised ones; the modules stay."""
    model = case.model()
    if not norms(model):
        raise NothingToDo("the network holds no batch norm")
    timms = any(type(norm).__module__.startswith("timm.") for norm in norms(model))  # torch's would drop activations
    convert = import_module("timm.layers").convert_sync_batchnorm if timms else nn.SyncBatchNorm.convert_sync_batchnorm
    model = convert(model)
    if left := norms(model):
        raise ValueError(f"{len(left)} batch norms were not converted")
    case.check_calls(model)
    case.check_output(outputs(model, case.x))


# --- deployment -------------------------------------------------------------------------------------------------------


def fuse(case: Case) -> None:
    """The norms are folded into the convolutions before them."""
    model = case.model()
    before = len(norms(model))
    if not before:
        raise NothingToDo("the network holds no batch norm")
    fused = case.network.fuse(model)
    if not len(norms(fused)) < before:
        raise ValueError("no norm was folded into a convolution")
    case.check_output(outputs(fused, case.x))


def quantise(case: Case) -> None:
    """FX quantisation after training: prepared it is the same network, converted it is nearer to it than without."""
    prepared = quantize_fx.prepare_fx(case.model(), quantization.get_default_qconfig_mapping(), (case.x,))
    case.check_output(outputs(prepared, case.x))
    outputs(prepared, case.other)
    got = outputs(quantize_fx.convert_fx(prepared), case.x)
    errors = [largest(g - e) for g, e in zip(got, case.expected, strict=True)]
    limits = case.effect if case.inserted else [0.5 * largest(e) for e in case.expected]
    if not any(error < limit for error, limit in zip(errors, limits, strict=True)):
        raise ValueError(f"8 bits change the output by {max(errors):.1e}, the module by {max(limits):.1e}: rounding "
                         "outweighs it")


def compiled(case: Case) -> None:
    """`torch.compile(fullgraph=True)`, captured and decomposed, run by the eager kernels."""
    torch._dynamo.reset()
    try:
        case.check_output(outputs(torch.compile(case.model(), fullgraph=True, backend="aot_eager"), case.x))
    finally:
        torch._dynamo.reset()


def exported(case: Case) -> None:
    case.check_output(outputs(case.program.module(), case.x))


def onnx(case: Case) -> None:
    """ONNX by the new exporter, run by onnxruntime."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        package(name)
    program = torch.onnx.export(case.program, (case.x,), dynamo=True, verbose=False)
    case.check_output(run_onnx(program.model_proto.SerializeToString(), case.x))


def onnx_old(case: Case) -> None:
    """ONNX by the exporter that records a trace, run by onnxruntime."""
    for name in ("onnx", "onnxruntime"):
        package(name)
    file = io.BytesIO()
    torch.onnx.export(case.model(), (case.x,), file, dynamo=False)
    case.check_output(run_onnx(file.getvalue(), case.x))


def run_onnx(model: bytes, x: Tensor) -> list[Any]:
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised as well
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


def traced(case: Case) -> None:
    """TorchScript by tracing, saved, loaded, and run on another input as well."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(case.model(), case.other, check_trace=False), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    case.check_output(outputs(loaded, case.x))


USES: dict[str, Callable[[Case], None]] = {
    "train": train, "ema": average, "ddp": data_parallel, "sync": sync_batch_norm, "fuse": fuse, "quantise": quantise,
    "compile": compiled, "export": exported, "onnx": onnx, "onnx_old": onnx_old, "trace": traced,
}
