"""`attn_lib/_create.pyi`: what `attn_lib.create` takes and returns for each id, for editors and type checkers.

    python -m book.tools.signatures --check   whether the file is that of the catalog; exit status 1 if not
    python -m book.tools.signatures --write   writes it
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap

import attn_lib
from attn_lib import catalog

from .notebooks import ROOT

PATH = ROOT / "attn_lib" / "_create.pyi"
HEAD = '''\
"""What `attn_lib.create` takes and returns for each id. Made by `python -m book.tools.signatures --write`."""

from typing import Any, Literal, overload

import torch
import torch.nn.modules

'''
LAST = '''\
@overload
def create(id: str, *arguments: Any, **options: Any) -> torch.nn.Module: ...
'''


def stub() -> str:
    """The text of the file, from the signatures of the classes."""
    ids = attn_lib.list_modules()
    classes = [catalog.entry(id).cls for id in ids]
    imports = "".join(f"from .{cls.__module__.removeprefix('attn_lib.')} import {cls.__name__}\n"
                      for cls in sorted(classes, key=lambda cls: cls.__module__))
    return HEAD + imports + "\n" + "".join(_overload(id, catalog.entry(id).cls) for id in ids) + LAST


def _overload(id: str, cls: type) -> str:
    parameters = list(inspect.signature(cls).parameters.values())
    id_first = inspect.Parameter("id", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=f'Literal["{id}"]')
    listed = [_written(p) for p in [id_first, *parameters]]
    keyword_only = next(i for i, p in enumerate(parameters, 1) if p.kind is p.KEYWORD_ONLY)
    listed.insert(keyword_only, "*")
    lines = textwrap.fill(", ".join(s.replace(" ", "\0") for s in listed), 112, break_long_words=False,
                          break_on_hyphens=False, initial_indent="    ", subsequent_indent="    ").replace("\0", " ")
    return f"@overload\ndef create(\n{lines},\n) -> {cls.__name__}: ...\n"


def _written(p: inspect.Parameter) -> str:
    kind = p.annotation if isinstance(p.annotation, str) else inspect.formatannotation(p.annotation)
    kind = re.sub(r"\bNoneType\b", "None", kind).replace("collections.abc.", "")
    return f"{p.name}: {kind}" + ("" if p.default is p.empty else f" = {p.default!r}")


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0 if the file is current, or was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true")
    action.add_argument("--write", action="store_true")
    if parser.parse_args(argv).write:
        PATH.write_text(stub(), encoding="utf-8")
    elif not PATH.exists() or PATH.read_text(encoding="utf-8") != stub():
        print(f"{PATH.relative_to(ROOT)} is not that of the catalog: python -m book.tools.signatures --write",
              file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
