"""attn_lib.measure: counts against counts by hand; times only for their form, never for their length."""

import contextlib
import copy
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

import attn_lib
from attn_lib import measure
from attn_lib.measure import __main__ as command
from attn_lib.measure import call, progress, suite
from attn_lib.measure.__main__ import beside_counterparts, main
from attn_lib.measure.case import Case
from attn_lib.measure.case import measure as measure_case
from attn_lib.measure.counterparts import import_package
from attn_lib.measure.records import SCHEMA, flatten, load_text, merge, write
from attn_lib.measure.side_by_side import measure_compiled
from tests.unit.cases import each_case

REPO = Path(__file__).resolve().parents[3]


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestCost:
    def test_linear(self):
        cost = measure.cost(nn.Linear(20, 30), rand(7, 20))
        assert cost.params == 20 * 30 + 30
        assert cost.flops == 2 * 7 * 20 * 30
        assert cost.min_bytes == 4 * (7 * 20 + 7 * 30 + 630)
        assert cost.saved_bytes == 0  # only the input and the weight are needed, which exist anyway
        assert cost.peak_bytes is None

    @pytest.mark.parametrize("groups", [1, 2])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_convolution(self, groups, stride):
        conv = nn.Conv2d(4, 6, (3, 5), stride=stride, padding=(1, 2), groups=groups)
        x = rand(2, 4, 8, 10)
        out = 2 * (8 // stride) * (10 // stride)
        forward = 2 * out * 6 * (4 // groups) * 15
        assert measure.flops(conv, x) == forward
        assert measure.flops(conv, x, backward=True) == 3 * forward  # one product a gradient
        assert measure.cost(conv, x).min_bytes == 4 * (x.numel() + out * 6 + 6 * (4 // groups) * 15 + 6)

    def test_transposed_convolution(self):
        conv = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
        forward = 2 * (2 * 5 * 7) * (4 * 3 * 9)
        assert measure.flops(conv, rand(2, 4, 5, 7)) == forward
        assert measure.flops(conv, rand(2, 4, 5, 7), backward=True) == 3 * forward

    @pytest.mark.parametrize(("fn", "shapes", "expected"), [
        (torch.matmul, [(3, 4), (4, 5)], 2 * 3 * 4 * 5),
        (torch.matmul, [(2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5),
        (torch.matmul, [(3, 4), (4,)], 2 * 3 * 4),
        (torch.matmul, [(4,), (4,)], 2 * 4),
        (lambda a, b, c: torch.addmv(a, b, c), [(3,), (3, 4), (4,)], 2 * 3 * 4),
        (lambda q, k: torch.einsum("bic,bjc->bij", q, k), [(2, 3, 4), (2, 5, 4)], 2 * 2 * 3 * 5 * 4),
        (lambda x: (x.softmax(-1) * 3).mean(), [(5, 6)], 0),  # element-wise work counts nothing
        # torch's own counter has no formula for the CPU's fused kernel: it says 0.
        (F.scaled_dot_product_attention, [(2, 3, 7, 4)] * 3, 2 * (2 * 2 * 3 * 7 * 7 * 4)),
    ])
    def test_functions(self, fn, shapes, expected):
        inputs = [rand(*shape, seed=i) for i, shape in enumerate(shapes)]
        assert measure.flops(fn, inputs) == expected
        assert measure.cost(fn, inputs).params == 0

    def test_attention_costs_twice_as_much_backward_whatever_the_kernel(self):
        qkv = [rand(2, 3, 7, 4, seed=i) for i in range(3)]
        forward = 2 * (2 * 2 * 3 * 7 * 7 * 4)
        assert measure.flops(F.scaled_dot_product_attention, qkv, backward=True) == 3 * forward
        with sdpa_kernel(SDPBackend.MATH):
            assert measure.flops(F.scaled_dot_product_attention, qkv, backward=True) == 3 * forward

    def test_multi_head_attention_is_counted_in_eval_mode_too(self):
        mha = nn.MultiheadAttention(8, 2, batch_first=True)
        x = rand(2, 5, 8)
        expected = 2 * (2 * 5) * 8 * 8 * 4 + 2 * 2 * (2 * 2) * 5 * 5 * 4
        assert measure.flops(mha, (x, x, x)) == measure.flops(mha.eval(), (x, x, x)) == expected
        assert torch.backends.mha.get_fastpath_enabled()

    def test_saved_bytes(self):
        x = rand(3, 5)
        assert measure.saved_bytes(torch.sigmoid, x) == 4 * 15           # its output
        assert measure.saved_bytes(lambda x: x + 1, x) == 0
        assert measure.saved_bytes(lambda x: x * x.mean(1, keepdim=True), x) == 4 * 3  # x itself exists anyway
        assert measure.saved_bytes(lambda x: x.exp().exp(), x) == 2 * 4 * 15
        assert measure.saved_bytes(nn.Sequential(nn.Linear(5, 4), nn.Sigmoid()), x) == 4 * 12

        def two_views(x):  # of one storage of 15 entries
            y = x.exp()
            return y[:1].sin() + y[1:2].sin()

        assert measure.saved_bytes(two_views, x) == 4 * 15
        norm = nn.BatchNorm1d(5)
        assert measure.saved_bytes(norm.eval(), x) == 0

    def test_leaves_no_trace(self):
        module = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Dropout())
        module[0].weight.grad = torch.ones(5, 5)
        x, before, random = rand(4, 5), copy.deepcopy(module.state_dict()), torch.get_rng_state()
        measure.cost(module, x)
        measure.flops(module, x, backward=True)
        measure.timing(module, x, backward=True, seconds=0.01)
        measure.compare_timings({"a": (module, x), "b": (module, x)}, backward=True, rounds=3)
        assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
        assert torch.equal(module[0].weight.grad, torch.ones(5, 5)) and module[0].bias.grad is None
        assert torch.equal(torch.get_rng_state(), random)
        assert module.training and x.grad is None and not x.requires_grad

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("error", [False, True])
    def test_leaves_no_trace_of_what_a_module_does_to_itself(self, training, error):
        """Counters, buffers put in others' place, made on the way or deleted, the mode; after an error, too."""

        class Busy(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = nn.BatchNorm1d(5)
                self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
                self.register_buffer("cache", None)
                self.register_buffer("once", torch.ones(1), persistent=False)

            def forward(self, x):
                self.calls = self.calls + 1
                self.cache = x.detach()
                self.register_buffer("late", torch.ones(1))
                if hasattr(self, "once"):
                    del self.once
                y = self.norm(x)
                self.norm.eval()
                torch.rand(1)
                if error:
                    raise RuntimeError("broken")
                return y * 2

        module, x = Busy().train(training), rand(4, 5)
        module.norm.weight.grad = torch.ones(5)
        pending = module.norm(x)  # a graph that waits for its backward pass
        before, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
        held = module.calls, module.norm.running_mean
        for measured in (measure.cost, measure.flops, measure.saved_bytes,
                     lambda m, x: measure.flops(m, x, backward=True),
                     lambda m, x: measure.timing(m, x, seconds=1e-3),
                     lambda m, x: measure.compare_timings({"a": (m, x)}, rounds=3)):
            with pytest.raises(RuntimeError) if error else contextlib.nullcontext():
                measured(module, x)
            assert list(module.state_dict()) == list(before)
            assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
            assert held[0] is module.calls and held[1] is module.norm.running_mean
            assert module.training == module.norm.training == training
        assert module.cache is None and not hasattr(module, "late") and "once" in dict(module.named_buffers())
        assert torch.equal(module.norm.weight.grad, torch.ones(5)) and module.norm.bias.grad is None
        assert torch.equal(torch.get_rng_state(), random)
        hooks = torch.nn.modules.module
        assert not (hooks._global_forward_hooks or hooks._global_forward_pre_hooks)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
        assert torch.backends.mha.get_fastpath_enabled()
        pending.sum().backward()

    def test_reads_well(self):
        assert str(measure.cost(nn.Linear(20, 30), rand(7, 20))) == "\n".join([
            "parameters                    630",
            "FLOPs, forward              8,400",
            "bytes kept for backward         0",
            "least bytes moved, forward  3,920",
        ])

    def test_counts_grow_as_the_paper_says(self):
        """Criss-cross attention keeps N·(H + W) numbers, not N²."""
        sides, kept = (32, 64, 128), []
        for side in sides:
            module, inputs = attn_lib.example("ccnet", batch=1, size=(side, side))
            kept.append(measure.saved_bytes(module, inputs))
        assert measure.fit_exponent([s * s for s in sides], kept) < 1.5


class TestWithoutNumbers:
    """On the meta device and with fake tensors everything is counted, and nothing computed."""

    @staticmethod
    def counts(module, inputs):
        return measure.cost(module, inputs), measure.flops(module, inputs, backward=True)

    @each_case
    def test_every_module_counts_the_same(self, id, variant):
        entry = attn_lib.entry(id)
        module, inputs = attn_lib.example(id, variant)
        expected, backward = self.counts(module, inputs)
        with FakeTensorMode():
            fake = entry.cls(**entry.options(variant)), [torch.randn(x.shape) for x in inputs]
            assert self.counts(*fake) == (expected, backward)
        meta = module.to("meta"), [x.to("meta") for x in inputs]
        assert self.counts(*meta) == (expected, backward)

    def test_a_function_that_holds_meta_tensors_is_refused(self):
        layer = nn.Linear(5, 4, device="meta")
        with pytest.raises(ValueError, match="pass the module itself"):
            measure.saved_bytes(lambda x: layer(x * 2), torch.ones(3, 5, device="meta"))

    def test_each_storage_counts_once_and_whole(self):
        def two_views(x):  # of one storage of 15 entries
            y = x.exp()
            return y[:1].sin() + y[1:2].sin()

        x = torch.ones(3, 5, device="meta")
        assert measure.saved_bytes(two_views, x) == 4 * 15
        assert measure.saved_bytes(lambda x: x.exp().exp(), x) == 2 * 4 * 15
        assert measure.saved_bytes(nn.Linear(5, 4, device="meta"), x) == 0  # input and weight exist anyway
        assert measure.saved_bytes(nn.Sequential(nn.Linear(5, 4), nn.Sigmoid()).to("meta"), x) == 4 * 12

    def test_leaves_no_trace(self):
        module, x = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)).to("meta"), torch.ones(4, 5, device="meta")
        buffers, keys = list(module.buffers()), list(module.state_dict())
        measure.cost(module, x)
        assert all(a is b for a, b in zip(module.buffers(), buffers, strict=True))
        assert list(module.state_dict()) == keys and module.training
        assert all(p.grad is None for p in module.parameters()) and not x.requires_grad

    def test_a_fake_gpu_has_no_peak(self, monkeypatch):
        monkeypatch.setattr(sys.modules["attn_lib.measure.cost"], "device_of", lambda *_: torch.device("cuda"))
        with FakeTensorMode():
            assert measure.cost(torch.exp, torch.ones(3)).peak_bytes is None

    @pytest.mark.parametrize("backward", [False, True])
    def test_cannot_be_timed(self, backward):
        with pytest.raises(ValueError, match="device=meta must be a CPU or a CUDA device"):
            measure.timing(nn.Linear(3, 3, device="meta"), torch.ones(3), backward=backward)
        with pytest.raises(ValueError, match="device=meta must be a CPU or a CUDA device"):
            calls = {"a": (torch.exp, torch.ones(3)), "b": (torch.exp, torch.ones(3, device="meta"))}
            measure.compare_timings(calls, backward=backward)
        with FakeTensorMode(), pytest.raises(ValueError, match="must be real tensors to be timed"):
            measure.timing(torch.exp, torch.ones(3), backward=backward)

    def test_have_no_symmetries(self):
        with pytest.raises(ValueError, match="must be real tensors"):
            measure.symmetries(torch.exp, torch.ones(1, 2, 3, 4, device="meta"))


class TestInputsByName:
    """A dictionary holds the arguments by name: the same counts as of the arguments in their order."""

    class Scaled(nn.Linear):
        def forward(self, x, *, scale=2):
            return super().forward(x) * scale

    def test_counts_the_same(self):
        module, x = self.Scaled(20, 30), rand(7, 20)
        assert measure.cost(module, {"scale": 2, "x": x}) == measure.cost(module, x) == measure.cost(module, (x,))
        counts = [measure.flops(module, given, backward=True) for given in (x, {"x": x})]
        assert counts == [3 * 2 * 7 * 20 * 30] * 2
        assert measure.symmetries(lambda x: x, {"x": rand(2, 3, 4, 5)})["flip_w"] == 0
        assert measure.timing(module, {"x": x}, backward=True, seconds=1e-3).median > 0

    def test_a_name_that_the_call_does_not_know_is_its_own_error(self):
        with pytest.raises(TypeError, match="unexpected keyword argument 'y'"):
            measure.cost(nn.Linear(2, 2), {"y": rand(2, 2)})


class TestExponent:
    @pytest.mark.parametrize("power", [-1, 0, 0.5, 2])
    def test_of_a_law(self, power):
        xs = [1, 2, 4, 7]
        assert measure.fit_exponent(xs, [3 * x**power for x in xs]) == pytest.approx(power)

    @pytest.mark.parametrize(("xs", "ys", "message"), [
        ([1, 2], [1], "xs has 2 values and ys has 1"), ([1, 0], [1, 2], "xs=.*positive"),
        ([1, 2], [1, -2], "ys=.*positive"), ([2, 2], [1, 2], "two different"), ([], [], "two different"),
        ([1, 2], [1, math.nan], "ys=.*positive"),
    ])
    def test_refuses(self, xs, ys, message):
        with pytest.raises(ValueError, match=message):
            measure.fit_exponent(xs, ys)


class TestTiming:
    @pytest.mark.parametrize("backward", [False, True])
    def test_form(self, backward):
        took = measure.timing(nn.Linear(8, 8), rand(4, 8), backward=backward, seconds=0.02)
        assert took.median > 0 and took.iqr >= 0 and took.repeats >= 7 and took.host is None
        threads = torch.get_num_threads()
        assert took.device == f"CPU, {threads} thread" + "s" * (threads > 1)

    def test_a_long_call_has_enough_samples(self):
        import time
        assert measure.timing(lambda: time.sleep(0.01), seconds=1e-3).repeats >= 7

    def test_calls_with_the_right_grad_mode(self):
        seen = set()

        def fn(x):
            seen.add((torch.is_grad_enabled(), x.requires_grad))
            return x * 2

        measure.timing(fn, rand(3), seconds=1e-3)
        assert seen == {(False, False)}
        seen.clear()
        measure.timing(fn, rand(3), backward=True, seconds=1e-3)
        assert seen == {(True, True)}

    @pytest.mark.parametrize(("seconds", "iqr", "text"), [
        (1.234e-3, 8e-5, "1.23 ms ± 0.04 (CPU, 2 threads)"),
        (12.34e-6, 1e-6, "12.3 µs ± 0.5 (CPU, 2 threads)"),
        (0.4567, 0.002, "457 ms ± 1 (CPU, 2 threads)"),
        (2.5, 0.5, "2.50 s ± 0.25 (CPU, 2 threads)"),
        (999.9e-6, 0, "1000 µs ± 0 (CPU, 2 threads)"),
        (5e-9, 0, "5.00 ns ± 0.00 (CPU, 2 threads)"),
    ])
    def test_str(self, seconds, iqr, text):
        assert str(measure.Timing(seconds, iqr, 9, "CPU, 2 threads")) == text

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"seconds=0 must be"):
            measure.timing(torch.sin, rand(3), seconds=0)
        with pytest.raises(ValueError, match="backward=True needs an output that depends"):
            measure.timing(torch.argmax, rand(3), backward=True)
        with pytest.raises(ValueError, match="device=meta must be"):
            measure.timing(torch.sin, rand(3).to("meta"))
        with pytest.raises(ValueError, match="at least one call"):
            measure.compare_timings({})
        with pytest.raises(ValueError, match="rounds=2 must be at least 3"):
            measure.compare_timings({"a": (torch.sin, rand(3))}, rounds=2)

    def test_comparison_takes_turns_within_one_run(self):
        order = []
        calls = {label: (lambda x, label=label: order.append(label) or x * 2, rand(3)) for label in "ab"}
        compared = measure.compare_timings(calls, rounds=4)
        assert list(compared.timings) == ["a", "b"] and compared.baseline == "a"
        assert compared["a"].median == 1 and compared["a"].iqr == 0
        assert compared["b"].median > 0 and compared.timings["b"].repeats == 4
        turns = [label for i, label in enumerate(order) if i == 0 or label != order[i - 1]]
        assert turns == list("abababa")[: len(turns)] and len(turns) >= 5  # calibration, then a b | b a | a b | b a
        assert str(compared).splitlines()[0].startswith("a  × 1.00 ± 0.00  ")

    def test_comparison_of_a_slow_and_a_quick_call(self):
        import time
        calls = {"quick": (lambda: None, ()), "slow": (lambda: time.sleep(2e-3), ())}
        compared = measure.compare_timings(calls, rounds=3)
        assert compared["slow"].median > 1

    def test_a_claim_that_does_not_hold_is_told_and_stops_nothing(self, capsys):
        measure.claim(True, "two calls take longer than one")
        assert capsys.readouterr().out == ""
        measure.claim(False, "two calls take less than one")
        assert capsys.readouterr().out.endswith("while it is as busy as now: two calls take less than one.\n")


class FakeCUDA:
    """A GPU's clock: events and buffers that write down in what order they were used."""

    def __init__(self, monkeypatch):
        self.log, self.now = [], 0.0
        outer = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self, stream):
                outer.log.append("record")
                self.at = outer.now

            def synchronize(self):
                outer.log.append("wait")

            def elapsed_time(self, end):
                return (end.at - self.at) * 1e3

        class Scratch:
            def zero_(self):
                outer.log.append("flush")
                outer.now += 1e-4

        def empty(size, dtype, device):
            assert size >= 4 * 60e6 and dtype == torch.int8
            return Scratch()

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
        properties = type("Properties", (), {"L2_cache_size": 60 << 20})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        # `measure.timing` is the function; its module is found here.
        module = sys.modules["attn_lib.measure.timing"]
        monkeypatch.setattr(module, "device_of", lambda fn, inputs: torch.device("cuda"))
        monkeypatch.setattr(torch, "empty", empty)


def test_a_call_is_timed_where_the_caller_wants_it():
    """By copies; "meta" stands for a device that is elsewhere, and cannot be timed."""
    timing = sys.modules[measure.timing.__module__]
    se, x = attn_lib.create("se", 8, reduction=2), rand(1, 8, 2, 2).requires_grad_()
    there, (u,) = timing._placed(se, (x,), torch.device("meta"))
    assert {t.device.type for t in (u, *there.parameters())} == {"meta"} and u.requires_grad
    assert {t.device.type for t in (x, *se.parameters())} == {"cpu"}
    assert timing._placed(se, (x,), torch.device("cpu"))[0] is se, "nothing is copied where it lies there"
    here = measure.best_device()
    assert here.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert measure.timing(se, x, seconds=1e-3, device=here).device == timing.device_name(here)
    for measured in (measure.timing, lambda *one, **where: measure.compare_timings({"se": one}, **where)):
        with pytest.raises(ValueError, match="device=meta must be a CPU or a CUDA device"):
            measured(se, x, device=torch.device("meta"))


def test_timing_a_cpu_neither_waits_for_a_gpu_nor_starts_it(monkeypatch):
    def touched(*_):
        raise AssertionError("the GPU was touched")

    for module in filter(None, (torch.cuda, getattr(torch, "accelerator", None))):
        monkeypatch.setattr(module, "is_available", lambda: True)
        monkeypatch.setattr(module, "synchronize", touched)
    measure.timing(torch.relu, torch.ones(4), seconds=1e-3)
    measure.compare_timings({"a": (torch.relu, torch.ones(4))}, rounds=3)


class TestTimingOnAGPU:
    """The order of things, on a GPU that is not there."""

    def test_flushes_the_cache_and_times_the_device(self, monkeypatch):
        gpu = FakeCUDA(monkeypatch)

        def fn():
            gpu.log.append("call")
            gpu.now += 3e-5

        took = measure.timing(fn, (), seconds=1e-3)
        assert took.median == pytest.approx(3e-5) and took.device == "NVIDIA H200" and took.host > 0
        sample = gpu.log[-gpu.log[::-1].index("wait", 1) :]
        flushes = sample.count("flush")
        assert sample == ["flush"] * flushes + ["record", "call", "record", "wait"] and flushes >= 1
        assert took.repeats >= 7

    def test_keeps_the_device_busy_while_python_issues_a_slow_call(self, monkeypatch):
        import time
        gpu = FakeCUDA(monkeypatch)
        measure.timing(lambda: (time.sleep(2e-3), gpu.log.append("call")), (), seconds=1e-3)
        sample = gpu.log[-gpu.log[::-1].index("wait", 1) :]
        assert sample.count("flush") * 1e-4 > 2e-3  # each overwriting takes 0.1 ms here

    def test_ratios(self, monkeypatch):
        gpu = FakeCUDA(monkeypatch)

        def lasting(seconds):
            def fn():
                gpu.now += seconds
            return fn

        compared = measure.compare_timings({"a": (lasting(1e-5), ()), "b": (lasting(3e-5), ())}, rounds=5)
        assert compared["b"].median == pytest.approx(3) and compared["b"].iqr == pytest.approx(0, abs=1e-6)


class TestPeakOnAGPU:
    """What is called between the readings, on a GPU that is not there."""

    @pytest.mark.parametrize(("fn", "passes"), [(torch.exp, "fb"), (torch.argmax, "f")])
    def test_passes(self, fn, passes, monkeypatch):
        cuda, log = torch.cuda, []
        monkeypatch.setattr(sys.modules["attn_lib.measure.cost"], "device_of", lambda *_: torch.device("cuda"))
        monkeypatch.setattr(cuda, "synchronize", lambda _: None)
        monkeypatch.setattr(cuda, "memory_allocated", lambda _: 100)
        monkeypatch.setattr(cuda, "reset_peak_memory_stats", lambda _: log.clear())
        monkeypatch.setattr(cuda, "max_memory_allocated", lambda _: 100 + 8 * len(log))

        def watched(x):
            log.append("f")
            y = fn(x)
            if y.requires_grad:
                y.register_hook(lambda _: log.append("b"))
            return y

        assert measure.cost(watched, rand(5)).peak_bytes == 8 * len(passes)
        assert "".join(log).startswith(passes)


class Mean(nn.Module):
    """A gate that is the same for every channel and position: the sigmoid of the mean of everything."""

    def forward(self, x):
        return x * torch.sigmoid(x.mean((1, 2, 3), keepdim=True))


def commuting(deviations: dict[str, float]) -> set[str]:
    assert list(deviations) == list(attn_lib.catalog.SYMMETRIES)
    return {name for name, off in deviations.items() if off < 1e-12}


SPATIAL = {"spatial_permutation", "row_column_permutation", "translation", "flip_h", "flip_w", "transpose"}


class TestSymmetries:
    x = rand(2, 4, 6, 9)

    def test_a_pointwise_function_has_all(self):
        assert commuting(measure.symmetries(torch.relu, self.x)) == set(attn_lib.catalog.SYMMETRIES)

    def test_a_mean_gate_has_all_but_scaling(self):
        deviations = measure.symmetries(Mean(), self.x)
        assert commuting(deviations) == SPATIAL | {"channel_permutation"}
        assert deviations["scaling"] > 1e-3

    def test_a_convolution_has_translation_and_without_bias_scaling(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            conv, linear = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        assert commuting(measure.symmetries(conv, self.x)) == {"translation"}
        assert commuting(measure.symmetries(linear, self.x)) == {"translation", "scaling"}

    def test_a_pointwise_convolution_has_all_of_space(self):
        assert commuting(measure.symmetries(nn.Conv2d(4, 4, 1), self.x)) == SPATIAL

    def test_a_row_mean_tells_rows_from_columns(self):
        deviations = measure.symmetries(lambda x: x + x.mean(3, keepdim=True), self.x)
        assert commuting(deviations) == {"channel_permutation", "row_column_permutation", "translation", "flip_h",
                                         "flip_w", "scaling"}

    def test_a_position_table_has_none_of_space_and_refuses_other_sizes(self):
        table = rand(6, 9, seed=1)

        def add(x):
            if x.shape[2:] != table.shape:
                raise ValueError("x has another size")
            return x + table.double()

        deviations = measure.symmetries(add, self.x)
        assert commuting(deviations) == {"channel_permutation"}
        assert math.isnan(deviations["translation"]) and math.isnan(deviations["transpose"])
        assert deviations["flip_h"] > 0.1

    def test_outputs_of_another_size(self):
        """Pixel shuffle moves by two for every step of its input, and has other channels than its input."""
        deviations = measure.symmetries(nn.PixelShuffle(2), self.x)
        assert commuting(deviations) == {"translation", "scaling"}
        assert all(math.isnan(deviations[n]) for n in ("channel_permutation", "spatial_permutation"))
        assert deviations["flip_h"] > 0.1
        assert commuting(measure.symmetries(nn.Upsample(scale_factor=2), self.x)) >= {
            "translation", "flip_h", "flip_w", "transpose", "scaling", "channel_permutation"}
        strided = measure.symmetries(nn.Conv2d(4, 4, 3, stride=2, padding=1), self.x)
        assert commuting(strided) == {"translation"}
        assert commuting(measure.symmetries(nn.Conv2d(4, 4, (3, 5)), self.x)) == {"translation"}  # loses a border

    def test_an_output_that_is_not_finite_is_refused(self):
        with pytest.raises(ValueError, match="NaN or infinities"):
            measure.symmetries(lambda x: x / 0, rand(1, 2, 4, 4))

    def test_an_output_without_the_axis_must_be_invariant(self):
        pooled = measure.symmetries(lambda x: x.mean((2, 3)), self.x, output="B C")
        assert commuting(pooled) == set(attn_lib.catalog.SYMMETRIES)
        first = measure.symmetries(lambda x: x[:, :, 0, 0], self.x, output="B C")
        assert commuting(first) == {"channel_permutation", "translation", "transpose", "scaling"}

    def test_tokens_series_and_video(self):
        def mix(x):
            return x + x.mean(1, keepdim=True)

        tokens = measure.symmetries(mix, rand(2, 7, 5))
        assert commuting(tokens) == {"channel_permutation", "spatial_permutation", "translation", "scaling"}
        assert math.isnan(tokens["flip_h"]) and math.isnan(tokens["transpose"])
        series = measure.symmetries(lambda x: x.cumsum(1), rand(2, 6, 5, 3), layout="B T N C")
        assert commuting(series) == {"channel_permutation", "spatial_permutation", "translation", "scaling"}
        video = measure.symmetries(torch.relu, rand(2, 3, 4, 5, 6))
        assert commuting(video) == set(attn_lib.catalog.SYMMETRIES)

    def test_several_inputs_are_acted_on_together(self):
        both = measure.symmetries(lambda a, b: a * b.mean((2, 3), keepdim=True), (self.x, rand(2, 4, 6, 9, seed=3)))
        assert commuting(both) == SPATIAL | {"channel_permutation"}

    @pytest.mark.parametrize("id", attn_lib.list_modules())
    def test_of_the_catalog_leave_the_module_alone(self, id):
        module, inputs = attn_lib.example(id, generic=True)
        before = copy.deepcopy(module.state_dict())
        measure.symmetries(module, inputs)
        assert all(torch.equal(before[key], value) and value.dtype == before[key].dtype
                   for key, value in module.state_dict().items())

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"cannot name the axes of \[\(2, 3\)\]"):
            measure.symmetries(torch.relu, rand(2, 3))
        with pytest.raises(ValueError, match="layout='B C' must name the axes"):
            measure.symmetries(torch.relu, self.x, layout="B C")
        with pytest.raises(ValueError, match=r"output='B C H W' must name the axes of \[\(2, 6, 9\)\]"):
            measure.symmetries(lambda x: x.mean(1), self.x)
        with pytest.raises(ValueError, match="at least one floating-point tensor"):
            measure.symmetries(torch.relu, ())


RUN = {"stamp": {"kind": "cpu", "device": "C"}, "ceilings": {"bandwidth": 1e9, "flop_rate": {"float32": 1e9}},
       "rows": [{"id": "se", "median": 1.0, "size": [3, 4]}, {"id": "ccnet", "median": 2.0, "size": [3, 4]}]}


class TestRecords:
    def test_round_trip(self, tmp_path):
        path = tmp_path / "new" / "file.json"
        write(merge(None, RUN), path)
        rows = flatten(load_text(path.read_text()))
        assert rows == [{**RUN["stamp"], **RUN["ceilings"], **row} for row in RUN["rows"]]
        assert [p.name for p in path.parent.iterdir()] == ["file.json"]

    def test_measuring_again_replaces_a_module_and_keeps_the_others(self):
        again = {**RUN, "stamp": {"kind": "cpu", "date": "later"}, "rows": [{"id": "se", "median": 9.0}]}
        rows = {row["id"]: row for row in flatten(merge(merge(None, RUN), again))}
        assert rows["se"]["median"] == 9.0 and rows["se"]["date"] == "later"
        assert rows["ccnet"]["median"] == 2.0 and "date" not in rows["ccnet"]
        assert len(merge(merge(None, RUN), RUN)["runs"]) == 1

    def test_a_partial_run_replaces_only_the_rows_that_it_measured(self):
        more = {**RUN, "rows": [{"id": "se", "median": m, "size": size} for m, size in ((9.0, [3, 4]), (5.0, [6, 8]))]}
        rows = flatten(merge(merge(None, RUN), more, partial=True))
        assert [(row["id"], row["size"], row["median"]) for row in rows] == [
            ("ccnet", [3, 4], 2.0), ("se", [3, 4], 9.0), ("se", [6, 8], 5.0)]
        again = {**RUN, "rows": [{"id": "se", "median": 7.0, "size": [6, 8]}]}
        assert len(flatten(merge(merge(merge(None, RUN), more, partial=True), again, partial=True))) == 3

    def test_in_one_order_whatever_the_folders(self, tmp_path, monkeypatch):
        module = sys.modules["attn_lib.measure.records"]
        row = {"id": "se", "dtype": "float32", "mode": "eager", "backward": False, "size": [1]}
        for version in ("2.13", "2.12"):
            run = {"stamp": {"kind": "cpu", "device": "d", "torch": version}, "ceilings": {}, "rows": [row]}
            write(merge(None, run), tmp_path / "recorded" / f"d-{version}.json")
        monkeypatch.setattr(module.resources, "files", lambda _: tmp_path)
        listed = sorted((tmp_path / "recorded").iterdir())
        for order in (listed, listed[::-1]):
            monkeypatch.setattr(Path, "iterdir", lambda _, order=order: iter(order))
            assert [row["torch"] for row in measure.records()] == ["2.12", "2.13"]

    def test_an_interrupted_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "file.json"
        write(merge(None, RUN), path)
        before = path.read_bytes()
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write(merge(None, {**RUN, "rows": []}), path)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
        with pytest.raises(ValueError):
            write(merge(None, {**RUN, "rows": [{"id": "se", "median": math.nan}]}), path)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("text", ['{"schema": 99, "runs": []}', "[]", '{"runs": []}'])
    def test_another_schema_is_refused(self, text):
        with pytest.raises(ValueError, match=f"must be {SCHEMA}"):
            load_text(text)

    def test_what_is_recorded_in_the_package(self):
        rows = measure.records()
        keys = {"id", "shapes", "size", "dtype", "mode", "backward", "median", "iqr", "repeats", "host", "params",
                "flops", "min_bytes", "saved_bytes", "peak_bytes", "roofline", "error", "kind", "device", "torch",
                "python", "date", "commit", "dirty", "bandwidth", "flop_rate"}
        assert rows, "the package ships at least one recorded run"
        assert all(set(row) == keys for row in rows)
        assert {row["id"] for row in rows} <= set(attn_lib.list_modules())
        assert measure.records("se") == [row for row in rows if row["id"] == "se"]
        assert measure.records("no such module") == []


class TestCommand:
    def test_writes_a_stamped_file(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(suite, "ceilings", lambda _: measure.Ceilings("fake", 1e10, {"float32": 1e11}))
        out = tmp_path / "run.json"
        assert main(["--quick", "--ids", "se", "--out", str(out), "--device", "cpu"]) == 0
        rows = flatten(json.loads(out.read_text()))
        assert [row["backward"] for row in rows] == [False, True]
        for row in rows:
            assert (row["id"], row["dtype"], row["mode"], row["kind"]) == ("se", "float32", "eager", "cpu")
            assert row["torch"] == torch.__version__ and row["error"] is None
            assert row["shapes"] == [[2, 64, 14, 14]] and row["size"] == [14, 14]
            assert row["params"] == 580 and row["median"] > 0 and row["repeats"] >= 7
            least = max(row["flops"] / 1e11, row["min_bytes"] / 1e10)
            assert row["roofline"] == pytest.approx(least / row["median"], rel=1e-2)
        assert rows[1]["flops"] == 3 * rows[0]["flops"] == 3 * 2 * 2 * 2 * 64 * 4
        assert "of the roofline" in capsys.readouterr().out

    @pytest.mark.parametrize("installed", [False, True], ids=["clone", "installed"])
    def test_writes_into_the_current_folder_unless_in_a_clone(self, tmp_path, monkeypatch, installed):
        """An installed library does not write among its own files."""
        monkeypatch.setattr(suite, "ceilings", lambda _: measure.Ceilings("fake", 1e10, {"float32": 1e11}))
        package, here = tmp_path / "site" / "attn_lib" / "measure", tmp_path / "here"
        for folder in (package, here):
            folder.mkdir(parents=True)
        if not installed:
            (tmp_path / "site" / "pyproject.toml").touch()
        monkeypatch.setattr(sys.modules["attn_lib.measure.records"], "__file__", str(package / "records.py"))
        monkeypatch.setattr(sys.modules["attn_lib.measure.records"], "RECORDED", package / "recorded")
        monkeypatch.chdir(here)
        assert main(["--quick", "--ids", "simam", "--device", "cpu"]) == 0
        (file,) = (here if installed else package / "recorded").iterdir()
        assert len(list(tmp_path.rglob("*.json"))) == 1 and file.name.endswith(f"torch-{torch.__version__}.json")

    def test_one_failing_module_does_not_stop_the_rest(self, tmp_path, monkeypatch):
        monkeypatch.setattr(suite, "ceilings", lambda _: measure.Ceilings("fake", 1e10, {"float32": 1e11}))

        def fail(self, x):
            raise RuntimeError("no kernel in /usr/lib/secret.so\nand more")

        monkeypatch.setattr(attn_lib.entry("ccnet").cls, "forward", fail)
        out = tmp_path / "run.json"
        assert main(["--quick", "--ids", "ccnet", "se", "--out", str(out), "--device", "cpu"]) == 1
        rows = flatten(json.loads(out.read_text()))
        failed = ("ccnet", "RuntimeError: no kernel in")
        assert [(row["id"], row["error"]) for row in rows] == [failed, failed, ("se", None), ("se", None)]
        assert rows[0]["median"] is None

    def test_interrupted_it_leaves_the_old_file(self, tmp_path, monkeypatch):
        out = tmp_path / "run.json"
        write(merge(None, RUN), out)
        before = out.read_bytes()

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(suite, "ceilings", interrupt)
        assert main(["--quick", "--ids", "se", "--out", str(out), "--device", "cpu"]) == 130
        assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]

    def test_interrupted_it_keeps_the_modules_that_are_done(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(suite, "ceilings", lambda _: measure.Ceilings("fake", 1e10, {"float32": 1e11}))

        def until_se(case, *_, **__):
            if case.id == "se" and case.size == (28, 28):
                raise KeyboardInterrupt
            return [{"id": case.id, "size": list(case.size)}]

        monkeypatch.setattr(suite, "measure", until_se)
        out = tmp_path / "run.json"
        write(merge(None, RUN), out)
        assert main(["--ids", "ccnet", "ccnet", "se", "--out", str(out), "--device", "cpu"]) == 130
        rows = flatten(load_text(out.read_text()))
        assert [(row["id"], row.get("size")) for row in rows] == [
            ("se", [3, 4]), ("ccnet", [14, 14]), ("ccnet", [28, 28]), ("ccnet", [56, 56])]  # se as it was before
        assert str(out) in capsys.readouterr().err

    def test_a_budget_takes_the_most_telling_rows_first_and_goes_on_where_it_ended(self, tmp_path, monkeypatch, capsys):
        """On a GPU that is faked: every case takes 10 seconds of a clock of its own."""
        clock, measured, ids = [0.0], [], ["ccnet", "gated", "se"]
        now = {"kind": "cuda", "device": "G", "torch": "2", "commit": "abc", "dirty": False}

        def ten_seconds(case, *_):
            clock[0] += 10
            measured.append((case.id, case.size[0], str(case.dtype), case.compiled))
            row = {"id": case.id, "size": list(case.size), "shapes": [[case.batch]], "median": 1.0, "iqr": 0.0,
                   "dtype": str(case.dtype).removeprefix("torch."), "mode": "compiled" if case.compiled else "eager",
                   "roofline": 0.5, "error": "out of memory" if case.id == "se" and len(measured) == 3 else None}
            return [row | {"backward": backward} for backward in (False, True)]

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(suite.time, "monotonic", lambda: clock[0])
        def all_that_there_is_time_for(planned, *_, end, **__):
            yield from (ten_seconds(case) for case in planned if clock[0] < end)

        monkeypatch.setattr(suite, "measure", ten_seconds)
        monkeypatch.setattr(suite, "measure_compiled", all_that_there_is_time_for)
        monkeypatch.setattr(suite, "ceilings", lambda _: measure.Ceilings("fake", 1e10, {"float32": 1e11}))
        for module in (suite, command):
            monkeypatch.setattr(module, "stamp", lambda *_: now)
        out = tmp_path / "gpu.json"
        arguments = ["--ids", *ids, "--out", str(out), "--device", "cuda"]
        command.main([*arguments, "--budget", "75"])
        eager = [(id, 56, f"torch.{dtype}", False) for dtype in ("float32", "bfloat16") for id in ids]
        assert measured[:6] == eager and len(measured) == 8, "the case that was begun is measured to its end"
        assert "cases are left: the same command goes on" in capsys.readouterr().out
        first = measured.copy()
        assert command.main([*arguments, "--budget", "10000"]) == 0
        assert measured[8] == ("se", 56, "torch.float32", False), "what had failed is tried again, first"
        assert not set(measured[9:]) & set(first) and set(measured) == {
            (c.id, c.size[0], str(c.dtype), c.compiled) for c in suite.cases(ids, "cuda")}
        rows = flatten(load_text(out.read_text()))
        assert len(rows) == 2 * len(suite.cases(ids, "cuda")) and not any(row["error"] for row in rows)
        now["commit"] = "def"
        measured.clear()
        command.main([*arguments, "--budget", "15"])
        assert measured == eager[:2] and len(flatten(load_text(out.read_text()))) == len(rows), "another library"
        data = load_text(out.read_text())
        for run in data["runs"]:
            run["rows"] = [row for row in run["rows"] if (row["id"], row["mode"]) != ("se", "compiled")]
        write(data, out)
        measured.clear()
        command.main([*arguments, "--budget", "35"])
        compiled = [("se", 56, f"torch.{dtype}", True) for dtype in ("float32", "bfloat16")]
        assert measured == [*compiled, *eager[2:4]], "what is not recorded at all comes first"

    @pytest.mark.parametrize(("arguments", "message"), [
        (["--budget", "-3"], "must be a positive number of seconds"),
        (["--ids", "see"], "did you mean 'se'"), (["--device", "tpu"], "tpu"), (["--device", "meta"], "no such device"),
    ])
    def test_refuses(self, arguments, message, capsys):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err

    def test_needs_torch_alone(self):
        """As a command, with everything optional missing: matplotlib, tqdm, numpy."""
        code = ("import sys; sys.modules.update(dict.fromkeys(['matplotlib', 'tqdm', 'numpy', 'ipywidgets']))\n"
                "from attn_lib.measure.progress import progress\n"
                "from attn_lib import measure, plug\n"
                "print(list(progress([1, 2], 'x')))")
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=REPO, capture_output=True, text=True)
        assert done.stdout == "[1, 2]\n", done.stderr
        assert "x 2/2" in done.stderr


class TestCases:
    def test_a_gpu_gets_both_types_and_the_compiler(self):
        cases, types = suite.cases(["se"], "cuda"), (torch.float32, torch.bfloat16)
        assert {(c.dtype, c.compiled) for c in cases} == {(d, c) for d in types for c in (False, True)}
        assert len({c.size for c in cases}) >= 3 and {c.batch for c in cases} == {32}
        cpu = suite.cases(["se"], "cpu")
        assert {(c.dtype, c.compiled) for c in cpu} == {(torch.float32, False)} and len({c.size for c in cpu}) >= 3
        assert len(suite.cases(["se", "ccnet"], "cuda", quick=True)) == 2

    def test_compiled_and_in_half_precision(self, monkeypatch):
        """As on a GPU, but for the compiler's backend."""
        calls, compile = [], torch.compile
        monkeypatch.setattr(torch, "compile", lambda m, **_: calls.append(m) or compile(m, backend="aot_eager"))
        case = Case("se", (14, 14), 2, torch.bfloat16, compiled=True)
        limits = measure.Ceilings("fake", 1e10, {"bfloat16": 1e11})
        forward, training = measure_case(case, torch.device("cpu"), limits, seconds=0.01)
        for row in (forward, training):
            assert row["error"] is None and row["mode"] == "compiled" and row["dtype"] == "bfloat16"
        assert forward["min_bytes"] == 2 * (2 * 2 * 64 * 14 * 14 + 580)
        assert [m.training for m in calls] == [False, True]
        assert {p.dtype for m in calls for p in m.parameters()} == {torch.bfloat16}

    def test_processes_that_compile_at_once_return_every_row_but_those_of_one_that_died(self, capsys, monkeypatch):
        """Nothing is compiled here, so that it lasts seconds."""
        class Deadly(str):
            def __reduce__(self):
                return os._exit, (1,)  # what the process does that receives it

        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        cases = [Case(id, (14, 14), 2, dtype, compiled=False)
                 for id in (Deadly("a"), "simam", "se") for dtype in (torch.float32, torch.bfloat16)]
        limits = measure.Ceilings("fake", 1e10, {"float32": 1e11, "bfloat16": 1e11})
        lists = list(measure_compiled(cases, torch.device("cpu"), limits, jobs=2, seconds=0.01))
        expected = [(dtype, backward) for dtype in ("float32", "bfloat16") for backward in (False, True)]
        assert {rows[0]["id"] for rows in lists} == {"se", "simam"}
        for rows in lists:
            assert [(r["dtype"], r["backward"]) for r in rows] == expected
            assert all(r["id"] == rows[0]["id"] and r["median"] > 0 and r["error"] is None for r in rows)
        assert "1 of 2 processes died" in capsys.readouterr().err
        assert os.environ["OMP_NUM_THREADS"] == "3"

    def test_no_time_left_to_compile(self):
        case = Case("se", (14, 14), 2, torch.float32, compiled=True)
        limits = measure.Ceilings("fake", 1e10, {"float32": 1e11})
        assert not list(measure_compiled([case], torch.device("cpu"), limits, jobs=1, end=time.monotonic()))

    @pytest.mark.parametrize(("layout", "expected"), [
        ("B C H W", (14, 14)), ("B N C", (196,)), ("B T N C", (14, 14)), ("B C T H W", (8, 14, 14)),
        ("B C H W, B C H W", (14, 14)), ("B C T", (14,)),
    ])
    def test_sizes(self, layout, expected):
        assert suite.sizes(layout, [14]) == [expected]


class TestRoofline:
    def test_a_device_of_another_kind_is_refused(self):
        with pytest.raises(ValueError, match="device='meta' must be a CPU or a CUDA device"):
            measure.ceilings("meta")

    def test_least_time_is_the_longer_of_two(self):
        limits = measure.Ceilings("d", bandwidth=100.0, flop_rate={"float32": 1000.0})
        assert limits.least_seconds(flops=500, bytes=10) == 0.5
        assert limits.least_seconds(flops=5, bytes=10) == 0.1

    def test_a_dtype_that_the_processor_lacks_is_measured_on_a_small_product_only(self, monkeypatch):
        from attn_lib.measure import roofline
        asked = []

        def rate(side, dtype, generator):
            asked.append((side, dtype))
            return 2e9 if dtype == torch.bfloat16 else 1e11

        monkeypatch.setattr(roofline, "_flop_rate", rate)
        monkeypatch.setattr(roofline, "samples", lambda *_: ([1.0], None))
        limits = measure.ceilings.__wrapped__("cpu")
        assert limits.flop_rate == {"float32": 1e11, "bfloat16": 2e9}
        assert asked == [(256, torch.float32), (1024, torch.float32), (256, torch.bfloat16)]

    def test_float32_is_float32_within_and_as_before_without(self):
        from attn_lib.measure.roofline import true_float32
        before = torch.backends.cudnn.allow_tf32
        with pytest.raises(RuntimeError), true_float32():
            assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
            raise RuntimeError
        assert torch.backends.cudnn.allow_tf32 == before

    @pytest.mark.parametrize("precision", ["highest", "high", "medium"])
    def test_what_the_reader_chose_is_back_and_consistent(self, precision):
        from attn_lib.measure.roofline import true_float32
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision(precision)
            with true_float32():
                assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_float32_matmul_precision() == precision  # raises where torch's settings contradict
            assert torch.backends.cuda.matmul.allow_tf32 == (precision != "highest")
        finally:
            torch.set_float32_matmul_precision(before)


class TestCall:
    def test_nests(self):
        a, b = rand(2), rand(3)
        nest = {"x": [a, (b, 3)], "y": None}
        assert [t is u for t, u in zip(call.tensors(nest), [a, b], strict=True)] == [True, True]
        doubled = call.map_tensors(lambda t: 2 * t, nest)
        assert torch.equal(doubled["x"][1][0], 2 * b) and doubled["x"][1][1] == 3 and doubled["y"] is None
        named = torch.return_types.max((a, b))
        assert call.map_tensors(lambda t: t, (a, [b]))[1][0] is b and len(call.tensors(named)) == 2

    def test_progress_with_tqdm_or_without_yields_everything(self, monkeypatch, capsys):
        assert list(progress.progress([1, 2, 3], "bar")) == [1, 2, 3]
        monkeypatch.setitem(sys.modules, "tqdm", None)
        assert list(progress.progress([1, 2, 3], "bar")) == [1, 2, 3]
        assert "bar 3/3" in capsys.readouterr().err


# --- beside other packages ---


@pytest.mark.parametrize("id", [id for id in attn_lib.list_modules() if attn_lib.entry(id).counterpart])
def test_a_counterpart_has_our_shape_and_as_many_parameters(id):
    """A ratio of times says something only about two modules that do the same work."""
    entry = attn_lib.entry(id)
    other, options = entry.counterpart, entry.options(size=(12, 12))
    ours, theirs = entry.cls(**options | other.options), other.make(import_package(other.package), **options)
    (x,) = entry.make_inputs(size=(12, 12))
    assert ours(x).shape == theirs(x).shape
    count = [sum(p.numel() for p in m.parameters()) for m in (ours, theirs)]
    assert abs(count[0] - count[1]) <= 2 * options["channels"], count


def test_counterparts_are_timed_in_turns_and_a_missing_package_is_named(monkeypatch):
    text = beside_counterparts(["ccnet", "se"], torch.device("cpu"))
    assert re.search(r"\nse +timm SEModule +× \d+\.\d\d ± ", text), text
    assert "ccnet" not in text
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "timm.layers.squeeze_excite is not installed" in beside_counterparts(["se"], torch.device("cpu"))
    assert beside_counterparts(["ccnet"], torch.device("cpu")) == ""


def test_symmetries_of_a_module_in_another_layout_name_its_own_axes():
    module, inputs = attn_lib.example("gated", "series", generic=True)
    with pytest.raises(ValueError, match="must name the axes"):
        measure.symmetries(module, [x[0] for x in inputs])
    found = measure.symmetries(module, inputs)
    assert math.isnan(found["flip_h"]), "B T N C has no rows of an image"
    assert found["channel_permutation"] > 1e-3
