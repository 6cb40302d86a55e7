"""Networks to put modules into, and what is looked at in them."""

import copy
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """As in a ResNet, with its traps: one in-place ReLU used three times, and an in-place addition."""

    def __init__(self, channels: int, width: int, out: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += identity
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(Bottleneck(16, 8, 32), Bottleneck(32, 8, 32))
        self.layer2 = nn.Sequential(Bottleneck(32, 8, 48, stride=2), Bottleneck(48, 8, 48))
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        return self.head(x.mean((2, 3)))


def block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class Up(nn.Module):
    def __init__(self, channels: int, out: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2))


class UNet(nn.Module):
    """Two scales; the merge is a plain concatenation."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = block(3, 8), block(8, 16)
        self.up1, self.merge1, self.head = Up(16, 8), block(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        d1 = self.down1(x)
        u1 = self.up1(self.down2(F.max_pool2d(d1, 2)))
        return self.head(self.merge1(torch.cat((u1, d1), 1)))


class FPN(nn.Module):
    """Three scales from the top down; the merges are plain additions."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 6, 2, 2), nn.Conv2d(6, 8, 2, 2)])
        self.laterals = nn.ModuleList([nn.Conv2d(c, 5, 1) for c in (4, 6, 8)])
        self.ups = nn.ModuleList([nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        outputs = [self.laterals[2](maps[2])]
        for i in (1, 0):
            outputs.append(self.ups[i](outputs[-1]) + self.laterals[i](maps[i]))
        return outputs


def gate(channels: int) -> nn.Module:
    """A gate that every tracer takes as it is; autograd keeps its output."""
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Sigmoid())


class Pair(NamedTuple):
    first: Tensor
    second: float = 0.0


class Named(nn.Module):
    def forward(self, x: Tensor) -> Pair:
        return Pair(x)


class Head(nn.Module):
    """A network of two convolutions whose output is whatever `form` makes of the last one's."""

    def __init__(self, form):
        super().__init__()
        self.a, self.b, self.form = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), form

    def forward(self, x: Tensor):
        return self.form(self.b(self.a(x)))


def evaluate(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def at_once(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs for each of the inputs, computed by as many threads."""
    with ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(torch.no_grad()(model), inputs))
