"""Explorers with a kernel: ipywidgets that call Python again for every setting."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_WHOLE_NAME: dict[str, Any] = {
    "style": {"description_width": "initial"}, "layout": {"width": "30rem", "max_width": "100%"},
}


def kernel_with_widgets() -> bool:
    """Whether this runs in a Jupyter kernel in which ipywidgets is installed."""
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    if getattr(shell, "kernel", None) is None:
        return False
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        return False
    return True


def controls(sliders: Mapping[str, Any], show: Callable[..., tuple[str, str]], title: str) -> Any:
    """Widgets over a view.

    Args:
        sliders: name → widget with a `value`.
        show: called with the sliders' values by name; returns an `<img>` and a line of text.
        title: the caption.

    Returns:
        The `ipywidgets` box. A setting that `show` refuses shows its error in place of the picture.
    """
    import ipywidgets as w

    view = w.HTML()

    def update(change: Any = None) -> None:
        try:
            image, text = show(**{name: _rounded(slider.value) for name, slider in sliders.items()})
        except Exception as error:
            image, text = "", f"{type(error).__name__}: {error}"
        text = f"<div style='white-space: pre-line; line-height: 1.5'>{html.escape(text)}</div>"
        view.value = f"<b>{html.escape(title)}</b><br>{image}{text}"

    for slider in sliders.values():
        slider.observe(update, names="value")
    update()
    return w.VBox([*sliders.values(), view])


def index_slider(name: str, n: int, start: int) -> Any:
    """A slider over 0 … n - 1."""
    import ipywidgets as w

    return w.IntSlider(value=start, min=0, max=n - 1, description=name, **_WHOLE_NAME)


def share_slider(name: str) -> Any:
    """A slider over [0, 1], at 1."""
    import ipywidgets as w

    return w.FloatSlider(value=1.0, min=0.0, max=1.0, step=0.1, readout_format=".0%", description=name, **_WHOLE_NAME)


def setting_slider(name: str, values: list[Any], text: Callable[[Any], str]) -> Any:
    """A slider over `values`, and between them where they are at least three evenly spaced numbers."""
    import ipywidgets as w

    options: dict[str, Any] = {"description": name, "continuous_update": False, **_WHOLE_NAME}
    whole = all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    if len(values) > 2 and (whole or all(isinstance(v, float) for v in values)):
        steps = np.diff(np.array(values, dtype=float))
        if steps[0] > 0 and np.allclose(steps, steps[0]):
            options |= {"value": values[0], "min": values[0], "max": values[-1]}
            if whole:
                return w.IntSlider(**options)
            return w.FloatSlider(step=float(steps[0]) / 10, readout_format=".3g", **options)
    return w.SelectionSlider(options=[(text(v), v) for v in values], value=values[0], **options)


def _rounded(value: Any) -> Any:
    """0.3 for the 0.30000000000000004 that a slider's steps add up to."""
    return float(f"{value:.9g}") if isinstance(value, float) else value
