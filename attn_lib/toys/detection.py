"""A detection set on disk, as YOLO's trainers read it: handwritten digits written onto photographs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice, check_int
from .data import digits
from .images import image

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
    photographs = [image(name) for name in PHOTOGRAPHS[part]]
    ink, labels = digits(part)
    of_class = [ink[labels == digit] for digit in classes]

    def draw(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    for _ in range(n):
        photograph = photographs[draw(len(photographs))]
        top, left = (draw(side - size + 1) for side in photograph.shape[1:])
        scene = 0.6 * photograph[:, top:top + size, left:left + size]
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


def read_detection_set(path: str | Path, part: str) -> tuple[Tensor, list[Tensor]]:
    """What `detection_set` has written.

    Args:
        path: of `data.yaml`.
        part: "train" or "test".

    Returns:
        Images `(n, 3, size, size)` in [0, 1], and for each its boxes `(k, 5)`: class, and centre x, centre y, width and
        height as fractions of the image.

    Raises:
        ValueError: if there is no such part.
    """
    from skimage import io

    check_choice("part", part, PHOTOGRAPHS)
    images, boxes = [], []
    for label in sorted((Path(path).parent / "labels" / part).iterdir()):
        pixels = io.imread(Path(path).parent / "images" / part / f"{label.stem}.png")
        images.append(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
        lines = label.read_text(encoding="utf-8").splitlines()
        boxes.append(torch.tensor([[float(number) for number in line.split()] for line in lines]))
    return torch.stack(images), boxes


def share_found(detections: Tensor, boxes: Sequence[Tensor], size: int, overlap: float = 0.5) -> float:
    """The share of all digits that are found by as many detections as there are digits on the image.

    Of each image its k surest detections count, where k digits stand on it, so that nothing is won by guessing often. A
    digit is found by a detection of its class whose box shares more than `overlap` of the area that the two cover.

    Args:
        detections: `(n, m, 6)`: x1, y1, x2, y2 in pixels, the score and the class, as a YOLOv10 returns them.
        boxes: as from `read_detection_set`.
        size: of the images, in pixels.
        overlap: the least intersection over union, in (0, 1).
    """
    found = total = 0
    for rows, wanted in zip(detections, boxes, strict=True):
        best = rows[rows[:, 4].argsort(descending=True)][:len(wanted)]
        centre, half = wanted[:, 1:3] * size, wanted[:, 3:] * size / 2
        low, high = (centre - half)[:, None], (centre + half)[:, None]
        shared = (torch.minimum(high, best[:, 2:4]) - torch.maximum(low, best[:, :2])).clamp(min=0).prod(2)
        covered = (high - low).prod(2) + (best[:, 2:4] - best[:, :2]).prod(1) - shared
        hits = (shared > overlap * covered) & (wanted[:, :1] == best[:, 5])
        found += int(hits.any(1).sum())
        total += len(wanted)
    return found / total
