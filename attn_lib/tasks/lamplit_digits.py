"""Read one of two digits; the light in the scene decides which.

A photograph stands under a warm or a cold lamp. In front of it hangs a small black display that glows by itself: one
handwritten digit in red, another in blue, on the same pixels. Under warm light the red one counts, under cold light
the blue one. So every channel is worth reading in half of the images and misleading in the other half, and nothing
on the display says which half this is: the answer lies in the colour of the photograph around it, on average only,
since a single patch of a photograph may be reddish or bluish under any lamp.

The display is wide enough that two 3 × 3 convolutions, the second with stride 2, see no photograph from where they
see digit. Photographs and digits of the test part do not occur in the training part. The photographs are
white-balanced (equal mean in red, green and blue), as a camera delivers them.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from ..checks import check_choice
from ..toys.data import digits
from ..toys.images import cut, image
from ._catalog import Task

SIZE = 22  # pixels of the whole scene
DISPLAY = slice(3, 19)  # rows and columns of the black display
INK = slice(7, 15)  # rows and columns of the 8 × 8 digits
LAMP = 0.7  # warm: red · e^0.7, blue · e^-0.7; cold: the other way round
CHANNELS = 16  # of the feature map that a gate gets
BLIND = 0.55  # best accuracy of whoever answers alike under both lamps: right in ½, by luck in 1/10 of the rest
PHOTOGRAPHS = {
    "train": ("astronaut", "coffee", "cells", "retina", "hubble"),
    "test": ("cat", "rocket", "motorcycle"),
}


def sampler(part: str = "train", lamp: float = LAMP, *,
            told: bool = False) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """A function that draws fresh scenes, as `toys.fit` wants it.

    Args:
        part: `"train"` or `"test"`: disjoint photographs and disjoint handwriting.
        lamp: strength of the light, > 0; the smaller, the harder to tell warm from cold.
        told: leave out the digit that does not count.

    Returns:
        `draw(batch, generator) -> (scenes (batch, 3, 22, 22), labels (batch,))`.

    Raises:
        ValueError: if there is no such part.
    """
    photographs, ink, labels = _material(part)

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        photo = photographs[torch.randint(len(photographs), (batch,), generator=generator)]
        red, blue = torch.randint(len(ink), (2, batch), generator=generator)
        warm = torch.rand(batch, generator=generator) < 0.5
        shown = ink[red], ink[blue]
        if told:
            shown = shown[0] * warm[:, None, None], shown[1] * ~warm[:, None, None]
        scene = compose(photo, *shown, torch.where(warm, lamp, -lamp))
        return scene, torch.where(warm, labels[red], labels[blue])

    return draw


def held_out(n: int = 1024, seed: int = 0, lamp: float = LAMP, *, told: bool = False) -> tuple[Tensor, Tensor]:
    """`n` scenes and labels of the test part, the same at every call."""
    return sampler("test", lamp, told=told)(n, torch.Generator().manual_seed(seed))


def compose(photo: Tensor, red: Tensor, blue: Tensor, lamp: float | Tensor) -> Tensor:
    """Put the parts of a scene together.

    Args:
        photo: `(..., 3, 22, 22)` in [0, 1]; or k times that size, for a scene to look at: display and digits grow
            along.
        red: `(..., 8, 8)` in [0, 1], the digit drawn in red.
        blue: `(..., 8, 8)` in [0, 1], the digit drawn in blue.
        lamp: a number or `(...)`: red is multiplied by e^lamp and blue by e^-lamp; warm > 0 > cold.

    Returns:
        A scene of the photograph's size, clipped to [0, 1] as a sensor does.

    Raises:
        ValueError: if the photograph is not square, or its side is no multiple of 22.
    """
    k, rest = divmod(photo.shape[-1], SIZE)
    if rest or k == 0 or photo.shape[-2] != photo.shape[-1]:
        raise ValueError(f"photo has shape {tuple(photo.shape)}; it must be square, its side a multiple of {SIZE}")
    display, ink = (slice(k * part.start, k * part.stop) for part in (DISPLAY, INK))
    lamp = torch.as_tensor(lamp, dtype=photo.dtype).expand(photo.shape[:-3])
    light = torch.stack([lamp, torch.zeros_like(lamp), -lamp], dim=-1).exp()
    scene = (photo * light[..., None, None]).clamp(0, 1)
    scene[..., :, display, display] = 0
    for channel, digit in ((0, red), (2, blue)):
        scene[..., channel, ink, ink] = digit.repeat_interleave(k, -2).repeat_interleave(k, -1)
    return scene


def white_balance(photo: Tensor) -> Tensor:
    """Scale each channel of `(3, H, W)` to the same mean, 0.3, and clip to [0, 1]."""
    return (0.3 * photo / photo.mean((1, 2), keepdim=True)).clamp(0, 1)


def parts(part: str = "test") -> tuple[Tensor, Tensor, Tensor]:
    """What scenes are made of: windows of photographs `(P, 3, 22, 22)`, digits `(D, 8, 8)`, their labels `(D,)`."""
    photographs, ink, labels = _material(part)
    return photographs.clone(), ink.clone(), labels.clone()


@cache
def _material(part: str) -> tuple[Tensor, Tensor, Tensor]:
    check_choice("part", part, PHOTOGRAPHS)
    zooms = (white_balance(image(name, size)) for name in PHOTOGRAPHS[part] for size in (30, 44, 60))
    ink, labels = digits(part)
    return cut(zooms, (SIZE, SIZE), 4), ink[:, 0], labels


class _Display(nn.Module):
    """Of a map of 11 × 11 the positions that see the digits, and no photograph."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 3:9, 3:9].flatten(1)


def _network(make: Callable[[], nn.Module]) -> nn.Sequential:
    """Two convolutions, the second of stride 2, with the gate between them, and a linear layer on the display."""
    gate = make()
    return nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(),
        gate,
        nn.Conv2d(CHANNELS, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        _Display(), nn.Linear(8 * 6 * 6, 10),
    )


def _picture():
    from ..viz import images

    _, ink, digit = parts("test")
    street = white_balance(image("motorcycle", 4 * SIZE))
    scenes = {f"{name}: it is {digit[number]}": compose(street, ink[3], ink[7], lamp)
              for name, number, lamp in (("warm", 3, LAMP), ("cold", 7, -LAMP))}
    return images(scenes, title="Which of the two digits counts?", ncols=2,
                  alt="A photograph of a motorcycle in warm and in cold light, each with a black square in the middle "
                      "in which a red 7 and a blue 4 overlap.")


TASK = Task(
    id="lamplit_digits",
    question=__doc__.partition("\n")[0],
    chapters=("se", "eca"),
    data=lambda: (sampler(), held_out()),
    told=lambda: (sampler(told=True), held_out(told=True)),
    layout="B C H W", channels=CHANNELS, size=(SIZE, SIZE),
    build=_network,
    options=dict(reduction=1, groups=1),
    chance=BLIND,
    training=dict(steps=200, batch=20, lr=1e-2),
    picture=_picture,
)
