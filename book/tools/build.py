"""Build the site: what `make book` runs.

Sphinx works in `_build/work`, kept from one run to the next so that a rebuild reads only what changed. A build without
a warning is then published to `_build/html` by renaming, so a reader never meets a half-written site. A run that fails
or is interrupted leaves its mark, and the next one starts afresh: Sphinx would not repeat a warning about a page it has
cached.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "_build"
WORK = BUILD / "work"
# A change in one of these concerns every page.
SHARED_INPUTS = ("_config.yml", "_toc.yml", "requirements.txt", "book/_ext/*.py", "attn_lib/catalog.py",
                 "attn_lib/measure/recorded/*.json", "attn_lib/viz/explore/explorer.*")


def fingerprint() -> str:
    """Digest of the inputs that every page depends on, and of the Python that reads them."""
    digest = hashlib.sha256(sys.version.encode())
    for pattern in SHARED_INPUTS:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


FRONT = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<link rel="icon" href="data:,">
<meta http-equiv="Refresh" content="0; url={first}">
</head>
<body><p><a href="{first}">{title}</a></p></body>
</html>
"""


def front_page() -> str:
    """The site's root, which forwards to the first page.

    Jupyter Book's own is a bare tag, for which a browser asks the server for an icon that does not exist.
    """
    config, toc = (yaml.safe_load((ROOT / name).read_text(encoding="utf-8")) for name in ("_config.yml", "_toc.yml"))
    return FRONT.format(title=escape(config["title"]), first=escape(f"{toc['root']}.html"))


def publish(html: Path, target: Path) -> None:
    """Put a copy of `html` at `target` in one step; what was there stays whole until then."""
    fresh, old = target.with_name(target.name + ".new"), target.with_name(target.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(html, fresh)
    if target.exists():
        os.rename(target, old)
    os.rename(fresh, target)
    shutil.rmtree(old, ignore_errors=True)


def build() -> int:
    """Run Jupyter Book; returns its exit status."""
    finished = WORK / "finished"  # holds the fingerprint of the last complete build
    now = fingerprint()
    if not (finished.exists() and finished.read_text() == now):
        shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True, exist_ok=True)
    finished.unlink(missing_ok=True)
    jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command = [*jupyter_book, "build", str(ROOT), "--path-output", str(WORK), "-W", "-n", "--keep-going"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    status = subprocess.run(command, cwd=ROOT, env=env).returncode
    if status == 0:
        (WORK / "_build" / "html" / "index.html").write_text(front_page(), encoding="utf-8")
        publish(WORK / "_build" / "html", BUILD / "html")
        finished.write_text(now)
    return status


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    status = build()
    page = BUILD / "html" / "index.html"
    if status == 0:
        print(f"\nThe site is at {page.as_uri()}")
    else:
        print("\nThe site was not built: see the warnings above.", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
