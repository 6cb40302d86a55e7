"""The task of the chapter on gating: what is noisy where, and that it can be told."""

import pytest
import torch

from attn_lib.tasks import three_cameras


def test_one_camera_is_broken_and_each_equally_often():
    x, true, broken = three_cameras.shots(60)
    assert x.shape == (60, 3, 48, 48) and true.shape == (60, 1, 48, 48)
    assert torch.bincount(broken).tolist() == [20, 20, 20]
    noise = (x - true).std((2, 3))
    assert torch.equal(noise.argmax(1), broken)
    assert noise.gather(1, broken[:, None]).mean().item() == pytest.approx(0.3, rel=0.02)
    assert noise.sort(1).values[:, :2].mean().item() == pytest.approx(0.03, rel=0.02)
    with pytest.raises(ValueError, match="n=10 must be a multiple of 3"):
        three_cameras.shots(10)


def test_every_lens_is_dirty_in_another_quarter():
    x, true = three_cameras.dirty_lenses(20)
    noise = (x - true).unflatten(3, (2, 24)).unflatten(2, (2, 24)).std((3, 5)).flatten(2)  # 20 3 4
    dirty = noise > 0.15
    assert (dirty.sum(2) == 1).all() and (dirty.sum(1) <= 1).all()


def test_same_seed_same_shots():
    for make in (three_cameras.shots, three_cameras.dirty_lenses):
        assert torch.equal(make(6)[0], make(6)[0]) and not torch.equal(make(6)[0], make(6, seed=1)[0])
