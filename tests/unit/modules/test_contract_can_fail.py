"""The contract refuses broken modules: each mistake below is a common one, and one contract test must catch it."""

import pytest
import torch
from torch import nn

from attn_lib import catalog
from attn_lib.channel.se import SEAttention
from attn_lib.tap import tap
from tests.unit.modules import test_contract as contract


class InPlace(SEAttention):
    """Writes into its input."""

    def forward(self, x):
        return tap("y", x.mul_(super().forward(x.detach())), "B C H W")


class FixedSize(SEAttention):
    """Pools with the size of the example built in."""

    def forward(self, x):
        z = tap("z", x.flatten(2)[..., : 12 * 16].view(-1, self.channels, 12, 16).mean((2, 3)), "B C")
        return tap("y", x * torch.sigmoid(self.W2(self.W1(z)).relu())[:, :, None, None], "B C H W")


class TopRowsOnly(SEAttention):
    """Pools over half the image."""

    def forward(self, x):
        s = torch.sigmoid(self.W2(self.W1(x[:, :, : x.shape[2] // 2 + 1].mean((2, 3))).relu()))
        return tap("y", x * s[:, :, None, None], "B C H W")


class DeadParameter(SEAttention):
    """Never uses its second bias."""

    def forward(self, x):
        s = tap("s", torch.sigmoid(self.W1(x.mean((2, 3))).relu() @ self.W2.weight.T), "B C")
        return tap("y", x * s[:, :, None, None], "B C H W")


class AcrossTheBatch(SEAttention):
    """Means over the batch as well."""

    def forward(self, x):
        return tap("y", x * x.mean((0, 2, 3))[:, None, None].sigmoid(), "B C H W")


class Detached(SEAttention):
    """Cuts the gradient of the gate."""

    def forward(self, x):
        s = torch.sigmoid(self.W2(self.W1(x.mean((2, 3))).relu())).detach()
        return tap("y", x * s[:, :, None, None], "B C H W")


class PythonBranch(SEAttention):
    """Decides in Python on the value of a tensor."""

    def forward(self, x):
        return tap("y", x if x.mean().item() > 0 else -x, "B C H W")


class Overflows(SEAttention):
    """A softmax written out, without subtracting the maximum."""

    def forward(self, x):
        e = (20 * self.W2(self.W1(x.mean((2, 3))))).exp() * 1e4
        return tap("y", x * (e / e.sum(1, keepdim=True))[:, :, None, None], "B C H W")


class SquaresInHalf(SEAttention):
    """Takes squares in the input's own precision."""

    def forward(self, x):
        s = torch.sigmoid(self.W2(self.W1(x.square().mean((2, 3)).sqrt()).relu()))
        return tap("y", x * s[:, :, None, None], "B C H W")


class CutOffInHalf(SEAttention):
    """Keeps half precision finite by cutting large features off."""

    def forward(self, x):
        return tap("y", super().forward(x.clamp(-500, 500) if x.dtype == torch.float16 else x), "B C H W")


class NoChecks(SEAttention):
    """Leaves a wrong input to the depths of torch."""

    def forward(self, x):
        return x * torch.sigmoid(self.W2(self.W1(x.mean((2, 3))).relu()))[:, :, None, None]


class WrongAxes(SEAttention):
    """Names an axis of one size by two letters' size."""

    def forward(self, x):
        tap("z", x.mean((2, 3)), "B H")
        return tap("y", super().forward(x), "B C H W")


class Positional(SEAttention):
    """Says nothing of itself and takes options by position."""

    def __init__(self, channels, reduction=16):
        nn.Module.__init__(self)


@pytest.fixture
def entered(request, monkeypatch):
    """The broken class, in the catalog for one test."""
    monkeypatch.setattr(catalog, "_ENTRIES", dict(catalog._ENTRIES))
    catalog.register("broken", family="channel", name="n", summary="s", aliases=["N"], action="gate",
                     papers=[catalog.Paper("p", "t", "v", 2000)],
                     layout="B C H W", example=dict(channels=8, reduction=2),
                     commutes_with=catalog.entry("se").commutes_with)(request.param)


@pytest.mark.parametrize(("entered", "check", "arguments"), [
    (InPlace, contract.test_input_is_left_alone, [None]),
    (FixedSize, contract.test_odd_and_non_square_sizes, [None, (7, 9)]),
    (TopRowsOnly, contract.test_symmetries_are_as_stated, []),
    (DeadParameter, contract.test_every_parameter_and_input_receives_a_gradient, [None, "cpu"]),
    (AcrossTheBatch, contract.test_items_of_a_batch_do_not_see_each_other, [None]),
    (Detached, contract.test_gradients_are_those_of_finite_differences, [None]),
    (PythonBranch, contract.test_compiles_whole, [None]),
    (PythonBranch, contract.test_exports, [None]),
    (Overflows, contract.test_half_precision_and_autocast, [None, torch.float16, "cpu"]),
    (SquaresInHalf, contract.test_large_inputs_in_half_precision, [None, False, torch.float16, "cpu"]),
    (CutOffInHalf, contract.test_large_inputs_in_half_precision, [None, False, torch.float16, "cpu"]),
    (NoChecks, contract.test_bad_input_is_named, []),
    (NoChecks, contract.test_taps_name_the_output_and_every_axis, [None]),
    (WrongAxes, contract.test_taps_name_the_output_and_every_axis, [None]),
    (Positional, contract.test_docstring_says_all_it_must, []),
], indirect=["entered"], ids=lambda v: getattr(v, "__name__", None))
def test_mistake_is_caught(entered, check, arguments):
    with pytest.raises(Exception) as caught:  # whatever the test would have failed with
        check("broken", *arguments)
    assert not isinstance(caught.value, pytest.skip.Exception)


@pytest.mark.parametrize("entered", [SEAttention], indirect=True)
def test_the_same_checks_pass_a_sound_module(entered):
    """So what the mistakes fail by is the mistake, not the way they are entered here."""
    contract.test_input_is_left_alone("broken", None)
    contract.test_odd_and_non_square_sizes("broken", None, (7, 9))
    contract.test_symmetries_are_as_stated("broken")
    contract.test_every_parameter_and_input_receives_a_gradient("broken", None, "cpu")
    contract.test_gradients_are_those_of_finite_differences("broken", None)
    contract.test_half_precision_and_autocast("broken", None, torch.float16, "cpu")
    contract.test_large_inputs_in_half_precision("broken", None, False, torch.float16, "cpu")
    contract.test_bad_input_is_named("broken")
    contract.test_taps_name_the_output_and_every_axis("broken", None)
