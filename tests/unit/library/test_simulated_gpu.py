"""The simulated GPU of the chapter on measuring: a launch is not an execution."""

import pytest

from attn_lib.measure.simulated_gpu import SimulatedGPU


def test_a_launch_returns_before_the_kernel_has_run():
    gpu = SimulatedGPU(launch_cost=1.0, first_cost=0.0)
    gpu.launch("add", 100.0)
    assert gpu.clock() == 1.0
    gpu.synchronize()
    assert gpu.clock() == 101.0
    gpu.synchronize()
    assert gpu.clock() == 101.0


def test_kernels_queue_up_and_the_first_launch_of_each_costs_more():
    gpu = SimulatedGPU(launch_cost=1.0, first_cost=10.0)
    for kernel in ("add", "add", "mul"):
        gpu.launch(kernel, 5.0)
    assert gpu.clock() == 11.0 + 1.0 + 11.0 and gpu.launches == 3
    gpu.synchronize()
    assert gpu.clock() == 23.0 + 5.0  # the first two were done while the third was being loaded


def test_hiccups_take_device_time():
    gpu = SimulatedGPU(launch_cost=0.0, first_cost=0.0, hiccup=lambda n: 7.0 * (n == 1))
    gpu.launch("add", 1.0)
    gpu.launch("add", 1.0)
    gpu.synchronize()
    assert gpu.clock() == pytest.approx(9.0)
