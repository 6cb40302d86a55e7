"""What the tests of this room share."""

import pytest
import torch
from torch import Tensor, nn

from tests.unit.library.plug.networks import ResNet, UNet


@pytest.fixture
def resnet() -> ResNet:
    """A network whose running statistics and batch-norm weights are those of training, not 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet()
        for p in model.parameters():
            if p.ndim == 1:
                nn.init.normal_(p, 1.0, 0.2)
        for _ in range(3):
            model(torch.randn(4, 3, 12, 10))
    return model


@pytest.fixture
def unet() -> UNet:
    model = UNet()
    for _ in range(3):
        model(torch.randn(4, 3, 8, 12))
    return model.eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(1))
