"""A progress bar for long work: tqdm's where it is installed, else a plain counter."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress(items: Sequence[T], label: str = "") -> Iterable[T]:
    """Iterate over `items`, showing on the error stream how many are done."""
    try:
        from tqdm import tqdm
    except ImportError:
        return _counter(items, label)
    bar: Iterable[T] = tqdm(items, desc=label, file=sys.stderr)
    return bar


def _counter(items: Sequence[T], label: str) -> Iterator[T]:
    for done, item in enumerate(items):
        print(f"\r{label} {done}/{len(items)}", end="", file=sys.stderr, flush=True)
        yield item
    print(f"\r{label} {len(items)}/{len(items)}", file=sys.stderr, flush=True)
