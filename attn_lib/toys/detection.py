"""A detection set on disk, as YOLO's trainers read it: handwritten digits written onto photographs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_int
from .data import digits
from .images import cut, image

PHOTOGRAPHS = {
    "train": ("astronaut", "coffee", "cells", "retina", "hubble"),
    "test": ("cat", "rocket", "motorcycle"),
}
MOST = 3  # digits on an image, at least one
SCALES = (2, 3)  # pixels of the image to a pixel of the 8 × 8 handwriting


def detection_set(folder: str | Path, *, train: int = 64, test: int = 32, size: int = 96,
                  classes: Sequence[int] = tuple(range(10)), seed: int = 0) -> Path:
    """Write images with one to three digits each, and where the digits are.

    Photographs and handwriting of the test part do not occur in the training part. Digits are bright, of 16 or 24
    pixels, and do not overlap. In `folder` are then `images/train`, `images/test` (PNG), `labels/train`,
    `labels/test` (one line a digit: class, centre x, centre y, width, height, as fractions of the image) and
    `data.yaml`.

    Args:
        folder: where to; made if there is none.
        train, test: numbers of images, at least 1.
        size: height and width in pixels, 64 to 256.
        classes: the digits that occur, each once; the first is class 0.
        seed: of everything that is drawn.

    Returns:
        The path of `data.yaml`, what `YOLO.train` calls `data`.

    Raises:
        ValueError: for an argument out of range.
    """
    check_int("train", train), check_int("test", test)
    if not 64 <= check_int("size", size) <= 256:
        raise ValueError(f"size={size} must be from 64 to 256")
    if not classes or len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
        raise ValueError(f"classes={classes!r} must name digits from 0 to 9, each once")
    folder = Path(folder).resolve()
    generator = torch.Generator().manual_seed(seed)
    for part, n in (("train", train), ("test", test)):
        for i, (scene, boxes) in enumerate(_scenes(part, n, size, tuple(classes), generator)):
            _write(folder, part, i, scene, boxes)
    names = "".join(f"  {i}: '{digit}'\n" for i, digit in enumerate(classes))
    path = folder / "data.yaml"
    path.write_text(f"path: {folder.as_posix()}\ntrain: images/train\nval: images/test\nnames:\n{names}",
                    encoding="utf-8")
    return path


def _scenes(part: str, n: int, size: int, classes: tuple[int, ...], generator: torch.Generator
            ) -> Iterator[tuple[Tensor, list[tuple[int, int, int, int]]]]:
    """`n` scenes (3, size, size) in [0, 1], each with its boxes (class, top, left, side) in pixels."""
    backgrounds = cut([image(name) for name in PHOTOGRAPHS[part]], (size, size), size // 2)
    ink, labels = digits(part)
    of_class = [ink[labels == digit] for digit in classes]

    def draw(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    for _ in range(n):
        scene = 0.6 * backgrounds[draw(len(backgrounds))]
        boxes: list[tuple[int, int, int, int]] = []
        while len(boxes) < 1 or (len(boxes) < MOST and draw(2)):
            label, side = draw(len(classes)), 8 * SCALES[draw(len(SCALES))]
            top, left = draw(size - side + 1), draw(size - side + 1)
            if any(top < y + s and y < top + side and left < x + s and x < left + side for _, y, x, s in boxes):
                continue  # it would overlap another one
            digit = F.interpolate(of_class[label][draw(len(of_class[label]))][None], size=side, mode="bilinear")[0]
            place = scene[:, top:top + side, left:left + side]
            place += (1 - place) * digit
            boxes.append((label, top, left, side))
        yield scene, boxes


def _write(folder: Path, part: str, i: int, scene: Tensor, boxes: list[tuple[int, int, int, int]]) -> None:
    from PIL import Image

    size = scene.shape[-1]
    for name in ("images", "labels"):
        (folder / name / part).mkdir(parents=True, exist_ok=True)
    pixels = (255 * scene).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(folder / "images" / part / f"{i:04}.png")
    lines = [f"{label} {(left + side / 2) / size:.6f} {(top + side / 2) / size:.6f} {side / size:.6f} {side / size:.6f}"
             for label, top, left, side in boxes]
    (folder / "labels" / part / f"{i:04}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
