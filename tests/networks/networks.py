"""Networks of other people, small ones of our own, and how a module comes into each."""

import inspect
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import util
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import optimization
from torch.optim.swa_utils import update_bn

import attn_lib
from attn_lib import plug
from attn_lib.catalog import Entry
from attn_lib.measure.counterparts import import_package
from attn_lib.plug.probe import watch
from tests.unit.reference import reference


@dataclass(frozen=True)
class Network:
    """A network, the places in it where modules are put, and what flows there.

    Attributes:
        make: a fresh network.
        shape: of an input, without the batch.
        sites: the pattern of the places; all of them return tensors of one shape.
        channels, size: C there, and the sizes of the axes that vary: (H, W), or (T, H, W).
        skip: name of the sub-module whose output a module of two inputs takes as its second.
        extras: further arguments of `plug.insert` and `plug.fuse`.
        package: what must be installed besides the test environment.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    sites: str
    channels: int
    size: tuple[int, ...]
    skip: str | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    package: str | None = None

    @property
    def installed(self) -> bool:
        return self.package is None or util.find_spec(self.package) is not None

    def build(self, id: str | None, x: Tensor) -> tuple[nn.Module, "Placed | None"]:
        """The network in evaluation mode, with a module in it or alone, and what says where."""
        model = self.make().eval()
        settle(model, x)
        return model, Placed(self.put(model, id, x[:2])) if id else None

    def fuse(self, model: nn.Module) -> nn.Module:
        """The network with its norms folded into convolutions."""
        return optimization.fuse(model)

    def put(self, model: nn.Module, id: str, x: Tensor) -> plug.Report:
        """Put a module of the catalogue into a fresh network.

        Raises:
            ValueError: as `plug.insert` does.
        """
        entry = attn_lib.entry(id)
        options = {"example": x, **self.extras, **options_for(entry, self.channels, self.size)}
        if len(entry.layout.tensors) == 1:
            return plug.insert(model, self.sites, id, **options)
        if self.skip is None:
            raise ValueError(f"{id} takes several inputs ({entry.layout}), and no two places of this network return "
                             "tensors of one shape to be fused")
        return plug.fuse(model, self.sites, id, skip=self.skip, **options)


@dataclass(frozen=True)
class Placed:
    """Modules that `plug` has put into a network, as they are found in it or in a copy."""

    report: plug.Report

    def check(self, model: nn.Module, x: Tensor) -> None:
        """Raises a `ValueError` where one is gone, or does not run once for each call of its site."""
        self.report.check(model, example=x)

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {f"{row.path}.{name}": p for row in plug.inserted(model) for name, p in row.module.named_parameters()}

    def remove(self, model: nn.Module) -> None:
        plug.remove(model)


def settle(model: nn.Module, x: Tensor) -> None:
    """Running statistics of what flows: with 0 and 1 a deep network returns the same for every input."""
    update_bn([x], model)


# Where a default does not fit every number of channels that these networks have, or changes it.
OWN_OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "aspp": lambda channels: {"out_channels": channels},
    "dilateformer": lambda channels: {"heads": 4, "dilations": (1, 2)},
    "ema": lambda channels: {"groups": 8},
    "fca": lambda channels: {"freqs": 8},
    "shuffle": lambda channels: {"groups": 4},
    "sk": lambda channels: {"groups": 8},
}


def options_for(entry: Entry, channels: int, size: tuple[int, ...]) -> dict[str, Any]:
    """What a module must be told for a place: the sizes that it is made for, and `OWN_OPTIONS`."""
    sizes = dict(zip(("width", "height", "frames"), reversed(size), strict=False))
    parameters = inspect.signature(entry.cls).parameters
    wanted = {name: value for name, value in sizes.items() if name in parameters and name in entry.example}
    own = OWN_OPTIONS.get(entry.id, lambda channels: {})(channels)
    return wanted | {name: value for name, value in own.items() if name in parameters}


# --- of our own -------------------------------------------------------------------------------------------------------


def block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Down three times, up three times, each step up beside what came down at its size."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = block(3, 16), block(16, 32), block(32, 64)
        self.rise2, self.rise1 = nn.ConvTranspose2d(64, 32, 2, stride=2), nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.up2, self.up1 = block(64, 32), block(32, 16)
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.down1(x)
        x2 = self.down2(self.pool(x1))
        y = self.rise2(self.bottom(self.pool(x2)))
        y = self.up2(torch.cat([y, x2], dim=1))
        return self.head(self.up1(torch.cat([self.rise1(y), x1], dim=1)))


class FPN(nn.Module):
    """A pyramid: lateral convolutions, added from the top down; an output for each level."""

    def __init__(self):
        super().__init__()
        self.stage1, self.stage2, self.stage3 = block(3, 16), block(16, 24), block(24, 48)
        self.lateral1, self.lateral2, self.lateral3 = (nn.Conv2d(c, 32, 1) for c in (16, 24, 48))
        self.smooth1, self.smooth2 = block(32, 32), block(32, 32)
        self.pool, self.rise = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x1 = self.pool(self.stage1(x))
        x2 = self.pool(self.stage2(x1))
        p3 = self.lateral3(self.pool(self.stage3(x2)))
        p2 = self.smooth2(self.lateral2(x2) + self.rise(p3))
        return self.smooth1(self.lateral1(x1) + self.rise(p2)), p2, p3


class Video(nn.Module):
    """Convolutions over frames: the place of a module that looks along time."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(3, 16, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)), nn.BatchNorm3d(16)
        self.conv2, self.bn2 = nn.Conv3d(16, 16, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(16)
        self.relu, self.head = nn.ReLU(), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        return self.head(x.mean((2, 3, 4)))


# --- YOLO -------------------------------------------------------------------------------------------------------------


# Before it is imported: ask nobody for anything, install nothing, leave the settings of this user alone.
QUIET = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false",
         "YOLO_CONFIG_DIR": tempfile.gettempdir()}


class Yolo(Network):
    """A detector of ultralytics, as its users build it: from YAML, with a row for the module."""

    def build(self, id: str | None, x: Tensor) -> tuple[nn.Module, "Row | None"]:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        tasks = import_package("ultralytics.nn.tasks")
        config = tasks.yaml_model_load("yolov8n.yaml")
        place = Row(int(self.sites.removeprefix("model."))) if id else None
        if place is not None:
            from attn_lib.plug import yolo

            cls = attn_lib.entry(id).cls
            name = next((name for name, other in yolo.register().items() if other is cls), None)
            if name is None:
                raise ValueError(f"{id} takes no feature map, and has no name in a YOLO's YAML")
            options = options_for(attn_lib.entry(id), self.channels, self.size)
            two = len(attn_lib.entry(id).layout.tensors) > 1
            place.write(config, name, options, two=two)
        model = tasks.DetectionModel(config, verbose=False).eval()
        model.model[-1].export = True  # as its exporter has it: one tensor, and no dictionary of what it is made of
        model.model[-1].format = "onnx"
        settle(model, x)
        return model, place

    def fuse(self, model: nn.Module) -> nn.Module:
        return model.fuse(verbose=False)


@dataclass(frozen=True)
class Row:
    """A module that stands in a YOLO as a layer of its own; `index` is its number."""

    index: int

    def write(self, config: dict[str, Any], name: str, options: dict[str, Any], *, two: bool) -> None:
        """Add the row to a YAML: it reads the layer before, and whoever read that one reads the new one.

        Two inputs are those of the two layers before, which have one shape.
        """
        rows = [*config["backbone"], *config["head"]]
        for row in rows:
            given = row[0] if isinstance(row[0], list) else [row[0]]
            moved = [f + 1 if f >= self.index - 1 else f for f in given]
            row[0] = moved if isinstance(row[0], list) else moved[0]
        reads = [-1, self.index - 2] if two else -1
        config["backbone"].insert(self.index, [reads, 1, name, [options] if options else []])

    def check(self, model: nn.Module, x: Tensor) -> None:
        model = getattr(model, "module", model)
        _, flows = watch(model, (x,), [model.model[self.index]])
        if (calls := next(iter(flows.values())).calls) != 1:
            raise ValueError(f"the module in row {self.index} runs {calls} times in a forward pass")

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {f"model.{self.index}.{name}": p for name, p in model.model[self.index].named_parameters()}

    def remove(self, model: nn.Module) -> None:
        """Let the input through, the first of several."""
        class Through(nn.Identity):
            def forward(self, x: Tensor | list[Tensor]) -> Tensor:
                return x[0] if isinstance(x, list) else x

        layer, through = model.model[self.index], Through()
        through.f, through.i = layer.f, layer.i
        model.model[self.index] = through


# --- all --------------------------------------------------------------------------------------------------------------


def torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(reference("torchvision.models"), name)(num_classes=10)


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: reference("timm").create_model(name, num_classes=10, **options)


IMAGE = (3, 64, 64)
TOKENS = {"tokens": True}

NETWORKS: dict[str, Network] = {
    "torchvision resnet18": Network(torchvision("resnet18"), IMAGE, "layer1.*.bn2", 64, (16, 16)),
    "torchvision resnet50": Network(torchvision("resnet50"), IMAGE, "layer1.[01].bn3", 256, (16, 16)),
    "torchvision mobilenet_v3_small":
        Network(torchvision("mobilenet_v3_small"), IMAGE, "features.[23].block", 24, (8, 8)),
    "timm resnet18": Network(timm("resnet18", zero_init_last=False), IMAGE, "layer1.*.bn2", 64, (16, 16)),
    "timm mobilenetv3_small_100": Network(timm("mobilenetv3_small_100"), IMAGE, "blocks.1.*.bn3", 24, (8, 8)),
    "timm vit_tiny_patch16": Network(timm("vit_tiny_patch16_224", img_size=128), (3, 128, 128), "blocks.[01].mlp", 192,
                                     (8, 8), extras={**TOKENS, "prefix": 1}),
    "timm swin_tiny": Network(timm("swin_tiny_patch4_window7_224", img_size=64), IMAGE, "layers.0.blocks.*", 96,
                              (16, 16), extras=TOKENS),
    "timm convnext_atto": Network(timm("convnext_atto"), IMAGE, "stages.1.blocks.*", 80, (8, 8)),
    "ultralytics yolov8n": Yolo(lambda: None, (3, 256, 256), "model.5", 64, (32, 32), package="ultralytics"),
    "U-Net": Network(UNet, (3, 32, 32), "up2", 32, (16, 16), skip="down2"),
    "FPN": Network(FPN, (3, 32, 32), "smooth2", 32, (8, 8), skip="lateral2"),
    "video network": Network(Video, (3, 6, 24, 24), "bn[12]", 16, (6, 12, 12)),
}
MAIN = "torchvision resnet18"  # the one that every module goes into

# One of each family, with its network in the ordinary gate.
FAMILIES = {"se": MAIN, "ccnet": MAIN, "cbam": MAIN, "sk": MAIN, "tam": "video network", "mhsa": MAIN, "vip": MAIN,
            "deform": MAIN, "safm": MAIN}


def plan() -> list[tuple[str, str | None]]:
    """Rows of the whole matrix: network and module; None is the network alone, which comes before all with a module.

    Every module goes into `MAIN`, one of each family into every network, and all that look along time into the network
    of frames.
    """
    rows: list[tuple[str, str | None]] = []
    for name, network in NETWORKS.items():
        ids = [*FAMILIES, "gated"] if network.skip or network.package else list(FAMILIES)
        rows += [(name, None), *((name, id) for id in (attn_lib.list_modules() if name == MAIN else ids))]
    return rows
