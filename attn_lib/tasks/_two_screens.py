"""Two digits on one display; something about the whole map says which of them counts. What, is the task's own.

A map has sixteen channels. Each shows a photograph of its own, and in front of it, in the middle, hangs a black
display. Two handwritten digits are written there on the same pixels: one in the even channels (screen A), one in the
odd ones (screen B). The answer is the digit of one screen. The display says nothing about which; the backgrounds do,
by their light, their contrast, their likeness. In everything else that a gate might go by they are made equal, not on
average but exactly: each channel has the same mean and the same standard deviation over its background, unless one
of these is the cue.

The module in question gets this map itself, without any layer before it. So what its squeeze cannot tell apart no
training will teach it, and a gate that cannot see the cue acts alike in both cases. Behind it, two layers read the
display alone, in which no cue can be seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checks import check_choice
from ..toys.data import digits
from ..toys.images import cut, image
from ._catalog import Task

if TYPE_CHECKING:
    from ..viz import Figure

SIZE = 22  # pixels of a map
DISPLAY = slice(3, 19)  # rows and columns of the black display
INK = slice(7, 15)  # rows and columns of the 8 × 8 digits
CHANNELS = 16  # even: screen A; odd: screen B
MEAN, STD = 0.5, 0.15  # of every background
BLIND = 0.55  # best accuracy of whoever answers alike in both cases: right in ½, by luck in 1/10 of the rest
PHOTOGRAPHS = {
    "train": ("astronaut", "coffee", "camera", "cells", "retina", "gravel"),
    "test": ("cat", "rocket", "motorcycle", "coins"),
}
TRAINING = dict(steps=300, batch=32, lr=1e-2)

# (photographs (n, 16, 22, 22), A counts (n,), generator) -> backgrounds (n, 16, 22, 22)
Cue = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class TwoScreens:
    """A task on two screens, made from its cue.

    Attributes:
        cue: from photographs `(n, 16, 22, 22)`, for whom A counts `(n,)` and a generator to backgrounds, which are
            then laid behind the display.
        exposure: makes the factors `(n,)` by which whole maps are multiplied, from `(n, part, generator)`; None for 1.
    """

    cue: Cue
    exposure: Callable[[int, str, torch.Generator], Tensor] | None = None

    def sampler(self, part: str = "train", *, told: bool = False) -> Callable[[int, torch.Generator],
                                                                              tuple[Tensor, Tensor]]:
        """A function that draws fresh maps, as `toys.fit` wants it.

        Args:
            part: `"train"` or `"test"`: disjoint photographs and disjoint handwriting.
            told: leave out the digit that does not count. Whoever reads these does all that a gate can help to do.

        Returns:
            `draw(batch, generator) -> (maps (batch, 16, 22, 22), labels (batch,))`.

        Raises:
            ValueError: if there is no such part.
        """
        _, ink, labels = material(part)

        def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            photographs = windows(part, batch, generator)
            a, b = torch.randint(len(ink), (2, batch), generator=generator)
            first = torch.rand(batch, generator=generator) < 0.5
            backgrounds = self.cue(photographs, first, generator)
            shown = torch.stack([ink[a], ink[b]], 1)
            if told:
                shown = shown * torch.stack([first, ~first], 1)[..., None, None]
            maps = compose(backgrounds, shown)
            if self.exposure:
                maps = maps * self.exposure(batch, part, generator)[:, None, None, None]
            return maps, torch.where(first, labels[a], labels[b])

        return draw

    def held_out(self, n: int = 1024, seed: int = 0, *, told: bool = False) -> tuple[Tensor, Tensor]:
        """`n` maps and labels of the test part, the same at every call."""
        return self.sampler("test", told=told)(n, torch.Generator().manual_seed(seed))

    def pairs(self, n: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of the test part in pairs that differ in the cue alone, at exposure 1.

        Returns:
            Maps `(n, 2, 16, 22, 22)`, first those in which A counts; the digits of A and of B, `(n,)` each.
        """
        _, ink, labels = material("test")
        generator = torch.Generator().manual_seed(seed)
        photographs = windows("test", n, generator)
        a, b = torch.randint(len(ink), (2, n), generator=generator)
        state, maps = generator.get_state(), []
        for first in (True, False):
            generator.set_state(state)
            backgrounds = self.cue(photographs, torch.full((n,), first), generator)
            maps.append(compose(backgrounds, torch.stack([ink[a], ink[b]], 1)))
        return torch.stack(maps, 1), labels[a], labels[b]

    def task(self, id: str, question: str, chapters: tuple[str, ...], alt: str, **changed: Any) -> Task:
        """The row of the table of tasks; `alt` describes the picture, `changed` are other values of `Task`."""
        return Task(**{**dict(
            id=id,
            question=question,
            chapters=chapters,
            data=lambda: (self.sampler(), self.held_out()),
            told=lambda: (self.sampler(told=True), self.held_out(told=True)),
            layout="B C H W", channels=CHANNELS, size=(SIZE, SIZE),
            build=network,
            options=dict(reduction=1, groups=1, reduced=CHANNELS, codewords=8),
            chance=BLIND,
            training=TRAINING,
            picture=lambda: self.picture(alt),
        ), **changed})

    def picture(self, alt: str) -> "Figure":
        """Channels 2 (of A) and 3 (of B), in a map where A counts and in its twin where B does."""
        from ..viz import images

        maps, a, b = self.pairs()
        shown = {f"{case}, {screen}": maps[0, i, 2 + j].clamp(0, 1)
                 for i, case in enumerate((f"A counts: {a.item()}", f"B counts: {b.item()}"))
                 for j, screen in enumerate("AB")}
        return images(shown, title="Which of the two digits counts?", ncols=4, alt=alt)


def compose(backgrounds: Tensor, shown: Tensor) -> Tensor:
    """Hang the display in front.

    Args:
        backgrounds: `(n, 16, 22, 22)`.
        shown: `(n, 2, 8, 8)`, in [0, 1]: the digits of screens A and B.

    Returns:
        Maps `(n, 16, 22, 22)`.
    """
    maps = backgrounds.clone()
    maps[..., DISPLAY, DISPLAY] = 0
    maps[..., INK, INK] = shown.repeat(1, CHANNELS // 2, 1, 1)  # A, B, A, B, …
    return maps


def around() -> Tensor:
    """`(22, 22)`, bool: the positions of the background."""
    mask = torch.ones(SIZE, SIZE, dtype=torch.bool)
    mask[DISPLAY, DISPLAY] = False
    return mask


def level(backgrounds: Tensor, mean: float | Tensor = MEAN, std: float | Tensor = STD) -> Tensor:
    """Give every channel the same mean and standard deviation over its background.

    Args:
        backgrounds: `(n, 16, 22, 22)`.
        mean, std: numbers, or tensors that broadcast with `(n, 16, 1, 1)`.
    """
    mask = around()
    share = mask / mask.sum()
    deviation = backgrounds - (backgrounds * share).sum((-2, -1), keepdim=True)
    spread = (deviation.square() * share).sum((-2, -1), keepdim=True).sqrt()
    return mean + deviation / spread * std



def windows(part: str, n: int, generator: torch.Generator) -> Tensor:
    """Grey windows of photographs `(n, 16, 22, 22)`, drawn as often as their mirror images."""
    photographs, _, _ = material(part)
    return photographs[torch.randint(len(photographs), (n, CHANNELS), generator=generator)]


@cache
def material(part: str) -> tuple[Tensor, Tensor, Tensor]:
    """Windows and their mirror images `(4P, 22, 22)`, digits `(D, 8, 8)`, their labels `(D,)`."""
    check_choice("part", part, PHOTOGRAPHS)
    zooms = (image(name, size) for name in PHOTOGRAPHS[part] for size in (44, 66))
    grey = cut(zooms, (SIZE, SIZE), 4).mean(1)
    ink, labels = digits(part)
    grey = grey[grey[:, around()].std(1) > 0.05]
    return torch.cat([grey, grey.flip(1), grey.flip(2), grey.flip(1, 2)]), ink[:, 0], labels


class Display(nn.Module):
    """Of a map the positions of the digits, in units of their root mean square: whatever the exposure."""

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., INK, INK]
        return x / (x.square().mean((1, 2, 3), keepdim=True) + 1e-12).sqrt()


def network(make: Callable[[], nn.Module]) -> nn.Sequential:
    """The module on the map itself, then two layers that read the display."""
    return nn.Sequential(
        make(), Display(), nn.Conv2d(CHANNELS, 8, 1), nn.Flatten(),
        nn.Linear(8 * 8 * 8, 64), nn.ReLU(), nn.Linear(64, 10),
    )
