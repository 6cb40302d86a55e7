"""Every check passes what it should and names argument, value and rule for what it should not."""

import pytest
import torch

from attn_lib import checks


@pytest.mark.parametrize(("call", "message"), [
    (lambda: checks.check_int("r", 0), "r=0 must be an integer of at least 1"),
    (lambda: checks.check_int("r", 2.0), "r=2.0 must be an integer"),
    (lambda: checks.check_int("r", True), "r=True must be an integer"),
    (lambda: checks.check_pair("k", (3, 0)), "k=0 must be an integer of at least 1"),
    (lambda: checks.check_pair("k", (1, 2, 3)), r"k=\(1, 2, 3\) must be an integer or a \(rows, columns\) pair"),
    (lambda: checks.check_odd("k", 4), "k=4 must be odd"),
    (lambda: checks.check_pair("stride", (1, 0)), "stride=0 must be an integer of at least 1"),
    (lambda: checks.check_pair("stride", 2.0), "stride=2.0 must be an integer"),
    (lambda: checks.check_pair("stride", (1, 2, 3)), r"stride=\(1, 2, 3\) must be an integer or a \(rows,"),
    (lambda: checks.check_positive("eps", 0, "else 0/0"), "eps=0 must be a positive number: else 0/0"),
    (lambda: checks.check_positive("eps", -1e-5), "eps=-1e-05 must be a positive number$"),
    (lambda: checks.check_positive("eps", float("inf")), "eps=inf must be a positive number"),
    (lambda: checks.check_positive("eps", float("nan")), "eps=nan must be a positive number"),
    (lambda: checks.check_positive("eps", "1e-5"), "eps='1e-5' must be a positive number"),
    (lambda: checks.check_positive("eps", True), "eps=True must be a positive number"),
    (lambda: checks.check_divisible("channels", 30, "groups", 8),
     "channels=30 must be divisible by groups=8; 24 and 32 are"),
    (lambda: checks.check_divisible("channels", 3, "groups", 8), "channels=3 must be divisible by groups=8; 8 is"),
    (lambda: checks.check_at_most("reduction", 9, "channels", 8), "reduction=9 must be at most channels=8"),
    (lambda: checks.check_choice("id", "sse", ["se", "scse", *map(str, range(40))]),
     r"id='sse' must be one of 'se', 'scse', .* \(42 in all\); did you mean 'scse' or 'se'\?$"),
    (lambda: checks.check_choice("mode", "a", ("b", "c")), "mode='a' must be one of 'b', 'c'"),
    (lambda: checks.check_feature_map([1], 3), r"x must be a tensor of shape \(B, C, H, W\), not list"),
    (lambda: checks.check_feature_map(torch.ones(3, 4, 4), 3), "it must have 4 axes"),
    (lambda: checks.check_feature_map(torch.ones(1, 4, 4, 4), 3), "axis C must be 3, not 4"),
    (lambda: checks.check_feature_map(torch.ones(1, 3, 0, 4), 3), "axis H must not be empty"),
    (lambda: checks.check_feature_map(torch.ones(1, 3, 4, 4, dtype=torch.int64), 3), "dtype torch.int64"),
    (lambda: checks.check_tensor(torch.ones(2), "B N", name="q"), "q has shape"),
])
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_passes():
    x = torch.ones(1, 3, 4, 5)
    assert checks.check_feature_map(x, 3) is x
    assert checks.check_int("r", 0, at_least=0) == 0
    assert checks.check_pair("k", 3) == (3, 3) and checks.check_pair("p", (0, 2), at_least=0) == (0, 2)
    assert checks.check_odd("k", 3) == 3
    assert checks.check_pair("padding", 0, at_least=0) == (0, 0)
    assert checks.check_pair("stride", (2, 1)) == (2, 1)
    assert checks.check_positive("eps", 1) == 1.0
    assert checks.check_divisible("channels", 32, "groups", 8) == 4
    checks.check_at_most("r", 8, "channels", 8)
    checks.check_choice("mode", "b", ("b", "c"))
