"""The command line: `python -m book.tools.anatomy [channel/se …]`."""

import argparse
import sys

from .. import notebooks
from . import Chapter, problems


def main() -> int:
    """Print the problems of the chapters that are named, or of all."""
    parser = argparse.ArgumentParser(
        prog="python -m book.tools.anatomy", description="Check that chapters have every part of a chapter."
    )
    parser.add_argument("chapters", nargs="*", help="channel/se, se or a path; none: all")
    paths = notebooks.find(parser.parse_args().chapters)
    found = [f"{path.stem}: {problem}" for path in paths for problem in problems(Chapter.load(path))]
    print(f"{len(paths)} chapters, {len(found)} problems")
    return notebooks.complain(found)


if __name__ == "__main__":
    sys.exit(main())
