"""The command line: see the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .. import notebooks
from . import __doc__ as description
from .deck import SlidesError, write


def main() -> int:
    """Write the decks that are named."""
    parser = argparse.ArgumentParser(prog="python -m book.tools.slides", description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapters", nargs="*", help="channel/se, se or a path; none: all")
    parser.add_argument("--output", type=Path, default=notebooks.ROOT / "_build" / "slides")
    options = parser.parse_args()
    for path in notebooks.find(options.chapters):
        try:
            print(write(path, options.output.resolve()).as_uri())
        except SlidesError as error:
            return notebooks.complain([str(error)])
    print("Press S for the speaker's view, F for the full screen; ?print-pdf behind the address prints.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
