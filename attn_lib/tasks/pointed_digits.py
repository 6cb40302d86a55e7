"""Two digits in a dark room; a small light, or a thin frame, says which of the two counts.

Two black screens stand before a dim photograph. Each shows a handwritten digit, one in green, the other in magenta.
Which of the two counts is said in one of two ways. A *light*, a few pixels anywhere on the photograph, has the colour
of the digit that counts: it says *what* to look for. Or a *frame* stands around the digit that counts: it says
*where* to look. Half of the scenes have a light, the other half a frame.

The light is brighter than anything else and so small that the mean of the picture hardly knows of it. The frame
keeps a distance of two pixels from the ink: a 3 × 3 convolution of stride 2 sees ink or frame, never both, and a 7 × 7
window on its output sees the frame from everywhere in the ink (`INK` are the rows and columns of that output which
see ink). Photographs and handwriting of the test part do not occur in the training part.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_choice
from ..toys.data import digits
from ..toys.images import cut, image
from ._catalog import Task

if TYPE_CHECKING:
    from ..viz import Figure

SIZE = (24, 40)  # pixels of a scene
SCREENS = (2, 22)  # first column of the two screens of 16 × 16; their first row is 4
INK = ((slice(4, 9), slice(3, 8)), (slice(4, 9), slice(13, 18)))  # behind a 3 × 3 convolution of stride 2
KINDS = 4  # the digits 0, 1, 2 and 3
DIM, GLOW, LIGHT = 0.3, 0.4, 3  # brightness of the photograph, of ink and frame (the light has 1); side of the light
CHANNELS = 12  # of the feature map that a gate gets
BLIND = 0.5 + 0.5 / KINDS  # best accuracy of whoever cannot tell which digit counts, if all kinds were equally frequent
CUES = ("light", "frame")
PHOTOGRAPHS = {
    "train": ("astronaut", "coffee", "cells", "retina", "hubble"),
    "test": ("cat", "rocket", "motorcycle"),
}

_GREEN = torch.tensor([0.0, 1.0, 0.0])
_FRAME = F.pad(torch.ones(14, 14) - F.pad(torch.ones(12, 12), (1, 1, 1, 1)), (1, 1, 1, 1))  # 16 × 16, one pixel wide


def sampler(
    part: str = "train", cues: tuple[str, ...] = CUES, light: int = LIGHT
) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """A function that draws fresh scenes, as `toys.fit` wants it.

    Args:
        part: `"train"` or `"test"`: disjoint photographs and disjoint handwriting.
        cues: which of `CUES` occur, equally often.
        light: side of the light in pixels, 1 to 4.

    Returns:
        `draw(batch, generator) -> (scenes (batch, 3, 24, 40), labels (batch,))`.

    Raises:
        ValueError: for an unknown part or cue, or a light out of range.
    """
    if not cues or not set(cues) <= set(CUES):
        raise ValueError(f"cues={cues!r} must be some of {', '.join(CUES)}")
    if light not in range(1, 5):
        raise ValueError(f"light={light!r} must be an integer from 1 to 4")
    photographs, ink, labels = _material(part)
    lit = torch.tensor([cue == "light" for cue in cues])

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        def pick(n: int, *shape: int) -> Tensor:
            return torch.randint(n, (batch, *shape), generator=generator)

        photo, digit, green, counts = photographs[pick(len(photographs))], pick(len(ink), 2), pick(2), pick(2)
        row, below, col = pick(5 - light), pick(2), pick(SIZE[1] + 1 - light)
        place = torch.stack([row + 20 * below, col], 1)
        scenes = compose(photo, ink[digit], green, counts, lit[pick(len(cues))], place, light)
        return scenes, labels[digit].gather(1, counts[:, None])[:, 0]

    return draw


def held_out(cue: str, n: int = 512, seed: int = 0, light: int = LIGHT) -> tuple[Tensor, Tensor]:
    """`n` scenes and labels of the test part, all with the same kind of cue; the same at every call."""
    return sampler("test", (cue,), light)(n, torch.Generator().manual_seed(seed))


def compose(
    photo: Tensor, ink: Tensor, green: Tensor, counts: Tensor, lit: Tensor, place: Tensor, light: int = LIGHT
) -> Tensor:
    """Put the parts of B scenes together.

    Args:
        photo: `(B, 3, 24, 40)` in [0, 1]; dimmed here.
        ink: `(B, 2, 8, 8)` in [0, 1], the left and the right digit.
        green: `(B,)`, 0 where the left digit is the green one, 1 where the right is; the other is magenta.
        counts: `(B,)`, 0 where the left digit counts, 1 where the right does.
        lit: `(B,)`, True where a light says so, False where a frame does.
        place: `(B, 2)`, row and column of the light's upper left pixel.
        light: side of the light in pixels.

    Returns:
        Scenes `(B, 3, 24, 40)`.
    """
    scene = DIM * photo
    for side, first in enumerate(SCREENS):
        frame = (~lit & (counts == side))[:, None, None, None] * _FRAME
        digit = _colour(green == side)[:, :, None, None] * F.pad(ink[:, side], (4, 4, 4, 4))[:, None]
        scene[:, :, 4:20, first : first + 16] = GLOW * torch.maximum(frame, digit)
    (top, left), (H, W) = place[:, :, None].unbind(1), SIZE
    rows, cols = torch.arange(H) - top, torch.arange(W) - left
    on = ((rows >= 0) & (rows < light))[:, :, None] & ((cols >= 0) & (cols < light))[:, None] & lit[:, None, None]
    return torch.where(on[:, None], _colour(green == counts)[:, :, None, None], scene)


def parts(part: str = "test") -> tuple[Tensor, Tensor, Tensor]:
    """What scenes are made of: windows of photographs `(P, 3, 24, 40)`, digits `(D, 8, 8)`, their labels `(D,)`."""
    photographs, ink, labels = _material(part)
    return photographs.clone(), ink.clone(), labels.clone()


def _colour(green: Tensor) -> Tensor:
    """(B,) of bool → (B, 3): green or magenta."""
    return torch.where(green[:, None], _GREEN, 1 - _GREEN)


@cache
def _material(part: str) -> tuple[Tensor, Tensor, Tensor]:
    check_choice("part", part, PHOTOGRAPHS)
    zooms = (image(name, size) for name in PHOTOGRAPHS[part] for size in (60, 90))
    ink, labels = digits(part)
    return cut(zooms, SIZE, 5), ink[labels < KINDS, 0], labels[labels < KINDS]


class _Screens(nn.Module):
    """Of both screens the 5 × 5 positions that see ink."""

    def forward(self, y: Tensor) -> Tensor:
        return torch.cat([y[:, :, rows, cols].flatten(1) for rows, cols in INK], 1)


def _network(make: Callable[[], nn.Module]) -> nn.Sequential:
    """A convolution of stride 2, the gate, and a linear layer that reads the positions which see ink."""
    gate = make()
    return nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(),
        gate, _Screens(), nn.Linear(2 * CHANNELS * 5 * 5, KINDS),
    )


def _data() -> tuple[Callable[[int, torch.Generator], tuple[Tensor, Tensor]], tuple[Tensor, ...]]:
    lit, framed = (held_out(cue) for cue in CUES)
    return sampler(), tuple(torch.cat(pair) for pair in zip(lit, framed, strict=True))


def _picture() -> "Figure":
    from ..viz import images

    photographs, ink, digit = parts("test")
    scenes = {}
    for cue, counts in (("light", 0), ("frame", 1)):
        green, side, lit = (torch.tensor([v]) for v in (0, counts, cue == "light"))
        pair, place = ink[[14, 4]][None], torch.tensor([[0, 18]])
        scene = compose(photographs[[120]], pair, green, side, lit, place)[0]
        scenes[f"a {cue}: it is {digit[(14, 4)[counts]]}"] = scene.sqrt()
    return images(scenes, title="Which of the two digits counts?", ncols=2,
                  alt="A dim room with two black screens, a green digit on the left one and a magenta digit on the "
                      "right one. In the first picture a small green light stands between them at the top; in the "
                      "second a thin frame surrounds the right digit.")


TASK = Task(
    id="pointed_digits",
    question=__doc__.partition("\n")[0],
    chapters=("cbam",),
    data=_data,
    layout="B C H W", channels=CHANNELS, size=(12, 20),
    build=_network,
    options=dict(reduction=1, groups=1),
    chance=BLIND,
    training=dict(steps=140, batch=32, lr=8e-3),
    picture=_picture,
)
