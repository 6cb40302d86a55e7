"""Figures made of pictures: photographs, feature maps, heat maps and sampling points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.patches import Rectangle

from . import style
from .arrays import Floats, Numbers, Panels, called, finite, grey, of_panel, panels, to_array, to_image
from .figures import Figure
from .picture_grid import PictureGrid, average, upsample


def images(images: Panels, *, title: str, alt: str, ncols: int | None = None) -> Figure:
    """Photographs side by side.

    Args:
        images: one picture, a list, or a dict name → picture; each `(H, W)`, `(H, W, 3)` or `(3, H, W)`,
            float in [0, 1] or uint8.
        title: the question the figure answers.
        alt: alternative text.
        ncols: pictures in a row.

    Raises:
        ValueError: a picture of another shape or range, an empty title or alt.
    """
    if isinstance(images, list | tuple):
        images = {" " * i: picture for i, picture in enumerate(images)}  # blanks: names that differ and draw nothing
    named = panels(images)
    pictures = [to_image(v, called("images", k)) for k, v in named.items()]
    grid = PictureGrid([p.shape[:2] for p in pictures], list(named), ncols)
    sheet = grid.sheet(title, alt)
    with sheet as fig:
        for i, ax in enumerate(grid.axes(fig)):
            ax.imshow(grid.reduce(pictures[i], i), cmap="gray", vmin=0, vmax=1, aspect="auto")
    return sheet.figure


def channels(
    x: Numbers, *, title: str, alt: str, n: int = 16, signed: bool | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """The first channels of a feature map as a grid, all on one colour scale.

    Args:
        x: `(C, H, W)`.
        title: the question the figure answers.
        alt: alternative text.
        n: how many channels to show at most.
        signed: diverging map with symmetric limits; `None` decides by whether a value is negative.
        names: one label a channel shown; their numbers otherwise.

    Raises:
        ValueError: `x` is not `(C, H, W)`, `n` < 1, too few names, an empty title or alt.
    """
    maps = to_array(x, "x", 3)
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    maps = maps[:n]
    if names is not None and len(names) < len(maps):
        raise ValueError(f"names has {len(names)} entries: it must name each of the {len(maps)} channels shown")
    low, high, cmap = style.colour_scale([maps], signed)
    labels = [str(names[i]) if names is not None else str(i) for i in range(len(maps))]
    grid = PictureGrid([maps.shape[1:]] * len(maps), labels, bar=True, widest=2.4)
    sheet = grid.sheet(title, alt)
    with sheet as fig:
        for i, ax in enumerate(grid.axes(fig)):
            ax.imshow(grid.reduce(maps[i], i), cmap=_steps(cmap), vmin=low, vmax=high, aspect="auto")
        grid.colour_bar(fig, low, high, cmap)
    return sheet.figure


def _steps(cmap: str) -> Colormap:
    """The map in 96 steps: the eye sees no difference, the PNG does."""
    return matplotlib.colormaps[cmap].resampled(96)


def overlay(
    image: Numbers, heat: Panels, *, title: str, alt: str, mark: tuple[float, float] | None = None,
    share: bool = True,
) -> Figure:
    """A heat map over a photograph: the hotter, the more colour; where it is cold the photograph shows in grey.

    Args:
        image: `(H, W)`, `(H, W, 3)` or `(3, H, W)`.
        heat: `(h, w)` of any size, not negative; each of its cells covers its share of the photograph.
            A dict name → heat draws panels.
        title: the question the figure answers.
        alt: alternative text.
        mark: `(row, col)` in pixels of the photograph, marked with a cross-hair.
        share: one colour scale for all panels; `False` gives each its own and writes its maximum beside its name.

    Raises:
        ValueError: wrong shapes, a heat that is negative or not finite, a mark outside the photograph, an empty
            title or alt.
    """
    picture = to_image(image, "image")
    height, width = picture.shape[:2]
    heats = {k: to_array(v, called("heat", k), 2) for k, v in panels(heat).items()}
    for name, h in heats.items():
        which = called("heat", name)
        if finite(h, which).min() < 0:
            raise ValueError(f"{which} has the negative value {h.min():.3g}: a heat map shows magnitudes")
    _check_inside(mark, "mark", height, width)
    brightness = grey(picture)
    top = max(float(h.max()) for h in heats.values()) or 1.0
    peaks = [top if share else float(h.max()) or 1.0 for h in heats.values()]
    labels = [n if share else f"{n}  max {p:.2g}".strip() for n, p in zip(heats, peaks, strict=True)]
    grid = PictureGrid([(height, width)] * len(heats), labels, bar=share)
    sheet = grid.sheet(title, alt)
    with sheet as fig:
        cmap = _steps(style.HEAT)
        for i, (ax, h) in enumerate(zip(grid.axes(fig), heats.values(), strict=True)):
            size = np.minimum(np.maximum(brightness.shape, h.shape), grid.detail(i))
            below, strength = (upsample(average(m, size), size) for m in (brightness, h / peaks[i]))
            alpha = (0.25 + 0.6 * strength)[..., None]
            below = np.round(below * 63)[..., None] / 63  # as many greys as the eye tells apart, for a small PNG
            blend = below * (1 - alpha) + cmap(strength)[..., :3] * alpha
            ax.imshow(blend, extent=(-0.5, width - 0.5, height - 0.5, -0.5), aspect="auto")
            if mark is not None:
                _cross_hair(ax, mark)
        if share:
            grid.colour_bar(fig, 0, top, style.HEAT)
    return sheet.figure


def points(
    image: Panels, points: Panels, *, title: str, alt: str, weights: Panels | None = None,
    anchor: tuple[float, float] | Mapping[Any, tuple[float, float]] | None = None,
) -> Figure:
    """Sampling points on a photograph.

    Args:
        image: `(H, W)`, `(H, W, 3)` or `(3, H, W)`; or a dict with the panels' names.
        points: `(..., 2)`, (row, col) in pixels of the photograph, which may lie outside it. A dict name →
            points draws panels.
        title: the question the figure answers.
        alt: alternative text.
        weights: one number a point (a dict for panels): the area of its disc; unweighted points are equal.
        anchor: `(row, col)` of the output position that samples there (a dict for panels).

    Raises:
        ValueError: wrong shapes, numbers that are not finite, another number of weights than of points, a dict
            that lacks a panel, an empty title or alt.
    """
    named = panels(points)
    drawn = []
    for name, p in named.items():
        label = called("points", name)
        where = finite(to_array(p, label), label)
        if where.ndim == 0 or where.shape[-1] != 2:
            raise ValueError(f"{label} has shape {where.shape}: its last dimension must be 2, (row, col)")
        where = where.reshape(-1, 2)
        weight = of_panel(weights, name, "weights")
        if weight is not None:
            weight = finite(to_array(weight, "weights"), "weights").ravel()
            if len(weight) != len(where):
                raise ValueError(f"weights has {len(weight)} entries for {len(where)} points")
        picture = to_image(of_panel(image, name, "image"), "image")
        drawn.append((picture, where, weight, of_panel(anchor, name, "anchor")))
    frames = [_frame(picture.shape[:2], where) for picture, where, _, _ in drawn]
    grid = PictureGrid([(bottom - top, right - left) for top, bottom, left, right in frames], list(named))
    sheet = grid.sheet(title, alt)
    with sheet as fig:
        for i, ax in enumerate(grid.axes(fig)):
            picture, where, weight, centre = drawn[i]
            height, width = picture.shape[:2]
            ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, color=style.SOFT, linewidth=0, zorder=0))
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            ax.imshow(grid.reduce(picture, i), cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto")
            _dots(ax, where, weight, centre)
            top, bottom, left, right = frames[i]
            ax.set(xlim=(left, right), ylim=(bottom, top))
    return sheet.figure


def _frame(size: Sequence[int], where: Floats) -> tuple[float, float, float, float]:
    """Top, bottom, left, right of what is shown: the photograph, and points beside it up to a quarter of its size."""
    pad, most = 0.04 * max(size), 0.25 * max(size)

    def span(n: int, positions: Floats) -> tuple[float, float]:
        low = min(-0.5, positions.min() - pad) if positions.min() < 0 else -0.5
        high = max(n - 0.5, positions.max() + pad) if positions.max() > n - 1 else n - 0.5
        return max(low, -most), min(high, n + most)

    return *span(size[0], where[:, 0]), *span(size[1], where[:, 1])


def _dots(ax: Axes, where: Floats, weight: Floats | None, centre: tuple[float, float] | None) -> None:
    if centre is not None and len(where) <= 64:
        for row, col in where:
            ax.plot([centre[1], col], [centre[0], row], color="white", linewidth=0.8, alpha=0.7)
    base = 46 if len(where) <= 64 else 14
    area = base if weight is None else base * 1.6 * np.abs(weight) / max(np.abs(weight).max(), 1e-12)
    ax.scatter(where[:, 1], where[:, 0], s=area, color=style.ACCENT, edgecolor="white", linewidth=0.9, zorder=3)
    if centre is not None:
        _cross_hair(ax, centre)


def _cross_hair(ax: Axes, where: tuple[float, float]) -> None:
    for size, colour in ((3.6, "black"), (1.8, "white")):
        ax.plot(where[1], where[0], "+", color=colour, markersize=13, markeredgewidth=size, zorder=4)


def _check_inside(where: tuple[float, float] | None, name: str, height: int, width: int) -> None:
    if where is None:
        return
    row, col = (float(v) for v in where)
    if not (0 <= row <= height - 1 and 0 <= col <= width - 1):
        raise ValueError(f"{name}=({row:g}, {col:g}) must be a (row, col) inside the {height}×{width} photograph")
