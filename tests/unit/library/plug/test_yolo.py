"""The catalogue in a YOLO's YAML. What needs ultralytics runs in `inside_ultralytics.py`, a process for each version.

Ultralytics (AGPL) is no part of the test environment: `make ultralytics` puts each version that is named in the folder
beside this file into a folder of its own, `.ultralytics/<version>` or `$ULTRALYTICS/<version>`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import attn_lib
from attn_lib.plug import yolo
from book.tools.build import ROOT

HERE = Path(__file__).parent
VERSIONS = sorted(path.stem for path in (HERE / "ultralytics_versions").glob("*.txt"))
INSTALLED = Path(os.environ.get("ULTRALYTICS", ROOT / ".ultralytics"))
TAKE_NO_MAPS = {"gltr", "mtgnn", "pyraformer", "ram", "tam", "vit"}  # series, tokens, video, a map and a place
MODULES = sorted(set(attn_lib.list_modules()) - TAKE_NO_MAPS)


@pytest.mark.parametrize("version", VERSIONS)
def test_yolo_of_ultralytics(version, tmp_path):
    if not (INSTALLED / version / "ultralytics").is_dir():
        pytest.skip(f"no ultralytics {version} in {INSTALLED}: run `make ultralytics`")
    path = os.pathsep.join([str(ROOT), str(INSTALLED / version), os.environ.get("PYTHONPATH", "")])
    settings = {
        "YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false",
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # older versions load whole models, which torch 2.6 refuses
    }
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "inside_ultralytics.py")],
        env={**os.environ, **settings, "PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True,
    )
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2_000:]


def test_there_is_a_newest_version_and_an_older_one():
    assert len(VERSIONS) == 2
    for version in VERSIONS:
        assert f"ultralytics=={version}\n" in (HERE / "ultralytics_versions" / f"{version}.txt").read_text()


def test_every_module_that_takes_maps_is_among_those_for_yolo():
    assert [id for id in attn_lib.list_modules() if yolo.takes_maps(attn_lib.entry(id))] == MODULES


@pytest.mark.parametrize("id", MODULES)
def test_a_module_says_how_many_channels_it_returns(id):
    """`out_channels`, where they are not those that it is given: the next layer of a YAML is built for them."""
    entry = attn_lib.entry(id)
    for variant in (None, *entry.variants):
        if set(entry.layout_of(variant).tensors) == {yolo.MAP} and len(entry.output_of(variant).tensors) == 1:
            module, inputs = attn_lib.example(id, variant)
            with torch.no_grad():
                y = module.eval()(*inputs)
            assert getattr(module, "out_channels", entry.options(variant)["channels"]) == y.shape[1], variant


def test_without_ultralytics_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(ModuleNotFoundError, match=r"ultralytics is not installed; .*pip install ultralytics"):
        yolo.register()


def test_a_fusion_hands_the_list_on():
    gated = attn_lib.create("gated", channels=4)
    a, b = torch.rand(2, 2, 4, 5, 6)
    assert torch.equal(yolo.Fusion(gated)([a, b]), gated(a, b))
    assert not torch.equal(gated(a, b), gated(b, a))
