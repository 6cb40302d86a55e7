"""The contract of every task: it is in the table, its data follow the seed, and its network takes any module."""

import ast
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Barrier

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn_lib
from attn_lib import tasks, toys
from attn_lib.tasks import _catalog
from attn_lib.toys.train import answers
from tests.unit.tasks.answer import Says

ROOT = Path(__file__).resolve().parents[3]
ALL = tasks.list_tasks()
TRAINED = [id for id in ALL if tasks.task(id).build]


@cache
def data(id: str):
    return tasks.task(id).data()


def rows(id: str, n: int) -> list[Tensor]:
    """A few rows of the training part."""
    train = data(id)[0]
    return list(train(n, torch.Generator().manual_seed(0))) if callable(train) else [t[:n] for t in train]


# ---- the table -------------------------------------------------------------------------------------------------------


def test_every_file_is_a_task():
    files = {path.stem for path in (ROOT / "attn_lib/tasks").glob("*.py") if not path.stem.startswith("_")}
    assert files == set(ALL) and all(tasks.task(id).id == id for id in ALL)


@pytest.fixture
def forgotten(monkeypatch):
    """The table as it is before anybody has asked for it."""
    monkeypatch.setattr(_catalog, "_found", None)
    return monkeypatch


@pytest.mark.parametrize("failure", [ImportError("no such library"), KeyboardInterrupt()])
def test_a_failed_or_interrupted_import_is_tried_again(forgotten, failure):
    real = _catalog.import_module

    def broken(name):
        if name.endswith(".odd_digits"):
            raise failure
        return real(name)

    forgotten.setattr(_catalog, "import_module", broken)
    for _ in range(2):
        with pytest.raises(type(failure)):
            tasks.list_tasks()
    forgotten.setattr(_catalog, "import_module", real)
    assert tasks.list_tasks() == ALL


def test_nobody_sees_a_part_of_the_table(forgotten):
    real, together = _catalog.import_module, Barrier(4, timeout=30)

    def slow(name):
        if name.endswith(".birth_rates"):
            together.wait()  # all four are on their way through the files
        return real(name)

    forgotten.setattr(_catalog, "import_module", slow)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: tasks.list_tasks(), range(4))) == [ALL] * 4


def test_tasks_are_found_without_the_packages_that_hold_their_data():
    code = """
import sys
for name in ("matplotlib", "sklearn", "skimage", "statsmodels"):
    sys.modules[name] = None
from attn_lib import tasks
print(len(tasks.list_tasks()), tasks.task("lamplit_digits").network("se")[3].__class__.__name__)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.split() == [str(len(ALL)), "SEAttention"], run.stderr


def test_list_tasks_by_chapter_and_by_what_fits():
    for chapter in ("se", "eca", "gating"):
        assert tasks.list_tasks(chapter) == [id for id in ALL if chapter in tasks.task(id).chapters] != []
    assert {"lamplit_digits", "spectral_lines"} <= set(tasks.list_tasks("eca"))
    two = tasks.list_tasks(fits="gated")
    assert {"birth_rates", "two_exposures"} <= set(two) and all("," in tasks.task(id).layout for id in two)
    assert "handovers" in tasks.list_tasks(fits="pyraformer") and "lamplit_digits" not in tasks.list_tasks(fits="gated")
    assert tasks.list_tasks("gated", fits="se") == []
    assert tasks.list_tasks(fits=lambda C: nn.Identity()) == TRAINED
    with pytest.raises(ValueError, match="id='sen'"):
        tasks.list_tasks("sen")
    with pytest.raises(ValueError, match="id='sen'"):
        tasks.list_tasks(fits="sen")
    with pytest.raises(ValueError, match=r"module=ReLU\(…\) is made already"):
        tasks.list_tasks(fits=nn.ReLU())
    with pytest.raises(ValueError, match="id='lamplit' must be one of 'birth_rates'"):
        tasks.task("lamplit")


@pytest.mark.parametrize("id", ALL)
def test_an_entry_says_what_it_must(id):
    task = tasks.task(id)
    assert task.question and task.question[-1] in ".?" and task.score_name and task.chapters
    if task.build:
        assert task.channels >= 1 and task.chance == task.chance and {"steps", "batch", "lr"} <= task.training.keys()
        assert str(task.channels) in task.place
    with pytest.raises(TypeError):
        task.training["steps"] = 1
    with pytest.raises(TypeError):
        task.options["reduction"] = 1


# ---- chapters --------------------------------------------------------------------------------------------------------


def cells(chapter: Path) -> list[str]:
    found = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_chapters_and_tasks_name_each_other():
    named = {(id, chapter) for id in ALL for chapter in tasks.task(id).chapters}
    used = set()
    for chapter in ROOT.glob("chapters/*/*.ipynb"):
        code = "\n".join(cells(chapter))
        found = re.findall(r"attn_lib\.tasks(?: import |\.)(\w+)|tasks\.(?:task|compare)\(\s*\"(\w+)\"", code)
        used |= {(a or b, chapter.stem) for a, b in found}
    assert used == named


@pytest.mark.parametrize("id", TRAINED)
def test_the_chapter_shows_the_training_options(id):
    """Steps, batch and lr stand in a call of the chapter that the task was made for, as they do in the entry."""
    task = tasks.task(id)
    (chapter,) = ROOT.glob(f"chapters/*/{task.chapters[0]}.ipynb")
    names = {"steps", "batch"} if id == "two_exposures" else {"steps", "batch", "lr"}  # there the rate stands beside
    calls = [call for code in cells(chapter) if "%pip" not in code
             for call in ast.walk(ast.parse(code)) if isinstance(call, ast.Call)]
    shown = [{k.arg: k.value.value for k in call.keywords if k.arg in names and isinstance(k.value, ast.Constant)}
             for call in calls]
    assert {name: task.training[name] for name in names} in shown


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ALL)
def test_data_are_the_same_at_every_call_and_leave_the_random_state_alone(id):
    state = torch.random.get_rng_state()
    (train, test), again = data(id), tasks.task(id).data()
    assert all(torch.equal(a, b) for a, b in zip(test, again[1], strict=True))
    if callable(train):
        one, two, other = (draw(3, torch.Generator().manual_seed(seed))
                           for draw, seed in ((train, 7), (again[0], 7), (train, 8)))
        assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    else:
        one, two = train, again[0]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("id", ALL)
def test_a_row_of_the_training_part_is_like_one_of_the_test_part(id):
    task, train, test = tasks.task(id), rows(id, 3), data(id)[1]
    assert all(len(t) == len(train[0]) for t in train) and len({len(t) for t in test}) == 1
    vary = task.build and not task.size  # years, patches of photographs
    for a, b in zip(train, test, strict=False):
        assert a.dtype == b.dtype and a.dim() == b.dim() and torch.isfinite(a.float()).all()
        assert vary or a.shape[1:] == b.shape[1:]


# ---- the network and its place ---------------------------------------------------------------------------------------


def members(id: str) -> list:
    """Nothing, the modules whose chapters train here, and one module of every layout that fits."""
    chosen = {"none": None, **{m: m for m in tasks.task(id).chapters if m in attn_lib.list_modules()}}
    layouts = {attn_lib.entry(m).layout for m in chosen.values() if m}
    for m in attn_lib.list_modules():
        if attn_lib.entry(m).layout not in layouts and tasks.task(id).fits(m):
            chosen[m] = m
            layouts.add(attn_lib.entry(m).layout)
    return [pytest.param(id, m, id=f"{id}-{name}") for name, m in chosen.items()]


@pytest.mark.parametrize(("id", "module"), [pair for id in TRAINED for pair in members(id)])
def test_the_network_is_trainable_in_every_parameter(id, module):
    task = tasks.task(id)
    with toys.seeded(0):
        net = task.network(module)
    before = {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}
    batch = dict(batch=min(4, task.training["batch"]), steps=4)
    history = toys.fit(net, data(id)[0], **{**task.training, **batch})
    assert all(torch.isfinite(torch.tensor(history.loss)))
    still = [name for name, p in net.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    assert before and not still
    assert isinstance(task.score(net, data(id)[1]), float)


class Probe(nn.Module):
    """Returns its first input times a factor, in as many channels as are wanted; remembers the shapes it got."""

    def __init__(self, factor: float, widen: int):
        super().__init__()
        self.factor, self.widen, self.shapes = factor, widen, []

    def forward(self, *inputs: Tensor) -> Tensor:
        self.shapes.append([tuple(x.shape) for x in inputs])
        x = inputs[0]
        return self.factor * (x.repeat(1, self.widen, 1, 1) if self.widen > 1 else x)


@pytest.mark.parametrize("id", TRAINED)
def test_the_module_stands_in_the_place_and_counts(id):
    task, (*inputs, _) = tasks.task(id), rows(id, 2)
    outputs = {}
    for factor in (0.0, 1.0):
        made = []

        def make(channels, factor=factor, made=made):
            made.append(Probe(factor, task.out_channels // channels))
            return made[-1]

        with toys.seeded(0):
            net = task.network(make).eval()
        with torch.no_grad():
            outputs[factor] = net(*inputs)
        sizes = task.size or inputs[0].shape[2:] if "H W" in task.layout else task.size or inputs[0].shape[1:3]
        shape = (2, task.channels, *sizes) if "H W" in task.layout else (2, *sizes, task.channels)
        assert made and all(probe.shapes == [[shape] * len(task.layout.split(","))] for probe in made)
    assert not torch.allclose(outputs[0.0], outputs[1.0])


@pytest.mark.parametrize("id", TRAINED)
def test_weights_follow_the_seed_and_every_network_is_new(id):
    def draw(seed):
        with toys.seeded(seed):
            return torch.cat([p.flatten() for p in tasks.task(id).network(module).parameters() if p.requires_grad])

    module = next(m for m in attn_lib.list_modules() if tasks.task(id).fits(m))
    a, b, c = draw(0), draw(0), draw(1)
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("id", TRAINED)
def test_a_module_that_does_not_fit_is_refused_in_a_sentence(id):
    task = tasks.task(id)
    wrong = [m for m in attn_lib.list_modules() if not task.fits(m)]
    assert wrong
    for module in wrong:
        takes = f"module '{module}' takes .+, but the place in task '{id}' offers B "
        made = f"module '{module}' cannot be made for the place in task '{id}', which offers .+ must "
        with pytest.raises(ValueError, match=f"{takes}|{made}"):
            task.network(module)


@pytest.mark.parametrize("id", sorted(set(ALL) - set(TRAINED)))
def test_a_task_that_is_only_shown_has_no_network(id):
    with pytest.raises(ValueError, match=f"task '{id}' has no network"):
        tasks.task(id).network()
    assert tasks.task(id).place == "none" and not tasks.task(id).fits(None)


class Tokens(nn.Module):
    """Tokens in, tokens out; remembers what it was given."""

    def __init__(self, channels: int):
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        self.got = x
        return self.linear(x)


class ForOneSize(nn.Module):
    def __init__(self, channels: int, *, height: int, width: int):
        super().__init__()
        self.sizes = channels, height, width

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return x


@pytest.fixture
def pretend(monkeypatch):
    """Let the catalog of modules hold one more, made from an entry that is there."""
    real = _catalog.catalog.entry

    def enter(base: str, **fields):
        made = replace(real(base), id="made", variants={}, **fields)
        monkeypatch.setattr(_catalog.catalog, "entry", lambda id: made if id == "made" else real(id))
        return made

    return enter


def test_a_module_of_tokens_gets_the_positions_of_a_map(pretend):
    pretend("se", cls=Tokens, layout="B N C", output="B N C", example={"channels": 64})
    net = tasks.task("lamplit_digits").network("made")
    stem, place = net[:3], net[3]
    x = torch.rand(2, 3, 22, 22)
    y, module = place(stem(x)), place.module
    assert module.got.shape == (2, 22 * 22, 16) and y.shape == (2, 16, 22, 22)
    torch.testing.assert_close(module.got[:, 5 * 22 + 7], stem(x)[:, :, 5, 7])
    torch.testing.assert_close(y, F.conv2d(stem(x), module.linear.weight[:, :, None, None], module.linear.bias))
    assert tasks.task("handovers").fits("made") and not tasks.task("two_exposures").fits("made")


def test_a_module_for_one_size_gets_the_size_of_the_place(pretend):
    pretend("se", cls=ForOneSize, example={"channels": 64, "height": 12, "width": 16})
    assert tasks.task("crossed_wires").network("made")[3].sizes == (16, 11, 8)
    pretend("gated", cls=ForOneSize, example={"channels": 64, "height": 12, "width": 16})
    with pytest.raises(ValueError, match="'made' is made for one size of input; in task 'two_exposures' the sizes"):
        tasks.task("two_exposures").network("made")


def test_a_module_whose_options_do_not_suit_the_place_does_not_fit(pretend):
    """By layout it would: but a hundred is no reduction of sixteen channels."""
    pretend("cbam", example={"channels": 128, "reduction": 100})
    before = torch.get_rng_state()
    assert tasks.task("lamplit_digits").fits("cbam") and not tasks.task("contact_sheet").fits("made")
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="reduction=100 must be at most channels=32"):
        tasks.task("contact_sheet").network("made")


def test_a_place_that_widens_takes_modules_that_can_and_others_behind_a_convolution():
    task = tasks.task("point_or_dust")
    x = torch.rand(2, 1, 24, 32)
    for module in (None, "se", "sk"):
        assert task.network(module)[0](x).shape == (2, 8, 24, 32)
    assert isinstance(task.network("sk")[0], attn_lib.entry("sk").cls)
    assert isinstance(task.network("se")[0][1], attn_lib.entry("se").cls)


def test_modules_come_by_id_by_class_and_by_function():
    SE, task = attn_lib.entry("se").cls, tasks.task("lamplit_digits")
    hidden = {module: task.network(module)[3].W1.weight.shape for module in ("se", SE, lambda C: SE(C, reduction=4))}
    assert list(hidden.values()) == [(16, 16), (16, 16), (4, 16)]
    assert isinstance(task.network(nn.BatchNorm2d)[3], nn.BatchNorm2d)
    for wrong, message in ((nn.ReLU(), r"module=ReLU\(…\) is made already"), (7, "module=7 must be the id of a module"),
                           (lambda C: C, r"module\(16\) must be an nn.Module, not int"), ("sen", "id='sen'")):
        with pytest.raises(ValueError, match=message):
            task.network(wrong)


# ---- comparing -------------------------------------------------------------------------------------------------------


def test_compare_is_one_line_and_the_same_as_by_hand():
    task = tasks.task("spectral_lines")
    found = tasks.compare("spectral_lines", ["se", "eca", None], seeds=(0, 3), steps=3)
    builders = {"se": lambda: task.network("se"), "eca": lambda: task.network("eca"), "none": task.network}
    by_hand = toys.compare(builders, *task.data(), seeds=(0, 3), metric=task.score, **{**task.training, "steps": 3})
    assert found.scores == by_hand.scores and found.loss == by_hand.loss and len(found.loss["se"][0]) == 3
    assert list(found.scores) == ["se", "eca", "none"] and isinstance(found, toys.Scores)


def test_compare_takes_names_data_and_a_score():
    test = tuple(t[:8] for t in data("spectral_lines")[1])
    train = rows("spectral_lines", 16)
    found = tasks.compare(tasks.task("spectral_lines"), {"a gate": "eca"}, seeds=(0,), steps=2, batch=8,
                          data=(train, test), metric=lambda net, test: (len(test[0]), net.training))
    assert found.scores == {"a gate": [(8, True)]}


def test_compare_refuses_before_it_trains(monkeypatch):
    monkeypatch.setattr(toys.train, "fit", None)
    for modules, message in ((["eca", "pyraformer"], "module 'pyraformer' takes B L C"), ("se", "must be a list"),
                             ([lambda C: nn.ReLU(), lambda C: nn.Tanh()], "names <lambda>, <lambda>"),
                             (["se", "se"], "names se, se")):
        with pytest.raises(ValueError, match=message):
            tasks.compare("spectral_lines", modules)


# ---- chance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", TRAINED)
def test_who_cannot_solve_a_task_scores_at_its_chance(id):
    task, test = tasks.task(id), data(id)[1]
    own = import_module(f"tests.unit.tasks.test_{id}")
    assert hasattr(own, "ignorant"), f"{own.__file__} must say in ignorant(*inputs) how to answer without solving it"
    if task.score is toys.accuracy:  # it wants parameters
        found = (answers(Says(own.ignorant), *test[:-1]).argmax(1) == test[-1]).float().mean().item()
    else:
        found = task.score(Says(own.ignorant), test)
    within = 0.05 if task.score_name != "dB" else 0.1
    assert found == pytest.approx(task.chance, abs=within * (0.1 if hasattr(own, "EXACT") else 1))


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ALL)
def test_the_picture_draws(id):
    figure = tasks.task(id).picture()
    assert figure.png.startswith(b"\x89PNG") and len(figure.alt) > 40 and figure.title.endswith("?")
