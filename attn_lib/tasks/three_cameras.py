"""Three cameras at one scene, of which some cannot be trusted: which one, or where, changes from shot to shot."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..toys.images import image, image_names
from ._catalog import Task

if TYPE_CHECKING:
    from ..viz import Figure

SIZE = 48
NOISE = 0.03  # of a sound camera
HEAVY = 0.3  # of a broken one, or of a dirty quarter of a lens


def shots(n: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Shots in which one camera is broken; each is in a third of them.

    Args:
        n: number of shots, a multiple of 3.
        seed: of scenes, noise and who is broken.

    Returns:
        What the cameras deliver, (n, 3, 48, 48); the scene, (n, 1, 48, 48), in [0, 1]; the broken camera, (n,).

    Raises:
        ValueError: if 3 does not divide n.
    """
    if n % 3:
        raise ValueError(f"n={n} must be a multiple of 3, so that every camera is broken equally often")
    g = torch.Generator().manual_seed(seed)
    scenes = _scenes(n, g)
    broken = (torch.arange(n) % 3)[torch.randperm(n, generator=g)]
    noise = torch.full((n, 3), NOISE).scatter(1, broken[:, None], HEAVY)
    return scenes + noise[..., None, None] * torch.randn(n, 3, SIZE, SIZE, generator=g), scenes, broken


def dirty_lenses(n: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Shots in which each lens is dirty in one quarter of its picture, no two in the same.

    Returns:
        What the cameras deliver, (n, 3, 48, 48), and the scene, (n, 1, 48, 48), in [0, 1].
    """
    g = torch.Generator().manual_seed(seed)
    scenes = _scenes(n, g)
    quarters = torch.stack([torch.randperm(4, generator=g)[:3] for _ in range(n)])
    dirt = torch.nn.functional.one_hot(quarters, 4).view(n, 3, 2, 2)
    dirt = dirt.repeat_interleave(SIZE // 2, 2).repeat_interleave(SIZE // 2, 3)
    noise = NOISE + (HEAVY - NOISE) * dirt
    return scenes + noise * torch.randn(n, 3, SIZE, SIZE, generator=g), scenes


def _scenes(n: int, g: torch.Generator) -> Tensor:
    """Windows of grey photographs, (n, 1, 48, 48): each photograph in turn, each window at a random place."""
    names = image_names()
    result = []
    for i in range(n):
        photograph = image(names[i % len(names)]).mean(0)
        top, left = (int(torch.randint(length - SIZE + 1, (), generator=g)) for length in photograph.shape)
        result.append(photograph[top:top + SIZE, left:left + SIZE])
    return torch.stack(result)[:, None]


def _data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The cameras' pictures and the scene; the windows of both parts come from the same photographs."""
    return shots(171)[:2], shots(57, seed=1)[:2]


def _picture() -> "Figure":
    from ..viz import images

    x, _, _ = shots(9)
    return images({f"camera {c}": x[8, c].clamp(0, 1) for c in range(3)}, ncols=3, title="Which camera is broken?",
                  alt="Three pictures of the same scene, one of them under heavy noise.")


# Only shown: the chapter on gating makes its gate by hand, and trains nothing. So there is no network.
TASK = Task(
    id="three_cameras",
    question=__doc__.partition("\n")[0],
    chapters=("gating",),
    data=_data,
    score_name="none",
    picture=_picture,
)
