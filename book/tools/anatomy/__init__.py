"""Check that a chapter has every part of a chapter: `python -m book.tools.anatomy [channel/se …]`.

Each check takes a `Chapter` and returns a list of problems, an empty one if all is well; `CHECKS` holds them in the
order in which they are reported. The signs they look for are listed in CONTRIBUTING.md. They stand by what they are
about:

- `parts`: the opening, the parts and their order, what each part holds;
- `prose`: equations, citations, links;
- `code`: the code of the cells;
- `axes`: the names of axes in patterns;
- `outputs`: stored outputs and figures;
- `exercises`: exercises, and what nbgrader makes of them.
"""

from . import parts, prose, code, axes, outputs, exercises  # isort: skip  # in the order in which problems are reported
from .chapter import CHECKS, Chapter, problems

__all__ = ["CHECKS", "Chapter", "axes", "code", "exercises", "outputs", "parts", "problems", "prose"]
