"""Every unit test draws the same random numbers, whether it runs alone or after others."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
