"""What `test_yolo.py` runs in a process of its own for each version of ultralytics. Nothing here uses the network."""

import copy
import inspect
import pickle
import pickletools
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import attn_lib
from attn_lib import toys
from attn_lib.measure.counterparts import import_package
from attn_lib.plug import yolo

YOLO = import_package("ultralytics").YOLO  # beside a torchvision without operators
tasks, utils = import_package("ultralytics.nn.tasks"), import_package("ultralytics.utils")

BEFORE = dict(vars(tasks))
MODULES = [id for id in attn_lib.list_modules() if yolo.takes_maps(attn_lib.entry(id))]
SCALES = {"n": [1.0, 0.25, 1024], "s": [1.0, 0.50, 1024], "m": [1.0, 0.75, 768]}
TINY = """
nc: 10
scales: {n: [1.0, 0.25, 1024]}
backbone:
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, SEAttention, [{reduction: 4}]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 1, CBAM, [{reduction: 8}]]
  - [-1, 1, SimAM, []]
  - [-1, 1, ASPP, [128]]
head:
  - [[-1, 5], 1, GatedFusion, []]
  - [-1, 1, Conv, [128, 3, 2]]
  - [[7, 8], 1, Detect, [nc]]
"""


@pytest.fixture(autouse=True, scope="session")
def offline():
    """Every attempt to reach another machine fails the run; the font that ultralytics would fetch lies ready."""
    import matplotlib

    utils.SETTINGS.update(sync=False)
    shutil.copy(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", utils.USER_CONFIG_DIR / "Arial.ttf")
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
        yield
    assert not asked


@pytest.fixture(autouse=True, scope="session")
def nms():
    """Suppression of overlapping boxes, which validation needs, where torchvision's operator was not built."""
    import torchvision

    def keep_best(boxes, scores, threshold):
        kept = []
        for i in scores.argsort(descending=True).tolist():
            if not kept or torchvision.ops.box_iou(boxes[i:i + 1], boxes[kept]).max() <= threshold:
                kept.append(i)
        return torch.tensor(kept, dtype=torch.int64)

    with pytest.MonkeyPatch.context() as patch:
        if not torchvision.extension._has_ops():
            patch.setattr(torchvision.ops, "nms", keep_best)
        yield


@pytest.fixture(autouse=True, scope="session")
def names(offline):
    return yolo.register()


@pytest.fixture
def unregistered(monkeypatch):
    """ultralytics as it was; what a test registers is taken back."""
    after = dict(vars(tasks))
    vars(tasks).clear(), vars(tasks).update(BEFORE)
    yield
    vars(tasks).clear(), vars(tasks).update(after)


def build(rows, *, ch: int = 16, width: float = 1.0, most: float = float("inf")):
    """The layers of a network that begins with `ch` channels, and those that are kept."""
    scales = {"n": [1.0, width, most]}
    return tasks.parse_model({"nc": 2, "scales": scales, "scale": "n", "backbone": copy.deepcopy(rows), "head": []},
                             ch=ch, verbose=False)


def detector(rows, scale: str = "n", **fields):
    """A detector whose last two layers are looked at, with few parameters."""
    d = {"nc": 2, "scales": SCALES, "scale": scale, "backbone": copy.deepcopy(rows),
         "head": [[-1, 1, "Conv", [32, 1]], [[-1], 1, "Detect", ["nc"]]], **fields}
    return tasks.DetectionModel(d, verbose=False)


def hidden(module: nn.Module) -> list[tuple[int, ...]]:
    """The shapes of a module's parameters."""
    return [tuple(p.shape) for p in module.parameters()]


def first_width(layer: nn.Module) -> int:
    return next(m for m in layer.modules() if isinstance(m, nn.Conv2d)).in_channels


# ---- names -----------------------------------------------------------------------------------------------------------


def test_every_feature_map_module_is_known_by_the_name_of_its_class(names):
    assert names == {attn_lib.entry(id).cls.__name__: attn_lib.entry(id).cls for id in MODULES}
    assert {"SEAttention", "CBAM", "GatedFusion", "SimAM"} <= set(names) and len(names) == len(MODULES) > 60


def test_what_ultralytics_has_stays_what_it_is(names):
    assert not set(names) & set(BEFORE)
    now = vars(tasks)
    assert {name for name in BEFORE if now[name] is not BEFORE[name]} == {"parse_model"}
    assert inspect.unwrap(tasks.parse_model) is BEFORE["parse_model"]


def test_registering_again_changes_nothing(names):
    before = dict(vars(tasks))
    assert yolo.register() == names
    assert all(vars(tasks)[name] is before[name] for name in before) and len(vars(tasks)) == len(before)


def test_a_name_that_is_taken_keeps_its_meaning(unregistered):
    class SEAttention(nn.Identity):
        pass

    tasks.SEAttention = SEAttention
    with pytest.warns(UserWarning, match="that of attn_lib is AttnLibSEAttention"):
        names = yolo.register()
    assert names["AttnLibSEAttention"] is attn_lib.entry("se").cls and "SEAttention" not in names
    layers, _ = build([[-1, 1, "SEAttention", []], [-1, 1, "AttnLibSEAttention", []]])
    assert [type(layer) for layer in layers] == [SEAttention, attn_lib.entry("se").cls]
    assert yolo.register() == names


def test_a_readers_own_module_can_be_named_after_the_next_call(names, monkeypatch):
    from attn_lib import catalog

    class Halved(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.channels, self.out_channels = channels, channels // 2

        def forward(self, x):
            return x[:, ::2]

    monkeypatch.setattr(catalog, "_ENTRIES", dict(catalog._ENTRIES))
    se = catalog.entry("se")
    catalog.register("halved", family="channel", name="Halved", summary="s", aliases=("h",), action="mix",
                     papers=se.papers, layout="B C H W", output="B O H W", example={"channels": 8})(Halved)
    assert yolo.register()["Halved"] is Halved
    layers, _ = build([[-1, 1, "Conv", [16, 1]], [-1, 1, "Halved", []], [-1, 1, "Conv", [4, 1]]])
    assert first_width(layers[2]) == 8


# ---- channels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "width"), [("n", 16), ("s", 32), ("m", 48)])
def test_channels_are_those_of_the_layer_before_at_every_width(scale, width):
    rows = yaml.safe_load("""
      - [-1, 1, Conv, [64, 3, 2]]
      - [-1, 1, SEAttention, []]
      - [-1, 1, CBAM, [{reduction: 8}]]
      - [-1, 2, ECAAttention, []]
      - [[-1, 1], 1, GatedFusion, []]""")
    _, se, cbam, ecas, gated = list(detector(rows, scale).model)[:5]
    assert type(se) is attn_lib.entry("se").cls and se.channels == width
    assert type(cbam) is attn_lib.entry("cbam").cls
    assert hidden(cbam) == hidden(attn_lib.entry("cbam").cls(width, reduction=8))
    assert [type(eca) for eca in ecas] == [attn_lib.entry("eca").cls] * 2 and ecas[0] is not ecas[1]
    assert type(gated.module) is attn_lib.entry("gated").cls and gated.module.channels == width


def test_a_module_acts_where_its_row_stands():
    """The network is its layers one after the other, the fusion's inputs in the order of the YAML."""
    net = detector([[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "SEAttention", []], [-1, 1, "SimAM", []],
                    [[-1, 1], 1, "GatedFusion", []], [[0, -1, 2], 1, "MultiScaleSelectiveFusion", [{"scales": 3}]]])
    net.eval()
    seen = {}
    for layer in net.model[4:6]:
        layer.register_forward_hook(lambda layer, args, y: seen.update({layer.i: y}))
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        net(x)
        conv, se, simam, gated, msf = list(net.model)[:5]
        y0 = conv(x)
        y1 = se(y0)
        y2 = simam(y1)
        y3 = gated.module(y2, y1)
        y4 = msf.module(y0, y3, y2)
        assert torch.equal(seen[4], y4) and torch.equal(seen[5], net.model[5](y4))
        assert not torch.equal(gated.module(y1, y2), y3)
    assert net.save == [0, 1, 2] and [layer.f for layer in net.model[3:5]] == [[-1, 1], [0, -1, 2]]
    assert all(type(layer.f) in (int, list) for layer in net.model)


def test_a_module_that_starts_as_the_identity_changes_no_bit_of_the_network():
    plain = [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]]]
    with_row = [*plain, [-1, 1, "CrissCrossAttention", []]]
    a, b = detector(plain).eval(), detector(with_row).eval()
    moved = {f"model.{int(i) + (int(i) > 1)}.{rest}": value for key, value in a.state_dict().items()
             for i, rest in [key.removeprefix("model.").split(".", 1)]}
    assert b.load_state_dict(moved, strict=False).unexpected_keys == []
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(a(x)[0], b(x)[0])
        b.model[2].gamma.fill_(1.0)
        assert not torch.equal(a(x)[0], b(x)[0])


def test_output_channels_are_scaled_as_those_of_conv_and_known_to_the_next_layer():
    rows = [[-1, 1, "Conv", [256, 1]], [-1, 1, "ASPP", [100]], [-1, 1, "Conv", [8, 1]]]
    for width, most in ((0.25, 1024), (0.5, 1024), (0.75, 64)):
        conv, aspp, after = build([[-1, 1, "Conv", [100, 1]], rows[1], rows[2]], width=width, most=most)[0]
        assert aspp.out_channels == first_width(after) == conv.conv.out_channels
        assert aspp.channels == conv.conv.out_channels


def test_the_option_out_channels_is_taken_as_it_is():
    for width in (0.25, 1.0):
        rows = [[-1, 1, "Conv", [64, 1]], [-1, 2, "DeformConv2d", [{"out_channels": 40, "kernel_size": [3, 1],
                                                                  "padding": [1, 0]}]], [-1, 1, "Conv", [8, 1]]]
        conv, deforms, after = build(rows, width=width)[0]
        assert [(m.channels, m.out_channels) for m in deforms] == [(conv.conv.out_channels, 40), (40, 40)]
        assert first_width(after) == 40 and deforms[0].kernel_size == (3, 1)


def test_a_module_that_widens_by_itself_is_followed_by_layers_that_know():
    x = torch.rand(2, 16, 6, 8)
    for name, options in (("PointwiseSpatialAttention", {"height": 8, "width": 8}),
                          ("SCSEAttention", {"fusion": "concatenate"})):
        rows = [[-1, 1, "Conv", [16, 1]], [-1, 1, name, [options]], [-1, 1, "SEAttention", []],
                [[-1, 0], 1, "Concat", [1]], [-1, 1, "Conv", [8, 1]]]
        first, wider, se, _, conv = build(rows)[0]
        assert (se.channels, first_width(conv)) == (32, 48)
        assert conv(torch.cat([se(wider(first(x))), first(x)], 1)).shape == (2, 8, 6, 8)


@pytest.mark.parametrize(("written", "is_"), [("{lam: 1e-3}", {"lam": 1e-3}), ("{lam: 0.5}", {"lam": 0.5})])
def test_options_mean_what_ultralytics_lets_them_mean(written, is_):
    assert build([[-1, 1, "SimAM", [yaml.safe_load(written)]]])[0][0].lam == is_["lam"]


def test_options_of_text_tuples_and_none():
    aft, mhsa, spp = build([
        [-1, 1, "AFTAttention", [{"form": "conv", "kernel_size": 3}]],  # of its layouts, that of maps
        [-1, 1, "MHSA2d", [{"position": "None"}]],
        [-1, 1, "ASPP", [8, {"rates": [2, 3]}]],
    ])[0]
    assert aft.layout == "B C H W" and mhsa.position is None
    assert {getattr(m, "dilation", None) for m in spp.modules()} >= {(2, 2), (3, 3)}
    assert [m.channels for m in (aft, mhsa, spp)] == [16, 16, 16]


# ---- every module ----------------------------------------------------------------------------------------------------


def as_list(x) -> list:
    return x if isinstance(x, list) else [x]


def options_of(id: str) -> dict:
    """The example's, for the map of 8 × 8 that 256 × 256 is at stride 32, and for widths that YOLO has."""
    options = {k: v for k, v in attn_lib.entry(id).example.items() if k not in ("channels", "out_channels")}
    options |= {k: 8 for k in ("height", "width") if k in options}
    own = {"dilateformer": {"heads": 4, "dilations": (1, 2)}, "aft": {"form": "conv", "kernel_size": 3}}
    return own.get(id, options)


@pytest.mark.parametrize("id", MODULES)
def test_every_module_trains_in_a_network_of_every_scale(id):
    entry, options = attn_lib.entry(id), options_of(id)
    inputs = len(entry.layout.tensors)
    c = max(entry.example["channels"], 16)
    down = [[-1, 1, "Conv", [32, 3, 2]] for _ in range(4)]
    rows = [*down, [-1, 1, "Conv", [4 * c, 3, 2]], [[-1] * inputs if inputs > 1 else -1, 1, entry.cls.__name__,
                                                   [options] if options else []]]
    if "layout" in inspect.signature(entry.cls).parameters:
        options = options | {"layout": "B C H W"}
    for k, scale in enumerate(SCALES, 1):
        net = detector(rows, scale)
        layer = net.model[5]
        module = layer.module if inputs > 1 else layer
        assert type(module) is entry.cls and hidden(module) == hidden(entry.cls(k * c, **options))
        assert first_width(net.model[6]) == getattr(module, "out_channels", k * c)
        assert layer.np == sum(p.numel() for p in module.parameters()) and layer.i == 5
    net = detector(rows).train()  # as ultralytics trains it: it has changed activations and batch norms by now
    given, before = [], []

    def keep(_, args):
        given.extend(as_list(args[0])), before.extend(x.detach().clone() for x in as_list(args[0]))

    net.model[5].register_forward_pre_hook(keep)
    outputs = net(torch.rand(2, 3, 256, 256))
    outputs = outputs if isinstance(outputs, (list, tuple)) else outputs["feats"]
    sum(y.float().square().mean() for y in outputs).backward()
    assert len(given) == inputs and all(map(torch.equal, given, before))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.model[5].parameters() if p.requires_grad)


def test_a_module_made_for_a_size_says_so_at_another():
    def rows(name, channels=128, **options):
        return [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [channels, 3, 4]], [-1, 1, name, [options]]]

    def refused(name, height, said):
        return pytest.raises(ValueError, match=rf"layer 2, {name}, was made for height={height} and width={height}: "
                                               rf"x has {said}\. Ultralytics builds every model on images of 256 × .*"
                                               "write the height and width of the largest map .* such as S2Attention$")

    large, other = torch.rand(1, 3, 256, 256), torch.rand(1, 3, 64, 96)
    net = detector(rows("WeightedPermuteMLP", height=32, width=32)).eval()
    with torch.no_grad():
        net(large)
        for model in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            with refused("WeightedPermuteMLP", 32, r"shape \(1, 32, 8, 12\); axis H must be 32, not 8"):
                model(other)
        detector(rows("MHSA2d", height=32, width=32)).eval()(other)  # takes smaller ones
        try:
            raise ValueError("somebody's own")
        except ValueError as error:  # a pass that succeeds while another error is looked at leaves that alone
            net(large)
            assert str(error) == "somebody's own"
    with refused("WeightedPermuteMLP", 20, r"shape \(1, 80, 32, 32\); axis H must be 20, not 32"):
        detector(rows("WeightedPermuteMLP", 320, height=20, width=20))  # images of 160 at stride 8
    with refused("MHSA2d", 8, "H=32; it must be at most height=8, beyond it are no positions"):
        detector(rows("MHSA2d", height=8, width=8))
    detector(rows("S2Attention")).eval()(other)


# ---- the life of a model ---------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def stop(trainer):
    raise Interrupted


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A detector trained for two epochs from YAML, its checkpoint, and what training again needs."""
    folder = tmp_path_factory.mktemp("yolo")
    data = toys.detection_set(folder / "set", train=8, test=4, size=64)
    (folder / "tinyn.yaml").write_text(TINY)
    args = dict(data=str(data), epochs=2, imgsz=64, batch=4, workers=0, device="cpu", plots=False, verbose=False,
                project=str(folder), optimizer="SGD", mosaic=0.0)
    model = YOLO(str(folder / "tinyn.yaml"), task="detect")
    model.train(**args, name="first")
    return folder, folder / "first/weights/last.pt", args


def test_training_builds_the_network_with_its_modules_and_trains_them(trained):
    folder, checkpoint, _ = trained
    model, fresh = YOLO(str(checkpoint)).model, YOLO(str(folder / "tinyn.yaml"), task="detect").model
    modules = [model.model[i] for i in (2, 4, 5, 6)] + [model.model[7].module]
    assert [type(m) for m in modules] == [attn_lib.entry(id).cls for id in ("se", "cbam", "simam", "aspp", "gated")]
    torch.manual_seed(0)
    assert list(fresh.state_dict()) == list(model.state_dict())
    gate = model.model[7].module.Wz2.bias
    assert gate.abs().max() > 0  # it starts at zero


def test_a_checkpoint_holds_classes_of_attn_lib_and_loads_where_nobody_registered(trained):
    _, checkpoint, _ = trained
    with zipfile.ZipFile(checkpoint) as file:
        pickled = next(file.read(name) for name in file.namelist() if name.endswith("data.pkl"))
    found = {tuple(arg.split(" ")) for op, arg, _ in pickletools.genops(pickled) if op.name == "GLOBAL"}
    assert {m for m in found if m[0].startswith("attn_lib")} >= {
        ("attn_lib.channel.se", "SEAttention"), ("attn_lib.channel_spatial.cbam", "CBAM"),
        (attn_lib.entry("simam").cls.__module__, "SimAM"), ("attn_lib.conv.aspp", "ASPP"),
        ("attn_lib.fusion.gated", "GatedFusion"), ("attn_lib.plug.yolo", "Fusion")}
    assert not {name for _, name in found if name.startswith("_Layer") or name in ("_From", "_Row", "_Rows")}
    x = torch.arange(3 * 64 * 64).reshape(1, 3, 64, 64) % 256 / 255
    torch.save(x, checkpoint.with_name("x.tensor"))
    script = ("import sys, torch\n"
              "from attn_lib.measure.counterparts import import_package\n"
              "YOLO = import_package('ultralytics').YOLO\n"
              "from ultralytics.nn import tasks\n"
              "model = YOLO(sys.argv[1]).model.float().eval()\n"
              "assert not hasattr(tasks, 'SEAttention') and not hasattr(tasks.parse_model, 'attn_lib')\n"
              "with torch.no_grad(): torch.save(model(torch.load(sys.argv[2]))[0], sys.argv[3])\n")
    files = [str(checkpoint.with_name(name)) for name in ("last.pt", "x.tensor", "y.tensor")]
    subprocess.run([sys.executable, "-c", script, *files], check=True)
    with torch.no_grad():
        y = YOLO(str(checkpoint)).model.float().eval()(x)[0]
    assert torch.equal(torch.load(files[2]), y)


def test_an_interrupted_training_is_resumed(trained):
    folder, _, args = trained
    model = YOLO(str(folder / "tinyn.yaml"), task="detect")
    model.add_callback("on_model_save", lambda trainer: stop(trainer))
    with pytest.raises(Interrupted):
        model.train(**args, name="cut")
    model = YOLO(str(folder / "cut/weights/last.pt"))
    epochs = []
    model.add_callback("on_train_epoch_start", lambda trainer: epochs.append(trainer.epoch))
    model.train(resume=True)
    assert epochs == [1] and type(model.model.model[2]) is attn_lib.entry("se").cls


def test_fine_tuning_starts_from_the_weights(trained):
    _, checkpoint, args = trained
    kept = YOLO(str(checkpoint)).model.float().state_dict()
    model = YOLO(str(checkpoint))
    started = {}
    model.add_callback("on_train_start", lambda trainer: started.update(copy.deepcopy(trainer.model.state_dict())))
    model.train(**{**args, "epochs": 1}, name="tuned")
    same = [key for key in kept if key.startswith(("model.2.", "model.4.", "model.6.", "model.7."))]
    assert same and all(torch.equal(started[key], kept[key]) for key in same)


def test_it_validates_and_predicts_the_same_after_fusing(trained):
    _, checkpoint, args = trained
    model = YOLO(str(checkpoint))
    metrics = model.val(**{k: args[k] for k in ("data", "imgsz", "batch", "workers", "plots", "project")},
                        device="cpu", name="val", verbose=False)
    assert 0 <= metrics.box.map50 <= 1
    x = torch.rand(2, 3, 64, 64)
    plain, fused = YOLO(str(checkpoint)).model.float().eval(), YOLO(str(checkpoint))
    ran = []
    fused.fuse()
    net = fused.model.float().eval()
    net.model[2].register_forward_hook(lambda *_: ran.append(True))
    with torch.no_grad():
        a, b = plain(x)[0], net(x)[0]
    assert ran and not hasattr(net.model[0], "bn")
    torch.testing.assert_close(a[:, :4], b[:, :4], rtol=1e-4, atol=1e-3)  # boxes in pixels
    torch.testing.assert_close(a[:, 4:], b[:, 4:], rtol=1e-4, atol=1e-6)  # scores
    results = YOLO(str(checkpoint)).predict(x, verbose=False, conf=1e-4, device="cpu", project=args["project"])
    assert len(results) == 2 and all(r.boxes.data.shape[1] == 6 for r in results)


@pytest.mark.parametrize("format", ["torchscript", "onnx"])
def test_exports_say_what_the_network_says(trained, format, tmp_path):
    _, checkpoint, _ = trained
    copied = shutil.copy(checkpoint, tmp_path / "model.pt")
    if format == "onnx":
        pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    path = YOLO(str(copied)).export(format=format, imgsz=64, device="cpu",
                                    **({"opset": 18, "simplify": False} if format == "onnx" else {}))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        y = YOLO(str(checkpoint)).model.float().eval()(x)[0]
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        z = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    else:
        z = torch.jit.load(path)(x)
        z = z[0] if isinstance(z, (tuple, list)) else z
    torch.testing.assert_close(z[:, :4], y[:, :4], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(z[:, 4:], y[:, 4:], rtol=1e-4, atol=1e-6)


# ---- errors ----------------------------------------------------------------------------------------------------------

ROWS = {
    "a channel count": ([-1, 1, "SEAttention", [64]], r"layer 0, SEAttention, has the arguments \[64\]; they must be "
                        r"options by name, such as \[\{reduction: 8\}\], or nothing: \[\]. The number of input"),
    "channels by name": ([-1, 1, "SEAttention", [{"channels": 64}]], "channels=64 must be left out: it is that of the"),
    "an unknown option": ([-1, 1, "SEAttention", [{"ratio": 8}]], "layer 0, SEAttention, behind 16 channels: .*ratio"),
    "an option out of range": ([-1, 1, "SEAttention", [{"reduction": 0}]], "behind 16 channels: reduction=0 must be"),
    "channels that do not fit": ([-1, 1, "ShuffleAttention", []], "behind 16 channels: channels=16 must be divisible"),
    "no size": ([-1, 1, "WeightedPermuteMLP", []], "layer 0, WeightedPermuteMLP, behind 16 channels: .*height"),
    "output channels twice": ([-1, 1, "ASPP", [8, {"out_channels": 8}]], "out_channels=8 must be left out: 8 stands"),
    "output channels that are none": ([-1, 1, "ASPP", ["nc", {}]], "they must be the number of output channels, then"),
    "two inputs of one": ([[-1, 0], 1, "SEAttention", []], r"reads layers \[-1, 0\]; it takes one input, such as -1"),
    "one input of two": ([-1, 1, "GatedFusion", []], r"reads layer -1; it takes 2 inputs, such as \[-1, 6\]"),
    "three inputs of two": ([[-1, 0, 0], 1, "GatedFusion", []], r"reads layers \[-1, 0, 0\]; it takes 2 inputs"),
    "a fusion repeated": ([[-1, 0], 3, "GatedFusion", []], "repeated 3 times; a module of several inputs cannot be"),
    "a first layer that widens": ([-1, 1, "ASPP", [32]], "turns 16 channels into 32; the first layer of a model must"),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_wrong_row_is_named(row):
    written, message = ROWS[row]
    with pytest.raises(ValueError, match=message):
        build([written])


def test_inputs_of_different_widths_are_named():
    rows = [[-1, 1, "Conv", [32, 1]], [-1, 1, "Conv", [64, 1]], [[-1, 0], 1, "GatedFusion", []]]
    with pytest.raises(ValueError, match=r"layer 2, GatedFusion, reads layers \[-1, 0\] of 64, 32 channels; it needs "
                                         "inputs of as many channels each: put a Conv with kernel size 1"):
        build(rows)


def lists_rows_first(d, ch, verbose=True):
    rows = list(d["backbone"] + d["head"])
    return BEFORE["parse_model"]({**d, "backbone": rows, "head": []}, ch, verbose)


def has_other_names(d, ch, verbose=True):
    layers, widths = [], [ch]
    for f, _, m, args in d["backbone"] + d["head"]:
        layers.append(vars(tasks)[m](*([widths[f], *args] if m == "Conv" else args)))
        widths.append(args[0])
    return nn.Sequential(*layers), []


def reads_head_apart(d, ch, verbose=True):
    return BEFORE["parse_model"]({**d, "backbone": list(d["backbone"]), "head": d["head"]}, ch, verbose)


@pytest.mark.parametrize("parse_model", [lists_rows_first, has_other_names, reads_head_apart])
def test_another_parse_model_is_refused_and_nothing_left_behind(unregistered, parse_model):
    tasks.parse_model = parse_model
    with pytest.raises(RuntimeError, match=r"parse_model of ultralytics \d.*does not work as attn_lib.plug.yolo expects"
                                           r".*pip install 'ultralytics>=8.1,<8.5'"):
        yolo.register()
    assert tasks.parse_model is parse_model and vars(tasks).keys() == BEFORE.keys()


def test_a_parse_model_that_was_imported_too_early_says_so(names):
    d = {"nc": 1, "backbone": [[-1, 1, "SEAttention", []]], "head": []}
    with pytest.raises(RuntimeError, match="SEAttention was built by a parse_model that was imported before"):
        BEFORE["parse_model"](d, ch=16, verbose=False)


def test_the_table_that_is_printed_shows_the_row_as_it_was_written(names, monkeypatch):
    lines = []
    monkeypatch.setattr(tasks.LOGGER, "info", lambda text, *args: lines.append(text))
    d = {"nc": 1, "backbone": [[-1, 1, "Conv", [16, 1]], [-1, 1, "CBAM", [{"reduction": 8}]]], "head": []}
    tasks.parse_model(d, ch=3, verbose=True)
    row = lines[-1].split(maxsplit=5)
    assert row[4:] == ["attn_lib.channel_spatial.cbam.CBAM", "[{'reduction': 8}]" + " " * 12]
