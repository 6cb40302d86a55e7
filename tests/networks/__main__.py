"""Put modules into other people's networks and see what survives: `python -m tests.networks` (`make test-networks`).

Writes book/networks.json, from which the page is made, row by row: a run that is interrupted goes on where it ended.
The status is 0; 1 where something that was recorded as working does not any more; 130 after an interruption.
"""

import argparse
import copy
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from attn_lib.measure.progress import progress
from book.tools.networks import FILE, KEY, NO, YES, parted, unexplained
from book.tools.record import load, replace, up_to_date, write
from tests.networks import matrix
from tests.networks.networks import NETWORKS, plan

Key = tuple[str, str | None]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.networks", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", metavar="NAME", choices=NETWORKS, default=[*NETWORKS],
                        help=f"only these: {', '.join(NETWORKS)}")
    parser.add_argument("--modules", nargs="+", metavar="ID", help="only these, and the networks alone")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes, one thread each")
    parser.add_argument("--again", action="store_true", help="run also what is recorded from this state of the library")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    options = parser.parse_args(arguments)

    order, now, data = plan(), matrix.stamp(), load(options.out)
    before = copy.deepcopy(data)
    known = {module for _, module in order}
    if strange := [id for id in options.modules or () if id not in known]:
        parser.error(f"--modules {strange[0]}: the plan has no such module")
    if missing := [name for name in matrix.PACKAGES if now[name] is None]:
        print(f"not installed, so that what needs them is not run: {', '.join(missing)}", file=sys.stderr)
    done = set() if options.again else up_to_date(data, now, KEY)
    wanted = [(network, module) for network, module in order if network in options.networks
              and NETWORKS[network].installed and module in {None, *(options.modules or known)}]
    left = [key for key in wanted if key not in done]
    try:
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn"),
                                 matrix.quietly) as pool:
            for stage in ([key for key in left if key[1] is None], [key for key in left if key[1] is not None]):
                alone = {row["network"]: row["cells"] for row in data["rows"] if row["module"] is None}
                for row in completed(pool, stage, alone):
                    data = replace(data, row, now, order, KEY)
                    write(data, options.out)
    except KeyboardInterrupt:
        print(f"\ninterrupted: what was finished is in {options.out}; the same command goes on", file=sys.stderr)
        return 130
    return tell(before, data, wanted)


def completed(pool: ProcessPoolExecutor, keys: list[Key], alone: dict[str, dict[str, str]]) -> Iterator[matrix.Row]:
    """Rows as they are finished, with a progress bar."""
    futures = [pool.submit(matrix.run, *key, alone.get(key[0]) if key[1] else None) for key in keys]
    try:
        for _, future in zip(progress(keys, "rows"), as_completed(futures), strict=True):
            yield future.result()
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def tell(before: dict, after: dict, wanted: Iterable[Key]) -> int:
    rows = [row for row in after["rows"] if (row["network"], row["module"]) in set(wanted)]
    verdicts = [parted(cell)[0] for row in rows for cell in row["cells"].values()]
    refused = sum("refused" in row for row in rows)
    print(f"{len(rows)} rows, {refused} of them refused; {verdicts.count(YES)} cells yes, {verdicts.count(NO)} no")
    worse, better = matrix.changes(before, after)
    for title, lines in (("now works", better), ("does not work any more", worse)):
        print("".join(f"{title}: {line}\n" for line in lines), end="")
    for sentence in unexplained(after):
        print(f"not explained yet (book/tools/networks.py): {sentence}")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
