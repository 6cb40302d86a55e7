"""Packaged pictures and data, and the training loop: real, offline, seeded."""

import contextlib
import io
import math
import socket
import subprocess
import sys
import weakref
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attn_lib
from attn_lib import toys
from attn_lib.toys.images import PHOTOGRAPHS
from attn_lib.toys.packaged import packaged
from attn_lib.toys.train import answers

ROOT = Path(__file__).parents[3]

# ---- photographs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", toys.image_names())
def test_every_photograph_comes_with_the_package(name, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("a packaged photograph asked for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setenv("SKIMAGE_DATADIR", str(tmp_path))  # scikit-image's download cache, empty
    x = toys.image(name)
    assert x.dtype == torch.float32 and x.shape[0] == 3 and min(x.shape[1:]) > 150
    assert x.min() >= 0 and x.max() <= 1 and x.std() > 0.03  # a picture, not a blank
    grey = torch.equal(x[0], x[1]) and torch.equal(x[1], x[2])
    assert grey is (name in toys.image_names(colour=False)) is not (name in toys.image_names(colour=True))


@pytest.mark.parametrize(
    ("size", "shape"), [(32, (32, 32)), ((24, 40), (24, 40)), ((600, 500), (600, 500)), (1, (1, 1))]
)
def test_image_sizes(size, shape):
    x = toys.image("cat", size)
    assert x.shape == (3, *shape) and x.is_contiguous() and 0 <= x.min() and x.max() <= 1


def test_image_is_cropped_not_stretched():
    full = toys.image("cat")  # 300 × 451: the square in the middle is columns 75 to 375
    small = F.adaptive_avg_pool2d(full[None, :, :, 75:375], 30)[0]
    assert (toys.image("cat", 30) - small).abs().mean() < 0.02


def test_image_is_resized_with_antialiasing():
    full = toys.image("gravel")
    plain = F.interpolate(full[None], size=32, mode="bilinear", align_corners=False)[0]
    mean = F.adaptive_avg_pool2d(full[None], 32)[0]
    assert (toys.image("gravel", 32) - mean).abs().mean() < 0.5 * (plain - mean).abs().mean()


def test_image_is_fresh_at_every_call():
    toys.image("cat", 16).zero_()
    toys.image("cat").zero_()
    assert toys.image("cat", 16).mean() > 0.1 and toys.image("cat").mean() > 0.1


@pytest.mark.parametrize(("name", "size", "message"), [
    ("lena", None, "'lena'.*astronaut, brick"), ("cat", 0, "size=0"), ("cat", (3, -1), r"size=\(3, -1\)"),
    ("cat", 2.5, "size=2.5"), ("cat", (3, 4, 5), r"size=\(3, 4, 5\)"),
])
def test_image_arguments(name, size, message):
    with pytest.raises(ValueError, match=message):
        toys.image(name, size)


def test_photographs_and_digits_are_what_the_packages_that_carry_them_read():
    from skimage import io
    from sklearn.datasets import load_digits

    for name, file in PHOTOGRAPHS.items():
        pixels = torch.from_numpy(io.imread(packaged("skimage", f"data/{file}", "scikit-image", "0.25"))) / 255
        assert torch.equal(toys.image(name).permute(1, 2, 0), pixels.view(*pixels.shape[:2], -1).expand(-1, -1, 3))
    theirs = load_digits()
    x, y = toys.digits()
    assert torch.equal(x[:, 0], torch.from_numpy(theirs.images).float() / 16)
    assert torch.equal(y, torch.from_numpy(theirs.target))


def test_photographs_and_digits_are_read_without_these_packages_which_take_a_second():
    code = """
import sys
from attn_lib import toys
toys.image("cat"), toys.digits()
print({"skimage", "sklearn", "scipy", "pandas"} & sys.modules.keys())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout == "set()\n", run.stdout + run.stderr


def test_a_file_that_no_package_carries():
    with pytest.raises(ModuleNotFoundError, match="No module named 'skimoge'"):
        packaged("skimoge", "data/cat.png", "scikit-imoge", "0.25")
    with pytest.raises(FileNotFoundError, match=r"scikit-image [\d.]+ does not package lena\.png; version 0\.1 does"):
        packaged("skimage", "data/lena.png", "scikit-image", "0.1")


# ---- digits and split ------------------------------------------------------------------------------------------------


def test_digits():
    x, y = toys.digits()
    assert x.shape == (1797, 1, 8, 8) and x.dtype == torch.float32 and x.min() == 0 and x.max() == 1
    assert y.shape == (1797,) and y.dtype == torch.int64 and y.bincount().min() > 170 and len(y.unique()) == 10
    x.zero_()
    assert toys.digits()[0].max() == 1


def test_split_keeps_rows_together_and_loses_none():
    a, b = torch.arange(40), torch.arange(40) * 10
    train, test = toys.split(a, b, test=0.25, seed=3)
    assert len(train[0]) == 30 and len(test[0]) == 10
    assert torch.equal(train[1], 10 * train[0]) and torch.equal(test[1], 10 * test[0])
    assert sorted(torch.cat([train[0], test[0]]).tolist()) == list(range(40))
    assert torch.equal(toys.split(a, seed=3)[0][0], train[0]) and not torch.equal(toys.split(a, seed=4)[0][0], train[0])
    with pytest.raises(ValueError, match=r"lengths \[39, 40\]"):
        toys.split(a, b[1:])
    with pytest.raises(ValueError, match=r"test=1\.0"):
        toys.split(a, test=1.0)
    with pytest.raises(ValueError, match="at least one tensor"):
        toys.split()


# ---- training --------------------------------------------------------------------------------------------------------


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 10))


def test_fit_learns_digits_and_is_silent(capfd):
    train, test = toys.split(*toys.digits())
    with toys.seeded(0):
        model = mlp()
    before = toys.accuracy(model, test)
    history = toys.fit(model, train, steps=150, lr=1e-2)
    assert before < 0.3 and toys.accuracy(model, test) > 0.9
    assert len(history.loss) == 150 and history.seconds > 0 and history.loss[-1] < history.loss[0] / 3
    assert str(history).startswith("150 steps, loss 2.")
    assert capfd.readouterr() == ("", "")


def test_fit_repeats_itself_and_leaves_the_global_random_state():
    def run(seed):
        with toys.seeded(7):
            model = mlp()
        toys.fit(model, toys.digits(), steps=5, seed=seed)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    state = torch.get_rng_state()
    a, b, c = run(0), run(0), run(1)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [True, False])
def test_fit_and_accuracy_leave_the_mode(training):
    model = mlp().train(training)
    toys.fit(model, toys.digits(), steps=2)
    assert model.training is training
    a, b = (toys.accuracy(model, toys.digits(), batch=n) for n in (64, 2000))
    assert model.training is training and a == b  # dropout is off, and the batch size does not matter


def test_fit_takes_several_inputs_a_sampler_and_another_loss():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, a, b):
            return self.w * a * b

    def draw(batch, generator):
        a, b = torch.randn(2, batch, generator=generator)
        return a, b, 3 * a * b

    for optimizer in ("adamw", "sgd"):
        model = Scale()
        toys.fit(model, draw, steps=100, lr=0.1, loss=F.mse_loss, optimizer=optimizer)
        assert model.w.item() == pytest.approx(3, abs=0.05)


def test_learning_rate_falls_to_zero():
    model = nn.Linear(1, 1, bias=False)
    path = []
    model.register_forward_pre_hook(lambda *_: path.append(model.weight.item()))
    # Adam's first steps are as long as the learning rate: the way walked is the schedule
    toys.fit(model, (torch.ones(4, 1), torch.full((4, 1), 1e6)), steps=20, batch=4, lr=1.0, loss=F.mse_loss)
    steps = torch.tensor(path).diff()
    assert steps[0] == pytest.approx(1, abs=0.02) and steps[-1] < 0.1 and (steps.diff() < 1e-3).all()


@pytest.mark.parametrize("error", [False, True])
def test_every_part_of_a_model_keeps_its_mode(error):
    """A frozen batch norm within a model that trains; also where a step fails."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    model[2].eval()
    images, labels = toys.digits()
    data = (images[:, :, :4] if error else images, labels)
    for run in (lambda: toys.fit(model, data, steps=1), lambda: toys.accuracy(model, data),
                lambda: answers(model, data[0])):
        with pytest.raises(RuntimeError) if error else contextlib.nullcontext():
            run()
        assert [m.training for m in model] == [True, True, False] and model.training


@pytest.mark.parametrize(("options", "message"), [
    (dict(steps=0), "steps=0"), (dict(batch=-1), "batch=-1"), (dict(lr=0.0), "lr=0.0"),
    (dict(optimizer="adam"), "optimizer='adam' must be one of adamw, sgd"),
])
def test_fit_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        toys.fit(mlp(), toys.digits(), **options)
    x, y = toys.digits()
    with pytest.raises(ValueError, match="lengths"):
        toys.fit(mlp(), (x, y[:-1]), steps=1)


def test_accuracy_of_one_label_a_pixel():
    model = nn.Conv2d(2, 2, 1, bias=False)
    nn.init.eye_(model.weight.data[:, :, 0, 0])
    x = torch.zeros(3, 2, 4, 5)
    x[:, 1] = 1
    labels = torch.ones(3, 4, 5, dtype=torch.long)
    labels[0] = 0
    assert toys.accuracy(model, (x, labels)) == pytest.approx(2 / 3)


def test_compare_gives_every_model_the_same_batches():
    train, test = toys.split(*toys.digits())
    result = toys.compare({"a": mlp, "b": mlp}, train, test, seeds=(0, 5), steps=20, lr=1e-2)
    assert result.scores["a"] == result.scores["b"] and result.loss["a"] == result.loss["b"]
    assert result.scores["a"][0] != result.scores["a"][1] and len(result.loss["a"]) == 2
    assert result.mean("a") == sum(result.scores["a"]) / 2
    assert result.scores["a"][0] == toys.accuracy(result.models["a"], test)
    assert str(result).splitlines()[1].startswith("b  0.")


class Careless(nn.Module):
    """Draws random numbers of its own while it trains, keeps statistics, and writes on its inputs."""

    def __init__(self, rate):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(rate), nn.Linear(64, 10))

    def forward(self, x):
        return self.net(x.mul_(0.9))


def from_the_generator(batch, generator):
    return torch.randn(batch, 64, generator=generator), torch.randint(10, (batch,), generator=generator)


def from_the_global_one(batch, generator):
    return torch.randn(batch, 64), torch.randint(10, (batch,))


@pytest.mark.parametrize("data", [from_the_generator, toys.digits()])
def test_fit_is_a_plain_loop(data):
    with toys.seeded(1):
        model, fitted = Careless(0.3), Careless(0.3)
    fitted.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    generator, losses = torch.Generator().manual_seed(6), []
    with toys.seeded(6):
        for k in range(10):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * k / 10)) / 2
            if callable(data):
                x, y = data(8, generator)
            else:
                rows = torch.randperm(len(data[0]), generator=generator)[:8]
                x, y = (t[rows] for t in data)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert toys.fit(fitted, data, steps=10, batch=8, lr=1e-2, seed=6).loss == pytest.approx(losses, rel=1e-6)
    torch.testing.assert_close(fitted.state_dict(), model.state_dict())


@pytest.mark.parametrize(("data", "options"), [
    (toys.digits(), dict(steps=9)), (toys.digits(), dict(steps=9, batch=5, lr=1e-2, optimizer="sgd", weight_decay=0.1)),
    (from_the_generator, dict(steps=9)), (from_the_global_one, dict(steps=9)),
])
def test_compare_teaches_each_model_exactly_what_fit_teaches_it_alone(data, options):
    builders = {"a": lambda: Careless(0.2), "b": lambda: Careless(0.5), "c": mlp}
    scored = []
    result = toys.compare(builders, data, (), seeds=(4, 2), metric=lambda model, test: scored.append(model), **options)
    for number, (seed, label) in enumerate(product((4, 2), builders)):
        with toys.seeded(seed):
            alone = builders[label]()
        assert result.loss[label][number // 3] == toys.fit(alone, data, seed=seed, **options).loss
        taught = scored[number].state_dict()
        assert all(torch.equal(taught[name], value) for name, value in alone.state_dict().items())
    assert [*result.models.values()] == scored[:3]


def test_compare_draws_a_batch_once_for_all_models_and_keeps_none():
    drawn = []

    def draw(batch, generator):
        x, y = from_the_generator(batch, generator)
        drawn.append(weakref.ref(x))
        assert sum(one() is not None for one in drawn) <= 2  # this one, and that of the step before
        return x, y

    toys.compare({"a": mlp, "b": mlp, "c": mlp}, draw, (), seeds=(0, 1), steps=7, metric=lambda model, test: 0.0)
    assert len(drawn) == 2 * 7


@pytest.mark.parametrize("options", [dict(step=3), dict(seed=3)])
def test_compare_refuses_options_before_anything_is_built(options):
    with pytest.raises(TypeError, match=next(iter(options))):
        toys.compare({"a": lambda: pytest.fail("built")}, toys.digits(), toys.digits(), **options)


def test_progress_shows_only_where_somebody_watches(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    toys.fit(mlp(), toys.digits(), steps=3)
    assert "3" in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    toys.fit(mlp(), toys.digits(), steps=3)
    assert sys.stderr.getvalue() == ""


def test_digits_come_whole_or_in_the_two_parts_of_the_split():
    train, test = toys.split(*toys.digits())
    for part, expected in (("train", train), ("test", test)):
        assert all(torch.equal(a, b) for a, b in zip(toys.digits(part), expected, strict=True))
    with pytest.raises(ValueError, match="part='dev' must be 'train' or 'test'"):
        toys.digits("dev")


def test_answers_are_given_in_eval_mode_which_is_put_back_even_after_an_error():
    from attn_lib.toys.train import answers

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.9))
    x = torch.ones(100, 4)
    y = answers(model, x)
    assert torch.equal(y, model[0](x)) and not y.requires_grad and model.training
    with pytest.raises(TypeError):
        answers(model, x, x)
    assert model.training


def test_windows_are_cut_photograph_by_photograph_and_row_by_row():
    from attn_lib.toys.images import cut

    photos = [torch.arange(3 * h * w).float().view(3, h, w) + 1000 * h for h, w in ((5, 7), (4, 4))]
    by_hand = [p[:, y : y + 3, x : x + 2] for p in photos
               for y in range(0, p.shape[1] - 2, 2) for x in range(0, p.shape[2] - 1, 2)]
    assert torch.equal(cut(photos, (3, 2), 2), torch.stack(by_hand))


# ---- the detection set -----------------------------------------------------------------------------------------------


def read_set(folder, part):
    """The images, and for each the boxes as (class, top, left, side) in pixels."""
    from skimage import io

    images = [torch.from_numpy(io.imread(path)) for path in sorted((folder / "images" / part).iterdir())]
    boxes = []
    for path, image in zip(sorted((folder / "labels" / part).iterdir()), images, strict=True):
        rows = [list(map(float, line.split())) for line in path.read_text().splitlines()]
        size = image.shape[0]
        boxes.append([(int(label), round((y - h / 2) * size), round((x - w / 2) * size), round(h * size))
                      for label, x, y, w, h in rows])
        assert all(w == h for *_, w, h in rows)
    return images, boxes


def test_a_detection_set_says_where_its_digits_are(tmp_path):
    path = toys.detection_set(tmp_path / "set", train=24, test=8, size=72, classes=(3, 7))
    assert path.read_text() == (f"path: {path.parent.as_posix()}\ntrain: images/train\nval: images/test\nnames:\n"
                                "  0: '3'\n  1: '7'\n")
    for part, n in (("train", 24), ("test", 8)):
        images, boxes = read_set(path.parent, part)
        assert len(images) == n and all(image.shape == (72, 72, 3) and image.dtype == torch.uint8 for image in images)
        assert {len(b) for b in boxes} <= {1, 2, 3} and {label for b in boxes for label, *_ in b} == {0, 1}
        for image, found in zip(images, boxes, strict=True):
            covered = torch.zeros(72, 72)
            for _, top, left, side in found:
                assert side in (16, 24) and min(top, left) >= 0 and max(top, left) + side <= 72
                covered[top:top + side, left:left + side] += 1
                ink = image[top:top + side, left:left + side].float().mean(2)
                assert ink.max() > 200  # the brightest of the photographs are at 0.6 · 255 = 153
            assert covered.max() == 1
            assert image[covered == 0].max() <= 153


def test_the_class_of_a_box_is_the_digit_that_stands_in_it(tmp_path):
    folder = toys.detection_set(tmp_path, train=30, test=1, classes=(1, 0)).parent
    hollow = {0: [], 1: []}
    for image, boxes in zip(*read_set(folder, "train"), strict=True):
        for label, top, left, side in boxes:
            digit, k = image[top:top + side, left:left + side].float().mean(2), side // 8
            hollow[label].append(float(digit[3 * k:5 * k, 3 * k:5 * k].mean()))
    one, zero = (sum(values) / len(values) for values in hollow.values())
    assert one > zero + 60  # a one has ink in its middle, a zero has none


def test_a_detection_set_is_the_same_for_the_same_seed(tmp_path):
    def written(folder, **options):
        toys.detection_set(tmp_path / folder, train=3, test=2, size=64, **options)
        return [path.read_bytes() for path in sorted((tmp_path / folder).rglob("*.*")) if path.suffix != ".yaml"]

    assert written("a") == written("b") != written("c", seed=1)


def test_the_parts_of_a_detection_set_share_neither_photographs_nor_handwriting():
    from attn_lib.toys.detection import PHOTOGRAPHS

    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["test"])
    train, test = (toys.digits(part)[0].flatten(1) for part in ("train", "test"))
    assert (train[:, None] == test).all(2).sum() == 0


@pytest.mark.parametrize(("options", "message"), [
    ({"train": 0}, "train=0 must be an integer of at least 1"),
    ({"size": 32}, "size=32 must be from 64 to 256"),
    ({"classes": ()}, r"classes=\(\) must name digits"),
    ({"classes": (1, 1)}, r"classes=\(1, 1\) must name digits from 0 to 9, each once"),
    ({"classes": (10,)}, r"classes=\(10,\) must name digits"),
])
def test_a_wrong_detection_set_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        toys.detection_set(tmp_path, **options)


def test_a_detection_set_is_read_as_it_was_written(tmp_path):
    path = toys.detection_set(tmp_path, train=4, test=3, size=64)
    images, boxes = toys.read_detection_set(path, "train")
    pixels, in_pixels = read_set(tmp_path, "train")
    assert images.shape == (4, 3, 64, 64)
    assert torch.equal((255 * images).round().byte(), torch.stack(pixels).permute(0, 3, 1, 2))
    assert [[(int(c), round(float(y - h / 2) * 64), round(float(x - w / 2) * 64), round(float(h) * 64))
             for c, x, y, w, h in b] for b in boxes] == in_pixels
    with pytest.raises(ValueError, match="part='val' must be one of 'train', 'test'"):
        toys.read_detection_set(path, "val")


def test_a_digit_is_found_by_its_class_at_its_place():
    boxes = [torch.tensor([[1.0, 0.25, 0.25, 0.25, 0.25], [0.0, 0.75, 0.5, 0.25, 0.5]])]  # on 64: x, y, w, h
    right = torch.tensor([[8.0, 8, 24, 24, 0.9, 1], [40, 16, 56, 48, 0.8, 0], [0, 0, 9, 9, 0.1, 0]])[None]
    assert toys.share_found(right, boxes, 64) == 1

    def changed(row, column, value):
        other = right.clone()
        other[0, row, column] = value
        return toys.share_found(other, boxes, 64)

    assert changed(0, 5, 0) == changed(1, 4, 0.01) == 0.5  # another class; less sure than the third, which is wrong
    assert changed(0, 2, 16.1) == 1 and changed(0, 2, 15.9) == 0.5  # a little more and less than half of the box
    assert toys.share_found(right.flip(1), boxes, 64) == 1


# ---- where a GPU is there --------------------------------------------------------------------------------------------


def test_a_gpu_that_has_not_started_gets_the_seed_it_would_have_had(monkeypatch):
    """Torch keeps its seeds for later: what was seeded last counts when the GPU starts."""
    seeds = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with toys.seeded(0):  # around the test, so that the session's own state comes back
        torch.manual_seed(5)
        with toys.seeded(1):
            assert seeds[-1] == 1
        assert seeds[-1] == 5


def test_another_default_device_draws_the_same():
    """What names no device lands on "meta" here, as it would on "cuda", and cannot be mixed with the data."""
    data, model = toys.digits(), mlp()
    (train, _), module = toys.split(*data), attn_lib.example("se")[0]
    with torch.device("meta"):
        assert torch.equal(toys.split(*data)[0][0], train[0])
        assert len(toys.fit(model, data, steps=2, optimizer="sgd").loss) == 2
        again, (x,) = attn_lib.example("se")
        assert again(x).device.type == "cpu" and torch.equal(again.W1.weight, module.W1.weight)


def test_an_example_seeds_no_gpu(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    attn_lib.example("se")
    assert not seeds
