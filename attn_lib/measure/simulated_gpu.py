"""A GPU in a few lines: it works while the host goes on, and its clock can be read by a test."""

from collections.abc import Callable


class SimulatedGPU:
    """Runs kernels one after another, on a simulated clock in seconds.

    As on a real one, `launch` returns as soon as the kernel is queued; the first launch of each kernel also loads and
    tunes it; now and then something else on the machine takes the time of a kernel.

    Args:
        launch_cost: host time of a launch.
        first_cost: extra host time of a kernel's first launch.
        hiccup: a function number of the launch -> extra device time; none by default.
    """

    def __init__(self, *, launch_cost: float = 10e-6, first_cost: float = 50e-3,
                 hiccup: Callable[[int], float] = lambda n: 0.0):
        self.launch_cost, self.first_cost, self.hiccup = launch_cost, first_cost, hiccup
        self.launches = 0
        self._host = self._free = 0.0  # now, for the host; when the device will have finished what is queued
        self._known: set[str] = set()

    def clock(self) -> float:
        """The host's time."""
        return self._host

    def launch(self, kernel: str, seconds: float) -> None:
        """Queue a kernel that takes so many seconds of the device."""
        self._host += self.launch_cost + (0.0 if kernel in self._known else self.first_cost)
        self._known.add(kernel)
        self._free = max(self._free, self._host) + seconds + self.hiccup(self.launches)
        self.launches += 1

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        self._host = max(self._host, self._free)
