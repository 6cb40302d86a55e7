"""What explorers of frames hold: sliders with names, and at each setting a figure with a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from ..figures import Figure
from ..words import symbol
from .panels import number

_WORDS = 4  # of a sentence, at least: fewer only repeat the slider
_UNREADABLE = re.compile(r"\d\.\d{7,}|\d[eE][-+]?\d\d")


@dataclass(frozen=True)
class Slider:
    """A slider: the argument of `draw` that it sets, its name on the page, and the values it takes."""

    argument: str
    name: str
    values: list[Any]


@dataclass(frozen=True)
class Frame:
    """What `draw` returned, and for which setting, in words."""

    figure: Figure
    sentence: str
    setting: str


def read_slider(argument: str, given: Any) -> Slider:
    """The slider meant by `argument=(name, values)` or `argument=values`.

    Raises:
        ValueError: fewer than two values, or a name that is empty or a bare symbol.
    """
    named = isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str) and not _is_value(given[1])
    name, values = given if named else (argument.replace("_", " "), given)
    if _is_value(values) or len(values) < 2:
        raise ValueError(f"{argument}={given!r} must be a list of at least two values, or (name, values)")
    if not re.search(r"[^\W\d_]{3}", name) or name == argument != symbol(argument):
        raise ValueError(f"the slider {argument!r} needs a name that a reader knows, not {name!r}: "
                         f'{argument}=("width of the kernel {symbol(argument)}", [...])')
    return Slider(argument, name, [v.item() if isinstance(v, np.generic) else v for v in values])


def draw_frame(draw: Callable[..., tuple[Figure, str]], setting: Mapping[str, Any]) -> Frame:
    """The figure and the sentence of one setting.

    Raises:
        ValueError: `draw` returns anything else, or a text of the frame is missing or cannot be read.
    """
    called = f"draw({', '.join(f'{name}={value!r}' for name, value in setting.items())})"
    drawn = draw(**setting)
    if isinstance(drawn, Figure):
        raise ValueError(f"{called} must return (figure, sentence): what does the reader see at this setting?")
    if not (isinstance(drawn, tuple) and len(drawn) == 2 and isinstance(drawn[0], Figure)):
        raise ValueError(f"{called} must return a viz.Figure and a sentence, not {type(drawn).__name__}")
    figure, sentence = drawn
    if not isinstance(sentence, str) or len(sentence.split()) < _WORDS:
        raise ValueError(f"{called} says {sentence!r}: it must say in a sentence what the reader sees at this setting")
    for what, text in (("says", sentence), ("has the alt", figure.alt), ("has the title", figure.title)):
        if found := _UNREADABLE.search(text):
            raise ValueError(f"{called} {what} {text!r}: round its numbers ({found[0]!r})")
    return Frame(figure, sentence, called)


def check_all_differ(frames: Sequence[Frame]) -> None:
    """Each frame says what is seen at its own setting.

    Raises:
        ValueError: two frames have the same sentence, or the same alternative text.
    """
    for what, text_of in (("sentence", attrgetter("sentence")), ("alt", attrgetter("figure.alt"))):
        seen: dict[str, Frame] = {}
        for frame in frames:
            other = seen.setdefault(text_of(frame), frame)
            if other is not frame:
                raise ValueError(f"{other.setting} and {frame.setting} have the same {what}, {text_of(frame)!r}: "
                                 "what differs between them?")


def value_text(value: Any) -> str:
    """A slider's value as a person reads it: 0.3 for 0.30000000000000004."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return number(value, 3) if isinstance(value, float) else f"{value:,}".replace("-", "−")


def _is_value(given: Any) -> bool:
    """Whether it is a single value rather than a list of them."""
    return isinstance(given, str) or not isinstance(given, Sequence | np.ndarray)
