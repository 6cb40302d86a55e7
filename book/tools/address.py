"""The book's public address: kept in `_config.yml` alone, written from there into everything that names it.

What is installed from it is the version that names it: of a release its tag, between releases the branch.

    python -m book.tools.address --check     list the places that disagree; exit status 1 if there are any
    python -m book.tools.address --write     make them agree

The set-up cells of the notebooks, the Colab links, the badges and the project's metadata are such places.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from . import release

ROOT = Path(__file__).resolve().parents[2]

NAME = r"[\w.-]+"
GITHUB = rf"https://github\.com/{NAME}/{NAME}"


class Address(NamedTuple):
    """Where the book lives."""

    repository: str  # https://github.com/owner/name
    branch: str
    version: str  # of attn_lib

    @property
    def source(self) -> str:
        """What pip installs attn_lib from, behind `git+`: a release's chapters install that release, next year too."""
        return f"{self.repository}@{self.branch if self.version.endswith('.dev0') else f'v{self.version}'}"

    @property
    def slug(self) -> str:
        """owner/name."""
        return self.repository.removeprefix("https://github.com/")

    @property
    def site(self) -> str:
        """The published site (GitHub Pages)."""
        owner, name = self.slug.split("/")
        return f"https://{owner.lower()}.github.io/{name}"

    @property
    def colab(self) -> str:
        """What stands before a notebook's path in its Colab link."""
        return f"https://colab.research.google.com/github/{self.slug}/blob/{self.branch}"


# Which files, what stands there, and what must stand there. Chapters and pages also link other people's repositories
# and sites, so there only the forms that can mean nothing but this book are touched.
FRONT = ("README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", ".github/**/*.yml")
TEXT = (*FRONT, "book/**/*.md", "chapters/**/*.ipynb")
RULES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("pyproject.toml",), rf'(?<=^Repository = "){GITHUB}', "repository"),
    (("pyproject.toml",), rf'(?<=^Issues = "){GITHUB}', "repository"),
    (("pyproject.toml",), rf'(?<=^Changelog = "){GITHUB}', "repository"),
    (("pyproject.toml",), r'(?<=^Homepage = ")[^"]+', "site"),
    (("CITATION.cff",), r'(?<=^repository-code: ")[^"]+', "repository"),
    (TEXT, r"(?<=git\+)https?://[^\s\"'\\]+", "source"),
    (("chapters/**/*.ipynb",), r'(?<=attn_lib\.__version__ != \\")[^\\"]+', "version"),
    (TEXT, r"(?<=git clone )https?://[^\s\"'\\]+", "repository"),
    (FRONT, rf"{GITHUB}(?=/(?:issues|discussions|releases|compare|commits|actions/workflows)\b)", "repository"),
    (TEXT, rf"https://colab\.research\.google\.com/github/{NAME}/{NAME}/blob/{NAME}", "colab"),
    (FRONT, rf"https://[\w-]+\.github\.io/{NAME}", "site"),
)


def read_address(root: Path = ROOT) -> Address:
    """The address in `_config.yml`.

    Raises:
        ValueError: if it is not a GitHub repository; Colab and Pages links can be derived only from one.
    """
    repository = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["repository"]
    url = repository["url"].rstrip("/").removesuffix(".git")
    if not re.fullmatch(GITHUB, url):
        raise ValueError(f"repository.url={url!r} in _config.yml must have the form https://github.com/<owner>/<name>")
    return Address(url, repository["branch"], release.version(root))


def files(root: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in sorted(root.glob(pattern)) if ".ipynb_checkpoints" not in path.parts)


def disagreements(root: Path = ROOT) -> list[str]:
    """Every place that names another address than `_config.yml`, as "file:line: is …, must be …"."""
    address = read_address(root)
    found = []
    for patterns, expression, part in RULES:
        wanted = getattr(address, part)
        for path in files(root, patterns):
            text = path.read_text(encoding="utf-8")
            for match in re.finditer(expression, text, re.MULTILINE):
                if match[0] != wanted:
                    line = text.count("\n", 0, match.start()) + 1
                    found.append(f"{path.relative_to(root).as_posix()}:{line}: is {match[0]}, must be {wanted}")
    return found


def write(root: Path = ROOT) -> list[str]:
    """Make every place agree with `_config.yml`; returns the files that changed."""
    address = read_address(root)
    changed = []
    for patterns, expression, part in RULES:
        wanted = getattr(address, part)
        for path in files(root, patterns):
            before = path.read_bytes().decode("utf-8")
            after = re.sub(expression, lambda _, wanted=wanted: wanted, before, flags=re.MULTILINE)
            if after != before:
                fresh = path.with_name(path.name + ".tmp")
                fresh.write_bytes(after.encode("utf-8"))
                os.replace(fresh, path)
                changed.append(path.relative_to(root).as_posix())
    return sorted(set(changed))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true")
    action.add_argument("--write", action="store_true")
    if parser.parse_args(argv).write:
        for path in write():
            print(f"wrote {path}")
    left = disagreements()
    print("\n".join(left) or f"Everything agrees with {read_address().repository}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
